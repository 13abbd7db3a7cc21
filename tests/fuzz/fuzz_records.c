/* libFuzzer entry: values of the catalogue. The first byte chooses the type, the rest is the value
 * (from the type's own two bytes on, when bit 7 is set: then these are put before it).
 *
 * Whatever a decoder accepts must be what its encoder writes, byte for byte: no second spelling,
 * nothing read past the end, nothing left over. The transactional interface is played here, so that
 * counters and records by number are read from the same bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/coder.h"
#include "catalog/records.h"
#include "fuzz.h"

static const void *stored;
static size_t stored_length;

int gild_txn_peek(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                  const void **value, size_t *length) {
    (void)txn, (void)table;
    fuzz_touch(key, key_length);
    *value = stored;
    *length = stored_length;
    return 0;
}

int gild_txn_put(struct gild_txn *txn, enum gild_table table, const void *key, size_t key_length,
                 const void *value, size_t length) {
    (void)txn, (void)table;
    fuzz_touch(key, key_length);
    fuzz_touch(value, length);
    return 0;
}

int gild_txn_scan(struct gild_txn *txn, enum gild_table table, const void *from, size_t from_length,
                  gild_txn_visit *visit, void *context) {
    (void)txn, (void)table, (void)from, (void)from_length, (void)visit, (void)context;
    return 0;
}

int gild_txn_delete(struct gild_txn *txn, enum gild_table table, const void *key,
                    size_t key_length) {
    (void)txn, (void)table, (void)key, (void)key_length;
    return -ENOENT;
}

static uint16_t version_of(const void *value) {
    return gild_get_le16((const uint8_t *)value + 2);
}

#define DECODE(name)                                                  \
    static void decode_##name(const void *value, size_t length) {     \
        static struct gild_rec_##name record;                         \
        static uint8_t again[GILD_RECORD_MAX];                        \
        int err = gild_rec_##name##_decode(&record, value, length);   \
        FUZZ_MUST(err == 0 || err == -EUCLEAN);                       \
        if (err)                                                      \
            return;                                                   \
        size_t written = gild_rec_##name##_encode(&record, again);    \
        if (gild_get_le16(again + 2) != version_of(value))            \
            return; /* an older layout: it is not written any more */ \
        FUZZ_MUST(written == length);                                 \
        FUZZ_MUST(memcmp(again, value, length) == 0);                 \
    }

DECODE(image)
DECODE(version)
DECODE(desktop)
DECODE(pool)
DECODE(delta)
DECODE(map)
DECODE(pack)
DECODE(segment)
DECODE(stream)
DECODE(quarantine)
DECODE(lost)
DECODE(growth)
DECODE(limits)
DECODE(quota)

static void read_counter(const void *value, size_t length) {
    uint64_t last, first;
    stored = value;
    stored_length = length;
    int err = gild_txn_last_id(NULL, "delta", &last);
    FUZZ_MUST(err == 0 || err == -EUCLEAN);
    int next = gild_txn_next_id(NULL, "delta", 1, &first);
    FUZZ_MUST(err ? next == err : next == -EOVERFLOW || first == last + 1);
}

static void (*const decode[])(const void *value, size_t length) = {
    read_counter,      decode_image, decode_version, decode_desktop, decode_pool,
    decode_delta,      decode_map,   decode_pack,    decode_segment, decode_stream,
    decode_quarantine, decode_lost,  decode_growth,  decode_limits,  decode_quota};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size || size > GILD_RECORD_MAX)
        return 0;
    unsigned type = (data[0] & 0x7f) % (sizeof decode / sizeof *decode),
             before = data[0] & 0x80 ? 4 : 0;
    size_t length = size - 1 + before;
    uint8_t *value =
        malloc(length ? length : 1); /* exactly as long, so that a read past it is seen */
    FUZZ_MUST(value);
    if (before) {
        gild_put_le16(value, (uint16_t)(type + 1));
        gild_put_le16(value + 2, (uint16_t)((data[0] & 0x7f) / (sizeof decode / sizeof *decode) % 2
                                                ? CATALOG_RECORD_VERSION_2
                                                : CATALOG_RECORD_VERSION_1));
    }
    memcpy(value + before, data + 1, size - 1);
    decode[type](value, length);
    free(value);
    return 0;
}
