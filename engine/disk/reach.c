/* See reach.h.
 *
 * One read transaction gives the instant; it is shared by the threads, each of which reads a map's
 * record under a lock and then walks the map without it. Segments that the transaction's maps are
 * in are not recycled meanwhile (store->checks). */
#include "disk/reach.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "disk/internal.h"
#include "disk/survey.h"
#include "disk/walk.h"
#include "io/file.h"

struct piece {
    uint64_t id;
    uint32_t number;
    uint8_t table;
};

struct walking {
    struct gild_store *store;
    const struct reach *reach;
    struct gild_txn *txn;
    pthread_mutex_t lock; /* of the transaction */
    struct piece *pieces;
    size_t count, room, wanted;
    _Atomic int failed;
};

struct visit {
    struct walking *w;
    size_t number;
};

/* ---- which ----------------------------------------------------------------------------------- */

static int add_piece(struct walking *w, enum gild_table table, uint64_t id, bool walked) {
    if (w->count == w->room) {
        size_t room = w->room ? 2 * w->room : 64;
        struct piece *grown = realloc(w->pieces, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        w->pieces = grown;
        w->room = room;
    }
    if (walked)
        w->pieces[w->count++] =
            (struct piece){.id = id, .number = (uint32_t)w->wanted, .table = (uint8_t)table};
    w->wanted++;
    return 0;
}

static int ask_table(struct walking *w, enum gild_table table, struct gild_rec_map *sealed,
                     struct gild_rec_delta *delta) {
    struct ids ids = {0};
    int err = ids_read_in(w->txn, table, &ids);
    for (size_t i = 0; i < ids.count && !err; i++) {
        struct reach_map map = {.id = ids.id[i]};
        if (table == GILD_TABLE_MAPS) {
            err = gild_rec_get_map(w->txn, map.id, sealed);
            map.sealed = sealed;
        } else {
            err = gild_rec_get_delta(w->txn, table, map.id, delta);
            map.delta = delta;
        }
        int wanted = err ? err : w->reach->wants(w->reach->context, &map);
        err = wanted < 0 ? wanted : 0;
        if (wanted > 0)
            err = add_piece(w, table, map.id, map.sealed || delta->packed_blocks);
    }
    free(ids.id);
    return err;
}

static int ask_all(struct walking *w) {
    struct gild_rec_map *sealed = malloc(sizeof *sealed);
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    int err = sealed && delta ? ask_table(w, GILD_TABLE_MAPS, sealed, delta) : -ENOMEM;
    if (!err)
        err = ask_table(w, GILD_TABLE_DELTAS, sealed, delta);
    if (!err && w->reach->dropped)
        err = ask_table(w, GILD_TABLE_DROPPED, sealed, delta);
    free(sealed);
    free(delta);
    return err;
}

/* ---- walking --------------------------------------------------------------------------------- */

static int tell(const struct visit *visit, const struct gild_leaf *leaf) {
    const struct reach *reach = visit->w->reach;
    int failed = atomic_load_explicit(&visit->w->failed, memory_order_relaxed);
    return failed ? failed : reach->leaf(reach->context, visit->number, leaf);
}

static int sealed_leaf(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    (void)leaf_index;
    return tell(context, leaf);
}

static int delta_node(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                      bool whole) {
    (void)context, (void)place, (void)kind, (void)index;
    return whole ? 0 : -EBADMSG;
}

static int delta_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                       uint64_t uniform) {
    (void)first, (void)count, (void)uniform;
    return leaf ? tell(context, leaf) : 0;
}

static int walk_sealed(struct walking *w, const struct piece *piece) {
    struct visit visit = {w, piece->number};
    char folder[4096];
    struct gild_error error = {0};
    struct gild_sealed_map *map;
    store_path(w->store, "maps", folder);
    int err = gild_sealed_open(&map, folder, w->store->id, piece->id, &error);
    if (err)
        return err;
    err = gild_sealed_walk(map, sealed_leaf, &visit);
    gild_sealed_close(map);
    return err;
}

static int walk_changes(struct walking *w, const struct piece *piece) {
    struct visit visit = {w, piece->number};
    const struct survey survey = {.range = delta_range, .node = delta_node, .context = &visit};
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    if (!delta)
        return -ENOMEM;
    pthread_mutex_lock(&w->lock);
    int err = gild_rec_get_delta(w->txn, piece->table, piece->id, delta);
    pthread_mutex_unlock(&w->lock);
    if (!err)
        err = survey_delta(w->store, piece->id, delta, &survey);
    free(delta);
    return err;
}

static void walk_piece(void *context, unsigned thread, size_t index) {
    struct walking *w = context;
    const struct piece *piece = &w->pieces[index];
    (void)thread;
    if (atomic_load_explicit(&w->failed, memory_order_relaxed))
        return;
    int err = piece->table == GILD_TABLE_MAPS ? walk_sealed(w, piece) : walk_changes(w, piece);
    int none = 0;
    if (err)
        atomic_compare_exchange_strong(&w->failed, &none, err);
}

int reach_walk(struct gild_store *store, const struct reach *reach) {
    struct walking w = {.store = store, .reach = reach};
    pthread_mutex_init(&w.lock, NULL);
    atomic_fetch_add(&store->checks, 1);
    int err = gild_txn_begin(store->catalog, false, &w.txn);
    if (!err) {
        err = ask_all(&w);
        if (!err)
            gild_parallel(reach->threads, w.count, walk_piece, &w);
        gild_txn_abort(w.txn);
    }
    atomic_fetch_sub(&store->checks, 1);
    pthread_mutex_destroy(&w.lock);
    free(w.pieces);
    return err ? err : atomic_load(&w.failed);
}
