/* A simulated machine with a store and some disks on it, and an oracle for each disk: power on
 * (open, check, read all), work (ops under way at once), power cut, orderly end. One in a process;
 * everything is said on stderr and ends the process with status 1 when it is not as it must be. */
#ifndef GILD_TEST_MACHINE_H
#define GILD_TEST_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "sim_disk.h"

#define MACHINE_DISKS 5u

enum machine_op {
    MACHINE_WRITE,
    MACHINE_WRITE_FUA,
    MACHINE_FLUSH,
    MACHINE_TRIM,
    MACHINE_ZERO,
    MACHINE_READ,
    MACHINE_CHECKPOINT,
    MACHINE_REOPEN,
    MACHINE_OPS,
};

#define MACHINE_HASHES (1u << 21)

/* Counters in memory that all processes of a run share. */
struct machine_counts {
    _Atomic uint64_t ops[MACHINE_OPS];
    _Atomic uint64_t points[SIM_POINTS];
    _Atomic uint64_t cuts[SIM_GARBLE + 1];
    _Atomic uint64_t lives, faults[SIM_CALLS];
    _Atomic uint64_t states, distinct; /* durable images after a power cut; by hash */
    _Atomic uint64_t hashes[MACHINE_HASHES];
};

/* For the processes of one job: all threads on one processor, since only one runs at a time and a
 * wake-up of another processor costs more than what it goes on to do. */
void machine_stay_together(unsigned job);

struct machine_counts *machine_counts_make(void);
void machine_counts_print(const struct machine_counts *counts);

/* A new machine with an empty store; seed decides all that follows. Call once. */
void machine_make(uint64_t seed, struct machine_counts *counts);
/* Opens the store, checks it, reads all disks. */
void machine_on(void);
/* Flushes nothing, waits for what is under way, closes the store in order. */
void machine_off(void);

/* Sends one op of a random place and length (waits first while `most` are under way). */
void machine_do(enum machine_op op, unsigned most);
void machine_random_op(unsigned most);
void machine_wait_all(void);

/* In the child of a fork: the power is cut here and now, and the machine stands still. */
void machine_cut(uint64_t seed, enum sim_cut cut);

/* Failing ops are expected (a fault was injected): an error is no complaint. False mends the disk;
 * so do a power cut and MACHINE_REOPEN. */
void machine_expect_errors(bool expected);

#endif
