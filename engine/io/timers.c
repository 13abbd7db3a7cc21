/* Timeouts of one loop (io/timers.h).
 *
 * A node's fields: offset = when it ends, `next` = its next sibling, `backend` = its first child,
 * `buffer` = its previous sibling, or its parent if it is the first child; the root has neither.
 * Invariant: no child ends before its parent. Thread: the loop's. Nothing can fail. */
#include "io/timers.h"

#include <stddef.h>

static struct gild_io *meld(struct gild_io *a, struct gild_io *b) {
    if (!a)
        return b;
    if (!b)
        return a;
    if (b->offset < a->offset) {
        struct gild_io *swap = a;
        a = b;
        b = swap;
    }
    struct gild_io *child = a->backend;
    b->next = child;
    if (child)
        child->buffer = b;
    b->buffer = a;
    a->backend = b;
    return a;
}

/* Melds a list of siblings into one heap: in pairs from the left, then all from the right; without
 * recursion, so that a heap of any shape is safe. */
static struct gild_io *meld_siblings(struct gild_io *first) {
    struct gild_io *pairs = NULL, *result = NULL;
    while (first) {
        struct gild_io *second = first->next;
        struct gild_io *rest = second ? second->next : NULL;
        first->next = first->buffer = NULL;
        if (second)
            second->next = second->buffer = NULL;
        struct gild_io *pair = meld(first, second);
        pair->next = pairs;
        pairs = pair;
        first = rest;
    }
    while (pairs) {
        struct gild_io *pair = pairs;
        pairs = pair->next;
        pair->next = NULL;
        result = meld(result, pair);
    }
    return result;
}

void io_timers_add(struct io_timers *timers, struct gild_io *io) {
    io->next = NULL;
    io->backend = io->buffer = NULL;
    timers->soonest = meld(timers->soonest, io);
}

void io_timers_remove(struct io_timers *timers, struct gild_io *io) {
    struct gild_io *children = meld_siblings(io->backend);
    if (io == timers->soonest) {
        timers->soonest = children;
    } else {
        struct gild_io *before = io->buffer;
        if (before->backend == io)
            before->backend = io->next;
        else
            before->next = io->next;
        if (io->next)
            io->next->buffer = before;
        timers->soonest = meld(timers->soonest, children);
    }
    io->next = NULL;
    io->backend = io->buffer = NULL;
}
