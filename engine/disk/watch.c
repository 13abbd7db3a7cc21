/* See watch.h.
 *
 * Invariants: a ring has one writer (its reactor) and one reader (the thread); `put` and `taken`
 * only grow. A disk's `refused` is its reactor's to set; the thread marks in `room_told` that it
 * has said so.
 *
 * Failure modes: none of its own; an event that can not be kept is counted by events.c. */
#include "disk/watch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "disk/events.h"
#include "disk/internal.h"
#include "disk/quota.h"

#define RING_NOTES 64u
#define LOOK_NS 5000000000u        /* between looks, as a rule */
#define REFUSED_LOOK_NS 250000000u /* while a disk is refused */
#define HYSTERESIS_PERCENT 2u

struct note {
    enum refused why; /* REFUSED_NOT: taken again */
    char path[300];
};

struct ring {
    struct note notes[RING_NOTES];
    _Atomic uint64_t put, taken;
    _Atomic uint64_t dropped;
};

struct watch {
    struct gild_store *store;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    bool running, stopping, woken;
    /* The thread's. */
    enum gild_space_level level;
    bool over[GILD_WARN_MAX];
    uint8_t warned[GILD_WARN_MAX]; /* the percentages that `over` is of */
    struct ring rings[MAX_REACTORS];
};

/* ---- reactors -------------------------------------------------------------------------------- */

void watch_wake(struct gild_store *store) {
    struct watch *watch = store->watch;
    pthread_mutex_lock(&watch->lock);
    watch->woken = true;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->lock);
}

static void post(struct gild_disk *disk, enum refused why) {
    struct ring *ring = &disk->store->watch->rings[disk->reactor->index];
    uint64_t put = atomic_load_explicit(&ring->put, memory_order_relaxed);
    if (put - atomic_load_explicit(&ring->taken, memory_order_acquire) == RING_NOTES) {
        atomic_fetch_add(&ring->dropped, 1);
        return;
    }
    struct note *note = &ring->notes[put % RING_NOTES];
    size_t length = strnlen(disk->path, sizeof note->path - 1);
    memcpy(note->path, disk->path, length);
    note->path[length] = 0;
    note->why = why;
    atomic_store_explicit(&ring->put, put + 1, memory_order_release);
    watch_wake(disk->store);
}

void watch_refused(struct gild_disk *disk, enum refused why) {
    atomic_store(&disk->room_told, false);
    if (atomic_load_explicit(&disk->refused, memory_order_relaxed) != REFUSED_NOT)
        return;
    atomic_store(&disk->refused, why);
    post(disk, why);
}

void watch_taken(struct gild_disk *disk) {
    atomic_store(&disk->refused, REFUSED_NOT);
    post(disk, REFUSED_NOT);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static const char *reason(enum refused why) {
    static const char *const reasons[] = {"", "the disk has reached its quota",
                                          "its pool has reached its quota", "the store is full"};
    return reasons[why];
}

static void tell_note(struct gild_store *store, const struct note *note) {
    if (note->why == REFUSED_NOT) {
        gild_log(GILD_LOG_INFO, "writes of disk %s are taken again", note->path);
        gild_events_note(store, GILD_EVENT_RESUMED, EVENT_NOBODY, note->path,
                         "writes are taken again");
        return;
    }
    gild_log(GILD_LOG_WARN, "writes of disk %s are refused: %s", note->path, reason(note->why));
    gild_events_note(store, GILD_EVENT_REFUSED, EVENT_NOBODY, note->path, "writes are refused: %s",
                     reason(note->why));
}

static void drain(struct watch *watch) {
    for (unsigned i = 0; i < watch->store->reactor_count; i++) {
        struct ring *ring = &watch->rings[i];
        uint64_t put = atomic_load_explicit(&ring->put, memory_order_acquire);
        uint64_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);
        for (; taken < put; taken++) {
            tell_note(watch->store, &ring->notes[taken % RING_NOTES]);
            atomic_store_explicit(&ring->taken, taken + 1, memory_order_release);
        }
        uint64_t dropped = atomic_exchange(&ring->dropped, 0);
        if (dropped)
            gild_events_note(watch->store, GILD_EVENT_DROPPED, EVENT_NOBODY, "store",
                             "%" PRIu64 " events of refused disks came too fast to be kept",
                             dropped);
    }
}

/* open_lock held: neither disks nor quotas change. */
static bool has_room(struct gild_disk *disk, enum gild_space_level level) {
    const struct disk_quota *quota = &disk->quota;
    return level != GILD_SPACE_FULL && atomic_load(&disk->mapped_blocks) < quota->limit_blocks &&
           (!quota->pool ||
            atomic_load(&quota->pool->used_blocks) < atomic_load(&quota->pool->limit_blocks));
}

/* True: a disk is refused and has no room yet. */
static bool look_at_disks(struct gild_store *store, enum gild_space_level level) {
    bool any = false;
    pthread_mutex_lock(&store->open_lock);
    for (struct gild_disk *disk = store->disks; disk; disk = disk->all_next) {
        if (atomic_load(&disk->refused) == REFUSED_NOT || atomic_load(&disk->room_told))
            continue;
        if (!has_room(disk, level)) {
            any = true;
            continue;
        }
        atomic_store(&disk->room_told, true);
        gild_log(GILD_LOG_INFO, "disk %s has room again: a guest that was paused may go on",
                 disk->path);
        gild_events_note(store, GILD_EVENT_ROOM, EVENT_NOBODY, disk->path,
                         "there is room again: a guest that was paused may go on");
    }
    pthread_mutex_unlock(&store->open_lock);
    return any;
}

static void cross(struct watch *watch, unsigned percent, bool over, uint64_t used,
                  uint64_t capacity) {
    double gib = 1u << 30;
    gild_log(over ? GILD_LOG_WARN : GILD_LOG_INFO,
             "store %s uses %s %u%% of its room: %.2f of %.2f GiB", watch->store->directory,
             over ? "more than" : "less than", percent, (double)used / gib, (double)capacity / gib);
    gild_events_note(watch->store, GILD_EVENT_THRESHOLD, EVENT_NOBODY, "store",
                     "%s %u%% used: %.2f of %.2f GiB", over ? "more than" : "less than", percent,
                     (double)used / gib, (double)capacity / gib);
}

static void look_at_use(struct watch *watch) {
    const struct gild_rec_limits limits = quota_limits(watch->store);
    struct gild_store_info info;
    if (memcmp(watch->warned, limits.warn, sizeof watch->warned) != 0) {
        memcpy(watch->warned, limits.warn, sizeof watch->warned);
        memset(watch->over, 0, sizeof watch->over);
    }
    if (!limits.warn_count || gild_store_get_info(watch->store, &info, NULL) ||
        !info.capacity_bytes)
        return;
    double used = (double)info.used_bytes * 100 / (double)info.capacity_bytes;
    for (unsigned i = 0; i < limits.warn_count; i++) {
        unsigned percent = limits.warn[i];
        bool over = used >= (watch->over[i] ? (double)percent - HYSTERESIS_PERCENT : percent);
        if (over == watch->over[i])
            continue;
        watch->over[i] = over;
        cross(watch, percent, over, info.used_bytes, info.capacity_bytes);
    }
}

static enum gild_space_level look_at_level(struct watch *watch) {
    struct gild_segments_totals totals;
    gild_segments_get_totals(watch->store->segments, &totals);
    if (totals.level != watch->level)
        gild_events_note(watch->store, GILD_EVENT_SPACE, EVENT_NOBODY, "store",
                         "space for guests' writes: %s", gild_space_name(totals.level));
    watch->level = totals.level;
    return totals.level;
}

static void *watch_main(void *context) {
    struct watch *watch = context;
    pthread_mutex_lock(&watch->lock);
    while (!watch->stopping) {
        watch->woken = false;
        pthread_mutex_unlock(&watch->lock);
        drain(watch);
        look_at_use(watch);
        bool refused = look_at_disks(watch->store, look_at_level(watch));
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + (refused ? REFUSED_LOOK_NS : LOOK_NS);
        until.tv_sec += (time_t)(ns / 1000000000u);
        until.tv_nsec = (long)(ns % 1000000000u);
        pthread_mutex_lock(&watch->lock);
        int err = 0;
        while (!watch->stopping && !watch->woken && !err)
            err = pthread_cond_timedwait(&watch->wake, &watch->lock, &until);
    }
    pthread_mutex_unlock(&watch->lock);
    drain(watch);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

int watch_create(struct gild_store *store) {
    struct watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return -ENOMEM;
    watch->store = store;
    pthread_mutex_init(&watch->lock, NULL);
    pthread_cond_init(&watch->wake, NULL);
    store->watch = watch;
    return 0;
}

int watch_start(struct gild_store *store) {
    struct watch *watch = store->watch;
    if (store->offline)
        return 0;
    int err = pthread_create(&watch->thread, NULL, watch_main, watch);
    watch->running = err == 0;
    if (!err)
        pthread_setname_np(watch->thread, "gild-watch");
    return -err;
}

void watch_stop(struct gild_store *store) {
    struct watch *watch = store->watch;
    if (!watch || !watch->running)
        return;
    pthread_mutex_lock(&watch->lock);
    watch->stopping = true;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->lock);
    pthread_join(watch->thread, NULL);
    watch->running = false;
}

void watch_destroy(struct gild_store *store) {
    if (!store->watch)
        return;
    pthread_mutex_destroy(&store->watch->lock);
    pthread_cond_destroy(&store->watch->wake);
    free(store->watch);
    store->watch = NULL;
}
