/* Walking what a delta reaches, and lists of ids. */
#ifndef GILD_DISK_WALK_H
#define GILD_DISK_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "catalog/records.h"

struct gild_store;

/* Zero it; free(ids.id) at the end. */
struct ids {
    uint64_t *id;
    size_t count, room;
};
int ids_add(struct ids *ids, uint64_t id);
void ids_sort(struct ids *ids);
bool ids_have(const struct ids *ids, uint64_t id); /* sorted */
/* All keys of a table, as numbers, sorted. */
int ids_read(struct gild_store *store, enum gild_table table, struct ids *ids);
int ids_read_in(struct gild_txn *txn, enum gild_table table, struct ids *ids);

/* What a delta reaches: the serial of each block's and node's segment, the number of each block's
 * pack, once for each. */
struct delta_walk {
    struct ids serials; /* sorted */
    struct ids packs;   /* sorted */
    uint64_t blocks, nodes;
};
/* -EBADMSG if a node is rotten. */
int walk_delta(struct gild_store *store, uint64_t delta_id, const struct gild_rec_delta *record,
               struct delta_walk *walk);

#endif
