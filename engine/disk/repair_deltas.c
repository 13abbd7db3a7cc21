/* A repair's part on deltas: live counts, nodes and blocks that are rotten or missing.
 *
 *   repair_counts: before the replay, every count is set to what the maps of the last checkpoint
 * reach, so that no checkpoint takes a segment for empty that is not repair_deltas: after the
 * replay and its checkpoint, each node that can not be read and each block whose check does not fit
 * becomes LOST, by the ways of any other change of a map repair_list:   says what is lost, of now
 * or of an earlier repair
 *
 * Whatever is broken off is found again by the next repair: a count that is wrong, a node that can
 * not be read. See repair.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "disk/repair.h"
#include "disk/survey.h"
#include "io/file.h"

struct rotten {
    struct gild_map_need *need;
    size_t count, room;
};

struct pass {
    struct gild_store *store;
    struct gild_error *error;
    struct gild_rec_delta *record;
    uint64_t delta_id;
    uint8_t *buffer;         /* RUN_BLOCKS blocks */
    uint64_t mapped, packed; /* of the delta */
    struct rotten rotten;    /* of the delta */
    struct range_set bad;    /* of the delta */
    struct range_set lost;   /* of the delta */
    const struct range_set *parent;
    bool count_too; /* a dropped delta's references */
    bool damaged;   /* the delta is */
};

static struct gild_segment *segment_of(const struct pass *pass, uint64_t place) {
    struct gild_segment *segment =
        gild_segments_find(pass->store->segments, gild_place_serial(place));
    return segment && segment->fd >= 0 ? segment : NULL;
}

/* One that something names and nobody knows is missing like others. */
static int count_place(struct pass *pass, uint64_t place) {
    struct gild_segments *segments = pass->store->segments;
    const struct gild_rec_segment missing = {.state = GILD_SEGMENT_FULL};
    int err = 0;
    if (!gild_segments_find(segments, gild_place_serial(place)))
        err = gild_segments_adopt(segments, gild_place_serial(place), &missing, -1, 0);
    if (!err)
        gild_segments_adjust(segments, place, +1);
    return err;
}

static bool pack_is_there(const struct pass *pass, uint64_t place) {
    uint32_t pack_id = gild_place_pack_id(place);
    return pack_refs_find(pass->store->refs, pack_id) &&
           !ids_have(&pass->store->repair->lost_packs, pack_id);
}

static void count_packed(struct pass *pass, uint64_t place) {
    uint32_t pack_id = gild_place_pack_id(place);
    pass->mapped++;
    pass->packed++;
    pass->damaged |= !pack_is_there(pass, place);
    if (pass->count_too && pack_refs_find(pass->store->refs, pack_id))
        pack_refs_adjust(pass->store->refs, pack_id, +1);
}

/* ---- counting ---------------------------------------------------------------------------------
 */

static int count_node(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                      bool whole) {
    struct pass *pass = context;
    (void)kind, (void)index;
    pass->damaged |= !whole;
    return pass->count_too ? count_place(pass, place) : 0;
}

static int count_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                       uint64_t uniform) {
    struct pass *pass = context;
    int err = 0;
    (void)uniform;
    for (uint64_t i = 0; leaf && i < count && !err; i++) {
        uint64_t place = leaf->place[(first + i) % GILD_LEAF_BLOCKS];
        if (gild_place_type(place) == GILD_PLACE_PACK) {
            count_packed(pass, place);
        } else if (gild_place_type(place) == GILD_PLACE_LOG) {
            pass->mapped++;
            pass->damaged |= !segment_of(pass, place);
            if (pass->count_too)
                err = count_place(pass, place);
        }
    }
    return err;
}

static int read_record(struct pass *pass, enum gild_table table, uint64_t delta_id) {
    struct gild_txn *txn;
    int err = gild_txn_begin(pass->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_rec_get_delta(txn, table, delta_id, pass->record);
    gild_txn_abort(txn);
    pass->delta_id = delta_id;
    return err;
}

static int count_delta(struct pass *pass, enum gild_table table, uint64_t delta_id) {
    const struct survey survey = {.range = count_range, .node = count_node, .context = pass};
    int err = read_record(pass, table, delta_id);
    pass->mapped = pass->packed = 0;
    pass->damaged = false;
    return err ? err : survey_delta(pass->store, delta_id, pass->record, &survey);
}

static int put_mapped(struct pass *pass) {
    struct gild_txn *txn;
    char text[64];
    if (pass->mapped == pass->record->mapped_blocks && pass->packed == pass->record->packed_blocks)
        return 0;
    repair_say(pass->store->repair, "the count of blocks of %s is set from %" PRIu64 " to %" PRIu64,
               repair_delta_name(pass->store->repair, pass->delta_id, text),
               pass->record->mapped_blocks, pass->mapped);
    if (pass->store->repair->dry_run)
        return 0;
    int err = gild_txn_begin(pass->store->catalog, true, &txn);
    if (err)
        return err;
    pass->record->mapped_blocks = pass->mapped;
    pass->record->packed_blocks = pass->packed;
    err = gild_rec_put_delta(txn, GILD_TABLE_DELTAS, pass->delta_id, pass->record);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

/* A deleted disk whose map is damaged can not be walked to its end: it is forgotten, and what it
 * reached is not counted. */
static int count_dropped(struct pass *pass, uint64_t delta_id) {
    struct gild_txn *txn;
    pass->count_too = false;
    int err = count_delta(pass, GILD_TABLE_DROPPED, delta_id);
    pass->count_too = true;
    if (err || !pass->damaged)
        return err ? err : count_delta(pass, GILD_TABLE_DROPPED, delta_id);
    repair_say(pass->store->repair, "deleted disk %" PRIu64 ", whose map is damaged, is forgotten",
               delta_id);
    if (pass->store->repair->dry_run)
        return 0;
    err = gild_txn_begin(pass->store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_rec_delete_u64(txn, GILD_TABLE_DROPPED, delta_id);
    if (!err)
        err = gild_rec_delete_quarantine(txn, delta_id);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

static int forget_count(void *context, struct gild_segment *segment) {
    (void)context;
    segment->base = 0;
    segment->changed = false;
    return 0;
}

static int compare_count(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct pass *pass = context;
    struct gild_rec_segment record;
    uint64_t serial = gild_rec_key_u64(key);
    (void)key_length;
    int err = gild_rec_segment_decode(&record, value, length);
    if (err)
        return err;
    struct gild_segment *segment = gild_segments_find(pass->store->segments, serial);
    segment->changed = segment->base != record.live_blocks;
    if (segment->changed)
        repair_say(pass->store->repair,
                   "the count of live blocks of log segment %016" PRIx64 " is set from %" PRIu64
                   " to %" PRIu64,
                   serial, record.live_blocks, segment->base);
    return 0;
}

static int forget_refs(void *context, uint32_t pack_id, struct pack_ref *ref) {
    (void)context, (void)pack_id;
    ref->base = 0;
    ref->changed = false;
    return 0;
}

static int compare_refs(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct pass *pass = context;
    struct gild_rec_pack record;
    uint32_t pack_id = gild_get_be32(key);
    (void)key_length;
    if (gild_rec_pack_decode(&record, value, length))
        return 0; /* said of the pack */
    struct pack_ref *ref = pack_refs_find(pass->store->refs, pack_id);
    ref->changed = ref->base != record.delta_refs;
    if (ref->changed)
        repair_say(pass->store->repair,
                   "the count of desktops' blocks in pack %08" PRIx32 " is set from %" PRIu64
                   " to %" PRIu64,
                   pack_id, record.delta_refs, ref->base);
    return 0;
}

static int compare_counts(struct pass *pass) {
    struct gild_txn *txn;
    int err = gild_txn_begin(pass->store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, compare_count, pass);
    if (!err)
        err = gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, compare_refs, pass);
    gild_txn_abort(txn);
    return err;
}

static void pass_free(struct pass *pass) {
    free(pass->record);
    free(pass->buffer);
    free(pass->rotten.need);
    free(pass->bad.range);
    free(pass->lost.range);
}

int repair_counts(struct gild_store *store, struct gild_error *error) {
    struct pass pass = {.store = store, .error = error, .count_too = true};
    struct ids deltas = {0}, dropped = {0};
    pass.record = malloc(sizeof *pass.record);
    int err = pass.record ? ids_read(store, GILD_TABLE_DELTAS, &deltas) : -ENOMEM;
    if (!err)
        err = ids_read(store, GILD_TABLE_DROPPED, &dropped);
    gild_segments_each(store->segments, forget_count, NULL);
    pack_refs_each(store->refs, forget_refs, NULL);
    for (size_t i = 0; i < deltas.count && !err; i++) {
        err = count_delta(&pass, GILD_TABLE_DELTAS, deltas.id[i]);
        if (!err)
            err = put_mapped(&pass);
    }
    for (size_t i = 0; i < dropped.count && !err; i++)
        err = count_dropped(&pass, dropped.id[i]);
    if (!err)
        err = compare_counts(&pass);
    free(deltas.id);
    free(dropped.id);
    pass_free(&pass);
    return err ? repair_fail(store, err, "the maps of its disks can not be counted", error) : 0;
}

/* ---- what is rotten of a delta -----------------------------------------------------------------
 */

static int note_node(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                     bool whole) {
    struct pass *pass = context;
    struct rotten *rotten = &pass->rotten;
    if (whole)
        return 0;
    pass->damaged = true;
    if (kind == GILD_NODE_ROOT)
        return 0; /* said when the disk is made, see load_roots */
    if (rotten->count == rotten->room) {
        size_t room = rotten->room ? 2 * rotten->room : 16;
        struct gild_map_need *grown = realloc(rotten->need, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        rotten->need = grown;
        rotten->room = room;
    }
    rotten->need[rotten->count++] = (struct gild_map_need){place, index, kind};
    return 0;
}

/* Blocks [first, first + count) of a leaf lie one after the other in a segment: which are not what
 * was written there? */
static int verify_run(struct pass *pass, uint64_t first, uint64_t count,
                      const struct gild_leaf *leaf) {
    uint32_t slot = first % GILD_LEAF_BLOCKS;
    uint64_t place = leaf->place[slot], serial = gild_place_serial(place);
    const struct gild_segment *segment = segment_of(pass, place);
    ssize_t there = segment
                        ? gild_file_read_some(segment->fd, pass->buffer, count * GILD_LOG_BLOCK,
                                              (uint64_t)gild_place_offset(place) * GILD_LOG_BLOCK)
                        : 0;
    int err = there < 0 ? (int)there : 0;
    for (uint64_t i = 0; i < count && !err; i++) {
        const uint8_t *bytes = pass->buffer + i * GILD_LOG_BLOCK;
        if (there >= (ssize_t)((i + 1) * GILD_LOG_BLOCK) &&
            gild_log_check(bytes, serial, pass->delta_id, first + i) == leaf->check[slot + i])
            continue;
        err = range_add(&pass->bad, first + i, 1);
    }
    return err;
}

static int verify_leaf(struct pass *pass, uint64_t first, uint64_t count,
                       const struct gild_leaf *leaf) {
    int err = 0;
    for (uint64_t i = 0, n; i < count && !err; i += n) {
        uint32_t slot = (first + i) % GILD_LEAF_BLOCKS;
        n = 1;
        if (gild_place_type(leaf->place[slot]) == GILD_PLACE_PACK &&
            !pack_is_there(pass, leaf->place[slot]))
            err = range_add(&pass->bad, first + i, 1);
        if (gild_place_type(leaf->place[slot]) != GILD_PLACE_LOG)
            continue;
        while (n < RUN_BLOCKS && i + n < count && leaf->place[slot + n] == leaf->place[slot] + n)
            n++;
        err = verify_run(pass, first + i, n, leaf);
    }
    return err;
}

/* What of [first, first + count), which is the parent's, is lost there. */
static int lost_of_parent(struct pass *pass, uint64_t first, uint64_t count) {
    const struct range_set *parent = pass->parent;
    int err = 0;
    for (size_t i = 0; parent && i < parent->count && !err; i++) {
        uint64_t from = parent->range[i].first, to = from + parent->range[i].count;
        from = from > first ? from : first;
        to = to < first + count ? to : first + count;
        if (from < to)
            err = range_add(&pass->lost, from, to - from);
    }
    return err;
}

static int note_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                      uint64_t uniform) {
    struct pass *pass = context;
    int err = 0;
    if (!leaf && gild_place_type(uniform) == GILD_PLACE_LOST)
        return range_add(&pass->lost, first, count);
    if (!leaf)
        return gild_place_type(uniform) == GILD_PLACE_PARENT ? lost_of_parent(pass, first, count)
                                                             : 0;
    for (uint64_t i = 0; i < count && !err; i++) {
        enum gild_place_type type = gild_place_type(leaf->place[(first + i) % GILD_LEAF_BLOCKS]);
        if (type == GILD_PLACE_LOST ||
            (type == GILD_PLACE_PACK &&
             repair_group_lost(pass->store->repair, leaf->place[(first + i) % GILD_LEAF_BLOCKS])))
            err = range_add(&pass->lost, first + i, 1);
        else if (type == GILD_PLACE_PARENT)
            err = lost_of_parent(pass, first + i, 1);
    }
    return err ? err : verify_leaf(pass, first, count, leaf);
}

static int survey_one(struct pass *pass, uint64_t delta_id) {
    const struct survey survey = {.range = note_range, .node = note_node, .context = pass};
    pass->rotten.count = pass->bad.count = pass->lost.count = 0;
    pass->damaged = false;
    int err = read_record(pass, GILD_TABLE_DELTAS, delta_id);
    if (err)
        return err;
    pass->parent = repair_lost_of_map(pass->store->repair, pass->record->parent_map);
    err = survey_delta(pass->store, delta_id, pass->record, &survey);
    pass->damaged |= pass->bad.count != 0;
    return err;
}

/* ---- setting it right --------------------------------------------------------------------------
 */

/* Gives the map what it needs; a checkpoint makes room in memory. */
static int satisfy(struct pass *pass, struct gild_disk *disk, enum gild_map_step step,
                   const struct gild_map_need *need) {
    if (step == GILD_MAP_NEED_NODE) {
        int err = store_read_node(pass->store, need->place, disk->delta_id, need->kind, need->index,
                                  pass->buffer);
        if (err == -EBADMSG)
            step = gild_delta_lose(&disk->map, need);
        else if (err)
            return err;
        else
            step = gild_delta_install(&disk->map, need, pass->buffer);
        disk_mark_dirty(disk);
    }
    if (step == GILD_MAP_BAD_NODE)
        return -EBADMSG;
    return step == GILD_MAP_NEED_PAGE ? checkpoint_run(pass->store) : 0;
}

static int lose_block(struct pass *pass, struct gild_disk *disk, uint64_t block) {
    struct gild_map_need need;
    struct gild_page *leaf;
    enum gild_map_step step;
    while ((step = gild_delta_writable(&disk->map, block / GILD_LEAF_BLOCKS, &leaf, &need)) !=
           GILD_MAP_READY) {
        int err = satisfy(pass, disk, step, &need);
        if (err)
            return err;
    }
    gild_delta_set(&disk->map, leaf, block, gild_place_of_type(GILD_PLACE_LOST), 0);
    disk_mark_dirty(disk);
    return 0;
}

/* Looking for a leaf under the rotten node makes it LOST on the way. */
static int lose_node(struct pass *pass, struct gild_disk *disk,
                     const struct gild_map_need *rotten) {
    struct gild_map_need need;
    uint64_t leaf_index =
                 rotten->kind == GILD_NODE_DIR ? rotten->index * GILD_DIR_REFS : rotten->index,
             ref;
    for (;;) {
        int err = 0;
        if (gild_delta_look(&disk->map, leaf_index, &ref, &need) == GILD_MAP_NEED_NODE) {
            err = satisfy(pass, disk, GILD_MAP_NEED_NODE, &need);
        } else if (gild_place_type(ref) == GILD_PLACE_LOG && ref == rotten->place) {
            need = *rotten;
            err = satisfy(pass, disk, GILD_MAP_NEED_NODE, &need);
        } else {
            return 0;
        }
        if (err)
            return err;
    }
}

static int fix_delta(struct pass *pass) {
    struct gild_store *store = pass->store;
    struct gild_disk *disk = disk_find(store, pass->delta_id, 0);
    char text[64];
    const char *name = repair_delta_name(store->repair, pass->delta_id, text);
    struct gild_disk_spec spec = {.path = name, .delta_id = pass->delta_id};
    int err = disk ? 0 : disk_make(store, &spec, &disk, pass->error);
    for (size_t i = 0; i < pass->rotten.count && !err; i++)
        err = lose_node(pass, disk, &pass->rotten.need[i]);
    for (size_t i = 0; i < pass->bad.count && !err; i++)
        for (uint64_t b = 0; b < pass->bad.range[i].count && !err; b++)
            err = lose_block(pass, disk, pass->bad.range[i].first + b);
    if (!err && disk->reactor->pool.used > disk->reactor->pool.limit / 4)
        err = checkpoint_run(store);
    return err;
}

static void say_damage(struct pass *pass) {
    char text[64];
    repair_say(pass->store->repair,
               "what can not be read of %s is marked as lost: %zu parts of its map, %zu runs of "
               "blocks",
               repair_delta_name(pass->store->repair, pass->delta_id, text), pass->rotten.count,
               pass->bad.count);
}

int repair_deltas(struct gild_store *store, struct gild_error *error) {
    struct pass pass = {.store = store, .error = error};
    struct ids deltas = {0};
    pass.record = malloc(sizeof *pass.record);
    pass.buffer = gild_file_buffer((size_t)RUN_BLOCKS * GILD_LOG_BLOCK);
    int err = pass.record && pass.buffer ? ids_read(store, GILD_TABLE_DELTAS, &deltas) : -ENOMEM;
    for (size_t i = 0; i < deltas.count && !err; i++) {
        err = survey_one(&pass, deltas.id[i]);
        if (err || !pass.damaged)
            continue;
        say_damage(&pass);
        err = fix_delta(&pass);
    }
    if (!err)
        err = checkpoint_run(store);
    if (!err)
        disks_drop_idle(store, false);
    free(deltas.id);
    pass_free(&pass);
    return err ? repair_fail(store, err, "what is lost of its disks can not be recorded", error)
               : 0;
}

/* ---- what is lost ------------------------------------------------------------------------------
 */

/* A dry run replays nothing: what the log above the checkpoint would change is reckoned here. */
static int reckon_tail(struct pass *pass) {
    const struct repair *repair = pass->store->repair;
    int err = 0;
    for (size_t i = 0; i < repair->tail_count && !err; i++) {
        const struct tail_entry *entry = &repair->tail[i];
        if (entry->delta != pass->delta_id)
            continue;
        err = entry->bad ? range_add(&pass->lost, entry->first, entry->count)
                         : range_subtract(&pass->lost, entry->first, entry->count);
    }
    return err;
}

int repair_list(struct gild_store *store, struct gild_error *error) {
    struct pass pass = {.store = store, .error = error};
    struct repair *repair = store->repair;
    struct ids deltas = {0};
    char text[64];
    for (size_t i = 0; i < repair->map_count; i++)
        repair_tell_lost(repair, repair_map_name(repair, repair->maps[i].map_id, text),
                         &repair->maps[i].ranges);
    pass.record = malloc(sizeof *pass.record);
    pass.buffer = gild_file_buffer((size_t)RUN_BLOCKS * GILD_LOG_BLOCK);
    int err = pass.record && pass.buffer ? ids_read(store, GILD_TABLE_DELTAS, &deltas) : -ENOMEM;
    for (size_t i = 0; i < deltas.count && !err; i++) {
        err = survey_one(&pass, deltas.id[i]);
        if (!err && repair->dry_run && pass.damaged)
            say_damage(&pass);
        for (size_t b = 0; b < pass.bad.count && !err; b++)
            err = range_add(&pass.lost, pass.bad.range[b].first, pass.bad.range[b].count);
        if (!err)
            err = reckon_tail(&pass);
        if (!err)
            repair_tell_lost(repair, repair_delta_name(repair, deltas.id[i], text), &pass.lost);
    }
    free(deltas.id);
    pass_free(&pass);
    return err ? repair_fail(store, err, "what is lost can not be listed", error) : 0;
}
