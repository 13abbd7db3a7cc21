/* What the catalogue needs of a key-value store, and no more: tables of ordered records, a
 * transaction sees one instant, one writes at a time, a commit is durable when it returns and all
 * or nothing if it does not. LMDB stands behind it (kv_lmdb.c); the simulation has one of its own.
 *
 * Records are plain bytes here: checks and the journal are the catalogue's (catalog.c).
 * Threads: any but a reactor's. Errors: -ENOENT, -ENOSPC (full: the transaction is undone), -EAGAIN
 * (too many readers), -EUCLEAN (the store's own structure is damaged), -EIO, -ENOMEM. */
#ifndef GILD_CATALOG_KV_H
#define GILD_CATALOG_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gild/error.h"

struct gild_kv;
struct gild_kv_txn;

/* One record of a walk; a non-zero return ends it. */
typedef int gild_kv_visit(void *context, const void *key, size_t key_length, const void *value,
                          size_t length);

/* The tables: their names, which stay. */
struct gild_kv_schema {
    const char *const *names;
    unsigned count;
    /* Is this a record as we wrote it? 0 or -errno; context: the table's number, an unsigned. */
    gild_kv_visit *intact;
};

/* Opens (or makes) the environment in the folder. map_bytes: the most it may ever hold (address
 * space only). */
int gild_kv_open(struct gild_kv **out, const char *folder, const struct gild_kv_schema *schema,
                 uint64_t map_bytes, struct gild_error *error);
void gild_kv_close(struct gild_kv *kv); /* NULL is fine */
uint64_t gild_kv_used_bytes(struct gild_kv *kv);

/* Is there one in the folder? 1, 0 or -errno. */
int gild_kv_exists(const char *folder);
/* Takes one that is damaged out of the way: its file gets another name in the same folder (kept for
 * whoever wants to look at it), durably. */
int gild_kv_set_aside(const char *folder);

int gild_kv_begin(struct gild_kv *kv, bool write, struct gild_kv_txn **out);
int gild_kv_commit(struct gild_kv_txn *txn); /* frees the txn in any case */
void gild_kv_abort(struct gild_kv_txn *txn); /* NULL is fine */

/* The record in place, valid until the next write or the end of the txn. */
int gild_kv_get(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                const void **value, size_t *length);
/* A record of that length under the key; *room is to be filled before the next call. */
int gild_kv_put(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                size_t length, void **room);
int gild_kv_delete(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length);

/* Keys >= from (NULL: all) in order; a non-zero return ends the walk and is returned. -EUCLEAN if
 * the keys that the store gives are not in order. */
int gild_kv_scan(struct gild_kv_txn *txn, unsigned table, const void *from, size_t from_length,
                 gild_kv_visit *visit, void *context);
int gild_kv_count(struct gild_kv_txn *txn, unsigned table, uint64_t *count);

/* A look at one that may be damaged: in a process of its own, since what is garbled may fault or
 * never end where it is read. `look` gets a transaction that only reads, and fills `report`;
 * gild_kv_probe returns its result, or -EUCLEAN if it could not be brought to an end. Nothing is
 * written. */
typedef int gild_kv_look(void *context, struct gild_kv_txn *txn, void *report);
int gild_kv_probe(const char *folder, const struct gild_kv_schema *schema, uint64_t map_bytes,
                  gild_kv_look *look, void *context, void *report, size_t report_bytes);

#endif
