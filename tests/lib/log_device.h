/* A loop backend over real files that counts writes and flushes, can hold them back, and can make
 * them fail. Time stands still unless the test moves it. */
#ifndef GILD_TEST_LOG_DEVICE_H
#define GILD_TEST_LOG_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/backend.h"

struct device {
    struct io_backend base;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    bool wake;
    _Atomic uint64_t now_ns;
    /* The loop's thread. */
    unsigned writes, dsyncs, flushes; /* asked for */
    bool hold_writes, hold_flushes;
    struct io_queue held;
    int fail_write, fail_flush; /* the error of the next ones */
};

/* Does what was held. On the loop's thread. */
void log_device_carry_out(struct device *device, struct gild_io *io);

extern const struct io_backend_ops log_device_ops;

#endif
