/* The write log of one reactor: a stream of batches into segments.
 *
 *   append --> open batch --(full, aged, or a sync wants it)--> sealed, one O_DIRECT write -->
 * written |                                                                       |
 *                 `-- read back from memory (gild_log_peek) until its buffer is reused    | flush
 *                                                                                         v
 *                                                                                      durable
 *
 * A write is acknowledged when its bytes are in the open batch, as a disk with a write cache does
 * it; a sync is done when one device flush has covered all that was appended before it. Syncs that
 * come together share the flush; a lone batch with nothing undurable before it is written with
 * RWF_DSYNC, so that write and flush are one request. Where flushes have followed lone writes one
 * after another, the next lone write goes to the device before its flush is asked for.
 *
 * Threads: the reactor's only. Appending allocates nothing. After a failed write or flush the log
 * is dead (D5): appends and syncs give -EIO for ever, peeks go on. */
#ifndef GILD_LOG_LOG_H
#define GILD_LOG_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/loop.h"
#include "log/format.h"
#include "log/segments.h"

struct gild_log;

struct gild_log_options {
    struct gild_loop *loop;
    struct gild_segments *segments;
    uint8_t store_id[16];
    uint64_t stream; /* never used before */
    /* Is a flush all that this loop has to do? Then a lone batch may be written on the spot. */
    bool (*quiet)(void *context);
    void *context;
    unsigned buffers; /* batches in memory, each GILD_BATCH_BYTES; 0 = 64 */
};

int gild_log_create(struct gild_log **out, const struct gild_log_options *options);
/* Nothing may be in flight (sync first) and nothing pinned. */
void gild_log_destroy(struct gild_log *log);

/* ---- appending ---------------------------------------------------------------------------------
 */

struct gild_log_waiter {
    struct gild_task task; /* posted to the log's loop */
    struct gild_log_waiter *next;
    uint64_t target; /* the log's */
    int error;       /* of a sync */
};

/* Is there room for one more entry, with a block of data or without (a mark)? 0; -EAGAIN: the
 * waiter will be told when to ask again; -ENOSPC; -EIO (the log is dead). On a full store marks may
 * use a segment of the reserve, data may not (D7: trims work on a full store); on one that is
 * nearly full data has to wait its turn (gild_segments_price_ns). */
int gild_log_room(struct gild_log *log, bool data, struct gild_log_waiter *waiter);

/* After gild_log_room: where the next data block's 4 KiB go. Fill it, then gild_log_data. */
void *gild_log_slot(struct gild_log *log);
void gild_log_data(struct gild_log *log, uint64_t delta, uint64_t block, uint64_t *place,
                   uint32_t *check);
/* The same for a block that was written `age_s` seconds ago and is only moved. */
void gild_log_moved(struct gild_log *log, uint64_t delta, uint64_t block, uint32_t age_s,
                    uint64_t *place, uint32_t *check);
/* After gild_log_room: a HOLE or ZERO entry. */
void gild_log_mark(struct gild_log *log, enum gild_entry_kind kind, uint64_t delta, uint64_t block,
                   uint32_t count);

/* True: everything appended is durable already. Else the waiter's task is posted when it is, or
 * when the log has died (waiter->error). */
bool gild_log_sync(struct gild_log *log, struct gild_log_waiter *waiter);

/* Seals the open batch and says what a checkpoint of this instant covers. */
uint64_t gild_log_lsn(struct gild_log *log);

/* After gild_log_lsn: what comes next begins a segment of its own; the one that was being written
 * is full as it is. */
void gild_log_close(struct gild_log *log);

/* The serial of the segment being written, 0 = none yet. */
uint64_t gild_log_segment(const struct gild_log *log);

/* 0, or what killed the log. */
int gild_log_failure(const struct gild_log *log);

/* ---- reading back ------------------------------------------------------------------------------
 */

/* The block at a log place if its batch is still in memory, else NULL. *pin keeps it until
 * gild_log_unpin; it is NULL if too much is pinned already: then the bytes must be copied at once.
 */
const void *gild_log_peek(struct gild_log *log, uint64_t place, void **pin);
void gild_log_unpin(struct gild_log *log, void *pin);

struct gild_log_stats {
    uint64_t batches, blocks, bytes; /* written to the device, headers counted */
    uint64_t flushes;                /* fdatasync calls and dsync writes */
    uint64_t syncs;                  /* asked for */
};
void gild_log_get_stats(const struct gild_log *log, struct gild_log_stats *stats);

#endif
