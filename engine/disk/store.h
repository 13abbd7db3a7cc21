/* The store as the folders above see it: what it is made of, and how a disk comes to life.
 *
 * The layout of the directory:
 *   superblock      4 KiB: magic, format, feature bits, id, size limit; flock()ed by the owner
 *   catalogue/      LMDB
 *   packs/          %08x.pack
 *   maps/           %016x.map     sealed maps
 *   log/            %016x.seg     segments
 *   control.sock    the daemon's control door */
#ifndef GILD_DISK_STORE_H
#define GILD_DISK_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog/catalog.h"
#include "gild/disk.h"
#include "gild/store.h"
#include "pack/pack.h"

struct gild_catalog *gild_store_catalog(struct gild_store *store);
struct gild_packs *gild_store_packs(struct gild_store *store);
const uint8_t *gild_store_id(const struct gild_store *store); /* 16 bytes */

/* Runs work on the store's own helper thread (never a reactor), in order of posting. */
void gild_store_run_async(struct gild_store *store, struct gild_task *task);

/* May `bytes` more be stored? 0 or -ENOSPC. For long writers (imports) to ask as they go. */
int gild_store_admit_bytes(struct gild_store *store, uint64_t bytes);

/* Around every ingest, from before its first block to after its catalogue transaction: an ingest
 * may come to depend on any pack, so none is collected meanwhile. */
void gild_store_ingest_begin(struct gild_store *store);
void gild_store_ingest_end(struct gild_store *store);

/* What makes a disk. Exactly one of delta_id and map_id: a delta (its record is in the catalogue),
 * or a sealed map served read-only. */
struct gild_disk_spec {
    const char *path;
    uint64_t delta_id;
    uint64_t map_id;
};

/* The working half of gild_disk_open (which resolves the path, engine/vdi). The disk appears at
 * first use, is shared by all doors, and goes at the last release once nothing of it is dirty. */
int gild_disk_acquire(struct gild_store *store, const struct gild_disk_spec *spec, const char *door,
                      unsigned flags, struct gild_disk **out, bool *writable,
                      struct gild_error *error);

/* Is the disk of this delta or map open through any door? Names the door in *door (may be NULL).
 * Used by delete to refuse with "busy". */
bool gild_disk_in_use(struct gild_store *store, uint64_t delta_id, uint64_t map_id,
                      const char **door);

/* Between these two the named disks can not be acquired (-EBUSY): delete holds them over its
 * transaction. -EBUSY if one is in use. */
int gild_disk_hold(struct gild_store *store, const uint64_t *delta_ids, const uint64_t *map_ids,
                   size_t delta_count, size_t map_count);
void gild_disk_unhold(struct gild_store *store, const uint64_t *delta_ids, const uint64_t *map_ids,
                      size_t delta_count, size_t map_count);

/* Blocks mapped to the log by a delta, live (0 if it was never opened since start and has none). */
uint64_t gild_disk_mapped_blocks(struct gild_store *store, uint64_t delta_id);

/* A sealed map is being deleted: the packs that it named may have more dead blocks now, which a
 * pack collection looks for. Any thread. 0 or -ENOMEM: then only later ones are found. */
struct gild_rec_map;
int gild_store_note_unmapped(struct gild_store *store, const struct gild_rec_map *map);

/* Call after a transaction moved deltas from DELTAS to DROPPED, or deleted map records: the keeper
 * frees in the background what nothing reaches any more. */
void gild_store_collect(struct gild_store *store);

#endif
