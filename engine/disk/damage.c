/* See damage.h.
 *
 * The catalogue is read once, when a damage is opened: which image versions and which desktops
 * stand on which map. Answers walk the sealed maps that can reach the damaged packs, and for each
 * desktop its own map, to leave out what it has written itself and to find what of that is packed.
 * What can not be read on the way is left out of a sealed map (its own damage is found elsewhere)
 * and counts as hit in a desktop.
 *
 * In memory at once: the owners' names, and the ranges of the answers, which are cut at RANGES_MAX
 * for each disk. */
#include "disk/damage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "disk/survey.h"
#include "io/file.h"

#define RANGES_MAX 64u
#define MET_BUDGET 20000u

struct owner {
    uint64_t map_id;
    uint64_t delta_id; /* 0: an image version */
    char *disk;
};

struct damage {
    struct gild_store *store;
    struct owner *owner; /* by map, images before desktops, then by name */
    size_t count, room;
    uint64_t left; /* of the budget */
    bool bounded, cut_short;
    struct gild_rec_delta *delta;
    struct gild_rec_map *map;
    struct gild_txn *txn;
};

/* ---- owners ---------------------------------------------------------------------------------- */

static int add_owner(struct damage *damage, uint64_t map_id, uint64_t delta_id, const char *disk) {
    if (damage->count == damage->room) {
        size_t room = damage->room ? 2 * damage->room : 64;
        struct owner *grown = realloc(damage->owner, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        damage->owner = grown;
        damage->room = room;
    }
    char *name = strdup(disk);
    if (!name)
        return -ENOMEM;
    damage->owner[damage->count++] = (struct owner){map_id, delta_id, name};
    return 0;
}

static int note_version(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct gild_rec_version version;
    char disk[GILD_NAME_MAX + 32];
    const uint8_t *bytes = key;
    size_t name = strnlen(key, key_length);
    if (name + 5 != key_length || gild_rec_version_decode(&version, value, length))
        return 0;
    uint32_t number = (uint32_t)bytes[name + 1] << 24 | (uint32_t)bytes[name + 2] << 16 |
                      (uint32_t)bytes[name + 3] << 8 | bytes[name + 4];
    snprintf(disk, sizeof disk, "images/%s@%" PRIu32, (const char *)key, number);
    return add_owner(context, version.map_id, 0, disk);
}

static int note_desktop(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct damage *damage = context;
    struct gild_rec_desktop desktop;
    char disk[GILD_NAME_MAX + 32];
    if (gild_rec_desktop_decode(&desktop, value, length) ||
        gild_rec_get_delta(damage->txn, GILD_TABLE_DELTAS, desktop.os_delta, damage->delta))
        return 0;
    snprintf(disk, sizeof disk, "desktops/%.*s/os", (int)key_length, (const char *)key);
    return add_owner(damage, damage->delta->parent_map, desktop.os_delta, disk);
}

static int by_map(const void *a, const void *b) {
    const struct owner *x = a, *y = b;
    if (x->map_id != y->map_id)
        return x->map_id < y->map_id ? -1 : 1;
    if (!x->delta_id != !y->delta_id)
        return x->delta_id ? 1 : -1;
    return strcmp(x->disk, y->disk);
}

int damage_open(struct damage **out, struct gild_store *store, uint64_t budget) {
    struct damage *damage = calloc(1, sizeof *damage);
    int err = damage ? 0 : -ENOMEM;
    if (err)
        return err;
    damage->store = store;
    damage->left = budget;
    damage->bounded = budget != 0;
    damage->delta = malloc(sizeof *damage->delta);
    damage->map = malloc(sizeof *damage->map);
    err = damage->delta && damage->map ? gild_txn_begin(store->catalog, false, &damage->txn)
                                       : -ENOMEM;
    if (!err) {
        err = gild_txn_scan(damage->txn, GILD_TABLE_VERSIONS, NULL, 0, note_version, damage);
        if (!err)
            err = gild_txn_scan(damage->txn, GILD_TABLE_DESKTOPS, NULL, 0, note_desktop, damage);
        gild_txn_abort(damage->txn);
    }
    if (err) {
        damage_close(damage);
        return err;
    }
    if (damage->count)
        qsort(damage->owner, damage->count, sizeof *damage->owner, by_map);
    *out = damage;
    return 0;
}

void damage_close(struct damage *damage) {
    if (!damage)
        return;
    for (size_t i = 0; i < damage->count; i++)
        free(damage->owner[i].disk);
    free(damage->owner);
    free(damage->delta);
    free(damage->map);
    free(damage);
}

bool damage_cut_short(const struct damage *damage) {
    return damage->cut_short;
}

const char *damage_disk(struct damage *damage, uint64_t delta_id, char text[64]) {
    for (size_t i = 0; i < damage->count; i++)
        if (damage->owner[i].delta_id == delta_id)
            return damage->owner[i].disk;
    snprintf(text, 64, "delta %" PRIu64, delta_id);
    return text;
}

/* One more page is read; false: the budget is spent. */
static bool spend(struct damage *damage) {
    if (!damage->bounded)
        return true;
    damage->cut_short = damage->cut_short || !damage->left;
    if (damage->left)
        damage->left--;
    return !damage->cut_short;
}

/* ---- hits ------------------------------------------------------------------------------------ */

void hits_free(struct hits *hits) {
    for (size_t i = 0; i < hits->count; i++) {
        free(hits->memory[i].disk);
        free(hits->memory[i].ranges);
    }
    free(hits->memory);
    free(hits->hit);
    *hits = (struct hits){0};
}

static int make_room(struct hits *hits) {
    size_t room = hits->room ? 2 * hits->room : 16;
    struct gild_hit *hit = realloc(hits->hit, room * sizeof *hit);
    if (!hit)
        return -ENOMEM;
    hits->hit = hit;
    struct hits_memory *memory = realloc(hits->memory, room * sizeof *memory);
    if (!memory)
        return -ENOMEM;
    hits->memory = memory;
    hits->room = room;
    return 0;
}

int hits_add(struct hits *hits, const char *disk, const struct range_set *blocks) {
    size_t count = blocks->count < RANGES_MAX ? blocks->count : RANGES_MAX;
    if (hits->count == hits->room && make_room(hits))
        return -ENOMEM;
    struct hits_memory memory = {strdup(disk), malloc((count + 1) * sizeof *memory.ranges)};
    if (!memory.ranges || !memory.disk) {
        free(memory.ranges);
        free(memory.disk);
        return -ENOMEM;
    }
    struct gild_hit hit = {.disk = memory.disk, .ranges = memory.ranges, .range_count = count};
    for (size_t i = 0; i < blocks->count; i++) {
        hit.blocks += blocks->range[i].count;
        if (i < count)
            memory.ranges[i] =
                (struct gild_hit_range){blocks->range[i].first, blocks->range[i].count};
    }
    hits->memory[hits->count] = memory;
    hits->hit[hits->count++] = hit;
    return 0;
}

/* The same where the disk may be hit already. */
static int hits_more(struct hits *hits, const char *disk, const struct range_set *blocks) {
    size_t at = 0;
    while (at < hits->count && strcmp(hits->hit[at].disk, disk) != 0)
        at++;
    if (at == hits->count)
        return hits_add(hits, disk, blocks);
    struct gild_hit *hit = &hits->hit[at];
    struct gild_hit_range *ranges =
        realloc(hits->memory[at].ranges, (RANGES_MAX + 1) * sizeof *ranges);
    if (!ranges)
        return -ENOMEM;
    hits->memory[at].ranges = ranges;
    hit->ranges = ranges;
    for (size_t i = 0; i < blocks->count; i++) {
        hit->blocks += blocks->range[i].count;
        if (hit->range_count < RANGES_MAX)
            ranges[hit->range_count++] =
                (struct gild_hit_range){blocks->range[i].first, blocks->range[i].count};
    }
    return 0;
}

/* ---- from a map's blocks to disks ------------------------------------------------------------ */

/* What of `blocks` a delta does not have itself. */
struct inherit {
    struct damage *damage;
    const struct range_set *blocks; /* ascending */
    uint64_t parent_blocks;
    size_t at;
    struct range_set left;
};

static int keep(struct inherit *inherit, uint64_t first, uint64_t end, const struct gild_leaf *leaf,
                uint64_t leaf_first) {
    int err = 0;
    if (end > inherit->parent_blocks)
        end = inherit->parent_blocks;
    if (!leaf)
        return first < end ? range_add(&inherit->left, first, end - first) : 0;
    for (uint64_t block = first; block < end && !err; block++)
        if (gild_place_type(leaf->place[block - leaf_first]) == GILD_PLACE_PARENT)
            err = range_add(&inherit->left, block, 1);
    return err;
}

static int inherit_range(void *context, uint64_t first, uint64_t count,
                         const struct gild_leaf *leaf, uint64_t uniform) {
    struct inherit *inherit = context;
    uint64_t end = first + count;
    enum gild_place_type type = gild_place_type(uniform);
    int err = 0;
    if (!spend(inherit->damage))
        return -ECANCELED;
    /* Rotten nodes (LOST) hide what is written and what is not: it counts as hit. */
    if (!leaf && type != GILD_PLACE_PARENT && type != GILD_PLACE_LOST)
        return 0;
    while (inherit->at < inherit->blocks->count && !err) {
        const struct range *range = &inherit->blocks->range[inherit->at];
        uint64_t range_end = range->first + range->count;
        uint64_t from = range->first > first ? range->first : first;
        uint64_t to = range_end < end ? range_end : end;
        if (range->first >= end)
            break;
        if (from < to)
            err = keep(inherit, from, to, leaf, first);
        if (range_end > end)
            break;
        inherit->at++;
    }
    return err;
}

static int hit_delta(struct damage *damage, const struct owner *owner,
                     const struct range_set *blocks, struct hits *hits) {
    struct gild_txn *txn;
    struct inherit inherit = {.damage = damage, .blocks = blocks};
    const struct survey survey = {.past_errors = true, .range = inherit_range, .context = &inherit};
    int err = gild_txn_begin(damage->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, owner->delta_id, damage->delta);
    gild_txn_abort(txn);
    if (!err) {
        inherit.parent_blocks = gild_blocks_of(damage->delta->parent_size_bytes);
        err = survey_delta(damage->store, owner->delta_id, damage->delta, &survey);
    }
    if (err != -ENOMEM && inherit.left.count)
        err = hits_add(hits, owner->disk, &inherit.left);
    free(inherit.left.range);
    return err == -ENOMEM ? err : 0; /* a desktop deleted since is none */
}

static int hit_owners(struct damage *damage, uint64_t map_id, const struct range_set *blocks,
                      struct hits *hits) {
    int err = 0;
    /* No segment that a delta's map is in is recycled meanwhile. */
    atomic_fetch_add(&damage->store->checks, 1);
    for (size_t i = 0; i < damage->count && !err; i++) {
        const struct owner *owner = &damage->owner[i];
        if (owner->map_id != map_id || !map_id)
            continue;
        err = owner->delta_id ? hit_delta(damage, owner, blocks, hits)
                              : hits_add(hits, owner->disk, blocks);
    }
    atomic_fetch_sub(&damage->store->checks, 1);
    return err;
}

static int read_map(struct damage *damage, uint64_t map_id) {
    struct gild_txn *txn;
    int err = gild_txn_begin(damage->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_rec_get_map(txn, map_id, damage->map);
    gild_txn_abort(txn);
    return err;
}

int damage_of_map(struct damage *damage, uint64_t map_id, const struct range_set *blocks,
                  struct hits *hits) {
    struct range whole = {0, UINT64_MAX / 4096};
    const struct range_set all = {.range = &whole, .count = 1};
    if (!blocks && read_map(damage, map_id) == 0)
        whole.count = gild_blocks_of(damage->map->size_bytes);
    return hit_owners(damage, map_id, blocks ? blocks : &all, hits);
}

/* ---- from groups to a map's blocks ----------------------------------------------------------- */

struct wanted { /* a range of groups */
    uint32_t pack_id;
    uint64_t first, end;
    size_t target;
};

struct search {
    struct damage *damage;
    struct wanted *wanted; /* ascending, none over another */
    size_t count;
    struct range_set *blocks; /* by target, of the map that is walked */
};

static int by_group(const void *a, const void *b) {
    const struct wanted *x = a, *y = b;
    if (x->pack_id != y->pack_id)
        return x->pack_id < y->pack_id ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static const struct wanted *find_wanted(const struct search *search, uint32_t pack_id,
                                        uint32_t group) {
    size_t low = 0, high = search->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct wanted *w = &search->wanted[middle];
        if (w->pack_id < pack_id || (w->pack_id == pack_id && w->end <= group))
            low = middle + 1;
        else
            high = middle;
    }
    const struct wanted *w = low < search->count ? &search->wanted[low] : NULL;
    return w && w->pack_id == pack_id && w->first <= group ? w : NULL;
}

static int search_leaf(struct search *search, const struct gild_leaf *leaf, uint64_t first,
                       uint64_t count) {
    int err = 0;
    for (uint64_t i = 0; i < count && !err; i++) {
        uint64_t place = leaf->place[(first + i) % GILD_LEAF_BLOCKS];
        if (gild_place_type(place) != GILD_PLACE_PACK)
            continue;
        const struct wanted *w =
            find_wanted(search, gild_place_pack_id(place), gild_place_group(place));
        if (w)
            err = range_add(&search->blocks[w->target], first + i, 1);
    }
    return err;
}

static int search_map(struct search *search, uint64_t map_id) {
    struct damage *damage = search->damage;
    struct gild_error ignored = {0};
    struct gild_sealed_map *map;
    char folder[4096];
    store_path(damage->store, "maps", folder);
    if (gild_sealed_open(&map, folder, damage->store->id, map_id, &ignored))
        return 0;
    struct gild_leaf *leaf = gild_file_buffer(GILD_NODE_BYTES);
    int err = leaf ? 0 : -ENOMEM;
    uint64_t leaves = gild_leaves_of(map->size_bytes);
    for (uint64_t i = 0; i < leaves && !err; i++) {
        uint64_t page = gild_sealed_leaf_page(map, i);
        if (!page || page == GILD_SEALED_LOST)
            continue;
        if (!spend(damage))
            break;
        if (gild_file_read(map->fd, leaf, GILD_NODE_BYTES, page * GILD_NODE_BYTES) == 0 &&
            gild_node_verify(leaf, GILD_NODE_LEAF, map_id, i) == 0)
            err = search_leaf(search, leaf, i * GILD_LEAF_BLOCKS, GILD_LEAF_BLOCKS);
    }
    free(leaf);
    gild_sealed_close(map);
    return err;
}

static bool can_reach(const struct damage *damage, const struct search *search) {
    for (uint32_t i = 0; i < damage->map->pack_count; i++)
        for (size_t w = 0; w < search->count; w++)
            if (search->wanted[w].pack_id == damage->map->packs[i])
                return true;
    return false;
}

static int search_maps(struct search *search, struct target *targets, size_t count) {
    struct damage *damage = search->damage;
    int err = 0;
    for (size_t i = 0; i < damage->count && !err; i++) {
        uint64_t map_id = damage->owner[i].map_id;
        if (!map_id || (i && damage->owner[i - 1].map_id == map_id))
            continue;
        if (read_map(damage, map_id) || !can_reach(damage, search))
            continue;
        err = search_map(search, map_id);
        for (size_t t = 0; t < count && !err; t++) {
            if (search->blocks[t].count)
                err = hit_owners(damage, map_id, &search->blocks[t], &targets[t].hits);
            search->blocks[t].count = 0;
        }
    }
    return err;
}

static int search_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                        uint64_t uniform) {
    struct search *search = context;
    (void)uniform;
    if (!spend(search->damage))
        return -ECANCELED;
    return leaf ? search_leaf(search, leaf, first, count) : 0;
}

/* What desktops wrote lies in packs, too, once it is cold. */
static int search_deltas(struct search *search, struct target *targets, size_t count) {
    struct damage *damage = search->damage;
    const struct survey survey = {.past_errors = true, .range = search_range, .context = search};
    int err = 0;
    atomic_fetch_add(&damage->store->checks, 1);
    for (size_t i = 0; i < damage->count && err != -ENOMEM; i++) {
        const struct owner *owner = &damage->owner[i];
        struct gild_txn *txn;
        if (!owner->delta_id || gild_txn_begin(damage->store->catalog, false, &txn))
            continue;
        err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, owner->delta_id, damage->delta);
        gild_txn_abort(txn);
        if (!err && damage->delta->packed_blocks)
            err = survey_delta(damage->store, owner->delta_id, damage->delta, &survey);
        for (size_t t = 0; t < count && err != -ENOMEM; t++) {
            if (search->blocks[t].count &&
                hits_more(&targets[t].hits, owner->disk, &search->blocks[t]))
                err = -ENOMEM;
            search->blocks[t].count = 0;
        }
    }
    atomic_fetch_sub(&damage->store->checks, 1);
    return err == -ENOMEM ? err : 0; /* a desktop deleted since is none */
}

int damage_of_groups(struct damage *damage, struct target *targets, size_t count) {
    struct search search = {.damage = damage};
    size_t ranges = 0;
    for (size_t t = 0; t < count; t++)
        ranges += targets[t].groups.count;
    search.wanted = malloc((ranges + 1) * sizeof *search.wanted);
    search.blocks = calloc(count + 1, sizeof *search.blocks);
    int err = search.wanted && search.blocks ? 0 : -ENOMEM;
    for (size_t t = 0; t < count && !err; t++)
        for (size_t i = 0; i < targets[t].groups.count; i++) {
            const struct range *range = &targets[t].groups.range[i];
            search.wanted[search.count++] =
                (struct wanted){targets[t].pack_id, range->first, range->first + range->count, t};
        }
    if (!err && search.count) {
        qsort(search.wanted, search.count, sizeof *search.wanted, by_group);
        err = search_maps(&search, targets, count);
        if (!err)
            err = search_deltas(&search, targets, count);
    }
    for (size_t t = 0; search.blocks && t < count; t++)
        free(search.blocks[t].range);
    free(search.blocks);
    free(search.wanted);
    return err;
}

/* ---- while guests read -----------------------------------------------------------------------
 *
 * Objects that were met, each once, in a table that is never emptied: a store that has more damage
 * than it holds needs a scrub, and is told so. */

#define MET_GROUP ((uint64_t)1 << 60) /* pack << 32 | group; a pack has 28 bits */
#define MET_LEAF ((uint64_t)2 << 60)  /* map << 32 | leaf */

static void tell_met(struct gild_store *store, struct damage *damage, uint64_t met) {
    char words[1024];
    struct target target = {.pack_id = (uint32_t)(met >> 32) & 0x0fffffff};
    struct hits *hits = &target.hits;
    uint32_t at = (uint32_t)met;
    bool group = met & MET_GROUP;
    int err = range_add(&target.groups, group ? at : (uint64_t)at * GILD_LEAF_BLOCKS,
                        group ? 1 : GILD_LEAF_BLOCKS);
    if (!err)
        err = group ? damage_of_groups(damage, &target, 1)
                    : damage_of_map(damage, target.pack_id, &target.groups, hits);
    hits_words(hits, words, sizeof words);
    if (err)
        gild_log(GILD_LOG_ERROR, "whom the damage in store %s hits can not be told: %s",
                 store->directory, strerror(-err));
    else
        gild_log(GILD_LOG_ERROR, "the damage at %s %u of %s %08" PRIx32 " hits %s%s",
                 group ? "group" : "leaf", at, group ? "pack" : "map", target.pack_id, words,
                 damage_cut_short(damage) ? ", and perhaps others: run `gild store check`" : "");
    free(target.groups.range);
    hits_free(hits);
}

static void tell_all_met(struct gild_task *task) {
    struct damage_met *met = CONTAINER(task, struct damage_met, task);
    struct gild_store *store = CONTAINER(met, struct gild_store, damage_met);
    atomic_store(&met->posted, false);
    for (unsigned i = 0; i < DAMAGE_MET_MAX; i++) {
        uint64_t object = atomic_load(&met->object[i]);
        struct damage *damage = NULL;
        if (!object || met->told[i])
            continue;
        met->told[i] = true;
        if (damage_open(&damage, store, MET_BUDGET) == 0)
            tell_met(store, damage, object);
        damage_close(damage);
        if (i == DAMAGE_MET_MAX - 1)
            gild_log(GILD_LOG_ERROR,
                     "store %s has more damage than is told here: run `gild store scrub`",
                     store->directory);
    }
}

static bool meet(struct gild_store *store, uint64_t object) {
    struct damage_met *met = &store->damage_met;
    for (unsigned i = 0; i < DAMAGE_MET_MAX; i++) {
        uint64_t there = 0;
        if (atomic_compare_exchange_strong(&met->object[i], &there, object)) {
            if (!atomic_exchange(&met->posted, true)) {
                met->task.run = tell_all_met;
                gild_store_run_async(store, &met->task);
            }
            return true;
        }
        if (there == object)
            return false;
    }
    return false;
}

bool damage_met_group(struct gild_store *store, uint32_t pack_id, uint32_t group) {
    return meet(store, MET_GROUP | (uint64_t)pack_id << 32 | group);
}

bool damage_met_leaf(struct gild_store *store, uint64_t map_id, uint64_t leaf) {
    return meet(store, MET_LEAF | (map_id & 0x0fffffff) << 32 | (uint32_t)leaf);
}
