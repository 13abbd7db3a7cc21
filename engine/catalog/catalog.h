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

#define GILD_CATALOG_NOTE_BYTES 512u

struct gild_catalog_options {
    uint64_t map_bytes;  /* the most it may ever hold (address space only) */
    const char *journal; /* folder of its journal (catalog/journal.h); NULL: none is kept */
    const void *note;    /* GILD_CATALOG_NOTE_BYTES that the journal keeps for its owner */
};

/* Opens (or makes) the catalogue in the folder. With a journal, the catalogue is first compared
 * with it, record by record, in a process of its own: one that is damaged, older than its journal,
 * or lost while a journal is there, is refused (GILD_CORRUPT) and nothing is written. Blocking. */
int gild_catalog_open(struct gild_catalog **out, const char *folder,
                      const struct gild_catalog_options *options, struct gild_error *error);
void gild_catalog_close(struct gild_catalog *catalog);

/* The comparison alone: 0, or what an open would refuse it for. Nothing is open or written. */
int gild_catalog_verify(const char *folder, const struct gild_catalog_options *options,
                        struct gild_error *error);

struct gild_catalog_rebuilt {
    uint64_t records, transaction; /* what the new one holds, and as of which transaction */
    uint64_t lost;                 /* transactions after it that the journal has lost, 0 = none */
};
/* Makes the catalogue again from its journal; what is in the folder now is set aside under another
 * name. A crash in between leaves one that an open refuses and this mends. The caller holds the
 * store's lock and has verified that there is something to mend. Blocking. */
int gild_catalog_rebuild(const char *folder, const struct gild_catalog_options *options,
                         struct gild_catalog_rebuilt *rebuilt, struct gild_error *error);

/* How many transactions a rebuild has found to be lost, 0 = none: known until the repair that it
 * was a part of has done what there is to do about it, and says so. 0 or -errno. */
int gild_catalog_lost(struct gild_catalog *catalog, uint64_t *transactions);
int gild_catalog_lost_settled(struct gild_catalog *catalog);

/* The note of the newest whole journal in the folder: 0, -ENOENT, -EBADMSG, ... */
int gild_catalog_read_note(const char *journal, uint8_t note[GILD_CATALOG_NOTE_BYTES]);

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
/* The highest id given so far, 0 if none was. */
int gild_txn_last_id(struct gild_txn *txn, const char *name, uint64_t *last);

#endif
