/* Records: every field survives the way to bytes and back, every other length is refused, and no
 * bytes at all can make a decoder read past its end or crash (run under ASan and UBSan). The layout
 * of docs/format.md is pinned by one record of each kind, byte by byte. */
#include "catalog/records.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/prng.h"

union any_record {
    struct gild_rec_image image;
    struct gild_rec_version version;
    struct gild_rec_desktop desktop;
    struct gild_rec_pool pool;
    struct gild_rec_delta delta;
    struct gild_rec_map map;
    struct gild_rec_pack pack;
    struct gild_rec_segment segment;
    struct gild_rec_stream stream;
};

static uint64_t seed;

static void random_text(struct gild_prng *prng, char *out, size_t room) {
    size_t length = gild_prng_below(prng, room);
    memset(out, 0, room);
    for (size_t i = 0; i < length; i++)
        out[i] = (char)(1 + gild_prng_below(prng, 255));
}

/* ---- one row per kind ------------------------------------------------------------------------ */

#define GLUE(name)                                                                         \
    static size_t encode_##name(const union any_record *record, void *out) {               \
        return gild_rec_##name##_encode(&record->name, out);                               \
    }                                                                                      \
    static int decode_##name(union any_record *record, const void *value, size_t length) { \
        return gild_rec_##name##_decode(&record->name, value, length);                     \
    }
GLUE(image)
GLUE(version)
GLUE(desktop)
GLUE(pool)
GLUE(delta)
GLUE(map)
GLUE(pack)
GLUE(segment)
GLUE(stream)

static void fill_image(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->image, sizeof record->image);
}

static void fill_version(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->version, sizeof record->version);
    record->version.stage = (uint8_t)gild_prng_below(prng, GILD_STAGE_RETIRED + 1);
    random_text(prng, record->version.source_format, sizeof record->version.source_format);
}

static void fill_desktop(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->desktop, sizeof record->desktop);
    random_text(prng, record->desktop.image, sizeof record->desktop.image);
    random_text(prng, record->desktop.pool, sizeof record->desktop.pool);
}

static void fill_pool(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->pool, sizeof record->pool);
    random_text(prng, record->pool.image, sizeof record->pool.image);
    random_text(prng, record->pool.name_pattern, sizeof record->pool.name_pattern);
}

static void fill_delta(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->delta, sizeof record->delta);
    record->delta.root_count = (uint32_t)gild_prng_below(prng, GILD_DELTA_ROOTS_MAX + 1);
    for (uint32_t i = record->delta.root_count; i < GILD_DELTA_ROOTS_MAX; i++)
        record->delta.roots[i] = 0;
}

static void fill_map(struct gild_prng *prng, union any_record *record) {
    size_t most = sizeof record->map.packs / sizeof record->map.packs[0];
    size_t count = gild_prng_below(prng, 8) ? gild_prng_below(prng, 20) : most;
    record->map.size_bytes = gild_prng_next(prng);
    record->map.data_blocks = gild_prng_next(prng);
    gild_prng_fill(prng, record->map.content_hash, sizeof record->map.content_hash);
    gild_prng_fill(prng, record->map.packs, count * sizeof record->map.packs[0]);
    record->map.pack_count = (uint32_t)count;
}

static void fill_pack(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->pack, sizeof record->pack);
}

static void fill_segment(struct gild_prng *prng, union any_record *record) {
    record->segment.state = (uint8_t)gild_prng_below(prng, GILD_SEGMENT_FULL + 1);
    record->segment.holds_nodes = (uint8_t)gild_prng_below(prng, 2);
    record->segment.live_blocks = gild_prng_next(prng);
    record->segment.closed_s = gild_prng_next(prng);
}

static void fill_stream(struct gild_prng *prng, union any_record *record) {
    gild_prng_fill(prng, &record->stream, sizeof record->stream);
}

static const struct kind {
    const char *name;
    size_t (*encode)(const union any_record *record, void *out);
    int (*decode)(union any_record *record, const void *value, size_t length);
    void (*fill)(struct gild_prng *prng, union any_record *record);
} kinds[] = {
    {"image", encode_image, decode_image, fill_image},
    {"version", encode_version, decode_version, fill_version},
    {"desktop", encode_desktop, decode_desktop, fill_desktop},
    {"pool", encode_pool, decode_pool, fill_pool},
    {"delta", encode_delta, decode_delta, fill_delta},
    {"map", encode_map, decode_map, fill_map},
    {"pack", encode_pack, decode_pack, fill_pack},
    {"segment", encode_segment, decode_segment, fill_segment},
    {"stream", encode_stream, decode_stream, fill_stream},
};
#define KINDS (sizeof kinds / sizeof kinds[0])

/* ---- field by field -------------------------------------------------------------------------- */

static bool same_version(const struct gild_rec_version *a, const struct gild_rec_version *b) {
    return a->map_id == b->map_id && a->size_bytes == b->size_bytes &&
           a->created_ns == b->created_ns && !memcmp(a->content_hash, b->content_hash, 32) &&
           a->stage == b->stage && a->data_blocks == b->data_blocks &&
           a->new_blocks == b->new_blocks && a->stored_bytes == b->stored_bytes &&
           !strcmp(a->source_format, b->source_format);
}

static bool same_desktop(const struct gild_rec_desktop *a, const struct gild_rec_desktop *b) {
    return !strcmp(a->image, b->image) && a->version == b->version && !strcmp(a->pool, b->pool) &&
           a->os_delta == b->os_delta && a->size_bytes == b->size_bytes &&
           a->created_ns == b->created_ns;
}

static bool same_pool(const struct gild_rec_pool *a, const struct gild_rec_pool *b) {
    return !strcmp(a->image, b->image) && a->version == b->version &&
           !strcmp(a->name_pattern, b->name_pattern) && a->count == b->count &&
           a->created_ns == b->created_ns;
}

static bool same_delta(const struct gild_rec_delta *a, const struct gild_rec_delta *b) {
    return a->size_bytes == b->size_bytes && a->parent_map == b->parent_map &&
           a->parent_size_bytes == b->parent_size_bytes && a->mapped_blocks == b->mapped_blocks &&
           a->packed_blocks == b->packed_blocks && a->changed_ns == b->changed_ns &&
           a->root_count == b->root_count && !memcmp(a->roots, b->roots, sizeof a->roots);
}

static bool same_map(const struct gild_rec_map *a, const struct gild_rec_map *b) {
    return a->size_bytes == b->size_bytes && a->data_blocks == b->data_blocks &&
           !memcmp(a->content_hash, b->content_hash, 32) && a->pack_count == b->pack_count &&
           !memcmp(a->packs, b->packs, a->pack_count * sizeof a->packs[0]);
}

static bool same(size_t kind, const union any_record *a, const union any_record *b) {
    switch (kind) {
    case 0:
        return a->image.latest_version == b->image.latest_version &&
               a->image.created_ns == b->image.created_ns;
    case 1:
        return same_version(&a->version, &b->version);
    case 2:
        return same_desktop(&a->desktop, &b->desktop);
    case 3:
        return same_pool(&a->pool, &b->pool);
    case 4:
        return same_delta(&a->delta, &b->delta);
    case 5:
        return same_map(&a->map, &b->map);
    case 6:
        return !memcmp(&a->pack, &b->pack, sizeof a->pack);
    case 7:
        return a->segment.state == b->segment.state &&
               a->segment.holds_nodes == b->segment.holds_nodes &&
               a->segment.live_blocks == b->segment.live_blocks &&
               a->segment.closed_s == b->segment.closed_s;
    default:
        return !memcmp(&a->stream, &b->stream, sizeof a->stream);
    }
}

/* Copies the bytes into a block of exactly that length, so that ASan sees one byte too far. */
static int decode_exactly(const struct kind *kind, union any_record *record, const void *bytes,
                          size_t length) {
    void *exact = malloc(length ? length : 1);
    CU_ASSERT_PTR_NOT_NULL_FATAL(exact);
    memcpy(exact, bytes, length);
    int result = kind->decode(record, exact, length);
    free(exact);
    return result;
}

static union any_record *record_in, *record_out;
static unsigned char *room; /* GILD_RECORD_MAX and one more */

static void every_field_returns(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    for (size_t k = 0; k < KINDS; k++) {
        for (unsigned round = 0; round < 200; round++) {
            kinds[k].fill(&prng, record_in);
            size_t length = kinds[k].encode(record_in, room);
            CU_ASSERT_TRUE_FATAL(length >= 4 && length <= GILD_RECORD_MAX);
            memset(record_out, 0xa5, sizeof *record_out);
            CU_ASSERT_EQUAL(decode_exactly(&kinds[k], record_out, room, length), 0);
            CU_ASSERT_TRUE(same(k, record_in, record_out));
        }
    }
}

static void any_other_length_is_refused(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + 1);
    for (size_t k = 0; k < KINDS; k++) {
        for (unsigned round = 0; round < 4; round++) {
            do
                kinds[k].fill(&prng, record_in);
            while (kinds[k].encode(record_in, room) > 4096);
            size_t length = kinds[k].encode(record_in, room);
            for (size_t cut = 0; cut < length; cut++)
                CU_ASSERT_EQUAL(decode_exactly(&kinds[k], record_out, room, cut), -EUCLEAN);
            room[length] = 0;
            CU_ASSERT_EQUAL(decode_exactly(&kinds[k], record_out, room, length + 1), -EUCLEAN);
        }
    }
}

static void another_type_or_version_is_refused(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + 2);
    for (size_t k = 0; k < KINDS; k++) {
        kinds[k].fill(&prng, record_in);
        size_t length = kinds[k].encode(record_in, room);
        for (size_t other = 0; other < KINDS; other++)
            if (other != k)
                CU_ASSERT_EQUAL(decode_exactly(&kinds[other], record_out, room, length), -EUCLEAN);
        gild_put_le16(room + 2, 3);
        CU_ASSERT_EQUAL(decode_exactly(&kinds[k], record_out, room, length), -EUCLEAN);
    }
}

/* The version that a record of this kind is written as. */
static const unsigned char *latest_of(size_t k) {
    static const unsigned char one[2] = {1, 0}, two[2] = {2, 0};
    return strcmp(kinds[k].name, "delta") && strcmp(kinds[k].name, "pack") &&
                   strcmp(kinds[k].name, "segment")
               ? one
               : two;
}

/* Garbage behind a right head, and right records with flipped bits: whatever a decoder accepts must
 * encode to the same bytes again. */
static void garbage_never_crashes(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + 3);
    unsigned char *again = malloc(GILD_RECORD_MAX + 1);
    unsigned accepted = 0;
    CU_ASSERT_PTR_NOT_NULL_FATAL(again);
    for (unsigned round = 0; round < 20000; round++) {
        size_t k = gild_prng_below(&prng, KINDS), length;
        kinds[k].fill(&prng, record_in);
        length = kinds[k].encode(record_in, room);
        if (length > 4096)
            continue;
        if (gild_prng_below(&prng, 2)) {
            length = 4 + gild_prng_below(&prng, 200);
            gild_prng_fill(&prng, room + 4, length - 4);
        } else {
            for (unsigned flips = 0; flips < 3; flips++)
                room[gild_prng_below(&prng, length)] ^=
                    (unsigned char)(1u << gild_prng_below(&prng, 8));
        }
        if (decode_exactly(&kinds[k], record_out, room, length) == 0) {
            accepted++;
            if (gild_get_le16(room + 2) < gild_get_le16(latest_of(k)))
                continue; /* an older layout: it is not written any more */
            CU_ASSERT_EQUAL_FATAL(kinds[k].encode(record_out, again), length);
            CU_ASSERT_EQUAL(memcmp(again, room, length), 0);
        }
    }
    CU_ASSERT_TRUE(accepted > 100); /* else this test has looked at refusals only */
    free(again);
}

static void values_out_of_range_are_refused(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + 4);
    fill_version(&prng, record_in);
    size_t length = encode_version(record_in, room);
    room[60] = GILD_STAGE_RETIRED + 1;
    CU_ASSERT_EQUAL(decode_exactly(&kinds[1], record_out, room, length), -EUCLEAN);

    fill_segment(&prng, record_in);
    length = encode_segment(record_in, room);
    room[4] = GILD_SEGMENT_FULL + 1;
    CU_ASSERT_EQUAL(decode_exactly(&kinds[7], record_out, room, length), -EUCLEAN);
    room[4] = 0, room[5] = 2;
    CU_ASSERT_EQUAL(decode_exactly(&kinds[7], record_out, room, length), -EUCLEAN);

    memset(record_in, 0, sizeof *record_in);
    strcpy(record_in->desktop.image, "win10");
    length = encode_desktop(record_in, room);
    room[7] = 0; /* a NUL inside the name */
    CU_ASSERT_EQUAL(decode_exactly(&kinds[2], record_out, room, length), -EUCLEAN);
    memset(room + 4, 'x', 300);
    room[4] = GILD_NAME_MAX + 1;
    CU_ASSERT_EQUAL(decode_exactly(&kinds[2], record_out, room, 300), -EUCLEAN);

    memset(record_in, 0, sizeof *record_in);
    length = encode_delta(record_in, room);
    gild_put_le32(room + 52, GILD_DELTA_ROOTS_MAX + 1);
    memset(room + length, 0, 8 * (GILD_DELTA_ROOTS_MAX + 1));
    length += 8 * (GILD_DELTA_ROOTS_MAX + 1);
    CU_ASSERT_EQUAL(decode_exactly(&kinds[4], record_out, room, length), -EUCLEAN);

    memset(record_in, 0, sizeof *record_in);
    length = encode_map(record_in, room);
    gild_put_le32(room + 52, UINT32_MAX);
    CU_ASSERT_EQUAL(decode_exactly(&kinds[5], record_out, room, length), -EUCLEAN);
}

/* The bytes of docs/format.md: a store written today must be read tomorrow. */
static void the_layout_stays(void) {
    static const unsigned char desktop[] = {4, 0, 1, 0, 2, 'w', '7', 3, 0, 0,  0, 1, 'p',
                                            9, 0, 0, 0, 0, 0,   0,   0, 0, 16, 0, 0, 0,
                                            0, 0, 0, 5, 0, 0,   0,   0, 0, 0,  0};
    static const unsigned char delta[] = {6, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0,
                                          0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0,
                                          0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0,
                                          0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x30};
    static const unsigned char segment[] = {9, 0, 2, 0, 2, 1, 0x11, 0, 0, 0, 0,
                                            0, 0, 0, 9, 0, 0, 0,    0, 0, 0, 0};
    memset(record_in, 0, sizeof *record_in);
    strcpy(record_in->desktop.image, "w7");
    strcpy(record_in->desktop.pool, "p");
    record_in->desktop.version = 3;
    record_in->desktop.os_delta = 9;
    record_in->desktop.size_bytes = 4096;
    record_in->desktop.created_ns = 5;
    CU_ASSERT_EQUAL_FATAL(encode_desktop(record_in, room), sizeof desktop);
    CU_ASSERT_EQUAL(memcmp(room, desktop, sizeof desktop), 0);

    memset(record_in, 0, sizeof *record_in);
    record_in->delta.size_bytes = 512;
    record_in->delta.parent_map = 7;
    record_in->delta.parent_size_bytes = 256;
    record_in->delta.mapped_blocks = 3;
    record_in->delta.packed_blocks = 2;
    record_in->delta.changed_ns = 4;
    record_in->delta.root_count = 1;
    record_in->delta.roots[0] = 0x3000000000000008u;
    CU_ASSERT_EQUAL_FATAL(encode_delta(record_in, room), sizeof delta);
    CU_ASSERT_EQUAL(memcmp(room, delta, sizeof delta), 0);

    memset(record_in, 0, sizeof *record_in);
    record_in->segment.state = GILD_SEGMENT_FULL;
    record_in->segment.holds_nodes = 1;
    record_in->segment.live_blocks = 17;
    record_in->segment.closed_s = 9;
    CU_ASSERT_EQUAL_FATAL(encode_segment(record_in, room), sizeof segment);
    CU_ASSERT_EQUAL(memcmp(room, segment, sizeof segment), 0);
}

/* Stores of before the cleaner: what they did not count is zero. */
static void older_layouts_are_read(void) {
    static const unsigned char delta[] = {6, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0,   0,
                                          0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4,   0,
                                          0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x30};
    static const unsigned char pack[] = {8, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 1, 0,
                                         0, 0, 0, 0, 0, 0,  2, 0, 0, 0, 0, 0, 0, 0};
    static const unsigned char segment[] = {9, 0, 1, 0, 2, 1, 0x11, 0, 0, 0, 0, 0, 0, 0};
    memset(record_out, 0xa5, sizeof *record_out);
    CU_ASSERT_EQUAL(decode_exactly(&kinds[4], record_out, delta, sizeof delta), 0);
    CU_ASSERT_EQUAL(record_out->delta.mapped_blocks, 3);
    CU_ASSERT_EQUAL(record_out->delta.packed_blocks, 0);
    CU_ASSERT_EQUAL(record_out->delta.changed_ns, 4);
    CU_ASSERT_EQUAL(record_out->delta.roots[0], 0x3000000000000008u);
    memset(record_out, 0xa5, sizeof *record_out);
    CU_ASSERT_EQUAL(decode_exactly(&kinds[6], record_out, pack, sizeof pack), 0);
    CU_ASSERT_EQUAL(record_out->pack.blocks, 2);
    CU_ASSERT_EQUAL(record_out->pack.delta_refs, 0);
    CU_ASSERT_EQUAL(record_out->pack.stale_refs, 0);
    memset(record_out, 0xa5, sizeof *record_out);
    CU_ASSERT_EQUAL(decode_exactly(&kinds[7], record_out, segment, sizeof segment), 0);
    CU_ASSERT_EQUAL(record_out->segment.live_blocks, 17);
    CU_ASSERT_EQUAL(record_out->segment.closed_s, 0);
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    record_in = calloc(1, sizeof *record_in);
    record_out = calloc(1, sizeof *record_out);
    room = calloc(1, GILD_RECORD_MAX + 1);
    if (!record_in || !record_out || !room || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("records", NULL, NULL);
    CU_add_test(suite, "every field returns", every_field_returns);
    CU_add_test(suite, "any other length is refused", any_other_length_is_refused);
    CU_add_test(suite, "another type or version is refused", another_type_or_version_is_refused);
    CU_add_test(suite, "garbage never crashes", garbage_never_crashes);
    CU_add_test(suite, "values out of range are refused", values_out_of_range_are_refused);
    CU_add_test(suite, "the layout stays", the_layout_stays);
    CU_add_test(suite, "older layouts are read", older_layouts_are_read);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    free(record_in);
    free(record_out);
    free(room);
    return bad;
}
