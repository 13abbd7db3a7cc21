/* See rig.h. The scratch folder is on tmpfs where there is room: a store is made and dropped there
 * thousands of times, and what a crash leaves is the model's matter, not the file system's. */
#include "rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "nbd_client.h"

#define WORDS 16u
#define ROOM_BYTES ((uint64_t)4 << 30)

static void fatal(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static const char *program(const char *name) {
    const char *path = getenv(name);
    if (!path) {
        printf("skipped: %s is not set; run it by ctest\n", name);
        exit(77);
    }
    return path;
}

void rig_need(void) {
    static const char *const wanted[] = {"GILD", "GILDD", "GILD_SMALL", "GILD_RECORDER"};
    const char *sanitizers = getenv("GILD_SANITIZERS");
    if (sanitizers && *sanitizers) {
        printf("skipped: built with -fsanitize=%s, whose library wants to be the first loaded\n",
               sanitizers);
        exit(77);
    }
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (access(program(wanted[i]), R_OK) != 0) {
            printf("skipped: %s is not there\n", program(wanted[i]));
            exit(77);
        }
}

/* ---- folders --------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *walk) {
    (void)status, (void)flag;
    return walk->level == 0 ? 0 : remove(path);
}

void rig_empty(const char *folder) {
    if (nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        fatal(folder);
}

static void copy_file(const char *from, const char *to, const struct stat *status) {
    char buffer[1 << 16];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, status->st_mode & 0777);
    if (in < 0 || out < 0 || ftruncate(out, status->st_size))
        fatal(to);
    for (off_t at = lseek(in, 0, SEEK_DATA); at >= 0 && at < status->st_size;
         at = lseek(in, at, SEEK_DATA)) {
        ssize_t length = pread(in, buffer, sizeof buffer, at);
        if (length <= 0 || pwrite(out, buffer, (size_t)length, at) != length)
            fatal(to);
        at += length;
    }
    close(in);
    close(out);
}

void rig_copy(const char *from, const char *to) {
    DIR *stream = opendir(from);
    struct dirent *entry;
    if (!stream || mkdir(to, 0700))
        fatal(to);
    while ((entry = readdir(stream))) {
        char source[1024], target[1024];
        struct stat status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        snprintf(source, sizeof source, "%s/%s", from, entry->d_name);
        snprintf(target, sizeof target, "%s/%s", to, entry->d_name);
        if (lstat(source, &status))
            fatal(source);
        if (S_ISDIR(status.st_mode))
            rig_copy(source, target);
        else if (S_ISREG(status.st_mode))
            copy_file(source, target, &status);
    }
    closedir(stream);
}

static const char *scratch(void) {
    const char *given = getenv("GILD_TEST_FOLDER");
    struct statvfs room;
    if (given && *given)
        return given;
    if (access("/dev/shm", W_OK) == 0 && statvfs("/dev/shm", &room) == 0 &&
        (uint64_t)room.f_bavail * room.f_bsize > ROOM_BYTES)
        return "/dev/shm";
    return "/var/tmp";
}

void rig_make(struct rig *rig) {
    struct stat status;
    *rig = (struct rig){.daemon_says = -1};
    snprintf(rig->work, sizeof rig->work, "%.30s/gild-real.XXXXXX", scratch());
    if (!mkdtemp(rig->work))
        fatal(rig->work);
    snprintf(rig->store, sizeof rig->store, "%s/store", rig->work);
    snprintf(rig->trace_path, sizeof rig->trace_path, "%s/trace", rig->work);
    snprintf(rig->socket, sizeof rig->socket, "unix:%s/nbd", rig->work);
    snprintf(rig->log, sizeof rig->log, "%s/log", rig->work);
    if (mkdir(rig->store, 0700) || stat(rig->store, &status) ||
        !(rig->head = trace_map(rig->trace_path, true)))
        fatal(rig->store);
    rig->root = (uint64_t)status.st_ino;
}

void rig_remove(struct rig *rig) {
    if (rig->daemon)
        kill(rig->daemon, SIGKILL), rig_wait(rig->daemon);
    if (rig->daemon_says >= 0)
        close(rig->daemon_says);
    trace_unmap(rig->head);
    rig_empty(rig->work);
    rmdir(rig->work);
}

void rig_forget(struct rig *rig, bool recording) {
    trace_unmap(rig->head);
    unlink(rig->trace_path);
    rig->head = trace_map(rig->trace_path, true);
    if (!rig->head)
        fatal(rig->trace_path);
    rig->head->recording = recording;
}

uint64_t rig_now(struct rig *rig) {
    uint64_t at = trace_mark(rig->head, 0, 0, 0);
    return at ? at : ++rig->clock;
}

/* ---- processes ------------------------------------------------------------------------------- */

static pid_t start(struct rig *rig, const char *const *words, bool recorded, int output) {
    char *copies[WORDS + 1] = {NULL};
    for (unsigned i = 0; words[i]; i++)
        if (i == WORDS || !(copies[i] = strdup(words[i])))
            abort();
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        fatal("fork");
    if (pid == 0) {
        int log = open(rig->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, 0);
        dup2(output >= 0 ? output : log, 1);
        dup2(log, 2);
        unsetenv("GILD_STORE");
        if (recorded) {
            setenv(TRACE_ROOT, rig->store, 1);
            setenv(TRACE_FILE, rig->trace_path, 1);
            setenv("LD_PRELOAD", program("GILD_RECORDER"), 1);
        }
        execv(copies[0], copies);
        _exit(127);
    }
    for (unsigned i = 0; words[i]; i++)
        free(copies[i]);
    return pid;
}

pid_t rig_start(struct rig *rig, const char *const *words) {
    return start(rig, words, true, -1);
}

static int code_of(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int rig_wait(pid_t pid) {
    int status, handle = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd look = {.fd = handle, .events = POLLIN};
    bool late = handle >= 0 && poll(&look, 1, RIG_SECONDS * 1000) == 0;
    if (late)
        kill(pid, SIGKILL);
    if (handle >= 0)
        close(handle);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            fatal("waitpid");
    return late ? -1 : code_of(status);
}

int rig_run(struct rig *rig, const char *const *words) {
    return rig_wait(rig_start(rig, words));
}

static int gild_words(struct rig *rig, bool recorded, va_list arguments) {
    const char *words[WORDS] = {program("GILD"), "--store", rig->store, "--yes"};
    for (unsigned i = 4; i + 1 < WORDS && (words[i] = va_arg(arguments, const char *)); i++)
        ;
    return rig_wait(start(rig, words, recorded, -1));
}

int rig_gild(struct rig *rig, ...) {
    va_list arguments;
    va_start(arguments, rig);
    int code = gild_words(rig, true, arguments);
    va_end(arguments);
    return code;
}

int rig_plain_gild(struct rig *rig, ...) {
    va_list arguments;
    va_start(arguments, rig);
    int code = gild_words(rig, false, arguments);
    va_end(arguments);
    return code;
}

const char *rig_log(const struct rig *rig) {
    static char text[8192];
    int fd = open(rig->log, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    return text;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

bool rig_daemon_is_gone(struct rig *rig) {
    int status;
    if (!rig->daemon)
        return true;
    if (waitpid(rig->daemon, &status, WNOHANG) != rig->daemon)
        return false;
    rig->daemon_code = code_of(status);
    rig->daemon = 0;
    return true;
}

/* The control door is the last that it opens. */
static bool serves(struct rig *rig) {
    char where[100];
    snprintf(where, sizeof where, "unix:%s/control.sock", rig->store);
    int fd = nbd_client_connect(where);
    if (fd < 0)
        return false;
    close(fd);
    return true;
}

bool rig_daemon_start(struct rig *rig, bool small, const char *backend) {
    const char *const real[] = {
        program("GILDD"), "--store",   rig->store, "--nbd",   rig->socket, "--io-backend",
        backend,          "--threads", "1",        "--cache", "16M",       NULL};
    const char *const own[] = {program("GILD_SMALL"), rig->store, rig->socket, backend, NULL};
    char stale[100];
    int ends[2] = {-1, -1};
    snprintf(stale, sizeof stale, "%s/control.sock", rig->store);
    unlink(stale);
    if (rig->daemon_says >= 0)
        close(rig->daemon_says);
    if (pipe2(ends, O_CLOEXEC))
        fatal("pipe2");
    rig->daemon_says = ends[0];
    rig->daemon = start(rig, small ? own : real, true, small ? ends[1] : -1);
    close(ends[1]);
    struct timespec pause = {.tv_nsec = 1000000};
    for (unsigned i = 0; i < RIG_SECONDS * 1000 && !serves(rig); i++) {
        if (rig_daemon_is_gone(rig))
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

int rig_daemon_stop(struct rig *rig) {
    if (rig->daemon) {
        kill(rig->daemon, SIGTERM);
        rig->daemon_code = rig_wait(rig->daemon);
        rig->daemon = 0;
    }
    return rig->daemon_code;
}

bool rig_checkpoint(struct rig *rig) {
    char answer = 0;
    struct pollfd look = {.fd = rig->daemon_says, .events = POLLIN};
    if (!rig->daemon || kill(rig->daemon, SIGUSR1))
        return false;
    return poll(&look, 1, RIG_SECONDS * 1000) == 1 && read(rig->daemon_says, &answer, 1) == 1 &&
           answer == '+';
}
