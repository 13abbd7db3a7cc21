/* A reactor's life, and its part of a checkpoint.
 *
 * Freeze: what is dirty now becomes the checkpoint's; what changes from here on counts to the other
 * epoch. It is one synchronous step, so on each disk the checkpoint sees exactly the log up to
 * frozen_lsn.
 *
 * Passing of readers (grace): an op is counted under the parity of `grace` at its start. After the
 * parity is turned, the count of the old one only falls; at zero, nobody reads what was unreachable
 * before. */
#include "disk/reactor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/internal.h"

static void answer(struct keeper_call *call, int result) {
    pthread_mutex_lock(call->lock);
    call->result = result;
    if (--*call->outstanding == 0)
        pthread_cond_signal(call->answered);
    pthread_mutex_unlock(call->lock);
}

void reactor_op_begin(struct reactor *reactor, struct gild_op *op) {
    op->ticket = (op->ticket & ~(uint64_t)OP_GRACE) | reactor->grace;
    reactor->active[reactor->grace]++;
    uint64_t begun = atomic_load_explicit(&reactor->begun, memory_order_relaxed);
    atomic_store_explicit(&reactor->begun, begun + 1, memory_order_relaxed);
}

void reactor_op_end(struct reactor *reactor, struct gild_op *op) {
    unsigned parity = op->ticket & OP_GRACE;
    assert(reactor->active[parity] > 0);
    reactor->active[parity]--;
    if (reactor->passing && parity != reactor->grace && reactor->active[parity] == 0) {
        reactor->passing = false;
        answer(reactor->call, 0);
    }
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

static void freeze_disk(struct gild_disk *disk) {
    struct gild_delta_map *map = &disk->map;
    disk->frozen_any = gild_delta_freeze(map);
    disk->frozen_mapped = map->mapped_blocks;
    disk->frozen_packed = map->packed_blocks;
    atomic_store(&disk->mapped_blocks, map->mapped_blocks);
    for (uint32_t i = 0; i < map->dir_count; i++) {
        uint64_t ref = map->dirs[i];
        /* A clean directory may be changed while the checkpoint works: its place on disk is what
         * counts. */
        if (gild_ref_is_page(ref) && !gild_ref_page(ref)->frozen)
            ref = gild_ref_page(ref)->origin;
        disk->frozen_dirs[i] = ref;
    }
}

void reactor_freeze(struct reactor *reactor) {
    assert(!reactor->frozen);
    for (struct gild_disk *disk = reactor->dirty; disk; disk = disk->dirty_next) {
        disk->on_dirty = false;
        disk->frozen_next = disk->dirty_next;
        freeze_disk(disk);
    }
    reactor->frozen = reactor->dirty;
    reactor->dirty = NULL;
    reactor->epoch ^= 1;
    reactor->asked = false;
    if (reactor->log) {
        reactor->frozen_lsn = gild_log_lsn(reactor->log);
        if (atomic_load(&reactor->store->roll))
            gild_log_close(reactor->log);
        reactor->frozen_segment = gild_log_segment(reactor->log);
        struct gild_log_stats stats;
        gild_log_get_stats(reactor->log, &stats);
        reactor->frozen_bytes = stats.bytes;
        atomic_fetch_sub_explicit(&reactor->store->unsettled_bytes, reactor->unsettled_bytes,
                                  memory_order_relaxed);
        reactor->unsettled_bytes = 0;
    }
}

/* Directories are kept for the writes to come, as long as there is room: many idle disks must not
 * use up the pages that the busy ones wait for. */
static void trim_maps(struct reactor *reactor) {
    struct gild_store *store = reactor->store;
    pthread_mutex_lock(&store->disks_lock);
    for (struct gild_disk *disk = store->disks; disk; disk = disk->all_next)
        if (disk->reactor == reactor && disk->delta_id)
            gild_delta_trim(&disk->map);
    pthread_mutex_unlock(&store->disks_lock);
}

void reactor_settle(struct reactor *reactor, bool committed) {
    struct gild_disk *disk = reactor->frozen, *next;
    reactor->frozen = NULL;
    for (; disk; disk = next) {
        next = disk->frozen_next;
        if (!committed) {
            if (disk->frozen_any)
                gild_delta_thaw(&disk->map);
            disk_mark_dirty(disk);
            continue;
        }
        if (disk->frozen_any)
            gild_delta_settle(&disk->map);
        if (!disk->on_dirty)
            atomic_store(&disk->unsettled, false);
    }
    if (reactor->pool.used > reactor->pool.limit / 2)
        trim_maps(reactor);
    write_page_ready(reactor);
}

static void frozen_durable(struct gild_task *task) {
    struct keeper_call *call = CONTAINER(task, struct keeper_call, waiter.task);
    answer(call, call->waiter.error);
}

void reactor_call(struct gild_task *task) {
    struct keeper_call *call = CONTAINER(task, struct keeper_call, task);
    struct reactor *reactor = call->reactor;
    switch (call->kind) {
    case CALL_FREEZE:
        reactor_freeze(reactor);
        memset(&call->waiter, 0, sizeof call->waiter);
        call->waiter.task.run = frozen_durable;
        if (gild_log_sync(reactor->log, &call->waiter))
            answer(call, gild_log_failure(reactor->log));
        break;
    case CALL_SETTLE:
    case CALL_ABANDON:
        reactor_settle(reactor, call->kind == CALL_SETTLE);
        answer(call, 0);
        break;
    case CALL_SPACE:
        write_space_ready(reactor);
        answer(call, 0);
        break;
    case CALL_PASS:
        reactor->grace ^= 1;
        if (reactor->active[reactor->grace ^ 1] == 0) {
            answer(call, 0);
            break;
        }
        reactor->call = call;
        reactor->passing = true;
        break;
    case CALL_DROP:
        disk_free(call->disk);
        answer(call, 0);
        break;
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

/* The flush itself is one op in flight. */
static bool quiet(void *context) {
    const struct reactor *reactor = context;
    return reactor->active[0] + reactor->active[1] <= 1;
}

int reactor_create(struct reactor *reactor, struct gild_store *store, unsigned index,
                   uint64_t stream, struct gild_error *error) {
    reactor->store = store;
    reactor->index = index;
    int err = gild_page_pool_init(&reactor->pool, POOL_RESERVED_BYTES);
    if (err)
        return gild_fail(error, GILD_FAILED, -err, "no memory for the map pages of a reactor");
    struct gild_loop_options options = {.backend = store->backend};
    err = gild_loop_create(&reactor->loop, &options, error);
    if (err)
        return err;
    struct gild_log_options log = {
        .loop = reactor->loop,
        .segments = store->segments,
        .stream = stream,
        .quiet = quiet,
        .context = reactor,
        .buffers = store->offline ? 4 : 0,
    };
    memcpy(log.store_id, store->id, 16);
    err = gild_log_create(&reactor->log, &log);
    return err ? gild_fail(error, GILD_FAILED, -err, "no memory for the write log") : 0;
}

static void *reactor_main(void *context) {
    struct reactor *reactor = context;
    gild_loop_run(reactor->loop);
    return NULL;
}

int reactor_start(struct reactor *reactor) {
    reactor->pool.limit = reactor->pages;
    int err = pthread_create(&reactor->thread, NULL, reactor_main, reactor);
    reactor->running = err == 0;
    if (!err) {
        char name[16] = "gild-reactor-0";
        name[13] = (char)('0' + reactor->index);
        pthread_setname_np(reactor->thread, name);
    }
    return -err;
}

void reactor_stop(struct reactor *reactor) {
    if (!reactor->running)
        return;
    gild_loop_stop(reactor->loop);
    pthread_join(reactor->thread, NULL);
    reactor->running = false;
}

void reactor_destroy(struct reactor *reactor) {
    fetches_free(reactor);
    rmws_free(reactor);
    if (reactor->loop)
        gild_loop_destroy(reactor->loop);
    gild_log_destroy(reactor->log);
    gild_page_pool_fini(&reactor->pool);
}
