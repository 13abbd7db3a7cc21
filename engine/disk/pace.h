/* The pace of a long reader: at most so many bytes in a second, whatever the device could. The
 * clock and the waiting are its owner's, so that a test can count instead of waiting. One thread.
 */
#ifndef GILD_DISK_PACE_H
#define GILD_DISK_PACE_H

#include <stdint.h>

/* What may be taken at once after a rest. */
#define PACE_BURST_NS 100000000u

struct pace {
    uint64_t rate_bytes; /* in a second, 0 = no bound */
    uint64_t (*now_ns)(void *context);
    int (*wait)(void *context, uint64_t ns); /* non-zero ends the reading */
    void *context;
    uint64_t paid_ns; /* when all that was taken is paid for; 0 at first */
};

/* Before so many bytes (below 2^33) are read: waits until they are due. 0, or what `wait` said. */
int pace_take(struct pace *pace, uint64_t bytes);

#endif
