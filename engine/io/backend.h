/* The device vtable: what stands behind a loop. io_uring (uring.c), a pool of threads with epoll
 * (threads.c), or a simulated machine in tests.
 *
 * A backend starts I/Os, and puts those that ended, with their result, at the end of
 * `backend->ready`, from where the loop takes them; it never calls io->done. The loop does what all
 * backends share: tasks, timers, resuming short file transfers. A backend sees these fields:
 *
 *   kind            reads                                            result
 *   READ, WRITE     fd, offset, vectors, vector_count, DSYNC          bytes, perhaps short
 *   FDATASYNC       fd                                                0
 *   ACCEPT          fd                                                a descriptor
 *   RECV            fd, vectors[0]                                    bytes
 *   RECV_SHARED     fd; sets buffer, buffer_id, LENT on success       bytes
 *   SEND            fd, message (of vectors), MORE                    bytes
 *   POLL            fd, offset (the events)                           the events that are ready
 *
 * The backend may use `next`, `backend` and the flags named as its own. Threads: the loop's, unless
 * it says otherwise. */
#ifndef GILD_IO_BACKEND_H
#define GILD_IO_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/loop.h"

enum io_kind {
    IO_NONE, /* as zeroed by the caller */
    IO_READ,
    IO_WRITE,
    IO_FDATASYNC,
    IO_ACCEPT,
    IO_RECV,
    IO_RECV_SHARED,
    IO_SEND,
    IO_POLL,
    IO_TIMEOUT, /* the loop's own, never submitted to a backend */
};

enum io_flag {
    IO_BUSY = 1u << 0,      /* the loop's: started, done not yet called */
    IO_DSYNC = 1u << 1,     /* WRITE */
    IO_MORE = 1u << 2,      /* SEND */
    IO_LENT = 1u << 3,      /* RECV_SHARED: holds a shared buffer */
    IO_CANCELLED = 1u << 4, /* the loop's: set before ops->cancel; never start it again */
    IO_READY = 1u << 5,     /* in backend->ready (io_complete) */
    IO_POLLING = 1u << 6,   /* the backend's own */
    IO_HAS_DATA = 1u << 7,  /* the backend's own */
};

/* FIFO of I/Os. */
struct io_queue {
    struct gild_io *first;
    struct gild_io *last; /* undefined while first is NULL */
};

static inline void io_queue_push(struct io_queue *queue, struct gild_io *io) {
    io->next = NULL;
    if (queue->first)
        queue->last->next = io;
    else
        queue->first = io;
    queue->last = io;
}

static inline struct gild_io *io_queue_pop(struct io_queue *queue) {
    struct gild_io *io = queue->first;
    if (io)
        queue->first = io->next;
    return io;
}

/* False if it is not there. */
bool io_queue_remove(struct io_queue *queue, struct gild_io *io);

struct io_backend_options {
    unsigned entries;
    unsigned shared_buffers; /* a power of two */
};

#define IO_NO_DEADLINE UINT64_MAX

struct io_backend;

struct io_backend_ops {
    const char *name;
    int (*create)(struct io_backend **out, const struct io_backend_options *options,
                  struct gild_error *error);     /* any thread */
    void (*destroy)(struct io_backend *backend); /* any thread, after finish */

    void (*start)(struct io_backend *backend); /* before anything else on the loop's thread */
    /* The loop is about to end: when this returns, no I/O touches its owner's memory any more;
     * those that were under way are forgotten. */
    void (*finish)(struct io_backend *backend);

    void (*submit)(struct io_backend *backend, struct gild_io *io); /* may gather until wait */
    /* A WRITE with DSYNC, carried out before it returns (io_complete); what was gathered is started
     * first. NULL: submit serves. */
    void (*write_now)(struct io_backend *backend, struct gild_io *io);
    void (*cancel)(struct io_backend *backend, struct gild_io *io); /* it is not READY */
    void (*give_back)(struct io_backend *backend, unsigned buffer_id);

    /* Starts what was gathered, then sleeps until something is ready, somebody calls wake, or the
     * clock reaches deadline_ns. 0: does not sleep. May return early. */
    void (*wait)(struct io_backend *backend, uint64_t deadline_ns);
    void (*wake)(struct io_backend *backend); /* any thread */
    uint64_t (*now_ns)(struct io_backend *backend);
};

/* The head of every backend's struct. */
struct io_backend {
    const struct io_backend_ops *ops;
    struct io_queue ready;
};

static inline void io_complete(struct io_backend *backend, struct gild_io *io, int result) {
    io->result = result;
    io->flags |= IO_READY;
    io_queue_push(&backend->ready, io);
}

extern const struct io_backend_ops io_uring_ops;
extern const struct io_backend_ops io_threads_ops;

uint64_t io_monotonic_ns(void);

/* A loop over a backend that exists already (a simulated one); the loop owns it from then on, also
 * on failure. Any thread. */
int io_loop_create_over(struct gild_loop **out, struct io_backend *backend);

#endif
