/* The check of what is in the log: every node of every delta's map, where its blocks are, how many
 * blocks of each segment anything reaches. Guests' blocks themselves are a scrub's. See check.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/check.h"
#include "disk/survey.h"
#include "io/file.h"

/* ---- deltas ---------------------------------------------------------------------------------- */

struct delta_check {
    struct check *check;
    struct gild_store *store;
    uint64_t blocks;
    bool node_rotten; /* what the next range is lost to */
    uint64_t packed;
    struct range_set rotten, missing, gone, odd, lost;
};

static int note_node(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                     bool whole) {
    struct delta_check *delta = context;
    (void)kind, (void)index;
    delta->node_rotten = !whole;
    return ids_add(&delta->check->counted, gild_place_serial(place));
}

static int note_block(struct delta_check *delta, uint64_t block, uint64_t place) {
    uint64_t serial = gild_place_serial(place);
    switch (gild_place_type(place)) {
    case GILD_PLACE_LOG: {
        const struct gild_segment *segment = gild_segments_find(delta->store->segments, serial);
        delta->blocks++;
        if (!segment || segment->fd < 0)
            return range_add(&delta->missing, block, 1);
        int err = ids_add(&delta->check->counted, serial);
        if (!err && (!gild_place_offset(place) || gild_place_offset(place) >= segment->blocks))
            err = range_add(&delta->odd, block, 1);
        return err;
    }
    case GILD_PLACE_LOST:
        return range_add(&delta->lost, block, 1);
    case GILD_PLACE_PACK: {
        delta->blocks++;
        delta->packed++;
        int err = ids_add(&delta->check->packed, gild_place_pack_id(place));
        switch (err ? CHECK_SLOT_THERE : check_slot(delta->check, place)) {
        case CHECK_SLOT_THERE:
            return err;
        case CHECK_NO_PACK:
            return range_add(&delta->gone, block, 1);
        default:
            return range_add(&delta->odd, block, 1);
        }
    }
    default:
        return gild_place_type(place) > GILD_PLACE_LOST ? range_add(&delta->odd, block, 1) : 0;
    }
}

static int note_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                      uint64_t uniform) {
    struct delta_check *delta = context;
    bool rotten = delta->node_rotten;
    int err = 0;
    delta->node_rotten = false;
    if (!leaf && gild_place_type(uniform) == GILD_PLACE_LOST)
        return range_add(rotten ? &delta->rotten : &delta->lost, first, count);
    for (uint64_t i = 0; leaf && i < count && !err; i++)
        err = note_block(delta, first + i, leaf->place[i]);
    return err;
}

static int tell_blocks(struct check *check, const char *disk, struct range_set *blocks,
                       const char *kind, const char *what) {
    struct hits hits = {0};
    int err = blocks->count ? hits_add(&hits, disk, blocks) : 0;
    if (blocks->count && !err)
        findings_add(&check->findings, disk, kind, &hits, "%s: %s", disk, what);
    hits_free(&hits);
    free(blocks->range);
    return err;
}

static int tell_delta(struct check *check, const char *disk, struct delta_check *delta) {
    check->incomplete = check->incomplete || delta->rotten.count;
    int err = tell_blocks(check, disk, &delta->rotten, "damaged", "nodes of its map are rotten");
    int e = tell_blocks(check, disk, &delta->missing, "missing",
                        "log segments that hold its data are not there");
    err = err ? err : e;
    e = tell_blocks(check, disk, &delta->gone, "missing", "it names packs that are not there");
    err = err ? err : e;
    e = tell_blocks(check, disk, &delta->odd, "damaged", "its map has impossible places");
    err = err ? err : e;
    e = tell_blocks(check, disk, &delta->lost, "lost", "known lost until it is overwritten");
    return err ? err : e;
}

static int check_delta(struct check *check, enum gild_table table, uint64_t delta_id) {
    struct delta_check delta = {.check = check, .store = check->store};
    const struct survey survey = {
        .past_errors = true, .range = note_range, .node = note_node, .context = &delta};
    const struct gild_rec_delta *record = check->delta;
    char text[64];
    const char *disk = damage_disk(check->damage, delta_id, text);
    bool live = table == GILD_TABLE_DELTAS;
    check->result->disks += live;
    if (gild_rec_get_delta(check->txn, table, delta_id, check->delta)) {
        check->incomplete = true;
        findings_add(&check->findings, disk, "damaged", NULL,
                     "the record of the delta %" PRIu64 " of %s is damaged", delta_id, disk);
        return 0;
    }
    if (live && record->parent_map && !ids_have(&check->maps, record->parent_map))
        findings_add(&check->findings, disk, "reference", NULL,
                     "%s stands on map %" PRIu64 ", which is not there", disk, record->parent_map);
    int err = survey_delta(check->store, delta_id, record, &survey);
    if (!err && !delta.rotten.count && delta.blocks != record->mapped_blocks)
        findings_add(&check->findings, disk, "count", NULL,
                     "%s: its map has %" PRIu64 " written blocks, its record says %" PRIu64, disk,
                     delta.blocks, record->mapped_blocks);
    else if (!err && !delta.rotten.count && delta.packed != record->packed_blocks)
        findings_add(&check->findings, disk, "count", NULL,
                     "%s: its map has %" PRIu64 " blocks in packs, its record says %" PRIu64, disk,
                     delta.packed, record->packed_blocks);
    check->result->blocks += delta.blocks;
    int told = tell_delta(check, disk, &delta);
    return err ? err : told;
}

static void check_owner(struct check *check, uint64_t delta_id) {
    char object[32];
    uint64_t last = 0;
    snprintf(object, sizeof object, "delta %" PRIu64, delta_id);
    if (ids_have(&check->dropped, delta_id))
        findings_add(&check->findings, object, "reference", NULL, "%s is both in use and deleted",
                     object);
    /* Deltas that were never numbered are not a desktop's. */
    if (!ids_have(&check->owned, delta_id) && gild_txn_last_id(check->txn, "delta", &last) == 0 &&
        last >= delta_id)
        findings_add(&check->findings, object, "orphan", NULL,
                     "%s belongs to no desktop: what it holds is never freed", object);
}

int check_deltas(struct check *check) {
    int err = 0;
    for (size_t i = 0; i < check->deltas.count && !err; i++) {
        check_owner(check, check->deltas.id[i]);
        err = check_delta(check, GILD_TABLE_DELTAS, check->deltas.id[i]);
    }
    for (size_t i = 0; i < check->dropped.count && !err; i++)
        err = check_delta(check, GILD_TABLE_DROPPED, check->dropped.id[i]);
    ids_sort(&check->counted);
    ids_sort(&check->packed);
    for (size_t i = 1; i < check->owned.count; i++)
        if (check->owned.id[i] == check->owned.id[i - 1])
            findings_add(&check->findings, "store", "reference", NULL,
                         "two desktops have the delta %" PRIu64, check->owned.id[i]);
    return err;
}

/* ---- segments -------------------------------------------------------------------------------- */

uint64_t check_times(const struct ids *counted, uint64_t serial) {
    size_t low = 0, high = counted->count, end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (counted->id[middle] < serial)
            low = middle + 1;
        else
            high = middle;
    }
    for (end = low; end < counted->count && counted->id[end] == serial;)
        end++;
    return end - low;
}

struct segment_check {
    struct check *check;
    void *header;
};

static int check_segment(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct segment_check *pass = context;
    struct check *check = pass->check;
    struct gild_rec_segment record;
    uint64_t serial = gild_rec_key_u64(key);
    char object[32];
    (void)key_length;
    snprintf(object, sizeof object, "segment %016" PRIx64, serial);
    check->result->segments++;
    if (gild_rec_segment_decode(&record, value, length)) {
        findings_add(&check->findings, object, "damaged", NULL, "the record of log %s is damaged",
                     object);
        return 0;
    }
    uint64_t counted = check_times(&check->counted, serial);
    if (counted != record.live_blocks && !(check->incomplete && counted < record.live_blocks))
        findings_add(&check->findings, object, "count", NULL,
                     "log %s holds %" PRIu64 " live blocks, its record says %" PRIu64, object,
                     counted, record.live_blocks);
    const struct gild_segment *segment = gild_segments_find(check->store->segments, serial);
    if (!segment || segment->fd < 0) {
        findings_add(&check->findings, object, "missing", NULL,
                     "log %s is in the catalogue but not in the store", object);
        return 0;
    }
    int err = gild_file_read(segment->fd, pass->header, GILD_LOG_BLOCK, 0);
    if (!err)
        err = gild_segment_header_verify(pass->header, check->store->id, serial);
    if (err)
        findings_add(&check->findings, object, "damaged", NULL,
                     "the header of log %s is damaged (%s): the store can not be opened again "
                     "before `gild store check --repair`",
                     object, strerror(-err));
    return 0;
}

int check_segments(struct check *check) {
    struct segment_check pass = {check, gild_file_buffer(GILD_LOG_BLOCK)};
    int err = pass.header
                  ? gild_txn_scan(check->txn, GILD_TABLE_SEGMENTS, NULL, 0, check_segment, &pass)
                  : -ENOMEM;
    free(pass.header);
    return err;
}
