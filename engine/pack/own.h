/* The fingerprints of the pack that an ingest is writing. Private to this folder; one thread.
 *
 * An array of entries in the order of their places, and an open-addressing table of positions in
 * it, at most half full. SHA-256's own first bytes are the hash. */
#ifndef GILD_PACK_OWN_H
#define GILD_PACK_OWN_H

#include <stdlib.h>

#include "pack/format.h"

struct own {
    struct pack_print *print;
    uint32_t count, room;
    uint32_t *slot; /* position + 1, 0 = free */
    uint32_t slots; /* a power of two */
};

static inline uint32_t own_home(const struct own *own, const uint8_t *fingerprint) {
    uint32_t hash;
    memcpy(&hash, fingerprint + 4, sizeof hash);
    return hash & (own->slots - 1);
}

/* The content's place (group << 4 | slot), or -1. */
static inline int64_t own_find(const struct own *own, const uint8_t *fingerprint) {
    if (!own->slots)
        return -1;
    for (uint32_t i = own_home(own, fingerprint); own->slot[i]; i = (i + 1) & (own->slots - 1)) {
        const struct pack_print *print = &own->print[own->slot[i] - 1];
        if (memcmp(print->fingerprint, fingerprint, GILD_FINGERPRINT_BYTES) == 0)
            return print->where;
    }
    return -1;
}

static inline void own_link(struct own *own, uint32_t position) {
    uint32_t i = own_home(own, own->print[position].fingerprint);
    while (own->slot[i])
        i = (i + 1) & (own->slots - 1);
    own->slot[i] = position + 1;
}

static inline bool own_grow(struct own *own) {
    uint32_t room = own->room ? own->room * 2 : 16384;
    struct pack_print *print = realloc(own->print, room * sizeof *print);
    if (!print)
        return false;
    own->print = print;
    uint32_t *slot = calloc((size_t)room * 2, sizeof *slot);
    if (!slot)
        return false;
    free(own->slot);
    own->slot = slot;
    own->slots = room * 2;
    own->room = room;
    for (uint32_t i = 0; i < own->count; i++)
        own_link(own, i);
    return true;
}

/* Adds what own_find did not find; false: no memory. */
static inline bool own_add(struct own *own, const uint8_t *fingerprint, uint32_t where) {
    if (own->count == own->room && !own_grow(own))
        return false;
    struct pack_print *print = &own->print[own->count];
    memcpy(print->fingerprint, fingerprint, GILD_FINGERPRINT_BYTES);
    print->where = where;
    own_link(own, own->count++);
    return true;
}

static inline void own_clear(struct own *own) {
    if (own->slots)
        memset(own->slot, 0, own->slots * sizeof *own->slot);
    own->count = 0;
}

static inline void own_fini(struct own *own) {
    free(own->print);
    free(own->slot);
}

#endif
