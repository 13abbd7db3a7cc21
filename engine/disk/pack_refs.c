/* See pack_refs.h. Two levels of slots by the pack's number; a leaf appears by one release store
 * and stays. */
#include "disk/pack_refs.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/place.h"

#define LEAF_SLOTS 256u
#define TOP_SLOTS ((1u << 28) / LEAF_SLOTS)

struct pack_refs {
    _Atomic(struct pack_ref *) *top;
    _Atomic uint32_t leaves; /* used of the top, counted from its front */
    pthread_mutex_t lock;    /* makes leaves */
};

int pack_refs_create(struct pack_refs **out) {
    struct pack_refs *refs = calloc(1, sizeof *refs);
    if (!refs)
        return -ENOMEM;
    refs->top = mmap(NULL, TOP_SLOTS * sizeof *refs->top, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (refs->top == MAP_FAILED) {
        free(refs);
        return -ENOMEM;
    }
    pthread_mutex_init(&refs->lock, NULL);
    *out = refs;
    return 0;
}

void pack_refs_destroy(struct pack_refs *refs) {
    if (!refs)
        return;
    for (uint32_t i = 0; i < atomic_load(&refs->leaves); i++)
        free(atomic_load_explicit(&refs->top[i], memory_order_relaxed));
    munmap(refs->top, TOP_SLOTS * sizeof *refs->top);
    pthread_mutex_destroy(&refs->lock);
    free(refs);
}

static struct pack_ref *slot_of(const struct pack_refs *refs, uint32_t pack_id) {
    uint32_t leaf = pack_id / LEAF_SLOTS;
    struct pack_ref *slots =
        leaf < TOP_SLOTS ? atomic_load_explicit(&refs->top[leaf], memory_order_acquire) : NULL;
    return slots ? &slots[pack_id % LEAF_SLOTS] : NULL;
}

int pack_refs_ensure(struct pack_refs *refs, uint32_t pack_id) {
    uint32_t leaf = pack_id / LEAF_SLOTS;
    struct pack_ref *slot = slot_of(refs, pack_id);
    if (leaf >= TOP_SLOTS)
        return -EINVAL;
    if (!slot) {
        pthread_mutex_lock(&refs->lock);
        if (!slot_of(refs, pack_id)) {
            struct pack_ref *slots = calloc(LEAF_SLOTS, sizeof *slots);
            if (slots && leaf >= atomic_load(&refs->leaves))
                atomic_store(&refs->leaves, leaf + 1);
            atomic_store_explicit(&refs->top[leaf], slots, memory_order_release);
        }
        slot = slot_of(refs, pack_id);
        pthread_mutex_unlock(&refs->lock);
        if (!slot)
            return -ENOMEM;
    }
    atomic_store_explicit(&slot->known, true, memory_order_release);
    return 0;
}

int pack_refs_note_stale(struct pack_refs *refs, uint32_t pack_id, uint64_t blocks) {
    int err = pack_refs_ensure(refs, pack_id);
    if (err)
        return err;
    struct pack_ref *ref = pack_refs_find(refs, pack_id);
    atomic_fetch_add(&ref->stale, blocks);
    ref->changed = true;
    return 0;
}

void pack_refs_forget(struct pack_refs *refs, uint32_t pack_id) {
    struct pack_ref *slot = slot_of(refs, pack_id);
    if (!slot)
        return;
    atomic_store(&slot->known, false);
    slot->changed = false;
    slot->base = 0;
    atomic_store(&slot->change[0], 0);
    atomic_store(&slot->change[1], 0);
    atomic_store(&slot->stale, 0);
}

struct pack_ref *pack_refs_find(const struct pack_refs *refs, uint32_t pack_id) {
    struct pack_ref *slot = slot_of(refs, pack_id);
    return slot && atomic_load_explicit(&slot->known, memory_order_acquire) ? slot : NULL;
}

void pack_refs_count(struct pack_refs *refs, unsigned epoch, uint64_t place, int sign) {
    struct pack_ref *ref = pack_refs_find(refs, gild_place_pack_id(place));
    assert(ref);
    atomic_fetch_add_explicit(&ref->change[epoch & 1], sign, memory_order_relaxed);
    if (sign < 0)
        atomic_fetch_add_explicit(&ref->stale, 1, memory_order_relaxed);
}

void pack_refs_adjust(struct pack_refs *refs, uint32_t pack_id, int64_t by) {
    struct pack_ref *ref = pack_refs_find(refs, pack_id);
    assert(ref);
    ref->base += (uint64_t)by;
    ref->changed = true;
}

int pack_refs_each(struct pack_refs *refs, pack_refs_visit *visit, void *context) {
    int err = 0;
    for (uint32_t leaf = 0; leaf < atomic_load(&refs->leaves) && !err; leaf++) {
        struct pack_ref *slots = atomic_load_explicit(&refs->top[leaf], memory_order_acquire);
        for (uint32_t i = 0; slots && i < LEAF_SLOTS && !err; i++)
            if (atomic_load(&slots[i].known))
                err = visit(context, leaf * LEAF_SLOTS + i, &slots[i]);
    }
    return err;
}

static int fold_one(void *context, uint32_t pack_id, struct pack_ref *ref) {
    const unsigned *epoch = context;
    (void)pack_id;
    int64_t change = atomic_exchange(&ref->change[*epoch & 1], 0);
    if (change) {
        ref->base += (uint64_t)change;
        ref->changed = true;
    }
    return 0;
}

void pack_refs_fold(struct pack_refs *refs, unsigned epoch) {
    pack_refs_each(refs, fold_one, &epoch);
}

bool pack_refs_none(const struct pack_refs *refs, uint32_t pack_id) {
    const struct pack_ref *ref = pack_refs_find(refs, pack_id);
    return !ref || (!ref->base && !ref->changed && !atomic_load(&ref->change[0]) &&
                    !atomic_load(&ref->change[1]));
}
