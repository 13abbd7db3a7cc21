/* The records of names: images, versions, desktops, pools; and access to records by number.
 *
 * Layout byte by byte: docs/format.md. Pure functions but for those that take a transaction; any
 * thread. Decoding is strict: a wrong type, an unknown version, a byte too few or too many, a text
 * that does not fit or holds a NUL, an enum out of range are all -EUCLEAN. */
#include "catalog/records.h"

#include <stdlib.h>

#include "catalog/coder.h"

size_t gild_rec_image_encode(const struct gild_rec_image *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_IMAGE);
    catalog_put_u32(&to, record->latest_version);
    catalog_put_u64(&to, record->created_ns);
    return catalog_length(&to);
}

int gild_rec_image_decode(struct gild_rec_image *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_IMAGE);
    record->latest_version = catalog_get_u32(&from);
    record->created_ns = catalog_get_u64(&from);
    return catalog_end(&from);
}

size_t gild_rec_version_encode(const struct gild_rec_version *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_VERSION);
    catalog_put_u64(&to, record->map_id);
    catalog_put_u64(&to, record->size_bytes);
    catalog_put_u64(&to, record->created_ns);
    catalog_put_bytes(&to, record->content_hash, sizeof record->content_hash);
    catalog_put_u8(&to, record->stage);
    catalog_put_u64(&to, record->data_blocks);
    catalog_put_u64(&to, record->new_blocks);
    catalog_put_u64(&to, record->stored_bytes);
    catalog_put_text(&to, record->source_format, sizeof record->source_format);
    return catalog_length(&to);
}

int gild_rec_version_decode(struct gild_rec_version *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_VERSION);
    record->map_id = catalog_get_u64(&from);
    record->size_bytes = catalog_get_u64(&from);
    record->created_ns = catalog_get_u64(&from);
    catalog_get_bytes(&from, record->content_hash, sizeof record->content_hash);
    record->stage = catalog_get_enum(&from, GILD_STAGE_RETIRED + 1);
    record->data_blocks = catalog_get_u64(&from);
    record->new_blocks = catalog_get_u64(&from);
    record->stored_bytes = catalog_get_u64(&from);
    catalog_get_text(&from, record->source_format, sizeof record->source_format);
    return catalog_end(&from);
}

size_t gild_rec_desktop_encode(const struct gild_rec_desktop *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_DESKTOP);
    catalog_put_text(&to, record->image, sizeof record->image);
    catalog_put_u32(&to, record->version);
    catalog_put_text(&to, record->pool, sizeof record->pool);
    catalog_put_u64(&to, record->os_delta);
    catalog_put_u64(&to, record->size_bytes);
    catalog_put_u64(&to, record->created_ns);
    return catalog_length(&to);
}

int gild_rec_desktop_decode(struct gild_rec_desktop *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_DESKTOP);
    catalog_get_text(&from, record->image, sizeof record->image);
    record->version = catalog_get_u32(&from);
    catalog_get_text(&from, record->pool, sizeof record->pool);
    record->os_delta = catalog_get_u64(&from);
    record->size_bytes = catalog_get_u64(&from);
    record->created_ns = catalog_get_u64(&from);
    return catalog_end(&from);
}

size_t gild_rec_pool_encode(const struct gild_rec_pool *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_POOL);
    catalog_put_text(&to, record->image, sizeof record->image);
    catalog_put_u32(&to, record->version);
    catalog_put_text(&to, record->name_pattern, sizeof record->name_pattern);
    catalog_put_u32(&to, record->count);
    catalog_put_u64(&to, record->created_ns);
    return catalog_length(&to);
}

int gild_rec_pool_decode(struct gild_rec_pool *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_POOL);
    catalog_get_text(&from, record->image, sizeof record->image);
    record->version = catalog_get_u32(&from);
    catalog_get_text(&from, record->name_pattern, sizeof record->name_pattern);
    record->count = catalog_get_u32(&from);
    record->created_ns = catalog_get_u64(&from);
    return catalog_end(&from);
}

/* ---- by number ------------------------------------------------------------------------------- */

uint64_t gild_rec_key_u64(const void *key) {
    return gild_get_be64(key);
}

int gild_rec_get_u64(struct gild_txn *txn, enum gild_table table, uint64_t id, const void **value,
                     size_t *length) {
    unsigned char key[8];
    gild_put_be64(key, id);
    return gild_txn_peek(txn, table, key, sizeof key, value, length);
}

int gild_rec_delete_u64(struct gild_txn *txn, enum gild_table table, uint64_t id) {
    unsigned char key[8];
    gild_put_be64(key, id);
    return gild_txn_delete(txn, table, key, sizeof key);
}

static int put_u64(struct gild_txn *txn, enum gild_table table, uint64_t id, const void *value,
                   size_t length) {
    unsigned char key[8];
    gild_put_be64(key, id);
    return gild_txn_put(txn, table, key, sizeof key, value, length);
}

int gild_rec_put_delta(struct gild_txn *txn, enum gild_table table, uint64_t id,
                       const struct gild_rec_delta *record) {
    unsigned char value[64 + 8 * GILD_DELTA_ROOTS_MAX];
    return put_u64(txn, table, id, value, gild_rec_delta_encode(record, value));
}

int gild_rec_get_delta(struct gild_txn *txn, enum gild_table table, uint64_t id,
                       struct gild_rec_delta *record) {
    const void *value;
    size_t length;
    int result = gild_rec_get_u64(txn, table, id, &value, &length);
    return result ? result : gild_rec_delta_decode(record, value, length);
}

int gild_rec_put_segment(struct gild_txn *txn, uint64_t serial,
                         const struct gild_rec_segment *record) {
    unsigned char value[32];
    return put_u64(txn, GILD_TABLE_SEGMENTS, serial, value, gild_rec_segment_encode(record, value));
}

int gild_rec_put_stream(struct gild_txn *txn, uint64_t id, const struct gild_rec_stream *record) {
    unsigned char value[32];
    return put_u64(txn, GILD_TABLE_STREAMS, id, value, gild_rec_stream_encode(record, value));
}

int gild_rec_put_pack(struct gild_txn *txn, uint32_t id, const struct gild_rec_pack *record) {
    unsigned char key[4], value[64];
    gild_put_be32(key, id);
    return gild_txn_put(txn, GILD_TABLE_PACKS, key, sizeof key, value,
                        gild_rec_pack_encode(record, value));
}

int gild_rec_get_pack(struct gild_txn *txn, uint32_t id, struct gild_rec_pack *record) {
    unsigned char key[4];
    const void *value;
    size_t length;
    gild_put_be32(key, id);
    int result = gild_txn_peek(txn, GILD_TABLE_PACKS, key, sizeof key, &value, &length);
    return result ? result : gild_rec_pack_decode(record, value, length);
}

int gild_rec_put_map(struct gild_txn *txn, uint64_t id, const struct gild_rec_map *record) {
    void *value = malloc(GILD_RECORD_MAX);
    if (!value)
        return -ENOMEM;
    int result = put_u64(txn, GILD_TABLE_MAPS, id, value, gild_rec_map_encode(record, value));
    free(value);
    return result;
}

int gild_rec_get_map(struct gild_txn *txn, uint64_t id, struct gild_rec_map *record) {
    const void *value;
    size_t length;
    int result = gild_rec_get_u64(txn, GILD_TABLE_MAPS, id, &value, &length);
    return result ? result : gild_rec_map_decode(record, value, length);
}
