/* The watch: a thread that tells the admin what happens to space: disks that are refused, when they
 * may go on, thresholds that the store's use crosses.
 *
 *   reactor: a disk is refused, or taken again --note--> ring of the reactor --wake--> watch: event
 *   watch, now and then: level and use of the store; would refused disks be taken now? --> event
 *
 * A reactor only writes into a ring of its own and wakes the thread, once for an episode of a disk;
 * notes for which the ring has no room are counted, and said. */
#ifndef GILD_DISK_WATCH_H
#define GILD_DISK_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct gild_disk;
struct gild_store;

enum refused { REFUSED_NOT, REFUSED_DISK, REFUSED_POOL, REFUSED_FULL };

int watch_create(struct gild_store *store);
int watch_start(struct gild_store *store); /* not of a store that is open in a command */
void watch_stop(struct gild_store *store);
void watch_destroy(struct gild_store *store);

/* The disk's reactor; nothing is allocated or waited for. */
void watch_refused(struct gild_disk *disk, enum refused why);
void watch_taken(struct gild_disk *disk);

/* Any thread: look now. */
void watch_wake(struct gild_store *store);

#endif
