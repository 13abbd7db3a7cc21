/* The catalogue over a key-value store (catalog.h).
 *
 * A record there is the 8-byte check, then the value; the check is XXH3-64 of the value, seeded by
 * XXH3-64 of the key, seeded by the table's number: a value that rots, or that a rotten page shows
 * under another key or in another table, does not verify.
 *
 * Invariant: after one failure inside a write transaction the transaction can only fail: commit
 * gives the first error. After a commit that failed in the device no write begins any more (reads
 * go on).
 *
 * Threads: any but a reactor's.
 * Failure modes: -ENOSPC (map or file system full: the transaction is undone, the catalogue goes
 * on), -EBADMSG (a value's check), -EUCLEAN (the store's own structure), -EAGAIN (too many
 * readers), -EIO. */
#include "catalog/catalog.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/log.h"
#include "catalog/kv.h"

#define CHECK_BYTES 8u

static const char *const table_names[GILD_TABLE_COUNT] = {
    [GILD_TABLE_META] = "meta",         [GILD_TABLE_IMAGES] = "images",
    [GILD_TABLE_VERSIONS] = "versions", [GILD_TABLE_DESKTOPS] = "desktops",
    [GILD_TABLE_POOLS] = "pools",       [GILD_TABLE_DELTAS] = "deltas",
    [GILD_TABLE_DROPPED] = "dropped",   [GILD_TABLE_MAPS] = "maps",
    [GILD_TABLE_PACKS] = "packs",       [GILD_TABLE_SEGMENTS] = "segments",
    [GILD_TABLE_STREAMS] = "streams",   [GILD_TABLE_INTENTS] = "intents",
};

struct gild_catalog {
    struct gild_kv *kv;
    atomic_bool broken; /* a commit failed in the device: no more writes */
};

struct gild_txn {
    struct gild_catalog *catalog;
    struct gild_kv_txn *kv;
    bool write;
    int failed; /* first -errno of a write that can not be taken back */
};

static uint64_t check_of(enum gild_table table, const void *key, size_t key_length,
                         const void *value, size_t length) {
    XXH64_hash_t seed = XXH3_64bits_withSeed(key, key_length, (XXH64_hash_t)table);
    return XXH3_64bits_withSeed(value, length, seed);
}

/* Says which record is rotten; gives -EBADMSG. */
static int rotten(enum gild_table table, const void *key, size_t key_length) {
    char text[3 * 64 + 1];
    const unsigned char *bytes = key;
    size_t at = 0;
    for (size_t i = 0; i < key_length && i < 64; i++) {
        if (bytes[i] > ' ' && bytes[i] < 0x7f && bytes[i] != '\\')
            text[at++] = (char)bytes[i];
        else
            at += (size_t)snprintf(text + at, 4, "\\%02x", bytes[i]);
    }
    text[at] = 0;
    gild_log(GILD_LOG_ERROR,
             "catalogue: the record '%s' of table %s fails its check; run `gild store check`", text,
             table_names[table]);
    return -EBADMSG;
}

/* Verifies a stored record and strips the check. */
static int unwrap(enum gild_table table, const void *key, size_t key_length, const void *stored,
                  size_t stored_length, const void **value, size_t *length) {
    const unsigned char *bytes = stored;
    if (stored_length < CHECK_BYTES)
        return rotten(table, key, key_length);
    *value = bytes + CHECK_BYTES;
    *length = stored_length - CHECK_BYTES;
    if (gild_get_le64(bytes) != check_of(table, key, key_length, *value, *length))
        return rotten(table, key, key_length);
    return 0;
}

static int intact(void *context, const void *key, size_t key_length, const void *stored,
                  size_t stored_length) {
    const void *value;
    size_t length;
    return unwrap(*(unsigned *)context, key, key_length, stored, stored_length, &value, &length);
}

static const struct gild_kv_schema schema = {table_names, GILD_TABLE_COUNT, intact};

/* ---- life ------------------------------------------------------------------------------------ */

uint64_t gild_catalog_used_bytes(struct gild_catalog *catalog) {
    return gild_kv_used_bytes(catalog->kv);
}

int gild_catalog_open(struct gild_catalog **out, const char *folder, uint64_t map_bytes,
                      struct gild_error *error) {
    struct gild_catalog *catalog = calloc(1, sizeof *catalog);
    *out = NULL;
    if (!catalog)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the catalogue in %s", folder);
    int result = gild_kv_open(&catalog->kv, folder, &schema, map_bytes, error);
    if (result) {
        free(catalog);
        return result;
    }
    *out = catalog;
    return 0;
}

void gild_catalog_close(struct gild_catalog *catalog) {
    if (!catalog)
        return;
    gild_kv_close(catalog->kv);
    free(catalog);
}

/* ---- transactions ---------------------------------------------------------------------------- */

int gild_txn_begin(struct gild_catalog *catalog, bool write, struct gild_txn **out) {
    *out = NULL;
    if (write && atomic_load(&catalog->broken))
        return -EIO;
    struct gild_txn *txn = calloc(1, sizeof *txn);
    if (!txn)
        return -ENOMEM;
    txn->catalog = catalog;
    txn->write = write;
    int result = gild_kv_begin(catalog->kv, write, &txn->kv);
    if (result) {
        free(txn);
        return result;
    }
    *out = txn;
    return 0;
}

int gild_txn_commit(struct gild_txn *txn) {
    struct gild_catalog *catalog = txn->catalog;
    int result = txn->failed;
    if (result) {
        gild_kv_abort(txn->kv);
    } else {
        result = gild_kv_commit(txn->kv);
        /* It is undone; but whether the device still takes writes is not known (D5). */
        if (txn->write && result && result != -ENOSPC && result != -EDQUOT && result != -ENOMEM) {
            atomic_store(&catalog->broken, true);
            gild_log(GILD_LOG_ERROR,
                     "catalogue: a commit failed (%s); no more changes until the store is opened "
                     "again",
                     strerror(-result));
        }
    }
    free(txn);
    return result;
}

void gild_txn_abort(struct gild_txn *txn) {
    if (!txn)
        return;
    gild_kv_abort(txn->kv);
    free(txn);
}

/* After most errors a write transaction is spoilt: what follows must not look like other trouble
 * than the first. */
static int write_failed(struct gild_txn *txn, int result) {
    if (result && result != -ENOENT && result != -EINVAL && !txn->failed)
        txn->failed = result;
    return result;
}

int gild_txn_peek(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                  const void **value, size_t *length) {
    const void *stored;
    size_t stored_length;
    if (txn->failed)
        return txn->failed;
    int result = gild_kv_get(txn->kv, table, key, key_length, &stored, &stored_length);
    return result ? result : unwrap(table, key, key_length, stored, stored_length, value, length);
}

int gild_txn_get(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                 void *value, size_t *length) {
    const void *stored;
    size_t room = *length, stored_length;
    int result = gild_txn_peek(txn, table, key, key_length, &stored, &stored_length);
    if (result)
        return result;
    *length = stored_length;
    if (stored_length > room)
        return -ENOBUFS;
    memcpy(value, stored, stored_length);
    return 0;
}

int gild_txn_put(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                 const void *value, size_t length) {
    void *room;
    if (!txn->write)
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    uint64_t check = check_of(table, key, key_length, value, length);
    int result = gild_kv_put(txn->kv, table, key, key_length, CHECK_BYTES + length, &room);
    if (result)
        return write_failed(txn, result);
    unsigned char *bytes = room;
    gild_put_le64(bytes, check);
    if (length)
        memcpy(bytes + CHECK_BYTES, value, length);
    return 0;
}

int gild_txn_delete(struct gild_txn *txn, enum gild_table table, const void *key,
                    size_t key_length) {
    if (!txn->write)
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    return write_failed(txn, gild_kv_delete(txn->kv, table, key, key_length));
}

struct scan {
    enum gild_table table;
    gild_txn_visit *visit;
    void *context;
};

static int scan_record(void *context, const void *key, size_t key_length, const void *stored,
                       size_t stored_length) {
    struct scan *scan = context;
    const void *value;
    size_t length;
    int result = unwrap(scan->table, key, key_length, stored, stored_length, &value, &length);
    return result ? result : scan->visit(scan->context, key, key_length, value, length);
}

int gild_txn_scan(struct gild_txn *txn, enum gild_table table, const void *from, size_t from_length,
                  gild_txn_visit *visit, void *context) {
    struct scan scan = {table, visit, context};
    if (txn->failed)
        return txn->failed;
    return gild_kv_scan(txn->kv, table, from, from_length, scan_record, &scan);
}

int gild_txn_count(struct gild_txn *txn, enum gild_table table, uint64_t *count) {
    if (txn->failed)
        return txn->failed;
    return gild_kv_count(txn->kv, table, count);
}
