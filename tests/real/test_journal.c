/* The power goes while a catalogue or its journal begins: in a store from before there was one, in
 * a repair that makes the catalogue again, and where a full file system refuses a transaction that
 * the journal has already. At each place of the recording, in each way, the state is opened, or
 * repaired if it is refused; by even odds it has lost its catalogue as well, and what was told
 * by then is in the journal, what was refused is not (D10).
 *
 *   test_journal [--all] [--points N] [--seed N] [--workload NAME] */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuts.h"
#include "gild/store.h"
#include "judge.h"
#include "options.h"
#include "workload.h"

#define CATALOGUE "data.mdb"

struct begun {
    struct workload workload;
    uint64_t from;         /* position: from here on the journal has all that there is */
    bool repairs;          /* what is cut is a repair */
    struct contents aside; /* what it has set aside, if it is not cut */
};

/* Nothing may be lost by it. */
static bool repair(const char *store, bool ended, char text[CUTS_TEXT]) {
    static const struct gild_repair_report silent = {0};
    struct gild_repair_result result;
    struct gild_error error = {0};
    if (gild_store_repair(store, false, &silent, &result, &error))
        snprintf(text, CUTS_TEXT, "the repair failed: %s", error.message);
    else if (result.lost_blocks || result.quarantined)
        snprintf(text, CUTS_TEXT, "the repair has lost something");
    else if (ended && result.repaired)
        snprintf(text, CUTS_TEXT, "there was something left to repair");
    return !text[0];
}

static void judge(void *context, const char *store, const char *scratch, const struct cut *cut,
                  char text[CUTS_TEXT]) {
    const struct begun *begun = context;
    struct judgement judgement;
    struct contents there;
    char path[200];
    bool again = cut->again && cut->position >= begun->from;
    snprintf(path, sizeof path, "%s/catalogue/" CATALOGUE, store);
    if (again)
        unlink(path);
    if ((again || begun->repairs) && !repair(store, cut->ended && !again, text))
        return;
    contents_read(&there, store);
    const char *missing = again ? NULL : contents_missing(&begun->aside, &there);
    if (missing)
        snprintf(text, CUTS_TEXT, "what was %s is no longer anywhere", missing);
    contents_free(&there);
    judge_store(store, scratch, &begun->workload.oracle, cut->position, &judgement);
    if (judgement.text[0])
        snprintf(text, CUTS_TEXT, "%s", judgement.text);
}

/* ---- in a store that had none ---------------------------------------------------------------- */

static bool first(struct begun *begun, struct cuts *cuts) {
    struct workload *workload = &begun->workload;
    char path[120];
    bool good = workload_prepare(workload);
    snprintf(path, sizeof path, "%s/journal", workload->rig.store);
    rig_empty(path);
    if (!good || rmdir(path))
        return false;
    cuts->before = cuts_begin(&workload->rig);
    good = workload_desktop(workload, "d3", false);
    begun->from = rig_now(&workload->rig);
    return good && workload_desktop(workload, "d4", false) &&
           workload_desktop_delete(workload, "d2");
}

/* ---- made again ------------------------------------------------------------------------------ */

static bool garble(const char *path) {
    uint8_t bytes[4096];
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool good = fd >= 0 && fstat(fd, &status) == 0;
    for (off_t at = 2 * 4096; good && at < status.st_size; at += 2 * 4096) {
        good = pread(fd, bytes, sizeof bytes, at) == (ssize_t)sizeof bytes;
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] ^= (uint8_t)(0xa5 + i);
        good = good && pwrite(fd, bytes, sizeof bytes, at) == (ssize_t)sizeof bytes;
    }
    if (fd >= 0)
        close(fd);
    return good;
}

static bool rebuild(struct begun *begun, struct cuts *cuts) {
    struct workload *workload = &begun->workload;
    struct contents after;
    char path[120];
    snprintf(path, sizeof path, "%s/catalogue/" CATALOGUE, workload->rig.store);
    if (!workload_prepare(workload) || !workload_daemon(workload, true, "auto", 6) || !garble(path))
        return false;
    begun->repairs = true;
    contents_read(&begun->aside, workload->rig.store);
    cuts->before = cuts_begin(&workload->rig);
    workload->code = rig_gild(&workload->rig, "store", "check", "--repair", NULL);
    contents_read(&after, workload->rig.store);
    contents_moved(&begun->aside, &after);
    contents_free(&after);
    return workload->code == 0 && begun->aside.count == 1;
}

/* ---- refused --------------------------------------------------------------------------------- */

/* The journal has the record, durably, when the catalogue finds no room for its own. */
static bool refused(struct begun *begun, struct cuts *cuts) {
    struct workload *workload = &begun->workload;
    struct rig *rig = &workload->rig;
    const char *path = "desktops/d9/os";
    rig_forget(rig, true);
    if (!workload_store_init(workload) || !workload_import(workload, "img") ||
        !workload_desktop(workload, "d1", false) || !rig_daemon_start(rig, true, "auto"))
        return false;
    cuts->first = begun->from = rig_now(rig);
    strcpy(rig->head->full, CATALOGUE);
    oracle_path_sent(&workload->oracle, path, true, rig_now(rig));
    workload->code = rig_gild(rig, "desktop", "create", "d9", "--image", "img@1", NULL);
    rig->head->full[0] = 0;
    unsigned gone = oracle_path_sent(&workload->oracle, path, false, rig_now(rig));
    workload->oracle.paths[gone].acknowledged = rig_now(rig);
    cuts->last = rig_now(rig);
    bool good = workload->code != 0 && strstr(rig_log(rig), "o space left");
    if (!good)
        printf("refused: it ended with %d: %s\n", workload->code, rig_log(rig));
    good = good && workload_desktop(workload, "d2", false);
    workload->code = rig_daemon_stop(rig);
    cuts->before = model_create(rig->head, rig->root);
    return good && workload->code == 0;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    bool (*run)(struct begun *begun, struct cuts *cuts);
    unsigned share; /* of the states */
} begins[] = {{"first", first, 1}, {"rebuild", rebuild, 2}, {"refused", refused, 1}};

static bool run(size_t which, const struct options *options) {
    struct begun begun = {.from = 0};
    struct cuts cuts = {.name = begins[which].name,
                        .rig = &begun.workload.rig,
                        .states = options->points * begins[which].share,
                        .seed = options->seed,
                        .judge = judge,
                        .context = &begun};
    workload_make(&begun.workload, options->seed);
    bool good = begins[which].run(&begun, &cuts);
    if (!good)
        printf("FAILED %s: the workload itself, exit code %d: %s\n", cuts.name, begun.workload.code,
               rig_log(&begun.workload.rig));
    good = good && cuts_run(&cuts);
    contents_free(&begun.aside);
    workload_remove(&begun.workload);
    return good;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 90);
    bool good = true;
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
        if (options_want(&options, begins[i].name))
            good &= run(i, &options);
    return good ? 0 : 1;
}
