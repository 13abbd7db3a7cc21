/* The interposed library (LD_PRELOAD): every write, sync and change of a name that a process makes
 * under one folder goes into a trace (trace.h); on the way calls are counted, and the one of a
 * given number is the process's last, or fails.
 *
 * Covered: the calls of libc below, by whomever (LMDB's too), and what is handed to io_uring
 * (recorder_uring.c). What it sees and can not follow (a writable shared mapping, a name that comes
 * from outside) becomes an ODD event; what it does not see shows when the model's last state is
 * compared with the folder (model.c).
 *
 * Invariants
 *  - A change is told before its call, its end after it: a crash between two events may have the
 *    change or not, and nothing that another process can know of is missing.
 *  - Names change under one lock, so that what is told of them is their order.
 *
 * Threads: any. Failure: without a trace every call just passes. */
#include "recorder.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DESCRIPTORS 65536
#define SYNCS_ALWAYS ((uint64_t)1 << 63)

static struct trace_head *head;
static char root[PATH_MAX];
static size_t root_length;
static _Atomic uint64_t files[DESCRIPTORS]; /* inode, and SYNCS_ALWAYS */
static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;

void *recorder_next(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        abort();
    return function;
}

struct trace_head *recorder_head(void) {
    return head;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv(TRACE_ROOT), *path = getenv(TRACE_FILE);
    if (!folder || !path || strlen(folder) >= sizeof root)
        return;
    strcpy(root, folder);
    root_length = strlen(root);
    head = trace_map(path, false);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

uint64_t recorder_file(int fd) {
    if (!head || fd < 0 || fd >= DESCRIPTORS)
        return 0;
    return atomic_load(&files[fd]) & ~SYNCS_ALWAYS;
}

bool recorder_always_syncs(int fd) {
    return recorder_file(fd) && atomic_load(&files[fd]) & SYNCS_ALWAYS;
}

static bool is_ours(const char *path) {
    return strncmp(path, root, root_length) == 0 &&
           (path[root_length] == 0 || path[root_length] == '/');
}

static bool path_of(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return false;
    path[length] = 0;
    return true;
}

/* The absolute path of a name; false: too long, or not ours. */
static bool resolve(int folder, const char *name, char path[PATH_MAX]) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        if (folder == AT_FDCWD ? !getcwd(path, PATH_MAX) : !path_of(folder, path))
            return false;
        size_t length = strlen(path);
        if (length + strlen(name) + 2 > PATH_MAX)
            return false;
        path[length] = '/';
        strcpy(path + length + 1, name);
    }
    return is_ours(path);
}

/* Cuts the path in two at its last slash; gives the folder's inode, 0 on failure. */
static uint64_t cut(char path[PATH_MAX], const char **name) {
    struct stat status;
    char *slash = strrchr(path, '/');
    *slash = 0;
    *name = slash + 1;
    return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

/* ---- what is told, and faults ---------------------------------------------------------------- */

void recorder_call(void) {
    if (atomic_fetch_add(&head->calls, 1) + 1 == head->kill_at)
        raise(SIGKILL);
}

bool recorder_sync_fails(int fd) {
    if (atomic_fetch_add(&head->syncs, 1) + 1 != head->sync_at)
        return false;
    char path[PATH_MAX];
    if (path_of(fd, path))
        snprintf(head->sync_failed, sizeof head->sync_failed, "%.120s",
                 is_ours(path) && path[root_length] ? path + root_length + 1 : path);
    return true;
}

static void odd(const char *what) {
    struct trace_event *event = trace_take(head, TRACE_ODD, (uint32_t)strlen(what) + 1);
    if (event && event->payload_bytes)
        memcpy(event->payload, what, strlen(what) + 1);
}

static bool all_zero(const struct iovec *vectors, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        const char *bytes = vectors[i].iov_base;
        size_t length = vectors[i].iov_len;
        if (length && (bytes[0] || memcmp(bytes, bytes + 1, length - 1)))
            return false;
    }
    return true;
}

uint64_t recorder_write(uint64_t file, const struct iovec *vectors, unsigned count, uint64_t offset,
                        bool dsync) {
    uint64_t length = 0, done = 0;
    for (unsigned i = 0; i < count; i++)
        length += vectors[i].iov_len;
    bool zeroes = head->recording && all_zero(vectors, count);
    struct trace_event *event = trace_take(head, TRACE_WRITE, zeroes ? 0 : (uint32_t)length);
    if (!event || event->kind == TRACE_ODD)
        return 0;
    event->file = file;
    event->offset = offset;
    event->length = length;
    event->flags = (uint16_t)((dsync ? TRACE_DSYNC : 0) | (zeroes ? TRACE_ZEROES : 0));
    for (unsigned i = 0; i < count && !zeroes; done += vectors[i++].iov_len)
        memcpy(event->payload + done, vectors[i].iov_base, vectors[i].iov_len);
    return trace_done(head, event);
}

static uint64_t tell(enum trace_kind kind, uint64_t file, uint64_t length) {
    struct trace_event *event = trace_take(head, kind, 0);
    if (!event)
        return 0;
    event->file = file;
    event->length = length;
    return trace_done(head, event);
}

uint64_t recorder_sync(uint64_t file) {
    return tell(TRACE_SYNC, file, 0);
}

static uint64_t tell_name(enum trace_kind kind, uint64_t folder, uint64_t file, unsigned flags,
                          const char *name, const char *second) {
    size_t first_bytes = strlen(name) + 1, second_bytes = second ? strlen(second) + 1 : 0;
    struct trace_event *event = trace_take(head, kind, (uint32_t)(first_bytes + second_bytes));
    if (!event)
        return 0;
    event->folder = folder;
    event->file = file;
    event->flags = (uint16_t)flags;
    memcpy(event->payload, name, first_bytes);
    if (second)
        memcpy(event->payload + first_bytes, second, second_bytes);
    return trace_done(head, event);
}

static int64_t outcome(int64_t result) {
    return result < 0 ? -errno : result;
}

/* ---- opening and closing --------------------------------------------------------------------- */

/* Takes note of a descriptor of ours. made: it is new under its name. */
static void opened(int fd, const char *path, int flags, bool made) {
    struct stat status;
    char copy[PATH_MAX];
    const char *name;
    if (fd >= DESCRIPTORS || fstat(fd, &status))
        return;
    atomic_store(&files[fd], (uint64_t)status.st_ino | (flags & O_DSYNC ? SYNCS_ALWAYS : 0));
    if (made) {
        strcpy(copy, path);
        uint64_t folder = cut(copy, &name);
        tell_name(TRACE_MAKE, folder, (uint64_t)status.st_ino, 0, name, NULL);
    } else if (flags & O_TRUNC) {
        uint64_t ref = tell(TRACE_SIZE, (uint64_t)status.st_ino, 0);
        trace_end(head, ref, 0);
    }
}

static int open_as(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat status;
    int (*next)(int, const char *, int, ...) = RECORDER_NEXT(openat);
    if (!head || flags & O_PATH || (flags & O_TMPFILE) == O_TMPFILE || !resolve(folder, name, path))
        return next(folder, name, flags, mode);
    if (!(flags & O_CREAT)) {
        int fd = next(folder, name, flags, mode);
        if (fd >= 0)
            opened(fd, path, flags, false);
        return fd;
    }
    recorder_call();
    pthread_mutex_lock(&names);
    bool made = stat(path, &status) != 0;
    int fd = next(folder, name, flags, mode);
    int failed = errno;
    if (fd >= 0)
        opened(fd, path, flags, made);
    else if (made && stat(path, &status) == 0) {
        /* A refused O_DIRECT leaves the file that it made. */
        const char *last;
        uint64_t inside = cut(path, &last);
        tell_name(TRACE_MAKE, inside, (uint64_t)status.st_ino, 0, last, NULL);
    }
    pthread_mutex_unlock(&names);
    errno = failed;
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN_LIKE(name)                                          \
    RECORDER_EXPORT int name(const char *path, int flags, ...) { \
        va_list arguments;                                       \
        va_start(arguments, flags);                              \
        mode_t mode = mode_of(flags, arguments);                 \
        va_end(arguments);                                       \
        return open_as(AT_FDCWD, path, flags, mode);             \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name)                                                    \
    RECORDER_EXPORT int name(int folder, const char *path, int flags, ...) { \
        va_list arguments;                                                   \
        va_start(arguments, flags);                                          \
        mode_t mode = mode_of(flags, arguments);                             \
        va_end(arguments);                                                   \
        return open_as(folder, path, flags, mode);                           \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

RECORDER_EXPORT int close(int fd) {
    if (head && fd >= 0 && fd < DESCRIPTORS)
        atomic_store(&files[fd], 0);
    return RECORDER_NEXT(close)(fd);
}

RECORDER_EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd,
                           off_t offset) {
    char path[PATH_MAX];
    if (recorder_file(fd) && flags & MAP_SHARED && protection & PROT_WRITE && path_of(fd, path) &&
        !strstr(path, "/lock.mdb"))
        odd("a writable shared mapping");
    return RECORDER_NEXT(mmap)(address, length, protection, flags, fd, offset);
}

/* ---- writing --------------------------------------------------------------------------------- */

static bool is_full(int fd) {
    char path[PATH_MAX];
    return head->full[0] && path_of(fd, path) && strcmp(strrchr(path, '/') + 1, head->full) == 0;
}

/* Before the write; false: it must fail. */
static bool write_begins(int fd, const struct iovec *vectors, int count, off_t offset, int flags,
                         uint64_t *ref) {
    bool dsync = flags & RWF_DSYNC || recorder_always_syncs(fd);
    recorder_call();
    if (is_full(fd)) {
        errno = ENOSPC;
        return false;
    }
    *ref = recorder_write(recorder_file(fd), vectors, (unsigned)count, (uint64_t)offset, dsync);
    if (!dsync || !recorder_sync_fails(fd))
        return true;
    trace_end(head, *ref, -EIO);
    errno = EIO;
    return false;
}

static ssize_t write_ends(uint64_t ref, ssize_t result) {
    int failed = errno;
    trace_end(head, ref, outcome(result));
    errno = failed;
    return result;
}

static struct iovec lend(const void *buffer, size_t length) {
    union {
        const void *in;
        void *out;
    } pointer = {.in = buffer};
    return (struct iovec){.iov_base = pointer.out, .iov_len = length};
}

#define WRAP_WRITE(fd, vectors, count, offset, flags, call)         \
    do {                                                            \
        uint64_t ref;                                               \
        if (!recorder_file(fd))                                     \
            return call;                                            \
        if (!write_begins(fd, vectors, count, offset, flags, &ref)) \
            return -1;                                              \
        return write_ends(ref, call);                               \
    } while (0)

RECORDER_EXPORT ssize_t write(int fd, const void *buffer, size_t length) {
    struct iovec one = lend(buffer, length);
    WRAP_WRITE(fd, &one, 1, lseek(fd, 0, SEEK_CUR), 0, RECORDER_NEXT(write)(fd, buffer, length));
}

RECORDER_EXPORT ssize_t writev(int fd, const struct iovec *vectors, int count) {
    WRAP_WRITE(fd, vectors, count, lseek(fd, 0, SEEK_CUR), 0,
               RECORDER_NEXT(writev)(fd, vectors, count));
}

#define PWRITE_LIKE(name)                                                                    \
    RECORDER_EXPORT ssize_t name(int fd, const void *buffer, size_t length, off_t offset) {  \
        struct iovec one = lend(buffer, length);                                             \
        WRAP_WRITE(fd, &one, 1, offset, 0, RECORDER_NEXT(name)(fd, buffer, length, offset)); \
    }
PWRITE_LIKE(pwrite)
PWRITE_LIKE(pwrite64)

#define PWRITEV_LIKE(name)                                                                       \
    RECORDER_EXPORT ssize_t name(int fd, const struct iovec *vectors, int count, off_t offset) { \
        WRAP_WRITE(fd, vectors, count, offset, 0,                                                \
                   RECORDER_NEXT(name)(fd, vectors, count, offset));                             \
    }
PWRITEV_LIKE(pwritev)
PWRITEV_LIKE(pwritev64)

#define PWRITEV2_LIKE(name)                                                                    \
    RECORDER_EXPORT ssize_t name(int fd, const struct iovec *vectors, int count, off_t offset, \
                                 int flags) {                                                  \
        WRAP_WRITE(fd, vectors, count, offset, flags,                                          \
                   RECORDER_NEXT(name)(fd, vectors, count, offset, flags));                    \
    }
PWRITEV2_LIKE(pwritev2)
PWRITEV2_LIKE(pwritev64v2)

/* ---- sizes and syncs ------------------------------------------------------------------------- */

static int size_call(int fd, enum trace_kind kind, off_t length, int (*next)(int, off_t)) {
    if (!recorder_file(fd))
        return next(fd, length);
    recorder_call();
    uint64_t ref = tell(kind, recorder_file(fd), (uint64_t)length);
    return (int)write_ends(ref, next(fd, length));
}

RECORDER_EXPORT int ftruncate(int fd, off_t length) {
    return size_call(fd, TRACE_SIZE, length, RECORDER_NEXT(ftruncate));
}

RECORDER_EXPORT int ftruncate64(int fd, off_t length) {
    return size_call(fd, TRACE_SIZE, length, RECORDER_NEXT(ftruncate64));
}

RECORDER_EXPORT int truncate(const char *name, off_t length) {
    char path[PATH_MAX];
    struct stat status;
    if (!head || !resolve(AT_FDCWD, name, path) || stat(path, &status))
        return RECORDER_NEXT(truncate)(name, length);
    recorder_call();
    uint64_t ref = tell(TRACE_SIZE, (uint64_t)status.st_ino, (uint64_t)length);
    return (int)write_ends(ref, RECORDER_NEXT(truncate)(name, length));
}

static int allocate_call(int fd, int mode, off_t offset, off_t length,
                         int (*next)(int, int, off_t, off_t)) {
    if (!recorder_file(fd))
        return next(fd, mode, offset, length);
    recorder_call();
    if (mode)
        odd("fallocate with a mode");
    uint64_t ref = tell(TRACE_ALLOCATE, recorder_file(fd), (uint64_t)(offset + length));
    return (int)write_ends(ref, next(fd, mode, offset, length));
}

RECORDER_EXPORT int fallocate(int fd, int mode, off_t offset, off_t length) {
    return allocate_call(fd, mode, offset, length, RECORDER_NEXT(fallocate));
}

RECORDER_EXPORT int fallocate64(int fd, int mode, off_t offset, off_t length) {
    return allocate_call(fd, mode, offset, length, RECORDER_NEXT(fallocate64));
}

static int posix_allocate_call(int fd, off_t offset, off_t length, int (*next)(int, off_t, off_t)) {
    if (!recorder_file(fd))
        return next(fd, offset, length);
    recorder_call();
    uint64_t ref = tell(TRACE_ALLOCATE, recorder_file(fd), (uint64_t)(offset + length));
    int result = next(fd, offset, length);
    trace_end(head, ref, -result);
    return result;
}

RECORDER_EXPORT int posix_fallocate(int fd, off_t offset, off_t length) {
    return posix_allocate_call(fd, offset, length, RECORDER_NEXT(posix_fallocate));
}

RECORDER_EXPORT int posix_fallocate64(int fd, off_t offset, off_t length) {
    return posix_allocate_call(fd, offset, length, RECORDER_NEXT(posix_fallocate64));
}

static int sync_call(int fd, int (*next)(int)) {
    if (!recorder_file(fd))
        return next(fd);
    recorder_call();
    uint64_t ref = recorder_sync(recorder_file(fd));
    if (recorder_sync_fails(fd)) {
        trace_end(head, ref, -EIO);
        errno = EIO;
        return -1;
    }
    return (int)write_ends(ref, next(fd));
}

RECORDER_EXPORT int fsync(int fd) {
    return sync_call(fd, RECORDER_NEXT(fsync));
}

RECORDER_EXPORT int fdatasync(int fd) {
    return sync_call(fd, RECORDER_NEXT(fdatasync));
}

/* ---- names ----------------------------------------------------------------------------------- */

static int rename_call(int old_folder, const char *old_name, int new_folder, const char *new_name,
                       unsigned flags) {
    char old_path[PATH_MAX], new_path[PATH_MAX];
    const char *old_last = "", *new_last = "";
    int (*next)(int, const char *, int, const char *, unsigned) = RECORDER_NEXT(renameat2);
    bool from_us = head && resolve(old_folder, old_name, old_path);
    bool to_us = head && resolve(new_folder, new_name, new_path);
    if (!from_us && !to_us)
        return next(old_folder, old_name, new_folder, new_name, flags);
    recorder_call();
    pthread_mutex_lock(&names);
    uint64_t from = from_us ? cut(old_path, &old_last) : 0;
    uint64_t to = to_us ? cut(new_path, &new_last) : 0, ref = 0;
    if (!from || !to || flags & ~(unsigned)RENAME_NOREPLACE)
        odd("a rename that leads in, out, or both ways");
    else if (from == to)
        ref = tell_name(TRACE_RENAME, from, 0, 0, old_last, new_last);
    else
        ref = tell_name(TRACE_MOVE, from, to, 0, old_last, new_last);
    int result = next(old_folder, old_name, new_folder, new_name, flags);
    write_ends(ref, result);
    pthread_mutex_unlock(&names);
    return result;
}

RECORDER_EXPORT int rename(const char *old_name, const char *new_name) {
    return rename_call(AT_FDCWD, old_name, AT_FDCWD, new_name, 0);
}

RECORDER_EXPORT int renameat(int old_folder, const char *old_name, int new_folder,
                             const char *new_name) {
    return rename_call(old_folder, old_name, new_folder, new_name, 0);
}

RECORDER_EXPORT int renameat2(int old_folder, const char *old_name, int new_folder,
                              const char *new_name, unsigned flags) {
    return rename_call(old_folder, old_name, new_folder, new_name, flags);
}

RECORDER_EXPORT int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    const char *last;
    if (!head || !resolve(folder, name, path))
        return RECORDER_NEXT(unlinkat)(folder, name, flags);
    recorder_call();
    pthread_mutex_lock(&names);
    uint64_t inside = cut(path, &last);
    uint64_t ref = tell_name(TRACE_UNLINK, inside, 0, 0, last, NULL);
    int result = (int)write_ends(ref, RECORDER_NEXT(unlinkat)(folder, name, flags));
    pthread_mutex_unlock(&names);
    return result;
}

RECORDER_EXPORT int unlink(const char *name) {
    return unlinkat(AT_FDCWD, name, 0);
}

RECORDER_EXPORT int rmdir(const char *name) {
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

RECORDER_EXPORT int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    const char *last;
    struct stat status;
    if (!head || !resolve(folder, name, path) || strcmp(path, root) == 0)
        return RECORDER_NEXT(mkdirat)(folder, name, mode);
    recorder_call();
    pthread_mutex_lock(&names);
    int result = RECORDER_NEXT(mkdirat)(folder, name, mode);
    int failed = errno;
    if (result == 0 && stat(path, &status) == 0) {
        uint64_t inside = cut(path, &last);
        tell_name(TRACE_MAKE, inside, (uint64_t)status.st_ino, TRACE_FOLDER, last, NULL);
    }
    pthread_mutex_unlock(&names);
    errno = failed;
    return result;
}

RECORDER_EXPORT int mkdir(const char *name, mode_t mode) {
    return mkdirat(AT_FDCWD, name, mode);
}

RECORDER_EXPORT int linkat(int old_folder, const char *old_name, int new_folder,
                           const char *new_name, int flags) {
    char old_path[PATH_MAX], path[PATH_MAX];
    const char *last;
    struct stat status;
    if (!head || !resolve(new_folder, new_name, path))
        return RECORDER_NEXT(linkat)(old_folder, old_name, new_folder, new_name, flags);
    recorder_call();
    pthread_mutex_lock(&names);
    uint64_t inside = cut(path, &last), ref = 0;
    if (resolve(old_folder, old_name, old_path) && lstat(old_path, &status) == 0)
        ref = tell_name(TRACE_LINK, inside, (uint64_t)status.st_ino, 0, last, NULL);
    else
        odd("a link to what is not ours");
    int result = (int)write_ends(
        ref, RECORDER_NEXT(linkat)(old_folder, old_name, new_folder, new_name, flags));
    pthread_mutex_unlock(&names);
    return result;
}

RECORDER_EXPORT int link(const char *old_name, const char *new_name) {
    return linkat(AT_FDCWD, old_name, AT_FDCWD, new_name, 0);
}
