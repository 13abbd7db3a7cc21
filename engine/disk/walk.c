/* Walking what a delta reaches, as its last checkpoint left it, and lists of ids. Blocking, off the
 * reactors; nothing in memory is looked at. */
#include "disk/walk.h"

#include <errno.h>
#include <stdlib.h>

#include "disk/internal.h"

int ids_add(struct ids *ids, uint64_t id) {
    if (ids->count == ids->room) {
        size_t room = ids->room ? 2 * ids->room : 256;
        uint64_t *grown = realloc(ids->id, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        ids->id = grown;
        ids->room = room;
    }
    ids->id[ids->count++] = id;
    return 0;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void ids_sort(struct ids *ids) {
    if (ids->count)
        qsort(ids->id, ids->count, sizeof *ids->id, by_value);
}

bool ids_have(const struct ids *ids, uint64_t id) {
    return ids->count && bsearch(&id, ids->id, ids->count, sizeof id, by_value);
}

static uint64_t key_number(const void *key, size_t length) {
    uint64_t number = 0;
    for (size_t i = 0; i < length; i++)
        number = number << 8 | ((const uint8_t *)key)[i];
    return number;
}

static int note_key(void *context, const void *key, size_t key_length, const void *value,
                    size_t length) {
    (void)value, (void)length;
    return ids_add(context, key_number(key, key_length));
}

int ids_read_in(struct gild_txn *txn, enum gild_table table, struct ids *ids) {
    int err = gild_txn_scan(txn, table, NULL, 0, note_key, ids);
    ids_sort(ids);
    return err;
}

int ids_read(struct gild_store *store, enum gild_table table, struct ids *ids) {
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (err)
        return err;
    err = ids_read_in(txn, table, ids);
    gild_txn_abort(txn);
    return err;
}

static int walk_leaf(const struct gild_leaf *leaf, struct delta_walk *walk) {
    int err = 0;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS && !err; i++) {
        uint64_t place = leaf->place[i];
        enum gild_place_type type = gild_place_type(place);
        if (type == GILD_PLACE_LOG)
            err = ids_add(&walk->serials, gild_place_serial(place));
        else if (type == GILD_PLACE_PACK)
            err = ids_add(&walk->packs, gild_place_pack_id(place));
        walk->blocks += type == GILD_PLACE_LOG || type == GILD_PLACE_PACK;
    }
    return err;
}

static int note_node(struct delta_walk *walk, uint64_t place) {
    walk->nodes++;
    return ids_add(&walk->serials, gild_place_serial(place));
}

static int walk_dir(struct gild_store *store, uint64_t delta_id, uint64_t dir_index, uint64_t place,
                    void *pages, struct delta_walk *walk) {
    struct gild_dir *dir = pages;
    struct gild_leaf *leaf = (void *)((uint8_t *)pages + GILD_NODE_BYTES);
    int err = store_read_node(store, place, delta_id, GILD_NODE_DIR, dir_index, dir);
    if (!err)
        err = note_node(walk, place);
    for (uint32_t i = 0; i < GILD_DIR_REFS && !err; i++) {
        if (gild_place_type(dir->ref[i]) != GILD_PLACE_LOG)
            continue;
        err = store_read_node(store, dir->ref[i], delta_id, GILD_NODE_LEAF,
                              dir_index * GILD_DIR_REFS + i, leaf);
        if (!err)
            err = note_node(walk, dir->ref[i]);
        if (!err)
            err = walk_leaf(leaf, walk);
    }
    return err;
}

int walk_delta(struct gild_store *store, uint64_t delta_id, const struct gild_rec_delta *record,
               struct delta_walk *walk) {
    void *memory;
    if (posix_memalign(&memory, GILD_NODE_BYTES, 3 * GILD_NODE_BYTES))
        return -ENOMEM;
    struct gild_dir *root = memory;
    void *pages = (uint8_t *)memory + GILD_NODE_BYTES;
    int err = 0;
    for (uint32_t r = 0; r < record->root_count && !err; r++) {
        if (gild_place_type(record->roots[r]) != GILD_PLACE_LOG)
            continue;
        err = store_read_node(store, record->roots[r], delta_id, GILD_NODE_ROOT, r, root);
        if (!err)
            err = note_node(walk, record->roots[r]);
        for (uint32_t i = 0; i < GILD_DIR_REFS && !err; i++)
            if (gild_place_type(root->ref[i]) == GILD_PLACE_LOG)
                err = walk_dir(store, delta_id, (uint64_t)r * GILD_DIR_REFS + i, root->ref[i],
                               pages, walk);
    }
    free(memory);
    ids_sort(&walk->serials);
    ids_sort(&walk->packs);
    return err;
}
