/* Desktops: create, list, show, delete (vdi.h).
 *
 * A clone is two records, a desktop and an empty delta over the version's sealed map; a thousand of
 * them are one transaction. Deleting moves the delta from DELTAS to DROPPED in the transaction that
 * removes the name; the store's keeper frees its blocks afterwards, also after a crash.
 *
 * Deleting selects twice: once to hold the disks (so that no door opens them), then again inside
 * the transaction; if the two differ, somebody made or deleted desktops in between, and it starts
 * over. Any thread but a reactor's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "disk/quota.h"
#include "disk/store.h"
#include "map/node.h"
#include "vdi/limits.h"
#include "vdi/lookup.h"

#define COUNT_MAX 100000u
#define SIZE_MAX_BYTES \
    ((uint64_t)GILD_DELTA_ROOTS_MAX * GILD_DIR_REFS * GILD_DIR_BLOCKS * GILD_BLOCK_BYTES)
/* Catalogue bytes that a clone takes, roughly. */
#define CLONE_BYTES 512u
#define DELETE_TRIES 8u

/* ---- create ---------------------------------------------------------------------------------- */

static int clone_name(const struct vdi_clones *clones, uint32_t index, char name[GILD_NAME_MAX + 1],
                      struct gild_error *error) {
    if (clones->pattern)
        return gild_name_pattern_make(clones->pattern, index + 1, "desktop", name, error);
    int result = gild_name_check(clones->name, "desktop", error);
    if (result == 0)
        memcpy(name, clones->name, strlen(clones->name) + 1);
    return result;
}

static int check_free(struct gild_txn *txn, const char *name, struct gild_error *error) {
    struct gild_rec_desktop record;
    int result = vdi_get_desktop(txn, name, &record);
    if (result == 0)
        return gild_fail(error, GILD_FAILED, EEXIST,
                         "there is a desktop %s already; use another name, or delete it first",
                         name);
    return result == -ENOENT ? 0 : vdi_catalog_failed(error, result, name);
}

/* 0: the version's own. A desktop may be larger than its image, the rest reads zeroes. */
static int check_size(uint64_t *size_bytes, const struct gild_reference *image,
                      const struct gild_rec_version *version, struct gild_error *error) {
    char given[16], least[16];
    if (!*size_bytes)
        *size_bytes = version->size_bytes;
    if (*size_bytes % GILD_SECTOR_BYTES)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "a desktop can not have %llu bytes; use a multiple of 512",
                         (unsigned long long)*size_bytes);
    if (*size_bytes < version->size_bytes)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "a desktop of %s can not be smaller than image %s@%u, which has %s",
                         gild_format_size(*size_bytes, given, sizeof given), image->name,
                         image->version,
                         gild_format_size(version->size_bytes, least, sizeof least));
    if (*size_bytes > SIZE_MAX_BYTES)
        return gild_fail(error, GILD_USAGE, EINVAL, "a desktop can have at most %s",
                         gild_format_size(SIZE_MAX_BYTES, given, sizeof given));
    return 0;
}

int vdi_make_clones(struct gild_txn *txn, const struct vdi_clones *clones,
                    const struct gild_reference *image, const struct gild_rec_version *version,
                    struct gild_error *error) {
    struct gild_rec_desktop desktop = {.version = image->version, .created_ns = vdi_now_ns()};
    struct gild_rec_delta *delta = calloc(1, sizeof *delta);
    char name[GILD_NAME_MAX + 1];
    uint64_t first, size_bytes = clones->size_bytes;
    if (!delta)
        return vdi_catalog_failed(error, -ENOMEM, image->name);
    int result = check_size(&size_bytes, image, version, error);
    if (result == 0)
        result = vdi_check_promise(txn, clones->capacity_bytes, clones->count, size_bytes, error);
    if (result == 0 && (result = gild_txn_next_id(txn, "delta", clones->count, &first)))
        vdi_catalog_failed(error, result, image->name);
    memcpy(desktop.image, image->name, sizeof desktop.image);
    strncpy(desktop.pool, clones->pool, GILD_NAME_MAX);
    desktop.size_bytes = size_bytes;
    delta->size_bytes = size_bytes;
    delta->parent_map = version->map_id;
    delta->parent_size_bytes = version->size_bytes;
    delta->changed_ns = desktop.created_ns;
    for (uint32_t i = 0; i < clones->count && result == 0; i++) {
        result = clone_name(clones, i, name, error);
        if (result == 0)
            result = check_free(txn, name, error);
        if (result)
            break;
        desktop.os_delta = first + i;
        result = gild_rec_put_delta(txn, GILD_TABLE_DELTAS, first + i, delta);
        if (result == 0)
            result = vdi_put_desktop(txn, name, &desktop);
        if (result)
            vdi_catalog_failed(error, result, name);
    }
    free(delta);
    return result;
}

/* What a request for desktops says about their names. */
static int plan_names(const struct gild_desktop_create *request, struct gild_name_pattern *pattern,
                      struct vdi_clones *clones, struct gild_error *error) {
    clones->count = request->count ? request->count : 1;
    if (clones->count > COUNT_MAX)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%u desktops at once are too many; make at most %u", clones->count,
                         COUNT_MAX);
    if (request->name_pattern) {
        if (request->name)
            return gild_fail(error, GILD_USAGE, EINVAL,
                             "desktops are named by a name or by a pattern; give one of them");
        clones->pattern = pattern;
        return gild_name_pattern_parse(request->name_pattern, pattern, error);
    }
    if (!request->name)
        return gild_fail(error, GILD_USAGE, EINVAL, "the desktop has no name; give it one");
    if (clones->count > 1)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%u desktops can not have one name; give a name pattern such as 'd%%04d'",
                         clones->count);
    clones->name = request->name;
    return gild_name_check(request->name, "desktop", error);
}

/* The pool that new desktops join counts them. */
static int join_pool(struct gild_txn *txn, const char *name, uint32_t count,
                     struct gild_error *error) {
    struct gild_rec_pool pool;
    int result = gild_name_check(name, "pool", error);
    if (result)
        return result;
    result = vdi_get_pool(txn, name, &pool);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no pool %s; `gild pool list` shows what there is", name);
    if (result == 0) {
        pool.count += count;
        result = vdi_put_pool(txn, name, &pool);
    }
    return result ? vdi_catalog_failed(error, result, name) : 0;
}

int gild_desktop_create(struct gild_store *store, const struct gild_desktop_create *request,
                        uint32_t *made, struct gild_error *error) {
    struct gild_name_pattern pattern;
    struct vdi_clones clones = {.pool = request->pool ? request->pool : "",
                                .size_bytes = request->size_bytes,
                                .capacity_bytes = gild_store_capacity(store)};
    struct gild_reference image;
    struct gild_rec_version version;
    struct gild_txn *txn;
    *made = 0;
    int result = plan_names(request, &pattern, &clones, error);
    if (result == 0)
        result = gild_reference_parse(request->image, &image, error);
    if (result)
        return result;
    result = gild_store_admit_bytes(store, (uint64_t)clones.count * CLONE_BYTES);
    if (result == 0)
        result = gild_txn_begin(gild_store_catalog(store), true, &txn);
    if (result)
        return vdi_catalog_failed(error, result, "can not make desktops");
    result = vdi_find_version(txn, &image, &version, error);
    if (result == 0 && clones.pool[0])
        result = join_pool(txn, clones.pool, clones.count, error);
    if (result == 0)
        result = vdi_make_clones(txn, &clones, &image, &version, error);
    if (result) {
        gild_txn_abort(txn);
        return result;
    }
    result = gild_txn_commit(txn);
    if (result)
        return vdi_catalog_failed(error, result, "can not make desktops");
    *made = clones.count;
    if (clones.pool[0]) /* it may have a quota */
        gild_store_limits_changed(store);
    return 0;
}

/* ---- list, show ------------------------------------------------------------------------------ */

int gild_desktop_list(struct gild_store *store, const char *select, gild_desktop_visit *visit,
                      void *context, struct gild_error *error) {
    struct vdi_desktops desktops;
    int result = vdi_select_now(store, select, &desktops, error);
    if (result == 0)
        vdi_desktops_look(store, &desktops);
    for (size_t i = 0; i < desktops.count && result == 0; i++)
        result = visit(context, &desktops.items[i]);
    vdi_desktops_free(&desktops);
    return result;
}

int gild_desktop_show(struct gild_store *store, const char *name, struct gild_desktop_info *info,
                      struct gild_error *error) {
    struct vdi_desktops desktops;
    int result = gild_name_check(name, "desktop", error);
    if (result)
        return result;
    result = vdi_select_now(store, name, &desktops, error);
    if (result == 0) {
        vdi_desktops_look(store, &desktops);
        *info = desktops.items[0];
    }
    vdi_desktops_free(&desktops);
    return result;
}

/* ---- delete ---------------------------------------------------------------------------------- */

static bool is_open(const struct gild_desktop_info *info) {
    return info->door != NULL;
}

/* Refuses if one is open, naming up to five. Sets their deltas' blocks, too. */
static int check_closed(struct gild_store *store, struct vdi_desktops *desktops,
                        struct gild_error *error) {
    char names[VDI_NAMES_BYTES];
    size_t open = 0;
    vdi_desktops_look(store, desktops);
    for (size_t i = 0; i < desktops->count; i++)
        open += is_open(&desktops->items[i]);
    if (!open)
        return 0;
    vdi_desktops_names(desktops, is_open, names);
    if (open == 1)
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "desktop %s is open; shut it down or close its disk first", names);
    return gild_fail(error, GILD_BUSY, EBUSY,
                     "%zu desktops are open (%s); shut them down or close their disks first", open,
                     names);
}

static bool same_disks(const struct vdi_desktops *a, const struct vdi_desktops *b) {
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (strcmp(a->items[i].name, b->items[i].name) ||
            a->items[i].record.os_delta != b->items[i].record.os_delta)
            return false;
    return true;
}

static int drop_one(struct gild_txn *txn, const struct gild_desktop_info *info,
                    struct gild_rec_delta *delta) {
    const struct gild_rec_quota none = {0};
    int result = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, info->record.os_delta, delta);
    if (result == 0)
        result = gild_rec_put_delta(txn, GILD_TABLE_DROPPED, info->record.os_delta, delta);
    if (result == 0)
        result = gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, info->record.os_delta);
    if (result == 0)
        result = gild_txn_delete(txn, GILD_TABLE_DESKTOPS, info->name, strlen(info->name));
    if (result == 0)
        result = gild_rec_put_disk_quota(txn, info->record.os_delta, &none);
    return result;
}

static int leave_pool(struct gild_txn *txn, const char *name) {
    struct gild_rec_pool pool;
    if (!name[0])
        return 0;
    int result = vdi_get_pool(txn, name, &pool);
    if (result == -ENOENT)
        return 0;
    if (result == 0 && pool.count) {
        pool.count--;
        result = vdi_put_pool(txn, name, &pool);
    }
    return result;
}

/* The disks are held. 0, -errno with a sentence, or 1: somebody changed the selection. */
static int drop_all(struct gild_store *store, const char *select, const char *pool,
                    const struct vdi_desktops *desktops, struct gild_error *error) {
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    struct vdi_desktops now = {0};
    struct gild_txn *txn = NULL;
    int result = delta ? gild_txn_begin(gild_store_catalog(store), true, &txn) : -ENOMEM;
    if (result) {
        free(delta);
        return vdi_catalog_failed(error, result, "can not delete desktops");
    }
    result = vdi_select(txn, select, &now, error);
    if (result == 0 && !same_disks(desktops, &now))
        result = 1;
    for (size_t i = 0; i < desktops->count && result == 0; i++) {
        const struct gild_desktop_info *info = &desktops->items[i];
        result = drop_one(txn, info, delta);
        if (result == 0)
            result = leave_pool(txn, info->record.pool);
        if (result)
            vdi_catalog_failed(error, result, info->name);
    }
    if (result == 0 && pool) {
        const struct gild_rec_quota none = {0};
        result = gild_txn_delete(txn, GILD_TABLE_POOLS, pool, strlen(pool));
        if (result == 0)
            result = gild_rec_put_pool_quota(txn, pool, &none);
        if (result)
            vdi_catalog_failed(error, result, pool);
    }
    if (result)
        gild_txn_abort(txn);
    else if ((result = gild_txn_commit(txn)))
        vdi_catalog_failed(error, result, "can not delete desktops");
    vdi_desktops_free(&now);
    free(delta);
    return result;
}

/* One try: select, check, hold, delete. As drop_all. */
static int try_delete(struct gild_store *store, const char *select, const char *pool, bool dry_run,
                      struct gild_freed *freed, struct gild_error *error) {
    struct vdi_desktops desktops;
    char quoted[GILD_NAME_QUOTED];
    uint64_t *deltas = NULL;
    int result = vdi_select_now(store, select, &desktops, error);
    if (result == 0 && !desktops.count && !pool) /* a slip of the pen more often than not */
        result = gild_fail(error, GILD_NOT_FOUND, ENOENT,
                           "'%s' selects no desktop; `gild desktop list` shows what there is",
                           gild_name_quote(select ? select : "*", quoted));
    if (result == 0)
        result = check_closed(store, &desktops, error);
    if (result)
        goto out;
    deltas = malloc((desktops.count + 1) * sizeof *deltas);
    if (!deltas) {
        result = vdi_catalog_failed(error, -ENOMEM, "can not delete desktops");
        goto out;
    }
    for (size_t i = 0; i < desktops.count; i++)
        deltas[i] = desktops.items[i].record.os_delta;
    *freed = (struct gild_freed){.desktops = desktops.count, .disks = desktops.count};
    result = vdi_count_freed(store, deltas, desktops.count, 0, dry_run, freed, error);
    if (result || dry_run)
        goto out;
    result = gild_disk_hold(store, deltas, NULL, desktops.count, 0);
    if (result) { /* opened since we looked: look again, and say which */
        result =
            result == -EBUSY ? 1 : vdi_catalog_failed(error, result, "can not delete desktops");
        goto out;
    }
    result = drop_all(store, select, pool, &desktops, error);
    gild_disk_unhold(store, deltas, NULL, desktops.count, 0);
    if (result == 0)
        gild_store_collect(store);
    gild_store_limits_changed(store);
out:
    free(deltas);
    vdi_desktops_free(&desktops);
    return result;
}

int vdi_delete_desktops(struct gild_store *store, const char *select, const char *pool,
                        bool dry_run, struct gild_freed *freed, struct gild_error *error) {
    for (unsigned i = 0; i < DELETE_TRIES; i++) {
        int result = try_delete(store, select, pool, dry_run, freed, error);
        if (result <= 0)
            return result;
    }
    return gild_fail(error, GILD_BUSY, EBUSY,
                     "the desktops that '%s' selects keep changing; try again when nobody else "
                     "makes or opens them",
                     select ? select : "*");
}

int gild_desktop_delete(struct gild_store *store, const char *select, bool dry_run,
                        struct gild_freed *freed, struct gild_error *error) {
    return vdi_delete_desktops(store, select, NULL, dry_run, freed, error);
}
