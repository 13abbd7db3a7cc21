/* The catalogue over LMDB (catalog.h; lmdb.h 0.9.24 is the manual that this follows).
 *
 * One environment, one named database per table. A value on disk is the 8-byte check, then the
 * record; the check is XXH3-64 of the record, seeded by XXH3-64 of the key, seeded by the table's
 * number: a value that rots, or that a rotten page shows under another key or in another table,
 * does not verify.
 *
 * Invariants
 *  - LMDB syncs before and with each commit (no MDB_NOSYNC, no MDB_NOMETASYNC).
 *  - The data file is never shorter than what the newest root reaches: LMDB reads it through a
 *    memory map, and a page past the end of a file is SIGBUS, not an error.
 *  - Some space past the used end is allocated ahead, so that deletes and checkpoints still commit
 *    when the host's file system is full.
 *  - After one failure inside a write transaction the transaction can only fail: commit gives the
 *    first error. After a commit that failed in the device no write begins any more (reads go on).
 *
 * Threads: any but a reactor's. LMDB excludes writers from each other; readers take a slot each
 * (MDB_NOTLS: a slot belongs to the transaction, not to the thread).
 * Failure modes: -ENOSPC (map or file system full: the transaction is undone, the catalogue goes
 * on), -EBADMSG (a value's check), -EUCLEAN (LMDB's own structure), -EAGAIN (too many readers),
 * -EIO. */
#include "catalog/catalog.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/log.h"

#define CHECK_BYTES 8u
#define KEY_MAX_BYTES 511u
#define READERS_MAX 1024u
#define AHEAD_BYTES (4u << 20)
/* The value of a counter, in meta under "next:NAME". */

static const char *const table_names[GILD_TABLE_COUNT] = {
    [GILD_TABLE_META] = "meta",         [GILD_TABLE_IMAGES] = "images",
    [GILD_TABLE_VERSIONS] = "versions", [GILD_TABLE_DESKTOPS] = "desktops",
    [GILD_TABLE_POOLS] = "pools",       [GILD_TABLE_DELTAS] = "deltas",
    [GILD_TABLE_DROPPED] = "dropped",   [GILD_TABLE_MAPS] = "maps",
    [GILD_TABLE_PACKS] = "packs",       [GILD_TABLE_SEGMENTS] = "segments",
    [GILD_TABLE_STREAMS] = "streams",   [GILD_TABLE_INTENTS] = "intents",
};

struct gild_catalog {
    MDB_env *env;
    MDB_dbi tables[GILD_TABLE_COUNT];
    uint64_t map_bytes;
    uint32_t page_bytes;
    atomic_bool broken;        /* a commit failed in the device: no more writes */
    pthread_mutex_t size_lock; /* protects file_bytes and the growing of the file */
    uint64_t file_bytes;
};

struct gild_txn {
    struct gild_catalog *catalog;
    MDB_txn *txn;
    bool write;
    int failed; /* first -errno of a write that LMDB can not take back */
};

static int errno_of(int rc) {
    switch (rc) {
    case MDB_SUCCESS:
        return 0;
    case MDB_NOTFOUND:
        return -ENOENT;
    case MDB_MAP_FULL:
        return -ENOSPC;
    case MDB_READERS_FULL:
        return -EAGAIN;
    case MDB_TXN_FULL:
        return -E2BIG;
    case MDB_BAD_VALSIZE:
        return -EINVAL;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
        return -EUCLEAN;
    default:
        return rc > 0 ? -rc : -EIO;
    }
}

/* The sentence for a failed open; gives the -errno. */
static int open_failed(struct gild_error *error, const char *folder, int rc) {
    int result = errno_of(rc);
    switch (rc) {
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
        return gild_fail(
            error, GILD_CORRUPT, -result,
            "the catalogue %s/data.mdb is damaged (%s); restore the store from a backup", folder,
            mdb_strerror(rc));
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
        return gild_fail(error, GILD_CORRUPT, -result,
                         "the catalogue %s/data.mdb was written by another version of LMDB; open "
                         "the store on the machine that wrote it",
                         folder);
    default:
        return gild_fail(error, gild_code_of_errno(result), -result,
                         "can not open the catalogue in %s: %s", folder, strerror(-result));
    }
}

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

/* Verifies a stored value and strips the check. */
static int unwrap(enum gild_table table, const MDB_val *key, const MDB_val *stored,
                  const void **value, size_t *length) {
    const unsigned char *bytes = stored->mv_data;
    if (stored->mv_size < CHECK_BYTES)
        return rotten(table, key->mv_data, key->mv_size);
    *value = bytes + CHECK_BYTES;
    *length = stored->mv_size - CHECK_BYTES;
    if (gild_get_le64(bytes) != check_of(table, key->mv_data, key->mv_size, *value, *length))
        return rotten(table, key->mv_data, key->mv_size);
    return 0;
}

/* ---- the environment ------------------------------------------------------------------------- */

uint64_t gild_catalog_used_bytes(struct gild_catalog *catalog) {
    MDB_envinfo info;
    mdb_env_info(catalog->env, &info);
    return ((uint64_t)info.me_last_pgno + 1) * catalog->page_bytes;
}

/* Keeps the file as long as what is used, and some space allocated past that. */
static void reserve_ahead(struct gild_catalog *catalog) {
    mdb_filehandle_t fd;
    uint64_t used = gild_catalog_used_bytes(catalog);
    pthread_mutex_lock(&catalog->size_lock);
    if (used + AHEAD_BYTES / 2 > catalog->file_bytes && catalog->file_bytes < catalog->map_bytes &&
        mdb_env_get_fd(catalog->env, &fd) == 0) {
        uint64_t wanted = gild_min_u64(used + AHEAD_BYTES, catalog->map_bytes);
        if (fallocate(fd, 0, 0, (off_t)wanted) == 0)
            catalog->file_bytes = wanted;
        else if (used > catalog->file_bytes && ftruncate(fd, (off_t)used) == 0)
            catalog->file_bytes = used;
    }
    pthread_mutex_unlock(&catalog->size_lock);
}

/* Opens every table in one transaction; -ENOENT if one is missing and `create` is false. */
static int open_tables(struct gild_catalog *catalog, bool create) {
    MDB_txn *txn;
    int rc = mdb_txn_begin(catalog->env, NULL, create ? 0 : MDB_RDONLY, &txn);
    if (rc)
        return rc;
    for (unsigned i = 0; i < GILD_TABLE_COUNT; i++) {
        rc = mdb_dbi_open(txn, table_names[i], create ? MDB_CREATE : 0, &catalog->tables[i]);
        if (rc) {
            mdb_txn_abort(txn);
            return rc;
        }
    }
    return mdb_txn_commit(txn);
}

static int ignore_record(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    (void)context, (void)key, (void)key_length, (void)value, (void)length;
    return 0;
}

/* Walks every record of every table. */
static int walk_all(struct gild_catalog *catalog) {
    struct gild_txn *txn;
    int result = gild_txn_begin(catalog, false, &txn);
    if (result)
        return result;
    for (unsigned i = 0; i < GILD_TABLE_COUNT && result == 0; i++)
        result = gild_txn_scan(txn, (enum gild_table)i, NULL, 0, ignore_record, NULL);
    gild_txn_abort(txn);
    return result;
}

/* A data file that ends before the last used page: the crash of a commit may leave such a file
 * (pages at the end that were used and freed again are never written), and so may a copy that was
 * cut off. It is made long enough with zeroes, so that no access can fault; if then a record is
 * missing or its page is zeroes, the file gets its old length back and the catalogue is refused. */
static int open_short(struct gild_catalog *catalog, const char *folder, int fd, uint64_t have,
                      struct gild_error *error) {
    uint64_t used = gild_catalog_used_bytes(catalog);
    if (ftruncate(fd, (off_t)used))
        return open_failed(error, folder, errno);
    int rc = open_tables(catalog, false);
    int result = rc ? errno_of(rc) : walk_all(catalog);
    if (result == 0)
        return 0;
    if (ftruncate(fd, (off_t)have))
        gild_log(GILD_LOG_WARN, "%s/data.mdb: can not restore its length: %s", folder,
                 strerror(errno));
    return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                     "the catalogue %s/data.mdb is cut off: %" PRIu64 " bytes of %" PRIu64
                     "; restore the store from a backup",
                     folder, have, used);
}

/* A new data file is only there after a crash if its folder's entry is durable too. */
static int sync_folder(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int rc = fsync(fd) ? errno : 0;
    close(fd);
    return rc;
}

/* Everything of open that can fail once the environment handle is there. */
static int open_environment(struct gild_catalog *catalog, const char *folder,
                            struct gild_error *error) {
    MDB_env *env = catalog->env;
    MDB_stat stat_of_main;
    mdb_filehandle_t fd;
    struct stat file;
    int dead, rc;
    if ((rc = mdb_env_set_mapsize(env, catalog->map_bytes)) ||
        (rc = mdb_env_set_maxdbs(env, GILD_TABLE_COUNT)) ||
        (rc = mdb_env_set_maxreaders(env, READERS_MAX)) ||
        (rc = mdb_env_open(env, folder, MDB_NOTLS | MDB_NORDAHEAD, 0600)) ||
        (rc = mdb_reader_check(env, &dead)) || (rc = mdb_env_stat(env, &stat_of_main)) ||
        (rc = mdb_env_get_fd(env, &fd)) || (rc = fstat(fd, &file) ? errno : 0))
        return open_failed(error, folder, rc);
    catalog->page_bytes = stat_of_main.ms_psize;
    catalog->file_bytes = (uint64_t)file.st_size;
    if (stat_of_main.ms_entries != 0 && catalog->file_bytes < gild_catalog_used_bytes(catalog)) {
        int result = open_short(catalog, folder, fd, catalog->file_bytes, error);
        if (result)
            return result;
        catalog->file_bytes = gild_catalog_used_bytes(catalog);
    } else {
        rc = open_tables(catalog, false);
        if (rc == MDB_NOTFOUND && !(rc = open_tables(catalog, true)))
            rc = sync_folder(folder);
        if (rc)
            return open_failed(error, folder, rc);
    }
    reserve_ahead(catalog);
    return 0;
}

int gild_catalog_open(struct gild_catalog **out, const char *folder, uint64_t map_bytes,
                      struct gild_error *error) {
    struct gild_catalog *catalog = calloc(1, sizeof *catalog);
    *out = NULL;
    if (!catalog)
        return open_failed(error, folder, ENOMEM);
    catalog->map_bytes = gild_align_up(map_bytes, 64u << 10);
    pthread_mutex_init(&catalog->size_lock, NULL);
    int rc = mdb_env_create(&catalog->env);
    int result = rc ? open_failed(error, folder, rc) : open_environment(catalog, folder, error);
    if (result) {
        gild_catalog_close(catalog);
        return result;
    }
    *out = catalog;
    return 0;
}

void gild_catalog_close(struct gild_catalog *catalog) {
    if (!catalog)
        return;
    if (catalog->env)
        mdb_env_close(catalog->env);
    pthread_mutex_destroy(&catalog->size_lock);
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
    int result = errno_of(mdb_txn_begin(catalog->env, NULL, write ? 0 : MDB_RDONLY, &txn->txn));
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
        mdb_txn_abort(txn->txn);
    } else {
        result = errno_of(mdb_txn_commit(txn->txn));
        if (txn->write && result == 0)
            reserve_ahead(catalog);
        /* LMDB has undone it; but whether the device still takes writes is not known (D5). */
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
    mdb_txn_abort(txn->txn);
    free(txn);
}

/* LMDB marks a write transaction as bad after most errors: what follows must not look like other
 * trouble than the first. */
static int write_failed(struct gild_txn *txn, int rc) {
    int result = errno_of(rc);
    if (result && result != -ENOENT && result != -EINVAL && !txn->failed)
        txn->failed = result;
    return result;
}

/* LMDB does not write to keys that it is given: its struct just has no const. */
static MDB_val borrow(const void *data, size_t length) {
    union {
        const void *in;
        void *out;
    } pointer = {.in = data};
    return (MDB_val){.mv_size = length, .mv_data = pointer.out};
}

static bool key_fits(size_t key_length) {
    return key_length > 0 && key_length <= KEY_MAX_BYTES;
}

int gild_txn_peek(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                  const void **value, size_t *length) {
    MDB_val name = borrow(key, key_length), stored;
    if (!key_fits(key_length))
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    int rc = mdb_get(txn->txn, txn->catalog->tables[table], &name, &stored);
    return rc ? errno_of(rc) : unwrap(table, &name, &stored, value, length);
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
    MDB_val name = borrow(key, key_length), room = {.mv_size = CHECK_BYTES + length};
    if (!key_fits(key_length) || !txn->write || length > UINT32_MAX - CHECK_BYTES)
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    uint64_t check = check_of(table, key, key_length, value, length);
    int rc = mdb_put(txn->txn, txn->catalog->tables[table], &name, &room, MDB_RESERVE);
    if (rc)
        return write_failed(txn, rc);
    unsigned char *bytes = room.mv_data;
    gild_put_le64(bytes, check);
    if (length)
        memcpy(bytes + CHECK_BYTES, value, length);
    return 0;
}

int gild_txn_delete(struct gild_txn *txn, enum gild_table table, const void *key,
                    size_t key_length) {
    MDB_val name = borrow(key, key_length);
    if (!key_fits(key_length) || !txn->write)
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    return write_failed(txn, mdb_del(txn->txn, txn->catalog->tables[table], &name, NULL));
}

int gild_txn_scan(struct gild_txn *txn, enum gild_table table, const void *from, size_t from_length,
                  gild_txn_visit *visit, void *context) {
    MDB_cursor *cursor;
    MDB_val key = borrow(from, from_length), stored;
    const void *value = NULL;
    size_t length = 0;
    if (txn->failed)
        return txn->failed;
    int rc = mdb_cursor_open(txn->txn, txn->catalog->tables[table], &cursor);
    if (rc)
        return write_failed(txn, rc);
    int result = 0;
    bool all = !from || !from_length;
    rc = mdb_cursor_get(cursor, &key, &stored, all ? MDB_FIRST : MDB_SET_RANGE);
    while (rc == 0 && result == 0) {
        result = unwrap(table, &key, &stored, &value, &length);
        if (result == 0)
            result = visit(context, key.mv_data, key.mv_size, value, length);
        if (result == 0)
            rc = mdb_cursor_get(cursor, &key, &stored, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (result == 0 && rc != MDB_NOTFOUND)
        result = errno_of(rc);
    return result;
}

int gild_txn_count(struct gild_txn *txn, enum gild_table table, uint64_t *count) {
    MDB_stat stat_of_table;
    if (txn->failed)
        return txn->failed;
    int rc = mdb_stat(txn->txn, txn->catalog->tables[table], &stat_of_table);
    if (rc)
        return errno_of(rc);
    *count = stat_of_table.ms_entries;
    return 0;
}
