/* The transmission phase: bytes in, ops on the disk, replies (proto.md "Transmission phase").
 *
 * nbd_parse goes over what was received once. A request is checked against everything the protocol
 * and the disk's size say before anything is done for it; a refused one is answered, and the
 * payload of a refused write is skipped, so that the stream stays in step and the connection lives
 * on.
 *
 *   header --refused--> error reply, payload skipped
 *          --write----> payload whole in the lent buffer: the op points right into it
 *                       else: collected in a buffer of its own (filling), then submitted
 *          --long-----> parts (bulk.c)
 *          --else-----> submitted at once
 *
 * When too much is in flight the parser stops before a request and leaves the rest; it is called
 * again when something has been answered.
 *
 * Thread: the connection's hub. Failure: a broken frame (wrong magic) ends the connection, for
 * nothing after it can be trusted; so does a refused allocation. All else is answered. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "nbd/server.h"

struct header {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
};

/* What a command may carry, and what to say of a range beyond the disk's end. */
struct rule {
    uint16_t flags;            /* beside FUA, which every command may have */
    uint16_t structured_flags; /* more of them once structured replies are agreed */
    bool writes;
    bool ranged;
    bool bounded; /* by NBD_PAYLOAD_MAX */
    uint32_t beyond;
};

static const struct rule rules[] = {
    [NBD_CMD_READ] = {0, NBD_CMD_FLAG_DF, false, true, true, NBD_EINVAL},
    [NBD_CMD_WRITE] = {0, 0, true, true, true, NBD_ENOSPC},
    [NBD_CMD_DISC] = {0, 0, false, false, false, 0},
    [NBD_CMD_FLUSH] = {0, 0, false, false, false, 0},
    [NBD_CMD_TRIM] = {0, 0, true, true, false, NBD_EINVAL},
    [NBD_CMD_CACHE] = {0, 0, false, true, true, NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 0, true, true, false,
                              NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {NBD_CMD_FLAG_REQ_ONE, 0, false, true, false, NBD_EINVAL},
};

/* ---- checking -------------------------------------------------------------------------------- */

static uint32_t refuse(const char **why, uint32_t error, const char *sentence) {
    *why = sentence;
    return error;
}

static uint32_t check_range(const struct nbd_connection *connection, const struct header *header,
                            const struct rule *rule, const char **why) {
    if (rule->bounded && header->length > NBD_PAYLOAD_MAX)
        return refuse(why, NBD_EINVAL,
                      "The request is longer than the 32 MiB that this server announced.");
    if (!gild_range_within(header->offset, header->length, connection->size_bytes))
        return refuse(why, rule->beyond, "The request goes beyond the end of the disk.");
    if ((header->offset | header->length) % NBD_BLOCK_MINIMUM)
        return refuse(why, NBD_EINVAL,
                      "Offset and length must be multiples of 512, as this server announced.");
    return 0;
}

/* 0, or the error to answer. */
static uint32_t check(const struct nbd_connection *connection, const struct header *header,
                      const char **why) {
    if (header->type >= sizeof rules / sizeof *rules)
        return refuse(why, NBD_EINVAL, "This server does not know that command.");
    const struct rule *rule = &rules[header->type];
    unsigned allowed = NBD_CMD_FLAG_FUA | rule->flags;
    if (connection->structured)
        allowed |= rule->structured_flags;
    if (header->flags & ~allowed)
        return refuse(why, NBD_EINVAL, "The command has a flag that it may not have here.");
    if (rule->writes && !connection->writable)
        return refuse(why, NBD_EPERM, "The disk was opened read-only.");
    if (header->type == NBD_CMD_BLOCK_STATUS && !connection->contexts)
        return refuse(why, NBD_EINVAL, "No metadata context was selected for this disk.");
    if (header->type == NBD_CMD_BLOCK_STATUS && !header->length)
        return refuse(why, NBD_EINVAL, "Block status of no bytes was asked for.");
    if (header->type == NBD_CMD_FLUSH && (header->offset || header->length))
        return refuse(why, NBD_EINVAL, "A flush has neither offset nor length.");
    return rule->ranged ? check_range(connection, header, rule, why) : 0;
}

/* ---- from op to reply ------------------------------------------------------------------------ */

static void finish(struct nbd_request *request) {
    nbd_request_drop_payload(request);
    if (request->bulk) {
        nbd_bulk_part_done(request);
        return;
    }
    if (request->op.error)
        nbd_reply_op_error(request, -request->op.error);
    else if (request->type == NBD_CMD_READ)
        nbd_reply_data(request, true);
    else if (request->type == NBD_CMD_BLOCK_STATUS)
        nbd_reply_extents(request);
    else
        nbd_reply_ok(request);
}

static void op_done(struct gild_op *op) {
    finish(gild_container_of(op, struct nbd_request, op));
}

void nbd_submit(struct nbd_request *request) {
    struct gild_op *op = &request->op;
    op->done = op_done;
    if (op->kind == GILD_OP_READ) {
        op->pieces = request->big ? request->big->pieces : request->pieces;
        op->piece_limit = request->big ? GILD_OP_MAX_PIECES : NBD_SMALL_PIECES;
        request->has_pieces = true;
    }
    if (gild_disk_submit(op))
        finish(request);
}

static void fill_op(struct nbd_request *request, enum gild_op_kind kind, uint32_t flags,
                    const struct header *header) {
    request->cookie = header->cookie;
    request->type = header->type;
    request->flags = header->flags;
    request->op.kind = kind;
    request->op.flags = flags;
    request->op.offset_bytes = header->offset;
    request->op.length_bytes = header->length;
}

static struct nbd_request *take_request(struct nbd_connection *connection) {
    struct nbd_request *request = nbd_request_take(connection);
    if (!request)
        nbd_connection_break(connection, ENOMEM);
    return request;
}

static uint32_t fua_of(const struct header *header) {
    return header->flags & NBD_CMD_FLAG_FUA ? GILD_OP_FUA : 0;
}

/* ---- starting requests: false = must wait, and nothing was done -------------------------------
 */

static bool start_bulk(struct nbd_connection *connection, const struct header *header) {
    struct nbd_bulk what = {
        .cookie = header->cookie,
        .offset = header->offset,
        .length = header->length,
        .type = header->type,
        .flags = header->flags,
    };
    return nbd_bulk_begin(connection, &what);
}

static bool start_read(struct nbd_connection *connection, const struct header *header) {
    bool fits = connection->answer_bytes + header->length <= NBD_ANSWER_BYTES_MAX;
    if (header->length > GILD_OP_MAX_BYTES) {
        /* A reply in chunks is let go bit by bit; one that must be whole needs room for all of it.
         */
        bool whole = !connection->structured || header->flags & NBD_CMD_FLAG_DF;
        return (whole && connection->answer_bytes && !fits) ? false
                                                            : start_bulk(connection, header);
    }
    if (connection->answer_bytes && !fits)
        return false;
    struct nbd_request *request = take_request(connection);
    if (!request)
        return true;
    fill_op(request, GILD_OP_READ, 0, header);
    if (header->length > NBD_SMALL_READ_BYTES && !nbd_request_need_big(request)) {
        nbd_request_give(request);
        nbd_connection_break(connection, ENOMEM);
        return true;
    }
    request->answer_bytes = header->length;
    connection->answer_bytes += header->length;
    nbd_submit(request);
    return true;
}

static bool start_extents(struct nbd_connection *connection, const struct header *header) {
    struct nbd_request *request = take_request(connection);
    if (!request)
        return true;
    bool one = header->flags & NBD_CMD_FLAG_REQ_ONE;
    fill_op(request, GILD_OP_EXTENTS, one ? GILD_OP_ONE_EXTENT : 0, header);
    if (!nbd_request_need_big(request)) {
        nbd_request_give(request);
        nbd_connection_break(connection, ENOMEM);
        return true;
    }
    request->op.extents = request->big->status.extents;
    request->op.extent_limit = one ? 1 : NBD_EXTENTS_MAX;
    nbd_submit(request);
    return true;
}

static bool start_plain(struct nbd_connection *connection, const struct header *header) {
    struct nbd_request *request = take_request(connection);
    if (!request)
        return true;
    switch (header->type) {
    case NBD_CMD_FLUSH:
        fill_op(request, GILD_OP_FLUSH, 0, header);
        break;
    case NBD_CMD_TRIM:
        fill_op(request, GILD_OP_TRIM, fua_of(header), header);
        break;
    case NBD_CMD_CACHE:
        fill_op(request, GILD_OP_PREFETCH, 0, header);
        break;
    default:
        /* Zeroes are an entry of the map, whatever their length: always fast. */
        fill_op(request, GILD_OP_ZERO,
                fua_of(header) | (header->flags & NBD_CMD_FLAG_NO_HOLE ? GILD_OP_NO_HOLE : 0),
                header);
        break;
    }
    nbd_submit(request);
    return true;
}

static void submit_write(struct nbd_request *request, uint8_t *bytes) {
    request->payload = (struct iovec){bytes, request->op.length_bytes};
    request->op.payload = &request->payload;
    request->op.payload_count = 1;
    nbd_submit(request);
}

/* Can the op point into the lent buffer? Not if writes keep too many of them already. */
static bool lies_whole(const struct nbd_connection *connection, const struct nbd_input *input,
                       uint32_t length) {
    return input->lent && (size_t)(input->end - input->at) >= length &&
           (input->lent->writes || connection->hub->lent_to_writes < NBD_LENT_TO_WRITES_MAX);
}

static bool start_write(struct nbd_connection *connection, const struct header *header,
                        struct nbd_input *payload) {
    struct nbd_buffer *buffer = NULL;
    bool whole = lies_whole(connection, payload, header->length);
    if (!whole) {
        if (header->length > GILD_OP_MAX_BYTES)
            return start_bulk(connection, header);
        buffer = nbd_buffer_take(connection, header->length);
        if (!buffer && connection->buffers)
            return false;
        if (buffer && buffer->room_bytes < header->length) {
            nbd_buffer_give(connection, buffer);
            return start_bulk(connection, header);
        }
    }
    struct nbd_request *request = whole || buffer ? nbd_request_take(connection) : NULL;
    if (!request) {
        if (buffer)
            nbd_buffer_give(connection, buffer);
        nbd_connection_break(connection, ENOMEM);
        return true;
    }
    fill_op(request, GILD_OP_WRITE, fua_of(header), header);
    if (whole) {
        uint8_t *bytes = (uint8_t *)payload->lent->io.buffer +
                         (payload->at - (const uint8_t *)payload->lent->io.buffer);
        payload->at += header->length;
        request->lent = payload->lent;
        nbd_lent_keep(payload->lent);
        submit_write(request, bytes);
    } else {
        request->buffer = buffer;
        connection->filling = request;
        connection->filled = 0;
    }
    return true;
}

static void answer_refused(struct nbd_connection *connection, const struct header *header,
                           uint32_t error, const char *why) {
    struct nbd_request *request = take_request(connection);
    if (!request)
        return;
    request->cookie = header->cookie;
    request->type = header->type;
    nbd_reply_error(request, error, why);
}

/* Requests of no bytes are answered here: the protocol leaves open what they do, gild does nothing.
 */
static bool answer_empty(struct nbd_connection *connection, const struct header *header) {
    struct nbd_request *request = take_request(connection);
    if (!request)
        return true;
    request->cookie = header->cookie;
    request->type = header->type;
    nbd_reply_ok(request);
    return true;
}

/* ---- the parser ------------------------------------------------------------------------------ */

/* Where the next header stands whole, or NULL: the rest of it has not come yet. */
static const uint8_t *whole_header(struct nbd_connection *connection, struct nbd_input *input) {
    size_t here = (size_t)(input->end - input->at);
    if (!connection->header_bytes && here >= NBD_REQUEST_BYTES)
        return input->at;
    size_t part = NBD_REQUEST_BYTES - connection->header_bytes;
    if (part > here)
        part = here;
    memcpy(connection->header + connection->header_bytes, input->at, part);
    connection->header_bytes += (uint32_t)part;
    input->at += part;
    return connection->header_bytes == NBD_REQUEST_BYTES ? connection->header : NULL;
}

/* The input as it stands behind the header. */
static struct nbd_input behind_header(const struct nbd_connection *connection,
                                      const struct nbd_input *input) {
    struct nbd_input behind = *input;
    if (!connection->header_bytes)
        behind.at += NBD_REQUEST_BYTES;
    return behind;
}

static bool start(struct nbd_connection *connection, const struct header *header,
                  struct nbd_input *payload) {
    const char *why;
    uint32_t error = check(connection, header, &why);
    if (error) {
        answer_refused(connection, header, error, why);
        if (header->type == NBD_CMD_WRITE)
            connection->skip_bytes = header->length;
        return true;
    }
    if (rules[header->type].ranged && !header->length)
        return answer_empty(connection, header);
    switch (header->type) {
    case NBD_CMD_READ:
        return start_read(connection, header);
    case NBD_CMD_WRITE:
        return start_write(connection, header, payload);
    case NBD_CMD_BLOCK_STATUS:
        return start_extents(connection, header);
    case NBD_CMD_CACHE:
        if (header->length > GILD_OP_MAX_BYTES)
            return start_bulk(connection, header);
        break;
    }
    return start_plain(connection, header);
}

/* False: blocked. */
static bool take(struct nbd_connection *connection, const uint8_t *bytes, struct nbd_input *input) {
    struct header header = {
        .flags = gild_get_be16(bytes + 4),
        .type = gild_get_be16(bytes + 6),
        .cookie = gild_get_be64(bytes + 8),
        .offset = gild_get_be64(bytes + 16),
        .length = gild_get_be32(bytes + 24),
    };
    if (gild_get_be32(bytes) != NBD_REQUEST_MAGIC) {
        gild_log(GILD_LOG_INFO, "nbd: a client of %s sent no NBD request; its connection is closed",
                 gild_disk_path(connection->disk));
        nbd_connection_end(connection);
        return true;
    }
    if (header.type == NBD_CMD_DISC) {
        nbd_connection_end(connection);
        return true;
    }
    if (connection->requests >= NBD_REQUESTS_MAX)
        return false;
    struct nbd_input payload = behind_header(connection, input);
    if (!start(connection, &header, &payload))
        return false;
    input->at = payload.at;
    connection->header_bytes = 0;
    return true;
}

static void submit_filling(struct nbd_connection *connection) {
    struct nbd_request *request = connection->filling;
    connection->filling = NULL;
    if (request->bulk && request->bulk->issued == request->bulk->length &&
        connection->bulk == request->bulk)
        connection->bulk = NULL;
    submit_write(request, request->buffer->bytes);
}

void nbd_payload_received(struct nbd_connection *connection, uint32_t bytes) {
    connection->filled += bytes;
    if (connection->filled == connection->filling->op.length_bytes)
        submit_filling(connection);
}

static void fill(struct nbd_connection *connection, struct nbd_input *input) {
    uint64_t part = gild_min_u64((uint64_t)(input->end - input->at),
                                 connection->filling->op.length_bytes - connection->filled);
    memcpy(connection->filling->buffer->bytes + connection->filled, input->at, part);
    input->at += part;
    nbd_payload_received(connection, (uint32_t)part);
}

static void skip(struct nbd_connection *connection, struct nbd_input *input) {
    uint64_t part = gild_min_u64((uint64_t)(input->end - input->at), connection->skip_bytes);
    input->at += part;
    connection->skip_bytes -= part;
}

/* Goes on with a long request. False: blocked. */
static bool go_on(struct nbd_connection *connection) {
    if (connection->bulk->type != NBD_CMD_WRITE)
        return nbd_bulk_pump(connection);
    connection->filling = nbd_bulk_next_write(connection);
    connection->filled = 0;
    return connection->filling || !connection->bulk || connection->ending;
}

void nbd_parse(struct nbd_connection *connection, struct nbd_input *input) {
    connection->blocked = false;
    while (!connection->ending) {
        if (connection->filling || connection->skip_bytes) {
            if (input->at == input->end)
                return;
            if (connection->filling)
                fill(connection, input);
            else
                skip(connection, input);
            continue;
        }
        if (connection->bulk) {
            connection->blocked = !go_on(connection);
            if (connection->blocked)
                return;
            continue;
        }
        const uint8_t *header = whole_header(connection, input);
        if (!header)
            return;
        if (!take(connection, header, input)) {
            connection->blocked = true;
            return;
        }
    }
}
