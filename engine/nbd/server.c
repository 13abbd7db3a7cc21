/* The NBD server: starts, accepts, stops.
 *
 * Reactor 0 accepts and shakes hands; a connection then lives on the reactor of its disk. `live`
 * counts all that still runs on some reactor (tasks posted, an accept or pause under way,
 * handshakes, connections); its falling to zero is what gild_nbd_stop waits for, and dropping it is
 * anybody's last touch of the server.
 *
 *   stop: each hub ends its handshakes and connections (what is in flight is answered)
 *         --grace over--> each hub cuts its sockets --live = 0--> free
 *
 * An op that the engine has in hand is always waited for: its memory is ours.
 *
 * When the host runs out of descriptors or memory, accepting pauses for a second: clients wait in
 * the backlog. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "nbd/clerk.h"
#include "nbd/server.h"

#define PAUSE_NS UINT64_C(1000000000)
#define SEND_BUFFER_BYTES (1 << 20)

void nbd_server_hold(struct gild_nbd_server *server) {
    pthread_mutex_lock(&server->lock);
    server->live++;
    pthread_mutex_unlock(&server->lock);
}

void nbd_server_drop(struct gild_nbd_server *server) {
    pthread_mutex_lock(&server->lock);
    if (--server->live == 0)
        pthread_cond_signal(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

/* ---- accepting (reactor 0) ------------------------------------------------------------------- */

static void paused(struct gild_io *io) {
    struct gild_nbd_server *server = gild_container_of(io, struct gild_nbd_server, pause_io);
    server->pause_busy = false;
    nbd_server_accept(server);
    nbd_server_drop(server);
}

static void pause_accepting(struct gild_nbd_server *server, int err) {
    gild_log(GILD_LOG_WARN, "nbd: can not accept a client on %s: %s; trying again in a second",
             server->where, strerror(err));
    server->pause_busy = true;
    server->pause_io.done = paused;
    nbd_server_hold(server);
    gild_io_timeout(server->hubs[0].loop, &server->pause_io, PAUSE_NS);
}

static void take_client(struct gild_nbd_server *server, int fd) {
    int on = 1, bytes = SEND_BUFFER_BYTES;
    if (server->unix_path) {
        /* TCP sizes its buffer itself; a Unix socket's default is less than the answers to 32 reads
         * of 4 KiB, and each time it is full costs a wake-up. Beyond the system's limit only root.
         */
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes))
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    } else {
        /* Small requests must not wait for each other, dead clients must be noticed. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
    nbd_handshake_start(server, fd);
}

static void accepted(struct gild_io *io) {
    struct gild_nbd_server *server = gild_container_of(io, struct gild_nbd_server, accept_io);
    server->accept_busy = false;
    if (io->result >= 0 && server->hubs[0].stopping)
        close(io->result);
    else if (io->result >= 0)
        take_client(server, io->result);
    else if (!server->hubs[0].stopping && (io->result == -EMFILE || io->result == -ENFILE ||
                                           io->result == -ENOMEM || io->result == -ENOBUFS))
        pause_accepting(server, -io->result);
    nbd_server_accept(server);
    nbd_server_drop(server);
}

void nbd_server_accept(struct gild_nbd_server *server) {
    if (server->accept_busy || server->pause_busy || server->hubs[0].stopping ||
        server->handshake_count >= NBD_HANDSHAKES_MAX)
        return;
    server->accept_busy = true;
    server->accept_io.done = accepted;
    nbd_server_hold(server);
    gild_io_accept(server->hubs[0].loop, &server->accept_io, server->fd);
}

static void start(struct gild_task *task) {
    struct gild_nbd_server *server = gild_container_of(task, struct gild_nbd_server, start_task);
    nbd_server_accept(server);
    nbd_server_drop(server);
}

/* ---- life ------------------------------------------------------------------------------------ */

static int make_hubs(struct gild_nbd_server *server) {
    server->hub_count = gild_store_reactor_count(server->store);
    size_t bytes = server->hub_count * sizeof *server->hubs;
    server->hubs = aligned_alloc(_Alignof(struct nbd_hub), bytes);
    if (!server->hubs)
        return -ENOMEM;
    memset(server->hubs, 0, bytes);
    for (unsigned i = 0; i < server->hub_count; i++) {
        struct nbd_hub *hub = &server->hubs[i];
        hub->server = server;
        hub->loop = gild_store_reactor(server->store, i);
        gild_list_init(&hub->connections);
    }
    return 0;
}

static void free_server(struct gild_nbd_server *server) {
    nbd_clerk_stop(server);
    nbd_unlisten(server);
    for (unsigned i = 0; server->hubs && i < server->hub_count; i++)
        nbd_hub_fini(&server->hubs[i]);
    free(server->hubs);
    free(server->where);
    pthread_cond_destroy(&server->clerk_wanted);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

static void init_sync(struct gild_nbd_server *server) {
    pthread_condattr_t monotonic;
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&server->clerk_wanted, NULL);
}

int gild_nbd_serve(struct gild_store *store, const char *where, struct gild_nbd_server **out,
                   struct gild_error *error) {
    struct gild_nbd_server *server = calloc(1, sizeof *server);
    if (!server)
        return gild_fail(error, GILD_FAILED, ENOMEM, "No memory for an NBD server.");
    server->store = store;
    server->fd = -1;
    gild_list_init(&server->handshakes);
    init_sync(server);
    int result = make_hubs(server);
    if (result)
        gild_fail(error, GILD_FAILED, ENOMEM, "No memory for an NBD server.");
    if (!result)
        result = nbd_listen(server, where, error);
    if (!result)
        result = nbd_clerk_start(server, error);
    if (result) {
        free_server(server);
        return result;
    }
    server->start_task.run = start;
    nbd_server_hold(server);
    gild_loop_post(server->hubs[0].loop, &server->start_task);
    *out = server;
    return 0;
}

const char *gild_nbd_where(const struct gild_nbd_server *server) {
    return server->where;
}

/* ---- stopping -------------------------------------------------------------------------------- */

static void stop_hub(struct nbd_hub *hub, bool cut) {
    struct gild_nbd_server *server = hub->server;
    struct gild_list *next;
    hub->stopping = true;
    if (hub == server->hubs) {
        if (server->accept_busy)
            gild_io_cancel(hub->loop, &server->accept_io);
        if (server->pause_busy)
            gild_io_cancel(hub->loop, &server->pause_io);
        nbd_handshakes_stop(server, cut);
    }
    for (struct gild_list *at = hub->connections.next; at != &hub->connections; at = next) {
        struct nbd_connection *connection = gild_container_of(at, struct nbd_connection, link);
        next = at->next;
        if (cut)
            nbd_connection_break(connection, ESHUTDOWN);
        else
            nbd_connection_end(connection);
    }
    nbd_server_drop(server);
}

static void stop_task(struct gild_task *task) {
    stop_hub(gild_container_of(task, struct nbd_hub, stop_task), false);
}

static void cut_task(struct gild_task *task) {
    stop_hub(gild_container_of(task, struct nbd_hub, cut_task), true);
}

static void tell_hubs(struct gild_nbd_server *server, bool cut) {
    for (unsigned i = 0; i < server->hub_count; i++) {
        struct nbd_hub *hub = &server->hubs[i];
        struct gild_task *task = cut ? &hub->cut_task : &hub->stop_task;
        task->run = cut ? cut_task : stop_task;
        nbd_server_hold(server);
        gild_loop_post(hub->loop, task);
    }
}

static void wait_until_idle(struct gild_nbd_server *server, const struct timespec *until) {
    int result = 0;
    pthread_mutex_lock(&server->lock);
    while (server->live && result != ETIMEDOUT)
        result = until ? pthread_cond_timedwait(&server->changed, &server->lock, until)
                       : pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
}

void gild_nbd_stop(struct gild_nbd_server *server, unsigned grace_ms) {
    if (!server)
        return;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += grace_ms / 1000;
    until.tv_nsec += (long)(grace_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    tell_hubs(server, false);
    wait_until_idle(server, &until);
    tell_hubs(server, true);
    wait_until_idle(server, NULL);
    free_server(server);
}
