/* A connection in transmission: its life and its receiving side.
 *
 *   start (reactor 0) --posted--> arrive --> turn, turn, turn ... --> ending --> freed
 *
 * All completions only record and call nbd_connection_wake; the turn, deferred to the end of the
 * loop's turn, parses what had to wait, starts the next receive, then one send with all replies. So
 * the receive and the send are one submission, and a connection is looked at once however much
 * happened to it.
 *
 * Idle, a connection holds its struct and one receive (about 1 KiB), no buffer: the loop lends one
 * when bytes come. While it is blocked (too much in flight) it does not receive; what was received
 * and not parsed is parked in a buffer of its own, so that the lent one goes back.
 *
 * Ending is graceful: no more requests are taken, what is in flight is finished and answered, then
 * the socket closes. Broken is not: the socket is dead or must be cut, answers are dropped. In both
 * cases ops in flight end first; only then are disk and memory let go.
 *
 * Thread: the hub's, but for nbd_connection_start (reactor 0). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nbd/server.h"

/* ---- ending ---------------------------------------------------------------------------------- */

void nbd_connection_wake(struct nbd_connection *connection) {
    if (connection->turn_queued)
        return;
    connection->turn_queued = true;
    gild_loop_defer(connection->hub->loop, &connection->turn);
}

static void give_parked(struct nbd_connection *connection) {
    if (connection->parked)
        nbd_park_give(connection->hub, connection->parked);
    connection->parked = NULL;
}

void nbd_connection_end(struct nbd_connection *connection) {
    if (connection->ending)
        return;
    connection->ending = true;
    connection->blocked = false;
    if (connection->payload_busy)
        gild_io_cancel(connection->hub->loop, &connection->payload_io);
    else
        nbd_discard_filling(connection);
    if (connection->bulk && connection->bulk->type == NBD_CMD_WRITE)
        nbd_bulk_abandon(connection);
    if (connection->lent)
        gild_io_cancel(connection->hub->loop, &connection->lent->io);
    nbd_connection_wake(connection);
}

void nbd_connection_break(struct nbd_connection *connection, int err) {
    if (connection->broken)
        return;
    connection->broken = true;
    if (err != EPIPE && err != ECONNRESET)
        gild_log(GILD_LOG_WARN, "nbd: a connection to %s is cut: %s",
                 gild_disk_path(connection->disk), strerror(err));
    /* Ends a send that the client does not take. */
    shutdown(connection->fd, SHUT_RDWR);
    nbd_connection_end(connection);
    nbd_bulk_abandon(connection);
    nbd_connection_wake(connection);
}

static bool may_be_freed(const struct nbd_connection *connection) {
    return connection->ending && !connection->requests && !connection->lent &&
           !connection->payload_busy && !connection->sender && !connection->turn_queued &&
           !connection->late_queued && !connection->bulk;
}

static void free_connection(struct nbd_connection *connection) {
    struct gild_nbd_server *server = connection->hub->server;
    give_parked(connection);
    gild_list_remove(&connection->link);
    gild_disk_close(connection->disk, NBD_DOOR, connection->writable);
    close(connection->fd);
    free(connection->early);
    free(connection);
    nbd_server_drop(server);
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* Keeps for later what the parser left. */
static void park(struct nbd_connection *connection, const struct nbd_input *input) {
    size_t bytes = (size_t)(input->end - input->at);
    if (!bytes || connection->ending)
        return;
    struct nbd_buffer *buffer = nbd_park_take(connection->hub);
    if (!buffer) {
        nbd_connection_break(connection, ENOMEM);
        return;
    }
    memcpy(buffer->bytes, input->at, bytes);
    connection->parked = buffer;
    connection->parked_at = 0;
    connection->parked_end = (uint32_t)bytes;
}

static void receive_failed(struct nbd_connection *connection, int result) {
    if (result == -EINTR || result == -EAGAIN)
        nbd_connection_wake(connection);
    else if (result == 0 || result == -ECANCELED)
        nbd_connection_end(connection);
    else
        nbd_connection_break(connection, -result);
}

static void received(struct gild_io *io) {
    struct nbd_lent *lent = gild_container_of(io, struct nbd_lent, io);
    struct nbd_connection *connection = lent->connection;
    if (io->result > 0) {
        struct nbd_input input = {io->buffer, (uint8_t *)io->buffer + io->result, lent};
        lent->holds = true;
        nbd_parse(connection, &input);
        park(connection, &input);
    } else {
        receive_failed(connection, io->result);
    }
    connection->lent = NULL;
    nbd_lent_done(lent);
    nbd_connection_wake(connection);
}

static void payload_received(struct gild_io *io) {
    struct nbd_connection *connection = gild_container_of(io, struct nbd_connection, payload_io);
    connection->payload_busy = false;
    if (connection->ending)
        nbd_discard_filling(connection);
    else if (io->result > 0)
        nbd_payload_received(connection, (uint32_t)io->result);
    else
        receive_failed(connection, io->result);
    nbd_connection_wake(connection);
}

static void receive(struct nbd_connection *connection) {
    struct gild_loop *loop = connection->hub->loop;
    if (connection->ending || connection->blocked || connection->lent || connection->payload_busy ||
        connection->late_queued)
        return;
    struct nbd_request *filling = connection->filling;
    if (filling && filling->op.length_bytes - connection->filled >= NBD_DIRECT_BYTES_MIN) {
        connection->payload_busy = true;
        connection->payload_io.done = payload_received;
        gild_io_recv(loop, &connection->payload_io, connection->fd,
                     filling->buffer->bytes + connection->filled,
                     filling->op.length_bytes - connection->filled);
        return;
    }
    connection->lent = nbd_lent_take(connection);
    if (!connection->lent) {
        nbd_connection_break(connection, ENOMEM);
        return;
    }
    connection->lent->io.done = received;
    gild_io_recv_shared(loop, &connection->lent->io, connection->fd);
}

/* ---- the turn -------------------------------------------------------------------------------- */

static void parse_parked(struct nbd_connection *connection) {
    struct nbd_buffer *parked = connection->parked;
    struct nbd_input input = {connection->header, connection->header, NULL};
    if (parked) {
        input.at = parked->bytes + connection->parked_at;
        input.end = parked->bytes + connection->parked_end;
    }
    nbd_parse(connection, &input);
    if (!parked)
        return;
    connection->parked_at = (uint32_t)(input.at - parked->bytes);
    if (connection->parked_at == connection->parked_end || connection->ending)
        give_parked(connection);
}

static void turn(struct gild_task *task) {
    struct nbd_connection *connection = gild_container_of(task, struct nbd_connection, turn);
    connection->turn_queued = false;
    bool waits =
        connection->blocked || connection->parked || (connection->bulk && !connection->filling);
    if (!connection->ending && waits)
        parse_parked(connection);
    else if (connection->ending && connection->bulk)
        nbd_bulk_pump(connection);
    if (nbd_send(connection) && !connection->late_queued) {
        connection->late_queued = true;
        gild_loop_post(connection->hub->loop, &connection->late);
    }
    receive(connection);
    if (may_be_freed(connection))
        free_connection(connection);
}

static void late(struct gild_task *task) {
    struct nbd_connection *connection = gild_container_of(task, struct nbd_connection, late);
    connection->late_queued = false;
    receive(connection);
    if (connection->ending)
        nbd_connection_wake(connection);
}

/* ---- from the handshake ---------------------------------------------------------------------- */

static void arrive(struct gild_task *task) {
    struct nbd_connection *connection = gild_container_of(task, struct nbd_connection, turn);
    struct nbd_hub *hub = connection->hub;
    connection->turn.run = turn;
    gild_list_push_back(&hub->connections, &connection->link);
    if (hub->stopping) {
        nbd_connection_end(connection);
    } else if (connection->early_bytes) {
        struct nbd_input early = {connection->early, connection->early + connection->early_bytes,
                                  NULL};
        nbd_parse(connection, &early);
        park(connection, &early);
    }
    free(connection->early);
    connection->early = NULL;
    nbd_connection_wake(connection);
}

static struct nbd_hub *hub_of(struct gild_nbd_server *server, const struct gild_loop *loop) {
    for (unsigned i = 0; i < server->hub_count; i++)
        if (server->hubs[i].loop == loop)
            return &server->hubs[i];
    return NULL;
}

int nbd_connection_start(struct gild_nbd_server *server, const struct nbd_start *start) {
    struct nbd_connection *connection = calloc(1, sizeof *connection);
    struct nbd_hub *hub = hub_of(server, gild_disk_loop(start->disk));
    if (!connection || !hub) {
        free(connection);
        return -ENOMEM;
    }
    gild_list_init(&connection->link);
    connection->hub = hub;
    connection->disk = start->disk;
    connection->size_bytes = gild_disk_size_bytes(start->disk);
    connection->fd = start->fd;
    connection->writable = start->writable;
    connection->structured = start->structured;
    connection->contexts = start->contexts;
    connection->early = start->early;
    connection->early_bytes = start->early_bytes;
    connection->turn.run = arrive;
    connection->late.run = late;
    nbd_server_hold(server);
    gild_loop_post(hub->loop, &connection->turn);
    return 0;
}
