/* Changes to one file that must not meet: who goes first, who waits, and that all get their turn.
 */
#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mount.h"

#define CHANGES 64

static struct overlap changes[CHANGES];
static bool active[CHANGES];

static void started(struct overlap *overlap) {
    active[overlap - changes] = true;
}

static void reset(struct overlaps *overlaps) {
    overlaps_init(overlaps);
    memset(changes, 0, sizeof(changes));
    memset(active, 0, sizeof(active));
}

static bool enter(struct overlaps *overlaps, unsigned i, uint64_t first, uint64_t end,
                  bool exclusive) {
    changes[i].first = first;
    changes[i].end = end;
    changes[i].exclusive = exclusive;
    active[i] = overlap_enter(overlaps, &changes[i]);
    return active[i];
}

static void leave(struct overlaps *overlaps, unsigned i) {
    active[i] = false;
    overlap_leave(overlaps, &changes[i], started);
}

static void test_whole_sectors_never_wait(void) {
    struct overlaps overlaps;
    reset(&overlaps);
    CU_ASSERT_TRUE(enter(&overlaps, 0, 0, 4096, false));
    CU_ASSERT_TRUE(enter(&overlaps, 1, 0, 4096, false));
    CU_ASSERT_TRUE(enter(&overlaps, 2, 512, 1024, false));
}

static void test_an_exclusive_change_waits_and_is_waited_for(void) {
    struct overlaps overlaps;
    reset(&overlaps);
    CU_ASSERT_TRUE(enter(&overlaps, 0, 0, 4096, false));
    CU_ASSERT_FALSE(enter(&overlaps, 1, 512, 1024, true));
    CU_ASSERT_TRUE(enter(&overlaps, 2, 4096, 8192, true)); /* touches, does not overlap */
    CU_ASSERT_FALSE(enter(&overlaps, 3, 0, 1024, false));  /* not past the one that waits */
    CU_ASSERT_TRUE(enter(&overlaps, 4, 1024, 2048, false));
    leave(&overlaps, 0);
    CU_ASSERT_TRUE(active[1]);
    CU_ASSERT_FALSE(active[3]);
    leave(&overlaps, 1);
    CU_ASSERT_TRUE(active[3]);
}

static bool conflict(unsigned i, unsigned k) {
    return (changes[i].exclusive || changes[k].exclusive) && changes[i].first < changes[k].end &&
           changes[k].first < changes[i].end;
}

/* Any order of comings and goings: no two that conflict are active, and none waits for ever. */
static void test_any_order_is_safe_and_ends(void) {
    unsigned seed = 20;
    printf(" seed %u ", seed);
    srand(seed);
    for (unsigned round = 0; round < 200; round++) {
        struct overlaps overlaps;
        unsigned entered = 0, left = 0;
        reset(&overlaps);
        while (left < CHANGES) {
            if (entered < CHANGES && rand() % 2) {
                uint64_t first = (uint64_t)(rand() % 16) * 512;
                enter(&overlaps, entered++, first, first + 512 * (1 + (uint64_t)(rand() % 4)),
                      rand() % 3 == 0);
            } else {
                unsigned i = (unsigned)rand() % CHANGES, tries = 0;
                while (!active[i] && tries++ < CHANGES)
                    i = (i + 1) % CHANGES;
                if (active[i]) {
                    leave(&overlaps, i);
                    left++;
                } else {
                    CU_ASSERT_EQUAL_FATAL(entered, left); /* else all that entered wait */
                }
            }
            for (unsigned i = 0; i < entered; i++)
                for (unsigned k = 0; k < i; k++)
                    CU_ASSERT_FALSE(active[i] && active[k] && conflict(i, k));
        }
        CU_ASSERT_EQUAL(overlaps.exclusive_count, 0);
    }
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("overlapping changes", NULL, NULL);
    CU_ADD_TEST(suite, test_whole_sectors_never_wait);
    CU_ADD_TEST(suite, test_an_exclusive_change_waits_and_is_waited_for);
    CU_ADD_TEST(suite, test_any_order_is_safe_and_ends);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
