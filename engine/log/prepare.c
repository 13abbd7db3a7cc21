/* Space, and the thread that prepares segments ahead. See segments.h for a segment's states.
 *
 * A segment is prepared by writing every byte of its file: later writes then change no metadata of
 * the file system, and no journal commit hides in a guest's flush. Its catalogue record is
 * committed after the file is durable and before anybody may write to it, so a start after a crash
 * knows every file that can hold anything; a file that the catalogue does not know is an orphan of
 * a broken-off preparation.
 *
 * Failure modes: no space (said to takers; tried again four times a second, and when a segment is
 * given back); an I/O error while preparing is logged, tried again as often, and takers are told
 * -EIO. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "io/file.h"
#include "log/segments_own.h"

#define PAUSE_SHARE 4u /* of the time of a write, while there is no hurry */
#define MOST_PAUSE_NS 20000000u
#define RETRY_NS 250000000u /* between tries to make a segment where there was no space */
#define LOOK_NS 1000000000u /* between looks at the file system while little is left */

/* ---- space ----------------------------------------------------------------------------------- */

bool gild_segments_tight(const struct gild_segments *s) {
    return atomic_load_explicit(&s->tight, memory_order_relaxed);
}

uint32_t gild_segments_price_ns(const struct gild_segments *s) {
    return atomic_load_explicit(&s->price_ns, memory_order_relaxed);
}

static void tell_level(struct gild_segments *s, enum gild_space_level before) {
    char when[64] = "";
    uint64_t left = gild_space_seconds_left(&s->space, segments_clock_ns(CLOCK_MONOTONIC));
    double gib =
        (double)(s->space.available * segments_bytes_of(s->options.segment_blocks)) / (1u << 30);
    if (left < 86400 && s->space.level < GILD_SPACE_FULL)
        snprintf(when, sizeof when, ", which last for about %llu s at the present rate",
                 (unsigned long long)left);
    static const char advice[] = "delete what is not needed, or make room on its file system";
    switch (s->space.level) {
    case GILD_SPACE_PLENTY:
        gild_log(GILD_LOG_INFO, "the log %s has room again: %.2f GiB", s->directory, gib);
        break;
    case GILD_SPACE_LOW:
        gild_log(before > GILD_SPACE_LOW ? GILD_LOG_INFO : GILD_LOG_WARN,
                 "space runs low: the log %s has room for %.2f GiB%s; %s", s->directory, gib, when,
                 advice);
        break;
    case GILD_SPACE_SLOW:
        gild_log(GILD_LOG_WARN,
                 "guests' writes are slowed down: the log %s has room for %.2f GiB%s; %s",
                 s->directory, gib, when, advice);
        break;
    case GILD_SPACE_FULL:
        gild_log(GILD_LOG_ERROR, "the log %s is full: guests' writes are refused; %s", s->directory,
                 advice);
        break;
    }
}

/* Lock held: what is ready, or may be, has changed. */
void segments_judge_space(struct gild_segments *s) {
    if (!s->measured)
        return;
    enum gild_space_level before = s->space.level;
    uint64_t ready = s->ready_count + s->spare_count;
    uint64_t available = s->headroom + ready - gild_min_u64(ready, s->options.reserve);
    gild_space_judge(&s->space, available, s->count + s->spare_count + s->headroom);
    atomic_store_explicit(&s->tight, available <= s->options.tight, memory_order_relaxed);
    atomic_store_explicit(&s->price_ns, gild_space_price_ns(&s->space), memory_order_relaxed);
    if (s->space.level != before && s->running)
        tell_level(s, before);
}

/* No lock held. */
static uint64_t measure(struct gild_segments *s, enum gild_segment_use use) {
    if (!s->options.headroom)
        return UINT32_MAX;
    return s->options.headroom(s->options.context, use) /
           segments_bytes_of(s->options.segment_blocks);
}

/* Others may have filled the file system, or made room on it. */
void gild_segments_look(struct gild_segments *s) {
    uint64_t headroom = measure(s, GILD_SEGMENT_FOR_DATA);
    pthread_mutex_lock(&s->lock);
    s->headroom = headroom;
    s->measured = true;
    segments_judge_space(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- preparing ------------------------------------------------------------------------------- */

static int next_serial(struct gild_segments *s, uint64_t *serial) {
    struct gild_txn *txn;
    int err = gild_txn_begin(s->options.catalog, true, &txn);
    if (err)
        return err;
    err = gild_txn_next_id(txn, "segment", 1, serial);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static int record_ready(struct gild_segments *s, uint64_t serial) {
    struct gild_txn *txn;
    int err = gild_txn_begin(s->options.catalog, true, &txn);
    if (err)
        return err;
    struct gild_rec_segment record = {.state = GILD_SEGMENT_READY};
    err = gild_rec_put_segment(txn, serial, &record);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

/* While guests have a segment to go on with, the device is mostly theirs: a flush behind a stream
 * of large writes waits for several of them. */
static void make_way(struct gild_segments *s, uint64_t took_ns) {
    uint64_t pause_ns = PAUSE_SHARE * took_ns;
    uint64_t until_ns =
        segments_clock_ns(CLOCK_REALTIME) + (pause_ns < MOST_PAUSE_NS ? pause_ns : MOST_PAUSE_NS);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    int err = 0;
    pthread_mutex_lock(&s->lock);
    while (!s->stopping && s->ready_count > s->options.reserve && err != ETIMEDOUT)
        err = pthread_cond_timedwait(&s->wake, &s->lock, &until);
    pthread_mutex_unlock(&s->lock);
}

/* A new file, every byte of it written. */
static int make_file(struct gild_segments *s, const char *name, int *out) {
    uint64_t bytes = segments_bytes_of(s->options.segment_blocks);
    int fd = gild_file_open(s->folder, name, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, NULL);
    if (fd < 0)
        return fd;
    int err = posix_fallocate(fd, 0, (off_t)bytes);
    err = err == EOPNOTSUPP || err == EINVAL ? 0 : -err;
    for (uint64_t at = 0; at < bytes && !err; at += SEGMENTS_ZERO_BYTES) {
        uint64_t begun_ns = segments_clock_ns(CLOCK_MONOTONIC);
        err = gild_file_write(
            fd, s->zeroes, bytes - at < SEGMENTS_ZERO_BYTES ? bytes - at : SEGMENTS_ZERO_BYTES, at);
        make_way(s, segments_clock_ns(CLOCK_MONOTONIC) - begun_ns);
    }
    if (err) {
        close(fd);
        gild_file_remove(s->folder, name);
        return err;
    }
    *out = fd;
    return 0;
}

/* Makes one segment ready: a spare file under a new serial, or a new file. Blocking, no lock held.
 */
static int prepare(struct gild_segments *s, struct gild_segment *spare, enum gild_segment_use use,
                   struct segments_passing *passing, struct gild_segment **out) {
    char name[SEGMENTS_NAME_BYTES], old[SEGMENTS_NAME_BYTES];
    uint64_t serial;
    struct gild_segment *segment = calloc(1, sizeof *segment);
    void *header = NULL;
    int fd = -1;
    int err = segment ? 0 : -ENOMEM;
    if (!err && posix_memalign(&header, GILD_LOG_BLOCK, GILD_LOG_BLOCK))
        err = -ENOMEM;
    if (!err && !spare && !measure(s, use))
        err = -ENOSPC;
    if (!err)
        err = next_serial(s, &serial);
    if (err)
        goto fail;
    pthread_mutex_lock(&s->lock);
    passing->serial[1] = serial;
    pthread_mutex_unlock(&s->lock);
    segments_name(serial, name);
    if (spare) {
        segments_name(spare->serial, old);
        fd = spare->fd;
        if (renameat(s->folder, old, s->folder, name) != 0)
            err = -errno;
    } else {
        err = make_file(s, name, &fd);
    }
    if (err)
        goto fail;
    uint32_t blocks = spare ? spare->blocks : s->options.segment_blocks;
    gild_segment_header_seal(header, s->options.store_id, serial, blocks);
    err = gild_file_write(fd, header, GILD_LOG_BLOCK, 0);
    if (!err)
        err = gild_file_sync(fd);
    if (!err)
        err = gild_file_sync_folder(s->folder);
    if (err) {
        gild_file_remove(s->folder, name);
        goto fail;
    }
    /* A commit that failed with EIO may stand on the disk all the same, and then wants the file; if
     * it does not, the next open of the store removes it. */
    err = record_ready(s, serial);
    if (err && err != -EIO)
        gild_file_remove(s->folder, name);
    if (err)
        goto fail;
    segment->serial = serial;
    segment->blocks = blocks;
    segment->fd = fd;
    segment->state_recorded = GILD_SEGMENT_READY;
    segment->state_pending = GILD_SEGMENT_NONE;
    free(spare);
    free(header);
    *out = segment;
    return 0;
fail:
    if (fd >= 0 && !spare)
        close(fd);
    if (spare) {
        close(spare->fd);
        segments_name(spare->serial, old);
        gild_file_remove(s->folder, old);
        free(spare);
    }
    free(header);
    free(segment);
    return err;
}

void segments_wake_waiters(struct gild_segments *s) {
    struct gild_segment_waiter *waiter = s->waiters, *next;
    s->waiters = NULL;
    for (; waiter; waiter = next) {
        next = waiter->next;
        gild_loop_post(waiter->loop, &waiter->task);
    }
}

/* Lock held; gives it up while it works. */
void segments_prepare_one(struct gild_segments *s, enum gild_segment_use use) {
    struct gild_segment *spare = s->spare, *made = NULL;
    struct segments_passing passing = {.serial = {spare ? spare->serial : 0}};
    segments_pass(s, &passing);
    if (spare) {
        s->spare = spare->next;
        s->spare_count--;
        s->blocks -= spare->blocks;
    }
    pthread_mutex_unlock(&s->lock);
    int err = prepare(s, spare, use, &passing, &made);
    uint64_t headroom = measure(s, GILD_SEGMENT_FOR_DATA);
    pthread_mutex_lock(&s->lock);
    bool full = err == -ENOSPC || err == -EDQUOT;
    s->headroom = full ? 0 : headroom; /* whatever the file system says of itself */
    s->measured = true;
    if (!err) {
        err = segments_table_put(s, made);
        if (err)
            free(made);
    }
    segments_passed(s, &passing);
    if (!err) {
        made->next = NULL;
        *s->ready_tail = made;
        s->ready_tail = &made->next;
        s->ready_count++;
        s->ready_blocks += made->blocks;
    } else if (!s->no_space && !s->no_reserve && !full) { /* that is told by the level */
        gild_log(GILD_LOG_WARN, "no further log segment can be made in %s: %s", s->directory,
                 strerror(-err));
    }
    if (use == GILD_SEGMENT_FOR_DATA || err)
        s->no_space = err;
    if (use != GILD_SEGMENT_FOR_DATA || !err)
        s->no_reserve = err;
    segments_judge_space(s);
    segments_wake_waiters(s);
}

static bool wanting(const struct gild_segments *s) {
    return s->ready_count < s->options.ready_target;
}

/* The reserve is restored past the store's own size, too. */
static enum gild_segment_use what_for(const struct gild_segments *s) {
    return s->ready_count < s->options.reserve ? GILD_SEGMENT_FOR_NODES : GILD_SEGMENT_FOR_DATA;
}

/* Why none could be made of late, of those that are wanted next. */
static int trouble(const struct gild_segments *s) {
    return what_for(s) == GILD_SEGMENT_FOR_DATA ? s->no_space : s->no_reserve;
}

/* Until one is wanted that may be had, or the time has come to look again. Takers that are refused
 * wake us, too: no reason to hurry. Lock held. */
static void rest(struct gild_segments *s) {
    if (!trouble(s) && s->space.level == GILD_SPACE_PLENTY) {
        pthread_cond_wait(&s->wake, &s->lock);
        return;
    }
    uint64_t until_ns = segments_clock_ns(CLOCK_REALTIME) + (trouble(s) ? RETRY_NS : LOOK_NS);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    int err = 0;
    while (!s->stopping && !err && (trouble(s) || !wanting(s)))
        err = pthread_cond_timedwait(&s->wake, &s->lock, &until);
}

void *segments_preparer(void *context) {
    struct gild_segments *s = context;
    gild_segments_look(s);
    pthread_mutex_lock(&s->lock);
    while (!s->stopping) {
        if (wanting(s) && !trouble(s)) {
            segments_prepare_one(s, what_for(s));
            continue;
        }
        rest(s);
        if (s->stopping)
            break;
        if (wanting(s)) {
            segments_prepare_one(s, what_for(s));
        } else if (s->space.level != GILD_SPACE_PLENTY) {
            pthread_mutex_unlock(&s->lock);
            gild_segments_look(s);
            pthread_mutex_lock(&s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
