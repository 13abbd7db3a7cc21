/* The table of segments, and the thread that prepares them ahead.
 *
 * A segment is prepared by writing every byte of its file: later writes then change no metadata of
 * the file system, and no journal commit hides in a guest's flush. Its catalogue record is
 * committed after the file is durable and before anybody may write to it, so a start after a crash
 * knows every file that can hold anything; a file that the catalogue does not know is an orphan of
 * a broken-off preparation.
 *
 * Serials are never reused: a recycled file is renamed and given a new header, and whatever the old
 * life left in it carries the old serial in its checks. That makes the serial the segment's
 * generation.
 *
 * Invariant: `ready` + `taken` + ... every segment in the table has an open descriptor (but those
 * that a repair knows missing); slots change only under the lock, reads of slots are wait-free.
 *
 * Failure modes: no space (said to takers; tried again four times a second, and when a segment is
 * given back); an I/O error while preparing is logged, tried again as often, and takers are told
 * -EIO. */
#include "log/segments.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/place.h"
#include "io/file.h"

#define LEAF_SLOTS 1024u
#define TOP_SLOTS (1u << 20)
#define NAME_BYTES 32u
#define ZERO_BYTES (1u << 20)
#define PAUSE_SHARE 4u /* of the time of a write, while there is no hurry */
#define MOST_PAUSE_NS 20000000u
#define RETRY_NS 250000000u /* between tries to make a segment where there was no space */
#define LOOK_NS 1000000000u /* between looks at the file system while little is left */

struct slots {
    struct gild_segment *_Atomic slot[LEAF_SLOTS];
};

struct gild_segments {
    struct gild_segments_options options;
    char directory[3072];
    int folder;
    struct slots *_Atomic *top;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* of the preparer */
    pthread_t thread;
    bool running, stopping;
    int no_space;   /* 0 or -errno of the last try to prepare one for guests' data */
    int no_reserve; /* the same for the reserve, which may take more of the host */
    struct gild_segment *ready, **ready_tail;
    unsigned ready_count;
    struct gild_segment *spare; /* emptied files that wait for a new serial */
    unsigned spare_count;
    unsigned taken_lately; /* since the last checkpoint: about as many will be wanted soon */
    struct gild_segment_waiter *waiters;
    uint64_t count;
    uint64_t blocks; /* of all segments in the table, and of the spare ones */
    uint64_t ready_blocks;
    _Atomic uint64_t lowest, highest; /* serials ever in the table */
    bool measured;                    /* headroom is known */
    uint64_t headroom;                /* segments that may still be made for guests' data */
    struct gild_space space;
    _Atomic bool tight;
    _Atomic uint32_t price_ns;
    void *zeroes;
};

static void segment_name(uint64_t serial, char name[NAME_BYTES]) {
    snprintf(name, NAME_BYTES, "%016llx.seg", (unsigned long long)serial);
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t bytes_of(uint64_t blocks) {
    return blocks * GILD_LOG_BLOCK;
}

/* ---- the table ------------------------------------------------------------------------------- */

struct gild_segment *gild_segments_find(struct gild_segments *s, uint64_t serial) {
    uint64_t leaf = serial / LEAF_SLOTS;
    if (leaf >= TOP_SLOTS)
        return NULL;
    struct slots *slots = atomic_load_explicit(&s->top[leaf], memory_order_acquire);
    if (!slots)
        return NULL;
    return atomic_load_explicit(&slots->slot[serial % LEAF_SLOTS], memory_order_acquire);
}

static int table_put(struct gild_segments *s, struct gild_segment *segment) {
    uint64_t leaf = segment->serial / LEAF_SLOTS;
    if (leaf >= TOP_SLOTS)
        return -EOVERFLOW;
    struct slots *slots = atomic_load(&s->top[leaf]);
    if (!slots) {
        slots = calloc(1, sizeof *slots);
        if (!slots)
            return -ENOMEM;
        atomic_store_explicit(&s->top[leaf], slots, memory_order_release);
    }
    atomic_store_explicit(&slots->slot[segment->serial % LEAF_SLOTS], segment,
                          memory_order_release);
    s->count++;
    s->blocks += segment->blocks;
    if (segment->serial < s->lowest)
        s->lowest = segment->serial;
    if (segment->serial > s->highest)
        s->highest = segment->serial;
    return 0;
}

static void table_remove(struct gild_segments *s, struct gild_segment *segment) {
    struct slots *slots = atomic_load(&s->top[segment->serial / LEAF_SLOTS]);
    atomic_store_explicit(&slots->slot[segment->serial % LEAF_SLOTS], NULL, memory_order_release);
    s->count--;
    s->blocks -= segment->blocks;
    /* Serials only grow: without this each walk would begin at the store's first segment ever. */
    if (segment->serial == s->lowest)
        while (s->lowest < s->highest && !gild_segments_find(s, s->lowest))
            s->lowest++;
}

int gild_segments_each(struct gild_segments *s, gild_segments_visit *visit, void *context) {
    uint64_t highest = atomic_load(&s->highest);
    for (uint64_t serial = atomic_load(&s->lowest); serial <= highest; serial++) {
        struct gild_segment *segment = gild_segments_find(s, serial);
        int err = segment ? visit(context, segment) : 0;
        if (err)
            return err;
    }
    return 0;
}

void gild_segments_count(struct gild_segments *s, unsigned epoch, uint64_t place, int sign) {
    struct gild_segment *segment = gild_segments_find(s, gild_place_serial(place));
    assert(segment);
    atomic_fetch_add_explicit(&segment->change[epoch & 1], sign, memory_order_relaxed);
}

void gild_segments_adjust(struct gild_segments *s, uint64_t place, int sign) {
    struct gild_segment *segment = gild_segments_find(s, gild_place_serial(place));
    assert(segment);
    segment->base += (uint64_t)(int64_t)sign;
    segment->changed = true;
}

static int fold_one(void *context, struct gild_segment *segment) {
    unsigned epoch = *(unsigned *)context;
    int64_t change = atomic_exchange_explicit(&segment->change[epoch & 1], 0, memory_order_relaxed);
    if (change) {
        segment->base += (uint64_t)change;
        segment->changed = true;
    }
    return 0;
}

void gild_segments_fold(struct gild_segments *s, unsigned epoch) {
    gild_segments_each(s, fold_one, &epoch);
}

/* ---- space ----------------------------------------------------------------------------------- */

bool gild_segments_tight(const struct gild_segments *s) {
    return atomic_load_explicit(&s->tight, memory_order_relaxed);
}

uint32_t gild_segments_price_ns(const struct gild_segments *s) {
    return atomic_load_explicit(&s->price_ns, memory_order_relaxed);
}

static void tell_level(struct gild_segments *s, enum gild_space_level before) {
    char when[64] = "";
    uint64_t left = gild_space_seconds_left(&s->space, clock_ns(CLOCK_MONOTONIC));
    double gib = (double)(s->space.available * bytes_of(s->options.segment_blocks)) / (1u << 30);
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
static void judge_space(struct gild_segments *s) {
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
    return s->options.headroom(s->options.context, use) / bytes_of(s->options.segment_blocks);
}

/* Others may have filled the file system, or made room on it. */
void gild_segments_look(struct gild_segments *s) {
    uint64_t headroom = measure(s, GILD_SEGMENT_FOR_DATA);
    pthread_mutex_lock(&s->lock);
    s->headroom = headroom;
    s->measured = true;
    judge_space(s);
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
        clock_ns(CLOCK_REALTIME) + (pause_ns < MOST_PAUSE_NS ? pause_ns : MOST_PAUSE_NS);
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
    uint64_t bytes = bytes_of(s->options.segment_blocks);
    int fd = gild_file_open(s->folder, name, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, NULL);
    if (fd < 0)
        return fd;
    int err = posix_fallocate(fd, 0, (off_t)bytes);
    err = err == EOPNOTSUPP || err == EINVAL ? 0 : -err;
    for (uint64_t at = 0; at < bytes && !err; at += ZERO_BYTES) {
        uint64_t begun_ns = clock_ns(CLOCK_MONOTONIC);
        err = gild_file_write(fd, s->zeroes, bytes - at < ZERO_BYTES ? bytes - at : ZERO_BYTES, at);
        make_way(s, clock_ns(CLOCK_MONOTONIC) - begun_ns);
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
                   struct gild_segment **out) {
    char name[NAME_BYTES], old[NAME_BYTES];
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
    segment_name(serial, name);
    if (spare) {
        segment_name(spare->serial, old);
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
        segment_name(spare->serial, old);
        gild_file_remove(s->folder, old);
        free(spare);
    }
    free(header);
    free(segment);
    return err;
}

static void wake_waiters(struct gild_segments *s) {
    struct gild_segment_waiter *waiter = s->waiters, *next;
    s->waiters = NULL;
    for (; waiter; waiter = next) {
        next = waiter->next;
        gild_loop_post(waiter->loop, &waiter->task);
    }
}

/* Lock held; gives it up while it works. */
static void prepare_one(struct gild_segments *s, enum gild_segment_use use) {
    struct gild_segment *spare = s->spare, *made = NULL;
    if (spare) {
        s->spare = spare->next;
        s->spare_count--;
        s->blocks -= spare->blocks;
    }
    pthread_mutex_unlock(&s->lock);
    int err = prepare(s, spare, use, &made);
    uint64_t headroom = measure(s, GILD_SEGMENT_FOR_DATA);
    pthread_mutex_lock(&s->lock);
    bool full = err == -ENOSPC || err == -EDQUOT;
    s->headroom = full ? 0 : headroom; /* whatever the file system says of itself */
    s->measured = true;
    if (!err) {
        err = table_put(s, made);
        if (err)
            free(made);
    }
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
    judge_space(s);
    wake_waiters(s);
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
    uint64_t until_ns = clock_ns(CLOCK_REALTIME) + (trouble(s) ? RETRY_NS : LOOK_NS);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    int err = 0;
    while (!s->stopping && !err && (trouble(s) || !wanting(s)))
        err = pthread_cond_timedwait(&s->wake, &s->lock, &until);
}

static void *preparer(void *context) {
    struct gild_segments *s = context;
    gild_segments_look(s);
    pthread_mutex_lock(&s->lock);
    while (!s->stopping) {
        if (wanting(s) && !trouble(s)) {
            prepare_one(s, what_for(s));
            continue;
        }
        rest(s);
        if (s->stopping)
            break;
        if (wanting(s)) {
            prepare_one(s, what_for(s));
        } else if (s->space.level != GILD_SPACE_PLENTY) {
            pthread_mutex_unlock(&s->lock);
            gild_segments_look(s);
            pthread_mutex_lock(&s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- taking and giving back ------------------------------------------------------------------ */

/* What a taker is told: want of space, memory or descriptors passes, and a guest waits for that; a
 * device or catalogue that fails is no want of space. */
static int why_none(int err) {
    switch (err) {
    case -ENOSPC:
    case -EDQUOT:
    case -EFBIG:
    case -ENOMEM:
    case -EMFILE:
    case -ENFILE:
    case -EAGAIN:
        return -ENOSPC;
    default:
        return -EIO;
    }
}

struct gild_segment *gild_segments_take(struct gild_segments *s, enum gild_segment_use use,
                                        struct gild_segment_waiter *waiter, int *error) {
    pthread_mutex_lock(&s->lock);
    struct gild_segment *segment = s->ready;
    *error = 0;
    unsigned keep = use == GILD_SEGMENT_FOR_DATA    ? s->options.reserve
                    : use == GILD_SEGMENT_FOR_MARKS ? s->options.for_nodes
                                                    : 0;
    if (segment && s->ready_count > keep) {
        s->ready = segment->next;
        if (!s->ready)
            s->ready_tail = &s->ready;
        s->ready_count--;
        s->ready_blocks -= segment->blocks;
        s->taken_lately++;
        segment->holds_nodes = use == GILD_SEGMENT_FOR_NODES;
        segment->next = NULL;
        atomic_store(&segment->taken, true);
        if (use == GILD_SEGMENT_FOR_DATA)
            gild_space_taken(&s->space, clock_ns(CLOCK_MONOTONIC));
        judge_space(s);
    } else {
        segment = NULL;
        int why = use == GILD_SEGMENT_FOR_DATA ? s->no_space : s->no_reserve;
        if (why) {
            *error = why_none(why);
        } else if (waiter) {
            waiter->next = s->waiters;
            s->waiters = waiter;
        }
    }
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    return segment;
}

int gild_segments_take_now(struct gild_segments *s, bool holds_nodes, struct gild_segment **out) {
    for (;;) {
        int error;
        *out = gild_segments_take(s, GILD_SEGMENT_FOR_NODES, NULL, &error);
        if (*out) {
            (*out)->holds_nodes = holds_nodes;
            return 0;
        }
        pthread_mutex_lock(&s->lock);
        if (!s->ready)
            prepare_one(s, GILD_SEGMENT_FOR_NODES);
        error = s->ready ? 0 : s->no_reserve;
        pthread_mutex_unlock(&s->lock);
        if (error)
            return error;
    }
}

int gild_segments_recycle(struct gild_segments *s, struct gild_segment *segment) {
    char name[NAME_BYTES];
    pthread_mutex_lock(&s->lock);
    table_remove(s, segment);
    /* One of another size is better than none. */
    bool fits = segment->blocks == s->options.segment_blocks ||
                (segment->fd >= 0 && s->space.level == GILD_SPACE_FULL);
    bool keep = fits && s->spare_count + s->ready_count < s->options.ready_target + s->taken_lately;
    if (keep) {
        segment->next = s->spare;
        s->spare = segment;
        s->spare_count++;
        s->blocks += segment->blocks;
    }
    s->no_space = s->no_reserve = 0;
    judge_space(s);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (keep)
        return 0;
    segment_name(segment->serial, name);
    int err = gild_file_remove(s->folder, name);
    if (segment->fd >= 0)
        close(segment->fd);
    free(segment);
    return err;
}

/* ---- life ------------------------------------------------------------------------------------ */

int gild_segments_create(struct gild_segments **out, const struct gild_segments_options *options,
                         struct gild_error *error) {
    uint32_t blocks = options->segment_blocks ? options->segment_blocks : GILD_SEGMENT_BLOCKS;
    if (blocks < GILD_SEGMENT_LEAST_BLOCKS || blocks > GILD_SEGMENT_BLOCKS)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "a log segment can not have %u blocks: ask for %u to %u", blocks,
                         GILD_SEGMENT_LEAST_BLOCKS, GILD_SEGMENT_BLOCKS);
    struct gild_segments *s = calloc(1, sizeof *s);
    if (!s)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the log's segments");
    s->options = *options;
    s->options.segment_blocks = blocks;
    snprintf(s->directory, sizeof s->directory, "%s", options->directory);
    s->folder = open(options->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->folder < 0) {
        int err = errno;
        free(s);
        return gild_fail(error, gild_code_of_errno(err), err, "the folder %s can not be opened: %s",
                         options->directory, strerror(err));
    }
    s->lowest = UINT64_MAX;
    s->ready_tail = &s->ready;
    s->top = mmap(NULL, TOP_SLOTS * sizeof *s->top, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    s->zeroes = mmap(NULL, ZERO_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->top == MAP_FAILED || s->zeroes == MAP_FAILED) {
        close(s->folder);
        free(s);
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the log's segments");
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    *out = s;
    return 0;
}

static void free_list(struct gild_segment *segment, struct gild_segments *s, bool unlink_them) {
    while (segment) {
        struct gild_segment *next = segment->next;
        if (unlink_them) {
            char name[NAME_BYTES];
            segment_name(segment->serial, name);
            gild_file_remove(s->folder, name);
        }
        close(segment->fd);
        free(segment);
        segment = next;
    }
}

void gild_segments_destroy(struct gild_segments *s) {
    if (!s)
        return;
    assert(!s->running);
    for (uint64_t leaf = 0; s->count && leaf <= s->highest / LEAF_SLOTS; leaf++) {
        struct slots *slots = atomic_load(&s->top[leaf]);
        for (unsigned i = 0; slots && i < LEAF_SLOTS; i++) {
            struct gild_segment *segment = atomic_load(&slots->slot[i]);
            if (segment) {
                if (segment->fd >= 0)
                    close(segment->fd);
                free(segment);
            }
        }
    }
    for (uint64_t leaf = 0; s->highest && leaf <= s->highest / LEAF_SLOTS; leaf++)
        free(atomic_load(&s->top[leaf]));
    free_list(s->spare, s, true); /* the catalogue does not know them any more */
    munmap(s->top, TOP_SLOTS * sizeof *s->top);
    munmap(s->zeroes, ZERO_BYTES);
    close(s->folder);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int gild_segments_start(struct gild_segments *s) {
    s->stopping = false;
    int err = pthread_create(&s->thread, NULL, preparer, s);
    s->running = err == 0;
    return -err;
}

void gild_segments_stop(struct gild_segments *s) {
    if (!s->running)
        return;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    s->running = false;
}

int gild_segments_adopt(struct gild_segments *s, uint64_t serial,
                        const struct gild_rec_segment *record, int fd, uint32_t blocks) {
    struct gild_segment *segment = calloc(1, sizeof *segment);
    if (!segment)
        return -ENOMEM;
    segment->serial = serial;
    segment->blocks = blocks;
    segment->fd = fd;
    segment->state_recorded = record->state;
    segment->state_pending = GILD_SEGMENT_NONE;
    segment->holds_nodes = record->holds_nodes;
    segment->base = record->live_blocks;
    atomic_store(&segment->taken, record->state != GILD_SEGMENT_READY);
    atomic_store(&segment->closed, record->state == GILD_SEGMENT_FULL);
    int err = table_put(s, segment);
    if (err)
        free(segment);
    return err;
}

int gild_segments_add(struct gild_segments *s, uint64_t serial,
                      const struct gild_rec_segment *record, struct gild_error *error) {
    char name[NAME_BYTES];
    segment_name(serial, name);
    struct gild_segment_header *header = gild_file_buffer(GILD_LOG_BLOCK);
    if (!header)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the log's segments");
    uint64_t bytes;
    int fd = gild_file_open(s->folder, name, O_RDWR | O_DIRECT, 0, NULL);
    int err = fd < 0 ? fd : gild_file_size(fd, &bytes);
    if (!err && bytes < bytes_of(GILD_SEGMENT_LEAST_BLOCKS))
        err = -EBADMSG;
    if (!err)
        err = gild_file_read(fd, header, GILD_LOG_BLOCK, 0);
    if (!err)
        err = gild_segment_header_verify(header, s->options.store_id, serial);
    if (!err && bytes != bytes_of(header->blocks))
        err = -EBADMSG;
    if (!err)
        err = gild_segments_adopt(s, serial, record, fd, header->blocks);
    free(header);
    if (!err)
        return 0;
    if (fd >= 0)
        close(fd);
    if (err == -EBADMSG)
        return gild_fail(error, GILD_CORRUPT, EBADMSG,
                         "the log segment %s/%s is damaged or not of this store: run `gild store "
                         "check --repair`; nothing was changed",
                         s->directory, name);
    if (err == -ENOTSUP)
        return gild_fail(error, GILD_FAILED, ENOTSUP,
                         "the log segment %s/%s has a newer format: use a newer gild", s->directory,
                         name);
    if (err == -ENOENT)
        return gild_fail(error, GILD_CORRUPT, ENOENT,
                         "the log segment %s/%s is missing: put it back, or run `gild store check "
                         "--repair`; nothing was changed",
                         s->directory, name);
    return gild_fail(error, gild_code_of_errno(-err), -err,
                     "the log segment %s/%s can not be opened: %s", s->directory, name,
                     strerror(-err));
}

void gild_segments_quiet(struct gild_segments *s) {
    pthread_mutex_lock(&s->lock);
    s->taken_lately = 0;
    pthread_mutex_unlock(&s->lock);
}

void gild_segments_offer(struct gild_segments *s, struct gild_segment *segment) {
    pthread_mutex_lock(&s->lock);
    segment->next = NULL;
    *s->ready_tail = segment;
    s->ready_tail = &segment->next;
    s->ready_count++;
    s->ready_blocks += segment->blocks;
    judge_space(s);
    wake_waiters(s);
    pthread_mutex_unlock(&s->lock);
}

void gild_segments_get_totals(struct gild_segments *s, struct gild_segments_totals *totals) {
    pthread_mutex_lock(&s->lock);
    totals->level = s->space.level;
    totals->available = s->space.available;
    totals->count = s->count;
    totals->ready = s->ready_count;
    totals->bytes = bytes_of(s->blocks);
    totals->ready_bytes = bytes_of(s->ready_blocks);
    totals->segment_bytes = bytes_of(s->options.segment_blocks);
    pthread_mutex_unlock(&s->lock);
}
