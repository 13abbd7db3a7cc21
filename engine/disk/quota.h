/* Quotas: how many blocks a disk's delta, and the deltas of a pool's desktops together, may hold.
 *
 * What counts is blocks with content of their own, in the log or in packs, before anything is
 * shared or compressed. Only what makes a delta grow is refused: overwrites, trims, zeroes, reads
 * and flushes go on. A disk's count is its map's, its reactor's own. A pool's is one counter that
 * its disks' reactors add to as their maps change; each looks before it adds, so a pool may come to
 * hold one block more than its quota for each further reactor (7 x 4 KiB at most), and is never
 * refused below it.
 *
 * Threads: what has quota_ in its name and takes a disk is the disk's reactor's; the rest takes
 * store->open_lock. */
#ifndef GILD_DISK_QUOTA_H
#define GILD_DISK_QUOTA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"

struct gild_disk;
struct gild_store;
struct quota_book;

struct quota_pool {
    _Atomic uint64_t limit_blocks; /* UINT64_MAX: none */
    _Atomic uint64_t used_blocks;
    char name[256];
};

/* Of a disk; its reactor's. */
struct disk_quota {
    uint64_t limit_blocks;    /* UINT64_MAX: none */
    struct quota_pool *pool;  /* that is asked, or NULL */
    struct quota_pool *other; /* counted too, while books change */
    uint64_t counted;         /* of the map's blocks, in the pools' counters */
};

/* A new disk in memory: what the book says of its delta. open_lock held, or before reactors run. */
void quota_attach(struct gild_disk *disk);

/* The book as the catalogue has it now. Before reactors run (then disks in memory are attached at
 * once), and after each change of limits, desktops or pools. 0 or -errno: then all stays. */
int quota_load(struct gild_store *store);
void quota_destroy(struct gild_store *store);

/* Blocks of all deltas of a pool that has a quota; false: it has none. */
bool gild_store_pool_use(struct gild_store *store, const char *pool, uint64_t *blocks);

/* Call after a transaction that changed limits, or made or deleted desktops: applies it to open
 * disks, and looks whether refused ones may go on. Blocking, any thread but a reactor's. 0 or
 * -errno. */
int gild_store_limits_changed(struct gild_store *store);

/* What the store may hold at most: its size, or what its file system has. */
uint64_t gild_store_capacity(struct gild_store *store);

/* The store's own limits, as of the last load. */
struct gild_rec_limits quota_limits(struct gild_store *store);

#endif
