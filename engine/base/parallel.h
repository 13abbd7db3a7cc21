/* A few pieces of work on a few threads, the caller's among them, for as long as the call takes. */
#ifndef GILD_BASE_PARALLEL_H
#define GILD_BASE_PARALLEL_H

#include <stddef.h>

#define GILD_PARALLEL_MOST 16u

/* One piece; thread: 0 to threads - 1, so that each may have memory of its own. */
typedef void gild_parallel_work(void *context, unsigned thread, size_t piece);

/* Calls work for pieces 0 to count - 1, each once, in about that order, on at most `threads`
 * threads (GILD_PARALLEL_MOST at the most, and no more than pieces). All are done when it returns.
 * Threads that can not be started are done without. */
void gild_parallel(unsigned threads, size_t count, gild_parallel_work *work, void *context);

#endif
