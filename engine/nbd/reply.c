/* Replies: from finished requests to one sendmsg per turn of the loop.
 *
 * A finished request becomes its own reply: a head in the request, the op's pieces, which are
 * memory of the engine's cache, and perhaps a tail. Nothing is copied on the way to the socket; the
 * pieces stay pinned until the send that carries them is complete. Replies queue up on the
 * connection, and at the end of the turn all of them go into one send, as many as IOV_MAX vectors
 * hold. One send per connection is under way at a time; a short one goes on where it stopped.
 *
 * With structured replies agreed, reads and errors use chunks (an error then carries a sentence),
 * and success without payload a simple reply, which is shorter (proto.md "Simple reply message"
 * allows both).
 *
 * Thread: the connection's hub. Failure: a send that fails breaks the connection; what was queued
 * is dropped. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "nbd/server.h"

uint32_t nbd_errno(int err) {
    switch (err) {
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static const char *sentence_of(uint32_t error) {
    switch (error) {
    case NBD_EPERM:
        return "The disk does not let this client write.";
    case NBD_ENOMEM:
        return "The server has no memory for this request; send it again.";
    case NBD_EINVAL:
        return "The disk refuses this request as invalid.";
    case NBD_ENOSPC:
        return "The store has no space left; free some, then send the request again.";
    case NBD_ESHUTDOWN:
        return "The server is being shut down.";
    default:
        return "The store could not read or write its own files; the daemon's log names the cause.";
    }
}

/* ---- what a reply looks like ----------------------------------------------------------------- */

static void put_simple(struct nbd_request *request, uint32_t error) {
    gild_put_be32(request->head, NBD_SIMPLE_REPLY_MAGIC);
    gild_put_be32(request->head + 4, error);
    gild_put_be64(request->head + 8, request->cookie);
    request->head_bytes = NBD_SIMPLE_REPLY_BYTES;
}

static void put_chunk(struct nbd_request *request, unsigned flags, unsigned type, uint32_t length) {
    gild_put_be32(request->head, NBD_STRUCTURED_REPLY_MAGIC);
    gild_put_be16(request->head + 4, (uint16_t)flags);
    gild_put_be16(request->head + 6, (uint16_t)type);
    gild_put_be64(request->head + 8, request->cookie);
    gild_put_be32(request->head + 16, length);
    request->head_bytes = NBD_CHUNK_HEADER_BYTES;
}

static void put_data_chunk(struct nbd_request *request, bool last, uint32_t length) {
    put_chunk(request, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_OFFSET_DATA, 8 + length);
    gild_put_be64(request->head + NBD_CHUNK_HEADER_BYTES, request->op.offset_bytes);
    request->head_bytes += 8;
}

static void queue(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    nbd_connection_wake(connection);
    if (connection->broken) {
        nbd_request_give(request);
        return;
    }
    request->next = NULL;
    if (connection->out_first)
        connection->out_last->next = request;
    else
        connection->out_first = request;
    connection->out_last = request;
}

static void let_go_of_pieces(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    if (request->has_pieces)
        gild_op_release(&request->op);
    request->has_pieces = false;
    connection->answer_bytes -= request->answer_bytes;
    request->answer_bytes = 0;
}

void nbd_reply_ok(struct nbd_request *request) {
    if (request->type == NBD_CMD_READ && request->connection->structured)
        put_chunk(request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0);
    else
        put_simple(request, 0);
    queue(request);
}

void nbd_reply_error(struct nbd_request *request, uint32_t error, const char *sentence) {
    let_go_of_pieces(request);
    if (request->connection->structured) {
        uint32_t length = (uint32_t)strlen(sentence);
        put_chunk(request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, 6 + length);
        gild_put_be32(request->head + NBD_CHUNK_HEADER_BYTES, error);
        gild_put_be16(request->head + NBD_CHUNK_HEADER_BYTES + 4, (uint16_t)length);
        request->head_bytes += 6;
        request->tail = sentence;
        request->tail_bytes = length;
    } else {
        put_simple(request, error);
    }
    queue(request);
}

void nbd_reply_op_error(struct nbd_request *request, int err) {
    uint32_t error = nbd_errno(err);
    nbd_reply_error(request, error, sentence_of(error));
}

void nbd_reply_data(struct nbd_request *request, bool last) {
    if (request->connection->structured)
        put_data_chunk(request, last, (uint32_t)request->op.length_bytes);
    else
        put_simple(request, 0);
    queue(request);
}

void nbd_reply_assembled(struct nbd_bulk *bulk) {
    struct nbd_request *request = bulk->first, *next;
    if (request->connection->structured)
        put_data_chunk(request, true, bulk->length);
    else
        put_simple(request, 0);
    for (; request; request = next) {
        next = request == bulk->last ? NULL : request->next;
        request->bulk = NULL;
        queue(request);
    }
}

/* At most what was asked for, in multiples of the minimum block (proto.md "BLOCK_STATUS"). */
static uint32_t put_extents(struct nbd_request *request) {
    const struct gild_op *op = &request->op;
    uint8_t *wire = request->big->status.wire;
    uint64_t left = op->length_bytes;
    uint32_t count = 0;
    for (uint32_t i = 0; i < op->extent_count && left; i++) {
        const struct gild_extent *extent = &op->extents[i];
        uint64_t bytes = gild_min_u64(extent->bytes, left);
        if (!bytes)
            continue;
        left -= bytes;
        uint32_t state = (extent->flags & GILD_EXTENT_HOLE ? NBD_STATE_HOLE : 0) |
                         (extent->flags & GILD_EXTENT_ZERO ? NBD_STATE_ZERO : 0);
        gild_put_be32(wire + 8 * count, (uint32_t)bytes);
        gild_put_be32(wire + 8 * count + 4, state);
        count++;
    }
    if (!count) { /* "MAY always safely report a status of 0 for any block" */
        gild_put_be32(wire, (uint32_t)op->length_bytes);
        gild_put_be32(wire + 4, 0);
        count = 1;
    }
    return count;
}

void nbd_reply_extents(struct nbd_request *request) {
    uint32_t count = put_extents(request);
    put_chunk(request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, 4 + 8 * count);
    gild_put_be32(request->head + NBD_CHUNK_HEADER_BYTES, NBD_CONTEXT_ID);
    request->head_bytes += 4;
    request->tail = request->big->status.wire;
    request->tail_bytes = 8 * count;
    queue(request);
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Neighbours in memory become one vector: the blocks of one cached group mostly are. */
static void add_vector(struct nbd_sender *sender, const void *data, size_t bytes) {
    struct iovec *last = sender->count ? &sender->vectors[sender->count - 1] : NULL;
    if (last && (const char *)last->iov_base + last->iov_len == (const char *)data) {
        last->iov_len += bytes;
        return;
    }
    /* sendmsg only reads what its vectors point to. */
    sender->vectors[sender->count++] = (struct iovec){(void *)(uintptr_t)data, bytes};
}

static unsigned vectors_of(const struct nbd_request *request) {
    return 2 + (request->has_pieces ? request->op.piece_count : 0);
}

/* Takes replies off the queue until the vectors or the bytes of one send are full. */
static void gather(struct nbd_sender *sender, struct nbd_connection *connection) {
    struct nbd_request *request, *last = NULL;
    sender->at = sender->count = 0;
    sender->first = connection->out_first;
    while ((request = connection->out_first) &&
           sender->count + vectors_of(request) <= NBD_VECTORS_MAX) {
        if (request->head_bytes)
            add_vector(sender, request->head, request->head_bytes);
        for (uint32_t i = 0; request->has_pieces && i < request->op.piece_count; i++)
            add_vector(sender, request->op.pieces[i].data, request->op.pieces[i].bytes);
        if (request->tail_bytes)
            add_vector(sender, request->tail, request->tail_bytes);
        connection->out_first = request->next;
        last = request;
    }
    last->next = NULL;
}

static void give_all(struct nbd_request *request) {
    struct nbd_request *next;
    for (; request; request = next) {
        next = request->next;
        nbd_request_give(request);
    }
}

static bool advance(struct nbd_sender *sender, size_t bytes) {
    while (sender->at < sender->count) {
        struct iovec *vector = &sender->vectors[sender->at];
        if (bytes < vector->iov_len) {
            vector->iov_base = (char *)vector->iov_base + bytes;
            vector->iov_len -= bytes;
            return true;
        }
        bytes -= vector->iov_len;
        sender->at++;
    }
    return false;
}

static void go_on(struct nbd_sender *sender) {
    struct nbd_connection *connection = sender->connection;
    gild_io_send(connection->hub->loop, &sender->io, connection->fd, sender->vectors + sender->at,
                 sender->count - sender->at, false);
}

static void sent(struct gild_io *io) {
    struct nbd_sender *sender = gild_container_of(io, struct nbd_sender, io);
    struct nbd_connection *connection = sender->connection;
    if (io->result > 0 && advance(sender, (size_t)io->result)) {
        go_on(sender);
        return;
    }
    if (io->result == -EINTR || io->result == -EAGAIN) {
        go_on(sender);
        return;
    }
    int err = io->result < 0 ? -io->result : io->result == 0 ? EPIPE : 0;
    connection->sender = NULL;
    give_all(sender->first);
    nbd_sender_give(sender);
    if (err)
        nbd_connection_break(connection, err);
    nbd_connection_wake(connection);
}

bool nbd_send(struct nbd_connection *connection) {
    if (connection->broken) {
        give_all(connection->out_first);
        connection->out_first = NULL;
        return false;
    }
    if (connection->sender || !connection->out_first)
        return false;
    struct nbd_sender *sender = nbd_sender_take(connection);
    if (!sender) {
        nbd_connection_break(connection, ENOMEM);
        return false;
    }
    sender->io.done = sent;
    connection->sender = sender;
    gather(sender, connection);
    go_on(sender);
    return true;
}
