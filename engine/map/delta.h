/* A delta's map: what a writable disk has of its own. A copy-on-write tree of nodes (map/node.h)
 * whose clean part lies in the log's segments and whose dirty part is in memory.
 *
 * This module is the pure structure: it never does I/O. Where a node is needed that is not in
 * memory, it says so; the caller loads the page (through the cache) and installs it or looks into
 * it.
 *
 *                  writable()               freeze()                settle(place)
 *   absent/clean ------------> dirty -------------------> frozen ------------------> clean, freed
 *                                ^   writable(): a copy      |
 *                                `---------------------------'
 *
 * While a node is frozen a checkpoint reads it from another thread; it is not changed until
 * settled.
 *
 * Threads: the disk's reactor only, but for what a freeze hands out. Memory: in-memory nodes come
 * from a struct gild_page_pool of fixed size, so that the write path allocates nothing. */
#ifndef GILD_MAP_DELTA_H
#define GILD_MAP_DELTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "map/node.h"

/* ---- pages -------------------------------------------------------------------------------------
 */

/* A node in memory. */
struct gild_page {
    union {
        struct gild_leaf leaf;
        struct gild_dir dir;
        uint8_t bytes[GILD_NODE_BYTES];
    };
    struct gild_page *next;     /* in the delta's list of dirty or frozen pages, or the free list */
    struct gild_page *previous; /* in the list of dirty pages */
    struct gild_delta_map *map; /* its owner */
    uint64_t index;             /* leaf or directory number */
    uint64_t origin;  /* the place of the version on disk that this one supersedes, or 0 */
    uint64_t settled; /* the place that a checkpoint gave it */
    uint32_t kind;
    bool dirty;   /* differs from what is on disk */
    bool frozen;  /* being read by a checkpoint */
    bool touched; /* used since the last settle */
};

struct gild_page_pool {
    struct gild_page *memory;
    struct gild_page *free;
    size_t total; /* address space, in pages */
    size_t limit; /* pages that may be in use */
    size_t used;
};

/* Reserves address space for `bytes`; memory is touched as pages are used. The limit is the whole.
 */
int gild_page_pool_init(struct gild_page_pool *pool, size_t bytes);
void gild_page_pool_fini(struct gild_page_pool *pool);

/* ---- the map -----------------------------------------------------------------------------------
 */

/* In-memory references: type nibble 15 and the page's address. */
#define GILD_REF_MEMORY 15u
static inline bool gild_ref_is_page(uint64_t ref) {
    return ref >> 60 == GILD_REF_MEMORY;
}
static inline struct gild_page *gild_ref_page(uint64_t ref) {
    return (struct gild_page *)(uintptr_t)(ref & 0x0fffffffffffffffull);
}

struct gild_delta_map {
    uint64_t delta_id;
    uint64_t size_blocks;
    uint64_t mapped_blocks; /* blocks of content of its own */
    uint64_t packed_blocks; /* of these, in packs */
    uint32_t dir_count;
    uint32_t pages; /* in memory */
    uint64_t *dirs; /* references, dir_count of them */
    struct gild_page *dirty;
    struct gild_page *frozen;
    bool roots_dirty; /* a directory reference changed since the last freeze */
    struct gild_page_pool *pool;
    /* Called for each place in the log (block or node) or in a pack that this map stops reaching or
     * begins to reach (sign -1 or +1), as it happens. */
    void (*count)(void *context, uint64_t place, int sign);
    /* Is there a segment or pack that the place can lie in? Set after init; NULL: all are taken to
     * be there. What is in memory names only such, so that `count` never meets another. */
    bool (*known)(void *context, uint64_t place);
    void *context;
};

int gild_delta_map_init(struct gild_delta_map *map, uint64_t delta_id, uint64_t size_bytes,
                        struct gild_page_pool *pool,
                        void (*count)(void *context, uint64_t place, int sign), void *context);
/* Gives all pages back. Nothing may be frozen. */
void gild_delta_map_fini(struct gild_delta_map *map);

enum gild_map_step {
    GILD_MAP_READY,
    GILD_MAP_NEED_NODE, /* load need->place, then install or look into it */
    GILD_MAP_NEED_PAGE, /* the pool is empty: a checkpoint must settle first */
    GILD_MAP_BAD_NODE,  /* the node, though sound, names what is not there: -EBADMSG */
};

struct gild_map_need {
    uint64_t place;
    uint64_t index;
    enum gild_node_kind kind;
};

/* Where leaf `leaf_index` is, for reading: READY: *ref is PARENT, HOLE, ZERO, LOST, an in-memory
 * page (gild_ref_page(ref)->leaf) or a LOG place of the leaf's node. NEED_NODE: the directory must
 * be looked into; its ref[leaf_index % GILD_DIR_REFS] is the answer. */
enum gild_map_step gild_delta_look(struct gild_delta_map *map, uint64_t leaf_index, uint64_t *ref,
                                   struct gild_map_need *need);

/* A leaf that may be changed: dirty and not frozen. NEED_NODE: load the node and install it, then
 * ask again. */
enum gild_map_step gild_delta_writable(struct gild_delta_map *map, uint64_t leaf_index,
                                       struct gild_page **leaf, struct gild_map_need *need);

/* Puts a loaded and verified directory or leaf page in memory. NEED_PAGE if the pool is empty;
 * READY also when somebody else has installed or superseded it in the meantime; BAD_NODE for a leaf
 * that a damaged or hostile store made up: the map stays as it was. */
enum gild_map_step gild_delta_install(struct gild_delta_map *map, const struct gild_map_need *need,
                                      const void *page);

/* The node that a need names is rotten: all that it covers becomes LOST (reads are EIO until it is
 * overwritten). What it named is not uncounted, since nobody knows it. For a repair. */
enum gild_map_step gild_delta_lose(struct gild_delta_map *map, const struct gild_map_need *need);

/* An unfrozen, dirty copy of the node at `place`, if the map still reaches it there: the next
 * checkpoint writes it anew, elsewhere. READY: done, or it was superseded already. */
enum gild_map_step gild_delta_rewrite(struct gild_delta_map *map, const struct gild_map_need *node,
                                      struct gild_map_need *need);

/* Has the block content of its own in this leaf: in the log, or in a pack? */
bool gild_delta_has(const struct gild_page *leaf, uint64_t block);

/* Sets one block of a writable leaf, counting the old and the new place. */
void gild_delta_set(struct gild_delta_map *map, struct gild_page *leaf, uint64_t block,
                    uint64_t place, uint32_t check);

/* Makes [block, block + count) of the map `place` (HOLE or ZERO) as far as one call can: *did
 * blocks from `block` on were changed (whole directories and leaves at once where they can be).
 * READY with *did >= 1, or a need. Deterministic in the tree's content, so that replay does the
 * same. */
enum gild_map_step gild_delta_fill(struct gild_delta_map *map, uint64_t block, uint64_t count,
                                   uint64_t place, uint64_t *did, struct gild_map_need *need);

/* ---- checkpoints -------------------------------------------------------------------------------
 */

/* Freezes all dirty pages: they move to map->frozen and stay unchanged until gild_delta_settle.
 * False if there is nothing to write. Nothing may be frozen already. */
bool gild_delta_freeze(struct gild_delta_map *map);

/* After the checkpoint is durable: page->settled of each frozen page becomes its reference where
 * the map still holds that page; the pages go back to the pool, but for directories in use. */
void gild_delta_settle(struct gild_delta_map *map);

/* Clean directories leave memory: they are read again when they are next needed. */
void gild_delta_trim(struct gild_delta_map *map);

/* The checkpoint failed: frozen pages are dirty again. */
void gild_delta_thaw(struct gild_delta_map *map);

#endif
