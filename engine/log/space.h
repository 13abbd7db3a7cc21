/* How much room the log has left, as a level: what is said to the admin, and what guests feel.
 *
 *            low           slow           0 segments left for guests' data
 *   PLENTY --------> LOW --------> SLOW --------> FULL      the ways back a fifth further on
 *          <--------     <--------      <--------
 *
 * LOW is told in the log; at SLOW each block that a guest writes costs it time, the more the less
 * is left; at FULL data is refused with ENOSPC, while reads, flushes, trims, deletes and
 * checkpoints live on the reserve (D7).
 *
 * Threads: the owner's lock. */
#ifndef GILD_LOG_SPACE_H
#define GILD_LOG_SPACE_H

#include <stdint.h>

enum gild_space_level {
    GILD_SPACE_PLENTY,
    GILD_SPACE_LOW,
    GILD_SPACE_SLOW,
    GILD_SPACE_FULL,
};

#define GILD_SPACE_TAKES 8u

/* Zeroed: PLENTY, nothing seen. */
struct gild_space {
    enum gild_space_level level;
    uint64_t available, total; /* segments: for guests' data still; of the log when it is full */
    uint64_t taken_ns[GILD_SPACE_TAKES]; /* when the last ones were taken, a ring */
    uint64_t takes;
};

/* The level with so much left of so much. */
enum gild_space_level gild_space_judge(struct gild_space *space, uint64_t available,
                                       uint64_t total);
/* A segment was taken for guests' data. */
void gild_space_taken(struct gild_space *space, uint64_t now_ns);
/* Seconds until nothing is left, if guests go on as they did with the last few segments; UINT64_MAX
 * if that can not be told. */
uint64_t gild_space_seconds_left(const struct gild_space *space, uint64_t now_ns);
/* What a block of guests' data has to wait for, in nanoseconds; 0 but at SLOW. */
uint32_t gild_space_price_ns(const struct gild_space *space);
/* "plenty", "low", "throttled", "full". */
const char *gild_space_name(enum gild_space_level level);

#endif
