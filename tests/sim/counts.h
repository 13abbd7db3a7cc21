/* What a run of simulations did, in memory that all of its processes share. */
#ifndef GILD_TEST_COUNTS_H
#define GILD_TEST_COUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "sim_disk.h"
#include "sim_faults.h"

enum machine_op {
    MACHINE_WRITE,
    MACHINE_WRITE_PART, /* of a block */
    MACHINE_WRITE_FUA,
    MACHINE_FLUSH,
    MACHINE_TRIM,
    MACHINE_ZERO,
    MACHINE_ZERO_NO_HOLE,
    MACHINE_READ,
    MACHINE_STATUS,
    MACHINE_FILL, /* writes that fill segments */
    MACHINE_CHECKPOINT,
    MACHINE_REOPEN,
    /* Verbs: one at a time, beside the others. */
    MACHINE_IMPORT,
    MACHINE_CLONE,
    MACHINE_CLONE_DELETE,
    MACHINE_IMAGE_DELETE,
    MACHINE_CHECK,
    MACHINE_COLLECT,
    MACHINE_CLEAN, /* the whole log */
    MACHINE_OPS,
};

#define COUNTS_HASHES (1u << 22)

enum wrong { WRONG_LOST, WRONG_BYTES, WRONG_ROT, WRONG_OTHER, WRONGS };

struct machine_counts {
    _Atomic uint64_t ops[MACHINE_OPS];
    _Atomic uint64_t cuts[SIM_GARBLE + 1];
    _Atomic uint64_t lives, refused;    /* opened; refused since the disk was damaged */
    _Atomic uint64_t retried;           /* opened at the second try: the first met a fault */
    _Atomic uint64_t rebuilt;           /* catalogues lost, and made again from their journals */
    _Atomic uint64_t detected;          /* ops on a damaged disk that gave EIO */
    _Atomic uint64_t squeezed, relaxed; /* file systems made full, and made roomy again */
    _Atomic uint64_t no_space;          /* ops and verbs that were refused meanwhile */
    _Atomic uint64_t packed, shared, relocated; /* blocks that the cleaner moved */
    _Atomic uint64_t states, distinct;          /* durable images after a power cut; by hash */
    _Atomic uint64_t wrong[WRONGS];
    struct sim_disk_counts disk;
    struct sim_fault_counts faults;
    _Atomic uint64_t hashes[COUNTS_HASHES];
};

struct machine_counts *counts_make(void);
void counts_note_state(struct machine_counts *counts, uint64_t hash);
/* Everything, by name; false if an op, a power cut or (with faults) a fault came less than `least`
 * times. */
bool counts_print(const struct machine_counts *counts, bool faults, uint64_t least);
/* The commit that the program was built from. */
const char *counts_commit(void);

#endif
