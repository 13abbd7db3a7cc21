/* See census.h.
 *
 * Each block of a pack has a cell: nobody, one group, or many. Threads that walk maps set the cells
 * by compare-and-swap; then the packs' group tables say what the blocks take. */
#include "disk/census.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "disk/cleaner.h"
#include "pack/pack.h"

#define THREADS 4u
#define TRIES 8u /* packs may be added while they are listed */

enum { NOBODY = 0, OTHERS = 1, FIRST = 2, MANY = UINT32_MAX };

typedef _Atomic(uint32_t) cell;

struct ledger { /* of one pack */
    uint32_t pack_id, groups;
    uint64_t file_bytes;
    cell *cells; /* 16 for each group of blocks */
    size_t bytes;
};

struct census {
    struct gild_store *store;
    struct ledger *ledgers; /* ascending by pack */
    size_t count, room;
    struct census_share *shares;
    size_t groups;
    census_group *group_of;
    void *context;
    uint32_t *mark; /* by number of the map */
    size_t marks, marks_room;
    struct census_totals totals;
};

/* ---- the packs ------------------------------------------------------------------------------- */

static void drop_ledgers(struct census *c) {
    for (size_t i = 0; i < c->count; i++)
        munmap(c->ledgers[i].cells, c->ledgers[i].bytes);
    c->count = 0;
}

static int note_pack(void *context, const void *key, size_t key_length, const void *value,
                     size_t length) {
    struct census *c = context;
    struct gild_rec_pack record;
    (void)key_length;
    int err = gild_rec_pack_decode(&record, value, length);
    if (err)
        return err;
    if (c->count == c->room) {
        size_t room = c->room ? 2 * c->room : 16;
        struct ledger *grown = realloc(c->ledgers, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->ledgers = grown;
        c->room = room;
    }
    struct ledger ledger = {.pack_id = gild_get_be32(key),
                            .groups = (uint32_t)record.groups,
                            .bytes = (record.groups + 1) * GILD_GROUP_BLOCKS * sizeof(cell)};
    ledger.cells = mmap(NULL, ledger.bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ledger.cells == MAP_FAILED)
        return -ENOMEM;
    ledger.file_bytes = record.file_bytes;
    c->ledgers[c->count++] = ledger;
    return 0;
}

static int list_packs(struct census *c) {
    struct gild_txn *txn;
    drop_ledgers(c);
    int err = gild_txn_begin(c->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, note_pack, c);
    gild_txn_abort(txn);
    return err;
}

static const struct ledger *ledger_of(const struct census *c, uint32_t pack_id) {
    size_t low = 0, high = c->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c->ledgers[middle].pack_id < pack_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < c->count && c->ledgers[low].pack_id == pack_id ? &c->ledgers[low] : NULL;
}

/* ---- who names what -------------------------------------------------------------------------- */

static int note_map(void *context, const struct reach_map *map) {
    struct census *c = context;
    size_t group = c->group_of(c->context, map);
    if (c->marks == c->marks_room) {
        size_t room = c->marks_room ? 2 * c->marks_room : 64;
        uint32_t *grown = realloc(c->mark, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->mark = grown;
        c->marks_room = room;
    }
    c->mark[c->marks++] = group < c->groups ? FIRST + (uint32_t)group : OTHERS;
    uint64_t mapped = map->delta ? map->delta->mapped_blocks : map->sealed->data_blocks;
    uint64_t log = map->delta ? mapped - gild_min_u64(mapped, map->delta->packed_blocks) : 0;
    c->totals.mapped_blocks += mapped;
    c->totals.log_blocks += log;
    if (group < c->groups) {
        c->shares[group].mapped_blocks += mapped;
        c->shares[group].log_blocks += log;
    }
    return 1;
}

static void put_mark(cell *at, uint32_t mark) {
    uint32_t there = atomic_load_explicit(at, memory_order_relaxed);
    while (there != mark && there != MANY)
        if (atomic_compare_exchange_weak_explicit(at, &there, there == NOBODY ? mark : MANY,
                                                  memory_order_relaxed, memory_order_relaxed))
            return;
}

static int note_leaf(void *context, size_t number, const struct gild_leaf *leaf) {
    const struct census *c = context;
    const struct ledger *ledger = NULL;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++) {
        uint64_t place = leaf->place[i];
        if (gild_place_type(place) != GILD_PLACE_PACK)
            continue;
        uint32_t pack_id = gild_place_pack_id(place), group = gild_place_group(place);
        if (!ledger || ledger->pack_id != pack_id)
            ledger = ledger_of(c, pack_id);
        if (!ledger)
            return -EAGAIN; /* it was added since they were listed */
        if (group < ledger->groups)
            put_mark(&ledger->cells[group * GILD_GROUP_BLOCKS + gild_place_slot(place)],
                     c->mark[number]);
    }
    return 0;
}

static int walk(struct census *c) {
    const struct reach reach = {
        .threads = THREADS, .wants = note_map, .leaf = note_leaf, .context = c};
    c->marks = 0;
    memset(c->shares, 0, c->groups * sizeof *c->shares);
    memset(&c->totals, 0, sizeof c->totals);
    int err = list_packs(c);
    return err ? err : reach_walk(c->store, &reach);
}

/* ---- what it takes --------------------------------------------------------------------------- */

struct weighing {
    struct census *c;
    const struct ledger *ledger;
};

static void weigh_group(void *context, uint32_t group, const struct gild_pack_frame *frame) {
    const struct weighing *w = context;
    struct census_totals *totals = &w->c->totals;
    unsigned slots = (unsigned)__builtin_popcount(frame->slots);
    if (group >= w->ledger->groups || !slots)
        return;
    const cell *cells = &w->ledger->cells[(size_t)group * GILD_GROUP_BLOCKS];
    uint64_t left = frame->bytes; /* the shares sum up to the frame */
    for (unsigned slot = 0; slot < GILD_GROUP_BLOCKS; slot++) {
        if (!(frame->slots >> slot & 1))
            continue;
        uint64_t share = left / slots--;
        uint32_t mark = atomic_load_explicit(&cells[slot], memory_order_relaxed);
        left -= share;
        totals->pack_blocks += mark != NOBODY;
        totals->pack_bytes += mark != NOBODY ? share : 0;
        totals->dead_blocks += mark == NOBODY;
        totals->dead_bytes += mark == NOBODY ? share : 0;
        if (mark < FIRST || mark == MANY)
            continue;
        w->c->shares[mark - FIRST].unique_blocks++;
        w->c->shares[mark - FIRST].unique_bytes += share;
    }
}

static int weigh(struct census *c) {
    int err = 0;
    for (size_t i = 0; i < c->count && !err; i++) {
        struct weighing weighing = {c, &c->ledgers[i]};
        c->totals.packs++;
        c->totals.pack_files += c->ledgers[i].file_bytes;
        err = gild_pack_groups(gild_store_packs(c->store), c->ledgers[i].pack_id, weigh_group,
                               &weighing);
        if (err == -EBADMSG || err == -EUCLEAN)
            err = 0; /* a damaged table, which a check tells of */
    }
    return err;
}

/* ---- if it went ------------------------------------------------------------------------------ */

/* The file's bytes once what is not live has been collected. */
static int size_if(const struct census *c, const struct ledger *ledger, const uint16_t *live,
                   uint64_t *bytes) {
    uint64_t before, after;
    int err =
        gild_pack_compact_saves(gild_store_packs(c->store), ledger->pack_id, live, &before, &after);
    if (err)
        return err;
    *bytes = cleaner_collects(before, after) ? after : before;
    return 0;
}

static int pack_frees(const struct census *c, const struct ledger *ledger, uint32_t mark,
                      struct census_freed *freed) {
    uint16_t *live = calloc(2 * ((size_t)ledger->groups + 1), sizeof *live);
    uint16_t *kept = live ? live + ledger->groups + 1 : NULL;
    uint64_t now = 0, then = 0, blocks = 0;
    if (!live)
        return -ENOMEM;
    for (size_t i = 0; i < (size_t)ledger->groups * GILD_GROUP_BLOCKS; i++) {
        uint32_t there = atomic_load_explicit(&ledger->cells[i], memory_order_relaxed);
        uint16_t bit = (uint16_t)(1u << i % GILD_GROUP_BLOCKS);
        if (there != NOBODY)
            live[i / GILD_GROUP_BLOCKS] |= bit;
        if (there != NOBODY && there != mark)
            kept[i / GILD_GROUP_BLOCKS] |= bit;
        blocks += there == mark;
    }
    int err = blocks ? size_if(c, ledger, live, &now) : 0;
    if (!err && blocks)
        err = size_if(c, ledger, kept, &then);
    free(live);
    if (err == -EBADMSG || err == -EUCLEAN)
        return 0; /* a damaged pack is not collected */
    freed->blocks += blocks;
    freed->bytes += now > then ? now - then : 0;
    return err;
}

int census_frees(const struct census *c, size_t group, struct census_freed *freed) {
    const struct census_share *share = &c->shares[group];
    int err = 0;
    freed->blocks = share->log_blocks;
    freed->bytes = share->log_blocks * GILD_BLOCK_BYTES;
    for (size_t i = 0; i < c->count && share->unique_blocks && !err; i++)
        err = pack_frees(c, &c->ledgers[i], FIRST + (uint32_t)group, freed);
    return err;
}

/* ---- the whole ------------------------------------------------------------------------------- */

int census_take(struct gild_store *store, size_t groups, census_group *group_of, void *context,
                struct census **out, struct gild_error *error) {
    struct census *c = calloc(1, sizeof *c);
    *out = NULL;
    if (c)
        c->shares = calloc(groups + 1, sizeof *c->shares);
    if (!c || !c->shares || groups >= MANY - FIRST) {
        free(c);
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to count what the disks share");
    }
    c->store = store;
    c->groups = groups;
    c->group_of = group_of;
    c->context = context;
    int err = gild_store_checkpoint(store, error);
    if (err) {
        free(c->shares);
        free(c);
        return err;
    }
    collect_hold(store);
    err = -EAGAIN;
    for (unsigned i = 0; i < TRIES && err == -EAGAIN; i++)
        err = walk(c);
    if (!err)
        err = weigh(c);
    if (!err) {
        *out = c;
        return 0;
    }
    census_destroy(c);
    if (err == -EBADMSG || err == -EUCLEAN)
        return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                         "a map of store %s is damaged, so that nobody knows what it names: run "
                         "`gild store check`",
                         store->directory);
    return gild_fail(error, gild_code_of_errno(-err), -err,
                     "what the disks of store %s share can not be counted: %s", store->directory,
                     strerror(-err));
}

void census_destroy(struct census *c) {
    if (!c)
        return;
    collect_release(c->store);
    drop_ledgers(c);
    free(c->ledgers);
    free(c->mark);
    free(c->shares);
    free(c);
}

const struct census_share *census_share_of(const struct census *c, size_t group) {
    return &c->shares[group];
}

void census_get_totals(const struct census *c, struct census_totals *totals) {
    *totals = c->totals;
}
