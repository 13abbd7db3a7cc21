/* What the tests of packs share: a folder of packs, blocks made from numbers, an ingest with its
 * places kept, and reading places the way a disk does. */
#ifndef PACK_RIG_H
#define PACK_RIG_H

#include "pack/pack.h"

#define BLOCK 4096u

struct rig {
    char folder[128];
    struct gild_packs *packs;
    uint32_t last_id;
    /* of the last ingest, by tag */
    uint64_t *place;
    uint32_t *check;
    uint64_t placed, room, refuse_at;
    int no_ids;
};

extern const uint8_t rig_store[16];

uint32_t rig_draw(void); /* 31 random bits of a fixed, printed seed */

void rig_init(struct rig *rig);
void rig_fini(struct rig *rig); /* removes the folder with all it holds */
/* Closes all packs and opens the numbered ones again; the first failure. */
int rig_reopen(struct rig *rig, uint32_t first, uint32_t last, struct gild_error *error);

/* The content of block `number`: one in eight does not compress. */
void rig_block(uint64_t number, uint8_t *block);

struct gild_ingest_options rig_options(struct rig *rig, unsigned threads);

/* Takes in blocks whose numbers are numbers[0..count), in pieces of random size; destroys with
 * keep. 0 or the first error. */
int rig_ingest(struct rig *rig, const uint64_t *numbers, size_t count, unsigned threads,
               uint64_t target_bytes, struct gild_ingest_totals *totals);

/* Reads, as a disk does, tag i's place for each i < count: how many gave exactly block numbers[i];
 * *refused counts those that gave an error; the rest gave wrong data. */
size_t rig_verify(struct rig *rig, const uint64_t *numbers, size_t count, size_t *refused);

size_t rig_files(const struct rig *rig);       /* in the folder, whatever their names */
size_t rig_descriptors(const struct rig *rig); /* open, of its files, also of deleted ones */
char *rig_path(const struct rig *rig, uint32_t pack_id, char path[256]);
uint8_t *rig_load(const char *path, size_t *length); /* malloc'ed */
void rig_save(const char *path, const void *data, size_t length);

/* What the next gild_file_write returns, if not 0. test_pack_compact.c */
int rig_before_write(void);
/* This byte of the next file is written wrong; 0: none. test_pack_rot.c */
extern uint64_t rig_wrong_at;

void add_rot_tests(void);     /* test_pack_rot.c */
void add_verify_tests(void);  /* test_pack_verify.c */
void add_compact_tests(void); /* test_pack_compact.c */

#endif
