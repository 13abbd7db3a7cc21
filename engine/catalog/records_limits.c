/* The records of limits: the store's, and the quotas of pools and disks (docs/format-catalogue.md).
 *
 * A limit that is not set has no record, so a store that nobody limited looks as it always did.
 * Decoding is strict, as in records.c. Any thread; failure modes are the transaction's, and
 * -EUCLEAN for a record that is none. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "catalog/coder.h"
#include "catalog/records.h"

#define LIMITS_KEY "limits"
#define QUOTA_PREFIX "quota:"
#define DISK_PREFIX QUOTA_PREFIX "delta:"
#define POOL_PREFIX QUOTA_PREFIX "pool:"
#define QUOTA_KEY_BYTES (GILD_NAME_MAX + 24u)

size_t gild_rec_limits_encode(const struct gild_rec_limits *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_LIMITS);
    catalog_put_u8(&to, record->size_set);
    catalog_put_u64(&to, record->size_bytes);
    catalog_put_u8(&to, record->overcommit);
    catalog_put_u8(&to, record->warn_count);
    for (unsigned i = 0; i < record->warn_count && i < GILD_WARN_MAX; i++)
        catalog_put_u8(&to, record->warn[i]);
    return catalog_length(&to);
}

int gild_rec_limits_decode(struct gild_rec_limits *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_LIMITS);
    memset(record, 0, sizeof *record);
    record->size_set = catalog_get_enum(&from, 2);
    record->size_bytes = catalog_get_u64(&from);
    record->overcommit = catalog_get_enum(&from, GILD_OVERCOMMIT_COUNT);
    record->warn_count = catalog_get_enum(&from, GILD_WARN_MAX + 1);
    for (unsigned i = 0; i < record->warn_count; i++) {
        record->warn[i] = catalog_get_enum(&from, 100);
        if (record->warn[i] <= (i ? record->warn[i - 1] : 0))
            return -EUCLEAN;
    }
    return record->size_bytes && !record->size_set ? -EUCLEAN : catalog_end(&from);
}

size_t gild_rec_quota_encode(const struct gild_rec_quota *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_QUOTA);
    catalog_put_u64(&to, record->quota_bytes);
    catalog_put_u64(&to, record->desktop_bytes);
    return catalog_length(&to);
}

int gild_rec_quota_decode(struct gild_rec_quota *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_QUOTA);
    record->quota_bytes = catalog_get_u64(&from);
    record->desktop_bytes = catalog_get_u64(&from);
    return catalog_end(&from);
}

/* ---- by key ---------------------------------------------------------------------------------- */

static int forget(struct gild_txn *txn, const char *key) {
    int result = gild_txn_delete(txn, GILD_TABLE_META, key, strlen(key));
    return result == -ENOENT ? 0 : result;
}

int gild_rec_get_limits(struct gild_txn *txn, struct gild_rec_limits *record) {
    const void *value;
    size_t length;
    memset(record, 0, sizeof *record);
    int result =
        gild_txn_peek(txn, GILD_TABLE_META, LIMITS_KEY, strlen(LIMITS_KEY), &value, &length);
    if (result)
        return result == -ENOENT ? 0 : result;
    return gild_rec_limits_decode(record, value, length);
}

int gild_rec_put_limits(struct gild_txn *txn, const struct gild_rec_limits *record) {
    unsigned char value[64];
    if (!record->size_set && !record->overcommit && !record->warn_count)
        return forget(txn, LIMITS_KEY);
    return gild_txn_put(txn, GILD_TABLE_META, LIMITS_KEY, strlen(LIMITS_KEY), value,
                        gild_rec_limits_encode(record, value));
}

static int get_quota(struct gild_txn *txn, const char *key, struct gild_rec_quota *record) {
    const void *value;
    size_t length;
    memset(record, 0, sizeof *record);
    int result = gild_txn_peek(txn, GILD_TABLE_META, key, strlen(key), &value, &length);
    if (result)
        return result == -ENOENT ? 0 : result;
    return gild_rec_quota_decode(record, value, length);
}

static int put_quota(struct gild_txn *txn, const char *key, const struct gild_rec_quota *record) {
    unsigned char value[32];
    if (!record->quota_bytes && !record->desktop_bytes)
        return forget(txn, key);
    return gild_txn_put(txn, GILD_TABLE_META, key, strlen(key), value,
                        gild_rec_quota_encode(record, value));
}

int gild_rec_get_pool_quota(struct gild_txn *txn, const char *pool, struct gild_rec_quota *record) {
    char key[QUOTA_KEY_BYTES];
    snprintf(key, sizeof key, POOL_PREFIX "%s", pool);
    return get_quota(txn, key, record);
}

int gild_rec_put_pool_quota(struct gild_txn *txn, const char *pool,
                            const struct gild_rec_quota *record) {
    char key[QUOTA_KEY_BYTES];
    snprintf(key, sizeof key, POOL_PREFIX "%s", pool);
    return put_quota(txn, key, record);
}

int gild_rec_get_disk_quota(struct gild_txn *txn, uint64_t delta_id,
                            struct gild_rec_quota *record) {
    char key[QUOTA_KEY_BYTES];
    snprintf(key, sizeof key, DISK_PREFIX "%016" PRIx64, delta_id);
    return get_quota(txn, key, record);
}

int gild_rec_put_disk_quota(struct gild_txn *txn, uint64_t delta_id,
                            const struct gild_rec_quota *record) {
    char key[QUOTA_KEY_BYTES];
    snprintf(key, sizeof key, DISK_PREFIX "%016" PRIx64, delta_id);
    return put_quota(txn, key, record);
}

/* ---- all of them ----------------------------------------------------------------------------- */

#define WALK_ENDED 1

struct quota_walk {
    gild_rec_quota_visit *visit;
    void *context;
};

static int walk_one(void *context, const void *key, size_t key_length, const void *value,
                    size_t length) {
    const struct quota_walk *walk = context;
    char text[QUOTA_KEY_BYTES];
    struct gild_rec_quota record;
    char *end;
    if (key_length < strlen(QUOTA_PREFIX) || memcmp(key, QUOTA_PREFIX, strlen(QUOTA_PREFIX)) != 0)
        return WALK_ENDED;
    if (key_length >= sizeof text)
        return -EUCLEAN;
    memcpy(text, key, key_length);
    text[key_length] = 0;
    int result = gild_rec_quota_decode(&record, value, length);
    if (result)
        return result;
    if (strncmp(text, POOL_PREFIX, strlen(POOL_PREFIX)) == 0)
        return walk->visit(walk->context, text + strlen(POOL_PREFIX), 0, &record);
    if (strncmp(text, DISK_PREFIX, strlen(DISK_PREFIX)) != 0)
        return -EUCLEAN;
    uint64_t delta_id = strtoull(text + strlen(DISK_PREFIX), &end, 16);
    return *end || !delta_id ? -EUCLEAN : walk->visit(walk->context, NULL, delta_id, &record);
}

int gild_rec_each_quota(struct gild_txn *txn, gild_rec_quota_visit *visit, void *context) {
    struct quota_walk walk = {visit, context};
    int result =
        gild_txn_scan(txn, GILD_TABLE_META, QUOTA_PREFIX, strlen(QUOTA_PREFIX), walk_one, &walk);
    return result == WALK_ENDED ? 0 : result;
}
