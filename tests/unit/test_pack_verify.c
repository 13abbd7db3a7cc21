/* What an ingest of what guests wrote promises: a block is shared only with one whose bytes are the
 * same, whatever the fingerprints of a pack say. */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>

#include "base/place.h"
#include "pack/format.h"
#include "pack_rig.h"

#define COUNT 1003u

static uint64_t numbers[COUNT];

static void begin(struct rig *rig) {
    rig_init(rig);
    for (size_t i = 0; i < COUNT; i++)
        numbers[i] = i;
    CU_ASSERT_EQUAL_FATAL(rig_ingest(rig, numbers, COUNT, 0, 0, NULL), 0);
}

/* Makes the pack's fingerprint of block `of` say what the one of block `as` is, and the other way
 * round: a collision, as far as an ingest can see. */
static void forge(struct rig *rig, uint32_t of, uint32_t as) {
    char path[256];
    size_t length;
    struct pack_print *print[2] = {NULL};
    uint8_t *data = rig_load(rig_path(rig, 1, path), &length);
    const struct pack_footer *footer = (const void *)(data + length - 4096);
    for (uint64_t at = footer->prints_offset; at < footer->index_offset; at += 4096) {
        struct pack_prints *page = (void *)(data + at);
        for (uint32_t k = 0; k < page->count; k++)
            if (page->print[k].where == of || page->print[k].where == as)
                print[page->print[k].where == as] = &page->print[k];
    }
    CU_ASSERT_FATAL(print[0] && print[1]);
    print[0]->where = as;
    print[1]->where = of;
    for (uint64_t at = footer->prints_offset; at < footer->index_offset; at += 4096) {
        struct pack_prints *page = (void *)(data + at);
        page->check = pack_page_check(page, 1, page->page);
    }
    rig_save(path, data, length);
    free(data);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(rig, 1, 1, NULL), 0);
}

static int copies; /* asked for */
static bool offers;

static uint16_t offer(void *context, uint32_t pack_id, uint32_t group, void *out) {
    struct rig *rig = context;
    uint16_t slots;
    copies++;
    return offers && gild_pack_read_group(rig->packs, pack_id, group, out, &slots) == 0 ? slots : 0;
}

static void ingest_verified(struct rig *rig, size_t first, size_t count,
                            struct gild_ingest_totals *totals) {
    struct gild_ingest_options options = rig_options(rig, 0);
    struct gild_ingest *ingest;
    uint8_t block[BLOCK];
    options.verify = true;
    options.copy = offer;
    copies = 0;
    CU_ASSERT_EQUAL_FATAL(gild_ingest_create(&ingest, rig->packs, &options, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        rig_block(numbers[first + i], block);
        CU_ASSERT_EQUAL_FATAL(gild_ingest_add(ingest, block, 1, i), 0);
    }
    CU_ASSERT_EQUAL_FATAL(gild_ingest_finish(ingest, NULL), 0);
    gild_ingest_get_totals(ingest, totals);
    totals->pack_ids = NULL;
    gild_ingest_destroy(ingest, true);
}

static void a_forged_fingerprint_is_not_believed(void) {
    for (unsigned i = 0; i < 2; i++) {
        struct rig rig;
        struct gild_ingest_totals totals;
        size_t refused;
        begin(&rig);
        forge(&rig, 100, 300);
        offers = i;
        ingest_verified(&rig, 0, 320, &totals);
        CU_ASSERT_EQUAL(totals.blocks_new, 2);
        CU_ASSERT_EQUAL(totals.hits_refused, 2);
        CU_ASSERT_EQUAL(copies, 22); /* each of 20 groups once, and what the forged ones name */
        CU_ASSERT_EQUAL(rig_verify(&rig, numbers, 320, &refused), 320);
        /* Without it, the forgery is believed: what the option is for. */
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 320, 0, 0, NULL), 0);
        CU_ASSERT_EQUAL(rig_verify(&rig, numbers, 320, &refused), 318);
        rig_fini(&rig);
    }
}

/* A hit whose copy can not be read is no hit. */
static void what_can_not_be_compared_is_stored_anew(void) {
    struct rig rig;
    char path[256];
    struct gild_ingest_totals totals;
    size_t length, refused;
    begin(&rig);
    uint8_t *data = rig_load(rig_path(&rig, 1, path), &length);
    const struct pack_footer *footer = (const void *)(data + length - 4096);
    const struct pack_table *table = (const void *)(data + footer->table_offset);
    data[table->entry[3].offset + 20] ^= 1;
    rig_save(path, data, length);
    free(data);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
    offers = false;
    ingest_verified(&rig, 0, 320, &totals);
    CU_ASSERT_EQUAL(totals.blocks_new, 16);
    CU_ASSERT_EQUAL(totals.hits_refused, 16);
    CU_ASSERT_EQUAL(copies, 20);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, 320, &refused), 320);
    rig_fini(&rig);
}

/* Packs that the ingest itself has sealed: they are read back, and what is there is shared. */
static void the_packs_of_one_ingest_are_compared_too(void) {
    for (unsigned threads = 0; threads < 3; threads += 2) {
        struct rig rig;
        struct gild_ingest_totals totals;
        struct gild_ingest *ingest;
        uint8_t block[BLOCK];
        rig_init(&rig);
        struct gild_ingest_options options = rig_options(&rig, threads);
        options.pack_target_bytes = 256 << 10;
        options.verify = true;
        CU_ASSERT_EQUAL_FATAL(gild_ingest_create(&ingest, rig.packs, &options, NULL), 0);
        for (size_t i = 0; i < 6000; i++) {
            rig_block(i % 3000, block);
            CU_ASSERT_EQUAL_FATAL(gild_ingest_add(ingest, block, 1, i), 0);
        }
        CU_ASSERT_EQUAL_FATAL(gild_ingest_finish(ingest, NULL), 0);
        gild_ingest_get_totals(ingest, &totals);
        CU_ASSERT(totals.pack_count > 1);
        CU_ASSERT_EQUAL(totals.blocks_new, 3000);
        CU_ASSERT_EQUAL(totals.hits_refused, 0);
        CU_ASSERT(gild_place_pack_id(rig.place[0]) == gild_place_pack_id(rig.place[3000]));
        gild_ingest_destroy(ingest, true);
        rig_fini(&rig);
    }
}

void add_verify_tests(void) {
    CU_pSuite suite = CU_add_suite("pack, verify", NULL, NULL);
    CU_ADD_TEST(suite, a_forged_fingerprint_is_not_believed);
    CU_ADD_TEST(suite, what_can_not_be_compared_is_stored_anew);
    CU_ADD_TEST(suite, the_packs_of_one_ingest_are_compared_too);
}
