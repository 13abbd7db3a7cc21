/* The ordered pool: one queue, first in first out, and workers that take from its head. It is
 * bounded by its owner, who embeds the jobs in rings of fixed size.
 *
 * Threads: one owner that submits and waits, and the workers. Whoever waits for a job that has not
 * run yet runs others meanwhile, so that one more processor is not left idle. Workers block all
 * signals: those are for the threads that expect them. */
#include "pack/pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;     /* a job was queued, or stop */
    pthread_cond_t finished; /* a job is done */
    struct pool_job *head, **tail;
    bool stop;
    unsigned threads;
    pthread_t thread[];
};

static struct pool_job *take(struct pool *pool) {
    struct pool_job *job = pool->head;
    if (job) {
        pool->head = job->next;
        if (!pool->head)
            pool->tail = &pool->head;
    }
    return job;
}

/* Runs the job outside the lock, which is held before and after. */
static void run(struct pool *pool, struct pool_job *job) {
    pthread_mutex_unlock(&pool->lock);
    job->run(job);
    pthread_mutex_lock(&pool->lock);
    job->done = true;
    pthread_cond_signal(&pool->finished);
}

static void *worker(void *context) {
    struct pool *pool = context;
    pthread_mutex_lock(&pool->lock);
    while (!pool->stop) {
        struct pool_job *job = take(pool);
        if (job)
            run(pool, job);
        else
            pthread_cond_wait(&pool->work, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int pool_create(struct pool **out, unsigned threads) {
    struct pool *pool = calloc(1, sizeof *pool + threads * sizeof pool->thread[0]);
    sigset_t all, before;
    int err = 0;
    if (!pool)
        return -ENOMEM;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->tail = &pool->head;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->threads < threads && !err) {
        err = pthread_create(&pool->thread[pool->threads], NULL, worker, pool);
        if (!err)
            pool->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err) {
        pool_destroy(pool);
        return -err;
    }
    *out = pool;
    return 0;
}

void pool_destroy(struct pool *pool) {
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void pool_submit(struct pool *pool, struct pool_job *job) {
    job->next = NULL;
    if (!pool->threads) {
        job->run(job);
        job->done = true;
        return;
    }
    pthread_mutex_lock(&pool->lock);
    job->done = false;
    *pool->tail = job;
    pool->tail = &job->next;
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

void pool_wait(struct pool *pool, struct pool_job *job) {
    pthread_mutex_lock(&pool->lock);
    while (!job->done) {
        struct pool_job *other = take(pool);
        if (other)
            run(pool, other);
        else
            pthread_cond_wait(&pool->finished, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
}
