/* The simulated device vtable (io/backend.h): what stands behind the engine's loops in a
 * simulation. A transfer is begun on the simulated disk at once, and ends after a time drawn from
 * the seed, so that completions come in any order. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "io/backend.h"
#include "sim_disk.h"
#include "sim_threads.h"

#define MOST_UNDER_WAY 256u

struct transfer {
    struct gild_io *io;
    uint64_t due_ns;
    uint64_t token; /* of the write or sync */
    long result;
};

struct sim_loop {
    struct io_backend base;
    struct transfer transfers[MOST_UNDER_WAY];
    unsigned count;
    bool woken;
};

static struct sim_loop *sim_loop_of(struct io_backend *backend) {
    return (struct sim_loop *)backend;
}

static int create(struct io_backend **out, const struct io_backend_options *options,
                  struct gild_error *error);

static void destroy(struct io_backend *backend) {
    free(backend);
}

static void start(struct io_backend *backend) {
    (void)backend;
}

static uint64_t some_time(const struct gild_io *io) {
    uint64_t most_ns = io->kind == IO_FDATASYNC ? 800000 : 300000;
    return sim_now_ns() + 5000 + sim_below(most_ns);
}

static void begin(struct transfer *transfer) {
    struct gild_io *io = transfer->io;
    uint64_t offset = io->offset;
    switch ((enum io_kind)io->kind) {
    case IO_READ:
        transfer->result = (long)io->length; /* read when it ends */
        break;
    case IO_WRITE:
        transfer->result = 0;
        for (unsigned i = 0; i < io->vector_count && transfer->result >= 0; i++) {
            /* One vector is what the engine's log writes; more would be several writes. */
            long part = sim_disk_write_begin(SIM_AT_LOOP_WRITE, io->fd, io->vectors[i].iov_base,
                                             io->vectors[i].iov_len, offset, &transfer->token);
            transfer->result = part < 0 ? part : transfer->result + part;
            offset += io->vectors[i].iov_len;
            if (part >= 0 && (size_t)part < io->vectors[i].iov_len)
                break;
        }
        break;
    case IO_FDATASYNC:
        transfer->result = sim_disk_sync_begin(SIM_AT_LOOP_SYNC, io->fd, &transfer->token);
        break;
    default:
        fprintf(stderr, "simulation: a loop does I/O of kind %u\n", io->kind);
        abort();
    }
}

static void end(struct io_backend *backend, struct transfer *transfer) {
    struct gild_io *io = transfer->io;
    if (io->kind == IO_READ) {
        uint64_t offset = io->offset;
        transfer->result = 0;
        for (unsigned i = 0; i < io->vector_count; i++) {
            long part = sim_disk_read(SIM_AT_LOOP_READ, io->fd, io->vectors[i].iov_base,
                                      io->vectors[i].iov_len, offset);
            if (part < 0 && !transfer->result)
                transfer->result = part;
            if (part <= 0)
                break;
            transfer->result += part;
            offset += (uint64_t)part;
            if ((size_t)part < io->vectors[i].iov_len)
                break;
        }
    } else if (io->kind == IO_WRITE && transfer->result >= 0) {
        sim_disk_write_done(io->fd, transfer->token, io->flags & IO_DSYNC);
    } else if (io->kind == IO_FDATASYNC && transfer->result >= 0) {
        sim_disk_sync_done(io->fd, transfer->token);
    }
    io_complete(backend, io, (int)transfer->result);
}

static void submit(struct io_backend *backend, struct gild_io *io) {
    struct sim_loop *loop = sim_loop_of(backend);
    if (loop->count == MOST_UNDER_WAY)
        abort();
    struct transfer transfer = {.io = io, .due_ns = some_time(io)};
    begin(&transfer);
    loop->transfers[loop->count++] = transfer;
}

static void write_now(struct io_backend *backend, struct gild_io *io) {
    struct transfer transfer = {.io = io, .due_ns = some_time(io)};
    begin(&transfer);
    sim_wait(&transfer, transfer.due_ns);
    end(backend, &transfer);
}

static void cancel(struct io_backend *backend, struct gild_io *io) {
    struct sim_loop *loop = sim_loop_of(backend);
    for (unsigned i = 0; i < loop->count; i++)
        if (loop->transfers[i].io == io) {
            loop->transfers[i] = loop->transfers[--loop->count];
            io_complete(backend, io, -ECANCELED);
            return;
        }
}

static void give_back(struct io_backend *backend, unsigned buffer_id) {
    (void)backend, (void)buffer_id;
}

static void end_due(struct io_backend *backend) {
    struct sim_loop *loop = sim_loop_of(backend);
    for (unsigned i = 0; i < loop->count;) {
        if (loop->transfers[i].due_ns > sim_now_ns()) {
            i++;
            continue;
        }
        struct transfer transfer = loop->transfers[i];
        loop->transfers[i] = loop->transfers[--loop->count];
        end(backend, &transfer);
    }
}

static void wait(struct io_backend *backend, uint64_t deadline_ns) {
    struct sim_loop *loop = sim_loop_of(backend);
    end_due(backend);
    if (deadline_ns == 0 || backend->ready.first || loop->woken) {
        sim_yield();
    } else {
        for (unsigned i = 0; i < loop->count; i++)
            if (loop->transfers[i].due_ns < deadline_ns)
                deadline_ns = loop->transfers[i].due_ns;
        sim_wait(loop, deadline_ns);
        end_due(backend);
    }
    loop->woken = false;
}

static void wake(struct io_backend *backend) {
    sim_loop_of(backend)->woken = true;
    sim_wake(backend);
}

static void finish(struct io_backend *backend) {
    struct sim_loop *loop = sim_loop_of(backend);
    while (loop->count)
        end(backend, &loop->transfers[--loop->count]);
}

static uint64_t now_ns(struct io_backend *backend) {
    (void)backend;
    return sim_now_ns();
}

static const struct io_backend_ops sim_ops = {
    .name = "simulated",
    .create = create,
    .destroy = destroy,
    .start = start,
    .finish = finish,
    .submit = submit,
    .write_now = write_now,
    .cancel = cancel,
    .give_back = give_back,
    .wait = wait,
    .wake = wake,
    .now_ns = now_ns,
};

static int create(struct io_backend **out, const struct io_backend_options *options,
                  struct gild_error *error) {
    (void)options, (void)error;
    struct sim_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return -ENOMEM;
    loop->base.ops = &sim_ops;
    *out = &loop->base;
    return 0;
}

/* In place of the engine's own choice of a backend. */
int __wrap_gild_loop_create(struct gild_loop **out, const struct gild_loop_options *options,
                            struct gild_error *error) {
    struct io_backend *backend;
    (void)options;
    int result = create(&backend, NULL, error);
    return result ? result : io_loop_create_over(out, backend);
}
