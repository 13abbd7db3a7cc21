/* The stream of one reactor. See log.h for a batch's states.
 *
 * Invariants:
 *   - LSNs are dense: batch n + 1 is sealed after batch n and carries n's check, so that recovery
 * can tell a tail from a hole;
 *   - `written` is the highest LSN up to which every batch's write has completed; `durable` <=
 * `written`;
 *   - a batch's place in its segment is fixed when it opens, so whatever was acknowledged has room;
 *   - a buffer is reused only when its write has completed and nobody pins it, the oldest first.
 *
 * Failure: the first failed write or flush kills the log. The batch buffers stay, so what had been
 * acknowledged and not flushed can still be read. */
#include "log/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/log.h"
#include "base/place.h"

#define MAX_BUFFERS 64u
#define MAX_WRITES 16u   /* in flight */
#define MAX_UNSYNCED 8u  /* segments */
#define SPOT_NS 1000000u /* a write on the spot may block the loop for about this long */
#define SPOT_REST 256u
#define HABIT 4u /* lone flushes in a row that make one expected */
#define MOST_HABIT 16u
#define AGE_NS (4000000ull) /* an unflushed batch is written after this long */

enum batch_state { BATCH_FREE, BATCH_OPEN, BATCH_WRITING, BATCH_WRITTEN };

struct batch {
    struct gild_io io;
    struct gild_log *log;
    struct gild_batch_header *header;
    uint8_t *payload;
    struct gild_segment *segment;
    uint64_t lsn;
    uint32_t room; /* entries that fit */
    uint32_t pins;
    enum batch_state state;
    bool dsync;
    bool done; /* its write has completed */
};

struct sync_io {
    struct gild_io io;
    struct gild_log *log;
};

struct gild_log {
    struct gild_log_options options;
    struct gild_segment *segment;
    uint32_t at;   /* next free block of the segment */
    bool reserved; /* the segment is of the reserve: no data goes into it */
    struct batch *open;
    uint64_t last_lsn; /* of the newest batch, open or not */
    uint64_t last_check;
    uint64_t last_filter[GILD_FILTER_WORDS];
    uint64_t written, durable;
    int failure;
    unsigned writing;
    unsigned pinned; /* batches, not pins */

    struct gild_segment *unsynced[MAX_UNSYNCED];
    unsigned unsynced_count;
    bool unsynced_closed; /* one of them will not be written any more */
    struct sync_io syncs[MAX_UNSYNCED];
    unsigned syncing;
    uint64_t syncing_lsn;

    struct gild_log_waiter *sync_first, **sync_last;
    struct gild_log_waiter *room_first, **room_last;
    struct gild_segment_waiter segment_waiter;
    bool waiting_segment;

    struct gild_task pump;
    bool pump_due;
    uint64_t spot_ns;   /* how long a write on the spot takes, a running mean; 0 = not tried yet */
    unsigned spot_rest; /* lone batches until the next try on a slow device */
    struct gild_io timer;
    bool timer_armed;

    /* Where space runs out, data waits for its turn (D7). */
    uint64_t paced_until_ns;
    struct gild_io pace_timer;
    bool pace_armed;

    /* A guest that flushes after each write will do so again: its next write goes to the device
     * while the guest still hears of it and asks for the flush. */
    struct gild_task ahead;
    bool ahead_due;
    unsigned habit;     /* lone flushes in a row */
    uint64_t ahead_lsn; /* of a batch written ahead, whose flush is still to come; 0 = none */

    void *memory;
    size_t memory_bytes;
    unsigned buffers;
    struct batch batches[MAX_BUFFERS];
    /* The places that each buffer holds, as numbers (serial << 16 | offset), for peek. */
    uint64_t from[MAX_BUFFERS], to[MAX_BUFFERS];
    struct gild_log_stats stats;
};

static void pump(struct gild_task *task);
static void want_pump(struct gild_log *log);

#define CONTAINER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

/* ---- waiters --------------------------------------------------------------------------------- */

static void wake_room(struct gild_log *log) {
    struct gild_log_waiter *waiter = log->room_first, *next;
    log->room_first = NULL;
    log->room_last = &log->room_first;
    for (; waiter; waiter = next) {
        next = waiter->next;
        gild_loop_post(log->options.loop, &waiter->task);
    }
}

static void wake_syncs(struct gild_log *log) {
    while (log->sync_first && (log->failure || log->sync_first->target <= log->durable)) {
        struct gild_log_waiter *waiter = log->sync_first;
        log->sync_first = waiter->next;
        if (!log->sync_first)
            log->sync_last = &log->sync_first;
        waiter->error = waiter->target <= log->durable ? 0 : log->failure;
        gild_loop_post(log->options.loop, &waiter->task);
    }
}

static void die(struct gild_log *log, int error, const char *what) {
    if (!log->failure) {
        log->failure = -EIO;
        gild_log(
            GILD_LOG_ERROR,
            "%s of the log failed (%s): writes and flushes of its disks are refused from now on; "
            "restart after the device is mended",
            what, strerror(-error));
    }
    wake_syncs(log);
    wake_room(log);
}

/* ---- durability ------------------------------------------------------------------------------ */

static void advance_written(struct gild_log *log) {
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned i = 0; i < log->buffers; i++) {
            struct batch *batch = &log->batches[i];
            if (batch->state == BATCH_WRITTEN && batch->lsn == log->written + 1) {
                log->written++;
                moved = true;
            }
        }
    }
}

static void sync_done(struct gild_io *io) {
    struct gild_log *log = CONTAINER(io, struct sync_io, io)->log;
    if (io->result < 0)
        die(log, io->result, "a flush");
    if (--log->syncing == 0 && !log->failure) {
        if (log->syncing_lsn > log->durable)
            log->durable = log->syncing_lsn;
        wake_syncs(log);
    }
    wake_room(log);
    want_pump(log);
}

static void start_sync(struct gild_log *log) {
    log->syncing_lsn = log->written;
    unsigned count = log->unsynced_count;
    log->unsynced_count = 0;
    log->unsynced_closed = false;
    if (count == 0) { /* all of it was written with dsync */
        log->durable = log->written;
        wake_syncs(log);
        return;
    }
    log->syncing = count;
    for (unsigned i = 0; i < count; i++) {
        struct sync_io *sync = &log->syncs[i];
        memset(&sync->io, 0, sizeof sync->io);
        sync->log = log;
        sync->io.done = sync_done;
        gild_io_fdatasync(log->options.loop, &sync->io, log->unsynced[i]->fd);
        log->stats.flushes++;
    }
}

static void note_unsynced(struct gild_log *log, struct gild_segment *segment) {
    for (unsigned i = 0; i < log->unsynced_count; i++)
        if (log->unsynced[i] == segment)
            return;
    assert(log->unsynced_count < MAX_UNSYNCED);
    log->unsynced[log->unsynced_count++] = segment;
    if (segment != log->segment)
        log->unsynced_closed = true;
}

/* ---- batches --------------------------------------------------------------------------------- */

static void write_done(struct gild_io *io) {
    struct batch *batch = CONTAINER(io, struct batch, io);
    struct gild_log *log = batch->log;
    size_t length = (1u + batch->header->payload_blocks) * (size_t)GILD_LOG_BLOCK;
    log->writing--;
    if (io->result != (int)length) {
        /* Not WRITTEN: the buffer is the only good copy and is never reused. */
        die(log, io->result < 0 ? io->result : -EIO, "a write");
        return;
    }
    batch->state = BATCH_WRITTEN;
    if (!batch->dsync)
        note_unsynced(log, batch->segment);
    advance_written(log);
    if (batch->dsync && log->written == batch->lsn) {
        log->durable = batch->lsn;
        wake_syncs(log);
    }
    if (log->room_first)
        wake_room(log);
    want_pump(log);
}

enum how { PLAIN, DSYNC, ON_THE_SPOT };

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Blocks the loop for one device write and flush, and keeps account of how long that takes. */
static void write_on_the_spot(struct gild_log *log, struct batch *batch, size_t length,
                              uint64_t offset) {
    uint64_t begun_ns = clock_ns();
    gild_io_write_now(log->options.loop, &batch->io, batch->segment->fd, batch->header, length,
                      offset);
    uint64_t took_ns = clock_ns() - begun_ns;
    if (took_ns > 2 * SPOT_NS)
        took_ns = 2 * SPOT_NS; /* one that met another's work tells little of the device */
    log->spot_ns = log->spot_ns ? (7 * log->spot_ns + took_ns) / 8 : took_ns;
    if (log->spot_ns > SPOT_NS) {
        log->spot_rest = SPOT_REST;
        log->spot_ns = 0;
    }
}

/* A lone batch that a flush waits for: nothing earlier is undurable, nobody else uses the loop. */
static enum how how_alone(struct gild_log *log) {
    if (log->spot_rest) {
        log->spot_rest--;
        return DSYNC;
    }
    bool quiet = log->options.quiet && log->options.quiet(log->options.context);
    return quiet ? ON_THE_SPOT : DSYNC;
}

/* ---- pace ------------------------------------------------------------------------------------ */

static void charge(struct gild_log *log, uint32_t blocks) {
    uint32_t price_ns = gild_segments_price_ns(log->options.segments);
    if (!price_ns || !blocks)
        return;
    /* Never a debt of more than one batch. */
    log->paced_until_ns = gild_loop_now_ns(log->options.loop) + (uint64_t)price_ns * blocks;
}

static void pace_over(struct gild_io *io) {
    struct gild_log *log = CONTAINER(io, struct gild_log, pace_timer);
    log->pace_armed = false;
    wake_room(log);
}

/* Has the next data to wait? Then whoever waits for room is told when it need not any more. */
static bool paced(struct gild_log *log) {
    if (!log->paced_until_ns)
        return false;
    uint64_t now_ns = gild_loop_now_ns(log->options.loop);
    if (now_ns >= log->paced_until_ns || !gild_segments_price_ns(log->options.segments)) {
        log->paced_until_ns = 0;
        return false;
    }
    if (!log->pace_armed) {
        memset(&log->pace_timer, 0, sizeof log->pace_timer);
        log->pace_timer.done = pace_over;
        log->pace_armed = true;
        gild_io_timeout(log->options.loop, &log->pace_timer, log->paced_until_ns - now_ns);
    }
    return true;
}

/* ---- sealing --------------------------------------------------------------------------------- */

static void seal(struct gild_log *log, enum how how) {
    struct batch *batch = log->open;
    struct gild_batch_header *header = batch->header;
    header->previous_check = log->last_check;
    header->durable_lsn = log->durable;
    memcpy(header->previous_filter, log->last_filter, sizeof log->last_filter);
    gild_batch_seal(header);
    gild_batch_filter(header, log->last_filter);
    log->last_check = header->check;
    log->at += 1 + header->payload_blocks;
    log->segment->last_lsn = batch->lsn;
    log->open = NULL;
    batch->state = BATCH_WRITING;
    batch->dsync = how != PLAIN;
    log->writing++;
    size_t length = (1u + header->payload_blocks) * (size_t)GILD_LOG_BLOCK;
    log->stats.batches++;
    log->stats.blocks += header->payload_blocks;
    charge(log, header->payload_blocks);
    log->stats.bytes += length;
    log->stats.flushes += how != PLAIN;
    memset(&batch->io, 0, sizeof batch->io);
    batch->io.done = write_done;
    uint64_t at = (uint64_t)header->offset * GILD_LOG_BLOCK;
    if (how == ON_THE_SPOT)
        write_on_the_spot(log, batch, length, at);
    else
        gild_io_write(log->options.loop, &batch->io, batch->segment->fd, header, length, at,
                      how == DSYNC);
}

static void segment_ready(struct gild_task *task) {
    struct gild_log *log = CONTAINER(task, struct gild_log, segment_waiter.task);
    log->waiting_segment = false;
    wake_room(log);
}

/* No more is written to the log's segment. */
static void leave_segment(struct gild_log *log) {
    for (unsigned i = 0; i < log->unsynced_count; i++)
        if (log->unsynced[i] == log->segment)
            log->unsynced_closed = true;
    atomic_store(&log->segment->closed, true);
    log->segment = NULL;
}

/* A segment with room for a batch: 0, -EAGAIN, -ENOSPC or -EIO. */
static int need_segment(struct gild_log *log, bool data) {
    if (log->segment && log->segment->blocks - log->at >= GILD_LEAST_ROOM &&
        !(data && log->reserved))
        return 0;
    if (log->waiting_segment)
        return -EAGAIN;
    if (log->unsynced_count >= MAX_UNSYNCED - 2)
        return -EAGAIN; /* the flush of closed segments in flight makes room */
    int error;
    bool reserved = false;
    struct gild_segment *next = gild_segments_take(log->options.segments, GILD_SEGMENT_FOR_DATA,
                                                   &log->segment_waiter, &error);
    if (!next && error && !data) {
        reserved = true;
        next = gild_segments_take(log->options.segments, GILD_SEGMENT_FOR_MARKS,
                                  &log->segment_waiter, &error);
    }
    if (!next) {
        log->waiting_segment = error == 0;
        return error ? error : -EAGAIN;
    }
    if (log->segment)
        leave_segment(log);
    next->stream = log->options.stream;
    next->first_lsn = log->last_lsn + 1;
    next->last_lsn = log->last_lsn;
    log->segment = next;
    log->reserved = reserved;
    log->at = 1;
    return 0;
}

/* The buffer to reuse: free, or the oldest written one that nobody pins. */
static struct batch *pick_buffer(struct gild_log *log) {
    struct batch *best = NULL;
    for (unsigned i = 0; i < log->buffers; i++) {
        struct batch *batch = &log->batches[i];
        if (batch->state == BATCH_FREE)
            return batch;
        if (batch->state == BATCH_WRITTEN && batch->pins == 0 && batch->lsn <= log->written &&
            (!best || batch->lsn < best->lsn))
            best = batch;
    }
    return best;
}

static int open_batch(struct gild_log *log, bool data) {
    if (log->writing >= MAX_WRITES || (data && paced(log)))
        return -EAGAIN;
    int err = need_segment(log, data);
    if (err)
        return err;
    struct batch *batch = pick_buffer(log);
    if (!batch)
        return -EAGAIN;
    if (log->ahead_lsn) { /* a write where a flush was expected */
        log->ahead_lsn = 0;
        log->habit = 0;
    }
    uint32_t room = log->segment->blocks - log->at - 1;
    batch->room = room < GILD_BATCH_ENTRIES ? room : GILD_BATCH_ENTRIES;
    batch->state = BATCH_OPEN;
    batch->segment = log->segment;
    batch->lsn = ++log->last_lsn;
    struct gild_batch_header *header = batch->header;
    gild_batch_begin(header, log->options.store_id, log->segment->serial, log->options.stream,
                     batch->lsn, log->at);
    unsigned i = (unsigned)(batch - log->batches);
    log->from[i] = header->serial << 16 | (header->offset + 1);
    log->to[i] = log->from[i];
    log->open = batch;
    return 0;
}

static void timer_done(struct gild_io *io) {
    struct gild_log *log = CONTAINER(io, struct gild_log, timer);
    log->timer_armed = false;
    if (log->open && log->open->header->entry_count && !log->failure)
        seal(log, PLAIN);
    want_pump(log);
}

/* Nothing that was appended before the open batch is undurable. */
static bool alone(const struct gild_log *log) {
    return log->open && log->durable + 1 == log->open->lsn && log->writing == 0 &&
           log->syncing == 0 && log->unsynced_count == 0;
}

/* A turn after the write was acknowledged, so that the answer is on its way. */
static void write_ahead(struct gild_task *task) {
    struct gild_log *log = CONTAINER(task, struct gild_log, ahead);
    log->ahead_due = false;
    if (log->failure || log->sync_first || !alone(log) || !log->open->header->entry_count)
        return;
    log->ahead_lsn = log->open->lsn;
    seal(log, how_alone(log));
}

/* A flush was asked for: is it one more of a habit? */
static void note_flush(struct gild_log *log, uint64_t target) {
    bool expected = log->ahead_lsn && log->ahead_lsn == target;
    if (expected || (alone(log) && !log->sync_first))
        log->habit += log->habit < MOST_HABIT;
    else if (target > log->durable)
        log->habit = 0;
    log->ahead_lsn = 0;
}

/* Once at the end of a turn in which something changed: what can be started is started. */
static void pump(struct gild_task *task) {
    struct gild_log *log = CONTAINER(task, struct gild_log, pump);
    log->pump_due = false;
    if (log->failure) {
        wake_syncs(log);
        wake_room(log);
        return;
    }
    bool wanted = log->sync_first != NULL;
    if (log->open && wanted) {
        struct gild_log_waiter *last = CONTAINER(log->sync_last, struct gild_log_waiter, next);
        if (last->target >= log->open->lsn) {
            seal(log, alone(log) ? how_alone(log) : PLAIN);
        }
    } else if (log->habit >= HABIT && !log->ahead_due && alone(log)) {
        log->ahead_due = true;
        gild_loop_post(log->options.loop, &log->ahead);
    }
    if (log->syncing == 0 && log->unsynced_count + (log->written > log->durable) > 0) {
        bool due = log->unsynced_closed ||
                   (wanted && log->sync_first && log->sync_first->target <= log->written);
        if (due)
            start_sync(log);
    }
    if (log->open && !log->timer_armed) {
        memset(&log->timer, 0, sizeof log->timer);
        log->timer.done = timer_done;
        log->timer_armed = true;
        gild_io_timeout(log->options.loop, &log->timer, AGE_NS);
    }
}

static void want_pump(struct gild_log *log) {
    if (log->pump_due)
        return;
    log->pump_due = true;
    gild_loop_defer(log->options.loop, &log->pump);
}

/* ---- appending ------------------------------------------------------------------------------- */

/* A batch that was opened for an entry that did not come is taken back. */
static void close_empty(struct gild_log *log) {
    log->open->state = BATCH_FREE;
    log->open = NULL;
    log->last_lsn--;
}

static bool open_is_empty(const struct gild_log *log) {
    return log->open && log->open->header->entry_count == 0;
}

int gild_log_room(struct gild_log *log, bool data, struct gild_log_waiter *waiter) {
    if (log->failure)
        return log->failure;
    bool fits = log->open && log->open->header->entry_count < log->open->room;
    if (fits && !(data && log->reserved))
        return 0;
    if (open_is_empty(log)) {
        close_empty(log);
    } else if (log->open) {
        seal(log, PLAIN);
        want_pump(log);
    }
    int err = open_batch(log, data);
    if (err == -EAGAIN && waiter) {
        waiter->next = NULL;
        *log->room_last = waiter;
        log->room_last = &waiter->next;
    }
    return err;
}

void *gild_log_slot(struct gild_log *log) {
    return log->open->payload + (size_t)log->open->header->payload_blocks * GILD_LOG_BLOCK;
}

void gild_log_data(struct gild_log *log, uint64_t delta, uint64_t block, uint64_t *place,
                   uint32_t *check) {
    struct batch *batch = log->open;
    if (open_is_empty(log))
        want_pump(log);
    *check = gild_batch_add(batch->header, GILD_ENTRY_DATA, delta, block, 1, gild_log_slot(log));
    *place = gild_place_log(batch->segment->serial,
                            batch->header->offset + batch->header->payload_blocks);
    log->to[batch - log->batches]++;
}

void gild_log_moved(struct gild_log *log, uint64_t delta, uint64_t block, uint32_t age_s,
                    uint64_t *place, uint32_t *check) {
    struct gild_batch_header *header = log->open->header;
    gild_log_data(log, delta, block, place, check);
    header->entries[header->entry_count - 1].age_s = age_s;
}

void gild_log_mark(struct gild_log *log, enum gild_entry_kind kind, uint64_t delta, uint64_t block,
                   uint32_t count) {
    if (open_is_empty(log))
        want_pump(log);
    gild_batch_add(log->open->header, kind, delta, block, count, NULL);
}

bool gild_log_sync(struct gild_log *log, struct gild_log_waiter *waiter) {
    log->stats.syncs++;
    waiter->error = 0;
    waiter->target = log->last_lsn;
    if (open_is_empty(log))
        waiter->target--; /* opened for an entry that did not come */
    note_flush(log, waiter->target);
    if (waiter->target <= log->durable)
        return true;
    waiter->next = NULL;
    *log->sync_last = waiter;
    log->sync_last = &waiter->next;
    want_pump(log);
    return false;
}

uint64_t gild_log_lsn(struct gild_log *log) {
    if (open_is_empty(log))
        return log->last_lsn - 1;
    if (log->open && !log->failure)
        seal(log, PLAIN);
    return log->last_lsn;
}

void gild_log_close(struct gild_log *log) {
    if (open_is_empty(log))
        close_empty(log);
    if (log->segment && !log->open && log->at > 1)
        leave_segment(log);
}

uint64_t gild_log_segment(const struct gild_log *log) {
    return log->segment ? log->segment->serial : 0;
}

int gild_log_failure(const struct gild_log *log) {
    return log->failure;
}

/* ---- reading back ---------------------------------------------------------------------------- */

const void *gild_log_peek(struct gild_log *log, uint64_t place, void **pin) {
    uint64_t key = gild_place_serial(place) << 16 | gild_place_offset(place);
    for (unsigned i = 0; i < log->buffers; i++) {
        if (key < log->from[i] || key >= log->to[i])
            continue;
        struct batch *batch = &log->batches[i];
        if (batch->pins || log->pinned < log->buffers / 2) {
            log->pinned += batch->pins++ == 0;
            *pin = batch;
        } else {
            *pin = NULL;
        }
        return batch->payload + (size_t)(key - log->from[i]) * GILD_LOG_BLOCK;
    }
    return NULL;
}

void gild_log_unpin(struct gild_log *log, void *pin) {
    struct batch *batch = pin;
    batch->pins--;
    if (batch->pins == 0) {
        log->pinned--;
        wake_room(log);
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

int gild_log_create(struct gild_log **out, const struct gild_log_options *options) {
    struct gild_log *log = calloc(1, sizeof *log);
    if (!log)
        return -ENOMEM;
    log->options = *options;
    log->buffers = options->buffers ? options->buffers : MAX_BUFFERS;
    if (log->buffers > MAX_BUFFERS)
        log->buffers = MAX_BUFFERS;
    log->memory_bytes = (size_t)log->buffers * GILD_BATCH_BYTES;
    log->memory = mmap(NULL, log->memory_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (log->memory == MAP_FAILED) {
        free(log);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < log->buffers; i++) {
        struct batch *batch = &log->batches[i];
        uint8_t *base = (uint8_t *)log->memory + (size_t)i * GILD_BATCH_BYTES;
        batch->log = log;
        batch->header = (struct gild_batch_header *)(void *)base;
        batch->payload = base + GILD_LOG_BLOCK;
    }
    log->sync_last = &log->sync_first;
    log->room_last = &log->room_first;
    log->pump.run = pump;
    log->ahead.run = write_ahead;
    log->segment_waiter.task.run = segment_ready;
    log->segment_waiter.loop = options->loop;
    *out = log;
    return 0;
}

void gild_log_destroy(struct gild_log *log) {
    if (!log)
        return;
    assert(log->pinned == 0);
    munmap(log->memory, log->memory_bytes);
    free(log);
}

void gild_log_get_stats(const struct gild_log *log, struct gild_log_stats *stats) {
    *stats = log->stats;
}
