/* The set of sealed packs. Private to this folder. */
#ifndef GILD_PACK_SET_H
#define GILD_PACK_SET_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "pack/sealed.h"

/* 28 bits of pack id in two levels, so that readers follow two pointers and never wait. */
#define SET_LEAF_BITS 14u
#define SET_LEAF_SIZE (1u << SET_LEAF_BITS)
#define SET_ID_MAX ((1u << 28) - 1)

typedef _Atomic(struct pack *) set_slot;

struct gild_packs {
    char directory[PATH_MAX - 32];
    uint8_t store_id[16];
    pthread_rwlock_t lock; /* of list and leaf_count; lookups of fingerprints share it */
    struct pack **list;    /* ascending by id */
    size_t count, room;
    size_t leaf_count;
    _Atomic(set_slot *) leaf[1u << (28 - SET_LEAF_BITS)];
};

/* The path of a pack's file; "%08x.pack" or with ".new" behind it while it is written. */
void set_path(const struct gild_packs *packs, uint32_t pack_id, bool sealed, char path[PATH_MAX]);

/* fsync of the packs' folder. 0 or -errno. */
int set_sync_folder(const struct gild_packs *packs);

/* Takes ownership of an open pack. 0, -EEXIST, -ENOMEM (then the caller keeps it). */
int set_insert(struct gild_packs *packs, struct pack *pack);

/* For each i with places[i] == 0, the place of the content if any pack has it. *hot: the pack that
 * answered last, asked first; updated. Blocking. */
void set_find_many(struct gild_packs *packs, uint32_t *hot,
                   const uint8_t (*fingerprints)[GILD_FINGERPRINT_BYTES], unsigned count,
                   uint64_t *places);

/* The open pack or NULL; wait-free. For callers whom add and remove wait for. */
struct pack *set_get(struct gild_packs *packs, uint32_t pack_id);

/* The same with a reference, for whoever blocks: pack_release. Any thread. */
struct pack *set_hold(struct gild_packs *packs, uint32_t pack_id);

/* Puts a rewritten pack in the place of the one with its number, which is returned: readers may
 * still be in it. Whether lookups pass it by stays as it was; keep_lost: which groups are lost,
 * too.
 */
struct pack *set_swap(struct gild_packs *packs, struct pack *pack, bool keep_lost);

/* Finds a content in any pack but one. The place or 0. Blocking. */
uint64_t set_find_elsewhere(struct gild_packs *packs, uint32_t but,
                            const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]);

/* Checks one open pack as gild_pack_check does. check.c */
int pack_check(struct gild_packs *packs, const struct pack *pack,
               const struct gild_pack_look *look);

#endif
