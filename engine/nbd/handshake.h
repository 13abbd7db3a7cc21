/* One client in the handshake phase: what handshake.c moves along, options.c answers and clerk.c
 * asks. */
#ifndef GILD_NBD_HANDSHAKE_H
#define GILD_NBD_HANDSHAKE_H

#include "nbd/server.h"

enum nbd_shake {
    NBD_SHAKE_FLAGS,   /* wants the client's flags */
    NBD_SHAKE_OPTION,  /* wants an option's header */
    NBD_SHAKE_DATA,    /* wants the option's data */
    NBD_SHAKE_SKIP,    /* drops the data of an option that is too long */
    NBD_SHAKE_WORKING, /* the store is asked */
    NBD_SHAKE_SENDING, /* the answer goes out, then `after` */
};

enum nbd_after { NBD_AFTER_NEXT, NBD_AFTER_CLOSE, NBD_AFTER_TRANSMIT };

struct nbd_handshake {
    struct gild_list link;
    struct gild_nbd_server *server;
    int fd;
    enum nbd_shake state;
    enum nbd_after after;
    bool closing, working, receiving, sending, timing;
    uint64_t deadline_ns;
    struct gild_io receive_io, send_io, timer_io;
    struct iovec send_vector;

    /* Agreed so far. */
    bool flagged; /* the client's flags have come */
    bool fixed, no_zeroes, structured;
    bool context_selected; /* base:allocation, for the disk context_name */
    char *context_name;

    /* The option in hand. */
    uint32_t option, length;
    uint32_t skip_bytes;
    bool wants_name, wants_description;

    uint8_t *in;
    uint32_t in_used, in_bytes, in_room;
    uint8_t *out;
    uint32_t out_bytes, out_room, out_sent;
    bool out_failed; /* no memory for an answer */

    /* What the store is asked: opening for GO and EXPORT_NAME, the clerk for the others. */
    struct gild_disk_opening opening; /* its path serves both */
    enum nbd_job { NBD_JOB_STAT, NBD_JOB_LIST } job;
    int result;
    struct gild_path_info info;
    struct gild_task task;
    struct nbd_handshake *next; /* the clerk's queue */
    uint32_t listing_bytes;     /* charged to the server */
};

/* ---- handshake.c -------------------------------------------------------------------------------
 */

void nbd_handshake_close(struct nbd_handshake *handshake);
/* The answer is in `out`: sends it. */
void nbd_handshake_answer(struct nbd_handshake *handshake, enum nbd_after after);
/* Appends to `out`; no memory is noticed by nbd_handshake_answer. */
void nbd_handshake_put(struct nbd_handshake *handshake, const void *bytes, size_t count);

/* After a callback of the store's: frees a handshake that was only kept for it. */
void nbd_handshake_done(struct nbd_handshake *handshake);

/* ---- options.c ---------------------------------------------------------------------------------
 */

/* The option in hand is complete: answers it, or asks the store and answers later. */
void nbd_option(struct nbd_handshake *handshake, const uint8_t *data);
void nbd_handshake_ask(struct nbd_handshake *handshake); /* the clerk, handshake->job */
void nbd_option_too_long(struct nbd_handshake *handshake);
/* The clerk's thread, within LIST: non-zero ends the walk. */
int nbd_handshake_put_server(struct nbd_handshake *handshake, const char *name);

#endif
