/* The NBD door: serves every disk of a store by its path as export name. */
#ifndef GILD_NBD_H
#define GILD_NBD_H

#include "gild/error.h"
#include "gild/store.h"

struct gild_nbd_server;

/* Listens on `where`: "unix:PATH" (a stale socket of a dead server is replaced; mode 0600) or
 * "tcp:HOST:PORT" ("tcp:[::1]:10809", port 0 picks one). Serves on the store's reactors until
 * gild_nbd_stop. Any thread but a reactor's. */
int gild_nbd_serve(struct gild_store *store, const char *where, struct gild_nbd_server **out,
                   struct gild_error *error);

/* The address in use, with the real port: "tcp:127.0.0.1:40213". The server's own storage. */
const char *gild_nbd_where(const struct gild_nbd_server *server);

/* Stops accepting, lets requests in flight finish (at most grace_ms, then connections are cut),
 * closes every disk it holds, unlinks the Unix socket, frees the server. Any thread but a
 * reactor's. */
void gild_nbd_stop(struct gild_nbd_server *server, unsigned grace_ms);

#endif
