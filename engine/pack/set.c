/* The set of sealed packs: by number for readers, as a list for lookups of fingerprints.
 *
 * Readers (gild_pack_table_page) take no lock: a pack appears by one release store after it is
 * whole, and goes only when the caller of gild_packs_remove knows that no read is in flight.
 * Lookups hold the lock shared while they run, so add and remove wait for them, never readers.
 *
 * A lookup asks the packs one after another, each for all questions that are still open: a pack's
 * filter answers nearly all without I/O, and the pack that answered last is asked first, since
 * images meet the packs they are like in long runs. */
#include "pack/set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void set_path(const struct gild_packs *packs, uint32_t pack_id, bool sealed, char path[PATH_MAX]) {
    snprintf(path, PATH_MAX, "%s/%08x.pack%s", packs->directory, pack_id, sealed ? "" : ".new");
}

int set_sync_folder(const struct gild_packs *packs) {
    int fd = open(packs->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = fsync(fd) == 0 ? 0 : -errno;
    close(fd);
    return err;
}

int gild_packs_create(struct gild_packs **out, const char *directory, const uint8_t store_id[16],
                      struct gild_error *error) {
    struct gild_packs *packs;
    if (strlen(directory) >= sizeof packs->directory)
        return gild_fail(error, GILD_USAGE, ENAMETOOLONG,
                         "the path of the packs folder is too long; move the store");
    packs = calloc(1, sizeof *packs);
    if (!packs)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the packs of %s", directory);
    strcpy(packs->directory, directory);
    memcpy(packs->store_id, store_id, sizeof packs->store_id);
    pthread_rwlock_init(&packs->lock, NULL);
    *out = packs;
    return 0;
}

void gild_packs_destroy(struct gild_packs *packs) {
    if (!packs)
        return;
    for (size_t i = 0; i < packs->count; i++)
        pack_close(packs->list[i]);
    for (size_t i = 0; i < sizeof packs->leaf / sizeof packs->leaf[0]; i++)
        free(atomic_load_explicit(&packs->leaf[i], memory_order_relaxed));
    pthread_rwlock_destroy(&packs->lock);
    free(packs->list);
    free(packs);
}

struct pack *set_get(struct gild_packs *packs, uint32_t pack_id) {
    if (pack_id > SET_ID_MAX)
        return NULL;
    set_slot *leaf =
        atomic_load_explicit(&packs->leaf[pack_id >> SET_LEAF_BITS], memory_order_acquire);
    if (!leaf)
        return NULL;
    return atomic_load_explicit(&leaf[pack_id & (SET_LEAF_SIZE - 1)], memory_order_acquire);
}

struct pack *set_hold(struct gild_packs *packs, uint32_t pack_id) {
    pthread_rwlock_rdlock(&packs->lock);
    struct pack *pack = set_get(packs, pack_id);
    if (pack)
        atomic_fetch_add(&pack->refs, 1);
    pthread_rwlock_unlock(&packs->lock);
    return pack;
}

/* The position in the list at which the id is or belongs; the lock is held. */
static size_t list_position(const struct gild_packs *packs, uint32_t pack_id) {
    size_t low = 0, high = packs->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (packs->list[middle]->id < pack_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Room for one more in the list and in the two levels; the lock is held exclusively. */
static set_slot *make_room(struct gild_packs *packs, uint32_t pack_id) {
    if (packs->count == packs->room) {
        size_t room = packs->room ? packs->room * 2 : 64;
        struct pack **list = realloc(packs->list, room * sizeof *list);
        if (!list)
            return NULL;
        packs->list = list;
        packs->room = room;
    }
    _Atomic(set_slot *) *where = &packs->leaf[pack_id >> SET_LEAF_BITS];
    set_slot *leaf = atomic_load_explicit(where, memory_order_relaxed);
    if (!leaf) {
        leaf = calloc(SET_LEAF_SIZE, sizeof *leaf);
        if (!leaf)
            return NULL;
        packs->leaf_count++;
        atomic_store_explicit(where, leaf, memory_order_release);
    }
    return &leaf[pack_id & (SET_LEAF_SIZE - 1)];
}

int set_insert(struct gild_packs *packs, struct pack *pack) {
    int err = 0;
    pthread_rwlock_wrlock(&packs->lock);
    set_slot *slot = make_room(packs, pack->id);
    if (!slot) {
        err = -ENOMEM;
    } else if (atomic_load_explicit(slot, memory_order_relaxed)) {
        err = -EEXIST;
    } else {
        size_t at = list_position(packs, pack->id);
        memmove(&packs->list[at + 1], &packs->list[at],
                (packs->count - at) * sizeof packs->list[0]);
        packs->list[at] = pack;
        packs->count++;
        atomic_store_explicit(slot, pack, memory_order_release);
    }
    pthread_rwlock_unlock(&packs->lock);
    return err;
}

struct pack *set_swap(struct gild_packs *packs, struct pack *pack, bool keep_lost) {
    pthread_rwlock_wrlock(&packs->lock);
    set_slot *leaf =
        atomic_load_explicit(&packs->leaf[pack->id >> SET_LEAF_BITS], memory_order_relaxed);
    struct pack *old = atomic_exchange(&leaf[pack->id & (SET_LEAF_SIZE - 1)], pack);
    packs->list[list_position(packs, pack->id)] = pack;
    atomic_store(&pack->unindexed, atomic_load(&old->unindexed));
    if (keep_lost) { /* nobody asks the old one any more */
        pack->lost = old->lost;
        old->lost = NULL;
    }
    pthread_rwlock_unlock(&packs->lock);
    return old;
}

typedef int open_pack(struct pack **out, const char *path, const uint8_t store_id[16],
                      uint32_t pack_id, struct gild_error *error);

static int add(struct gild_packs *packs, uint32_t pack_id, open_pack *open,
               struct gild_error *error) {
    char path[PATH_MAX];
    struct pack *pack;
    if (pack_id > SET_ID_MAX)
        return gild_fail(error, GILD_USAGE, EINVAL, "there is no pack number %u", pack_id);
    set_path(packs, pack_id, true, path);
    int err = open(&pack, path, packs->store_id, pack_id, error);
    if (err)
        return err;
    err = set_insert(packs, pack);
    if (!err)
        return 0;
    pack_close(pack);
    return gild_fail(error, GILD_FAILED, -err, "the pack %s can not be added: %s", path,
                     err == -EEXIST ? "it is open already" : "no memory");
}

int gild_packs_add(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error) {
    return add(packs, pack_id, pack_open, error);
}

int gild_packs_add_damaged(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error) {
    return add(packs, pack_id, pack_open_damaged, error);
}

int gild_packs_set_lost(struct gild_packs *packs, uint32_t pack_id, const uint32_t *groups,
                        size_t count) {
    pthread_rwlock_wrlock(&packs->lock);
    struct pack *pack = set_get(packs, pack_id);
    int err = pack ? pack_mark_lost(pack, groups, count) : -ENOENT;
    pthread_rwlock_unlock(&packs->lock);
    return err;
}

int gild_packs_set_indexed(struct gild_packs *packs, uint32_t pack_id, bool indexed) {
    pthread_rwlock_wrlock(&packs->lock);
    struct pack *pack = set_get(packs, pack_id);
    if (pack)
        atomic_store(&pack->unindexed, !indexed);
    pthread_rwlock_unlock(&packs->lock);
    return pack ? 0 : -ENOENT;
}

void gild_pack_let_go(struct gild_pack_old *old) {
    pack_release((struct pack *)old);
}

int gild_packs_remove(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error) {
    char path[PATH_MAX];
    set_path(packs, pack_id, true, path);
    pthread_rwlock_wrlock(&packs->lock);
    size_t at = list_position(packs, pack_id);
    struct pack *pack =
        at < packs->count && packs->list[at]->id == pack_id ? packs->list[at] : NULL;
    if (pack) {
        set_slot *leaf =
            atomic_load_explicit(&packs->leaf[pack_id >> SET_LEAF_BITS], memory_order_relaxed);
        atomic_store_explicit(&leaf[pack_id & (SET_LEAF_SIZE - 1)], NULL, memory_order_release);
        packs->count--;
        memmove(&packs->list[at], &packs->list[at + 1],
                (packs->count - at) * sizeof packs->list[0]);
    }
    pthread_rwlock_unlock(&packs->lock);
    if (!pack)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT, "the pack %s is not open", path);
    pack_release(pack);
    if (unlink(path) != 0 && errno != ENOENT) {
        int err = errno;
        return gild_fail(error, gild_code_of_errno(err), err, "the pack %s can not be deleted: %s",
                         path, strerror(err));
    }
    return 0;
}

void gild_packs_get_totals(struct gild_packs *packs, struct gild_packs_totals *totals) {
    memset(totals, 0, sizeof *totals);
    pthread_rwlock_rdlock(&packs->lock);
    totals->packs = packs->count;
    totals->index_memory_bytes = sizeof *packs + packs->room * sizeof packs->list[0] +
                                 packs->leaf_count * SET_LEAF_SIZE * sizeof(set_slot);
    for (size_t i = 0; i < packs->count; i++) {
        const struct pack *pack = packs->list[i];
        totals->groups += pack->layout.groups;
        totals->blocks += pack->layout.blocks;
        totals->file_bytes += pack->layout.file_bytes;
        totals->index_memory_bytes += pack_memory_bytes(pack);
    }
    pthread_rwlock_unlock(&packs->lock);
}

int gild_pack_table_page(struct gild_packs *packs, uint32_t pack_id, uint32_t group,
                         struct gild_pack_page *where) {
    const struct pack *pack = set_get(packs, pack_id);
    if (!pack)
        return -ENOENT;
    if (group >= pack->layout.groups)
        return -EUCLEAN;
    where->fd = pack->direct_fd;
    where->generation = pack->generation;
    where->page = group / PACK_TABLE_ENTRIES;
    where->index = group % PACK_TABLE_ENTRIES;
    where->file_offset = pack->layout.table_offset + (uint64_t)where->page * GILD_PACK_PAGE_BYTES;
    return 0;
}

void set_find_many(struct gild_packs *packs, uint32_t *hot,
                   const uint8_t (*fingerprints)[GILD_FINGERPRINT_BYTES], unsigned count,
                   uint64_t *places) {
    unsigned open = 0;
    for (unsigned i = 0; i < count; i++)
        open += !places[i];
    pthread_rwlock_rdlock(&packs->lock);
    uint32_t first = *hot;
    size_t at = list_position(packs, first);
    if (open && at < packs->count && packs->list[at]->id == first)
        open -= pack_find_many(packs->list[at], fingerprints, count, places);
    for (size_t i = 0; i < packs->count && open; i++) {
        if (packs->list[i]->id == first)
            continue;
        unsigned found = pack_find_many(packs->list[i], fingerprints, count, places);
        open -= found;
        if (found)
            *hot = packs->list[i]->id;
    }
    pthread_rwlock_unlock(&packs->lock);
}

uint64_t set_find_elsewhere(struct gild_packs *packs, uint32_t but,
                            const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    uint64_t place = 0;
    pthread_rwlock_rdlock(&packs->lock);
    for (size_t i = 0; i < packs->count && !place; i++) {
        struct pack *pack = packs->list[i];
        int64_t where = pack->id == but ? -ENOENT : pack_find(pack, fingerprint);
        if (where >= 0)
            place = gild_place_pack(pack->id, (uint32_t)where >> 4, (uint32_t)where & 15);
    }
    pthread_rwlock_unlock(&packs->lock);
    return place;
}
