/* Messages for the admin, on stderr: one line each, written with one system call, so that lines of
 * several threads never mix. Under systemd (JOURNAL_STREAM is set and stderr is that stream) each
 * line begins with the journal's `<N>` priority, else with the program's name and the level. */
#ifndef GILD_BASE_LOG_H
#define GILD_BASE_LOG_H

#include <stdbool.h>

enum gild_log_level {
    GILD_LOG_ERROR, /* somebody must act */
    GILD_LOG_WARN,
    GILD_LOG_INFO, /* the default: what an admin wants to find later */
    GILD_LOG_DEBUG,
};

/* Any thread; errno is kept. The first use reads GILD_LOG=error|warn|info|debug. */
void gild_log(enum gild_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Would a message of this level be written? To spare costly arguments. Any thread. */
bool gild_log_wants(enum gild_log_level level);

/* Overrides GILD_LOG. Any thread. */
void gild_log_set_level(enum gild_log_level level);

#endif
