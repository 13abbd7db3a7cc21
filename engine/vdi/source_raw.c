/* A raw file or block device as an import's source.
 *
 * A few threads read 1 MiB at a time into the ring. Under one lock a thread finds the next stretch
 * of data (SEEK_DATA, SEEK_HOLE) and claims its slot, so that claims ascend; the reads themselves
 * overlap. Where the file system or device knows no holes, all of it is data.
 *
 * Failure modes: a read error or a file that shrinks or is written meanwhile fails the import; a
 * read that the host never answers holds the close until it does. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "vdi/source.h"

#define READERS 3u

struct raw_source {
    struct vdi_source source; /* first: close and verify cast back */
    int fd;
    char *name;
    struct stat before;
    pthread_t readers[READERS];
    unsigned reader_count;
    pthread_mutex_t plan_lock;
    uint64_t cursor;   /* plan_lock: all below is claimed or passed over */
    uint64_t data_end; /* plan_lock: the stretch of data that cursor is in ends here */
    bool no_holes;     /* plan_lock */
};

/* Finds the next stretch; false at the end. With plan_lock held. 0 or -errno in *result. */
static bool plan(struct raw_source *raw, uint64_t *offset, size_t *bytes, int *result) {
    uint64_t size = raw->source.size_bytes;
    *result = 0;
    *offset = raw->cursor; /* for the sentence, if it fails here */
    if (raw->cursor >= raw->data_end && raw->cursor < size) {
        off_t data = raw->no_holes ? -1 : lseek(raw->fd, (off_t)raw->cursor, SEEK_DATA);
        if (data < 0 && !raw->no_holes && errno == ENXIO) {
            raw->cursor = size; /* a hole up to the end */
            return false;
        }
        off_t hole = data < 0 ? -1 : lseek(raw->fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0) {
            if (!raw->no_holes && errno != EINVAL && errno != EOPNOTSUPP) {
                *result = -errno;
                return false;
            }
            raw->no_holes = true;
            data = (off_t)raw->cursor;
            hole = (off_t)size;
        }
        /* Whole blocks: what is hole in them reads as zeroes. */
        raw->cursor = gild_max_u64(raw->cursor, gild_align_down((uint64_t)data, VDI_BLOCK_BYTES));
        raw->data_end = gild_min_u64(gild_align_up((uint64_t)hole, VDI_BLOCK_BYTES), size);
    }
    if (raw->cursor >= size) {
        return false;
    }
    *offset = raw->cursor;
    *bytes = gild_min_u64(raw->data_end - raw->cursor, VDI_CHUNK_BYTES);
    raw->cursor += *bytes;
    return true;
}

static void fail(struct raw_source *raw, int err, uint64_t offset) {
    struct gild_error error;
    if (err == 0) {
        gild_fail(&error, GILD_FAILED, EIO,
                  "%s became shorter while it was read; import it again when nothing writes to it",
                  raw->name);
    } else {
        gild_fail(&error, GILD_FAILED, err, "cannot read %s at byte %llu: %s", raw->name,
                  (unsigned long long)offset, strerror(err));
    }
    vdi_ring_fail(&raw->source.ring, &error);
}

static bool fill(struct raw_source *raw, struct vdi_slot *slot) {
    size_t done = 0;
    while (done < slot->bytes) {
        ssize_t got = pread(raw->fd, slot->data + done, slot->bytes - done,
                            (off_t)(slot->offset_bytes + done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            fail(raw, got < 0 ? errno : 0, slot->offset_bytes + done);
            return false;
        }
        done += (size_t)got;
    }
    vdi_ring_filled(&raw->source.ring, slot);
    return true;
}

static void *reader(void *context) {
    struct raw_source *raw = context;
    for (;;) {
        uint64_t offset = 0;
        size_t bytes = 0;
        int result;
        struct vdi_slot *slot = NULL;
        pthread_mutex_lock(&raw->plan_lock);
        bool more = plan(raw, &offset, &bytes, &result);
        if (more) {
            slot = vdi_ring_claim(&raw->source.ring, offset, bytes, true);
        } else if (result == 0) {
            vdi_ring_end(&raw->source.ring);
        }
        pthread_mutex_unlock(&raw->plan_lock);
        if (result < 0) {
            fail(raw, -result, offset);
        }
        if (!slot || !fill(raw, slot)) {
            return NULL;
        }
    }
}

/* A file that was written while it was read gave a mixture of two states. */
static int verify(struct vdi_source *source, struct gild_error *error) {
    struct raw_source *raw = (struct raw_source *)source;
    struct stat now;
    if (fstat(raw->fd, &now) < 0) {
        return gild_fail(error, GILD_FAILED, errno, "cannot look at %s again: %s", raw->name,
                         strerror(errno));
    }
    if (S_ISREG(now.st_mode) &&
        (now.st_size != raw->before.st_size || now.st_mtim.tv_sec != raw->before.st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != raw->before.st_mtim.tv_nsec)) {
        return gild_fail(
            error, GILD_FAILED, EBUSY,
            "%s was written while it was read; import it again when nothing writes to it",
            raw->name);
    }
    return 0;
}

static void raw_close(struct vdi_source *source) {
    struct raw_source *raw = (struct raw_source *)source;
    for (unsigned i = 0; i < raw->reader_count; i++) {
        pthread_join(raw->readers[i], NULL);
    }
    pthread_mutex_destroy(&raw->plan_lock);
    close(raw->fd);
    vdi_ring_fini(&raw->source.ring);
    free(raw->name);
    free(raw);
}

int vdi_source_open_raw(struct vdi_source **out, int fd, const char *name, uint64_t size_bytes,
                        struct gild_error *error) {
    struct raw_source *raw = calloc(1, sizeof(*raw));
    char *own_name = strdup(name);
    int result = -ENOMEM;
    if (!raw || !own_name) {
        gild_fail(error, GILD_FAILED, ENOMEM, "no memory to read %s", name);
        goto fail_early;
    }
    result = vdi_ring_init(&raw->source.ring, false, error);
    if (result < 0) {
        goto fail_early;
    }
    pthread_mutex_init(&raw->plan_lock, NULL);
    raw->fd = fd;
    raw->name = own_name;
    raw->source.size_bytes = size_bytes;
    raw->source.verify = verify;
    raw->source.close = raw_close;
    strcpy(raw->source.format, "raw");
    if (fstat(fd, &raw->before) < 0) {
        result =
            gild_fail(error, GILD_FAILED, errno, "cannot look at %s: %s", name, strerror(errno));
        goto fail_late;
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    for (; raw->reader_count < READERS; raw->reader_count++) {
        int err = pthread_create(&raw->readers[raw->reader_count], NULL, reader, raw);
        if (err) {
            result = gild_fail(error, GILD_FAILED, err, "cannot start a thread to read %s: %s",
                               name, strerror(err));
            goto fail_late;
        }
    }
    *out = &raw->source;
    return 0;

fail_late:
    vdi_ring_stop(&raw->source.ring);
    raw_close(&raw->source);
    return result;
fail_early:
    free(own_name);
    free(raw);
    close(fd);
    return result;
}
