/* A log-linear histogram of latencies: 64 equal steps in each power of two, so that any reading is
 * within 1.6 % of the value that went in, from 1 ns to 18 minutes, in 19 KiB and without a lock. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEP_BITS 6u
#define HISTOGRAM_STEPS (1u << HISTOGRAM_STEP_BITS)
/* Values of 2^40 ns and more are counted in the last bucket. */
#define HISTOGRAM_BUCKETS ((40u - HISTOGRAM_STEP_BITS + 1u) * HISTOGRAM_STEPS)

struct histogram {
    uint64_t total;
    uint64_t largest_ns;
    uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_init(struct histogram *histogram);
void histogram_add(struct histogram *histogram, uint64_t value_ns);
void histogram_merge(struct histogram *into, const struct histogram *from);

/* The smallest value (the middle of its bucket, never above the largest seen) that at least
 * `parts` of 100,000 values do not exceed: 50000 is the median, 99900 the 99.9th percentile.
 * 0 if nothing was counted. */
uint64_t histogram_quantile_ns(const struct histogram *histogram, uint32_t parts);

#endif
