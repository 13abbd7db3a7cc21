/* A mount's life: checks of the folder, start, stop.
 *
 *   start: folder is sound -> session, mount(2) -> name threads -> the first reader
 *   stop:  umount -> readers stop -> requests in flight come home -> name threads end
 *          -> session closed (a busy mount is cut off here) -> disks closed
 *
 * Stop always ends: a mount that is still in use is detached from the tree, and its users get
 * ENOTCONN once the session is closed. What they had written before is with the engine.
 *
 * Threads: any but a reactor's. Failure: start leaves nothing mounted and says why. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "mount.h"

/* The kernel answers so for a mount whose daemon is gone. */
static bool is_dead_mount(const char *directory) {
    struct stat stat_buffer;
    return stat(directory, &stat_buffer) && (errno == ENOTCONN || errno == ECONNABORTED);
}

static int check_empty(const char *directory, struct gild_error *error) {
    DIR *folder = opendir(directory);
    if (!folder)
        return gild_fail(error, GILD_FAILED, errno, "cannot mount on %s: cannot read it: %s",
                         directory, strerror(errno));
    unsigned entries = 0;
    while (readdir(folder))
        entries++;
    closedir(folder);
    if (entries > 2)
        return gild_fail(error, GILD_USAGE, ENOTEMPTY,
                         "cannot mount on %s: the folder is not empty; choose an empty one",
                         directory);
    return 0;
}

static int check_directory(const char *directory, struct gild_error *error) {
    struct stat here, above;
    char parent[4096];
    if (is_dead_mount(directory)) {
        gild_log(GILD_LOG_INFO, "mount %s: removing what a dead daemon left mounted", directory);
        if (umount2(directory, MNT_DETACH))
            return gild_fail(
                error, GILD_FAILED, errno,
                "cannot mount on %s: a dead mount is in the way (%s); unmount it first", directory,
                strerror(errno));
    }
    if (stat(directory, &here))
        return gild_fail(error, errno == ENOENT ? GILD_NOT_FOUND : GILD_FAILED, errno,
                         "cannot mount on %s: %s%s", directory, strerror(errno),
                         errno == ENOENT ? "; make the folder first" : "");
    if (!S_ISDIR(here.st_mode))
        return gild_fail(error, GILD_USAGE, ENOTDIR, "cannot mount on %s: it is not a folder",
                         directory);
    if ((size_t)snprintf(parent, sizeof(parent), "%s/..", directory) >= sizeof(parent))
        return gild_fail(error, GILD_USAGE, ENAMETOOLONG,
                         "cannot mount on %s: the path is too long", directory);
    if (!stat(parent, &above) && above.st_dev != here.st_dev)
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "cannot mount on %s: something is mounted there already; unmount it or "
                         "choose another folder",
                         directory);
    return check_empty(directory, error);
}

static int check_device(struct gild_error *error) {
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    return gild_fail(error, GILD_FAILED, errno,
                     "cannot mount: cannot open /dev/fuse: %s; load the fuse module, or allow the "
                     "device in this container",
                     strerror(errno));
}

/* Makes the libfuse session and mounts it; libfuse itself says on stderr what the kernel refused.
 */
static int open_session(struct gild_mount *mount, struct gild_error *error) {
    static const struct fuse_custom_io io = {.writev = names_reply_through,
                                             .read = names_read_through};
    /* Only root may let others in; the modes then say who. */
    char options[256];
    snprintf(options, sizeof(options),
             "fsname=gild,subtype=gild,default_permissions,nosuid,nodev,max_read=%u%s",
             GILD_OP_MAX_BYTES, geteuid() ? "" : ",allow_other");
    struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
    if (fuse_opt_add_arg(&arguments, "gild") || fuse_opt_add_arg(&arguments, "-o") ||
        fuse_opt_add_arg(&arguments, options)) {
        fuse_opt_free_args(&arguments);
        return gild_fail(error, GILD_FAILED, ENOMEM, "cannot mount on %s: out of memory",
                         mount->directory);
    }
    mount->session =
        fuse_session_new(&arguments, &mount_operations, sizeof(mount_operations), mount);
    fuse_opt_free_args(&arguments);
    if (!mount->session)
        return gild_fail(error, GILD_FAILED, ENOMEM, "cannot mount on %s: no FUSE session",
                         mount->directory);
    errno = 0;
    if (fuse_session_mount(mount->session, mount->directory))
        return gild_fail(error, GILD_FAILED, errno ? errno : EPERM,
                         "cannot mount on %s: the system refused it%s%s", mount->directory,
                         errno ? ": " : "", errno ? strerror(errno) : "");
    mount->mounted = true;
    mount->fd = fuse_session_fd(mount->session);
    int result = fuse_session_custom_io(mount->session, &io, mount->fd);
    int flags = fcntl(mount->fd, F_GETFL);
    if (result || flags < 0 || fcntl(mount->fd, F_SETFL, flags | O_NONBLOCK))
        return gild_fail(error, GILD_FAILED, EIO, "cannot mount on %s: cannot set up its session",
                         mount->directory);
    return 0;
}

static void close_session(struct gild_mount *mount) {
    if (!mount->session)
        return;
    if (mount->mounted)
        fuse_session_unmount(mount->session); /* closes the device, detaches what is mounted */
    fuse_session_destroy(mount->session);
    mount->session = NULL;
}

static void mount_free(struct gild_mount *mount) {
    names_stop(mount);
    close_session(mount);
    tree_fini(mount);
    request_pool_fini(&mount->pool);
    pthread_cond_destroy(&mount->reading_changed);
    pthread_mutex_destroy(&mount->reading_lock);
    free(mount->readers);
    free(mount->directory);
    free(mount);
}

static int start_parts(struct gild_mount *mount, struct gild_error *error) {
    int result = tree_init(&mount->tree);
    if (!result)
        result = request_pool_init(&mount->pool, mount);
    if (result)
        return gild_fail(error, GILD_FAILED, -result, "cannot mount on %s: out of memory",
                         mount->directory);
    result = open_session(mount, error);
    if (result)
        return result;
    result = names_start(mount);
    if (!result)
        result = readers_start(mount);
    if (result)
        return gild_fail(error, GILD_FAILED, -result, "cannot mount on %s: %s", mount->directory,
                         strerror(-result));
    return 0;
}

int gild_mount_start(struct gild_store *store, const char *directory, struct gild_mount **out,
                     struct gild_error *error) {
    int result = check_device(error);
    if (!result)
        result = check_directory(directory, error);
    if (result)
        return result;
    struct gild_mount *mount = calloc(1, sizeof(*mount));
    if (!mount)
        return gild_fail(error, GILD_FAILED, ENOMEM, "cannot mount on %s: out of memory",
                         directory);
    mount->store = store;
    mount->fd = -1;
    pthread_mutex_init(&mount->reading_lock, NULL);
    pthread_cond_init(&mount->reading_changed, NULL);
    mount->directory = realpath(directory, NULL);
    if (!mount->directory)
        result = gild_fail(error, GILD_FAILED, errno, "cannot mount on %s: %s", directory,
                           strerror(errno));
    if (!result)
        result = start_parts(mount, error);
    if (result) {
        mount_free(mount);
        return result;
    }
    *out = mount;
    return 0;
}

bool gild_mount_ended(const struct gild_mount *mount) {
    return atomic_load(&mount->ended);
}

void gild_mount_stop(struct gild_mount *mount) {
    /* While the readers still serve: closing the last user's file asks for a flush. */
    if (!gild_mount_ended(mount) && umount2(mount->directory, UMOUNT_NOFOLLOW) && errno == EBUSY)
        gild_log(GILD_LOG_WARN, "mount %s: still in use; its users are cut off", mount->directory);
    readers_stop(mount);
    request_pool_wait(&mount->pool);
    mount_free(mount);
}
