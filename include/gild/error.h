/* How gild reports what went wrong.
 *
 * The data path speaks negative errno only. Control calls (anything an admin asks for) also fill a
 * caller-owned struct gild_error: one sentence that says what failed, on what, and what to do. */
#ifndef GILD_ERROR_H
#define GILD_ERROR_H

#include <stddef.h>

/* Also the exit codes of `gild` (see docs/cli.md). */
enum gild_code {
    GILD_OK = 0,
    GILD_FAILED = 1,
    GILD_USAGE = 2,
    GILD_NOT_FOUND = 3,
    GILD_BUSY = 4,
    GILD_NO_SPACE = 5,
    GILD_CORRUPT = 6,
    GILD_PARTLY = 7,
};

struct gild_error {
    enum gild_code code;
    int err; /* positive errno that lies behind it, 0 if none */
    char message[480];
};

/* Fills *error (may be NULL) with a printf-style sentence and returns -err (or -EIO if err is 0),
 * so that callers can write `return gild_fail(...)`. Any thread. */
int gild_fail(struct gild_error *error, enum gild_code code, int err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The gild_code that suits a bare errno: ENOSPC/EDQUOT -> NO_SPACE, ENOENT -> NOT_FOUND,
 * EBUSY/EAGAIN -> BUSY, EINVAL -> USAGE, EBADMSG/EUCLEAN -> CORRUPT, else FAILED. Pure. */
enum gild_code gild_code_of_errno(int err);

/* "no_space", "not_found", ...: the JSON spelling of a code. Static storage. */
const char *gild_code_name(enum gild_code code);

#endif
