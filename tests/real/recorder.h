/* Inside the interposed library: what its parts share. */
#ifndef GILD_TESTS_REAL_RECORDER_H
#define GILD_TESTS_REAL_RECORDER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "trace.h"

#define RECORDER_EXPORT __attribute__((visibility("default")))

/* The function that this library stands in front of. */
#define RECORDER_NEXT(name) ((__typeof__(&(name)))recorder_next(#name))
void *recorder_next(const char *name);

struct trace_head *recorder_head(void); /* NULL: no trace was given, and nothing is done */

/* The inode behind a descriptor under the watched folder, 0 = none of ours. */
uint64_t recorder_file(int fd);
bool recorder_always_syncs(int fd); /* it was opened with O_DSYNC or O_SYNC */

/* Counts one call that writes or syncs, and kills the process if it is the one. */
void recorder_call(void);
/* Counts one sync; true: it is the one that must fail. */
bool recorder_sync_fails(int fd);

/* What begins, for all ways of writing; gives the ref for trace_end. */
uint64_t recorder_write(uint64_t file, const struct iovec *vectors, unsigned count, uint64_t offset,
                        bool dsync);
uint64_t recorder_sync(uint64_t file);

#endif
