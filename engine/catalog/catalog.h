/* The catalogue: the store's only truth about names, versions, maps' roots, packs and segments.
 * It stands on a transactional key-value store (kv.h: LMDB, or a simulated one).
 *
 * Every value is wrapped in a check (XXH3-64 seeded with table and key) that get and scan verify:
 * -EBADMSG names a rotten record, it is never returned as data.
 *
 * Threads: any but a reactor's (commits sync the disk). Write transactions exclude each other; read
 * transactions see one instant and must be short (they pin free pages). */
#ifndef GILD_CATALOG_H
#define GILD_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gild/error.h"

struct gild_catalog;
struct gild_txn;

enum gild_table {
    GILD_TABLE_META,     /* text key -> counters and settings */
    GILD_TABLE_IMAGES,   /* name -> image */
    GILD_TABLE_VERSIONS, /* name NUL version (u32 big-endian) -> version */
    GILD_TABLE_DESKTOPS, /* name -> desktop */
    GILD_TABLE_POOLS,    /* name -> pool */
    GILD_TABLE_DELTAS,   /* delta id (u64 big-endian) -> delta */
    GILD_TABLE_DROPPED,  /* delta id -> delta: deleted, its blocks not yet uncounted (an intent) */
    GILD_TABLE_MAPS,     /* map id (u64 big-endian) -> sealed map */
    GILD_TABLE_PACKS,    /* pack id (u32 big-endian) -> pack */
    GILD_TABLE_SEGMENTS, /* serial (u64 big-endian) -> segment */
    GILD_TABLE_STREAMS,  /* stream id (u64 big-endian) -> where replay begins */
    GILD_TABLE_INTENTS,  /* text key -> intent */
    GILD_TABLE_COUNT,
};

/* Opens (or makes) the environment in the folder. map_bytes: the most it may ever hold (address
 * space only). A stale reader table is cleared. */
int gild_catalog_open(struct gild_catalog **out, const char *folder, uint64_t map_bytes,
                      struct gild_error *error);
void gild_catalog_close(struct gild_catalog *catalog);
uint64_t gild_catalog_used_bytes(struct gild_catalog *catalog);

int gild_txn_begin(struct gild_catalog *catalog, bool write, struct gild_txn **out);
int gild_txn_commit(
    struct gild_txn *txn); /* durable when it returns 0; frees the txn in any case */
void gild_txn_abort(struct gild_txn *txn); /* NULL is fine */

/* Copies the value out: *length in: room, out: the value's length. -ENOENT, -EBADMSG, -ENOBUFS. */
int gild_txn_get(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                 void *value, size_t *length);
/* The value in place, valid until the next write or the end of the txn. */
int gild_txn_peek(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                  const void **value, size_t *length);
int gild_txn_put(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                 const void *value, size_t length);
int gild_txn_delete(struct gild_txn *txn, enum gild_table table, const void *key,
                    size_t key_length); /* -ENOENT */

/* Walks keys >= from (NULL: all) in order; the visitor's non-zero return ends the walk and is
 * returned. The visitor must not write to the table it walks. */
typedef int gild_txn_visit(void *context, const void *key, size_t key_length, const void *value,
                           size_t length);
int gild_txn_scan(struct gild_txn *txn, enum gild_table table, const void *from, size_t from_length,
                  gild_txn_visit *visit, void *context);
int gild_txn_count(struct gild_txn *txn, enum gild_table table, uint64_t *count);

/* Adds n to the meta counter `name` and gives its value from before (first use: 1). Ids made so are
 * never reused. Write txn. */
int gild_txn_next_id(struct gild_txn *txn, const char *name, uint64_t n, uint64_t *first);

#endif
