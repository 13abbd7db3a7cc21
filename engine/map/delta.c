/* The delta map's tree in memory. See delta.h for the states of a node.
 *
 * Invariants:
 *   - a page is on exactly one of: the free list, map->dirty, map->frozen, or (clean directories)
 * none;
 *   - a dirty or frozen leaf is referenced from an in-memory directory; a leaf in memory is never
 * clean;
 *   - a frozen page is never written; who must change it makes a copy and leaves the frozen one to
 * the checkpoint;
 *   - a dirty directory's `origin`, and a dirty leaf's, names the node on disk that the next
 * checkpoint makes unreachable; it is uncounted by the checkpoint, or here if the node is dropped
 * before.
 *
 * Failure modes: none but an empty pool, which is said and changes nothing. */
#include "map/delta.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int gild_page_pool_init(struct gild_page_pool *pool, size_t bytes) {
    size_t total = bytes / sizeof(struct gild_page);
    if (total < 16)
        total = 16;
    void *memory = mmap(NULL, total * sizeof(struct gild_page), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    *pool = (struct gild_page_pool){.memory = memory, .total = total, .limit = total};
    return 0;
}

void gild_page_pool_fini(struct gild_page_pool *pool) {
    if (pool->memory)
        munmap(pool->memory, pool->total * sizeof(struct gild_page));
    pool->memory = NULL;
}

/* Pages are carved from the front of the mapping on first use, so that memory is touched only as
 * needed: `total` counts down to the carved part through the free list being empty. */
static struct gild_page *page_take(struct gild_delta_map *map, uint32_t kind, uint64_t index) {
    struct gild_page_pool *pool = map->pool;
    struct gild_page *page = pool->free;
    if (pool->used >= pool->limit)
        return NULL;
    if (page) {
        pool->free = page->next;
    } else {
        /* Nothing on the free list: used equals the number of pages ever carved. */
        page = &pool->memory[pool->used];
    }
    pool->used++;
    map->pages++;
    page->next = NULL;
    page->map = map;
    page->index = index;
    page->origin = 0;
    page->settled = 0;
    page->kind = kind;
    page->dirty = page->frozen = page->touched = false;
    return page;
}

static void page_give(struct gild_delta_map *map, struct gild_page *page) {
    struct gild_page_pool *pool = map->pool;
    page->next = pool->free;
    pool->free = page;
    pool->used--;
    map->pages--;
}

static uint64_t page_ref(struct gild_page *page) {
    return (uint64_t)GILD_REF_MEMORY << 60 | (uint64_t)(uintptr_t)page;
}

static void page_mark_dirty(struct gild_delta_map *map, struct gild_page *page) {
    page->dirty = true;
    page->previous = NULL;
    page->next = map->dirty;
    if (map->dirty)
        map->dirty->previous = page;
    map->dirty = page;
}

static void unlink_dirty(struct gild_delta_map *map, struct gild_page *page) {
    if (page->previous)
        page->previous->next = page->next;
    else
        map->dirty = page->next;
    if (page->next)
        page->next->previous = page->previous;
}

int gild_delta_map_init(struct gild_delta_map *map, uint64_t delta_id, uint64_t size_bytes,
                        struct gild_page_pool *pool,
                        void (*count)(void *context, uint64_t place, int sign), void *context) {
    uint64_t dirs = gild_dirs_of(size_bytes);
    if (dirs > UINT32_MAX)
        return -EFBIG;
    *map = (struct gild_delta_map){
        .delta_id = delta_id,
        .size_blocks = gild_blocks_of(size_bytes),
        .dir_count = (uint32_t)dirs,
        .pool = pool,
        .count = count,
        .context = context,
    };
    map->dirs = calloc(dirs ? dirs : 1, sizeof *map->dirs);
    return map->dirs ? 0 : -ENOMEM;
}

void gild_delta_map_fini(struct gild_delta_map *map) {
    assert(!map->frozen);
    for (uint32_t i = 0; map->dirs && i < map->dir_count; i++) {
        if (!gild_ref_is_page(map->dirs[i]))
            continue;
        struct gild_page *dir = gild_ref_page(map->dirs[i]);
        for (uint32_t j = 0; j < GILD_DIR_REFS; j++)
            if (gild_ref_is_page(dir->dir.ref[j]))
                page_give(map, gild_ref_page(dir->dir.ref[j]));
        page_give(map, dir);
    }
    free(map->dirs);
    map->dirs = NULL;
    map->dirty = NULL;
}

enum gild_map_step gild_delta_look(struct gild_delta_map *map, uint64_t leaf_index, uint64_t *ref,
                                   struct gild_map_need *need) {
    uint64_t dir_index = leaf_index / GILD_DIR_REFS;
    uint64_t dir_ref = map->dirs[dir_index];
    if (gild_ref_is_page(dir_ref)) {
        struct gild_page *dir = gild_ref_page(dir_ref);
        dir->touched = true;
        *ref = dir->dir.ref[leaf_index % GILD_DIR_REFS];
        return GILD_MAP_READY;
    }
    if (gild_place_type(dir_ref) == GILD_PLACE_LOG) {
        *need = (struct gild_map_need){dir_ref, dir_index, GILD_NODE_DIR};
        return GILD_MAP_NEED_NODE;
    }
    *ref = dir_ref; /* PARENT, HOLE or ZERO for all of it */
    return GILD_MAP_READY;
}

/* An unfrozen, dirty directory page. */
static enum gild_map_step dir_writable(struct gild_delta_map *map, uint64_t dir_index,
                                       struct gild_page **out, struct gild_map_need *need) {
    uint64_t ref = map->dirs[dir_index];
    struct gild_page *dir;
    if (gild_ref_is_page(ref)) {
        dir = gild_ref_page(ref);
        dir->touched = true;
        if (!dir->frozen) {
            if (!dir->dirty) {
                page_mark_dirty(map, dir);
                map->roots_dirty = true;
            }
            *out = dir;
            return GILD_MAP_READY;
        }
        struct gild_page *copy = page_take(map, GILD_NODE_DIR, dir_index);
        if (!copy)
            return GILD_MAP_NEED_PAGE;
        memcpy(copy->bytes, dir->bytes, GILD_NODE_BYTES);
        dir = copy; /* origin: whatever place the frozen one is given, see settle */
    } else if (gild_place_type(ref) == GILD_PLACE_LOG) {
        *need = (struct gild_map_need){ref, dir_index, GILD_NODE_DIR};
        return GILD_MAP_NEED_NODE;
    } else {
        dir = page_take(map, GILD_NODE_DIR, dir_index);
        if (!dir)
            return GILD_MAP_NEED_PAGE;
        for (uint32_t i = 0; i < GILD_DIR_REFS; i++)
            dir->dir.ref[i] = ref;
    }
    dir->touched = true;
    page_mark_dirty(map, dir);
    map->dirs[dir_index] = page_ref(dir);
    map->roots_dirty = true;
    *out = dir;
    return GILD_MAP_READY;
}

enum gild_map_step gild_delta_writable(struct gild_delta_map *map, uint64_t leaf_index,
                                       struct gild_page **out, struct gild_map_need *need) {
    /* The common case first: the leaf is dirty already. */
    uint64_t dir_index = leaf_index / GILD_DIR_REFS;
    uint32_t slot = leaf_index % GILD_DIR_REFS;
    uint64_t dir_ref = map->dirs[dir_index];
    if (gild_ref_is_page(dir_ref)) {
        uint64_t ref = gild_ref_page(dir_ref)->dir.ref[slot];
        if (gild_ref_is_page(ref) && !gild_ref_page(ref)->frozen) {
            *out = gild_ref_page(ref);
            return GILD_MAP_READY;
        }
        if (gild_place_type(ref) == GILD_PLACE_LOG) {
            *need = (struct gild_map_need){ref, leaf_index, GILD_NODE_LEAF};
            return GILD_MAP_NEED_NODE;
        }
    }
    struct gild_page *dir;
    enum gild_map_step step = dir_writable(map, dir_index, &dir, need);
    if (step != GILD_MAP_READY)
        return step;
    uint64_t ref = dir->dir.ref[slot];
    if (gild_place_type(ref) == GILD_PLACE_LOG) {
        *need = (struct gild_map_need){ref, leaf_index, GILD_NODE_LEAF};
        return GILD_MAP_NEED_NODE;
    }
    struct gild_page *leaf = page_take(map, GILD_NODE_LEAF, leaf_index);
    if (!leaf)
        return GILD_MAP_NEED_PAGE;
    if (gild_ref_is_page(ref)) { /* frozen: go on with a copy */
        memcpy(leaf->bytes, gild_ref_page(ref)->bytes, GILD_NODE_BYTES);
    } else {
        memset(leaf->bytes, 0, GILD_NODE_BYTES);
        for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
            leaf->leaf.place[i] = ref;
    }
    dir->dir.ref[slot] = page_ref(leaf);
    page_mark_dirty(map, leaf);
    *out = leaf;
    return GILD_MAP_READY;
}

/* The part of a place that says which segment or pack it is in; 0: in none. */
static uint64_t object_of(uint64_t place) {
    switch (gild_place_type(place)) {
    case GILD_PLACE_LOG:
        return gild_place_log(gild_place_serial(place), 0);
    case GILD_PLACE_PACK:
        return gild_place_pack(gild_place_pack_id(place), 0, 0);
    default:
        return 0;
    }
}

/* A directory's places are looked at when the leaves there are loaded. */
static bool names_what_is_there(const struct gild_delta_map *map, const struct gild_leaf *leaf) {
    uint64_t last = 0; /* neighbours are mostly of one segment or pack */
    for (uint32_t i = 0; map->known && i < GILD_LEAF_BLOCKS; i++) {
        uint64_t place = object_of(leaf->place[i]);
        if (!place || place == last)
            continue;
        if (!map->known(map->context, place))
            return false;
        last = place;
    }
    return true;
}

enum gild_map_step gild_delta_install(struct gild_delta_map *map, const struct gild_map_need *need,
                                      const void *bytes) {
    uint64_t dir_index = need->kind == GILD_NODE_DIR ? need->index : need->index / GILD_DIR_REFS;
    if (need->kind == GILD_NODE_DIR) {
        if (map->dirs[dir_index] != need->place)
            return GILD_MAP_READY;
        struct gild_page *dir = page_take(map, GILD_NODE_DIR, dir_index);
        if (!dir)
            return GILD_MAP_NEED_PAGE;
        memcpy(dir->bytes, bytes, GILD_NODE_BYTES);
        dir->origin = need->place;
        dir->touched = true;
        map->dirs[dir_index] = page_ref(dir);
        return GILD_MAP_READY;
    }
    uint64_t dir_ref = map->dirs[dir_index];
    if (!gild_ref_is_page(dir_ref) ||
        gild_ref_page(dir_ref)->dir.ref[need->index % GILD_DIR_REFS] != need->place)
        return GILD_MAP_READY;
    if (!names_what_is_there(map, bytes))
        return GILD_MAP_BAD_NODE;
    struct gild_page *dir;
    struct gild_map_need again;
    enum gild_map_step step = dir_writable(map, dir_index, &dir, &again);
    if (step != GILD_MAP_READY)
        return step;
    struct gild_page *leaf = page_take(map, GILD_NODE_LEAF, need->index);
    if (!leaf)
        return GILD_MAP_NEED_PAGE;
    memcpy(leaf->bytes, bytes, GILD_NODE_BYTES);
    leaf->origin = need->place;
    dir->dir.ref[need->index % GILD_DIR_REFS] = page_ref(leaf);
    page_mark_dirty(map, leaf);
    return GILD_MAP_READY;
}

enum gild_map_step gild_delta_lose(struct gild_delta_map *map, const struct gild_map_need *need) {
    uint64_t lost = gild_place_of_type(GILD_PLACE_LOST);
    if (need->kind == GILD_NODE_DIR) {
        if (map->dirs[need->index] != need->place)
            return GILD_MAP_READY;
        map->dirs[need->index] = lost;
        map->roots_dirty = true;
    } else {
        struct gild_page *dir;
        struct gild_map_need again;
        enum gild_map_step step = dir_writable(map, need->index / GILD_DIR_REFS, &dir, &again);
        if (step != GILD_MAP_READY)
            return step;
        if (dir->dir.ref[need->index % GILD_DIR_REFS] != need->place)
            return GILD_MAP_READY;
        dir->dir.ref[need->index % GILD_DIR_REFS] = lost;
    }
    map->count(map->context, need->place, -1);
    return GILD_MAP_READY;
}

enum gild_map_step gild_delta_rewrite(struct gild_delta_map *map, const struct gild_map_need *node,
                                      struct gild_map_need *need) {
    struct gild_page *page;
    if (node->kind == GILD_NODE_ROOT) {
        map->roots_dirty = true;
        return GILD_MAP_READY;
    }
    uint64_t dir_index = node->kind == GILD_NODE_DIR ? node->index : node->index / GILD_DIR_REFS;
    uint64_t ref = map->dirs[dir_index];
    if (node->kind == GILD_NODE_DIR) {
        bool there = gild_ref_is_page(ref)
                         ? !gild_ref_page(ref)->dirty && !gild_ref_page(ref)->frozen &&
                               gild_ref_page(ref)->origin == node->place
                         : ref == node->place;
        return there ? dir_writable(map, dir_index, &page, need) : GILD_MAP_READY;
    }
    if (gild_ref_is_page(ref)) {
        if (gild_ref_page(ref)->dir.ref[node->index % GILD_DIR_REFS] != node->place)
            return GILD_MAP_READY;
    } else if (gild_place_type(ref) != GILD_PLACE_LOG) {
        return GILD_MAP_READY;
    } else {
        *need = (struct gild_map_need){ref, dir_index, GILD_NODE_DIR};
        return GILD_MAP_NEED_NODE;
    }
    return gild_delta_writable(map, node->index, &page, need);
}

bool gild_delta_has(const struct gild_page *leaf, uint64_t block) {
    return object_of(leaf->leaf.place[block % GILD_LEAF_BLOCKS]) != 0;
}

void gild_delta_set(struct gild_delta_map *map, struct gild_page *leaf, uint64_t block,
                    uint64_t place, uint32_t check) {
    uint32_t slot = block % GILD_LEAF_BLOCKS;
    uint64_t old = leaf->leaf.place[slot];
    if (object_of(old)) {
        map->count(map->context, old, -1);
        map->mapped_blocks--;
        map->packed_blocks -= gild_place_type(old) == GILD_PLACE_PACK;
    }
    if (object_of(place)) {
        map->count(map->context, place, +1);
        map->mapped_blocks++;
        map->packed_blocks += gild_place_type(place) == GILD_PLACE_PACK;
    }
    leaf->leaf.place[slot] = place;
    leaf->leaf.check[slot] = check;
}

/* All of a dirty, unfrozen or frozen leaf goes: its blocks are no longer reached. */
static void uncount_leaf(struct gild_delta_map *map, const struct gild_leaf *leaf) {
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
        if (object_of(leaf->place[i])) {
            map->count(map->context, leaf->place[i], -1);
            map->mapped_blocks--;
            map->packed_blocks -= gild_place_type(leaf->place[i]) == GILD_PLACE_PACK;
        }
}

/* Replaces a whole leaf by one reference. The leaf must be in memory (or nothing at all). */
static void drop_leaf(struct gild_delta_map *map, struct gild_page *dir, uint32_t slot,
                      uint64_t place) {
    uint64_t ref = dir->dir.ref[slot];
    dir->dir.ref[slot] = place;
    if (!gild_ref_is_page(ref))
        return;
    struct gild_page *leaf = gild_ref_page(ref);
    uncount_leaf(map, &leaf->leaf);
    if (leaf->frozen)
        return; /* its checkpoint gives it a place and counts it; settle finds it unreferenced */
    if (gild_place_type(leaf->origin) == GILD_PLACE_LOG)
        map->count(map->context, leaf->origin, -1);
    unlink_dirty(map, leaf);
    page_give(map, leaf);
}

enum gild_map_step gild_delta_fill(struct gild_delta_map *map, uint64_t block, uint64_t count,
                                   uint64_t place, uint64_t *did, struct gild_map_need *need) {
    uint64_t dir_index = block / GILD_DIR_BLOCKS;
    uint64_t dir_ref = map->dirs[dir_index];
    bool uniform = !gild_ref_is_page(dir_ref) && gild_place_type(dir_ref) != GILD_PLACE_LOG;
    uint64_t dir_end = (dir_index + 1) * GILD_DIR_BLOCKS;
    if (dir_end > map->size_blocks)
        dir_end = map->size_blocks;
    if (uniform && block == dir_index * GILD_DIR_BLOCKS && count >= dir_end - block) {
        if (dir_ref != place) {
            map->dirs[dir_index] = place;
            map->roots_dirty = true;
        }
        *did = dir_end - block;
        return GILD_MAP_READY;
    }
    uint64_t leaf_index = block / GILD_LEAF_BLOCKS;
    uint64_t leaf_end = (leaf_index + 1) * GILD_LEAF_BLOCKS;
    if (leaf_end > map->size_blocks)
        leaf_end = map->size_blocks;
    struct gild_page *dir, *leaf;
    enum gild_map_step step;
    if (block == leaf_index * GILD_LEAF_BLOCKS && count >= leaf_end - block) {
        step = dir_writable(map, dir_index, &dir, need);
        if (step != GILD_MAP_READY)
            return step;
        uint64_t ref = dir->dir.ref[leaf_index % GILD_DIR_REFS];
        if (gild_place_type(ref) == GILD_PLACE_LOG) {
            /* Its blocks must be uncounted, so it has to be looked into. */
            *need = (struct gild_map_need){ref, leaf_index, GILD_NODE_LEAF};
            return GILD_MAP_NEED_NODE;
        }
        drop_leaf(map, dir, leaf_index % GILD_DIR_REFS, place);
        *did = leaf_end - block;
        return GILD_MAP_READY;
    }
    step = gild_delta_writable(map, leaf_index, &leaf, need);
    if (step != GILD_MAP_READY)
        return step;
    uint64_t end = block + count < leaf_end ? block + count : leaf_end;
    for (uint64_t b = block; b < end; b++)
        gild_delta_set(map, leaf, b, place, 0);
    *did = end - block;
    return GILD_MAP_READY;
}

bool gild_delta_freeze(struct gild_delta_map *map) {
    assert(!map->frozen);
    if (!map->dirty && !map->roots_dirty)
        return false;
    for (struct gild_page *page = map->dirty; page; page = page->next)
        page->frozen = true;
    map->frozen = map->dirty;
    map->dirty = NULL;
    map->roots_dirty = false;
    return true;
}

/* A frozen leaf now has a place: the directory that is current takes it, if it still holds the
 * leaf. */
static void settle_leaf(struct gild_delta_map *map, struct gild_page *leaf) {
    uint64_t dir_ref = map->dirs[leaf->index / GILD_DIR_REFS];
    uint32_t slot = leaf->index % GILD_DIR_REFS;
    if (gild_ref_is_page(dir_ref)) {
        struct gild_page *dir = gild_ref_page(dir_ref);
        uint64_t ref = dir->dir.ref[slot];
        if (gild_ref_is_page(ref) && gild_ref_page(ref) == leaf) {
            dir->dir.ref[slot] = leaf->settled;
            page_give(map, leaf);
            return;
        }
        if (gild_ref_is_page(ref)) {
            /* A copy went on: what the checkpoint wrote is what the copy supersedes. */
            gild_ref_page(ref)->origin = leaf->settled;
            page_give(map, leaf);
            return;
        }
    }
    /* Dropped since: nothing reaches the node that was just written. */
    map->count(map->context, leaf->settled, -1);
    page_give(map, leaf);
}

static void settle_dir(struct gild_delta_map *map, struct gild_page *dir) {
    uint64_t ref = map->dirs[dir->index];
    struct gild_page *current = gild_ref_is_page(ref) ? gild_ref_page(ref) : NULL;
    if (current == dir) {
        dir->frozen = dir->dirty = false;
        dir->origin = dir->settled;
        if (dir->touched) {
            dir->touched = false; /* kept in memory for one more round */
            return;
        }
        map->dirs[dir->index] = dir->settled;
    } else if (current) {
        current->origin = dir->settled;
    } else {
        map->count(map->context, dir->settled, -1);
    }
    page_give(map, dir);
}

void gild_delta_settle(struct gild_delta_map *map) {
    struct gild_page *page = map->frozen, *next, *dirs = NULL;
    map->frozen = NULL;
    /* Leaves first: a directory may leave memory only when it points at places alone. */
    for (; page; page = next) {
        next = page->next;
        if (page->kind == GILD_NODE_DIR) {
            page->next = dirs;
            dirs = page;
        } else {
            settle_leaf(map, page);
        }
    }
    for (page = dirs; page; page = next) {
        next = page->next;
        settle_dir(map, page);
    }
}

void gild_delta_trim(struct gild_delta_map *map) {
    for (uint32_t i = 0; i < map->dir_count; i++) {
        struct gild_page *dir = gild_ref_is_page(map->dirs[i]) ? gild_ref_page(map->dirs[i]) : NULL;
        if (!dir || dir->dirty || dir->frozen)
            continue;
        map->dirs[i] = dir->origin; /* a clean directory has one */
        page_give(map, dir);
    }
}

void gild_delta_thaw(struct gild_delta_map *map) {
    struct gild_page *page = map->frozen, *next;
    map->frozen = NULL;
    map->roots_dirty = true;
    for (; page; page = next) {
        next = page->next;
        page->frozen = false;
        uint64_t dir_ref =
            map->dirs[page->kind == GILD_NODE_DIR ? page->index : page->index / GILD_DIR_REFS];
        struct gild_page *dir = gild_ref_is_page(dir_ref) ? gild_ref_page(dir_ref) : NULL;
        uint64_t ref = page->kind == GILD_NODE_DIR ? dir_ref
                       : dir                       ? dir->dir.ref[page->index % GILD_DIR_REFS]
                                                   : 0;
        struct gild_page *current = gild_ref_is_page(ref) ? gild_ref_page(ref) : NULL;
        if (current == page) {
            page_mark_dirty(map, page);
            continue;
        }
        if (current)
            current->origin = page->origin;
        else if (gild_place_type(page->origin) == GILD_PLACE_LOG)
            map->count(map->context, page->origin, -1);
        page_give(map, page);
    }
}
