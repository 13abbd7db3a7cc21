/* Checkpoints: the maps' changes become durable nodes, and one catalogue transaction makes them the
 * truth.
 *
 *   freeze all reactors (each at an LSN of its own, its log flushed up to it)
 *     -> write the frozen nodes into node segments, flush
 *     -> one transaction: roots, live counts and states of segments, where replay begins
 *     -> settle (reactors take the new places), readers pass, empty segments are recycled
 *
 * The order is D10's: data is durable before a node that names it is written, nodes are durable
 * before the catalogue names them, and nothing is recycled before the catalogue has forgotten it
 * and readers have passed.
 *
 * On failure before the commit everything written is unreachable, counts are put back, frozen pages
 * are dirty again. Runs on the keeper's thread, or on the opener's before reactors run. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "disk/internal.h"
#include "log/writer.h"

struct adjustment {
    uint64_t place;
    int sign;
};

struct checkpoint {
    struct gild_log_writer nodes, tail;
    unsigned epoch; /* that the next freeze ends */
    struct adjustment *adjustments;
    size_t count, room;
    struct gild_segment **empty;
    size_t empty_count, empty_room;
    uint64_t *roots; /* of the frozen disks, one after the other, as just written */
    size_t root_count, root_room;
    struct gild_rec_delta *record;
    void *page;
};

struct gild_log_writer *checkpoint_tail_writer(struct gild_store *store) {
    return &store->checkpoint->tail;
}

static int adjust(struct gild_store *store, uint64_t place, int sign) {
    struct checkpoint *c = store->checkpoint;
    if (gild_place_type(place) != GILD_PLACE_LOG)
        return 0;
    if (c->count == c->room) {
        size_t room = c->room ? 2 * c->room : 1024;
        struct adjustment *grown = realloc(c->adjustments, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->adjustments = grown;
        c->room = room;
    }
    c->adjustments[c->count++] = (struct adjustment){place, sign};
    gild_segments_adjust(store->segments, place, sign);
    return 0;
}

static void undo_adjustments(struct gild_store *store) {
    struct checkpoint *c = store->checkpoint;
    for (size_t i = 0; i < c->count; i++)
        gild_segments_adjust(store->segments, c->adjustments[i].place, -c->adjustments[i].sign);
    c->count = 0;
}

/* ---- nodes ----------------------------------------------------------------------------------- */

/* Seals and appends c->page; *place is its place, the superseded `origin` is uncounted. */
static int write_node(struct gild_store *store, enum gild_node_kind kind, uint64_t delta_id,
                      uint64_t index, uint64_t origin, uint64_t *place) {
    struct checkpoint *c = store->checkpoint;
    uint32_t check;
    int err = gild_log_writer_next(&c->nodes, place);
    if (err)
        return err;
    gild_delta_node_seal(c->page, kind, delta_id, index, *place);
    err =
        gild_log_writer_append(&c->nodes, GILD_ENTRY_NODE, delta_id, index, c->page, place, &check);
    if (!err)
        err = adjust(store, *place, +1);
    if (!err)
        err = adjust(store, origin, -1);
    return err;
}

/* A directory as it goes to disk: frozen leaves are named by the places they were just given. */
static void copy_dir(struct checkpoint *c, const struct gild_dir *from) {
    struct gild_dir *to = c->page;
    for (uint32_t i = 0; i < GILD_DIR_REFS; i++) {
        uint64_t ref = from->ref[i];
        to->ref[i] = gild_ref_is_page(ref) ? gild_ref_page(ref)->settled : ref;
    }
}

static int write_pages(struct gild_store *store, struct gild_delta_map *map) {
    struct checkpoint *c = store->checkpoint;
    int err = 0;
    for (struct gild_page *page = map->frozen; page && !err; page = page->next) {
        if (page->kind != GILD_NODE_LEAF)
            continue;
        memcpy(c->page, page->bytes, GILD_NODE_BYTES);
        err = write_node(store, GILD_NODE_LEAF, map->delta_id, page->index, page->origin,
                         &page->settled);
    }
    for (struct gild_page *page = map->frozen; page && !err; page = page->next) {
        if (page->kind != GILD_NODE_DIR)
            continue;
        copy_dir(c, &page->dir);
        err = write_node(store, GILD_NODE_DIR, map->delta_id, page->index, page->origin,
                         &page->settled);
    }
    return err;
}

static int write_roots(struct gild_store *store, struct gild_disk *disk,
                       struct gild_rec_delta *record) {
    struct gild_dir *root = store->checkpoint->page;
    uint32_t count = (disk->map.dir_count + GILD_DIR_REFS - 1) / GILD_DIR_REFS;
    if (count > GILD_DELTA_ROOTS_MAX)
        return -EFBIG;
    record->root_count = count;
    for (uint32_t r = 0; r < count; r++) {
        uint64_t old = record->roots[r], any = 0;
        memset(root, 0, sizeof *root);
        for (uint32_t i = 0; i < GILD_DIR_REFS; i++) {
            uint64_t dir = (uint64_t)r * GILD_DIR_REFS + i;
            uint64_t ref = dir < disk->map.dir_count ? disk->frozen_dirs[dir] : 0;
            root->ref[i] = gild_ref_is_page(ref) ? gild_ref_page(ref)->settled : ref;
            any |= ref;
        }
        record->roots[r] = 0;
        int err = any ? write_node(store, GILD_NODE_ROOT, disk->delta_id, r, old, &record->roots[r])
                      : adjust(store, old, -1);
        if (err)
            return err;
    }
    return 0;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Where a disk's record is: a delta that was deleted meanwhile is kept up to date where it lies, so
 * that collecting it uncounts what is really there. */
static int find_record(struct gild_txn *txn, uint64_t delta_id, enum gild_table *table,
                       struct gild_rec_delta *record) {
    *table = GILD_TABLE_DELTAS;
    int err = gild_rec_get_delta(txn, *table, delta_id, record);
    if (err != -ENOENT)
        return err;
    *table = GILD_TABLE_DROPPED;
    return gild_rec_get_delta(txn, *table, delta_id, record);
}

static int keep_roots(struct checkpoint *c, const struct gild_rec_delta *record) {
    if (c->root_count + record->root_count > c->root_room) {
        size_t room = 2 * (c->root_count + record->root_count);
        uint64_t *grown = realloc(c->roots, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->roots = grown;
        c->root_room = room;
    }
    memcpy(c->roots + c->root_count, record->roots, record->root_count * sizeof *c->roots);
    c->root_count += record->root_count;
    return 0;
}

/* One disk's nodes. No transaction is open while they are written: taking a segment may need one.
 */
static int write_disk(struct gild_store *store, struct gild_disk *disk) {
    struct checkpoint *c = store->checkpoint;
    struct gild_rec_delta *record = c->record;
    struct gild_txn *txn;
    enum gild_table table;
    memset(record->roots, 0, sizeof record->roots);
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (err)
        return err;
    err = find_record(txn, disk->delta_id, &table, record);
    gild_txn_abort(txn);
    for (uint32_t r = record->root_count; !err && r < GILD_DELTA_ROOTS_MAX; r++)
        record->roots[r] = 0;
    if (!err)
        err = write_pages(store, &disk->map);
    if (!err)
        err = write_roots(store, disk, record);
    return err ? err : keep_roots(c, record);
}

static int record_disk(struct gild_store *store, struct gild_txn *txn, struct gild_disk *disk,
                       size_t *at) {
    struct checkpoint *c = store->checkpoint;
    enum gild_table table;
    int err = find_record(txn, disk->delta_id, &table, c->record);
    if (err)
        return err;
    c->record->root_count = (disk->map.dir_count + GILD_DIR_REFS - 1) / GILD_DIR_REFS;
    memcpy(c->record->roots, c->roots + *at, c->record->root_count * sizeof *c->roots);
    *at += c->record->root_count;
    c->record->mapped_blocks = disk->frozen_mapped;
    c->record->packed_blocks = disk->frozen_packed;
    c->record->changed_ns = now_ns();
    return gild_rec_put_delta(txn, table, disk->delta_id, c->record);
}

typedef int disk_visit(struct gild_store *store, struct gild_txn *txn, struct gild_disk *disk,
                       size_t *at);

static int write_one(struct gild_store *store, struct gild_txn *txn, struct gild_disk *disk,
                     size_t *at) {
    (void)txn, (void)at;
    return write_disk(store, disk);
}

static int each_frozen(struct gild_store *store, struct gild_txn *txn, disk_visit *visit) {
    size_t at = 0;
    int err = 0;
    for (unsigned i = 0; i < store->reactor_count && !err; i++)
        for (struct gild_disk *disk = store->reactors[i].frozen; disk && !err;
             disk = disk->frozen_next)
            if (disk->frozen_any)
                err = visit(store, txn, disk, &at);
    return err;
}

/* ---- segments and streams -------------------------------------------------------------------- */

struct segment_pass {
    struct gild_store *store;
    struct gild_txn *txn;
};

/* The state that a start after a crash must see: is there anything in it above the checkpoint? */
static int state_of(struct gild_store *store, struct gild_segment *segment) {
    if (!atomic_load(&segment->taken))
        return GILD_SEGMENT_READY;
    bool closed = atomic_load(&segment->closed);
    for (unsigned i = 0; i < store->reactor_count; i++) {
        struct reactor *reactor = &store->reactors[i];
        if (!closed && segment->serial == reactor->frozen_segment)
            return GILD_SEGMENT_OPEN;
        if (closed && segment->stream == store->streams[i] && !segment->holds_nodes) {
            if (segment->last_lsn <= reactor->frozen_lsn)
                return GILD_SEGMENT_FULL;
            return segment->first_lsn <= reactor->frozen_lsn ? GILD_SEGMENT_OPEN
                                                             : GILD_SEGMENT_READY;
        }
    }
    if (closed)
        return GILD_SEGMENT_FULL; /* the keeper's own, or of a stream that is wholly in the maps */
    /* Not closed and not what a reactor had open at the freeze: the keeper's, or taken since. */
    const struct checkpoint *c = store->checkpoint;
    return segment == c->nodes.segment || segment == c->tail.segment ? GILD_SEGMENT_OPEN
                                                                     : GILD_SEGMENT_READY;
}

static int note_empty(struct checkpoint *c, struct gild_segment *segment) {
    if (c->empty_count == c->empty_room) {
        size_t room = c->empty_room ? 2 * c->empty_room : 64;
        struct gild_segment **grown = realloc(c->empty, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->empty = grown;
        c->empty_room = room;
    }
    c->empty[c->empty_count++] = segment;
    return 0;
}

static int record_segment(void *context, struct gild_segment *segment) {
    struct segment_pass *pass = context;
    if (segment->forgotten)
        return 0; /* deleted by an earlier checkpoint, its file kept for a check that runs */
    int state = state_of(pass->store, segment);
    if (state == GILD_SEGMENT_FULL && segment->base == 0) {
        int err = gild_rec_delete_u64(pass->txn, GILD_TABLE_SEGMENTS, segment->serial);
        if (err && err != -ENOENT) /* a repair may know one that the catalogue does not */
            return err;
        return note_empty(pass->store->checkpoint, segment);
    }
    if (state == segment->state_recorded && !segment->changed)
        return 0;
    if (state == GILD_SEGMENT_FULL && !segment->closed_s) {
        segment->closed_s = now_ns() / 1000000000u;
    }
    struct gild_rec_segment record = {.state = (uint8_t)state,
                                      .holds_nodes = segment->holds_nodes,
                                      .live_blocks = segment->base,
                                      .closed_s = segment->closed_s};
    segment->state_pending = state;
    return gild_rec_put_segment(pass->txn, segment->serial, &record);
}

/* A pack that the catalogue does not know is of an import that has not ended. */
static int record_pack(void *context, uint32_t pack_id, struct pack_ref *ref) {
    struct segment_pass *pass = context;
    struct gild_rec_pack record;
    if (!ref->changed)
        return 0;
    int err = gild_rec_get_pack(pass->txn, pack_id, &record);
    if (err)
        return err == -ENOENT ? 0 : err;
    record.delta_refs = ref->base;
    record.stale_refs = atomic_load(&ref->stale);
    return gild_rec_put_pack(pass->txn, pack_id, &record);
}

static int pack_committed(void *context, uint32_t pack_id, struct pack_ref *ref) {
    struct gild_store *store = context;
    (void)pack_id;
    if (ref->changed && !ref->base)
        atomic_store(&store->pack_unnamed, true);
    ref->changed = false;
    return 0;
}

static int segment_committed(void *context, struct gild_segment *segment) {
    (void)context;
    if (segment->state_pending != GILD_SEGMENT_NONE) {
        segment->state_recorded = segment->state_pending;
        segment->changed = false;
    }
    segment->state_pending = GILD_SEGMENT_NONE;
    return 0;
}

static int segment_not_committed(void *context, struct gild_segment *segment) {
    (void)context;
    segment->state_pending = GILD_SEGMENT_NONE;
    return 0;
}

struct stream_list {
    struct gild_store *store;
    uint64_t ids[256];
    size_t count;
};

static int note_old_stream(void *context, const void *key, size_t key_length, const void *value,
                           size_t length) {
    struct stream_list *list = context;
    uint64_t id = gild_rec_key_u64(key);
    (void)key_length, (void)value, (void)length;
    for (unsigned i = 0; i < list->store->reactor_count; i++)
        if (list->store->streams[i] == id)
            return 0;
    if (list->count < 256)
        list->ids[list->count++] = id;
    return 0;
}

/* Streams of earlier starts are wholly in the maps once a checkpoint has followed their replay. */
static int record_streams(struct gild_store *store, struct gild_txn *txn) {
    struct stream_list old = {.store = store};
    int err = gild_txn_scan(txn, GILD_TABLE_STREAMS, NULL, 0, note_old_stream, &old);
    for (size_t i = 0; i < old.count && !err; i++)
        err = gild_rec_delete_u64(txn, GILD_TABLE_STREAMS, old.ids[i]);
    for (unsigned i = 0; i < store->reactor_count && !err; i++) {
        struct gild_rec_stream record = {.checkpoint_lsn = store->reactors[i].frozen_lsn,
                                         .segment = store->reactors[i].frozen_segment};
        err = gild_rec_put_stream(txn, store->streams[i], &record);
    }
    return err;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int write_and_commit(struct gild_store *store) {
    struct checkpoint *c = store->checkpoint;
    struct gild_txn *txn;
    c->root_count = 0;
    int err = each_frozen(store, NULL, write_one);
    if (!err)
        err = gild_log_writer_flush(&c->tail);
    if (!err)
        err = gild_log_writer_flush(&c->nodes);
    if (!err)
        err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = each_frozen(store, txn, record_disk);
    struct segment_pass pass = {store, txn};
    if (!err)
        err = gild_segments_each(store->segments, record_segment, &pass);
    if (!err)
        err = pack_refs_each(store->refs, record_pack, &pass);
    if (!err)
        err = record_streams(store, txn);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static void recycle_empty(struct gild_store *store) {
    struct checkpoint *c = store->checkpoint;
    for (size_t i = 0; i < c->empty_count; i++)
        c->empty[i]->forgotten = true;
    if (!c->empty_count || atomic_load(&store->checks))
        return;
    keeper_pass(store);
    size_t kept = 0;
    for (size_t i = 0; i < c->empty_count; i++) {
        int err = gild_segments_recycle(store->segments, c->empty[i]);
        if (err == -EBUSY) /* the cleaner is in it */
            c->empty[kept++] = c->empty[i];
        else if (err)
            gild_log(GILD_LOG_WARN, "an empty log segment could not be removed: %s",
                     strerror(-err));
    }
    c->empty_count = kept;
}

/* What an op is told that waits for what a checkpoint gives, if there was none: want of memory or
 * descriptors passes, and it goes on waiting. */
static int told_of(int err) {
    switch (err) {
    case -ENOMEM:
    case -EMFILE:
    case -ENFILE:
    case -EAGAIN:
        return 0;
    case -ENOSPC:
    case -EDQUOT:
        return -ENOSPC;
    default:
        return err ? -EIO : 0;
    }
}

int checkpoint_run(struct gild_store *store) {
    struct checkpoint *c = store->checkpoint;
    /* What is released from here on may be too late for this one. */
    atomic_store(&store->released, false);
    c->count = 0;
    size_t waiting = c->empty_count; /* of earlier checkpoints, kept for a check */
    unsigned ended = c->epoch;
    int err = keeper_call_all(store, CALL_FREEZE);
    c->epoch ^= 1;
    gild_segments_fold(store->segments, ended);
    pack_refs_fold(store->refs, ended);
    if (!err)
        err = write_and_commit(store);
    atomic_store(&store->checkpoint_failed, told_of(err));
    if (err) {
        atomic_store(&store->released, true);
        undo_adjustments(store);
        c->empty_count = waiting;
        gild_segments_each(store->segments, segment_not_committed, NULL);
        keeper_call_all(store, CALL_ABANDON);
        keeper_call_all(store, CALL_SPACE);
        return err;
    }
    gild_segments_each(store->segments, segment_committed, NULL);
    pack_refs_each(store->refs, pack_committed, store);
    keeper_call_all(store, CALL_SETTLE);
    recycle_empty(store);
    keeper_call_all(store, CALL_SPACE);
    gild_segments_quiet(store->segments);
    return 0;
}

int checkpoint_create(struct gild_store *store) {
    struct checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    store->checkpoint = c;
    c->record = malloc(sizeof *c->record);
    uint64_t first = 0;
    struct gild_txn *txn;
    int err = c->record ? 0 : -ENOMEM;
    if (!err && posix_memalign(&c->page, GILD_NODE_BYTES, GILD_NODE_BYTES))
        err = -ENOMEM;
    if (!err)
        err = gild_txn_begin(store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_txn_next_id(txn, "stream", 2, &first);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    err = gild_txn_commit(txn);
    if (!err)
        err = gild_log_writer_init(&c->nodes, store->segments, store->id, first, true);
    if (!err)
        err = gild_log_writer_init(&c->tail, store->segments, store->id, first + 1, false);
    return err;
}

void checkpoint_destroy(struct gild_store *store) {
    struct checkpoint *c = store->checkpoint;
    if (!c)
        return;
    gild_log_writer_fini(&c->nodes);
    gild_log_writer_fini(&c->tail);
    free(c->adjustments);
    free(c->empty);
    free(c->roots);
    free(c->record);
    free(c->page);
    free(c);
    store->checkpoint = NULL;
}
