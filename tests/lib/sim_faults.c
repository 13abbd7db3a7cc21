/* See sim_faults.h. */
#include "sim_faults.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_disk.h"
#include "sim_threads.h"

#define BIT(fault) (1u << (fault))
#define ERRORS (BIT(SIM_EIO) | BIT(SIM_ENOSPC))

static const struct {
    const char *name;
    unsigned fits;
    unsigned within; /* so many calls of a short life the fault is put off */
} sites[SIM_SITES] = {
    [SIM_AT_PREAD] = {"pread", BIT(SIM_EIO) | BIT(SIM_SHORT) | BIT(SIM_ROT), 8},
    [SIM_AT_PWRITE] = {"pwrite", ERRORS | BIT(SIM_SHORT) | BIT(SIM_MISDIRECTED), 8},
    [SIM_AT_FSYNC] = {"fsync", BIT(SIM_EIO), 20},
    [SIM_AT_FALLOCATE] = {"fallocate", ERRORS, 3},
    [SIM_AT_CREATE] = {"create", ERRORS, 3},
    [SIM_AT_RENAME] = {"rename", ERRORS, 1},
    [SIM_AT_UNLINK] = {"unlink", BIT(SIM_EIO), 1},
    [SIM_AT_COMMIT] = {"commit", ERRORS, 12},
    [SIM_AT_LOOP_READ] = {"loop read", BIT(SIM_EIO) | BIT(SIM_SHORT) | BIT(SIM_ROT), 2},
    [SIM_AT_LOOP_WRITE] = {"loop write", ERRORS | BIT(SIM_SHORT) | BIT(SIM_MISDIRECTED), 8},
    [SIM_AT_LOOP_SYNC] = {"loop sync", BIT(SIM_EIO), 4},
    [SIM_AT_REST] = {"at rest", BIT(SIM_ROT), 1},
};

static const char *const names[SIM_FAULTS] = {"EIO", "ENOSPC", "short", "misdirected", "rot"};

static struct {
    struct sim_fault_counts *counts;
    struct {
        bool armed, for_good, counted;
        enum sim_fault fault;
        uint64_t after;
    } at[SIM_SITES];
} faults;

void sim_faults_count_in(struct sim_fault_counts *counts) {
    faults.counts = counts;
}

bool sim_fault_fits(enum sim_site site, enum sim_fault fault) {
    return sites[site].fits & BIT(fault);
}

void sim_fault_arm(enum sim_site site, enum sim_fault fault, uint64_t after, bool for_good) {
    faults.at[site].armed = true;
    faults.at[site].for_good = for_good;
    faults.at[site].counted = false;
    faults.at[site].fault = fault;
    faults.at[site].after = after;
    if (faults.counts)
        faults.counts->armed[site][fault]++;
}

enum sim_fault sim_fault_arm_any(void) {
    for (unsigned tries = 0; tries < 1000; tries++) {
        enum sim_site site = (enum sim_site)sim_below(SIM_AT_REST);
        enum sim_fault fault = (enum sim_fault)sim_below(SIM_FAULTS);
        if (!sim_fault_fits(site, fault) || faults.at[site].armed)
            continue;
        bool for_good = BIT(fault) & ERRORS && sim_chance(250);
        sim_fault_arm(site, fault, sim_below(sites[site].within), for_good);
        return fault;
    }
    return SIM_NO_FAULT; /* one is armed at each site */
}

void sim_fault_mend(void) {
    memset(faults.at, 0, sizeof faults.at);
}

void sim_fault_note(enum sim_site site, enum sim_fault fault) {
    if (!faults.counts)
        return;
    faults.counts->armed[site][fault]++;
    faults.counts->fired[site][fault]++;
}

enum sim_fault sim_fault_at(enum sim_site site, unsigned able) {
    if (!faults.at[site].armed || !(able & BIT(faults.at[site].fault)))
        return SIM_NO_FAULT;
    if (faults.at[site].after > 0) {
        faults.at[site].after--;
        return SIM_NO_FAULT;
    }
    if (faults.counts && !faults.at[site].counted)
        faults.counts->fired[site][faults.at[site].fault]++;
    faults.at[site].counted = true;
    if (getenv("GILD_LOG"))
        fprintf(stderr, "   %s of a %s after point %" PRIu64 "\n", names[faults.at[site].fault],
                sites[site].name, sim_disk_points());
    faults.at[site].armed = faults.at[site].for_good;
    return faults.at[site].fault;
}

int sim_fault_error(enum sim_site site) {
    enum sim_fault fault = sim_fault_at(site, ERRORS);
    return fault == SIM_EIO ? -EIO : fault == SIM_ENOSPC ? -ENOSPC : 0;
}

bool sim_faults_print(const struct sim_fault_counts *counts, uint64_t least) {
    bool enough = true;
    for (unsigned site = 0; site < SIM_SITES; site++)
        for (unsigned fault = 0; fault < SIM_FAULTS; fault++) {
            if (!sim_fault_fits((enum sim_site)site, (enum sim_fault)fault))
                continue;
            uint64_t fired = counts->fired[site][fault];
            printf("  fault, %-10s %-12s %6" PRIu64 " fired of %6" PRIu64 " armed%s\n",
                   sites[site].name, names[fault], fired, counts->armed[site][fault],
                   fired < least ? "   TOO FEW" : "");
            enough = enough && fired >= least;
        }
    return enough;
}
