/* How disks and the store grow: a sample an hour in the catalogue, and the rate that follows. */
#ifndef GILD_DISK_GROWTH_H
#define GILD_DISK_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"

struct gild_store;

/* After a checkpoint: notes what changed since the last time, if an hour has passed. What fails is
 * done an hour later. The keeper's. */
void growth_note(struct gild_store *store);

/* Adds a sample; a full record loses the one that is missed least: of close neighbours, and old.
 * Pure. */
void growth_add(struct gild_rec_growth *record, uint64_t at_s, uint64_t bytes);

/* Bytes a day since the oldest sample of the last 30 days, negative if it shrank. False: there is
 * none that is an hour old. Pure. */
bool growth_per_day(const struct gild_rec_growth *record, uint64_t now_s, uint64_t bytes,
                    int64_t *per_day);

/* The same for a delta, or the store (id 0), that holds so much now. Any thread but a reactor's. */
bool growth_of(struct gild_store *store, uint64_t id, uint64_t bytes, int64_t *per_day);

#endif
