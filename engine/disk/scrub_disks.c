/* The scrub of what disks are made of: the leaves of sealed maps, and in the log the nodes of
 * deltas' maps and the blocks that guests wrote, each under its check. See scrub.h.
 *
 * A guest's block has no other copy that could be proven to be it: what is rotten is told, and is
 * EIO until the guest overwrites it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/scrub.h"
#include "disk/survey.h"
#include "io/file.h"
#include "log/format.h"

#define RUN_READ_BLOCKS 64u /* of the log, in one read */
/* Of one disk, before segments may be recycled again. */
#define HOLD_BYTES_MAX ((uint64_t)256 << 20)
#define HOLD_BYTES_MIN ((uint64_t)256 << 10)
#define HOLDS_PER_SECOND 64u /* at the rate that is allowed; each costs the nodes above a leaf */

static int tell_blocks(struct scrub *scrub, const char *object, const char *kind,
                       const struct hits *hits, const char *advice, const char *what) {
    char sentence[512];
    snprintf(sentence, sizeof sentence, "%s: %s", object, what);
    scrub_find(scrub, object, kind, hits, advice, sentence);
    return 0;
}

/* ---- sealed maps ----------------------------------------------------------------------------- */

static int map_blocks(struct scrub *scrub, uint64_t map_id, const struct range_set *blocks,
                      const char *kind, const char *advice, const char *what) {
    struct hits hits = {0};
    char object[32];
    if (blocks && !blocks->count)
        return 0;
    snprintf(object, sizeof object, "map %" PRIu64, map_id);
    int err = scrub->damage ? 0 : damage_open(&scrub->damage, scrub->store, 0);
    if (!err)
        err = damage_of_map(scrub->damage, map_id, blocks, &hits);
    if (!err)
        err = tell_blocks(scrub, object, kind, &hits, advice, what);
    hits_free(&hits);
    return err;
}

static int note_lost_places(struct range_set *lost, const struct gild_leaf *leaf, uint64_t first) {
    int err = 0;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS && !err; i++)
        if (gild_place_type(leaf->place[i]) == GILD_PLACE_LOST)
            err = range_add(lost, first + i, 1);
    return err;
}

static int read_leaves(struct scrub *scrub, const struct gild_sealed_map *map,
                       struct range_set *rotten, struct range_set *lost) {
    struct gild_leaf *leaf = gild_file_buffer(GILD_NODE_BYTES);
    uint64_t leaves = gild_leaves_of(map->size_bytes);
    int err = leaf ? 0 : -ENOMEM;
    for (uint64_t i = 0; i < leaves && !err; i++) {
        uint64_t page = gild_sealed_leaf_page(map, i), first = i * GILD_LEAF_BLOCKS;
        if (!page)
            continue;
        if (page == GILD_SEALED_LOST) {
            err = range_add(lost, first, GILD_LEAF_BLOCKS);
            continue;
        }
        err = scrub_take(scrub, GILD_NODE_BYTES);
        if (err)
            break;
        if (gild_file_read(map->fd, leaf, GILD_NODE_BYTES, page * GILD_NODE_BYTES) != 0 ||
            gild_node_verify(leaf, GILD_NODE_LEAF, map->map_id, i) != 0)
            err = range_add(rotten, first, GILD_LEAF_BLOCKS);
        else
            err = note_lost_places(lost, leaf, first);
    }
    free(leaf);
    return err;
}

static bool map_known(struct scrub *scrub, uint64_t map_id) {
    struct gild_rec_map *record = malloc(sizeof *record);
    struct gild_txn *txn;
    bool known = true;
    if (record && gild_txn_begin(scrub->store->catalog, false, &txn) == 0) {
        known = gild_rec_get_map(txn, map_id, record) != -ENOENT;
        gild_txn_abort(txn);
    }
    free(record);
    return known;
}

static int scrub_map(struct scrub *scrub, uint64_t map_id) {
    static const char *const advice =
        "stop the daemon and run `gild store check --repair`, which marks them as lost, then "
        "import "
        "the image again";
    struct range_set rotten = {0}, lost = {0};
    struct gild_sealed_map *map;
    struct gild_error why = {0};
    char path[4096];
    store_path(scrub->store, "maps", path);
    int broken = gild_sealed_open(&map, path, scrub->store->id, map_id, &why);
    if (broken) {
        if (!map_known(scrub, map_id)) /* deleted since */
            return 0;
        if (broken != -ENOENT && why.code != GILD_CORRUPT)
            return broken; /* memory, descriptors: it says nothing of the file */
        return map_blocks(scrub, map_id, NULL, broken == -ENOENT ? "missing" : "damaged", advice,
                          why.message);
    }
    scrub->result->maps++;
    int err = read_leaves(scrub, map, &rotten, &lost);
    gild_sealed_close(map);
    if (!err)
        err =
            map_blocks(scrub, map_id, &rotten, "damaged", advice, "leaves of its file are rotten");
    if (!err)
        err = map_blocks(scrub, map_id, &lost, "lost",
                         "import the image again and move its desktops there", "known lost");
    free(rotten.range);
    free(lost.range);
    return err;
}

int scrub_maps(struct scrub *scrub) {
    int err = 0;
    scrub->what = "scrubbing maps";
    for (size_t i = 0; i < scrub->maps.count && !err; i++) {
        collect_hold(scrub->store);
        err = scrub_map(scrub, scrub->maps.id[i]);
        collect_release(scrub->store);
    }
    return err;
}

/* ---- the log --------------------------------------------------------------------------------- */

#define HELD_LONG_ENOUGH 1 /* a visitor's answer that ends a survey */

struct delta_scrub {
    struct scrub *scrub;
    uint64_t delta_id;
    uint8_t *buffer;     /* RUN_READ_BLOCKS */
    uint64_t hold_until; /* bytes read */
    uint64_t next;       /* block to go on with */
    bool node_rotten;
    struct range_set rotten_nodes, rotten, missing, lost;
};

static int note_node(void *context, uint64_t place, enum gild_node_kind kind, uint64_t index,
                     bool whole) {
    struct delta_scrub *delta = context;
    (void)place, (void)kind, (void)index;
    delta->node_rotten = !whole;
    return scrub_take(delta->scrub, GILD_NODE_BYTES);
}

static int judge_block(struct delta_scrub *delta, uint64_t block, uint64_t place, uint32_t check,
                       const void *bytes) {
    if (gild_log_check(bytes, gild_place_serial(place), delta->delta_id, block) != check)
        return range_add(&delta->rotten, block, 1);
    return scrub_offer(delta->scrub, bytes);
}

/* Blocks at consecutive places. */
static int read_run(struct delta_scrub *delta, uint64_t block, const struct gild_leaf *leaf,
                    uint32_t slot, uint32_t count) {
    uint64_t place = leaf->place[slot];
    const struct gild_segment *segment =
        gild_segments_find(delta->scrub->store->segments, gild_place_serial(place));
    if (!segment || segment->fd < 0)
        return range_add(&delta->missing, block, count);
    uint64_t offset = (uint64_t)gild_place_offset(place) * GILD_LOG_BLOCK;
    int err = scrub_take(delta->scrub, (uint64_t)count * GILD_LOG_BLOCK);
    if (err)
        return err;
    bool whole =
        gild_file_read(segment->fd, delta->buffer, (size_t)count * GILD_LOG_BLOCK, offset) == 0;
    for (uint32_t i = 0; i < count && !err; i++) {
        uint8_t *bytes = delta->buffer + (size_t)i * GILD_LOG_BLOCK;
        /* Where one of them can not be read, the others may. */
        if (!whole && gild_file_read(segment->fd, bytes, GILD_LOG_BLOCK,
                                     offset + (uint64_t)i * GILD_LOG_BLOCK) != 0)
            err = range_add(&delta->rotten, block + i, 1);
        else
            err = judge_block(delta, block + i, place + i, leaf->check[slot + i], bytes);
    }
    return err;
}

static int read_leaf(struct delta_scrub *delta, uint64_t first, uint64_t count,
                     const struct gild_leaf *leaf) {
    int err = 0;
    for (uint32_t i = 0, run = 1; i < count && !err; i += run) {
        uint64_t place = leaf->place[i];
        run = 1;
        if (gild_place_type(place) == GILD_PLACE_LOST)
            err = range_add(&delta->lost, first + i, 1);
        if (gild_place_type(place) != GILD_PLACE_LOG)
            continue;
        while (i + run < count && run < RUN_READ_BLOCKS && leaf->place[i + run] == place + run)
            run++;
        err = read_run(delta, first + i, leaf, i, run);
    }
    return err;
}

static int note_range(void *context, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                      uint64_t uniform) {
    struct delta_scrub *delta = context;
    bool rotten = delta->node_rotten;
    int err = 0;
    delta->node_rotten = false;
    if (leaf)
        err = read_leaf(delta, first, count, leaf);
    else if (gild_place_type(uniform) == GILD_PLACE_LOST)
        err = range_add(rotten ? &delta->rotten_nodes : &delta->lost, first, count);
    delta->next = first + count;
    if (!err && delta->scrub->result->read_bytes >= delta->hold_until)
        err = HELD_LONG_ENOUGH;
    return err;
}

static int delta_blocks(struct delta_scrub *delta, const struct range_set *blocks, const char *kind,
                        const char *advice, const char *what) {
    struct scrub *scrub = delta->scrub;
    struct hits hits = {0};
    char text[64];
    if (!blocks->count)
        return 0;
    int err = scrub->damage ? 0 : damage_open(&scrub->damage, scrub->store, 0);
    if (err)
        return err;
    const char *disk = damage_disk(scrub->damage, delta->delta_id, text);
    err = hits_add(&hits, disk, blocks);
    if (!err)
        err = tell_blocks(scrub, disk, kind, &hits, advice, what);
    hits_free(&hits);
    return err;
}

static int tell_delta(struct delta_scrub *delta) {
    static const char *const restore =
        "reads of them fail until they are overwritten: restore what is in them from a backup";
    int err = delta_blocks(delta, &delta->rotten_nodes, "damaged", restore,
                           "nodes of its map are rotten");
    if (!err)
        err = delta_blocks(delta, &delta->rotten, "damaged", restore,
                           "blocks that its guest wrote are rotten in the log");
    if (!err)
        err = delta_blocks(delta, &delta->missing, "missing", restore,
                           "log segments that hold its data are not there");
    if (!err)
        err = delta_blocks(delta, &delta->lost, "lost", restore, "known lost");
    return err;
}

/* One hold of the log. HELD_LONG_ENOUGH: there is more. */
static int scrub_part(struct delta_scrub *delta, struct gild_rec_delta *record) {
    struct gild_store *store = delta->scrub->store;
    const struct survey survey = {.past_errors = true,
                                  .first_block = delta->next,
                                  .range = note_range,
                                  .node = note_node,
                                  .context = delta};
    uint64_t rate = delta->scrub->options->rate_bytes, hold = HOLD_BYTES_MAX;
    struct gild_txn *txn;
    if (rate && rate / HOLDS_PER_SECOND < hold)
        hold = rate / HOLDS_PER_SECOND;
    if (hold < HOLD_BYTES_MIN)
        hold = HOLD_BYTES_MIN;
    delta->hold_until = delta->scrub->result->read_bytes + hold;
    /* Before the record is read: what it names then is not recycled. */
    atomic_fetch_add(&store->checks, 1);
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (!err) {
        err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, delta->delta_id, record);
        gild_txn_abort(txn);
    }
    if (!err)
        err = survey_delta(store, delta->delta_id, record, &survey);
    atomic_fetch_sub(&store->checks, 1);
    return err;
}

static int scrub_delta(struct scrub *scrub, uint64_t delta_id) {
    struct delta_scrub delta = {.scrub = scrub, .delta_id = delta_id};
    struct gild_rec_delta *record = malloc(sizeof *record);
    delta.buffer = gild_file_buffer(RUN_READ_BLOCKS * (size_t)GILD_LOG_BLOCK);
    int err = record && delta.buffer ? HELD_LONG_ENOUGH : -ENOMEM;
    while (err == HELD_LONG_ENOUGH)
        err = scrub_part(&delta, record);
    scrub->result->disks += err == 0;
    if (err == -ENOENT) /* deleted since */
        err = 0;
    else if (!err)
        err = tell_delta(&delta);
    free(delta.rotten_nodes.range);
    free(delta.rotten.range);
    free(delta.missing.range);
    free(delta.lost.range);
    free(delta.buffer);
    free(record);
    return err;
}

int scrub_log(struct scrub *scrub) {
    int err = 0;
    scrub->what = "scrubbing disks";
    for (size_t i = 0; i < scrub->deltas.count && !err; i++)
        err = scrub_delta(scrub, scrub->deltas.id[i]);
    return err;
}
