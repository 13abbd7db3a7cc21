/* A synchronous writer of batches: the keeper's, for the nodes of a checkpoint and for the tail
 * that a recovery copies. The same format as the reactors' log, without its asynchronous half. One
 * thread. */
#ifndef GILD_LOG_WRITER_H
#define GILD_LOG_WRITER_H

#include "log/segments.h"

struct gild_log_writer {
    struct gild_segments *segments;
    uint8_t store_id[16];
    uint64_t stream, lsn, last_check, durable;
    uint64_t last_filter[GILD_FILTER_WORDS];
    bool holds_nodes;
    struct gild_segment *segment; /* NULL until the first append */
    uint32_t at;
    struct gild_batch_header *header; /* followed by the payload; NULL when not initialised */
    bool open;
    bool unsynced;
};

int gild_log_writer_init(struct gild_log_writer *writer, struct gild_segments *segments,
                         const uint8_t store_id[16], uint64_t stream, bool holds_nodes);
void gild_log_writer_fini(struct gild_log_writer *writer);

/* Where the next payload block will be. Blocking; -ENOSPC, -EIO. */
int gild_log_writer_next(struct gild_log_writer *writer, uint64_t *place);

/* Copies one payload block into the open batch and says where it will be. Blocking; -ENOSPC, -EIO.
 */
int gild_log_writer_append(struct gild_log_writer *writer, enum gild_entry_kind kind,
                           uint64_t delta, uint64_t block, const void *payload, uint64_t *place,
                           uint32_t *check);

/* Writes the open batch and makes everything appended durable. After an error nothing appended
 * since the last successful flush may be referred to. */
int gild_log_writer_flush(struct gild_log_writer *writer);

#endif
