/* The cleaner: empties segments, so that they can be written again, and in doing so is what
 * deduplicates and compresses (docs/architecture.md, "The cleaner").
 *
 *   choose full segments --> read one whole --> sift: which of its blocks do maps still reach?
 *        |                                        |
 *        |      zeroes: the map says zero         |  hot: to the log's end, as a guest's write
 *        |      <---------------------------------+---------------------------------------->
 *        |                                        |  cold: an ingest (pack/pack.h): fingerprint,
 *        |                                        v  share or compress, seal
 *        |                     packs durable --> catalogue --> maps: where the old place still
 * holds
 *        `--> a checkpoint: segments that nothing reaches are recycled
 *
 * A segment of map nodes is emptied by making its nodes dirty.
 *
 * Each step leaves a store that is whole: what is in a new pack and in no map yet is collected as
 * any pack that nothing names; a block has its old place until the map has the new one, and its
 * segment until a checkpoint holds that. So it may be broken off anywhere, by a crash too. */
#ifndef GILD_DISK_CLEANER_H
#define GILD_DISK_CLEANER_H

#include "disk/move.h"
#include "disk/pace.h"

/* ---- clean_choose.c: which segments, and what becomes of their blocks. Pure. -------------------
 */

struct clean_need {
    uint64_t now_s;
    uint64_t available, total; /* segments for guests' data: left, and when the log is empty */
    uint64_t room;             /* segments that a hurried pass may fill with what it moves */
    uint32_t cold_s;           /* a block that is as it was for so long is cold */
    bool all;                  /* asked for: empty whatever is full */
    bool only_log;             /* packs can not be written: move within the log */
};

enum clean_urgency {
    CLEAN_REST,    /* nothing is worth it */
    CLEAN_LEISURE, /* cold blocks are packed, guests first */
    CLEAN_HURRY,   /* guests will soon find no room */
};

struct clean_choice {
    enum clean_urgency urgency;
    bool pack_young; /* there is no segment that moving within the log would gain much from */
    struct gild_segment_fact *victims; /* of the facts, in the order to take them */
    size_t count;
};

/* Reorders `facts`; the victims come first in it. */
struct clean_choice cleaner_choose(struct gild_segment_fact *facts, size_t count,
                                   const struct clean_need *need);

/* ---- clean_scan.c: what a segment holds. -------------------------------------------------------
 */

struct clean_block {
    uint64_t delta;
    uint32_t log_check; /* of the block, where it is */
    struct move move;
};

struct clean_scan {
    uint8_t *bytes; /* the segment, whole */
    size_t room;
    struct clean_block *blocks; /* sorted by delta, kind, number */
    size_t count, block_room;
};

/* Zero it first; every block and node that was ever written into the segment. 0 or -errno. */
int cleaner_scan(struct gild_store *store, const struct gild_segment *segment, struct pace *pace,
                 struct clean_scan *scan);
void cleaner_scan_free(struct clean_scan *scan);

/* ---- cleaner.c: a pass. ------------------------------------------------------------------------
 */

struct clean_result {
    uint64_t segments; /* looked through */
    uint64_t moved;    /* blocks and nodes, within the log */
    uint64_t packed;   /* blocks, into packs */
    uint64_t shared;   /* of these, with what a pack already had */
    uint64_t zeroes;   /* blocks that turned out to be zero */
    uint64_t pack_bytes;
    uint64_t pack_dropped; /* bytes by which packs were made smaller */
    enum clean_urgency urgency;
};

/* Blocks and nodes that are not where they were. */
static inline uint64_t cleaner_done(const struct clean_result *result) {
    return result->moved + result->packed + result->zeroes;
}

/* One pass: at most some hundred MiB. all_upto: a serial, up to which every full segment is
 * emptied, whatever its age (what guests write meanwhile would keep it going for ever); 0: by need.
 * 0 (result->segments 0: there was nothing to do), or -errno: nothing is lost, what was done
 * counts. One at a time (-EBUSY); any thread but the keeper's or a reactor's. */
int cleaner_pass(struct gild_store *store, uint64_t all_upto, struct clean_result *result);

/* ---- clean_packs.c: dead blocks inside packs. All that lost anything, or those that lost much. By
 * the pass that runs. ----------------------------------------------------------------------------
 */

int cleaner_packs(struct gild_store *store, bool all, struct clean_result *result);

/* Of a pack's file: less is not worth a rewrite. */
#define CLEANER_SAVED_PERCENT 10u
/* Would it be written anew? after: 0 if nothing in it lives. */
static inline bool cleaner_collects(uint64_t bytes_before, uint64_t bytes_after) {
    return !bytes_after || (bytes_after < bytes_before && (bytes_before - bytes_after) * 100 >=
                                                              bytes_before * CLEANER_SAVED_PERCENT);
}

/* ---- clean_thread.c: the background, and what is asked for. ------------------------------------
 */

int cleaner_create(struct gild_store *store, const struct gild_store_options *options);
int cleaner_start(struct gild_store *store);
void cleaner_stop(struct gild_store *store);
void cleaner_destroy(struct gild_store *store);
/* Any thread: there may be something to do. */
void cleaner_nudge(struct gild_store *store);
/* Has the store to end? A pass then breaks off. */
bool cleaner_stopping(const struct gild_store *store);
/* A pass takes it, and gives it back. False: another runs. */
bool cleaner_begin(struct gild_store *store);
void cleaner_end(struct gild_store *store, const struct clean_result *result);
uint32_t cleaner_cold_s(const struct gild_store *store);
/* The pace of reading at this urgency, as guests are busy now. */
struct pace *cleaner_pace(struct gild_store *store, enum clean_urgency urgency);
/* A segment of which something can not be moved is not taken again by this process. */
int cleaner_note_stuck(struct gild_store *store, uint64_t serial);
/* Takes those out of the list: how many are left. */
size_t cleaner_unstuck(struct gild_store *store, struct gild_segment_fact *facts, size_t count);

#endif
