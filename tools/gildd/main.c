/* gildd, the daemon of one store: opens it, serves its doors, ends in order.
 *
 *   open the store -> NBD doors -> mount -> control socket -> READY
 *   SIGTERM or SIGINT -> control socket -> NBD doors -> mount -> flush and close the store -> exit
 * 0
 *
 * Signals are taken from a signalfd by the main thread; they are blocked in all threads before the
 * first is made, so that a second SIGTERM waits in the queue and breaks nothing. A mount that is
 * ended from outside (umount) is said once; the other doors go on.
 *
 * Exit: the codes of enum gild_code: 2 wrong usage, 4 the store is held, 6 it is corrupt. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "gild/control.h"
#include "gild/fuse.h"
#include "gild/nbd.h"
#include "gild/store.h"

#define NBD_MAX 16u
#define NBD_GRACE_MS 10000u
#define THREADS_MAX 8u
#define MOUNT_LOOK_MS 1000

struct daemon {
    const char *directory;
    char store_path[PATH_MAX];       /* the directory made absolute, for what clients are told */
    const char *nbd_wanted[NBD_MAX]; /* as they were given */
    size_t nbd_count;
    const char *mount_wanted; /* NULL: none */
    struct gild_store_options options;

    int signal_fd;
    struct gild_store *store;
    struct gild_nbd_server *nbd[NBD_MAX];
    struct gild_mount *mount;
    struct gild_control_server *control;
    char mount_path[PATH_MAX];
    const char *nbd_where[NBD_MAX + 1]; /* NULL-terminated */
    struct gild_control_doors doors;
};

/* ---- what it says ---------------------------------------------------------------------------- */

/* One line, one write. Under systemd the journal takes "<N>" as the priority (sd-daemon(3)). */
static void say(const char *priority, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void say(const char *priority, const char *format, ...) {
    char line[1200];
    const char *prefix = getenv("JOURNAL_STREAM") ? priority : "gildd: ";
    int used = snprintf(line, sizeof line, "%s", prefix);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    size_t length = strlen(line);
    line[length++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
}

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    say(SD_ERR, "%s; see `gildd --help`", text);
    return GILD_USAGE;
}

/* ---- options --------------------------------------------------------------------------------- */

struct described {
    const char *name, *metavar, *help;
};

static const struct described described[] = {
    {"store", "DIR", "the store to serve; the variable GILD_STORE stands in for it"},
    {"nbd", "WHERE", "serve NBD on unix:PATH or tcp:HOST:PORT; may be given several times"},
    {"mount", "DIR", "mount the tree of disks on this empty folder"},
    {"threads", "N", "reactors, 1 to 8; by default one per processor"},
    {"cache", "SIZE", "memory for content that desktops share, such as 1G"},
    {"io-backend", "auto|uring|threads", "how I/O is done; by default io_uring where it works"},
    {"help", NULL, "show this help"},
    {"version", NULL, "show the version"},
    {"man", NULL, NULL},
};

enum {
    OPTION_STORE,
    OPTION_NBD,
    OPTION_MOUNT,
    OPTION_THREADS,
    OPTION_CACHE,
    OPTION_BACKEND,
    OPTION_HELP,
    OPTION_VERSION,
    OPTION_MAN,
    OPTIONS
};

static void print_help(void) {
    puts(
        "gildd: serves one store of golden images and desktops\n\n"
        "Usage: gildd --store DIR [--nbd unix:PATH]... [--nbd tcp:HOST:PORT]... [--mount DIR]\n"
        "             [--threads N] [--cache SIZE] [--io-backend auto|uring|threads]\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        char left[64];
        if (!described[i].help)
            continue;
        snprintf(left, sizeof left, "--%s%s%s", described[i].name, described[i].metavar ? " " : "",
                 described[i].metavar ? described[i].metavar : "");
        printf("  %-32s %s\n", left, described[i].help);
    }
    puts(
        "\nStays in the foreground. SIGTERM and SIGINT: requests in flight end, everything is\n"
        "flushed and unmounted, exit code 0. Exit codes: 1 failed, 2 wrong usage, 3 no such "
        "store,\n"
        "4 held by another process, 5 no space, 6 corrupt.");
}

static void print_man(void) {
    printf(".TH GILDD 8 \"\" \"gild %s\" \"System Administration\"\n", GILD_VERSION);
    puts(
        ".SH NAME\ngildd \\- serves one store of golden images and desktops\n.SH SYNOPSIS\n"
        ".B gildd\n\\fB\\-\\-store\\fR \\fIDIR\\fR [\\fB\\-\\-nbd\\fR \\fIWHERE\\fR]... "
        "[\\fB\\-\\-mount\\fR \\fIDIR\\fR] [\\fIOPTIONS\\fR]\n.SH OPTIONS");
    for (size_t i = 0; i < OPTIONS; i++) {
        if (!described[i].help)
            continue;
        printf(".TP\n\\fB\\-\\-%s\\fR", described[i].name);
        if (described[i].metavar)
            printf(" \\fI%s\\fR", described[i].metavar);
        printf("\n%s.\n", described[i].help);
    }
    puts(
        ".SH SIGNALS\nOn SIGTERM and SIGINT requests in flight end, everything is flushed and "
        "unmounted, and the exit\ncode is 0. SIGHUP is ignored.\n.SH EXIT STATUS\nAs of\n"
        ".BR gild (1).\n.SH SEE ALSO\n.BR gild (1)");
}

/* "1G", "512M", bytes. False: no size above 0. */
static bool parse_size(const char *text, uint64_t *bytes) {
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || errno || !value)
        return false;
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (*end && (!unit || end[1]))
        return false;
    for (long power = unit ? unit - units + 1 : 0; power > 0; power--)
        if (value > (unsigned long long)INT64_MAX / 1024)
            return false;
        else
            value *= 1024;
    *bytes = value;
    return true;
}

static bool parse_threads(const char *text, unsigned *threads) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || value < 1 || value > THREADS_MAX)
        return false;
    *threads = (unsigned)value;
    return true;
}

static bool parse_backend(const char *text, enum gild_loop_backend *backend) {
    static const char *const names[] = {"auto", "uring", "threads"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(text, names[i]) == 0) {
            *backend = (enum gild_loop_backend)i;
            return true;
        }
    return false;
}

/* -1: go on; else the exit code. */
static int take_option(struct daemon *daemon, int option) {
    switch (option) {
    case OPTION_STORE:
        daemon->directory = optarg;
        return -1;
    case OPTION_NBD:
        if (strncmp(optarg, "unix:", 5) != 0 && strncmp(optarg, "tcp:", 4) != 0)
            return usage("--nbd takes unix:PATH or tcp:HOST:PORT, not '%.100s'", optarg);
        if (daemon->nbd_count == NBD_MAX)
            return usage("--nbd %.100s is one too many; at most %u are served", optarg, NBD_MAX);
        daemon->nbd_wanted[daemon->nbd_count++] = optarg;
        return -1;
    case OPTION_MOUNT:
        if (daemon->mount_wanted)
            return usage("--mount %.100s is a second mount; one is served", optarg);
        daemon->mount_wanted = optarg;
        return -1;
    case OPTION_THREADS:
        return parse_threads(optarg, &daemon->options.threads)
                   ? -1
                   : usage("--threads takes a number from 1 to 8, not '%.100s'", optarg);
    case OPTION_CACHE:
        return parse_size(optarg, &daemon->options.cache_bytes)
                   ? -1
                   : usage("--cache takes a size such as 512M or 1G, not '%.100s'", optarg);
    case OPTION_BACKEND:
        return parse_backend(optarg, &daemon->options.backend)
                   ? -1
                   : usage("--io-backend takes auto, uring or threads, not '%.100s'", optarg);
    case OPTION_HELP:
        print_help();
        return 0;
    case OPTION_VERSION:
        puts("gildd " GILD_VERSION);
        return 0;
    default:
        print_man();
        return 0;
    }
}

static int parse_options(struct daemon *daemon, int argc, char **argv) {
    struct option longs[OPTIONS + 1] = {0};
    const char *store = getenv("GILD_STORE");
    int code;
    for (int i = 0; i < OPTIONS; i++)
        longs[i] =
            (struct option){described[i].name,
                            described[i].metavar ? required_argument : no_argument, NULL, i + 256};
    daemon->directory = store;
    opterr = 0;
    while ((code = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
        if (code == ':')
            return usage("%.100s needs a value", argv[optind - 1]);
        if (code < 256)
            return usage("there is no option %.100s", argv[optind - 1]);
        int result = take_option(daemon, code - 256);
        if (result >= 0)
            return result;
    }
    if (optind < argc)
        return usage("'%.100s' is one argument too many", argv[optind]);
    if (!daemon->directory || !*daemon->directory)
        return usage("which store is to be served? Give --store DIR, or set GILD_STORE");
    return -1;
}

/* ---- start ----------------------------------------------------------------------------------- */

/* Each pack, segment and connection is a descriptor. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int take_signals(struct daemon *daemon) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return -1;
    daemon->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    return daemon->signal_fd < 0 ? -1 : 0;
}

/* Clients of this daemon stand in other folders. */
static bool absolute_where(const char *where, char out[PATH_MAX + 64]) {
    char folder[PATH_MAX];
    bool relative = strncmp(where, "unix:", 5) == 0 && where[5] != '/' && where[5];
    if (relative && !getcwd(folder, sizeof folder))
        return false;
    int length = relative ? snprintf(out, PATH_MAX + 64, "unix:%s/%s", folder, where + 5)
                          : snprintf(out, PATH_MAX + 64, "%s", where);
    return length < PATH_MAX + 64;
}

static int start_doors(struct daemon *daemon, struct gild_error *error) {
    char where[PATH_MAX + 64];
    for (size_t i = 0; i < daemon->nbd_count; i++) {
        if (!absolute_where(daemon->nbd_wanted[i], where)) {
            gild_fail(error, GILD_USAGE, ENAMETOOLONG, "the path of --nbd is too long");
            return -1;
        }
        if (gild_nbd_serve(daemon->store, where, &daemon->nbd[i], error))
            return -1;
        daemon->nbd_where[i] = gild_nbd_where(daemon->nbd[i]);
    }
    daemon->doors.nbd = daemon->nbd_where;
    if (daemon->mount_wanted) {
        if (gild_mount_start(daemon->store, daemon->mount_wanted, &daemon->mount, error))
            return -1;
        if (!realpath(daemon->mount_wanted, daemon->mount_path)) {
            gild_fail(error, GILD_FAILED, errno, "the mount %s can not be looked up: %s",
                      daemon->mount_wanted, strerror(errno));
            return -1;
        }
        daemon->doors.mount = daemon->mount_path;
    }
    return gild_control_serve(daemon->store, &daemon->doors, &daemon->control, error) ? -1 : 0;
}

static void say_ready(const struct daemon *daemon) {
    struct gild_store_info info;
    if (gild_store_get_info(daemon->store, &info, NULL) == 0)
        say(SD_INFO, "serving store %s with %s, %u reactors and a cache of %llu MiB%s",
            daemon->directory, info.backend, info.reactors,
            (unsigned long long)(info.cache_bytes >> 20),
            info.recovered_batches ? "; its log was replayed" : "");
    for (size_t i = 0; i < daemon->nbd_count; i++)
        say(SD_INFO, "serving nbd on %s", daemon->nbd_where[i]);
    if (daemon->mount)
        say(SD_INFO, "serving the mount on %s", daemon->mount_path);
    sd_notifyf(0, "READY=1\nSTATUS=serving %s", daemon->directory);
}

/* ---- run and stop ---------------------------------------------------------------------------- */

static void wait_for_end(struct daemon *daemon) {
    bool mount_watched = daemon->mount != NULL;
    for (;;) {
        struct pollfd look = {.fd = daemon->signal_fd, .events = POLLIN};
        struct signalfd_siginfo info;
        int ready = poll(&look, 1, mount_watched ? MOUNT_LOOK_MS : -1);
        if (mount_watched && gild_mount_ended(daemon->mount)) {
            mount_watched = false;
            say(SD_WARNING, "the mount on %s was ended from outside; the other doors go on",
                daemon->mount_path);
        }
        if (ready <= 0 || read(daemon->signal_fd, &info, sizeof info) != (ssize_t)sizeof info)
            continue;
        if (info.ssi_signo == SIGHUP)
            continue;
        say(SD_INFO, "%s: requests in flight end, then all is flushed",
            info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
        return;
    }
}

/* Whatever was started. The code of what failed on the way. */
static enum gild_code stop(struct daemon *daemon) {
    struct gild_error error = {0};
    sd_notify(0, "STOPPING=1");
    if (daemon->control)
        gild_control_stop(daemon->control);
    for (size_t i = 0; i < daemon->nbd_count; i++)
        if (daemon->nbd[i])
            gild_nbd_stop(daemon->nbd[i], NBD_GRACE_MS);
    if (daemon->mount)
        gild_mount_stop(daemon->mount);
    if (!daemon->store || gild_store_close(daemon->store, &error) == 0)
        return GILD_OK;
    say(SD_ERR, "%s", error.message);
    return error.code;
}

static enum gild_code serve(struct daemon *daemon) {
    struct gild_error error = {0};
    raise_descriptor_limit();
    if (take_signals(daemon)) {
        say(SD_ERR, "signals can not be taken: %s", strerror(errno));
        return GILD_FAILED;
    }
    if (realpath(daemon->directory, daemon->store_path))
        daemon->directory = daemon->store_path;
    if (gild_store_open(daemon->directory, &daemon->options, &daemon->store, &error) ||
        start_doors(daemon, &error)) {
        say(SD_ERR, "%s", error.message);
        stop(daemon);
        return error.code;
    }
    say_ready(daemon);
    wait_for_end(daemon);
    enum gild_code code = stop(daemon);
    if (code == GILD_OK)
        say(SD_INFO, "store %s is closed", daemon->directory);
    return code;
}

int main(int argc, char **argv) {
    struct daemon daemon = {.signal_fd = -1};
    int code = parse_options(&daemon, argc, argv);
    if (code < 0)
        code = (int)serve(&daemon);
    if (daemon.signal_fd >= 0)
        close(daemon.signal_fd);
    return code;
}
