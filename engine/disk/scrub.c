/* `gild store scrub`: everything that is stored is read, past the page cache and at a bounded pace,
 * and proven to be what it was; what is damaged is repaired from any good copy, and what has none
 * is put in quarantine (lost.c).
 *
 *   checkpoint -> look at packs -> repair packs -> maps -> the log, which is also asked for what
 *   packs lack -> repair packs again -> tell
 *
 * It looks at what the checkpoint reached; guests go on. What it reads it holds only as long as it
 * reads it: a pack or a map against collection, a part of a disk's log against recycling, so that
 * a slow scrub holds up nothing. Broken off at any point, it is begun again: each pack is repaired
 * by steps that are durable one by one (pack/repair.c).
 *
 * One thread, the caller's, which may block; one scrub of a store at a time. Failure modes: no
 * memory, a catalogue that can not be read or written, a device that fails: the scrub ends with
 * that; damage never ends it. */
#include "disk/scrub.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/file.h"

#define TELL_BYTES ((uint64_t)1 << 20)
#define SLICE_NS 100000000u

/* ---- the pace -------------------------------------------------------------------------------- */

static uint64_t now_ns(void *context) {
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int tell_progress(struct scrub *scrub) {
    const struct gild_scrub_options *options = scrub->options;
    uint64_t done = scrub->result->read_bytes;
    scrub->told_bytes = done;
    if (!options->progress)
        return 0;
    if (scrub->total < done)
        scrub->total = done;
    return options->progress(options->context, scrub->what, done, scrub->total) ? -ECANCELED : 0;
}

/* In slices: whoever wants to stop the scrub waits no longer than one. */
static int wait_ns(void *context, uint64_t ns) {
    int stop = 0;
    while (ns && !stop) {
        uint64_t slice = ns < SLICE_NS ? ns : SLICE_NS;
        const struct timespec pause = {.tv_nsec = (long)slice};
        nanosleep(&pause, NULL);
        ns -= slice;
        stop = tell_progress(context);
    }
    return stop;
}

int scrub_take(void *context, uint64_t bytes) {
    struct scrub *scrub = context;
    scrub->result->read_bytes += bytes;
    int stop = 0;
    if (scrub->result->read_bytes - scrub->told_bytes >= TELL_BYTES)
        stop = tell_progress(scrub);
    return stop ? stop : pace_take(&scrub->pace, bytes);
}

/* ---- findings -------------------------------------------------------------------------------- */

void scrub_find(struct scrub *scrub, const char *object, const char *kind, const struct hits *hits,
                const char *advice, const char *sentence) {
    if (strcmp(kind, "repaired") != 0)
        scrub->bad = true;
    findings_advise(&scrub->findings, object, kind, hits, advice, "%s", sentence);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int count_delta(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct scrub *scrub = context;
    struct gild_rec_delta *record = malloc(sizeof *record);
    (void)key, (void)key_length;
    if (!record)
        return -ENOMEM;
    if (gild_rec_delta_decode(record, value, length) == 0)
        scrub->total += record->mapped_blocks * GILD_BLOCK_BYTES;
    free(record);
    return 0;
}

/* What is there to be read, and how much it is. */
static int list_all(struct scrub *scrub) {
    struct gild_store_info info;
    struct gild_packs_totals packs;
    struct gild_txn *txn;
    struct gild_error ignored = {0};
    gild_packs_get_totals(scrub->store->packs, &packs);
    scrub->total = packs.file_bytes;
    if (gild_store_get_info(scrub->store, &info, &ignored) == 0)
        scrub->total += info.map_bytes;
    int err = gild_txn_begin(scrub->store->catalog, false, &txn);
    if (err)
        return err;
    err = ids_read_in(txn, GILD_TABLE_PACKS, &scrub->packs);
    if (!err)
        err = ids_read_in(txn, GILD_TABLE_MAPS, &scrub->maps);
    if (!err)
        err = ids_read_in(txn, GILD_TABLE_DELTAS, &scrub->deltas);
    if (!err)
        err = gild_txn_scan(txn, GILD_TABLE_DELTAS, NULL, 0, count_delta, scrub);
    gild_txn_abort(txn);
    return err;
}

static int scrub_all(struct scrub *scrub) {
    int err = list_all(scrub);
    if (!err)
        err = scrub_look_at_packs(scrub);
    if (!err)
        err = scrub_repair_packs(scrub);
    if (!err)
        err = scrub_maps(scrub);
    if (!err)
        err = scrub_want(scrub);
    if (!err)
        err = scrub_log(scrub);
    if (!err)
        err = scrub_repair_wanted(scrub);
    /* What was repaired and lost up to here is told, however it ended. */
    int told = scrub_tell_packs(scrub);
    return err ? err : told;
}

static int scrub_run(struct gild_store *store, const struct gild_scrub_options *options,
                     struct gild_scrub_result *result, struct gild_error *error) {
    struct scrub scrub = {
        .store = store,
        .options = options,
        .result = result,
        .findings = {options->found, options->context, &result->findings},
        .pace = {.rate_bytes = options->rate_bytes, .now_ns = now_ns, .wait = wait_ns},
        .what = "scrubbing",
    };
    scrub.pace.context = &scrub;
    memset(result, 0, sizeof *result);
    if (atomic_exchange(&store->scrubbing, true))
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "a scrub of store %s is running already; wait for it, or stop it",
                         store->directory);
    int err = scrub_all(&scrub);
    atomic_store(&store->scrubbing, false);
    scrub_free_packs(&scrub);
    free(scrub.packs.id);
    free(scrub.maps.id);
    free(scrub.deltas.id);
    damage_close(scrub.damage);
    if (err == -ECANCELED)
        return gild_fail(error, GILD_FAILED, ECANCELED,
                         "the scrub of store %s was stopped as asked after %llu bytes; what it had "
                         "repaired stays repaired, the rest was not looked at",
                         store->directory, (unsigned long long)result->read_bytes);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the scrub of store %s was broken off: %s", store->directory,
                         strerror(-err));
    return scrub.bad ? -EUCLEAN : 0;
}

int gild_store_scrub(struct gild_store *store, const struct gild_scrub_options *options,
                     struct gild_scrub_result *result, struct gild_error *error) {
    memset(result, 0, sizeof *result);
    int err = gild_store_checkpoint(store, error);
    return err ? err : scrub_run(store, options, result, error);
}
