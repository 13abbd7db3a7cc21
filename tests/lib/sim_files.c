/* The C library's file calls, as the engine makes them, on the simulated disk (sim_disk.h): linked
 * in their place by sim_wraps.cmake once the simulation runs. A blocking call takes some virtual
 * time, in which other threads run.
 *
 * Descriptors are numbers from FIRST_FD on, of no file of the process. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "sim_inode.h"
#include "sim_threads.h"

#define FIRST_FD 100000
#define MOST_FDS 256
#define PATH_BYTES 256u

struct descriptor {
    struct sim_inode *inode;
    char path[PATH_BYTES];
    uint64_t at;
};

static struct descriptor descriptors[MOST_FDS];

void sim_disk_make(void) {
    memset(descriptors, 0, sizeof descriptors);
    sim_names_make();
}

static struct descriptor *descriptor_of(int fd) {
    if (fd < FIRST_FD || fd >= FIRST_FD + MOST_FDS || !descriptors[fd - FIRST_FD].inode)
        return NULL;
    return &descriptors[fd - FIRST_FD];
}

struct sim_inode *sim_inode_of(int fd) {
    struct descriptor *descriptor = descriptor_of(fd);
    return descriptor ? descriptor->inode : NULL;
}

/* A call that blocks: others run meanwhile. */
static void take_time(void) {
    static const char nobody_wakes_this;
    sim_wait(&nobody_wakes_this, sim_now_ns() + 20000 + sim_below(200000));
}

static int answer(long result) {
    if (result >= 0)
        return (int)result;
    errno = (int)-result;
    return -1;
}

/* folder/name as a whole path, without "/." at the end. */
static const char *path_in(int folder, const char *name, char out[PATH_BYTES]) {
    struct descriptor *descriptor = descriptor_of(folder);
    size_t length;
    if (*name == '/' || !descriptor)
        snprintf(out, PATH_BYTES, "%s", name);
    else
        snprintf(out, PATH_BYTES, "%s/%s", descriptor->path, name);
    length = strlen(out);
    if (length > 2 && strcmp(out + length - 2, "/.") == 0)
        out[length - 2] = 0;
    return out;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int open_at(int folder, const char *name, int flags) {
    char path[PATH_BYTES];
    struct sim_inode *inode;
    int error = sim_names_find(path_in(folder, name, path), &inode);
    if (error == -ENOENT && flags & O_CREAT) {
        error = sim_fault_error(SIM_AT_CREATE);
        if (!error)
            error = sim_names_create(path, false, &inode);
    } else if (!error && (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
        error = -EEXIST;
    else if (!error && flags & O_DIRECTORY && !inode->folder)
        error = -ENOTDIR;
    if (!error && flags & O_TRUNC)
        sim_inode_truncate(inode, 0);
    if (error)
        return answer(error);
    for (int i = 0; i < MOST_FDS; i++) {
        if (descriptors[i].inode)
            continue;
        descriptors[i] = (struct descriptor){.inode = inode};
        memcpy(descriptors[i].path, path, sizeof path);
        return FIRST_FD + i;
    }
    return answer(-EMFILE);
}

int __wrap_open(const char *path, int flags, ...) {
    return open_at(AT_FDCWD, path, flags);
}

int __wrap_openat(int folder, const char *name, int flags, ...) {
    return open_at(folder, name, flags);
}

int __real_close(int fd);
int __wrap_close(int fd) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (!descriptor)
        return __real_close(fd);
    descriptor->inode = NULL;
    return 0;
}

int __wrap_flock(int fd, int operation) {
    (void)operation;
    return answer(descriptor_of(fd) ? 0 : -EBADF);
}

/* ---- transfers ------------------------------------------------------------------------------- */

ssize_t __wrap_pread(int fd, void *buffer, size_t length, off_t offset) {
    take_time();
    long result = sim_disk_read(SIM_AT_PREAD, fd, buffer, length, (uint64_t)offset);
    return result < 0 ? answer(result) : result;
}

ssize_t __wrap_pwrite(int fd, const void *buffer, size_t length, off_t offset) {
    uint64_t write;
    long result = sim_disk_write_begin(SIM_AT_PWRITE, fd, buffer, length, (uint64_t)offset, &write);
    if (result < 0)
        return answer(result);
    take_time();
    sim_disk_write_done(fd, write, false);
    return result;
}

ssize_t __real_write(int fd, const void *buffer, size_t length);
ssize_t __wrap_write(int fd, const void *buffer, size_t length) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (!descriptor)
        return __real_write(fd, buffer, length);
    ssize_t result = __wrap_pwrite(fd, buffer, length, (off_t)descriptor->at);
    if (result > 0)
        descriptor->at += (uint64_t)result;
    return result;
}

int __wrap_fsync(int fd) {
    uint64_t sync;
    int error = sim_disk_sync_begin(SIM_AT_FSYNC, fd, &sync);
    if (error)
        return answer(error);
    take_time();
    sim_disk_sync_done(fd, sync);
    return 0;
}

int __wrap_fdatasync(int fd) {
    return __wrap_fsync(fd);
}

static int grow(int fd, off_t offset, off_t length) {
    struct sim_inode *inode = sim_inode_of(fd);
    int error = inode ? sim_fault_error(SIM_AT_FALLOCATE) : -EBADF;
    if (error)
        return error;
    if (!sim_disk_fits(inode, (uint64_t)(offset + length)))
        return -ENOSPC;
    if ((uint64_t)(offset + length) > inode->size)
        inode->size = (uint64_t)(offset + length);
    return 0;
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length) {
    return answer(mode ? -EOPNOTSUPP : grow(fd, offset, length));
}

int __wrap_posix_fallocate(int fd, off_t offset, off_t length) {
    return -grow(fd, offset, length);
}

/* ---- names ----------------------------------------------------------------------------------- */

static int fill_stat(const struct sim_inode *inode, struct stat *out) {
    memset(out, 0, sizeof *out);
    out->st_mode = inode->folder ? S_IFDIR | 0700 : S_IFREG | 0600;
    out->st_size = (off_t)inode->size;
    out->st_blocks = (blkcnt_t)(inode->size / 512);
    out->st_ino = inode->number;
    out->st_nlink = sim_names_of(inode);
    uint64_t written_ns = SIM_EPOCH_NS + inode->written_ns;
    out->st_mtim =
        (struct timespec){(time_t)(written_ns / 1000000000u), (long)(written_ns % 1000000000u)};
    return 0;
}

int __wrap_fstat(int fd, struct stat *out) {
    struct sim_inode *inode = sim_inode_of(fd);
    return inode ? fill_stat(inode, out) : answer(-EBADF);
}

int __wrap_fstatat(int folder, const char *name, struct stat *out, int flags) {
    char path[PATH_BYTES];
    struct sim_inode *inode;
    (void)flags;
    int error = sim_names_find(path_in(folder, name, path), &inode);
    return error ? answer(error) : fill_stat(inode, out);
}

int __wrap_stat(const char *path, struct stat *out) {
    return __wrap_fstatat(AT_FDCWD, path, out, 0);
}

int __wrap_mkdir(const char *path, mode_t mode) {
    struct sim_inode *inode;
    (void)mode;
    return answer(sim_names_create(path, true, &inode));
}

int __wrap_rmdir(const char *path) {
    return answer(sim_names_remove(path));
}

static int remove_name(const char *path) {
    int error = sim_fault_error(SIM_AT_UNLINK);
    return answer(error ? error : sim_names_remove(path));
}

int __wrap_unlinkat(int folder, const char *name, int flags) {
    char path[PATH_BYTES];
    (void)flags;
    return remove_name(path_in(folder, name, path));
}

int __wrap_unlink(const char *path) {
    return remove_name(path);
}

static int rename_to(const char *from, const char *to, bool replace) {
    int error = sim_fault_error(SIM_AT_RENAME);
    return answer(error ? error : sim_names_rename(from, to, replace));
}

int __wrap_renameat(int from, const char *from_name, int to, const char *to_name) {
    char from_path[PATH_BYTES], to_path[PATH_BYTES];
    return rename_to(path_in(from, from_name, from_path), path_in(to, to_name, to_path), true);
}

int __wrap_renameat2(int from, const char *from_name, int to, const char *to_name, unsigned flags) {
    char from_path[PATH_BYTES], to_path[PATH_BYTES];
    return rename_to(path_in(from, from_name, from_path), path_in(to, to_name, to_path),
                     !(flags & RENAME_NOREPLACE));
}

int __wrap_rename(const char *from, const char *to) {
    return rename_to(from, to, true);
}

int __wrap_statvfs(const char *path, struct statvfs *out) {
    (void)path;
    memset(out, 0, sizeof *out);
    out->f_frsize = out->f_bsize = SIM_PAGE;
    uint64_t most = (uint64_t)64 << 30, left = sim_disk_free();
    out->f_blocks = most / SIM_PAGE;
    out->f_bfree = out->f_bavail = (left < most ? left : most) / SIM_PAGE;
    return 0;
}

/* ---- folders --------------------------------------------------------------------------------- */

struct walk {
    int fd;
    unsigned count, at;
    struct dirent entry;
    char (*names)[64];
};

static DIR *open_walk(int fd) {
    struct descriptor *descriptor = descriptor_of(fd);
    struct walk *walk = calloc(1, sizeof *walk);
    const char *name;
    if (!descriptor || !walk)
        abort();
    walk->fd = fd;
    while ((name = sim_names_in(descriptor->path, walk->count))) {
        walk->names = realloc(walk->names, (walk->count + 1) * sizeof *walk->names);
        if (!walk->names)
            abort();
        snprintf(walk->names[walk->count++], sizeof *walk->names, "%s", name);
    }
    return (DIR *)walk;
}

DIR *__wrap_fdopendir(int fd) {
    return open_walk(fd);
}

DIR *__wrap_opendir(const char *path) {
    int fd = open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY);
    return fd < 0 ? NULL : open_walk(fd);
}

struct dirent *__wrap_readdir(DIR *folder) {
    struct walk *walk = (struct walk *)folder;
    if (walk->at == walk->count)
        return NULL;
    strcpy(walk->entry.d_name, walk->names[walk->at++]);
    return &walk->entry;
}

int __wrap_dirfd(DIR *folder) {
    return ((struct walk *)folder)->fd;
}

int __wrap_closedir(DIR *folder) {
    struct walk *walk = (struct walk *)folder;
    __wrap_close(walk->fd);
    free(walk->names);
    free(walk);
    return 0;
}

/* ---- the rest -------------------------------------------------------------------------------- */

int __wrap_ftruncate(int fd, off_t length) {
    struct sim_inode *inode = sim_inode_of(fd);
    if (!inode)
        return answer(-EBADF);
    sim_inode_truncate(inode, (uint64_t)length);
    return 0;
}

off_t __real_lseek(int fd, off_t offset, int whence);
off_t __wrap_lseek(int fd, off_t offset, int whence) {
    struct descriptor *descriptor = descriptor_of(fd);
    if (!descriptor)
        return __real_lseek(fd, offset, whence);
    off_t size = (off_t)descriptor->inode->size;
    switch (whence) {
    case SEEK_SET:
    case SEEK_CUR:
    case SEEK_END:
        descriptor->at = (uint64_t)(offset + (whence == SEEK_END   ? size
                                              : whence == SEEK_CUR ? (off_t)descriptor->at
                                                                   : 0));
        return (off_t)descriptor->at;
    case SEEK_DATA:
        return offset < size ? offset : answer(-ENXIO);
    case SEEK_HOLE:
        return offset < size ? size : answer(-ENXIO);
    default:
        return answer(-EINVAL);
    }
}

/* The number of processors decides how many threads an import has: the same everywhere. */
long __real_sysconf(int name);
long __wrap_sysconf(int name) {
    return sim_running() && name == _SC_NPROCESSORS_ONLN ? 2 : __real_sysconf(name);
}

ssize_t __wrap_getrandom(void *buffer, size_t length, unsigned flags) {
    (void)flags;
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)buffer)[i] = (uint8_t)sim_random();
    return (ssize_t)length;
}

/* The engine's large buffers are aligned and zeroed, and mostly not used to their ends. Nothing
 * here needs the alignment, and what calloc has straight from the kernel costs nothing until it is
 * touched: without this, half of the time of a power cut goes into zeroes. */
void *__wrap_gild_file_buffer(size_t bytes) {
    return calloc(1, bytes ? bytes : 1);
}

/* Thousands of errors are expected: said only to who asks for them. */
void __wrap_gild_log(enum gild_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void __wrap_gild_log(enum gild_log_level level, const char *format, ...) {
    va_list arguments;
    (void)level;
    if (!getenv("GILD_LOG"))
        return;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

int __wrap_posix_fadvise(int fd, off_t offset, off_t length, int advice) {
    (void)fd, (void)offset, (void)length, (void)advice;
    return 0;
}
