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

int gild_txn_next_id(struct gild_txn *txn, const char *name, uint64_t n, uint64_t *first) {
    char key[64];
    unsigned char value[COUNTER_BYTES];
    const void *stored;
    size_t length;
    uint64_t next = 1;
    int key_length = snprintf(key, sizeof key, COUNTER_PREFIX "%s", name);
    if (key_length < 0 || (size_t)key_length >= sizeof key)
        return -EINVAL;
    int result = gild_txn_peek(txn, GILD_TABLE_META, key, (size_t)key_length, &stored, &length);
    if (result == 0) {
        const unsigned char *bytes = stored;
        if (length != COUNTER_BYTES || gild_get_le16(bytes) != COUNTER_TYPE ||
            gild_get_le16(bytes + 2) != COUNTER_VERSION)
            return -EUCLEAN;
        next = gild_get_le64(bytes + 4);
    } else if (result != -ENOENT) {
        return result;
    }
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
