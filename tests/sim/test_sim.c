/* Random histories of a simulated machine: ops on many disks, checkpoints, orderly ends, and power
 * cuts at any step, after each of which nothing that was flushed may be lost, and nothing may be
 * found that was never written (D1, D2, D6, D10).
 *
 *   test_sim [--histories N] [--from SEED] [--jobs N]     the default is a short run
 *   test_sim --from SEED --histories 1                    one of them again, step by step the same
 *
 * A history is a process; a power cut is a fork of it, whose child is the machine that is switched
 * on again. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"
#include "sim_threads.h"

static struct {
    unsigned lives_left;
    uint64_t steps_left; /* until the power is cut */
} history;

static void live(void);

/* The power goes off under the thread that calls this; what follows happens in a child of it. */
static void cut_here(void) {
    uint64_t seed = sim_random();
    fflush(NULL);
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
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            _exit(2);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
}

static void at_point(void *context, enum sim_point what) {
    (void)context, (void)what;
    if (history.steps_left-- == 0)
        cut_here();
}

static void live(void) {
    unsigned ops = 5 + (unsigned)sim_below(120), most = 1 + (unsigned)sim_below(16);
    bool ends_by_cut = history.lives_left > 0;
    if (ends_by_cut) {
        history.steps_left = sim_below(sim_chance(200) ? 40 : 400);
        sim_disk_on_point(at_point, NULL);
    }
    machine_on();
    if (sim_chance(250)) {
        enum sim_call call = (enum sim_call)sim_below(SIM_CALLS);
        static const int errors[] = {EIO, ENOSPC};
        machine_expect_errors(true);
        sim_disk_fail(call, sim_below(100), errors[call == SIM_CALL_WRITE && sim_chance(300)],
                      sim_chance(300));
    }
    for (unsigned i = 0; i < ops; i++)
        machine_random_op(most);
    if (ends_by_cut)
        cut_here();
    machine_off();
    machine_expect_errors(false);
    machine_on();
    machine_off();
}

static int run(uint64_t seed, unsigned job, struct machine_counts *counts) {
    fflush(NULL);
    pid_t child = fork();
    if (child)
        return child;
    alarm(120);
    machine_stay_together(job);
    machine_make(seed, counts);
    history.lives_left = (unsigned)sim_below(5);
    live();
    _exit(0);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"histories", required_argument, NULL, 'n'},
                                            {"from", required_argument, NULL, 'f'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {0}};
    uint64_t count = 40, from = 1, failed = 0, began = 0;
    unsigned jobs = 2, busy = 0;
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
            jobs = value > 16 ? 16 : (unsigned)value;
    }
    struct machine_counts *counts = machine_counts_make();
    pid_t children[16] = {0};
    uint64_t seeds[16];
    while (began < count || busy) {
        for (unsigned i = 0; i < jobs && began < count; i++) {
            if (children[i])
                continue;
            seeds[i] = from + began++;
            children[i] = run(seeds[i], i, counts);
            busy++;
        }
        int status;
        pid_t ended = wait(&status);
        for (unsigned i = 0; i < jobs; i++) {
            if (children[i] != ended)
                continue;
            children[i] = 0;
            busy--;
            if (!WIFEXITED(status) || WEXITSTATUS(status)) {
                failed++;
                printf("seed %" PRIu64 " FAILED (%s %d): test_sim --from %" PRIu64
                       " --histories 1\n",
                       seeds[i], WIFSIGNALED(status) ? "signal" : "status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), seeds[i]);
            }
        }
    }
    printf("%" PRIu64 " histories from seed %" PRIu64 ", %" PRIu64 " failed\n", count, from,
           failed);
    machine_counts_print(counts);
    return failed ? 1 : 0;
}
