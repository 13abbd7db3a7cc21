/* The catalogue over a key-value store (catalog.h).
 *
 * A record there is the 8-byte check, then the value; the check is XXH3-64 of the value, seeded by
 * XXH3-64 of the key, seeded by the table's number: a value that rots, or that a rotten page shows
 * under another key or in another table, does not verify.
 *
 * With a journal, a transaction is in it, durably, before the key-value store commits it; the
 * counter "transaction" ties the two together (journal.h).
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
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/log.h"
#include "catalog/journal.h"
#include "catalog/kv.h"
#include "io/file.h"

#define CHECK_BYTES 8u
#define TRANSACTION "transaction" /* the counter of journaled transactions */
#define LOST "transactions-lost"  /* the intent that a rebuild leaves to the repair */
#define LOST_BYTES 8u

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
    atomic_bool broken;   /* a commit failed in the device: no more writes */
    char *journal_folder; /* NULL: no journal is kept */
    uint8_t note[GILD_JOURNAL_NOTE_BYTES];
    pthread_mutex_t journal_lock; /* from a record's append to its acceptance; protects the rest */
    struct gild_journal *journal; /* NULL until something is written */
    uint64_t in_doubt;            /* records behind ours: the next number is above theirs */
    bool complained;              /* of a roll that failed */
};

struct gild_txn {
    struct gild_catalog *catalog;
    struct gild_kv_txn *kv;
    bool write;
    int failed;                  /* first -errno of a write that can not be taken back */
    struct gild_changes changes; /* what it has written, if there is a journal */
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
static int strip(enum gild_table table, const void *key, size_t key_length, const void *stored,
                 size_t stored_length, const void **value, size_t *length) {
    const unsigned char *bytes = stored;
    if (stored_length < CHECK_BYTES)
        return -EBADMSG;
    *value = bytes + CHECK_BYTES;
    *length = stored_length - CHECK_BYTES;
    bool fits = gild_get_le64(bytes) == check_of(table, key, key_length, *value, *length);
    return fits ? 0 : -EBADMSG;
}

/* The same, and says which one is rotten. */
static int unwrap(enum gild_table table, const void *key, size_t key_length, const void *stored,
                  size_t stored_length, const void **value, size_t *length) {
    int result = strip(table, key, key_length, stored, stored_length, value, length);
    return result ? rotten(table, key, key_length) : 0;
}

static int intact(void *context, const void *key, size_t key_length, const void *stored,
                  size_t stored_length) {
    const void *value;
    size_t length;
    return strip(*(unsigned *)context, key, key_length, stored, stored_length, &value, &length);
}

static const struct gild_kv_schema schema = {table_names, GILD_TABLE_COUNT, intact};

/* Not merely refused: what the device has of it is not known. */
static bool in_device(int result) {
    return result && result != -ENOSPC && result != -EDQUOT && result != -ENOMEM &&
           result != -E2BIG;
}

/* ---- the catalogue beside its journal -------------------------------------------------------- */

/* What a catalogue holds: one number for all of it, and as of which transaction. */
struct sum {
    uint64_t digest, records, transaction;
};

static void sum_add(struct sum *sum, unsigned table, const void *key, size_t key_length,
                    const void *value, size_t length) {
    uint64_t seed = XXH3_64bits_withSeed(key, key_length, sum->digest + table);
    sum->digest = XXH3_64bits_withSeed(value, length, seed);
    sum->records++;
}

struct look {
    struct sum *sum;
    struct gild_kv_txn *kv;
    unsigned table;
};

/* A walk goes from leaf to leaf: what a garbled key above them leads astray is a search. */
static int is_found(struct gild_kv_txn *kv, unsigned table, const void *key, size_t key_length,
                    const void *stored) {
    const void *found;
    size_t length;
    int result = gild_kv_get(kv, table, key, key_length, &found, &length);
    return result == -ENOENT || (!result && found != stored) ? -EUCLEAN : result;
}

static int look_at(void *context, const void *key, size_t key_length, const void *stored,
                   size_t stored_length) {
    struct look *look = context;
    const void *value;
    size_t length;
    int result = strip(look->table, key, key_length, stored, stored_length, &value, &length);
    if (result == 0)
        result = is_found(look->kv, look->table, key, key_length, stored);
    if (result == 0)
        sum_add(look->sum, look->table, key, key_length, value, length);
    return result;
}

/* In the probe's process: no locks, no log. */
static int look_at_all(void *context, struct gild_kv_txn *kv, void *report) {
    struct look look = {.sum = report, .kv = kv};
    struct gild_txn txn = {.kv = kv};
    int result = 0;
    (void)context;
    *look.sum = (struct sum){0};
    for (; look.table < GILD_TABLE_COUNT && result == 0; look.table++) {
        uint64_t before = look.sum->records, count = 0;
        result = gild_kv_scan(kv, look.table, NULL, 0, look_at, &look);
        if (!result)
            result = gild_kv_count(kv, look.table, &count);
        if (!result && count != look.sum->records - before)
            result = -EUCLEAN;
    }
    return result ? result : gild_txn_last_id(&txn, TRANSACTION, &look.sum->transaction);
}

static struct sum sum_of(const struct gild_journal_contents *contents) {
    struct sum sum = {.transaction = contents->number};
    for (size_t i = 0; i < contents->count; i++) {
        const struct gild_journal_entry *entry = &contents->entries[i];
        sum_add(&sum, entry->table, entry->key, entry->key_length, entry->value, entry->length);
    }
    return sum;
}

static int damaged(struct gild_error *error, const char *folder, const char *how) {
    return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                     "the catalogue %s %s: run `gild store check --repair`; nothing was changed",
                     folder, how);
}

/* A journal that can not be gone on with is no reason to refuse a catalogue that is whole. */
static void leave_journal(const char *folder, int why, struct gild_journal_contents *contents) {
    gild_log(GILD_LOG_WARN, "the journal %s is damaged (%s): a new one is begun", folder,
             strerror(-why));
    gild_journal_contents_free(contents);
}

/* The sum is of the catalogue, which is whole. contents->bytes stays NULL if a new journal is to be
 * begun. */
static int compare_journal(const char *folder, const char *journal, const struct sum *sum,
                           struct gild_journal_contents *contents, struct gild_error *error) {
    int result = gild_journal_read(journal, sum->transaction, contents);
    bool older = contents->base > sum->transaction || contents->seen > sum->transaction + 1;
    if ((result == 0 || result == -EBADMSG) && older) {
        gild_journal_contents_free(contents);
        return damaged(error, folder, "is older than its journal");
    }
    if (result == -ENOENT)
        return 0; /* a store from before there was one, or it was deleted */
    if (result == -EBADMSG || (result == 0 && contents->number < sum->transaction)) {
        leave_journal(journal, -EBADMSG, contents);
        return 0;
    }
    if (result)
        return gild_fail(error, gild_code_of_errno(-result), -result,
                         "the journal %s can not be read: %s", journal, strerror(-result));
    struct sum told = sum_of(contents);
    if (told.digest == sum->digest && told.records == sum->records)
        return 0;
    gild_journal_contents_free(contents);
    return damaged(error, folder, "has lost records that its journal has");
}

/* Free contents in any case. */
static int verify(const char *folder, const struct gild_catalog_options *options,
                  struct gild_journal_contents *contents, struct gild_error *error) {
    struct sum sum = {0};
    *contents = (struct gild_journal_contents){0};
    int there = gild_kv_exists(folder);
    if (there < 0)
        return gild_fail(error, gild_code_of_errno(-there), -there,
                         "the catalogue %s can not be read: %s", folder, strerror(-there));
    if (!there) {
        int result = gild_journal_read(options->journal, UINT64_MAX, contents);
        gild_journal_contents_free(contents);
        return result == -ENOENT ? 0 : damaged(error, folder, "is missing or empty");
    }
    int result =
        gild_kv_probe(folder, &schema, options->map_bytes, look_at_all, NULL, &sum, sizeof sum);
    if (result == -EUCLEAN || result == -EBADMSG || result == -ENOENT)
        return damaged(error, folder, "is damaged");
    if (result)
        return gild_fail(error, gild_code_of_errno(-result), -result,
                         "the catalogue %s can not be read: %s", folder, strerror(-result));
    return compare_journal(folder, options->journal, &sum, contents, error);
}

int gild_catalog_verify(const char *folder, const struct gild_catalog_options *options,
                        struct gild_error *error) {
    struct gild_journal_contents contents;
    int result = verify(folder, options, &contents, error);
    gild_journal_contents_free(&contents);
    return result;
}

int gild_catalog_read_note(const char *journal, uint8_t note[GILD_CATALOG_NOTE_BYTES]) {
    struct gild_journal_contents contents;
    int result = gild_journal_read(journal, UINT64_MAX, &contents);
    memcpy(note, contents.note, GILD_CATALOG_NOTE_BYTES);
    gild_journal_contents_free(&contents);
    return result;
}

/* ---- life ------------------------------------------------------------------------------------ */

uint64_t gild_catalog_used_bytes(struct gild_catalog *catalog) {
    return gild_kv_used_bytes(catalog->kv);
}

static int keep_journal(struct gild_catalog *catalog, const struct gild_catalog_options *options,
                        const struct gild_journal_contents *contents) {
    catalog->journal_folder = strdup(options->journal);
    if (!catalog->journal_folder)
        return -ENOMEM;
    if (options->note)
        memcpy(catalog->note, options->note, sizeof catalog->note);
    return contents->bytes
               ? gild_journal_open(&catalog->journal, options->journal, catalog->note, contents)
               : 0;
}

/* Puts and deletes what the journal tells, but for tables that this version does not know. */
static int put_entries(struct gild_txn *txn, const struct gild_journal_entry *entries,
                       size_t count) {
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++) {
        const struct gild_journal_entry *entry = &entries[i];
        if (entry->table >= GILD_TABLE_COUNT)
            result = -ENOTSUP;
        else if (entry->value)
            result = gild_txn_put(txn, entry->table, entry->key, entry->key_length, entry->value,
                                  entry->length);
        else
            result = gild_txn_delete(txn, entry->table, entry->key, entry->key_length);
    }
    return result;
}

/* In one transaction, with what the journal has lost. */
static int commit_entries(struct gild_catalog *catalog, const struct gild_journal_contents *from,
                          const uint8_t lost[LOST_BYTES]) {
    struct gild_txn *txn;
    int result = gild_txn_begin(catalog, true, &txn);
    if (result)
        return result;
    result = put_entries(txn, from->entries, from->count);
    if (!result && lost)
        result = gild_txn_put(txn, GILD_TABLE_INTENTS, LOST, strlen(LOST), lost, LOST_BYTES);
    if (result) {
        gild_txn_abort(txn);
        return result;
    }
    return gild_txn_commit(txn);
}

int gild_catalog_open(struct gild_catalog **out, const char *folder,
                      const struct gild_catalog_options *options, struct gild_error *error) {
    struct gild_journal_contents contents = {0};
    *out = NULL;
    struct gild_catalog *catalog = calloc(1, sizeof *catalog);
    if (!catalog)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the catalogue in %s", folder);
    pthread_mutex_init(&catalog->journal_lock, NULL);
    int result = options->journal ? verify(folder, options, &contents, error) : 0;
    if (!result)
        result = gild_kv_open(&catalog->kv, folder, &schema, options->map_bytes, error);
    if (!result && options->journal) {
        result = keep_journal(catalog, options, &contents);
        catalog->in_doubt = contents.last - contents.number;
        if (result)
            gild_fail(error, gild_code_of_errno(-result), -result,
                      "the journal %s can not be gone on with: %s", options->journal,
                      strerror(-result));
    }
    gild_journal_contents_free(&contents);
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
    gild_kv_close(catalog->kv);
    gild_journal_close(catalog->journal);
    pthread_mutex_destroy(&catalog->journal_lock);
    free(catalog->journal_folder);
    free(catalog);
}

/* Once the catalogue stands again: a journal that begins with it, so that nothing of what was
 * damaged in the old one is met again. */
static int begin_anew(const struct gild_catalog_options *options,
                      const struct gild_journal_contents *contents,
                      const uint8_t lost[LOST_BYTES]) {
    struct gild_changes dump = {0};
    struct gild_journal *journal;
    int result = gild_journal_open(&journal, options->journal, options->note, NULL);
    if (result)
        return result;
    for (size_t i = 0; i < contents->count; i++) {
        const struct gild_journal_entry *entry = &contents->entries[i];
        gild_changes_add(&dump, entry->table, entry->key, entry->key_length, entry->value,
                         entry->length);
    }
    if (lost)
        gild_changes_add(&dump, GILD_TABLE_INTENTS, LOST, strlen(LOST), lost, LOST_BYTES);
    result = dump.failed ? dump.failed : gild_journal_roll(journal, contents->number, &dump);
    gild_changes_free(&dump);
    gild_journal_close(journal);
    return result;
}

int gild_catalog_rebuild(const char *folder, const struct gild_catalog_options *options,
                         struct gild_catalog_rebuilt *rebuilt, struct gild_error *error) {
    struct gild_journal_contents contents;
    const struct gild_catalog_options bare = {.map_bytes = options->map_bytes};
    struct gild_catalog *catalog = NULL;
    uint8_t lost[LOST_BYTES];
    int result = gild_journal_read(options->journal, UINT64_MAX, &contents);
    if (result) {
        gild_journal_contents_free(&contents);
        return gild_fail(error, GILD_CORRUPT, -result,
                         "the catalogue %s can not be made again, its journal %s is lost too (%s): "
                         "restore the store from a backup",
                         folder, options->journal, strerror(-result));
    }
    *rebuilt = (struct gild_catalog_rebuilt){
        .records = contents.count,
        .transaction = contents.number,
        .lost = contents.seen > contents.number ? contents.seen - contents.number : 0,
    };
    /* The new journal knows nothing of it: should the power go, the catalogue must. */
    gild_put_le64(lost, rebuilt->lost);
    result = gild_kv_set_aside(folder);
    if (!result)
        result = gild_catalog_open(&catalog, folder, &bare, NULL);
    if (!result)
        result = commit_entries(catalog, &contents, rebuilt->lost ? lost : NULL);
    gild_catalog_close(catalog);
    if (!result)
        result = begin_anew(options, &contents, rebuilt->lost ? lost : NULL);
    gild_journal_contents_free(&contents);
    return result
               ? gild_fail(error, gild_code_of_errno(-result), -result,
                           "the catalogue %s can not be made again: %s", folder, strerror(-result))
               : 0;
}

int gild_catalog_lost(struct gild_catalog *catalog, uint64_t *transactions) {
    uint8_t lost[LOST_BYTES] = {0};
    size_t length = sizeof lost;
    struct gild_txn *txn;
    int result = gild_txn_begin(catalog, false, &txn);
    if (result)
        return result;
    result = gild_txn_get(txn, GILD_TABLE_INTENTS, LOST, strlen(LOST), lost, &length);
    gild_txn_abort(txn);
    *transactions = result ? 0 : gild_get_le64(lost);
    return result == -ENOENT ? 0 : result;
}

int gild_catalog_lost_settled(struct gild_catalog *catalog) {
    struct gild_txn *txn;
    int result = gild_txn_begin(catalog, true, &txn);
    if (result)
        return result;
    result = gild_txn_delete(txn, GILD_TABLE_INTENTS, LOST, strlen(LOST));
    if (!result)
        return gild_txn_commit(txn);
    gild_txn_abort(txn);
    return result == -ENOENT ? 0 : result;
}

/* ---- the journal of a transaction ------------------------------------------------------------ */

struct dump {
    struct gild_changes changes;
    unsigned table;
};

static int dump_record(void *context, const void *key, size_t key_length, const void *stored,
                       size_t stored_length) {
    struct dump *dump = context;
    const void *value;
    size_t length;
    int result = unwrap(dump->table, key, key_length, stored, stored_length, &value, &length);
    if (result == 0)
        gild_changes_add(&dump->changes, dump->table, key, key_length, value, length);
    return result ? result : dump->changes.failed;
}

/* A new file, with the catalogue as last committed. */
static int roll(struct gild_catalog *catalog, uint64_t transaction) {
    struct dump dump = {0};
    struct gild_kv_txn *txn;
    int result = gild_kv_begin(catalog->kv, false, &txn);
    if (result)
        return result;
    for (; dump.table < GILD_TABLE_COUNT && result == 0; dump.table++)
        result = gild_kv_scan(txn, dump.table, NULL, 0, dump_record, &dump);
    gild_kv_abort(txn);
    if (result == 0)
        result = gild_journal_roll(catalog->journal, transaction, &dump.changes);
    gild_changes_free(&dump.changes);
    return result;
}

/* Lock held: the journal is there and has a file to append to. */
static int ready_journal(struct gild_catalog *catalog, uint64_t transaction) {
    int result = 0;
    if (!catalog->journal) {
        result = gild_file_make_folder(catalog->journal_folder);
        if (!result)
            result =
                gild_journal_open(&catalog->journal, catalog->journal_folder, catalog->note, NULL);
        if (result)
            return result;
    }
    if (!gild_journal_should_roll(catalog->journal) || catalog->in_doubt)
        return 0;
    result = roll(catalog, transaction - 1);
    if (!result || gild_journal_must_roll(catalog->journal) ||
        (result != -ENOSPC && result != -EDQUOT && result != -ENOMEM)) {
        catalog->complained = false;
        return result;
    }
    if (!catalog->complained)
        gild_log(GILD_LOG_WARN, "the catalogue's journal can not be begun anew (%s): it grows on",
                 strerror(-result));
    catalog->complained = true;
    return 0;
}

/* Whether the device still takes writes is not known (D5). */
static void fail_stop(struct gild_catalog *catalog, int result) {
    atomic_store(&catalog->broken, true);
    gild_log(GILD_LOG_ERROR,
             "catalogue: a commit failed (%s); no more changes until the store is opened again",
             strerror(-result));
}

/* What is not taken back may be found, if all that is left one day is the journal: then it must not
 * look like a plain refusal. */
static int take_back(struct gild_catalog *catalog, int refused) {
    int failed = gild_journal_retract(catalog->journal);
    return !failed ? refused : in_device(failed) ? failed : -EIO;
}

/* First in the journal, then in the key-value store. Takes the kv transaction in any case. */
static int commit_journaled(struct gild_txn *txn) {
    struct gild_catalog *catalog = txn->catalog;
    uint64_t transaction;
    pthread_mutex_lock(&catalog->journal_lock);
    int result = gild_txn_next_id(txn, TRANSACTION, 1 + catalog->in_doubt, &transaction);
    transaction += catalog->in_doubt;
    if (!result && atomic_load(&catalog->broken))
        result = -EIO;
    if (!result)
        result = ready_journal(catalog, transaction);
    if (!result)
        result = gild_journal_append(catalog->journal, transaction, &txn->changes);
    if (result) {
        gild_kv_abort(txn->kv);
    } else {
        result = gild_kv_commit(txn->kv);
        if (!result) {
            gild_journal_accept(catalog->journal);
            catalog->in_doubt = 0;
        } else if (!in_device(result)) /* undone; after trouble in the device, both may be found */
            result = take_back(catalog, result);
    }
    if (in_device(result) && !atomic_load(&catalog->broken))
        fail_stop(catalog, result);
    pthread_mutex_unlock(&catalog->journal_lock);
    return result;
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

static void txn_free(struct gild_txn *txn) {
    gild_changes_free(&txn->changes);
    free(txn);
}

int gild_txn_commit(struct gild_txn *txn) {
    struct gild_catalog *catalog = txn->catalog;
    int result = txn->failed;
    if (result) {
        gild_kv_abort(txn->kv);
    } else if (txn->changes.count) {
        result = commit_journaled(txn);
    } else {
        result = gild_kv_commit(txn->kv);
        if (txn->write && in_device(result))
            fail_stop(catalog, result);
    }
    txn_free(txn);
    return result;
}

void gild_txn_abort(struct gild_txn *txn) {
    if (!txn)
        return;
    gild_kv_abort(txn->kv);
    txn_free(txn);
}

/* For the journal, if there is one. */
static int note_change(struct gild_txn *txn, enum gild_table table, const void *key,
                       size_t key_length, const void *value, size_t length) {
    if (!txn->catalog->journal_folder)
        return 0;
    gild_changes_add(&txn->changes, table, key, key_length, value, length);
    return txn->changes.failed;
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
    return write_failed(txn, note_change(txn, table, key, key_length, value, length));
}

int gild_txn_delete(struct gild_txn *txn, enum gild_table table, const void *key,
                    size_t key_length) {
    if (!txn->write)
        return -EINVAL;
    if (txn->failed)
        return txn->failed;
    int result = gild_kv_delete(txn->kv, table, key, key_length);
    if (!result)
        result = note_change(txn, table, key, key_length, NULL, 0);
    return write_failed(txn, result);
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
