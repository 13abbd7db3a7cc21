/* What a disk may and must hold, kept beside the engine in a flat array: for each sector of 512
 * bytes the values that a reader may find there.
 *
 *   a write is sent:      its value joins what may be found after a power cut
 *   it is acknowledged:   it is what a read finds from now on (D2)
 *   a flush that was sent afterwards is acknowledged: nothing older may be found any more (D1)
 *   after a power cut:    what is found is one of the values that may be, and stays
 *
 * A value says where it belongs: each sector of data carries disk, sector and generation, so a
 * wrong one names its origin. Generation 0 is what the disk was cloned from. */
#ifndef GILD_TEST_ORACLE_H
#define GILD_TEST_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#include "content.h"

#define ORACLE_SECTOR 512u

enum oracle_kind { ORACLE_DATA, ORACLE_HOLE, ORACLE_ZERO, ORACLE_ORIGIN };

struct oracle_value {
    uint32_t generation;
    uint8_t kind;
    bool sure;             /* no other value could have been found in its place */
    uint64_t acknowledged; /* the moment; 0: not yet */
};

struct oracle_sector {
    struct oracle_value *values; /* by generation; the first is the oldest that may be found */
    uint32_t count, room;
    bool any; /* could not be read when older values may have come back */
};

struct oracle {
    uint32_t disk;
    uint32_t sector_count, next_generation;
    struct content origin; /* all zero: a disk that stands on nothing */
    struct oracle_sector *sectors;
};

void oracle_init(struct oracle *oracle, uint32_t disk, uint32_t sector_count,
                 struct content origin);
void oracle_fini(struct oracle *oracle);

/* Bytes of a generation for sectors first .. first + count - 1. */
void oracle_fill(const struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                 void *out);

/* A write, trim (HOLE) or zeroing that stays allocated (ZERO) is sent; its generation. */
uint32_t oracle_sent(struct oracle *oracle, uint32_t first, uint32_t count, enum oracle_kind kind);
/* It is acknowledged at `moment` (> 0, rising); durable: it had FUA. */
void oracle_acknowledged(struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                         uint64_t moment, bool durable);
/* A flush that was sent at `moment` is acknowledged. */
void oracle_flushed(struct oracle *oracle, uint64_t moment);

/* The store was opened anew: any value that may be can be found from now on, until a read has seen
 * which. */
void oracle_power_on(struct oracle *oracle);

/* Is what was read right? Else says on stderr what was found and what may be. What a write under
 * way covers must not be read.
 *
 *   ORACLE_CURRENT   the newest that was acknowledged, or one that failed since
 *   ORACLE_SETTLE    after a power cut: any that may be; it is the only one from then on
 *   ORACLE_STALE     so, and older ones of that sector too: the end of the log was damaged on the
 *                    device, which nothing can tell from a tail that was never flushed */
enum oracle_mode { ORACLE_CURRENT, ORACLE_SETTLE, ORACLE_STALE };
bool oracle_read(struct oracle *oracle, uint32_t first, uint32_t count, const void *bytes,
                 enum oracle_mode mode);

/* An ORACLE_STALE read of these failed: older values may be found until one is acknowledged. */
void oracle_unread(struct oracle *oracle, uint32_t first, uint32_t count);

/* Is this block status right? hole, zero: as reported of the sectors. What is reported as zero must
 * be; what was zeroed to stay allocated is no hole; what one op trimmed, in whole blocks, is one.
 */
bool oracle_status(const struct oracle *oracle, uint32_t first, uint32_t count, bool hole,
                   bool zero);

#endif
