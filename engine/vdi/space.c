/* What disks take, what they share, and what would be freed (vdi.h). Everything is counted when it
 * is asked for (disk/census.h): a disk's own blocks in the log, and blocks of packs, which many
 * disks may name. Any thread but a reactor's. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/census.h"
#include "disk/growth.h"
#include "disk/store.h"
#include "vdi/lookup.h"

/* A map and the group that it counts to. */
struct member {
    uint64_t id;
    bool sealed;
    uint32_t group;
};

struct members {
    struct member *items;
    size_t count, room;
};

static int add_member(struct members *members, uint64_t id, bool sealed, size_t group) {
    if (members->count == members->room) {
        size_t room = members->room ? 2 * members->room : 64;
        struct member *grown = realloc(members->items, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        members->items = grown;
        members->room = room;
    }
    members->items[members->count++] =
        (struct member){.id = id, .sealed = sealed, .group = (uint32_t)group};
    return 0;
}

static int by_id(const void *a, const void *b) {
    const struct member *x = a, *y = b;
    if (x->sealed != y->sealed)
        return x->sealed ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static size_t group_of(void *context, const struct reach_map *map) {
    const struct members *members = context;
    const struct member wanted = {.id = map->id, .sealed = map->sealed != NULL};
    const struct member *found =
        members->count ? bsearch(&wanted, members->items, members->count, sizeof wanted, by_id)
                       : NULL;
    return found ? found->group : CENSUS_OTHER;
}

static int count(struct gild_store *store, struct members *members, size_t groups,
                 struct census **census, struct gild_error *error) {
    if (members->count)
        qsort(members->items, members->count, sizeof *members->items, by_id);
    return census_take(store, groups, group_of, members, census, error);
}

/* ---- what goes when disks go ----------------------------------------------------------------- */

int vdi_count_freed(struct gild_store *store, const uint64_t *deltas, size_t delta_count,
                    uint64_t map_id, bool must, struct gild_freed *freed,
                    struct gild_error *error) {
    struct members members = {0};
    struct census *census = NULL;
    struct census_freed told = {0};
    int result = map_id ? add_member(&members, map_id, true, 0) : 0;
    for (size_t i = 0; i < delta_count && result == 0; i++)
        result = add_member(&members, deltas[i], false, 0);
    if (result == 0)
        result = count(store, &members, 1, &census, error);
    if (result == 0)
        result = census_frees(census, 0, &told);
    census_destroy(census);
    free(members.items);
    if (result && !must) {
        told = (struct census_freed){0};
        for (size_t i = 0; i < delta_count; i++)
            told.blocks += gild_disk_mapped_blocks(store, deltas[i]);
        told.bytes = told.blocks * GILD_BLOCK_BYTES;
        result = 0;
    }
    freed->blocks = told.blocks;
    freed->bytes = told.bytes;
    return result;
}

/* ---- what a disk, a pool, the store takes ---------------------------------------------------- */

/* What is asked about: one disk, or the disks of a pool together. */
struct target {
    struct gild_usage *space;
    struct members members;
    struct gild_reference version; /* of an image: its desktops are counted */
};

/* Shared is all that costs the disk nothing of its own: what it has twice itself, too. */
static void fill_in(struct gild_usage *space, const struct census_share *share) {
    uint64_t unique = share->log_blocks + share->unique_blocks;
    space->mapped_bytes = share->mapped_blocks * GILD_BLOCK_BYTES;
    space->unique_bytes = unique * GILD_BLOCK_BYTES;
    space->shared_bytes =
        share->mapped_blocks > unique ? (share->mapped_blocks - unique) * GILD_BLOCK_BYTES : 0;
    space->compressed_bytes = share->log_blocks * GILD_BLOCK_BYTES + share->unique_bytes;
}

static int note_share(struct gild_store *store, struct target *target, struct gild_error *error) {
    struct gild_usage *space = target->space;
    struct census_freed freed;
    struct census *census;
    int result = count(store, &target->members, 1, &census, error);
    if (result)
        return result;
    fill_in(space, census_share_of(census, 0));
    result = census_frees(census, 0, &freed);
    space->frees_bytes = freed.bytes;
    census_destroy(census);
    return result ? vdi_catalog_failed(error, result, space->path) : 0;
}

static int find_version(struct gild_txn *txn, const char *text, struct target *target,
                        struct gild_error *error) {
    struct gild_rec_version record;
    struct gild_usage *space = target->space;
    int result = gild_reference_parse(text, &target->version, error);
    if (result == 0)
        result = vdi_find_version(txn, &target->version, &record, error);
    if (result)
        return result;
    snprintf(space->path, sizeof space->path, "images/%s@%" PRIu32, target->version.name,
             target->version.version);
    space->kind = GILD_SPACE_IMAGE;
    space->disks = 1;
    space->virtual_bytes = record.size_bytes;
    space->stage = record.stage;
    return add_member(&target->members, record.map_id, true, 0);
}

static int add_desktops(struct gild_txn *txn, const char *select, struct target *target,
                        struct gild_error *error) {
    struct vdi_desktops desktops;
    int result = vdi_select(txn, select, &desktops, error);
    for (size_t i = 0; i < desktops.count && result == 0; i++) {
        target->space->disks++;
        target->space->virtual_bytes += desktops.items[i].record.size_bytes;
        result = add_member(&target->members, desktops.items[i].record.os_delta, false, 0);
    }
    vdi_desktops_free(&desktops);
    return result;
}

/* "desktops/D/os" or "desktops/D"; what has no slash is a pool, or "@POOL". */
static int find_target(struct gild_txn *txn, const char *text, struct target *target,
                       struct gild_error *error) {
    struct gild_usage *space = target->space;
    char name[GILD_NAME_MAX + 2], quoted[GILD_NAME_QUOTED];
    if (strncmp(text, "images/", 7) == 0)
        return find_version(txn, text + 7, target, error);
    if (strncmp(text, "desktops/", 9) == 0) {
        size_t length = strcspn(text + 9, "/");
        if (length && length <= GILD_NAME_MAX && !strpbrk(text + 9, "*?[@") &&
            (!text[9 + length] || strcmp(text + 9 + length, "/os") == 0)) {
            memcpy(name, text + 9, length);
            name[length] = 0;
            space->kind = GILD_SPACE_DESKTOP;
            snprintf(space->path, sizeof space->path, "desktops/%s/os", name);
            return add_desktops(txn, name, target, error);
        }
    } else if (!strchr(text, '/') && strlen(text) <= GILD_NAME_MAX) {
        snprintf(name, sizeof name, "@%s", text[0] == '@' ? text + 1 : text);
        space->kind = GILD_SPACE_POOL;
        snprintf(space->path, sizeof space->path, "%s", name);
        return add_desktops(txn, name, target, error);
    }
    return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                     "there is no disk or pool '%s'; a disk's path is desktops/D/os or "
                     "images/NAME@V, a pool is called by its name",
                     gild_name_quote(text, quoted));
}

struct standing {
    const struct gild_reference *version;
    uint64_t count;
};

static int note_standing(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct standing *standing = context;
    struct gild_rec_desktop record;
    (void)key, (void)key_length;
    int result = gild_rec_desktop_decode(&record, value, length);
    standing->count += result == 0 && record.version == standing->version->version &&
                       strcmp(record.image, standing->version->name) == 0;
    return result;
}

static void add_growth(struct gild_store *store, const struct member *member,
                       struct gild_usage *space) {
    int64_t per_day;
    if (member->sealed)
        return;
    uint64_t bytes = gild_disk_mapped_blocks(store, member->id) * GILD_BLOCK_BYTES;
    if (!growth_of(store, member->id, bytes, &per_day))
        return;
    space->growth_known = true;
    space->growth_bytes_per_day += per_day;
}

int gild_space_of(struct gild_store *store, const char *text, struct gild_usage *space,
                  struct gild_error *error) {
    struct target target = {.space = space};
    struct standing standing = {.version = &target.version};
    struct gild_txn *txn;
    memset(space, 0, sizeof *space);
    int result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return vdi_catalog_failed(error, result, text);
    result = find_target(txn, text, &target, error);
    if (result == 0 && space->kind == GILD_SPACE_IMAGE) {
        result = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, note_standing, &standing);
        if (result)
            vdi_catalog_failed(error, result, text);
    }
    gild_txn_abort(txn);
    space->desktops = space->kind == GILD_SPACE_IMAGE ? standing.count : space->disks;
    for (size_t i = 0; i < target.members.count && !space->door && result == 0; i++) {
        const struct member *member = &target.members.items[i];
        gild_disk_in_use(store, member->sealed ? 0 : member->id, member->sealed ? member->id : 0,
                         &space->door);
    }
    if (result == 0)
        result = note_share(store, &target, error);
    for (size_t i = 0; i < target.members.count && result == 0; i++)
        add_growth(store, &target.members.items[i], space);
    free(target.members.items);
    return result;
}

int gild_space_totals(struct gild_store *store, struct gild_space_totals *totals,
                      struct gild_error *error) {
    struct vdi_desktops desktops;
    struct members none = {0};
    struct census *census = NULL;
    struct census_totals counted;
    memset(totals, 0, sizeof *totals);
    int result = gild_store_get_info(store, &totals->info, error);
    if (result == 0)
        result = vdi_select_now(store, NULL, &desktops, error);
    if (result)
        return result;
    for (size_t i = 0; i < desktops.count; i++)
        totals->virtual_bytes += desktops.items[i].record.size_bytes;
    vdi_desktops_free(&desktops);
    result = count(store, &none, 0, &census, error);
    if (result)
        return result;
    census_get_totals(census, &counted);
    census_destroy(census);
    totals->mapped_bytes = counted.mapped_blocks * GILD_BLOCK_BYTES;
    totals->unique_bytes = (counted.pack_blocks + counted.log_blocks) * GILD_BLOCK_BYTES;
    totals->shared_bytes = totals->mapped_bytes > totals->unique_bytes
                               ? totals->mapped_bytes - totals->unique_bytes
                               : 0;
    totals->compressed_bytes = counted.pack_bytes + counted.log_blocks * GILD_BLOCK_BYTES;
    totals->dead_bytes = counted.dead_bytes;
    totals->days_to_full = UINT64_MAX;
    totals->growth_known =
        growth_of(store, 0, totals->info.used_bytes, &totals->growth_bytes_per_day);
    if (totals->growth_known && totals->growth_bytes_per_day > 0)
        totals->days_to_full = totals->info.free_bytes / (uint64_t)totals->growth_bytes_per_day;
    return 0;
}

/* ---- what to delete first -------------------------------------------------------------------- */

struct ranking {
    struct gild_usage *items;
    size_t count, room;
    struct members members;
};

static struct gild_usage *add_item(struct ranking *ranking) {
    if (ranking->count == ranking->room) {
        size_t room = ranking->room ? 2 * ranking->room : 64;
        struct gild_usage *grown = realloc(ranking->items, room * sizeof *grown);
        if (!grown)
            return NULL;
        ranking->items = grown;
        ranking->room = room;
    }
    struct gild_usage *item = &ranking->items[ranking->count++];
    memset(item, 0, sizeof *item);
    return item;
}

static int note_image(void *context, const struct gild_image_info *info) {
    struct ranking *ranking = context;
    struct gild_usage *item = add_item(ranking);
    if (!item)
        return -ENOMEM;
    item->kind = GILD_SPACE_IMAGE;
    item->disks = 1;
    item->virtual_bytes = info->record.size_bytes;
    item->desktops = info->desktops;
    item->stage = info->record.stage;
    snprintf(item->path, sizeof item->path, "images/%s@%" PRIu32, info->name, info->version);
    return add_member(&ranking->members, info->record.map_id, true, ranking->count - 1);
}

static int note_desktop(void *context, const struct gild_desktop_info *info) {
    struct ranking *ranking = context;
    struct gild_usage *item = add_item(ranking);
    if (!item)
        return -ENOMEM;
    item->kind = GILD_SPACE_DESKTOP;
    item->disks = item->desktops = 1;
    item->virtual_bytes = info->record.size_bytes;
    item->door = info->door;
    snprintf(item->path, sizeof item->path, "desktops/%s/os", info->name);
    return add_member(&ranking->members, info->record.os_delta, false, ranking->count - 1);
}

static bool held(const struct gild_usage *space) {
    return space->door || (space->kind == GILD_SPACE_IMAGE && space->desktops);
}

/* What may be deleted at once before what is held, the largest first. */
static int by_gain(const void *a, const void *b) {
    const struct gild_usage *x = a, *y = b;
    if (held(x) != held(y))
        return held(x) ? 1 : -1;
    if (x->frees_bytes != y->frees_bytes)
        return x->frees_bytes < y->frees_bytes ? 1 : -1;
    return strcmp(x->path, y->path);
}

int gild_space_rank(struct gild_store *store, const char *pool, gild_space_visit *visit,
                    void *context, struct gild_error *error) {
    struct ranking ranking = {0};
    struct census *census = NULL;
    char select[GILD_NAME_MAX + 2];
    if (pool && strlen(pool) > GILD_NAME_MAX)
        return gild_name_check(pool, "pool", error);
    snprintf(select, sizeof select, "@%s", pool && pool[0] == '@' ? pool + 1 : pool ? pool : "");
    int result = pool ? 0 : gild_image_list(store, NULL, note_image, &ranking, error);
    if (result == 0)
        result = gild_desktop_list(store, pool ? select : NULL, note_desktop, &ranking, error);
    if (result == 0)
        result = count(store, &ranking.members, ranking.count, &census, error);
    for (size_t i = 0; i < ranking.count && result == 0; i++) {
        fill_in(&ranking.items[i], census_share_of(census, i));
        ranking.items[i].frees_bytes = ranking.items[i].compressed_bytes;
    }
    census_destroy(census);
    if (result == 0 && ranking.count)
        qsort(ranking.items, ranking.count, sizeof *ranking.items, by_gain);
    for (size_t i = 0; i < ranking.count && result == 0; i++)
        result = visit(context, &ranking.items[i]);
    free(ranking.items);
    free(ranking.members.items);
    return result;
}
