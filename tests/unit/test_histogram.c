/* The bench's latency histogram: quantiles within its promised error, against a sorted array. */
#include "../../bench/histogram.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>

#define SAMPLES 200000u

static struct histogram one, two;
static uint64_t sorted[SAMPLES];

static int compare(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static uint64_t step(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static void nothing_counted_is_zero(void) {
    histogram_init(&one);
    CU_ASSERT_EQUAL(histogram_quantile_ns(&one, 50000), 0);
}

static void small_values_are_exact(void) {
    histogram_init(&one);
    for (uint64_t v = 1; v <= 60; v++) {
        histogram_add(&one, v);
    }
    CU_ASSERT_EQUAL(histogram_quantile_ns(&one, 50000), 30);
    CU_ASSERT_EQUAL(histogram_quantile_ns(&one, 100000), 60);
    CU_ASSERT_EQUAL(histogram_quantile_ns(&one, 1), 1);
}

static void quantiles_are_within_two_percent(void) {
    static const uint32_t parts[] = {1000, 10000, 50000, 90000, 99000, 99900, 99990};
    uint64_t seed = 0x9e3779b97f4a7c15u;
    printf("seed %llx ", (unsigned long long)seed);
    histogram_init(&one);
    for (unsigned i = 0; i < SAMPLES; i++) {
        /* All magnitudes from 1 to 2^38. */
        uint64_t r = step(&seed);
        sorted[i] = (r >> 26) >> (step(&seed) % 38u);
        histogram_add(&one, sorted[i]);
    }
    qsort(sorted, SAMPLES, sizeof sorted[0], compare);
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        uint64_t rank = ((uint64_t)SAMPLES * parts[i] + 99999u) / 100000u;
        uint64_t exact = sorted[rank - 1];
        uint64_t told = histogram_quantile_ns(&one, parts[i]);
        uint64_t slack = exact / 50u;
        CU_ASSERT(told + slack >= exact && told <= exact + slack);
    }
    CU_ASSERT_EQUAL(one.largest_ns, sorted[SAMPLES - 1]);
}

static void beyond_the_range_is_the_last_bucket(void) {
    histogram_init(&one);
    histogram_add(&one, UINT64_MAX);
    CU_ASSERT_EQUAL(one.counts[HISTOGRAM_BUCKETS - 1], 1);
    CU_ASSERT(histogram_quantile_ns(&one, 50000) >= UINT64_C(1) << 39);
}

static void merged_is_the_same_as_counted_together(void) {
    histogram_init(&one);
    histogram_init(&two);
    for (uint64_t v = 0; v < 1000; v++) {
        histogram_add(v % 3 ? &one : &two, v * 977u);
    }
    histogram_merge(&one, &two);
    CU_ASSERT_EQUAL(one.total, 1000);
    CU_ASSERT_EQUAL(one.largest_ns, 999u * 977u);
    histogram_init(&two);
    for (uint64_t v = 0; v < 1000; v++) {
        histogram_add(&two, v * 977u);
    }
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (one.counts[i] != two.counts[i]) {
            CU_FAIL("a bucket differs");
        }
    }
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("histogram", NULL, NULL);
    CU_ADD_TEST(suite, nothing_counted_is_zero);
    CU_ADD_TEST(suite, small_values_are_exact);
    CU_ADD_TEST(suite, quantiles_are_within_two_percent);
    CU_ADD_TEST(suite, beyond_the_range_is_the_last_bucket);
    CU_ADD_TEST(suite, merged_is_the_same_as_counted_together);
    CU_basic_run_tests();
    int failed = (int)CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
