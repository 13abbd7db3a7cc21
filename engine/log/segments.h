/* Segments: fixed-size files of the log, prepared ahead and recycled.
 *
 *            prepare (header, all bytes written, synced, catalogued)
 *   (none) ----------------------------------------------------------> READY
 *                                                                        | take
 *                                                                        v
 *   (recycled: renamed to a new serial, or unlinked) <-- EMPTY <-- FULL <-- OPEN
 *                                              a checkpoint finds no live block in it, and readers
 *                                              have passed
 *
 * What reaches into a segment is counted: `base` as of the last committed checkpoint, and two
 * counters of changes since, of which reactors use the one of their current epoch; a freeze moves a
 * reactor to the other one, so that the checkpoint can add up the old one at leisure
 * (gild_segments_fold).
 *
 * Threads: find and count are wait-free from anywhere; take is short under a lock; the rest is the
 * keeper's and blocks. */
#ifndef GILD_LOG_SEGMENTS_H
#define GILD_LOG_SEGMENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"
#include "gild/error.h"
#include "gild/loop.h"
#include "log/format.h"
#include "log/space.h"

#define GILD_SEGMENT_NONE (-1)

struct gild_segment {
    uint64_t serial;
    uint32_t blocks; /* of its file, the header counted */
    int fd;
    _Atomic int state_recorded; /* enum gild_segment_state, as the catalogue has it */
    int state_pending;          /* in the checkpoint's transaction, or GILD_SEGMENT_NONE */
    bool holds_nodes;
    bool forgotten;  /* the catalogue knows it no more; its file is about to be recycled */
    bool changed;    /* base differs from the catalogue's record */
    uint64_t stream; /* that writes or wrote it, 0 = none yet */
    uint64_t first_lsn, last_lsn; /* of the batches in it; set by its writer before `closed` */
    _Atomic bool taken;
    _Atomic bool closed;   /* its writer has gone on to another */
    _Atomic uint64_t base; /* live blocks as of the last committed checkpoint */
    /* When a checkpoint first found it full, seconds since 1970; 0 = not yet. */
    _Atomic uint64_t closed_s;
    unsigned pins; /* held by the cleaner: not recycled; under the table's lock */
    _Atomic int64_t change[2];
    struct gild_segment *next; /* ready list */
};

/* Wants a segment and waits for one; the task is posted when the ready list has grown (or space has
 * run out). */
struct gild_segment_waiter {
    struct gild_task task;
    struct gild_loop *loop;
    struct gild_segment_waiter *next;
};

struct gild_segments;

/* What a segment is wanted for. Guests' data leaves the whole reserve, entries without data (trims,
 * which make room in the end) leave the checkpoints' part of it, checkpoints take any. */
enum gild_segment_use { GILD_SEGMENT_FOR_DATA, GILD_SEGMENT_FOR_MARKS, GILD_SEGMENT_FOR_NODES };

struct gild_segments_options {
    const char *directory;
    uint8_t store_id[16];
    struct gild_catalog *catalog;
    uint32_t segment_blocks; /* of those that are made from now on, 0 = GILD_SEGMENT_BLOCKS */
    unsigned ready_target;   /* segments kept ready */
    unsigned reserve;        /* of these, kept back from guests' data */
    unsigned for_nodes;      /* of the reserve, kept back from trims, too: for checkpoints */
    unsigned tight;          /* segments left for data at which gild_segments_tight says so */
    /* How many bytes more may be taken from the host for this use. Any thread; may block. */
    uint64_t (*headroom)(void *context, enum gild_segment_use use);
    void *context;
};

int gild_segments_create(struct gild_segments **out, const struct gild_segments_options *options,
                         struct gild_error *error);
void gild_segments_destroy(struct gild_segments *segments);

/* Adds a segment that the catalogue knows (store open). Verifies its file's header. */
int gild_segments_add(struct gild_segments *segments, uint64_t serial,
                      const struct gild_rec_segment *record, struct gild_error *error);

/* Adds one as a repair has found it: `fd` of a file of `blocks`, which the table then owns, or -1
 * for one that is missing, whose blocks all read as damaged. */
int gild_segments_adopt(struct gild_segments *segments, uint64_t serial,
                        const struct gild_rec_segment *record, int fd, uint32_t blocks);

/* After recovery: a segment in state READY that nobody had begun to write goes on the ready list.
 */
void gild_segments_offer(struct gild_segments *segments, struct gild_segment *segment);

/* Starts and stops the thread that prepares segments ahead. */
int gild_segments_start(struct gild_segments *segments);
void gild_segments_stop(struct gild_segments *segments);

/* NULL if there is no such segment. */
struct gild_segment *gild_segments_find(struct gild_segments *segments, uint64_t serial);

/* +1 or -1 for a log place, in the epoch's counter. */
void gild_segments_count(struct gild_segments *segments, unsigned epoch, uint64_t place, int sign);

/* A ready segment for a stream, or NULL: then *error is -ENOSPC if there is no room for another,
 * -EIO if the device or the catalogue fails, else 0 and the waiter (if not NULL) will be told. */
struct gild_segment *gild_segments_take(struct gild_segments *segments, enum gild_segment_use use,
                                        struct gild_segment_waiter *waiter, int *error);

/* The keeper's, blocking: makes one ready segment at once if the list is empty, past the store's
 * own size if it must, for a checkpoint is what makes room again. */
int gild_segments_take_now(struct gild_segments *segments, bool holds_nodes,
                           struct gild_segment **out);

/* Checkpoint: adds the epoch's changes to `base` (all reactors have left the epoch). */
void gild_segments_fold(struct gild_segments *segments, unsigned epoch);
/* The keeper's own: +1 or -1 straight to `base` (nodes that a checkpoint writes or supersedes). */
void gild_segments_adjust(struct gild_segments *segments, uint64_t place, int sign);

/* Calls back for every segment, ready ones too, sorted by serial. */
typedef int gild_segments_visit(void *context, struct gild_segment *segment);
int gild_segments_each(struct gild_segments *segments, gild_segments_visit *visit, void *context);

/* A full segment, as the cleaner looks at it. */
struct gild_segment_fact {
    uint64_t serial;
    uint64_t live_blocks;
    uint64_t closed_s;
    uint32_t blocks;
    bool holds_nodes;
};
/* All segments that are full as of the last checkpoint, by serial; *facts is the caller's to
 * free(). Any thread. 0 or -ENOMEM. */
int gild_segments_full(struct gild_segments *segments, struct gild_segment_fact **facts,
                       size_t *count);
/* The segment stays while it is pinned. NULL if it is gone. Any thread. */
struct gild_segment *gild_segments_pin(struct gild_segments *segments, uint64_t serial);
void gild_segments_unpin(struct gild_segments *segments, struct gild_segment *segment);

/* After the catalogue no longer knows the segment and readers have passed: it becomes a ready one
 * under a new serial, or its file is unlinked if there are enough, or it has another size than
 * those made now and there is room for one. -EBUSY: it is pinned. Blocking. */
int gild_segments_recycle(struct gild_segments *segments, struct gild_segment *segment);

/* Removes emptied files beyond as many as were taken in a minute of late. Now and then. Blocking.
 */
void gild_segments_quiet(struct gild_segments *segments);

/* Others want so many bytes of the host: removes emptied files, but for those that are always kept
 * ready. Blocking. */
void gild_segments_release(struct gild_segments *segments, uint64_t bytes);

/* Is a file of this serial the table's own: a segment's, or one that was emptied and waits for a
 * new serial, or is being renamed or removed? The catalogue does not know those any more. */
bool gild_segments_own(struct gild_segments *segments, uint64_t serial);

/* Is so little left that what a checkpoint will have to write must fit into the reserve? Wait-free.
 */
bool gild_segments_tight(const struct gild_segments *segments);
/* What each block of guests' data costs, in nanoseconds of waiting. Wait-free. */
uint32_t gild_segments_price_ns(const struct gild_segments *segments);

/* Looks anew at how much may be taken from the host. Blocking. */
void gild_segments_look(struct gild_segments *segments);

struct gild_segments_totals {
    enum gild_space_level level;
    uint64_t available; /* segments that guests' data may still take, made or not */
    uint64_t count, ready;
    uint64_t taken;         /* for guests' data, since the start */
    uint64_t bytes;         /* of all files */
    uint64_t ready_bytes;   /* of those on the ready list */
    uint64_t segment_bytes; /* of one that is made now */
};
void gild_segments_get_totals(struct gild_segments *segments, struct gild_segments_totals *totals);

#endif
