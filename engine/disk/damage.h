/* Whom damage hits: from a group of a pack, or blocks of a map, to the disks and their blocks; and
 * what is said of it.
 *
 * A sealed map's blocks are its image version's, and those of every desktop over it that has not
 * written them itself. Blocking, off the reactors, but for what says otherwise. */
#ifndef GILD_DISK_DAMAGE_H
#define GILD_DISK_DAMAGE_H

#include "disk/repair.h"
#include "gild/store.h"

struct damage; /* who stands on which map, at one instant of the catalogue */

/* budget: map pages that may be read for all answers together, 0 = no bound. */
int damage_open(struct damage **out, struct gild_store *store, uint64_t budget);
void damage_close(struct damage *damage);           /* NULL is fine */
bool damage_cut_short(const struct damage *damage); /* the budget did not suffice */

/* The path of a delta's disk: "desktops/d1/os", or "delta 7" where it has none. */
const char *damage_disk(struct damage *damage, uint64_t delta_id, char text[64]);

/* The disks that something hits; zero it, hits_free. */
struct hits {
    struct gild_hit *hit;
    struct hits_memory { /* of each: what it points to */
        char *disk;
        struct gild_hit_range *ranges;
    } * memory;
    size_t count, room;
};
void hits_free(struct hits *hits);
int hits_add(struct hits *hits, const char *disk, const struct range_set *blocks);

/* Who reads these blocks through the map; NULL: all of it. Adds to the hits. 0 or -ENOMEM; a delta
 * whose own map can not be read counts as hit. */
int damage_of_map(struct damage *damage, uint64_t map_id, const struct range_set *blocks,
                  struct hits *hits);

/* Groups of one pack, and whom they hit. */
struct target {
    uint32_t pack_id;
    struct range_set groups; /* merged */
    struct hits hits;        /* the answer */
};
int damage_of_groups(struct damage *damage, struct target *targets, size_t count);

/* ---- findings -------------------------------------------------------------------------------- */

struct findings {
    gild_check_found *found; /* may be NULL */
    void *context;
    uint64_t *count;
};
/* hits NULL: it is not about content; else the sentence goes on with whom it hits. */
void findings_add(struct findings *findings, const char *object, const char *kind,
                  const struct hits *hits, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* The same, and after it what to do about it; advice may be NULL. */
void findings_advise(struct findings *findings, const char *object, const char *kind,
                     const struct hits *hits, const char *advice, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* "image win10@3 (blocks 16-31), desktops d1, d2 and 998 more", or "no disk". */
void hits_words(const struct hits *hits, char *text, size_t room);

/* ---- while guests read ------------------------------------------------------------------------
 */

/* A reactor met rot: whom it hits is told in the log, once for each object, in the background.
 * True: it is the first to meet it. Any thread; never waits. */
bool damage_met_group(struct gild_store *store, uint32_t pack_id, uint32_t group);
bool damage_met_leaf(struct gild_store *store, uint64_t map_id, uint64_t leaf);

#endif
