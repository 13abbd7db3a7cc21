/* The handshake phase (proto.md "Handshake"): an incremental state machine on reactor 0.
 *
 *   FLAGS -> OPTION -> DATA | SKIP -> (WORKING ->) SENDING -> OPTION ... -> transmission | closed
 *
 * A client is read only while its next option is wanted, so it can neither flood nor outrun the
 * server; it holds its struct, an input buffer that fits one option (17 KiB at most), and its
 * answer. It has NBD_HANDSHAKE_NS for each option and for taking each answer; time that the store
 * takes is not held against it. Many clients are served side by side, and one that stalls costs the
 * others nothing.
 *
 * Freed when nothing is under way any more: receive, send, timer, a question to the store.
 *
 * Thread: reactor 0's. Failure: whatever breaks the frame closes the client; all else is answered.
 */
#include "nbd/handshake.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

#define FIRST_ROOM 512u
#define OUT_MAX (64u << 20)

static struct gild_loop *loop_of(const struct nbd_handshake *handshake) {
    return handshake->server->hubs[0].loop;
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void maybe_free(struct nbd_handshake *handshake) {
    struct gild_nbd_server *server = handshake->server;
    if (!handshake->closing || handshake->working || handshake->receiving || handshake->sending ||
        handshake->timing)
        return;
    gild_list_remove(&handshake->link);
    server->handshake_count--;
    server->listing_bytes -= handshake->listing_bytes;
    if (handshake->opening.disk)
        gild_disk_close(handshake->opening.disk, NBD_DOOR, handshake->opening.writable);
    if (handshake->fd >= 0)
        close(handshake->fd);
    free(handshake->context_name);
    free(handshake->in);
    free(handshake->out);
    free(handshake);
    nbd_server_accept(server);
    nbd_server_drop(server);
}

void nbd_handshake_done(struct nbd_handshake *handshake) {
    maybe_free(handshake);
}

void nbd_handshake_close(struct nbd_handshake *handshake) {
    if (handshake->closing)
        return;
    handshake->closing = true;
    if (handshake->receiving)
        gild_io_cancel(loop_of(handshake), &handshake->receive_io);
    if (handshake->sending)
        gild_io_cancel(loop_of(handshake), &handshake->send_io);
    if (handshake->timing)
        gild_io_cancel(loop_of(handshake), &handshake->timer_io);
}

void nbd_handshakes_stop(struct gild_nbd_server *server, bool cut) {
    struct gild_list *next;
    for (struct gild_list *at = server->handshakes.next; at != &server->handshakes; at = next) {
        struct nbd_handshake *handshake = gild_container_of(at, struct nbd_handshake, link);
        next = at->next;
        if (cut || !(handshake->working || handshake->sending))
            nbd_handshake_close(handshake);
        maybe_free(handshake);
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

static void give_time(struct nbd_handshake *handshake) {
    handshake->deadline_ns = gild_loop_now_ns(loop_of(handshake)) + NBD_HANDSHAKE_NS;
}

static void timed_out(struct gild_io *io) {
    struct nbd_handshake *handshake = gild_container_of(io, struct nbd_handshake, timer_io);
    uint64_t now_ns = gild_loop_now_ns(loop_of(handshake));
    handshake->timing = false;
    if (!handshake->closing && handshake->working)
        give_time(handshake);
    if (!handshake->closing && now_ns < handshake->deadline_ns) {
        handshake->timing = true;
        gild_io_timeout(loop_of(handshake), io, handshake->deadline_ns - now_ns);
        return;
    }
    if (!handshake->closing)
        gild_log(GILD_LOG_INFO, "nbd: a client on %s was silent too long in the handshake",
                 handshake->server->where);
    nbd_handshake_close(handshake);
    maybe_free(handshake);
}

/* ---- sending --------------------------------------------------------------------------------- */

void nbd_handshake_put(struct nbd_handshake *handshake, const void *bytes, size_t count) {
    size_t need = handshake->out_bytes + count;
    if (handshake->out_failed || need > OUT_MAX) {
        handshake->out_failed = true;
        return;
    }
    if (need > handshake->out_room) {
        size_t room = handshake->out_room ? handshake->out_room : FIRST_ROOM;
        while (room < need)
            room *= 2;
        uint8_t *out = realloc(handshake->out, room);
        if (!out) {
            handshake->out_failed = true;
            return;
        }
        handshake->out = out;
        handshake->out_room = (uint32_t)room;
    }
    memcpy(handshake->out + handshake->out_bytes, bytes, count);
    handshake->out_bytes += (uint32_t)count;
}

static void send_rest(struct nbd_handshake *handshake) {
    handshake->send_vector = (struct iovec){handshake->out + handshake->out_sent,
                                            handshake->out_bytes - handshake->out_sent};
    handshake->sending = true;
    gild_io_send(loop_of(handshake), &handshake->send_io, handshake->fd, &handshake->send_vector, 1,
                 false);
}

void nbd_handshake_answer(struct nbd_handshake *handshake, enum nbd_after after) {
    handshake->state = NBD_SHAKE_SENDING;
    handshake->after = after;
    handshake->out_sent = 0;
    give_time(handshake);
    if (handshake->out_failed)
        nbd_handshake_close(handshake);
    else
        send_rest(handshake);
}

/* ---- from here to transmission ----------------------------------------------------------------
 */

static void transmit(struct nbd_handshake *handshake) {
    struct nbd_start start = {
        .fd = handshake->fd,
        .disk = handshake->opening.disk,
        .writable = handshake->opening.writable,
        .structured = handshake->structured,
        .contexts = handshake->context_selected &&
                    strcmp(handshake->context_name, handshake->opening.path) == 0,
        .early_bytes = handshake->in_bytes - handshake->in_used,
    };
    if (start.early_bytes) {
        start.early = malloc(start.early_bytes);
        if (start.early)
            memcpy(start.early, handshake->in + handshake->in_used, start.early_bytes);
    }
    if ((start.early_bytes && !start.early) || nbd_connection_start(handshake->server, &start)) {
        free(start.early);
    } else {
        handshake->fd = -1;
        handshake->opening.disk = NULL;
    }
    nbd_handshake_close(handshake);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static uint32_t wanted(const struct nbd_handshake *handshake) {
    switch (handshake->state) {
    case NBD_SHAKE_FLAGS:
        return NBD_CLIENT_FLAGS_BYTES;
    case NBD_SHAKE_OPTION:
        return NBD_OPTION_HEADER_BYTES;
    case NBD_SHAKE_DATA:
        return handshake->length;
    default:
        return 1;
    }
}

/* Room for what is wanted, at the front of the buffer. False: no memory. */
static bool make_room(struct nbd_handshake *handshake) {
    uint32_t have = handshake->in_bytes - handshake->in_used;
    uint32_t need = wanted(handshake) > FIRST_ROOM ? wanted(handshake) : FIRST_ROOM;
    if (have)
        memmove(handshake->in, handshake->in + handshake->in_used, have);
    handshake->in_used = 0;
    handshake->in_bytes = have;
    if (need <= handshake->in_room)
        return true;
    uint8_t *in = realloc(handshake->in, need);
    if (!in)
        return false;
    handshake->in = in;
    handshake->in_room = need;
    return true;
}

static void receive(struct nbd_handshake *handshake) {
    if (!make_room(handshake)) {
        nbd_handshake_close(handshake);
        return;
    }
    handshake->receiving = true;
    gild_io_recv(loop_of(handshake), &handshake->receive_io, handshake->fd,
                 handshake->in + handshake->in_bytes, handshake->in_room - handshake->in_bytes);
}

static const uint8_t *take(struct nbd_handshake *handshake, uint32_t count) {
    const uint8_t *at = handshake->in + handshake->in_used;
    handshake->in_used += count;
    return at;
}

static void take_flags(struct nbd_handshake *handshake) {
    uint32_t flags = gild_get_be32(take(handshake, NBD_CLIENT_FLAGS_BYTES));
    /* "the server MUST drop the TCP connection if the client sets an unknown flag" */
    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        nbd_handshake_close(handshake);
        return;
    }
    handshake->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    handshake->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    handshake->flagged = true;
    handshake->state = NBD_SHAKE_OPTION;
    give_time(handshake);
}

static void take_option(struct nbd_handshake *handshake) {
    const uint8_t *header = take(handshake, NBD_OPTION_HEADER_BYTES);
    handshake->option = gild_get_be32(header + 8);
    handshake->length = gild_get_be32(header + 12);
    bool known_to_all =
        handshake->option == NBD_OPT_EXPORT_NAME || handshake->option == NBD_OPT_ABORT;
    /* A client that is not fixed newstyle understands no reply but that to EXPORT_NAME. */
    if (gild_get_be64(header) != NBD_OPTION_MAGIC || (!handshake->fixed && !known_to_all)) {
        nbd_handshake_close(handshake);
        return;
    }
    handshake->skip_bytes = handshake->length;
    handshake->state = handshake->length > NBD_OPTION_BYTES_MAX ? NBD_SHAKE_SKIP : NBD_SHAKE_DATA;
}

static void skip(struct nbd_handshake *handshake, uint32_t have) {
    uint32_t part = have < handshake->skip_bytes ? have : handshake->skip_bytes;
    take(handshake, part);
    handshake->skip_bytes -= part;
    if (!handshake->skip_bytes)
        nbd_option_too_long(handshake);
}

/* Goes as far as what was received allows. */
static void step(struct nbd_handshake *handshake) {
    while (!handshake->closing) {
        uint32_t have = handshake->in_bytes - handshake->in_used;
        if (handshake->state == NBD_SHAKE_WORKING || handshake->state == NBD_SHAKE_SENDING)
            return;
        if (have < wanted(handshake)) {
            receive(handshake);
            return;
        }
        switch (handshake->state) {
        case NBD_SHAKE_FLAGS:
            take_flags(handshake);
            break;
        case NBD_SHAKE_OPTION:
            take_option(handshake);
            break;
        case NBD_SHAKE_DATA:
            nbd_option(handshake, take(handshake, handshake->length));
            break;
        case NBD_SHAKE_SKIP:
            skip(handshake, have);
            break;
        case NBD_SHAKE_WORKING:
        case NBD_SHAKE_SENDING:
            break;
        }
    }
}

static void received(struct gild_io *io) {
    struct nbd_handshake *handshake = gild_container_of(io, struct nbd_handshake, receive_io);
    handshake->receiving = false;
    if (io->result > 0) {
        handshake->in_bytes += (uint32_t)io->result;
        step(handshake);
    } else if (io->result == -EINTR || io->result == -EAGAIN) {
        step(handshake);
    } else {
        nbd_handshake_close(handshake);
    }
    maybe_free(handshake);
}

/* The answer is out. */
static void go_on(struct nbd_handshake *handshake) {
    free(handshake->out);
    handshake->out = NULL;
    handshake->out_bytes = handshake->out_room = 0;
    handshake->server->listing_bytes -= handshake->listing_bytes;
    handshake->listing_bytes = 0;
    give_time(handshake);
    if (handshake->after == NBD_AFTER_TRANSMIT) {
        transmit(handshake);
    } else if (handshake->after == NBD_AFTER_CLOSE || handshake->server->hubs[0].stopping) {
        nbd_handshake_close(handshake);
    } else {
        handshake->state = handshake->flagged ? NBD_SHAKE_OPTION : NBD_SHAKE_FLAGS;
        step(handshake);
    }
}

static void sent(struct gild_io *io) {
    struct nbd_handshake *handshake = gild_container_of(io, struct nbd_handshake, send_io);
    handshake->sending = false;
    if (io->result > 0)
        handshake->out_sent += (uint32_t)io->result;
    bool again = io->result > 0 || io->result == -EINTR || io->result == -EAGAIN;
    if (handshake->closing || !again)
        nbd_handshake_close(handshake);
    else if (handshake->out_sent < handshake->out_bytes)
        send_rest(handshake);
    else
        go_on(handshake);
    maybe_free(handshake);
}

/* ---- beginning ------------------------------------------------------------------------------- */

static void greet(struct nbd_handshake *handshake) {
    uint8_t greeting[NBD_GREETING_BYTES];
    gild_put_be64(greeting, NBD_INIT_MAGIC);
    gild_put_be64(greeting + 8, NBD_OPTION_MAGIC);
    gild_put_be16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_handshake_put(handshake, greeting, sizeof greeting);
    nbd_handshake_answer(handshake, NBD_AFTER_NEXT);
}

void nbd_handshake_start(struct gild_nbd_server *server, int fd) {
    struct nbd_handshake *handshake = calloc(1, sizeof *handshake);
    if (!handshake) {
        close(fd);
        return;
    }
    handshake->server = server;
    handshake->fd = fd;
    handshake->receive_io.done = received;
    handshake->send_io.done = sent;
    handshake->timer_io.done = timed_out;
    gild_list_init(&handshake->link);
    gild_list_push_back(&server->handshakes, &handshake->link);
    server->handshake_count++;
    nbd_server_hold(server);
    handshake->timing = true;
    gild_io_timeout(loop_of(handshake), &handshake->timer_io, NBD_HANDSHAKE_NS);
    greet(handshake);
    maybe_free(handshake);
}
