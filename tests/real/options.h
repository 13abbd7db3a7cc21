/* The command line of the tests of real processes. One thread. */
#ifndef GILD_TESTS_REAL_OPTIONS_H
#define GILD_TESTS_REAL_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct options {
    uint64_t points; /* of each workload: places that are tried, or crash states; 0: all places */
    uint64_t seed;
    const char *workload; /* NULL: each */
    bool libraries;
};

/* [--all] [--points N] [--states N] [--seed N] [--workload NAME] [--libraries]; `points` is how
 * many there are without a word. Ends the program with 2 if it is told what it does not know; ends
 * it as skipped if this build or machine can not do it (rig_need). */
struct options options_read(int argc, char **argv, uint64_t points);
bool options_want(const struct options *options, const char *workload);
/* How many of `count` places are tried, and the i-th of them, from 1. */
uint64_t options_points(const struct options *options, uint64_t count);
uint64_t options_place(const struct options *options, uint64_t i, uint64_t count);

#endif
