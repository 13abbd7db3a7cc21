/* Pack collection: what nothing reaches any more inside packs is freed, too.
 *
 *   packs that lost many references (a hint) leave the fingerprint index
 *     -> no ingest runs any more that may have been given a place in them
 *     -> a checkpoint; from here on nobody can come to name more of them, only less
 *     -> every sealed map and every desktop's map is walked: the slots that they name are live
 *     -> a pack of which enough is dead is written anew, under its number, with the same slots
 *     -> the catalogue's record; readers pass; the old file goes; back into the index
 *
 * So no map is changed, and no count has to be right: reachability decides. What is reached by what
 * can not be read (a rotten node) nobody knows: then nothing is collected.
 *
 * A pack that is damaged is let alone until a scrub has healed it. A crash leaves the old file or
 * the new one; an open accepts either with either's record. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "disk/cleaner.h"
#include "disk/reach.h"
#include "io/file.h"

#define STALE_SHARE 4u /* of its blocks: so many references went, and it is looked through */
#define MOST_PACKS 64u /* in one pass */

struct candidate {
    uint32_t pack_id, groups;
    uint64_t stale; /* when it was chosen */
    uint16_t *live;
    bool unindexed;
};

struct collecting {
    struct gild_store *store;
    bool all;
    struct candidate candidate[MOST_PACKS]; /* ascending */
    size_t count;
    struct clean_result *result;
};

/* ---- which ----------------------------------------------------------------------------------- */

static int note_candidate(void *context, const void *key, size_t key_length, const void *value,
                          size_t length) {
    struct collecting *c = context;
    struct gild_rec_pack record;
    uint32_t pack_id = gild_get_be32(key);
    (void)key_length;
    struct pack_ref *ref = pack_refs_find(c->store->refs, pack_id);
    uint64_t stale = ref ? atomic_load(&ref->stale) : 0;
    if (c->count == MOST_PACKS || !stale || gild_rec_pack_decode(&record, value, length))
        return 0;
    if (c->all || stale >= gild_max_u64(1, record.blocks / STALE_SHARE))
        c->candidate[c->count++] = (struct candidate){
            .pack_id = pack_id, .groups = (uint32_t)record.groups, .stale = stale};
    return 0;
}

static int choose(struct collecting *c) {
    struct gild_txn *txn;
    int err = gild_txn_begin(c->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, note_candidate, c);
    gild_txn_abort(txn);
    for (size_t i = 0; i < c->count && !err; i++) {
        c->candidate[i].live = calloc(c->candidate[i].groups + 1u, sizeof *c->candidate[i].live);
        err = c->candidate[i].live ? 0 : -ENOMEM;
    }
    return err;
}

/* ---- out of the index ------------------------------------------------------------------------ */

/* False: an import runs, which may be about to share what is in them. */
static bool withdraw(struct collecting *c) {
    struct gild_store *store = c->store;
    for (size_t i = 0; i < c->count; i++)
        c->candidate[i].unindexed =
            gild_packs_set_indexed(store->packs, c->candidate[i].pack_id, false) == 0;
    if (atomic_load(&store->ingests))
        return false;
    pthread_rwlock_wrlock(&store->ingest_lock); /* whoever else has it does not keep it for long */
    pthread_rwlock_unlock(&store->ingest_lock);
    return true;
}

static void put_back(struct collecting *c) {
    for (size_t i = 0; i < c->count; i++)
        if (c->candidate[i].unindexed)
            gild_packs_set_indexed(c->store->packs, c->candidate[i].pack_id, true);
}

/* ---- what is live ---------------------------------------------------------------------------- */

static struct candidate *candidate_of(struct collecting *c, uint32_t pack_id) {
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c->candidate[middle].pack_id < pack_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < c->count && c->candidate[low].pack_id == pack_id ? &c->candidate[low] : NULL;
}

static void mark(struct collecting *c, const struct gild_leaf *leaf) {
    struct candidate *candidate = NULL;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++) {
        uint64_t place = leaf->place[i];
        if (gild_place_type(place) != GILD_PLACE_PACK)
            continue;
        uint32_t pack_id = gild_place_pack_id(place);
        if (!candidate || candidate->pack_id != pack_id)
            candidate = candidate_of(c, pack_id);
        if (candidate && gild_place_group(place) < candidate->groups)
            candidate->live[gild_place_group(place)] |= (uint16_t)(1u << gild_place_slot(place));
    }
}

static int mark_leaf(void *context, size_t number, const struct gild_leaf *leaf) {
    (void)number;
    mark(context, leaf);
    return cleaner_stopping(((struct collecting *)context)->store) ? -ECANCELED : 0;
}

static int marks(void *context, const struct reach_map *map) {
    struct collecting *c = context;
    if (map->delta)
        return 1;
    for (uint32_t i = 0; i < map->sealed->pack_count; i++)
        if (candidate_of(c, map->sealed->packs[i]))
            return 1;
    return 0;
}

static int mark_all(struct collecting *c) {
    const struct reach reach = {
        .threads = 1, .dropped = true, .wants = marks, .leaf = mark_leaf, .context = c};
    return reach_walk(c->store, &reach);
}

/* ---- writing anew ---------------------------------------------------------------------------- */

static int record_rewrite(struct gild_store *store, uint32_t pack_id) {
    struct gild_pack_facts facts;
    struct gild_rec_pack record;
    struct gild_txn *txn;
    int err = gild_pack_get_facts(store->packs, pack_id, &facts);
    if (err)
        return err;
    free(facts.group_slots);
    err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_rec_get_pack(txn, pack_id, &record);
    record.file_bytes = facts.file_bytes;
    record.groups = facts.groups;
    record.blocks = facts.blocks;
    record.stale_refs = 0;
    if (!err)
        err = gild_rec_put_pack(txn, pack_id, &record);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static int compact(struct collecting *c, struct candidate *candidate) {
    const struct gild_pack_compacting options = {.least_saved_percent = CLEANER_SAVED_PERCENT,
                                                 .whole_only = true};
    struct gild_store *store = c->store;
    struct gild_pack_compacted done;
    struct pack_ref *ref = pack_refs_find(store->refs, candidate->pack_id);
    int err = gild_pack_compact(store->packs, candidate->pack_id, candidate->live, &options, &done);
    if (err == -ENOENT)
        return 0; /* all of it went meanwhile */
    if (ref)      /* what went since counts for the next time */
        atomic_fetch_sub(&ref->stale, candidate->stale);
    if (err == -EBADMSG || err == -EUCLEAN || err == -EIO)
        return 0; /* damaged, the old file or the new one: a scrub's */
    if (err == -ENOSPC || err == -EDQUOT)
        return 0; /* another may be smaller; what was cleaned of the log makes room */
    if (err || !done.rewritten)
        return err;
    err = record_rewrite(store, candidate->pack_id);
    keeper_wait_pass(store);
    gild_pack_let_go(done.old);
    c->result->pack_dropped += done.bytes_before - done.bytes_after;
    return err;
}

int gild_store_note_unmapped(struct gild_store *store, const struct gild_rec_map *map) {
    int err = 0;
    for (uint32_t i = 0; i < map->pack_count && !err; i++)
        err = pack_refs_note_stale(store->refs, map->packs[i], map->data_blocks);
    return err;
}

/* ---- the whole ------------------------------------------------------------------------------- */

int cleaner_packs(struct gild_store *store, bool all, struct clean_result *result) {
    struct collecting *c = calloc(1, sizeof *c);
    struct gild_error error = {0};
    if (!c)
        return -ENOMEM;
    if (atomic_exchange(&store->scrubbing, true)) { /* one that writes packs anew at a time */
        free(c);
        return 0;
    }
    collect_hold(store); /* no pack is removed meanwhile */
    c->store = store;
    c->all = all;
    c->result = result;
    int err = choose(c);
    collect_release(store);
    if (!err && c->count && withdraw(c)) {
        collect_hold(store);
        if (gild_store_checkpoint(store, &error))
            err = -EIO;
        if (!err)
            err = mark_all(c);
        for (size_t i = 0; i < c->count && !err; i++)
            err = cleaner_stopping(store) ? -ECANCELED : compact(c, &c->candidate[i]);
        collect_release(store);
    }
    put_back(c);
    atomic_store(&store->scrubbing, false);
    for (size_t i = 0; i < c->count; i++)
        free(c->candidate[i].live);
    free(c);
    return err == -EBADMSG ? 0 : err; /* a rotten map: said by a check or a scrub */
}
