/* A delta's map as its last checkpoint left it, range by range, past what is rotten in it. */
#ifndef GILD_DISK_SURVEY_H
#define GILD_DISK_SURVEY_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"
#include "map/node.h"

struct gild_store;

struct survey {
    bool past_errors; /* a node that the device can not read is as a rotten one */
    uint64_t
        first_block; /* what lies before it is left out, but for a range that reaches over it */
    /* Each range of the disk, in order. leaf NULL: all of it is `uniform`; LOST also where a node
     * is rotten. May be NULL. */
    int (*range)(void *context, uint64_t first_block, uint64_t count, const struct gild_leaf *leaf,
                 uint64_t uniform);
    /* Each node that something names, before what is under it. May be NULL. */
    int (*node)(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                bool whole);
    void *context;
};

/* A non-zero return of a visitor ends the survey and is returned. Blocking, off the reactors.
 * -ENOMEM; an error of the device. */
int survey_delta(struct gild_store *store, uint64_t delta_id, const struct gild_rec_delta *record,
                 const struct survey *survey);

#endif
