/* A real process under the recorder: a scratch folder, a store in it, the programs, their faults.
 *
 * The programs' paths come from the environment (ctest sets it): GILD, GILDD, GILD_SMALL (the
 * daemon with small segments, small_daemon.c), GILD_RECORDER. Threads: one. What can not go on ends
 * the test program. */
#ifndef GILD_TESTS_REAL_RIG_H
#define GILD_TESTS_REAL_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "oracle.h"
#include "trace.h"

#define RIG_SMALL_SEGMENT 64u /* blocks of a segment of the small daemon */
#define RIG_SECONDS 60        /* no process here may take longer */

struct rig {
    char work[64], store[80], trace_path[80], socket[80], log[80];
    struct trace_head *head;
    uint64_t clock;  /* positions where nothing is traced */
    uint64_t root;   /* inode of the store's folder */
    pid_t daemon;    /* 0: none */
    int daemon_says; /* the small daemon's stdout */
    int daemon_code; /* once it is gone */
};

/* Ends with 77 and a word if this build or machine can not do it. */
void rig_need(void);

/* The store's folder is empty. */
void rig_make(struct rig *rig);
void rig_remove(struct rig *rig);
/* Forgets the trace, the counts and the faults. */
void rig_forget(struct rig *rig, bool recording);

uint64_t rig_now(struct rig *rig); /* a new position */

/* Starts a program under the recorder, with its stdout and stderr in rig->log. The last is NULL. */
pid_t rig_start(struct rig *rig, const char *const *words);
/* The exit code; 128 + signal; -1: it did not end in time, and was killed. */
int rig_wait(pid_t pid);
int rig_run(struct rig *rig, const char *const *words);
/* `gild --store STORE words...`, up to 8 of them. */
int rig_gild(struct rig *rig, ...) __attribute__((sentinel));
/* The same with no recorder. */
int rig_plain_gild(struct rig *rig, ...) __attribute__((sentinel));
const char *rig_log(const struct rig *rig); /* what the last program said, in static storage */

/* gildd, or the small one; false: it ended before it served. backend: "auto", "uring", "threads".
 */
bool rig_daemon_start(struct rig *rig, bool small, const char *backend);
/* SIGTERM, and its exit code as of rig_wait. */
int rig_daemon_stop(struct rig *rig);
bool rig_daemon_is_gone(struct rig *rig); /* looks, and takes its exit code for rig_daemon_stop */
/* A checkpoint of the small daemon; false: it failed, or the daemon is gone. */
bool rig_checkpoint(struct rig *rig);

/* Sparse copy of a folder's files and folders; the target must not exist. */
void rig_copy(const char *from, const char *to);
void rig_empty(const char *folder); /* removes what is in it */

#endif
