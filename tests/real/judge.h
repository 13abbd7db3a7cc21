/* A store after a crash, opened by the engine and compared with the oracle.
 *
 * The engine runs in a child process, so that one that dies is a finding and not the test's end.
 * The child opens the store, checks it, reads every disk over NBD, looks at every path, closes it,
 * opens it once more, and looks for files that nobody owns. */
#ifndef GILD_TESTS_REAL_JUDGE_H
#define GILD_TESTS_REAL_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "oracle.h"

struct judgement {
    bool opened;
    uint64_t lost, wrong; /* blocks: acknowledged and not there; nobody's */
    uint64_t findings;    /* of the check */
    uint64_t paths;       /* that must exist and do not, or the other way round */
    uint64_t orphans;
    char text[600]; /* the first that was wrong; empty: all is well */
};

/* as_of: a position of the oracle. socket: a path for the child's NBD door. */
void judge_store(const char *store, const char *socket, const struct oracle *oracle, uint64_t as_of,
                 struct judgement *judgement);

#endif
