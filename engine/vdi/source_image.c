/* A foreign image file (qcow2, VMDK, VHDX, VDI) as an import's source.
 *
 * We never parse these formats: qemu-img answers questions about the file, and a qemu-nbd child
 * serves it, read-only. Both are told the format, so that the file's content can not choose
 * another.
 *
 * Before anything is read:
 *   info   what the file leans on (backing file, data file, extents elsewhere), encryption, flags
 *   check  its own metadata: a table behind the end of the file would silently read as a hole
 *   map    where its data lies: data behind the end of the file would silently read as zeroes
 * Without allow_backing the server is also told to open no backing file, so that a file that
 * changes between the questions and the reading gains nothing.
 *
 * The server inherits a listening socket (socket activation): there is no wait for it to be ready.
 * The socket's private folder is gone again before the first byte is read. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <libnbd.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/checked.h"
#include "vdi/source.h"

#define INFO_TIMEOUT_MS (60 * 1000)
#define CHECK_TIMEOUT_MS (20 * 60 * 1000) /* reads all metadata; the disk may be slow and busy */
#define VHDX_UNIT (1u << 20)              /* [MS-VHDX] 2: all its objects are aligned to 1 MiB */

struct image {
    const char *path, *name, *format;
    bool device, allow_backing;
    bool elsewhere; /* parts of it lie in other files: offsets say nothing about this one */
    uint64_t file_bytes;
    char *pseudo_name;
    char *folder;             /* qemu takes a data file's relative name from where it runs */
    const char *arguments[4]; /* NULL at the end */
};

static int no_memory(const struct image *image, struct gild_error *error) {
    return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to read %s", image->name);
}

/* How the programs are told of the image: by path and -f, or by a pseudo-name that also shuts out
 * backing files. The path is absolute, so that it can not be taken for a protocol. */
static int name_image(struct image *image, struct gild_error *error) {
    if (image->allow_backing) {
        image->arguments[0] = "-f";
        image->arguments[1] = image->format;
        image->arguments[2] = image->path;
        return 0;
    }
    json_t *json = json_pack("{s:s, s:{s:s, s:s}}", "driver", image->format, "file", "driver",
                             image->device ? "host_device" : "file", "filename", image->path);
    bool may_lean = strcmp(image->format, "qcow2") == 0 || strcmp(image->format, "vmdk") == 0;
    if (json && may_lean) {
        json_object_set_new(json, "backing", json_null());
    }
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!text) {
        return gild_fail(error, GILD_USAGE, EILSEQ,
                         "cannot pass the file name %s on to qemu-img; rename it to plain UTF-8",
                         image->name);
    }
    int length = asprintf(&image->pseudo_name, "json:%s", text);
    free(text);
    if (length < 0) {
        image->pseudo_name = NULL;
        return no_memory(image, error);
    }
    image->arguments[0] = image->pseudo_name;
    return 0;
}

/* Runs `qemu-img VERB --output=json IMAGE` to its end. 0 with *status and the child to look at (to
 * be ended by the caller), or -errno with a sentence and nothing to end. */
static int ask(const struct image *image, const char *verb, int timeout_ms, struct vdi_child *child,
               int *status, struct gild_error *error) {
    const char *argv[] = {
        "qemu-img",          verb, "--output=json", image->arguments[0], image->arguments[1],
        image->arguments[2], NULL};
    int result = vdi_child_start(child, argv, image->folder, -1, error);
    if (result < 0) {
        return result;
    }
    *status = vdi_child_wait(child, timeout_ms);
    if (*status == -ETIMEDOUT) {
        result = gild_fail(error, GILD_FAILED, ETIMEDOUT,
                           "qemu-img %s of %s took more than %d s and was ended; look at the disk "
                           "that holds it",
                           verb, image->name, timeout_ms / 1000);
    } else if (*status == 127) {
        result = gild_fail(error, GILD_FAILED, ENOENT,
                           "cannot read %s: there is no qemu-img; install the package qemu-utils",
                           image->name);
    }
    if (result < 0) {
        vdi_child_end(child);
    }
    return result;
}

static FILE *output_of(const struct vdi_child *child) {
    int fd = fcntl(child->output, F_DUPFD_CLOEXEC, 3);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (file) {
        rewind(file);
    } else if (fd >= 0) {
        close(fd);
    }
    return file;
}

static json_t *json_of(const struct vdi_child *child) {
    FILE *file = output_of(child);
    json_t *json = file ? json_loadf(file, 0, NULL) : NULL;
    if (file) {
        fclose(file);
    }
    return json;
}

static int truncated(const struct image *image, struct gild_error *error) {
    return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                     "%s is truncated: parts of its data lie behind the end of the file; get a "
                     "whole copy of it",
                     image->name);
}

/* ---- info ------------------------------------------------------------------------------------ */

static int refuse(const struct image *image, const char *what, const char *file,
                  struct gild_error *error) {
    return gild_fail(error, GILD_USAGE, EINVAL,
                     "%s %s %s; allow that with --allow-backing if you trust them both, or make "
                     "one file of them with qemu-img convert",
                     image->name, what, file);
}

static bool same_file(const char *a, const char *b) {
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

static int judge_info(struct image *image, const json_t *info, struct gild_error *error) {
    const json_t *specific = json_object_get(json_object_get(info, "format-specific"), "data");
    const char *backing = json_string_value(json_object_get(info, "backing-filename"));
    const char *data_file = json_string_value(json_object_get(specific, "data-file"));
    const json_t *extents = json_object_get(specific, "extents"), *extent;
    size_t i;
    if (json_is_true(json_object_get(info, "encrypted"))) {
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s is encrypted; decrypt it with qemu-img convert first", image->name);
    }
    if (json_is_true(json_object_get(specific, "corrupt"))) {
        return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                         "%s is marked as corrupt; repair it with qemu-img check -r all",
                         image->name);
    }
    if (backing && !image->allow_backing) {
        return refuse(image, "stands on the backing file", backing, error);
    }
    if (data_file && !image->allow_backing) {
        return refuse(image, "keeps its data in another file,", data_file, error);
    }
    image->elsewhere = data_file != NULL;
    json_array_foreach(extents, i, extent) {
        const char *file = json_string_value(json_object_get(extent, "filename"));
        if (file && !same_file(file, image->path)) {
            image->elsewhere = true;
            if (!image->allow_backing) {
                return refuse(image, "keeps its data in another file,", file, error);
            }
        }
    }
    return 0;
}

static int check_info(struct image *image, struct gild_error *error) {
    struct vdi_child child;
    char why[200];
    int status, result = ask(image, "info", INFO_TIMEOUT_MS, &child, &status, error);
    if (result < 0) {
        return result;
    }
    json_t *info = status == 0 ? json_of(&child) : NULL;
    if (info) {
        result = judge_info(image, info, error);
    } else {
        vdi_child_message(&child, why, sizeof(why));
        result = gild_fail(error, GILD_CORRUPT, EUCLEAN, "%s cannot be read as %s: %s", image->name,
                           image->format, *why ? why : "qemu-img gives no reason");
    }
    json_decref(info);
    vdi_child_end(&child);
    return result;
}

/* ---- check ----------------------------------------------------------------------------------- */

static int judge_check(const struct image *image, const struct vdi_child *child, int status,
                       struct gild_error *error) {
    json_t *report = json_of(child);
    char why[200];
    json_int_t bad = json_integer_value(json_object_get(report, "corruptions")) +
                     json_integer_value(json_object_get(report, "check-errors"));
    json_int_t end = json_integer_value(json_object_get(report, "image-end-offset"));
    json_int_t leaks = json_integer_value(json_object_get(report, "leaks"));
    json_decref(report);
    if (status == 63) { /* the format knows no check */
        return 0;
    }
    if (bad > 0 || (status != 0 && status != 3)) { /* 3: leaked clusters only, no harm */
        vdi_child_message(child, why, sizeof(why));
        return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                         "%s is damaged or truncated: qemu-img check finds errors%s%s", image->name,
                         *why ? ": " : "", why);
    }
    /* A file may end within its last cluster. Data that is cut off there shows in the map; a table
     * that is cut off there forgets clusters, which are then leaked. */
    if (!image->elsewhere && leaks > 0 && (uint64_t)end > image->file_bytes) {
        return truncated(image, error);
    }
    return 0;
}

static int check_metadata(const struct image *image, struct gild_error *error) {
    struct vdi_child child;
    int status;
    if (strcmp(image->format, "vhdx") == 0 && image->file_bytes % VHDX_UNIT != 0) {
        return truncated(image, error);
    }
    int result = ask(image, "check", CHECK_TIMEOUT_MS, &child, &status, error);
    if (result < 0) {
        return result;
    }
    result = judge_check(image, &child, status, error);
    vdi_child_end(&child);
    return result;
}

/* ---- map ------------------------------------------------------------------------------------- */

/* The report is an array that may have millions of entries: taken one by one. */
static int judge_map(const struct image *image, FILE *report, struct gild_error *error) {
    int c;
    while ((c = getc(report)) != EOF) {
        if (c != '{') {
            continue;
        }
        ungetc(c, report);
        json_t *entry = json_loadf(report, JSON_DISABLE_EOF_CHECK, NULL);
        if (!entry) {
            return gild_fail(error, GILD_FAILED, EIO, "cannot understand qemu-img map of %s",
                             image->name);
        }
        json_int_t length = json_integer_value(json_object_get(entry, "length"));
        const json_t *offset = json_object_get(entry, "offset");
        bool own = json_integer_value(json_object_get(entry, "depth")) == 0;
        bool beyond = own && offset &&
                      !gild_range_within((uint64_t)json_integer_value(offset), (uint64_t)length,
                                         image->file_bytes);
        json_decref(entry);
        if (beyond) {
            return truncated(image, error);
        }
    }
    return 0;
}

static int check_map(const struct image *image, struct gild_error *error) {
    struct vdi_child child;
    char why[200];
    int status, result = ask(image, "map", CHECK_TIMEOUT_MS, &child, &status, error);
    if (result < 0) {
        return result;
    }
    FILE *report = status == 0 ? output_of(&child) : NULL;
    if (report) {
        result = judge_map(image, report, error);
        fclose(report);
    } else {
        vdi_child_message(&child, why, sizeof(why));
        result = gild_fail(error, GILD_CORRUPT, EUCLEAN, "cannot find the data of %s: %s",
                           image->name, *why ? why : "qemu-img map failed");
    }
    vdi_child_end(&child);
    return result;
}

/* ---- serving --------------------------------------------------------------------------------- */

/* A listening socket in a folder that only we may enter. */
static int listen_in(const char *folder, struct sockaddr_un *address) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(address->sun_path, sizeof(address->sun_path), "%s/image.sock", folder);
    if (length < 0 || (size_t)length >= sizeof(address->sun_path)) {
        return -ENAMETOOLONG;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 || listen(fd, 1) < 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

/* The server did not take our connection: says why. */
static int explain(const struct image *image, struct vdi_child *child, int result,
                   struct gild_error *error) {
    char why[200] = "";
    int status = result == -ETIMEDOUT ? -ETIMEDOUT : vdi_child_wait(child, 1000);
    vdi_child_message(child, why, sizeof(why));
    if (status == 127) {
        return gild_fail(error, GILD_FAILED, ENOENT,
                         "cannot read %s: there is no qemu-nbd; install the package qemu-utils",
                         image->name);
    }
    return gild_fail(error, *why ? GILD_CORRUPT : GILD_FAILED, -result,
                     "qemu-nbd cannot serve %s: %s", image->name, *why ? why : strerror(-result));
}

static int connect_to(const struct image *image, struct vdi_child *child, int listen_fd,
                      const struct sockaddr_un *address, struct nbd_handle **out,
                      struct gild_error *error) {
    const char *argv[] = {"qemu-nbd",          "-r", image->arguments[0], image->arguments[1],
                          image->arguments[2], NULL};
    struct nbd_handle *handle = vdi_nbd_create(error);
    if (!handle) {
        close(listen_fd);
        return -ENOMEM;
    }
    int result = vdi_child_start(child, argv, image->folder, listen_fd, error);
    close(listen_fd); /* the child's alone now: when it ends, our connection does too */
    if (result < 0) {
        nbd_close(handle);
        return result;
    }
    result = nbd_aio_connect(handle, (const struct sockaddr *)address, sizeof(*address)) < 0
                 ? -nbd_get_errno()
                 : vdi_nbd_finish_connecting(handle);
    if (result < 0) {
        result = explain(image, child, result, error);
        nbd_close(handle);
        vdi_child_end(child);
        return result;
    }
    *out = handle;
    return 0;
}

static int serve(const struct image *image, struct vdi_source **out, struct gild_error *error) {
    const char *temporary = getenv("TMPDIR");
    char folder[PATH_MAX];
    struct sockaddr_un address;
    struct vdi_child child;
    struct nbd_handle *handle = NULL;
    snprintf(folder, sizeof(folder), "%s/gild-import-XXXXXX",
             temporary && strlen(temporary) < 64 ? temporary : "/tmp");
    if (!mkdtemp(folder)) { /* mode 0700 */
        return gild_fail(error, GILD_FAILED, errno, "cannot make the folder %s: %s", folder,
                         strerror(errno));
    }
    int fd = listen_in(folder, &address);
    int result = fd >= 0 ? connect_to(image, &child, fd, &address, &handle, error)
                         : gild_fail(error, GILD_FAILED, -fd, "cannot listen in %s: %s", folder,
                                     strerror(-fd));
    unlink(address.sun_path);
    rmdir(folder);
    if (result < 0) {
        return result;
    }
    return vdi_source_read_nbd(out, handle, &child, image->name, image->format, error);
}

int vdi_source_open_image(struct vdi_source **out, const char *path, const char *name,
                          const char *format, bool device, bool allow_backing, uint64_t file_bytes,
                          struct gild_error *error) {
    struct image image = {.path = path,
                          .name = name,
                          .format = format,
                          .device = device,
                          .allow_backing = allow_backing,
                          .file_bytes = file_bytes};
    char *copy = strdup(path); /* dirname may change it */
    image.folder = copy ? dirname(copy) : NULL;
    int result = copy ? name_image(&image, error) : no_memory(&image, error);
    result = result ? result : check_info(&image, error);
    result = result ? result : check_metadata(&image, error);
    if (result == 0 && !image.elsewhere) {
        result = check_map(&image, error);
    }
    result = result ? result : serve(&image, out, error);
    free(image.pseudo_name);
    free(copy);
    return result;
}
