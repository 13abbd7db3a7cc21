/* Quotas hold to the block, over two reactors and restarts; promises do not overflow; events
 * survive a garbled file. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "catalog/records.h"
#include "disk/events.h"
#include "disk/quota.h"
#include "store_rig.h"
#include "vdi/limits.h"

#define BLOCK GILD_BLOCK_BYTES
#define DISK_BYTES ((uint64_t)64 << 20)
#define SLACK 7u /* blocks, as docs/durability.md says */

static uint8_t content[BLOCK];

static int write_block(struct gild_disk *disk, uint64_t block) {
    return store_rig_do(disk, GILD_OP_WRITE, block * BLOCK, BLOCK, content, 0);
}

static void set_disk_quota(struct gild_store *store, uint64_t delta, uint64_t blocks) {
    const struct gild_rec_quota quota = {.quota_bytes = blocks * BLOCK};
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_put_disk_quota(txn, delta, &quota), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    CU_ASSERT_EQUAL(gild_store_limits_changed(store), 0);
}

static void a_disk_holds_its_quota_and_no_block_more(void) {
    char folder[64];
    store_rig_make(folder, 0);
    struct gild_store *store = store_rig_open(folder, 2);
    store_rig_deltas(store, DISK_BYTES, 1, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    set_disk_quota(store, 1, 10);
    for (uint64_t block = 0; block < 10; block++)
        CU_ASSERT_EQUAL(write_block(disk, block), 0);
    CU_ASSERT_EQUAL(write_block(disk, 10), -ENOSPC);
    CU_ASSERT_EQUAL(write_block(disk, 3), 0); /* an overwrite */
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 0, BLOCK, NULL, 0), 0);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_FLUSH, 0, 0, NULL, 0), 0);
    CU_ASSERT_EQUAL(write_block(disk, 10), 0);
    CU_ASSERT_EQUAL(write_block(disk, 0), -ENOSPC);
    /* A part of a block makes the delta grow as a whole one does, and is let go of. */
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 20 * BLOCK, 512, content, 0), -ENOSPC);
    set_disk_quota(store, 1, 11);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 20 * BLOCK, 512, content, 0), 0);
    store_rig_release(disk);
    store_rig_close(store);
    store = store_rig_open(folder, 2);
    disk = store_rig_disk(store, 1);
    CU_ASSERT_EQUAL(write_block(disk, 30), -ENOSPC);
    CU_ASSERT_EQUAL(write_block(disk, 20), 0);
    set_disk_quota(store, 1, 0);
    CU_ASSERT_EQUAL(write_block(disk, 30), 0);
    store_rig_release(disk);
    store_rig_close(store);
    store_rig_remove(folder);
}

#define POOL_BLOCKS 2000u

static void make_pool(struct gild_store *store) {
    const struct gild_rec_quota quota = {.quota_bytes = (uint64_t)POOL_BLOCKS * BLOCK};
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    for (uint64_t delta = 1; delta <= 2; delta++) {
        struct gild_rec_desktop desktop = {
            .image = "win", .version = 1, .pool = "p", .os_delta = delta, .size_bytes = DISK_BYTES};
        unsigned char value[GILD_RECORD_MAX];
        const char *name = delta == 1 ? "a" : "b";
        CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_DESKTOPS, name, 1, value,
                                     gild_rec_desktop_encode(&desktop, value)),
                        0);
    }
    CU_ASSERT_EQUAL(gild_rec_put_pool_quota(txn, "p", &quota), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    CU_ASSERT_EQUAL(gild_store_limits_changed(store), 0);
}

struct filler {
    struct gild_disk *disk;
    unsigned written;
    int error;
};

static void *fill(void *context) {
    struct filler *filler = context;
    while (filler->written < POOL_BLOCKS + 100 && !filler->error)
        if (!(filler->error = write_block(filler->disk, filler->written)))
            filler->written++;
    return NULL;
}

static void two_reactors_share_a_pools_quota(void) {
    char folder[64];
    pthread_t threads[2];
    struct filler fillers[2] = {0};
    uint64_t used;
    store_rig_make(folder, 0);
    struct gild_store *store = store_rig_open(folder, 2);
    store_rig_deltas(store, DISK_BYTES, 1, 2);
    for (unsigned i = 0; i < 2; i++)
        fillers[i].disk = store_rig_disk(store, i + 1);
    CU_ASSERT_EQUAL(write_block(fillers[0].disk, 0), 0); /* before there is a quota */
    make_pool(store);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, fill, &fillers[i]);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CU_ASSERT_EQUAL(fillers[i].error, -ENOSPC);
    }
    unsigned written = fillers[0].written + fillers[1].written;
    CU_ASSERT(written >= POOL_BLOCKS && written <= POOL_BLOCKS + SLACK);
    CU_ASSERT(gild_store_pool_use(store, "p", &used));
    CU_ASSERT_EQUAL(used, written);
    store_rig_release(fillers[0].disk);
    store_rig_release(fillers[1].disk);
    store_rig_close(store);
    store = store_rig_open(folder, 2); /* neither disk is open */
    CU_ASSERT(gild_store_pool_use(store, "p", &used));
    CU_ASSERT_EQUAL(used, written);
    struct gild_disk *disk = store_rig_disk(store, 2);
    CU_ASSERT_EQUAL(write_block(disk, POOL_BLOCKS + 500), -ENOSPC);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 0, 9 * BLOCK, NULL, 0), 0);
    if (fillers[1].written >= 9)
        CU_ASSERT_EQUAL(write_block(disk, POOL_BLOCKS + 500), 0);
    store_rig_release(disk);
    store_rig_close(store);
    store_rig_remove(folder);
}

static void promises_do_not_overflow(void) {
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_NONE, 100), 100);
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_CONSERVATIVE, 100), 400);
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_MODERATE, 100), 700);
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_AGGRESSIVE, 100), 1500);
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_UNBOUNDED, 100), UINT64_MAX);
    CU_ASSERT_EQUAL(gild_overcommit_bound(GILD_OVERCOMMIT_AGGRESSIVE, UINT64_MAX / 2), UINT64_MAX);
}

static int count_event(void *context, const struct gild_event *event) {
    (void)event;
    ++*(unsigned *)context;
    return 0;
}

static void a_garbled_event_is_one_event_lost(void) {
    char folder[64], path[96];
    unsigned count = 0;
    store_rig_make(folder, 0);
    struct gild_store *store = store_rig_open(folder, 1);
    for (unsigned i = 0; i < EVENTS_SLOTS + 5; i++)
        gild_events_note(store, GILD_EVENT_CREATED, 7, "desktops/d1", "number %u\n", i);
    store_rig_close(store);
    snprintf(path, sizeof path, "%s/events", folder);
    int fd = open(path, O_RDWR);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(lseek(fd, 0, SEEK_END), (off_t)EVENTS_SLOTS * EVENT_BYTES);
    CU_ASSERT_EQUAL(pwrite(fd, "x", 1, 100 * EVENT_BYTES + 500), 1);
    close(fd);
    store = store_rig_open(folder, 1);
    CU_ASSERT_EQUAL(gild_events_read(store, 0, 0, count_event, &count), 0);
    CU_ASSERT_EQUAL(count, EVENTS_SLOTS - 1);
    count = 0;
    gild_events_note(store, GILD_EVENT_DELETED, 7, "desktops/d1", "one more");
    CU_ASSERT_EQUAL(gild_events_read(store, EVENTS_SLOTS + 5, 0, count_event, &count), 0);
    CU_ASSERT_EQUAL(count, 1);
    store_rig_close(store);
    store_rig_remove(folder);
}

int main(void) {
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    memset(content, 0x5a, sizeof content);
    CU_pSuite suite = CU_add_suite("quota", NULL, NULL);
    CU_ADD_TEST(suite, a_disk_holds_its_quota_and_no_block_more);
    CU_ADD_TEST(suite, two_reactors_share_a_pools_quota);
    CU_ADD_TEST(suite, promises_do_not_overflow);
    CU_ADD_TEST(suite, a_garbled_event_is_one_event_lost);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
