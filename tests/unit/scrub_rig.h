/* A store with one image, a desktop that has written, and one that has not; ways to let single
 * things of it rot; a scrub and what it said. */
#ifndef GILD_TEST_SCRUB_RIG_H
#define GILD_TEST_SCRUB_RIG_H

#include <stdint.h>

#include "gild/disk.h"
#include "gild/store.h"

#define IMAGE_BLOCKS 800u   /* random, so that they lie in the pack as they are */
#define WRITTEN_FIRST 1000u /* of d1, above the image */
#define WRITTEN 100u

struct scrub_rig {
    char directory[64];
    struct gild_store *store; /* NULL while it is closed */
    uint8_t *image;
};

void scrub_rig_begin(struct scrub_rig *rig);
void scrub_rig_end(struct scrub_rig *rig);
void scrub_rig_close(struct scrub_rig *rig);
void scrub_rig_open(struct scrub_rig *rig);

void scrub_rig_import(struct scrub_rig *rig); /* the same content again: the next version */
const uint8_t *scrub_rig_block(const struct scrub_rig *rig, uint64_t block); /* of the image */
void scrub_rig_written(uint64_t block, uint8_t *bytes); /* what d1 has written there */

struct gild_disk *scrub_rig_disk(struct scrub_rig *rig, const char *path, unsigned flags);
/* 0, -EIO, or 1 for another content than the right one. */
int scrub_rig_read(struct scrub_rig *rig, const char *path, uint64_t block);
void scrub_rig_write(struct scrub_rig *rig, const char *path, uint64_t block, const void *bytes);

/* Flips bytes `after` behind where this content lies in the files of a folder; how many there were.
 */
unsigned scrub_rig_rot(struct scrub_rig *rig, const char *folder, const void *content);
/* Flips bytes of the first file of a folder; from its end if the offset is negative. */
void scrub_rig_rot_at(struct scrub_rig *rig, const char *folder, const char *suffix,
                      int64_t offset);
/* Where the parts of pack 1 begin. */
enum scrub_rig_part { PART_HEADER, PART_TABLE, PART_PRINTS, PART_INDEX, PART_FOOTER };
void scrub_rig_rot_pack(struct scrub_rig *rig, enum scrub_rig_part part);
uint64_t scrub_rig_bytes(struct scrub_rig *rig, const char *folder);

struct scrub_said {
    int result;
    struct gild_error error;
    struct gild_scrub_result counts;
    unsigned lost, damaged, repaired, other; /* findings by kind */
    char text[8192];                         /* kinds and sentences, line by line */
};
struct scrub_said scrub_rig_scrub(struct scrub_rig *rig);
struct scrub_said scrub_rig_look(struct scrub_rig *rig); /* a dry run */
struct scrub_said scrub_rig_check(struct scrub_rig *rig);
void scrub_rig_found(void *said, const struct gild_finding *finding);

#endif
