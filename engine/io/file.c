/* Files of a store, from threads that may block (io/file.h).
 *
 * Invariant: what a call reports as durable has been synced, file before folder entry. Thread: any;
 * calls share nothing. Failure: -errno as the system gave it; gild_file_replace removes its
 * temporary file. */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define ZERO_CHUNK_BYTES (1u << 20)

int gild_file_open(int folder, const char *name, int flags, mode_t mode, bool *direct) {
    int fd = openat(folder, name, flags | O_CLOEXEC, mode);
    bool is_direct = flags & O_DIRECT;
    if (fd < 0 && errno == EINVAL && is_direct) {
        /* Linux makes the file first and then refuses O_DIRECT: with O_EXCL it is ours. */
        is_direct = false;
        flags &= ~O_DIRECT;
        fd = openat(folder, name, flags | O_CLOEXEC, mode);
        if (fd < 0 && errno == EEXIST && flags & O_EXCL)
            fd = openat(folder, name, (flags & ~O_EXCL) | O_CLOEXEC, mode);
    }
    if (direct)
        *direct = is_direct;
    return fd < 0 ? -errno : fd;
}

ssize_t gild_file_read_some(int fd, void *buffer, size_t length, uint64_t offset) {
    size_t done = 0;
    while (done < length) {
        ssize_t part = pread(fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (part < 0 && errno == EINTR)
            continue;
        /* Direct I/O ends at an odd byte only at the end of the file, and refuses to go on there.
         */
        if (part < 0 && errno == EINVAL && done % 512)
            break;
        if (part < 0)
            return -errno;
        if (part == 0)
            break;
        done += (size_t)part;
    }
    return (ssize_t)done;
}

int gild_file_read(int fd, void *buffer, size_t length, uint64_t offset) {
    ssize_t done = gild_file_read_some(fd, buffer, length, offset);
    if (done < 0)
        return (int)done;
    return (size_t)done == length ? 0 : -ENODATA;
}

int gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset) {
    size_t done = 0;
    while (done < length) {
        ssize_t part =
            pwrite(fd, (const char *)buffer + done, length - done, (off_t)(offset + done));
        if (part < 0 && errno == EINTR)
            continue;
        if (part <= 0)
            return part < 0 ? -errno : -EIO;
        done += (size_t)part;
    }
    return 0;
}

int gild_file_sync(int fd) {
    return fdatasync(fd) < 0 ? -errno : 0;
}

int gild_file_sync_folder(int fd) {
    return fsync(fd) < 0 ? -errno : 0;
}

int gild_file_make_folder(const char *path) {
    char parent[PATH_MAX];
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return -errno;
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof parent)
        return -ENAMETOOLONG;
    memcpy(parent, path, length);
    parent[length] = 0;
    int fd = open(length ? parent : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = fd < 0 ? -errno : gild_file_sync_folder(fd);
    if (fd >= 0)
        close(fd);
    return result;
}

int gild_file_size(int fd, uint64_t *bytes) {
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    *bytes = (uint64_t)status.st_size;
    return 0;
}

static int write_zeroes(int fd, uint64_t bytes) {
    char *zeroes = gild_file_buffer(ZERO_CHUNK_BYTES);
    int result = zeroes ? 0 : -ENOMEM;
    for (uint64_t done = 0; !result && done < bytes; done += ZERO_CHUNK_BYTES) {
        size_t part = (size_t)gild_min_u64(bytes - done, ZERO_CHUNK_BYTES);
        result = gild_file_write(fd, zeroes, part, done);
    }
    free(zeroes);
    return result;
}

void gild_file_in_place(int folder) {
    int flags;
    if (ioctl(folder, FS_IOC_GETFLAGS, &flags) == 0 && !(flags & FS_NOCOW_FL)) {
        flags |= FS_NOCOW_FL;
        (void)ioctl(folder, FS_IOC_SETFLAGS, &flags); /* refused where there is no such thing */
    }
}

int gild_file_allocate(int fd, uint64_t bytes) {
    uint64_t size;
    int result;
    do
        result = fallocate(fd, 0, 0, (off_t)bytes) < 0 ? -errno : 0;
    while (result == -EINTR);
    if (result != -EOPNOTSUPP)
        return result;
    result = gild_file_size(fd, &size);
    if (result)
        return result;
    /* Never over what is there already. */
    return size ? -EOPNOTSUPP : write_zeroes(fd, bytes);
}

int gild_file_replace(int folder, const char *name, const void *bytes, size_t length, mode_t mode) {
    char temporary[NAME_MAX + 1];
    int result;
    if (snprintf(temporary, sizeof temporary, "%s.tmp", name) >= (int)sizeof temporary)
        return -ENAMETOOLONG;
    int fd = gild_file_open(folder, temporary, O_WRONLY | O_CREAT | O_TRUNC, mode, NULL);
    if (fd < 0)
        return fd;
    result = gild_file_write(fd, bytes, length, 0);
    if (!result)
        result = fsync(fd) < 0 ? -errno : 0;
    if (close(fd) < 0 && !result)
        result = -errno;
    if (!result && renameat(folder, temporary, folder, name) < 0)
        result = -errno;
    if (result) {
        unlinkat(folder, temporary, 0);
        return result;
    }
    int folder_fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_fd < 0)
        return -errno;
    result = gild_file_sync_folder(folder_fd);
    close(folder_fd);
    return result;
}

int gild_file_slurp(int folder, const char *name, size_t most_bytes, void **bytes, size_t *length) {
    uint64_t size;
    char *content = NULL;
    int fd = gild_file_open(folder, name, O_RDONLY, 0, NULL);
    if (fd < 0)
        return fd;
    int result = gild_file_size(fd, &size);
    if (!result && size > most_bytes)
        result = -EFBIG;
    if (!result && !(content = malloc((size_t)size + 1)))
        result = -ENOMEM;
    if (!result)
        result = gild_file_read(fd, content, (size_t)size, 0);
    close(fd);
    if (result) {
        free(content);
        return result;
    }
    content[size] = '\0';
    *bytes = content;
    *length = (size_t)size;
    return 0;
}

int gild_file_list(int folder, gild_file_visit *visit, void *context) {
    int result = 0;
    /* A descriptor of its own: the walk's position belongs to the open file. */
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    DIR *stream = fdopendir(fd);
    if (!stream) {
        result = -errno;
        close(fd);
        return result;
    }
    while (!result) {
        errno = 0;
        struct dirent *entry = readdir(stream);
        if (!entry) {
            result = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            result = visit(context, entry->d_name);
    }
    closedir(stream);
    return result;
}

int gild_file_remove(int folder, const char *name) {
    return unlinkat(folder, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}

void *gild_file_buffer(size_t bytes) {
    size_t room = (size_t)gild_align_up(bytes ? bytes : 1, GILD_DIRECT_BYTES);
    void *memory = aligned_alloc(GILD_DIRECT_BYTES, room);
    if (memory)
        memset(memory, 0, room);
    return memory;
}
