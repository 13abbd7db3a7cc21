/* The scrub of packs: every block against its SHA-256, then the repair of what is damaged, from
 * memory, from other packs, from the log. See scrub.h, and pack/repair.c for how one is rewritten.
 *
 * All packs are looked at before one is repaired, and what is lost goes into the catalogue (lost.c)
 * right after the repair that found it lost: a crash in between leaves groups that are not known to
 * be lost, which the next scrub finds again. Findings are told at the end, since only then it is
 * known what of the damage stays. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/hash.h"
#include "disk/scrub.h"

static void name_pack(uint32_t pack_id, char object[32]) {
    snprintf(object, 32, "pack %08" PRIx32, pack_id);
}

/* ---- looking --------------------------------------------------------------------------------- */

struct look {
    struct scrub *scrub;
    struct faults faults;
    struct ids lost; /* groups in quarantine */
    uint32_t pack_id;
};

static void look_found(void *context, const struct gild_pack_fault *fault) {
    faults_note(&((struct look *)context)->faults, fault);
}

static int look_pace(void *context, uint64_t bytes) {
    return scrub_take(((struct look *)context)->scrub, bytes);
}

static int note_quarantined(void *context, uint32_t pack_id, uint32_t first, uint32_t groups) {
    struct look *look = context;
    int err = 0;
    for (uint32_t i = 0; i < groups && !err && pack_id == look->pack_id; i++)
        err = ids_add(&look->lost, first + i);
    return err;
}

static int read_quarantine(struct look *look) {
    struct gild_txn *txn;
    int err = gild_txn_begin(look->scrub->store->catalog, false, &txn);
    if (err)
        return err;
    err = lost_scan(txn, note_quarantined, look);
    gild_txn_abort(txn);
    return err;
}

static int add_ill(struct scrub *scrub, struct look *look) {
    struct scrub_ill *grown = realloc(scrub->ill, (scrub->ill_count + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    scrub->ill = grown;
    grown[scrub->ill_count++] =
        (struct scrub_ill){.pack_id = look->pack_id, .faults = look->faults, .lost = look->lost};
    look->faults = (struct faults){0};
    look->lost = (struct ids){0};
    return 0;
}

static bool pack_known(struct gild_store *store, uint32_t pack_id) {
    struct ids ids = {0};
    bool known = ids_read(store, GILD_TABLE_PACKS, &ids) != 0 || ids_have(&ids, pack_id);
    free(ids.id);
    return known;
}

static int note_unlinked(struct look *look) {
    struct gild_pack_facts facts;
    int err = gild_pack_get_facts(look->scrub->store->packs, look->pack_id, &facts);
    if (err)
        return err;
    free(facts.group_slots);
    const struct gild_pack_fault gone = {
        "its file was deleted from the store's folder while the store was open", 0, 0, true};
    if (facts.unlinked)
        faults_note(&look->faults, &gone);
    return look->faults.failure;
}

static int look_at(struct scrub *scrub, uint32_t pack_id) {
    struct look look = {.scrub = scrub, .pack_id = pack_id};
    const struct gild_pack_look options = {
        .deep = true, .found = look_found, .pace = look_pace, .context = &look};
    int err = read_quarantine(&look);
    if (!err)
        err = gild_pack_check(scrub->store->packs, pack_id, &options);
    err = err == -EUCLEAN ? look.faults.failure : err;
    if (!err)
        err = note_unlinked(&look);
    if (err == -ENOENT && !pack_known(scrub->store, pack_id)) { /* collected since */
        err = 0;
    } else if (!err) {
        scrub->result->packs++;
        if (look.faults.total)
            err = add_ill(scrub, &look);
        else if (look.lost.count && !scrub->options->dry_run) { /* it was healed already */
            err = lost_write(scrub->store, pack_id, NULL, 0);
            if (!err)
                err = gild_packs_set_lost(scrub->store->packs, pack_id, NULL, 0);
        }
    }
    faults_free(&look.faults);
    free(look.lost.id);
    return err;
}

int scrub_look_at_packs(struct scrub *scrub) {
    int err = 0;
    scrub->what = "scrubbing packs";
    for (size_t i = 0; i < scrub->packs.count && !err; i++) {
        collect_hold(scrub->store); /* a file that is checked is not unlinked */
        err = look_at(scrub, (uint32_t)scrub->packs.id[i]);
        collect_release(scrub->store);
    }
    return err;
}

/* ---- repair ---------------------------------------------------------------------------------- */

static bool from_cache(void *context, uint32_t pack_id, uint32_t group, void *out) {
    struct gild_cache *cache = ((struct scrub *)context)->store->content;
    struct gild_cache_entry *entry =
        cache ? gild_cache_peek(cache, gild_cache_key(GILD_CACHE_GROUP, pack_id, group)) : NULL;
    if (!entry)
        return false;
    memcpy(out, gild_cache_data(entry), GILD_GROUP_BYTES);
    gild_cache_unpin(cache, entry);
    return true;
}

static int by_fingerprint(const void *a, const void *b) {
    return memcmp(((const struct scrub_wanted *)a)->fingerprint,
                  ((const struct scrub_wanted *)b)->fingerprint, GILD_FINGERPRINT_BYTES);
}

static struct scrub_wanted *find_wanted(struct scrub *scrub, const uint8_t *fingerprint) {
    struct scrub_wanted key;
    memcpy(key.fingerprint, fingerprint, sizeof key.fingerprint);
    return scrub->wanted_count ? bsearch(&key, scrub->wanted, scrub->wanted_count,
                                         sizeof *scrub->wanted, by_fingerprint)
                               : NULL;
}

static bool from_log(void *context, const uint8_t *fingerprint, void *out) {
    const struct scrub_wanted *wanted = find_wanted(context, fingerprint);
    if (!wanted || !wanted->copy)
        return false;
    memcpy(out, wanted->copy, GILD_BLOCK_BYTES);
    return true;
}

/* What the scrub is ended by, as against what only this pack can not have. */
static bool ends(int err) {
    return err == -ENOMEM || err == -ECANCELED;
}

static int repair(struct scrub *scrub, struct scrub_ill *ill) {
    const struct gild_pack_repair options = {
        .copy = from_cache, .block = from_log, .pace = scrub_take, .context = scrub};
    struct gild_store *store = scrub->store;
    struct gild_pack_repaired done;
    ill->trouble = gild_pack_repair(store->packs, ill->pack_id, &options, &done);
    int err = ends(ill->trouble) ? ill->trouble : 0;
    /* Also where the rewrite failed: what is lost is known all the same. */
    if (done.lost && !err)
        err = lost_write(store, ill->pack_id, done.lost, done.lost_count);
    ill->lost.count = done.lost ? 0 : ill->lost.count;
    for (uint32_t i = 0; i < done.lost_count && !err; i++)
        err = ids_add(&ill->lost, done.lost[i]);
    ill->rewritten = ill->rewritten || done.rewritten;
    ill->healed += done.healed;
    scrub->result->repaired_packs += done.rewritten;
    scrub->result->repaired_groups += done.healed;
    if (done.old)
        keeper_wait_pass(store);
    gild_pack_let_go(done.old);
    free(done.lost);
    return err;
}

static int repair_all(struct scrub *scrub, bool again) {
    int err = 0;
    for (size_t i = 0; i < scrub->ill_count && !err && !scrub->options->dry_run; i++) {
        struct scrub_ill *ill = &scrub->ill[i];
        if (again && !ill->lost.count)
            continue;
        collect_hold(scrub->store);
        err = repair(scrub, ill);
        collect_release(scrub->store);
        if (err == -ENOENT && !pack_known(scrub->store, ill->pack_id))
            err = 0;
    }
    return err;
}

int scrub_repair_packs(struct scrub *scrub) {
    return repair_all(scrub, false);
}

int scrub_repair_wanted(struct scrub *scrub) {
    return scrub->wanted_met ? repair_all(scrub, true) : 0;
}

/* ---- what packs lack, asked for in the log --------------------------------------------------- */

struct wanting {
    struct scrub *scrub;
    const struct ids *lost;
};

static int want_print(void *context, uint32_t group, const uint8_t *fingerprint) {
    struct wanting *wanting = context;
    struct scrub *scrub = wanting->scrub;
    if (!ids_have(wanting->lost, group) || scrub->wanted_count == SCRUB_WANTED_MAX)
        return 0;
    memcpy(scrub->wanted[scrub->wanted_count++].fingerprint, fingerprint, GILD_FINGERPRINT_BYTES);
    return 0;
}

int scrub_want(struct scrub *scrub) {
    int err = 0;
    for (size_t i = 0; i < scrub->ill_count && !err && !scrub->options->dry_run; i++) {
        struct wanting wanting = {scrub, &scrub->ill[i].lost};
        if (!wanting.lost->count)
            continue;
        if (!scrub->wanted)
            scrub->wanted = calloc(SCRUB_WANTED_MAX, sizeof *scrub->wanted);
        err = scrub->wanted ? gild_pack_prints(scrub->store->packs, scrub->ill[i].pack_id,
                                               want_print, &wanting)
                            : -ENOMEM;
        err = err == -ENOENT ? 0 : err;
    }
    if (scrub->wanted_count)
        qsort(scrub->wanted, scrub->wanted_count, sizeof *scrub->wanted, by_fingerprint);
    return err;
}

int scrub_offer(struct scrub *scrub, const void *block) {
    uint8_t fingerprint[GILD_FINGERPRINT_BYTES];
    if (!scrub->wanted_count)
        return 0;
    int err = gild_sha256(block, GILD_BLOCK_BYTES, fingerprint);
    struct scrub_wanted *wanted = err ? NULL : find_wanted(scrub, fingerprint);
    if (!wanted || wanted->copy)
        return err;
    wanted->copy = malloc(GILD_BLOCK_BYTES);
    if (!wanted->copy)
        return -ENOMEM;
    memcpy(wanted->copy, block, GILD_BLOCK_BYTES);
    scrub->wanted_met++;
    return 0;
}

/* ---- telling --------------------------------------------------------------------------------- */

static int tell_faults(struct scrub *scrub, const struct scrub_ill *ill, const char *object,
                       const struct range_set *lost) {
    struct hits hits[FAULTS_MAX + 1] = {0};
    char sentence[4096 + 512], advice[256];
    int err = faults_hits(&ill->faults, scrub->damage, ill->pack_id, hits);
    bool fixed = ill->rewritten;
    if (ill->trouble)
        snprintf(advice, sizeof advice, "it could not be repaired: %s; mend that and scrub again",
                 strerror(-ill->trouble));
    for (size_t i = 0; i < ill->faults.count && !err; i++) {
        const struct fault *fault = &ill->faults.fault[i];
        if (faults_all_lost(lost, &fault->groups))
            continue;
        if (i == FAULTS_MAX)
            snprintf(sentence, sizeof sentence, "%s: %" PRIu64 " more faults%s", object,
                     ill->faults.total - FAULTS_MAX, fixed ? "; repaired" : "");
        else
            snprintf(sentence, sizeof sentence, "%s%s", fault->sentence, fixed ? "; repaired" : "");
        scrub_find(scrub, object, fixed ? "repaired" : "damaged",
                   fault->groups.count ? &hits[i] : NULL,
                   fixed                     ? NULL
                   : scrub->options->dry_run ? "scrub without a dry run to repair what can be"
                   : ill->trouble            ? advice
                                             : NULL,
                   sentence);
    }
    for (size_t i = 0; i <= FAULTS_MAX; i++)
        hits_free(&hits[i]);
    return err;
}

static int tell_ill(struct scrub *scrub, struct scrub_ill *ill) {
    struct range_set lost = {0};
    char object[32];
    if (!pack_known(scrub->store, ill->pack_id)) /* collected since */
        return 0;
    int err = scrub->damage ? 0 : damage_open(&scrub->damage, scrub->store, 0);
    name_pack(ill->pack_id, object);
    for (size_t i = 0; i < ill->lost.count && !err; i++)
        err = range_add(&lost, ill->lost.id[i], 1);
    scrub->result->lost_groups += ill->lost.count;
    if (!err)
        err = tell_faults(scrub, ill, object, &lost);
    uint64_t before = *scrub->findings.count;
    if (!err)
        err = faults_tell_lost(&scrub->findings, scrub->damage, ill->pack_id, &lost);
    scrub->bad = scrub->bad || *scrub->findings.count != before;
    free(lost.range);
    return err;
}

int scrub_tell_packs(struct scrub *scrub) {
    int err = 0;
    for (size_t i = 0; i < scrub->ill_count && !err; i++)
        err = tell_ill(scrub, &scrub->ill[i]);
    return err;
}

void scrub_free_packs(struct scrub *scrub) {
    for (size_t i = 0; i < scrub->ill_count; i++) {
        faults_free(&scrub->ill[i].faults);
        free(scrub->ill[i].lost.id);
    }
    for (size_t i = 0; i < scrub->wanted_count; i++)
        free(scrub->wanted[i].copy);
    free(scrub->ill);
    free(scrub->wanted);
}
