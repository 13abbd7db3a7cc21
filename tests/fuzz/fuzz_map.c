/* libFuzzer entry: a sealed map's file, edited, as it is opened and walked, and as a repair mends
 * it: what a repair has written must be whole. See fuzz.h for the input; bit 1 of its first byte:
 * mended after the look. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "map/format.h"
#include "map/mend.h"
#include "map/sealed.h"

#define MAP_ID 3u
/* Two directories. */
#define SIZE_BYTES ((GILD_DIR_BLOCKS + 5 * GILD_LEAF_BLOCKS) * 4096ull)

static const uint8_t store_id[16] = "fuzzed store id";
static const uint8_t content_hash[32] = "a hash";
static struct fuzz_object valid;
static uint64_t data_blocks;
static char path[128], aside[128];

static void make_valid(void) {
    struct gild_error error = {0};
    struct gild_map_builder *builder;
    snprintf(path, sizeof path, "%s/%016x.map", fuzz_folder(), MAP_ID);
    snprintf(aside, sizeof aside, "%s/aside", fuzz_folder());
    FUZZ_MUST(mkdir(aside, 0700) == 0);
    FUZZ_MUST(gild_map_builder_create(&builder, fuzz_folder(), store_id, MAP_ID, SIZE_BYTES,
                                      &error) == 0);
    for (uint64_t leaf = 0; leaf < GILD_DIR_REFS + 5; leaf += leaf < 3 ? 1 : 250)
        for (uint32_t i = 0; i < 30; i++, data_blocks++)
            FUZZ_MUST(gild_map_builder_add(builder, leaf * GILD_LEAF_BLOCKS + i,
                                           gild_place_pack(1, (uint32_t)leaf, i % 16), i) == 0);
    FUZZ_MUST(gild_map_builder_finish(builder, content_hash, &error) == 0);
    gild_map_builder_destroy(builder, true);
    fuzz_load(path, &valid);
    FUZZ_MUST(valid.length);
}

static void seal(struct fuzz_object *object) {
    for (size_t at = 0; at + GILD_NODE_BYTES <= object->length; at += GILD_NODE_BYTES) {
        struct gild_node_header *node = (void *)(object->bytes + at);
        uint64_t check = map_page_check(node, MAP_ID);
        if (node->magic == GILD_NODE_MAGIC)
            gild_node_seal(node, node->kind, node->owner, node->index);
        else if (node->magic == MAP_HEADER_MAGIC || node->magic == MAP_FOOTER_MAGIC)
            memcpy((uint8_t *)node + 8, &check, sizeof check);
    }
}

static int visit(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    const struct gild_sealed_map *map = context;
    FUZZ_MUST(leaf_index < gild_leaves_of(map->size_bytes));
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
        FUZZ_MUST(gild_place_type(leaf->place[i]) <= GILD_PLACE_LOST);
    return 0;
}

/* True: it opened, and all of it is whole. */
static bool look(void) {
    struct gild_error error = {0};
    struct gild_sealed_map *map;
    if (gild_sealed_open(&map, fuzz_folder(), store_id, MAP_ID, &error) != 0) {
        FUZZ_MUST(error.message[0]);
        return false;
    }
    for (uint64_t leaf = 0; leaf < GILD_DIR_REFS + 10; leaf++) {
        uint64_t page = gild_sealed_leaf_page(map, leaf);
        FUZZ_MUST(page == GILD_SEALED_LOST || page < 1u << 20);
    }
    int err = gild_sealed_walk(map, visit, map);
    FUZZ_MUST(err == 0 || err == -EBADMSG);
    gild_sealed_close(map);
    return err == 0;
}

static bool pack_lost(void *context, uint32_t pack_id) {
    (void)context;
    return pack_id != 1;
}

static void lost(void *context, uint64_t first, uint64_t count) {
    uint64_t *next = context;
    FUZZ_MUST(first >= *next && count && count <= SIZE_BYTES / 4096 - first);
    *next = first + count;
}

static bool mend(bool dry_run) {
    struct gild_error error = {0};
    struct gild_map_mended result;
    uint64_t next = 0;
    struct gild_map_mend asked = {.directory = fuzz_folder(),
                                  .aside = aside,
                                  .store_id = store_id,
                                  .map_id = MAP_ID,
                                  .size_bytes = SIZE_BYTES,
                                  .data_blocks = data_blocks,
                                  .pack_lost = pack_lost,
                                  .lost = lost,
                                  .context = &next,
                                  .dry_run = dry_run};
    memcpy(asked.content_hash, content_hash, sizeof content_hash);
    int err = gild_map_mend(&asked, &result, &error);
    FUZZ_MUST(err == 0 || error.message[0]);
    return err == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!valid.length)
        make_valid();
    if (!size)
        return 0;
    struct fuzz_object *object = fuzz_edit(&valid, data, size);
    if (fuzz_wants_checks(data))
        seal(object);
    fuzz_store(path, object);
    look();
    bool could = mend(true);
    fuzz_must_hold(path, object);
    if (could && data[0] & 2) {
        char kept[160];
        FUZZ_MUST(mend(false));
        FUZZ_MUST(look());
        snprintf(kept, sizeof kept, "%s/%016x.map", aside, MAP_ID);
        unlink(kept);
    }
    return 0;
}
