/* Guests: they write to disks of a daemon over NBD, flush now and then, and tell the oracle what
 * they were told. They end when a request fails or the daemon goes. Threads: one. */
#ifndef GILD_TESTS_REAL_GUEST_H
#define GILD_TESTS_REAL_GUEST_H

#include <stdbool.h>

#include "base/prng.h"
#include "oracle.h"
#include "rig.h"

#define GUEST_DISKS 4u
#define GUEST_WRITES 6u /* of one round and disk, at most */

struct guests {
    struct rig *rig;
    struct oracle *oracle;
    struct gild_prng prng;
    unsigned count;
    struct oracle_disk *disks[GUEST_DISKS];
    int connections[GUEST_DISKS]; /* -1: none */
    unsigned eio, refused;        /* answers with EIO, with another error */
    int refused_with;             /* the last of these */
};

void guests_init(struct guests *guests, struct rig *rig, struct oracle *oracle, uint64_t seed);
void guests_add(struct guests *guests, struct oracle_disk *disk);
bool guests_connect(struct guests *guests);
void guests_leave(struct guests *guests);

/* Each disk gets some writes, all at once; then each other one is flushed. False: a request failed,
 * or a connection broke. */
bool guests_round(struct guests *guests);
bool guests_flush(struct guests *guests); /* all disks */
/* Everything acknowledged so far becomes durable. */
bool guests_checkpoint(struct guests *guests);

#endif
