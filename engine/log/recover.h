/* Reading the log back after a crash: which batches are there, in which order, and where the tail
 * ends.
 *
 * For each stream: batches above the checkpoint must follow each other without a gap, each carrying
 * the check of the one before. The first that is missing or bad ends the log if no later flush is
 * known to have covered it (it is the tail: never flushed, so never promised); if one is, the store
 * has rotted, and that is said, not skipped: only a repair goes on past it, and it says what is
 * lost. Blocking, before reactors run. */
#ifndef GILD_LOG_RECOVER_H
#define GILD_LOG_RECOVER_H

#include "log/segments.h"

struct gild_recover_stream {
    uint64_t stream;
    uint64_t checkpoint_lsn;
    /* Found: */
    uint64_t durable_lsn; /* known to have been flushed */
    uint64_t last_lsn;    /* that was replayed */
};

/* One batch in order. header: only as far as its entries go. in_doubt: above every durable LSN, so
 * it was read from the device but may lie in a volatile cache: copy it before anything depends on
 * it (D5). payload: header->payload_blocks blocks, verified (but in a repair, where a batch is not
 * in doubt); NULL where nobody needs it: the batch is not in doubt, and this is no repair. A
 * non-zero return ends the recovery and is returned. */
typedef int gild_recover_visit(void *context, const struct gild_batch_header *header,
                               const uint8_t *payload, bool in_doubt);

struct gild_recover_totals {
    uint64_t segments, batches, blocks;
};

/* Batches first .. last of a stream are lost although they were flushed: their headers are rotten,
 * or their segment is missing. filter: of the deltas that they can have been of, NULL: of any. */
typedef void gild_recover_lost(void *context, uint64_t stream, uint64_t first, uint64_t last,
                               const uint64_t *filter);
struct gild_recover_repair {
    gild_recover_lost *lost;
    void *context;
    /* A segment is missing that may have been written to: a stream whose end is not surely seen has
     * lost what followed. */
    bool segment_missing;
    bool only_look; /* nothing is to be replayed yet: segments are not offered */
};

/* What the log says, read once: so that rot is found before anything is written (D6), and what was
 * read need not be read again when it is replayed. */
struct gild_recovered;

/* All segments must have been added. Sets stream, first_lsn, last_lsn, taken and closed of those
 * that had been begun. `streams` is borrowed until gild_recovered_free. */
int gild_log_look(struct gild_recovered **out, struct gild_segments *segments,
                  const uint8_t store_id[16], struct gild_recover_stream *streams,
                  size_t stream_count, struct gild_error *error);
void gild_recovered_free(struct gild_recovered *recovered); /* NULL is fine */

/* Goes over it in order and sets what the streams were found to hold. visit NULL: only looks; else
 * segments that nobody had begun are offered first. repair NULL: GILD_CORRUPT on rot. Once with a
 * visit; before that as often as wanted. */
int gild_log_replay(struct gild_recovered *recovered, gild_recover_visit *visit, void *context,
                    const struct gild_recover_repair *repair, struct gild_recover_totals *totals,
                    struct gild_error *error);

/* Visits what a gild_log_replay has gone over, without its payload. */
int gild_log_again(const struct gild_recovered *recovered, gild_recover_visit *visit,
                   void *context);

/* Both at once, for who keeps nothing: gild_log_look, then gild_log_replay. */
int gild_log_recover(struct gild_segments *segments, const uint8_t store_id[16],
                     struct gild_recover_stream *streams, size_t stream_count,
                     gild_recover_visit *visit, void *context, struct gild_recover_totals *totals,
                     struct gild_error *error);

/* The same for a repair, which goes on past rot: batches with rotten payload are visited like whole
 * ones (a block that does not fit its check reads as EIO), and those that are lost are told. */
int gild_log_recover_rest(struct gild_segments *segments, const uint8_t store_id[16],
                          struct gild_recover_stream *streams, size_t stream_count,
                          gild_recover_visit *visit, void *context,
                          const struct gild_recover_repair *repair,
                          struct gild_recover_totals *totals, struct gild_error *error);

#endif
