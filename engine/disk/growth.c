/* See growth.h. A note is one transaction for some hundreds of deltas; one that is lost, or never
 * written because the store is full, makes the rate coarser and nothing else. */
#include "disk/growth.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "disk/internal.h"
#include "disk/walk.h"

#define HOUR_S 3600u
#define DAY_S 86400u
#define WINDOW_S (30u * DAY_S)
#define DELTAS_AT_ONCE 512u

static uint64_t now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec;
}

/* ---- samples --------------------------------------------------------------------------------- */

static void remove_sample(struct gild_rec_growth *record, uint32_t index) {
    record->count--;
    memmove(&record->sample[index], &record->sample[index + 1],
            (record->count - index) * sizeof record->sample[0]);
}

/* Never the first or the last. */
static uint32_t least_missed(const struct gild_rec_growth *record, uint64_t at_s) {
    uint32_t least = 1;
    double least_share = 0;
    for (uint32_t i = 1; i + 1 < record->count; i++) {
        uint64_t gap_s = record->sample[i + 1].at_s - record->sample[i - 1].at_s;
        double share = (double)gap_s / (double)(at_s - record->sample[i].at_s);
        if (i == 1 || share < least_share) {
            least = i;
            least_share = share;
        }
    }
    return least;
}

void growth_add(struct gild_rec_growth *record, uint64_t at_s, uint64_t bytes) {
    while (record->count && record->sample[record->count - 1].at_s >= at_s)
        record->count--; /* the clock was set back */
    while (record->count > 2 && record->sample[1].at_s + WINDOW_S < at_s)
        remove_sample(record, 0);
    if (record->count == GILD_GROWTH_SAMPLES)
        remove_sample(record, least_missed(record, at_s));
    record->sample[record->count].at_s = at_s;
    record->sample[record->count].bytes = bytes;
    record->count++;
}

bool growth_per_day(const struct gild_rec_growth *record, uint64_t now, uint64_t bytes,
                    int64_t *per_day) {
    uint32_t first = 0;
    while (first + 1 < record->count && record->sample[first + 1].at_s + WINDOW_S <= now)
        first++;
    if (!record->count || record->sample[first].at_s + HOUR_S > now)
        return false;
    double days = (double)(now - record->sample[first].at_s) / DAY_S;
    *per_day = (int64_t)(((double)bytes - (double)record->sample[first].bytes) / days);
    return true;
}

bool growth_of(struct gild_store *store, uint64_t id, uint64_t bytes, int64_t *per_day) {
    struct gild_rec_growth record;
    struct gild_txn *txn;
    if (gild_txn_begin(store->catalog, false, &txn))
        return false;
    int err = gild_rec_get_growth(txn, id, &record);
    gild_txn_abort(txn);
    return !err && growth_per_day(&record, now_s(), bytes, per_day);
}

/* ---- noting ---------------------------------------------------------------------------------- */

static int note(struct gild_txn *txn, uint64_t id, uint64_t at_s, uint64_t bytes) {
    struct gild_rec_growth record;
    int err = gild_rec_get_growth(txn, id, &record);
    if (err == -ENOENT || err == -EUCLEAN || err == -EBADMSG)
        record.count = 0;
    else if (err)
        return err;
    if (id && (record.count ? record.sample[record.count - 1].bytes == bytes : !bytes))
        return 0;
    growth_add(&record, at_s, bytes);
    return gild_rec_put_growth(txn, id, &record);
}

static int note_deltas(struct gild_store *store, const struct ids *ids, size_t first,
                       uint64_t at_s) {
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    struct gild_txn *txn;
    int err = delta ? gild_txn_begin(store->catalog, true, &txn) : -ENOMEM;
    if (err) {
        free(delta);
        return err;
    }
    for (size_t i = first; i < ids->count && i < first + DELTAS_AT_ONCE && !err; i++) {
        err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, ids->id[i], delta);
        if (err == -ENOENT) /* deleted since they were listed */
            err = 0;
        else if (!err)
            err = note(txn, ids->id[i], at_s, delta->mapped_blocks * GILD_BLOCK_BYTES);
    }
    free(delta);
    if (!err)
        return gild_txn_commit(txn);
    gild_txn_abort(txn);
    return err;
}

/* The store's own sample comes last: that it is there says when all were noted. */
static int note_store(struct gild_store *store, uint64_t at_s) {
    struct gild_txn *txn;
    uint64_t used = store_used_bytes(store);
    int err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = note(txn, 0, at_s, used);
    if (!err)
        return gild_txn_commit(txn);
    gild_txn_abort(txn);
    return err;
}

static uint64_t last_noted(struct gild_store *store) {
    struct gild_rec_growth record;
    struct gild_txn *txn;
    if (gild_txn_begin(store->catalog, false, &txn))
        return 0;
    int err = gild_rec_get_growth(txn, 0, &record);
    gild_txn_abort(txn);
    return err || !record.count ? 0 : record.sample[record.count - 1].at_s;
}

void growth_note(struct gild_store *store) {
    struct ids ids = {0};
    uint64_t at_s = now_s();
    if (at_s < store->growth_due_s)
        return;
    uint64_t last_s = store->growth_due_s ? 0 : last_noted(store);
    store->growth_due_s = at_s + HOUR_S;
    if (last_s && last_s <= at_s && at_s - last_s < HOUR_S) {
        store->growth_due_s = last_s + HOUR_S;
        return;
    }
    int err = ids_read(store, GILD_TABLE_DELTAS, &ids);
    for (size_t i = 0; i < ids.count && !err; i += DELTAS_AT_ONCE)
        err = note_deltas(store, &ids, i, at_s);
    if (!err)
        note_store(store, at_s);
    free(ids.id);
}
