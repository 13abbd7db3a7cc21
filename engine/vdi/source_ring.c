/* The ring between those who read a source and the one who ingests it.
 *
 * Invariants: slots head .. tail - 1 are claimed, in ascending order of offset; only slot head may
 * be lent to the consumer; a slot is given out again only after the consumer has come back for the
 * next one. Once stopped or failed nothing is claimed any more; a slot that a reader still fills
 * then stays its own until the reader has ended (the close joins it before the memory goes).
 *
 * Threads: readers claim, fill, end and fail; one consumer calls next and stop. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "vdi/source.h"

#define RING_MEMORY_BYTES ((size_t)VDI_RING_SLOTS * VDI_CHUNK_BYTES)
#define PATIENCE_SECONDS 1

int vdi_ring_init(struct vdi_ring *ring, bool with_wake, struct gild_error *error) {
    pthread_condattr_t attributes;
    memset(ring, 0, sizeof(*ring));
    ring->wake = -1;
    pthread_mutex_init(&ring->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&ring->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    ring->memory =
        mmap(NULL, RING_MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring->memory == MAP_FAILED) {
        ring->memory = NULL;
    }
    if (with_wake) {
        ring->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    if (!ring->memory || (with_wake && ring->wake < 0)) {
        int err = errno;
        vdi_ring_fini(ring);
        return gild_fail(error, GILD_FAILED, err, "no memory for an import's buffers: %s",
                         strerror(err));
    }
    for (unsigned i = 0; i < VDI_RING_SLOTS; i++) {
        ring->slots[i].data = ring->memory + (size_t)i * VDI_CHUNK_BYTES;
    }
    return 0;
}

void vdi_ring_fini(struct vdi_ring *ring) {
    if (ring->memory) {
        munmap(ring->memory, RING_MEMORY_BYTES);
    }
    if (ring->wake >= 0) {
        close(ring->wake);
    }
    pthread_cond_destroy(&ring->changed);
    pthread_mutex_destroy(&ring->lock);
}

/* With the lock held: something changed that others wait for. */
static void tell(struct vdi_ring *ring) {
    pthread_cond_broadcast(&ring->changed);
    if (ring->wake >= 0) {
        uint64_t one = 1;
        ssize_t written = write(ring->wake, &one, sizeof(one)); /* full: awake already */
        (void)written;
    }
}

struct vdi_slot *vdi_ring_claim(struct vdi_ring *ring, uint64_t offset_bytes, size_t bytes,
                                bool wait) {
    struct vdi_slot *slot = NULL;
    pthread_mutex_lock(&ring->lock);
    while (wait && !ring->stopping && !ring->failed && ring->tail - ring->head == VDI_RING_SLOTS) {
        pthread_cond_wait(&ring->changed, &ring->lock);
    }
    if (!ring->stopping && !ring->failed && ring->tail - ring->head < VDI_RING_SLOTS) {
        slot = &ring->slots[ring->tail++ % VDI_RING_SLOTS];
        slot->offset_bytes = offset_bytes;
        slot->bytes = bytes;
        slot->filled = false;
    }
    pthread_mutex_unlock(&ring->lock);
    return slot;
}

void vdi_ring_filled(struct vdi_ring *ring, struct vdi_slot *slot) {
    size_t whole = gild_align_up(slot->bytes, VDI_BLOCK_BYTES);
    memset(slot->data + slot->bytes, 0, whole - slot->bytes);
    pthread_mutex_lock(&ring->lock);
    slot->bytes = whole;
    slot->filled = true;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
}

void vdi_ring_end(struct vdi_ring *ring) {
    pthread_mutex_lock(&ring->lock);
    ring->ended = true;
    pthread_cond_broadcast(&ring->changed);
    pthread_mutex_unlock(&ring->lock);
}

void vdi_ring_fail(struct vdi_ring *ring, const struct gild_error *error) {
    pthread_mutex_lock(&ring->lock);
    if (!ring->failed) {
        ring->failed = true;
        ring->error = *error;
    }
    tell(ring);
    pthread_mutex_unlock(&ring->lock);
}

void vdi_ring_stop(struct vdi_ring *ring) {
    pthread_mutex_lock(&ring->lock);
    ring->stopping = true;
    tell(ring);
    pthread_mutex_unlock(&ring->lock);
}

bool vdi_ring_is_over(struct vdi_ring *ring) {
    pthread_mutex_lock(&ring->lock);
    bool over = ring->stopping || ring->failed;
    pthread_mutex_unlock(&ring->lock);
    return over;
}

int vdi_ring_next(struct vdi_ring *ring, struct vdi_chunk *chunk, struct gild_error *error) {
    struct timespec deadline;
    int result = 1;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PATIENCE_SECONDS;
    *chunk = (struct vdi_chunk){0};
    pthread_mutex_lock(&ring->lock);
    if (ring->lent) {
        ring->lent = false;
        ring->head++;
        tell(ring);
    }
    struct vdi_slot *slot = &ring->slots[ring->head % VDI_RING_SLOTS];
    while (!ring->failed && !(ring->head < ring->tail && slot->filled) &&
           !(ring->ended && ring->head == ring->tail)) {
        if (pthread_cond_timedwait(&ring->changed, &ring->lock, &deadline) == ETIMEDOUT) {
            goto out; /* 1 with no bytes */
        }
    }
    if (ring->failed) {
        if (error) {
            *error = ring->error;
        }
        result = ring->error.err ? -ring->error.err : -EIO;
    } else if (ring->head == ring->tail) {
        result = 0;
    } else {
        *chunk = (struct vdi_chunk){slot->offset_bytes, slot->bytes, slot->data};
        ring->lent = true;
    }
out:
    pthread_mutex_unlock(&ring->lock);
    return result;
}
