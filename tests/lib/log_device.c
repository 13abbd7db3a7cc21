/* See log_device.h. Everything but wake runs on the loop's thread. */
#include "log_device.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

void log_device_carry_out(struct device *device, struct gild_io *io) {
    ssize_t n = -1;
    errno = 0;
    if (io->kind == IO_FDATASYNC) {
        n = device->fail_flush ? device->fail_flush : fdatasync(io->fd);
    } else if (io->kind == IO_WRITE && device->fail_write) {
        n = device->fail_write;
    } else if (io->kind == IO_WRITE) {
        n = pwritev2(io->fd, io->vectors, (int)io->vector_count, (off_t)io->offset,
                     io->flags & IO_DSYNC ? RWF_DSYNC : 0);
    } else {
        n = preadv(io->fd, io->vectors, (int)io->vector_count, (off_t)io->offset);
    }
    io_complete(&device->base, io, n == -1 && errno ? -errno : (int)n);
}

static void device_submit(struct io_backend *backend, struct gild_io *io) {
    struct device *device = (struct device *)(void *)backend;
    bool flush = io->kind == IO_FDATASYNC, write = io->kind == IO_WRITE;
    device->writes += write;
    device->dsyncs += write && io->flags & IO_DSYNC;
    device->flushes += flush;
    if ((write && device->hold_writes) || (flush && device->hold_flushes))
        io_queue_push(&device->held, io);
    else
        log_device_carry_out(device, io);
}

static void device_nothing(struct io_backend *backend) {
    (void)backend;
}

static void device_cancel(struct io_backend *backend, struct gild_io *io) {
    (void)backend, (void)io;
}

static void device_wait(struct io_backend *backend, uint64_t deadline_ns) {
    struct device *device = (struct device *)(void *)backend;
    pthread_mutex_lock(&device->lock);
    while (!device->wake && !device->base.ready.first && deadline_ns > device->now_ns)
        pthread_cond_wait(&device->woken, &device->lock);
    device->wake = false;
    pthread_mutex_unlock(&device->lock);
}

static void device_wake(struct io_backend *backend) {
    struct device *device = (struct device *)(void *)backend;
    pthread_mutex_lock(&device->lock);
    device->wake = true;
    pthread_cond_signal(&device->woken);
    pthread_mutex_unlock(&device->lock);
}

static uint64_t device_now_ns(struct io_backend *backend) {
    return ((struct device *)(void *)backend)->now_ns;
}

const struct io_backend_ops log_device_ops = {
    .name = "device",
    .destroy = device_nothing,
    .start = device_nothing,
    .finish = device_nothing,
    .submit = device_submit,
    .cancel = device_cancel,
    .wait = device_wait,
    .wake = device_wake,
    .now_ns = device_now_ns,
};
