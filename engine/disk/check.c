/* `gild store check`: everything that the catalogue says is recounted from what is on disk.
 *
 * It first checkpoints, then looks at one instant of the catalogue (one read transaction's lists);
 * nothing that this instant reaches is overwritten or recycled while it runs, so guests go on
 * meanwhile. It changes nothing. Each finding is one sentence, in terms of images and desktops
 * where it can. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/internal.h"
#include "disk/walk.h"

struct check {
    struct gild_store *store;
    struct gild_txn *txn;
    gild_check_found *found;
    void *context;
    struct gild_check_result *result;
    struct ids maps, packs, deltas, dropped;
    struct ids counted; /* serials, once for each block or node that anything reaches */
    struct gild_rec_delta *delta;
    struct gild_rec_map *map;
};

static void find(struct check *check, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void find(struct check *check, const char *format, ...) {
    char sentence[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    check->result->findings++;
    const struct gild_finding finding = {.object = "store", .kind = "damaged", .message = sentence};
    if (check->found)
        check->found(check->context, &finding);
}

/* ---- the catalogue's references ----------------------------------------------------------------
 */

static int check_version(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct check *check = context;
    struct gild_rec_version version;
    int name = (int)strnlen(key, key_length);
    if (gild_rec_version_decode(&version, value, length))
        find(check, "the record of a version of image %.*s is damaged", name, (const char *)key);
    else if (!ids_have(&check->maps, version.map_id))
        find(check, "a version of image %.*s has lost its map %" PRIu64, name, (const char *)key,
             version.map_id);
    return 0;
}

static int check_desktop(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct check *check = context;
    struct gild_rec_desktop desktop;
    char version_key[GILD_NAME_MAX + 6];
    const void *ignored;
    size_t ignored_length;
    if (gild_rec_desktop_decode(&desktop, value, length)) {
        find(check, "the record of desktop %.*s is damaged", (int)key_length, (const char *)key);
        return 0;
    }
    if (!ids_have(&check->deltas, desktop.os_delta))
        find(check, "desktop %.*s has lost its delta %" PRIu64, (int)key_length, (const char *)key,
             desktop.os_delta);
    size_t name = strlen(desktop.image);
    memcpy(version_key, desktop.image, name + 1);
    for (unsigned i = 0; i < 4; i++)
        version_key[name + 1 + i] = (char)(desktop.version >> (24 - 8 * i));
    if (gild_txn_peek(check->txn, GILD_TABLE_VERSIONS, version_key, name + 5, &ignored,
                      &ignored_length))
        find(check, "desktop %.*s stands on %s@%u, which is not there", (int)key_length,
             (const char *)key, desktop.image, desktop.version);
    return 0;
}

/* ---- maps and packs -------------------------------------------------------------------------- */

struct map_check {
    struct check *check;
    uint64_t map_id, blocks;
    struct gild_pack_page page;
};

static int check_leaf(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    struct map_check *map = context;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++) {
        uint64_t place = leaf->place[i];
        uint64_t block = leaf_index * GILD_LEAF_BLOCKS + i;
        if (gild_place_type(place) == GILD_PLACE_PACK) {
            map->blocks++;
            if (gild_pack_table_page(map->check->store->packs, gild_place_pack_id(place),
                                     gild_place_group(place), &map->page))
                find(map->check,
                     "map %" PRIu64 ": block %" PRIu64
                     " is in group %u of pack %08x, which is not there",
                     map->map_id, block, gild_place_group(place), gild_place_pack_id(place));
        } else if (!gild_place_reads_zero(place)) {
            find(map->check, "map %" PRIu64 ": block %" PRIu64 " has an impossible place",
                 map->map_id, block);
        }
    }
    return 0;
}

static void check_map(struct check *check, uint64_t map_id) {
    char path[4096];
    struct gild_error error = {0};
    struct gild_sealed_map *sealed;
    store_path(check->store, "maps", path);
    check->result->maps++;
    if (gild_rec_get_map(check->txn, map_id, check->map)) {
        find(check, "the record of map %" PRIu64 " is damaged", map_id);
        return;
    }
    for (uint32_t i = 0; i < check->map->pack_count; i++)
        if (!ids_have(&check->packs, check->map->packs[i]))
            find(check, "map %" PRIu64 " needs pack %08x, which the catalogue does not know",
                 map_id, check->map->packs[i]);
    if (gild_sealed_open(&sealed, path, check->store->id, map_id, &error)) {
        find(check, "%s", error.message);
        return;
    }
    struct map_check map = {.check = check, .map_id = map_id};
    int err = gild_sealed_walk(sealed, check_leaf, &map);
    if (err)
        find(check, "map %" PRIu64 " has an unreadable leaf: %s", map_id, strerror(-err));
    else if (map.blocks != check->map->data_blocks || map.blocks != sealed->data_blocks)
        find(check, "map %" PRIu64 " has %" PRIu64 " blocks of data, its record says %" PRIu64,
             map_id, map.blocks, check->map->data_blocks);
    if (memcmp(check->map->content_hash, sealed->content_hash, 32) != 0)
        find(check, "map %" PRIu64 " and the catalogue disagree on its content hash", map_id);
    check->result->blocks += map.blocks;
    gild_sealed_close(sealed);
}

static void pack_found(void *context, const struct gild_pack_fault *fault) {
    find(context, "%s", fault->sentence);
}

static int check_packs(struct check *check) {
    for (size_t i = 0; i < check->packs.count; i++) {
        check->result->packs++;
        const struct gild_pack_look look = {.found = pack_found, .context = check};
        int err = gild_pack_check(check->store->packs, (uint32_t)check->packs.id[i], &look);
        if (err && err != -EUCLEAN)
            find(check, "pack %08" PRIx64 " can not be read: %s", check->packs.id[i],
                 strerror(-err));
    }
    return 0;
}

/* ---- deltas and segments ----------------------------------------------------------------------
 */

static int check_delta(struct check *check, enum gild_table table, uint64_t delta_id) {
    struct delta_walk walk = {0};
    check->result->disks += table == GILD_TABLE_DELTAS;
    if (gild_rec_get_delta(check->txn, table, delta_id, check->delta)) {
        find(check, "the record of delta %" PRIu64 " is damaged", delta_id);
        return 0;
    }
    if (check->delta->parent_map && table == GILD_TABLE_DELTAS &&
        !ids_have(&check->maps, check->delta->parent_map))
        find(check, "delta %" PRIu64 " stands on map %" PRIu64 ", which is not there", delta_id,
             check->delta->parent_map);
    int err = walk_delta(check->store, delta_id, check->delta, &walk);
    if (err == -ENOMEM)
        return err;
    if (err)
        find(check, "the map of delta %" PRIu64 " is damaged: %s", delta_id, strerror(-err));
    else if (walk.blocks != check->delta->mapped_blocks)
        find(check, "delta %" PRIu64 " maps %" PRIu64 " blocks, its record says %" PRIu64, delta_id,
             walk.blocks, check->delta->mapped_blocks);
    check->result->blocks += walk.blocks;
    err = 0;
    for (size_t i = 0; i < walk.serials.count && !err; i++)
        err = ids_add(&check->counted, walk.serials.id[i]);
    free(walk.serials.id);
    return err;
}

static uint64_t times_counted(const struct ids *counted, uint64_t serial) {
    size_t low = 0, high = counted->count, end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (counted->id[middle] < serial)
            low = middle + 1;
        else
            high = middle;
    }
    for (end = low; end < counted->count && counted->id[end] == serial;)
        end++;
    return end - low;
}

static int check_segment(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct check *check = context;
    struct gild_rec_segment record;
    uint64_t serial = gild_rec_key_u64(key);
    (void)key_length;
    check->result->segments++;
    if (gild_rec_segment_decode(&record, value, length)) {
        find(check, "the record of log segment %016" PRIx64 " is damaged", serial);
        return 0;
    }
    uint64_t counted = times_counted(&check->counted, serial);
    if (counted != record.live_blocks)
        find(check,
             "log segment %016" PRIx64 " holds %" PRIu64 " live blocks, its record says %" PRIu64,
             serial, counted, record.live_blocks);
    if (!gild_segments_find(check->store->segments, serial))
        find(check, "log segment %016" PRIx64 " is in the catalogue but not in the store", serial);
    return 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int check_all(struct check *check) {
    struct gild_store *store = check->store;
    int err = ids_read(store, GILD_TABLE_MAPS, &check->maps);
    if (!err)
        err = ids_read(store, GILD_TABLE_PACKS, &check->packs);
    if (!err)
        err = ids_read(store, GILD_TABLE_DELTAS, &check->deltas);
    if (!err)
        err = ids_read(store, GILD_TABLE_DROPPED, &check->dropped);
    if (!err)
        err = gild_txn_begin(store->catalog, false, &check->txn);
    if (err)
        return err;
    err = gild_txn_scan(check->txn, GILD_TABLE_VERSIONS, NULL, 0, check_version, check);
    if (!err)
        err = gild_txn_scan(check->txn, GILD_TABLE_DESKTOPS, NULL, 0, check_desktop, check);
    for (size_t i = 0; i < check->maps.count && !err; i++)
        check_map(check, check->maps.id[i]);
    for (size_t i = 0; i < check->deltas.count && !err; i++)
        err = check_delta(check, GILD_TABLE_DELTAS, check->deltas.id[i]);
    for (size_t i = 0; i < check->dropped.count && !err; i++)
        err = check_delta(check, GILD_TABLE_DROPPED, check->dropped.id[i]);
    ids_sort(&check->counted);
    if (!err)
        err = gild_txn_scan(check->txn, GILD_TABLE_SEGMENTS, NULL, 0, check_segment, check);
    gild_txn_abort(check->txn);
    return err ? err : check_packs(check);
}

int gild_store_check(struct gild_store *store, gild_check_found *found, void *context,
                     struct gild_check_result *result, struct gild_error *error) {
    struct check check = {.store = store, .found = found, .context = context, .result = result};
    memset(result, 0, sizeof *result);
    int err = gild_store_checkpoint(store, error);
    if (err)
        return err;
    check.delta = malloc(sizeof *check.delta);
    check.map = malloc(sizeof *check.map);
    atomic_fetch_add(&store->checks, 1);
    pthread_rwlock_rdlock(&store->ingest_lock); /* packs stay */
    err = check.delta && check.map ? check_all(&check) : -ENOMEM;
    pthread_rwlock_unlock(&store->ingest_lock);
    atomic_fetch_sub(&store->checks, 1);
    free(check.maps.id);
    free(check.packs.id);
    free(check.deltas.id);
    free(check.dropped.id);
    free(check.counted.id);
    free(check.delta);
    free(check.map);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the check of store %s was broken off: %s", store->directory,
                         strerror(-err));
    return result->findings ? -EUCLEAN : 0;
}
