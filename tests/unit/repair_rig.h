/* A store with images, desktops and a log that is partly above the checkpoint, whose every block is
 * known; ways to damage it; what a repair said, beside what it should have said. */
#ifndef GILD_TEST_REPAIR_RIG_H
#define GILD_TEST_REPAIR_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"
#include "gild/store.h"
#include "map/node.h"

#define RIG_DESKTOPS 6u /* d1 .. d6 */
#define RIG_IMAGES 2u   /* win@1: d1 .. d4; win@2: d5, d6 */
#define RIG_DISKS (RIG_DESKTOPS + RIG_IMAGES)
#define RIG_IMAGE_BLOCKS 3072u
#define RIG_DISK_BLOCKS 179200u /* 700 MiB: two directories */

/* A desktop's blocks that are written lie in these, and are looked at one by one. */
extern const uint32_t rig_windows[3][2]; /* first, count */

extern uint64_t rig_seed;

/* Makes the template, once; each case works on a copy. clean: its owner closed it, else it was
 * killed with a log above the checkpoint. */
void rig_begin(void);
void rig_end(void);
void rig_take(char directory[64], bool clean);
void rig_must(bool good, const char *what); /* else the program ends */
void rig_drop(const char *directory);

const char *rig_path(unsigned disk); /* "desktops/d1/os", ..., "images/win@2" */
uint64_t rig_delta(unsigned desktop);
uint64_t rig_map(unsigned image);
/* Has the desktop written the block at all? In the log above the checkpoint? */
bool rig_written(bool clean, unsigned desktop, uint64_t block);
bool rig_in_tail(unsigned desktop, uint64_t block);

/* ---- where things are ------------------------------------------------------------------------ */

struct rig_spot {
    char path[160];
    uint64_t offset; /* in bytes */
};
/* The newest batch above the checkpoint that has data of the block: its header. */
struct rig_spot rig_batch(const char *directory, unsigned desktop, uint64_t block, uint64_t *serial,
                          uint64_t *lsn);
/* Has each stream that the catalogue knows a batch, with room for another behind its last? Then no
 * missing segment can hold more of it. */
bool rig_ends_seen(const char *directory);
/* The same by number, in the same stream as `of`. */
bool rig_batch_at(const char *directory, struct rig_spot of, uint64_t lsn, struct rig_spot *spot);
/* A desktop's map as of the checkpoint: nodes, and the place of a block. */
struct rig_spot rig_node(const char *directory, unsigned desktop, enum gild_node_kind kind,
                         uint64_t block);
uint64_t rig_place(const char *directory, unsigned desktop, uint64_t block);
/* Has anybody written a batch to the segment? */
bool rig_begun(const char *directory, uint64_t serial);
struct rig_spot rig_at(const char *directory, uint64_t place);
/* The first page of a map file that is such a node of that index. */
struct rig_spot rig_map_node(const char *directory, unsigned image, enum gild_node_kind kind,
                             uint64_t index);
/* Of an image's block, by its map. */
uint64_t rig_image_place(const char *directory, unsigned image, uint64_t block);
struct rig_spot rig_map_end(const char *directory, unsigned image, bool footer);
/* A catalogue of which only records are read or changed. */
struct gild_catalog *rig_catalog(const char *directory);

void rig_rot(const struct rig_spot *spot); /* 64 bytes, 100 behind the offset */

/* ---- what is said, and what is expected --------------------------------------------------------
 */

struct rig_said {
    int result;
    struct gild_error error;
    struct gild_repair_result counts;
    char text[16384]; /* sentences of what was repaired */
    /* Per disk: */
    bool quarantined[RIG_DISKS];
    uint8_t *lost[RIG_DISKS];
    unsigned strangers; /* disks that are not of the rig */
};
struct rig_said *rig_repair(const char *directory, bool dry_run);
void rig_said_free(struct rig_said *said);

struct rig_expected {
    bool clean;
    uint8_t *lost[RIG_DISKS]; /* a byte for each block */
    bool quarantined[RIG_DISKS];
    uint8_t *stale[RIG_DISKS]; /* of a quarantined disk: may hold what was before */
};
struct rig_expected *rig_expected(bool clean);
void rig_expected_free(struct rig_expected *expected);
void rig_lose(struct rig_expected *expected, unsigned disk, uint64_t first, uint64_t count);
/* An image's blocks, and those of its desktops that have none of their own there. */
void rig_lose_image(struct rig_expected *expected, unsigned image, uint64_t first, uint64_t count);

/* Faults found: what was said is not what was expected. */
unsigned rig_compare(const struct rig_said *said, const struct rig_expected *expected);
/* Opens the store as usual and reads all of it. */
unsigned rig_verify(const char *directory, const struct rig_expected *expected);

#endif
