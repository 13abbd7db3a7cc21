/* The pool of requests in flight on one mount.
 *
 * All memory is mapped and touched when the mount starts: a mount that writes back for a loop
 * device must not ask for memory in order to free memory. A request holds 16 KiB for its payload;
 * longer writes also hold one of a few large buffers. The reader always has one request and one
 * large buffer in hand, since it can not know how long the kernel's next message is.
 *
 * Threads: any. Failure: an empty pool is no error; the reader stops and is resumed by the next
 * request that comes home, and the kernel's own queue waits meanwhile. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mount.h"

static size_t rounded(size_t bytes) {
    return (bytes + 4095) & ~(size_t)4095;
}

int request_pool_init(struct request_pool *pool, struct gild_mount *mount) {
    size_t requests = rounded(REQUEST_COUNT * sizeof(struct request));
    size_t data = (size_t)REQUEST_COUNT * REQUEST_DATA_BYTES;
    size_t large = (size_t)LARGE_COUNT * LARGE_BYTES;
    memset(pool, 0, sizeof(*pool));
    pool->memory_bytes = requests + data + large;
    pool->memory = mmap(NULL, pool->memory_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pool->memory == MAP_FAILED) {
        pool->memory = NULL;
        return -ENOMEM;
    }
    uint8_t *at = pool->memory;
    struct request *request = (struct request *)(void *)at;
    for (unsigned i = 0; i < REQUEST_COUNT; i++, request++) {
        request->mount = mount;
        request->data = at + requests + (size_t)i * REQUEST_DATA_BYTES;
        request->next = pool->free;
        pool->free = request;
    }
    for (unsigned i = 0; i < LARGE_COUNT; i++)
        pool->large[i] = at + requests + data + (size_t)i * LARGE_BYTES;
    pool->free_count = REQUEST_COUNT;
    pool->large_count = LARGE_COUNT;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->all_home, NULL);
    return 0;
}

void request_pool_fini(struct request_pool *pool) {
    if (!pool->memory)
        return;
    munmap(pool->memory, pool->memory_bytes);
    pthread_cond_destroy(&pool->all_home);
    pthread_mutex_destroy(&pool->lock);
    pool->memory = NULL;
}

bool request_pool_take(struct request_pool *pool, struct request **request, void **large) {
    pthread_mutex_lock(&pool->lock);
    if (!*request && pool->free) {
        *request = pool->free;
        pool->free = pool->free->next;
        pool->free_count--;
    }
    if (!*large && pool->large_count)
        *large = pool->large[--pool->large_count];
    bool complete = *request && *large;
    pool->starved = !complete;
    pthread_mutex_unlock(&pool->lock);
    return complete;
}

void request_pool_give(struct request_pool *pool, struct request *request) {
    struct gild_mount *mount = request->mount;
    pthread_mutex_lock(&pool->lock);
    if (request->large)
        pool->large[pool->large_count++] = request->large;
    request->large = NULL;
    request->next = pool->free;
    pool->free = request;
    pool->free_count++;
    bool resume = pool->starved;
    if (resume)
        pool->starved = false;
    pthread_cond_signal(&pool->all_home);
    pthread_mutex_unlock(&pool->lock);
    if (resume)
        reader_resume(mount);
}

void request_pool_give_large(struct request_pool *pool, void *large) {
    pthread_mutex_lock(&pool->lock);
    pool->large[pool->large_count++] = large;
    pthread_mutex_unlock(&pool->lock);
}

void request_pool_wait(struct request_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->starved = false; /* no reader is left to resume */
    while (pool->free_count < REQUEST_COUNT)
        pthread_cond_wait(&pool->all_home, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
