/* The control door: a request in, an answer out, both JSON. The CLI, the daemon's socket and any
 * later front end use this one door.
 *
 * A request: {"noun": "desktop", "verb": "create", "args": {"name": "d1", "image": "win10@3"}}.
 * An answer: the verb's JSON (keys snake_case, sizes in bytes, times RFC 3339 UTC; a list is an
 * array), or {"error": {"code": "not_found", "message": "..."}}. */
#ifndef GILD_CONTROL_H
#define GILD_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/error.h"
#include "gild/store.h"

/* Called now and then while a long verb works; total 0 = unknown. A non-zero return asks it to
 * stop (the verb then undoes what it did and fails). */
typedef int gild_control_progress(void *context, const char *what, uint64_t done, uint64_t total);

/* Runs one request on an open store. *answer is always set (an error's JSON too) and is the
 * caller's to free(). Returns the gild_code of the answer. Blocking; any thread but a reactor's. */
enum gild_code gild_control_run(struct gild_store *store, const char *request,
                                gild_control_progress *progress, void *context, char **answer);

/* The daemon's side: HTTP on a Unix socket (`control.sock` in the store, mode 0600): POST
 * /api/v1/rpc takes a request; the body of the answer is a stream of JSON lines: zero or more
 * {"progress": {"what":..., "done":..., "total":...}}, then {"answer": ...}. `served` names the
 * doors of this daemon, so that `gild disk uri` can tell them. */
struct gild_control_server;
struct gild_control_doors {
    const char *const *nbd; /* "unix:/run/gild.sock", ...; NULL-terminated */
    const char *mount;      /* NULL if there is none */
};
int gild_control_serve(struct gild_store *store, const struct gild_control_doors *served,
                       struct gild_control_server **out, struct gild_error *error);
void gild_control_stop(struct gild_control_server *server);

/* The client's side: sends the request to the store's daemon if one runs, else opens the store for
 * as long as the request takes. Same answers either way. `store init` is done here, with no daemon.
 * *answer as in gild_control_run. */
enum gild_code gild_control_call(const char *directory, const char *request,
                                 gild_control_progress *progress, void *context, char **answer);

#endif
