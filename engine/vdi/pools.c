/* Pools: create, list, show, delete (vdi.h). A pool and its desktops come and go in one transaction
 * each. Any thread but a reactor's. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/quota.h"
#include "disk/store.h"
#include "vdi/lookup.h"

#define COUNT_MAX 100000u
#define CLONE_BYTES 512u

/* ---- create ---------------------------------------------------------------------------------- */

static int check_free(struct gild_txn *txn, const char *name, struct gild_error *error) {
    struct gild_rec_pool record;
    int result = vdi_get_pool(txn, name, &record);
    if (result == 0)
        return gild_fail(error, GILD_FAILED, EEXIST,
                         "there is a pool %s already; use another name, or delete it first", name);
    return result == -ENOENT ? 0 : vdi_catalog_failed(error, result, name);
}

static int make_pool(struct gild_txn *txn, const char *name, struct gild_reference *image,
                     const char *pattern_text, const struct gild_name_pattern *pattern,
                     uint32_t count, uint64_t capacity_bytes, struct gild_error *error) {
    struct gild_rec_version version;
    struct gild_rec_pool record = {.count = count, .created_ns = vdi_now_ns()};
    struct vdi_clones clones = {
        .pattern = pattern, .count = count, .pool = name, .capacity_bytes = capacity_bytes};
    int result = check_free(txn, name, error);
    if (result == 0)
        result = vdi_find_version(txn, image, &version, error);
    if (result == 0)
        result = vdi_make_clones(txn, &clones, image, &version, error);
    if (result)
        return result;
    memcpy(record.image, image->name, sizeof record.image);
    record.version = image->version;
    memcpy(record.name_pattern, pattern_text, strlen(pattern_text) + 1);
    result = vdi_put_pool(txn, name, &record);
    return result ? vdi_catalog_failed(error, result, name) : 0;
}

int gild_pool_create(struct gild_store *store, const char *name, const char *image, uint32_t count,
                     const char *name_pattern, struct gild_pool_info *made,
                     struct gild_error *error) {
    char text[GILD_NAME_MAX + 8];
    struct gild_name_pattern pattern;
    struct gild_reference reference;
    struct gild_txn *txn;
    int result = gild_name_check(name, "pool", error);
    if (result)
        return result;
    if (count > COUNT_MAX)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%u desktops are too many for one pool; make at most %u", count,
                         COUNT_MAX);
    if (!name_pattern) {
        snprintf(text, sizeof text, "%s%%04d", name);
        name_pattern = text;
    }
    if (strlen(name_pattern) > GILD_NAME_MAX)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "the name pattern of pool %s is too long; it has at most %u bytes", name,
                         GILD_NAME_MAX);
    result = gild_name_pattern_parse(name_pattern, &pattern, error);
    if (result == 0)
        result = gild_reference_parse(image, &reference, error);
    if (result)
        return result;
    uint64_t capacity_bytes = gild_store_capacity(store);
    result = gild_store_admit_bytes(store, ((uint64_t)count + 1) * CLONE_BYTES);
    if (result == 0)
        result = gild_txn_begin(gild_store_catalog(store), true, &txn);
    if (result)
        return vdi_catalog_failed(error, result, name);
    result = make_pool(txn, name, &reference, name_pattern, &pattern, count, capacity_bytes, error);
    if (result) {
        gild_txn_abort(txn);
        return result;
    }
    result = gild_txn_commit(txn);
    if (result)
        return vdi_catalog_failed(error, result, name);
    return made ? gild_pool_show(store, name, made, error) : 0;
}

/* ---- list, show ------------------------------------------------------------------------------ */

struct pools {
    struct gild_pool_info *items;
    size_t count, room;
};

static int note_pool(void *context, const void *key, size_t key_length, const void *value,
                     size_t length) {
    struct pools *pools = context;
    if (pools->count == pools->room) {
        size_t room = pools->room ? 2 * pools->room : 16;
        struct gild_pool_info *grown = realloc(pools->items, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        pools->items = grown;
        pools->room = room;
    }
    struct gild_pool_info *info = &pools->items[pools->count];
    memset(info, 0, sizeof *info);
    if (!vdi_name_key_read(key, key_length, info->name))
        return -EUCLEAN;
    int result = gild_rec_pool_decode(&info->record, value, length);
    pools->count += result == 0;
    return result;
}

static int by_name(const void *a, const void *b) {
    const struct gild_pool_info *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static void add_desktop(struct pools *pools, const struct gild_desktop_info *desktop) {
    struct gild_pool_info wanted;
    memcpy(wanted.name, desktop->record.pool, sizeof wanted.name);
    struct gild_pool_info *info =
        pools->count ? bsearch(&wanted, pools->items, pools->count, sizeof wanted, by_name) : NULL;
    if (!info)
        return;
    info->desktops++;
    info->open_desktops += desktop->door != NULL;
    info->delta_blocks += desktop->delta_blocks;
}

int gild_pool_list(struct gild_store *store, gild_pool_visit *visit, void *context,
                   struct gild_error *error) {
    struct pools pools = {0};
    struct vdi_desktops desktops = {0};
    struct gild_txn *txn;
    int result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result == 0) {
        result = gild_txn_scan(txn, GILD_TABLE_POOLS, NULL, 0, note_pool, &pools);
        if (result == 0 && pools.count)
            result = vdi_select(txn, NULL, &desktops, error);
        gild_txn_abort(txn);
    }
    if (result)
        vdi_catalog_failed(error, result, "can not list the pools");
    vdi_desktops_look(store, &desktops);
    for (size_t i = 0; i < desktops.count; i++)
        add_desktop(&pools, &desktops.items[i]);
    for (size_t i = 0; i < pools.count && result == 0; i++)
        result = visit(context, &pools.items[i]);
    vdi_desktops_free(&desktops);
    free(pools.items);
    return result;
}

int gild_pool_show(struct gild_store *store, const char *name, struct gild_pool_info *info,
                   struct gild_error *error) {
    char select[GILD_NAME_MAX + 2];
    struct vdi_desktops desktops = {0};
    struct gild_txn *txn;
    int result = gild_name_check(name, "pool", error);
    if (result)
        return result;
    snprintf(select, sizeof select, "@%s", name);
    result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return vdi_catalog_failed(error, result, name);
    memset(info, 0, sizeof *info);
    result = vdi_select(txn, select, &desktops, error);
    if (result == 0 && (result = vdi_get_pool(txn, name, &info->record)))
        vdi_catalog_failed(error, result, name);
    gild_txn_abort(txn);
    memcpy(info->name, name, strlen(name) + 1);
    vdi_desktops_look(store, &desktops);
    struct pools one = {.items = info, .count = 1};
    for (size_t i = 0; i < desktops.count; i++)
        add_desktop(&one, &desktops.items[i]);
    vdi_desktops_free(&desktops);
    return result;
}

/* ---- delete ---------------------------------------------------------------------------------- */

int gild_pool_delete(struct gild_store *store, const char *name, bool dry_run,
                     struct gild_freed *freed, struct gild_error *error) {
    char select[GILD_NAME_MAX + 2];
    int result = gild_name_check(name, "pool", error);
    if (result)
        return result;
    snprintf(select, sizeof select, "@%s", name);
    return vdi_delete_desktops(store, select, name, dry_run, freed, error);
}
