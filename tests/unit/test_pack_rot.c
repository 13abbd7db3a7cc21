/* What packs promise of damage: whatever byte rots, a read gives the right block or an error, and a
 * check finds it; what is no pack of ours is refused with a sentence. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/place.h"
#include "codec/hash.h"
#include "io/file.h"
#include "pack/format.h"
#include "pack_rig.h"

#define COUNT 300u

static uint64_t numbers[COUNT];

static void make_pack(struct rig *rig, char path[256], uint8_t **data, size_t *length) {
    rig_init(rig);
    for (size_t i = 0; i < COUNT; i++)
        numbers[i] = i % 250;
    CU_ASSERT_EQUAL_FATAL(rig_ingest(rig, numbers, COUNT, 0, 0, NULL), 0);
    *data = rig_load(rig_path(rig, 1, path), length);
}

static void count_finding(void *context, const struct gild_pack_fault *fault) {
    (void)fault;
    ++*(size_t *)context;
}

/* The file has one rotten byte. */
static void try_rotten(struct rig *rig, size_t position) {
    struct gild_error error = {0};
    size_t refused, found = 0;
    int err = rig_reopen(rig, 1, 1, &error);
    if (err) {
        CU_ASSERT(err == -EBADMSG || err == -EUCLEAN);
        CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.message, "00000001.pack"));
        return;
    }
    size_t right = rig_verify(rig, numbers, COUNT, &refused);
    CU_ASSERT_EQUAL(right + refused, COUNT);
    const struct gild_pack_look look = {.deep = true, .found = count_finding, .context = &found};
    const struct gild_pack_look shallow = {.deep = false};
    int deep = gild_pack_check(rig->packs, 1, &look);
    if (deep != -EUCLEAN || !found)
        printf("the rot of byte %zu was not found\n", position);
    CU_ASSERT_EQUAL(deep, -EUCLEAN);
    CU_ASSERT(found > 0);
    CU_ASSERT_EQUAL(gild_pack_check(rig->packs, 1, &shallow), -EUCLEAN);
}

static void any_rotten_byte_is_found_and_never_read(void) {
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length, tried = 0;
    make_pack(&rig, path, &data, &length);
    size_t step = length / 250 + 1;
    for (size_t i = 0; i < length; i += 1 + rig_draw() % (2 * step)) {
        uint8_t flip = (uint8_t)(1u << rig_draw() % 8);
        data[i] ^= flip;
        rig_save(path, data, length);
        try_rotten(&rig, i);
        data[i] ^= flip;
        tried++;
    }
    /* The first and last bytes of each structure of the last pages, and of the header. */
    for (size_t page = length / 4096 - 8; page <= length / 4096; page++) {
        for (size_t byte = 0; byte < 160; byte += 8) {
            size_t i = page * 4096 < length ? page * 4096 + byte : byte;
            data[i] ^= 0x10;
            rig_save(path, data, length);
            try_rotten(&rig, i);
            data[i] ^= 0x10;
            tried++;
        }
    }
    CU_ASSERT(tried > 300);
    free(data);
    rig_fini(&rig);
}

static void rotten_fingerprints_cost_a_copy_only(void) {
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length, refused;
    struct gild_ingest_totals totals;
    make_pack(&rig, path, &data, &length);
    const struct pack_footer *footer = (const void *)(data + length - 4096);
    const uint64_t offset[] = {footer->prints_offset + 100, footer->index_offset + 9};
    for (unsigned i = 0; i < 2; i++) {
        data[offset[i]] ^= 1;
        rig_save(path, data, length);
        data[offset[i]] ^= 1;
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, COUNT, 0, 0, &totals), 0);
        CU_ASSERT_EQUAL(totals.blocks_new, i ? 250 : PACK_PRINTS);
        CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), COUNT);
    }
    free(data);
    rig_fini(&rig);
}

static void a_truncated_pack_is_refused(void) {
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length;
    struct gild_error error;
    make_pack(&rig, path, &data, &length);
    for (size_t n = 0; n < length; n += n % 4096 ? 4095 : 1) {
        rig_save(path, data, n);
        int err = rig_reopen(&rig, 1, 1, &error);
        CU_ASSERT(err == -EBADMSG || err == -EUCLEAN);
        CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    }
    free(data);
    rig_fini(&rig);
}

/* Changes header and footer alike, under a right check. */
static void rewrite_heads(uint8_t *data, size_t length, void (*change)(struct pack_head *)) {
    struct pack_header *header = (void *)data;
    struct pack_footer *footer = (void *)(data + length - 4096);
    change(&header->head);
    change(&footer->head);
    header->check = pack_edge_check(header, header->head.pack_id);
    footer->check = pack_edge_check(footer, footer->head.pack_id);
}

static void newer(struct pack_head *head) {
    head->version++;
}

static void unknown_feature(struct pack_head *head) {
    head->version = PACK_VERSION;
    head->incompatible = 2;
}

static void compatible_feature(struct pack_head *head) {
    head->incompatible = 0;
    head->compatible = 1;
}

static void dropping(struct pack_head *head) {
    head->incompatible = PACK_DROPS;
}

static void other_store(struct pack_head *head) {
    head->store_id[3] ^= 1;
}

static void another_formats_pack_is_refused(void) {
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length;
    struct gild_error error;
    make_pack(&rig, path, &data, &length);
    rewrite_heads(data, length, newer);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), -ENOTSUP);
    CU_ASSERT_EQUAL(error.code, GILD_FAILED);
    rewrite_heads(data, length, unknown_feature);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), -ENOTSUP);
    rewrite_heads(data, length, compatible_feature);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), 0);
    /* A feature that only one end has, and one that the table does not know of. */
    struct pack_header *header = (void *)data;
    header->head.incompatible = PACK_DROPS;
    header->check = pack_edge_check(header, 1);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), -EUCLEAN);
    header->head.incompatible = 0;
    header->head.generation = 2; /* and the end of another rewrite */
    header->check = pack_edge_check(header, 1);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), -EUCLEAN);
    header->head.generation = 1;
    rewrite_heads(data, length, dropping);
    rig_save(path, data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), 0);
    CU_ASSERT_EQUAL(gild_pack_check(rig.packs, 1, &(struct gild_pack_look){0}), -EUCLEAN);
    rewrite_heads(data, length, compatible_feature);
    rig_save(rig_path(&rig, 2, path), data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 2, 2, &error), -EUCLEAN);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    rewrite_heads(data, length, other_store);
    rig_save(rig_path(&rig, 1, path), data, length);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, &error), -EUCLEAN);
    free(data);
    rig_fini(&rig);
}

/* A footer that is sound under its check but lies: no number may lead outside the file. */
static void a_lying_footer_is_refused(void) {
    struct rig rig;
    char path[256];
    uint8_t *data, keep[4096];
    size_t length, opened = 0;
    make_pack(&rig, path, &data, &length);
    struct pack_footer *footer = (void *)(data + length - 4096);
    memcpy(keep, footer, sizeof keep);
    for (size_t field = 56; field < 128; field += 4) {
        static const uint32_t lies[] = {0, 1, 0x7fffffff, 0xffffffff, 0x10000000, 4096};
        for (unsigned i = 0; i < 6; i++) {
            memcpy(footer, keep, sizeof keep);
            memcpy((uint8_t *)footer + field, &lies[i], 4);
            if (memcmp(footer, keep, sizeof keep) == 0)
                continue;
            footer->check = pack_edge_check(footer, 1);
            rig_save(path, data, length);
            opened += rig_reopen(&rig, 1, 1, NULL) == 0;
        }
    }
    CU_ASSERT_EQUAL(opened, 0);
    free(data);
    rig_fini(&rig);
}

static void a_lying_table_entry_is_refused(void) {
    static const struct pack_entry good = {.offset = 5000, .bytes = 3000, .blocks = 16};
    struct pack_table page = {
        .magic = PACK_TABLE_MAGIC, .pack_id = 3, .page = 2, .count = 5, .frames_end = 8000};
    struct gild_pack_frame frame;
    uint32_t group = 2 * PACK_TABLE_ENTRIES + 4;
    page.entry[4] = good;
    CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group, 4, &frame), 0);
    CU_ASSERT_EQUAL(frame.read_offset, 4096);
    CU_ASSERT_EQUAL(frame.read_bytes, 4096);
    CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 4, group, 4, &frame), -EUCLEAN);
    CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group + 1, 5, &frame), -EUCLEAN);
    CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group, 3, &frame), -EUCLEAN);
    const struct pack_entry bad[] = {
        {.offset = 5001, .bytes = 3000, .blocks = 16},
        {.offset = 4095, .bytes = 3000, .blocks = 16},
        {.offset = UINT64_MAX, .bytes = 3000, .blocks = 16},
        {.offset = 5000, .bytes = UINT32_MAX, .blocks = 16},
        {.offset = 5000, .bytes = 0, .blocks = 16},
        {.offset = 5000, .bytes = 3000, .blocks = 17},
        {.offset = 5000, .bytes = 3000, .blocks = 0},
        {.offset = 5000, .bytes = 3000, .blocks = 16, .flags = 1},
        {.offset = 5000, .bytes = 3000, .blocks = 16, .flags = 2},
        {.offset = 5000, .bytes = 3000, .blocks = 15, .dropped = 4},
        {.offset = 5000, .bytes = 0, .blocks = 0, .dropped = 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        page.entry[4] = bad[i];
        CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group, 4, &frame), -EUCLEAN);
    }
    /* Where slots may be dropped, blocks and dropped are the group's slots, and nothing is nothing.
     */
    page.features = PACK_DROPS;
    const struct pack_entry right[] = {
        good,
        {.offset = 5000, .bytes = 3000, .blocks = 15, .dropped = 0x8000},
        {.offset = 5000, .bytes = 3000, .blocks = 1, .dropped = 0xfffe},
        {.offset = 5000, .bytes = 3000, .blocks = 2, .dropped = 1},
        {.offset = 8000, .bytes = 0, .blocks = 0, .dropped = 0xffff},
        {.offset = 5000, .bytes = 0, .blocks = 0, .dropped = 1},
    };
    static const uint16_t slots[] = {0xffff, 0x7fff, 0x0001, 0x0006, 0, 0};
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        page.entry[4] = right[i];
        CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group, 4, &frame), 0);
        CU_ASSERT_EQUAL(frame.slots, slots[i]);
        CU_ASSERT_EQUAL(frame.dropped, right[i].dropped);
        CU_ASSERT_EQUAL(frame.read_bytes, right[i].bytes ? 4096 : 0);
    }
    const struct pack_entry wrong[] = {
        {.offset = 5000, .bytes = 3000, .blocks = 16, .dropped = 1},     /* 17 slots */
        {.offset = 5000, .bytes = 3000, .blocks = 1, .dropped = 0x8000}, /* beyond them */
        {.offset = 5000, .bytes = 1000, .blocks = 0, .dropped = 0xffff}, /* bytes of nothing */
        {.offset = 5000, .bytes = 0, .blocks = 1, .dropped = 0xfffe},    /* nothing of a block */
        {.offset = 5000, .bytes = 4096, .blocks = 1, .dropped = 0xfffe}, /* not said to be raw */
        {.offset = 5000, .blocks = 0, .dropped = 1, .flags = 1},
        {.offset = 5000, .blocks = 0, .dropped = 0},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        page.entry[4] = wrong[i];
        CU_ASSERT_EQUAL(gild_pack_table_entry(&page, 3, group, 4, &frame), -EUCLEAN);
    }
}

/* Frames that are no frames under a right check: the decoder must hold its bounds alone. */
static void a_lying_frame_is_refused(void) {
    static uint8_t bytes[GILD_GROUP_BYTES], out[GILD_GROUP_BYTES + 64];
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length, refused = 0;
    make_pack(&rig, path, &data, &length);
    for (unsigned round = 0; round < 5000; round++) {
        struct gild_pack_frame frame = {.slots = (uint16_t)rig_draw()};
        frame.bytes = round % 2 ? rig_draw() % 70000 : rig_draw() % 9000;
        size_t room = frame.bytes < sizeof bytes ? frame.bytes : sizeof bytes;
        memcpy(bytes, data + 4096, room < length - 4096 ? room : length - 4096);
        bytes[rig_draw() % 64] ^= (uint8_t)rig_draw();
        frame.check = gild_xxh3(bytes, room, 1ull << 32 | 7);
        memset(out, 0xa5, sizeof out);
        int err = gild_pack_decode(bytes, &frame, 1, 7, out);
        CU_ASSERT(err == 0 || err == -EBADMSG);
        refused += err != 0;
        for (size_t i = GILD_GROUP_BYTES; i < sizeof out; i++)
            CU_ASSERT_EQUAL(out[i], 0xa5);
    }
    CU_ASSERT(refused > 4000);
    free(data);
    rig_fini(&rig);
}

/* ---- repair ---------------------------------------------------------------------------------- */

struct offer {
    const uint8_t *group; /* NULL: nothing is offered */
    unsigned asked;
};

static bool offer_group(void *context, uint32_t pack_id, uint32_t group, void *out) {
    struct offer *offer = context;
    CU_ASSERT(pack_id == 1 && group == 0);
    offer->asked++;
    if (offer->group)
        memcpy(out, offer->group, GILD_GROUP_BYTES);
    return offer->group != NULL;
}

static bool offer_block(void *context, const uint8_t fingerprint[GILD_FINGERPRINT_BYTES],
                        void *out) {
    const struct offer *offer = context;
    (void)fingerprint;
    if (offer->group)
        memcpy(out, offer->group, BLOCK); /* the first one, whichever is asked for */
    return offer->group != NULL;
}

/* A copy that is not the content is not taken, however it is offered; one that is, is. */
static void only_the_right_content_heals(void) {
    static uint8_t right[GILD_GROUP_BYTES], wrong[GILD_GROUP_BYTES];
    uint16_t slots;
    struct rig rig;
    char path[256];
    uint8_t *data;
    size_t length, refused;
    make_pack(&rig, path, &data, &length);
    CU_ASSERT_EQUAL_FATAL(gild_pack_read_group(rig.packs, 1, 0, right, &slots), 0);
    memcpy(wrong, right, sizeof wrong);
    wrong[BLOCK * 7 + 99] ^= 1;
    data[4096 + 100] ^= 1;
    rig_save(path, data, length);
    const uint8_t *const offers[] = {NULL, wrong, right};
    for (unsigned i = 0; i < 3; i++) {
        struct offer offer = {.group = offers[i]};
        const struct gild_pack_repair how = {
            .copy = offer_group, .block = offer_block, .context = &offer};
        struct gild_pack_repaired done;
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &done), 0);
        CU_ASSERT(offer.asked > 0);
        CU_ASSERT_EQUAL(done.rewritten, i == 2);
        CU_ASSERT_EQUAL(done.healed, i == 2);
        CU_ASSERT_EQUAL(done.lost_count, i < 2);
        gild_pack_let_go(done.old);
        free(done.lost);
        size_t good = rig_verify(&rig, numbers, COUNT, &refused);
        CU_ASSERT_EQUAL(good + refused, COUNT);
        CU_ASSERT_EQUAL(refused == 0, i == 2);
    }
    free(data);
    rig_fini(&rig);
}

/* ---- a disk that does not write what it was given -------------------------------------------- */

int __real_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset);
int __wrap_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset);

uint64_t rig_wrong_at;

int __wrap_gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset) {
    int err = rig_before_write();
    if (!err)
        err = __real_gild_file_write(fd, buffer, length, offset);
    if (err || !rig_wrong_at || rig_wrong_at < offset || rig_wrong_at - offset >= length)
        return err;
    size_t at = (size_t)(rig_wrong_at - offset) & ~(size_t)4095; /* O_DIRECT: whole pages */
    uint8_t *page = aligned_alloc(4096, 4096);
    memcpy(page, (const uint8_t *)buffer + at, 4096);
    page[(rig_wrong_at - offset) % 4096] ^= 0x40;
    err = __real_gild_file_write(fd, page, 4096, offset + at);
    free(page);
    rig_wrong_at = 0;
    return err;
}

/* Of the groups that were good one is not in the new file: the old one stays as it is. */
static void a_rewritten_pack_is_read_back_first(void) {
    static uint8_t right[GILD_GROUP_BYTES];
    struct rig rig;
    char path[256];
    uint8_t *data, *after;
    size_t length, after_length, refused;
    uint16_t slots;
    make_pack(&rig, path, &data, &length);
    CU_ASSERT_EQUAL_FATAL(gild_pack_read_group(rig.packs, 1, 0, right, &slots), 0);
    data[4096 + 100] ^= 1;
    rig_save(path, data, length);
    struct offer offer = {.group = right};
    const struct gild_pack_repair how = {.copy = offer_group, .context = &offer};
    struct gild_pack_repaired done;
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
    rig_wrong_at = 3 * GILD_GROUP_BYTES;
    CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &done), -EIO);
    CU_ASSERT_EQUAL(rig_wrong_at, 0);
    CU_ASSERT_FALSE(done.rewritten);
    CU_ASSERT_EQUAL(done.lost_count, 1);
    CU_ASSERT_EQUAL(rig_files(&rig), 1);
    gild_pack_let_go(done.old);
    free(done.lost);
    after = rig_load(path, &after_length);
    CU_ASSERT(after_length == length && memcmp(after, data, length) == 0);
    free(after);
    size_t good = rig_verify(&rig, numbers, COUNT, &refused);
    CU_ASSERT_EQUAL(good + refused, COUNT);
    CU_ASSERT(refused > 0 && refused <= 2 * GILD_GROUP_BLOCKS); /* group 0 alone */
    /* The next time it is written as it should be. */
    CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &done), 0);
    CU_ASSERT_TRUE(done.rewritten);
    gild_pack_let_go(done.old);
    free(done.lost);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), COUNT);
    free(data);
    rig_fini(&rig);
}

void add_rot_tests(void) {
    CU_pSuite suite = CU_add_suite("pack, rot", NULL, NULL);
    CU_ADD_TEST(suite, any_rotten_byte_is_found_and_never_read);
    CU_ADD_TEST(suite, rotten_fingerprints_cost_a_copy_only);
    CU_ADD_TEST(suite, a_truncated_pack_is_refused);
    CU_ADD_TEST(suite, another_formats_pack_is_refused);
    CU_ADD_TEST(suite, a_lying_footer_is_refused);
    CU_ADD_TEST(suite, a_lying_table_entry_is_refused);
    CU_ADD_TEST(suite, a_lying_frame_is_refused);
    CU_ADD_TEST(suite, only_the_right_content_heals);
    CU_ADD_TEST(suite, a_rewritten_pack_is_read_back_first);
}
