/* The faults of one pack, gathered while it is checked. One thread. */
#ifndef GILD_DISK_FAULTS_H
#define GILD_DISK_FAULTS_H

#include "disk/damage.h"

/* Said one by one; what is beyond is one fault more. */
#define FAULTS_MAX 64u

struct fault {
    char *sentence;
    struct range_set groups; /* whose content it is about; empty: no block is hit */
};

struct faults { /* zero it; faults_free */
    struct fault fault[FAULTS_MAX + 1];
    size_t count;
    uint64_t total;
    int failure; /* -ENOMEM */
};
/* gild_pack_look.found; the context is the faults. */
void faults_note(void *faults, const struct gild_pack_fault *fault);
void faults_free(struct faults *faults);

/* Whom each of them hits: hits[i] is fault i's; the caller frees them. */
int faults_hits(const struct faults *faults, struct damage *damage, uint32_t pack_id,
                struct hits hits[FAULTS_MAX + 1]);

/* Is the fault about groups, and are all of them among `lost` (merged)? */
bool faults_all_lost(const struct range_set *lost, const struct range_set *groups);

/* Groups in quarantine: a finding, if anybody reads them. */
int faults_tell_lost(struct findings *findings, struct damage *damage, uint32_t pack_id,
                     const struct range_set *lost);

#endif
