/* The NBD server's own structures, shared by its files. docs/nbd.md says what is offered and why.
 *
 *   accept (reactor 0) -> handshake (reactor 0; blocking questions: the clerk's thread)
 *        -> connection (the reactor of its disk) -> gone
 *
 * Threads: a hub and all that hangs on it belong to its reactor's loop; a handshake to reactor 0's;
 * the server's fields as grouped below. */
#ifndef GILD_NBD_SERVER_H
#define GILD_NBD_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/queue.h"
#include "gild/disk.h"
#include "gild/loop.h"
#include "gild/nbd.h"
#include "nbd/wire.h"

#define NBD_DOOR "nbd"

/* ---- limits ---------------------------------------------------------------------------------- */

#define NBD_HANDSHAKES_MAX 512u                /* at a time; further clients wait in the backlog */
#define NBD_HANDSHAKE_NS UINT64_C(30000000000) /* for each option */
#define NBD_OPTION_BYTES_MAX (16u << 10)       /* an option's data; longer ones are drained */
#define NBD_LISTINGS_BYTES_MAX (16u << 20)     /* of all LIST answers on their way */
#define NBD_REQUESTS_MAX 128u                  /* in flight on a connection */
#define NBD_ANSWER_BYTES_MAX \
    (8u << 20) /* read and not yet sent on a connection, but for one request */
#define NBD_PAYLOAD_BYTES_MAX \
    ((size_t)64 << 20)                   /* write payload outside of lent buffers, of a server */
#define NBD_LENT_TO_WRITES_MAX 24u       /* lent buffers kept by writes under way on a hub */
#define NBD_DIRECT_BYTES_MIN (16u << 10) /* payload still to come that is received in its place */
#define NBD_VECTORS_MAX 1024u            /* IOV_MAX */
#define NBD_SMALL_PIECES 18u             /* a read of 64 KiB at any alignment */
#define NBD_SMALL_READ_BYTES (64u << 10)
#define NBD_EXTENTS_MAX 256u

/* ---- what requests are made of -----------------------------------------------------------------
 */

/* A receive into a lent buffer, which goes back to the loop when it is parsed and no write uses it.
 */
struct nbd_lent {
    struct gild_io io;
    struct nbd_connection *connection;
    struct nbd_hub *hub;
    bool holds;      /* a buffer, that is */
    bool parsing;    /* or receiving */
    unsigned writes; /* whose payload lies in it */
    struct nbd_lent *next;
};

/* Memory of the server's own for payload that does not lie whole in one lent buffer. */
struct nbd_buffer {
    struct nbd_buffer *next;
    uint32_t room_bytes;
    bool charged; /* to NBD_PAYLOAD_BYTES_MAX */
    uint8_t bytes[];
};

/* What long reads and block status need beside the request. */
struct nbd_big {
    union {
        struct nbd_big *next;
        struct gild_piece pieces[GILD_OP_MAX_PIECES];
        struct {
            struct gild_extent extents[NBD_EXTENTS_MAX];
            uint8_t wire[8 * NBD_EXTENTS_MAX];
        } status;
    };
};

/* One op, and the reply it becomes. */
struct nbd_request {
    struct gild_op op;
    struct nbd_connection *connection;
    struct nbd_request *next;
    struct nbd_bulk *bulk; /* the long request that this is a part of, or NULL */
    uint64_t cookie;
    uint16_t type;
    uint16_t flags;
    uint32_t answer_bytes; /* charged to the connection until sent */

    struct iovec payload;
    struct nbd_lent *lent; /* where the payload lies: in one of these two */
    struct nbd_buffer *buffer;
    struct nbd_big *big;

    uint32_t head_bytes;
    uint32_t tail_bytes;
    const void *tail;
    bool has_pieces; /* the op's pieces go between head and tail */
    uint8_t head[32];

    struct gild_piece pieces[NBD_SMALL_PIECES];
};

/* A request longer than one op may be, done in parts. */
struct nbd_bulk {
    struct nbd_bulk *next;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
    uint32_t issued; /* bytes that parts were made for */
    uint16_t type;
    uint16_t flags;
    unsigned parts; /* not done yet */
    int error;
    bool assembled; /* READ: the reply is one whole, sent when all parts are read */
    bool abandoned; /* the connection ends: no reply */
    struct nbd_request *first, *last; /* assembled: parts in order */
};

struct nbd_sender {
    struct gild_io io;
    struct nbd_connection *connection;
    struct nbd_request *first; /* what these vectors answer */
    struct nbd_sender *next;
    unsigned at, count;
    struct iovec vectors[NBD_VECTORS_MAX];
};

/* ---- a client ---------------------------------------------------------------------------------
 */

struct nbd_connection {
    struct gild_list link;
    struct nbd_hub *hub;
    struct gild_disk *disk;
    uint64_t size_bytes;
    int fd;
    bool writable;
    bool structured;
    bool contexts; /* base:allocation was selected for this disk */

    bool ending; /* takes no more requests */
    bool broken; /* the socket is dead: answers are dropped */
    bool blocked;
    bool turn_queued;
    struct gild_task turn;
    bool late_queued;
    struct gild_task late; /* starts the next receive */

    /* Requests. */
    unsigned requests;
    unsigned buffers;
    uint64_t answer_bytes;

    /* Receiving. One of lent (also while it is parsed), payload_busy at a time. */
    struct nbd_lent *lent;
    bool payload_busy;
    struct gild_io payload_io;
    struct nbd_request *filling; /* a write whose payload is being collected */
    uint32_t filled;
    uint64_t skip_bytes;       /* payload of a refused write, still to come */
    struct nbd_bulk *bulk;     /* not all parts issued yet */
    struct nbd_buffer *parked; /* bytes received and not parsed yet, while blocked */
    uint32_t parked_at, parked_end;
    uint32_t header_bytes;
    uint8_t header[NBD_REQUEST_BYTES]; /* a request header cut by a buffer's end */
    uint8_t *early;                    /* what came in with the handshake */
    uint32_t early_bytes;

    /* Sending. */
    struct nbd_request *out_first, *out_last;
    struct nbd_sender *sender;
};

/* One reactor's part of the server. */
struct nbd_hub {
    _Alignas(64) struct gild_nbd_server *server;
    struct gild_loop *loop;
    struct gild_list connections;
    bool stopping;
    unsigned lent_to_writes;

    struct nbd_request *requests;
    struct nbd_lent *lents;
    struct nbd_big *bigs;
    struct nbd_sender *senders;
    struct nbd_bulk *bulks;
    struct nbd_buffer *buffers[3];
    unsigned request_count, lent_count, big_count, sender_count, bulk_count, buffer_count[3];

    struct gild_task stop_task, cut_task;
};

struct nbd_handshake;

struct gild_nbd_server {
    /* Constant once it serves. */
    struct gild_store *store;
    char *where;
    char *unix_path; /* NULL: TCP */
    dev_t unix_device;
    ino_t unix_inode;
    int fd;
    unsigned hub_count;
    struct nbd_hub *hubs;

    /* Reactor 0. */
    struct gild_io accept_io;
    struct gild_io pause_io; /* after the host ran out of descriptors or memory */
    struct gild_task start_task;
    bool accept_busy, pause_busy;
    struct gild_list handshakes;
    unsigned handshake_count;
    size_t listing_bytes;

    /* Any thread. */
    atomic_size_t payload_bytes;
    pthread_mutex_t lock;
    pthread_cond_t changed;      /* live fell to zero */
    pthread_cond_t clerk_wanted; /* or it shall end */
    unsigned live;               /* under lock: all that still runs on reactors */
    struct nbd_handshake *clerk_first, *clerk_last; /* under lock */
    bool clerk_end;                                 /* under lock */
    pthread_t clerk;
    bool clerk_running;
};

/* ---- server.c ----------------------------------------------------------------------------------
 */

/* Something runs on a reactor / has ended; the latter is the caller's last touch of the server. */
void nbd_server_hold(struct gild_nbd_server *server);
void nbd_server_drop(struct gild_nbd_server *server);
void nbd_server_accept(struct gild_nbd_server *server); /* reactor 0; no-op if it must not */

/* ---- listen.c ----------------------------------------------------------------------------------
 */

int nbd_listen(struct gild_nbd_server *server, const char *where, struct gild_error *error);
void nbd_unlisten(struct gild_nbd_server *server);

/* ---- connection.c ------------------------------------------------------------------------------
 */

/* Reactor 0: hands a socket, and with it the open disk, to the disk's reactor. Takes `early`, a
 * heap copy of what was received already (may be NULL). 0, or -ENOMEM and nothing was taken. */
struct nbd_start {
    int fd;
    struct gild_disk *disk;
    bool writable, structured, contexts;
    uint8_t *early;
    uint32_t early_bytes;
};
int nbd_connection_start(struct gild_nbd_server *server, const struct nbd_start *start);
void nbd_connection_wake(
    struct nbd_connection *connection);                     /* look at it at the end of this turn */
void nbd_connection_end(struct nbd_connection *connection); /* no more requests */
void nbd_connection_break(struct nbd_connection *connection, int err); /* the socket is dead */

/* ---- transmission.c, bulk.c --------------------------------------------------------------------
 */

/* Bytes received; lent is NULL if they lie elsewhere. */
struct nbd_input {
    const uint8_t *at, *end;
    struct nbd_lent *lent;
};

/* Takes what it can; what is left has to wait until something in flight is answered. */
void nbd_parse(struct nbd_connection *connection, struct nbd_input *input);
/* More of the payload has been received straight into its place. */
void nbd_payload_received(struct nbd_connection *connection, uint32_t bytes);
void nbd_discard_filling(struct nbd_connection *connection);
void nbd_submit(struct nbd_request *request);

/* True: started (or refused, with an answer). False: must wait, nothing was done. */
bool nbd_bulk_begin(struct nbd_connection *connection, const struct nbd_bulk *what);
/* Issues parts; true: all are issued. */
bool nbd_bulk_pump(struct nbd_connection *connection);
struct nbd_request *nbd_bulk_next_write(struct nbd_connection *connection);
void nbd_bulk_part_done(struct nbd_request *request);
void nbd_bulk_abandon(struct nbd_connection *connection);

/* ---- reply.c -----------------------------------------------------------------------------------
 */

uint32_t nbd_errno(int err); /* errno -> "Error values" */
/* These queue the request as a reply. The sentence: static storage. */
void nbd_reply_ok(struct nbd_request *request);
void nbd_reply_error(struct nbd_request *request, uint32_t error, const char *sentence);
void nbd_reply_op_error(struct nbd_request *request, int err);
void nbd_reply_data(struct nbd_request *request, bool last);
void nbd_reply_assembled(struct nbd_bulk *bulk);
void nbd_reply_extents(struct nbd_request *request);
bool nbd_send(struct nbd_connection *connection); /* true: a send was started */

/* ---- pool.c ------------------------------------------------------------------------------------
 */

/* All: NULL if there is no memory. */
struct nbd_request *nbd_request_take(struct nbd_connection *connection);
void nbd_request_give(struct nbd_request *request); /* with all that it holds */
void nbd_request_drop_payload(struct nbd_request *request);
bool nbd_request_need_big(struct nbd_request *request);
struct nbd_lent *nbd_lent_take(struct nbd_connection *connection);
void nbd_lent_keep(struct nbd_lent *lent); /* for one more write */
void nbd_lent_drop(struct nbd_lent *lent); /* one write less */
void nbd_lent_done(struct nbd_lent *lent); /* received and parsed */
/* Room for `bytes` (at most GILD_OP_MAX_BYTES), or for less if the server is at its limit; NULL:
 * wait for one of the connection's own. */
struct nbd_buffer *nbd_buffer_take(struct nbd_connection *connection, uint32_t bytes);
void nbd_buffer_give(struct nbd_connection *connection, struct nbd_buffer *buffer);
/* A buffer of 64 KiB for what was received before its connection was blocked. */
struct nbd_buffer *nbd_park_take(struct nbd_hub *hub);
void nbd_park_give(struct nbd_hub *hub, struct nbd_buffer *buffer);
struct nbd_sender *nbd_sender_take(struct nbd_connection *connection);
void nbd_sender_give(struct nbd_sender *sender);
struct nbd_bulk *nbd_bulk_take(struct nbd_hub *hub);
void nbd_bulk_give(struct nbd_hub *hub, struct nbd_bulk *bulk);
void nbd_hub_fini(struct nbd_hub *hub);

/* ---- handshake.c -------------------------------------------------------------------------------
 */

void nbd_handshake_start(struct gild_nbd_server *server, int fd); /* takes the fd; reactor 0 */
void nbd_handshakes_stop(struct gild_nbd_server *server, bool cut);

#endif
