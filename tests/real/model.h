/* What a folder may hold after a crash, as POSIX lets it: made from a trace (trace.h).
 *
 * The model walks the trace. At each event it knows what is durable, and the changes that are not
 * yet: each of these may have reached the disk or not. model_build makes one such state a folder.
 *
 *  - A write is durable when a sync of its file began after it had ended, and has ended; or it was
 *    a write that syncs, and has ended. Till then each of its sectors may be there or not. What was
 *    written over it later, and is there, implies it.
 *  - A size is durable with its file's sync; till then the last one or any before it is there. Data
 *    past it is cut off, and a size without its data reads zeroes.
 *  - A name is durable with its folder's sync; a rename is one change; a change of a name that
 *    another one needs (the rename of a new file) is not there without it. A rename between folders
 *    is there in both or in none until one of them is synced, which says nothing of the other.
 *
 * Threads: one at a time. Out of memory ends the program. */
#ifndef GILD_TESTS_REAL_MODEL_H
#define GILD_TESTS_REAL_MODEL_H

#include <stdint.h>

#include "trace.h"

struct model;

/* root: the inode of the watched folder, which is empty where the trace begins. */
struct model *model_create(const struct trace_head *head, uint64_t root);
void model_destroy(struct model *model);
/* It is not empty: what is in it before the first event is durable. 0 or -errno. */
int model_adopt(struct model *model, const char *folder);

/* Takes the next event in; NULL: there is none. */
const struct trace_event *model_step(struct model *model);
/* The one that would be taken in next. */
const struct trace_event *model_look(const struct model *model);
uint64_t model_position(const struct model *model); /* of the event that was taken in last */
/* Events that the model can not follow: must be 0. */
uint64_t model_odd(const struct model *model);

/* Changes that are not durable: their number, and one of them. */
uint64_t model_pending(const struct model *model);
uint64_t model_pending_names(const struct model *model); /* of them, of names */
uint64_t model_pending_ref(const struct model *model, uint64_t index);

enum model_mode {
    MODEL_NONE,        /* none of what is not durable */
    MODEL_ALL,         /* all of it: what a killed process leaves */
    MODEL_UNTIL,       /* what began before `ref` */
    MODEL_ONLY,        /* `ref` alone */
    MODEL_ALL_BUT,     /* all but `ref` */
    MODEL_SOME,        /* each with even odds */
    MODEL_TORN_PAGES,  /* each page of a write for itself */
    MODEL_TORN_SECTORS /* each 512 bytes of it */
};
#define MODEL_MODES 8u

struct model_choice {
    enum model_mode mode;
    uint64_t ref, seed;
};

/* Fills an empty folder with one legal state; *hash is that of all names, sizes and bytes but those
 * of LMDB's lock file, which says nothing. 0 or -errno. */
int model_build(struct model *model, const struct model_choice *choice, const char *folder,
                uint64_t *hash);

/* The hash that model_build would give for what is really in the folder. */
int model_hash_of(const char *folder, uint64_t *hash);

#endif
