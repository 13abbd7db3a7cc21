/* Requests longer than one op may be: done in parts of GILD_OP_MAX_BYTES.
 *
 *   READ, structured    each part is a chunk, sent as it comes; the last one to come says DONE
 *   READ, simple or DF  the reply must be one whole: sent when all parts are read, so an error
 *                       never shows up behind a header that promised data
 *   WRITE               a part is submitted when its payload is complete; memory for the payload is
 * asked for part by part, so a long write never needs more than a few; a part may be smaller when
 * the server is at its limit CACHE               a few parts at a time
 *
 * The first error stops the issuing of parts; the reply, in any case one, is made of the last
 * part's request when no part is in flight any more. FUA on a long write is one flush after all
 * parts instead of one per part.
 *
 * A connection issues parts of one bulk at a time (connection->bulk); the parser waits meanwhile.
 * Thread: the connection's hub. */
#include <errno.h>

#include "base/bytes.h"
#include "nbd/server.h"

#define CACHE_PARTS_MAX 4u

bool nbd_bulk_begin(struct nbd_connection *connection, const struct nbd_bulk *what) {
    struct nbd_bulk *bulk = nbd_bulk_take(connection->hub);
    if (!bulk) {
        nbd_connection_break(connection, ENOMEM);
        return true;
    }
    *bulk = *what;
    bulk->assembled =
        bulk->type == NBD_CMD_READ && (!connection->structured || bulk->flags & NBD_CMD_FLAG_DF);
    connection->bulk = bulk;
    return true;
}

/* ---- issuing --------------------------------------------------------------------------------- */

static struct nbd_request *make_part(struct nbd_connection *connection, struct nbd_bulk *bulk,
                                     enum gild_op_kind kind, uint32_t bytes) {
    struct nbd_request *request = nbd_request_take(connection);
    if (!request) {
        nbd_connection_break(connection, ENOMEM);
        return NULL;
    }
    request->bulk = bulk;
    request->cookie = bulk->cookie;
    request->type = bulk->type;
    request->flags = bulk->flags;
    request->op.kind = kind;
    request->op.flags = 0;
    request->op.offset_bytes = bulk->offset + bulk->issued;
    request->op.length_bytes = bytes;
    return request;
}

static bool may_issue(const struct nbd_connection *connection, uint32_t bytes) {
    const struct nbd_bulk *bulk = connection->bulk;
    if (connection->requests >= NBD_REQUESTS_MAX)
        return false;
    if (bulk->type == NBD_CMD_CACHE)
        return bulk->parts < CACHE_PARTS_MAX;
    return bulk->assembled || !connection->answer_bytes ||
           connection->answer_bytes + bytes <= NBD_ANSWER_BYTES_MAX;
}

static void issue_read(struct nbd_connection *connection, struct nbd_request *request,
                       uint32_t bytes) {
    struct nbd_bulk *bulk = request->bulk;
    request->answer_bytes = bytes;
    connection->answer_bytes += bytes;
    if (!bulk->assembled)
        return;
    if (bulk->first)
        bulk->last->next = request;
    else
        bulk->first = request;
    bulk->last = request;
}

bool nbd_bulk_pump(struct nbd_connection *connection) {
    struct nbd_bulk *bulk = connection->bulk;
    /* A part that fails at once takes the bulk off the connection. */
    while (connection->bulk == bulk) {
        bool reads = bulk->type == NBD_CMD_READ;
        uint32_t bytes = (uint32_t)gild_min_u64(bulk->length - bulk->issued, GILD_OP_MAX_BYTES);
        if (!may_issue(connection, bytes))
            return false;
        struct nbd_request *request =
            make_part(connection, bulk, reads ? GILD_OP_READ : GILD_OP_PREFETCH, bytes);
        if (!request)
            return true;
        if (reads && bytes > NBD_SMALL_READ_BYTES && !nbd_request_need_big(request)) {
            nbd_request_give(request);
            nbd_connection_break(connection, ENOMEM);
            return true;
        }
        if (reads)
            issue_read(connection, request, bytes);
        bulk->parts++;
        bulk->issued += bytes;
        if (bulk->issued == bulk->length)
            connection->bulk = NULL;
        nbd_submit(request);
    }
    return true;
}

struct nbd_request *nbd_bulk_next_write(struct nbd_connection *connection) {
    struct nbd_bulk *bulk = connection->bulk;
    uint32_t bytes = (uint32_t)gild_min_u64(bulk->length - bulk->issued, GILD_OP_MAX_BYTES);
    if (connection->requests >= NBD_REQUESTS_MAX)
        return NULL;
    struct nbd_buffer *buffer = nbd_buffer_take(connection, bytes);
    if (!buffer) {
        if (!connection->buffers)
            nbd_connection_break(connection, ENOMEM);
        return NULL;
    }
    if (bytes > buffer->room_bytes)
        bytes = buffer->room_bytes;
    struct nbd_request *request = make_part(connection, bulk, GILD_OP_WRITE, bytes);
    if (!request) {
        nbd_buffer_give(connection, buffer);
        return NULL;
    }
    request->buffer = buffer;
    bulk->parts++;
    bulk->issued += bytes;
    return request;
}

/* ---- ending ---------------------------------------------------------------------------------- */

/* No more parts; what is still to come of a write's payload is skipped. */
static void stop_issuing(struct nbd_connection *connection, struct nbd_bulk *bulk) {
    if (bulk->type == NBD_CMD_WRITE)
        connection->skip_bytes += bulk->length - bulk->issued;
    bulk->issued = bulk->length;
    if (connection->bulk == bulk)
        connection->bulk = NULL;
}

/* An assembled read that failed: lets go of all parts but one, which is returned. */
static struct nbd_request *drop_assembled(struct nbd_bulk *bulk) {
    struct nbd_request *request = bulk->first, *next;
    for (; request != bulk->last; request = next) {
        next = request->next;
        nbd_request_give(request);
    }
    return request;
}

/* All parts are done; `request` is the last of them. */
static void finish(struct nbd_connection *connection, struct nbd_bulk *bulk,
                   struct nbd_request *request) {
    if (bulk->assembled && !bulk->error && !bulk->abandoned) {
        nbd_reply_assembled(bulk);
        nbd_bulk_give(connection->hub, bulk);
        return;
    }
    if (bulk->assembled)
        request = drop_assembled(bulk);
    request->bulk = NULL;
    if (bulk->abandoned) {
        nbd_request_give(request);
    } else if (bulk->error) {
        nbd_reply_op_error(request, -bulk->error);
    } else if (bulk->type == NBD_CMD_READ) {
        nbd_reply_data(request, true);
    } else if (bulk->type == NBD_CMD_WRITE && bulk->flags & NBD_CMD_FLAG_FUA) {
        request->op.kind = GILD_OP_FLUSH;
        request->op.offset_bytes = request->op.length_bytes = 0;
        nbd_submit(request);
    } else {
        nbd_reply_ok(request);
    }
    nbd_bulk_give(connection->hub, bulk);
}

void nbd_bulk_part_done(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    struct nbd_bulk *bulk = request->bulk;
    bulk->parts--;
    if (request->op.error && !bulk->error) {
        bulk->error = request->op.error;
        stop_issuing(connection, bulk);
    }
    nbd_connection_wake(connection);
    if (!bulk->parts && bulk->issued == bulk->length)
        finish(connection, bulk, request);
    else if (bulk->assembled)
        return; /* kept in its place */
    else if (bulk->type == NBD_CMD_READ && !bulk->error && !bulk->abandoned)
        nbd_reply_data(request, false);
    else
        nbd_request_give(request);
}

void nbd_discard_filling(struct nbd_connection *connection) {
    struct nbd_request *request = connection->filling;
    if (!request)
        return;
    struct nbd_bulk *bulk = request->bulk;
    connection->filling = NULL;
    nbd_request_give(request);
    if (!bulk)
        return;
    bulk->parts--;
    bulk->abandoned = true;
    bulk->issued = bulk->length;
    if (connection->bulk == bulk)
        connection->bulk = NULL;
    if (!bulk->parts)
        nbd_bulk_give(connection->hub, bulk);
}

void nbd_bulk_abandon(struct nbd_connection *connection) {
    struct nbd_bulk *bulk = connection->bulk;
    if (!bulk)
        return;
    connection->bulk = NULL;
    bulk->abandoned = true;
    bulk->issued = bulk->length;
    if (bulk->parts)
        return; /* the last of them ends it */
    struct nbd_request *request = bulk->first, *next;
    for (; request; request = next) {
        next = request->next;
        nbd_request_give(request);
    }
    nbd_bulk_give(connection->hub, bulk);
}
