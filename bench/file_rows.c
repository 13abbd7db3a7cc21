/* Reads of a mounted file: O_DIRECT, io_uring, one thread. A slot's number is its completion's user
 * data. Any error or short read ends the run with -1. */
#include "file_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES (1u << 20)

uint64_t file_rows_size(const char *path) {
    struct stat status;
    if (stat(path, &status)) {
        perror(path);
        return 0;
    }
    return (uint64_t)status.st_size;
}

static void refill(struct io_uring *ring, int fd, struct work *work, struct lane *lane,
                   uint8_t *buffers) {
    struct lane_slot *slot;
    while ((slot = lane_take(lane)) != NULL) {
        unsigned number = (unsigned)(slot - lane->slots);
        if (!work_next(work, lane, slot)) {
            lane->idle[lane->idle_count++] = number;
            return;
        }
        struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
        io_uring_prep_read(sqe, fd, buffers + (size_t)number * BUFFER_BYTES, slot->bytes,
                           slot->offset);
        io_uring_sqe_set_data64(sqe, number);
        slot->started_ns = work_now_ns();
        lane->in_flight++;
    }
}

static int reap(struct io_uring *ring, struct work *work, struct lane *lane) {
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    int result = 0;
    uint64_t now = work_now_ns();
    io_uring_for_each_cqe(ring, head, cqe) {
        struct lane_slot *slot = &lane->slots[io_uring_cqe_get_data64(cqe)];
        if (cqe->res != (int)slot->bytes) {
            fprintf(stderr, "read at %llu: %s\n", (unsigned long long)slot->offset,
                    cqe->res < 0 ? strerror(-cqe->res) : "short");
            result = -1;
        }
        lane->in_flight--;
        lane->idle[lane->idle_count++] = (unsigned)(slot - lane->slots);
        work_done(work, lane, slot, now);
        seen++;
    }
    io_uring_cq_advance(ring, seen);
    return result;
}

int file_rows_run(const char *path, unsigned depth, struct work *work) {
    struct io_uring ring;
    struct lane lane = {.depth = depth, .idle_count = depth};
    int result = -1, fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    uint8_t *buffers = aligned_alloc(4096, (size_t)depth * BUFFER_BYTES);
    if (fd < 0 || !buffers || io_uring_queue_init(LANE_DEPTH_MAX, &ring, 0)) {
        perror(path);
        goto out;
    }
    for (unsigned i = 0; i < depth; i++) {
        lane.idle[i] = i;
    }
    refill(&ring, fd, work, &lane, buffers);
    result = 0;
    while (lane.in_flight && !result) {
        int rc = io_uring_submit_and_wait(&ring, 1);
        if (rc < 0 && rc != -EINTR) {
            fprintf(stderr, "io_uring: %s\n", strerror(-rc));
            result = -1;
        } else {
            result = reap(&ring, work, &lane);
            refill(&ring, fd, work, &lane, buffers);
        }
    }
    io_uring_queue_exit(&ring);
out:
    if (fd >= 0) {
        close(fd);
    }
    free(buffers);
    return result;
}
