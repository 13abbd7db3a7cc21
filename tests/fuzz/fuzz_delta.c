/* libFuzzer entry: nodes of a delta's map (root page, directory, leaf) as they come from segments,
 * edited, verified, put in memory and then worked on as guests' writes, trims and a checkpoint do.
 * See fuzz.h for the input; the last 16 bytes say what is done. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "map/delta.h"

#define DELTA 9u
#define SIZE_BLOCKS (2 * GILD_DIR_BLOCKS + 700)
#define ACTIONS 16u

enum { ROOT, DIRECTORY, LEAF, LEAF_2, PAGES };

static struct fuzz_object valid;

static uint8_t *page_at(const struct fuzz_object *object, unsigned page) {
    return object->bytes + (size_t)page * GILD_NODE_BYTES;
}

static void make_valid(void) {
    valid.length = valid.room = (size_t)PAGES * GILD_NODE_BYTES;
    valid.bytes = calloc(1, valid.room);
    FUZZ_MUST(valid.bytes);
    struct gild_dir *root = (void *)page_at(&valid, ROOT),
                    *dir = (void *)page_at(&valid, DIRECTORY);
    root->ref[0] = gild_place_log(1, DIRECTORY);
    root->ref[1] = gild_place_of_type(GILD_PLACE_HOLE);
    dir->ref[0] = gild_place_log(1, LEAF);
    dir->ref[1] = gild_place_log(1, LEAF_2);
    dir->ref[2] = gild_place_of_type(GILD_PLACE_ZERO);
    for (unsigned n = LEAF; n <= LEAF_2; n++) {
        struct gild_leaf *leaf = (void *)page_at(&valid, n);
        for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
            leaf->place[i] = i % 3 ? gild_place_log(1, i + 10) : gild_place_of_type(i % 6 / 3);
        gild_delta_node_seal(leaf, GILD_NODE_LEAF, DELTA, n - LEAF, gild_place_log(1, n));
    }
    gild_delta_node_seal(root, GILD_NODE_ROOT, DELTA, 0, gild_place_log(1, ROOT));
    gild_delta_node_seal(dir, GILD_NODE_DIR, DELTA, 0, gild_place_log(1, DIRECTORY));
}

static void count(void *context, uint64_t place, int sign) {
    (void)context;
    enum gild_place_type type = gild_place_type(place);
    FUZZ_MUST(type == GILD_PLACE_LOG || type == GILD_PLACE_PACK);
    FUZZ_MUST(sign == 1 || sign == -1);
}

/* What a disk's reader of nodes does: the place says which page it is. False: it is refused. */
static bool answer(struct gild_delta_map *map, const struct fuzz_object *object,
                   enum gild_map_step step, const struct gild_map_need *need) {
    if (step != GILD_MAP_NEED_NODE)
        return false;
    FUZZ_MUST(gild_place_type(need->place) == GILD_PLACE_LOG);
    uint32_t page = gild_place_offset(need->place);
    if (page >= object->length / GILD_NODE_BYTES ||
        gild_delta_node_verify(page_at(object, page), need->kind, DELTA, need->index,
                               need->place) != 0)
        return gild_delta_lose(map, need) == GILD_MAP_READY;
    return gild_delta_install(map, need, page_at(object, page)) == GILD_MAP_READY;
}

static void act(struct gild_delta_map *map, const struct fuzz_object *object, uint8_t action) {
    static const uint64_t blocks[] = {
        0, 1, 319, 320, 640, 700, GILD_DIR_BLOCKS - 1, GILD_DIR_BLOCKS, 2 * GILD_DIR_BLOCKS + 699};
    uint64_t block = blocks[action % (sizeof blocks / sizeof *blocks)], ref, did;
    uint64_t rest = SIZE_BLOCKS - block, many = rest < 400 ? rest : 400;
    enum gild_map_step step = GILD_MAP_READY;
    struct gild_map_need need;
    struct gild_page *leaf;
    for (unsigned tries = 0; tries < 4; tries++) {
        switch (action >> 5) {
        case 0:
            step = gild_delta_look(map, block / GILD_LEAF_BLOCKS, &ref, &need);
            if (step == GILD_MAP_READY && gild_ref_is_page(ref))
                fuzz_touch(gild_ref_page(ref)->bytes, GILD_NODE_BYTES);
            break;
        case 1:
        case 2:
            step = gild_delta_writable(map, block / GILD_LEAF_BLOCKS, &leaf, &need);
            if (step == GILD_MAP_READY)
                gild_delta_set(map, leaf, block, gild_place_log(1, 1000 + action), action);
            break;
        case 3:
        case 4:
            step = gild_delta_fill(map, block, action & 16 ? rest : many,
                                   gild_place_of_type(GILD_PLACE_HOLE), &did, &need);
            break;
        case 5:
            gild_delta_trim(map);
            break;
        default:
            if (map->frozen && action & 16) {
                gild_delta_thaw(map);
            } else if (map->frozen) {
                for (struct gild_page *page = map->frozen; page; page = page->next)
                    page->settled = gild_place_log(2, (uint32_t)page->index + 1);
                gild_delta_settle(map);
            } else {
                gild_delta_freeze(map);
            }
            break;
        }
        if (step == GILD_MAP_READY || !answer(map, object, step, &need))
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gild_page_pool pool;
    struct gild_delta_map map;
    if (!valid.length)
        make_valid();
    if (size <= ACTIONS)
        return 0;
    struct fuzz_object *object = fuzz_edit(&valid, data, size - ACTIONS);
    for (unsigned page = 0; fuzz_wants_checks(data) && page < object->length / GILD_NODE_BYTES;
         page++) {
        const struct gild_node_header *node = (void *)page_at(object, page);
        gild_delta_node_seal(page_at(object, page), node->kind, node->owner, node->index,
                             node->place);
    }
    FUZZ_MUST(gild_page_pool_init(&pool, 64 * sizeof(struct gild_page)) == 0);
    FUZZ_MUST(gild_delta_map_init(&map, DELTA, SIZE_BLOCKS * 4096, &pool, count, NULL) == 0);
    const struct gild_dir *root = (void *)page_at(object, ROOT);
    bool rooted =
        object->length >= GILD_NODE_BYTES &&
        gild_delta_node_verify(root, GILD_NODE_ROOT, DELTA, 0, gild_place_log(1, ROOT)) == 0;
    for (uint32_t i = 0; rooted && i < map.dir_count; i++)
        map.dirs[i] = root->ref[i];
    for (unsigned i = 0; i < ACTIONS; i++)
        act(&map, object, data[size - ACTIONS + i]);
    if (map.frozen)
        gild_delta_thaw(&map);
    gild_delta_map_fini(&map);
    FUZZ_MUST(pool.used == 0);
    gild_page_pool_fini(&pool);
    return 0;
}
