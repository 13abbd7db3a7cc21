/* Reading: a walk over the leaves that the range touches, gathering pieces that point into pinned
 * memory.
 *
 * For each block the delta's leaf says where it is, or to ask the parent's leaf; never deeper. Data
 * that is not in memory is asked for as the walk goes on, so that one op has all its loads in
 * flight at once; map nodes are waited for one at a time, since the walk can not go on without
 * them.
 *
 * Invariant: at every return with false, exactly one of these will resume the op: a node's load
 * (WAIT_NODE) or the last of its data (WAIT_DATA). Pieces already gathered stay pinned over waits.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/internal.h"

static const uint8_t zeroes[GILD_OP_MAX_BYTES] __attribute__((aligned(4096)));

static struct gild_piece *piece_add(struct gild_op *op, const void *data, uint32_t bytes) {
    if (op->kind == GILD_OP_PREFETCH)
        return NULL;
    if (op->piece_count == op->piece_limit) {
        disk_op_fail(op, -ENOBUFS, "the answer's pieces");
        return NULL;
    }
    struct gild_piece *piece = &op->pieces[op->piece_count++];
    *piece = (struct gild_piece){.data = data, .bytes = bytes};
    return piece;
}

static void add_zeroes(struct gild_op *op, uint32_t bytes) {
    struct gild_piece *last = op->piece_count ? &op->pieces[op->piece_count - 1] : NULL;
    if (last && last->data == zeroes && last->bytes + bytes <= sizeof zeroes)
        last->bytes += bytes;
    else
        piece_add(op, zeroes, bytes);
}

/* Bytes of a pinned cache entry; gives the pin to the piece, or back. */
static void add_entry(struct gild_op *op, enum pin_kind kind, struct gild_cache_entry *entry,
                      uint32_t skip, uint32_t bytes) {
    struct gild_store *store = op->disk->store;
    struct gild_piece *piece =
        entry ? piece_add(op, (uint8_t *)gild_cache_data(entry) + skip, bytes) : NULL;
    if (piece) {
        piece->pin_kind = kind;
        piece->pin = entry;
    } else if (entry) {
        gild_cache_unpin(kind == PIN_GROUP ? store->content : store->nodes, entry);
    }
}

static void add_group(struct gild_op *op, uint64_t place, uint32_t skip, uint32_t bytes) {
    struct gild_cache_entry *entry;
    load_group(op, place, &entry);
    add_entry(op, PIN_GROUP, entry, gild_place_slot(place) * GILD_BLOCK_BYTES + skip, bytes);
}

static void add_log(struct gild_op *op, struct log_run *run, uint64_t block, uint64_t place,
                    uint32_t check, uint32_t skip, uint32_t bytes) {
    struct gild_log *log = op->disk->reactor->log;
    void *pin;
    const uint8_t *memory = gild_log_peek(log, place, &pin);
    if (!memory) {
        struct gild_cache_entry *entry;
        load_log_block(op, run, block, place, check, &entry);
        add_entry(op, PIN_BLOCK, entry, skip, bytes);
        return;
    }
    if (op->kind == GILD_OP_PREFETCH) {
        if (pin)
            gild_log_unpin(log, pin);
        return;
    }
    enum pin_kind kind = PIN_LOG;
    if (!pin) { /* too much of the log's memory is pinned by slow readers: this one gets a copy */
        kind = PIN_HEAP;
        pin = malloc(bytes);
        if (!pin) {
            disk_op_fail(op, -ENOMEM, "memory for data");
            return;
        }
        memcpy(pin, memory + skip, bytes);
        memory = pin;
        skip = 0;
    }
    struct gild_piece *piece = piece_add(op, memory + skip, bytes);
    if (piece) {
        piece->pin_kind = kind;
        piece->pin = pin;
    } else if (kind == PIN_LOG) {
        gild_log_unpin(log, pin);
    } else {
        free(pin);
    }
}

enum load read_delta_leaf(struct gild_op *op, uint64_t leaf_index, const struct gild_leaf **leaf,
                          uint64_t *uniform, struct gild_cache_entry **pin) {
    struct gild_disk *disk = op->disk;
    struct gild_map_need need;
    struct gild_cache_entry *dir;
    uint64_t ref;
    *leaf = NULL;
    *pin = NULL;
    if (!disk->delta_id) {
        *uniform = gild_place_of_type(GILD_PLACE_PARENT);
        return LOAD_READY;
    }
    if (gild_delta_look(&disk->map, leaf_index, &ref, &need) == GILD_MAP_NEED_NODE) {
        if (load_delta_node(op, &need, &dir) == LOAD_WAIT)
            return LOAD_WAIT;
        ref = ((const struct gild_dir *)gild_cache_data(dir))->ref[leaf_index % GILD_DIR_REFS];
        gild_cache_unpin(disk->store->nodes, dir);
    }
    if (gild_ref_is_page(ref)) {
        *leaf = &gild_ref_page(ref)->leaf;
        return LOAD_READY;
    }
    *uniform = ref;
    if (gild_place_type(ref) != GILD_PLACE_LOG)
        return LOAD_READY;
    need = (struct gild_map_need){ref, leaf_index, GILD_NODE_LEAF};
    if (load_delta_node(op, &need, pin) == LOAD_WAIT)
        return LOAD_WAIT;
    *leaf = gild_cache_data(*pin);
    return LOAD_READY;
}

/* One leaf's view while the walk is in it. */
struct view {
    const struct gild_leaf *own;
    const struct gild_leaf *parent;
    uint64_t uniform; /* when own is NULL */
    struct gild_cache_entry *own_pin, *parent_pin;
    bool asked_parent;
};

static void view_close(struct gild_op *op, struct view *view) {
    if (view->own_pin)
        gild_cache_unpin(op->disk->store->nodes, view->own_pin);
    if (view->parent_pin)
        gild_cache_unpin(op->disk->store->nodes, view->parent_pin);
}

/* The place of a block. LOAD_WAIT: the parent's leaf must be loaded. */
static enum load view_place(struct gild_op *op, struct view *view, uint64_t block, uint64_t *place,
                            uint32_t *check) {
    uint32_t slot = block % GILD_LEAF_BLOCKS;
    *place = view->own ? view->own->place[slot] : view->uniform;
    *check = view->own ? view->own->check[slot] : 0;
    if (gild_place_type(*place) != GILD_PLACE_PARENT)
        return LOAD_READY;
    *place = gild_place_of_type(GILD_PLACE_HOLE);
    if (!op->disk->parent || block >= op->disk->parent_blocks)
        return LOAD_READY;
    if (!view->asked_parent) {
        if (load_sealed_leaf(op, block / GILD_LEAF_BLOCKS, &view->parent_pin) == LOAD_WAIT) {
            view->parent_pin = NULL;
            return LOAD_WAIT;
        }
        view->parent = view->parent_pin ? gild_cache_data(view->parent_pin) : NULL;
        view->asked_parent = true;
    }
    if (view->parent) {
        *place = view->parent->place[slot];
        *check = view->parent->check[slot];
    }
    return LOAD_READY;
}

/* What is known of a block's place without loading anything more; PARENT if that would be needed.
 */
static uint64_t view_peek(struct gild_op *op, const struct view *view, uint64_t block) {
    uint32_t slot = block % GILD_LEAF_BLOCKS;
    uint64_t place = view->own ? view->own->place[slot] : view->uniform;
    if (gild_place_type(place) == GILD_PLACE_PARENT && view->parent &&
        block < op->disk->parent_blocks)
        place = view->parent->place[slot];
    return place;
}

/* How many blocks from `block` on lie one after the other in one group: one piece. */
static uint64_t run_in_group(struct gild_op *op, const struct view *view, uint64_t block,
                             uint64_t end, uint64_t place) {
    uint64_t n = 1;
    while (block + n < end && (block + n) % GILD_LEAF_BLOCKS != 0 &&
           gild_place_slot(place) + n < GILD_GROUP_BLOCKS &&
           view_peek(op, view, block + n) == place + n)
        n++;
    return n;
}

/* Walks the blocks of one leaf. LOAD_WAIT: a node is on its way, cursor says where to go on. */
static enum load walk_leaf(struct gild_op *op, uint64_t end_bytes, struct log_run *run) {
    uint64_t leaf_index = op->cursor / GILD_BLOCK_BYTES / GILD_LEAF_BLOCKS;
    uint64_t leaf_end = (leaf_index + 1) * GILD_LEAF_BLOCKS * (uint64_t)GILD_BLOCK_BYTES;
    uint64_t stop = end_bytes < leaf_end ? end_bytes : leaf_end;
    uint64_t end_block = (stop + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES;
    struct view view = {0};
    if (read_delta_leaf(op, leaf_index, &view.own, &view.uniform, &view.own_pin) == LOAD_WAIT)
        return LOAD_WAIT;
    enum load load = LOAD_READY;
    while (op->cursor < stop && !op->error) {
        uint64_t block = op->cursor / GILD_BLOCK_BYTES, place, blocks = 1;
        uint32_t check;
        load = view_place(op, &view, block, &place, &check);
        if (load == LOAD_WAIT)
            break;
        uint32_t skip = op->cursor % GILD_BLOCK_BYTES;
        if (gild_place_type(place) == GILD_PLACE_PACK)
            blocks = run_in_group(op, &view, block, end_block, place);
        uint64_t next = (block + blocks) * GILD_BLOCK_BYTES;
        uint32_t bytes = (uint32_t)((next < stop ? next : stop) - op->cursor);
        switch (gild_place_type(place)) {
        case GILD_PLACE_PACK:
            add_group(op, place, skip, bytes);
            break;
        case GILD_PLACE_LOG:
            add_log(op, run, block, place, check, skip, bytes);
            break;
        case GILD_PLACE_LOST:
            disk_op_fail(op, -EIO, "data that is known to be lost");
            break;
        default:
            add_zeroes(op, bytes);
            break;
        }
        op->cursor += bytes;
    }
    view_close(op, &view);
    return load;
}

/* A map names a slot that its group does not have, or has no more: what lies there is nobody's, not
 * zeroes. A piece may span slots that lie behind each other. */
static void refuse_slots(struct gild_op *op) {
    for (uint32_t i = 0; i < op->piece_count && !op->error; i++) {
        const struct gild_piece *piece = &op->pieces[i];
        if (piece->pin_kind != PIN_GROUP)
            continue;
        size_t from =
            (size_t)((const uint8_t *)piece->data - (const uint8_t *)gild_cache_data(piece->pin));
        uint32_t first = (uint32_t)(from / GILD_BLOCK_BYTES);
        uint32_t last = (uint32_t)((from + piece->bytes - 1) / GILD_BLOCK_BYTES);
        uint64_t named = last < GILD_GROUP_BLOCKS ? (2u << last) - (1u << first) : UINT64_MAX;
        if (named & ~(uint64_t)gild_cache_content(piece->pin))
            disk_op_fail(op, -EBADMSG, "packed data that its group does not have");
    }
}

bool read_step(struct gild_op *op) {
    uint64_t end = op->offset_bytes + op->length_bytes;
    struct log_run run = {NULL};
    while (op->cursor < end && !op->error) {
        if (walk_leaf(op, end, &run) == LOAD_WAIT) {
            load_log_end(&run);
            return false;
        }
    }
    load_log_end(&run);
    if (op->pending) {
        op->state = OP_WAIT_DATA;
        return false;
    }
    if (!op->error)
        refuse_slots(op);
    return true;
}
