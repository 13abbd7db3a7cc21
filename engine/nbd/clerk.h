/* The clerk: one thread that asks the store what must not be asked on a reactor. */
#ifndef GILD_NBD_CLERK_H
#define GILD_NBD_CLERK_H

#include "gild/error.h"
#include "nbd/handshake.h"
#include "nbd/server.h"

int nbd_clerk_start(struct gild_nbd_server *server, struct gild_error *error);
void nbd_clerk_stop(struct gild_nbd_server *server);

/* Reactor 0: does handshake->job there, then posts handshake->task back. At most one per handshake.
 */
void nbd_clerk_ask(struct nbd_handshake *handshake);

#endif
