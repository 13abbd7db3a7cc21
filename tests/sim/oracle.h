/* What a disk may and must hold, kept beside the engine in a flat array: for each sector of 512
 * bytes the values that a reader may find there.
 *
 *   a write is sent:      its value joins what may be found after a power cut
 *   it is acknowledged:   it is what a read finds from now on (D2)
 *   a flush that was sent afterwards is acknowledged: nothing older may be found any more (D1)
 *   after a power cut:    what is found is one of the values that may be, and stays
 *
 * A value says where it belongs: each sector of data carries disk, sector and generation, so a
 * wrong one names its origin. Generation 0 and those of trims and zeroes are zeroes. */
#ifndef GILD_TEST_ORACLE_H
#define GILD_TEST_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#define ORACLE_SECTOR 512u

struct oracle_value {
    uint32_t generation;
    bool zero;
    uint64_t acknowledged; /* the moment; 0: not yet */
};

struct oracle_sector {
    struct oracle_value *values; /* by generation; the first is the oldest that may be found */
    uint32_t count, room;
};

struct oracle {
    uint32_t disk;
    uint32_t sector_count, next_generation;
    struct oracle_sector *sectors;
};

void oracle_init(struct oracle *oracle, uint32_t disk, uint32_t sector_count);

/* Bytes of a generation for sectors first .. first + count - 1. */
void oracle_fill(const struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                 void *out);

/* A write, trim or zeroing is sent; its generation. */
uint32_t oracle_sent(struct oracle *oracle, uint32_t first, uint32_t count, bool zero);
/* It is acknowledged at `moment` (> 0, rising); durable: it had FUA. */
void oracle_acknowledged(struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                         uint64_t moment, bool durable);
/* A flush that was sent at `moment` is acknowledged. */
void oracle_flushed(struct oracle *oracle, uint64_t moment);

/* Is what was read right? Else says on stderr what was found and what may be. With `settle` (after
 * a power cut) any value that may be is right, and is the only one from then on; without, the
 * newest that was acknowledged is, or one that failed since; what a write under way covers must not
 * be read then. */
bool oracle_read(struct oracle *oracle, uint32_t first, uint32_t count, const void *bytes,
                 bool settle);

#endif
