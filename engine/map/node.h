/* Nodes: the 4 KiB pages that maps are made of, in memory as on disk (little-endian hosts only,
 * which node.c asserts). Byte by byte in docs/format.md.
 *
 *   root page: 504 directory references      (a delta's catalogue record names the root pages)
 *   directory: 504 leaf references           covers 504 * 320 blocks = 630 MiB
 *   leaf:      320 places and checks         covers 320 blocks = 1.25 MiB
 *
 * A reference is a place: PARENT (nothing here), HOLE or ZERO (all of it reads zero), LOG (a node
 * in a segment; deltas), or PACK's bit pattern with a page number (a node in a sealed map's own
 * file). In memory only, a delta's references may also be pointers (GILD_REF_MEMORY). */
#ifndef GILD_MAP_NODE_H
#define GILD_MAP_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/place.h"

#define GILD_NODE_BYTES 4096u
#define GILD_LEAF_BLOCKS 320u
#define GILD_DIR_REFS 504u
#define GILD_DIR_BLOCKS ((uint64_t)GILD_LEAF_BLOCKS * GILD_DIR_REFS)

enum gild_node_kind { GILD_NODE_ROOT = 1, GILD_NODE_DIR = 2, GILD_NODE_LEAF = 3 };

#define GILD_NODE_MAGIC 0x3145444f4e444c47ull /* "GLDNODE1" */

struct gild_node_header {
    uint64_t magic;
    uint64_t check; /* XXH3-64 of the page from byte 16 on, seeded with owner and index */
    uint64_t owner; /* delta id, or map id */
    uint64_t index; /* which leaf, directory or root page of the owner */
    uint32_t kind;
    uint32_t reserved;
    uint64_t place; /* of a delta's node: where it was written; 0 in sealed maps */
    uint64_t reserved2[2];
};

struct gild_leaf {
    struct gild_node_header header;
    uint64_t place[GILD_LEAF_BLOCKS];
    uint32_t check[GILD_LEAF_BLOCKS];
    uint8_t unused[GILD_NODE_BYTES - 64 - 12 * GILD_LEAF_BLOCKS];
};

struct gild_dir {
    struct gild_node_header header;
    uint64_t ref[GILD_DIR_REFS];
};

_Static_assert(sizeof(struct gild_node_header) == 64, "header");
_Static_assert(sizeof(struct gild_leaf) == GILD_NODE_BYTES, "leaf");
_Static_assert(sizeof(struct gild_dir) == GILD_NODE_BYTES, "dir");

/* Sets the header and the check of a filled page. */
void gild_node_seal(void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index);

/* 0, or -EBADMSG when magic, check, kind, owner or index is not as expected. */
int gild_node_verify(const void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index);

/* The same for a node of a delta, which knows its place: where its write was lost, an older one
 * that lay there does not pass for it, whatever segment the file was then. Its references and
 * places must be such as a delta's can be. */
void gild_delta_node_seal(void *page, enum gild_node_kind kind, uint64_t owner, uint64_t index,
                          uint64_t place);
int gild_delta_node_verify(const void *page, enum gild_node_kind kind, uint64_t owner,
                           uint64_t index, uint64_t place);

/* Blocks, leaves and directories that a disk of this size has. */
static inline uint64_t gild_blocks_of(uint64_t size_bytes) {
    return (size_bytes + 4095) / 4096;
}
static inline uint64_t gild_leaves_of(uint64_t size_bytes) {
    return (gild_blocks_of(size_bytes) + GILD_LEAF_BLOCKS - 1) / GILD_LEAF_BLOCKS;
}
static inline uint64_t gild_dirs_of(uint64_t size_bytes) {
    return (gild_leaves_of(size_bytes) + GILD_DIR_REFS - 1) / GILD_DIR_REFS;
}

#endif
