/* The trace of what a process did to one folder: written by the interposed library (recorder*.c),
 * read by the model of legal crash states (model.c).
 *
 * One file, mapped shared by everybody: a head, then events back to back. Whoever has something to
 * say takes room by one atomic addition; the order of the events is the order of these additions.
 * What may have happened when it begins (a write, a truncation, a rename) is told before its call;
 * what may be relied upon when it has ended (TRACE_END) is told after it.
 *
 * The head carries the fault plan too, and counts, so that one run's counts are the next one's
 * range. Threads: any, of any process. */
#ifndef GILD_TESTS_REAL_TRACE_H
#define GILD_TESTS_REAL_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_BYTES ((uint64_t)1 << 30) /* sparse: only what is used takes memory */
#define TRACE_ROOT "GILD_REAL_ROOT"     /* environment: the folder that is watched, absolute */
#define TRACE_FILE "GILD_REAL_TRACE"    /* environment: the trace */

enum trace_kind {
    TRACE_END = 1,  /* of `ref`; result: what the call gave, bytes or 0 or -errno */
    TRACE_WRITE,    /* file, offset, length; payload unless FLAG_ZEROES */
    TRACE_SIZE,     /* file becomes `length` long */
    TRACE_ALLOCATE, /* file becomes at least `length` long */
    TRACE_SYNC,     /* file, or folder */
    TRACE_MAKE,     /* file is new under the payload's name in `folder` (told when it is there) */
    TRACE_RENAME,   /* payload: old NUL new NUL, both in `folder` */
    TRACE_MOVE,     /* payload: old NUL new NUL, from `folder` to the folder `file` */
    TRACE_LINK,     /* file gets the payload as one more name in `folder` */
    TRACE_UNLINK,   /* payload: a name in `folder` */
    TRACE_MARK,     /* the workload's: offset, length, flags are its own */
    TRACE_ODD,      /* something that the recorder can not follow; payload says what */
};

enum trace_flag {
    TRACE_DSYNC = 1u << 0,  /* the write is durable when it ends */
    TRACE_ZEROES = 1u << 1, /* nothing but zeroes, no payload */
    TRACE_FOLDER = 1u << 2, /* MAKE: a folder */
};

struct trace_event {
    uint32_t bytes; /* with payload, a multiple of 8; written last */
    uint16_t kind, flags;
    uint64_t ref; /* END: where the event begins that has ended */
    uint64_t file, folder;
    uint64_t offset, length;
    int64_t result;
    uint32_t pid, payload_bytes;
    uint8_t payload[];
};

struct trace_head {
    _Atomic uint64_t used; /* events' end */
    bool recording;

    /* Faults, 0 = none: at the count of that number, once. */
    uint64_t kill_at;  /* SIGKILL before this call that writes or syncs */
    uint64_t sync_at;  /* this sync (or write that syncs) fails with EIO */
    uint64_t alloc_at; /* this allocation fails */
    bool alloc_any;    /* count those of all libraries, not of the program alone */
    char full[32];     /* writes to files of that name have no space left; empty: none */

    _Atomic uint64_t calls, syncs, allocs;
    char sync_failed[128]; /* the file whose sync was made to fail */
    char alloc_object[64]; /* who made the allocation that was made to fail, and where in it */
    uint64_t alloc_address;
};

#define TRACE_FIRST 4096u

/* The caller's trace, mapped. NULL: can not. create: makes the file anew. */
struct trace_head *trace_map(const char *path, bool create);
void trace_unmap(struct trace_head *head); /* NULL is fine */

/* Room for one event with a payload; fill it, then trace_done. NULL: not recording, or full. */
struct trace_event *trace_take(struct trace_head *head, enum trace_kind kind,
                               uint32_t payload_bytes);
uint64_t trace_done(struct trace_head *head, struct trace_event *event); /* where it is */

void trace_end(struct trace_head *head, uint64_t ref, int64_t result); /* ref 0: nothing */
uint64_t trace_mark(struct trace_head *head, unsigned flags, uint64_t offset, uint64_t length);

/* The event at `at`; NULL at the end. *next: where the next one is. */
const struct trace_event *trace_at(const struct trace_head *head, uint64_t at, uint64_t *next);

#endif
