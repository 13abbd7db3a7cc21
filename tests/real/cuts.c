/* See cuts.h. */
#include "cuts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "trace.h"

#define MOST_SLOTS 4u
#define TOLD_MOST 5u
#define DRAWS \
    3u /* where names are not durable: which of them are there makes the most difference */

struct verdict {
    uint64_t hash;
    bool repeated; /* was judged before, and not again */
    char text[CUTS_TEXT];
};

struct slot {
    pid_t pid; /* 0: free */
    char folder[100], scratch[100], log[100];
    struct verdict *verdict; /* shared with the child */
    struct cut cut;
};

struct run {
    const struct cuts *cuts;
    struct slot slots[MOST_SLOTS];
    unsigned slot_count;
    uint64_t *seen, seen_count, seen_room; /* hashes of states that were judged */
    uint64_t epoch;                        /* marks so far: they change what is due */
    uint64_t states, distinct, bad;
};

struct model *cuts_begin(struct rig *rig) {
    rig_forget(rig, true);
    struct model *model = model_create(rig->head, rig->root);
    int result = model_adopt(model, rig->store);
    if (result) {
        fprintf(stderr, "%s: %s\n", rig->store, strerror(-result));
        exit(1);
    }
    return model;
}

/* ---- one state ------------------------------------------------------------------------------- */

static bool was_seen(const struct run *run, uint64_t hash) {
    for (uint64_t i = 0; i < run->seen_count; i++)
        if (run->seen[i] == hash)
            return true;
    return false;
}

static void note_seen(struct run *run, uint64_t hash) {
    if (run->seen_count == run->seen_room) {
        run->seen_room = run->seen_room ? 2 * run->seen_room : 256;
        run->seen = realloc(run->seen, run->seen_room * sizeof *run->seen);
        if (!run->seen)
            abort();
    }
    run->seen[run->seen_count++] = hash;
}

static void one_state(const struct run *run, struct slot *slot) {
    const struct cuts *cuts = run->cuts;
    struct verdict *verdict = slot->verdict;
    int log = open(slot->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
        _exit(125);
    alarm(RIG_SECONDS);
    rig_empty(slot->folder);
    int result = model_build(cuts->before, &slot->cut.choice, slot->folder, &verdict->hash);
    if (result) {
        snprintf(verdict->text, CUTS_TEXT, "the state can not be made: %s", strerror(-result));
        _exit(0);
    }
    verdict->hash ^=
        run->epoch * UINT64_C(0x9e3779b97f4a7c15) + slot->cut.ended + (uint64_t)slot->cut.again * 2;
    verdict->repeated = was_seen(run, verdict->hash);
    if (!verdict->repeated)
        cuts->judge(cuts->context, slot->folder, slot->scratch, &slot->cut, verdict->text);
    fflush(NULL);
    _exit(0);
}

static void tell_log(const char *path) {
    char text[3000];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : pread(fd, text, sizeof text - 1, 0);
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    if (text[0])
        printf("  what was said:\n%s\n", text);
}

static void collect(struct run *run, struct slot *slot) {
    static const char *const modes[MODEL_MODES] = {"none",    "all",  "until",      "only",
                                                   "all but", "some", "torn pages", "torn sectors"};
    struct verdict *verdict = slot->verdict;
    int status = 0;
    if (waitpid(slot->pid, &status, 0) != slot->pid)
        abort();
    slot->pid = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        snprintf(verdict->text, CUTS_TEXT, "its judge ended with %s %d",
                 WIFEXITED(status) ? "exit code" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    if (!verdict->repeated) {
        run->distinct++;
        note_seen(run, verdict->hash);
    }
    if (!verdict->text[0])
        return;
    if (run->bad++ >= TOLD_MOST)
        return;
    printf("FAILED %s: state %" PRIu64 ", position %" PRIu64 "%s, mode %s (%" PRIu64 ")%s: %s\n",
           run->cuts->name, slot->cut.number, slot->cut.position,
           slot->cut.ended ? " (the end)" : "", modes[slot->cut.choice.mode], slot->cut.choice.ref,
           slot->cut.again ? ", damaged again" : "", verdict->text);
    tell_log(slot->log);
    fflush(stdout);
}

static struct slot *free_slot(struct run *run) {
    siginfo_t info;
    for (unsigned i = 0; i < run->slot_count; i++)
        if (!run->slots[i].pid)
            return &run->slots[i];
    while (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) != 0)
        if (errno != EINTR)
            abort();
    for (unsigned i = 0; i < run->slot_count; i++)
        if (run->slots[i].pid == info.si_pid) {
            collect(run, &run->slots[i]);
            return &run->slots[i];
        }
    abort(); /* somebody else's child: none is left running here */
}

static void try_state(struct run *run, enum model_mode mode, bool ended) {
    const struct cuts *cuts = run->cuts;
    struct gild_prng prng;
    struct slot *slot = free_slot(run);
    uint64_t pending = model_pending(cuts->before), position = model_position(cuts->before);
    position = position < TRACE_FIRST ? TRACE_FIRST : position; /* all that was before is */
    slot->cut = (struct cut){
        .number = run->states++, .position = position, .ended = ended, .choice.mode = mode};
    gild_prng_seed(&prng, cuts->seed + slot->cut.number);
    slot->cut.choice.seed = gild_prng_next(&prng);
    slot->cut.again = gild_prng_next(&prng) & 1;
    if (pending)
        slot->cut.choice.ref = model_pending_ref(cuts->before, gild_prng_below(&prng, pending));
    *slot->verdict = (struct verdict){0};
    fflush(NULL);
    slot->pid = fork();
    if (slot->pid < 0)
        abort();
    if (slot->pid == 0)
        one_state(run, slot);
}

/* ---- places ---------------------------------------------------------------------------------- */

static bool is_place(const struct trace_head *head, const struct trace_event *event) {
    uint64_t ignored;
    if (!event || event->kind == TRACE_MARK)
        return true;
    const struct trace_event *was =
        event->kind == TRACE_END ? trace_at(head, event->ref, &ignored) : NULL;
    return was && (was->kind == TRACE_SYNC || was->flags & TRACE_DSYNC);
}

static bool in_range(const struct cuts *cuts, uint64_t at) {
    return at >= cuts->first && (!cuts->last || at <= cuts->last);
}

static uint64_t count_places(const struct cuts *cuts) {
    const struct trace_head *head = cuts->rig->head;
    uint64_t count = !cuts->last, before = 0, at = TRACE_FIRST, next;
    const struct trace_event *event;
    for (; (event = trace_at(head, at, &next)); before = at, at = next)
        count += is_place(head, event) && in_range(cuts, before);
    return count;
}

/* Of `states` spread over all places and modes those that are of this place; at the end all. */
static void cut_here(struct run *run, uint64_t place, uint64_t places, bool ended) {
    uint64_t all = places * MODEL_MODES, states = run->cuts->states;
    uint64_t turn = gild_splitmix64(&(uint64_t){run->cuts->seed}) % all;
    for (unsigned mode = 0; mode < MODEL_MODES; mode++) {
        /* Bresenham's: i * states / all steps up `states` times on the way. */
        uint64_t i = place * MODEL_MODES + mode;
        bool chosen = !states || states >= all ||
                      ((i + turn) * states / all != (i + turn + 1) * states / all);
        bool more = mode > MODEL_ALL && !ended && model_pending_names(run->cuts->before);
        unsigned draws = more ? DRAWS : 1;
        for (unsigned draw = 0; (chosen || ended) && draw < draws; draw++)
            try_state(run, (enum model_mode)mode, ended);
    }
}

static void compare_end(struct run *run) {
    const struct cuts *cuts = run->cuts;
    const struct model_choice all = {.mode = MODEL_ALL};
    const char *folder = run->slots[0].folder;
    uint64_t modelled = 0, real = 0;
    rig_empty(folder);
    if (!model_build(cuts->before, &all, folder, &modelled) &&
        !model_hash_of(cuts->rig->store, &real) && modelled == real && !model_odd(cuts->before))
        return;
    run->bad++;
    printf("FAILED %s: the recording is not what happened: %" PRIu64
           " events that it can not follow, the folder is %s\n",
           cuts->name, model_odd(cuts->before), modelled == real ? "the same" : "another");
}

static void make_slots(struct run *run) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    run->slot_count = processors < 1 ? 1 : processors > MOST_SLOTS ? MOST_SLOTS : processors;
    for (unsigned i = 0; i < run->slot_count; i++) {
        struct slot *slot = &run->slots[i];
        snprintf(slot->folder, sizeof slot->folder, "%s/state-%u", run->cuts->rig->work, i);
        snprintf(slot->scratch, sizeof slot->scratch, "%s/judge-%u", run->cuts->rig->work, i);
        snprintf(slot->log, sizeof slot->log, "%s/said-%u", run->cuts->rig->work, i);
        slot->verdict = mmap(NULL, sizeof *slot->verdict, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (slot->verdict == MAP_FAILED || (mkdir(slot->folder, 0700) && errno != EEXIST))
            abort();
    }
}

bool cuts_run(const struct cuts *cuts) {
    struct run run = {.cuts = cuts};
    cuts->rig->head->recording = false;
    uint64_t places = count_places(cuts), place = 0;
    make_slots(&run);
    for (;;) {
        const struct trace_event *next = model_look(cuts->before);
        bool ended = !next;
        if (is_place(cuts->rig->head, next) &&
            (ended ? !cuts->last : in_range(cuts, model_position(cuts->before))))
            cut_here(&run, place++, places, ended);
        if (ended)
            break;
        run.epoch += next->kind == TRACE_MARK;
        model_step(cuts->before);
    }
    for (unsigned i = 0; i < run.slot_count; i++)
        if (run.slots[i].pid)
            collect(&run, &run.slots[i]);
    compare_end(&run);
    printf("%s: %" PRIu64 " places, %" PRIu64 " states, %" PRIu64 " distinct, %" PRIu64 " bad\n",
           cuts->name, places, run.states, run.distinct, run.bad);
    fflush(stdout);
    for (unsigned i = 0; i < run.slot_count; i++)
        munmap(run.slots[i].verdict, sizeof *run.slots[i].verdict);
    free(run.seen);
    model_destroy(cuts->before);
    return run.bad == 0 && run.distinct > 0;
}
