/* Messages for the admin (base/log.h).
 *
 * The level is the one piece of process-wide state: stderr is process-wide too. A message is
 * formatted on the stack, its control characters are blanked (one message is one line), and it is
 * written by one write(2); a failed write is ignored, there is nobody left to tell.
 *
 * Thread: any. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_BYTES 1024

static const char *const level_names[] = {"error", "warning", "info", "debug"};
/* Of syslog(3): err, warning, info, debug. */
static const char level_priorities[] = {'3', '4', '6', '7'};

static atomic_int chosen_level = -1;

static int level_from_environment(void) {
    const char *text = getenv("GILD_LOG");
    if (!text)
        return GILD_LOG_INFO;
    if (!strcmp(text, "warn"))
        return GILD_LOG_WARN;
    for (int level = GILD_LOG_ERROR; level <= GILD_LOG_DEBUG; level++)
        if (!strcmp(text, level_names[level]))
            return level;
    return GILD_LOG_INFO;
}

bool gild_log_wants(enum gild_log_level level) {
    int wanted = atomic_load_explicit(&chosen_level, memory_order_relaxed);
    if (wanted < 0) {
        int none = -1;
        wanted = level_from_environment();
        /* A level set meanwhile wins. */
        if (!atomic_compare_exchange_strong(&chosen_level, &none, wanted))
            wanted = none;
    }
    return (int)level <= wanted;
}

void gild_log_set_level(enum gild_log_level level) {
    atomic_store(&chosen_level, (int)level);
}

/* JOURNAL_STREAM is "device:inode" of the journal's socket (systemd.exec(5)); the variable is
 * inherited, so that only a match says that our stderr is that socket. */
static bool stderr_is_journal(void) {
    const char *text = getenv("JOURNAL_STREAM");
    struct stat status;
    unsigned long long device, inode;
    if (!text || sscanf(text, "%llu:%llu", &device, &inode) != 2)
        return false;
    return fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

void gild_log(enum gild_log_level level, const char *format, ...) {
    int saved_errno = errno;
    char line[LINE_BYTES];
    size_t start, length;
    va_list arguments;

    if (!gild_log_wants(level))
        return;
    if (stderr_is_journal())
        start = (size_t)snprintf(line, sizeof line, "<%c>", level_priorities[level]);
    else
        start = (size_t)snprintf(line, sizeof line, "%.64s: %s: ", program_invocation_short_name,
                                 level_names[level]);
    va_start(arguments, format);
    int wanted = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    length = strlen(line);
    if (wanted < 0)
        length = start;
    for (size_t i = start; i < length; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = ' ';
    line[length++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
    errno = saved_errno;
}
