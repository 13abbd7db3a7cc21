/* Runs numbered jobs, each a process of its own, some at once. */
#ifndef GILD_TEST_JOBS_H
#define GILD_TEST_JOBS_H

#include <stdint.h>

#define JOBS_MOST 16u

/* In the child: does job `index`, and ends the process; `worker`: which of those at once. */
typedef void jobs_work(void *context, uint64_t index, unsigned worker);
/* In the parent, when one has ended. */
typedef void jobs_ended(void *context, uint64_t index, int failed);

/* Jobs first .. end - 1. failed: a status, or 128 + a signal; 0 is good. Gives how many failed. */
uint64_t jobs_run(uint64_t first, uint64_t end, unsigned at_once, jobs_work *work,
                  jobs_ended *ended, void *context);

/* Waits for a child: 0, its status, or 128 + its signal. */
int jobs_wait(int pid);

#endif
