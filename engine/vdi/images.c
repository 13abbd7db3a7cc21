/* Image versions: list, show, delete (vdi.h). Import is import.c.
 *
 * An image's record outlives its last version: version numbers are never given twice. An image
 * without versions is not shown.
 *
 * Deleting holds the version's disk over the transaction, so that nobody opens what goes, and looks
 * for desktops inside it, so that nobody clones what goes. The files of map and packs are freed
 * afterwards by the store's keeper. Any thread but a reactor's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "disk/store.h"
#include "vdi/lookup.h"

struct versions {
    struct gild_image_info *items;
    size_t count, room;
    const char *image; /* NULL = of all */
};

static int note_version(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct versions *versions = context;
    struct gild_reference at;
    if (!vdi_version_key_read(key, key_length, &at))
        return -EUCLEAN;
    if (versions->image && strcmp(at.name, versions->image))
        return 1; /* behind the image's last */
    if (versions->count == versions->room) {
        size_t room = versions->room ? 2 * versions->room : 32;
        struct gild_image_info *grown = realloc(versions->items, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        versions->items = grown;
        versions->room = room;
    }
    struct gild_image_info *info = &versions->items[versions->count];
    memset(info, 0, sizeof *info);
    memcpy(info->name, at.name, sizeof info->name);
    info->version = at.version;
    int result = gild_rec_version_decode(&info->record, value, length);
    versions->count += result == 0;
    return result;
}

static int by_name_and_version(const void *a, const void *b) {
    const struct gild_image_info *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->version > y->version) - (x->version < y->version);
}

static int count_desktop(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct versions *versions = context;
    struct gild_rec_desktop record;
    struct gild_image_info wanted;
    (void)key, (void)key_length;
    int result = gild_rec_desktop_decode(&record, value, length);
    if (result)
        return result;
    memcpy(wanted.name, record.image, sizeof wanted.name);
    wanted.version = record.version;
    struct gild_image_info *info =
        versions->count
            ? bsearch(&wanted, versions->items, versions->count, sizeof wanted, by_name_and_version)
            : NULL;
    if (info)
        info->desktops++;
    return 0;
}

/* Versions and their desktops at one instant. The tables' order is that of by_name_and_version. */
static int read_versions(struct gild_txn *txn, struct versions *versions) {
    uint8_t from[VDI_VERSION_KEY_BYTES];
    size_t from_length = versions->image ? vdi_version_key(versions->image, 0, from) : 0;
    int result = gild_txn_scan(txn, GILD_TABLE_VERSIONS, from, from_length, note_version, versions);
    if (result < 0)
        return result;
    return gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, count_desktop, versions);
}

int gild_image_list(struct gild_store *store, const char *name, gild_image_visit *visit,
                    void *context, struct gild_error *error) {
    struct versions versions = {.image = name};
    struct gild_txn *txn;
    int result = name ? gild_name_check(name, "image", error) : 0;
    if (result)
        return result;
    result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result == 0) {
        result = read_versions(txn, &versions);
        gild_txn_abort(txn);
    }
    if (result)
        vdi_catalog_failed(error, result, "can not list the images");
    else if (name && !versions.count)
        result = gild_fail(error, GILD_NOT_FOUND, ENOENT,
                           "there is no image %s; `gild image list` shows what there is", name);
    for (size_t i = 0; i < versions.count && result == 0; i++)
        result = visit(context, &versions.items[i]);
    free(versions.items);
    return result;
}

int gild_image_show(struct gild_store *store, const char *reference, struct gild_image_info *info,
                    struct gild_error *error) {
    struct gild_reference meant;
    struct gild_txn *txn;
    int result = gild_reference_parse(reference, &meant, error);
    if (result)
        return result;
    result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return vdi_catalog_failed(error, result, meant.name);
    memset(info, 0, sizeof *info);
    result = vdi_find_version(txn, &meant, &info->record, error);
    if (result == 0) {
        struct versions one = {.items = info, .count = 1};
        memcpy(info->name, meant.name, sizeof info->name);
        info->version = meant.version;
        result = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, count_desktop, &one);
        if (result)
            vdi_catalog_failed(error, result, meant.name);
    }
    gild_txn_abort(txn);
    return result;
}

/* ---- delete ---------------------------------------------------------------------------------- */

struct standing {
    const struct gild_reference *version;
    struct vdi_desktops desktops; /* `room` is fixed: the first few */
    struct gild_desktop_info few[6];
    uint64_t count;
    char pool[GILD_NAME_MAX + 1];
};

static int note_standing(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct standing *standing = context;
    struct gild_rec_desktop record;
    int result = gild_rec_desktop_decode(&record, value, length);
    if (result || record.version != standing->version->version ||
        strcmp(record.image, standing->version->name))
        return result;
    if (standing->desktops.count < standing->desktops.room &&
        !vdi_name_key_read(key, key_length,
                           standing->desktops.items[standing->desktops.count++].name))
        return -EUCLEAN;
    standing->count++;
    return 0;
}

static int note_pool(void *context, const void *key, size_t key_length, const void *value,
                     size_t length) {
    struct standing *standing = context;
    struct gild_rec_pool record;
    int result = gild_rec_pool_decode(&record, value, length);
    if (result || record.version != standing->version->version ||
        strcmp(record.image, standing->version->name))
        return result;
    return vdi_name_key_read(key, key_length, standing->pool) ? 0 : -EUCLEAN;
}

/* Refuses while desktops or pools stand on the version. */
static int check_standing(struct gild_txn *txn, const struct gild_reference *version,
                          struct gild_error *error) {
    struct standing standing = {.version = version};
    char names[VDI_NAMES_BYTES];
    standing.desktops.items = standing.few;
    standing.desktops.room = 5;
    int result = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, note_standing, &standing);
    if (result == 0)
        result = gild_txn_scan(txn, GILD_TABLE_POOLS, NULL, 0, note_pool, &standing);
    if (result)
        return vdi_catalog_failed(error, result, version->name);
    if (standing.count == 1)
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "desktop %s stands on image %s@%u; delete it first", standing.few[0].name,
                         version->name, version->version);
    if (standing.count)
        return gild_fail(
            error, GILD_BUSY, EBUSY, "%llu desktops stand on image %s@%u (%s%s); delete them first",
            (unsigned long long)standing.count, version->name, version->version,
            vdi_desktops_names(&standing.desktops, NULL, names), standing.count > 5 ? ", ..." : "");
    if (standing.pool[0])
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "pool %s makes its desktops from image %s@%u; delete the pool first",
                         standing.pool, version->name, version->version);
    return 0;
}

static int busy_open(struct gild_store *store, const struct gild_reference *version,
                     uint64_t map_id, struct gild_error *error) {
    const char *door;
    if (!gild_disk_in_use(store, 0, map_id, &door))
        return 0;
    return gild_fail(error, GILD_BUSY, EBUSY,
                     "image %s@%u is open through %s; close it there first", version->name,
                     version->version, door ? door : "a door");
}

static int plan_delete(struct gild_txn *txn, struct gild_reference *version,
                       struct gild_rec_version *record, struct gild_error *error) {
    int result = vdi_find_version(txn, version, record, error);
    return result ? result : check_standing(txn, version, error);
}

/* The map is held. */
static int delete_version(struct gild_store *store, struct gild_reference *version, uint64_t map_id,
                          struct gild_error *error) {
    struct gild_rec_version record;
    uint8_t key[VDI_VERSION_KEY_BYTES];
    struct gild_txn *txn;
    struct gild_rec_map *map = malloc(sizeof *map);
    int result = map ? gild_txn_begin(gild_store_catalog(store), true, &txn) : -ENOMEM;
    if (result) {
        free(map);
        return vdi_catalog_failed(error, result, version->name);
    }
    result = plan_delete(txn, version, &record, error);
    if (result == 0 && record.map_id != map_id)
        result = gild_fail(error, GILD_BUSY, EBUSY, "image %s@%u has just changed; try again",
                           version->name, version->version);
    if (result) {
        gild_txn_abort(txn);
        free(map);
        return result;
    }
    bool mapped = gild_rec_get_map(txn, map_id, map) == 0;
    size_t length = vdi_version_key(version->name, version->version, key);
    result = gild_txn_delete(txn, GILD_TABLE_VERSIONS, key, length);
    if (result == 0) {
        result = gild_rec_delete_u64(txn, GILD_TABLE_MAPS, map_id);
        if (result == -ENOENT)
            result = 0;
    }
    if (result)
        gild_txn_abort(txn);
    else
        result = gild_txn_commit(txn);
    if (result == 0 && mapped)
        gild_store_note_unmapped(store, map); /* a hint: without it less is found dead */
    free(map);
    return result ? vdi_catalog_failed(error, result, version->name) : 0;
}

int gild_image_delete(struct gild_store *store, const char *reference, bool dry_run,
                      struct gild_freed *freed, struct gild_error *error) {
    struct gild_reference version;
    struct gild_rec_version record;
    struct gild_txn *txn;
    int result = gild_reference_parse(reference, &version, error);
    if (result)
        return result;
    if (!version.version)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "say which version of image %s to delete, as %s@NUMBER", version.name,
                         version.name);
    result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return vdi_catalog_failed(error, result, version.name);
    result = plan_delete(txn, &version, &record, error);
    gild_txn_abort(txn);
    if (result == 0)
        result = busy_open(store, &version, record.map_id, error);
    *freed = (struct gild_freed){.versions = 1, .disks = 1};
    if (result == 0)
        result = vdi_count_freed(store, NULL, 0, record.map_id, dry_run, freed, error);
    if (result || dry_run)
        return result;
    result = gild_disk_hold(store, NULL, &record.map_id, 0, 1);
    if (result == -EBUSY && (result = busy_open(store, &version, record.map_id, error)) == 0)
        return gild_fail(error, GILD_BUSY, EBUSY, "image %s@%u is in use; try again", version.name,
                         version.version);
    if (result)
        return result == -EBUSY ? result : vdi_catalog_failed(error, result, version.name);
    result = delete_version(store, &version, record.map_id, error);
    gild_disk_unhold(store, NULL, &record.map_id, 0, 1);
    if (result == 0)
        gild_store_collect(store);
    return result;
}
