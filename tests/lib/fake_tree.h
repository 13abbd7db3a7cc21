/* A store of plain memory behind gild/disk.h and gild/store.h, for tests of front ends: the loops
 * are real, the disks are arrays, and every rule of the contract that a front end could break is
 * asserted (alignment, limits, loops, pins, an op that is used twice). */
#ifndef FAKE_TREE_H
#define FAKE_TREE_H

#include <stdatomic.h>

#include "gild/disk.h"
#include "gild/store.h"

enum fake_mode {
    FAKE_INLINE,   /* ops are done at once */
    FAKE_POSTPONE, /* ops are done later, from the top of the loop, some of them out of order */
};

struct fake_counts {
    atomic_uint reads, writes, flushes, trims, zeroes, fua, pinned;
};

struct gild_store *fake_store_create(unsigned reactors, enum gild_loop_backend backend);
void fake_store_destroy(struct gild_store *store); /* all disks must be closed, nothing pinned */
void fake_store_set_mode(struct gild_store *store, enum fake_mode mode);
struct fake_counts *fake_store_counts(struct gild_store *store);

/* A disk of zeroes. Before the first open of it only. */
void fake_store_add(struct gild_store *store, const char *path, uint64_t size_bytes, bool read_only,
                    unsigned reactor);
void fake_store_remove(struct gild_store *store, const char *path);
/* The disk's bytes, as its loop left them; call it again after the loop has worked. */
uint8_t *fake_store_bytes(struct gild_store *store, const char *path);

#endif
