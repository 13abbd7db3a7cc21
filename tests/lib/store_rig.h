/* A store in a temporary folder, deltas made straight in its catalogue, and ops that a test can
 * wait for. Aborts the test program where it can not go on. */
#ifndef GILD_TEST_STORE_RIG_H
#define GILD_TEST_STORE_RIG_H

#include <semaphore.h>
#include <stdint.h>

#include "disk/store.h"
#include "gild/disk.h"
#include "gild/store.h"

void store_rig_make(char directory[64], uint64_t size_bytes);
void store_rig_remove(const char *directory);
struct gild_store *store_rig_open(const char *directory, unsigned threads);
void store_rig_close(struct gild_store *store);

/* Deltas first .. first + count - 1, empty. */
void store_rig_deltas(struct gild_store *store, uint64_t size_bytes, uint64_t first,
                      unsigned count);
struct gild_disk *store_rig_disk(struct gild_store *store, uint64_t delta_id);
void store_rig_release(struct gild_disk *disk);

/* Findings of a check, each printed unless `quiet`; the last ones are kept for the test. */
struct store_rig_findings {
    bool quiet;
    unsigned count;
    char text[4096];
};
int store_rig_check(struct gild_store *store, struct store_rig_findings *findings);

/* XXH3 over the names and bytes of all files below a folder, but for LMDB's lock file. */
uint64_t store_rig_hash(const char *directory);

struct store_rig_op {
    struct gild_op op;
    sem_t done;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    struct gild_extent extents[64];
    struct iovec payload;
    uint8_t *into;
    void (*then)(struct store_rig_op *op); /* instead of `done`, on the disk's loop; may be NULL */
};
void store_rig_start(struct store_rig_op *op, struct gild_disk *disk, enum gild_op_kind kind,
                     uint64_t offset, uint64_t length, void *data, uint32_t flags);
int store_rig_wait(struct store_rig_op *op);
int store_rig_do(struct gild_disk *disk, enum gild_op_kind kind, uint64_t offset, uint64_t length,
                 void *data, uint32_t flags);

#endif
