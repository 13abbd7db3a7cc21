/* Errors of control calls: one sentence and a code (gild/error.h).
 *
 * Pure but for the caller's struct; any thread. A sentence that does not fit is cut, never
 * overrun. */
#include "gild/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int gild_fail(struct gild_error *error, enum gild_code code, int err, const char *format, ...) {
    if (error) {
        va_list arguments;
        error->code = code;
        error->err = err;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return err > 0 ? -err : -EIO;
}

enum gild_code gild_code_of_errno(int err) {
    switch (err < 0 ? -err : err) {
    case 0:
        return GILD_OK;
    case ENOSPC:
    case EDQUOT:
        return GILD_NO_SPACE;
    case ENOENT:
        return GILD_NOT_FOUND;
    case EBUSY:
    case EAGAIN:
        return GILD_BUSY;
    case EINVAL:
        return GILD_USAGE;
    case EBADMSG:
    case EUCLEAN:
        return GILD_CORRUPT;
    default:
        return GILD_FAILED;
    }
}

const char *gild_code_name(enum gild_code code) {
    switch (code) {
    case GILD_OK:
        return "ok";
    case GILD_FAILED:
        return "failed";
    case GILD_USAGE:
        return "usage";
    case GILD_NOT_FOUND:
        return "not_found";
    case GILD_BUSY:
        return "busy";
    case GILD_NO_SPACE:
        return "no_space";
    case GILD_CORRUPT:
        return "corrupt";
    case GILD_PARTLY:
        return "partly";
    }
    return "failed";
}
