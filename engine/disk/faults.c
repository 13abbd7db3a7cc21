/* See faults.h. */
#include "disk/faults.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Two slots of a group are one fault: each group is said once. */
static bool known(const struct faults *faults, uint32_t group) {
    for (size_t i = 0; i < faults->count; i++)
        for (size_t r = 0; r < faults->fault[i].groups.count; r++) {
            const struct range *range = &faults->fault[i].groups.range[r];
            if (range->first <= group && group < range->first + range->count)
                return true;
        }
    return false;
}

void faults_note(void *context, const struct gild_pack_fault *pack_fault) {
    struct faults *faults = context;
    size_t at = faults->count < FAULTS_MAX ? faults->count : FAULTS_MAX;
    struct fault *fault = &faults->fault[at];
    if (pack_fault->groups && known(faults, pack_fault->first_group))
        return;
    faults->total++;
    if (!fault->sentence) {
        fault->sentence = strdup(at < FAULTS_MAX ? pack_fault->sentence : "");
        faults->count = at + 1;
    }
    if (!fault->sentence ||
        (pack_fault->groups &&
         range_add(&fault->groups, pack_fault->first_group, pack_fault->groups)))
        faults->failure = -ENOMEM;
}

void faults_free(struct faults *faults) {
    for (size_t i = 0; i < faults->count; i++) {
        free(faults->fault[i].sentence);
        free(faults->fault[i].groups.range);
    }
    memset(faults, 0, sizeof *faults);
}

int faults_hits(const struct faults *faults, struct damage *damage, uint32_t pack_id,
                struct hits hits[FAULTS_MAX + 1]) {
    struct target *targets = calloc(FAULTS_MAX + 1, sizeof *targets);
    if (!targets)
        return -ENOMEM;
    for (size_t i = 0; i < faults->count; i++)
        targets[i] = (struct target){pack_id, faults->fault[i].groups, {0}};
    int err = damage_of_groups(damage, targets, faults->count);
    for (size_t i = 0; i < faults->count; i++)
        hits[i] = targets[i].hits;
    free(targets);
    return err;
}
