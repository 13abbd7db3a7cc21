/* The power goes while `gild store check --repair` works: damaged stores (repair_harm.h) are
 * repaired by the real program, recorded, and at each place of the recording, in each way, states
 * that the folder may then have are repaired once more. Then all is as it is where no power goes:
 * the same is lost, nothing else, each block has its content, and each damaged file that was set
 * aside is still somewhere. Once the program had ended, nothing is left to repair. By even odds
 * a state has lost its catalogue too: the journal has it, whenever the power goes (D10).
 *
 *   test_repair [--all] [--points N] [--seed N] [--workload NAME]
 *
 * --all tries each mode at each place, else N states of each damage are spread over them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuts.h"
#include "options.h"
#include "repair_harm.h"
#include "repair_rig.h"
#include "rig.h"

#define DAMAGED 6 /* exit code: something is lost */

static const struct damage {
    const char *name;
    harm *harm;
    bool clean; /* the store was closed */
} damages[] = {
    {"map", harm_rot_map_leaf, true},
    {"packs", harm_remove_packs, true},
    {"pack", harm_rot_pack, true},
    {"segment", harm_garble_segment, false},
    {"cut-segment", harm_cut_segment, true},
    {"segment-header", harm_rot_segment_header, false},
    {"batch", harm_rot_tail_header, false},
    {"leaf", harm_rot_leaf, false},
    {"superblock", harm_rot_superblock, true},
    {"catalogue", harm_remove_catalogue, false},
    {"transactions", harm_lose_transactions, true},
};

struct repaired {
    const struct rig_expected *expected;
    struct contents aside; /* what the repair that was not cut has set aside */
};

static void judge(void *context, const char *store, const char *scratch, const struct cut *cut,
                  char text[CUTS_TEXT]) {
    const struct repaired *repaired = context;
    struct contents there;
    const char *missing;
    char path[200];
    (void)scratch;
    snprintf(path, sizeof path, "%s/catalogue/data.mdb", store);
    if (cut->again)
        unlink(path);
    struct rig_said *said = rig_repair(store, false);
    if (said->result)
        snprintf(text, CUTS_TEXT, "the repair failed: %s", said->error.message);
    else if (cut->ended && !cut->again && said->counts.repaired)
        snprintf(text, CUTS_TEXT, "there was something left to repair: %.900s", said->text);
    else if (rig_compare(said, repaired->expected))
        snprintf(text, CUTS_TEXT, "other things are lost than should be; repaired: %.900s",
                 said->text);
    else if (rig_verify(store, repaired->expected))
        snprintf(text, CUTS_TEXT, "the store is not as it should be; repaired: %.900s", said->text);
    rig_said_free(said);
    contents_read(&there, store);
    missing = text[0] ? NULL : contents_missing(&repaired->aside, &there);
    if (missing)
        snprintf(text, CUTS_TEXT, "what was %s is no longer anywhere", missing);
    contents_free(&there);
}

/* The rig's store in the place of the real rig's. */
static void take_store(struct rig *rig, bool clean) {
    char directory[64];
    struct stat status;
    rig_take(directory, clean);
    rmdir(rig->store);
    rig_copy(directory, rig->store);
    rig_drop(directory);
    rig_must(stat(rig->store, &status) == 0, rig->store);
    rig->root = (uint64_t)status.st_ino;
}

static bool run(const struct damage *damage, const struct options *options) {
    struct rig rig;
    struct rig_expected *expected = rig_expected(damage->clean);
    struct repaired repaired = {.expected = expected};
    struct contents after;
    rig_make(&rig);
    take_store(&rig, damage->clean);
    damage->harm(rig.store, expected);
    contents_read(&repaired.aside, rig.store);
    struct cuts cuts = {.name = damage->name,
                        .rig = &rig,
                        .before = cuts_begin(&rig),
                        .states = options->points,
                        .seed = options->seed,
                        .judge = judge,
                        .context = &repaired};
    int code = rig_gild(&rig, "store", "check", "--repair", NULL);
    contents_read(&after, rig.store);
    contents_moved(&repaired.aside, &after);
    contents_free(&after);
    bool good = code == 0 || code == DAMAGED;
    if (!good)
        printf("FAILED %s: the repair ended with %d: %s\n", damage->name, code, rig_log(&rig));
    good &= cuts_run(&cuts);
    contents_free(&repaired.aside);
    rig_expected_free(expected);
    rig_remove(&rig);
    return good;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 10);
    bool good = true;
    rig_seed = options.seed;
    rig_begin();
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++)
        if (options_want(&options, damages[i].name))
            good &= run(&damages[i], &options);
    rig_end();
    return good ? 0 : 1;
}
