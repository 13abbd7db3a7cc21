/* A repair's part on sealed maps and on packs that are gone. See repair.h.
 *
 * What of an image version is lost is said in its map, for good: the map's file is written anew
 * with LOST in those places (map/mend.h), under the same number and with the same content hash,
 * which it no longer proves for what is lost. A pack that is gone is then reached by nothing, and
 * forgotten. Each step may be broken off and done again. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/repair.h"
#include "map/mend.h"

const struct range_set *repair_lost_of_map(const struct repair *repair, uint64_t map_id) {
    for (size_t i = 0; i < repair->map_count; i++)
        if (repair->maps[i].map_id == map_id)
            return &repair->maps[i].ranges;
    return NULL;
}

struct pass {
    struct repair *repair;
    struct range_set lost;
    int err;
};

static bool pack_lost(void *context, uint32_t pack_id) {
    const struct pass *pass = context;
    return ids_have(&pass->repair->lost_packs, pack_id);
}

static void note_lost(void *context, uint64_t first, uint64_t count) {
    struct pass *pass = context;
    if (!pass->err)
        pass->err = range_add(&pass->lost, first, count);
}

static int keep_losses(struct repair *repair, uint64_t map_id, struct range_set *lost) {
    struct map_losses *grown =
        realloc(repair->maps, (repair->map_count + 1) * sizeof *repair->maps);
    if (!grown)
        return -ENOMEM;
    repair->maps = grown;
    repair->maps[repair->map_count++] = (struct map_losses){map_id, *lost};
    *lost = (struct range_set){0};
    return 0;
}

/* Lost packs are no longer among those that the map needs. */
static int forget_packs(struct gild_store *store, uint64_t map_id, struct gild_rec_map *record) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < record->pack_count; i++)
        if (!ids_have(&store->repair->lost_packs, record->packs[i]))
            record->packs[kept++] = record->packs[i];
    if (kept == record->pack_count || store->repair->dry_run)
        return 0;
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    record->pack_count = kept;
    err = gild_rec_put_map(txn, map_id, record);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static int repair_map(struct gild_store *store, uint64_t map_id, struct gild_rec_map *record,
                      struct gild_error *error) {
    struct repair *repair = store->repair;
    struct pass pass = {.repair = repair};
    struct gild_map_mended mended;
    struct gild_txn *txn;
    char directory[4096], aside[4096], text[64];
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (!err) {
        err = gild_rec_get_map(txn, map_id, record);
        gild_txn_abort(txn);
    }
    if (err)
        return repair_fail(store, err, "the record of a map can not be read", error);
    store_path(store, "maps", directory);
    store_path(store, "lost+found", aside);
    struct gild_map_mend mend = {
        .directory = directory,
        .aside = aside,
        .store_id = store->id,
        .map_id = map_id,
        .size_bytes = record->size_bytes,
        .data_blocks = record->data_blocks,
        .pack_lost = pack_lost,
        .lost = note_lost,
        .context = &pass,
        .dry_run = repair->dry_run,
    };
    memcpy(mend.content_hash, record->content_hash, 32);
    err = gild_map_mend(&mend, &mended, error);
    if (!err && pass.err)
        err = repair_fail(store, pass.err, "what is lost can not be noted", error);
    if (!err && mended.damaged)
        repair_say(repair,
                   "the map of %s is written anew: %" PRIu64
                   " of its blocks are lost; the "
                   "damaged file goes to lost+found",
                   repair_map_name(repair, map_id, text), mended.lost_blocks);
    if (!err) {
        err = forget_packs(store, map_id, record);
        if (!err)
            err = repair_lost_in_packs(store, map_id, &pass.lost);
        if (!err && pass.lost.count)
            err = keep_losses(repair, map_id, &pass.lost);
        if (err)
            repair_fail(store, err, "the record of a map can not be set right", error);
    }
    free(pass.lost.range);
    return err;
}

/* No map names them any more: their records go, and their files to lost+found. */
static int drop_packs(struct gild_store *store, struct gild_error *error) {
    struct repair *repair = store->repair;
    char name[32];
    int err = 0;
    for (size_t i = 0; i < repair->lost_packs.count && !err; i++) {
        uint32_t id = (uint32_t)repair->lost_packs.id[i];
        repair_say(repair, "pack %08" PRIx32 " can not be read and is taken out of the store", id);
        if (repair->dry_run)
            continue;
        snprintf(name, sizeof name, "%08" PRIx32 ".pack", id);
        err = repair_set_aside(store, "packs", name, error);
        if (err)
            return err;
        uint8_t key[4] = {(uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8),
                          (uint8_t)id};
        struct gild_txn *txn;
        err = gild_txn_begin(store->catalog, true, &txn);
        if (!err) {
            err = gild_txn_delete(txn, GILD_TABLE_PACKS, key, sizeof key);
            if (err && err != -ENOENT)
                gild_txn_abort(txn);
            else
                err = gild_txn_commit(txn);
        }
        if (err)
            repair_fail(store, err, "the record of a pack can not be removed", error);
    }
    return err;
}

int repair_maps(struct gild_store *store, struct gild_error *error) {
    struct gild_rec_map *record = malloc(sizeof *record);
    struct ids ids = {0};
    int err = record ? ids_read(store, GILD_TABLE_MAPS, &ids) : -ENOMEM;
    if (err)
        repair_fail(store, err, "the maps can not be listed", error);
    ids_sort(&store->repair->lost_packs);
    for (size_t i = 0; i < ids.count && !err; i++)
        err = repair_map(store, ids.id[i], record, error);
    if (!err)
        err = drop_packs(store, error);
    free(ids.id);
    free(record);
    return err;
}
