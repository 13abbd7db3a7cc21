/* Moving: what the cleaner asks of a disk's reactor. A list of blocks and nodes, each with the
 * place where the cleaner found it; what the map does not reach there any more is left alone (D10).
 *
 * MOVE_SIFT only says which are still reached. MOVE_APPLY takes them elsewhere: a block to the
 * place that is given, which is durable and in the catalogue; or, with its content, to the log's
 * end, as a guest's write would; a node is made dirty, so that the next checkpoint writes it anew.
 *
 * The list's steps are short, so that guests' ops run between them. */
#ifndef GILD_DISK_MOVE_H
#define GILD_DISK_MOVE_H

#include "disk/internal.h"

struct move {
    uint64_t block; /* of the disk; of a node its index */
    uint64_t from;
    uint64_t to; /* a place in a pack, or ZERO; 0: the log's end */
    const void *data;
    uint32_t check; /* of the new place */
    uint32_t age_s; /* to the log's end: for how long the block has been as it is */
    uint8_t node;   /* enum gild_node_kind; 0: a block */
    bool live;      /* sifted: the map reaches it there; applied: it was moved */
};

enum move_what { MOVE_SIFT, MOVE_APPLY };

struct move_op {
    struct gild_op op; /* op.disk is the caller's to set; op.error: what ended it */
    enum move_what what;
    struct move *moves;
    size_t count, at;
    void (*done)(struct move_op *moving); /* on the disk's loop */
    struct gild_task yield;
};

/* Any thread. The list is the op's until `done`. */
void move_post(struct move_op *moving);

#endif
