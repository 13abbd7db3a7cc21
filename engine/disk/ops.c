/* An op's life: validated, begun, stepped until done; each completion only makes it take another
 * step.
 *
 *   NEW --submit--> RUN --step--> DONE
 *                   ^ |
 *          resume --| `--> WAIT_NODE | WAIT_DATA | WAIT_ROOM | WAIT_PAGE | WAIT_LOCK | WAIT_READ |
 *                   |      WAIT_SYNC
 *                   `---------'
 *
 * Everything here runs on the disk's reactor. An op that fails goes on only as far as its loads in
 * flight (pending) force it to, then is done with its error and no pieces. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "disk/internal.h"

static void op_task(struct gild_task *task) {
    disk_op_resume(CONTAINER(task, struct gild_op, task));
}

static int op_validate(const struct gild_op *op) {
    const struct gild_disk *disk = op->disk;
    if (op->kind == GILD_OP_FLUSH)
        return 0;
    if ((op->offset_bytes | op->length_bytes) % GILD_SECTOR_BYTES ||
        op->offset_bytes > disk->size_bytes ||
        op->length_bytes > disk->size_bytes - op->offset_bytes)
        return -EINVAL;
    switch (op->kind) {
    case GILD_OP_WRITE:
        if (disk->read_only)
            return -EPERM;
        return op->length_bytes > GILD_OP_MAX_BYTES ? -EINVAL : 0;
    case GILD_OP_TRIM:
    case GILD_OP_ZERO:
        return disk->read_only ? -EPERM : 0;
    case GILD_OP_READ:
        return op->length_bytes > GILD_OP_MAX_BYTES ? -EINVAL : 0;
    case GILD_OP_EXTENTS:
        return op->extent_limit == 0 ? -EINVAL : 0;
    default:
        return 0;
    }
}

static bool op_step(struct gild_op *op) {
    op->state = OP_RUN;
    if (op->kind == OP_MOVE)
        return move_step(op);
    switch (op->kind) {
    case GILD_OP_READ:
    case GILD_OP_PREFETCH:
        return read_step(op);
    case GILD_OP_WRITE:
    case GILD_OP_FLUSH:
        return write_step(op);
    case GILD_OP_TRIM:
    case GILD_OP_ZERO:
        return write_fill_step(op);
    case GILD_OP_EXTENTS:
        return extents_step(op);
    }
    return true;
}

static void op_close(struct gild_op *op) {
    assert(op->pending == 0);
    op->state = OP_DONE;
    if (op->error && op->kind == GILD_OP_READ)
        gild_op_release(op);
    reactor_op_end(op->disk->reactor, op);
}

bool gild_disk_submit(struct gild_op *op) {
    op->error = op_validate(op);
    op->piece_count = op->extent_count = 0;
    op->pending = 0;
    op->cursor = op->offset_bytes;
    if (op->error)
        return true;
    op->task.run = op_task;
    op->ticket = 0;
    reactor_op_begin(op->disk->reactor, op);
    if (!op_step(op))
        return false;
    op_close(op);
    return true;
}

void disk_op_finish(struct gild_op *op) {
    op_close(op);
    op->done(op);
}

void disk_op_pause(struct gild_op *op, enum op_state state) {
    op->state = state;
    reactor_op_end(op->disk->reactor, op);
}

void disk_op_resume(struct gild_op *op) {
    if (op->state == OP_WAIT_ROOM || op->state == OP_WAIT_PAGE || op->state == OP_WAIT_LOCK)
        reactor_op_begin(op->disk->reactor, op);
    if (op_step(op))
        disk_op_finish(op);
}

static void posted(struct gild_task *task) {
    struct gild_op *op = CONTAINER(task, struct gild_op, task);
    if (gild_disk_submit(op))
        op->done(op);
}

void gild_disk_post(struct gild_op *op) {
    op->task.run = posted;
    gild_loop_post(op->disk->reactor->loop, &op->task);
}

/* A guest may read what is damaged in a loop: a line for each disk and minute. */
#define FAULT_EACH_NS (60 * (uint64_t)1000000000)

void disk_op_fail(struct gild_op *op, int error, const char *what) {
    struct gild_disk *disk = op->disk;
    struct timespec now;
    char more[64] = "";
    if (op->error)
        return;
    op->error = error == -ENOMEM || error == -ENOSPC || error == -ENOBUFS ? error : -EIO;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (disk->fault_said_ns && now_ns - disk->fault_said_ns < FAULT_EACH_NS) {
        disk->faults_unsaid++;
        return;
    }
    if (disk->faults_unsaid)
        snprintf(more, sizeof more, "; %" PRIu64 " others failed since the last such line",
                 disk->faults_unsaid);
    disk->fault_said_ns = now_ns;
    disk->faults_unsaid = 0;
    gild_log(GILD_LOG_ERROR, "I/O on disk %s near byte %" PRIu64 " failed: %s: %s%s", disk->path,
             op->cursor, what, error == -EBADMSG ? "damaged" : strerror(-error), more);
}

void disk_fault_last_words(const struct gild_disk *disk) {
    if (disk->faults_unsaid)
        gild_log(GILD_LOG_ERROR,
                 "I/O on disk %s failed %" PRIu64 " times more since the last such line",
                 disk->path, disk->faults_unsaid);
}

void gild_op_release(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        struct gild_piece *piece = &op->pieces[i];
        switch (piece->pin_kind) {
        case PIN_GROUP:
            gild_cache_unpin(disk->store->content, piece->pin);
            break;
        case PIN_BLOCK:
            gild_cache_unpin(disk->store->nodes, piece->pin);
            break;
        case PIN_LOG:
            gild_log_unpin(disk->reactor->log, piece->pin);
            break;
        case PIN_HEAP:
            free(piece->pin);
            break;
        default:
            break;
        }
    }
    op->piece_count = 0;
}
