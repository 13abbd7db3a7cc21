/* Each thing that a stored page says of itself is asked for when it is read, and each of its bytes
 * is under its check: segments, batches, blocks and map nodes (D2, D9); and records of the
 * catalogue that LMDB itself gives as good, but that are not those that were put. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/catalog.h"
#include "catalog/journal.h"
#include "catalog/kv.h"
#include "codec/zstd.h"
#include "log/format.h"
#include "map/node.h"
#include "pack/format.h"
#include "pack/pack.h"

static const uint8_t store_id[16] = "one store's id..", other_id[16] = "another's id....";

static void test_a_block_is_of_one_segment_delta_and_number(void) {
    uint8_t block[GILD_LOG_BLOCK];
    for (unsigned i = 0; i < sizeof block; i++)
        block[i] = (uint8_t)(i * 7);
    uint32_t check = gild_log_check(block, 3, 5, 7);
    CU_ASSERT_EQUAL(gild_log_check(block, 3, 5, 7), check);
    for (uint64_t i = 1; i < 1000; i++) {
        CU_ASSERT_NOT_EQUAL(gild_log_check(block, 3 + i, 5, 7), check);
        CU_ASSERT_NOT_EQUAL(gild_log_check(block, 3, 5 + i, 7), check);
        CU_ASSERT_NOT_EQUAL(gild_log_check(block, 3, 5, 7 + i), check);
    }
    for (unsigned i = 0; i < sizeof block; i++) {
        block[i] ^= 1;
        CU_ASSERT_NOT_EQUAL(gild_log_check(block, 3, 5, 7), check);
        block[i] ^= 1;
    }
}

static void test_each_byte_of_a_segments_header_is_checked(void) {
    struct gild_segment_header header;
    gild_segment_header_seal(&header, store_id, 9, 100);
    CU_ASSERT_EQUAL(gild_segment_header_verify(&header, store_id, 9), 0);
    CU_ASSERT_EQUAL(gild_segment_header_verify(&header, store_id, 10), -EBADMSG);
    CU_ASSERT_EQUAL(gild_segment_header_verify(&header, other_id, 9), -EBADMSG);
    for (unsigned i = 0; i < sizeof header; i++) {
        ((uint8_t *)&header)[i] ^= 0x10;
        CU_ASSERT_NOT_EQUAL(gild_segment_header_verify(&header, store_id, 9), 0);
        ((uint8_t *)&header)[i] ^= 0x10;
    }
}

static void test_each_byte_of_a_batchs_header_is_checked(void) {
    static struct gild_batch_header header;
    uint8_t block[GILD_LOG_BLOCK] = "payload";
    gild_batch_begin(&header, store_id, 9, 2, 33, 20);
    gild_batch_add(&header, GILD_ENTRY_DATA, 4, 5, 1, block);
    gild_batch_add(&header, GILD_ENTRY_HOLE, 4, 50, 3, NULL);
    gild_batch_seal(&header);
    CU_ASSERT_TRUE(gild_batch_valid(&header, store_id, 9, 100, 20));
    CU_ASSERT_FALSE(gild_batch_valid(&header, other_id, 9, 100, 20));
    CU_ASSERT_FALSE(gild_batch_valid(&header, store_id, 8, 100, 20)); /* an earlier life */
    CU_ASSERT_FALSE(gild_batch_valid(&header, store_id, 9, 21, 20));  /* no room for the payload */
    for (uint32_t offset = 1; offset < 90; offset++) /* written to the wrong place */
        CU_ASSERT_EQUAL(gild_batch_valid(&header, store_id, 9, 100, offset), offset == 20);
    for (unsigned i = 0; i < sizeof header; i++) {
        ((uint8_t *)&header)[i] ^= 0x10;
        CU_ASSERT_FALSE(gild_batch_valid(&header, store_id, 9, 100, 20));
        ((uint8_t *)&header)[i] ^= 0x10;
    }
}

static void test_a_node_is_of_one_owner_number_kind_and_place(void) {
    static struct gild_leaf leaf;
    uint64_t place = gild_place_log(4, 77);
    leaf.place[3] = gild_place_log(2, 9);
    gild_delta_node_seal(&leaf, GILD_NODE_LEAF, 6, 8, place);
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 6, 8, place), 0);
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_DIR, 6, 8, place), -EBADMSG);
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 5, 8, place), -EBADMSG);
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 6, 9, place), -EBADMSG);
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 6, 8, gild_place_log(3, 77)),
                    -EBADMSG); /* what lay there in an earlier life of the file */
    CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 6, 8, gild_place_log(4, 78)),
                    -EBADMSG);
    CU_ASSERT_EQUAL(gild_node_verify(&leaf, GILD_NODE_LEAF, 6, 8), -EBADMSG); /* of a sealed map */
    for (unsigned i = 0; i < sizeof leaf; i++) {
        ((uint8_t *)&leaf)[i] ^= 0x10;
        CU_ASSERT_EQUAL(gild_delta_node_verify(&leaf, GILD_NODE_LEAF, 6, 8, place), -EBADMSG);
        ((uint8_t *)&leaf)[i] ^= 0x10;
    }
}

static void test_a_frame_is_of_one_pack_and_group(void) {
    static uint8_t blocks[4 * 4096], frame[5 * 4096], out[GILD_GROUP_BYTES];
    for (unsigned i = 0; i < sizeof blocks; i++)
        blocks[i] = (uint8_t)(i / 64);
    ssize_t packed = gild_zstd_compress(frame, sizeof frame, blocks, sizeof blocks, 1);
    CU_ASSERT_TRUE_FATAL(packed > 0 && packed < (ssize_t)sizeof blocks);
    struct gild_pack_frame said = {.bytes = (uint32_t)packed, .slots = 15};
    said.check = pack_frame_check(frame, (size_t)packed, 7, 300);
    CU_ASSERT_EQUAL(gild_pack_decode(frame, &said, 7, 300, out), 0);
    CU_ASSERT_EQUAL(memcmp(out, blocks, sizeof blocks), 0);
    CU_ASSERT_EQUAL(gild_pack_decode(frame, &said, 8, 300, out), -EBADMSG);
    CU_ASSERT_EQUAL(gild_pack_decode(frame, &said, 7, 301, out), -EBADMSG);
    for (unsigned i = 0; i < (unsigned)packed; i++) {
        frame[i] ^= 4;
        CU_ASSERT_EQUAL(gild_pack_decode(frame, &said, 7, 300, out), -EBADMSG);
        frame[i] ^= 4;
    }
    /* A sound frame of fewer blocks than its table says. */
    packed = gild_zstd_compress(frame, sizeof frame, blocks, 3 * 4096, 1);
    said.bytes = (uint32_t)packed;
    said.check = pack_frame_check(frame, (size_t)packed, 7, 300);
    CU_ASSERT_NOT_EQUAL(gild_pack_decode(frame, &said, 7, 300, out), 0);
}

/* ---- the catalogue, behind its back ------------------------------------------------------------
 */

static char top[64], catalogue[96], journal[96];
static uint8_t note[GILD_CATALOG_NOTE_BYTES];
static const struct gild_catalog_options options = {
    .map_bytes = 16u << 20, .journal = journal, .note = note};

static void make(void) {
    struct gild_catalog *catalog;
    struct gild_txn *txn;
    strcpy(top, "/var/tmp/gild-test-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(top));
    snprintf(catalogue, sizeof catalogue, "%s/catalogue", top);
    snprintf(journal, sizeof journal, "%s/journal", top);
    CU_ASSERT_EQUAL(mkdir(catalogue, 0700), 0);
    CU_ASSERT_EQUAL_FATAL(gild_catalog_open(&catalog, catalogue, &options, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_DESKTOPS, "one", 3, "first", 5), 0);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_DESKTOPS, "two", 3, "second", 6), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
}

static void unmake(void) {
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", top);
    CU_ASSERT_EQUAL(system(command), 0);
}

static int any_record(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    (void)context, (void)key, (void)key_length, (void)value, (void)length;
    return 0;
}

typedef void meddle(struct gild_kv_txn *txn);

/* Changes the key-value store as no transaction of the catalogue does. */
static void meddled(meddle *with) {
    static const char *const names[GILD_TABLE_COUNT] = {"meta",  "images",   "versions", "desktops",
                                                        "pools", "deltas",   "dropped",  "maps",
                                                        "packs", "segments", "streams",  "intents"};
    const struct gild_kv_schema schema = {names, GILD_TABLE_COUNT, any_record};
    struct gild_kv *kv;
    struct gild_kv_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_kv_open(&kv, catalogue, &schema, 16u << 20, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(gild_kv_begin(kv, true, &txn), 0);
    with(txn);
    CU_ASSERT_EQUAL(gild_kv_commit(txn), 0);
    gild_kv_close(kv);
}

static int opens(const struct gild_catalog_options *with) {
    struct gild_catalog *catalog = NULL;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, catalogue, with, &error);
    gild_catalog_close(catalog);
    return result;
}

static void lose_one(struct gild_kv_txn *txn) {
    CU_ASSERT_EQUAL(gild_kv_delete(txn, GILD_TABLE_DESKTOPS, "two", 3), 0);
}

static void test_a_catalogue_that_lost_a_record_is_refused(void) {
    make();
    CU_ASSERT_EQUAL(opens(&options), 0);
    meddled(lose_one);
    CU_ASSERT_EQUAL(opens(&options), -EUCLEAN);
    unmake();
}

static void test_each_byte_of_a_journals_head_is_checked(void) {
    struct gild_journal_contents contents;
    uint8_t byte, bad;
    char path[160];
    make();
    snprintf(path, sizeof path, "%s/%016x.journal", journal, 1);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(gild_journal_read(journal, UINT64_MAX, &contents), 0);
    gild_journal_contents_free(&contents);
    for (off_t at = 0; at < 4096; at++) {
        CU_ASSERT_EQUAL(pread(fd, &byte, 1, at), 1);
        bad = byte ^ 0x20;
        CU_ASSERT_EQUAL(pwrite(fd, &bad, 1, at), 1);
        CU_ASSERT_NOT_EQUAL(gild_journal_read(journal, UINT64_MAX, &contents), 0);
        gild_journal_contents_free(&contents);
        CU_ASSERT_EQUAL(pwrite(fd, &byte, 1, at), 1);
    }
    CU_ASSERT_EQUAL(gild_journal_read(journal, UINT64_MAX, &contents), 0);
    gild_journal_contents_free(&contents);
    close(fd);
    unmake();
}

static void copy(struct gild_kv_txn *txn, unsigned to, const char *key) {
    const void *value;
    uint8_t bytes[64];
    void *room;
    size_t length;
    CU_ASSERT_EQUAL_FATAL(gild_kv_get(txn, GILD_TABLE_DESKTOPS, "one", 3, &value, &length), 0);
    CU_ASSERT_TRUE_FATAL(length <= sizeof bytes);
    memcpy(bytes, value, length);
    CU_ASSERT_EQUAL_FATAL(gild_kv_put(txn, to, key, 3, length, &room), 0);
    memcpy(room, bytes, length);
}

static void to_another_table(struct gild_kv_txn *txn) {
    copy(txn, GILD_TABLE_POOLS, "one");
}

static void to_another_key(struct gild_kv_txn *txn) {
    copy(txn, GILD_TABLE_DESKTOPS, "two");
}

static int get(enum gild_table table, const char *key) {
    const struct gild_catalog_options bare = {.map_bytes = 16u << 20};
    struct gild_catalog *catalog = NULL;
    struct gild_txn *txn;
    uint8_t value[64];
    size_t length = sizeof value;
    CU_ASSERT_EQUAL_FATAL(gild_catalog_open(&catalog, catalogue, &bare, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, false, &txn), 0);
    int result = gild_txn_get(txn, table, key, strlen(key), value, &length);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    return result;
}

static void test_a_record_is_of_one_table_and_key(void) {
    make();
    CU_ASSERT_EQUAL(get(GILD_TABLE_DESKTOPS, "one"), 0);
    meddled(to_another_table);
    CU_ASSERT_EQUAL(get(GILD_TABLE_POOLS, "one"), -EBADMSG);
    meddled(to_another_key);
    CU_ASSERT_EQUAL(get(GILD_TABLE_DESKTOPS, "two"), -EBADMSG);
    CU_ASSERT_EQUAL(get(GILD_TABLE_DESKTOPS, "one"), 0);
    unmake();
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("checks", NULL, NULL);
    CU_add_test(suite, "a block is of one segment, delta and number",
                test_a_block_is_of_one_segment_delta_and_number);
    CU_add_test(suite, "each byte of a segment's header is checked",
                test_each_byte_of_a_segments_header_is_checked);
    CU_add_test(suite, "each byte of a batch's header is checked",
                test_each_byte_of_a_batchs_header_is_checked);
    CU_add_test(suite, "a node is of one owner, number, kind and place",
                test_a_node_is_of_one_owner_number_kind_and_place);
    CU_add_test(suite, "a frame is of one pack and group", test_a_frame_is_of_one_pack_and_group);
    CU_add_test(suite, "a catalogue that lost a record is refused",
                test_a_catalogue_that_lost_a_record_is_refused);
    CU_add_test(suite, "each byte of a journal's head is checked",
                test_each_byte_of_a_journals_head_is_checked);
    CU_add_test(suite, "a record is of one table and key", test_a_record_is_of_one_table_and_key);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
