/* The content cache: who may touch a frame, and which frame goes next.
 *
 * Parts. The cache is cut into shards by the high bits of the key's hash. A shard owns a fixed
 * range of entries; entry i of the cache owns frame i for ever, so a pointer to an entry is always
 * a pointer to an entry (never to freed memory): that is what lets a hit run without the lock.
 * Entries hang in a chained hash index by their 32-bit numbers, and in one of three FIFO queues.
 * Overflow entries come from the heap, stand in a list of their shard, and are only ever looked at
 * under its lock.
 *
 * One atomic word per entry says whether it may be pinned:
 *
 *      31       30       29        28         27..0
 *      CLAIMED  LOADING  ZOMBIE    OVERFLOW   pins
 *
 *   free      CLAIMED            in the shard's free list (or never used), in no index, no queue
 *   loading   LOADING | pins>0   in index and queue; the loader and each waiter hold a pin
 *   ready     pins >= 0          in index and queue
 *   zombie    ZOMBIE | pins>0    failed or forgotten: in no index and no queue; the last unpin
 *                                frees it
 *
 *   free --take_frame--> loading --fill(0)--> ready --claim (pins 0)--> free
 *                          |  `--fill(err)--> zombie --last unpin--> free
 *                          `--forget--------> zombie (LOADING until fill)
 *   ready --forget--> zombie, or free if nobody holds it
 *
 * Invariants:
 *   I1 A pin is added without the lock only by a compare-and-swap from a word without any flag; so
 *      a frame that is claimed, loading or a zombie can not gain a reader behind the lock's back.
 *   I2 An entry is claimed only by a compare-and-swap from 0 under the lock; its key and its data
 *      change only while it is claimed or loading.
 *   I3 After I1's swap the key can not change, so the reader compares it once more: the entry may
 *      have been given to another key between finding and pinning it.
 *   I4 ZOMBIE is set under the lock; exactly one step sees "ZOMBIE and no pin left" and frees.
 *   I5 An index chain may lead a reader without the lock astray (entries move between chains); it
 *      gives up after a bound and asks again under the lock. A miss is only believed there.
 *   I6 Overflow entries are pinned and unpinned under the lock, all of them.
 *
 * Choice of what goes: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for
 * cache eviction", SOSP 2023) with one change. Here the unit is a group of 16 blocks and guests
 * read 4 KiB at a time, so one sequential pass hits each group sixteen times in a row; counted as
 * reuse that would carry every scan into the main queue. The small queue is therefore in two
 * halves: hits in the younger (FRESH) do not count, hits in the older (PROBATION) do. A single hit
 * there, or a key that the ghost remembers, leads to the main queue. The ghost is a set-associative
 * table of 32-bit tags with the time of eviction: 8 bytes a frame; a false match only admits a
 * frame too well.
 *
 * Threads: any. Failure modes: no memory for an overflow frame (FULL). */
#include "cache/cache.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CLAIMED (1u << 31)
#define LOADING (1u << 30)
#define ZOMBIE (1u << 29)
#define OVERFLOW (1u << 28)
#define FLAGS (CLAIMED | LOADING | ZOMBIE | OVERFLOW)
#define PINS (~FLAGS)

#define NONE UINT32_MAX
#define WALK_LIMIT 32u
#define GHOST_WAYS 4u
#define FREQUENCY_MAX 3u
#define FREQUENCY_FRESH UINT8_MAX /* above the maximum: hits leave it alone */
#define SHARD_FRAMES_MIN 16u
#define HUGE_PAGE_BYTES (2u << 20)
#define FRAME_ALIGNMENT 4096u /* frames are read into with O_DIRECT */

enum queue_kind { FRESH, PROBATION, MAIN, QUEUE_COUNT };

struct gild_cache_entry {
    _Atomic uint64_t object, position;
    void *data;
    struct gild_cache_waiter *waiters; /* lock */
    _Atomic uint32_t word;
    _Atomic uint32_t chain; /* next in the index; written under the lock */
    uint32_t newer, older;  /* lock: in the queue; newer links the free list */
    uint32_t hash;          /* lock */
    uint32_t content;       /* the loader's, until filled */
    _Atomic int error;
    _Atomic uint8_t frequency;
    uint8_t queue; /* lock */
    uint16_t shard;
};

/* An entry from the heap; its frame is an allocation of its own. */
struct overflow {
    struct gild_cache_entry entry;
    struct overflow *next, *previous;
};

struct queue {
    uint32_t oldest, newest, count;
};

struct ghost {
    uint32_t tag, time;
};

struct shard {
    _Alignas(64) _Atomic uint64_t hits; /* alone: every hit writes it */
    _Alignas(64) pthread_mutex_t lock;
    /* Never changed. */
    _Atomic uint32_t *buckets;
    struct ghost *ghosts;
    uint32_t bucket_mask;
    uint32_t ghost_mask;
    uint32_t first, frames;
    uint32_t fresh_target, small_target, ghost_span;
    /* Under the lock. */
    struct queue queues[QUEUE_COUNT];
    uint32_t untouched; /* frames from first + untouched on were never used */
    uint32_t free_head, free_count;
    uint32_t ghost_time;
    struct overflow *overflows;
    uint64_t overflow_count;
    uint64_t misses, waits, evictions;
};

struct gild_cache {
    size_t frame_bytes;
    uint32_t frames;
    unsigned shard_count;
    unsigned shard_shift; /* hash >> shift = shard */
    struct gild_cache_entry *entries;
    struct shard *shards;
    uint8_t *memory;
    size_t entries_bytes, memory_bytes;
};

static uint64_t hash_of(struct gild_cache_key key) {
    unsigned __int128 product = (unsigned __int128)(key.object ^ 0x9e3779b97f4a7c15u) *
                                (key.position ^ 0xe7037ed1a0b428dbu);
    uint64_t mixed = (uint64_t)product ^ (uint64_t)(product >> 64);
    mixed = (mixed ^ mixed >> 32) * 0x8ebc6af09c88c6e3u;
    return mixed ^ mixed >> 29;
}

static struct shard *shard_of_hash(const struct gild_cache *cache, uint64_t hash) {
    return &cache->shards[cache->shard_shift == 64 ? 0 : hash >> cache->shard_shift];
}

static bool has_key(const struct gild_cache_entry *entry, struct gild_cache_key key) {
    return atomic_load_explicit(&entry->object, memory_order_relaxed) == key.object &&
           atomic_load_explicit(&entry->position, memory_order_relaxed) == key.position;
}

static uint32_t number_of(const struct gild_cache *cache, const struct gild_cache_entry *entry) {
    return (uint32_t)(entry - cache->entries);
}

static void count_use(struct gild_cache_entry *entry) {
    uint8_t frequency = atomic_load_explicit(&entry->frequency, memory_order_relaxed);
    if (frequency < FREQUENCY_MAX) { /* a lost race between two hits costs one count */
        atomic_store_explicit(&entry->frequency, (uint8_t)(frequency + 1), memory_order_relaxed);
    }
}

/* ---- queues (under the shard's lock) --------------------------------------------------------- */

static void queue_push(struct gild_cache *cache, struct shard *shard, enum queue_kind kind,
                       struct gild_cache_entry *entry) {
    struct queue *queue = &shard->queues[kind];
    uint32_t number = number_of(cache, entry);
    entry->queue = (uint8_t)kind;
    entry->newer = NONE;
    entry->older = queue->newest;
    if (queue->newest == NONE) {
        queue->oldest = number;
    } else {
        cache->entries[queue->newest].newer = number;
    }
    queue->newest = number;
    queue->count++;
}

static void queue_remove(struct gild_cache *cache, struct shard *shard,
                         struct gild_cache_entry *entry) {
    struct queue *queue = &shard->queues[entry->queue];
    if (entry->newer == NONE) {
        queue->newest = entry->older;
    } else {
        cache->entries[entry->newer].older = entry->older;
    }
    if (entry->older == NONE) {
        queue->oldest = entry->newer;
    } else {
        cache->entries[entry->older].newer = entry->newer;
    }
    queue->count--;
}

static void queue_move(struct gild_cache *cache, struct shard *shard, enum queue_kind kind,
                       struct gild_cache_entry *entry, uint8_t frequency) {
    queue_remove(cache, shard, entry);
    queue_push(cache, shard, kind, entry);
    atomic_store_explicit(&entry->frequency, frequency, memory_order_relaxed);
}

/* ---- the ghost (under the shard's lock) ------------------------------------------------------ */

static struct ghost *ghost_set(const struct shard *shard, uint32_t hash) {
    return &shard->ghosts[(hash & shard->ghost_mask) * GHOST_WAYS];
}

static uint32_t ghost_tag(uint32_t hash) {
    return hash | 1; /* 0 is an empty place */
}

static void ghost_remember(struct shard *shard, uint32_t hash) {
    struct ghost *set = ghost_set(shard, hash);
    struct ghost *oldest = set;
    for (unsigned i = 0; i < GHOST_WAYS; i++) {
        if (set[i].tag == 0) {
            oldest = &set[i];
            break;
        }
        if (shard->ghost_time - set[i].time > shard->ghost_time - oldest->time) {
            oldest = &set[i];
        }
    }
    *oldest = (struct ghost){ghost_tag(hash), shard->ghost_time++};
}

static bool ghost_recall(struct shard *shard, uint32_t hash) {
    struct ghost *set = ghost_set(shard, hash);
    for (unsigned i = 0; i < GHOST_WAYS; i++) {
        if (set[i].tag == ghost_tag(hash)) {
            bool young = shard->ghost_time - set[i].time <= shard->ghost_span;
            set[i].tag = 0;
            return young;
        }
    }
    return false;
}

/* ---- the index (changed under the shard's lock) ---------------------------------------------- */

static _Atomic uint32_t *bucket_of(const struct shard *shard, uint32_t hash) {
    return &shard->buckets[hash & shard->bucket_mask];
}

static void index_insert(struct gild_cache *cache, struct shard *shard,
                         struct gild_cache_entry *entry) {
    _Atomic uint32_t *bucket = bucket_of(shard, entry->hash);
    uint32_t head = atomic_load_explicit(bucket, memory_order_relaxed);
    atomic_store_explicit(&entry->chain, head, memory_order_relaxed);
    atomic_store_explicit(bucket, number_of(cache, entry), memory_order_release);
}

static void index_remove(struct gild_cache *cache, struct shard *shard,
                         struct gild_cache_entry *entry) {
    uint32_t number = number_of(cache, entry);
    _Atomic uint32_t *link = bucket_of(shard, entry->hash);
    uint32_t at;
    while ((at = atomic_load_explicit(link, memory_order_relaxed)) != number) {
        assert(at != NONE);
        link = &cache->entries[at].chain;
    }
    uint32_t next = atomic_load_explicit(&entry->chain, memory_order_relaxed);
    atomic_store_explicit(link, next, memory_order_release);
}

/* Under the lock: exact. */
static struct gild_cache_entry *find_locked(struct gild_cache *cache, struct shard *shard,
                                            struct gild_cache_key key, uint32_t hash) {
    uint32_t at = atomic_load_explicit(bucket_of(shard, hash), memory_order_relaxed);
    while (at != NONE) {
        struct gild_cache_entry *entry = &cache->entries[at];
        if (has_key(entry, key)) {
            return entry;
        }
        at = atomic_load_explicit(&entry->chain, memory_order_relaxed);
    }
    for (struct overflow *over = shard->overflows; over; over = over->next) {
        uint32_t word = atomic_load_explicit(&over->entry.word, memory_order_relaxed);
        if (has_key(&over->entry, key) && !(word & ZOMBIE)) {
            return &over->entry;
        }
    }
    return NULL;
}

/* I1: one more pin, if the entry is ready and may be pinned without the lock. */
static bool try_pin(struct gild_cache_entry *entry) {
    uint32_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    while (!(word & FLAGS)) {
        if (atomic_compare_exchange_weak_explicit(&entry->word, &word, word + 1,
                                                  memory_order_acquire, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

/* Without the lock: a pinned, ready entry, or NULL for "ask under the lock" (I5). */
static struct gild_cache_entry *find_ready(struct gild_cache *cache, struct shard *shard,
                                           struct gild_cache_key key, uint32_t hash) {
    uint32_t at = atomic_load_explicit(bucket_of(shard, hash), memory_order_acquire);
    for (unsigned steps = 0; at != NONE && steps < WALK_LIMIT; steps++) {
        struct gild_cache_entry *entry = &cache->entries[at];
        if (has_key(entry, key)) {
            if (!try_pin(entry)) {
                return NULL;
            }
            if (has_key(entry, key)) { /* I3 */
                return entry;
            }
            gild_cache_unpin(cache, entry);
            return NULL;
        }
        at = atomic_load_explicit(&entry->chain, memory_order_acquire);
    }
    return NULL;
}

/* ---- frames (under the shard's lock) --------------------------------------------------------- */

static bool claim(struct gild_cache_entry *entry) {
    uint32_t word = 0;
    return atomic_compare_exchange_strong_explicit(&entry->word, &word, CLAIMED,
                                                   memory_order_acquire, memory_order_relaxed);
}

static struct gild_cache_entry *evict(struct gild_cache *cache, struct shard *shard) {
    struct queue *queues = shard->queues;
    uint32_t small_pinned = 0, main_pinned = 0;
    /* Each step moves an entry on, takes one of at most three counts from it, or steps over a pin;
     * the bound is for hits that keep counting up meanwhile. */
    for (uint64_t steps = 8ull * shard->frames + 64; steps; steps--) {
        uint32_t small = queues[FRESH].count + queues[PROBATION].count;
        bool small_left = small_pinned < small;
        bool main_left = main_pinned < queues[MAIN].count;
        if (!small_left && !main_left) {
            return NULL;
        }
        bool from_small = small_left && (small >= shard->small_target || !main_left);
        enum queue_kind kind = MAIN;
        if (from_small) { /* the younger half only once all of the older is stepped over */
            kind = small_pinned < queues[PROBATION].count ? PROBATION : FRESH;
        }
        struct gild_cache_entry *entry = &cache->entries[queues[kind].oldest];
        uint8_t frequency = atomic_load_explicit(&entry->frequency, memory_order_relaxed);
        if (kind == MAIN && frequency > 0) {
            queue_move(cache, shard, MAIN, entry, (uint8_t)(frequency - 1));
        } else if (kind == PROBATION && frequency > 0) {
            queue_move(cache, shard, MAIN, entry, 0);
        } else if (claim(entry)) {
            if (from_small) {
                ghost_remember(shard, entry->hash);
            }
            index_remove(cache, shard, entry);
            queue_remove(cache, shard, entry);
            shard->evictions++;
            return entry;
        } else if (from_small) {
            queue_move(cache, shard, PROBATION, entry, 0);
            small_pinned++;
        } else {
            queue_move(cache, shard, MAIN, entry, 0);
            main_pinned++;
        }
    }
    return NULL;
}

static struct gild_cache_entry *take_frame(struct gild_cache *cache, struct shard *shard) {
    if (shard->free_head != NONE) {
        struct gild_cache_entry *entry = &cache->entries[shard->free_head];
        shard->free_head = entry->newer;
        shard->free_count--;
        return entry;
    }
    if (shard->untouched < shard->frames) {
        uint32_t number = shard->first + shard->untouched++;
        struct gild_cache_entry *entry = &cache->entries[number];
        entry->data = cache->memory + (size_t)number * cache->frame_bytes;
        entry->shard = (uint16_t)(shard - cache->shards);
        atomic_store_explicit(&entry->word, CLAIMED, memory_order_relaxed);
        return entry;
    }
    return evict(cache, shard);
}

static void give_frame_back(struct gild_cache *cache, struct shard *shard,
                            struct gild_cache_entry *entry) {
    atomic_store_explicit(&entry->word, CLAIMED, memory_order_relaxed);
    entry->newer = shard->free_head;
    shard->free_head = number_of(cache, entry);
    shard->free_count++;
}

static struct gild_cache_entry *overflow_create(struct gild_cache *cache, struct shard *shard) {
    struct overflow *over = calloc(1, sizeof(*over));
    if (!over) {
        return NULL;
    }
    over->entry.data = aligned_alloc(FRAME_ALIGNMENT, cache->frame_bytes);
    if (!over->entry.data) {
        free(over);
        return NULL;
    }
    over->entry.shard = (uint16_t)(shard - cache->shards);
    over->next = shard->overflows;
    if (over->next) {
        over->next->previous = over;
    }
    shard->overflows = over;
    shard->overflow_count++;
    return &over->entry;
}

static void overflow_destroy(struct shard *shard, struct gild_cache_entry *entry) {
    struct overflow *over = (struct overflow *)entry; /* its first member */
    if (over->previous) {
        over->previous->next = over->next;
    } else {
        shard->overflows = over->next;
    }
    if (over->next) {
        over->next->previous = over->previous;
    }
    shard->overflow_count--;
    free(entry->data);
    free(over);
}

/* Takes an entry that is indexed out of index and queue, and frees it unless somebody holds it. */
static void retire(struct gild_cache *cache, struct shard *shard, struct gild_cache_entry *entry) {
    uint32_t word = atomic_fetch_or_explicit(&entry->word, ZOMBIE, memory_order_acq_rel); /* I4 */
    if (word & OVERFLOW) {
        return; /* pinned as long as it exists; find_locked passes over zombies */
    }
    index_remove(cache, shard, entry);
    queue_remove(cache, shard, entry);
    if (!(word & PINS)) {
        give_frame_back(cache, shard, entry);
    }
}

/* ---- the cache ------------------------------------------------------------------------------- */

static uint32_t power_of_two_from(uint64_t n) {
    uint32_t power = 1;
    while (power < n) {
        power *= 2;
    }
    return power;
}

static int shard_init(struct shard *shard, uint32_t first, uint32_t frames) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&shard->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    uint32_t buckets = power_of_two_from(frames);
    uint32_t sets = power_of_two_from((frames + GHOST_WAYS - 1) / GHOST_WAYS);
    shard->buckets = malloc(buckets * sizeof(*shard->buckets));
    shard->ghosts = calloc(sets, GHOST_WAYS * sizeof(*shard->ghosts));
    if (!shard->buckets || !shard->ghosts) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < buckets; i++) {
        atomic_init(&shard->buckets[i], NONE);
    }
    shard->bucket_mask = buckets - 1;
    shard->ghost_mask = sets - 1;
    shard->first = first;
    shard->frames = frames;
    shard->small_target = frames / 10 > 2 ? frames / 10 : 2;
    shard->fresh_target = shard->small_target / 2;
    shard->ghost_span = frames - shard->small_target;
    shard->free_head = NONE;
    for (unsigned i = 0; i < QUEUE_COUNT; i++) {
        shard->queues[i] = (struct queue){NONE, NONE, 0};
    }
    return 0;
}

static void *reserve(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

int gild_cache_create(struct gild_cache **out, size_t frame_bytes, uint64_t capacity_bytes,
                      unsigned shards, struct gild_error *error) {
    assert(frame_bytes > 0 && frame_bytes % FRAME_ALIGNMENT == 0);
    assert((shards & (shards - 1)) == 0 && shards <= 4096);
    uint64_t frames = capacity_bytes / frame_bytes;
    if (!shards) {
        for (shards = 16; shards > 1 && frames / shards < SHARD_FRAMES_MIN;) {
            shards /= 2;
        }
    }
    uint64_t per_shard = frames / shards < SHARD_FRAMES_MIN ? SHARD_FRAMES_MIN : frames / shards;
    if (per_shard > (UINT32_MAX - 1) / shards) {
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "a cache of %llu bytes has more frames than can be numbered; "
                         "choose a smaller cache",
                         (unsigned long long)capacity_bytes);
    }
    struct gild_cache *cache = calloc(1, sizeof(*cache));
    if (!cache) {
        goto no_memory;
    }
    cache->frame_bytes = frame_bytes;
    cache->frames = (uint32_t)per_shard * shards;
    cache->shard_shift = 64 - (unsigned)__builtin_ctz(shards);
    cache->entries_bytes = cache->frames * sizeof(*cache->entries);
    cache->memory_bytes =
        (cache->frames * frame_bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    cache->entries = reserve(cache->entries_bytes);
    cache->memory = reserve(cache->memory_bytes);
    cache->shards = aligned_alloc(_Alignof(struct shard), shards * sizeof(*cache->shards));
    if (!cache->entries || !cache->memory || !cache->shards) {
        goto no_memory;
    }
    madvise(cache->memory, cache->memory_bytes, MADV_HUGEPAGE); /* a hint: may be refused */
    memset(cache->shards, 0, shards * sizeof(*cache->shards));
    for (; cache->shard_count < shards; cache->shard_count++) {
        uint32_t first = cache->shard_count * (uint32_t)per_shard;
        int result = shard_init(&cache->shards[cache->shard_count], first, (uint32_t)per_shard);
        if (result < 0) {
            cache->shard_count++; /* half made: destroy frees what it has */
            goto no_memory;
        }
    }
    *out = cache;
    return 0;

no_memory:
    if (cache) {
        gild_cache_destroy(cache);
    }
    return gild_fail(error, GILD_FAILED, ENOMEM,
                     "no memory for a cache of %llu bytes; choose a smaller cache",
                     (unsigned long long)capacity_bytes);
}

uint64_t gild_cache_pinned(struct gild_cache *cache) {
    uint64_t pinned = 0;
    for (unsigned i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        pthread_mutex_lock(&shard->lock);
        pinned += shard->overflow_count; /* they live as long as they are pinned */
        for (uint32_t k = 0; k < shard->untouched; k++) {
            const struct gild_cache_entry *entry = &cache->entries[shard->first + k];
            pinned += (atomic_load_explicit(&entry->word, memory_order_relaxed) & PINS) != 0;
        }
        pthread_mutex_unlock(&shard->lock);
    }
    return pinned;
}

void gild_cache_destroy(struct gild_cache *cache) {
    assert(gild_cache_pinned(cache) == 0);
    for (unsigned i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        free(shard->buckets);
        free(shard->ghosts);
        pthread_mutex_destroy(&shard->lock);
    }
    free(cache->shards);
    if (cache->memory) {
        munmap(cache->memory, cache->memory_bytes);
    }
    if (cache->entries) {
        munmap(cache->entries, cache->entries_bytes);
    }
    free(cache);
}

/* A key that is not there: an entry in state loading, pinned once, or NULL. */
static struct gild_cache_entry *admit(struct gild_cache *cache, struct shard *shard,
                                      struct gild_cache_key key, uint32_t hash) {
    struct gild_cache_entry *entry = take_frame(cache, shard);
    uint32_t word = LOADING | 1;
    if (!entry) {
        entry = overflow_create(cache, shard);
        word |= OVERFLOW;
        if (!entry) {
            return NULL;
        }
    }
    entry->hash = hash;
    entry->waiters = NULL;
    atomic_store_explicit(&entry->error, 0, memory_order_relaxed);
    atomic_store_explicit(&entry->object, key.object, memory_order_relaxed);
    atomic_store_explicit(&entry->position, key.position, memory_order_relaxed);
    atomic_store_explicit(&entry->word, word, memory_order_release);
    if (word & OVERFLOW) {
        return entry;
    }
    if (ghost_recall(shard, hash)) {
        atomic_store_explicit(&entry->frequency, 0, memory_order_relaxed);
        queue_push(cache, shard, MAIN, entry);
    } else {
        atomic_store_explicit(&entry->frequency, FREQUENCY_FRESH, memory_order_relaxed);
        queue_push(cache, shard, FRESH, entry);
        if (shard->queues[FRESH].count > shard->fresh_target) {
            queue_move(cache, shard, PROBATION, &cache->entries[shard->queues[FRESH].oldest], 0);
        }
    }
    index_insert(cache, shard, entry);
    return entry;
}

static enum gild_cache_outcome get_locked(struct gild_cache *cache, struct shard *shard,
                                          struct gild_cache_key key, uint32_t hash,
                                          struct gild_cache_waiter *waiter,
                                          struct gild_cache_entry **out) {
    struct gild_cache_entry *entry = find_locked(cache, shard, key, hash);
    if (!entry) {
        *out = admit(cache, shard, key, hash);
        shard->misses += *out != NULL;
        return *out ? GILD_CACHE_MINE : GILD_CACHE_FULL;
    }
    /* LOADING and ZOMBIE change under the lock only, and nobody claims behind it. */
    if (atomic_load_explicit(&entry->word, memory_order_acquire) & LOADING) {
        shard->waits++;
        *out = waiter ? entry : NULL;
        if (waiter) {
            atomic_fetch_add_explicit(&entry->word, 1, memory_order_relaxed);
            waiter->next = entry->waiters;
            entry->waiters = waiter;
        }
        return GILD_CACHE_WAIT;
    }
    atomic_fetch_add_explicit(&entry->word, 1, memory_order_acquire);
    count_use(entry);
    atomic_fetch_add_explicit(&shard->hits, 1, memory_order_relaxed);
    *out = entry;
    return GILD_CACHE_HIT;
}

enum gild_cache_outcome gild_cache_get(struct gild_cache *cache, struct gild_cache_key key,
                                       struct gild_cache_waiter *waiter,
                                       struct gild_cache_entry **entry) {
    uint64_t hash = hash_of(key);
    struct shard *shard = shard_of_hash(cache, hash);
    struct gild_cache_entry *ready = find_ready(cache, shard, key, (uint32_t)hash);
    if (ready) {
        count_use(ready);
        atomic_fetch_add_explicit(&shard->hits, 1, memory_order_relaxed);
        *entry = ready;
        return GILD_CACHE_HIT;
    }
    pthread_mutex_lock(&shard->lock);
    enum gild_cache_outcome outcome = get_locked(cache, shard, key, (uint32_t)hash, waiter, entry);
    pthread_mutex_unlock(&shard->lock);
    return outcome;
}

struct gild_cache_entry *gild_cache_peek(struct gild_cache *cache, struct gild_cache_key key) {
    uint64_t hash = hash_of(key);
    struct shard *shard = shard_of_hash(cache, hash);
    struct gild_cache_entry *entry = find_ready(cache, shard, key, (uint32_t)hash);
    if (!entry) {
        pthread_mutex_lock(&shard->lock);
        entry = find_locked(cache, shard, key, (uint32_t)hash);
        if (entry && atomic_load_explicit(&entry->word, memory_order_acquire) & LOADING) {
            entry = NULL;
        }
        if (entry) {
            atomic_fetch_add_explicit(&entry->word, 1, memory_order_acquire);
        }
        pthread_mutex_unlock(&shard->lock);
    }
    if (entry) {
        count_use(entry);
        atomic_fetch_add_explicit(&shard->hits, 1, memory_order_relaxed);
    }
    return entry;
}

void *gild_cache_data(struct gild_cache_entry *entry) {
    return entry->data;
}

void gild_cache_set_content(struct gild_cache_entry *entry, uint32_t content) {
    entry->content = content;
}

uint32_t gild_cache_content(const struct gild_cache_entry *entry) {
    return entry->content;
}

size_t gild_cache_frame_bytes(const struct gild_cache *cache) {
    return cache->frame_bytes;
}

void gild_cache_fill(struct gild_cache *cache, struct gild_cache_entry *entry, int error) {
    struct shard *shard = &cache->shards[entry->shard];
    assert(error <= 0);
    pthread_mutex_lock(&shard->lock);
    atomic_store_explicit(&entry->error, error, memory_order_relaxed);
    uint32_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    assert(word & LOADING && word & PINS);
    if (error && !(word & ZOMBIE)) {
        retire(cache, shard, entry);
    }
    struct gild_cache_waiter *waiter = entry->waiters;
    entry->waiters = NULL;
    atomic_fetch_and_explicit(&entry->word, ~LOADING, memory_order_release);
    pthread_mutex_unlock(&shard->lock);
    while (waiter) {
        struct gild_cache_waiter *next = waiter->next; /* posting gives the waiter away */
        gild_loop_post(waiter->loop, &waiter->task);
        waiter = next;
    }
}

int gild_cache_error(const struct gild_cache_entry *entry) {
    return atomic_load_explicit(&entry->error, memory_order_relaxed);
}

void gild_cache_pin(struct gild_cache *cache, struct gild_cache_entry *entry) {
    (void)cache;
    uint32_t word = atomic_fetch_add_explicit(&entry->word, 1, memory_order_relaxed);
    assert(word & PINS); /* the caller's own pin keeps the entry */
    (void)word;
}

void gild_cache_unpin(struct gild_cache *cache, struct gild_cache_entry *entry) {
    /* OVERFLOW never changes while we hold a pin. */
    if (!(atomic_load_explicit(&entry->word, memory_order_relaxed) & OVERFLOW)) {
        uint32_t word = atomic_fetch_sub_explicit(&entry->word, 1, memory_order_acq_rel);
        assert(word & PINS);
        if ((word & (ZOMBIE | PINS)) != (ZOMBIE | 1)) {
            return;
        }
        struct shard *shard = &cache->shards[entry->shard];
        pthread_mutex_lock(&shard->lock);
        give_frame_back(cache, shard, entry);
        pthread_mutex_unlock(&shard->lock);
        return;
    }
    struct shard *shard = &cache->shards[entry->shard];
    pthread_mutex_lock(&shard->lock); /* I6 */
    uint32_t word = atomic_fetch_sub_explicit(&entry->word, 1, memory_order_acq_rel);
    assert(word & PINS);
    if ((word & PINS) == 1) {
        overflow_destroy(shard, entry);
    }
    pthread_mutex_unlock(&shard->lock);
}

void gild_cache_forget(struct gild_cache *cache, struct gild_cache_key key) {
    uint64_t hash = hash_of(key);
    struct shard *shard = shard_of_hash(cache, hash);
    pthread_mutex_lock(&shard->lock);
    struct gild_cache_entry *entry = find_locked(cache, shard, key, (uint32_t)hash);
    if (entry) {
        retire(cache, shard, entry);
    }
    pthread_mutex_unlock(&shard->lock);
}

void gild_cache_get_stats(struct gild_cache *cache, struct gild_cache_stats *stats) {
    *stats = (struct gild_cache_stats){.frames = cache->frames};
    for (unsigned i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        pthread_mutex_lock(&shard->lock);
        stats->used += shard->untouched - shard->free_count;
        stats->overflow += shard->overflow_count;
        stats->misses += shard->misses;
        stats->waits += shard->waits;
        stats->evictions += shard->evictions;
        pthread_mutex_unlock(&shard->lock);
        stats->hits += atomic_load_explicit(&shard->hits, memory_order_relaxed);
    }
}
