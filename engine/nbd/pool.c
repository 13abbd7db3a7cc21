/* What the hot path is made of, kept for the next request instead of going back to malloc:
 * requests, receives, piece tables, senders and payload buffers, per hub.
 *
 * Invariants
 * - A lent buffer goes back to the loop when its last reference does. Writes may keep at most
 *   NBD_LENT_TO_WRITES_MAX of them, and only while the engine has their op: nothing that waits for
 * a client ever holds one, so no client can starve the others of receive buffers.
 * - Payload buffers count against the server's limit until they are given back, but for one small
 *   buffer per connection, which makes sure that every connection gets on however full the server.
 *
 * Thread: the hub's. Failure: NULL where memory is refused; the caller ends that connection. */
#include <stdlib.h>
#include <string.h>

#include "nbd/server.h"

#define KEEP_REQUESTS 512u
#define KEEP_LENTS 64u
#define KEEP_BIGS 64u
#define KEEP_SENDERS 32u
#define KEEP_BULKS 32u

static const uint32_t buffer_room[3] = {64u << 10, 256u << 10, 1u << 20};
static const unsigned keep_buffers[3] = {16, 8, 4};

/* Take and give for one kind of object with a `next`. */
#define POOL_TAKE(hub, list, count, size)                 \
    __extension__({                                       \
        __typeof__((hub)->list) pool_taken = (hub)->list; \
        if (pool_taken) {                                 \
            (hub)->list = pool_taken->next;               \
            (hub)->count--;                               \
        } else {                                          \
            pool_taken = calloc(1, (size));               \
        }                                                 \
        pool_taken;                                       \
    })

#define POOL_GIVE(hub, list, count, keep, object) \
    do {                                          \
        if ((hub)->count < (keep)) {              \
            (object)->next = (hub)->list;         \
            (hub)->list = (object);               \
            (hub)->count++;                       \
        } else {                                  \
            free(object);                         \
        }                                         \
    } while (0)

#define POOL_FREE(hub, list)                                                                \
    do {                                                                                    \
        __typeof__((hub)->list) pool_next;                                                  \
        for (__typeof__((hub)->list) pool_at = (hub)->list; pool_at; pool_at = pool_next) { \
            pool_next = pool_at->next;                                                      \
            free(pool_at);                                                                  \
        }                                                                                   \
    } while (0)

/* ---- requests -------------------------------------------------------------------------------- */

struct nbd_request *nbd_request_take(struct nbd_connection *connection) {
    struct nbd_hub *hub = connection->hub;
    struct nbd_request *request = POOL_TAKE(hub, requests, request_count, sizeof *request);
    if (!request)
        return NULL;
    request->op.disk = connection->disk;
    request->connection = connection;
    request->next = NULL;
    request->bulk = NULL;
    request->answer_bytes = 0;
    request->head_bytes = request->tail_bytes = 0;
    request->has_pieces = false;
    connection->requests++;
    return request;
}

void nbd_request_drop_payload(struct nbd_request *request) {
    if (request->lent) {
        nbd_lent_drop(request->lent);
        request->lent = NULL;
    }
    if (request->buffer) {
        nbd_buffer_give(request->connection, request->buffer);
        request->buffer = NULL;
    }
}

void nbd_request_give(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    struct nbd_hub *hub = connection->hub;
    if (request->has_pieces)
        gild_op_release(&request->op);
    nbd_request_drop_payload(request);
    if (request->big) {
        POOL_GIVE(hub, bigs, big_count, KEEP_BIGS, request->big);
        request->big = NULL;
    }
    connection->answer_bytes -= request->answer_bytes;
    connection->requests--;
    POOL_GIVE(hub, requests, request_count, KEEP_REQUESTS, request);
}

bool nbd_request_need_big(struct nbd_request *request) {
    struct nbd_hub *hub = request->connection->hub;
    request->big = POOL_TAKE(hub, bigs, big_count, sizeof *request->big);
    return request->big != NULL;
}

struct nbd_bulk *nbd_bulk_take(struct nbd_hub *hub) {
    return POOL_TAKE(hub, bulks, bulk_count, sizeof(struct nbd_bulk));
}

void nbd_bulk_give(struct nbd_hub *hub, struct nbd_bulk *bulk) {
    POOL_GIVE(hub, bulks, bulk_count, KEEP_BULKS, bulk);
}

/* ---- receives -------------------------------------------------------------------------------- */

struct nbd_lent *nbd_lent_take(struct nbd_connection *connection) {
    struct nbd_hub *hub = connection->hub;
    struct nbd_lent *lent = POOL_TAKE(hub, lents, lent_count, sizeof *lent);
    if (!lent)
        return NULL;
    lent->connection = connection;
    lent->hub = hub;
    lent->parsing = true;
    return lent;
}

static void lent_settle(struct nbd_lent *lent) {
    struct nbd_hub *hub = lent->hub;
    if (lent->parsing || lent->writes)
        return;
    if (lent->holds)
        gild_loop_give_back(hub->loop, &lent->io);
    lent->holds = false;
    POOL_GIVE(hub, lents, lent_count, KEEP_LENTS, lent);
}

void nbd_lent_keep(struct nbd_lent *lent) {
    if (lent->writes++ == 0)
        lent->hub->lent_to_writes++;
}

void nbd_lent_drop(struct nbd_lent *lent) {
    if (--lent->writes == 0)
        lent->hub->lent_to_writes--;
    lent_settle(lent);
}

void nbd_lent_done(struct nbd_lent *lent) {
    lent->parsing = false;
    lent_settle(lent);
}

/* ---- payload buffers ------------------------------------------------------------------------- */

static unsigned class_of(uint32_t bytes) {
    unsigned class = 0;
    while (class < 2 && buffer_room[class] < bytes)
        class ++;
    return class;
}

static bool charge(struct gild_nbd_server *server, uint32_t bytes) {
    if (atomic_fetch_add(&server->payload_bytes, bytes) + bytes <= NBD_PAYLOAD_BYTES_MAX)
        return true;
    atomic_fetch_sub(&server->payload_bytes, bytes);
    return false;
}

static struct nbd_buffer *take_of_class(struct nbd_hub *hub, unsigned class) {
    struct nbd_buffer *buffer = hub->buffers[class];
    if (buffer) {
        hub->buffers[class] = buffer->next;
        hub->buffer_count[class]--;
        return buffer;
    }
    buffer = malloc(sizeof *buffer + buffer_room[class]);
    if (buffer)
        buffer->room_bytes = buffer_room[class];
    return buffer;
}

struct nbd_buffer *nbd_buffer_take(struct nbd_connection *connection, uint32_t bytes) {
    struct gild_nbd_server *server = connection->hub->server;
    unsigned class = class_of(bytes);
    bool charged = charge(server, buffer_room[class]);
    if (!charged && connection->buffers)
        return NULL;
    struct nbd_buffer *buffer = take_of_class(connection->hub, charged ? class : 0);
    if (!buffer) {
        if (charged)
            atomic_fetch_sub(&server->payload_bytes, buffer_room[class]);
        return NULL;
    }
    buffer->charged = charged;
    connection->buffers++;
    return buffer;
}

static void keep_buffer(struct nbd_hub *hub, struct nbd_buffer *buffer) {
    unsigned class = class_of(buffer->room_bytes);
    if (hub->buffer_count[class] == keep_buffers[class]) {
        free(buffer);
        return;
    }
    buffer->next = hub->buffers[class];
    hub->buffers[class] = buffer;
    hub->buffer_count[class]++;
}

void nbd_buffer_give(struct nbd_connection *connection, struct nbd_buffer *buffer) {
    struct nbd_hub *hub = connection->hub;
    if (buffer->charged)
        atomic_fetch_sub(&hub->server->payload_bytes, buffer->room_bytes);
    connection->buffers--;
    keep_buffer(hub, buffer);
}

struct nbd_buffer *nbd_park_take(struct nbd_hub *hub) {
    return take_of_class(hub, 0);
}

void nbd_park_give(struct nbd_hub *hub, struct nbd_buffer *buffer) {
    keep_buffer(hub, buffer);
}

/* ---- senders --------------------------------------------------------------------------------- */

struct nbd_sender *nbd_sender_take(struct nbd_connection *connection) {
    struct nbd_hub *hub = connection->hub;
    struct nbd_sender *sender = POOL_TAKE(hub, senders, sender_count, sizeof *sender);
    if (sender)
        sender->connection = connection;
    return sender;
}

void nbd_sender_give(struct nbd_sender *sender) {
    struct nbd_hub *hub = sender->connection->hub;
    POOL_GIVE(hub, senders, sender_count, KEEP_SENDERS, sender);
}

void nbd_hub_fini(struct nbd_hub *hub) {
    POOL_FREE(hub, requests);
    POOL_FREE(hub, lents);
    POOL_FREE(hub, bigs);
    POOL_FREE(hub, senders);
    POOL_FREE(hub, bulks);
    for (unsigned class = 0; class < 3; class ++)
        POOL_FREE(hub, buffers[class]);
}
