/* What the real processes are put to: steps that tell the oracle what they asked for and what they
 * were answered. Each gives false when it was not answered that all went well. Threads: one. */
#ifndef GILD_TESTS_REAL_WORKLOAD_H
#define GILD_TESTS_REAL_WORKLOAD_H

#include <stdbool.h>

#include "guest.h"
#include "oracle.h"
#include "rig.h"

#define WORKLOAD_BLOCKS 512u /* of the image, and so of every desktop */
#define WORKLOAD_IMAGE 1u    /* the image's id in the oracle */

struct workload {
    struct rig rig;
    struct oracle oracle;
    struct guests guests;
    char source[90]; /* the image's raw file */
    int code;        /* of the step's last program */
};

void workload_make(struct workload *workload, uint64_t seed);
void workload_remove(struct workload *workload);

/* By `gild`, recorded; it finds a daemon if one runs. */
bool workload_store_init(struct workload *workload);
bool workload_import(struct workload *workload, const char *name);
/* Its disk joins the oracle; join: and the guests write to it from their next connection on. */
bool workload_desktop(struct workload *workload, const char *name, bool join);
bool workload_desktop_delete(struct workload *workload, const char *name);
bool workload_pool(struct workload *workload, const char *name, unsigned count);
bool workload_pool_delete(struct workload *workload, const char *name, unsigned count);

/* A store with an image and two desktops that guests write to: nothing of it is recorded. False: it
 * could not be made. */
bool workload_prepare(struct workload *workload);

/* A daemon's life: start, rounds of guest writes with a checkpoint now and then, stop. */
bool workload_daemon(struct workload *workload, bool small, const char *backend, unsigned rounds);

/* The store as it is, nobody having it open, against the oracle; and `gild store check` by itself.
 * Prints what is wrong. */
bool workload_judge(struct workload *workload, const char *when);

#endif
