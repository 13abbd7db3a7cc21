/* `gild store check --repair` on real stores: each kind of damage, one at a time. What is named is
 * exactly what was damaged; all else is as it was; a refused open and a dry run leave every file as
 * it was; a second repair finds nothing more to do; one that is broken off at any step is done
 * again with the same end. The seed is printed; GILD_SEED replays it. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "disk/store.h"
#include "io/file.h"
#include "repair_harm.h"
#include "repair_rig.h"
#include "store_rig.h"

/* ---- being broken off -------------------------------------------------------------------------
 */

static unsigned steps_left; /* 0: no end */

static void step(void) {
    if (steps_left && --steps_left == 0)
        _exit(77);
}

int __real_gild_txn_commit(struct gild_txn *txn);
int __wrap_gild_txn_commit(struct gild_txn *txn);
int __wrap_gild_txn_commit(struct gild_txn *txn) {
    step();
    return __real_gild_txn_commit(txn);
}

int __real_gild_file_sync(int fd);
int __wrap_gild_file_sync(int fd);
int __wrap_gild_file_sync(int fd) {
    step();
    return __real_gild_file_sync(fd);
}

int __real_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset);
int __wrap_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset);
int __wrap_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset) {
    step();
    return __real_gild_file_write(fd, buffer, length, offset);
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) {
    step();
    return __real_rename(from, to);
}

int __real_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to) {
    step();
    return __real_link(from, to);
}

int __real_ftruncate(int fd, off_t length);
int __wrap_ftruncate(int fd, off_t length);
int __wrap_ftruncate(int fd, off_t length) {
    step();
    return __real_ftruncate(fd, length);
}

/* Repairs in a child that ends at its n-th step. False: it came to its end before. */
static bool broken_off(const char *directory, unsigned n) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        steps_left = n;
        struct rig_said *said = rig_repair(directory, false);
        _exit(said->result ? 3 : 0);
    }
    CU_ASSERT_EQUAL_FATAL(waitpid(child, &status, 0), child);
    CU_ASSERT_TRUE_FATAL(WIFEXITED(status));
    CU_ASSERT_TRUE(WEXITSTATUS(status) == 77 || WEXITSTATUS(status) == 0);
    return WEXITSTATUS(status) == 77;
}

/* ---- one case ---------------------------------------------------------------------------------
 */

struct damage_case {
    harm *harm;
    bool clean;        /* the store was closed */
    bool opens;        /* a usual open is not refused: only reads meet the damage */
    bool sees;         /* a dry run sees all of it */
    const char *words; /* in what is said */
};

static void expect_refused(const char *directory, bool opens) {
    struct gild_store_options options = {.threads = 1, .cache_bytes = (uint64_t)16 << 20};
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    if (opens)
        return; /* it would replay, and so change the store */
    uint64_t before = store_rig_hash(directory);
    CU_ASSERT_NOT_EQUAL(gild_store_open(directory, &options, &store, &error), 0);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    if (!strstr(error.message, "check --repair"))
        fprintf(stderr, "says not what to do: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, "check --repair"));
    CU_ASSERT_EQUAL(store_rig_hash(directory), before);
}

static void judge(const struct rig_said *said, const struct rig_expected *expected,
                  const char *words) {
    if (said->result)
        fprintf(stderr, "repair: %s\n", said->error.message);
    CU_ASSERT_EQUAL(said->result, 0);
    unsigned faults = rig_compare(said, expected);
    CU_ASSERT_EQUAL(faults, 0);
    if (faults)
        fprintf(stderr, "said: %s", said->text);
    if (!words)
        return;
    CU_ASSERT_PTR_NOT_NULL(strstr(said->text, words));
    if (!strstr(said->text, words))
        fprintf(stderr, "not said: %s, but: %s", words, said->text);
}

/* Repaired already: the same again finds nothing to do, and all is as it should be. */
static void judge_after(const char *directory, const struct rig_expected *expected) {
    uint64_t before = store_rig_hash(directory);
    struct rig_said *again = rig_repair(directory, false);
    judge(again, expected, NULL);
    CU_ASSERT_EQUAL(again->counts.repaired, 0);
    if (again->counts.repaired)
        fprintf(stderr, "a second repair: %s", again->text);
    CU_ASSERT_EQUAL(store_rig_hash(directory), before);
    rig_said_free(again);
    CU_ASSERT_EQUAL(rig_verify(directory, expected), 0);
}

static void run_case(const struct damage_case *one, bool thorough) {
    char directory[64];
    rig_take(directory, one->clean);
    struct rig_expected *expected = rig_expected(one->clean);
    one->harm(directory, expected);
    expect_refused(directory, one->opens);
    uint64_t before = store_rig_hash(directory);
    struct rig_said *dry = rig_repair(directory, true);
    CU_ASSERT_EQUAL(store_rig_hash(directory), before);
    CU_ASSERT_TRUE(dry->counts.repaired > 0);
    if (one->sees)
        judge(dry, expected, NULL);
    rig_said_free(dry);
    struct rig_said *said = rig_repair(directory, false);
    judge(said, expected, one->words);
    rig_said_free(said);
    judge_after(directory, expected);
    rig_drop(directory);
    /* GILD_LONG: at every step, else at ever fewer of them. */
    for (unsigned n = 1; thorough; n += getenv("GILD_LONG") ? 1 : 1 + n / 3) {
        rig_take(directory, one->clean);
        struct rig_expected *fresh = rig_expected(one->clean);
        one->harm(directory, fresh);
        bool broken = broken_off(directory, n);
        if (broken) {
            said = rig_repair(directory, false);
            judge(said, expected, NULL);
            rig_said_free(said);
        }
        if (n % 3 == 1 || !broken)
            judge_after(directory, expected);
        rig_expected_free(fresh);
        rig_drop(directory);
        if (!broken || CU_get_number_of_failures() > 50) {
            printf("(%u steps) ", n);
            break;
        }
    }
    rig_expected_free(expected);
}

static void run(const struct damage_case one) {
    run_case(&one, true);
}

/* ---- the log's tail ---------------------------------------------------------------------------
 */

static void rot_tail_payload(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot, next;
    uint64_t block = harm_tail_block(directory, 1, &spot, &next);
    spot.offset += 4096;
    rig_rot(&spot);
    rig_lose(expected, 1, block, 1);
}

static void test_rotten_payload_above_the_checkpoint(void) {
    run((struct damage_case){rot_tail_payload, .sees = true, .words = "of its blocks are rotten"});
}

static void test_rotten_header_above_the_checkpoint(void) {
    run((struct damage_case){harm_rot_tail_header, .sees = true,
                             .words = "were flushed and are lost"});
}

static void rot_two_headers(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot, next;
    harm_tail_block(directory, 3, &spot, &next);
    rig_rot(&spot);
    rig_rot(&next);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++) {
        expected->quarantined[d] = true;
        for (uint64_t b = 0; b < RIG_DISK_BLOCKS; b++) /* two of these, nobody knows which */
            expected->stale[d][b] = rig_in_tail(d, b);
    }
}

static void test_two_rotten_headers_in_a_row(void) {
    const struct damage_case one = {rot_two_headers, .sees = true,
                                    .words = "were flushed and are lost"};
    run_case(&one, false);
}

/* ---- maps of deltas ---------------------------------------------------------------------------
 */

static void rot_directory(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_node(directory, 4, GILD_NODE_DIR, 161280);
    rig_rot(&spot);
    harm_lose_range(expected, 4, GILD_DIR_BLOCKS, RIG_DISK_BLOCKS - GILD_DIR_BLOCKS);
}

static void rot_root(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_node(directory, 5, GILD_NODE_ROOT, 0);
    rig_rot(&spot);
    harm_lose_range(expected, 5, 0, RIG_DISK_BLOCKS);
}

static void test_rotten_leaf(void) {
    run((struct damage_case){harm_rot_leaf, .clean = true, .opens = true, .sees = true,
                             .words = "desktops/d1/os"});
    run_case(&(struct damage_case){harm_rot_leaf, .opens = true, .sees = true}, false);
}

static void test_rotten_directory(void) {
    run_case(&(struct damage_case){rot_directory, .opens = true, .sees = true}, false);
    run_case(&(struct damage_case){rot_directory, .clean = true, .opens = true, .sees = true},
             false);
}

static void test_rotten_root(void) {
    run((struct damage_case){rot_root, .opens = true, .sees = true});
    run_case(&(struct damage_case){rot_root, .clean = true, .opens = true, .sees = true}, false);
}

static void rot_settled_block(const char *directory, struct rig_expected *expected) {
    for (uint64_t b = 0; b < 700; b++) {
        if (!rig_written(true, 3, b) || rig_in_tail(3, b))
            continue;
        struct rig_spot spot = rig_at(directory, rig_place(directory, 3, b));
        rig_rot(&spot);
        rig_lose(expected, 3, b, 1);
        return;
    }
}

static void test_rotten_block_below_the_checkpoint(void) {
    run_case(&(struct damage_case){rot_settled_block, .clean = true, .opens = true, .sees = true},
             false);
    run_case(&(struct damage_case){rot_settled_block, .opens = true, .sees = true}, false);
}

/* ---- segments ---------------------------------------------------------------------------------
 */

static void test_missing_segment(void) {
    run((struct damage_case){harm_remove_segment, .sees = true, .words = "is missing"});
    run_case(&(struct damage_case){harm_remove_segment, .clean = true, .sees = true}, false);
}

static void test_segment_that_is_something_else(void) {
    run_case(
        &(struct damage_case){harm_garble_segment, .sees = true, .words = "goes to lost+found"},
        false);
}

static void test_segment_cut_short(void) {
    run((struct damage_case){harm_cut_segment, .clean = true, .sees = true,
                             .words = "is made as long as it was"});
}

static void lengthen_segment(const char *directory, struct rig_expected *expected) {
    (void)expected;
    struct rig_spot spot = rig_at(directory, gild_place_log(harm_serial_of(directory, 2), 0));
    CU_ASSERT_EQUAL(truncate(spot.path, 300 * 4096), 0);
}

static void test_segment_whose_header_is_lost(void) {
    run((struct damage_case){harm_rot_segment_header, .sees = true,
                             .words = "the header of log segment"});
    run_case(
        &(struct damage_case){lengthen_segment, .sees = true, .words = "is made as long as it was"},
        false);
}

struct unused {
    const char *directory;
    uint64_t serial;
};

static int find_unused(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct unused *unused = context;
    struct gild_rec_segment record;
    (void)key_length;
    if (gild_rec_segment_decode(&record, value, length) == 0 &&
        record.state == GILD_SEGMENT_READY && !rig_begun(unused->directory, gild_rec_key_u64(key)))
        unused->serial = gild_rec_key_u64(key);
    return 0;
}

static void remove_unused(const char *directory, struct rig_expected *expected) {
    struct unused unused = {.directory = directory};
    struct gild_catalog *catalog = rig_catalog(directory);
    struct gild_txn *txn;
    CU_ASSERT_EQUAL(gild_txn_begin(catalog, false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, find_unused, &unused), 0);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    CU_ASSERT_NOT_EQUAL_FATAL(unused.serial, 0);
    CU_ASSERT_EQUAL(unlink(rig_at(directory, gild_place_log(unused.serial, 0)).path), 0);
    /* A reactor that none of the desktops was on, or whose last segment was full: what it wrote
     * since, if anything, was there. */
    bool seen = rig_ends_seen(directory);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        expected->quarantined[d] = !seen;
}

/* Nothing can have been in it if the end of each stream is seen elsewhere; if one is not, nobody
 * can know. */
static void test_missing_segment_that_nobody_had_begun(void) {
    run_case(&(struct damage_case){remove_unused, .clean = true, .sees = true}, false);
    run_case(&(struct damage_case){remove_unused, .sees = true}, false);
}

/* ---- sealed maps, packs ------------------------------------------------------------------------
 */

static void rot_map_directory(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_node(directory, 0, GILD_NODE_DIR, 0);
    (void)expected;
    rig_rot(&spot);
}

static void rot_map_root(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_node(directory, 1, GILD_NODE_ROOT, 0);
    (void)expected;
    rig_rot(&spot);
}

static void rot_map_footer(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_end(directory, 1, true);
    (void)expected;
    spot.offset -= 96;
    rig_rot(&spot);
}

static void rot_map_header(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_end(directory, 1, false);
    (void)expected;
    rig_rot(&spot);
}

static void rot_map_leaf_and_directory(const char *directory, struct rig_expected *expected) {
    rot_map_directory(directory, expected);
    harm_rot_map_leaf(directory, expected);
    /* The disk has ten leaves: which one is gone is seen by what is there. */
}

static void remove_map(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_end(directory, 1, false);
    CU_ASSERT_EQUAL(unlink(spot.path), 0);
    rig_lose_image(expected, 1, 0, RIG_IMAGE_BLOCKS);
}

static void test_rotten_leaf_of_an_image(void) {
    run((struct damage_case){harm_rot_map_leaf, .clean = true, .opens = true, .sees = true,
                             .words = "the map of images/win@1 is written anew"});
    run_case(&(struct damage_case){rot_map_leaf_and_directory, .clean = true, .opens = true,
                                   .sees = true},
             false);
}

static void test_map_of_an_image_is_made_again_from_its_leaves(void) {
    harm *const harms[] = {rot_map_directory, rot_map_root, rot_map_footer, rot_map_header};
    for (unsigned i = 0; i < 4; i++)
        run_case(&(struct damage_case){harms[i], .clean = true, .opens = true, .sees = true,
                                       .words = "is written anew"},
                 false);
}

static void test_missing_map_of_an_image(void) {
    run_case(&(struct damage_case){remove_map, .clean = true, .opens = true, .sees = true}, false);
}

static void test_missing_packs(void) {
    run_case(&(struct damage_case){harm_remove_packs, .clean = true, .sees = true}, false);
}

static void test_pack_whose_header_is_lost(void) {
    run((struct damage_case){harm_rot_pack, .clean = true, .words = "is written anew; 1 of its"});
}

/* ---- catalogue, superblock, counts -------------------------------------------------------------
 */

static void cut_superblock(const char *directory, struct rig_expected *expected) {
    char path[128];
    (void)expected;
    snprintf(path, sizeof path, "%s/superblock", directory);
    CU_ASSERT_EQUAL(truncate(path, 17), 0);
}

static void remove_both(const char *directory, struct rig_expected *expected) {
    harm_rot_superblock(directory, expected);
    harm_remove_catalogue(directory, expected);
}

static void test_superblock(void) {
    run((struct damage_case){harm_rot_superblock, .sees = true,
                             .words = "the superblock is written"});
    run_case(&(struct damage_case){cut_superblock, .clean = true, .sees = true}, false);
}

static void test_catalogue(void) {
    run_case(&(struct damage_case){harm_remove_catalogue, .words = "the catalogue is made again"},
             false);
    run_case(&(struct damage_case){remove_both, .clean = true}, false);
}

static void test_catalogue_that_has_lost_transactions(void) {
    run((struct damage_case){harm_lose_transactions, .clean = true,
                             .words = "the catalogue is made again"});
}

static void miscount(const char *directory, struct rig_expected *expected) {
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    struct gild_catalog *catalog = rig_catalog(directory);
    struct gild_txn *txn;
    (void)expected;
    CU_ASSERT_EQUAL(gild_txn_begin(catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, rig_delta(2), delta), 0);
    delta->mapped_blocks += 5;
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, rig_delta(2), delta), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
    free(delta);
}

/* As if nothing lived in a full segment: a checkpoint would give it away. */
static void undercount(const char *directory, struct rig_expected *expected) {
    uint64_t serial = harm_serial_of(directory, 0);
    struct gild_catalog *catalog = rig_catalog(directory);
    const struct gild_rec_segment wrong = {.state = GILD_SEGMENT_FULL};
    struct gild_txn *txn;
    (void)expected;
    CU_ASSERT_EQUAL(gild_txn_begin(catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_put_segment(txn, serial, &wrong), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
}

static void test_counts(void) {
    run_case(&(struct damage_case){miscount, .clean = true, .opens = true, .sees = true,
                                   .words = "the count of blocks of desktops/d3/os"},
             false);
    run_case(&(struct damage_case){undercount, .opens = true, .sees = true,
                                   .words = "the count of live blocks"},
             false);
}

/* ---- the rest ----------------------------------------------------------------------------------
 */

static void test_a_store_without_damage_is_not_changed(void) {
    for (unsigned clean = 0; clean < 2; clean++) {
        char directory[64];
        rig_take(directory, clean);
        struct rig_expected *expected = rig_expected(clean);
        judge_after(directory, expected);
        rig_expected_free(expected);
        rig_drop(directory);
    }
}

static void test_a_store_that_is_held_is_refused(void) {
    char directory[64];
    rig_take(directory, true);
    struct gild_store *store = store_rig_open(directory, 1);
    struct rig_said *said = rig_repair(directory, false);
    CU_ASSERT_EQUAL(said->error.code, GILD_BUSY);
    CU_ASSERT_EQUAL(said->result, -EBUSY);
    rig_said_free(said);
    store_rig_close(store);
    rig_drop(directory);
}

/* A lost block is whole again once it is overwritten. */
static void test_what_is_lost_is_mended_by_writing(void) {
    char directory[64];
    uint8_t *bytes = gild_file_buffer(4096);
    struct gild_error error = {0};
    struct gild_disk *disk;
    bool writable;
    rig_take(directory, true);
    struct rig_expected *expected = rig_expected(true);
    harm_rot_leaf(directory, expected);
    rig_said_free(rig_repair(directory, false));
    struct gild_store *store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL_FATAL(
        gild_disk_open(store, rig_path(0), "test", GILD_OPEN_WRITE, &disk, &writable, &error), 0);
    memset(bytes, 7, 4096);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 321 * 4096 + 512, 512, bytes, 0), -EIO);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 321 * 4096, 4096, bytes, 0), 0);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 322 * 4096, 8192, NULL, 0), 0);
    gild_disk_close(disk, "test", true);
    store_rig_close(store);
    memset(expected->lost[0] + 321, 0, 3);
    struct rig_said *said = rig_repair(directory, false);
    judge(said, expected, NULL);
    CU_ASSERT_EQUAL(said->counts.repaired, 0);
    rig_said_free(said);
    rig_expected_free(expected);
    rig_drop(directory);
    free(bytes);
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    rig_seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 "\n", rig_seed);
    rig_begin();
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("repair", NULL, NULL);
    CU_add_test(suite, "a store without damage is not changed",
                test_a_store_without_damage_is_not_changed);
    CU_add_test(suite, "a store that is held is refused", test_a_store_that_is_held_is_refused);
    CU_add_test(suite, "rotten payload above the checkpoint",
                test_rotten_payload_above_the_checkpoint);
    CU_add_test(suite, "a rotten header names the disks that it can have been of",
                test_rotten_header_above_the_checkpoint);
    CU_add_test(suite, "two rotten headers in a row quarantine all",
                test_two_rotten_headers_in_a_row);
    CU_add_test(suite, "a rotten leaf of a delta", test_rotten_leaf);
    CU_add_test(suite, "a rotten directory of a delta", test_rotten_directory);
    CU_add_test(suite, "a rotten root of a delta", test_rotten_root);
    CU_add_test(suite, "a rotten block below the checkpoint",
                test_rotten_block_below_the_checkpoint);
    CU_add_test(suite, "a missing segment", test_missing_segment);
    CU_add_test(suite, "a segment that is something else", test_segment_that_is_something_else);
    CU_add_test(suite, "a segment that was cut short", test_segment_cut_short);
    CU_add_test(suite, "a segment whose header, or length, is lost",
                test_segment_whose_header_is_lost);
    CU_add_test(suite, "a missing segment that nobody had begun",
                test_missing_segment_that_nobody_had_begun);
    CU_add_test(suite, "a rotten leaf of an image", test_rotten_leaf_of_an_image);
    CU_add_test(suite, "an image's map is made again from its leaves",
                test_map_of_an_image_is_made_again_from_its_leaves);
    CU_add_test(suite, "a missing map of an image", test_missing_map_of_an_image);
    CU_add_test(suite, "missing packs", test_missing_packs);
    CU_add_test(suite, "a pack whose header is lost", test_pack_whose_header_is_lost);
    CU_add_test(suite, "the superblock", test_superblock);
    CU_add_test(suite, "the catalogue", test_catalogue);
    CU_add_test(suite, "a catalogue that has lost transactions",
                test_catalogue_that_has_lost_transactions);
    CU_add_test(suite, "wrong counts", test_counts);
    CU_add_test(suite, "what is lost is mended by writing", test_what_is_lost_is_mended_by_writing);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    rig_end();
    return failures ? 1 : 0;
}
