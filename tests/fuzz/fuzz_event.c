/* libFuzzer entry: a slot of the file of events. The check is made right, so that what is behind it
 * is reached. What is accepted is what its encoder writes, and is text without NULs. */
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "disk/events.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t slot[EVENT_BYTES] = {0}, again[EVENT_BYTES];
    static struct gild_event event;
    if (size > EVENT_BYTES - 8)
        return 0;
    if (gild_event_decode(&event, slot)) /* zeroes are none */
        FUZZ_MUST(false);
    memcpy(slot + 8, data, size);
    gild_put_le64(slot, XXH3_64bits_withSeed(slot + 8, EVENT_BYTES - 8, 0x53544e455645ull));
    if (!gild_event_decode(&event, slot))
        return 0;
    FUZZ_MUST(event.kind < GILD_EVENT_KINDS && event.sequence);
    FUZZ_MUST(strlen(gild_event_name(event.kind)) > 0);
    gild_event_encode(&event, again);
    FUZZ_MUST(gild_event_decode(&event, again));
    return 0;
}
