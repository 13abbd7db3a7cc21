/* The power goes while a program runs that was recorded on a folder which was not empty: states of
 * it are chosen, made, and judged, each in a process of its own, as many at a time as there are
 * processors.
 *
 * A place to cut is where most is not durable: just before a sync (or a write that syncs) ends,
 * before the workload is told anything, and when the program has ended. What a state between two
 * of these may hold, one at the later place may hold too. At each place each mode of the model is
 * tried (model.h), with a change that is drawn, more often where names are not durable. Threads:
 * one. */
#ifndef GILD_TESTS_REAL_CUTS_H
#define GILD_TESTS_REAL_CUTS_H

#include <stdbool.h>
#include <stdint.h>

#include "model.h"
#include "options.h"
#include "rig.h"

#define CUTS_TEXT 1200u

struct cut {
    uint64_t number, position; /* of the state; in the trace */
    bool ended;                /* the program has, and all is as it was told */
    bool again;                /* by even odds: the judge may damage the state once more */
    struct model_choice choice;
};

/* Says in `text` what is wrong with the state in the folder `store`; `scratch` is a path for a
 * socket or the like. In a child, which is killed when it takes RIG_SECONDS. */
typedef void cuts_judge(void *context, const char *store, const char *scratch,
                        const struct cut *cut, char text[CUTS_TEXT]);

struct cuts {
    const char *name;
    struct rig *rig;      /* has the trace, and the store as it is now */
    struct model *before; /* not walked yet; taken */
    uint64_t first, last; /* positions: only places between them; last 0: up to the end */
    uint64_t states;      /* places and modes that are tried; 0: all */
    uint64_t seed;
    cuts_judge *judge;
    void *context;
};

/* Forgets the trace, and gives a model of what is in the store's folder now. */
struct model *cuts_begin(struct rig *rig);
/* Prints what was tried and what is wrong; false: something was. */
bool cuts_run(const struct cuts *cuts);

/* The contents of all files of a folder, but for LMDB's lock file and those of over 16 MiB. */
struct contents {
    struct content {
        char *path; /* below the folder */
        uint64_t hash;
    } * list;
    size_t count, room;
};
void contents_read(struct contents *contents, const char *folder);
void contents_free(struct contents *contents);
/* Leaves of `contents` what `after` has, but not under the same path: what was set aside. */
void contents_moved(struct contents *contents, const struct contents *after);
/* A path whose content is nowhere in `there`; NULL: all is. */
const char *contents_missing(const struct contents *contents, const struct contents *there);

#endif
