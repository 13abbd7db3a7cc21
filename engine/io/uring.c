/* The io_uring backend (io/backend.h).
 *
 * One ring per loop, entered once per turn. Where the kernel has it (6.1), completions are only
 * worked on when the loop asks (DEFER_TASKRUN), which needs the ring to have one issuer: so it is
 * made disabled by gild_loop_create and enabled by the loop's own thread. Linux 5.19 is the oldest
 * that serves (shared receive buffers, cancel any); io_uring_setup(2), io_uring_register(2).
 *
 * Invariants
 * - A submission is never dropped: a full queue is flushed, and when the kernel can not take more,
 *   completions are collected (not run) first.
 * - in_flight counts the I/Os the kernel holds; each gives exactly one completion.
 * - Cancel requests and new I/Os enter the kernel in the order they were made, so that a cancel can
 *   never hit a later use of the same struct.
 * - starved holds receives that have data but no buffer; it is empty while a buffer is free.
 *
 * Receive buffers: the kernel takes one when data is there. With none left it answers -ENOBUFS,
 * perhaps for a socket that has nothing to read: that one is polled first, so that only receives
 * that will use a buffer at once wait for one, and one buffer given back wakes one of them.
 *
 * A descriptor in O_NONBLOCK mode makes io_uring answer -EAGAIN: it is polled, then tried again.
 *
 * Thread: the loop's; create, destroy and wake as the vtable says. Failure: creation reports. A
 * ring that refuses to be entered for a reason that no retry can mend ends the process: nothing
 * that was promised to disks could be kept without it. */
#include <errno.h>
#include <liburing.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "io/backend.h"

/* user_data of completions that are no I/O's; an I/O's is its address. */
#define TAG_IGNORE 0u
#define TAG_WAKE 1u

#define BUFFER_GROUP 0
#define CQ_PER_SQ 4u
/* One request's length is 32 bits; the kernel cuts at 2 GiB - 4 KiB anyway. */
#define MOST_AT_ONCE (1u << 30)
#define CANCEL_AGAIN_NS 100000000u

/* Kernel UAPI bits that liburing 2.3 may lack. */
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif

struct uring {
    struct io_backend base;
    struct io_uring ring;
    int wake_fd;
    bool wake_armed;
    bool ring_fd_registered;
    unsigned in_flight;
    struct io_queue retry; /* to be submitted again by the next wait */

    struct io_uring_buf_ring *buffer_ring;
    char *buffers;
    unsigned buffer_count;
    unsigned lent;
    struct io_queue starved;
};

static struct uring *uring_of(struct io_backend *backend) {
    return (struct uring *)(void *)backend;
}

static void die(const char *what, int err) {
    gild_log(GILD_LOG_ERROR, "io_uring: %s: %s; the process can not go on", what, strerror(err));
    abort();
}

/* ---- life ---------------------------------------------------------------------------------- */

static int init_ring(struct uring *uring, unsigned entries) {
    static const unsigned ways[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG, /* 6.1 */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,                         /* 6.0 */
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
    };
    int result = -EINVAL;
    for (unsigned i = 0; i < sizeof ways / sizeof *ways && result == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = ways[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL |
                     IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
            .cq_entries = entries * CQ_PER_SQ,
        };
        result = io_uring_queue_init_params(entries, &uring->ring, &params);
    }
    return result;
}

static size_t buffer_ring_bytes(const struct uring *uring) {
    return uring->buffer_count * sizeof(struct io_uring_buf);
}

static size_t buffers_bytes(const struct uring *uring) {
    return (size_t)uring->buffer_count * GILD_SHARED_BUFFER_BYTES;
}

/* Puts a buffer where the kernel takes them from. */
static void offer_buffer(struct uring *uring, unsigned id) {
    io_uring_buf_ring_add(uring->buffer_ring,
                          uring->buffers + (size_t)id * GILD_SHARED_BUFFER_BYTES,
                          GILD_SHARED_BUFFER_BYTES, (unsigned short)id,
                          io_uring_buf_ring_mask(uring->buffer_count), 0);
    io_uring_buf_ring_advance(uring->buffer_ring, 1);
}

static int init_buffers(struct uring *uring, unsigned count) {
    int result;
    uring->buffer_count = count;
    uring->buffer_ring = mmap(NULL, buffer_ring_bytes(uring), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (uring->buffer_ring == MAP_FAILED)
        return -errno;
    /* Address space: a buffer takes memory when it is first received into. */
    uring->buffers = mmap(NULL, buffers_bytes(uring), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (uring->buffers == MAP_FAILED) {
        result = -errno;
        goto unmap_ring;
    }
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)uring->buffer_ring,
        .ring_entries = count,
        .bgid = BUFFER_GROUP,
    };
    result = io_uring_register_buf_ring(&uring->ring, &registration, 0);
    if (result)
        goto unmap_buffers;
    io_uring_buf_ring_init(uring->buffer_ring);
    for (unsigned id = 0; id < count; id++)
        offer_buffer(uring, id);
    return 0;

unmap_buffers:
    munmap(uring->buffers, buffers_bytes(uring));
unmap_ring:
    munmap(uring->buffer_ring, buffer_ring_bytes(uring));
    return result;
}

static int uring_create(struct io_backend **out, const struct io_backend_options *options,
                        struct gild_error *error) {
    int result;
    struct uring *uring = calloc(1, sizeof *uring);
    if (!uring)
        return gild_fail(error, GILD_FAILED, ENOMEM, "No memory for an I/O ring.");
    uring->base.ops = &io_uring_ops;
    uring->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (uring->wake_fd < 0) {
        result = gild_fail(error, GILD_FAILED, errno,
                           "Can not make an eventfd: %s; raise the limit of open files.",
                           strerror(errno));
        goto free_uring;
    }
    result = init_ring(uring, options->entries);
    if (result) {
        result = gild_fail(error, GILD_FAILED, -result,
                           "io_uring is refused here (%s): kernel.io_uring_disabled, a container's "
                           "seccomp filter, or a kernel older than 5.19.",
                           strerror(-result));
        goto close_wake;
    }
    result = init_buffers(uring, options->shared_buffers);
    if (result) {
        result = gild_fail(error, GILD_FAILED, -result,
                           "io_uring refuses shared receive buffers (%s): Linux 5.19 has them.",
                           strerror(-result));
        goto exit_ring;
    }
    *out = &uring->base;
    return 0;

exit_ring:
    io_uring_queue_exit(&uring->ring);
close_wake:
    close(uring->wake_fd);
free_uring:
    free(uring);
    return result;
}

static void uring_destroy(struct io_backend *backend) {
    struct uring *uring = uring_of(backend);
    io_uring_queue_exit(&uring->ring);
    munmap(uring->buffers, buffers_bytes(uring));
    munmap(uring->buffer_ring, buffer_ring_bytes(uring));
    close(uring->wake_fd);
    free(uring);
}

static void uring_start(struct io_backend *backend) {
    struct uring *uring = uring_of(backend);
    /* The shared library of liburing 2.3 lacks io_uring_enable_rings. */
    if (syscall(__NR_io_uring_register, uring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
                0) < 0)
        die("the ring can not be enabled", errno);
    /* Spares a descriptor look-up per entry; fine without. */
    uring->ring_fd_registered = io_uring_register_ring_fd(&uring->ring) == 1;
}

/* ---- completions --------------------------------------------------------------------------- */

static void end_recv_shared(struct uring *uring, struct gild_io *io, int result, unsigned flags) {
    if (flags & IORING_CQE_F_BUFFER) {
        unsigned id = flags >> IORING_CQE_BUFFER_SHIFT;
        if (result > 0) {
            uring->lent++;
            io->buffer_id = (uint16_t)id;
            io->buffer = uring->buffers + (size_t)id * GILD_SHARED_BUFFER_BYTES;
            io->flags |= IO_LENT;
        } else {
            offer_buffer(uring, id);
        }
    }
    io_complete(&uring->base, io, result);
}

/* Is this the end of the I/O, or a reason to try again? */
static void collect(struct uring *uring, struct gild_io *io, int result, unsigned flags) {
    uring->in_flight--;
    if (io->flags & IO_CANCELLED) {
        if (result == -EINTR || result == -EAGAIN || result == -ENOBUFS ||
            (result >= 0 && io->flags & IO_POLLING))
            result = -ECANCELED;
    } else if (io->flags & IO_POLLING) {
        if (result >= 0) {
            io->flags = (uint8_t)((io->flags & ~IO_POLLING) | IO_HAS_DATA);
            io_queue_push(&uring->retry, io);
            return;
        }
    } else if (result == -ENOBUFS && io->kind == IO_RECV_SHARED) {
        if (io->flags & IO_HAS_DATA && uring->lent == uring->buffer_count) {
            io_queue_push(&uring->starved, io);
        } else {
            /* Fewer lent than taken: completions yet to be seen have them. */
            if (!(io->flags & IO_HAS_DATA))
                io->flags |= IO_POLLING;
            io_queue_push(&uring->retry, io);
        }
        return;
    } else if (result == -EAGAIN && io->kind >= IO_ACCEPT && io->kind <= IO_SEND) {
        io->flags = (uint8_t)((io->flags & ~IO_HAS_DATA) | IO_POLLING);
        io_queue_push(&uring->retry, io);
        return;
    }
    if (io->kind == IO_RECV_SHARED)
        end_recv_shared(uring, io, result, flags);
    else
        io_complete(&uring->base, io, result);
}

/* Collects what the kernel has completed; runs nothing, submits nothing. */
static void reap(struct uring *uring) {
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&uring->ring, head, cqe) {
        uint64_t tag = cqe->user_data;
        count++;
        if (tag == TAG_WAKE)
            uring->wake_armed = cqe->flags & IORING_CQE_F_MORE;
        else if (tag != TAG_IGNORE && tag != LIBURING_UDATA_TIMEOUT)
            collect(uring, (struct gild_io *)(uintptr_t)tag, cqe->res, cqe->flags);
    }
    io_uring_cq_advance(&uring->ring, count);
    for (unsigned left = uring->buffer_count - uring->lent; left && uring->starved.first; left--)
        io_queue_push(&uring->retry, io_queue_pop(&uring->starved));
}

/* ---- submissions --------------------------------------------------------------------------- */

/* What an entry of the ring may answer and a later try mends. */
static void check_entered(int result) {
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY &&
        result != -ETIME && result != -ENOMEM)
        die("io_uring_enter", -result);
}

static struct io_uring_sqe *take_sqe(struct uring *uring) {
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&uring->ring))) {
        int result = io_uring_submit(&uring->ring);
        check_entered(result);
        if (result < 0) {
            io_uring_get_events(&uring->ring);
            reap(uring);
        }
    }
    return sqe;
}

static void prepare_transfer(struct io_uring_sqe *sqe, const struct gild_io *io) {
    bool reading = io->kind == IO_READ;
    if (io->vector_count == 1) {
        size_t length = io->vectors->iov_len < MOST_AT_ONCE ? io->vectors->iov_len : MOST_AT_ONCE;
        io_uring_prep_rw(reading ? IORING_OP_READ : IORING_OP_WRITE, sqe, io->fd,
                         io->vectors->iov_base, (unsigned)length, io->offset);
    } else {
        unsigned count = io->vector_count < IOV_MAX ? io->vector_count : IOV_MAX;
        io_uring_prep_rw(reading ? IORING_OP_READV : IORING_OP_WRITEV, sqe, io->fd, io->vectors,
                         count, io->offset);
    }
    if (io->flags & IO_DSYNC)
        sqe->rw_flags = RWF_DSYNC;
}

static void prepare_send(struct io_uring_sqe *sqe, const struct gild_io *io) {
    int flags = MSG_NOSIGNAL | (io->flags & IO_MORE ? MSG_MORE : 0);
    if (io->vector_count == 1)
        io_uring_prep_send(sqe, io->fd, io->vectors->iov_base, io->vectors->iov_len, flags);
    else
        io_uring_prep_sendmsg(sqe, io->fd, &io->message, (unsigned)flags);
}

static void prepare(struct io_uring_sqe *sqe, const struct gild_io *io) {
    switch ((enum io_kind)io->kind) {
    case IO_READ:
    case IO_WRITE:
        prepare_transfer(sqe, io);
        break;
    case IO_FDATASYNC:
        io_uring_prep_fsync(sqe, io->fd, IORING_FSYNC_DATASYNC);
        break;
    case IO_ACCEPT:
        io_uring_prep_accept(sqe, io->fd, NULL, NULL, SOCK_CLOEXEC);
        break;
    case IO_RECV:
        io_uring_prep_recv(sqe, io->fd, io->vectors->iov_base, io->vectors->iov_len, 0);
        break;
    case IO_RECV_SHARED:
        io_uring_prep_recv(sqe, io->fd, NULL, GILD_SHARED_BUFFER_BYTES, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
        sqe->buf_group = BUFFER_GROUP;
        break;
    case IO_SEND:
        prepare_send(sqe, io);
        break;
    case IO_POLL:
        io_uring_prep_poll_add(sqe, io->fd, (unsigned)io->offset);
        break;
    case IO_NONE:
    case IO_TIMEOUT:
        die("an I/O of no kind", EINVAL);
    }
}

static void uring_submit(struct io_backend *backend, struct gild_io *io) {
    struct uring *uring = uring_of(backend);
    struct io_uring_sqe *sqe = take_sqe(uring);
    if (io->flags & IO_POLLING)
        io_uring_prep_poll_add(sqe, io->fd, io->kind == IO_SEND ? POLLOUT : POLLIN);
    else
        prepare(sqe, io);
    io_uring_sqe_set_data(sqe, io);
    uring->in_flight++;
}

static void uring_write_now(struct io_backend *backend, struct gild_io *io) {
    struct uring *uring = uring_of(backend);
    if (io_uring_sq_ready(&uring->ring))
        check_entered(io_uring_submit(&uring->ring));
    ssize_t written = pwritev2(io->fd, io->vectors, 1, (off_t)io->offset, RWF_DSYNC);
    if (written < 0 && errno == EINTR)
        uring_submit(backend, io);
    else
        io_complete(backend, io, written < 0 ? -errno : (int)written);
}

static void submit_retries(struct uring *uring) {
    struct io_queue batch = uring->retry;
    struct gild_io *io;
    uring->retry.first = NULL;
    while ((io = io_queue_pop(&batch))) {
        if (io->flags & IO_CANCELLED)
            io_complete(&uring->base, io, -ECANCELED);
        else
            uring_submit(&uring->base, io);
    }
}

static void uring_cancel(struct io_backend *backend, struct gild_io *io) {
    struct uring *uring = uring_of(backend);
    if (io_queue_remove(&uring->starved, io)) {
        io_complete(backend, io, -ECANCELED);
        return;
    }
    /* Were it in `retry`, this finds nothing, and submit_retries sees the flag. */
    struct io_uring_sqe *sqe = take_sqe(uring);
    io_uring_prep_cancel(sqe, io, 0);
    io_uring_sqe_set_data64(sqe, TAG_IGNORE);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

static void uring_give_back(struct io_backend *backend, unsigned buffer_id) {
    struct uring *uring = uring_of(backend);
    offer_buffer(uring, buffer_id);
    uring->lent--;
    if (uring->starved.first)
        io_queue_push(&uring->retry, io_queue_pop(&uring->starved));
}

/* ---- waiting ------------------------------------------------------------------------------- */

static void arm_wake(struct uring *uring) {
    struct io_uring_sqe *sqe = take_sqe(uring);
    /* Edge-triggered and never read: each write of the eventfd is one completion. */
    io_uring_prep_poll_multishot(sqe, uring->wake_fd, POLLIN);
    io_uring_sqe_set_data64(sqe, TAG_WAKE);
    uring->wake_armed = true;
}

/* Has the kernel something to hand over that it only does when entered? */
static bool kernel_waits(const struct uring *uring) {
    unsigned flags = __atomic_load_n(uring->ring.sq.kflags, __ATOMIC_RELAXED);
    return flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static int enter_until(struct uring *uring, uint64_t deadline_ns) {
    struct io_uring_cqe *cqe;
    uint64_t now_ns = io_monotonic_ns();
    if (now_ns >= deadline_ns)
        return io_uring_submit_and_get_events(&uring->ring);
    uint64_t rest_ns = deadline_ns - now_ns;
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(rest_ns / 1000000000u),
        .tv_nsec = (long long)(rest_ns % 1000000000u),
    };
    return io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, &timeout, NULL);
}

static void uring_wait(struct io_backend *backend, uint64_t deadline_ns) {
    struct uring *uring = uring_of(backend);
    int result = 0;
    if (uring->retry.first)
        submit_retries(uring);
    if (!uring->wake_armed)
        arm_wake(uring);
    if (deadline_ns == 0 || backend->ready.first || io_uring_cq_ready(&uring->ring)) {
        if (io_uring_sq_ready(&uring->ring) || kernel_waits(uring))
            result = io_uring_submit_and_get_events(&uring->ring);
    } else if (deadline_ns == IO_NO_DEADLINE) {
        result = io_uring_submit_and_wait(&uring->ring, 1);
    } else {
        result = enter_until(uring, deadline_ns);
    }
    check_entered(result);
    reap(uring);
}

static void uring_wake(struct io_backend *backend) {
    eventfd_write(uring_of(backend)->wake_fd, 1);
}

static void uring_finish(struct io_backend *backend) {
    struct uring *uring = uring_of(backend);
    while (uring->in_flight) {
        uint64_t until_ns = io_monotonic_ns() + CANCEL_AGAIN_NS;
        struct io_uring_sqe *sqe = take_sqe(uring);
        io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ANY);
        io_uring_sqe_set_data64(sqe, TAG_IGNORE);
        do {
            check_entered(enter_until(uring, until_ns));
            reap(uring);
        } while (uring->in_flight && io_monotonic_ns() < until_ns);
    }
    uring->retry.first = uring->starved.first = NULL;
    if (uring->ring_fd_registered)
        io_uring_unregister_ring_fd(&uring->ring);
}

static uint64_t uring_now_ns(struct io_backend *backend) {
    (void)backend;
    return io_monotonic_ns();
}

const struct io_backend_ops io_uring_ops = {
    .name = "io_uring",
    .create = uring_create,
    .destroy = uring_destroy,
    .start = uring_start,
    .finish = uring_finish,
    .submit = uring_submit,
    .write_now = uring_write_now,
    .cancel = uring_cancel,
    .give_back = uring_give_back,
    .wait = uring_wait,
    .wake = uring_wake,
    .now_ns = uring_now_ns,
};
