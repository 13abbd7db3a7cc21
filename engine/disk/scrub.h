/* Between the files of a scrub: scrub.c (the whole, its pace), scrub_packs.c (packs: look, repair,
 * quarantine), scrub_disks.c (sealed maps, the log). One thread, which may block. */
#ifndef GILD_DISK_SCRUB_H
#define GILD_DISK_SCRUB_H

#include "disk/damage.h"
#include "disk/faults.h"
#include "disk/pace.h"

/* Blocks of damaged groups that a copy is looked for in the log: as many are held in memory. */
#define SCRUB_WANTED_MAX 16384u

struct scrub_wanted {
    uint8_t fingerprint[GILD_FINGERPRINT_BYTES];
    uint8_t *copy; /* a block, NULL until one was met */
};

/* A pack in which a look found something. */
struct scrub_ill {
    uint32_t pack_id;
    struct faults faults;
    bool rewritten;  /* nothing of it is damaged any more but what is lost */
    int trouble;     /* why it could not be repaired, 0 or -errno */
    uint64_t healed; /* groups */
    struct ids lost; /* groups */
};

struct scrub {
    struct gild_store *store;
    const struct gild_scrub_options *options;
    struct gild_scrub_result *result;
    struct findings findings;
    struct damage *damage;
    struct pace pace;
    const char *what;
    uint64_t total, told_bytes;
    bool bad; /* something is damaged, or lost to somebody, after this scrub */
    struct ids packs, maps, deltas;
    struct scrub_ill *ill;
    size_t ill_count;
    struct scrub_wanted *wanted; /* ascending */
    size_t wanted_count, wanted_met;
};

/* Before so many bytes are read: keeps the pace, tells the progress. Non-zero ends the scrub. */
int scrub_take(void *scrub, uint64_t bytes);

/* A finding that stays: something is damaged or lost. hits may be NULL. */
void scrub_find(struct scrub *scrub, const char *object, const char *kind, const struct hits *hits,
                const char *advice, const char *sentence);

/* scrub_packs.c, in this order: every pack is looked at; the damaged ones are repaired; what they
 * lack is asked for of the log, and repaired again if any of it was met; then it is told. */
int scrub_look_at_packs(struct scrub *scrub);
int scrub_repair_packs(struct scrub *scrub);
int scrub_want(struct scrub *scrub);
int scrub_repair_wanted(struct scrub *scrub);
int scrub_tell_packs(struct scrub *scrub);
void scrub_free_packs(struct scrub *scrub);
/* A block of the log, proven by its check: kept if it is wanted. */
int scrub_offer(struct scrub *scrub, const void *block);

/* scrub_disks.c */
int scrub_maps(struct scrub *scrub);
int scrub_log(struct scrub *scrub);

#endif
