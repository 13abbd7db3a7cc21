/* See superblock.h. The lock is flock()'s: it goes with the process, so a crash leaves none behind.
 */
#include "disk/superblock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "gild/store.h"
#include "io/file.h"

static uint64_t superblock_check(const struct superblock *block) {
    return XXH3_64bits((const char *)block + 16, SUPERBLOCK_BYTES - 16);
}

int superblock_create(const char *directory, uint64_t size_limit_bytes, struct gild_error *error) {
    char path[4096];
    struct timespec now;
    struct superblock block = {.magic = SUPERBLOCK_MAGIC,
                               .format = GILD_STORE_FORMAT,
                               .size_limit_bytes = size_limit_bytes};
    clock_gettime(CLOCK_REALTIME, &now);
    block.created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    snprintf(path, sizeof path, "%s/superblock", directory);
    if (getrandom(block.id, sizeof block.id, 0) != (ssize_t)sizeof block.id)
        return gild_fail(error, GILD_FAILED, errno, "no random numbers for a new store's id");
    block.id[6] = (uint8_t)((block.id[6] & 0x0f) | 0x40); /* UUID version 4, RFC 4122 section 4.4 */
    block.id[8] = (uint8_t)((block.id[8] & 0x3f) | 0x80);
    block.check = superblock_check(&block);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int err = fd < 0 ? errno : 0;
    if (!err) {
        ssize_t n = write(fd, &block, sizeof block);
        err = n < 0 ? errno : n != (ssize_t)sizeof block ? ENOSPC : 0;
    }
    if (!err && fsync(fd) != 0)
        err = errno;
    if (fd >= 0)
        close(fd);
    if (!err)
        return 0;
    if (fd >= 0)
        unlink(path);
    return gild_fail(error, gild_code_of_errno(err), err, "%s can not be written: %s", path,
                     strerror(err));
}

static int superblock_verify(const struct superblock *block, ssize_t length, const char *directory,
                             struct gild_error *error) {
    if (length != (ssize_t)sizeof *block || block->magic != SUPERBLOCK_MAGIC)
        return gild_fail(
            error, GILD_CORRUPT, EBADMSG,
            "%s is no gild store, or its superblock is damaged: check the path, or run "
            "`gild store check --repair`; nothing was changed",
            directory);
    /* The format is looked at before the check: a newer one may compute it otherwise. */
    if (block->format > GILD_STORE_FORMAT || block->incompatible)
        return gild_fail(
            error, GILD_FAILED, ENOTSUP,
            "store %s has format %u and features %#x, this gild knows format %u: use a newer "
            "gild",
            directory, block->format, block->incompatible, GILD_STORE_FORMAT);
    if (block->check != superblock_check(block) || block->format == 0)
        return gild_fail(error, GILD_CORRUPT, EBADMSG,
                         "the superblock of store %s is damaged: run `gild store check --repair`; "
                         "nothing was changed",
                         directory);
    return 0;
}

static int take_lock(int fd, const char *directory, struct gild_error *error) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "store %s is held by another process: stop it, or use its daemon",
                         directory);
    return gild_fail(error, GILD_FAILED, errno, "store %s can not be locked: %s", directory,
                     strerror(errno));
}

int superblock_open(const char *directory, struct superblock *out, int *lock_fd,
                    struct gild_error *error) {
    char path[4096];
    snprintf(path, sizeof path, "%s/superblock", directory);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return gild_fail(error, GILD_NOT_FOUND, errno,
                         "there is no store in %s: make one with `gild store init`", directory);
    if (fd < 0)
        return gild_fail(error, gild_code_of_errno(errno), errno, "%s can not be opened: %s", path,
                         strerror(errno));
    int err = take_lock(fd, directory, error);
    if (err) {
        close(fd);
        return err;
    }
    ssize_t n = gild_file_read_some(fd, out, sizeof *out, 0);
    err = n < 0 ? gild_fail(error, gild_code_of_errno((int)-n), (int)-n, "%s can not be read: %s",
                            path, strerror((int)-n))
                : superblock_verify(out, n, directory, error);
    if (err) {
        close(fd);
        return err;
    }
    *lock_fd = fd;
    return 0;
}

int superblock_lock(const char *directory, bool look_only, struct superblock *block, int *lock_fd,
                    struct gild_error *error) {
    char path[4096];
    snprintf(path, sizeof path, "%s/superblock", directory);
    memset(block, 0, sizeof *block);
    int fd = open(path, look_only ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    *lock_fd = fd;
    if (fd < 0 && errno == ENOENT && look_only)
        return 0;
    if (fd < 0)
        return gild_fail(error, gild_code_of_errno(errno), errno, "%s can not be opened: %s", path,
                         strerror(errno));
    int err = take_lock(fd, directory, error);
    ssize_t n = err ? 0 : gild_file_read_some(fd, block, sizeof *block, 0);
    if (n < 0)
        err = gild_fail(error, GILD_FAILED, (int)-n, "%s can not be read: %s", path,
                        strerror((int)-n));
    if (err) {
        close(fd);
        *lock_fd = -1;
    }
    return err;
}

int superblock_judge(const struct superblock *block, const char *directory,
                     struct gild_error *error) {
    return superblock_verify(block, sizeof *block, directory, error);
}

int superblock_restore(int lock_fd, const struct superblock *block) {
    if (ftruncate(lock_fd, sizeof *block) != 0)
        return -errno;
    int err = gild_file_write(lock_fd, block, sizeof *block, 0);
    return err ? err : gild_file_sync(lock_fd);
}
