/* The clerk: LIST and INFO read the catalogue, which blocks; this thread does it, one after the
 * other, and posts the answer back to reactor 0. Its queue is as short as there are handshakes, for
 * each asks one thing at a time.
 *
 * Thread: its own; ask and stop as the header says. Failure: an errno in handshake->result. */
#include "nbd/clerk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int visit_disk(void *context, const char *name, const struct gild_path_info *info) {
    (void)info;
    return nbd_handshake_put_server(context, name);
}

static void work(struct nbd_handshake *handshake) {
    struct gild_store *store = handshake->server->store;
    if (handshake->job == NBD_JOB_LIST)
        handshake->result = gild_path_each_disk(store, visit_disk, handshake);
    else
        handshake->result = gild_path_stat(store, handshake->opening.path, &handshake->info);
}

static void *clerk_main(void *context) {
    struct gild_nbd_server *server = context;
    pthread_mutex_lock(&server->lock);
    for (;;) {
        struct nbd_handshake *handshake = server->clerk_first;
        if (!handshake) {
            if (server->clerk_end)
                break;
            pthread_cond_wait(&server->clerk_wanted, &server->lock);
            continue;
        }
        server->clerk_first = handshake->next;
        pthread_mutex_unlock(&server->lock);
        work(handshake);
        gild_loop_post(server->hubs[0].loop, &handshake->task);
        pthread_mutex_lock(&server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

int nbd_clerk_start(struct gild_nbd_server *server, struct gild_error *error) {
    int err = pthread_create(&server->clerk, NULL, clerk_main, server);
    if (err)
        return gild_fail(error, GILD_FAILED, err, "Can not start a thread of the NBD server: %s.",
                         strerror(err));
    pthread_setname_np(server->clerk, "gild-nbd-clerk");
    server->clerk_running = true;
    return 0;
}

void nbd_clerk_stop(struct gild_nbd_server *server) {
    if (!server->clerk_running)
        return;
    pthread_mutex_lock(&server->lock);
    server->clerk_end = true;
    pthread_cond_signal(&server->clerk_wanted);
    pthread_mutex_unlock(&server->lock);
    pthread_join(server->clerk, NULL);
    server->clerk_running = false;
}

void nbd_clerk_ask(struct nbd_handshake *handshake) {
    struct gild_nbd_server *server = handshake->server;
    handshake->next = NULL;
    pthread_mutex_lock(&server->lock);
    if (server->clerk_first)
        server->clerk_last->next = handshake;
    else
        server->clerk_first = handshake;
    server->clerk_last = handshake;
    pthread_cond_signal(&server->clerk_wanted);
    pthread_mutex_unlock(&server->lock);
}
