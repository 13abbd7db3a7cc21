/* The first and last page of a sealed map's file (docs/format.md, "Sealed maps"). */
#ifndef GILD_MAP_FORMAT_H
#define GILD_MAP_FORMAT_H

#include <stdint.h>
#include <xxhash.h>

#include "map/node.h"

#define MAP_FORMAT_VERSION 1u
#define MAP_HEADER_MAGIC 0x3150414d444c4947ull /* "GILDMAP1" */
#define MAP_FOOTER_MAGIC 0x3146414d444c4947ull /* "GILDMAF1" */

struct map_header {
    uint64_t magic;
    uint64_t check; /* XXH3-64 of the page from byte 16 on, seeded with the map id */
    uint32_t version;
    uint32_t incompatible; /* feature bits that a reader must know */
    uint32_t compatible;   /* feature bits that a reader may ignore */
    uint32_t reserved;
    uint8_t store_id[16];
    uint64_t map_id;
    uint64_t size_bytes;
    uint8_t unused[GILD_NODE_BYTES - 64];
};

struct map_footer {
    uint64_t magic;
    uint64_t check;
    uint64_t map_id;
    uint64_t pages;      /* of the file, this one included */
    uint64_t root_page;  /* first of the root pages, which are consecutive; 0 = no content */
    uint64_t root_count; /* pages */
    uint64_t data_blocks;
    uint64_t leaves;
    uint8_t content_hash[32];
    uint8_t unused[GILD_NODE_BYTES - 96];
};

_Static_assert(sizeof(struct map_header) == GILD_NODE_BYTES, "header");
_Static_assert(sizeof(struct map_footer) == GILD_NODE_BYTES, "footer");

static inline uint64_t map_page_check(const void *page, uint64_t map_id) {
    return XXH3_64bits_withSeed((const char *)page + 16, GILD_NODE_BYTES - 16, map_id);
}

#endif
