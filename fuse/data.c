/* Data requests: read, write, fsync, flush, fallocate, lseek on an open file.
 *
 * Each runs on the loop of its disk as a small state machine; STEP_BODY is all that a request of
 * whole sectors ever sees. The kernel may ask for any bytes (a buffered write goes through as it
 * was made), the engine takes whole sectors:
 *
 *   read    [TAIL: the last sector, if the widened range is longer than one op] -> BODY -> REPLY
 *   write   [HEAD: read the first sector] [TAIL: read the last] -> BODY... -> REPLY
 *   zero    [HEAD] [TAIL] [HEAD_ZERO, TAIL_ZERO: write them back, partly zeroed] -> [BODY] -> REPLY
 *   lseek   BODY... -> REPLY
 *
 * Invariants: one op in flight per request; its payload, pieces and edges are the request's own. A
 * handle lives as long as a request on it. A change is entered in the node's overlaps before its
 * first op and left before its reply, so that a writer who saw the answer never waits for itself.
 * Failure: the first error ends the request and is the answer; an unaligned write that fails half
 * way may have been done in part, as on any block device. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#include "mount.h"

#define SECTOR_MASK ((uint64_t)GILD_SECTOR_BYTES - 1)

static uint64_t sector_down(uint64_t offset) {
    return offset & ~SECTOR_MASK;
}

static uint64_t sector_up(uint64_t offset) {
    return (offset + SECTOR_MASK) & ~SECTOR_MASK;
}

static bool head_is_partial(const struct request *request) {
    return request->offset != request->first;
}

/* True if the last sector is partial and is not the head's sector too. */
static bool tail_is_partial(const struct request *request) {
    uint64_t last = request->end - GILD_SECTOR_BYTES;
    return request->offset + request->bytes != request->end &&
           (last != request->first || !head_is_partial(request));
}

/* ---- answers ----------------------------------------------------------------------------------
 */

/* A failed reply needs no care: the kernel has given the request up (ENOENT) or is gone (ENODEV).
 */
static void send_reply(struct request *request, struct iovec *vectors, int count) {
    size_t bytes = sizeof(struct fuse_out_header);
    for (int i = 1; i < count; i++)
        bytes += vectors[i].iov_len;
    struct fuse_out_header out = {
        .len = (uint32_t)bytes, .error = request->error, .unique = request->unique};
    vectors[0] = (struct iovec){&out, sizeof(out)};
    ssize_t sent = writev(request->mount->fd, vectors, count);
    (void)sent;
}

/* The pieces in order, without the bytes that were only read to fill up sectors. */
static void reply_read(struct request *request) {
    struct iovec vectors[GILD_OP_MAX_PIECES + 2];
    int count = 1;
    uint64_t skip = request->offset - request->first, left = request->bytes;
    for (uint32_t i = 0; i < request->op.piece_count && left; i++) {
        const struct gild_piece *piece = &request->pieces[i];
        if (skip >= piece->bytes) {
            skip -= piece->bytes;
            continue;
        }
        uint64_t take = piece->bytes - skip < left ? piece->bytes - skip : left;
        union {
            const void *borrowed;
            char *base;
        } data = {.borrowed = piece->data};
        vectors[count++] = (struct iovec){data.base + skip, take};
        skip = 0;
        left -= take;
    }
    if (left && request->mixed_tail)
        vectors[count++] = (struct iovec){request->edge[1], left};
    send_reply(request, vectors, count);
}

static void reply(struct request *request) {
    struct iovec vectors[2];
    uint32_t opcode = request->head.in.opcode;
    if (request->error) {
        send_reply(request, vectors, 1);
    } else if (opcode == FUSE_READ) {
        reply_read(request);
    } else if (opcode == FUSE_WRITE) {
        struct fuse_write_out out = {.size = (uint32_t)request->bytes};
        vectors[1] = (struct iovec){&out, sizeof(out)};
        send_reply(request, vectors, 2);
    } else if (opcode == FUSE_LSEEK) {
        struct fuse_lseek_out out = {.offset = request->answer};
        vectors[1] = (struct iovec){&out, sizeof(out)};
        send_reply(request, vectors, 2);
    } else {
        send_reply(request, vectors, 1);
    }
}

/* ---- one op ------------------------------------------------------------------------------------
 */

static void op_done(struct gild_op *op);

static bool submit(struct request *request, enum gild_op_kind kind, uint64_t offset,
                   uint64_t bytes) {
    struct gild_op *op = &request->op;
    op->disk = request->handle->disk;
    op->kind = kind;
    op->flags = request->op_flags;
    op->offset_bytes = offset;
    op->length_bytes = bytes;
    op->done = op_done;
    op->piece_limit = GILD_OP_MAX_PIECES;
    op->pieces = request->pieces;
    op->extent_limit = REQUEST_EXTENTS;
    op->extents = request->extents;
    op->error = 0;
    op->piece_count = op->extent_count = 0;
    return gild_disk_submit(op);
}

static bool submit_edge_write(struct request *request, unsigned edge, uint64_t offset) {
    request->payload[0] = (struct iovec){request->edge[edge], GILD_SECTOR_BYTES};
    request->op.payload = request->payload;
    request->op.payload_count = 1;
    return submit(request, GILD_OP_WRITE, offset, GILD_SECTOR_BYTES);
}

/* Sets op.payload to `bytes` from `from` of the widened write: edge, payload, edge. */
static void slice_payload(struct request *request, uint64_t from, uint64_t bytes) {
    uint64_t head = request->offset - request->first;
    uint64_t in_data = request->bytes < REQUEST_DATA_BYTES ? request->bytes : REQUEST_DATA_BYTES;
    uint64_t padding = request->end - request->offset - request->bytes;
    bool one_sector = request->end - request->first == GILD_SECTOR_BYTES;
    uint8_t *last = request->edge[one_sector && head ? 0 : 1];
    struct iovec parts[] = {
        {request->edge[0], head},
        {request->data, in_data},
        {request->large, request->bytes - in_data},
        {last + GILD_SECTOR_BYTES - padding, padding},
    };
    unsigned count = 0;
    for (unsigned i = 0; i < 4 && bytes; i++) {
        if (from >= parts[i].iov_len) {
            from -= parts[i].iov_len;
            continue;
        }
        size_t take = parts[i].iov_len - from < bytes ? parts[i].iov_len - from : bytes;
        request->payload[count++] = (struct iovec){(uint8_t *)parts[i].iov_base + from, take};
        from = 0;
        bytes -= take;
    }
    request->op.payload = request->payload;
    request->op.payload_count = count;
}

/* The op of the body: the rest of the range, as much as one op may carry. */
static bool submit_body(struct request *request) {
    uint64_t from = request->first + request->cursor;
    uint64_t bytes = request->end - from;
    switch (request->head.in.opcode) {
    case FUSE_READ:
        if (request->mixed_tail)
            bytes -= GILD_SECTOR_BYTES;
        return submit(request, GILD_OP_READ, from, bytes);
    case FUSE_WRITE:
        if (bytes > GILD_OP_MAX_BYTES)
            bytes = GILD_OP_MAX_BYTES;
        request->step_bytes = bytes;
        slice_payload(request, request->cursor, bytes);
        return submit(request, GILD_OP_WRITE, from, bytes);
    case FUSE_FALLOCATE: {
        if (tail_is_partial(request))
            bytes -= GILD_SECTOR_BYTES;
        if (request->head.fallocate.mode & FALLOC_FL_PUNCH_HOLE)
            return submit(request, GILD_OP_TRIM, from, bytes);
        request->op_flags = GILD_OP_NO_HOLE;
        return submit(request, GILD_OP_ZERO, from, bytes);
    }
    case FUSE_LSEEK:
        return submit(request, GILD_OP_EXTENTS, from, bytes);
    default:
        return submit(request, GILD_OP_FLUSH, 0, 0);
    }
}

static bool submit_step(struct request *request) {
    uint64_t last = request->end - GILD_SECTOR_BYTES;
    switch (request->step) {
    case STEP_HEAD:
        return submit(request, GILD_OP_READ, request->first, GILD_SECTOR_BYTES);
    case STEP_TAIL:
        return submit(request, GILD_OP_READ, last, GILD_SECTOR_BYTES);
    case STEP_HEAD_ZERO:
        return submit_edge_write(request, 0, request->first);
    case STEP_TAIL_ZERO:
        return submit_edge_write(request, 1, last);
    default:
        return submit_body(request);
    }
}

/* ---- what follows an op ------------------------------------------------------------------------
 */

/* Copies the sector that was read to an edge and unpins it. */
static void keep_edge(struct request *request, unsigned edge) {
    size_t at = 0;
    for (uint32_t i = 0; i < request->op.piece_count && at < GILD_SECTOR_BYTES; i++) {
        size_t take = GILD_SECTOR_BYTES - at;
        if (take > request->pieces[i].bytes)
            take = request->pieces[i].bytes;
        memcpy(request->edge[edge] + at, request->pieces[i].data, take);
        at += take;
    }
    gild_op_release(&request->op);
}

/* The bytes of both edges that lie in the range become zero. */
static void zero_edges(struct request *request) {
    uint64_t end = request->offset + request->bytes;
    if (head_is_partial(request)) {
        uint64_t from = request->offset - request->first;
        uint64_t to =
            end - request->first < GILD_SECTOR_BYTES ? end - request->first : GILD_SECTOR_BYTES;
        memset(request->edge[0] + from, 0, to - from);
    }
    if (tail_is_partial(request))
        memset(request->edge[1], 0, end & SECTOR_MASK);
}

/* The step after the edges have been read. */
static enum request_step after_edges(struct request *request) {
    if (request->head.in.opcode != FUSE_FALLOCATE)
        return STEP_BODY;
    zero_edges(request);
    return head_is_partial(request) ? STEP_HEAD_ZERO : STEP_TAIL_ZERO;
}

/* The body of a zeroing between its edges may be empty. */
static enum request_step after_edge_zeroes(struct request *request) {
    request->cursor = head_is_partial(request) ? GILD_SECTOR_BYTES : 0;
    uint64_t tail = tail_is_partial(request) ? GILD_SECTOR_BYTES : 0;
    return request->first + request->cursor + tail < request->end ? STEP_BODY : STEP_REPLY;
}

/* Looks through the extents for the first one of the wanted kind. */
static enum request_step after_extents(struct request *request) {
    uint64_t at = request->first + request->cursor, before = at;
    for (uint32_t i = 0; i < request->op.extent_count; i++) {
        const struct gild_extent *extent = &request->extents[i];
        bool hole = extent->flags & (GILD_EXTENT_HOLE | GILD_EXTENT_ZERO);
        if (hole == request->want_hole && extent->bytes) {
            request->answer = at > request->offset ? at : request->offset;
            return STEP_REPLY;
        }
        at += extent->bytes;
    }
    request->cursor = at - request->first;
    if (at < request->end && at > before)
        return STEP_BODY;
    request->answer = request->end; /* every file ends in a hole */
    if (at <= before)
        request->error = -EIO;
    else if (!request->want_hole)
        request->error = -ENXIO;
    return STEP_REPLY;
}

static enum request_step after_body(struct request *request) {
    switch (request->head.in.opcode) {
    case FUSE_WRITE:
        request->cursor += request->step_bytes;
        return request->first + request->cursor < request->end ? STEP_BODY : STEP_REPLY;
    case FUSE_LSEEK:
        return after_extents(request);
    default:
        return STEP_REPLY;
    }
}

static enum request_step next_step(struct request *request) {
    if (request->op.error) {
        request->error = request->op.error;
        return STEP_REPLY;
    }
    switch (request->step) {
    case STEP_HEAD:
        keep_edge(request, 0);
        return tail_is_partial(request) ? STEP_TAIL : after_edges(request);
    case STEP_TAIL:
        keep_edge(request, 1);
        return after_edges(request);
    case STEP_HEAD_ZERO:
        return tail_is_partial(request) ? STEP_TAIL_ZERO : after_edge_zeroes(request);
    case STEP_TAIL_ZERO:
        return after_edge_zeroes(request);
    default:
        return after_body(request);
    }
}

/* ---- the run of a request -----------------------------------------------------------------------
 */

static bool is_change(const struct request *request) {
    return request->head.in.opcode == FUSE_WRITE || request->head.in.opcode == FUSE_FALLOCATE;
}

/* A change that waited goes on as a task, so that many of them do not nest. */
static void start_waiting(struct overlap *overlap) {
    struct request *request = gild_container_of(overlap, struct request, overlap);
    gild_loop_post(request->handle->loop, &request->task);
}

static void finish(struct request *request) {
    struct handle *handle = request->handle;
    struct request_pool *pool = &request->mount->pool;
    if (is_change(request))
        overlap_leave(&handle->node->overlaps, &request->overlap, start_waiting);
    reply(request);
    if (request->op.kind == GILD_OP_READ)
        gild_op_release(&request->op);
    handle_drop(handle);
    request_pool_give(pool, request);
}

static void advance(struct request *request) {
    while (request->step != STEP_REPLY) {
        if (!submit_step(request))
            return;
        request->step = next_step(request);
    }
    finish(request);
}

static void op_done(struct gild_op *op) {
    struct request *request = gild_container_of(op, struct request, op);
    request->step = next_step(request);
    advance(request);
}

static void advance_task(struct gild_task *task) {
    advance(gild_container_of(task, struct request, task));
}

static void enter(struct request *request) {
    request->task.run = advance_task;
    if (is_change(request) && !overlap_enter(&request->handle->node->overlaps, &request->overlap))
        return;
    advance(request);
}

static void enter_task(struct gild_task *task) {
    enter(gild_container_of(task, struct request, task));
}

/* ---- what is asked ------------------------------------------------------------------------------
 */

/* Cuts [offset, offset + bytes) at the end of the disk and widens it to sectors; false: nothing is
 * left. */
static bool set_range(struct request *request, uint64_t offset, uint64_t bytes) {
    uint64_t size = gild_disk_size_bytes(request->handle->disk);
    if (offset >= size || !bytes)
        return false;
    request->offset = offset;
    request->bytes = bytes < size - offset ? bytes : size - offset;
    request->first = sector_down(offset);
    request->end = sector_up(offset + request->bytes);
    return true;
}

static void set_change_steps(struct request *request) {
    request->overlap.first = request->first;
    request->overlap.end = request->end;
    request->overlap.exclusive = head_is_partial(request) || tail_is_partial(request);
    if (head_is_partial(request))
        request->step = STEP_HEAD;
    else if (tail_is_partial(request))
        request->step = STEP_TAIL;
}

/* Each parse_* returns true if there is something to run, else request->error is the answer. */
static bool parse_read(struct request *request) {
    request->bytes = 0;
    request->op.piece_count = 0;
    if (!set_range(request, request->head.read.offset, request->head.read.size))
        return false;
    if (request->end - request->first > GILD_OP_MAX_BYTES) {
        request->mixed_tail = true;
        request->step = STEP_TAIL;
    }
    return true;
}

static bool parse_write(struct request *request) {
    const struct fuse_write_in *in = &request->head.write;
    request->bytes = 0;
    request->error = request->handle->writable ? 0 : -EBADF;
    if (request->error || !in->size)
        return false;
    if (!set_range(request, in->offset, in->size) || request->bytes < in->size) {
        request->error = -EFBIG; /* as a whole: the kernel makes EIO of a write in part */
        return false;
    }
    /* The flags of an O_SYNC or O_DSYNC file come with each write. */
    if (in->flags & O_DSYNC)
        request->op_flags = GILD_OP_FUA;
    set_change_steps(request);
    return true;
}

static bool parse_fallocate(struct request *request) {
    const struct fuse_fallocate_in *in = &request->head.fallocate;
    uint64_t size = gild_disk_size_bytes(request->handle->disk);
    bool keeps_size = in->mode & (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE);
    bool zeroes = in->mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    if (!request->handle->writable)
        request->error = -EBADF;
    else if (in->mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        request->error = -EOPNOTSUPP;
    else if ((!keeps_size || !zeroes) && (in->offset > size || in->length > size - in->offset))
        request->error = -EFBIG; /* a disk does not grow, and nothing is reserved past its end */
    if (request->error || !zeroes || !set_range(request, in->offset, in->length))
        return false;
    set_change_steps(request);
    return true;
}

static bool parse_lseek(struct request *request) {
    const struct fuse_lseek_in *in = &request->head.lseek;
    request->want_hole = in->whence == SEEK_HOLE;
    request->error = -EINVAL;
    if (in->whence != SEEK_HOLE && in->whence != SEEK_DATA)
        return false;
    request->error = -ENXIO;
    if (!set_range(request, in->offset, UINT64_MAX))
        return false;
    request->error = 0;
    return true;
}

static bool parse(struct request *request) {
    switch (request->head.in.opcode) {
    case FUSE_READ:
        return parse_read(request);
    case FUSE_WRITE:
        return parse_write(request);
    case FUSE_FALLOCATE:
        return parse_fallocate(request);
    case FUSE_LSEEK:
        return parse_lseek(request);
    default: /* fsync, flush: a reader has nothing to make durable */
        return request->handle->writable;
    }
}

void request_start(struct request *request) {
    request->step = STEP_BODY;
    request->error = 0;
    request->cursor = 0;
    request->mixed_tail = false;
    request->op_flags = 0;
    if (!parse(request)) {
        reply(request);
        handle_drop(request->handle);
        request_pool_give(&request->mount->pool, request);
        return;
    }
    if (gild_loop_is_current(request->handle->loop)) {
        enter(request);
        return;
    }
    request->task.run = enter_task;
    gild_loop_post(request->handle->loop, &request->task);
}
