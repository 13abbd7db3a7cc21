/* Counters of the catalogue: ids that are never given twice (catalog.h). Over the transactional
 * interface alone, so that it serves whatever stands behind that. */
#include <errno.h>
#include <stdio.h>

#include "base/bytes.h"
#include "catalog/catalog.h"

#define COUNTER_TYPE 1u
#define COUNTER_VERSION 1u
#define COUNTER_BYTES 12u
#define COUNTER_PREFIX "next:"

/* The next id of the counter: 1 if it was never used. */
static int read_counter(struct gild_txn *txn, const char *key, size_t key_length, uint64_t *next) {
    const void *stored;
    size_t length;
    *next = 1;
    int result = gild_txn_peek(txn, GILD_TABLE_META, key, key_length, &stored, &length);
    if (result)
        return result == -ENOENT ? 0 : result;
    const unsigned char *bytes = stored;
    if (length != COUNTER_BYTES || gild_get_le16(bytes) != COUNTER_TYPE ||
        gild_get_le16(bytes + 2) != COUNTER_VERSION)
        return -EUCLEAN;
    *next = gild_get_le64(bytes + 4);
    return *next ? 0 : -EUCLEAN;
}

static int counter_key(const char *name, char key[64]) {
    int length = snprintf(key, 64, COUNTER_PREFIX "%s", name);
    return length < 0 || length >= 64 ? -EINVAL : length;
}

int gild_txn_next_id(struct gild_txn *txn, const char *name, uint64_t n, uint64_t *first) {
    char key[64];
    unsigned char value[COUNTER_BYTES];
    uint64_t next;
    int key_length = counter_key(name, key);
    if (key_length < 0)
        return key_length;
    int result = read_counter(txn, key, (size_t)key_length, &next);
    if (result)
        return result;
    if (n > UINT64_MAX - next)
        return -EOVERFLOW;
    gild_put_le16(value, COUNTER_TYPE);
    gild_put_le16(value + 2, COUNTER_VERSION);
    gild_put_le64(value + 4, next + n);
    result = gild_txn_put(txn, GILD_TABLE_META, key, (size_t)key_length, value, sizeof value);
    if (result == 0)
        *first = next;
    return result;
}

int gild_txn_last_id(struct gild_txn *txn, const char *name, uint64_t *last) {
    char key[64];
    int key_length = counter_key(name, key);
    int result = key_length < 0 ? key_length : read_counter(txn, key, (size_t)key_length, last);
    if (result == 0)
        *last -= 1;
    return result;
}
