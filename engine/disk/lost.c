/* Quarantine: which groups of packs are known to be lost, in the catalogue's table INTENTS under
 * "lost:PACK:PART". A scrub, or a repair, writes it; an open of the store reads it, so that nothing
 * is deduplicated into them; a check lists it; it goes with the pack, or when a copy has healed
 * them. Blocking, any thread but a reactor's. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "disk/internal.h"

#define KEY_BYTES 32u
#define PREFIX "lost:"

static size_t make_key(char key[KEY_BYTES], uint32_t pack_id, uint32_t part) {
    return (size_t)snprintf(key, KEY_BYTES, PREFIX "%08" PRIx32 ":%04" PRIx32, pack_id, part);
}

/* False: another kind of intent. */
static bool read_key(const void *key, size_t length, uint32_t *pack_id) {
    char text[KEY_BYTES] = {0};
    if (length >= sizeof text || length < sizeof PREFIX || memcmp(key, PREFIX, sizeof PREFIX - 1))
        return false;
    memcpy(text, key, length);
    *pack_id = (uint32_t)strtoul(text + sizeof PREFIX - 1, NULL, 16);
    return true;
}

struct scan {
    lost_visit *visit;
    void *context;
    struct gild_rec_lost *record;
};

static int scan_one(void *context, const void *key, size_t key_length, const void *value,
                    size_t length) {
    struct scan *scan = context;
    uint32_t pack_id;
    if (!read_key(key, key_length, &pack_id))
        return 0;
    int err = gild_rec_lost_decode(scan->record, value, length);
    for (uint32_t i = 0; i < scan->record->count && !err; i++)
        err = scan->visit(scan->context, pack_id, scan->record->range[i].first,
                          scan->record->range[i].groups);
    return err;
}

int lost_scan(struct gild_txn *txn, lost_visit *visit, void *context) {
    struct scan scan = {visit, context, malloc(sizeof *scan.record)};
    int err = scan.record ? gild_txn_scan(txn, GILD_TABLE_INTENTS, PREFIX, sizeof PREFIX - 1,
                                          scan_one, &scan)
                          : -ENOMEM;
    free(scan.record);
    return err;
}

int lost_forget(struct gild_txn *txn, uint32_t pack_id) {
    char key[KEY_BYTES];
    int err = 0;
    for (uint32_t part = 0; !err; part++)
        err = gild_txn_delete(txn, GILD_TABLE_INTENTS, key, make_key(key, pack_id, part));
    return err == -ENOENT ? 0 : err;
}

static int put_parts(struct gild_txn *txn, uint32_t pack_id, const uint32_t *groups, size_t count) {
    struct gild_rec_lost *record = malloc(sizeof *record);
    void *value = malloc(GILD_RECORD_MAX);
    struct timespec now;
    char key[KEY_BYTES];
    int err = record && value ? 0 : -ENOMEM;
    clock_gettime(CLOCK_REALTIME, &now);
    size_t at = 0;
    for (uint32_t part = 0; at < count && !err; part++) {
        record->since_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
        for (record->count = 0; at < count && record->count < GILD_LOST_RANGES; record->count++) {
            size_t first = at++;
            while (at < count && groups[at] == groups[at - 1] + 1)
                at++;
            record->range[record->count].first = groups[first];
            record->range[record->count].groups = (uint32_t)(at - first);
        }
        err = gild_txn_put(txn, GILD_TABLE_INTENTS, key, make_key(key, pack_id, part), value,
                           gild_rec_lost_encode(record, value));
    }
    free(record);
    free(value);
    return err;
}

int lost_write(struct gild_store *store, uint32_t pack_id, const uint32_t *groups, size_t count) {
    struct gild_pack_facts facts;
    struct gild_txn *txn;
    int err = gild_pack_get_facts(store->packs, pack_id, &facts);
    if (err)
        return err;
    free(facts.group_slots);
    struct gild_rec_pack record = {0};
    err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    /* What deltas name stays as it was counted; a damaged record is made anew. */
    if (gild_rec_get_pack(txn, pack_id, &record))
        record = (struct gild_rec_pack){0};
    record.file_bytes = facts.file_bytes;
    record.groups = facts.groups;
    record.blocks = facts.blocks;
    err = lost_forget(txn, pack_id);
    if (!err)
        err = put_parts(txn, pack_id, groups, count);
    if (!err)
        err = gild_rec_put_pack(txn, pack_id, &record);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

struct loading {
    struct gild_store *store;
    uint32_t pack_id, *group;
    size_t count;
};

static int load_pack(struct loading *loading) {
    int err = loading->count ? gild_packs_set_lost(loading->store->packs, loading->pack_id,
                                                   loading->group, loading->count)
                             : 0;
    loading->count = 0;
    return err == -ENOENT ? 0 : err;
}

static int load_range(void *context, uint32_t pack_id, uint32_t first, uint32_t groups) {
    struct loading *loading = context;
    int err = pack_id == loading->pack_id ? 0 : load_pack(loading);
    loading->pack_id = pack_id;
    if (err)
        return err;
    uint32_t *grown = realloc(loading->group, (loading->count + groups) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    loading->group = grown;
    for (uint32_t i = 0; i < groups; i++)
        loading->group[loading->count++] = first + i;
    return 0;
}

int lost_load(struct gild_store *store, struct gild_error *error) {
    struct loading loading = {.store = store};
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (!err) {
        err = lost_scan(txn, load_range, &loading);
        if (!err)
            err = load_pack(&loading);
        gild_txn_abort(txn);
    }
    free(loading.group);
    return err ? gild_fail(error, gild_code_of_errno(-err), -err,
                           "the list of lost content of store %s can not be read: %s",
                           store->directory, strerror(-err))
               : 0;
}
