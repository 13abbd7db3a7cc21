/* A repair's part on packs whose header or footer is damaged, and on what is lost in packs. See
 * repair.h.
 *
 * An open refuses a pack whose ends it can not trust, however whole the rest is. Here what they
 * say is made out from the rest (gild_packs_add_damaged), and the pack is written anew under its
 * number. One of which too little is left counts as gone (repair_maps.c). What is damaged inside a
 * pack that opens is a scrub's. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "disk/repair.h"

/* ---- while packs are opened ------------------------------------------------------------------ */

int repair_pack(struct gild_store *store, uint32_t pack_id, struct gild_error *error) {
    struct repair *repair = store->repair;
    struct gild_error why = {0};
    int err = gild_packs_add(store->packs, pack_id, &why);
    if (!err)
        return 0;
    if (why.code != GILD_CORRUPT && err != -ENOENT) {
        *error = why;
        return err;
    }
    struct gild_error ignored = {0};
    bool made_out = err != -ENOENT && gild_packs_add_damaged(store->packs, pack_id, &ignored) == 0;
    err = ids_add(made_out ? &repair->damaged_packs : &repair->lost_packs, pack_id);
    return err ? repair_fail(store, err, "a pack can not be noted", error) : 0;
}

/* ---- writing them anew ----------------------------------------------------------------------- */

/* Before the new pack takes the old one's place: it opens as any other, and no repair would look
 * for what is lost in it. */
static int quarantine(void *context, uint32_t pack_id, const uint32_t *groups, uint32_t count) {
    return count ? lost_write(context, pack_id, groups, count) : 0;
}

static int write_anew(struct gild_store *store, uint32_t pack_id) {
    const struct gild_pack_repair options = {.lost = quarantine, .context = store};
    struct repair *repair = store->repair;
    struct gild_pack_repaired done;
    int err = gild_pack_repair(store->packs, pack_id, &options, &done);
    if (err == -EUCLEAN || (!err && !done.rewritten)) {
        err = ids_add(&repair->lost_packs, pack_id);
    } else if (!err) {
        repair_say(repair,
                   "pack %08" PRIx32
                   ", whose header or footer was damaged, is written anew; %" PRIu32
                   " of its groups are lost",
                   pack_id, done.lost_count);
        err = lost_write(store, pack_id, done.lost, done.lost_count);
    }
    gild_pack_let_go(done.old); /* nobody reads yet */
    free(done.lost);
    return err;
}

static int note_lost(void *context, uint32_t pack_id, uint32_t first, uint32_t groups) {
    struct repair *repair = context;
    int err = 0;
    for (uint32_t i = 0; i < groups && !err; i++)
        err = ids_add(&repair->lost_groups, (uint64_t)pack_id << 32 | (first + i));
    return err;
}

int repair_packs(struct gild_store *store, struct gild_error *error) {
    struct repair *repair = store->repair;
    struct gild_txn *txn;
    int err = 0;
    for (size_t i = 0; i < repair->damaged_packs.count && !err; i++) {
        uint32_t pack_id = (uint32_t)repair->damaged_packs.id[i];
        if (repair->dry_run)
            repair_say(repair,
                       "pack %08" PRIx32
                       ", whose header or footer is damaged, is written "
                       "anew",
                       pack_id);
        else
            err = write_anew(store, pack_id);
    }
    if (!err)
        err = gild_txn_begin(store->catalog, false, &txn);
    if (!err) {
        err = lost_scan(txn, note_lost, repair);
        gild_txn_abort(txn);
    }
    ids_sort(&repair->lost_groups);
    return err ? repair_fail(store, err, "a damaged pack can not be written anew", error) : 0;
}

/* ---- what is lost in them -------------------------------------------------------------------- */

struct lost_walk {
    const struct repair *repair;
    struct range_set *lost;
};

bool repair_group_lost(const struct repair *repair, uint64_t place) {
    return ids_have(&repair->lost_groups,
                    (uint64_t)gild_place_pack_id(place) << 32 | gild_place_group(place));
}

static int visit_leaf(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    struct lost_walk *walk = context;
    int err = 0;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS && !err; i++) {
        uint64_t place = leaf->place[i];
        if (gild_place_type(place) == GILD_PLACE_PACK && repair_group_lost(walk->repair, place))
            err = range_add(walk->lost, leaf_index * GILD_LEAF_BLOCKS + i, 1);
    }
    return err;
}

int repair_lost_in_packs(struct gild_store *store, uint64_t map_id, struct range_set *lost) {
    struct lost_walk walk = {store->repair, lost};
    struct gild_sealed_map *map;
    struct gild_error ignored = {0};
    char directory[4096];
    if (!store->repair->lost_groups.count)
        return 0;
    store_path(store, "maps", directory);
    if (gild_sealed_open(&map, directory, store->id, map_id, &ignored))
        return 0; /* told already, of all of it */
    int err = gild_sealed_walk(map, visit_leaf, &walk);
    gild_sealed_close(map);
    return err == -EBADMSG ? 0 : err; /* a dry run, which has left a rotten leaf as it is */
}
