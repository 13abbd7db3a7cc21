/* The real programs, real LMDB and a real file system are recorded; then the power goes at many
 * points of each recording, in many ways, and each state that the folder may then have is opened,
 * checked, and compared with what the workload had been told by then.
 *
 *   test_replay [--states N] [--seed N] [--workload admin|uring|threads]
 *
 * N states are tried of each workload. Which process, which backend and which file system each
 * figure is about stands beside it. What the recorder could not see would show: the model's last
 * state must be what is really in the folder. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "judge.h"
#include "model.h"
#include "options.h"
#include "workload.h"

#define CHECK_EACH 8u /* so many states are also opened by `gild store check` itself first */

struct figures {
    uint64_t events, writes, syncs, names, states, distinct, checked, unmade;
    uint64_t lost, wrong, findings, paths, orphans, bad;
    uint64_t modes[MODEL_MODES];
};

/* ---- workloads ------------------------------------------------------------------------------- */

static bool admin(struct workload *workload, const char *backend) {
    return workload_store_init(workload) && workload_import(workload, "img") &&
           workload_desktop(workload, "d1", true) && workload_desktop(workload, "d2", true) &&
           workload_pool(workload, "p", 3) && workload_daemon(workload, false, backend, 8) &&
           workload_pool_delete(workload, "p", 3) && workload_desktop_delete(workload, "d1");
}

/* With the small segments; half of the verbs while guests write. */
static bool guests_and_verbs(struct workload *workload, const char *backend) {
    struct guests *guests = &workload->guests;
    bool good = workload_store_init(workload) && workload_import(workload, "img") &&
                workload_desktop(workload, "d1", true) && workload_desktop(workload, "d2", true) &&
                rig_daemon_start(&workload->rig, true, backend) && guests_connect(guests);
    for (unsigned i = 0; i < 40 && good; i++) {
        good = guests_round(guests);
        if (good && i % 7 == 6)
            good = guests_checkpoint(guests);
        if (good && i == 10)
            good = workload_desktop(workload, "d3", false);
        if (good && i == 17)
            good = workload_import(workload, "second");
        if (good && i == 24)
            good = workload_desktop_delete(workload, "d3");
    }
    guests_leave(guests);
    workload->code = rig_daemon_stop(&workload->rig);
    return good && workload->code == 0 && workload_daemon(workload, true, backend, 6);
}

static const struct {
    const char *name, *backend, *what;
    bool (*run)(struct workload *workload, const char *backend);
} workloads[] = {
    {"admin", "auto", "gild, gildd", admin},
    {"uring", "auto", "gild, the daemon with small segments, io_uring", guests_and_verbs},
    {"threads", "threads", "gild, the daemon with small segments, threads", guests_and_verbs},
};

/* ---- states ---------------------------------------------------------------------------------- */

/* A set of hashes; 0 stands for none. */
struct seen {
    uint64_t *slots, count, room;
};

static bool add(struct seen *seen, uint64_t hash) {
    hash += !hash;
    uint64_t at = hash % seen->room;
    while (seen->slots[at] && seen->slots[at] != hash)
        at = (at + 1) % seen->room;
    if (seen->slots[at])
        return false;
    seen->slots[at] = hash;
    seen->count++;
    return true;
}

struct replay {
    struct workload *workload;
    struct model *model;
    struct figures *figures;
    struct seen images, judged;
    struct gild_prng prng;
    struct rig at_state; /* the same scratch folder, the state as its store */
    uint64_t epoch;      /* answers and questions so far: they change what is due */
};

static void count_event(struct replay *replay, const struct trace_event *event) {
    struct figures *figures = replay->figures;
    figures->events++;
    figures->writes += event->kind == TRACE_WRITE;
    figures->syncs +=
        event->kind == TRACE_SYNC || (event->kind == TRACE_WRITE && event->flags & TRACE_DSYNC);
    figures->names +=
        event->kind == TRACE_MAKE || event->kind == TRACE_RENAME || event->kind == TRACE_UNLINK;
    replay->epoch += event->kind == TRACE_MARK;
}

static bool is_made(const struct replay *replay) {
    return replay->workload->oracle.made_at <= model_position(replay->model);
}

static void tell(struct replay *replay, const struct model_choice *choice, const char *what) {
    if (replay->figures->bad++ < 10)
        printf("crash at %" PRIu64 ", mode %d, ref %" PRIu64 ", seed %" PRIu64 ": %s\n",
               model_position(replay->model), (int)choice->mode, choice->ref, choice->seed, what);
    const char *keep = getenv("GILD_KEEP_STATE");
    uint64_t hash;
    if (keep && *keep && access(keep, F_OK) != 0 && mkdir(keep, 0700) == 0)
        model_build(replay->model, choice, keep, &hash);
}

static void judge(struct replay *replay, const struct model_choice *choice) {
    struct figures *figures = replay->figures;
    struct judgement judgement;
    char socket[100];
    snprintf(socket, sizeof socket, "%s/judge", replay->at_state.work);
    if (figures->states % CHECK_EACH == 0 && is_made(replay)) {
        figures->checked++;
        int code = rig_plain_gild(&replay->at_state, "store", "check", NULL);
        if (code) {
            figures->findings++;
            tell(replay, choice, rig_log(&replay->at_state));
        }
    }
    judge_store(replay->at_state.store, socket, &replay->workload->oracle,
                model_position(replay->model), &judgement);
    figures->unmade += !judgement.opened && !judgement.text[0];
    figures->lost += judgement.lost;
    figures->wrong += judgement.wrong;
    figures->findings += judgement.findings;
    figures->paths += judgement.paths;
    figures->orphans += judgement.orphans;
    if (judgement.text[0])
        tell(replay, choice, judgement.text);
}

static void one_state(struct replay *replay) {
    struct figures *figures = replay->figures;
    uint64_t pending = model_pending(replay->model), hash = 0;
    struct model_choice choice = {.mode = (enum model_mode)(figures->states % MODEL_MODES),
                                  .seed = gild_prng_next(&replay->prng)};
    if (pending)
        choice.ref = model_pending_ref(replay->model, gild_prng_below(&replay->prng, pending));
    figures->states++;
    rig_empty(replay->at_state.store);
    int result = model_build(replay->model, &choice, replay->at_state.store, &hash);
    if (result) {
        tell(replay, &choice, strerror(-result));
        return;
    }
    figures->modes[choice.mode]++;
    figures->distinct += add(&replay->images, hash);
    if (add(&replay->judged, hash ^ replay->epoch * UINT64_C(0x9e3779b97f4a7c15)))
        judge(replay, &choice);
}

static uint64_t count_events(const struct trace_head *head) {
    uint64_t count = 0, at = TRACE_FIRST;
    while (trace_at(head, at, &at))
        count++;
    return count;
}

/* The model's last state, all of it there, is what is in the folder. */
static void compare_end(struct replay *replay) {
    struct model_choice all = {.mode = MODEL_ALL};
    uint64_t modelled = 0, real = 0;
    rig_empty(replay->at_state.store);
    if (model_build(replay->model, &all, replay->at_state.store, &modelled) ||
        model_hash_of(replay->workload->rig.store, &real) || modelled != real ||
        model_odd(replay->model)) {
        replay->figures->bad++;
        printf("the recording is not what happened: %" PRIu64
               " events that it can not follow, "
               "the folder is %s\n",
               model_odd(replay->model), modelled == real ? "the same" : "another");
        if (getenv("GILD_KEEP_STATE"))
            rig_copy(replay->workload->rig.store, "/var/tmp/gild-real-there"),
                rig_copy(replay->at_state.store, "/var/tmp/gild-real-model");
    }
}

static void replay_all(struct workload *workload, uint64_t states, uint64_t seed,
                       struct figures *figures) {
    struct replay replay = {.workload = workload, .figures = figures};
    uint64_t total = count_events(workload->rig.head), taken = 0;
    replay.model = model_create(workload->rig.head, workload->rig.root);
    replay.images.room = replay.judged.room = 4 * states + 16;
    replay.images.slots = calloc(replay.images.room, 8);
    replay.judged.slots = calloc(replay.judged.room, 8);
    if (!replay.images.slots || !replay.judged.slots)
        abort();
    gild_prng_seed(&replay.prng, seed);
    replay.at_state = workload->rig;
    snprintf(replay.at_state.store, sizeof replay.at_state.store, "%s/state", workload->rig.work);
    if (mkdir(replay.at_state.store, 0700))
        abort();
    const struct trace_event *event;
    while ((event = model_step(replay.model))) {
        count_event(&replay, event);
        taken++;
        while (figures->states < taken * states / total)
            one_state(&replay);
    }
    compare_end(&replay);
    model_destroy(replay.model);
    free(replay.images.slots);
    free(replay.judged.slots);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static bool run(size_t which, const struct options *options) {
    struct workload workload;
    struct figures figures = {0};
    workload_make(&workload, options->seed);
    rig_forget(&workload.rig, true);
    bool good = workloads[which].run(&workload, workloads[which].backend);
    if (!good)
        printf("%s: the workload itself failed, exit code %d: %s\n", workloads[which].name,
               workload.code, rig_log(&workload.rig));
    workload.rig.head->recording = false;
    if (good)
        replay_all(&workload, options->points, options->seed, &figures);
    printf(
        "%s (%s), recorded on %.40s:\n"
        "  %" PRIu64 " events: %" PRIu64 " writes, %" PRIu64 " syncs, %" PRIu64
        " names\n"
        "  %" PRIu64 " states, %" PRIu64 " distinct images, %" PRIu64
        " also by gild store check, %" PRIu64
        " before the store was promised\n"
        "  lost acknowledgements %" PRIu64 ", wrong bytes %" PRIu64 ", findings %" PRIu64
        ", paths %" PRIu64 ", orphans %" PRIu64 ", bad states %" PRIu64 "\n",
        workloads[which].name, workloads[which].what, workload.rig.work, figures.events,
        figures.writes, figures.syncs, figures.names, figures.states, figures.distinct,
        figures.checked, figures.unmade, figures.lost, figures.wrong, figures.findings,
        figures.paths, figures.orphans, figures.bad);
    workload_remove(&workload);
    return good && !figures.bad;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 300);
    bool good = true;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (options_want(&options, workloads[i].name))
            good &= run(i, &options);
    return good ? 0 : 1;
}
