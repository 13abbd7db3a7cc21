/* The content cache: fixed-size frames under one key each, loaded once however many ask.
 *
 * One cache of 64 KiB frames holds decompressed groups, one of 4 KiB frames holds map nodes, pack
 * tables and blocks read back from the log; both are this module. Entries are immutable once
 * loaded. Admission is S3-FIFO (Yang et al., SOSP 2023): a small probationary queue, a main queue
 * and a ghost queue, so that a scan does not evict what everybody boots from.
 *
 *   absent --get(MINE)--> loading --fill(0)--> ready <--get(HIT)
 *                           |  ^                 | unpinned and chosen
 *                           |  get(WAIT)         v
 *                           `--fill(err)--> failed: leaves at the last unpin; the next get is MINE
 *
 * Threads: any, sharded locks held for nanoseconds; nothing here blocks or does I/O. A hit
 * allocates nothing. */
#ifndef GILD_CACHE_H
#define GILD_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gild/error.h"
#include "gild/loop.h"

struct gild_cache;
struct gild_cache_entry;

/* What a key's object is; part of the key so that spaces can not meet. */
enum gild_cache_space {
    GILD_CACHE_GROUP = 1,      /* object: pack id, position: group */
    GILD_CACHE_PACK_TABLE = 2, /* object: pack id, position: generation << 32 | table page */
    GILD_CACHE_SEGMENT = 3,    /* object: segment serial, position: block offset */
    GILD_CACHE_SEALED_MAP = 4, /* object: map id, position: node */
};

struct gild_cache_key {
    uint64_t object; /* space << 56 | id */
    uint64_t position;
};

static inline struct gild_cache_key gild_cache_key(enum gild_cache_space space, uint64_t id,
                                                   uint64_t position) {
    return (struct gild_cache_key){(uint64_t)space << 56 | id, position};
}

/* One wait for one entry; caller-owned until its task runs (posted to `loop`). */
struct gild_cache_waiter {
    struct gild_task task; /* set task.run */
    struct gild_loop *loop;
    struct gild_cache_waiter *next; /* the cache's */
};

enum gild_cache_outcome {
    GILD_CACHE_HIT,  /* *entry is pinned and ready */
    GILD_CACHE_WAIT, /* *entry is pinned, somebody loads it; the waiter's task will be posted */
    GILD_CACHE_MINE, /* *entry is pinned and the caller must load it, then gild_cache_fill */
    GILD_CACHE_FULL, /* no memory even for an overflow frame; *entry is NULL */
};

/* capacity_bytes is what frames may take, rounded down, at least 16 frames a shard; frame memory is
 * reserved at once and touched on use. shards: a power of two, 0 = 16 (fewer if small). */
int gild_cache_create(struct gild_cache **out, size_t frame_bytes, uint64_t capacity_bytes,
                      unsigned shards, struct gild_error *error);
void gild_cache_destroy(struct gild_cache *cache); /* nothing may be pinned */

/* waiter may be NULL: then an entry under load gives GILD_CACHE_WAIT with nothing pinned and *entry
 * NULL. When every frame is pinned, an overflow frame is taken from the heap and freed at its last
 * unpin, so that a request that holds pins never waits for another that does. */
enum gild_cache_outcome gild_cache_get(struct gild_cache *cache, struct gild_cache_key key,
                                       struct gild_cache_waiter *waiter,
                                       struct gild_cache_entry **entry);

/* Only what is ready: pins and returns it, or NULL. */
struct gild_cache_entry *gild_cache_peek(struct gild_cache *cache, struct gild_cache_key key);

/* The frame: writable by the loader between MINE and fill, read-only afterwards. */
void *gild_cache_data(struct gild_cache_entry *entry);
size_t gild_cache_frame_bytes(const struct gild_cache *cache);

/* What of the frame is content, where that may be less than all: a number that the loader says
 * before fill, and it alone. Of a group: the mask of the slots that are there. */
void gild_cache_set_content(struct gild_cache_entry *entry, uint32_t content);
uint32_t gild_cache_content(const struct gild_cache_entry *entry);

/* The loader's end: 0 or -errno. Posts all waiters. The loader's pin stays. */
void gild_cache_fill(struct gild_cache *cache, struct gild_cache_entry *entry, int error);

/* 0 if ready, -errno if its load failed. The caller holds a pin. */
int gild_cache_error(const struct gild_cache_entry *entry);

void gild_cache_pin(struct gild_cache *cache, struct gild_cache_entry *entry); /* one more */
void gild_cache_unpin(struct gild_cache *cache, struct gild_cache_entry *entry);

/* Drops what is unpinned under a key (a recycled object); a pinned entry leaves the index at once
 * and its frame at the last unpin. */
void gild_cache_forget(struct gild_cache *cache, struct gild_cache_key key);

struct gild_cache_stats {
    uint64_t frames, used, overflow; /* now */
    uint64_t hits, misses, waits, evictions;
};
void gild_cache_get_stats(struct gild_cache *cache, struct gild_cache_stats *stats);

/* Frames that somebody holds now: none, once all who read have let go. Walks them all. */
uint64_t gild_cache_pinned(struct gild_cache *cache);

#endif
