/* When the cleaner works: a thread that looks about once a second, and what is asked for by hand.
 *
 *            nothing to do                      something cold, guests at rest: at full speed
 *   REST <------------------> LEISURE           guests busy: at LEISURE_BYTES a second
 *     \                          |
 *      `-------> HURRY <---------'              the log fills up: as fast as guests write and a
 *                                               margin, with all processors; at last at full speed
 *
 * A pass that could do nothing makes the next one wait. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "disk/cleaner.h"

#define LOOK_S 1
#define IDLE_S 30
#define LEISURE_BYTES (64ull << 20)
#define HURRY_LEAST_BYTES (256ull << 20)
#define BUSY_OPS 100u /* a second: guests are at work */
#define MOST_STUCK 4096u
#define COLD_S 600u

struct cleaner {
    struct gild_store *store;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    bool running, busy;
    _Atomic bool stopping;
    bool nudged; /* a rest ends */
    bool asked;  /* somebody waits for a pass that begins from now on */
    bool background;
    uint32_t cold_s;
    int complained;
    struct gild_clean_result sum; /* under the lock */
    struct pace pace;
    /* What guests did lately, as last looked at. */
    uint64_t looked_ns, ops, log_bytes;
    uint64_t ops_rate, log_rate; /* a second */
    uint64_t stuck[MOST_STUCK];
    size_t stuck_count;
};

static uint64_t now_ns(void *context) {
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Lock held. Until it is nudged, told to stop, or the time is over. */
static void rest(struct cleaner *cleaner, uint64_t ns) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t end_ns = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(end_ns / 1000000000u);
    until.tv_nsec = (long)(end_ns % 1000000000u);
    while (!cleaner->nudged && !atomic_load(&cleaner->stopping))
        if (pthread_cond_timedwait(&cleaner->wake, &cleaner->lock, &until) == ETIMEDOUT)
            break;
    cleaner->nudged = false;
}

static int pace_wait(void *context, uint64_t ns) {
    struct cleaner *cleaner = context;
    pthread_mutex_lock(&cleaner->lock);
    rest(cleaner, ns);
    pthread_mutex_unlock(&cleaner->lock);
    return atomic_load(&cleaner->stopping) ? -ECANCELED : 0;
}

/* ---- the pace -------------------------------------------------------------------------------- */

static void look_at_guests(struct cleaner *cleaner) {
    uint64_t now = now_ns(NULL), ops = 0, bytes;
    struct gild_store *store = cleaner->store;
    for (unsigned i = 0; i < store->reactor_count; i++)
        ops += atomic_load_explicit(&store->reactors[i].begun, memory_order_relaxed);
    struct gild_segments_totals totals;
    gild_segments_get_totals(store->segments, &totals);
    bytes = totals.taken * totals.segment_bytes;
    uint64_t ns = now - cleaner->looked_ns;
    if (ns < 200000000u)
        return;
    cleaner->ops_rate = (uint64_t)((double)(ops - cleaner->ops) * 1e9 / (double)ns);
    cleaner->log_rate = (uint64_t)((double)(bytes - cleaner->log_bytes) * 1e9 / (double)ns);
    cleaner->ops = ops;
    cleaner->log_bytes = bytes;
    cleaner->looked_ns = now;
}

struct pace *cleaner_pace(struct gild_store *store, enum clean_urgency urgency) {
    struct cleaner *cleaner = store->cleaner;
    struct gild_segments_totals totals;
    look_at_guests(cleaner);
    gild_segments_get_totals(store->segments, &totals);
    bool guests = cleaner->ops_rate >= BUSY_OPS;
    uint64_t rate = 0;
    if (urgency == CLEAN_LEISURE && guests)
        rate = LEISURE_BYTES;
    else if (urgency == CLEAN_HURRY && guests && totals.level < GILD_SPACE_LOW)
        rate =
            4 * cleaner->log_rate > HURRY_LEAST_BYTES ? 4 * cleaner->log_rate : HURRY_LEAST_BYTES;
    cleaner->pace.rate_bytes = rate;
    return &cleaner->pace;
}

/* ---- one at a time --------------------------------------------------------------------------- */

static void add_up(struct gild_clean_result *sum, const struct clean_result *result) {
    sum->segments += result->segments;
    sum->moved_blocks += result->moved;
    sum->packed_blocks += result->packed;
    sum->shared_blocks += result->shared;
    sum->zero_blocks += result->zeroes;
    sum->pack_bytes += result->pack_bytes;
    sum->dropped_bytes += result->pack_dropped;
}

void gild_store_get_cleaned(struct gild_store *store, struct gild_clean_result *sum) {
    pthread_mutex_lock(&store->cleaner->lock);
    *sum = store->cleaner->sum;
    pthread_mutex_unlock(&store->cleaner->lock);
}

bool cleaner_begin(struct gild_store *store) {
    struct cleaner *cleaner = store->cleaner;
    pthread_mutex_lock(&cleaner->lock);
    bool free = !cleaner->busy && !atomic_load(&cleaner->stopping);
    cleaner->busy = cleaner->busy || free;
    pthread_mutex_unlock(&cleaner->lock);
    return free;
}

void cleaner_end(struct gild_store *store, const struct clean_result *result) {
    struct cleaner *cleaner = store->cleaner;
    pthread_mutex_lock(&cleaner->lock);
    cleaner->busy = false;
    add_up(&cleaner->sum, result);
    pthread_cond_broadcast(&cleaner->wake);
    pthread_mutex_unlock(&cleaner->lock);
}

bool cleaner_stopping(const struct gild_store *store) {
    return atomic_load(&store->cleaner->stopping);
}

uint32_t cleaner_cold_s(const struct gild_store *store) {
    return store->cleaner->cold_s;
}

/* Only by the pass that runs. */
int cleaner_note_stuck(struct gild_store *store, uint64_t serial) {
    struct cleaner *cleaner = store->cleaner;
    if (cleaner->stuck_count == MOST_STUCK)
        return -ENOMEM;
    cleaner->stuck[cleaner->stuck_count++] = serial;
    gild_log(GILD_LOG_WARN,
             "log segment %016llx holds blocks that can not be moved: run `gild store scrub`",
             (unsigned long long)serial);
    return 0;
}

static bool is_stuck(const struct cleaner *cleaner, uint64_t serial) {
    for (size_t i = 0; i < cleaner->stuck_count; i++)
        if (cleaner->stuck[i] == serial)
            return true;
    return false;
}

size_t cleaner_unstuck(struct gild_store *store, struct gild_segment_fact *facts, size_t count) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (!is_stuck(store->cleaner, facts[i].serial))
            facts[kept++] = facts[i];
    return kept;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void complain(struct cleaner *cleaner, int err) {
    if (err && err != -ECANCELED && err != -EBUSY && err != cleaner->complained)
        gild_log(GILD_LOG_WARN, "the log of store %s can not be cleaned: %s",
                 cleaner->store->directory, strerror(-err));
    cleaner->complained = err;
}

static uint64_t available(struct gild_store *store) {
    struct gild_segments_totals totals;
    gild_segments_get_totals(store->segments, &totals);
    return totals.available;
}

/* Whether writes that find no room may wait for the next pass. One for which some have waited since
 * before it began, and that gained nothing, was in vain: those are refused, who are woken by a
 * checkpoint. */
static void judge_gain(struct gild_store *store, const struct clean_result *result, bool failed,
                       bool asked, uint64_t before) {
    struct gild_segments_totals totals;
    gild_segments_get_totals(store->segments, &totals);
    uint64_t emptied = result->segments * totals.segment_bytes;
    uint64_t filled = result->moved * GILD_BLOCK_BYTES + result->pack_bytes;
    bool gained = totals.available > before;
    if (result->urgency == CLEAN_HURRY && !failed)
        gained = gained || emptied > filled + filled / 16;
    bool gains = gained || (!asked && totals.available);
    if (!gains && !asked)
        return;
    if (atomic_exchange(&store->cleaner_gains, gains) && !gains)
        keeper_ask(store);
}

/* A pass by need; where nothing is left and nothing was found worth it, a checkpoint may know more:
 * it counts what lives in the segments that were filled since the last one. */
static int pass_by_need(struct gild_store *store, struct clean_result *result) {
    struct gild_error error = {0};
    int err = cleaner_pass(store, 0, result);
    if (!err && !result->segments && !available(store) && !gild_store_checkpoint(store, &error))
        err = cleaner_pass(store, 0, result);
    /* What was emptied becomes free, and the next choice sees it so. */
    if (result->segments && gild_store_checkpoint(store, &error))
        err = err ? err : -EIO;
    return err;
}

static void *cleaner_main(void *context) {
    struct cleaner *cleaner = context;
    struct clean_result result;
    pthread_mutex_lock(&cleaner->lock);
    while (!atomic_load(&cleaner->stopping)) {
        bool asked = cleaner->asked;
        cleaner->asked = false;
        pthread_mutex_unlock(&cleaner->lock);
        look_at_guests(cleaner);
        uint64_t before = available(cleaner->store);
        int err = pass_by_need(cleaner->store, &result);
        complain(cleaner, err);
        judge_gain(cleaner->store, &result, err != 0, asked, before);
        pthread_mutex_lock(&cleaner->lock);
        bool idle = (err || !cleaner_done(&result)) && !cleaner->asked;
        if (idle && !atomic_load(&cleaner->stopping))
            rest(cleaner, (uint64_t)(err || result.segments ? IDLE_S : LOOK_S) * 1000000000u);
    }
    pthread_mutex_unlock(&cleaner->lock);
    if (atomic_exchange(&cleaner->store->cleaner_gains, false))
        keeper_ask(cleaner->store);
    return NULL;
}

void cleaner_nudge(struct gild_store *store) {
    struct cleaner *cleaner = store->cleaner;
    pthread_mutex_lock(&cleaner->lock);
    cleaner->nudged = cleaner->asked = true;
    pthread_cond_broadcast(&cleaner->wake);
    pthread_mutex_unlock(&cleaner->lock);
}

/* ---- by hand --------------------------------------------------------------------------------- */

static int tell(const struct gild_clean_options *options, const struct gild_clean_result *result) {
    return options->progress && options->progress(options->context, result) ? -ECANCELED : 0;
}

/* One that runs in the background is waited for. */
static int pass_in_turn(struct gild_store *store, uint64_t upto, struct clean_result *result) {
    struct cleaner *cleaner = store->cleaner;
    int err;
    while ((err = cleaner_pass(store, upto, result)) == -EBUSY) {
        pthread_mutex_lock(&cleaner->lock);
        rest(cleaner, 10000000u);
        pthread_mutex_unlock(&cleaner->lock);
        if (atomic_load(&cleaner->stopping))
            return -ECANCELED;
    }
    return err;
}

/* What is full now: *upto is its highest serial. */
static int what_to_clean(struct gild_store *store, uint64_t *upto, uint64_t *blocks) {
    struct gild_segment_fact *facts = NULL;
    size_t count = 0;
    int err = gild_segments_full(store->segments, &facts, &count);
    *upto = 1;
    *blocks = 0;
    for (size_t i = 0; i < count; i++) {
        *blocks += facts[i].holds_nodes ? 0 : facts[i].live_blocks;
        *upto = facts[i].serial;
    }
    free(facts);
    return err;
}

int gild_store_clean(struct gild_store *store, const struct gild_clean_options *options,
                     struct gild_clean_result *result, struct gild_error *error) {
    static const struct gild_clean_options defaults = {0};
    struct clean_result pass;
    options = options ? options : &defaults;
    memset(result, 0, sizeof *result);
    uint64_t before = store_used_bytes(store);
    atomic_store(&store->roll, true);
    int err = gild_store_checkpoint(store, error);
    atomic_store(&store->roll, false);
    if (err)
        return err;
    uint64_t upto;
    err = what_to_clean(store, &upto, &result->blocks);
    for (bool more = true; more && !err; more = cleaner_done(&pass) != 0) {
        err = pass_in_turn(store, upto, &pass);
        add_up(result, &pass);
        if (!err)
            err = tell(options, result);
        if (!err && gild_store_checkpoint(store, error))
            return -EIO;
    }
    gild_segments_release(store->segments, UINT64_MAX);
    uint64_t after = store_used_bytes(store);
    result->freed_bytes = before > after ? before - after : 0;
    if (err)
        return gild_fail(error, err == -ECANCELED ? GILD_PARTLY : gild_code_of_errno(-err), -err,
                         "the log of store %s could not be cleaned to its end: %s",
                         store->directory, err == -ECANCELED ? "it was stopped" : strerror(-err));
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

int cleaner_create(struct gild_store *store, const struct gild_store_options *options) {
    struct cleaner *cleaner = calloc(1, sizeof *cleaner);
    if (!cleaner)
        return -ENOMEM;
    cleaner->store = store;
    cleaner->cold_s = options->cold_s ? options->cold_s : COLD_S;
    cleaner->background = !options->offline && !options->no_cleaner;
    cleaner->pace = (struct pace){.now_ns = now_ns, .wait = pace_wait, .context = cleaner};
    cleaner->looked_ns = now_ns(NULL);
    pthread_mutex_init(&cleaner->lock, NULL);
    pthread_cond_init(&cleaner->wake, NULL);
    store->cleaner = cleaner;
    return 0;
}

int cleaner_start(struct gild_store *store) {
    struct cleaner *cleaner = store->cleaner;
    if (!cleaner->background)
        return 0;
    int err = pthread_create(&cleaner->thread, NULL, cleaner_main, cleaner);
    cleaner->running = err == 0;
    if (!err)
        pthread_setname_np(cleaner->thread, "gild-cleaner");
    return -err;
}

void cleaner_stop(struct gild_store *store) {
    struct cleaner *cleaner = store->cleaner;
    if (!cleaner)
        return;
    pthread_mutex_lock(&cleaner->lock);
    atomic_store(&cleaner->stopping, true);
    pthread_cond_broadcast(&cleaner->wake);
    pthread_mutex_unlock(&cleaner->lock);
    if (cleaner->running)
        pthread_join(cleaner->thread, NULL);
    cleaner->running = false;
}

void cleaner_destroy(struct gild_store *store) {
    if (!store->cleaner)
        return;
    pthread_mutex_destroy(&store->cleaner->lock);
    pthread_cond_destroy(&store->cleaner->wake);
    free(store->cleaner);
    store->cleaner = NULL;
}
