/* One NBD connection with several requests in flight, as lean as a client can be: plain sends and
 * receives, simple replies, payloads sent from where they lie and thrown away when they arrive.
 * A lane belongs to one thread. */
#ifndef BENCH_LANE_H
#define BENCH_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define LANE_BLOCK 4096u
/* The most one write may carry. */
#define LANE_WRITE_BLOCKS 16u
#define LANE_DEPTH_MAX 64u

enum lane_command { LANE_READ = 0, LANE_WRITE = 1, LANE_FLUSH = 3 };

/* What makes a written block's content its own. */
struct lane_stamp {
    uint64_t where;
    uint64_t turn;
};

struct lane_slot {
    uint8_t header[28];
    uint16_t command;
    uint32_t bytes;
    uint64_t offset;
    uint64_t started_ns;
    struct lane_stamp stamps[LANE_WRITE_BLOCKS];
};

struct lane {
    int fd;
    unsigned number; /* which target this is */
    unsigned depth;
    unsigned in_flight;
    uint64_t size_bytes;
    struct lane_slot slots[LANE_DEPTH_MAX];
    unsigned idle[LANE_DEPTH_MAX]; /* stack of free slots */
    unsigned idle_count;

    struct iovec *out; /* unsent, from out_first on */
    unsigned out_first, out_count;
    uint8_t *in;
    size_t in_have;
    struct lane_slot *current; /* whose payload is arriving */
    size_t payload_left;
    uint8_t *copy_to; /* where payloads go; NULL: nowhere */
};

/* Called for each reply; the slot is free again after it. */
typedef void lane_done(void *context, struct lane *lane, struct lane_slot *slot);

/* Connects to `socket` and asks for `export`. Prints why and returns -1 if it can not. */
int lane_open(struct lane *lane, const char *socket, const char *export_name, unsigned depth);
void lane_close(struct lane *lane);

/* Takes a free slot, NULL if `depth` are in flight. */
struct lane_slot *lane_take(struct lane *lane);

/* Queues the slot's request. A write's content is made from slot->stamps and `pool` (see
 * lane_content_offset). */
void lane_queue(struct lane *lane, struct lane_slot *slot, const uint8_t *pool, uint64_t now_ns);

/* Sends what the socket takes without waiting. 0: all sent; 1: some is left; -1: error. */
int lane_send(struct lane *lane);

/* Receives what has come, waiting for some if `wait`, and calls `done` for each reply. 0, or -1
 * after printing why (an error reply of the server is one). */
int lane_receive(struct lane *lane, bool wait, lane_done *done, void *context);

/* A block's content: its stamp, then LANE_BLOCK - 16 bytes of the random pool from here on. */
#define LANE_POOL_BYTES (1u << 20)
size_t lane_content_offset(const struct lane_stamp *stamp);

#endif
