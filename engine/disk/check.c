/* `gild store check`: everything that the catalogue says is recounted from what is on disk.
 *
 * It first checkpoints, then looks at one instant of the catalogue; nothing that this instant
 * reaches is overwritten or recycled while it runs, so guests go on meanwhile. It changes nothing.
 *
 *   versions, desktops, pools -> maps, deltas       references
 *   deltas -> nodes, blocks -> segments' counts     check_log.c
 *   maps -> packs, groups, slots                    shapes of packs, from their tables
 *   packs -> every byte, under its checks           engine/pack
 *   files and numbers                               check_files.c
 *
 * Each finding says whom it hits, in terms of images and desktops (damage.h). */
#include "disk/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

struct pack_shape {
    bool known, missing;
    struct gild_pack_facts facts;
};

/* ---- the catalogue's references ---------------------------------------------------------------
 */

static uint32_t read_be32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static int check_version(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct check *check = context;
    struct gild_rec_version version;
    struct gild_rec_image image;
    char object[CHECK_OBJECT_BYTES];
    const void *ignored;
    size_t name = strnlen(key, key_length), image_length;
    if (name + 5 != key_length) {
        findings_add(&check->findings, "store", "damaged", NULL,
                     "the catalogue has a version under a damaged key");
        return 0;
    }
    uint32_t number = read_be32((const uint8_t *)key + name + 1);
    snprintf(object, sizeof object, "image %.*s@%" PRIu32, (int)name, (const char *)key, number);
    if (gild_rec_version_decode(&version, value, length)) {
        findings_add(&check->findings, object, "damaged", NULL, "the record of %s is damaged",
                     object);
        return 0;
    }
    if (gild_txn_peek(check->txn, GILD_TABLE_IMAGES, key, name, &ignored, &image_length) ||
        gild_rec_image_decode(&image, ignored, image_length))
        findings_add(&check->findings, object, "reference", NULL,
                     "%s has lost the record of its image", object);
    else if (image.latest_version < number)
        findings_add(&check->findings, object, "count", NULL,
                     "%s is above %" PRIu32 ", the highest version that was ever given", object,
                     image.latest_version);
    if (!ids_have(&check->maps, version.map_id)) {
        struct hits hits = {0};
        int err = damage_of_map(check->damage, version.map_id, NULL, &hits);
        findings_add(&check->findings, object, "missing", &hits, "%s has lost its map %" PRIu64,
                     object, version.map_id);
        hits_free(&hits);
        return err;
    }
    if (gild_rec_get_map(check->txn, version.map_id, check->map))
        return 0; /* said of the map */
    if (check->map->size_bytes != version.size_bytes)
        findings_add(&check->findings, object, "count", NULL,
                     "%s has %" PRIu64 " bytes, its map %" PRIu64, object, version.size_bytes,
                     check->map->size_bytes);
    if (memcmp(check->map->content_hash, version.content_hash, 32) != 0)
        findings_add(&check->findings, object, "reference", NULL,
                     "%s and its map %" PRIu64 " have two content hashes", object, version.map_id);
    return 0;
}

/* The map of NAME@V, 0 if it is not there. */
static uint64_t map_of(struct check *check, const char *image, uint32_t number) {
    char key[GILD_NAME_MAX + 6];
    struct gild_rec_version version;
    const void *value;
    size_t length, name = strlen(image);
    memcpy(key, image, name + 1);
    for (unsigned i = 0; i < 4; i++)
        key[name + 1 + i] = (char)(number >> (24 - 8 * i));
    if (gild_txn_peek(check->txn, GILD_TABLE_VERSIONS, key, name + 5, &value, &length) ||
        gild_rec_version_decode(&version, value, length))
        return 0;
    return version.map_id;
}

static int check_desktop(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct check *check = context;
    struct gild_rec_desktop desktop;
    char object[CHECK_OBJECT_BYTES];
    const void *ignored;
    size_t ignored_length;
    snprintf(object, sizeof object, "desktop %.*s", (int)key_length, (const char *)key);
    if (gild_rec_desktop_decode(&desktop, value, length)) {
        findings_add(&check->findings, object, "damaged", NULL, "the record of %s is damaged",
                     object);
        return 0;
    }
    uint64_t map_id = map_of(check, desktop.image, desktop.version);
    if (!map_id)
        findings_add(&check->findings, object, "reference", NULL,
                     "%s stands on %s@%" PRIu32 ", which is not there", object, desktop.image,
                     desktop.version);
    if (!ids_have(&check->deltas, desktop.os_delta))
        findings_add(&check->findings, object, "missing", NULL, "%s has lost its delta %" PRIu64,
                     object, desktop.os_delta);
    else if (map_id &&
             gild_rec_get_delta(check->txn, GILD_TABLE_DELTAS, desktop.os_delta, check->delta) ==
                 0 &&
             check->delta->parent_map != map_id)
        findings_add(&check->findings, object, "reference", NULL,
                     "the delta %" PRIu64 " of %s stands on map %" PRIu64 ", not on that of %s@%u",
                     desktop.os_delta, object, check->delta->parent_map, desktop.image,
                     desktop.version);
    if (desktop.pool[0] && gild_txn_peek(check->txn, GILD_TABLE_POOLS, desktop.pool,
                                         strlen(desktop.pool), &ignored, &ignored_length))
        findings_add(&check->findings, object, "reference", NULL,
                     "%s belongs to pool %s, which is not there", object, desktop.pool);
    return ids_add(&check->owned, desktop.os_delta);
}

static int check_pool(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    struct check *check = context;
    struct gild_rec_pool pool;
    char object[CHECK_OBJECT_BYTES];
    snprintf(object, sizeof object, "pool %.*s", (int)key_length, (const char *)key);
    if (gild_rec_pool_decode(&pool, value, length))
        findings_add(&check->findings, object, "damaged", NULL, "the record of %s is damaged",
                     object);
    else if (!map_of(check, pool.image, pool.version))
        findings_add(&check->findings, object, "reference", NULL,
                     "%s stands on %s@%" PRIu32 ", which is not there", object, pool.image,
                     pool.version);
    return 0;
}

/* ---- maps ------------------------------------------------------------------------------------ */

struct map_check {
    struct check *check;
    uint64_t map_id, blocks;
    const struct gild_rec_map *record;
    uint32_t pack_id; /* looked up last */
    const struct pack_shape *shape;
    bool listed;
    struct range_set rotten, missing, beyond, odd, lost, unlisted;
};

static int by_pack(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static const struct pack_shape *shape_of(struct check *check, uint32_t pack_id) {
    size_t low = 0, high = check->packs.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (check->packs.id[middle] < pack_id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == check->packs.count || check->packs.id[low] != pack_id)
        return NULL;
    struct pack_shape *shape = &check->shapes[low];
    if (!shape->known) {
        shape->missing = gild_pack_get_facts(check->store->packs, pack_id, &shape->facts) != 0;
        shape->known = true;
    }
    return shape->missing ? NULL : shape;
}

static bool has_slot(const struct pack_shape *shape, uint64_t place) {
    if (gild_place_group(place) >= shape->facts.groups)
        return false;
    return shape->facts.group_slots[gild_place_group(place)] >> gild_place_slot(place) & 1;
}

enum check_slot check_slot(struct check *check, uint64_t place) {
    const struct pack_shape *shape = shape_of(check, gild_place_pack_id(place));
    if (!shape)
        return CHECK_NO_PACK;
    return has_slot(shape, place) ? CHECK_SLOT_THERE : CHECK_NO_SLOT;
}

static int check_pack_place(struct map_check *map, uint64_t block, uint64_t place) {
    uint32_t pack_id = gild_place_pack_id(place);
    if (!map->blocks++ || pack_id != map->pack_id) {
        map->pack_id = pack_id;
        map->shape = shape_of(map->check, pack_id);
        map->listed = bsearch(&pack_id, map->record->packs, map->record->pack_count, sizeof pack_id,
                              by_pack) != NULL;
    }
    if (!map->listed && range_add(&map->unlisted, block, 1))
        return -ENOMEM;
    if (!map->shape)
        return range_add(&map->missing, block, 1);
    return has_slot(map->shape, place) ? 0 : range_add(&map->beyond, block, 1);
}

static int check_leaf(struct map_check *map, uint64_t leaf_index, const struct gild_leaf *leaf) {
    int err = 0;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS && !err; i++) {
        uint64_t place = leaf->place[i], block = leaf_index * GILD_LEAF_BLOCKS + i;
        if (gild_place_type(place) == GILD_PLACE_PACK)
            err = check_pack_place(map, block, place);
        else if (gild_place_type(place) == GILD_PLACE_LOST)
            err = range_add(&map->lost, block, 1);
        else if (!gild_place_reads_zero(place))
            err = range_add(&map->odd, block, 1);
    }
    return err;
}

static int walk_map(struct map_check *map, const struct gild_sealed_map *sealed) {
    struct gild_leaf *leaf = gild_file_buffer(GILD_NODE_BYTES);
    uint64_t leaves = gild_leaves_of(sealed->size_bytes);
    int err = leaf ? 0 : -ENOMEM;
    for (uint64_t i = 0; i < leaves && !err; i++) {
        uint64_t page = gild_sealed_leaf_page(sealed, i), first = i * GILD_LEAF_BLOCKS;
        if (!page)
            continue;
        if (page == GILD_SEALED_LOST)
            err = range_add(&map->lost, first, GILD_LEAF_BLOCKS);
        else if (gild_file_read(sealed->fd, leaf, GILD_NODE_BYTES, page * GILD_NODE_BYTES) != 0 ||
                 gild_node_verify(leaf, GILD_NODE_LEAF, map->map_id, i) != 0)
            err = range_add(&map->rotten, first, GILD_LEAF_BLOCKS);
        else
            err = check_leaf(map, i, leaf);
    }
    free(leaf);
    return err;
}

static int tell_blocks(struct map_check *map, struct range_set *blocks, const char *kind,
                       const char *what) {
    struct check *check = map->check;
    struct hits hits = {0};
    char object[32];
    uint64_t count = 0;
    for (size_t i = 0; i < blocks->count; i++)
        count += blocks->range[i].count;
    snprintf(object, sizeof object, "map %" PRIu64, map->map_id);
    int err = blocks->count ? damage_of_map(check->damage, map->map_id, blocks, &hits) : 0;
    if (blocks->count && !err)
        findings_add(&check->findings, object, kind, &hits, "%s: %s, %" PRIu64 " blocks of it",
                     object, what, count);
    hits_free(&hits);
    free(blocks->range);
    return err;
}

static int tell_map(struct map_check *map) {
    int err = tell_blocks(map, &map->rotten, "damaged", "leaves of its file are rotten");
    int e = tell_blocks(map, &map->missing, "missing", "it names packs that are not there");
    err = err ? err : e;
    e = tell_blocks(map, &map->beyond, "reference", "it names groups or slots that no pack has");
    err = err ? err : e;
    e = tell_blocks(map, &map->odd, "damaged", "it has impossible places");
    err = err ? err : e;
    e = tell_blocks(map, &map->unlisted, "reference", "its record does not list all of its packs");
    err = err ? err : e;
    e = tell_blocks(map, &map->lost, "lost", "known lost");
    return err ? err : e;
}

static int check_map(struct check *check, uint64_t map_id) {
    char path[4096], object[32];
    struct gild_error error = {0};
    struct gild_sealed_map *sealed;
    struct hits hits = {0};
    store_path(check->store, "maps", path);
    snprintf(object, sizeof object, "map %" PRIu64, map_id);
    check->result->maps++;
    bool record = gild_rec_get_map(check->txn, map_id, check->map) == 0;
    for (uint32_t i = 0; record && i < check->map->pack_count; i++)
        if (!ids_have(&check->packs, check->map->packs[i]))
            findings_add(&check->findings, object, "reference", NULL,
                         "%s needs pack %08" PRIx32 ", which the catalogue does not know", object,
                         check->map->packs[i]);
    int broken = gild_sealed_open(&sealed, path, check->store->id, map_id, &error);
    if (broken && broken != -ENOENT && error.code != GILD_CORRUPT)
        return broken; /* memory, descriptors: it says nothing of the file */
    if (!record || broken) {
        int err = damage_of_map(check->damage, map_id, NULL, &hits);
        if (!record)
            findings_add(&check->findings, object, "damaged", &hits, "the record of %s is damaged",
                         object);
        else
            findings_add(&check->findings, object, broken == -ENOENT ? "missing" : "damaged", &hits,
                         "%s", error.message);
        hits_free(&hits);
        if (!broken)
            gild_sealed_close(sealed);
        return err;
    }
    if (sealed->size_bytes != check->map->size_bytes)
        findings_add(&check->findings, object, "count", NULL,
                     "the file of %s is of a disk of %" PRIu64 " bytes, its record of %" PRIu64,
                     object, sealed->size_bytes, check->map->size_bytes);
    struct map_check map = {.check = check, .map_id = map_id, .record = check->map};
    int err = walk_map(&map, sealed);
    if (!err && !map.rotten.count &&
        (map.blocks != check->map->data_blocks || map.blocks != sealed->data_blocks))
        findings_add(&check->findings, object, "count", NULL,
                     "%s has %" PRIu64 " blocks of data, its record says %" PRIu64
                     ", its file %" PRIu64,
                     object, map.blocks, check->map->data_blocks, sealed->data_blocks);
    if (memcmp(check->map->content_hash, sealed->content_hash, 32) != 0)
        findings_add(&check->findings, object, "reference", NULL,
                     "%s and the catalogue disagree on its content hash", object);
    check->result->blocks += map.blocks;
    gild_sealed_close(sealed);
    int told = tell_map(&map);
    return err ? err : told;
}

/* ---- packs ----------------------------------------------------------------------------------- */

struct lost_groups {
    uint32_t pack_id;
    struct range_set groups;
};

static int note_lost(void *context, uint32_t pack_id, uint32_t first, uint32_t groups) {
    struct lost_groups *lost = context;
    return pack_id == lost->pack_id ? range_add(&lost->groups, first, groups) : 0;
}

static int tell_faults(struct check *check, uint32_t pack_id, const char *object,
                       struct faults *faults, const struct range_set *lost) {
    static const char scrub_it[] = "run `gild store scrub`, which heals what has another copy";
    struct hits hits[FAULTS_MAX + 1] = {0};
    int err = faults_hits(faults, check->damage, pack_id, hits);
    for (size_t i = 0; i < faults->count && !err; i++) {
        const struct fault *fault = &faults->fault[i];
        if (faults_all_lost(lost, &fault->groups))
            continue;
        if (i == FAULTS_MAX)
            findings_advise(&check->findings, object, "damaged", &hits[i], scrub_it,
                            "%s: %" PRIu64 " more faults", object, faults->total - FAULTS_MAX);
        else
            findings_advise(&check->findings, object, "damaged",
                            fault->groups.count ? &hits[i] : NULL, scrub_it, "%s", fault->sentence);
    }
    for (size_t i = 0; i <= FAULTS_MAX; i++)
        hits_free(&hits[i]);
    return err;
}

static int check_record(struct check *check, uint32_t pack_id, const char *object) {
    uint8_t key[4] = {(uint8_t)(pack_id >> 24), (uint8_t)(pack_id >> 16), (uint8_t)(pack_id >> 8),
                      (uint8_t)pack_id};
    const struct pack_shape *shape = shape_of(check, pack_id);
    struct gild_rec_pack record;
    struct target target = {.pack_id = pack_id};
    const void *value;
    size_t length;
    int err = 0;
    if (!shape || shape->facts.unlinked) {
        err = range_add(&target.groups, 0, (uint64_t)1 << 28);
        if (!err)
            err = damage_of_groups(check->damage, &target, 1);
        if (!err)
            findings_add(&check->findings, object, "missing", &target.hits,
                         "the file of %s is not there", object);
        hits_free(&target.hits);
        free(target.groups.range);
        return err;
    }
    if (gild_txn_peek(check->txn, GILD_TABLE_PACKS, key, sizeof key, &value, &length) ||
        gild_rec_pack_decode(&record, value, length))
        findings_add(&check->findings, object, "damaged", NULL, "the record of %s is damaged",
                     object);
    else if (record.groups != shape->facts.groups ||
             /* A rewrite's record may be a crash behind: an earlier one's, of no fewer blocks. */
             (shape->facts.generation == 1 ? record.blocks != shape->facts.blocks ||
                                                 record.file_bytes != shape->facts.file_bytes
                                           : record.blocks < shape->facts.blocks))
        findings_add(&check->findings, object, "count", NULL,
                     "%s has %" PRIu32 " groups and %" PRIu32 " blocks in %" PRIu64
                     " bytes, its record says %" PRIu64 ", %" PRIu64 " and %" PRIu64,
                     object, shape->facts.groups, shape->facts.blocks, shape->facts.file_bytes,
                     record.groups, record.blocks, record.file_bytes);
    else if (check_times(&check->packed, pack_id) != record.delta_refs && !check->incomplete)
        findings_add(&check->findings, object, "count", NULL,
                     "%s is named by %" PRIu64 " blocks of desktops, its record says %" PRIu64,
                     object, check_times(&check->packed, pack_id), record.delta_refs);
    return 0;
}

static int check_pack(struct check *check, uint32_t pack_id) {
    struct lost_groups lost = {.pack_id = pack_id};
    struct faults faults = {0};
    char object[32];
    const struct gild_pack_look look = {.found = faults_note, .context = &faults};
    snprintf(object, sizeof object, "pack %08" PRIx32, pack_id);
    check->result->packs++;
    int err = check_record(check, pack_id, object);
    if (!err)
        err = lost_scan(check->txn, note_lost, &lost);
    if (!err) {
        err = gild_pack_check(check->store->packs, pack_id, &look);
        err = err == -EUCLEAN || err == -ENOENT ? faults.failure : err;
    }
    if (!err)
        err = tell_faults(check, pack_id, object, &faults, &lost.groups);
    if (!err)
        err = faults_tell_lost(&check->findings, check->damage, pack_id, &lost.groups);
    faults_free(&faults);
    free(lost.groups.range);
    return err;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int read_lists(struct check *check) {
    const struct {
        enum gild_table table;
        struct ids *ids;
    } lists[] = {
        {GILD_TABLE_MAPS, &check->maps},         {GILD_TABLE_PACKS, &check->packs},
        {GILD_TABLE_DELTAS, &check->deltas},     {GILD_TABLE_DROPPED, &check->dropped},
        {GILD_TABLE_SEGMENTS, &check->segments},
    };
    int err = 0;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0] && !err; i++)
        err = ids_read_in(check->txn, lists[i].table, lists[i].ids);
    if (!err) {
        check->shapes = calloc(check->packs.count + 1, sizeof *check->shapes);
        err = check->shapes ? 0 : -ENOMEM;
    }
    return err;
}

static int check_all(struct check *check) {
    int err = read_lists(check);
    if (!err)
        err = gild_txn_scan(check->txn, GILD_TABLE_VERSIONS, NULL, 0, check_version, check);
    if (!err)
        err = gild_txn_scan(check->txn, GILD_TABLE_DESKTOPS, NULL, 0, check_desktop, check);
    if (!err)
        err = gild_txn_scan(check->txn, GILD_TABLE_POOLS, NULL, 0, check_pool, check);
    ids_sort(&check->owned);
    if (!err)
        err = check_counters(check);
    if (!err)
        err = check_deltas(check);
    if (!err)
        err = check_segments(check);
    for (size_t i = 0; i < check->maps.count && !err; i++)
        err = check_map(check, check->maps.id[i]);
    for (size_t i = 0; i < check->packs.count && !err; i++)
        err = check_pack(check, (uint32_t)check->packs.id[i]);
    return err ? err : check_files(check);
}

static void check_free(struct check *check) {
    for (size_t i = 0; check->shapes && i < check->packs.count; i++)
        free(check->shapes[i].facts.group_slots);
    free(check->shapes);
    free(check->maps.id);
    free(check->packs.id);
    free(check->packed.id);
    free(check->deltas.id);
    free(check->dropped.id);
    free(check->segments.id);
    free(check->owned.id);
    free(check->counted.id);
    free(check->delta);
    free(check->map);
    damage_close(check->damage);
}

int gild_store_check(struct gild_store *store, gild_check_found *found, void *context,
                     struct gild_check_result *result, struct gild_error *error) {
    struct check check = {
        .store = store,
        .findings = {found, context, &result->findings},
        .result = result,
    };
    memset(result, 0, sizeof *result);
    int err = gild_store_checkpoint(store, error);
    if (err)
        return err;
    check.delta = malloc(sizeof *check.delta);
    check.map = malloc(sizeof *check.map);
    collect_hold(store); /* packs and maps stay, and no segment is recycled */
    atomic_fetch_add(&store->checks, 1);
    err = check.delta && check.map ? damage_open(&check.damage, store, 0) : -ENOMEM;
    if (!err)
        err = gild_txn_begin(store->catalog, false, &check.txn);
    if (!err) {
        err = check_all(&check);
        gild_txn_abort(check.txn);
    }
    atomic_fetch_sub(&store->checks, 1);
    collect_release(store);
    check_free(&check);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the check of store %s was broken off: %s", store->directory,
                         strerror(-err));
    return result->findings ? -EUCLEAN : 0;
}
