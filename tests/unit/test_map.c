/* Maps: the delta's tree against a flat array, with checkpoints that succeed, fail and overlap with
 * writes on an imagined log; live counts against a recount; sealed maps written, read back, and
 * damaged. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "map/delta.h"
#include "map/format.h"
#include "map/mend.h"
#include "map/sealed.h"

#define BLOCKS (GILD_DIR_BLOCKS * 2 + 1000)
#define MAX_NODES 200000u

static uint64_t seed;

/* An imagined log: place n holds node page n; data places count up in another serial. */
struct rig {
    struct gild_page_pool pool;
    struct gild_delta_map map;
    uint8_t (*nodes)[GILD_NODE_BYTES];
    uint64_t node_count, data_count;
    int64_t live;       /* what count() says, data and nodes */
    int64_t live_nodes; /* of these, nodes that checkpoints wrote and count() took away */
    uint64_t *truth;
    uint64_t *frozen_truth; /* as of the freeze */
    uint64_t frozen_dirs[(BLOCKS + GILD_DIR_BLOCKS - 1) / GILD_DIR_BLOCKS];
};

static bool is_node(uint64_t place) {
    return gild_place_serial(place) < 1000;
}

static uint64_t node_place(uint64_t n) {
    return gild_place_log(1 + n / 60000, (uint32_t)(n % 60000));
}

static uint8_t *node_at(struct rig *rig, uint64_t place) {
    return rig->nodes[(gild_place_serial(place) - 1) * 60000 + gild_place_offset(place)];
}

static void count(void *context, uint64_t place, int sign) {
    struct rig *rig = context;
    *(is_node(place) ? &rig->live_nodes : &rig->live) += sign;
}

static void satisfy(struct rig *rig, enum gild_map_step step, const struct gild_map_need *need) {
    CU_ASSERT_EQUAL_FATAL(step, GILD_MAP_NEED_NODE);
    const uint8_t *page = node_at(rig, need->place);
    CU_ASSERT_EQUAL_FATAL(gild_node_verify(page, need->kind, 7, need->index), 0);
    CU_ASSERT_EQUAL_FATAL(gild_delta_install(&rig->map, need, page), GILD_MAP_READY);
}

static void write_block(struct rig *rig, uint64_t block) {
    struct gild_page *leaf;
    struct gild_map_need need;
    enum gild_map_step step;
    while ((step = gild_delta_writable(&rig->map, block / GILD_LEAF_BLOCKS, &leaf, &need)))
        satisfy(rig, step, &need);
    uint64_t n = rig->data_count++;
    uint64_t place = gild_place_log(1000 + n / 60000, (uint32_t)(n % 60000));
    gild_delta_set(&rig->map, leaf, block, place, (uint32_t)block);
    rig->truth[block] = place;
}

static void fill(struct rig *rig, uint64_t block, uint64_t blocks, uint64_t place) {
    while (blocks) {
        uint64_t did;
        struct gild_map_need need;
        enum gild_map_step step = gild_delta_fill(&rig->map, block, blocks, place, &did, &need);
        if (step) {
            satisfy(rig, step, &need);
            continue;
        }
        CU_ASSERT_TRUE_FATAL(did >= 1 && did <= blocks);
        for (uint64_t i = 0; i < did; i++)
            rig->truth[block + i] = place;
        block += did;
        blocks -= did;
    }
}

static uint64_t look(struct rig *rig, uint64_t block) {
    struct gild_map_need need;
    uint64_t ref;
    if (gild_delta_look(&rig->map, block / GILD_LEAF_BLOCKS, &ref, &need) == GILD_MAP_NEED_NODE) {
        const struct gild_dir *dir = (void *)node_at(rig, need.place);
        CU_ASSERT_EQUAL(gild_node_verify(dir, GILD_NODE_DIR, 7, need.index), 0);
        ref = dir->ref[block / GILD_LEAF_BLOCKS % GILD_DIR_REFS];
    }
    if (gild_ref_is_page(ref))
        return gild_ref_page(ref)->leaf.place[block % GILD_LEAF_BLOCKS];
    if (gild_place_type(ref) != GILD_PLACE_LOG)
        return ref;
    const struct gild_leaf *leaf = (void *)node_at(rig, ref);
    CU_ASSERT_EQUAL(gild_node_verify(leaf, GILD_NODE_LEAF, 7, block / GILD_LEAF_BLOCKS), 0);
    return leaf->place[block % GILD_LEAF_BLOCKS];
}

static void compare(struct rig *rig) {
    int64_t data = 0;
    for (uint64_t block = 0; block < BLOCKS; block++) {
        CU_ASSERT_EQUAL(look(rig, block), rig->truth[block]);
        data += gild_place_type(rig->truth[block]) == GILD_PLACE_LOG;
    }
    CU_ASSERT_EQUAL(rig->live, data);
    CU_ASSERT_EQUAL(rig->map.mapped_blocks, (uint64_t)data);
}

static void put_node(struct rig *rig, struct gild_page *page) {
    uint8_t *node = rig->nodes[rig->node_count];
    CU_ASSERT_TRUE_FATAL(rig->node_count + 1 < MAX_NODES);
    memcpy(node, page->bytes, GILD_NODE_BYTES);
    if (page->kind == GILD_NODE_DIR)
        for (uint32_t i = 0; i < GILD_DIR_REFS; i++) {
            uint64_t *ref = &((struct gild_dir *)(void *)node)->ref[i];
            if (gild_ref_is_page(*ref))
                *ref = gild_ref_page(*ref)->settled;
        }
    gild_node_seal(node, page->kind, 7, page->index);
    page->settled = node_place(rig->node_count++);
    rig->live_nodes++;
    if (gild_place_type(page->origin) == GILD_PLACE_LOG)
        rig->live_nodes--;
}

static bool freeze(struct rig *rig) {
    bool any = gild_delta_freeze(&rig->map);
    for (uint32_t d = 0; d < rig->map.dir_count; d++) {
        uint64_t ref = rig->map.dirs[d];
        bool clean = gild_ref_is_page(ref) && !gild_ref_page(ref)->frozen;
        rig->frozen_dirs[d] = clean ? gild_ref_page(ref)->origin : ref;
    }
    memcpy(rig->frozen_truth, rig->truth, BLOCKS * sizeof *rig->truth);
    return any;
}

/* The node that a reference leads to, or NULL where all below it is the reference itself. */
static const void *written_node(struct rig *rig, uint64_t ref, enum gild_node_kind kind,
                                uint64_t index) {
    if (gild_place_type(ref) != GILD_PLACE_LOG)
        return NULL;
    CU_ASSERT_EQUAL(gild_node_verify(node_at(rig, ref), kind, 7, index), 0);
    return node_at(rig, ref);
}

/* Blocks of which the nodes that were written say something else than the map did at the freeze,
 * whatever has changed since. */
static uint64_t wrong_as_written(struct rig *rig) {
    uint64_t wrong = 0, block = 0;
    for (uint32_t d = 0; d < rig->map.dir_count; d++) {
        uint64_t dir_ref = rig->frozen_dirs[d];
        if (gild_ref_is_page(dir_ref))
            dir_ref = gild_ref_page(dir_ref)->settled;
        const struct gild_dir *dir = written_node(rig, dir_ref, GILD_NODE_DIR, d);
        for (uint32_t i = 0; i < GILD_DIR_REFS && block < BLOCKS; i++) {
            uint64_t ref = dir ? dir->ref[i] : dir_ref;
            const struct gild_leaf *leaf =
                written_node(rig, ref, GILD_NODE_LEAF, (uint64_t)d * GILD_DIR_REFS + i);
            for (uint32_t b = 0; b < GILD_LEAF_BLOCKS && block < BLOCKS; b++, block++)
                wrong += (leaf ? leaf->place[b] : ref) != rig->frozen_truth[block];
        }
    }
    return wrong;
}

/* What a checkpoint does with frozen pages: leaves, then directories. */
static void write_frozen(struct rig *rig) {
    for (struct gild_page *page = rig->map.frozen; page; page = page->next)
        if (page->kind == GILD_NODE_LEAF)
            put_node(rig, page);
    for (struct gild_page *page = rig->map.frozen; page; page = page->next)
        if (page->kind == GILD_NODE_DIR)
            put_node(rig, page);
    CU_ASSERT_EQUAL(wrong_as_written(rig), 0);
}

/* Nodes that the map reaches on disk, dirty pages' origins included. */
static int64_t recount_nodes(struct rig *rig) {
    int64_t nodes = 0;
    for (uint32_t d = 0; d < rig->map.dir_count; d++) {
        uint64_t ref = rig->map.dirs[d];
        const struct gild_dir *dir;
        if (gild_ref_is_page(ref)) {
            struct gild_page *page = gild_ref_page(ref);
            nodes += gild_place_type(page->origin) == GILD_PLACE_LOG;
            dir = &page->dir;
        } else if (gild_place_type(ref) == GILD_PLACE_LOG) {
            nodes++;
            dir = (void *)node_at(rig, ref);
        } else {
            continue;
        }
        for (uint32_t i = 0; i < GILD_DIR_REFS; i++) {
            uint64_t leaf = dir->ref[i];
            if (gild_ref_is_page(leaf))
                nodes += gild_place_type(gild_ref_page(leaf)->origin) == GILD_PLACE_LOG;
            else
                nodes += gild_place_type(leaf) == GILD_PLACE_LOG;
        }
    }
    return nodes;
}

static void random_change(struct rig *rig, struct gild_prng *prng) {
    uint64_t block = gild_prng_below(prng, BLOCKS), most = BLOCKS - block, blocks;
    switch (gild_prng_below(prng, 12)) {
    case 0:
        blocks = 1 + gild_prng_below(prng, most < 2000 ? most : 2000);
        fill(rig, block, blocks, gild_place_of_type(GILD_PLACE_HOLE));
        break;
    case 1:
        block -= block % GILD_LEAF_BLOCKS;
        blocks = BLOCKS - block < 3 * GILD_LEAF_BLOCKS ? BLOCKS - block : 3 * GILD_LEAF_BLOCKS;
        fill(rig, block, blocks, gild_place_of_type(GILD_PLACE_ZERO));
        break;
    case 2:
        if (gild_prng_below(prng, 40) == 0)
            fill(rig, block, most, gild_place_of_type(GILD_PLACE_HOLE));
        break;
    default:
        for (unsigned i = 0; i < 20 && block + i < BLOCKS; i++)
            write_block(rig, block + i);
        break;
    }
}

static void test_tree_is_a_flat_array(void) {
    struct rig rig = {0};
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    rig.truth = calloc(BLOCKS, sizeof *rig.truth);
    rig.frozen_truth = calloc(BLOCKS, sizeof *rig.truth);
    rig.nodes = malloc((size_t)MAX_NODES * GILD_NODE_BYTES);
    CU_ASSERT_EQUAL_FATAL(gild_page_pool_init(&rig.pool, (size_t)64 << 20), 0);
    CU_ASSERT_EQUAL_FATAL(gild_delta_map_init(&rig.map, 7, BLOCKS * 4096, &rig.pool, count, &rig),
                          0);
    bool frozen = false, written = false;
    for (unsigned i = 0; i < 6000; i++) {
        random_change(&rig, &prng);
        switch (gild_prng_below(&prng, 60)) {
        case 0:
            if (!frozen)
                frozen = freeze(&rig), written = false;
            break;
        case 1:
            if (frozen && !written) {
                write_frozen(&rig);
                written = true;
            }
            break;
        case 2:
            if (frozen && written) {
                gild_delta_settle(&rig.map);
                frozen = false;
                CU_ASSERT_EQUAL(rig.live_nodes, recount_nodes(&rig));
            }
            break;
        case 3:
            if (frozen && !written && gild_prng_below(&prng, 3) == 0) {
                gild_delta_thaw(&rig.map);
                frozen = false;
                CU_ASSERT_EQUAL(rig.live_nodes, recount_nodes(&rig));
            }
            break;
        default:
            break;
        }
        if (i % 1500 == 0)
            compare(&rig);
    }
    if (frozen && !written)
        write_frozen(&rig);
    if (frozen)
        gild_delta_settle(&rig.map);
    compare(&rig);
    fill(&rig, 0, BLOCKS, gild_place_of_type(GILD_PLACE_HOLE));
    compare(&rig);
    CU_ASSERT_EQUAL(rig.live, 0);
    gild_delta_map_fini(&rig.map);
    CU_ASSERT_EQUAL(rig.pool.used, 0);
    gild_page_pool_fini(&rig.pool);
    free(rig.nodes);
    free(rig.frozen_truth);
    free(rig.truth);
}

static void test_an_empty_pool_changes_nothing(void) {
    struct rig rig = {.truth = calloc(BLOCKS, sizeof *rig.truth)};
    struct gild_page *leaf;
    struct gild_map_need need;
    CU_ASSERT_EQUAL_FATAL(gild_page_pool_init(&rig.pool, 0), 0);
    rig.pool.limit = 3;
    CU_ASSERT_EQUAL_FATAL(gild_delta_map_init(&rig.map, 7, BLOCKS * 4096, &rig.pool, count, &rig),
                          0);
    CU_ASSERT_EQUAL(gild_delta_writable(&rig.map, 0, &leaf, &need), GILD_MAP_READY);
    CU_ASSERT_EQUAL(gild_delta_writable(&rig.map, 1, &leaf, &need), GILD_MAP_READY);
    CU_ASSERT_EQUAL(gild_delta_writable(&rig.map, 2, &leaf, &need), GILD_MAP_NEED_PAGE);
    CU_ASSERT_EQUAL(gild_delta_writable(&rig.map, 1, &leaf, &need), GILD_MAP_READY);
    CU_ASSERT_EQUAL(rig.pool.used, 3);
    gild_delta_map_fini(&rig.map);
    CU_ASSERT_EQUAL(rig.pool.used, 0);
    gild_page_pool_fini(&rig.pool);
    free(rig.truth);
}

/* ---- sealed maps -------------------------------------------------------------------------------
 */

static const uint8_t store_id[16] = "sealed map test";

static void build(const char *directory, uint64_t map_id, uint64_t size_bytes, unsigned stride) {
    struct gild_map_builder *builder;
    struct gild_error error;
    uint8_t hash[32] = {1, 2, 3};
    CU_ASSERT_EQUAL_FATAL(
        gild_map_builder_create(&builder, directory, store_id, map_id, size_bytes, &error), 0);
    uint64_t blocks = gild_blocks_of(size_bytes);
    for (uint64_t block = 5; block < blocks; block += stride)
        CU_ASSERT_EQUAL(gild_map_builder_add(builder, block, gild_place_pack(1, (uint32_t)block, 3),
                                             (uint32_t)block),
                        0);
    CU_ASSERT_EQUAL(gild_map_builder_add(builder, 5, 0, 0), -EINVAL); /* not ascending */
    CU_ASSERT_EQUAL(gild_map_builder_add(builder, blocks, 0, 0), -EINVAL);
    CU_ASSERT_EQUAL_FATAL(gild_map_builder_finish(builder, hash, &error), 0);
    gild_map_builder_destroy(builder, true);
}

struct walk {
    uint64_t blocks, wrong;
    unsigned stride;
};

static int visit(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    struct walk *walk = context;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++) {
        uint64_t block = leaf_index * GILD_LEAF_BLOCKS + i;
        bool expected = block >= 5 && (block - 5) % walk->stride == 0;
        bool is = gild_place_type(leaf->place[i]) == GILD_PLACE_PACK;
        walk->blocks += is;
        if (is && (gild_place_group(leaf->place[i]) != block || leaf->check[i] != (uint32_t)block))
            walk->wrong++;
        if (is && !expected)
            walk->wrong++;
    }
    return 0;
}

static void test_sealed_map_round_trip_and_rot(void) {
    char directory[] = "/var/tmp/gild-map-XXXXXX", path[128];
    struct gild_sealed_map *map;
    struct gild_error error;
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    uint64_t size = GILD_DIR_BLOCKS * 3 * 4096 + 512;
    build(directory, 9, size, 700);
    CU_ASSERT_EQUAL_FATAL(gild_sealed_open(&map, directory, store_id, 9, &error), 0);
    CU_ASSERT_EQUAL(map->size_bytes, size);
    CU_ASSERT_EQUAL(map->content_hash[2], 3);
    struct walk walk = {.stride = 700};
    CU_ASSERT_EQUAL(gild_sealed_walk(map, visit, &walk), 0);
    CU_ASSERT_EQUAL(walk.wrong, 0);
    CU_ASSERT_EQUAL(walk.blocks, (gild_blocks_of(size) - 5 + 699) / 700);
    CU_ASSERT_EQUAL(map->data_blocks, walk.blocks);
    gild_sealed_close(map);
    /* One flipped bit anywhere is found, by opening or by the walk. */
    snprintf(path, sizeof path, "%s/%016x.map", directory, 9);
    struct stat st;
    CU_ASSERT_EQUAL(stat(path, &st), 0);
    int fd = open(path, O_RDWR);
    for (unsigned i = 0; i < 600; i++) { /* anywhere; in the header, the footer, the last root */
        uint8_t byte, bad;
        off_t at = (off_t)gild_prng_below(&prng, i < 300 ? (uint64_t)st.st_size : GILD_NODE_BYTES);
        if (i >= 400)
            at += st.st_size - (i < 500 ? 1 : 2) * (off_t)GILD_NODE_BYTES;
        CU_ASSERT_EQUAL(pread(fd, &byte, 1, at), 1);
        bad = byte ^ (uint8_t)(1u << gild_prng_below(&prng, 8));
        CU_ASSERT_EQUAL(pwrite(fd, &bad, 1, at), 1);
        int err = gild_sealed_open(&map, directory, store_id, 9, &error);
        if (!err) {
            struct walk again = {.stride = 700};
            err = gild_sealed_walk(map, visit, &again);
            gild_sealed_close(map);
        }
        CU_ASSERT_TRUE(err < 0);
        CU_ASSERT_EQUAL(pwrite(fd, &byte, 1, at), 1);
    }
    /* Truncation, another store, another name. */
    CU_ASSERT_EQUAL(
        gild_sealed_open(&map, directory, (const uint8_t *)"another store!!", 9, &error), -EBADMSG);
    CU_ASSERT_EQUAL(ftruncate(fd, st.st_size - 4096), 0);
    CU_ASSERT_EQUAL(gild_sealed_open(&map, directory, store_id, 9, &error), -EBADMSG);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    CU_ASSERT_EQUAL(gild_sealed_open(&map, directory, store_id, 10, &error), -ENOENT);
    close(fd);
    unlink(path);
    rmdir(directory);
}

/* ---- mending -----------------------------------------------------------------------------------
 */

#define MEND_LEAVES 4u

struct lost {
    uint64_t first, count;
    unsigned ranges;
};

static void lost(void *context, uint64_t first_block, uint64_t count) {
    struct lost *lost = context;
    lost->first = first_block;
    lost->count += count;
    lost->ranges++;
}

static bool no_pack_is_lost(void *context, uint32_t pack_id) {
    (void)context, (void)pack_id;
    return false;
}

/* Spoils the node of this kind and index. */
static void spoil_node(int fd, enum gild_node_kind kind, uint64_t index) {
    uint8_t page[GILD_NODE_BYTES] __attribute__((aligned(8)));
    const struct gild_node_header *header = (void *)page;
    for (off_t at = 0; pread(fd, page, sizeof page, at) == (ssize_t)sizeof page;
         at += (off_t)sizeof page)
        if (header->magic == GILD_NODE_MAGIC && header->kind == kind && header->index == index) {
            page[GILD_NODE_BYTES / 2] ^= 1;
            CU_ASSERT_EQUAL(pwrite(fd, page, sizeof page, at), (ssize_t)sizeof page);
            return;
        }
    CU_FAIL("there is no such node");
}

/* The directory is rotten, so only the footer's count could tell that a leaf is missing. */
static struct lost mended(bool spoil_leaf, bool footer_lies) {
    char directory[] = "/var/tmp/gild-map-XXXXXX", path[128], aside[128], command[64];
    struct map_footer footer;
    struct stat st;
    struct gild_error error = {0};
    struct gild_map_mended result;
    struct lost told = {0};
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    uint64_t size = (uint64_t)MEND_LEAVES * GILD_LEAF_BLOCKS * 4096;
    build(directory, 9, size, 10);
    snprintf(path, sizeof path, "%s/%016x.map", directory, 9);
    snprintf(aside, sizeof aside, "%s/aside", directory);
    int fd = open(path, O_RDWR);
    CU_ASSERT_EQUAL_FATAL(fstat(fd, &st), 0);
    off_t end = st.st_size - (off_t)sizeof footer;
    CU_ASSERT_EQUAL_FATAL(pread(fd, &footer, sizeof footer, end), (ssize_t)sizeof footer);
    CU_ASSERT_EQUAL(footer.leaves, MEND_LEAVES);
    spoil_node(fd, GILD_NODE_DIR, 0);
    if (spoil_leaf)
        spoil_node(fd, GILD_NODE_LEAF, 2);
    footer.leaves -= footer_lies; /* its check is wrong now */
    CU_ASSERT_EQUAL(pwrite(fd, &footer, sizeof footer, end), (ssize_t)sizeof footer);
    close(fd);
    const struct gild_map_mend how = {
        .directory = directory,
        .aside = aside,
        .store_id = store_id,
        .map_id = 9,
        .size_bytes = size,
        .data_blocks = footer.data_blocks + 1, /* the catalogue's count does not help */
        .pack_lost = no_pack_is_lost,
        .lost = lost,
        .context = &told,
    };
    CU_ASSERT_EQUAL(gild_map_mend(&how, &result, &error), 0);
    CU_ASSERT_TRUE(result.damaged);
    CU_ASSERT_EQUAL(result.lost_blocks, told.count);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    CU_ASSERT_EQUAL(system(command), 0);
    return told;
}

/* What a rotten directory may have named is lost, and not a hole, unless all leaves are there; and
 * how many there were is asked of a whole footer only. */
static void test_a_rotten_footer_does_not_count_leaves(void) {
    struct lost none = mended(false, false), one = mended(true, false), lied = mended(true, true);
    CU_ASSERT_EQUAL(none.ranges, 0);
    CU_ASSERT_EQUAL(one.first, 2 * GILD_LEAF_BLOCKS);
    CU_ASSERT_EQUAL(one.count, GILD_LEAF_BLOCKS);
    CU_ASSERT_EQUAL(lied.first, 2 * GILD_LEAF_BLOCKS);
    CU_ASSERT_EQUAL(lied.count, GILD_LEAF_BLOCKS);
}

static void test_an_unfinished_map_leaves_nothing(void) {
    char directory[] = "/var/tmp/gild-map-XXXXXX";
    struct gild_map_builder *builder;
    struct gild_error error;
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    CU_ASSERT_EQUAL(gild_map_builder_create(&builder, directory, store_id, 3, 1 << 20, &error), 0);
    CU_ASSERT_EQUAL(gild_map_builder_add(builder, 1, gild_place_pack(1, 1, 1), 1), 0);
    gild_map_builder_destroy(builder, true);
    CU_ASSERT_EQUAL(rmdir(directory), 0);
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 "\n", seed);
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("map", NULL, NULL);
    CU_add_test(suite, "a delta's tree is a flat array, over checkpoints that succeed or fail",
                test_tree_is_a_flat_array);
    CU_add_test(suite, "an empty page pool changes nothing", test_an_empty_pool_changes_nothing);
    CU_add_test(suite, "D3, D9: sealed maps: round trip, and rot is found",
                test_sealed_map_round_trip_and_rot);
    CU_add_test(suite, "D3: a rotten footer does not count leaves",
                test_a_rotten_footer_does_not_count_leaves);
    CU_add_test(suite, "D8: an unfinished map leaves nothing",
                test_an_unfinished_map_leaves_nothing);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
