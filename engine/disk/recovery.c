/* Opening after a crash: the log above the last checkpoint is replayed into the maps, and one
 * checkpoint makes that the truth. A clean start finds nothing to replay and takes the same way.
 *
 * What lies above every durable LSN may be in a volatile cache of the device only, and a page that
 * once failed may look clean: it is copied to a new segment and flushed with the checkpoint before
 * anything depends on it (D5). Entries of deltas that the catalogue no longer knows are ignored
 * (D10). A repair goes on where this would refuse: it has said and recorded what is lost before it
 * replays (repair_log.c). Before reactors run. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "disk/recovery.h"
#include "log/writer.h"

int recovery_disk(struct replay *replay, uint64_t delta_id, struct gild_disk **out) {
    struct gild_store *store = replay->store;
    if (replay->last && replay->last->delta_id == delta_id) {
        *out = replay->last;
        return 0;
    }
    if (replay->unknown == delta_id)
        return -ENOENT;
    *out = disk_find(store, delta_id, 0);
    if (!*out) {
        struct gild_txn *txn;
        const void *value;
        size_t length;
        int err = gild_txn_begin(store->catalog, false, &txn);
        if (err)
            return err;
        err = gild_rec_get_u64(txn, GILD_TABLE_DELTAS, delta_id, &value, &length);
        gild_txn_abort(txn);
        if (err == -ENOENT)
            replay->unknown = delta_id;
        if (err)
            return err;
        char path[64];
        snprintf(path, sizeof path, "(delta %" PRIu64 ")", delta_id);
        struct gild_disk_spec spec = {.path = path, .delta_id = delta_id};
        err = disk_make(store, &spec, out, replay->error);
        if (err)
            return err;
    }
    replay->last = *out;
    return 0;
}

int recovery_satisfy(struct replay *replay, struct gild_disk *disk, enum gild_map_step step,
                     const struct gild_map_need *need) {
    struct gild_store *store = replay->store;
    if (step == GILD_MAP_NEED_NODE) {
        int err = store_read_node(store, need->place, disk->delta_id, need->kind, need->index,
                                  replay->page);
        if (err == -EBADMSG && store->repair)
            step = gild_delta_lose(&disk->map, need);
        else if (err)
            return err;
        else
            step = gild_delta_install(&disk->map, need, replay->page);
    }
    return step == GILD_MAP_NEED_PAGE ? -ENOMEM : step == GILD_MAP_BAD_NODE ? -EBADMSG : 0;
}

static int replay_data(struct replay *replay, struct gild_disk *disk, uint64_t block,
                       uint64_t place, uint32_t check) {
    struct gild_map_need need;
    struct gild_page *leaf;
    enum gild_map_step step;
    if (block >= disk->map.size_blocks)
        return -EBADMSG;
    while ((step = gild_delta_writable(&disk->map, block / GILD_LEAF_BLOCKS, &leaf, &need)) !=
           GILD_MAP_READY) {
        int err = recovery_satisfy(replay, disk, step, &need);
        if (err)
            return err;
    }
    gild_delta_set(&disk->map, leaf, block, place, check);
    return 0;
}

static int replay_fill(struct replay *replay, struct gild_disk *disk,
                       const struct gild_log_entry *entry) {
    uint64_t block = entry->block, count = entry->count, did;
    uint64_t place =
        gild_place_of_type(entry->kind == GILD_ENTRY_HOLE ? GILD_PLACE_HOLE : GILD_PLACE_ZERO);
    if (count > disk->map.size_blocks || block > disk->map.size_blocks - count)
        return -EBADMSG;
    while (count) {
        struct gild_map_need need;
        enum gild_map_step step = gild_delta_fill(&disk->map, block, count, place, &did, &need);
        if (step != GILD_MAP_READY) {
            int err = recovery_satisfy(replay, disk, step, &need);
            if (err)
                return err;
            continue;
        }
        block += did;
        count -= did;
    }
    return 0;
}

static int replay_entry(struct replay *replay, const struct gild_log_entry *entry,
                        const uint8_t *payload, uint64_t place, bool in_doubt) {
    struct gild_disk *disk;
    int err = recovery_disk(replay, entry->delta, &disk);
    if (err)
        return err == -ENOENT ? 0 : err;
    disk_mark_dirty(disk);
    if (entry->kind != GILD_ENTRY_DATA)
        return replay_fill(replay, disk, entry);
    uint32_t check = entry->check;
    if (in_doubt)
        err = gild_log_writer_append(checkpoint_tail_writer(replay->store), GILD_ENTRY_DATA,
                                     entry->delta, entry->block, payload, &place, &check);
    return err ? err : replay_data(replay, disk, entry->block, place, check);
}

static int replay_batch(void *context, const struct gild_batch_header *header,
                        const uint8_t *payload, bool in_doubt) {
    struct replay *replay = context;
    uint32_t at = 0;
    int err = 0;
    for (uint32_t i = 0; i < header->entry_count && !err; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        bool has_payload = entry->kind == GILD_ENTRY_DATA || entry->kind == GILD_ENTRY_NODE;
        uint64_t place = gild_place_log(header->serial, header->offset + 1 + at);
        const uint8_t *bytes = payload ? payload + (size_t)at * GILD_LOG_BLOCK : NULL;
        at += has_payload;
        if (entry->kind != GILD_ENTRY_NODE)
            err = replay_entry(replay, entry, bytes, place, in_doubt);
    }
    if (err)
        gild_fail(replay->error, gild_code_of_errno(-err), -err,
                  "replaying the log of store %s failed: %s", replay->store->directory,
                  strerror(-err));
    return err;
}

/* ---- what the catalogue says ------------------------------------------------------------------
 */

static int add_segment(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct replay *replay = context;
    struct gild_rec_segment record;
    (void)key_length;
    int err = gild_rec_segment_decode(&record, value, length);
    if (err)
        return gild_fail(replay->error, GILD_CORRUPT, -err,
                         "the catalogue of store %s has a damaged segment record",
                         replay->store->directory);
    return gild_segments_add(replay->store->segments, gild_rec_key_u64(key), &record,
                             replay->error);
}

static int add_stream(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    struct replay *replay = context;
    struct gild_rec_stream record;
    (void)key_length;
    int err = gild_rec_stream_decode(&record, value, length);
    if (err)
        return gild_fail(replay->error, GILD_CORRUPT, -err,
                         "the catalogue of store %s has a damaged stream record",
                         replay->store->directory);
    if (replay->stream_count == replay->stream_room) {
        size_t room = replay->stream_room ? 2 * replay->stream_room : 16;
        struct gild_recover_stream *grown = realloc(replay->streams, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        replay->streams = grown;
        replay->stream_room = room;
    }
    replay->streams[replay->stream_count++] = (struct gild_recover_stream){
        .stream = gild_rec_key_u64(key), .checkpoint_lsn = record.checkpoint_lsn};
    return 0;
}

static int read_catalogue(struct replay *replay, bool segments) {
    struct gild_txn *txn;
    int err = gild_txn_begin(replay->store->catalog, false, &txn);
    if (err)
        return gild_fail(replay->error, gild_code_of_errno(-err), -err,
                         "the catalogue of store %s can not be read: %s", replay->store->directory,
                         strerror(-err));
    if (segments)
        err = gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, add_segment, replay);
    if (!err)
        err = gild_txn_scan(txn, GILD_TABLE_STREAMS, NULL, 0, add_stream, replay);
    gild_txn_abort(txn);
    return err;
}

int recovery_verify(struct gild_store *store, struct gild_error *error) {
    struct replay replay = {.store = store, .error = error};
    struct gild_recover_totals totals;
    int err = read_catalogue(&replay, true);
    store->recovered_streams = replay.streams;
    if (!err)
        err = gild_log_look(&store->recovered, store->segments, store->id, replay.streams,
                            replay.stream_count, error);
    return err ? err : gild_log_replay(store->recovered, NULL, NULL, NULL, &totals, error);
}

void recovery_forget(struct gild_store *store) {
    gild_recovered_free(store->recovered);
    free(store->recovered_streams);
    store->recovered = NULL;
    store->recovered_streams = NULL;
}

static void lost_is_known(void *context, uint64_t stream, uint64_t first, uint64_t last,
                          const uint64_t *filter) {
    (void)context, (void)stream, (void)first, (void)last, (void)filter;
}

/* A repair has looked at the log by itself. */
static int repair_replay(struct replay *replay, struct gild_recover_totals *totals) {
    static const struct gild_recover_repair looked_at = {.lost = lost_is_known};
    struct gild_store *store = replay->store;
    int err = read_catalogue(replay, false);
    if (!err)
        err =
            gild_log_recover_rest(store->segments, store->id, replay->streams, replay->stream_count,
                                  replay_batch, replay, &looked_at, totals, replay->error);
    free(replay->streams);
    return err;
}

int recovery_look(struct gild_store *store, gild_recover_visit *visit, void *context,
                  const struct gild_recover_repair *repair, struct gild_error *error) {
    struct replay replay = {.store = store, .error = error};
    struct gild_recover_totals totals;
    int err = read_catalogue(&replay, false);
    if (!err)
        err = gild_log_recover_rest(store->segments, store->id, replay.streams, replay.stream_count,
                                    visit, context, repair, &totals, error);
    free(replay.streams);
    return err;
}

int recovery_run(struct gild_store *store, struct gild_error *error) {
    struct replay replay = {.store = store, .error = error};
    struct gild_recover_totals totals = {0};
    if (posix_memalign(&replay.page, GILD_NODE_BYTES, GILD_NODE_BYTES))
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open store %s",
                         store->directory);
    if (!store->repair)
        preload_leaves(&replay);
    int err = store->repair
                  ? repair_replay(&replay, &totals)
                  : gild_log_replay(store->recovered, replay_batch, &replay, NULL, &totals, error);
    recovery_forget(store);
    if (!err && totals.batches)
        gild_log(GILD_LOG_INFO, "replayed %" PRIu64 " batches (%" PRIu64 " blocks) of the log",
                 totals.batches, totals.blocks);
    store->recovered_batches = totals.batches;
    store->recovered_bytes = (totals.batches + totals.blocks) * GILD_LOG_BLOCK;
    if (!err) {
        err = checkpoint_run(store);
        if (err)
            gild_fail(error, gild_code_of_errno(-err), -err,
                      "the first checkpoint of store %s failed: %s", store->directory,
                      strerror(-err));
    }
    free(replay.page);
    return err;
}
