/* Suites of the content cache's test program. */
#ifndef GILD_CACHE_TESTS_H
#define GILD_CACHE_TESTS_H

void add_cache_race_tests(void); /* test_cache_race.c */

#endif
