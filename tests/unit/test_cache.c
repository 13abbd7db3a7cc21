/* The content cache: single flight, pins, overflow, forgetting, scan resistance, and a randomised
 * check against a model, with one thread and with many.
 *
 * The loop is replaced here by a mailbox per thread: gild_loop_post is all that the cache calls.
 * GILD_BENCH=1 also prints the cost of a hit. */
#include "cache/cache.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache_tests.h"

#define FRAME 4096u

/* ---- a mailbox in place of the loop ---------------------------------------------------------- */

struct gild_loop {
    pthread_mutex_t lock;
    pthread_cond_t posted;
    struct gild_task *tasks;
};

void gild_loop_post(struct gild_loop *loop, struct gild_task *task) {
    pthread_mutex_lock(&loop->lock);
    task->next = loop->tasks;
    loop->tasks = task;
    pthread_cond_signal(&loop->posted);
    pthread_mutex_unlock(&loop->lock);
}

static void mailbox_init(struct gild_loop *loop) {
    pthread_mutex_init(&loop->lock, NULL);
    pthread_cond_init(&loop->posted, NULL);
    loop->tasks = NULL;
}

static void mailbox_fini(struct gild_loop *loop) {
    pthread_cond_destroy(&loop->posted);
    pthread_mutex_destroy(&loop->lock);
}

/* Runs what was posted; waits for the first. */
static void mailbox_run(struct gild_loop *loop) {
    pthread_mutex_lock(&loop->lock);
    while (!loop->tasks) {
        pthread_cond_wait(&loop->posted, &loop->lock);
    }
    struct gild_task *task = loop->tasks;
    loop->tasks = NULL;
    pthread_mutex_unlock(&loop->lock);
    while (task) {
        struct gild_task *next = task->next;
        task->run(task);
        task = next;
    }
}

struct wait {
    struct gild_cache_waiter waiter; /* first: the task leads back here */
    unsigned runs;
};

static void wait_over(struct gild_task *task) {
    ((struct wait *)(void *)task)->runs++;
}

static void wait_init(struct wait *wait, struct gild_loop *loop) {
    *wait = (struct wait){.waiter = {.task = {.run = wait_over}, .loop = loop}};
}

/* ---- small helpers --------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += 0x9e3779b97f4a7c15u);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t seed_of_run(const char *test) {
    const char *given = getenv("GILD_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("\n    %s: GILD_SEED=%" PRIu64 " ", test, seed);
    return seed;
}

static struct gild_cache_key key_of(uint64_t n) {
    return gild_cache_key(GILD_CACHE_GROUP, n >> 8, n);
}

/* What belongs under a key: checked at both ends of the frame. */
static void write_frame(struct gild_cache_entry *entry, uint64_t n) {
    uint64_t *words = gild_cache_data(entry);
    words[0] = n;
    words[FRAME / 8 - 1] = ~n;
}

static bool frame_holds(struct gild_cache_entry *entry, uint64_t n) {
    const uint64_t *words = gild_cache_data(entry);
    return words[0] == n && words[FRAME / 8 - 1] == ~n;
}

static struct gild_cache *make(uint64_t frames, unsigned shards) {
    struct gild_cache *cache = NULL;
    struct gild_error error;
    CU_ASSERT_EQUAL_FATAL(gild_cache_create(&cache, FRAME, frames * FRAME, shards, &error), 0);
    return cache;
}

static struct gild_cache_stats stats_of(struct gild_cache *cache) {
    struct gild_cache_stats stats;
    gild_cache_get_stats(cache, &stats);
    return stats;
}

/* One access of a lone reader: true for a hit; a miss is loaded. */
static bool touch(struct gild_cache *cache, uint64_t n) {
    struct gild_cache_entry *entry;
    enum gild_cache_outcome outcome = gild_cache_get(cache, key_of(n), NULL, &entry);
    CU_ASSERT_FATAL(outcome == GILD_CACHE_HIT || outcome == GILD_CACHE_MINE);
    if (outcome == GILD_CACHE_MINE) {
        write_frame(entry, n);
        gild_cache_fill(cache, entry, 0);
    }
    CU_ASSERT_TRUE(frame_holds(entry, n));
    gild_cache_unpin(cache, entry);
    return outcome == GILD_CACHE_HIT;
}

static struct gild_cache_entry *load_pinned(struct gild_cache *cache, uint64_t n) {
    struct gild_cache_entry *entry;
    CU_ASSERT_EQUAL_FATAL(gild_cache_get(cache, key_of(n), NULL, &entry), GILD_CACHE_MINE);
    write_frame(entry, n);
    gild_cache_fill(cache, entry, 0);
    return entry;
}

/* ---- single flight --------------------------------------------------------------------------- */

#define FLIGHT_KEYS 2048u
#define FLIGHT_THREADS 8u

struct flight {
    struct gild_cache *cache;
    _Atomic uint32_t loads[FLIGHT_KEYS];
    _Atomic uint32_t wrong;
    pthread_barrier_t start;
};

struct flight_thread {
    struct flight *flight;
    uint64_t seed;
};

static void flight_one(struct flight *flight, struct gild_loop *loop, uint64_t n) {
    struct gild_cache_entry *entry;
    struct wait wait;
    wait_init(&wait, loop);
    switch (gild_cache_get(flight->cache, key_of(n), &wait.waiter, &entry)) {
    case GILD_CACHE_MINE:
        atomic_fetch_add(&flight->loads[n], 1);
        sched_yield(); /* lets others meet the load; nothing depends on it */
        write_frame(entry, n);
        gild_cache_fill(flight->cache, entry, 0);
        break;
    case GILD_CACHE_WAIT:
        while (!wait.runs) {
            mailbox_run(loop);
        }
        break;
    case GILD_CACHE_HIT:
        break;
    case GILD_CACHE_FULL:
        atomic_fetch_add(&flight->wrong, 1);
        return;
    }
    if (wait.runs > 1 || gild_cache_error(entry) || !frame_holds(entry, n)) {
        atomic_fetch_add(&flight->wrong, 1);
    }
    gild_cache_unpin(flight->cache, entry);
}

static void *flight_run(void *context) {
    struct flight_thread *self = context;
    struct gild_loop loop;
    mailbox_init(&loop);
    pthread_barrier_wait(&self->flight->start);
    /* All threads walk the keys in nearly the same order, so that they meet at loads. */
    for (uint64_t n = 0; n < FLIGHT_KEYS; n++) {
        flight_one(self->flight, &loop, n ^ (next_random(&self->seed) & 3));
    }
    for (uint64_t n = 0; n < FLIGHT_KEYS; n++) {
        flight_one(self->flight, &loop, n);
    }
    mailbox_fini(&loop);
    return NULL;
}

static void test_each_key_is_loaded_once_however_many_ask(void) {
    uint64_t seed = seed_of_run("single flight");
    struct flight *flight = calloc(1, sizeof(*flight));
    struct flight_thread selves[FLIGHT_THREADS];
    pthread_t threads[FLIGHT_THREADS];
    flight->cache = make(2 * FLIGHT_KEYS, 0); /* room for all: nothing is evicted */
    pthread_barrier_init(&flight->start, NULL, FLIGHT_THREADS);
    for (unsigned i = 0; i < FLIGHT_THREADS; i++) {
        selves[i] = (struct flight_thread){flight, seed + i};
        pthread_create(&threads[i], NULL, flight_run, &selves[i]);
    }
    for (unsigned i = 0; i < FLIGHT_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (unsigned n = 0; n < FLIGHT_KEYS; n++) {
        CU_ASSERT_EQUAL(flight->loads[n], 1);
    }
    CU_ASSERT_EQUAL(flight->wrong, 0);
    struct gild_cache_stats stats = stats_of(flight->cache);
    CU_ASSERT_EQUAL(stats.misses, FLIGHT_KEYS);
    CU_ASSERT_EQUAL(stats.evictions, 0);
    CU_ASSERT_EQUAL(stats.hits + stats.misses + stats.waits, 2 * FLIGHT_KEYS * FLIGHT_THREADS);
    pthread_barrier_destroy(&flight->start);
    gild_cache_destroy(flight->cache);
    free(flight);
}

static void test_failed_load_reaches_all_waiters_and_is_not_kept(void) {
    struct gild_cache *cache = make(16, 1);
    struct gild_loop loop;
    struct wait waits[5];
    struct gild_cache_entry *mine, *theirs[5], *again, *none;
    mailbox_init(&loop);
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(1), NULL, &mine), GILD_CACHE_MINE);
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(1), NULL, &none), GILD_CACHE_WAIT);
    CU_ASSERT_PTR_NULL(none);
    CU_ASSERT_PTR_NULL(gild_cache_peek(cache, key_of(1)));
    for (unsigned i = 0; i < 5; i++) {
        wait_init(&waits[i], &loop);
        CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(1), &waits[i].waiter, &theirs[i]),
                        GILD_CACHE_WAIT);
        CU_ASSERT_PTR_EQUAL(theirs[i], mine);
    }
    gild_cache_fill(cache, mine, -EIO);
    mailbox_run(&loop);
    for (unsigned i = 0; i < 5; i++) {
        CU_ASSERT_EQUAL(waits[i].runs, 1);
        CU_ASSERT_EQUAL(gild_cache_error(theirs[i]), -EIO);
    }
    /* While the failed entry is still held, the key is free to be loaded anew. */
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(1), NULL, &again), GILD_CACHE_MINE);
    CU_ASSERT_PTR_NOT_EQUAL(again, mine);
    write_frame(again, 1);
    gild_cache_fill(cache, again, 0);
    CU_ASSERT_EQUAL(gild_cache_error(again), 0);
    gild_cache_unpin(cache, again);
    for (unsigned i = 0; i < 5; i++) {
        gild_cache_unpin(cache, theirs[i]);
    }
    CU_ASSERT_EQUAL(stats_of(cache).used, 2);
    gild_cache_unpin(cache, mine);
    CU_ASSERT_EQUAL(stats_of(cache).used, 1);
    CU_ASSERT_TRUE(touch(cache, 1));
    mailbox_fini(&loop);
    gild_cache_destroy(cache);
}

/* ---- pins, overflow, forget ------------------------------------------------------------------ */

static void test_pins_hold_frames_under_pressure(void) {
    struct gild_cache *cache = make(16, 1);
    struct gild_cache_entry *held[15];
    for (unsigned i = 0; i < 15; i++) {
        held[i] = load_pinned(cache, i);
    }
    gild_cache_pin(cache, held[3]);
    gild_cache_unpin(cache, held[3]); /* still held once */
    for (uint64_t n = 1000; n < 3000; n++) {
        CU_ASSERT_FALSE(touch(cache, n));
    }
    CU_ASSERT_EQUAL(stats_of(cache).overflow, 0); /* the one frame left does for all of them */
    CU_ASSERT_EQUAL(stats_of(cache).evictions, 1999);
    for (unsigned i = 0; i < 15; i++) {
        CU_ASSERT_TRUE(frame_holds(held[i], i));
        CU_ASSERT_TRUE(touch(cache, i));
        gild_cache_unpin(cache, held[i]);
    }
    for (uint64_t n = 3000; n < 3100; n++) {
        touch(cache, n);
    }
    CU_ASSERT_EQUAL(stats_of(cache).used, 16);
    gild_cache_destroy(cache);
}

static void test_overflow_frames_come_and_go(void) {
    struct gild_cache *cache = make(16, 1);
    struct gild_cache_entry *held[20], *second;
    struct gild_loop loop;
    struct wait wait;
    mailbox_init(&loop);
    wait_init(&wait, &loop);
    for (unsigned i = 0; i < 19; i++) {
        held[i] = load_pinned(cache, i);
    }
    CU_ASSERT_EQUAL(stats_of(cache).used, 16);
    CU_ASSERT_EQUAL(stats_of(cache).overflow, 3);
    CU_ASSERT_TRUE(touch(cache, 17)); /* others find it */
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(19), NULL, &held[19]), GILD_CACHE_MINE);
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(19), &wait.waiter, &second), GILD_CACHE_WAIT);
    CU_ASSERT_EQUAL(stats_of(cache).overflow, 4);
    write_frame(held[19], 19);
    gild_cache_fill(cache, held[19], 0);
    mailbox_run(&loop);
    CU_ASSERT_TRUE(frame_holds(second, 19));
    gild_cache_unpin(cache, second);
    gild_cache_forget(cache, key_of(18)); /* a forgotten overflow frame stays its holder's */
    CU_ASSERT_PTR_NULL(gild_cache_peek(cache, key_of(18)));
    for (unsigned i = 0; i < 20; i++) {
        CU_ASSERT_TRUE(frame_holds(held[i], i));
        gild_cache_unpin(cache, held[i]);
    }
    CU_ASSERT_EQUAL(stats_of(cache).overflow, 0);
    CU_ASSERT_PTR_NULL(gild_cache_peek(cache, key_of(19)));
    CU_ASSERT_FALSE(touch(cache, 17));
    CU_ASSERT_EQUAL(stats_of(cache).overflow, 0);
    mailbox_fini(&loop);
    gild_cache_destroy(cache);
}

static void test_forgotten_while_pinned_stays_readable_and_leaves_the_index(void) {
    struct gild_cache *cache = make(16, 1);
    struct gild_cache_entry *old = load_pinned(cache, 7);
    gild_cache_forget(cache, key_of(7));
    gild_cache_forget(cache, key_of(8)); /* nothing there: no matter */
    CU_ASSERT_PTR_NULL(gild_cache_peek(cache, key_of(7)));
    struct gild_cache_entry *new = load_pinned(cache, 7);
    CU_ASSERT_PTR_NOT_EQUAL(new, old);
    for (uint64_t n = 100; n < 400; n++) {
        touch(cache, n);
    }
    CU_ASSERT_TRUE(frame_holds(old, 7));
    gild_cache_unpin(cache, new);
    gild_cache_pin(cache, old);
    gild_cache_unpin(cache, old);
    CU_ASSERT_TRUE(frame_holds(old, 7));
    CU_ASSERT_EQUAL(stats_of(cache).used, 16);
    gild_cache_unpin(cache, old);
    CU_ASSERT_EQUAL(stats_of(cache).used, 15);

    touch(cache, 9);
    gild_cache_forget(cache, key_of(9)); /* unpinned: gone at once */
    CU_ASSERT_EQUAL(stats_of(cache).used, 15);
    CU_ASSERT_FALSE(touch(cache, 9));
    gild_cache_destroy(cache);
}

static void test_forgotten_while_loading_still_answers_its_waiters(void) {
    struct gild_cache *cache = make(16, 1);
    struct gild_cache_entry *old, *theirs;
    struct gild_loop loop;
    struct wait wait;
    for (int error = 0; error >= -EIO; error -= EIO) {
        mailbox_init(&loop);
        wait_init(&wait, &loop);
        CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(7), NULL, &old), GILD_CACHE_MINE);
        CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(7), &wait.waiter, &theirs), GILD_CACHE_WAIT);
        gild_cache_forget(cache, key_of(7));
        struct gild_cache_entry *new = load_pinned(cache, 7);
        CU_ASSERT_PTR_NOT_EQUAL(new, old);
        write_frame(old, 70);
        gild_cache_fill(cache, old, error);
        mailbox_run(&loop);
        CU_ASSERT_EQUAL(wait.runs, 1);
        CU_ASSERT_EQUAL(gild_cache_error(theirs), error);
        CU_ASSERT_TRUE(frame_holds(theirs, 70));
        CU_ASSERT_TRUE(touch(cache, 7)); /* the new content, not the forgotten one */
        gild_cache_unpin(cache, old);
        gild_cache_unpin(cache, theirs);
        gild_cache_unpin(cache, new);
        CU_ASSERT_EQUAL(stats_of(cache).used, 1);
        gild_cache_forget(cache, key_of(7));
        CU_ASSERT_EQUAL(stats_of(cache).used, 0);
        mailbox_fini(&loop);
    }
    gild_cache_destroy(cache);
}

static void test_sizes_are_rounded_to_whole_shards(void) {
    struct gild_cache *cache = make(0, 0);
    CU_ASSERT_EQUAL(stats_of(cache).frames, 16);
    CU_ASSERT_EQUAL(gild_cache_frame_bytes(cache), FRAME);
    gild_cache_destroy(cache);
    cache = make(1000, 16);
    CU_ASSERT_EQUAL(stats_of(cache).frames, 62 * 16);
    gild_cache_destroy(cache);
    cache = make(40, 0);
    CU_ASSERT_EQUAL(stats_of(cache).frames, 40);
    gild_cache_destroy(cache);
    struct gild_error error;
    CU_ASSERT_NOT_EQUAL(gild_cache_create(&cache, FRAME, UINT64_MAX, 1, &error), 0);
}

/* ---- scan resistance ------------------------------------------------------------------------- */

#define SCAN_FRAMES 4096u
#define HOT (SCAN_FRAMES / 2)
#define SCAN (10u * SCAN_FRAMES)
#define BURST 16u /* a guest reads a 64 KiB group in 4 KiB requests */

/* The yardstick: FIFO of the same size. */
struct fifo {
    uint64_t slots[SCAN_FRAMES];
    bool present[HOT + SCAN];
    uint32_t next;
};

static bool fifo_touch(struct fifo *fifo, uint64_t n) {
    if (fifo->present[n]) {
        return true;
    }
    uint64_t *slot = &fifo->slots[fifo->next++ % SCAN_FRAMES];
    if (*slot) {
        fifo->present[*slot - 1] = false;
    }
    *slot = n + 1;
    fifo->present[n] = true;
    return false;
}

static void test_hot_set_survives_a_scan_of_ten_times_the_cache(void) {
    struct gild_cache *cache = make(SCAN_FRAMES, 4);
    struct fifo *fifo = calloc(1, sizeof(*fifo));
    uint64_t seed = 42, hits = 0, fifo_hits = 0, asked = 0;
    /* Desktops boot: all of the hot set, three times, each group in a burst. */
    for (uint64_t i = 0; i < 3 * HOT; i++) {
        for (unsigned burst = 0; burst < BURST; burst++) {
            touch(cache, i % HOT);
            fifo_touch(fifo, i % HOT);
        }
    }
    /* One desktop's scan passes, while others go on to read the hot set now and then. */
    for (uint64_t i = 0; i < SCAN; i++) {
        for (unsigned burst = 0; burst < BURST; burst++) {
            touch(cache, HOT + i);
            fifo_touch(fifo, HOT + i);
        }
        if (i % 16 == 0) {
            uint64_t n = next_random(&seed) % HOT;
            hits += touch(cache, n);
            fifo_hits += fifo_touch(fifo, n);
            asked++;
        }
    }
    double ratio = (double)hits / (double)asked, fifo_ratio = (double)fifo_hits / (double)asked;
    printf("\n    hot set during the scan: hit ratio %.3f, plain FIFO %.3f ", ratio, fifo_ratio);
    CU_ASSERT_TRUE(ratio > 0.9);
    CU_ASSERT_TRUE(ratio > fifo_ratio + 0.1);
    /* And after it: the next boot finds nearly all. */
    uint64_t left = 0, fifo_left = 0;
    for (uint64_t n = 0; n < HOT; n++) {
        left += touch(cache, n);
        fifo_left += fifo_touch(fifo, n);
    }
    printf("\n    next boot: %.3f, plain FIFO %.3f ", (double)left / HOT, (double)fifo_left / HOT);
    CU_ASSERT_TRUE(left > HOT * 9 / 10);
    CU_ASSERT_TRUE(fifo_left < HOT * 9 / 10);
    gild_cache_destroy(cache);
    free(fifo);
}

static void test_what_comes_back_soon_after_eviction_is_kept(void) {
    struct gild_cache *cache = make(100, 1);
    CU_ASSERT_FALSE(touch(cache, 1));
    for (uint64_t n = 1000; n < 1150; n++) {
        touch(cache, n);
    }
    CU_ASSERT_FALSE(touch(cache, 1)); /* evicted, but the ghost remembers it */
    for (uint64_t n = 2000; n < 4000; n++) {
        touch(cache, n);
    }
    CU_ASSERT_TRUE(touch(cache, 1));
    CU_ASSERT_FALSE(touch(cache, 1001)); /* long gone, and never met again */
    gild_cache_destroy(cache);
}

/* ---- random work against a model ------------------------------------------------------------- */

#define MODEL_KEYS 200u
#define MODEL_PINS 24u

struct model_pin {
    struct gild_cache_entry *entry;
    uint64_t content;
    uint32_t key;
    uint32_t generation; /* of the key, when pinned */
    bool loading, failed;
};

struct model {
    struct gild_cache *cache;
    struct gild_loop loop;
    uint32_t generation[MODEL_KEYS]; /* counts what makes an entry leave: forget, failure */
    uint64_t content[MODEL_KEYS];    /* what the last load put there */
    struct model_pin pins[MODEL_PINS];
    unsigned pin_count;
    uint64_t loads;
};

static bool model_is_loading(const struct model *model, uint32_t key) {
    for (unsigned i = 0; i < model->pin_count; i++) {
        const struct model_pin *pin = &model->pins[i];
        if (pin->key == key && pin->loading && pin->generation == model->generation[key]) {
            return true;
        }
    }
    return false;
}

static bool model_is_pinned(const struct model *model, uint32_t key) {
    for (unsigned i = 0; i < model->pin_count; i++) {
        const struct model_pin *pin = &model->pins[i];
        if (pin->key == key && !pin->failed && pin->generation == model->generation[key]) {
            return true;
        }
    }
    return false;
}

static void model_get(struct model *model, uint32_t key) {
    struct model_pin pin = {.key = key, .generation = model->generation[key]};
    bool loading = model_is_loading(model, key), pinned = model_is_pinned(model, key);
    switch (gild_cache_get(model->cache, key_of(key), NULL, &pin.entry)) {
    case GILD_CACHE_WAIT:
        CU_ASSERT_TRUE(loading);
        CU_ASSERT_PTR_NULL(pin.entry);
        return;
    case GILD_CACHE_HIT:
        CU_ASSERT_FALSE(loading);
        pin.content = model->content[key];
        CU_ASSERT_TRUE(frame_holds(pin.entry, pin.content));
        break;
    case GILD_CACHE_MINE:
        CU_ASSERT_FALSE(pinned); /* what is pinned can not have been evicted */
        pin.loading = true;
        break;
    case GILD_CACHE_FULL:
        CU_FAIL("no memory");
        return;
    }
    model->pins[model->pin_count++] = pin;
}

static void model_fill(struct model *model, struct model_pin *pin, bool fail) {
    bool current = pin->generation == model->generation[pin->key];
    pin->loading = false;
    if (fail) {
        pin->failed = true;
        gild_cache_fill(model->cache, pin->entry, -EIO);
        model->generation[pin->key] += current;
        CU_ASSERT_EQUAL(gild_cache_error(pin->entry), -EIO);
        return;
    }
    pin->content = ++model->loads << 16 | pin->key;
    write_frame(pin->entry, pin->content);
    if (current) {
        model->content[pin->key] = pin->content;
    }
    gild_cache_fill(model->cache, pin->entry, 0);
}

static void model_step(struct model *model, uint64_t random) {
    uint32_t key = (uint32_t)(random >> 8) % MODEL_KEYS;
    unsigned choice = random % 16;
    if (choice == 0) {
        gild_cache_forget(model->cache, key_of(key));
        model->generation[key]++;
        return;
    }
    if (model->pin_count == 0 || (choice < 8 && model->pin_count < MODEL_PINS)) {
        model_get(model, key);
        return;
    }
    struct model_pin *pin = &model->pins[(random >> 40) % model->pin_count];
    if (pin->loading) {
        model_fill(model, pin, choice == 15);
        return;
    }
    CU_ASSERT_TRUE(pin->failed || frame_holds(pin->entry, pin->content));
    gild_cache_unpin(model->cache, pin->entry);
    *pin = model->pins[--model->pin_count];
}

static void test_random_work_agrees_with_a_model(void) {
    uint64_t seed = seed_of_run("model");
    struct model *model = calloc(1, sizeof(*model));
    model->cache = make(16, 1);
    bool overflowed = false;
    for (unsigned i = 0; i < 300000; i++) {
        model_step(model, next_random(&seed));
        if (i % 64 == 0) {
            struct gild_cache_stats stats = stats_of(model->cache);
            CU_ASSERT_TRUE(stats.used <= stats.frames);
            CU_ASSERT_TRUE(stats.overflow <= model->pin_count);
            overflowed = overflowed || stats.overflow;
        }
    }
    CU_ASSERT_TRUE(overflowed); /* else the test does not reach that path */
    while (model->pin_count) {
        struct model_pin *pin = &model->pins[model->pin_count - 1];
        if (pin->loading) {
            model_fill(model, pin, false);
        }
        gild_cache_unpin(model->cache, pin->entry);
        model->pin_count--;
    }
    CU_ASSERT_EQUAL(stats_of(model->cache).overflow, 0);
    gild_cache_destroy(model->cache);
    free(model);
}

/* ---- many threads on a small cache ----------------------------------------------------------- */

#define STORM_THREADS 4u
#define STORM_KEYS 300u
#define STORM_STEPS 60000u
#define STORM_PINS 12u

struct storm {
    struct gild_cache *cache;
    uint64_t seed;
    uint64_t wrong, failures;
};

/* Pins the entry of key n ready, or NULL if its load failed. */
static struct gild_cache_entry *storm_get(struct storm *storm, struct gild_loop *loop, uint64_t n,
                                          bool fail) {
    struct gild_cache_entry *entry;
    struct wait wait;
    wait_init(&wait, loop);
    switch (gild_cache_get(storm->cache, key_of(n), &wait.waiter, &entry)) {
    case GILD_CACHE_MINE:
        write_frame(entry, n);
        gild_cache_fill(storm->cache, entry, fail ? -EIO : 0);
        break;
    case GILD_CACHE_WAIT:
        while (!wait.runs) {
            mailbox_run(loop);
        }
        break;
    case GILD_CACHE_HIT:
        break;
    case GILD_CACHE_FULL:
        storm->wrong++;
        return NULL;
    }
    if (gild_cache_error(entry)) {
        storm->failures++;
        gild_cache_unpin(storm->cache, entry);
        return NULL;
    }
    return entry;
}

static void *storm_run(void *context) {
    struct storm *storm = context;
    struct gild_cache_entry *held[STORM_PINS] = {NULL};
    uint64_t keys[STORM_PINS] = {0};
    struct gild_loop loop;
    mailbox_init(&loop);
    for (unsigned step = 0; step < STORM_STEPS; step++) {
        uint64_t random = next_random(&storm->seed);
        unsigned at = (random >> 32) % STORM_PINS;
        uint64_t n = (random >> 40) % STORM_KEYS;
        if (held[at]) {
            storm->wrong += !frame_holds(held[at], keys[at]);
            gild_cache_unpin(storm->cache, held[at]);
            held[at] = NULL;
        }
        if (random % 64 == 0) {
            gild_cache_forget(storm->cache, key_of(n));
            continue;
        }
        held[at] = random % 64 == 1 ? gild_cache_peek(storm->cache, key_of(n))
                                    : storm_get(storm, &loop, n, random % 64 == 2);
        keys[at] = n;
        storm->wrong += held[at] && !frame_holds(held[at], n);
    }
    for (unsigned at = 0; at < STORM_PINS; at++) {
        if (held[at]) {
            gild_cache_unpin(storm->cache, held[at]);
        }
    }
    mailbox_fini(&loop);
    return NULL;
}

static void test_threads_never_see_another_keys_frame(void) {
    uint64_t seed = seed_of_run("storm");
    struct gild_cache *cache = make(32, 2); /* less than what they pin together */
    struct storm storms[STORM_THREADS];
    pthread_t threads[STORM_THREADS];
    for (unsigned i = 0; i < STORM_THREADS; i++) {
        storms[i] = (struct storm){.cache = cache, .seed = seed * 31 + i};
        pthread_create(&threads[i], NULL, storm_run, &storms[i]);
    }
    uint64_t failures = 0;
    for (unsigned i = 0; i < STORM_THREADS; i++) {
        pthread_join(threads[i], NULL);
        CU_ASSERT_EQUAL(storms[i].wrong, 0);
        failures += storms[i].failures;
    }
    CU_ASSERT_TRUE(failures > 0);
    struct gild_cache_stats stats = stats_of(cache);
    CU_ASSERT_EQUAL(stats.overflow, 0);
    CU_ASSERT_TRUE(stats.evictions > 0);
    /* All frames are whole again: they can all be pinned at once. */
    struct gild_cache_entry *held[200];
    for (unsigned i = 0; i < 200; i++) {
        gild_cache_forget(cache, key_of(1000 + i));
        held[i] = load_pinned(cache, 1000 + i);
    }
    CU_ASSERT_EQUAL(stats_of(cache).used, 32);
    for (unsigned i = 0; i < 200; i++) {
        gild_cache_unpin(cache, held[i]);
    }
    gild_cache_destroy(cache);
}

/* ---- what a hit costs ------------------------------------------------------------------------ */

static int bench_hit(void) {
    struct gild_cache *cache = NULL;
    struct gild_error error;
    if (gild_cache_create(&cache, FRAME, 4096u * FRAME, 0, &error) < 0) {
        return 1;
    }
    struct timespec start, end;
    uint64_t rounds = 20000000;
    for (uint64_t n = 0; n < 2048; n++) {
        struct gild_cache_entry *entry;
        gild_cache_get(cache, key_of(n), NULL, &entry);
        gild_cache_fill(cache, entry, 0);
        gild_cache_unpin(cache, entry);
    }
    for (unsigned keys = 64; keys <= 2048; keys *= 32) {
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (uint64_t i = 0; i < rounds; i++) {
            struct gild_cache_entry *entry;
            gild_cache_get(cache, key_of(i * 7 % keys), NULL, &entry);
            gild_cache_unpin(cache, entry);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        double ns =
            (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
        printf("hit + unpin over %u keys: %.1f ns\n", keys, ns / (double)rounds);
    }
    gild_cache_destroy(cache);
    return 0;
}

int main(void) {
    if (getenv("GILD_BENCH")) {
        return bench_hit();
    }
    CU_TestInfo tests[] = {
        {"each key is loaded once however many ask", test_each_key_is_loaded_once_however_many_ask},
        {"a failed load reaches all waiters and is not kept",
         test_failed_load_reaches_all_waiters_and_is_not_kept},
        {"pins hold frames under pressure", test_pins_hold_frames_under_pressure},
        {"overflow frames come and go", test_overflow_frames_come_and_go},
        {"forgotten while pinned: readable, out of the index",
         test_forgotten_while_pinned_stays_readable_and_leaves_the_index},
        {"forgotten while loading: waiters are answered",
         test_forgotten_while_loading_still_answers_its_waiters},
        {"sizes are rounded to whole shards", test_sizes_are_rounded_to_whole_shards},
        {"a hot set survives a scan", test_hot_set_survives_a_scan_of_ten_times_the_cache},
        {"what comes back soon is kept", test_what_comes_back_soon_after_eviction_is_kept},
        {"random work agrees with a model", test_random_work_agrees_with_a_model},
        {"threads never see another key's frame", test_threads_never_see_another_keys_frame},
        CU_TEST_INFO_NULL,
    };
    CU_SuiteInfo suites[] = {{"cache", NULL, NULL, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) {
        return 1;
    }
    add_cache_race_tests();
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures() + CU_get_number_of_failure_records();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
