/* The loop (gild/loop.h): what both backends share.
 *
 * One turn: posted tasks, expired timers, completions, deferred tasks, then one call of the backend
 * that submits everything gathered and sleeps only if nothing is left to do. A task or completion
 * that arises while its kind is being run waits for the next turn, so that nothing starves I/O.
 *
 * Posting: from the loop's own thread onto a plain queue; from others into the mailbox, whose first
 * poster after the loop went to sleep wakes it, and only that one.
 *
 * End: gild_loop_stop is a posted task; the turn that runs it is the last. Then the backend is told
 * to finish: I/O under way is cancelled or waited for and its `done` is not called any more.
 *
 * Failure: creation reports; a running loop can not fail. I/O errors are results. */
#include "gild/loop.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/log.h"
#include "base/queue.h"
#include "io/backend.h"
#include "io/timers.h"

#define DEFAULT_ENTRIES 1024u
#define MOST_ENTRIES 32768u
#define DEFAULT_SHARED_BUFFERS 64u
#define MOST_SHARED_BUFFERS 32768u

struct gild_loop {
    /* The loop's thread. */
    struct io_backend *backend;
    const struct io_backend_ops *ops;
    struct gild_task_queue posted;
    struct gild_task_queue deferred;
    struct io_timers timers;
    uint64_t now_ns;
    bool stopping;
    struct gild_task stop_task;

    /* Any thread. */
    _Alignas(64) struct gild_mailbox mailbox;
    _Atomic(uintptr_t) runner; /* pthread_self() of the running thread, 0 if none */
    atomic_bool stop_posted;
};

bool io_queue_remove(struct io_queue *queue, struct gild_io *io) {
    struct gild_io *before = NULL;
    for (struct gild_io *at = queue->first; at; before = at, at = at->next) {
        if (at != io)
            continue;
        if (before)
            before->next = io->next;
        else
            queue->first = io->next;
        if (queue->last == io)
            queue->last = before;
        return true;
    }
    return false;
}

uint64_t io_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- life ---------------------------------------------------------------------------------- */

static unsigned power_of_two_from(unsigned wanted, unsigned standard, unsigned most) {
    unsigned power = 1;
    if (!wanted)
        wanted = standard;
    while (power < wanted && power < most)
        power *= 2;
    return power;
}

static int create_backend(struct io_backend **out, const struct gild_loop_options *options,
                          struct gild_error *error) {
    struct io_backend_options wanted = {
        .entries = power_of_two_from(options->entries, DEFAULT_ENTRIES, MOST_ENTRIES),
        .shared_buffers =
            power_of_two_from(options->shared_buffers, DEFAULT_SHARED_BUFFERS, MOST_SHARED_BUFFERS),
    };
    if (options->backend == GILD_LOOP_THREADS)
        return io_threads_ops.create(out, &wanted, error);
    struct gild_error why = {0};
    int result = io_uring_ops.create(out, &wanted, &why);
    if (result == 0)
        return 0;
    if (options->backend == GILD_LOOP_URING)
        return gild_fail(error, why.code, why.err, "%s", why.message);
    /* Said once in the process, however many loops it makes. */
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&said))
        gild_log(GILD_LOG_WARN, "%s Serving with a pool of threads instead, which is slower.",
                 why.message);
    return io_threads_ops.create(out, &wanted, error);
}

static void run_stop(struct gild_task *task) {
    gild_container_of(task, struct gild_loop, stop_task)->stopping = true;
}

int io_loop_create_over(struct gild_loop **out, struct io_backend *backend) {
    struct gild_loop *loop = aligned_alloc(_Alignof(struct gild_loop), sizeof *loop);
    if (!loop) {
        backend->ops->destroy(backend);
        return -ENOMEM;
    }
    memset(loop, 0, sizeof *loop);
    loop->backend = backend;
    loop->ops = backend->ops;
    loop->stop_task.run = run_stop;
    loop->now_ns = loop->ops->now_ns(backend);
    *out = loop;
    return 0;
}

int gild_loop_create(struct gild_loop **out, const struct gild_loop_options *options,
                     struct gild_error *error) {
    static const struct gild_loop_options standard;
    struct io_backend *backend;
    int result = create_backend(&backend, options ? options : &standard, error);
    if (result)
        return result;
    result = io_loop_create_over(out, backend);
    if (result)
        return gild_fail(error, GILD_FAILED, -result, "No memory for an I/O loop.");
    return 0;
}

void gild_loop_destroy(struct gild_loop *loop) {
    if (!loop)
        return;
    assert(!atomic_load(&loop->runner));
    loop->ops->destroy(loop->backend);
    free(loop);
}

const char *gild_loop_backend_name(const struct gild_loop *loop) {
    return loop->ops->name;
}

bool gild_loop_is_current(const struct gild_loop *loop) {
    return atomic_load_explicit(&loop->runner, memory_order_relaxed) == (uintptr_t)pthread_self();
}

uint64_t gild_loop_now_ns(const struct gild_loop *loop) {
    return loop->now_ns;
}

/* ---- tasks --------------------------------------------------------------------------------- */

void gild_loop_post(struct gild_loop *loop, struct gild_task *task) {
    if (gild_loop_is_current(loop))
        gild_task_queue_push(&loop->posted, task);
    else if (gild_mailbox_push(&loop->mailbox, task))
        loop->ops->wake(loop->backend);
}

void gild_loop_defer(struct gild_loop *loop, struct gild_task *task) {
    gild_task_queue_push(&loop->deferred, task);
}

void gild_loop_stop(struct gild_loop *loop) {
    if (!atomic_exchange(&loop->stop_posted, true))
        gild_loop_post(loop, &loop->stop_task);
}

/* ---- completions --------------------------------------------------------------------------- */

static void advance_vectors(struct gild_io *io, size_t bytes) {
    io->moved += bytes;
    io->offset += bytes;
    while (bytes) {
        size_t part = io->vectors->iov_len;
        if (part > bytes) {
            io->vectors->iov_base = (char *)io->vectors->iov_base + bytes;
            io->vectors->iov_len -= bytes;
            return;
        }
        bytes -= part;
        io->vectors++;
        io->vector_count--;
    }
}

/* True: a file transfer that came back short was started again. Else io->result is final. */
static bool resume_transfer(struct gild_loop *loop, struct gild_io *io) {
    bool again = io->result == -EINTR || io->result == -EAGAIN;
    if (io->result > 0) {
        advance_vectors(io, (size_t)io->result);
        io->result = (int)io->moved;
        if (io->moved >= io->length)
            return false;
        again = true;
    } else if (io->result == 0 && io->length) {
        /* A file that takes no byte and gives no reason would loop for ever. */
        io->result = io->kind == IO_READ ? (int)io->moved : -EIO;
    } else if (io->result == -EINVAL && io->kind == IO_READ && io->moved % 512) {
        /* Direct I/O ends at an odd byte only at the end of the file, and refuses to go on there.
         */
        io->result = (int)io->moved;
    }
    if (!again)
        return false;
    if (io->flags & IO_CANCELLED) {
        io->result = -ECANCELED;
        return false;
    }
    loop->ops->submit(loop->backend, io);
    return true;
}

static void finish(struct gild_loop *loop, struct gild_io *io) {
    io->flags &= (uint8_t)~IO_READY;
    if ((io->kind == IO_READ || io->kind == IO_WRITE) && resume_transfer(loop, io))
        return;
    io->flags &= IO_LENT;
    io->done(io);
}

static void expire_timers(struct gild_loop *loop) {
    struct gild_io *io;
    while ((io = loop->timers.soonest) && io->offset <= loop->now_ns) {
        io_timers_remove(&loop->timers, io);
        io_complete(loop->backend, io, 0);
    }
}

/* ---- the turn ------------------------------------------------------------------------------ */

static void run_posted(struct gild_loop *loop) {
    gild_mailbox_take(&loop->mailbox, &loop->posted);
    struct gild_task_queue batch = loop->posted;
    struct gild_task *task;
    loop->posted.first = NULL;
    while ((task = gild_task_queue_pop(&batch)))
        task->run(task);
}

static void run_completions(struct gild_loop *loop) {
    struct io_queue batch = loop->backend->ready;
    struct gild_io *io;
    loop->backend->ready.first = NULL;
    while ((io = io_queue_pop(&batch)))
        finish(loop, io);
}

static void run_deferred(struct gild_loop *loop) {
    struct gild_task *task;
    while ((task = gild_task_queue_pop(&loop->deferred)))
        task->run(task);
}

static void submit_and_wait(struct gild_loop *loop) {
    uint64_t deadline_ns = 0;
    if (!loop->posted.first && !loop->backend->ready.first && gild_mailbox_sleep(&loop->mailbox))
        deadline_ns = loop->timers.soonest ? loop->timers.soonest->offset : IO_NO_DEADLINE;
    loop->ops->wait(loop->backend, deadline_ns);
    loop->now_ns = loop->ops->now_ns(loop->backend);
}

/* Lets the write path under a loop device or FUSE mount of this host reclaim memory without waiting
 * for itself; needs CAP_SYS_RESOURCE, and is only then needed (who mounts has it). */
static void become_io_flusher(void) {
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

void gild_loop_run(struct gild_loop *loop) {
    become_io_flusher();
    atomic_store(&loop->runner, (uintptr_t)pthread_self());
    loop->ops->start(loop->backend);
    loop->now_ns = loop->ops->now_ns(loop->backend);
    for (;;) {
        run_posted(loop);
        expire_timers(loop);
        run_completions(loop);
        run_deferred(loop);
        if (loop->stopping)
            break;
        submit_and_wait(loop);
    }
    loop->ops->finish(loop->backend);
    loop->backend->ready.first = NULL;
    atomic_store(&loop->runner, 0);
}

/* ---- starting I/O -------------------------------------------------------------------------- */

/* What every start does; the fields that only some kinds use are set by them. */
static void begin(struct gild_io *io, enum io_kind kind, int fd) {
    assert(!(io->flags & (IO_BUSY | IO_LENT)));
    io->kind = (uint8_t)kind;
    io->flags = IO_BUSY;
    io->fd = fd;
}

static void begin_transfer(struct gild_io *io, enum io_kind kind, int fd, struct iovec *vectors,
                           unsigned count, size_t length, uint64_t offset) {
    assert(length <= INT_MAX);
    begin(io, kind, fd);
    io->vectors = vectors;
    io->vector_count = count;
    io->length = length;
    io->offset = offset;
    io->moved = 0;
}

void gild_io_read(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer, size_t length,
                  uint64_t offset) {
    io->buffer = buffer;
    io->one = (struct iovec){buffer, length};
    begin_transfer(io, IO_READ, fd, &io->one, 1, length, offset);
    loop->ops->submit(loop->backend, io);
}

void gild_io_readv(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                   unsigned count, uint64_t offset) {
    size_t length = 0;
    for (unsigned i = 0; i < count; i++)
        length += vectors[i].iov_len;
    begin_transfer(io, IO_READ, fd, vectors, count, length, offset);
    loop->ops->submit(loop->backend, io);
}

static void begin_write(struct gild_io *io, int fd, const void *buffer, size_t length,
                        uint64_t offset, bool dsync) {
    /* One field serves both directions; a write only reads it. */
    io->buffer = (void *)(uintptr_t)buffer;
    io->one = (struct iovec){io->buffer, length};
    begin_transfer(io, IO_WRITE, fd, &io->one, 1, length, offset);
    if (dsync)
        io->flags |= IO_DSYNC;
}

void gild_io_write(struct gild_loop *loop, struct gild_io *io, int fd, const void *buffer,
                   size_t length, uint64_t offset, bool dsync) {
    begin_write(io, fd, buffer, length, offset, dsync);
    loop->ops->submit(loop->backend, io);
}

void gild_io_write_now(struct gild_loop *loop, struct gild_io *io, int fd, const void *buffer,
                       size_t length, uint64_t offset) {
    begin_write(io, fd, buffer, length, offset, true);
    if (loop->ops->write_now)
        loop->ops->write_now(loop->backend, io);
    else
        loop->ops->submit(loop->backend, io);
}

void gild_io_fdatasync(struct gild_loop *loop, struct gild_io *io, int fd) {
    begin(io, IO_FDATASYNC, fd);
    loop->ops->submit(loop->backend, io);
}

void gild_io_accept(struct gild_loop *loop, struct gild_io *io, int fd) {
    begin(io, IO_ACCEPT, fd);
    loop->ops->submit(loop->backend, io);
}

void gild_io_recv(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer, size_t length) {
    begin(io, IO_RECV, fd);
    io->buffer = buffer;
    io->one = (struct iovec){buffer, length};
    io->vectors = &io->one;
    io->vector_count = 1;
    loop->ops->submit(loop->backend, io);
}

void gild_io_recv_shared(struct gild_loop *loop, struct gild_io *io, int fd) {
    begin(io, IO_RECV_SHARED, fd);
    io->buffer = NULL;
    loop->ops->submit(loop->backend, io);
}

void gild_loop_give_back(struct gild_loop *loop, struct gild_io *io) {
    assert(io->flags & IO_LENT);
    io->flags &= (uint8_t)~IO_LENT;
    io->buffer = NULL;
    loop->ops->give_back(loop->backend, io->buffer_id);
}

void gild_io_send(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                  unsigned count, bool more) {
    begin(io, IO_SEND, fd);
    if (more)
        io->flags |= IO_MORE;
    io->vectors = vectors;
    io->vector_count = count;
    memset(&io->message, 0, sizeof io->message);
    io->message.msg_iov = vectors;
    io->message.msg_iovlen = count;
    loop->ops->submit(loop->backend, io);
}

void gild_io_poll(struct gild_loop *loop, struct gild_io *io, int fd, short events) {
    begin(io, IO_POLL, fd);
    io->offset = (unsigned short)events;
    loop->ops->submit(loop->backend, io);
}

void gild_io_timeout(struct gild_loop *loop, struct gild_io *io, uint64_t nanoseconds) {
    begin(io, IO_TIMEOUT, -1);
    if (__builtin_add_overflow(loop->ops->now_ns(loop->backend), nanoseconds, &io->offset))
        io->offset = IO_NO_DEADLINE - 1;
    io_timers_add(&loop->timers, io);
}

void gild_io_cancel(struct gild_loop *loop, struct gild_io *io) {
    if (!(io->flags & IO_BUSY) || (io->flags & IO_CANCELLED))
        return;
    io->flags |= IO_CANCELLED; /* a short transfer in hand is not resumed either */
    if (io->flags & IO_READY)
        return;
    if (io->kind == IO_TIMEOUT) {
        io_timers_remove(&loop->timers, io);
        io_complete(loop->backend, io, -ECANCELED);
    } else {
        loop->ops->cancel(loop->backend, io);
    }
}
