/* Who has what: which blocks of the packs one group of disks names alone, and what would be freed
 * if it went. Groups are the caller's: each desktop one, or a pool, or what is to be deleted.
 *
 * Counted, not kept: every map is walked as of the last checkpoint, but for desktops' maps that
 * have nothing in packs, of which the record says all. Blocks in the log belong to one desktop
 * only. */
#ifndef GILD_DISK_CENSUS_H
#define GILD_DISK_CENSUS_H

#include <stddef.h>
#include <stdint.h>

#include "disk/reach.h"
#include "gild/error.h"

struct census;

/* The group of a map, 0 to groups - 1, or CENSUS_OTHER: it counts to none. Called for each map, one
 * at a time. */
#define CENSUS_OTHER SIZE_MAX
typedef size_t census_group(void *context, const struct reach_map *map);

struct census_share {
    uint64_t mapped_blocks; /* with content of its own, in packs and in the log */
    uint64_t log_blocks;    /* of these, in the log */
    uint64_t unique_blocks; /* blocks of packs that no map outside the group names */
    uint64_t unique_bytes;  /* what these take there: each its share of its group's frame */
};

struct census_totals {
    uint64_t mapped_blocks;
    uint64_t log_blocks;
    uint64_t pack_blocks;       /* blocks of packs that some map names */
    uint64_t pack_bytes;        /* their shares of the frames */
    uint64_t dead_blocks;       /* that no map names any more */
    uint64_t dead_bytes;        /* their shares */
    uint64_t packs, pack_files; /* packs; bytes of their files */
};

/* A checkpoint, then the walk. Memory: 4 bytes for each block of the packs. Blocking, off the
 * reactors. Destroy it soon: until then no pack or map is removed. */
int census_take(struct gild_store *store, size_t groups, census_group *group_of, void *context,
                struct census **out, struct gild_error *error);
void census_destroy(struct census *census); /* NULL is fine */

const struct census_share *census_share_of(const struct census *census, size_t group);
void census_get_totals(const struct census *census, struct census_totals *totals);

struct census_freed {
    uint64_t blocks; /* of packs and of the log, that nothing would name any more */
    uint64_t bytes;  /* by which the store becomes smaller once it has been cleaned */
};
/* If all maps of the group went: as collection (cleaner.h) goes about it, which leaves a group of
 * blocks as it is while half of it lives, and a pack while it would not become a tenth smaller. The
 * pages of the maps themselves are not counted. -errno. */
int census_frees(const struct census *census, size_t group, struct census_freed *freed);

#endif
