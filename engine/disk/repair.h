/* Between the files of a repair: repair.c (what is done in which order), repair_log.c (segments,
 * counts, deltas), repair_maps.c (sealed maps, lost packs), repair_tell.c (what is said of whom).
 *
 * A repair is an open of the store that goes on where another is refused. `store->repair` is set
 * meanwhile. One thread; no reactor runs before it is done. */
#ifndef GILD_DISK_REPAIR_H
#define GILD_DISK_REPAIR_H

#include "disk/internal.h"
#include "disk/superblock.h"
#include "disk/walk.h"
#include "gild/store.h"

struct range {
    uint64_t first, count;
};
/* Zero it; free(set.range) at the end. */
struct range_set {
    struct range *range;
    size_t count, room;
};
int range_add(struct range_set *set, uint64_t first, uint64_t count);
int range_subtract(struct range_set *set, uint64_t first, uint64_t count);
/* Sorted, none touching another. */
void range_merge(struct range_set *set);

struct map_losses {
    uint64_t map_id;
    struct range_set ranges;
};

/* An entry of the log above the checkpoint, for a dry run, which replays nothing. */
struct tail_entry {
    uint64_t delta, first, count;
    bool bad;
};

struct repair {
    bool dry_run;
    const struct gild_repair_report *report;
    struct gild_repair_result *result;
    bool rebuilt;               /* the catalogue was, by this repair */
    uint64_t lost_transactions; /* of the catalogue, that its journal does not have */
    bool stop;                  /* a dry run that sees no further */
    uint64_t to_do;             /* what is not as a repair would leave it */
    struct ids lost_packs;      /* sorted */
    struct ids damaged_packs;   /* to be written anew */
    struct ids lost_groups;     /* in quarantine, sorted: pack << 32 | group */
    bool segment_missing;       /* one that guests' writes may have been in above the checkpoint */
    struct named *names;
    size_t name_count, name_room;
    struct map_losses *maps;
    size_t map_count;
    struct tail_entry *tail;
    size_t tail_count, tail_room;
};

/* ---- repair_tell.c --------------------------------------------------------------------------- */

void repair_say(struct repair *repair, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void repair_tell_quarantined(struct repair *repair, const char *disk, const char *why);
/* Merges the set and tells each range of it. */
void repair_tell_lost(struct repair *repair, const char *disk, struct range_set *set);
/* "desktops/d1/os", "images/win10@3", or the number where there is no name. */
int repair_names(struct gild_store *store);
void repair_free(struct repair *repair);
const char *repair_delta_name(struct repair *repair, uint64_t delta_id, char text[64]);
const char *repair_map_name(struct repair *repair, uint64_t map_id, char text[64]);

/* ---- repair.c -------------------------------------------------------------------------------- */

/* Moves STORE/folder/name to lost+found, if it is there. */
int repair_set_aside(struct gild_store *store, const char *folder, const char *name,
                     struct gild_error *error);
int repair_fail(struct gild_store *store, int err, const char *what, struct gild_error *error);

/* The hooks of an open (store.c), in their order. */
int repair_superblock(struct repair *repair, const char *directory, struct superblock *block,
                      int *lock_fd, struct gild_error *error);
int repair_catalogue(struct gild_store *store, const char *folder,
                     const struct gild_catalog_options *options, struct gild_error *error);
int repair_look(struct gild_store *store, struct gild_error *error);
int repair_orphans(struct gild_store *store, struct gild_error *error);
int repair_fix(struct gild_store *store, struct gild_error *error);

/* ---- repair_packs.c --------------------------------------------------------------------------
 */

int repair_pack(struct gild_store *store, uint32_t pack_id, struct gild_error *error);
int repair_packs(struct gild_store *store, struct gild_error *error);
/* Is the group of this place known to be lost? */
bool repair_group_lost(const struct repair *repair, uint64_t place);
/* Adds the blocks of a map that lie in groups which are known to be lost. */
int repair_lost_in_packs(struct gild_store *store, uint64_t map_id, struct range_set *lost);

/* ---- repair_maps.c --------------------------------------------------------------------------- */

int repair_maps(struct gild_store *store, struct gild_error *error);
/* The ranges of a map that are lost, NULL if none are. */
const struct range_set *repair_lost_of_map(const struct repair *repair, uint64_t map_id);

/* ---- repair_log.c, repair_deltas.c
 * ---------------------------------------------------------------------------- */

int repair_segments(struct gild_store *store, struct gild_error *error);
int repair_counts(struct gild_store *store, struct gild_error *error);
/* What of the log above the checkpoint is lost: quarantine. */
int repair_tail(struct gild_store *store, struct gild_error *error);
/* After the replay: what is rotten becomes LOST. */
int repair_deltas(struct gild_store *store, struct gild_error *error);
/* Tells what is lost of every delta. */
int repair_list(struct gild_store *store, struct gild_error *error);

#endif
