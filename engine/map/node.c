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

void gild_node_seal(void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index) {
    struct gild_node_header *header = page;
    *header = (struct gild_node_header){
        .magic = GILD_NODE_MAGIC, .owner = owner, .index = index, .kind = kind};
    header->check = node_check(page, owner, index);
}

int gild_node_verify(const void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index) {
    const struct gild_node_header *header = page;
    if (header->magic != GILD_NODE_MAGIC || header->kind != kind || header->owner != owner ||
        header->index != index)
        return -EBADMSG;
    return header->check == node_check(page, owner, index) ? 0 : -EBADMSG;
}
