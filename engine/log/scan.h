/* The first pass of a recovery: which batches are there. Each segment that was not yet full at the
 * last checkpoint is read once, by several threads and in large pieces, and what was read is
 * checked as it comes; the batches' headers are kept, their payload is not. Blocking, before
 * reactors run. */
#ifndef GILD_LOG_SCAN_H
#define GILD_LOG_SCAN_H

#include "log/segments.h"

struct log_batch {
    struct gild_segment *segment;
    /* The front of the header as it was read: nothing lies behind its entries, and of a batch that
     * the checkpoint holds no entries are kept. */
    const struct gild_batch_header *header;
    int payload; /* 0: fits its checks (or is not needed); -EBADMSG: does not; else: is not readable
                  */
};

struct log_scan {
    struct log_batch *batches; /* by stream and LSN */
    size_t count;
    uint64_t segments; /* that had been begun */
    struct log_chunk *chunks;
};

/* The last LSN of a stream that is in the maps; false: nothing is known of the stream, and what is
 * there of it does not matter. Any thread. */
typedef bool log_scan_settled(const void *context, uint64_t stream, uint64_t *lsn);

/* Sets stream, first_lsn, last_lsn, taken and closed of segments that had been begun. 0 or -errno.
 */
int log_scan_run(struct gild_segments *segments, const uint8_t store_id[16],
                 log_scan_settled *settled, const void *context, struct log_scan *scan);
void log_scan_free(struct log_scan *scan);

/* Does the payload fit the checks of the header's entries, and is there one of each that has one?
 */
bool log_payload_good(const struct gild_batch_header *header, const uint8_t *payload);

#endif
