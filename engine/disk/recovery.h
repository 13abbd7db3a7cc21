/* What the files of a recovery share. Before reactors run, on the opener's thread. */
#ifndef GILD_DISK_RECOVERY_H
#define GILD_DISK_RECOVERY_H

#include "disk/internal.h"
#include "log/recover.h"

struct replay {
    struct gild_store *store;
    struct gild_recover_stream *streams;
    size_t stream_count, stream_room;
    struct gild_disk *last; /* the disk of the entry before */
    uint64_t unknown;       /* a delta that is not there */
    void *page;
    struct gild_error *error;
};

/* recovery.c: the disk of a delta, made if need be. -ENOENT: dropped. */
int recovery_disk(struct replay *replay, uint64_t delta_id, struct gild_disk **out);
/* Loads what the map needs. Pages do not run out (POOL_RESERVED_BYTES), or the replay fails. */
int recovery_satisfy(struct replay *replay, struct gild_disk *disk, enum gild_map_step step,
                     const struct gild_map_need *need);

/* preload.c: the leaves that the replay will change are read ahead of it, many at a time. What can
 * not be had is left to the replay, which meets the same and says so. */
void preload_leaves(struct replay *replay);

#endif
