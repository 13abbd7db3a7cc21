/* SEL: which desktops an admin means (vdi.h). A name, a glob (fnmatch(3), backslash is a plain
 * letter), @POOL, or NULL for all.
 *
 * A selection is copied out of its transaction before anybody looks at it: LMDB's readers pin free
 * pages, and callers print, ask reactors or wait. Any thread but a reactor's. */
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/store.h"
#include "vdi/lookup.h"

void vdi_desktops_free(struct vdi_desktops *desktops) {
    free(desktops->items);
    *desktops = (struct vdi_desktops){0};
}

static int add_desktop(struct vdi_desktops *desktops, const char *name,
                       const struct gild_rec_desktop *record) {
    if (desktops->count == desktops->room) {
        size_t room = desktops->room ? 2 * desktops->room : 64;
        struct gild_desktop_info *grown = realloc(desktops->items, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        desktops->items = grown;
        desktops->room = room;
    }
    struct gild_desktop_info *info = &desktops->items[desktops->count++];
    memset(info, 0, sizeof *info);
    memcpy(info->name, name, strlen(name) + 1);
    info->record = *record;
    return 0;
}

struct selection {
    struct vdi_desktops *out;
    const char *glob; /* NULL = any */
    const char *pool; /* NULL = any */
};

static int note_selected(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    const struct selection *selection = context;
    char name[GILD_NAME_MAX + 1];
    struct gild_rec_desktop record;
    if (!vdi_name_key_read(key, key_length, name))
        return -EUCLEAN;
    if (selection->glob && fnmatch(selection->glob, name, FNM_NOESCAPE))
        return 0;
    int result = gild_rec_desktop_decode(&record, value, length);
    if (result)
        return result;
    if (selection->pool && strcmp(selection->pool, record.pool))
        return 0;
    return add_desktop(selection->out, name, &record);
}

/* The one desktop of that name. */
static int select_one(struct gild_txn *txn, const char *name, struct vdi_desktops *out,
                      struct gild_error *error) {
    struct gild_rec_desktop record;
    int result = gild_name_check(name, "desktop", error);
    if (result)
        return result;
    result = vdi_get_desktop(txn, name, &record);
    if (result == 0)
        result = add_desktop(out, name, &record);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no desktop %s; `gild desktop list` shows what there is", name);
    return result ? vdi_catalog_failed(error, result, name) : 0;
}

static int find_pool(struct gild_txn *txn, const char *name, struct gild_error *error) {
    struct gild_rec_pool record;
    int result = gild_name_check(name, "pool", error);
    if (result)
        return result;
    result = vdi_get_pool(txn, name, &record);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no pool %s; `gild pool list` shows what there is", name);
    return result ? vdi_catalog_failed(error, result, name) : 0;
}

int vdi_select(struct gild_txn *txn, const char *select, struct vdi_desktops *out,
               struct gild_error *error) {
    struct selection selection = {.out = out};
    *out = (struct vdi_desktops){0};
    if (select && select[0] == '@') {
        int result = find_pool(txn, select + 1, error);
        if (result)
            return result;
        selection.pool = select + 1;
    } else if (select && strpbrk(select, "*?[")) {
        selection.glob = select;
    } else if (select) {
        return select_one(txn, select, out, error);
    }
    int result = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, note_selected, &selection);
    return result ? vdi_catalog_failed(error, result, "can not list the desktops") : 0;
}

int vdi_select_now(struct gild_store *store, const char *select, struct vdi_desktops *out,
                   struct gild_error *error) {
    struct gild_txn *txn;
    *out = (struct vdi_desktops){0};
    int result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return vdi_catalog_failed(error, result, "can not list the desktops");
    result = vdi_select(txn, select, out, error);
    gild_txn_abort(txn);
    return result;
}

void vdi_desktops_look(struct gild_store *store, struct vdi_desktops *desktops) {
    for (size_t i = 0; i < desktops->count; i++) {
        struct gild_desktop_info *info = &desktops->items[i];
        info->delta_blocks = gild_disk_mapped_blocks(store, info->record.os_delta);
        gild_disk_in_use(store, info->record.os_delta, 0, &info->door);
    }
}

char *vdi_desktops_names(const struct vdi_desktops *desktops,
                         bool (*take)(const struct gild_desktop_info *info),
                         char text[VDI_NAMES_BYTES]) {
    size_t named = 0, all = 0, used = 0;
    text[0] = 0;
    for (size_t i = 0; i < desktops->count; i++) {
        const char *name = desktops->items[i].name;
        if (take && !take(&desktops->items[i]))
            continue;
        all++;
        /* Five names, as long as they and what follows them fit into one sentence. */
        if (named == 5 || used + strlen(name) + 32 > VDI_NAMES_BYTES)
            continue;
        used +=
            (size_t)snprintf(text + used, VDI_NAMES_BYTES - used, "%s%s", named ? ", " : "", name);
        named++;
    }
    if (all > named)
        snprintf(text + used, VDI_NAMES_BYTES - used, " and %zu more", all - named);
    return text;
}
