/* Block status: which ranges hold data, which read as zero, which are holes. The same walk as a
 * read's, without the data. An answer may stop early: after its last extent, or after a bounded
 * number of leaves, so that one request over a large disk does not hold up a reactor. */
#include "disk/internal.h"

#define LEAVES_A_STEP 2048u

static uint32_t flags_of(uint64_t place) {
    switch (gild_place_type(place)) {
    case GILD_PLACE_LOG:
    case GILD_PLACE_PACK:
    case GILD_PLACE_LOST: /* a reader shall see the error, not zeroes */
        return 0;
    case GILD_PLACE_ZERO:
        return GILD_EXTENT_ZERO;
    default:
        return GILD_EXTENT_ZERO | GILD_EXTENT_HOLE;
    }
}

/* False when the answer is full. */
static bool extent_add(struct gild_op *op, uint64_t bytes, uint32_t flags) {
    struct gild_extent *last = op->extent_count ? &op->extents[op->extent_count - 1] : NULL;
    if (last && last->flags == flags) {
        last->bytes += bytes;
    } else {
        uint32_t limit = op->flags & GILD_OP_ONE_EXTENT ? 1 : op->extent_limit;
        if (op->extent_count == limit)
            return false;
        op->extents[op->extent_count++] = (struct gild_extent){bytes, flags};
    }
    op->cursor += bytes;
    return true;
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* The blocks of one leaf from the cursor on. READY with *full set when the answer is full. */
static enum load extents_leaf(struct gild_op *op, uint64_t end, bool *full) {
    struct gild_disk *disk = op->disk;
    struct gild_cache_entry *own_pin, *parent_pin = NULL;
    const struct gild_leaf *own, *parent = NULL;
    uint64_t uniform = 0, leaf_index = op->cursor / GILD_BLOCK_BYTES / GILD_LEAF_BLOCKS;
    if (read_delta_leaf(op, leaf_index, &own, &uniform, &own_pin) == LOAD_WAIT)
        return LOAD_WAIT;
    enum load load = LOAD_READY;
    if (disk->parent && (own || gild_place_type(uniform) == GILD_PLACE_PARENT)) {
        load = load_sealed_leaf(op, leaf_index, &parent_pin);
        parent = load == LOAD_READY && parent_pin ? gild_cache_data(parent_pin) : NULL;
        if (load == LOAD_WAIT)
            parent_pin = NULL;
    }
    uint64_t leaf_end = (leaf_index + 1) * GILD_LEAF_BLOCKS * (uint64_t)GILD_BLOCK_BYTES;
    uint64_t stop = least(end, leaf_end);
    while (load == LOAD_READY && op->cursor < stop && !*full) {
        uint64_t block = op->cursor / GILD_BLOCK_BYTES;
        uint64_t place = own ? own->place[block % GILD_LEAF_BLOCKS] : uniform;
        if (gild_place_type(place) == GILD_PLACE_PARENT)
            place = parent && block < disk->parent_blocks ? parent->place[block % GILD_LEAF_BLOCKS]
                                                          : gild_place_of_type(GILD_PLACE_HOLE);
        uint64_t bytes = least(stop, (block + 1) * GILD_BLOCK_BYTES) - op->cursor;
        if (!own && !parent)
            bytes = stop - op->cursor;
        *full = !extent_add(op, bytes, flags_of(place));
    }
    if (own_pin)
        gild_cache_unpin(disk->store->nodes, own_pin);
    if (parent_pin)
        gild_cache_unpin(disk->store->nodes, parent_pin);
    return load;
}

bool extents_step(struct gild_op *op) {
    uint64_t end = op->offset_bytes + op->length_bytes;
    bool full = false;
    for (unsigned leaves = 0; op->cursor < end && !op->error && !full; leaves++) {
        if (leaves == LEAVES_A_STEP && op->extent_count)
            break;
        if (extents_leaf(op, end, &full) == LOAD_WAIT)
            return false;
    }
    return true;
}
