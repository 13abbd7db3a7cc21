/* What goes through io_uring, as the recorder sees it: the entries that a submission hands to the
 * kernel, and the completions that are there when the call returns.
 *
 * The engine's rings are made with DEFER_TASKRUN where the kernel has it: completions then appear
 * only while the ring is entered, so that each is seen here before its owner can see it. On an
 * older kernel a completion may be told late, which would make a lost acknowledgement of one that
 * was kept: the tests record with the other backend there (rig.c).
 *
 * A sync that must fail is carried out, and its completion is changed to -EIO.
 *
 * Threads: each ring's own; rings are found by address under a lock. */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <string.h>

#include "recorder.h"

#define RINGS 64u
#define FLYING 4096u

struct flying {
    uint64_t user_data, ref;
    bool used, fails;
};

struct watched_ring {
    struct io_uring *ring;
    unsigned seen; /* completions */
    unsigned count;
    struct flying flying[FLYING];
};

static struct watched_ring rings[RINGS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* NULL: one ring too many, which the comparison of the last state would tell. */
static struct watched_ring *find(struct io_uring *ring) {
    struct watched_ring *found = NULL, *unused = NULL;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < RINGS && !found; i++) {
        if (rings[i].ring == ring)
            found = &rings[i];
        else if (!rings[i].ring && !unused)
            unused = &rings[i];
    }
    if (!found && unused) {
        memset(unused, 0, sizeof *unused);
        unused->ring = ring;
        unused->seen = *ring->cq.khead;
        found = unused;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static uint64_t begins(const struct io_uring_sqe *sqe, uint64_t file, bool *syncs) {
    struct iovec one = {.iov_base = (void *)(uintptr_t)sqe->addr, .iov_len = sqe->len};
    const struct iovec *many = (const struct iovec *)(uintptr_t)sqe->addr;
    bool dsync = (sqe->rw_flags & RWF_DSYNC) || recorder_always_syncs(sqe->fd);
    *syncs = sqe->opcode == IORING_OP_FSYNC || dsync;
    switch (sqe->opcode) {
    case IORING_OP_WRITE:
        return recorder_write(file, &one, 1, sqe->off, dsync);
    case IORING_OP_WRITEV:
        return recorder_write(file, many, sqe->len, sqe->off, dsync);
    default:
        return recorder_sync(file);
    }
}

/* Before the ring is entered. */
static struct watched_ring *entering(struct io_uring *ring) {
    struct watched_ring *watched = recorder_head() ? find(ring) : NULL;
    bool counted = false;
    if (!watched)
        return NULL;
    for (unsigned at = ring->sq.sqe_head; at != ring->sq.sqe_tail; at++) {
        const struct io_uring_sqe *sqe = &ring->sq.sqes[at & ring->sq.ring_mask];
        bool syncs;
        if (sqe->opcode != IORING_OP_WRITE && sqe->opcode != IORING_OP_WRITEV &&
            sqe->opcode != IORING_OP_FSYNC)
            continue;
        uint64_t file = recorder_file(sqe->fd);
        if (!file)
            continue;
        if (!counted)
            recorder_call();
        counted = true;
        struct flying flying = {.user_data = sqe->user_data, .used = true};
        flying.ref = begins(sqe, file, &syncs);
        flying.fails = syncs && recorder_sync_fails(sqe->fd);
        for (unsigned i = 0; i < FLYING; i++)
            if (!watched->flying[i].used) {
                watched->flying[i] = flying;
                watched->count++;
                break;
            }
    }
    return watched;
}

static void completed(struct watched_ring *watched, struct io_uring_cqe *cqe) {
    unsigned left = watched->count;
    for (unsigned i = 0; i < FLYING && left; i++) {
        struct flying *flying = &watched->flying[i];
        left -= flying->used;
        if (!flying->used || flying->user_data != cqe->user_data)
            continue;
        if (flying->fails)
            cqe->res = -EIO;
        trace_end(recorder_head(), flying->ref, cqe->res);
        flying->used = false;
        watched->count--;
        return;
    }
}

/* After it. */
static int entered(struct watched_ring *watched, int result) {
    int failed = errno;
    if (watched) {
        struct io_uring *ring = watched->ring;
        unsigned tail = __atomic_load_n(ring->cq.ktail, __ATOMIC_ACQUIRE);
        for (; watched->seen != tail; watched->seen++)
            completed(watched, &ring->cq.cqes[watched->seen & ring->cq.ring_mask]);
    }
    errno = failed;
    return result;
}

RECORDER_EXPORT int io_uring_submit(struct io_uring *ring) {
    struct watched_ring *watched = entering(ring);
    return entered(watched, RECORDER_NEXT(io_uring_submit)(ring));
}

RECORDER_EXPORT int io_uring_submit_and_wait(struct io_uring *ring, unsigned count) {
    struct watched_ring *watched = entering(ring);
    return entered(watched, RECORDER_NEXT(io_uring_submit_and_wait)(ring, count));
}

RECORDER_EXPORT int io_uring_submit_and_wait_timeout(struct io_uring *ring,
                                                     struct io_uring_cqe **cqe, unsigned count,
                                                     struct __kernel_timespec *timeout,
                                                     sigset_t *mask) {
    struct watched_ring *watched = entering(ring);
    return entered(
        watched, RECORDER_NEXT(io_uring_submit_and_wait_timeout)(ring, cqe, count, timeout, mask));
}

RECORDER_EXPORT int io_uring_submit_and_get_events(struct io_uring *ring) {
    struct watched_ring *watched = entering(ring);
    return entered(watched, RECORDER_NEXT(io_uring_submit_and_get_events)(ring));
}

RECORDER_EXPORT int io_uring_get_events(struct io_uring *ring) {
    struct watched_ring *watched = recorder_head() ? find(ring) : NULL;
    return entered(watched, RECORDER_NEXT(io_uring_get_events)(ring));
}

RECORDER_EXPORT void io_uring_queue_exit(struct io_uring *ring) {
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < RINGS; i++)
        if (rings[i].ring == ring)
            rings[i].ring = NULL;
    pthread_mutex_unlock(&lock);
    RECORDER_NEXT(io_uring_queue_exit)(ring);
}
