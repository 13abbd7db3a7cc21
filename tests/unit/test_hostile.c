/* Stores whose checks are all right and whose content makes no sense: made by somebody who means
 * harm, or by a fault of our own. Nothing of it may end the process, or be read as what it is not.
 */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/place.h"
#include "catalog/records.h"
#include "map/node.h"
#include "store_rig.h"
#include "vdi/vdi.h"

#define BLOCK 4096u

struct page {
    char path[128];
    uint64_t offset;
    union {
        struct gild_dir dir;
        struct gild_leaf leaf;
        uint8_t bytes[BLOCK];
    };
};

static void page_io(struct page *page, bool write) {
    int fd = open(page->path, O_RDWR);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    ssize_t n = write ? pwrite(fd, page->bytes, BLOCK, (off_t)page->offset)
                      : pread(fd, page->bytes, BLOCK, (off_t)page->offset);
    CU_ASSERT_EQUAL_FATAL(n, (ssize_t)BLOCK);
    close(fd);
}

static void read_place(struct page *page, const char *directory, uint64_t place) {
    CU_ASSERT_EQUAL_FATAL(gild_place_type(place), GILD_PLACE_LOG);
    snprintf(page->path, sizeof page->path, "%s/log/%016" PRIx64 ".seg", directory,
             gild_place_serial(place));
    page->offset = (uint64_t)gild_place_offset(place) * BLOCK;
    page_io(page, false);
}

static struct gild_txn *writing(struct gild_store *store) {
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    return txn;
}

static void fill(uint8_t *bytes, unsigned blocks, unsigned first) {
    for (unsigned i = 0; i < blocks; i++)
        memset(bytes + i * BLOCK, (int)(first + i), BLOCK);
}

/* ---- a delta's leaf that names a segment which is not there -------------------------------------
 */

#define STRANGE 3u /* the block */

/* Delta 1: ten blocks, and in its first leaf a block in segment 4,000 of which nobody knows. */
static void store_with_strange_leaf(char directory[64]) {
    uint8_t *bytes = malloc(10 * BLOCK);
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct page *page = malloc(sizeof *page);
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 1);
    store_rig_deltas(store, 400 * BLOCK, 1, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    fill(bytes, 10, 1);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 0, 10 * BLOCK, bytes, 0), 0);
    store_rig_release(disk);
    struct gild_error error;
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    struct gild_txn *txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, record), 0);
    gild_txn_abort(txn);
    store_rig_close(store);
    read_place(page, directory, record->roots[0]);
    read_place(page, directory, page->dir.ref[0]);
    uint64_t place = page->dir.ref[0];
    read_place(page, directory, place);
    CU_ASSERT_EQUAL_FATAL(gild_delta_node_verify(page->bytes, GILD_NODE_LEAF, 1, 0, place), 0);
    page->leaf.place[STRANGE] = gild_place_log(4000, 9);
    gild_delta_node_seal(page->bytes, GILD_NODE_LEAF, 1, 0, place);
    page_io(page, true);
    free(page);
    free(record);
    free(bytes);
}

static void test_unknown_segments_are_eio(void) {
    char directory[64];
    uint8_t *bytes = malloc(10 * BLOCK), expected[BLOCK];
    store_with_strange_leaf(directory);
    struct gild_store *store = store_rig_open(directory, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, STRANGE * BLOCK, BLOCK, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 0, 10 * BLOCK, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 2 * BLOCK, BLOCK, bytes, 0), 0);
    fill(expected, 1, 3);
    CU_ASSERT_EQUAL(memcmp(bytes, expected, BLOCK), 0);
    /* The leaf can not be changed without uncounting what it held. */
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, STRANGE * BLOCK, BLOCK, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 2 * BLOCK + 512, 512, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, STRANGE * BLOCK, BLOCK, NULL, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 0, 320 * BLOCK, NULL, 0), -EIO);
    /* The next leaf is as good as ever. */
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 330 * BLOCK, BLOCK, expected, GILD_OP_FUA),
                    0);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 330 * BLOCK, BLOCK, bytes, 0), 0);
    CU_ASSERT_EQUAL(memcmp(bytes, expected, BLOCK), 0);
    store_rig_release(disk);
    store_rig_close(store);
    free(bytes);
    store_rig_remove(directory);
}

static void test_a_deleted_disk_of_unknown_segments_stays(void) {
    char directory[64];
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct gild_error error = {0};
    store_with_strange_leaf(directory);
    struct gild_store *store = store_rig_open(directory, 1);
    struct gild_txn *txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, record), 0);
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DROPPED, 1, record), 0);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, 1), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_store_collect(store);
    for (unsigned i = 0; i < 3; i++)
        CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DROPPED, 1, record), 0);
    gild_txn_abort(txn);
    store_rig_close(store);
    free(record);
    store_rig_remove(directory);
}

static void test_a_repair_loses_only_what_is_not_there(void) {
    char directory[64];
    uint8_t *bytes = malloc(BLOCK), expected[BLOCK];
    struct gild_repair_report report = {0};
    struct gild_repair_result result;
    struct gild_error error = {0};
    store_with_strange_leaf(directory);
    int err = gild_store_repair(directory, false, &report, &result, &error);
    if (err)
        printf("repair: %s\n", error.message);
    CU_ASSERT_EQUAL(err, 0);
    CU_ASSERT_EQUAL(result.lost_blocks, 1);
    struct gild_store *store = store_rig_open(directory, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    fill(expected, 1, 3);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 2 * BLOCK, BLOCK, bytes, 0), 0);
    CU_ASSERT_EQUAL(memcmp(bytes, expected, BLOCK), 0);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, STRANGE * BLOCK, BLOCK, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, STRANGE * BLOCK, BLOCK, expected, 0), 0);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, STRANGE * BLOCK, BLOCK, bytes, 0), 0);
    store_rig_release(disk);
    store_rig_close(store);
    free(bytes);
    store_rig_remove(directory);
}

/* ---- a map that names a slot which its group does not have --------------------------------------
 */

#define IMAGE_BLOCKS 20u /* a group of sixteen, one of four */

static void import_image(struct gild_store *store, const char *directory) {
    char path[128];
    uint8_t *bytes = malloc(IMAGE_BLOCKS * BLOCK);
    struct gild_image_import request = {.name = "base", .source = path, .format = "raw"};
    struct gild_image_info made = {0};
    struct gild_error error = {0};
    snprintf(path, sizeof path, "%s/source.raw", directory);
    fill(bytes, IMAGE_BLOCKS, 1);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CU_ASSERT_EQUAL_FATAL(write(fd, bytes, IMAGE_BLOCKS * BLOCK), IMAGE_BLOCKS * BLOCK);
    close(fd);
    CU_ASSERT_EQUAL_FATAL(gild_image_import(store, &request, &made, &error), 0);
    unlink(path);
    free(bytes);
}

/* The leaf of the only map. */
static void find_leaf(struct page *page, const char *directory) {
    snprintf(page->path, sizeof page->path, "%s/maps/%016x.map", directory, 1);
    for (page->offset = 0;; page->offset += BLOCK) {
        page_io(page, false);
        if (gild_node_verify(page->bytes, GILD_NODE_LEAF, 1, 0) == 0)
            return;
    }
}

static void test_slots_beyond_a_group_are_eio(void) {
    char directory[64];
    bool writable;
    uint8_t *bytes = malloc(IMAGE_BLOCKS * BLOCK), expected[BLOCK];
    struct page *page = malloc(sizeof *page);
    struct gild_error error = {0};
    struct gild_disk *disk;
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 1);
    import_image(store, directory);
    store_rig_close(store);
    find_leaf(page, directory);
    uint64_t last = page->leaf.place[IMAGE_BLOCKS - 1];
    CU_ASSERT_EQUAL_FATAL(gild_place_slot(last), IMAGE_BLOCKS - 1 - 16);
    page->leaf.place[IMAGE_BLOCKS - 1] = last + 1;
    gild_node_seal(page->bytes, GILD_NODE_LEAF, 1, 0);
    page_io(page, true);
    store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL_FATAL(
        gild_disk_open(store, "images/base@1", "test", 0, &disk, &writable, &error), 0);
    for (unsigned i = 0; i < 2; i++) { /* from the device, from the cache */
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 19 * BLOCK, BLOCK, bytes, 0), -EIO);
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 0, IMAGE_BLOCKS * BLOCK, bytes, 0), -EIO);
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 18 * BLOCK, BLOCK, bytes, 0), 0);
        fill(expected, 1, 19);
        CU_ASSERT_EQUAL(memcmp(bytes, expected, BLOCK), 0);
    }
    gild_disk_close(disk, "test", writable);
    store_rig_close(store);
    free(page);
    free(bytes);
    store_rig_remove(directory);
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("hostile", NULL, NULL);
    CU_add_test(suite, "a block in a segment that is not there is EIO, and the rest goes on",
                test_unknown_segments_are_eio);
    CU_add_test(suite, "a deleted disk whose map is made up is not freed, and ends nothing",
                test_a_deleted_disk_of_unknown_segments_stays);
    CU_add_test(suite, "a repair loses only the block that is not there",
                test_a_repair_loses_only_what_is_not_there);
    CU_add_test(suite, "a slot that its group does not have is EIO, not zeroes",
                test_slots_beyond_a_group_are_eio);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
