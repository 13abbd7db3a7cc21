/* The table of segments: finding, counting, taking and giving back. prepare.c makes them ahead.
 *
 * Serials are never reused: a recycled file is renamed and given a new header, and whatever the old
 * life left in it carries the old serial in its checks. That makes the serial the segment's
 * generation.
 *
 * Invariant: `ready` + `taken` + ... every segment in the table has an open descriptor (but those
 * that a repair knows missing); slots change only under the lock, reads of slots are wait-free. */
#include "log/segments_own.h"

#define WINDOW_NS (60ull * 1000000000u)
#define KEPT_SHARE 4u /* of the log's files */

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
#include "base/place.h"
#include "io/file.h"

/* ---- the table ------------------------------------------------------------------------------- */

struct gild_segment *gild_segments_find(struct gild_segments *s, uint64_t serial) {
    uint64_t leaf = serial / SEGMENTS_LEAF_SLOTS;
    if (leaf >= SEGMENTS_TOP_SLOTS)
        return NULL;
    struct segments_slots *slots = atomic_load_explicit(&s->top[leaf], memory_order_acquire);
    if (!slots)
        return NULL;
    return atomic_load_explicit(&slots->slot[serial % SEGMENTS_LEAF_SLOTS], memory_order_acquire);
}

int segments_table_put(struct gild_segments *s, struct gild_segment *segment) {
    uint64_t leaf = segment->serial / SEGMENTS_LEAF_SLOTS;
    if (leaf >= SEGMENTS_TOP_SLOTS)
        return -EOVERFLOW;
    struct segments_slots *slots = atomic_load(&s->top[leaf]);
    if (!slots) {
        slots = calloc(1, sizeof *slots);
        if (!slots)
            return -ENOMEM;
        atomic_store_explicit(&s->top[leaf], slots, memory_order_release);
    }
    atomic_store_explicit(&slots->slot[segment->serial % SEGMENTS_LEAF_SLOTS], segment,
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
    struct segments_slots *slots = atomic_load(&s->top[segment->serial / SEGMENTS_LEAF_SLOTS]);
    atomic_store_explicit(&slots->slot[segment->serial % SEGMENTS_LEAF_SLOTS], NULL,
                          memory_order_release);
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
            gild_space_taken(&s->space, segments_clock_ns(CLOCK_MONOTONIC));
        segments_judge_space(s);
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
            segments_prepare_one(s, GILD_SEGMENT_FOR_NODES);
        error = s->ready ? 0 : s->no_reserve;
        pthread_mutex_unlock(&s->lock);
        if (error)
            return error;
    }
}

int gild_segments_full(struct gild_segments *s, struct gild_segment_fact **facts, size_t *count) {
    pthread_mutex_lock(&s->lock);
    *count = 0;
    *facts = malloc((s->count + 1) * sizeof **facts);
    for (uint64_t serial = s->lowest; *facts && s->count && serial <= s->highest; serial++) {
        struct gild_segment *segment = gild_segments_find(s, serial);
        if (!segment || segment->fd < 0 || segment->state_recorded != GILD_SEGMENT_FULL)
            continue;
        (*facts)[(*count)++] = (struct gild_segment_fact){
            .serial = serial,
            .live_blocks = segment->base,
            .closed_s = segment->closed_s,
            .blocks = segment->blocks,
            .holds_nodes = segment->holds_nodes,
        };
    }
    pthread_mutex_unlock(&s->lock);
    return *facts ? 0 : -ENOMEM;
}

struct gild_segment *gild_segments_pin(struct gild_segments *s, uint64_t serial) {
    pthread_mutex_lock(&s->lock);
    struct gild_segment *segment = gild_segments_find(s, serial);
    if (segment)
        segment->pins++;
    pthread_mutex_unlock(&s->lock);
    return segment;
}

void gild_segments_unpin(struct gild_segments *s, struct gild_segment *segment) {
    pthread_mutex_lock(&s->lock);
    segment->pins--;
    pthread_mutex_unlock(&s->lock);
}

/* To make a file costs as many bytes as guests then write to it: what was taken of late will be
 * wanted again. But a log that has become small gives back what it was. */
static unsigned worth_keeping(const struct gild_segments *s) {
    unsigned taken = s->taken_lately > s->taken_before ? s->taken_lately : s->taken_before;
    return s->options.ready_target +
           (unsigned)gild_min_u64(taken, (s->count + s->spare_count) / KEPT_SHARE);
}

int gild_segments_recycle(struct gild_segments *s, struct gild_segment *segment) {
    char name[SEGMENTS_NAME_BYTES];
    struct segments_passing passing = {.serial = {segment->serial}};
    pthread_mutex_lock(&s->lock);
    if (segment->pins) {
        pthread_mutex_unlock(&s->lock);
        return -EBUSY;
    }
    table_remove(s, segment);
    /* One of another size is better than none. */
    bool fits = segment->blocks == s->options.segment_blocks ||
                (segment->fd >= 0 && s->space.level == GILD_SPACE_FULL);
    bool keep = fits && s->spare_count + s->ready_count < worth_keeping(s);
    if (keep) {
        segment->next = s->spare;
        s->spare = segment;
        s->spare_count++;
        s->blocks += segment->blocks;
    } else {
        segments_pass(s, &passing);
    }
    s->no_space = s->no_reserve = 0;
    segments_judge_space(s);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (keep)
        return 0;
    segments_name(segment->serial, name);
    int err = gild_file_remove(s->folder, name);
    if (segment->fd >= 0)
        close(segment->fd);
    free(segment);
    pthread_mutex_lock(&s->lock);
    segments_passed(s, &passing);
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* ---- life ------------------------------------------------------------------------------------ */

static void free_list(struct gild_segment *segment, struct gild_segments *s, bool unlink_them) {
    while (segment) {
        struct gild_segment *next = segment->next;
        if (unlink_them) {
            char name[SEGMENTS_NAME_BYTES];
            segments_name(segment->serial, name);
            gild_file_remove(s->folder, name);
        }
        close(segment->fd);
        free(segment);
        segment = next;
    }
}

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
    s->top = mmap(NULL, SEGMENTS_TOP_SLOTS * sizeof *s->top, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    s->zeroes = mmap(NULL, SEGMENTS_ZERO_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

void gild_segments_destroy(struct gild_segments *s) {
    if (!s)
        return;
    assert(!s->running);
    for (uint64_t leaf = 0; s->count && leaf <= s->highest / SEGMENTS_LEAF_SLOTS; leaf++) {
        struct segments_slots *slots = atomic_load(&s->top[leaf]);
        for (unsigned i = 0; slots && i < SEGMENTS_LEAF_SLOTS; i++) {
            struct gild_segment *segment = atomic_load(&slots->slot[i]);
            if (segment) {
                if (segment->fd >= 0)
                    close(segment->fd);
                free(segment);
            }
        }
    }
    for (uint64_t leaf = 0; s->highest && leaf <= s->highest / SEGMENTS_LEAF_SLOTS; leaf++)
        free(atomic_load(&s->top[leaf]));
    free_list(s->spare, s, true); /* the catalogue does not know them any more */
    munmap(s->top, SEGMENTS_TOP_SLOTS * sizeof *s->top);
    munmap(s->zeroes, SEGMENTS_ZERO_BYTES);
    close(s->folder);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int gild_segments_start(struct gild_segments *s) {
    s->stopping = false;
    int err = pthread_create(&s->thread, NULL, segments_preparer, s);
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
    segment->closed_s = record->closed_s;
    atomic_store(&segment->taken, record->state != GILD_SEGMENT_READY);
    atomic_store(&segment->closed, record->state == GILD_SEGMENT_FULL);
    int err = segments_table_put(s, segment);
    if (err)
        free(segment);
    return err;
}

int gild_segments_add(struct gild_segments *s, uint64_t serial,
                      const struct gild_rec_segment *record, struct gild_error *error) {
    char name[SEGMENTS_NAME_BYTES];
    segments_name(serial, name);
    struct gild_segment_header *header = gild_file_buffer(GILD_LOG_BLOCK);
    if (!header)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the log's segments");
    uint64_t bytes;
    int fd = gild_file_open(s->folder, name, O_RDWR | O_DIRECT, 0, NULL);
    int err = fd < 0 ? fd : gild_file_size(fd, &bytes);
    if (!err && bytes < segments_bytes_of(GILD_SEGMENT_LEAST_BLOCKS))
        err = -EBADMSG;
    if (!err)
        err = gild_file_read(fd, header, GILD_LOG_BLOCK, 0);
    if (!err)
        err = gild_segment_header_verify(header, s->options.store_id, serial);
    if (!err && bytes != segments_bytes_of(header->blocks))
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

/* An emptied file beyond so many, or NULL. */
static struct gild_segment *surplus(struct gild_segments *s, unsigned keep) {
    struct gild_segment *segment = s->spare;
    if (!segment || s->spare_count + s->ready_count <= keep)
        return NULL;
    s->spare = segment->next;
    s->spare_count--;
    s->blocks -= segment->blocks;
    return segment;
}

/* Lock held; gives it up while it removes files. */
static void drop_surplus(struct gild_segments *s, unsigned keep, uint64_t bytes) {
    struct gild_segment *segment;
    uint64_t dropped = 0;
    while (dropped < bytes && (segment = surplus(s, keep))) {
        struct segments_passing passing = {.serial = {segment->serial}};
        segments_pass(s, &passing);
        pthread_mutex_unlock(&s->lock);
        dropped += segments_bytes_of(segment->blocks);
        segment->next = NULL;
        free_list(segment, s, true);
        pthread_mutex_lock(&s->lock);
        segments_passed(s, &passing);
    }
    if (dropped)
        segments_judge_space(s);
}

void gild_segments_quiet(struct gild_segments *s) {
    uint64_t now_ns = segments_clock_ns(CLOCK_MONOTONIC);
    pthread_mutex_lock(&s->lock);
    if (now_ns - s->window_ns >= WINDOW_NS) {
        s->taken_before = s->taken_lately;
        s->taken_lately = 0;
        s->window_ns = now_ns;
    }
    drop_surplus(s, worth_keeping(s), UINT64_MAX);
    pthread_mutex_unlock(&s->lock);
}

void gild_segments_release(struct gild_segments *s, uint64_t bytes) {
    pthread_mutex_lock(&s->lock);
    drop_surplus(s, s->options.ready_target, bytes);
    pthread_mutex_unlock(&s->lock);
}

void segments_pass(struct gild_segments *s, struct segments_passing *passing) {
    passing->next = s->passing;
    s->passing = passing;
}

void segments_passed(struct gild_segments *s, struct segments_passing *passing) {
    struct segments_passing **at = &s->passing;
    while (*at != passing)
        at = &(*at)->next;
    *at = passing->next;
}

bool gild_segments_own(struct gild_segments *s, uint64_t serial) {
    pthread_mutex_lock(&s->lock);
    bool own = gild_segments_find(s, serial) != NULL;
    for (const struct gild_segment *spare = s->spare; spare && !own; spare = spare->next)
        own = spare->serial == serial;
    for (const struct segments_passing *it = s->passing; it && !own; it = it->next)
        own = it->serial[0] == serial || it->serial[1] == serial;
    pthread_mutex_unlock(&s->lock);
    return own;
}

void gild_segments_offer(struct gild_segments *s, struct gild_segment *segment) {
    pthread_mutex_lock(&s->lock);
    segment->next = NULL;
    *s->ready_tail = segment;
    s->ready_tail = &segment->next;
    s->ready_count++;
    s->ready_blocks += segment->blocks;
    segments_judge_space(s);
    segments_wake_waiters(s);
    pthread_mutex_unlock(&s->lock);
}

void gild_segments_get_totals(struct gild_segments *s, struct gild_segments_totals *totals) {
    pthread_mutex_lock(&s->lock);
    totals->level = s->space.level;
    totals->available = s->space.available;
    totals->count = s->count;
    totals->ready = s->ready_count;
    totals->taken = s->space.takes;
    totals->bytes = segments_bytes_of(s->blocks);
    totals->ready_bytes = segments_bytes_of(s->ready_blocks);
    totals->segment_bytes = segments_bytes_of(s->options.segment_blocks);
    pthread_mutex_unlock(&s->lock);
}
