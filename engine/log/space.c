/* Levels of space. See space.h for the diagram.
 *
 * A store is LOW when a sixteenth of its log is left (two segments at least), SLOW at a
 * thirty-second, but never more than eight segments: what a throttle buys is time to delete
 * something, and half a GiB at a few MB/s is that. */
#include "log/space.h"

#include "base/bytes.h"

#define LOW_SHARE 16u
#define LOW_LEAST 2u
#define SLOW_SHARE 32u
#define SLOW_MOST 8u
#define BLOCK_NS 32000u /* at the threshold: 128 MB/s for each reactor */

static uint64_t low_of(uint64_t total) {
    return gild_max_u64(LOW_LEAST, total / LOW_SHARE);
}

static uint64_t slow_of(uint64_t total) {
    return gild_max_u64(1, gild_min_u64(SLOW_MOST, total / SLOW_SHARE));
}

static enum gild_space_level plain_level(uint64_t available, uint64_t total) {
    if (!available)
        return GILD_SPACE_FULL;
    if (available <= slow_of(total))
        return GILD_SPACE_SLOW;
    return available <= low_of(total) ? GILD_SPACE_LOW : GILD_SPACE_PLENTY;
}

enum gild_space_level gild_space_judge(struct gild_space *space, uint64_t available,
                                       uint64_t total) {
    enum gild_space_level level = plain_level(available, total);
    if (level < space->level) { /* better: only if it is so by a margin, or a store hovers */
        uint64_t margin = gild_max_u64(1, available / 5);
        level = plain_level(available - gild_min_u64(margin, available - 1), total);
        if (level > space->level)
            level = space->level;
    }
    space->level = level;
    space->available = available;
    space->total = total;
    return level;
}

void gild_space_taken(struct gild_space *space, uint64_t now_ns) {
    space->taken_ns[space->takes++ % GILD_SPACE_TAKES] = now_ns;
}

uint64_t gild_space_seconds_left(const struct gild_space *space, uint64_t now_ns) {
    if (space->takes < 2)
        return UINT64_MAX;
    uint64_t known = gild_min_u64(space->takes, GILD_SPACE_TAKES);
    uint64_t oldest_ns = space->taken_ns[(space->takes - known) % GILD_SPACE_TAKES];
    return (now_ns - oldest_ns) / known * space->available / 1000000000u;
}

uint32_t gild_space_price_ns(const struct gild_space *space) {
    if (space->level != GILD_SPACE_SLOW)
        return 0;
    uint64_t left = gild_max_u64(1, space->available);
    return (uint32_t)(BLOCK_NS * gild_max_u64(1, slow_of(space->total) / left));
}

const char *gild_space_name(enum gild_space_level level) {
    static const char *const names[] = {"plenty", "low", "throttled", "full"};
    return names[level];
}
