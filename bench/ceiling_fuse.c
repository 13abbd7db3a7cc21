/* The ceiling over FUSE: libfuse's low-level interface, one file, replies straight from the map.
 * The loop has as many threads as libfuse wants. Ends with status 0 when it is unmounted or asked
 * to by a signal. */
#define FUSE_USE_VERSION 314
#include "ceiling.h"

#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <string.h>

#define FILE_INODE 2u
#define FILE_NAME "disk.raw"

static void fill(fuse_req_t request, fuse_ino_t inode, struct stat *status) {
    const struct ceiling_image *image = fuse_req_userdata(request);
    memset(status, 0, sizeof *status);
    status->st_ino = inode;
    status->st_mode = inode == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
    status->st_nlink = 1;
    status->st_size = inode == FUSE_ROOT_ID ? 0 : (off_t)image->bytes;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry = {.ino = FILE_INODE, .attr_timeout = 60, .entry_timeout = 60};
    if (parent != FUSE_ROOT_ID || strcmp(name, FILE_NAME) != 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    fill(request, FILE_INODE, &entry.attr);
    fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    struct stat status;
    (void)info;
    fill(request, inode, &status);
    fuse_reply_attr(request, &status, 60);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    info->direct_io = 1;
    fuse_reply_open(request, info);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                    struct fuse_file_info *info) {
    const struct ceiling_image *image = fuse_req_userdata(request);
    uint64_t from = (uint64_t)offset < image->bytes ? (uint64_t)offset : image->bytes;
    uint64_t left = image->bytes - from;
    (void)inode;
    (void)info;
    fuse_reply_buf(request, (const char *)image->data + from, size < left ? size : left);
}

static void on_init(void *userdata, struct fuse_conn_info *connection) {
    (void)userdata;
    connection->max_background = 256;
}

static int serve(struct fuse_session *session) {
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    printf("ready\n");
    fflush(stdout);
    int result = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    return result < 0;
}

int ceiling_serve_fuse(const struct ceiling_image *image, const char *directory) {
    static const struct fuse_lowlevel_ops operations = {
        .init = on_init,
        .lookup = on_lookup,
        .getattr = on_getattr,
        .open = on_open,
        .read = on_read,
    };
    char program[] = "bench_ceiling", *arguments[] = {program, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, arguments);
    struct ceiling_image copy = *image;
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, &copy);
    int status = 1;
    if (!session) {
        return 1;
    }
    if (fuse_set_signal_handlers(session) == 0 && fuse_session_mount(session, directory) == 0) {
        status = serve(session);
        fuse_session_unmount(session);
    }
    fuse_session_destroy(session);
    return status;
}
