/* The work that is measured: which request comes next, for each kind of row. Everything follows
 * from the seed and the ranges of data, so every server gets the same requests. */
#ifndef BENCH_WORK_H
#define BENCH_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "histogram.h"
#include "lane.h"

enum work_kind {
    WORK_WARM,      /* all data, 1 MiB at a time, once */
    WORK_READ4K,    /* random blocks of data */
    WORK_READ1M,    /* all data in order, 1 MiB at a time, round and round */
    WORK_PREPARE,   /* writes the region once, 64 KiB at a time, and flushes */
    WORK_FIRST,     /* random 4 KiB writes, each block once; the next clone when one is full */
    WORK_OVERWRITE, /* random 4 KiB writes in the prepared region */
    WORK_FLUSHED,   /* the same, one at a time, each with a flush of its own */
    WORK_REPLAY,    /* a boot storm: shared reads of 4-64 KiB, own writes of 4-16 KiB */
};

struct work_range {
    uint64_t offset, bytes;
};

struct work_boot {
    uint64_t offset;
    uint32_t bytes;
};

/* What a clone has had written: for checking afterwards, and to keep two writes off one block. */
struct work_clone {
    uint32_t *turns; /* per block: the last write's turn, 0 = never written */
    uint8_t *busy;   /* per block: a write is in flight */
    uint64_t random; /* the clone's own generator */
    uint64_t cursor;
    uint64_t pair_started_ns;
    bool flush_queued;
};

struct work {
    enum work_kind kind;
    uint64_t seed;
    uint64_t size_bytes;
    uint32_t *blocks; /* numbers of all data blocks */
    uint64_t block_count;
    uint32_t *chunks; /* numbers of all 1 MiB chunks with data */
    uint64_t chunk_count;
    struct work_boot *boot;
    uint64_t boot_count;
    uint32_t *order; /* WORK_FIRST: all blocks, shuffled */
    uint64_t region_blocks;
    struct work_clone *clones;
    unsigned clone_count;
    uint8_t *pool;

    /* The run. */
    bool stopping; /* time is up: no more work, flushes only */
    uint64_t end_ns;
    uint64_t operations, bytes, reads;
    struct histogram latencies;
};

/* Reads "offset bytes" lines; without a file all of the disk is data. False after printing why. */
bool work_init(struct work *work, uint64_t seed, uint64_t size_bytes, unsigned clones,
               uint64_t region_bytes, const char *ranges_file);

/* Begins a run of one kind that takes no new work after `seconds` (0: until it is complete). */
void work_begin(struct work *work, enum work_kind kind, double seconds);

/* Fills the next request of this lane; false if there is none (now, or ever). */
bool work_next(struct work *work, struct lane *lane, struct lane_slot *slot);

/* Books a reply. */
void work_done(struct work *work, struct lane *lane, struct lane_slot *slot, uint64_t now_ns);

uint64_t work_now_ns(void);
uint64_t work_random(uint64_t *state);

#endif
