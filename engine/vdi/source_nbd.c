/* An NBD export as an import's source: a server that the admin names, or our own qemu-nbd child.
 *
 * One thread drives the handle. It asks for the block status of a window of up to 1 GiB, turns what
 * is not known to read as zeroes into stretches of whole blocks, and reads them into the ring with
 * as many requests in flight as the ring has slots; the next window is asked for while reads of the
 * last are still under way. A server without base:allocation is read whole. libnbd's callbacks run
 * on this thread only.
 *
 * Failure modes: an error of the server, or its end, fails the import. A server that goes silent
 * holds nothing but this import: the thread waits in poll and wakes when the ring is stopped. */
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "vdi/source.h"

#define WINDOW_BYTES (1ull << 30)
#define CONNECT_SECONDS 60
#define ALLOCATION "base:allocation"

struct stretch {
    uint64_t start, end;
};

struct read_request {
    struct nbd_source *owner;
    struct vdi_slot *slot;
};

struct nbd_source {
    struct vdi_source source; /* first: close casts back */
    struct nbd_handle *handle;
    struct vdi_child child; /* pid -1 if the server is not ours */
    char *name;
    bool has_status;
    uint64_t unit;  /* the server's smallest block, at least ours */
    size_t largest; /* bytes of one read */
    pthread_t thread;
    bool started;

    /* The thread's own. */
    struct stretch *stretches; /* of data, ascending, not overlapping */
    size_t stretch_count, stretch_room, stretch_at;
    uint64_t cursor;  /* all below is claimed or passed over */
    uint64_t covered; /* status is known below */
    uint64_t asked;   /* what covered was when the last question was asked */
    bool asking;      /* a status request is in flight */
    unsigned reading;
    struct read_request requests[VDI_RING_SLOTS];
};

static void fail(struct nbd_source *nbd, int err, const char *what, uint64_t offset) {
    struct gild_error error;
    char why[160] = "";
    err = err ? err : EIO;
    if (nbd->child.pid > 0) {
        vdi_child_message(&nbd->child, why, sizeof(why));
        gild_fail(&error, GILD_CORRUPT, err,
                  "cannot %s %s at byte %llu: %s%s%s; the image is damaged, or qemu-nbd was ended",
                  what, nbd->name, (unsigned long long)offset, strerror(err), *why ? ": " : "",
                  why);
    } else {
        gild_fail(&error, GILD_FAILED, err, "cannot %s %s at byte %llu: the server says: %s", what,
                  nbd->name, (unsigned long long)offset, strerror(err));
    }
    vdi_ring_fail(&nbd->source.ring, &error);
}

static int read_done(void *context, int *error) {
    struct read_request *request = context;
    struct nbd_source *nbd = request->owner;
    nbd->reading--;
    if (*error) {
        fail(nbd, *error, "read", request->slot->offset_bytes);
    } else {
        vdi_ring_filled(&nbd->source.ring, request->slot);
    }
    return 1; /* retire the command */
}

/* Adds data, whole blocks of it; what touches the last stretch becomes part of it. */
static bool add_stretch(struct nbd_source *nbd, uint64_t start, uint64_t end) {
    start = gild_align_down(start, nbd->unit);
    end = gild_min_u64(gild_align_up(end, nbd->unit), nbd->source.size_bytes);
    start = gild_max_u64(start, nbd->cursor);
    if (nbd->stretch_count > nbd->stretch_at) {
        struct stretch *last = &nbd->stretches[nbd->stretch_count - 1];
        if (start <= last->end) {
            last->end = gild_max_u64(last->end, end);
            return true;
        }
    }
    if (start >= end) {
        return true;
    }
    if (nbd->stretch_count == nbd->stretch_room) {
        size_t room = nbd->stretch_room ? nbd->stretch_room * 2 : 1024;
        struct stretch *grown = realloc(nbd->stretches, room * sizeof(*grown));
        if (!grown) {
            return false;
        }
        nbd->stretches = grown;
        nbd->stretch_room = room;
    }
    nbd->stretches[nbd->stretch_count++] = (struct stretch){start, end};
    return true;
}

static int status_part(void *context, const char *metacontext, uint64_t offset, uint32_t *entries,
                       size_t count, int *error) {
    struct nbd_source *nbd = context;
    if (strcmp(metacontext, ALLOCATION) != 0 || offset != nbd->covered) {
        return 0;
    }
    for (size_t i = 0; i + 1 < count; i += 2) {
        uint64_t end = gild_min_u64(nbd->covered + entries[i], nbd->source.size_bytes);
        if (!(entries[i + 1] & LIBNBD_STATE_ZERO) && !add_stretch(nbd, nbd->covered, end)) {
            *error = ENOMEM;
            return -1;
        }
        nbd->covered = end;
    }
    return 0;
}

static int status_done(void *context, int *error) {
    struct nbd_source *nbd = context;
    nbd->asking = false;
    if (*error) {
        fail(nbd, *error, "ask for the holes of", nbd->covered);
    } else if (nbd->covered == nbd->asked) {
        fail(nbd, EPROTO, "ask for the holes of", nbd->covered); /* would be asked for ever */
    }
    return 1;
}

/* Keeps the status ahead of the reads: asks for the next window when the last one is used up. */
static bool ask_status(struct nbd_source *nbd) {
    uint64_t size = nbd->source.size_bytes;
    if (nbd->asking || nbd->covered >= size || nbd->stretch_at < nbd->stretch_count) {
        return true;
    }
    nbd->stretch_at = nbd->stretch_count = 0;
    if (!nbd->has_status) {
        nbd->covered = size;
        return add_stretch(nbd, nbd->cursor, size);
    }
    uint64_t window = gild_min_u64(WINDOW_BYTES, size - nbd->covered);
    nbd_extent_callback part = {.callback = status_part, .user_data = nbd};
    nbd_completion_callback done = {.callback = status_done, .user_data = nbd};
    nbd->asking = true;
    nbd->asked = nbd->covered;
    if (nbd_aio_block_status(nbd->handle, window, nbd->covered, part, done, 0) < 0) {
        nbd->asking = false;
        fail(nbd, nbd_get_errno(), "ask for the holes of", nbd->covered);
        return false;
    }
    return true;
}

static bool start_reads(struct nbd_source *nbd) {
    while (nbd->stretch_at < nbd->stretch_count) {
        struct stretch *stretch = &nbd->stretches[nbd->stretch_at];
        uint64_t start = gild_max_u64(stretch->start, nbd->cursor);
        if (start >= stretch->end) {
            nbd->stretch_at++;
            continue;
        }
        size_t bytes = gild_min_u64(stretch->end - start, nbd->largest);
        struct vdi_slot *slot = vdi_ring_claim(&nbd->source.ring, start, bytes, false);
        if (!slot) {
            break;
        }
        struct read_request *request = &nbd->requests[slot - nbd->source.ring.slots];
        *request = (struct read_request){nbd, slot};
        nbd->cursor = start + bytes;
        nbd->reading++;
        nbd_completion_callback done = {.callback = read_done, .user_data = request};
        if (nbd_aio_pread(nbd->handle, slot->data, bytes, start, done, 0) < 0) {
            nbd->reading--;
            fail(nbd, nbd_get_errno(), "read", start);
            return false;
        }
    }
    return true;
}

static bool wait_and_notify(struct nbd_source *nbd) {
    unsigned direction = nbd_aio_get_direction(nbd->handle);
    struct pollfd fds[2] = {
        {.fd = nbd_aio_get_fd(nbd->handle)},
        {.fd = nbd->source.ring.wake, .events = POLLIN},
    };
    fds[0].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    int result = 0;
    if (fds[0].fd >= 0 && poll(fds, 2, -1) > 0) {
        uint64_t count;
        if (fds[1].revents) {
            ssize_t got = read(fds[1].fd, &count, sizeof(count)); /* only to empty it */
            (void)got;
        }
        if (direction & LIBNBD_AIO_DIRECTION_READ &&
            fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
            result = nbd_aio_notify_read(nbd->handle);
        } else if (direction & LIBNBD_AIO_DIRECTION_WRITE &&
                   fds[0].revents & (POLLOUT | POLLHUP | POLLERR)) {
            result = nbd_aio_notify_write(nbd->handle);
        }
    }
    if (result < 0 || fds[0].fd < 0 || nbd_aio_is_dead(nbd->handle) ||
        nbd_aio_is_closed(nbd->handle)) {
        int err = nbd_get_errno();
        fail(nbd, err ? err : ECONNRESET, "read", nbd->cursor);
        return false;
    }
    return true;
}

static void *drive(void *context) {
    struct nbd_source *nbd = context;
    while (!vdi_ring_is_over(&nbd->source.ring)) {
        if (!start_reads(nbd) || !ask_status(nbd) || !start_reads(nbd)) {
            break; /* failed, and the ring knows; or no memory, see below */
        }
        bool more = nbd->asking || nbd->reading || nbd->covered < nbd->source.size_bytes ||
                    nbd->stretch_at < nbd->stretch_count;
        if (!more) {
            vdi_ring_end(&nbd->source.ring);
            return NULL;
        }
        if (!wait_and_notify(nbd)) {
            break;
        }
    }
    fail(nbd, ENOMEM, "read", nbd->cursor); /* counts only if nothing was reported before */
    return NULL;
}

static void nbd_source_close(struct vdi_source *source) {
    struct nbd_source *nbd = (struct nbd_source *)source;
    if (nbd->started) {
        pthread_join(nbd->thread, NULL);
    }
    nbd_close(nbd->handle); /* before the buffers that its commands fill */
    vdi_child_end(&nbd->child);
    vdi_ring_fini(&source->ring);
    free(nbd->stretches);
    free(nbd->name);
    free(nbd);
}

struct nbd_handle *vdi_nbd_create(struct gild_error *error) {
    struct nbd_handle *handle = nbd_create();
    if (!handle || nbd_add_meta_context(handle, ALLOCATION) < 0) {
        gild_fail(error, GILD_FAILED, ENOMEM, "cannot set up an NBD client: %s", nbd_get_error());
        nbd_close(handle);
        return NULL;
    }
    return handle;
}

int vdi_nbd_finish_connecting(struct nbd_handle *handle) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (nbd_aio_is_connecting(handle)) {
        if (nbd_poll(handle, 1000) < 0) {
            break;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - start.tv_sec > CONNECT_SECONDS) {
            return -ETIMEDOUT;
        }
    }
    if (!nbd_aio_is_ready(handle)) {
        int err = nbd_get_errno();
        return -(err ? err : ECONNREFUSED);
    }
    return 0;
}

/* What the server can do; 0 or -errno with a sentence. */
static int learn(struct nbd_source *nbd, struct gild_error *error) {
    int64_t size = nbd_get_size(nbd->handle);
    int64_t smallest = nbd_get_block_size(nbd->handle, LIBNBD_SIZE_MINIMUM);
    int64_t largest = nbd_get_block_size(nbd->handle, LIBNBD_SIZE_MAXIMUM);
    nbd->has_status = nbd_can_meta_context(nbd->handle, ALLOCATION) > 0;
    nbd->unit = smallest > (int64_t)VDI_BLOCK_BYTES ? (uint64_t)smallest : VDI_BLOCK_BYTES;
    nbd->largest = VDI_CHUNK_BYTES;
    if (largest > 0 && largest < (int64_t)VDI_CHUNK_BYTES) {
        nbd->largest = (size_t)largest;
    }
    if (size <= 0 || size % 512 != 0) {
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s has a size of %lld bytes, which is not a multiple of 512 above zero; "
                         "a disk of that size cannot be imported",
                         nbd->name, (long long)size);
    }
    if (nbd->unit & (nbd->unit - 1) || nbd->unit > nbd->largest) {
        return gild_fail(error, GILD_FAILED, EINVAL,
                         "%s wants reads of at least %llu bytes, which gild cannot do; serve it "
                         "with a block size of at most 1 MiB",
                         nbd->name, (unsigned long long)nbd->unit);
    }
    nbd->largest = gild_align_down(nbd->largest, nbd->unit);
    nbd->source.size_bytes = (uint64_t)size;
    return 0;
}

int vdi_source_read_nbd(struct vdi_source **out, struct nbd_handle *handle, struct vdi_child *child,
                        const char *name, const char *format, struct gild_error *error) {
    struct nbd_source *nbd = calloc(1, sizeof(*nbd));
    char *own_name = strdup(name);
    if (!nbd || !own_name || vdi_ring_init(&nbd->source.ring, true, error) < 0) {
        free(own_name);
        free(nbd);
        nbd_close(handle);
        if (child) {
            vdi_child_end(child);
        }
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to read %s", name);
    }
    nbd->handle = handle;
    nbd->name = own_name;
    nbd->child =
        child ? *child : (struct vdi_child){.pid = -1, .process = -1, .output = -1, .messages = -1};
    nbd->source.close = nbd_source_close;
    strncpy(nbd->source.format, format, VDI_SOURCE_FORMAT_BYTES - 1);
    int result = learn(nbd, error);
    if (result == 0) {
        int err = pthread_create(&nbd->thread, NULL, drive, nbd);
        nbd->started = !err;
        if (err) {
            result = gild_fail(error, GILD_FAILED, err, "cannot start a thread to read %s: %s",
                               name, strerror(err));
        }
    }
    if (result < 0) {
        nbd_source_close(&nbd->source);
        return result;
    }
    *out = &nbd->source;
    return 0;
}

int vdi_source_open_nbd(struct vdi_source **out, const char *uri, struct gild_error *error) {
    struct nbd_handle *handle = vdi_nbd_create(error);
    if (!handle) {
        return -ENOMEM;
    }
    int result = nbd_aio_connect_uri(handle, uri) < 0 ? -nbd_get_errno() : 0;
    result = result ? result : vdi_nbd_finish_connecting(handle);
    if (result < 0) {
        const char *why = result == -ETIMEDOUT ? "it does not answer" : nbd_get_error();
        bool missing = result == -ENOENT;
        gild_fail(error, missing ? GILD_NOT_FOUND : GILD_FAILED, -result,
                  "cannot connect to %s: %s", uri, why ? why : strerror(-result));
        nbd_close(handle);
        return result;
    }
    return vdi_source_read_nbd(out, handle, NULL, uri, "nbd", error);
}
