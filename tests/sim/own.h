/* What the parts of the machine (machine.h) share: machine.c is power, work.c guests' ops, admin.c
 * the admin's verbs. One thread runs at a time, so nothing is locked. */
#ifndef GILD_TEST_MACHINE_OWN_H
#define GILD_TEST_MACHINE_OWN_H

#include "gild/disk.h"
#include "gild/store.h"
#include "machine.h"
#include "oracle.h"

#define BASES 3u /* disks that stand on nothing, and stay */
#define CLONES 4u
#define DISKS (BASES + CLONES)
#define IMAGES 3u
#define MOST_SECTORS 96u /* of one op that carries data */

/* Does the store have it? UNSURE until it is opened anew: a verb was broken off, or failed. */
enum presence { ABSENT, UNSURE, THERE };

struct image {
    enum presence presence;
    bool hashed;
    char name[16];
    struct content content;
    uint8_t hash[32];
};

struct disk {
    enum presence presence;
    bool leaving; /* no further ops */
    char name[16], path[40];
    unsigned image, busy;
    struct gild_disk *disk;
    struct oracle oracle;
};

struct machine {
    struct gild_store *store;
    struct disk disks[DISKS];
    struct image images[IMAGES];
    struct machine_counts *counts;
    uint64_t seed, moment;
    uint32_t serial; /* of names */
    unsigned busy;
    unsigned found_images, found_disks; /* by the last look, a bit each */
    bool errors;                        /* ops may fail: a fault is armed, or was */
    bool orderly;                       /* the store was closed in order */
    bool small;                         /* little to read, for those who read it a million times */
    bool recovering;                    /* opened after a cut, and not read whole since */
    bool stale;                         /* the same, with its log damaged */
    bool may_rot;                       /* while it is closed */
    bool made;                          /* so it has a catalogue that can be lost */
    enum { ROOMY, LITTLE_LEFT, NOTHING_LEFT } space; /* of the file system */
    bool losing; /* its catalogue is lost, and not yet made again */
};
extern struct machine machine;

void machine_fail(enum wrong wrong, const char *what, const char *why) __attribute__((noreturn));
bool machine_damaged(void);
/* An op or verb failed: is that in order? */
void machine_failed(const char *what, const char *why);

/* May what began at `space`, and ends now, have failed for want of space, which only new data may?
 * It is counted.
 */
bool machine_lacked_space(int error, int space);

/* The history ends here: the store is refused for good, as it may be. */
void machine_end(void) __attribute__((noreturn));

/* work.c */
void work_reset(void);
void work_wait_disk(struct disk *disk);
void work_read_disk(struct disk *disk, enum oracle_mode mode);
void work_read_image(struct image *image);

/* admin.c */
void admin_do(enum machine_op op);
void admin_wait(void);
void admin_reset(void);
/* Looks what there is after a power cut, and opens the disks. */
void admin_look(void);
void admin_open_disks(void);
void admin_close_disks(void);
void admin_check(void);
/* After an orderly end: no file without an owner, nothing left of what was deleted. */
void admin_audit(void);

#endif
