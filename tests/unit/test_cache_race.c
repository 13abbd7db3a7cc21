/* A step of the cache between two others, put there on purpose: a frame whose word can not be
 * written to makes the reader's swap fault, and the handler does what another thread might have
 * done just then. One thread. The race detector makes each swap under a lock of its own, which the
 * handler would wait for: it goes without. */
#include <CUnit/CUnit.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cache/cache.h"
#include "cache_tests.h"

#define FRAME 4096u

#if defined(__SANITIZE_THREAD__)
#define RACE_DETECTOR 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACE_DETECTOR 1
#endif
#endif
#ifndef RACE_DETECTOR
#define RACE_DETECTOR 0
#endif

static struct gild_cache_key key_of(uint64_t n) {
    return gild_cache_key(GILD_CACHE_GROUP, 1, n);
}

/* Pinned, its first word says which one it is. */
static struct gild_cache_entry *load(struct gild_cache *cache, uint64_t n) {
    struct gild_cache_entry *entry = NULL;
    if (gild_cache_get(cache, key_of(n), NULL, &entry) != GILD_CACHE_MINE)
        return NULL;
    *(uint64_t *)gild_cache_data(entry) = n;
    gild_cache_fill(cache, entry, 0);
    return entry;
}

static struct gild_cache *make(void) {
    struct gild_cache *cache = NULL;
    CU_ASSERT_EQUAL_FATAL(gild_cache_create(&cache, FRAME, 16 * FRAME, 1, NULL), 0);
    return cache;
}

/* ---- another thread's step ------------------------------------------------------------------- */

static struct {
    struct gild_cache *cache;
    struct gild_cache_entry *entry; /* in the page that is guarded */
    uint8_t *page;
    size_t page_bytes;
    unsigned met;
    bool same_frame;
} guard;

/* The frame goes from key 1 to key 2, and is ready and unpinned again. */
static void give_to_another_key(int number) {
    (void)number;
    if (guard.met++ || mprotect(guard.page, guard.page_bytes, PROT_READ | PROT_WRITE) != 0)
        _exit(3); /* a fault that is not ours */
    gild_cache_forget(guard.cache, key_of(1));
    struct gild_cache_entry *other = load(guard.cache, 2);
    guard.same_frame = other == guard.entry;
    if (other)
        gild_cache_unpin(guard.cache, other);
}

/* I3: the reader found key 1, and pins the frame once it is key 2's. */
static void a_frame_that_changed_its_key_is_no_hit(void) {
    if (RACE_DETECTOR) {
        printf("(skipped under the race detector) ");
        return;
    }
    struct gild_cache *cache = make();
    struct gild_cache_entry *entry = load(cache, 1), *got = NULL;
    struct sigaction ours = {.sa_handler = give_to_another_key}, before;
    CU_ASSERT_PTR_NOT_NULL_FATAL(entry);
    gild_cache_unpin(cache, entry);
    memset(&guard, 0, sizeof guard);
    guard.cache = cache;
    guard.entry = entry;
    guard.page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    guard.page = (uint8_t *)entry - (uintptr_t)entry % guard.page_bytes;
    CU_ASSERT_EQUAL_FATAL(sigaction(SIGSEGV, &ours, &before), 0);
    CU_ASSERT_EQUAL_FATAL(mprotect(guard.page, guard.page_bytes, PROT_READ), 0);
    enum gild_cache_outcome outcome = gild_cache_get(cache, key_of(1), NULL, &got);
    sigaction(SIGSEGV, &before, NULL);
    CU_ASSERT_EQUAL(guard.met, 1);
    CU_ASSERT_TRUE(guard.same_frame);
    CU_ASSERT_EQUAL(outcome, GILD_CACHE_MINE); /* key 1 is in the cache no more */
    if (outcome == GILD_CACHE_MINE)
        gild_cache_fill(cache, got, -EIO);
    gild_cache_unpin(cache, got);
    /* And the pin that was one too many is given back. */
    CU_ASSERT_EQUAL(gild_cache_pinned(cache), 0);
    gild_cache_destroy(cache);
}

/* ---- who holds what -------------------------------------------------------------------------- */

static void frames_that_are_held_are_counted(void) {
    struct gild_cache *cache = make();
    struct gild_cache_entry *held[20], *loading;
    for (unsigned i = 0; i < 20; i++) { /* the last four overflow */
        held[i] = load(cache, i);
        CU_ASSERT_PTR_NOT_NULL_FATAL(held[i]);
        CU_ASSERT_EQUAL(gild_cache_pinned(cache), i + 1);
    }
    gild_cache_pin(cache, held[0]);
    gild_cache_unpin(cache, held[0]);
    gild_cache_forget(cache, key_of(0)); /* held for all that */
    CU_ASSERT_EQUAL(gild_cache_pinned(cache), 20);
    for (unsigned i = 0; i < 20; i++) {
        gild_cache_unpin(cache, held[i]);
        CU_ASSERT_EQUAL(gild_cache_pinned(cache), 19 - i);
    }
    CU_ASSERT_EQUAL(gild_cache_get(cache, key_of(30), NULL, &loading), GILD_CACHE_MINE);
    CU_ASSERT_EQUAL(gild_cache_pinned(cache), 1);
    gild_cache_fill(cache, loading, -EIO);
    gild_cache_unpin(cache, loading);
    CU_ASSERT_EQUAL(gild_cache_pinned(cache), 0);
    gild_cache_destroy(cache);
}

void add_cache_race_tests(void) {
    CU_pSuite suite = CU_add_suite("cache, step by step", NULL, NULL);
    CU_add_test(suite, "D2: a frame that changed its key is no hit",
                a_frame_that_changed_its_key_is_no_hit);
    CU_add_test(suite, "D4: frames that are held are counted", frames_that_are_held_are_counted);
}
