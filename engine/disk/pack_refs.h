/* How many blocks of deltas name each pack, counted as segments count what reaches into them
 * (log/segments.h): `base` as of the last committed checkpoint, and two counters of changes since,
 * of which reactors use the one of their epoch. What sealed maps name is not counted: their records
 * list their packs.
 *
 * Threads: find and count are wait-free from anywhere; the rest is the keeper's, or the opener's,
 * but for ensure, which any thread may call. */
#ifndef GILD_DISK_PACK_REFS_H
#define GILD_DISK_PACK_REFS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct pack_ref {
    _Atomic bool known;
    _Atomic bool changed; /* differs from the catalogue's record */
    uint64_t base;
    _Atomic int64_t change[2];
    _Atomic uint64_t stale; /* references that went since the pack was last looked through */
};

struct pack_refs;

/* 0 or -ENOMEM. */
int pack_refs_create(struct pack_refs **out);
void pack_refs_destroy(struct pack_refs *refs); /* NULL is fine */

/* Before anything may be counted of the pack; nothing happens if it is known. 0 or -ENOMEM. */
int pack_refs_ensure(struct pack_refs *refs, uint32_t pack_id);
/* Up to so many references to it went that are not counted here. Any thread. 0 or -ENOMEM. */
int pack_refs_note_stale(struct pack_refs *refs, uint32_t pack_id, uint64_t blocks);
/* The pack is gone. */
void pack_refs_forget(struct pack_refs *refs, uint32_t pack_id);

/* NULL if it is not known. */
struct pack_ref *pack_refs_find(const struct pack_refs *refs, uint32_t pack_id);
/* +1 or -1 for a place in a known pack, in the epoch's counter. */
void pack_refs_count(struct pack_refs *refs, unsigned epoch, uint64_t place, int sign);
/* The keeper's own: straight to `base`. */
void pack_refs_adjust(struct pack_refs *refs, uint32_t pack_id, int64_t by);
/* Checkpoint: adds the epoch's changes to `base` (all reactors have left the epoch). */
void pack_refs_fold(struct pack_refs *refs, unsigned epoch);
/* No delta names it, nor did one at the last checkpoint. */
bool pack_refs_none(const struct pack_refs *refs, uint32_t pack_id);

/* Calls back for each known pack, ascending. A non-zero return ends it and is returned. */
typedef int pack_refs_visit(void *context, uint32_t pack_id, struct pack_ref *ref);
int pack_refs_each(struct pack_refs *refs, pack_refs_visit *visit, void *context);

#endif
