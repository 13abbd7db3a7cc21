/* A simulated machine with a store on it: power on (open, check, look what is there, read all),
 * guests' ops under way at once, an admin's verbs beside them, power cut, orderly end. For each
 * disk there is an oracle of what it may and must hold (oracle.h).
 *
 * One in a process; what is not as it must be is said on stderr, and ends the process with status
 * 1. */
#ifndef GILD_TEST_MACHINE_H
#define GILD_TEST_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "counts.h"
#include "sim_disk.h"

/* For the processes of one job: all threads on one processor, since only one runs at a time and a
 * wake-up of another processor costs more than what it goes on to do. */
void machine_stay_together(unsigned job);

/* A new machine with an empty store; with `furnished`, one that has an image and a clone of it.
 * seed decides all that follows. Call once. */
void machine_make(uint64_t seed, bool furnished, struct machine_counts *counts);
/* Opens the store, checks it, reads everything. False: it was refused, as it may be since the disk
 * is damaged. */
bool machine_on(void);
/* Flushes nothing, waits for what is under way, closes the store in order. */
void machine_off(void);

/* Sends one op of a random place and length (waits first while `most` are under way); a verb is
 * begun, and goes on beside. */
void machine_do(enum machine_op op, unsigned most);
void machine_random_op(unsigned most);
void machine_wait_all(void);

/* In the child of a fork: the power is cut here and now, and the machine stands still. */
void machine_cut(uint64_t seed, enum sim_cut cut);

/* Ops may fail from here on, until the store is opened anew. */
void machine_arm(void);
/* From here on the file system is full, or nearly, until it is opened anew; or it has room again:
 * then writes must go on within a second. */
void machine_squeeze(void);
void machine_relax(void);
/* From here on pages may rot while the store is closed. */
void machine_let_rot(void);
/* Pages that have rotted are as they were. */
void machine_mend(void);

#endif
