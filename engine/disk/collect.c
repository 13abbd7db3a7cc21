/* Freeing what nothing reaches: the blocks of dropped deltas, the files of deleted maps, packs that
 * no map reaches any more, and files that a crash left without an owner.
 *
 * A dropped delta stays in the catalogue (DROPPED, an intent) until its blocks are uncounted in one
 * transaction with its removal, so a crash in between only repeats the walk. A pack goes when none
 * of the catalogue's maps names it and no delta counts in it. The keeper's thread. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "disk/internal.h"
#include "disk/walk.h"

/* ---- dropped deltas -------------------------------------------------------------------------- */

/* Takes the counts off in memory (sign -1), or puts them back (+1). */
static void uncount(struct gild_store *store, const struct delta_walk *walk, int sign) {
    for (size_t i = 0; i < walk->serials.count; i++)
        gild_segments_adjust(store->segments, gild_place_log(walk->serials.id[i], 0), sign);
    for (size_t i = 0; i < walk->packs.count; i++)
        pack_refs_adjust(store->refs, (uint32_t)walk->packs.id[i], sign);
}

/* The packs that a delta named: `walk` has each as often as it did. */
static int put_packs(struct gild_store *store, struct gild_txn *txn, const struct ids *packs) {
    int err = 0;
    for (size_t i = 0, n; i < packs->count && !err; i += n) {
        struct pack_ref *ref = pack_refs_find(store->refs, (uint32_t)packs->id[i]);
        struct gild_rec_pack record;
        for (n = 1; i + n < packs->count && packs->id[i + n] == packs->id[i];)
            n++;
        atomic_fetch_add(&ref->stale, n);
        err = gild_rec_get_pack(txn, (uint32_t)packs->id[i], &record);
        record.delta_refs = ref->base;
        record.stale_refs = atomic_load(&ref->stale);
        if (!err)
            err = gild_rec_put_pack(txn, (uint32_t)packs->id[i], &record);
    }
    return err;
}

static int commit_dropped(struct gild_store *store, uint64_t delta_id,
                          const struct delta_walk *walk) {
    const struct ids *serials = &walk->serials;
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_rec_delete_u64(txn, GILD_TABLE_DROPPED, delta_id);
    if (!err)
        err = gild_rec_delete_growth(txn, delta_id);
    if (!err)
        err = gild_rec_delete_quarantine(txn, delta_id);
    for (size_t i = 0; i < serials->count && !err; i++) {
        if (i && serials->id[i] == serials->id[i - 1])
            continue;
        struct gild_segment *segment = gild_segments_find(store->segments, serials->id[i]);
        struct gild_rec_segment record = {.state = (uint8_t)segment->state_recorded,
                                          .holds_nodes = segment->holds_nodes,
                                          .live_blocks = segment->base,
                                          .closed_s = segment->closed_s};
        err = gild_rec_put_segment(txn, segment->serial, &record);
    }
    if (!err)
        err = put_packs(store, txn, &walk->packs);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static bool in_memory(struct gild_store *store, uint64_t delta_id) {
    pthread_mutex_lock(&store->disks_lock);
    bool found = disk_find(store, delta_id, 0) != NULL;
    pthread_mutex_unlock(&store->disks_lock);
    return found;
}

/* A made-up map may name segments or packs that are not there: nothing of it can be believed. */
static bool all_known(struct gild_store *store, const struct delta_walk *walk) {
    for (size_t i = 0; i < walk->serials.count; i++)
        if (!gild_segments_find(store->segments, walk->serials.id[i]))
            return false;
    for (size_t i = 0; i < walk->packs.count; i++)
        if (!pack_refs_find(store->refs, (uint32_t)walk->packs.id[i]))
            return false;
    return true;
}

/* The catalogue says what the counts say, and what was freed may be hoped for. */
static void dropped(struct gild_store *store, const struct delta_walk *walk) {
    for (size_t i = 0; i < walk->packs.count; i++)
        pack_refs_find(store->refs, (uint32_t)walk->packs.id[i])->changed = false;
    atomic_store(&store->released, true);
}

static int collect_delta(struct gild_store *store, uint64_t delta_id) {
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct delta_walk walk = {0};
    struct gild_txn *txn;
    int err = record ? gild_txn_begin(store->catalog, false, &txn) : -ENOMEM;
    if (!err) {
        err = gild_rec_get_delta(txn, GILD_TABLE_DROPPED, delta_id, record);
        gild_txn_abort(txn);
    }
    if (!err)
        err = walk_delta(store, delta_id, record, &walk);
    if (!err && !all_known(store, &walk))
        err = -EBADMSG;
    if (!err) {
        uncount(store, &walk, -1);
        err = commit_dropped(store, delta_id, &walk);
        if (err)
            uncount(store, &walk, +1);
        else
            dropped(store, &walk);
    }
    if (err == -EBADMSG) {
        gild_log(GILD_LOG_ERROR,
                 "deleted disk %" PRIu64
                 " can not be freed: its map is damaged; run `gild store check`",
                 delta_id);
        err = 0;
    }
    free(walk.serials.id);
    free(walk.packs.id);
    free(record);
    return err;
}

static int collect_deltas(struct gild_store *store) {
    struct ids dropped = {0};
    int err = ids_read(store, GILD_TABLE_DROPPED, &dropped);
    for (size_t i = 0; i < dropped.count && !err; i++)
        if (!in_memory(store, dropped.id[i]))
            err = collect_delta(store, dropped.id[i]);
    free(dropped.id);
    return err;
}

/* ---- maps and packs -------------------------------------------------------------------------- */

struct reach {
    struct ids packs;
    struct gild_rec_map *record;
};

static int note_reached(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct reach *reach = context;
    (void)key, (void)key_length;
    int err = gild_rec_map_decode(reach->record, value, length);
    for (uint32_t i = 0; i < reach->record->pack_count && !err; i++)
        err = ids_add(&reach->packs, reach->record->packs[i]);
    return err;
}

static int reached_packs(struct gild_store *store, struct ids *packs) {
    struct reach reach = {.record = malloc(sizeof *reach.record)};
    struct gild_txn *txn;
    int err = reach.record ? gild_txn_begin(store->catalog, false, &txn) : -ENOMEM;
    if (!err) {
        err = gild_txn_scan(txn, GILD_TABLE_MAPS, NULL, 0, note_reached, &reach);
        gild_txn_abort(txn);
    }
    free(reach.record);
    ids_sort(&reach.packs);
    *packs = reach.packs;
    return err;
}

static int forget_pack(struct gild_store *store, uint32_t pack_id) {
    uint8_t key[4] = {(uint8_t)(pack_id >> 24), (uint8_t)(pack_id >> 16), (uint8_t)(pack_id >> 8),
                      (uint8_t)pack_id};
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_txn_delete(txn, GILD_TABLE_PACKS, key, sizeof key);
    if (!err)
        err = lost_forget(txn, pack_id);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

/* The ingest lock is held for writing: nobody can come to depend on a pack meanwhile. */
static int collect_packs(struct gild_store *store) {
    struct ids known = {0}, reached = {0};
    int err = ids_read(store, GILD_TABLE_PACKS, &known);
    if (!err)
        err = reached_packs(store, &reached);
    for (size_t i = 0; i < known.count && !err; i++) {
        if (ids_have(&reached, known.id[i]) || !pack_refs_none(store->refs, (uint32_t)known.id[i]))
            continue;
        err = forget_pack(store, (uint32_t)known.id[i]);
        if (err)
            break;
        keeper_pass(store);
        pack_refs_forget(store->refs, (uint32_t)known.id[i]);
        struct gild_error error = {0};
        if (gild_packs_remove(store->packs, (uint32_t)known.id[i], &error))
            gild_log(GILD_LOG_WARN, "%s", error.message);
    }
    free(known.id);
    free(reached.id);
    return err;
}

/* Files `<hex><suffix>` of a folder whose number is not among `ids` are unlinked; so are those with
 * another ending, which only a broken-off writer leaves. */
static int unlink_unknown(struct gild_store *store, const char *folder, const char *suffix,
                          const struct ids *ids) {
    char path[4096], file[4096 + 300];
    store_path(store, folder, path);
    DIR *dir = opendir(path);
    if (!dir)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        char *end;
        uint64_t id = strtoull(entry->d_name, &end, 16);
        if (strcmp(end, suffix) == 0 && ids_have(ids, id))
            continue;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        if (unlink(file) == 0)
            gild_log(GILD_LOG_INFO, "freed %s: nothing refers to it", file);
    }
    closedir(dir);
    return 0;
}

static int collect_maps(struct gild_store *store) {
    struct ids maps = {0};
    int err = ids_read(store, GILD_TABLE_MAPS, &maps);
    if (!err)
        err = unlink_unknown(store, "maps", ".map", &maps);
    free(maps.id);
    return err;
}

int collect_run(struct gild_store *store) {
    int err = collect_deltas(store);
    if (err)
        return err;
    /* An import that is running has files that the catalogue does not know yet, and may come to
     * depend on any pack: its end asks for another collection. */
    if (pthread_rwlock_trywrlock(&store->ingest_lock) != 0) {
        atomic_store(&store->collect_skipped, true);
        return 0;
    }
    err = collect_maps(store);
    if (!err)
        err = collect_packs(store);
    pthread_rwlock_unlock(&store->ingest_lock);
    return err;
}

void gild_store_ingest_begin(struct gild_store *store) {
    pthread_rwlock_rdlock(&store->ingest_lock);
    atomic_fetch_add(&store->ingests, 1);
}

void gild_store_ingest_end(struct gild_store *store) {
    atomic_fetch_sub(&store->ingests, 1);
    pthread_rwlock_unlock(&store->ingest_lock);
    gild_store_collect(store);
}

void collect_hold(struct gild_store *store) {
    pthread_rwlock_rdlock(&store->ingest_lock);
}

void collect_release(struct gild_store *store) {
    pthread_rwlock_unlock(&store->ingest_lock);
    if (atomic_exchange(&store->collect_skipped, false))
        gild_store_collect(store);
}

int collect_orphans(struct gild_store *store, struct gild_error *error) {
    static const struct {
        enum gild_table table;
        const char *folder, *suffix;
    } kinds[] = {{GILD_TABLE_MAPS, "maps", ".map"},
                 {GILD_TABLE_PACKS, "packs", ".pack"},
                 {GILD_TABLE_SEGMENTS, "log", ".seg"}};
    for (unsigned i = 0; i < 3; i++) {
        struct ids ids = {0};
        int err = ids_read(store, kinds[i].table, &ids);
        if (!err)
            err = unlink_unknown(store, kinds[i].folder, kinds[i].suffix, &ids);
        free(ids.id);
        if (err)
            return gild_fail(error, gild_code_of_errno(-err), -err,
                             "the folder %s of store %s can not be cleaned up: %s", kinds[i].folder,
                             store->directory, strerror(-err));
    }
    return 0;
}
