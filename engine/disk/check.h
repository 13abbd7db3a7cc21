/* Between the files of a check: check.c (the catalogue, maps, packs), check_log.c (deltas,
 * segments), check_files.c (files and numbers). One thread. */
#ifndef GILD_DISK_CHECK_H
#define GILD_DISK_CHECK_H

#include "disk/damage.h"
#include "disk/faults.h"
#include "disk/walk.h"

#define CHECK_OBJECT_BYTES 160u

struct check {
    struct gild_store *store;
    struct gild_txn *txn; /* one instant of the catalogue */
    struct damage *damage;
    struct findings findings;
    struct gild_check_result *result;
    struct ids maps, packs, deltas, dropped, segments, owned /* deltas of desktops */;
    struct ids counted; /* serials, once for each block or node that anything reaches */
    struct ids packed;  /* packs, once for each block of a delta that lies there */
    bool incomplete;    /* a delta could not be walked whole: counts are too low */
    struct gild_rec_delta *delta;
    struct gild_rec_map *map;
    struct pack_shape *shapes; /* as `packs` */
};

/* check_log.c */
int check_deltas(struct check *check);
int check_segments(struct check *check);
/* How often a sorted list has this. */
uint64_t check_times(const struct ids *counted, uint64_t id);

/* check.c */
enum check_slot { CHECK_SLOT_THERE, CHECK_NO_PACK, CHECK_NO_SLOT };
/* Is there such a slot, as far as the pack's table can be read? */
enum check_slot check_slot(struct check *check, uint64_t place);

/* check_files.c: files that nobody knows, numbers above their counters. */
int check_files(struct check *check);
int check_counters(struct check *check);

#endif
