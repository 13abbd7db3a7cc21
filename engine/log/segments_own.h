/* Between segments.c (the table, taking and giving back) and prepare.c (space, and the thread that
 * makes segments ahead). */
#ifndef GILD_LOG_SEGMENTS_OWN_H
#define GILD_LOG_SEGMENTS_OWN_H

#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "log/segments.h"

#define SEGMENTS_LEAF_SLOTS 1024u
#define SEGMENTS_TOP_SLOTS (1u << 20)
#define SEGMENTS_NAME_BYTES 32u
#define SEGMENTS_ZERO_BYTES (1u << 20)

struct segments_slots {
    struct gild_segment *_Atomic slot[SEGMENTS_LEAF_SLOTS];
};

/* Files whose name changes or goes while no lock is held: no list has them meanwhile. */
struct segments_passing {
    uint64_t serial[2]; /* 0: none */
    struct segments_passing *next;
};

struct gild_segments {
    struct gild_segments_options options;
    char directory[3072];
    int folder;
    struct segments_slots *_Atomic *top;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* of the preparer */
    pthread_t thread;
    bool running, stopping;
    int no_space;   /* 0 or -errno of the last try to prepare one for guests' data */
    int no_reserve; /* the same for the reserve, which may take more of the host */
    struct gild_segment *ready, **ready_tail;
    unsigned ready_count;
    struct gild_segment *spare; /* emptied files that wait for a new serial */
    unsigned spare_count;
    struct segments_passing *passing;
    uint64_t window_ns;                  /* when `taken_lately` began; CLOCK_MONOTONIC */
    unsigned taken_lately, taken_before; /* segments, in this window and in the one before */
    struct gild_segment_waiter *waiters;
    uint64_t count;
    uint64_t blocks; /* of all segments in the table, and of the spare ones */
    uint64_t ready_blocks;
    _Atomic uint64_t lowest, highest; /* serials ever in the table */
    bool measured;                    /* headroom is known */
    uint64_t headroom;                /* segments that may still be made for guests' data */
    struct gild_space space;
    _Atomic bool tight;
    _Atomic uint32_t price_ns;
    void *zeroes;
};

static inline void segments_name(uint64_t serial, char name[SEGMENTS_NAME_BYTES]) {
    snprintf(name, SEGMENTS_NAME_BYTES, "%016llx.seg", (unsigned long long)serial);
}

static inline uint64_t segments_clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t segments_bytes_of(uint64_t blocks) {
    return blocks * GILD_LOG_BLOCK;
}

/* segments.c; lock held. From the one to the other gild_segments_own() knows these files. */
void segments_pass(struct gild_segments *segments, struct segments_passing *passing);
void segments_passed(struct gild_segments *segments, struct segments_passing *passing);
/* Lock held. */
int segments_table_put(struct gild_segments *segments, struct gild_segment *segment);

/* prepare.c; lock held. The level of space anew, after what is ready or may be has changed. */
void segments_judge_space(struct gild_segments *segments);
/* Lock held: tells all who wait for a segment. */
void segments_wake_waiters(struct gild_segments *segments);
/* Lock held, given up meanwhile: makes one segment ready, or notes why not. */
void segments_prepare_one(struct gild_segments *segments, enum gild_segment_use use);
/* The thread. */
void *segments_preparer(void *context);

#endif
