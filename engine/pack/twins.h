/* Is a block that a fingerprint leads to really the same, byte by byte? Private to this folder; one
 * thread. */
#ifndef GILD_PACK_TWINS_H
#define GILD_PACK_TWINS_H

#include "pack/set.h"

struct twins;

/* copy: as in struct gild_ingest_options, with its context; may be NULL. 0, -ENOMEM. */
int twins_create(struct twins **out, struct gild_packs *packs,
                 uint16_t (*copy)(void *context, uint32_t pack_id, uint32_t group, void *out),
                 void *context);
void twins_destroy(struct twins *twins); /* NULL is fine */

/* True only if the 4 KiB at `place` were read and are these. pack: the place's, or NULL: look it up
 * in the set. Blocking: one group's read, none for the few groups that were asked for last. */
bool twins_same(struct twins *twins, const struct pack *pack, uint64_t place, const void *block);

#endif
