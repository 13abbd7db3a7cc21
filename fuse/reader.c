/* Requests out of /dev/fuse.
 *
 * The kernel's queue is read without blocking, on a reactor, right where the disks live: a cached
 * read is answered before the next one is read, and no other thread is woken. One reader has the
 * right to read at a time (a second one would only be woken in vain with each request); if all
 * requests of late were for disks of one other reactor, the right moves there.
 *
 *   poll the queue -> a turn: read and start up to TURN_REQUESTS -> queue empty?  yes: poll
 *        ^                                                             no: another turn
 *        `--- the pool has requests again <- none left: park
 *
 * Invariants: `mount->reading` is true as long as any reader has work to come (a poll, a posted
 * task, or being parked with its right); a reader that stops keeps neither a request nor a buffer.
 * Threads: each reader on its loop; resume, start and stop from any. Failure: ENODEV and
 * ECONNABORTED are the end of the session; any other error of the device ends it too, and is
 * logged. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "mount.h"

/* Requests in one turn: other doors share the loop. */
#define TURN_REQUESTS 16u
/* So many requests in a row for another reactor's disks, and the right to read moves there. */
#define LURE_REQUESTS 64u

static void reader_poll(struct reader *reader);

static void leave(struct reader *reader) {
    struct gild_mount *mount = reader->mount;
    if (reader->spare)
        request_pool_give(&mount->pool, reader->spare);
    if (reader->large)
        request_pool_give_large(&mount->pool, reader->large);
    reader->spare = NULL;
    reader->large = NULL;
    pthread_mutex_lock(&mount->reading_lock);
    mount->reading = false;
    pthread_cond_signal(&mount->reading_changed);
    pthread_mutex_unlock(&mount->reading_lock);
}

/* Hands the right to read to another reader; what this one has in hand goes along. */
static void pass_on(struct reader *reader, struct reader *to) {
    to->spare = reader->spare;
    to->large = reader->large;
    reader->spare = NULL;
    reader->large = NULL;
    reader->lured = to->lured = 0;
    atomic_store(&reader->mount->holder, to);
    gild_loop_post(to->loop, &to->task);
}

/* ---- one message --------------------------------------------------------------------------------
 */

void mount_reply_error(struct gild_mount *mount, uint64_t unique, int error) {
    struct fuse_out_header out = {.len = sizeof(out), .error = error, .unique = unique};
    ssize_t sent = write(mount->fd, &out, sizeof(out));
    (void)sent;
}

/* Reads the next message into the spare request; bytes, or -errno. */
static ssize_t receive(struct reader *reader) {
    struct request *request = reader->spare;
    struct iovec vectors[] = {
        {request->head.bytes, sizeof(request->head.bytes)},
        {request->data, REQUEST_DATA_BYTES},
        {reader->large, LARGE_BYTES},
    };
    ssize_t bytes = readv(reader->mount->fd, vectors, 3);
    return bytes < 0 ? -errno : bytes;
}

/* Copies a message out of the spare request, for the name threads. */
static void forward(struct reader *reader, size_t bytes) {
    struct gild_mount *mount = reader->mount;
    struct request *request = reader->spare;
    struct name_message *message = malloc(sizeof(*message) + bytes);
    if (!message) {
        uint32_t opcode = request->head.in.opcode;
        if (opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET)
            mount_reply_error(mount, request->head.in.unique, -ENOMEM);
        return;
    }
    message->bytes = bytes;
    const void *parts[] = {request->head.bytes, request->data, reader->large};
    const size_t sizes[] = {sizeof(request->head.bytes), REQUEST_DATA_BYTES, LARGE_BYTES};
    uint8_t *to = message->data;
    for (unsigned i = 0; i < 3 && bytes; i++) {
        size_t take = bytes < sizes[i] ? bytes : sizes[i];
        memcpy(to, parts[i], take);
        to += take;
        bytes -= take;
    }
    names_post(mount, message);
}

/* Counts requests for other reactors' disks; the right moves when one of them has all the work. */
static void note_target(struct reader *reader, const struct gild_loop *loop) {
    if (loop == reader->loop) {
        reader->lured = 0;
        return;
    }
    if (!reader->lured || reader->lured_by->loop != loop) {
        struct gild_mount *mount = reader->mount;
        unsigned i = 0;
        while (i + 1 < mount->reader_count && mount->readers[i].loop != loop)
            i++;
        reader->lured_by = &mount->readers[i];
        reader->lured = 0;
    }
    reader->lured++;
}

static void start_data(struct reader *reader) {
    struct request *request = reader->spare;
    union {
        uint64_t number;
        struct handle *handle;
    } file = {.number = request->head.read.fh}; /* every data request begins with it */
    request->unique = request->head.in.unique;
    request->handle = file.handle;
    atomic_fetch_add_explicit(&file.handle->references, 1, memory_order_relaxed);
    if (request->head.in.len > sizeof(request->head.bytes) + REQUEST_DATA_BYTES) {
        request->large = reader->large;
        reader->large = NULL;
    }
    reader->spare = NULL;
    note_target(reader, file.handle->loop);
    request_start(request);
}

static void dispatch(struct reader *reader, size_t bytes) {
    switch (reader->spare->head.in.opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FSYNC:
    case FUSE_FLUSH:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
        start_data(reader);
        return;
    case FUSE_INTERRUPT: /* requests are short; their answers come anyway */
        return;
    default:
        forward(reader, bytes);
    }
}

/* ---- turns --------------------------------------------------------------------------------------
 */

static void end_session(struct reader *reader, int error) {
    if (error != -ENODEV && error != -ECONNABORTED)
        gild_log(GILD_LOG_ERROR, "mount %s: cannot read requests: %s", reader->mount->directory,
                 strerror(-error));
    atomic_store(&reader->mount->ended, true);
    leave(reader);
}

static void turn(struct reader *reader) {
    struct gild_mount *mount = reader->mount;
    for (unsigned i = 0; i < TURN_REQUESTS; i++) {
        if (atomic_load_explicit(&mount->stopping, memory_order_relaxed)) {
            leave(reader);
            return;
        }
        if (!request_pool_take(&mount->pool, &reader->spare, &reader->large))
            return; /* parked: reader_resume posts the task again */
        ssize_t bytes = receive(reader);
        if (bytes == -EAGAIN) {
            reader_poll(reader);
            return;
        }
        if (bytes == -EINTR || bytes == -ENOENT) /* ENOENT: that request was given up */
            continue;
        if (bytes < 0) {
            end_session(reader, (int)bytes);
            return;
        }
        dispatch(reader, (size_t)bytes);
    }
    if (reader->lured >= LURE_REQUESTS)
        pass_on(reader, reader->lured_by);
    else
        gild_loop_post(reader->loop, &reader->task);
}

static void run_turn(struct gild_task *task) {
    turn(gild_container_of(task, struct reader, task));
}

static void polled(struct gild_io *io) {
    struct reader *reader = gild_container_of(io, struct reader, poll);
    reader->polling = false;
    turn(reader);
}

static void reader_poll(struct reader *reader) {
    if (reader->lured >= LURE_REQUESTS) {
        pass_on(reader, reader->lured_by);
        return;
    }
    reader->polling = true;
    gild_io_poll(reader->loop, &reader->poll, reader->mount->fd, POLLIN);
}

void reader_resume(struct gild_mount *mount) {
    struct reader *reader = atomic_load(&mount->holder);
    gild_loop_post(reader->loop, &reader->task);
}

/* ---- start and stop
 * ------------------------------------------------------------------------------ */

static void stop_polling(struct gild_task *task) {
    struct reader *reader = gild_container_of(task, struct reader, stop_task);
    struct gild_mount *mount = reader->mount;
    if (reader->polling)
        gild_io_cancel(reader->loop, &reader->poll);
    pthread_mutex_lock(&mount->reading_lock);
    mount->stops_left--;
    pthread_cond_signal(&mount->reading_changed);
    pthread_mutex_unlock(&mount->reading_lock);
}

int readers_start(struct gild_mount *mount) {
    mount->reader_count = gild_store_reactor_count(mount->store);
    mount->readers = calloc(mount->reader_count, sizeof(*mount->readers));
    if (!mount->readers)
        return -ENOMEM;
    for (unsigned i = 0; i < mount->reader_count; i++) {
        struct reader *reader = &mount->readers[i];
        reader->mount = mount;
        reader->loop = gild_store_reactor(mount->store, i);
        reader->task.run = run_turn;
        reader->stop_task.run = stop_polling;
        reader->poll.done = polled;
    }
    mount->reading = true;
    atomic_store(&mount->holder, &mount->readers[0]);
    gild_loop_post(mount->readers[0].loop, &mount->readers[0].task);
    return 0;
}

/* A reader sees `stopping` at its next request; one that polls is told. One that is parked for want
 * of requests is resumed when they come home, which they do. */
void readers_stop(struct gild_mount *mount) {
    atomic_store(&mount->stopping, true);
    if (!mount->readers)
        return;
    pthread_mutex_lock(&mount->reading_lock);
    mount->stops_left = mount->reader_count;
    pthread_mutex_unlock(&mount->reading_lock);
    for (unsigned i = 0; i < mount->reader_count; i++)
        gild_loop_post(mount->readers[i].loop, &mount->readers[i].stop_task);
    pthread_mutex_lock(&mount->reading_lock);
    while (mount->reading || mount->stops_left)
        pthread_cond_wait(&mount->reading_changed, &mount->reading_lock);
    pthread_mutex_unlock(&mount->reading_lock);
}
