/* gildd with segments of 256 KiB instead of 64 MiB: what happens once in a thousand writes there
 * (a segment is full, the next one is taken, empty ones are recycled) happens every few here.
 *
 *   small_daemon STORE SOCKET BACKEND
 *
 * SIGUSR1: a checkpoint; one byte on stdout when it is done, '+' or '-'. SIGTERM: as gildd. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gild/control.h"
#include "gild/nbd.h"
#include "gild/store.h"
#include "rig.h"

static int told(const struct gild_error *error) {
    fprintf(stderr, "small_daemon: %s\n", error->message);
    return error->code;
}

static void checkpoint(struct gild_store *store) {
    struct gild_error error = {0};
    char answer = '+';
    if (gild_store_checkpoint(store, &error)) {
        told(&error);
        answer = '-';
    }
    if (write(STDOUT_FILENO, &answer, 1) != 1)
        fprintf(stderr, "small_daemon: nobody hears\n");
}

static int serve(const char *directory, const char *where, enum gild_loop_backend backend,
                 const sigset_t *signals) {
    struct gild_store_options options = {.threads = 2,
                                         .cache_bytes = 16u << 20,
                                         .backend = backend,
                                         .segment_blocks = RIG_SMALL_SEGMENT};
    struct gild_error error = {0};
    struct gild_store *store;
    struct gild_nbd_server *nbd = NULL;
    struct gild_control_server *control = NULL;
    if (gild_store_open(directory, &options, &store, &error))
        return told(&error);
    const char *doors_nbd[] = {where, NULL};
    struct gild_control_doors doors = {.nbd = doors_nbd};
    int code = 0, signal_number = 0;
    if (gild_nbd_serve(store, where, &nbd, &error) ||
        gild_control_serve(store, &doors, &control, &error))
        code = told(&error);
    while (!code && signal_number != SIGTERM) {
        sigwait(signals, &signal_number);
        if (signal_number == SIGUSR1)
            checkpoint(store);
    }
    if (control)
        gild_control_stop(control);
    if (nbd)
        gild_nbd_stop(nbd, 10000);
    if (gild_store_close(store, &error))
        code = told(&error);
    return code;
}

int main(int argc, char **argv) {
    sigset_t signals;
    if (argc != 4)
        return 2;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    enum gild_loop_backend backend = strcmp(argv[3], "uring") == 0     ? GILD_LOOP_URING
                                     : strcmp(argv[3], "threads") == 0 ? GILD_LOOP_THREADS
                                                                       : GILD_LOOP_AUTO;
    return serve(argv[1], argv[2], backend, &signals);
}
