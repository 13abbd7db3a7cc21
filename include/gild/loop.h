/* The loop: one thread, one queue of I/O, no locks.
 *
 * A reactor is a thread that runs one loop. Requests are structs embedded in the caller's own
 * objects; the loop never allocates for them. `done` callbacks and tasks run on the loop's thread,
 * from the top of the loop only, never from inside the call that started the I/O.
 *
 * One turn of the loop:
 *
 *      +-> run posted tasks -> run completions -> run deferred tasks -> submit + wait --+
 *      |                                                                               |
 *      +-------------------------------------------------------------------------------+
 *
 * Two backends stand behind this header: io_uring, and a thread pool with epoll where io_uring is
 * refused (containers, kernel.io_uring_disabled). Callers can not tell them apart but by speed.
 *
 * Threads: everything is called on the loop's own thread unless it says "any thread". */
#ifndef GILD_LOOP_H
#define GILD_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "gild/error.h"

struct gild_loop;

enum gild_loop_backend { GILD_LOOP_AUTO = 0, GILD_LOOP_URING, GILD_LOOP_THREADS };

struct gild_loop_options {
    enum gild_loop_backend backend; /* AUTO: io_uring, else threads (says so once in the log) */
    unsigned entries;               /* submission queue size, 0 = 1024 */
    unsigned shared_buffers;        /* 64 KiB receive buffers lent by gild_io_recv_shared; 0 = 64 */
};

/* A piece of work for the loop's thread. Embedded, one place in one queue at a time. */
struct gild_task {
    struct gild_task *next; /* the loop's */
    void (*run)(struct gild_task *task);
};

/* One I/O. Zero it once, set `done`, hand it to one gild_io_* call; it belongs to the loop until
 * `done` is called, which is the loop's last touch (done may start it again or free it). */
struct gild_io {
    void (*done)(struct gild_io *io);
    int result;   /* bytes, a file descriptor (accept), 0, or -errno */
    void *buffer; /* recv_shared: the lent buffer, else as given */

    /* The loop's own. */
    struct gild_io *next;
    uint8_t kind;
    uint8_t flags;
    uint16_t buffer_id;
    int fd;
    uint64_t offset;
    size_t length;
    size_t moved; /* bytes of a file transfer already done (a short one is resumed) */
    struct iovec one;
    struct iovec *vectors;
    unsigned vector_count;
    struct msghdr message;
    struct timespec deadline;
    void *backend;
};

#define GILD_SHARED_BUFFER_BYTES (64u << 10)

int gild_loop_create(struct gild_loop **out, const struct gild_loop_options *options,
                     struct gild_error *error); /* any thread */
void gild_loop_destroy(struct gild_loop *loop); /* any thread, after run has returned */

/* Runs on the calling thread until gild_loop_stop. The caller makes the thread. Sets
 * PR_SET_IO_FLUSHER on the thread where the kernel allows it. */
void gild_loop_run(struct gild_loop *loop);
void gild_loop_stop(struct gild_loop *loop); /* any thread */

/* Which backend serves this loop: "io_uring" or "threads". Any thread. */
const char *gild_loop_backend_name(const struct gild_loop *loop);

/* True on the thread that runs this loop. Any thread. */
bool gild_loop_is_current(const struct gild_loop *loop);

/* Queues the task for the loop's thread and wakes it if it sleeps. Any thread; lock-free for the
 * caller but for the wake-up; FIFO per posting thread. */
void gild_loop_post(struct gild_loop *loop, struct gild_task *task);

/* Runs the task once at the end of this turn, after all completions in hand (this is where replies
 * and log batches are gathered into one submission). Tasks deferred by deferred tasks run in the
 * same turn. */
void gild_loop_defer(struct gild_loop *loop, struct gild_task *task);

/* CLOCK_MONOTONIC in nanoseconds as of the start of this turn. */
uint64_t gild_loop_now_ns(const struct gild_loop *loop);

/* Files. A short transfer is resumed: result is the whole length, less only at end of file, or
 * -errno. Buffers and vectors stay the caller's and must outlive the I/O; vectors may be changed by
 * the loop when it resumes a short transfer. */
void gild_io_read(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer, size_t length,
                  uint64_t offset);
void gild_io_readv(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                   unsigned count, uint64_t offset);
/* dsync: durable (RWF_DSYNC) when it completes. */
void gild_io_write(struct gild_loop *loop, struct gild_io *io, int fd, const void *buffer,
                   size_t length, uint64_t offset, bool dsync);
/* The same with dsync, done on the spot: the loop blocks for it, at the gain of two wake-ups. For a
 * lone write on a device known to be quick, when nobody else waits for this loop. `done` comes in
 * the next turn. */
void gild_io_write_now(struct gild_loop *loop, struct gild_io *io, int fd, const void *buffer,
                       size_t length, uint64_t offset);
void gild_io_fdatasync(struct gild_loop *loop, struct gild_io *io, int fd);

/* Sockets. Results are those of the system call; a short send or receive is the caller's to go on
 * with. */
void gild_io_accept(struct gild_loop *loop, struct gild_io *io, int fd); /* one; close-on-exec */
void gild_io_recv(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer, size_t length);
/* Receives into a buffer that the loop lends (up to GILD_SHARED_BUFFER_BYTES): io->buffer; an idle
 * connection holds no memory. Give it back with gild_loop_give_back once read. When all are lent
 * out, the receive waits for one. On result <= 0 no buffer is lent. */
void gild_io_recv_shared(struct gild_loop *loop, struct gild_io *io, int fd);
void gild_loop_give_back(struct gild_loop *loop, struct gild_io *io);
/* sendmsg with MSG_NOSIGNAL; more: MSG_MORE. */
void gild_io_send(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                  unsigned count, bool more);
void gild_io_poll(struct gild_loop *loop, struct gild_io *io, int fd, short events); /* one shot */

void gild_io_timeout(struct gild_loop *loop, struct gild_io *io, uint64_t nanoseconds);
/* Asks for an I/O's early end; its done still comes, with -ECANCELED if it was in time. */
void gild_io_cancel(struct gild_loop *loop, struct gild_io *io);

#endif
