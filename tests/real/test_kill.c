/* SIGKILL at system call 1, 2, 3 ... of what writes or syncs under the store, over chosen
 * workloads: afterwards the store opens, `gild store check` is clean, everything that was promised
 * is there, and no file is left that nobody owns.
 *
 *   test_kill [--all] [--points N] [--seed N] [--workload NAME]
 *
 * --all kills at each call, else N points of each workload are spread over its calls. A killed
 * process leaves what it wrote in the kernel's memory: what a power cut leaves is test_replay's. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "workload.h"

#define KILLED (128 + 9)

static bool prepare_nothing(struct workload *workload) {
    workload->rig.head->recording = false;
    return true;
}

static bool prepare_store(struct workload *workload) {
    return prepare_nothing(workload) && workload_store_init(workload);
}

static bool run_init(struct workload *workload) {
    return workload_store_init(workload);
}

static bool run_import(struct workload *workload) {
    return workload_import(workload, "img") && workload_import(workload, "img2");
}

static bool run_admin(struct workload *workload) {
    return workload_desktop(workload, "d3", false) && workload_pool(workload, "p", 3) &&
           workload_pool_delete(workload, "p", 3) && workload_desktop_delete(workload, "d1");
}

static bool run_uring(struct workload *workload) {
    return workload_daemon(workload, true, "auto", 14);
}

static bool run_threads(struct workload *workload) {
    return workload_daemon(workload, true, "threads", 14);
}

static bool run_gildd(struct workload *workload) {
    return workload_daemon(workload, false, "auto", 6);
}

static const struct {
    const char *name;
    bool (*prepare)(struct workload *workload), (*run)(struct workload *workload);
} workloads[] = {
    {"init", prepare_nothing, run_init},
    {"import", prepare_store, run_import},
    {"admin", workload_prepare, run_admin},
    {"guests-uring", workload_prepare, run_uring},
    {"guests-threads", workload_prepare, run_threads},
    {"gildd", workload_prepare, run_gildd},
};

/* Runs once, killed at that call (0: never). *calls: how many there were. */
static bool once(size_t which, uint64_t kill_at, uint64_t seed, uint64_t *calls, bool *killed) {
    struct workload workload;
    char when[80];
    workload_make(&workload, seed);
    snprintf(when, sizeof when, "%s killed at call %" PRIu64, workloads[which].name, kill_at);
    bool good = workloads[which].prepare(&workload);
    if (!good)
        printf("%s: it can not be prepared: %s\n", when, rig_log(&workload.rig));
    rig_forget(&workload.rig, false);
    workload.rig.head->kill_at = kill_at;
    bool done = good && workloads[which].run(&workload);
    *calls = atomic_load(&workload.rig.head->calls);
    *killed = workload.code == KILLED;
    if (good && !done && !*killed) {
        printf("%s: exit code %d: %s\n", when, workload.code, rig_log(&workload.rig));
        good = false;
    }
    good = good && workload_judge(&workload, when);
    workload_remove(&workload);
    return good;
}

static bool kill_all(size_t which, const struct options *options) {
    uint64_t calls, ignored, kills = 0, bad = 0;
    bool killed;
    if (!once(which, 0, options->seed, &calls, &killed))
        return false;
    for (uint64_t i = 0; i < options_points(options, calls); i++) {
        uint64_t at = options_place(options, i, calls);
        bad += !once(which, at, options->seed, &ignored, &killed);
        kills += killed;
    }
    printf("%s: %" PRIu64 " calls, killed at %" PRIu64 " of them, %" PRIu64 " bad\n",
           workloads[which].name, calls, kills, bad);
    fflush(stdout);
    return bad == 0;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 10);
    bool good = true;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (options_want(&options, workloads[i].name))
            good &= kill_all(i, &options);
    return good ? 0 : 1;
}
