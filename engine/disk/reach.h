/* Walking everything that names blocks of packs: sealed maps and desktops' maps, as of one instant
 * of the catalogue, and so of the last checkpoint. */
#ifndef GILD_DISK_REACH_H
#define GILD_DISK_REACH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "catalog/records.h"
#include "map/node.h"

struct gild_store;

/* A map, sealed or of a delta; the record of the other kind is NULL. */
struct reach_map {
    uint64_t id;
    const struct gild_rec_map *sealed;
    const struct gild_rec_delta *delta;
};

struct reach {
    unsigned threads;
    bool dropped; /* the deltas of deleted disks, too, that are still to be freed */
    /* Is the map to be walked? Asked of each, one at a time: 1, 0, or -errno, which ends it. A
     * delta without a block in a pack is not walked, whatever the answer. */
    int (*wants)(void *context, const struct reach_map *map);
    /* On any of the threads. number: of the map, counted from 0 over those that are wanted. A
     * non-zero return ends it. */
    int (*leaf)(void *context, size_t number, const struct gild_leaf *leaf);
    void *context;
};

/* Blocking, off the reactors. The caller keeps packs and maps from being removed (collect_hold). 0;
 * -EBADMSG: a node is rotten, and nobody knows what it named; -ENOMEM; an error of the device; what
 * a callback returned. */
int reach_walk(struct gild_store *store, const struct reach *reach);

#endif
