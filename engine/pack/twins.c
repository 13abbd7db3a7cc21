/* Comparing what a fingerprint leads to: an ingest of content that guests wrote takes a sealed
 * block for its own only if all bytes are alike.
 *
 * Hits come in runs of neighbours, so the groups that were asked for last are kept decoded, the one
 * not asked for longest is replaced. A group that can not be read is kept too, as one without any
 * slots: what it should hold is stored anew, and it is not read again for each of its blocks.
 *
 * One thread, blocking. Failure modes: none; what can not be read or compared is not the same. */
#include "pack/twins.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KEPT 8u

struct kept {
    uint64_t group; /* its place, slot 0; 0: nothing is kept here (no pack's place is 0) */
    uint64_t asked; /* when last */
    uint16_t slots;
    uint8_t *content;
};

struct twins {
    struct gild_packs *packs;
    uint16_t (*copy)(void *context, uint32_t pack_id, uint32_t group, void *out);
    void *context;
    uint64_t now;
    uint8_t *cover, *memory;
    struct kept kept[KEPT];
};

int twins_create(struct twins **out, struct gild_packs *packs,
                 uint16_t (*copy)(void *context, uint32_t pack_id, uint32_t group, void *out),
                 void *context) {
    struct twins *twins = calloc(1, sizeof *twins);
    if (!twins)
        return -ENOMEM;
    twins->packs = packs;
    twins->copy = copy;
    twins->context = context;
    twins->cover = aligned_alloc(GILD_PACK_PAGE_BYTES, PACK_COVER_BYTES);
    twins->memory = malloc((size_t)KEPT * GILD_GROUP_BYTES);
    if (!twins->cover || !twins->memory) {
        twins_destroy(twins);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < KEPT; i++)
        twins->kept[i].content = twins->memory + (size_t)i * GILD_GROUP_BYTES;
    *out = twins;
    return 0;
}

void twins_destroy(struct twins *twins) {
    if (!twins)
        return;
    free(twins->cover);
    free(twins->memory);
    free(twins);
}

static uint16_t load(struct twins *twins, const struct pack *pack, uint64_t place, void *out) {
    uint32_t pack_id = gild_place_pack_id(place), group = gild_place_group(place);
    uint16_t slots = twins->copy ? twins->copy(twins->context, pack_id, group, out) : 0;
    if (slots)
        return slots;
    struct pack *held = pack ? NULL : set_hold(twins->packs, pack_id);
    const struct pack *from = pack ? pack : held;
    if (!from || pack_read_group(from, group, twins->cover, out, &slots) != 0)
        slots = 0;
    pack_release(held);
    return slots;
}

bool twins_same(struct twins *twins, const struct pack *pack, uint64_t place, const void *block) {
    uint64_t group = gild_place_pack(gild_place_pack_id(place), gild_place_group(place), 0);
    struct kept *kept = &twins->kept[0];
    for (unsigned i = 0; i < KEPT && kept->group != group; i++)
        if (twins->kept[i].group == group || twins->kept[i].asked < kept->asked)
            kept = &twins->kept[i];
    kept->asked = ++twins->now;
    if (kept->group != group) {
        kept->group = group;
        kept->slots = load(twins, pack, place, kept->content);
    }
    uint32_t slot = gild_place_slot(place);
    return kept->slots >> slot & 1 &&
           memcmp(kept->content + slot * PACK_BLOCK_BYTES, block, PACK_BLOCK_BYTES) == 0;
}
