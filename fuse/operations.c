/* Names, attributes, open and release: what libfuse calls on the name threads.
 *
 * The tree is the store's tree of paths; a disk is a file of its path with ".raw". Nothing in it is
 * made, renamed or removed through the mount: that is the admin's, with `gild`. Attributes come
 * from the store at each call, the kernel keeps them for a second.
 *
 * Invariant: each entry answered (lookup, readdirplus) gives the kernel one reference to its node.
 * Threads: the name threads. Failure: errno to the caller; why an open was refused also goes to the
 * log, in the engine's words. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "mount.h"

#define SUFFIX ".raw"
#define SUFFIX_BYTES (sizeof(SUFFIX) - 1)
#define PATH_BYTES 1024u
/* What ".." is listed with, as libfuse does. */
#define UNKNOWN_INODE 0xffffffffu
/* Desktops come and go behind the kernel's back. */
#define VALID_SECONDS 1.0

static struct gild_mount *mount_of(fuse_req_t req) {
    return fuse_req_userdata(req);
}

static struct node *node_of(fuse_req_t req, fuse_ino_t number) {
    return tree_node(&mount_of(req)->tree, number);
}

/* ---- attributes
 * ----------------------------------------------------------------------------------- */

static void fill_stat(const struct gild_path_info *info, struct stat *stat) {
    memset(stat, 0, sizeof(*stat));
    stat->st_ino = info->inode;
    stat->st_uid = geteuid();
    stat->st_gid = getegid();
    stat->st_blksize = GILD_BLOCK_BYTES;
    stat->st_mtim.tv_sec = (time_t)(info->modified_ns / 1000000000u);
    stat->st_mtim.tv_nsec = (long)(info->modified_ns % 1000000000u);
    stat->st_ctim = stat->st_atim = stat->st_mtim;
    if (info->directory) {
        stat->st_mode = S_IFDIR | 0755;
        stat->st_nlink = 2;
        return;
    }
    stat->st_mode = S_IFREG | (info->read_only ? 0400 : 0600);
    stat->st_nlink = 1;
    stat->st_size = (off_t)info->size_bytes;
    stat->st_blocks = (blkcnt_t)(info->allocated_bytes / 512);
}

static int node_stat(struct gild_mount *mount, const struct node *node, struct stat *stat) {
    struct gild_path_info info;
    memset(&info, 0, sizeof(info));
    int result = gild_path_stat(mount->store, node->path, &info);
    if (result)
        return result;
    if (node == mount->tree.root)
        info.inode = FUSE_ROOT_ID;
    else if (info.inode != node->inode || info.directory != node->directory)
        return -ESTALE; /* another disk has the name now */
    fill_stat(&info, stat);
    return 0;
}

static void op_getattr(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *file) {
    (void)file;
    struct stat stat;
    int result = node_stat(mount_of(req), node_of(req, number), &stat);
    if (result)
        fuse_reply_err(req, -result);
    else
        fuse_reply_attr(req, &stat, VALID_SECONDS);
}

/* Size, mode and owner are not the mount's to change; what stays as it is succeeds, and so do
 * times, which say when the disk was written and nothing else. */
static void op_setattr(fuse_req_t req, fuse_ino_t number, struct stat *wanted, int set,
                       struct fuse_file_info *file) {
    (void)file;
    struct stat stat;
    int result = node_stat(mount_of(req), node_of(req, number), &stat);
    if (!result && (set & FUSE_SET_ATTR_SIZE) && wanted->st_size != stat.st_size)
        result = -EPERM;
    if (!result && (set & FUSE_SET_ATTR_MODE) &&
        (wanted->st_mode & 07777) != (stat.st_mode & 07777))
        result = -EPERM;
    if (!result && (set & FUSE_SET_ATTR_UID) && wanted->st_uid != stat.st_uid)
        result = -EPERM;
    if (!result && (set & FUSE_SET_ATTR_GID) && wanted->st_gid != stat.st_gid)
        result = -EPERM;
    if (result)
        fuse_reply_err(req, -result);
    else
        fuse_reply_attr(req, &stat, VALID_SECONDS);
}

/* ---- names
 * ----------------------------------------------------------------------------------------- */

/* The path of a child; false if it would be too long. */
static bool join(const char *folder, const char *name, size_t name_bytes, char path[PATH_BYTES]) {
    int bytes =
        snprintf(path, PATH_BYTES, "%s%s%.*s", folder, *folder ? "/" : "", (int)name_bytes, name);
    return bytes > 0 && (unsigned)bytes < PATH_BYTES;
}

/* Finds the disk or folder behind a file name of the mount: NAME.raw is the disk NAME, or else a
 * folder that is really called so. */
static int resolve(struct gild_mount *mount, const char *folder, const char *name,
                   char path[PATH_BYTES], struct gild_path_info *info) {
    size_t bytes = strlen(name);
    memset(info, 0, sizeof(*info));
    if (bytes > SUFFIX_BYTES && !strcmp(name + bytes - SUFFIX_BYTES, SUFFIX)) {
        if (!join(folder, name, bytes - SUFFIX_BYTES, path))
            return -ENAMETOOLONG;
        int result = gild_path_stat(mount->store, path, info);
        if (!result && !info->directory)
            return 0;
        if (result && result != -ENOENT && result != -EINVAL)
            return result;
    }
    if (!join(folder, name, bytes, path))
        return -ENAMETOOLONG;
    int result = gild_path_stat(mount->store, path, info);
    if (result == -EINVAL) /* no name of ours looks like this */
        return -ENOENT;
    return result ? result : info->directory ? 0 : -ENOENT;
}

static int fill_entry(struct gild_mount *mount, const char *path, const struct gild_path_info *info,
                      struct fuse_entry_param *entry) {
    memset(entry, 0, sizeof(*entry));
    struct node *node = tree_node_get(&mount->tree, path, info);
    if (!node)
        return -ENOMEM;
    entry->ino = tree_node_number(&mount->tree, node);
    entry->attr_timeout = entry->entry_timeout = VALID_SECONDS;
    fill_stat(info, &entry->attr);
    return 0;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct gild_mount *mount = mount_of(req);
    struct fuse_entry_param entry;
    struct gild_path_info info;
    char path[PATH_BYTES];
    int result = resolve(mount, node_of(req, parent)->path, name, path, &info);
    if (!result)
        result = fill_entry(mount, path, &info, &entry);
    if (result)
        fuse_reply_err(req, -result);
    else if (fuse_reply_entry(req, &entry))
        tree_node_drop(&mount->tree, tree_node(&mount->tree, entry.ino), 1);
}

static void op_forget(fuse_req_t req, fuse_ino_t number, uint64_t lookups) {
    tree_node_drop(&mount_of(req)->tree, node_of(req, number), lookups);
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets) {
    for (size_t i = 0; i < count; i++)
        tree_node_drop(&mount_of(req)->tree, node_of(req, forgets[i].ino), forgets[i].nlookup);
    fuse_reply_none(req);
}

/* ---- folders
 * --------------------------------------------------------------------------------------- */

/* A listing as of the last rewind, so that a reader of a changing folder sees each name once. */
struct listing {
    struct listed {
        char *name; /* as in the mount */
        struct gild_path_info info;
    } * entries;
    size_t count, room;
};

static void listing_clear(struct listing *listing) {
    for (size_t i = 0; i < listing->count; i++)
        free(listing->entries[i].name);
    free(listing->entries);
    memset(listing, 0, sizeof(*listing));
}

static int listing_add(void *context, const char *name, const struct gild_path_info *info) {
    struct listing *listing = context;
    if (listing->count == listing->room) {
        size_t room = listing->room ? listing->room * 2 : 64;
        void *entries = realloc(listing->entries, room * sizeof(*listing->entries));
        if (!entries)
            return -ENOMEM;
        listing->entries = entries;
        listing->room = room;
    }
    struct listed *listed = &listing->entries[listing->count];
    if (asprintf(&listed->name, "%s%s", name, info->directory ? "" : SUFFIX) < 0)
        return -ENOMEM;
    listed->info = *info;
    listing->count++;
    return 0;
}

static struct listing *listing_of(const struct fuse_file_info *file) {
    union {
        uint64_t number;
        struct listing *listing;
    } known = {.number = file->fh};
    return known.listing;
}

static void op_opendir(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *file) {
    if (!node_of(req, number)->directory) {
        fuse_reply_err(req, ENOTDIR);
        return;
    }
    struct listing *listing = calloc(1, sizeof(*listing));
    if (!listing) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    file->fh = (uint64_t)(uintptr_t)listing;
    if (fuse_reply_open(req, file))
        free(listing);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *file) {
    (void)number;
    listing_clear(listing_of(file));
    free(listing_of(file));
    fuse_reply_err(req, 0);
}

/* Adds entry `index` (0 and 1 are the dots) to the buffer; 0 = it does not fit, or -errno. */
static ssize_t add_entry(fuse_req_t req, const struct node *folder, struct listing *listing,
                         size_t index, bool plus, char *buffer, size_t room) {
    struct gild_mount *mount = mount_of(req);
    struct fuse_entry_param entry;
    memset(&entry, 0, sizeof(entry));
    off_t next = (off_t)index + 1;
    const char *name = index ? ".." : ".";
    if (index < 2) {
        entry.attr.st_ino = index ? UNKNOWN_INODE : folder->inode;
        entry.attr.st_mode = S_IFDIR;
    } else {
        name = listing->entries[index - 2].name;
        fill_stat(&listing->entries[index - 2].info, &entry.attr);
    }
    size_t bytes = plus ? fuse_add_direntry_plus(req, buffer, room, name, &entry, next)
                        : fuse_add_direntry(req, buffer, room, name, &entry.attr, next);
    if (bytes > room)
        return 0;
    if (!plus || index < 2)
        return (ssize_t)bytes;
    /* It fits: now the node is looked up for good, and the entry written again with it. */
    const struct listed *listed = &listing->entries[index - 2];
    char path[PATH_BYTES];
    size_t name_bytes = strlen(name) - (listed->info.directory ? 0 : SUFFIX_BYTES);
    if (!join(folder->path, name, name_bytes, path))
        return -ENAMETOOLONG;
    int result = fill_entry(mount, path, &listed->info, &entry);
    if (result)
        return result;
    return (ssize_t)fuse_add_direntry_plus(req, buffer, room, name, &entry, next);
}

static void read_folder(fuse_req_t req, fuse_ino_t number, size_t bytes, off_t offset, bool plus,
                        struct fuse_file_info *file) {
    struct gild_mount *mount = mount_of(req);
    struct node *folder = node_of(req, number);
    struct listing *listing = listing_of(file);
    char *buffer = malloc(bytes);
    ssize_t result = buffer ? 0 : -ENOMEM;
    if (!result && !offset) {
        listing_clear(listing);
        result = gild_path_list(mount->store, folder->path, listing_add, listing);
    }
    size_t used = 0;
    for (size_t index = (size_t)offset; !result && index < listing->count + 2; index++) {
        ssize_t added = add_entry(req, folder, listing, index, plus, buffer + used, bytes - used);
        if (added < 0 && !used)
            result = added;
        if (added <= 0)
            break;
        used += (size_t)added;
    }
    if (result)
        fuse_reply_err(req, (int)-result);
    else
        fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static void op_readdir(fuse_req_t req, fuse_ino_t number, size_t bytes, off_t offset,
                       struct fuse_file_info *file) {
    read_folder(req, number, bytes, offset, false, file);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t number, size_t bytes, off_t offset,
                           struct fuse_file_info *file) {
    read_folder(req, number, bytes, offset, true, file);
}

/* ---- files
 * ----------------------------------------------------------------------------------------- */

static void op_open(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *file) {
    struct gild_mount *mount = mount_of(req);
    struct node *node = node_of(req, number);
    struct handle *handle;
    struct gild_error error = {0};
    if (node->directory) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    bool write = (file->flags & O_ACCMODE) != O_RDONLY;
    int result = handle_open(mount, node, write, &handle, &error);
    if (result) {
        gild_log(GILD_LOG_WARN, "mount %s: %s", mount->directory, error.message);
        fuse_reply_err(req, -result);
        return;
    }
    struct fuse_open_out out = {.fh = (uint64_t)(uintptr_t)handle};
    /* O_DIRECT past the kernel's cache from the start: its writes then do not wait for each other.
     * libfuse 3.14 has no name for the second flag, so the answer is made here. */
    if ((file->flags & O_DIRECT) && atomic_load(&mount->direct_is_coherent))
        out.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
    if (fuse_reply_buf(req, (const char *)&out, sizeof(out)))
        handle_drop(handle);
}

static void op_release(fuse_req_t req, fuse_ino_t number, struct fuse_file_info *file) {
    (void)number;
    union {
        uint64_t number;
        struct handle *handle;
    } known = {.number = file->fh};
    handle_drop(known.handle);
    fuse_reply_err(req, 0);
}

/* ---- facts
 * ----------------------------------------------------------------------------------------- */

static int count_disk(void *context, const char *name, const struct gild_path_info *info) {
    (void)name;
    (void)info;
    ++*(uint64_t *)context;
    return 0;
}

static void op_statfs(fuse_req_t req, fuse_ino_t number) {
    (void)number;
    struct gild_store_info info;
    uint64_t disks = 0;
    memset(&info, 0, sizeof(info));
    int result = gild_store_get_info(mount_of(req)->store, &info, NULL);
    if (!result)
        result = gild_path_each_disk(mount_of(req)->store, count_disk, &disks);
    if (result) {
        fuse_reply_err(req, result < 0 ? -result : EIO);
        return;
    }
    struct statvfs statfs = {
        .f_bsize = GILD_BLOCK_BYTES,
        .f_frsize = GILD_BLOCK_BYTES,
        .f_blocks = info.capacity_bytes / GILD_BLOCK_BYTES,
        .f_bfree = info.free_bytes / GILD_BLOCK_BYTES,
        .f_bavail = info.free_bytes / GILD_BLOCK_BYTES,
        .f_files = disks, /* none is free: files are not made through the mount */
        .f_namemax = NAME_MAX,
    };
    fuse_reply_statfs(req, &statfs);
}

static void reply_fact(fuse_req_t req, const char *value, size_t bytes, size_t room) {
    if (!room)
        fuse_reply_xattr(req, bytes);
    else if (room < bytes)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, value, bytes);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t number, const char *name, size_t room) {
    const struct node *node = node_of(req, number);
    if (!strcmp(name, "user.gild.path") && *node->path) {
        reply_fact(req, node->path, strlen(node->path), room);
    } else if (!strcmp(name, "user.gild.read_only") && !node->directory) {
        const char *value = node->read_only ? "true" : "false";
        reply_fact(req, value, strlen(value), room);
    } else {
        fuse_reply_err(req, ENODATA);
    }
}

static void op_listxattr(fuse_req_t req, fuse_ino_t number, size_t room) {
    static const char names[] = "user.gild.path\0user.gild.read_only";
    const struct node *node = node_of(req, number);
    size_t bytes = !*node->path ? 0 : node->directory ? sizeof("user.gild.path") : sizeof(names);
    reply_fact(req, names, bytes, room);
}

/* ---- what the mount does not do
 * -------------------------------------------------------------------- */

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev) {
    (void)parent, (void)name, (void)mode, (void)dev;
    fuse_reply_err(req, EPERM);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *file) {
    (void)parent, (void)name, (void)mode, (void)file;
    fuse_reply_err(req, EPERM);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
    (void)parent, (void)name, (void)mode;
    fuse_reply_err(req, EPERM);
}

static void op_remove(fuse_req_t req, fuse_ino_t parent, const char *name) {
    (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                      const char *new_name, unsigned flags) {
    (void)parent, (void)name, (void)new_parent, (void)new_name, (void)flags;
    fuse_reply_err(req, EPERM);
}

static void op_link(fuse_req_t req, fuse_ino_t number, fuse_ino_t parent, const char *name) {
    (void)number, (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name) {
    (void)target, (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

static void op_init(void *context, struct fuse_conn_info *connection) {
    (void)context;
    /* Not wanted: the kernel's write-back cache (an acknowledged write must have reached us),
     * dropping cached pages whenever the time of a write shows (one door at a time changes a disk),
     * and splicing (payloads are read in place). */
    unsigned want = FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS |
                    FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO;
    connection->want = connection->capable & want;
    connection->max_background = 256;
    connection->congestion_threshold = 192;
    connection->max_write = GILD_OP_MAX_BYTES;
    connection->max_read = GILD_OP_MAX_BYTES;
}

const struct fuse_lowlevel_ops mount_operations = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = op_releasedir,
    .open = op_open,
    .release = op_release,
    .statfs = op_statfs,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .mknod = op_mknod,
    .create = op_create,
    .mkdir = op_mkdir,
    .unlink = op_remove,
    .rmdir = op_remove,
    .rename = op_rename,
    .link = op_link,
    .symlink = op_symlink,
};
