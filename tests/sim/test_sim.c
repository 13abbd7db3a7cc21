/* Random histories of a simulated machine: guests' ops on many disks, an admin's verbs,
 * checkpoints, orderly ends, faults of the disk, and power cuts at any step, after each of which
 * nothing that was flushed may be lost, and nothing may be found that was never written (D1 to D6,
 * D8 to D10).
 *
 *   test_sim [--histories N] [--from SEED] [--jobs N]     the default is a short run
 *   test_sim --from SEED --histories 1                    one of them again, step by step the same
 *
 * A history is a process; a power cut is a fork of it, whose child is the machine that is switched
 * on again. A run of ENOUGH histories also fails if it tried something too seldom. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "jobs.h"
#include "machine.h"
#include "sim_threads.h"

#define ENOUGH 2000u
#define LEAST 200u

static struct {
    unsigned lives_left;
    uint64_t steps_left; /* until the power is cut */
} history;

static void live(void);

/* The power goes off under the thread that calls this; what follows happens in a child of it. */
static void cut_here(void) {
    uint64_t seed = sim_random();
    sim_settle_threads();
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        _exit(2);
    }
    if (child == 0) {
        machine_cut(seed, (enum sim_cut)sim_below(SIM_GARBLE + 1));
        history.lives_left--;
        live();
        _exit(0);
    }
    _exit(jobs_wait(child));
}

static void at_point(void *context, enum sim_point what) {
    (void)context, (void)what;
    if (history.steps_left-- == 0)
        cut_here();
}

static void live(void) {
    unsigned ops = 5 + (unsigned)sim_below(120), most = 1 + (unsigned)sim_below(16);
    bool faults = sim_chance(600);
    if (sim_disk_damage()->misdirected) /* nothing mends that: see that it is known, and end */
        history.lives_left = history.lives_left > 1;
    else if (sim_chance(700))
        machine_mend();
    if (faults && sim_chance(200))
        sim_disk_rot();
    bool ends_by_cut = history.lives_left > 0;
    if (ends_by_cut) {
        history.steps_left = sim_below(sim_chance(200) ? 40 : 500);
        sim_disk_on_point(at_point, NULL);
    }
    if (faults && sim_chance(300))
        machine_arm();
    if (!machine_on())
        return;
    bool squeezed = sim_chance(300);
    unsigned full_at = (unsigned)sim_below(ops), roomy_at = full_at + (unsigned)sim_below(ops);
    for (unsigned i = 0; i < ops; i++) {
        if (faults && i % 12 == 0)
            machine_arm();
        if (squeezed && i == full_at)
            machine_squeeze();
        if (squeezed && i == roomy_at)
            machine_relax();
        machine_random_op(most);
    }
    if (ends_by_cut)
        cut_here();
    machine_off();
    machine_mend();
    if (machine_on())
        machine_off();
}

static void work(void *context, uint64_t seed, unsigned worker) {
    alarm(240);
    machine_stay_together(worker);
    machine_make(seed, false, context);
    if (sim_chance(500))
        machine_let_rot();
    history.lives_left = (unsigned)sim_below(6);
    live();
}

static void ended(void *context, uint64_t seed, int failed) {
    (void)context;
    if (failed)
        printf("seed %" PRIu64 " FAILED (%d): test_sim --from %" PRIu64 " --histories 1\n", seed,
               failed, seed);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"histories", required_argument, NULL, 'n'},
                                            {"from", required_argument, NULL, 'f'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {0}};
    uint64_t count = 40, from = 1;
    unsigned jobs = 2;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == '?')
            return 2;
        uint64_t value = strtoull(optarg, NULL, 10);
        if (option == 'n')
            count = value;
        else if (option == 'f')
            from = value;
        else
            jobs = value && value <= JOBS_MOST ? (unsigned)value : 2;
    }
    struct machine_counts *counts = counts_make();
    uint64_t failed = jobs_run(from, from + count, jobs, work, ended, counts);
    printf("commit %s: %" PRIu64 " histories from seed %" PRIu64 ", %" PRIu64 " failed\n",
           counts_commit(), count, from, failed);
    bool enough = counts_print(counts, true, count >= ENOUGH ? LEAST : 0);
    return failed || !enough ? 1 : 0;
}
