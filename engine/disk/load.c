/* Loads: from the device into a cache, once however many ask (single flight is the cache's; here is
 * the I/O that its MINE answer obliges to).
 *
 *   node:  [read 4 KiB] -> verify -> fill
 *   group: table page (a node-cache entry: hit, wait or read) -> [read frame] -> verify, decode ->
 * fill log:   up to 32 blocks at consecutive places -> [one readv] -> verify each -> fill each
 *
 * Runs on the op's reactor. A load belongs to the op that began it: the op does not end before it,
 * so the segment or pack that it reads can not be freed under it (grace, reactor.h). Every failure
 * becomes the entry's error: all who wait for it get EIO, and the next to ask tries again. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "disk/damage.h"

struct piece_wait {
    struct gild_cache_waiter waiter;
    struct gild_op *op;
    struct gild_cache_entry *entry;
    struct gild_cache *cache;
    struct piece_wait *next;
};

enum fetch_kind { FETCH_NODE, FETCH_TABLE, FETCH_GROUP, FETCH_RUN };

struct fetch {
    struct gild_io io;
    struct gild_op *op;
    struct fetch *next;
    enum fetch_kind kind;
    struct gild_cache_entry *entry; /* node, or group */
    struct node_want want;
    /* group */
    uint32_t pack_id, group;
    struct gild_pack_page page;
    struct gild_pack_frame frame;
    struct gild_cache_entry *table;
    struct gild_cache_waiter table_waiter;
    void *bounce;
    /* run */
    uint64_t place, block;
    uint32_t count;
    struct gild_cache_entry *entries[RUN_BLOCKS];
    uint32_t checks[RUN_BLOCKS];
    struct iovec vectors[RUN_BLOCKS];
};

#define BOUNCE_BYTES (GILD_GROUP_BYTES + 2 * GILD_BLOCK_BYTES)

static struct reactor *reactor_of(struct gild_op *op) {
    return op->disk->reactor;
}

static struct fetch *fetch_take(struct gild_op *op, enum fetch_kind kind) {
    struct reactor *reactor = reactor_of(op);
    struct fetch *fetch = reactor->free_fetches;
    void *bounce = NULL;
    if (fetch) {
        reactor->free_fetches = fetch->next;
        bounce = fetch->bounce;
    } else {
        fetch = malloc(sizeof *fetch);
        if (!fetch)
            return NULL;
    }
    if (kind == FETCH_TABLE && !bounce &&
        posix_memalign(&bounce, GILD_BLOCK_BYTES, BOUNCE_BYTES) != 0) {
        free(fetch);
        return NULL;
    }
    memset(fetch, 0, offsetof(struct fetch, entries));
    fetch->bounce = bounce;
    fetch->op = op;
    fetch->kind = kind;
    return fetch;
}

static void fetch_give(struct fetch *fetch) {
    struct reactor *reactor = reactor_of(fetch->op);
    fetch->next = reactor->free_fetches;
    reactor->free_fetches = fetch;
}

void fetches_free(struct reactor *reactor) {
    while (reactor->free_fetches) {
        struct fetch *fetch = reactor->free_fetches;
        reactor->free_fetches = fetch->next;
        free(fetch->bounce);
        free(fetch);
    }
    while (reactor->free_waits) {
        struct piece_wait *wait = reactor->free_waits;
        reactor->free_waits = wait->next;
        free(wait);
    }
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static int verify_node(const struct node_want *want, const void *page) {
    return want->place
               ? gild_delta_node_verify(page, want->kind, want->owner, want->index, want->place)
               : gild_node_verify(page, want->kind, want->owner, want->index);
}

static void node_done(struct gild_io *io) {
    struct fetch *fetch = CONTAINER(io, struct fetch, io);
    struct gild_op *op = fetch->op;
    struct gild_cache *cache = op->disk->store->nodes;
    const struct node_want *want = &fetch->want;
    int error = io->result < 0 ? io->result : io->result != GILD_NODE_BYTES ? -EBADMSG : 0;
    if (!error)
        error = verify_node(want, gild_cache_data(fetch->entry));
    gild_cache_fill(cache, fetch->entry, error);
    gild_cache_unpin(cache, fetch->entry);
    if (error)
        disk_op_fail(op, error, "a map node");
    if (error && want->key.object >> 56 == GILD_CACHE_SEALED_MAP)
        damage_met_leaf(op->disk->store, want->owner, want->index);
    fetch_give(fetch);
    disk_op_resume(op);
}

static void node_waited(struct gild_task *task) {
    struct op_wait *wait = CONTAINER(task, struct op_wait, cache.task);
    struct gild_op *op = CONTAINER(wait, struct gild_op, wait);
    int error = gild_cache_error(wait->entry);
    gild_cache_unpin(op->disk->store->nodes, wait->entry);
    if (error)
        disk_op_fail(op, error, "a map node");
    disk_op_resume(op);
}

enum load load_node(struct gild_op *op, const struct node_want *want,
                    struct gild_cache_entry **entry) {
    struct gild_cache *cache = op->disk->store->nodes;
    struct op_wait *wait = op_wait(op);
    memset(wait, 0, sizeof *wait);
    wait->cache.task.run = node_waited;
    wait->cache.loop = reactor_of(op)->loop;
    enum gild_cache_outcome outcome = gild_cache_get(cache, want->key, &wait->cache, entry);
    if (outcome == GILD_CACHE_HIT)
        return LOAD_READY;
    op->state = OP_WAIT_NODE;
    if (outcome == GILD_CACHE_WAIT) {
        wait->entry = *entry;
        return LOAD_WAIT;
    }
    struct fetch *fetch = outcome == GILD_CACHE_MINE ? fetch_take(op, FETCH_NODE) : NULL;
    if (!fetch) {
        if (outcome == GILD_CACHE_MINE) {
            gild_cache_fill(cache, *entry, -ENOMEM);
            gild_cache_unpin(cache, *entry);
        }
        disk_op_fail(op, -ENOMEM, "memory for a map node");
        gild_loop_post(reactor_of(op)->loop, &op->task);
        return LOAD_WAIT;
    }
    fetch->entry = *entry;
    fetch->want = *want;
    fetch->io.done = node_done;
    gild_io_read(reactor_of(op)->loop, &fetch->io, want->fd, gild_cache_data(*entry),
                 GILD_NODE_BYTES, want->file_offset);
    return LOAD_WAIT;
}

enum load load_delta_node(struct gild_op *op, const struct gild_map_need *need,
                          struct gild_cache_entry **entry) {
    struct gild_disk *disk = op->disk;
    uint64_t serial = gild_place_serial(need->place), offset = gild_place_offset(need->place);
    struct gild_segment *segment = gild_segments_find(disk->store->segments, serial);
    if (!segment) {
        disk_op_fail(op, -EBADMSG, "a map node's segment");
        op->state = OP_WAIT_NODE;
        gild_loop_post(reactor_of(op)->loop, &op->task);
        return LOAD_WAIT;
    }
    struct node_want want = {
        .key = gild_cache_key(GILD_CACHE_SEGMENT, serial, offset),
        .fd = segment->fd,
        .file_offset = offset * GILD_LOG_BLOCK,
        .owner = disk->delta_id,
        .index = need->index,
        .place = need->place,
        .kind = need->kind,
    };
    return load_node(op, &want, entry);
}

enum load load_sealed_leaf(struct gild_op *op, uint64_t leaf_index,
                           struct gild_cache_entry **entry) {
    const struct gild_sealed_map *map = op->disk->parent;
    uint64_t page = map ? gild_sealed_leaf_page(map, leaf_index) : 0;
    *entry = NULL;
    if (!page)
        return LOAD_READY;
    if (page == GILD_SEALED_LOST) {
        disk_op_fail(op, -EIO, "a part of the image that is known to be lost");
        op->state = OP_WAIT_NODE;
        gild_loop_post(reactor_of(op)->loop, &op->task);
        return LOAD_WAIT;
    }
    struct node_want want = {
        .key = gild_cache_key(GILD_CACHE_SEALED_MAP, map->map_id, page),
        .fd = map->fd,
        .file_offset = page * GILD_NODE_BYTES,
        .owner = map->map_id,
        .index = leaf_index,
        .kind = GILD_NODE_LEAF,
    };
    return load_node(op, &want, entry);
}

/* ---- data: one more thing has come ------------------------------------------------------------
 */

static void data_came(struct gild_op *op) {
    assert(op->pending > 0);
    if (--op->pending == 0 && op->state == OP_WAIT_DATA)
        disk_op_resume(op);
}

static void piece_waited(struct gild_task *task) {
    struct piece_wait *wait = CONTAINER(task, struct piece_wait, waiter.task);
    struct gild_op *op = wait->op;
    struct reactor *reactor = reactor_of(op);
    int error = gild_cache_error(wait->entry);
    gild_cache_unpin(wait->cache, wait->entry);
    wait->next = reactor->free_waits;
    reactor->free_waits = wait;
    if (error)
        disk_op_fail(op, error, "data");
    data_came(op);
}

/* Asks the cache for data. MINE: the caller must load. For an entry that somebody else loads, the
 * op's pending count is raised. Two pins: one for the caller, one for the wait. */
static enum gild_cache_outcome data_get(struct gild_op *op, struct gild_cache *cache,
                                        struct gild_cache_key key,
                                        struct gild_cache_entry **entry) {
    struct reactor *reactor = reactor_of(op);
    struct gild_cache_entry *ready = gild_cache_peek(cache, key);
    if (ready) {
        *entry = ready;
        return GILD_CACHE_HIT;
    }
    struct piece_wait *wait = reactor->free_waits;
    if (wait)
        reactor->free_waits = wait->next;
    else
        wait = malloc(sizeof *wait);
    if (!wait) {
        *entry = NULL;
        return GILD_CACHE_FULL;
    }
    memset(wait, 0, sizeof *wait);
    wait->waiter.task.run = piece_waited;
    wait->waiter.loop = reactor->loop;
    wait->op = op;
    wait->cache = cache;
    /* The task runs on this thread, so it can not run before `entry` is set below. */
    enum gild_cache_outcome outcome = gild_cache_get(cache, key, &wait->waiter, entry);
    if (outcome == GILD_CACHE_WAIT) {
        wait->entry = *entry;
        gild_cache_pin(cache, *entry);
        op->pending++;
        return outcome;
    }
    wait->next = reactor->free_waits;
    reactor->free_waits = wait;
    return outcome;
}

/* ---- groups ---------------------------------------------------------------------------------- */

static void group_end(struct fetch *fetch, int error) {
    struct gild_op *op = fetch->op;
    struct gild_cache *cache = op->disk->store->content;
    gild_cache_fill(cache, fetch->entry, error);
    gild_cache_unpin(cache, fetch->entry);
    if (error) {
        if (damage_met_group(op->disk->store, fetch->pack_id, fetch->group))
            gild_log(GILD_LOG_ERROR,
                     "group %" PRIu32 " of pack %08" PRIx32
                     " is damaged (%s): met by disk %s at blocks %" PRIu64 "-%" PRIu64,
                     fetch->group, fetch->pack_id,
                     error == -EBADMSG ? "its checksum is wrong" : strerror(-error), op->disk->path,
                     op->offset_bytes / GILD_BLOCK_BYTES,
                     (op->offset_bytes + op->length_bytes - 1) / GILD_BLOCK_BYTES);
        disk_op_fail(op, error, "packed data");
    }
    fetch_give(fetch);
    data_came(op);
}

static void frame_done(struct gild_io *io) {
    struct fetch *fetch = CONTAINER(io, struct fetch, io);
    const struct gild_pack_frame *frame = &fetch->frame;
    uint32_t skip = (uint32_t)(frame->file_offset - frame->read_offset);
    int error = io->result < 0                               ? io->result
                : (uint32_t)io->result < skip + frame->bytes ? -EBADMSG
                                                             : 0;
    if (!error)
        error = gild_pack_decode((const char *)fetch->bounce + skip, frame, fetch->pack_id,
                                 fetch->group, gild_cache_data(fetch->entry));
    if (!error)
        gild_cache_set_content(fetch->entry, frame->slots);
    group_end(fetch, error);
}

/* The table page is pinned and good: on to the frame. */
static void read_frame(struct fetch *fetch) {
    struct gild_cache *nodes = fetch->op->disk->store->nodes;
    int error = gild_pack_table_entry(gild_cache_data(fetch->table), fetch->pack_id, fetch->group,
                                      fetch->page.index, &fetch->frame);
    gild_cache_unpin(nodes, fetch->table);
    if (error) {
        group_end(fetch, error);
        return;
    }
    if (!fetch->frame.bytes) { /* none of its slots is there: nothing is read, and all is refused */
        gild_cache_set_content(fetch->entry, 0);
        group_end(fetch, 0);
        return;
    }
    fetch->kind = FETCH_GROUP;
    memset(&fetch->io, 0, sizeof fetch->io);
    fetch->io.done = frame_done;
    gild_io_read(reactor_of(fetch->op)->loop, &fetch->io, fetch->page.fd, fetch->bounce,
                 fetch->frame.read_bytes, fetch->frame.read_offset);
}

static void table_done(struct gild_io *io) {
    struct fetch *fetch = CONTAINER(io, struct fetch, io);
    struct gild_cache *nodes = fetch->op->disk->store->nodes;
    int error = io->result < 0 ? io->result : io->result != GILD_PACK_PAGE_BYTES ? -EBADMSG : 0;
    if (!error)
        error =
            gild_pack_table_verify(gild_cache_data(fetch->table), fetch->pack_id, fetch->page.page);
    gild_cache_fill(nodes, fetch->table, error);
    if (!error) {
        read_frame(fetch);
        return;
    }
    gild_cache_unpin(nodes, fetch->table);
    group_end(fetch, error);
}

static void table_waited(struct gild_task *task) {
    struct fetch *fetch = CONTAINER(task, struct fetch, table_waiter.task);
    int error = gild_cache_error(fetch->table);
    if (!error) {
        read_frame(fetch);
        return;
    }
    gild_cache_unpin(fetch->op->disk->store->nodes, fetch->table);
    group_end(fetch, error);
}

static void fetch_group(struct fetch *fetch) {
    struct gild_store *store = fetch->op->disk->store;
    struct gild_loop *loop = reactor_of(fetch->op)->loop;
    int error = gild_pack_table_page(store->packs, fetch->pack_id, fetch->group, &fetch->page);
    if (error) {
        group_end(fetch, error);
        return;
    }
    fetch->table_waiter.task.run = table_waited;
    fetch->table_waiter.loop = loop;
    switch (
        gild_cache_get(store->nodes,
                       gild_cache_key(GILD_CACHE_PACK_TABLE, fetch->pack_id,
                                      (uint64_t)fetch->page.generation << 32 | fetch->page.page),
                       &fetch->table_waiter, &fetch->table)) {
    case GILD_CACHE_HIT:
        read_frame(fetch);
        break;
    case GILD_CACHE_WAIT:
        break;
    case GILD_CACHE_MINE:
        fetch->io.done = table_done;
        gild_io_read(loop, &fetch->io, fetch->page.fd, gild_cache_data(fetch->table),
                     GILD_PACK_PAGE_BYTES, fetch->page.file_offset);
        break;
    case GILD_CACHE_FULL:
        group_end(fetch, -ENOMEM);
        break;
    }
}

void load_group(struct gild_op *op, uint64_t place, struct gild_cache_entry **entry) {
    struct gild_cache *cache = op->disk->store->content;
    uint32_t pack_id = gild_place_pack_id(place), group = gild_place_group(place);
    enum gild_cache_outcome outcome =
        data_get(op, cache, gild_cache_key(GILD_CACHE_GROUP, pack_id, group), entry);
    if (outcome == GILD_CACHE_HIT || outcome == GILD_CACHE_WAIT)
        return;
    struct fetch *fetch = outcome == GILD_CACHE_MINE ? fetch_take(op, FETCH_TABLE) : NULL;
    if (!fetch) {
        if (outcome == GILD_CACHE_MINE) {
            gild_cache_fill(cache, *entry, -ENOMEM);
            gild_cache_unpin(cache, *entry);
        }
        *entry = NULL;
        disk_op_fail(op, -ENOMEM, "memory for a group");
        return;
    }
    gild_cache_pin(cache, *entry);
    fetch->entry = *entry;
    fetch->pack_id = pack_id;
    fetch->group = group;
    op->pending++;
    fetch_group(fetch);
}

/* ---- blocks of the log ------------------------------------------------------------------------
 */

static void run_done(struct gild_io *io) {
    struct fetch *fetch = CONTAINER(io, struct fetch, io);
    struct gild_op *op = fetch->op;
    struct gild_cache *cache = op->disk->store->nodes;
    uint64_t serial = gild_place_serial(fetch->place);
    for (uint32_t i = 0; i < fetch->count; i++) {
        int error = io->result < 0                                 ? io->result
                    : io->result < (int)((i + 1) * GILD_LOG_BLOCK) ? -EBADMSG
                                                                   : 0;
        const void *bytes = gild_cache_data(fetch->entries[i]);
        uint64_t block = fetch->block + i;
        if (!error && gild_log_check(bytes, serial, op->disk->delta_id, block) != fetch->checks[i])
            error = -EBADMSG;
        gild_cache_fill(cache, fetch->entries[i], error);
        gild_cache_unpin(cache, fetch->entries[i]);
        if (error) {
            char what[64];
            snprintf(what, sizeof what, "block %" PRIu64 " in log segment %016" PRIx64, block,
                     serial);
            disk_op_fail(op, error, what);
        }
    }
    fetch_give(fetch);
    data_came(op);
}

void load_log_end(struct log_run *run) {
    struct fetch *fetch = run->fetch;
    if (!fetch)
        return;
    run->fetch = NULL;
    struct gild_op *op = fetch->op;
    uint64_t serial = gild_place_serial(fetch->place);
    struct gild_segment *segment = gild_segments_find(op->disk->store->segments, serial);
    for (uint32_t i = 0; i < fetch->count; i++)
        fetch->vectors[i] = (struct iovec){gild_cache_data(fetch->entries[i]), GILD_LOG_BLOCK};
    fetch->io.done = run_done;
    op->pending++;
    gild_io_readv(reactor_of(op)->loop, &fetch->io, segment->fd, fetch->vectors, fetch->count,
                  (uint64_t)gild_place_offset(fetch->place) * GILD_LOG_BLOCK);
}

void load_log_block(struct gild_op *op, struct log_run *run, uint64_t block, uint64_t place,
                    uint32_t check, struct gild_cache_entry **entry) {
    struct gild_cache *cache = op->disk->store->nodes;
    uint64_t serial = gild_place_serial(place);
    enum gild_cache_outcome outcome = data_get(
        op, cache, gild_cache_key(GILD_CACHE_SEGMENT, serial, gild_place_offset(place)), entry);
    if (outcome == GILD_CACHE_HIT || outcome == GILD_CACHE_WAIT)
        return;
    struct fetch *fetch = run->fetch;
    if (fetch && (fetch->count == RUN_BLOCKS || fetch->place + fetch->count != place ||
                  fetch->block + fetch->count != block)) {
        load_log_end(run);
        fetch = NULL;
    }
    bool known = gild_segments_find(op->disk->store->segments, serial) != NULL;
    if (!fetch && outcome == GILD_CACHE_MINE && known)
        fetch = fetch_take(op, FETCH_RUN);
    if (outcome != GILD_CACHE_MINE || !fetch || !known) {
        int error = known ? -ENOMEM : -EBADMSG;
        if (outcome == GILD_CACHE_MINE) {
            gild_cache_fill(cache, *entry, error);
            gild_cache_unpin(cache, *entry);
        }
        *entry = NULL;
        disk_op_fail(op, error, "logged data");
        return;
    }
    if (fetch->count == 0) {
        fetch->place = place;
        fetch->block = block;
    }
    gild_cache_pin(cache, *entry);
    fetch->entries[fetch->count] = *entry;
    fetch->checks[fetch->count++] = check;
    run->fetch = fetch;
}
