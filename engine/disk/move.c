/* See move.h. One step takes a few of the list, then lets others have the reactor. */
#include "disk/move.h"

#include <errno.h>
#include <string.h>

#define STEP_MOVES 64u

static struct move_op *of_op(struct gild_op *op) {
    return CONTAINER(op, struct move_op, op);
}

/* Where the map has the node now, or 0. False: the op waits. */
static bool node_place(struct gild_op *op, const struct move *move, uint64_t *place) {
    struct gild_delta_map *map = &op->disk->map;
    struct gild_map_need need;
    struct gild_cache_entry *dir;
    uint64_t ref = 0;
    *place = 0;
    if (move->node == GILD_NODE_DIR) {
        if (move->block >= map->dir_count)
            return true;
        ref = map->dirs[move->block];
        if (gild_ref_is_page(ref)) {
            const struct gild_page *page = gild_ref_page(ref);
            ref = page->dirty || page->frozen ? 0 : page->origin;
        }
    } else {
        if (move->block / GILD_DIR_REFS >= map->dir_count)
            return true;
        if (gild_delta_look(map, move->block, &ref, &need) == GILD_MAP_NEED_NODE) {
            if (load_delta_node(op, &need, &dir) == LOAD_WAIT)
                return false;
            ref = ((const struct gild_dir *)gild_cache_data(dir))->ref[move->block % GILD_DIR_REFS];
            gild_cache_unpin(op->disk->store->nodes, dir);
        }
        if (gild_ref_is_page(ref))
            ref = 0; /* changed: the next checkpoint writes it anyway */
    }
    *place = ref;
    return true;
}

static bool block_place(struct gild_op *op, const struct move *move, uint64_t *place) {
    const struct gild_leaf *leaf;
    struct gild_cache_entry *pin;
    uint64_t uniform = 0;
    *place = 0;
    if (move->block >= op->disk->map.size_blocks)
        return true;
    if (read_delta_leaf(op, move->block / GILD_LEAF_BLOCKS, &leaf, &uniform, &pin) == LOAD_WAIT)
        return false;
    if (leaf)
        *place = leaf->place[move->block % GILD_LEAF_BLOCKS];
    if (pin)
        gild_cache_unpin(op->disk->store->nodes, pin);
    return true;
}

/* Is it still where it was found? False: the op waits, or has failed. */
static bool sift_one(struct gild_op *op, struct move *move) {
    uint64_t place;
    if (move->node == GILD_NODE_ROOT) {
        move->live = true; /* the cleaner has compared it with the disk's record */
        return true;
    }
    if (!(move->node ? node_place(op, move, &place) : block_place(op, move, &place)))
        return false;
    move->live = place == move->from;
    return true;
}

static bool apply_node(struct gild_op *op, const struct move *move) {
    struct gild_disk *disk = op->disk;
    const struct gild_map_need node = {move->from, move->block, move->node};
    struct gild_map_need need;
    enum gild_map_step step;
    write_limit_pages(disk->reactor);
    while ((step = gild_delta_rewrite(&disk->map, &node, &need)) != GILD_MAP_READY)
        if (!write_satisfy(op, step, &need))
            return false;
    write_appended(disk);
    return true;
}

static bool apply_block(struct gild_op *op, struct move *move) {
    struct gild_disk *disk = op->disk;
    struct gild_log *log = disk->reactor->log;
    uint64_t place = move->to;
    uint32_t check = move->check;
    struct gild_page *leaf;
    if ((op->error = gild_log_failure(log)) != 0)
        return false;
    if (!write_have_leaf(op, move->block, &leaf))
        return false;
    move->live = leaf->leaf.place[move->block % GILD_LEAF_BLOCKS] == move->from;
    if (!move->live)
        return true;
    if (!place) {
        if (!write_have_room(op, false))
            return false;
        memcpy(gild_log_slot(log), move->data, GILD_BLOCK_BYTES);
        gild_log_moved(log, disk->delta_id, move->block, move->age_s, &place, &check);
    }
    gild_delta_set(&disk->map, leaf, move->block, place, check);
    write_appended(disk);
    return true;
}

/* False: the op waits, or has failed. */
static bool move_one(struct move_op *moving, struct move *move) {
    struct gild_op *op = &moving->op;
    op->cursor = move->node ? 0 : move->block * GILD_BLOCK_BYTES;
    if (!sift_one(op, move))
        return false;
    if (moving->what == MOVE_SIFT || !move->live)
        return true;
    return move->node ? apply_node(op, move) : apply_block(op, move);
}

static void yielded(struct gild_task *task) {
    disk_op_resume(&CONTAINER(task, struct move_op, yield)->op);
}

bool move_step(struct gild_op *op) {
    struct move_op *moving = of_op(op);
    for (unsigned n = 0; moving->at < moving->count && !op->error; n++) {
        if (n == STEP_MOVES) {
            moving->yield.run = yielded;
            gild_loop_post(op->disk->reactor->loop, &moving->yield);
            return false;
        }
        if (!move_one(moving, &moving->moves[moving->at]))
            return op->error != 0;
        moving->at++;
    }
    return true;
}

static void ended(struct gild_op *op) {
    struct move_op *moving = of_op(op);
    moving->done(moving);
}

void move_post(struct move_op *moving) {
    struct gild_disk *disk = moving->op.disk;
    moving->op = (struct gild_op){.disk = disk, .kind = OP_MOVE, .done = ended};
    moving->at = 0;
    gild_disk_post(&moving->op);
}
