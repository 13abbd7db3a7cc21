/* See faults.h. */
#include "disk/faults.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
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

bool faults_all_lost(const struct range_set *lost, const struct range_set *groups) {
    for (size_t i = 0; i < groups->count; i++) {
        bool inside = false;
        for (size_t k = 0; k < lost->count && !inside; k++)
            inside = lost->range[k].first <= groups->range[i].first &&
                     groups->range[i].first + groups->range[i].count <=
                         lost->range[k].first + lost->range[k].count;
        if (!inside)
            return false;
    }
    return groups->count != 0;
}

int faults_tell_lost(struct findings *findings, struct damage *damage, uint32_t pack_id,
                     const struct range_set *lost) {
    struct target target = {.pack_id = pack_id, .groups = *lost};
    char object[32];
    uint64_t groups = 0;
    if (!lost->count)
        return 0;
    for (size_t i = 0; i < lost->count; i++)
        groups += lost->range[i].count;
    snprintf(object, sizeof object, "pack %08" PRIx32, pack_id);
    int err = damage_of_groups(damage, &target, 1);
    if (!err && target.hits.count)
        findings_advise(findings, object, "lost", &target.hits,
                        "reads of them fail; import the same image again and run `gild store "
                        "scrub`, and they are healed",
                        "known lost: %" PRIu64 " group%s of %s, from group %" PRIu64 " on", groups,
                        groups == 1 ? "" : "s", object, lost->range[0].first);
    hits_free(&target.hits);
    return err;
}
