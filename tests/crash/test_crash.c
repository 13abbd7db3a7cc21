/* Power cuts at every step: short sequences of ops on a simulated machine (tests/sim/machine.h), of
 * one to three from the whole alphabet, and for each the power is cut at step 1, 2, 3, ... from the
 * opening of the store to its orderly end; after each cut the store must open, be consistent, and
 * hold what it may and must (D1, D2, D6, D8, D10). With depth 2 the power is cut again at each step
 * of the recovery from the cut.
 *
 *   test_crash                       a sample, for CI; prints the seed that it was drawn with
 *   test_crash --long                all sequences, depth 2
 *   test_crash --only W.F --seed N   one sequence: W write, U write FUA, F flush, T trim, Z zero,
 *                                    C checkpoint, O close and open; "." between ops waits
 *
 * After "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (Mohan et al., OSDI
 * 2018): most such bugs need few operations. Ops of a sequence are sent without waiting for each
 * other unless a flush, a checkpoint or a "." lies between them. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"
#include "sim_threads.h"

#define ALPHABET "WUFTZCO"
#define LETTERS 7u
#define MOST_LENGTH 16u

static struct {
    unsigned depth; /* cuts still to be made below this one */
    unsigned every; /* of so many steps one is cut, at a place drawn for each process */
    uint64_t skip;
    unsigned jobs;
} plan;

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
    fflush(NULL);
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
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            _exit(2);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "a power cut (%d, depth left %u) at step %" PRIu64 " is not survived\n",
                (int)cut, plan.depth, sim_disk_points());
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
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
        MACHINE_WRITE, MACHINE_WRITE_FUA,  MACHINE_FLUSH, MACHINE_TRIM,
        MACHINE_ZERO,  MACHINE_CHECKPOINT, MACHINE_REOPEN};
    if (letter == '.')
        machine_wait_all();
    else
        machine_do(ops[strchr(ALPHABET, letter) - ALPHABET], MOST_LENGTH);
}

static pid_t run(const char *sequence, uint64_t seed, unsigned job, struct machine_counts *counts) {
    fflush(NULL);
    pid_t child = fork();
    if (child)
        return child;
    alarm(500);
    machine_stay_together(job);
    machine_make(seed, counts);
    plan.skip = sim_below(plan.every);
    sim_disk_on_point(at_step, NULL);
    machine_on();
    for (const char *letter = sequence; *letter; letter++)
        do_letter(*letter);
    machine_off();
    _exit(0);
}

/* ---- which sequences ------------------------------------------------------------------------- */

struct sequences {
    char (*list)[MOST_LENGTH + 1];
    unsigned count;
};

static struct sequences all_sequences(void) {
    struct sequences all = {0};
    unsigned count = LETTERS + LETTERS * LETTERS + LETTERS * LETTERS * LETTERS;
    all.list = calloc(count, sizeof *all.list);
    if (!all.list)
        abort();
    for (unsigned length = 1, many = LETTERS; length <= 3; length++, many *= LETTERS)
        for (unsigned i = 0; i < many; i++, all.count++)
            for (unsigned at = 0, rest = i; at < length; at++, rest /= LETTERS)
                all.list[all.count][at] = ALPHABET[rest % LETTERS];
    return all;
}

/* The first `count` of a shuffle that the seed decides. */
static void draw(struct sequences *from, unsigned count, uint64_t seed) {
    for (unsigned i = 0; i < count && i < from->count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unsigned other = i + (unsigned)((seed >> 33) % (from->count - i));
        char kept[MOST_LENGTH + 1];
        memcpy(kept, from->list[i], sizeof kept);
        memcpy(from->list[i], from->list[other], sizeof kept);
        memcpy(from->list[other], kept, sizeof kept);
    }
    if (count < from->count)
        from->count = count;
}

static unsigned run_all(const struct sequences *all, uint64_t seed, struct machine_counts *counts) {
    pid_t children[16] = {0};
    unsigned which[16] = {0}, began = 0, busy = 0, failed = 0;
    while (began < all->count || busy) {
        for (unsigned i = 0; i < plan.jobs && began < all->count; i++)
            if (!children[i]) {
                which[i] = began++;
                children[i] = run(all->list[which[i]], seed + which[i], i, counts);
                busy++;
            }
        int status;
        pid_t ended = wait(&status);
        for (unsigned i = 0; i < plan.jobs; i++) {
            if (children[i] != ended)
                continue;
            children[i] = 0;
            busy--;
            if (!WIFEXITED(status) || WEXITSTATUS(status)) {
                failed++;
                printf("FAILED: test_crash --only %s --seed %" PRIu64 " --every %u --depth %u\n",
                       all->list[which[i]], seed + which[i], plan.every, plan.depth);
            }
        }
    }
    return failed;
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"long", no_argument, NULL, 'l'},        {"only", required_argument, NULL, 'o'},
        {"seed", required_argument, NULL, 's'},  {"depth", required_argument, NULL, 'd'},
        {"every", required_argument, NULL, 'e'}, {"count", required_argument, NULL, 'c'},
        {"jobs", required_argument, NULL, 'j'},  {0}};
    struct sequences all = all_sequences();
    uint64_t seed = 1;
    unsigned count = 6;
    int option;
    plan.depth = 2;
    plan.every = 3;
    plan.jobs = 2;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'l':
            plan.every = 1;
            count = all.count;
            break;
        case 'o':
            all.count = 1;
            if (strspn(optarg, ALPHABET ".") != strlen(optarg) || strlen(optarg) > MOST_LENGTH)
                return 2;
            strcpy(all.list[0], optarg);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 10);
            break;
        case 'd':
            plan.depth = (unsigned)atoi(optarg);
            break;
        case 'e':
            plan.every = (unsigned)atoi(optarg);
            break;
        case 'c':
            count = (unsigned)atoi(optarg);
            break;
        case 'j':
            plan.jobs = (unsigned)atoi(optarg);
            break;
        default:
            return 2;
        }
    }
    if (!plan.depth || !plan.every || !plan.jobs || plan.jobs > 16)
        return 2;
    struct machine_counts *counts = machine_counts_make();
    draw(&all, count, seed);
    unsigned failed = run_all(&all, seed, counts);
    printf("%u sequences, seed %" PRIu64 ", %u failed\n", all.count, seed, failed);
    machine_counts_print(counts);
    free(all.list);
    return failed ? 1 : 0;
}
