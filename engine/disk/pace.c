/* See pace.h. A token bucket, kept as the time at which it will be full again: each byte moves that
 * time on by its price, and it is never further back than a burst before now. */
#include "disk/pace.h"

int pace_take(struct pace *pace, uint64_t bytes) {
    if (!pace->rate_bytes)
        return 0;
    uint64_t now = pace->now_ns(pace->context);
    if (pace->paid_ns + PACE_BURST_NS < now)
        pace->paid_ns = now - PACE_BURST_NS;
    if (!pace->paid_ns)
        pace->paid_ns = now;
    uint64_t whole = bytes / pace->rate_bytes, rest = bytes % pace->rate_bytes;
    pace->paid_ns += whole * 1000000000u;
    pace->paid_ns += (uint64_t)((double)rest * 1e9 / (double)pace->rate_bytes);
    return pace->paid_ns > now ? pace->wait(pace->context, pace->paid_ns - now) : 0;
}
