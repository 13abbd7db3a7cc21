/* Sealing and verifying of map nodes. Pure functions, any thread. A node's check is seeded with its
 * owner and index, so that a node read from the wrong place never passes for the right one. */
#include "map/node.h"

#include <errno.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "nodes are used in memory as on disk");

static uint64_t node_check(const void *page, uint64_t owner, uint64_t index) {
    return XXH3_64bits_withSeed((const char *)page + 16, GILD_NODE_BYTES - 16,
                                owner * 0x9e3779b97f4a7c15ull ^ index);
}

void gild_delta_node_seal(void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index,
                          uint64_t place) {
    struct gild_node_header *header = page;
    *header = (struct gild_node_header){
        .magic = GILD_NODE_MAGIC, .owner = owner, .index = index, .kind = kind, .place = place};
    header->check = node_check(page, owner, index);
}

void gild_node_seal(void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index) {
    gild_delta_node_seal(page, kind, owner, index, 0);
}

static int verify(const void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index,
                  uint64_t place) {
    const struct gild_node_header *header = page;
    if (header->magic != GILD_NODE_MAGIC || header->kind != kind || header->owner != owner ||
        header->index != index || header->place != place)
        return -EBADMSG;
    if (header->check != node_check(page, owner, index))
        return -EBADMSG;
    /* A sound check proves who wrote the page, not that it makes sense: what follows a place must
     * not meet one that no map can hold. */
    const struct gild_leaf *leaf = page;
    bool sane = true;
    for (uint32_t i = 0; kind == GILD_NODE_LEAF && i < GILD_LEAF_BLOCKS; i++)
        sane &= gild_place_type(leaf->place[i]) <= GILD_PLACE_LOST;
    return sane ? 0 : -EBADMSG;
}

int gild_node_verify(const void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index) {
    return verify(page, kind, owner, index, 0);
}

int gild_delta_node_verify(const void *page, enum gild_node_kind kind, uint64_t owner,
                           uint64_t index, uint64_t place) {
    const struct gild_dir *dir = page;
    int err = verify(page, kind, owner, index, place);
    for (uint32_t i = 0; !err && kind != GILD_NODE_LEAF && i < GILD_DIR_REFS; i++)
        if (gild_place_type(dir->ref[i]) > GILD_PLACE_LOST ||
            gild_place_type(dir->ref[i]) == GILD_PLACE_PACK)
            err = -EBADMSG;
    return err;
}
