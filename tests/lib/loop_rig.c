/* A loop on a thread of its own (loop_rig.h). Everything a test hands over is handed over by a
 * posted task and a semaphore, so that a race detector sees what the loop itself orders and no
 * more. */
#include "loop_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/queue.h"

static void *run(void *argument) {
    gild_loop_run(argument);
    return NULL;
}

void loop_rig_start(struct loop_rig *rig, const struct gild_loop_options *options) {
    struct gild_error error;
    if (gild_loop_create(&rig->loop, options, &error)) {
        fprintf(stderr, "%s\n", error.message);
        abort();
    }
    if (pthread_create(&rig->thread, NULL, run, rig->loop))
        abort();
}

void loop_rig_stop(struct loop_rig *rig) {
    gild_loop_stop(rig->loop);
    pthread_join(rig->thread, NULL);
    gild_loop_destroy(rig->loop);
}

struct call {
    struct gild_task task;
    void (*function)(void *context);
    void *context;
    sem_t ended;
};

static void run_call(struct gild_task *task) {
    struct call *call = gild_container_of(task, struct call, task);
    call->function(call->context);
    sem_post(&call->ended);
}

static void wait_for(sem_t *semaphore) {
    while (sem_wait(semaphore))
        ;
}

void loop_rig_call(struct loop_rig *rig, void (*function)(void *context), void *context) {
    struct call call = {.task.run = run_call, .function = function, .context = context};
    sem_init(&call.ended, 0, 0);
    gild_loop_post(rig->loop, &call.task);
    wait_for(&call.ended);
    sem_destroy(&call.ended);
}

/* ---- I/Os ---------------------------------------------------------------------------------- */

static void done(struct gild_io *io) {
    struct rig_io *rig_io = gild_container_of(io, struct rig_io, io);
    rig_io->done_count++;
    if (!gild_loop_is_current(rig_io->rig->loop))
        rig_io->off_thread = true;
    sem_post(&rig_io->ended);
}

void rig_io_init(struct rig_io *rig_io, struct loop_rig *rig, int fd) {
    memset(rig_io, 0, sizeof *rig_io);
    rig_io->io.done = done;
    rig_io->rig = rig;
    rig_io->fd = fd;
    sem_init(&rig_io->ended, 0, 0);
}

void rig_io_fini(struct rig_io *rig_io) {
    sem_destroy(&rig_io->ended);
}

int rig_io_wait(struct rig_io *rig_io) {
    wait_for(&rig_io->ended);
    return rig_io->off_thread ? -EXDEV : rig_io->io.result;
}

struct start {
    struct rig_io *to;
    void *buffer;
    size_t length;
    uint64_t offset;
    unsigned count;
    int number;
    bool flag;
};

#define START(name, ...)                                                     \
    static void start_##name(void *context) {                                \
        struct start *s = context;                                           \
        gild_io_##name(s->to->rig->loop, &s->to->io, s->to->fd __VA_ARGS__); \
    }

START(read, , s->buffer, s->length, s->offset)
START(readv, , s->to->vectors, s->count, s->offset)
START(write, , s->buffer, s->length, s->offset, s->flag)
START(fdatasync)
START(accept)
START(recv, , s->buffer, s->length)
START(recv_shared)
START(send, , s->to->vectors, s->count, s->flag)
START(poll, , (short)s->number)

static void start_timeout(void *context) {
    struct start *s = context;
    gild_io_timeout(s->to->rig->loop, &s->to->io, s->offset);
}

static void start_cancel(void *context) {
    struct rig_io *to = context;
    gild_io_cancel(to->rig->loop, &to->io);
}

static void start_give_back(void *context) {
    struct rig_io *to = context;
    gild_loop_give_back(to->rig->loop, &to->io);
}

void rig_read(struct rig_io *rig_io, void *buffer, size_t length, uint64_t offset) {
    struct start s = {.to = rig_io, .buffer = buffer, .length = length, .offset = offset};
    loop_rig_call(rig_io->rig, start_read, &s);
}

void rig_readv(struct rig_io *rig_io, unsigned count, uint64_t offset) {
    struct start s = {.to = rig_io, .count = count, .offset = offset};
    loop_rig_call(rig_io->rig, start_readv, &s);
}

void rig_write(struct rig_io *rig_io, const void *buffer, size_t length, uint64_t offset,
               bool dsync) {
    struct start s = {.to = rig_io,
                      .buffer = (void *)(uintptr_t)buffer,
                      .length = length,
                      .offset = offset,
                      .flag = dsync};
    loop_rig_call(rig_io->rig, start_write, &s);
}

void rig_fdatasync(struct rig_io *rig_io) {
    struct start s = {.to = rig_io};
    loop_rig_call(rig_io->rig, start_fdatasync, &s);
}

void rig_accept(struct rig_io *rig_io) {
    struct start s = {.to = rig_io};
    loop_rig_call(rig_io->rig, start_accept, &s);
}

void rig_recv(struct rig_io *rig_io, void *buffer, size_t length) {
    struct start s = {.to = rig_io, .buffer = buffer, .length = length};
    loop_rig_call(rig_io->rig, start_recv, &s);
}

void rig_recv_shared(struct rig_io *rig_io) {
    struct start s = {.to = rig_io};
    loop_rig_call(rig_io->rig, start_recv_shared, &s);
}

void rig_give_back(struct rig_io *rig_io) {
    loop_rig_call(rig_io->rig, start_give_back, rig_io);
}

void rig_send(struct rig_io *rig_io, unsigned count, bool more) {
    struct start s = {.to = rig_io, .count = count, .flag = more};
    loop_rig_call(rig_io->rig, start_send, &s);
}

void rig_poll(struct rig_io *rig_io, short events) {
    struct start s = {.to = rig_io, .number = events};
    loop_rig_call(rig_io->rig, start_poll, &s);
}

void rig_timeout(struct rig_io *rig_io, uint64_t nanoseconds) {
    struct start s = {.to = rig_io, .offset = nanoseconds};
    loop_rig_call(rig_io->rig, start_timeout, &s);
}

void rig_cancel(struct rig_io *rig_io) {
    loop_rig_call(rig_io->rig, start_cancel, rig_io);
}
