/* Changing: write, trim, write-zeroes, flush.
 *
 * A whole block is one synchronous step: room in the open batch, a writable leaf, copy, entry, map.
 * So the order of the log and the order of the map are one order (D10), and no other op sees half
 * of it. What such a step lacks (room, a node, a page) is waited for, and the step starts over.
 *
 * A part of a block is read, changed and written under the disk's list of such blocks (struct rmw):
 * while a block is on it, no other op may change it.
 *
 *     write_step:  for each block:  locked? --> WAIT_LOCK
 *                                   part?   --> rmw: WAIT_READ --> put
 *                                   whole   --> put:  room? WAIT_ROOM | leaf? WAIT_NODE, WAIT_PAGE
 *                  then FUA:        WAIT_SYNC
 *
 * Nothing here allocates in steady state: rmw records come from a free list. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "disk/cleaner.h"
#include "disk/internal.h"
#include "disk/watch.h"

#define COUNT_STEP_BYTES (1u << 20)

struct rmw {
    struct gild_op read;
    struct gild_piece pieces[8];
    struct gild_op *owner;
    uint64_t block;
    bool ready;
    struct rmw *next;
    struct gild_op *waiters;
};

/* ---- waiting --------------------------------------------------------------------------------- */

static void log_waited(struct gild_task *task) {
    struct op_wait *wait = CONTAINER(task, struct op_wait, log.task);
    disk_op_resume(CONTAINER(wait, struct gild_op, wait));
}

static struct gild_log_waiter *log_waiter(struct gild_op *op) {
    struct op_wait *wait = op_wait(op);
    memset(wait, 0, sizeof *wait);
    wait->log.task.run = log_waited;
    return &wait->log;
}

/* For a checkpoint to free map pages. One that can not be made must not keep a guest for ever. */
static void wait_for_page(struct gild_op *op) {
    struct reactor *reactor = op->disk->reactor;
    if (op->ticket & OP_PAGE_ASKED &&
        (op->error = atomic_load(&op->disk->store->checkpoint_failed)))
        return;
    op->ticket |= OP_PAGE_ASKED;
    disk_op_pause(op, OP_WAIT_PAGE);
    op->next = reactor->page_waiters;
    reactor->page_waiters = op;
    keeper_ask(op->disk->store);
}

static void wake_ops(struct reactor *reactor, struct gild_op *op) {
    while (op) {
        struct gild_op *next = op->next;
        gild_loop_post(reactor->loop, &op->task);
        op = next;
    }
}

void write_page_ready(struct reactor *reactor) {
    struct gild_op *ops = reactor->page_waiters;
    reactor->page_waiters = NULL;
    wake_ops(reactor, ops);
}

void disk_mark_dirty(struct gild_disk *disk) {
    if (disk->on_dirty)
        return;
    disk->on_dirty = true;
    atomic_store(&disk->unsettled, true);
    disk->dirty_next = disk->reactor->dirty;
    disk->reactor->dirty = disk;
}

/* Has the log since the last checkpoint grown enough for another? The sum over all reactors is
 * shared, so each adds to it in steps. */
static bool much_unsettled(struct reactor *reactor) {
    struct gild_store *store = reactor->store;
    uint64_t step = store->checkpoint_log_bytes / 16;
    if (step > COUNT_STEP_BYTES)
        step = COUNT_STEP_BYTES;
    struct gild_log_stats stats;
    gild_log_get_stats(reactor->log, &stats);
    uint64_t unsettled = stats.bytes - reactor->frozen_bytes;
    if (unsettled - reactor->unsettled_bytes > step) {
        atomic_fetch_add_explicit(&store->unsettled_bytes, unsettled - reactor->unsettled_bytes,
                                  memory_order_relaxed);
        reactor->unsettled_bytes = unsettled;
    }
    return atomic_load_explicit(&store->unsettled_bytes, memory_order_relaxed) >
           store->checkpoint_log_bytes;
}

/* What the map holds now goes into the counters of the disk's pool. */
static void count_for_pool(struct gild_disk *disk) {
    struct disk_quota *quota = &disk->quota;
    uint64_t more = disk->map.mapped_blocks - quota->counted; /* modulo 2^64: less is fine, too */
    if (!more)
        return;
    quota->counted = disk->map.mapped_blocks;
    if (quota->pool)
        atomic_fetch_add_explicit(&quota->pool->used_blocks, more, memory_order_relaxed);
    if (quota->other)
        atomic_fetch_add_explicit(&quota->other->used_blocks, more, memory_order_relaxed);
}

/* A checkpoint is asked for when the log since the last one, or the map pages in use, have grown.
 */
void write_appended(struct gild_disk *disk) {
    struct reactor *reactor = disk->reactor;
    disk_mark_dirty(disk);
    atomic_store_explicit(&disk->mapped_blocks, disk->map.mapped_blocks, memory_order_relaxed);
    if (disk->quota.pool || disk->quota.other)
        count_for_pool(disk);
    if (!reactor->asked &&
        (much_unsettled(reactor) || reactor->pool.used > reactor->pool.limit / 2)) {
        reactor->asked = true;
        keeper_ask(disk->store);
    }
}

/* ---- blocks under a read-modify-write ---------------------------------------------------------
 */

/* Is one of [block, block + count) being changed by another op? Then this op waits its turn. */
static bool wait_for_lock(struct gild_op *op, uint64_t block, uint64_t count) {
    for (struct rmw *rmw = op->disk->rmws; rmw; rmw = rmw->next) {
        if (rmw->block < block || rmw->block - block >= count || rmw->owner == op)
            continue;
        disk_op_pause(op, OP_WAIT_LOCK);
        op->next = rmw->waiters;
        rmw->waiters = op;
        return true;
    }
    return false;
}

static struct rmw *rmw_of(struct gild_op *op, uint64_t block) {
    for (struct rmw *rmw = op->disk->rmws; rmw; rmw = rmw->next)
        if (rmw->owner == op && rmw->block == block)
            return rmw;
    return NULL;
}

static void rmw_end(struct gild_disk *disk, struct rmw *rmw) {
    struct reactor *reactor = disk->reactor;
    gild_op_release(&rmw->read);
    struct rmw **at = &disk->rmws;
    while (*at != rmw)
        at = &(*at)->next;
    *at = rmw->next;
    wake_ops(reactor, rmw->waiters);
    rmw->next = reactor->free_rmws;
    reactor->free_rmws = rmw;
}

static void rmw_read_done(struct gild_op *read) {
    struct rmw *rmw = CONTAINER(read, struct rmw, read);
    rmw->ready = true;
    disk_op_resume(rmw->owner);
}

/* The old content of a block, whole: NULL while it is being read (or on error, said in op->error).
 */
static struct rmw *rmw_begin(struct gild_op *op, uint64_t block) {
    struct gild_disk *disk = op->disk;
    struct reactor *reactor = disk->reactor;
    struct rmw *rmw = rmw_of(op, block);
    if (!rmw) {
        rmw = reactor->free_rmws;
        if (rmw)
            reactor->free_rmws = rmw->next;
        else if (!(rmw = malloc(sizeof *rmw))) {
            disk_op_fail(op, -ENOMEM, "memory to change a part of a block");
            return NULL;
        }
        memset(rmw, 0, sizeof *rmw);
        rmw->owner = op;
        rmw->block = block;
        rmw->next = disk->rmws;
        disk->rmws = rmw;
        uint64_t offset = block * GILD_BLOCK_BYTES, left = disk->size_bytes - offset;
        rmw->read = (struct gild_op){
            .disk = disk,
            .kind = GILD_OP_READ,
            .offset_bytes = offset,
            .length_bytes = left < GILD_BLOCK_BYTES ? left : GILD_BLOCK_BYTES,
            .pieces = rmw->pieces,
            .piece_limit = 8,
            .done = rmw_read_done,
        };
        rmw->ready = gild_disk_submit(&rmw->read);
    }
    if (!rmw->ready) {
        op->state = OP_WAIT_READ;
        return NULL;
    }
    if (rmw->read.error) {
        op->error = rmw->read.error;
        rmw_end(disk, rmw);
        return NULL;
    }
    return rmw;
}

void rmws_free(struct reactor *reactor) {
    while (reactor->free_rmws) {
        struct rmw *rmw = reactor->free_rmws;
        reactor->free_rmws = rmw->next;
        free(rmw);
    }
}

/* ---- one block ------------------------------------------------------------------------------- */

/* Loads what the map said it needs, and installs it. True: ask the map again. */
bool write_satisfy(struct gild_op *op, enum gild_map_step step, const struct gild_map_need *need) {
    struct gild_cache_entry *entry;
    if (step == GILD_MAP_NEED_NODE) {
        if (load_delta_node(op, need, &entry) == LOAD_WAIT)
            return false;
        step = gild_delta_install(&op->disk->map, need, gild_cache_data(entry));
        gild_cache_unpin(op->disk->store->nodes, entry);
    }
    if (step == GILD_MAP_NEED_PAGE) {
        wait_for_page(op);
        return false;
    }
    if (step == GILD_MAP_BAD_NODE) {
        disk_op_fail(op, -EBADMSG, "a map node, which names a log segment that is not there,");
        return false;
    }
    return true;
}

/* What is dirty must fit, as map nodes, where a checkpoint may write: into all that is left, or
 * into the reserve. */
void write_limit_pages(struct reactor *reactor) {
    bool tight = gild_segments_tight(reactor->store->segments);
    reactor->pool.limit = tight ? reactor->tight_pages : reactor->pages;
}

bool write_have_leaf(struct gild_op *op, uint64_t block, struct gild_page **leaf) {
    struct gild_map_need need;
    write_limit_pages(op->disk->reactor);
    for (;;) {
        enum gild_map_step step =
            gild_delta_writable(&op->disk->map, block / GILD_LEAF_BLOCKS, leaf, &need);
        if (step == GILD_MAP_READY)
            return true;
        if (!write_satisfy(op, step, &need))
            return false;
    }
}

/* A full store may be about to be less full: what was trimmed, overwritten or deleted since the
 * last checkpoint becomes room with the next one, and so do closed segments of nothing but trims. A
 * write waits for that before it is refused: twice, for the first checkpoint that ends may have
 * begun before it asked. And as long as the cleaner gains room, a write waits for it: each of its
 * passes ends with a checkpoint. */
static bool wait_for_space(struct gild_op *op, bool data) {
    struct gild_store *store = op->disk->store;
    struct reactor *reactor = op->disk->reactor;
    bool hope = !data || atomic_load(&store->released);
    bool cleaned = data && atomic_load(&store->cleaner_gains);
    if (!cleaned && (!(op->ticket & OP_SPACE_ASKED) ? !hope : op->ticket & OP_SPACE_AGAIN))
        return false;
    if (!cleaned)
        op->ticket |= op->ticket & OP_SPACE_ASKED ? OP_SPACE_AGAIN : OP_SPACE_ASKED;
    disk_op_pause(op, OP_WAIT_PAGE);
    op->next = reactor->space_waiters;
    reactor->space_waiters = op;
    if (cleaned)
        cleaner_nudge(store);
    else
        keeper_ask(store);
    return true;
}

void write_space_ready(struct reactor *reactor) {
    struct gild_op *ops = reactor->space_waiters;
    reactor->space_waiters = NULL;
    wake_ops(reactor, ops);
}

bool write_have_room(struct gild_op *op, bool data) {
    int err = gild_log_room(op->disk->reactor->log, data, log_waiter(op));
    if (err == -EAGAIN)
        disk_op_pause(op, OP_WAIT_ROOM);
    else if (err && !(err == -ENOSPC && wait_for_space(op, data))) {
        op->error = err;
        if (err == -ENOSPC && data)
            watch_refused(op->disk, REFUSED_FULL);
    }
    return err == 0;
}

/* May the delta grow by this block? One that is in it already may always be written again. False:
 * the op has failed. */
static bool within_quota(struct gild_op *op, bool grows) {
    struct gild_disk *disk = op->disk;
    const struct disk_quota *quota = &disk->quota;
    if (!grows)
        return true;
    bool full = disk->map.mapped_blocks >= quota->limit_blocks;
    if (!full && (!quota->pool ||
                  atomic_load_explicit(&quota->pool->used_blocks, memory_order_relaxed) <
                      atomic_load_explicit(&quota->pool->limit_blocks, memory_order_relaxed)))
        return true;
    op->error = -ENOSPC;
    watch_refused(disk, full ? REFUSED_DISK : REFUSED_POOL);
    return false;
}

/* Copies payload bytes [skip, skip + bytes). */
static void copy_payload(const struct gild_op *op, uint64_t skip, uint8_t *to, size_t bytes) {
    const struct iovec *vector = op->payload;
    while (skip >= vector->iov_len)
        skip -= (vector++)->iov_len;
    while (bytes) {
        size_t n = vector->iov_len - skip < bytes ? vector->iov_len - skip : bytes;
        memcpy(to, (const uint8_t *)vector->iov_base + skip, n);
        to += n;
        bytes -= n;
        skip = 0;
        vector++;
    }
}

/* Nearly all content shows in its first bytes that it is none. */
static bool payload_is_zero(const struct gild_op *op, uint64_t skip, size_t bytes) {
    static const uint8_t zeroes[GILD_BLOCK_BYTES];
    const struct iovec *vector = op->payload;
    while (skip >= vector->iov_len)
        skip -= (vector++)->iov_len;
    while (bytes) {
        size_t n = vector->iov_len - skip < bytes ? vector->iov_len - skip : bytes;
        if (memcmp((const uint8_t *)vector->iov_base + skip, zeroes, n) != 0)
            return false;
        bytes -= n;
        skip = 0;
        vector++;
    }
    return true;
}

static void copy_pieces(const struct gild_op *read, uint8_t *to) {
    size_t at = 0;
    for (uint32_t i = 0; i < read->piece_count; i++) {
        memcpy(to + at, read->pieces[i].data, read->pieces[i].bytes);
        at += read->pieces[i].bytes;
    }
    memset(to + at, 0, GILD_BLOCK_BYTES - at);
}

/* Puts the block at the cursor: [skip, skip + bytes) of it from the payload (WRITE) or zero (else),
 * the rest from its old content. False: the op waits, or has failed. */
static bool put_block(struct gild_op *op, uint32_t skip, uint32_t bytes) {
    struct gild_disk *disk = op->disk;
    struct gild_log *log = disk->reactor->log;
    uint64_t block = op->cursor / GILD_BLOCK_BYTES, place;
    uint64_t valid = disk->size_bytes - block * GILD_BLOCK_BYTES;
    struct gild_page *leaf;
    struct rmw *rmw = NULL;
    bool grows = false;
    uint32_t check;
    if ((op->error = gild_log_failure(log)) != 0) /* before it waits for a checkpoint's pages */
        return false;
    if (disk->rmws && wait_for_lock(op, block, 1))
        return false;
    disk_mark_dirty(disk);
    bool whole = skip == 0 && (bytes == GILD_BLOCK_BYTES || bytes == valid);
    if (!whole && !(rmw = rmw_begin(op, block)))
        return false;
    bool zero = whole && (op->kind != GILD_OP_WRITE ||
                          payload_is_zero(op, op->cursor - op->offset_bytes, bytes));
    if (!write_have_leaf(op, block, &leaf) ||
        !within_quota(op, grows = !zero && !gild_delta_has(leaf, block)) ||
        !write_have_room(op, !zero)) {
        if (op->error && rmw)
            rmw_end(disk, rmw);
        return false;
    }
    if (zero) { /* an entry in the log, and no content */
        gild_log_mark(log, GILD_ENTRY_ZERO, disk->delta_id, block, 1);
        gild_delta_set(&disk->map, leaf, block, gild_place_of_type(GILD_PLACE_ZERO), 0);
        write_appended(disk);
        op->cursor += bytes;
        return true;
    }
    uint8_t *slot = gild_log_slot(log);
    if (rmw)
        copy_pieces(&rmw->read, slot);
    else if (bytes < GILD_BLOCK_BYTES)
        memset(slot + bytes, 0, GILD_BLOCK_BYTES - bytes);
    if (op->kind == GILD_OP_WRITE)
        copy_payload(op, op->cursor - op->offset_bytes, slot + skip, bytes);
    else
        memset(slot + skip, 0, bytes);
    gild_log_data(log, disk->delta_id, block, &place, &check);
    gild_delta_set(&disk->map, leaf, block, place, check);
    write_appended(disk);
    uint8_t refused = atomic_load_explicit(&disk->refused, memory_order_relaxed);
    if (refused != REFUSED_NOT && (grows || refused == REFUSED_FULL))
        watch_taken(disk);
    if (rmw)
        rmw_end(disk, rmw);
    op->cursor += bytes;
    return true;
}

/* ---- the steps ------------------------------------------------------------------------------- */

/* The end of every changing op. FUA and FLUSH: durable first. */
static bool sync_step(struct gild_op *op) {
    struct op_wait *wait = op_wait(op);
    if (!(op->ticket & OP_SYNC_ASKED)) {
        op->ticket |= OP_SYNC_ASKED;
        if (!op->disk->delta_id || gild_log_sync(op->disk->reactor->log, log_waiter(op)))
            return true;
        op->state = OP_WAIT_SYNC;
        return false;
    }
    if (wait->log.error)
        op->error = wait->log.error;
    return true;
}

/* An op that failed while it waited lets go of the block that it was changing: else the block stays
 * locked, and its old content is taken for another op's. */
static void rmws_abandon(struct gild_op *op) {
    struct rmw *rmw = op->disk->rmws, *next;
    for (; rmw; rmw = next) {
        next = rmw->next;
        if (rmw->owner == op)
            rmw_end(op->disk, rmw);
    }
}

static bool finish_step(struct gild_op *op) {
    if (op->error) {
        rmws_abandon(op);
        return true;
    }
    return op->kind == GILD_OP_FLUSH || op->flags & GILD_OP_FUA ? sync_step(op) : true;
}

bool write_step(struct gild_op *op) {
    if (op->kind == GILD_OP_FLUSH)
        return finish_step(op);
    uint64_t end = op->offset_bytes + op->length_bytes;
    while (op->cursor < end && !op->error) {
        uint32_t skip = op->cursor % GILD_BLOCK_BYTES;
        uint64_t bytes = GILD_BLOCK_BYTES - skip;
        if (bytes > end - op->cursor)
            bytes = end - op->cursor;
        if (!put_block(op, skip, (uint32_t)bytes) && !op->error)
            return false;
    }
    return finish_step(op);
}

/* Whole blocks become holes or zeroes: as many as the map can do at once, with their entry in the
 * log. */
static bool fill_blocks(struct gild_op *op, uint64_t end) {
    struct gild_disk *disk = op->disk;
    bool hole = op->kind == GILD_OP_TRIM || !(op->flags & GILD_OP_NO_HOLE);
    uint64_t block = op->cursor / GILD_BLOCK_BYTES, did;
    uint64_t count = (end + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES - block;
    uint64_t place = gild_place_of_type(hole ? GILD_PLACE_HOLE : GILD_PLACE_ZERO);
    struct gild_map_need need;
    if (disk->rmws && wait_for_lock(op, block, count))
        return false;
    if (!write_have_room(op, false))
        return false;
    disk_mark_dirty(disk);
    write_limit_pages(disk->reactor);
    enum gild_map_step step = gild_delta_fill(&disk->map, block, count, place, &did, &need);
    if (step != GILD_MAP_READY)
        return write_satisfy(op, step, &need);
    gild_log_mark(disk->reactor->log, hole ? GILD_ENTRY_HOLE : GILD_ENTRY_ZERO, disk->delta_id,
                  block, (uint32_t)did);
    write_appended(disk);
    op->cursor = (block + did) * GILD_BLOCK_BYTES;
    if (op->cursor > end)
        op->cursor = end;
    return true;
}

bool write_fill_step(struct gild_op *op) {
    uint64_t end = op->offset_bytes + op->length_bytes;
    bool to_end = end == op->disk->size_bytes;
    while (op->cursor < end && !op->error) {
        uint32_t skip = op->cursor % GILD_BLOCK_BYTES;
        uint64_t whole_end = to_end ? end : end / GILD_BLOCK_BYTES * GILD_BLOCK_BYTES;
        bool went;
        if (skip == 0 && op->cursor < whole_end) {
            went = fill_blocks(op, whole_end);
        } else {
            uint64_t bytes = GILD_BLOCK_BYTES - skip;
            if (bytes > end - op->cursor)
                bytes = end - op->cursor;
            went = put_block(op, skip, (uint32_t)bytes);
        }
        if (!went && !op->error)
            return false;
    }
    return finish_step(op);
}
