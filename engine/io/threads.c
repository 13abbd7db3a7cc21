/* The backend for hosts that refuse io_uring (io/backend.h): a pool of threads for files, epoll for
 * sockets.
 *
 * Files: what a turn starts is gathered and handed to the pool under one lock; a worker makes the
 * blocking call and pushes the I/O on `finished`, a stack that the loop takes whole. The push that
 * finds it empty wakes the loop, by an eventfd that is edge-triggered and never read.
 *
 * Sockets: each call is tried at once without blocking; -EAGAIN puts the I/O in its descriptor's
 * watch. A descriptor with waiters is armed in epoll, one shot, for what they wait for. Waiters of
 * one direction are served in order.
 *
 * Invariants
 * - armed is not zero only while the watch has waiters: a descriptor that is closed and used again
 *   by another socket finds nothing stale (epoll itself forgets closed descriptors).
 * - starved holds receives that have data but no buffer; it is empty while a buffer is free.
 *
 * As with io_uring, an I/O on a descriptor must be cancelled and done before the descriptor is
 * closed.
 *
 * Threads: the loop's; workers touch only what the pool's lock and `finished` hand them. Failure:
 * creation reports; no memory for a watch is that I/O's -ENOMEM. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "io/backend.h"

#define MOST_WORKERS 8
#define LEAST_WORKERS 4
#define EVENTS_AT_ONCE 64
#define STARVED 1 /* what no system call returns: waits for a shared buffer */

/* Who waits for one descriptor. */
struct watch {
    struct io_queue readers;
    struct io_queue writers;
    struct io_queue polls;
    uint32_t armed;
    bool registered;
};

struct threads {
    struct io_backend base;
    int epoll_fd;
    int wake_fd;
    struct io_queue gathered; /* files: to be handed to the pool */
    struct io_queue again;    /* sockets: to be tried by the next wait */
    struct watch *watches;    /* by descriptor */
    unsigned watch_count;

    char *buffers;
    uint16_t *free_ids;
    unsigned buffer_count;
    unsigned free_count;
    struct io_queue starved;

    _Atomic(struct gild_io *) finished; /* workers push, the loop takes */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wanted;
    struct io_queue work;
    bool closing;
    unsigned worker_count; /* the creator's and finish's */
    pthread_t workers[MOST_WORKERS];
};

static struct threads *threads_of(struct io_backend *backend) {
    return (struct threads *)(void *)backend;
}

/* ---- the pool ------------------------------------------------------------------------------ */

static ssize_t write_durably(const struct gild_io *io, int count) {
    ssize_t written = pwritev2(io->fd, io->vectors, count, (off_t)io->offset, RWF_DSYNC);
    if (written >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
        return written;
    written = pwritev(io->fd, io->vectors, count, (off_t)io->offset);
    if (written > 0 && fdatasync(io->fd) < 0)
        return -1;
    return written;
}

static int run_file_io(const struct gild_io *io) {
    int count = io->vector_count < IOV_MAX ? (int)io->vector_count : IOV_MAX;
    ssize_t result;
    if (io->kind == IO_READ)
        result = preadv(io->fd, io->vectors, count, (off_t)io->offset);
    else if (io->kind == IO_FDATASYNC)
        result = fdatasync(io->fd);
    else if (io->flags & IO_DSYNC)
        result = write_durably(io, count);
    else
        result = pwritev(io->fd, io->vectors, count, (off_t)io->offset);
    return result < 0 ? -errno : (int)result;
}

static void hand_over_finished(struct threads *threads, struct gild_io *io) {
    struct gild_io *head = atomic_load_explicit(&threads->finished, memory_order_relaxed);
    do
        io->next = head;
    while (!atomic_compare_exchange_weak_explicit(&threads->finished, &head, io,
                                                  memory_order_acq_rel, memory_order_relaxed));
    if (!head)
        eventfd_write(threads->wake_fd, 1);
}

static void *work(void *argument) {
    struct threads *threads = argument;
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    pthread_setname_np(pthread_self(), "gild-io");
    pthread_mutex_lock(&threads->lock);
    while (!threads->closing) {
        struct gild_io *io = io_queue_pop(&threads->work);
        if (!io) {
            pthread_cond_wait(&threads->wanted, &threads->lock);
            continue;
        }
        pthread_mutex_unlock(&threads->lock);
        io->result = run_file_io(io);
        hand_over_finished(threads, io);
        pthread_mutex_lock(&threads->lock);
    }
    pthread_mutex_unlock(&threads->lock);
    return NULL;
}

static void hand_over_gathered(struct threads *threads) {
    struct gild_io *io;
    unsigned count = 0;
    pthread_mutex_lock(&threads->lock);
    for (; (io = io_queue_pop(&threads->gathered)); count++)
        io_queue_push(&threads->work, io);
    pthread_mutex_unlock(&threads->lock);
    while (count--)
        pthread_cond_signal(&threads->wanted);
}

/* Completes what workers have done, oldest first. */
static void take_finished(struct threads *threads) {
    struct gild_io *newest =
        atomic_exchange_explicit(&threads->finished, NULL, memory_order_acq_rel);
    struct gild_io *oldest = NULL, *next;
    for (struct gild_io *io = newest; io; io = next) {
        next = io->next;
        io->next = oldest;
        oldest = io;
    }
    for (struct gild_io *io = oldest; io; io = next) {
        next = io->next;
        io_complete(&threads->base, io, io->result);
    }
}

/* Ends the pool: workers finish the call they are in. Idempotent. */
static void join_workers(struct threads *threads) {
    pthread_mutex_lock(&threads->lock);
    threads->closing = true;
    pthread_cond_broadcast(&threads->wanted);
    pthread_mutex_unlock(&threads->lock);
    while (threads->worker_count)
        pthread_join(threads->workers[--threads->worker_count], NULL);
}

static int start_workers(struct threads *threads) {
    sigset_t all, before;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned wanted = processors < LEAST_WORKERS ? LEAST_WORKERS : (unsigned)processors;
    int result = 0;
    if (wanted > MOST_WORKERS)
        wanted = MOST_WORKERS;
    /* Signals are for the process's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!result && threads->worker_count < wanted) {
        result = pthread_create(&threads->workers[threads->worker_count], NULL, work, threads);
        if (!result)
            threads->worker_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads->worker_count ? 0 : -result;
}

/* ---- life ---------------------------------------------------------------------------------- */

static size_t buffers_bytes(const struct threads *threads) {
    return (size_t)threads->buffer_count * GILD_SHARED_BUFFER_BYTES;
}

static int init_buffers(struct threads *threads, unsigned count) {
    threads->free_ids = calloc(count, sizeof *threads->free_ids);
    if (!threads->free_ids)
        return -ENOMEM;
    threads->buffer_count = count;
    /* Address space: a buffer takes memory when it is first received into. */
    threads->buffers = mmap(NULL, buffers_bytes(threads), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (threads->buffers == MAP_FAILED) {
        threads->buffers = NULL;
        return -errno;
    }
    /* The lowest id on top, so that few buffers are touched. */
    for (unsigned id = 0; id < count; id++)
        threads->free_ids[id] = (uint16_t)(count - 1 - id);
    threads->free_count = count;
    return 0;
}

static void threads_destroy(struct io_backend *backend) {
    struct threads *threads = threads_of(backend);
    join_workers(threads);
    if (threads->buffers)
        munmap(threads->buffers, buffers_bytes(threads));
    free(threads->free_ids);
    free(threads->watches);
    if (threads->wake_fd >= 0)
        close(threads->wake_fd);
    if (threads->epoll_fd >= 0)
        close(threads->epoll_fd);
    pthread_cond_destroy(&threads->wanted);
    pthread_mutex_destroy(&threads->lock);
    free(threads);
}

static int init_epoll(struct threads *threads) {
    threads->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    threads->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (threads->epoll_fd < 0 || threads->wake_fd < 0)
        return -errno;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = threads->wake_fd};
    return epoll_ctl(threads->epoll_fd, EPOLL_CTL_ADD, threads->wake_fd, &event) < 0 ? -errno : 0;
}

static int threads_create(struct io_backend **out, const struct io_backend_options *options,
                          struct gild_error *error) {
    struct threads *threads = calloc(1, sizeof *threads);
    if (!threads)
        return gild_fail(error, GILD_FAILED, ENOMEM, "No memory for an I/O loop.");
    threads->base.ops = &io_threads_ops;
    threads->epoll_fd = threads->wake_fd = -1;
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->wanted, NULL);
    int result = init_epoll(threads);
    if (!result)
        result = init_buffers(threads, options->shared_buffers);
    if (!result)
        result = start_workers(threads);
    if (result) {
        threads_destroy(&threads->base);
        return gild_fail(error, GILD_FAILED, -result,
                         "Can not set up an I/O loop with threads: %s; raise the limits of open "
                         "files, threads and memory.",
                         strerror(-result));
    }
    *out = &threads->base;
    return 0;
}

static void threads_start(struct io_backend *backend) {
    (void)backend; /* nothing here is bound to the loop's thread */
}

static void threads_finish(struct io_backend *backend) {
    struct threads *threads = threads_of(backend);
    join_workers(threads);
    threads->gathered.first = threads->again.first = threads->starved.first = NULL;
}

/* ---- sockets ------------------------------------------------------------------------------- */

static int poll_now(int fd, short events) {
    struct pollfd poll_fd = {.fd = fd, .events = events};
    int result = poll(&poll_fd, 1, 0);
    if (result < 0)
        return -errno;
    if (poll_fd.revents & POLLNVAL)
        return -EBADF;
    return result ? poll_fd.revents : -EAGAIN;
}

static int try_accept(int fd) {
    /* accept has no flag for "do not wait": the listening socket itself must have it. */
    int mode = fcntl(fd, F_GETFL);
    if (mode < 0 || (!(mode & O_NONBLOCK) && fcntl(fd, F_SETFL, mode | O_NONBLOCK) < 0))
        return -errno;
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    return accepted < 0 ? -errno : accepted;
}

static int try_recv_shared(struct threads *threads, struct gild_io *io) {
    if (!threads->free_count) {
        int ready = poll_now(io->fd, POLLIN);
        return ready < 0 ? ready : STARVED;
    }
    unsigned id = threads->free_ids[threads->free_count - 1];
    char *buffer = threads->buffers + (size_t)id * GILD_SHARED_BUFFER_BYTES;
    ssize_t received = recv(io->fd, buffer, GILD_SHARED_BUFFER_BYTES, MSG_DONTWAIT);
    if (received < 0)
        return -errno;
    if (received > 0) {
        threads->free_count--;
        io->buffer_id = (uint16_t)id;
        io->buffer = buffer;
        io->flags |= IO_LENT;
    }
    return (int)received;
}

/* The system call, without waiting. *starved: what is missing is a shared buffer. */
static int try_once(struct threads *threads, struct gild_io *io, bool *starved) {
    ssize_t result;
    switch ((enum io_kind)io->kind) {
    case IO_ACCEPT:
        return try_accept(io->fd);
    case IO_RECV:
        result = recv(io->fd, io->vectors->iov_base, io->vectors->iov_len, MSG_DONTWAIT);
        return result < 0 ? -errno : (int)result;
    case IO_RECV_SHARED:
        result = try_recv_shared(threads, io);
        *starved = result == STARVED && !(io->flags & IO_LENT);
        return (int)result;
    case IO_SEND:
        result = sendmsg(io->fd, &io->message,
                         MSG_DONTWAIT | MSG_NOSIGNAL | (io->flags & IO_MORE ? MSG_MORE : 0));
        return result < 0 ? -errno : (int)result;
    default:
        return poll_now(io->fd, (short)io->offset);
    }
}

/* False: it would have to wait. Else it is complete, or starved. */
static bool try_socket(struct threads *threads, struct gild_io *io) {
    bool starved = false;
    int result;
    do
        result = try_once(threads, io, &starved);
    while (result == -EINTR);
    if (result == -EAGAIN)
        return false;
    if (starved)
        io_queue_push(&threads->starved, io);
    else
        io_complete(&threads->base, io, result);
    return true;
}

/* ---- watches ------------------------------------------------------------------------------- */

static struct watch *watch_of(struct threads *threads, int fd) {
    unsigned wanted = (unsigned)fd + 1;
    if (wanted > threads->watch_count) {
        unsigned count = threads->watch_count ? threads->watch_count : 64;
        while (count < wanted)
            count *= 2;
        struct watch *grown = realloc(threads->watches, count * sizeof *grown);
        if (!grown)
            return NULL;
        memset(grown + threads->watch_count, 0, (count - threads->watch_count) * sizeof *grown);
        threads->watches = grown;
        threads->watch_count = count;
    }
    return &threads->watches[fd];
}

static struct io_queue *queue_for(struct watch *watch, const struct gild_io *io) {
    if (io->kind == IO_SEND)
        return &watch->writers;
    return io->kind == IO_POLL ? &watch->polls : &watch->readers;
}

/* Asks epoll for what the watch's waiters need. 0 or -errno. */
static int arm(struct threads *threads, struct watch *watch, int fd) {
    uint32_t events = 0;
    if (watch->readers.first)
        events |= EPOLLIN;
    if (watch->writers.first)
        events |= EPOLLOUT;
    for (struct gild_io *io = watch->polls.first; io; io = io->next)
        events |= (uint32_t)io->offset;
    if (!events && !watch->polls.first)
        return 0;
    if (watch->armed && (events & ~watch->armed) == 0)
        return 0;
    struct epoll_event event = {.events = events | EPOLLONESHOT, .data.fd = fd};
    int how = watch->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int result = epoll_ctl(threads->epoll_fd, how, fd, &event);
    if (result < 0 && (errno == ENOENT || errno == EEXIST)) {
        how = errno == ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
        result = epoll_ctl(threads->epoll_fd, how, fd, &event);
    }
    if (result < 0)
        return -errno;
    watch->registered = true;
    watch->armed = events | EPOLLONESHOT;
    return 0;
}

static void start_socket(struct threads *threads, struct gild_io *io) {
    struct watch *watch = io->fd < 0 ? NULL : watch_of(threads, io->fd);
    if (!watch) {
        io_complete(&threads->base, io, io->fd < 0 ? -EBADF : -ENOMEM);
        return;
    }
    struct io_queue *queue = queue_for(watch, io);
    if (io->kind == IO_POLL || !queue->first)
        if (try_socket(threads, io))
            return;
    io_queue_push(queue, io);
    int result = arm(threads, watch, io->fd);
    if (result) {
        io_queue_remove(queue, io);
        io_complete(&threads->base, io, result);
    }
}

static void serve_in_order(struct threads *threads, struct io_queue *queue) {
    while (queue->first) {
        struct gild_io *io = io_queue_pop(queue), *rest = queue->first;
        if (try_socket(threads, io))
            continue;
        io->next = rest;
        if (!rest)
            queue->last = io;
        queue->first = io;
        return;
    }
}

static void serve_event(struct threads *threads, int fd, uint32_t events) {
    struct watch *watch = &threads->watches[fd];
    watch->armed = 0;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        serve_in_order(threads, &watch->readers);
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        serve_in_order(threads, &watch->writers);
    struct io_queue polls = watch->polls;
    struct gild_io *io;
    watch->polls.first = NULL;
    while ((io = io_queue_pop(&polls)))
        if (!try_socket(threads, io))
            io_queue_push(&watch->polls, io);
    /* It was armed before, so that this can only fail for a descriptor closed under its waiters. */
    arm(threads, watch, fd);
}

/* ---- the vtable ---------------------------------------------------------------------------- */

static void threads_submit(struct io_backend *backend, struct gild_io *io) {
    struct threads *threads = threads_of(backend);
    if (io->kind == IO_READ || io->kind == IO_WRITE || io->kind == IO_FDATASYNC)
        io_queue_push(&threads->gathered, io);
    else
        start_socket(threads, io);
}

static bool cancel_socket(struct threads *threads, struct gild_io *io) {
    if (io_queue_remove(&threads->starved, io) || io_queue_remove(&threads->again, io))
        return true;
    if (io->fd < 0 || (unsigned)io->fd >= threads->watch_count)
        return false;
    struct watch *watch = &threads->watches[io->fd];
    if (!io_queue_remove(queue_for(watch, io), io))
        return false;
    if (!watch->readers.first && !watch->writers.first && !watch->polls.first)
        watch->armed = 0;
    return true;
}

static void threads_cancel(struct io_backend *backend, struct gild_io *io) {
    struct threads *threads = threads_of(backend);
    bool found;
    if (io->kind == IO_READ || io->kind == IO_WRITE || io->kind == IO_FDATASYNC) {
        found = io_queue_remove(&threads->gathered, io);
        if (!found) {
            pthread_mutex_lock(&threads->lock);
            found = io_queue_remove(&threads->work, io);
            pthread_mutex_unlock(&threads->lock);
        }
    } else {
        found = cancel_socket(threads, io);
    }
    if (found)
        io_complete(backend, io, -ECANCELED);
}

static void threads_give_back(struct io_backend *backend, unsigned buffer_id) {
    struct threads *threads = threads_of(backend);
    threads->free_ids[threads->free_count++] = (uint16_t)buffer_id;
    if (threads->starved.first)
        io_queue_push(&threads->again, io_queue_pop(&threads->starved));
}

/* Those that were starved; one that needs no buffer after all leaves its place to the next. */
static void try_again(struct threads *threads) {
    struct gild_io *io;
    while ((io = io_queue_pop(&threads->again))) {
        start_socket(threads, io);
        if (!threads->again.first && threads->free_count && threads->starved.first)
            io_queue_push(&threads->again, io_queue_pop(&threads->starved));
    }
}

/* Milliseconds to sleep, rounded up: a timer is never early. */
static int sleep_ms(uint64_t deadline_ns) {
    uint64_t now_ns;
    if (deadline_ns == 0)
        return 0;
    if (deadline_ns == IO_NO_DEADLINE)
        return -1;
    now_ns = io_monotonic_ns();
    if (now_ns >= deadline_ns)
        return 0;
    uint64_t rest_ms = (deadline_ns - now_ns + 999999u) / 1000000u;
    return rest_ms > INT_MAX ? INT_MAX : (int)rest_ms;
}

static void threads_wait(struct io_backend *backend, uint64_t deadline_ns) {
    struct threads *threads = threads_of(backend);
    struct epoll_event events[EVENTS_AT_ONCE];
    if (threads->gathered.first)
        hand_over_gathered(threads);
    try_again(threads);
    if (backend->ready.first)
        deadline_ns = 0;
    int count = epoll_wait(threads->epoll_fd, events, EVENTS_AT_ONCE, sleep_ms(deadline_ns));
    for (int i = 0; i < count; i++)
        if (events[i].data.fd != threads->wake_fd)
            serve_event(threads, events[i].data.fd, events[i].events);
    take_finished(threads);
}

static void threads_wake(struct io_backend *backend) {
    eventfd_write(threads_of(backend)->wake_fd, 1);
}

static uint64_t threads_now_ns(struct io_backend *backend) {
    (void)backend;
    return io_monotonic_ns();
}

const struct io_backend_ops io_threads_ops = {
    .name = "threads",
    .create = threads_create,
    .destroy = threads_destroy,
    .start = threads_start,
    .finish = threads_finish,
    .submit = threads_submit,
    .cancel = threads_cancel,
    .give_back = threads_give_back,
    .wait = threads_wait,
    .wake = threads_wake,
    .now_ns = threads_now_ns,
};
