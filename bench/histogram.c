/* Log-linear histogram.
 *
 * Values below 64 have a bucket each. Above, the top set bit chooses a row and the six bits below
 * it a column. Invariant: total is the sum of counts. No thread of its own: one owner at a time,
 * merged afterwards. Nothing here fails. */
#include "histogram.h"

#include <string.h>

static unsigned bucket_of(uint64_t value) {
    if (value < HISTOGRAM_STEPS) {
        return (unsigned)value;
    }
    unsigned top = 63u - (unsigned)__builtin_clzll(value);
    unsigned shift = top - HISTOGRAM_STEP_BITS;
    unsigned row = shift + 1u;
    unsigned column = (unsigned)(value >> shift) & (HISTOGRAM_STEPS - 1u);
    unsigned bucket = row * HISTOGRAM_STEPS + column;
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1u;
}

static uint64_t middle_of(unsigned bucket) {
    unsigned row = bucket / HISTOGRAM_STEPS;
    uint64_t column = bucket % HISTOGRAM_STEPS;
    if (row == 0) {
        return column;
    }
    unsigned shift = row - 1u;
    uint64_t low = (HISTOGRAM_STEPS + column) << shift;
    return low + ((UINT64_C(1) << shift) >> 1);
}

void histogram_init(struct histogram *histogram) {
    memset(histogram, 0, sizeof *histogram);
}

void histogram_add(struct histogram *histogram, uint64_t value_ns) {
    histogram->counts[bucket_of(value_ns)]++;
    histogram->total++;
    if (value_ns > histogram->largest_ns) {
        histogram->largest_ns = value_ns;
    }
}

void histogram_merge(struct histogram *into, const struct histogram *from) {
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        into->counts[i] += from->counts[i];
    }
    into->total += from->total;
    if (from->largest_ns > into->largest_ns) {
        into->largest_ns = from->largest_ns;
    }
}

uint64_t histogram_quantile_ns(const struct histogram *histogram, uint32_t parts) {
    if (histogram->total == 0) {
        return 0;
    }
    /* Rounded up, and split so that it does not overflow. */
    uint64_t want = histogram->total / 100000u * parts +
                    (histogram->total % 100000u * parts + 99999u) / 100000u;
    if (want == 0) {
        want = 1;
    }
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen >= want) {
            uint64_t middle = middle_of(i);
            return middle < histogram->largest_ns ? middle : histogram->largest_ns;
        }
    }
    return histogram->largest_ns;
}
