/* The ordered pool: jobs run on any worker, their owner waits for them in the order it chose, so
 * that what is made of their results does not depend on who ran when. Private to this folder. */
#ifndef GILD_PACK_POOL_H
#define GILD_PACK_POOL_H

#include <stdbool.h>

struct pool;

/* Embedded in the work. `run` may touch what is the job's only. */
struct pool_job {
    void (*run)(struct pool_job *job);
    struct pool_job *next; /* the pool's, as is the rest */
    bool done;
};

/* threads = 0: jobs run inside pool_submit. 0, -ENOMEM, -EAGAIN. */
int pool_create(struct pool **out, unsigned threads);
/* Drops the jobs that nobody has begun, ends the workers. NULL is fine. */
void pool_destroy(struct pool *pool);

void pool_submit(struct pool *pool, struct pool_job *job);
/* Returns once the job has run; until then the caller runs queued jobs itself. One caller at a
 * time. */
void pool_wait(struct pool *pool, struct pool_job *job);

#endif
