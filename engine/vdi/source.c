/* What an import's source is, and which reader suits it.
 *
 * A file's format is told by its first bytes when the admin does not say. What could be raw is only
 * taken as raw if nothing speaks against it: another well-known format's mark, text, a size that is
 * no multiple of 512. An admin who knows better says --format raw. */
#include "vdi/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const formats[] = {"raw", "qcow2", "vmdk", "vhdx", "vdi"};

struct mark {
    uint16_t offset, length;
    const char *bytes;
    const char *format; /* NULL: not for us */
    const char *what;
};

static const struct mark marks[] = {
    {0, 8, "QFI\xfb\0\0\0\1", NULL, "an image in the old qcow format"},
    {0, 4, "QFI\xfb", "qcow2", NULL},
    {0, 4, "KDMV", "vmdk", NULL},
    {0, 4, "COWD", "vmdk", NULL},
    {0, 21, "# Disk DescriptorFile", "vmdk", NULL},
    {0, 8, "vhdxfile", "vhdx", NULL},
    {0x40, 4, "\x7f\x10\xda\xbe", "vdi", NULL},
    {0, 8, "conectix", NULL, "a VHD image"},
    {0, 4, "QED\0", NULL, "a QED image"},
    {0, 2, "\x1f\x8b", NULL, "compressed with gzip"},
    {0, 6,
     "\xfd"
     "7zXZ\0",
     NULL, "compressed with xz"},
    {0, 4, "\x28\xb5\x2f\xfd", NULL, "compressed with zstd"},
    {0, 3, "BZh", NULL, "compressed with bzip2"},
    {0, 4, "PK\3\4", NULL, "a zip archive (an OVA or app package?)"},
    {0, 6, "7z\xbc\xaf\x27\x1c", NULL, "a 7-Zip archive"},
    {257, 5, "ustar", NULL, "a tar archive (an OVA?)"},
};

static bool is_text(const uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] < 128 && !isprint(bytes[i]) && !isspace(bytes[i])) {
            return false;
        }
    }
    return length > 0;
}

int vdi_source_probe(const uint8_t *bytes, size_t length, const char *name, const char **format,
                     struct gild_error *error) {
    *format = NULL;
    for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++) {
        const struct mark *mark = &marks[i];
        if ((size_t)mark->offset + mark->length > length ||
            memcmp(bytes + mark->offset, mark->bytes, mark->length) != 0) {
            continue;
        }
        *format = mark->format;
        if (mark->format) {
            return 0;
        }
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s is %s, which gild does not import; make a raw or qcow2 image of it "
                         "first (or say --format raw if that is what the disk holds)",
                         name, mark->what);
    }
    if (is_text(bytes, length)) {
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s looks like text, not like a disk image; say --format raw if it is one",
                         name);
    }
    return 0;
}

static bool is_uri(const char *source) {
    static const char *const schemes[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (strncmp(source, schemes[i], strlen(schemes[i])) == 0) {
            return true;
        }
    }
    return false;
}

static int check_format(const char *format, struct gild_error *error) {
    for (size_t i = 0; format && i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (strcmp(format, formats[i]) == 0) {
            return 0;
        }
    }
    return format
               ? gild_fail(error, GILD_USAGE, EINVAL,
                           "there is no image format %.40s; choose raw, qcow2, vmdk, vhdx or vdi",
                           format)
               : 0;
}

/* Opens a regular file or block device of some size; the descriptor or -errno with a sentence. */
static int open_file(const char *path, bool *device, uint64_t *size, struct gild_error *error) {
    struct stat status;
    /* Not blocking: the name may be a pipe's. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        int err = errno;
        if (err == ENOENT || err == ENOTDIR) {
            return gild_fail(error, GILD_NOT_FOUND, ENOENT, "there is no image file %s", path);
        }
        return gild_fail(error, GILD_FAILED, err, "cannot open %s: %s", path, strerror(err));
    }
    off_t end = -1;
    if (fstat(fd, &status) < 0) {
        gild_fail(error, GILD_FAILED, errno, "cannot look at %s: %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        gild_fail(error, GILD_USAGE, EINVAL,
                  "%s is %s, not an image; name an image file or a block device", path,
                  S_ISDIR(status.st_mode) ? "a directory" : "no regular file");
    } else if ((end = lseek(fd, 0, SEEK_END)) < 0) {
        gild_fail(error, GILD_FAILED, errno, "cannot find the size of %s: %s", path,
                  strerror(errno));
    } else if (end == 0) {
        gild_fail(error, GILD_USAGE, EINVAL, "%s is empty; name an image that holds a disk", path);
    } else {
        *device = S_ISBLK(status.st_mode);
        *size = (uint64_t)end;
        return fd;
    }
    int result = error && error->err ? -error->err : -EINVAL;
    close(fd);
    return result;
}

static int open_path(struct vdi_source **out, const char *path, const char *format,
                     bool allow_backing, struct gild_error *error) {
    uint8_t head[VDI_PROBE_BYTES];
    bool device = false;
    uint64_t size = 0;
    int fd = open_file(path, &device, &size, error);
    if (fd < 0) {
        return fd;
    }
    int result = 0;
    if (!format) {
        ssize_t length = pread(fd, head, sizeof(head), 0);
        result = length < 0 ? gild_fail(error, GILD_FAILED, errno, "cannot read %s: %s", path,
                                        strerror(errno))
                            : vdi_source_probe(head, (size_t)length, path, &format, error);
    }
    if (result == 0 && (!format || strcmp(format, "raw") == 0)) {
        if (size % 512 == 0) {
            return vdi_source_open_raw(out, fd, path, size, error);
        }
        result = gild_fail(error, GILD_USAGE, EINVAL,
                           "%s is no disk image: it has none of the known formats, and its size, "
                           "%llu bytes, is not a multiple of 512 as a raw disk's is",
                           path, (unsigned long long)size);
    }
    close(fd);
    if (result < 0) {
        return result;
    }
    char *absolute = realpath(path, NULL);
    if (!absolute) {
        return gild_fail(error, GILD_FAILED, errno, "cannot resolve %s: %s", path, strerror(errno));
    }
    result = vdi_source_open_image(out, absolute, path, format, device, allow_backing, size, error);
    free(absolute);
    return result;
}

int vdi_source_open(struct vdi_source **out, const char *source, const char *format,
                    bool allow_backing, struct gild_error *error) {
    int result = check_format(format, error);
    if (result < 0) {
        return result;
    }
    if (!is_uri(source)) {
        if (strstr(source, "://") && access(source, F_OK) < 0) {
            return gild_fail(error, GILD_USAGE, EINVAL,
                             "cannot import from %s; name a file, or an nbd://, nbds://, "
                             "nbd+unix:// or nbds+unix:// URI",
                             source);
        }
        return open_path(out, source, format, allow_backing, error);
    }
    if (format && strcmp(format, "raw") != 0) {
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s is an NBD URI, which gives raw data; leave out --format %s", source,
                         format);
    }
    return vdi_source_open_nbd(out, source, error);
}

uint64_t vdi_source_size_bytes(const struct vdi_source *source) {
    return source->size_bytes;
}

const char *vdi_source_format(const struct vdi_source *source) {
    return source->format;
}

int vdi_source_next(struct vdi_source *source, struct vdi_chunk *chunk, struct gild_error *error) {
    int result = vdi_ring_next(&source->ring, chunk, error);
    if (result == 0 && source->verify) {
        result = source->verify(source, error);
    }
    return result;
}

void vdi_source_close(struct vdi_source *source) {
    if (source) {
        vdi_ring_stop(&source->ring);
        source->close(source);
    }
}
