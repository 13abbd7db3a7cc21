/* A loop on a thread of its own, driven step by step from a test's main thread. */
#ifndef GILD_TEST_LOOP_RIG_H
#define GILD_TEST_LOOP_RIG_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>

#include "gild/loop.h"

struct loop_rig {
    struct gild_loop *loop;
    pthread_t thread;
};

/* Aborts the test program if the loop can not be made. */
void loop_rig_start(struct loop_rig *rig, const struct gild_loop_options *options);
void loop_rig_stop(struct loop_rig *rig); /* stops, joins, destroys */

/* Runs the function on the loop's thread and returns when it has run. */
void loop_rig_call(struct loop_rig *rig, void (*function)(void *context), void *context);

/* An I/O that a test can wait for. */
struct rig_io {
    struct gild_io io;
    struct loop_rig *rig;
    sem_t ended;
    unsigned done_count;
    bool off_thread; /* done was called elsewhere than on the loop's thread */
    int fd;
    struct iovec vectors[4];
};

void rig_io_init(struct rig_io *rig_io, struct loop_rig *rig, int fd);
void rig_io_fini(struct rig_io *rig_io);
int rig_io_wait(struct rig_io *rig_io); /* until done; gives the result */

/* Each starts one I/O on the loop's thread; wait for it with rig_io_wait. */
void rig_read(struct rig_io *rig_io, void *buffer, size_t length, uint64_t offset);
void rig_readv(struct rig_io *rig_io, unsigned count, uint64_t offset); /* of rig_io->vectors */
void rig_write(struct rig_io *rig_io, const void *buffer, size_t length, uint64_t offset,
               bool dsync);
void rig_fdatasync(struct rig_io *rig_io);
void rig_accept(struct rig_io *rig_io);
void rig_recv(struct rig_io *rig_io, void *buffer, size_t length);
void rig_recv_shared(struct rig_io *rig_io);
void rig_give_back(struct rig_io *rig_io);
void rig_send(struct rig_io *rig_io, unsigned count, bool more); /* of rig_io->vectors */
void rig_poll(struct rig_io *rig_io, short events);
void rig_timeout(struct rig_io *rig_io, uint64_t nanoseconds);
void rig_cancel(struct rig_io *rig_io);

#endif
