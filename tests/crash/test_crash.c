/* Power cuts at every step: short sequences of ops and verbs on a simulated machine
 * (tests/sim/machine.h) that has an image and a clone of it, of one to three from the whole
 * alphabet. For each the power is cut at step 1, 2, 3, ... from the opening of the store to its
 * orderly end; after each cut the store must open, be consistent, and hold what it may and must (D1
 * to D4, D6, D8, D10). With depth 2 the power is cut again at each step of the recovery from the
 * cut.
 *
 *   test_crash                       a sample, for CI; prints the seed that it was drawn with
 *   test_crash --long [--from N]     all sequences, each step; N: the sequence to go on with
 *   test_crash --only W.F --seed N   one sequence: W write, U write FUA, F flush, T trim, Z zero,
 *                                    L writes that fill segments, C checkpoint, O close and open,
 *                                    I import, K clone, D delete a clone, M delete an image,
 *                                    G collect, N clean; "." between ops waits
 *
 * After "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (Mohan et al., OSDI
 * 2018): most such bugs need few operations. Ops of a sequence are sent without waiting for each
 * other unless a checkpoint or a "." lies between them. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"
#include "machine.h"
#include "sim_threads.h"

#define ALPHABET "WUFTZLCOIKDMGN"
#define LETTERS 14u
#define MOST_LENGTH 16u
#define SAMPLE 6u
#define CI_SAMPLE 60u
#define LEAST 200u
#define TELL_S 60

static struct {
    unsigned depth; /* cuts still to be made below this one */
    unsigned every; /* of so many steps one is cut, at a place drawn for each process */
    uint64_t skip;
} plan;

struct sequences {
    char (*list)[MOST_LENGTH + 1];
    unsigned count;
    uint64_t seed;
    struct machine_counts *counts;
    time_t began, told;
    unsigned long_run;
};

/* Opens, checks and reads everything; now and then goes on working too. */
static void check_machine(void) {
    machine_on();
    if (!sim_chance(125))
        return;
    machine_do(MACHINE_WRITE, 1);
    machine_do(MACHINE_FLUSH, 1);
    machine_off();
    machine_on();
    machine_off();
}

static void at_step(void *context, enum sim_point what);

/* A process in which the power is cut here, and whose store is checked. Returns when it ended. */
static void cut_beside(void) {
    uint64_t seed = sim_random();
    enum sim_cut cut = (enum sim_cut)(seed % (SIM_GARBLE + 1));
    sim_settle_threads();
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        _exit(2);
    }
    if (child == 0) {
        machine_cut(seed, cut);
        if (--plan.depth) {
            plan.every = plan.every * 4;
            plan.skip = sim_below(plan.every);
            sim_disk_on_point(at_step, NULL);
        }
        check_machine();
        _exit(0);
    }
    int failed = jobs_wait(child);
    if (failed) {
        fprintf(stderr, "a power cut (%d, depth left %u) at step %" PRIu64 " is not survived\n",
                (int)cut, plan.depth, sim_disk_points());
        _exit(failed);
    }
}

static void at_step(void *context, enum sim_point what) {
    (void)context, (void)what;
    if (plan.skip--)
        return;
    plan.skip = plan.every - 1;
    cut_beside();
}

static void do_letter(char letter) {
    static const enum machine_op ops[LETTERS] = {
        MACHINE_WRITE,        MACHINE_WRITE_FUA,    MACHINE_FLUSH,   MACHINE_TRIM,   MACHINE_ZERO,
        MACHINE_FILL,         MACHINE_CHECKPOINT,   MACHINE_REOPEN,  MACHINE_IMPORT, MACHINE_CLONE,
        MACHINE_CLONE_DELETE, MACHINE_IMAGE_DELETE, MACHINE_COLLECT, MACHINE_CLEAN};
    if (letter == '.')
        machine_wait_all();
    else
        machine_do(ops[strchr(ALPHABET, letter) - ALPHABET], MOST_LENGTH);
}

static void work(void *context, uint64_t index, unsigned worker) {
    struct sequences *all = context;
    alarm(all->long_run ? 6 * 3600 : 1200); /* the machine may be busy */
    machine_stay_together(worker);
    machine_make(all->seed + index, true, all->counts);
    plan.skip = sim_below(plan.every);
    sim_disk_on_point(at_step, NULL);
    machine_on();
    for (const char *letter = all->list[index]; *letter; letter++)
        do_letter(*letter);
    machine_off();
}

static void ended(void *context, uint64_t index, int failed) {
    struct sequences *all = context;
    time_t now = time(NULL);
    if (failed)
        printf("FAILED: test_crash --only %s --seed %" PRIu64 " --every %u --depth %u\n",
               all->list[index], all->seed + index, plan.every, plan.depth);
    if (!all->long_run || now - all->told < TELL_S)
        return;
    all->told = now;
    printf("%6ld s: sequence %" PRIu64 " of %u, %" PRIu64 " power cuts, %" PRIu64
           " distinct durable images\n",
           (long)(now - all->began), index, all->count, all->counts->states, all->counts->distinct);
    fflush(stdout);
}

/* ---- which sequences ------------------------------------------------------------------------- */

static void make_sequences(struct sequences *all) {
    unsigned count = LETTERS + LETTERS * LETTERS + LETTERS * LETTERS * LETTERS;
    all->list = calloc(count, sizeof *all->list);
    if (!all->list)
        abort();
    for (unsigned length = 1, many = LETTERS; length <= 3; length++, many *= LETTERS)
        for (unsigned i = 0; i < many; i++, all->count++)
            for (unsigned at = 0, rest = i; at < length; at++, rest /= LETTERS)
                all->list[all->count][at] = ALPHABET[rest % LETTERS];
}

/* A shuffle that the seed decides, behind the sequences of one op. */
static void shuffle(struct sequences *all) {
    uint64_t seed = all->seed;
    for (unsigned i = LETTERS; i < all->count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unsigned other = i + (unsigned)((seed >> 33) % (all->count - i));
        char kept[MOST_LENGTH + 1];
        memcpy(kept, all->list[i], sizeof kept);
        memcpy(all->list[i], all->list[other], sizeof kept);
        memcpy(all->list[other], kept, sizeof kept);
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"long", no_argument, NULL, 'l'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"depth", required_argument, NULL, 'd'},
                                            {"every", required_argument, NULL, 'e'},
                                            {"count", required_argument, NULL, 'c'},
                                            {"jobs", required_argument, NULL, 'j'},
                                            {"from", required_argument, NULL, 'f'},
                                            {0}};
    struct sequences all = {.seed = 1, .began = time(NULL), .told = time(NULL)};
    const char *only = NULL;
    unsigned count = SAMPLE, jobs = 2, from = 0;
    int option;
    plan.depth = 2;
    plan.every = 3;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned long long value = optarg ? strtoull(optarg, NULL, 10) : 0;
        switch (option) {
        case 'l':
            plan.every = 1;
            count = UINT32_MAX;
            all.long_run = 1;
            break;
        case 'o':
            only = optarg;
            break;
        case 's':
            all.seed = value;
            break;
        case 'd':
            plan.depth = (unsigned)value;
            break;
        case 'e':
            plan.every = (unsigned)value;
            break;
        case 'c':
            count = (unsigned)value;
            break;
        case 'j':
            jobs = (unsigned)value;
            break;
        case 'f':
            from = (unsigned)value;
            break;
        default:
            return 2;
        }
    }
    if (!plan.depth || !plan.every || !jobs || jobs > JOBS_MOST)
        return 2;
    if (only && (strspn(only, ALPHABET ".") != strlen(only) || strlen(only) > MOST_LENGTH))
        return 2;
    make_sequences(&all);
    shuffle(&all);
    if (only) {
        strcpy(all.list[0], only);
        all.count = 1;
    } else if (count < all.count) {
        all.count = count;
    }
    all.counts = counts_make();
    printf("commit %s, seed %" PRIu64 ": sequences %u to %u, depth %u, every %u\n", counts_commit(),
           all.seed, from, all.count, plan.depth, plan.every);
    fflush(stdout);
    uint64_t failed = jobs_run(from, all.count, jobs, work, ended, &all);
    printf("%u sequences, %" PRIu64 " failed\n", all.count - from, failed);
    bool enough = counts_print(all.counts, false, count >= CI_SAMPLE && !only ? LEAST : 0);
    free(all.list);
    return failed || !enough ? 1 : 0;
}
