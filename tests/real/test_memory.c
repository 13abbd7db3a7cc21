/* Allocation 1, 2, 3 ... of each program fails once: it ends with exit code 1 and one sentence, or
 * does without; it never crashes and never hangs, and the store is clean afterwards.
 *
 *   test_memory [--all] [--points N] [--seed N] [--workload NAME] [--libraries]
 *
 * Counted are the allocations of the program itself, which the engine is linked into; --libraries
 * counts those inside the libraries that it uses too, to learn what they do. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "workload.h"

static int run_init(struct workload *workload) {
    workload_store_init(workload);
    return workload->code;
}

static int run_info(struct workload *workload) {
    return rig_gild(&workload->rig, "store", "info", NULL);
}

static int run_check(struct workload *workload) {
    return rig_gild(&workload->rig, "store", "check", NULL);
}

static int run_import(struct workload *workload) {
    workload_import(workload, "img2");
    return workload->code;
}

static int run_create(struct workload *workload) {
    workload_desktop(workload, "d3", false);
    return workload->code;
}

static int run_pool(struct workload *workload) {
    workload_pool(workload, "p", 3);
    return workload->code;
}

static int run_delete(struct workload *workload) {
    workload_desktop_delete(workload, "d1");
    return workload->code;
}

/* What guests are answered is theirs to bear: they go on after an error. */
static int run_daemon(struct workload *workload, bool small, const char *backend) {
    if (rig_daemon_start(&workload->rig, small, backend) && guests_connect(&workload->guests))
        for (unsigned i = 0; i < 8 && guests_round(&workload->guests); i++)
            ;
    guests_leave(&workload->guests);
    return rig_daemon_stop(&workload->rig);
}

static int run_gildd(struct workload *workload) {
    return run_daemon(workload, false, "auto");
}

static int run_uring(struct workload *workload) {
    return run_daemon(workload, true, "auto");
}

static int run_threads(struct workload *workload) {
    return run_daemon(workload, true, "threads");
}

static const struct {
    const char *name;
    bool prepared, daemon;
    int (*run)(struct workload *workload);
} workloads[] = {
    {"init", false, false, run_init},    {"info", true, false, run_info},
    {"check", true, false, run_check},   {"import", true, false, run_import},
    {"create", true, false, run_create}, {"pool", true, false, run_pool},
    {"delete", true, false, run_delete}, {"gildd", true, true, run_gildd},
    {"uring", true, true, run_uring},    {"threads", true, true, run_threads},
};

static unsigned lines_of(const char *text) {
    unsigned lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

struct outcome {
    uint64_t allocations;
    bool fired, went_well;
};

static bool once(size_t which, uint64_t at, const struct options *options,
                 struct outcome *outcome) {
    struct workload workload;
    char when[160];
    workload_make(&workload, options->seed);
    bool good = !workloads[which].prepared || workload_prepare(&workload);
    rig_forget(&workload.rig, false);
    struct trace_head *head = workload.rig.head;
    head->alloc_at = at;
    head->alloc_any = options->libraries;
    int code = workloads[which].run(&workload);
    outcome->allocations = atomic_load(&head->allocs);
    outcome->fired = head->alloc_object[0];
    outcome->went_well = code == 0;
    snprintf(when, sizeof when, "%s, allocation %" PRIu64 " (%s+0x%" PRIx64 ")",
             workloads[which].name, at, head->alloc_object, head->alloc_address);
    const char *said = rig_log(&workload.rig);
    if (code != 0 && code != 1) {
        printf("%s: exit code %d: %s\n", when, code, said);
        good = false;
    } else if (code == 1 && !workloads[which].daemon && lines_of(said) != 1) {
        printf("%s: not one sentence: %s\n", when, said);
        good = false;
    } else if (!at && code) {
        printf("%s: it fails with all the memory there is: %s\n", when, said);
        good = false;
    }
    good = workload_judge(&workload, when) && good;
    workload_remove(&workload);
    return good;
}

static bool fail_all(size_t which, const struct options *options) {
    struct outcome outcome;
    uint64_t bad = 0, fired = 0, optional = 0;
    if (!once(which, 0, options, &outcome))
        return false;
    uint64_t allocations = outcome.allocations;
    for (uint64_t i = 0; i < options_points(options, allocations); i++) {
        bad += !once(which, options_place(options, i, allocations), options, &outcome);
        fired += outcome.fired;
        optional += outcome.fired && outcome.went_well;
    }
    printf("%s: %" PRIu64 " allocations, %" PRIu64 " made to fail, %" PRIu64
           " of them done without; %" PRIu64 " bad\n",
           workloads[which].name, allocations, fired, optional, bad);
    fflush(stdout);
    return bad == 0;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 10);
    bool good = true;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (options_want(&options, workloads[i].name))
            good &= fail_all(i, &options);
    return good ? 0 : 1;
}
