/* Faults of the simulated machine's disk: which call fails, how, and how often that happened.
 *
 * A fault is armed for a site (a kind of call) and fires at the `after`-th call there that it can
 * happen to, once or for good. One can be armed at each site at a time.
 *
 *   EIO, ENOSPC   the call fails with that error
 *   SHORT         a transfer does less than it was asked for, and says so
 *   MISDIRECTED   a write lands at another place of the same file, and says that all is well
 *   ROT           a durable page that is just being read, or lies at rest, has changed by itself
 *
 * Threads: the one that holds the baton (sim_threads.h). */
#ifndef GILD_TEST_SIM_FAULTS_H
#define GILD_TEST_SIM_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

enum sim_site {
    SIM_AT_PREAD,
    SIM_AT_PWRITE,
    SIM_AT_FSYNC,
    SIM_AT_FALLOCATE,
    SIM_AT_CREATE,
    SIM_AT_RENAME,
    SIM_AT_UNLINK,
    SIM_AT_COMMIT,
    SIM_AT_LOOP_READ,
    SIM_AT_LOOP_WRITE,
    SIM_AT_LOOP_SYNC,
    SIM_AT_REST, /* no call: pages of a store that is not open */
    SIM_SITES,
};

enum sim_fault { SIM_EIO, SIM_ENOSPC, SIM_SHORT, SIM_MISDIRECTED, SIM_ROT, SIM_FAULTS };
#define SIM_NO_FAULT SIM_FAULTS

/* Shared by all processes of a run. */
struct sim_fault_counts {
    _Atomic uint64_t armed[SIM_SITES][SIM_FAULTS];
    _Atomic uint64_t fired[SIM_SITES][SIM_FAULTS]; /* of those armed */
};
void sim_faults_count_in(struct sim_fault_counts *counts);
/* A line for each fault that fits a site; false if one of them fired less than `least` times. */
bool sim_faults_print(const struct sim_fault_counts *counts, uint64_t least);

bool sim_fault_fits(enum sim_site site, enum sim_fault fault);
/* Arms one that fits, drawn from the seed, so that it will mostly fire within a short life.
 * SIM_NO_FAULT: each site has one. */
enum sim_fault sim_fault_arm_any(void);
void sim_fault_arm(enum sim_site site, enum sim_fault fault, uint64_t after, bool for_good);
void sim_fault_mend(void);
/* A fault at rest was carried out. */
void sim_fault_note(enum sim_site site, enum sim_fault fault);

/* At each call: what happens to it. `able`: a bit for each fault that can happen to this call. */
enum sim_fault sim_fault_at(enum sim_site site, unsigned able);
/* -EIO or -ENOSPC where only these two can happen, or 0. */
int sim_fault_error(enum sim_site site);

#endif
