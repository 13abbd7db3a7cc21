/* Space that runs out (D7): its levels (engine/log/space.c), and what the log makes of them. */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "log_rig.h"

#define TOTAL 1000u
#define SECOND 1000000000ull

static void test_levels_follow_what_is_left(void) {
    struct gild_space space = {0};
    enum gild_space_level last = GILD_SPACE_PLENTY;
    uint64_t at[4] = {0}; /* what was left when each level began */
    for (uint64_t left = TOTAL + 1; left-- > 0;) {
        enum gild_space_level level = gild_space_judge(&space, left, TOTAL);
        CU_ASSERT_TRUE(level >= last);
        if (level != last)
            at[level] = left;
        last = level;
    }
    CU_ASSERT_EQUAL(at[GILD_SPACE_LOW], TOTAL / 16);
    CU_ASSERT_EQUAL(at[GILD_SPACE_SLOW], 8);
    CU_ASSERT_EQUAL(at[GILD_SPACE_FULL], 0);
    CU_ASSERT_EQUAL(last, GILD_SPACE_FULL);
}

static void test_a_small_store_is_warned_too(void) {
    struct gild_space space = {0};
    CU_ASSERT_EQUAL(gild_space_judge(&space, 3, 5), GILD_SPACE_PLENTY);
    CU_ASSERT_EQUAL(gild_space_judge(&space, 2, 5), GILD_SPACE_LOW);
    CU_ASSERT_EQUAL(gild_space_judge(&space, 1, 5), GILD_SPACE_SLOW);
    CU_ASSERT_EQUAL(gild_space_judge(&space, 0, 5), GILD_SPACE_FULL);
}

static void test_the_way_back_is_a_fifth_further(void) {
    struct gild_space space = {0};
    gild_space_judge(&space, 62, TOTAL);
    CU_ASSERT_EQUAL(space.level, GILD_SPACE_LOW);
    for (unsigned i = 0; i < 10; i++) /* it hovers, and says nothing of it */
        CU_ASSERT_EQUAL(gild_space_judge(&space, 62 + i % 2 * 10, TOTAL), GILD_SPACE_LOW);
    CU_ASSERT_EQUAL(gild_space_judge(&space, 80, TOTAL), GILD_SPACE_PLENTY);
    gild_space_judge(&space, 0, TOTAL);
    CU_ASSERT_EQUAL(gild_space_judge(&space, 1, TOTAL), GILD_SPACE_SLOW);
    CU_ASSERT_EQUAL(gild_space_judge(&space, TOTAL, TOTAL), GILD_SPACE_PLENTY);
}

static void test_a_block_costs_the_more_the_less_is_left(void) {
    struct gild_space space = {0};
    uint32_t last = 0;
    for (uint64_t left = 40; left > 0; left--) {
        gild_space_judge(&space, left, TOTAL);
        uint32_t price = gild_space_price_ns(&space);
        CU_ASSERT_EQUAL(price != 0, left <= 8);
        CU_ASSERT_TRUE(price >= last);
        CU_ASSERT_TRUE(price <= 300000); /* a guest must not take it for a hang */
        last = price;
    }
    CU_ASSERT_TRUE(last >= 8 * 32000);
    gild_space_judge(&space, 0, TOTAL);
    CU_ASSERT_EQUAL(gild_space_price_ns(&space), 0); /* refused, not slowed down */
}

static void test_the_time_that_is_left_follows_the_last_segments(void) {
    struct gild_space space = {0};
    gild_space_judge(&space, 50, TOTAL);
    CU_ASSERT_EQUAL(gild_space_seconds_left(&space, SECOND), UINT64_MAX);
    gild_space_taken(&space, SECOND);
    CU_ASSERT_EQUAL(gild_space_seconds_left(&space, SECOND), UINT64_MAX);
    /* Slow ones that are long past count no more. */
    for (uint64_t i = 1; i <= 20; i++)
        gild_space_taken(&space, i * 100 * SECOND);
    uint64_t now = 2000 * SECOND;
    for (uint64_t i = 0; i < GILD_SPACE_TAKES; i++)
        gild_space_taken(&space, now += 2 * SECOND);
    CU_ASSERT_EQUAL(gild_space_seconds_left(&space, now + 2 * SECOND), 50 * 2);
    /* Nobody has written since. */
    CU_ASSERT_TRUE(gild_space_seconds_left(&space, now + 1000 * SECOND) > 5000);
}

static void test_each_level_has_a_name(void) {
    for (unsigned a = 0; a <= GILD_SPACE_FULL; a++)
        for (unsigned b = 0; b < a; b++)
            CU_ASSERT_NOT_EQUAL(strcmp(gild_space_name((enum gild_space_level)a),
                                       gild_space_name((enum gild_space_level)b)),
                                0);
}

/* ---- the log
 * -------------------------------------------------------------------------------------- */

static void test_a_full_device_refuses_data_before_marks(void) {
    struct rig *rig = rig_make(0, 3, 2);
    struct step step = step_of(rig, rig->log), mark = step_of(rig, rig->log);
    mark.data = false;
    CU_ASSERT_EQUAL(append(&step), 0);
    /* The list is full again before the device is, so that what is left is known: one segment and
     * the reserve. */
    struct gild_segments_totals totals = {0};
    while (totals.ready < 3) {
        gild_segments_get_totals(rig->segments, &totals);
        sched_yield();
    }
    rig->room_bytes = 0;
    uint64_t blocks = 1;
    for (; blocks < 4 * GILD_SEGMENT_BLOCKS; blocks += GILD_BATCH_ENTRIES) {
        append_many(&step, GILD_BATCH_ENTRIES);
        if (step.result)
            break;
    }
    CU_ASSERT_EQUAL(step.result, -ENOSPC);
    CU_ASSERT_TRUE(blocks > 2 * GILD_SEGMENT_BLOCKS - 1000);
    CU_ASSERT_TRUE(blocks < 2 * GILD_SEGMENT_BLOCKS);
    CU_ASSERT_EQUAL(append(&mark), 0);
    CU_ASSERT_EQUAL(append(&step), -ENOSPC); /* not into the reserve's segment */
    CU_ASSERT_EQUAL(append(&mark), 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    /* Nothing is left of the reserve for another log's marks: the last is the checkpoints'. */
    mark = step_of(rig, rig->second);
    mark.data = false;
    CU_ASSERT_EQUAL(append(&mark), -ENOSPC);
    rig_end(rig);
}

/* Time stands still in here unless it is moved. */
static void test_data_waits_its_turn_where_little_is_left(void) {
    struct rig *rig = rig_make(0, 4, 2);
    struct step step = step_of(rig, rig->log), mark = step_of(rig, rig->second);
    struct gild_segments_totals totals = {0};
    mark.data = false;
    while (totals.ready < 4) {
        gild_segments_get_totals(rig->segments, &totals);
        sched_yield();
    }
    rig->room_bytes = 0;
    CU_ASSERT_EQUAL(append(&step), 0); /* one for data is left behind this one */
    gild_segments_look(rig->segments);
    gild_segments_get_totals(rig->segments, &totals);
    CU_ASSERT_EQUAL(totals.available, 1);
    CU_ASSERT_EQUAL(totals.level, GILD_SPACE_SLOW);
    uint32_t price_ns = gild_segments_price_ns(rig->segments);
    CU_ASSERT_EQUAL_FATAL(price_ns > 0, true);
    for (unsigned round = 0; round < 3; round++) {
        unsigned blocks = round == 0; /* of the batch that is open */
        while (try_append(&step) == 0)
            blocks++;
        CU_ASSERT_EQUAL(blocks, GILD_BATCH_ENTRIES);
        CU_ASSERT_EQUAL(step.result, -EAGAIN);
        turns(rig);
        rig->device.now_ns += (uint64_t)blocks * price_ns - 1;
        turns(rig);
        CU_ASSERT_EQUAL(try_append(&step), -EAGAIN);
        rig->device.now_ns += 1;
        turns(rig);
        CU_ASSERT_TRUE(sync_ended(&step));
    }
    CU_ASSERT_EQUAL(try_append(&step), 0);
    /* What makes room is not slowed down, nor is a flush. */
    while (try_append(&step) == 0)
        ;
    CU_ASSERT_EQUAL(step.result, -EAGAIN);
    mark.log = rig->log;
    CU_ASSERT_EQUAL(try_append(&mark), 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    rig_end(rig);
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("space", NULL, NULL);
    CU_add_test(suite, "levels follow what is left", test_levels_follow_what_is_left);
    CU_add_test(suite, "a small store is warned, too", test_a_small_store_is_warned_too);
    CU_add_test(suite, "the way back is a fifth further", test_the_way_back_is_a_fifth_further);
    CU_add_test(suite, "a block costs the more the less is left",
                test_a_block_costs_the_more_the_less_is_left);
    CU_add_test(suite, "the time that is left follows the last segments",
                test_the_time_that_is_left_follows_the_last_segments);
    CU_add_test(suite, "each level has a name", test_each_level_has_a_name);
    CU_add_test(suite, "a full device refuses data before marks",
                test_a_full_device_refuses_data_before_marks);
    CU_add_test(suite, "data waits its turn where little is left",
                test_data_waits_its_turn_where_little_is_left);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
