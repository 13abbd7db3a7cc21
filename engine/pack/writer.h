/* One pack while it is written. Private to this folder; one thread. */
#ifndef GILD_PACK_WRITER_H
#define GILD_PACK_WRITER_H

#include "pack/set.h"

struct pack_writer;

/* Makes the pack's file under its temporary name. generation: 1, or of a rewrite one more than the
 * pack has. features: PACK_DROPS if a group may have dropped slots. 0 or -errno. */
int writer_create(struct pack_writer **out, struct gild_packs *packs, uint32_t pack_id,
                  uint32_t generation, uint64_t features);

/* Appends the next group's frame, of so many blocks and with these slots dropped. */
int writer_frame(struct pack_writer *writer, const void *frame, uint32_t bytes, uint32_t blocks,
                 uint16_t dropped, uint64_t check);

/* The same from content: compresses these slots of a group. `group`: as gild_pack_decode gives it.
 */
int writer_group(struct pack_writer *writer, const void *group, uint16_t slots, uint16_t dropped,
                 int level);

/* The byte after the frame of a group that was appended. */
uint64_t writer_frame_end(const struct pack_writer *writer, uint32_t group);

/* Writes table, fingerprints (sorted in place), index and footer, and syncs. 0 or -errno. */
int writer_finish(struct pack_writer *writer, struct pack_print *prints, uint32_t count);

/* Gives the finished file its name: a new pack's must be free, a rewrite takes its place. The
 * folder is not synced. 0 or -errno. */
int writer_publish(struct pack_writer *writer);

/* Frees; a pack that was not sealed is unlinked. NULL is fine. */
void writer_destroy(struct pack_writer *writer);

#endif
