/* The records of content: deltas, sealed maps, packs, segments, streams.
 *
 * Layout byte by byte: docs/format.md. Of the arrays only the used part is on disk, and decoding
 * zeroes the rest of a delta's roots; what lies behind a map's packs is left as it was (it is
 * 64 KiB, and nobody reads past pack_count). Pure; any thread. Strict as records.c says. */
#include <inttypes.h>
#include <stdio.h>

#include "catalog/coder.h"
#include "catalog/records.h"

#define MAP_PACKS_MAX (sizeof((struct gild_rec_map *)0)->packs / sizeof(uint32_t))

size_t gild_rec_delta_encode(const struct gild_rec_delta *record, void *out) {
    struct catalog_writer to =
        catalog_begin_as(out, CATALOG_RECORD_DELTA, CATALOG_RECORD_VERSION_2);
    uint32_t count =
        record->root_count < GILD_DELTA_ROOTS_MAX ? record->root_count : GILD_DELTA_ROOTS_MAX;
    catalog_put_u64(&to, record->size_bytes);
    catalog_put_u64(&to, record->parent_map);
    catalog_put_u64(&to, record->parent_size_bytes);
    catalog_put_u64(&to, record->mapped_blocks);
    catalog_put_u64(&to, record->packed_blocks);
    catalog_put_u64(&to, record->changed_ns);
    catalog_put_u32(&to, count);
    for (uint32_t i = 0; i < count; i++)
        catalog_put_u64(&to, record->roots[i]);
    return catalog_length(&to);
}

int gild_rec_delta_decode(struct gild_rec_delta *record, const void *value, size_t length) {
    struct catalog_reader from =
        catalog_open_upto(value, length, CATALOG_RECORD_DELTA, CATALOG_RECORD_VERSION_2);
    memset(record, 0, sizeof *record);
    record->size_bytes = catalog_get_u64(&from);
    record->parent_map = catalog_get_u64(&from);
    record->parent_size_bytes = catalog_get_u64(&from);
    record->mapped_blocks = catalog_get_u64(&from);
    if (from.version >= CATALOG_RECORD_VERSION_2)
        record->packed_blocks = catalog_get_u64(&from);
    record->changed_ns = catalog_get_u64(&from);
    uint32_t count = catalog_get_u32(&from);
    if (count > GILD_DELTA_ROOTS_MAX)
        return -EUCLEAN;
    record->root_count = count;
    for (uint32_t i = 0; i < count; i++)
        record->roots[i] = catalog_get_u64(&from);
    return catalog_end(&from);
}

size_t gild_rec_map_encode(const struct gild_rec_map *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_MAP);
    uint32_t count = record->pack_count < MAP_PACKS_MAX ? record->pack_count : MAP_PACKS_MAX;
    catalog_put_u64(&to, record->size_bytes);
    catalog_put_u64(&to, record->data_blocks);
    catalog_put_bytes(&to, record->content_hash, sizeof record->content_hash);
    catalog_put_u32(&to, count);
    for (uint32_t i = 0; i < count; i++)
        catalog_put_u32(&to, record->packs[i]);
    return catalog_length(&to);
}

int gild_rec_map_decode(struct gild_rec_map *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_MAP);
    record->size_bytes = catalog_get_u64(&from);
    record->data_blocks = catalog_get_u64(&from);
    catalog_get_bytes(&from, record->content_hash, sizeof record->content_hash);
    uint32_t count = catalog_get_u32(&from);
    record->pack_count = 0;
    if (count > MAP_PACKS_MAX)
        return -EUCLEAN;
    for (uint32_t i = 0; i < count; i++)
        record->packs[i] = catalog_get_u32(&from);
    record->pack_count = count;
    return catalog_end(&from);
}

size_t gild_rec_pack_encode(const struct gild_rec_pack *record, void *out) {
    struct catalog_writer to = catalog_begin_as(out, CATALOG_RECORD_PACK, CATALOG_RECORD_VERSION_2);
    catalog_put_u64(&to, record->file_bytes);
    catalog_put_u64(&to, record->groups);
    catalog_put_u64(&to, record->blocks);
    catalog_put_u64(&to, record->delta_refs);
    catalog_put_u64(&to, record->stale_refs);
    return catalog_length(&to);
}

int gild_rec_pack_decode(struct gild_rec_pack *record, const void *value, size_t length) {
    struct catalog_reader from =
        catalog_open_upto(value, length, CATALOG_RECORD_PACK, CATALOG_RECORD_VERSION_2);
    record->file_bytes = catalog_get_u64(&from);
    record->groups = catalog_get_u64(&from);
    record->blocks = catalog_get_u64(&from);
    record->delta_refs = record->stale_refs = 0;
    if (from.version >= CATALOG_RECORD_VERSION_2) {
        record->delta_refs = catalog_get_u64(&from);
        record->stale_refs = catalog_get_u64(&from);
    }
    return catalog_end(&from);
}

size_t gild_rec_segment_encode(const struct gild_rec_segment *record, void *out) {
    struct catalog_writer to =
        catalog_begin_as(out, CATALOG_RECORD_SEGMENT, CATALOG_RECORD_VERSION_2);
    catalog_put_u8(&to, record->state);
    catalog_put_u8(&to, record->holds_nodes);
    catalog_put_u64(&to, record->live_blocks);
    catalog_put_u64(&to, record->closed_s);
    return catalog_length(&to);
}

int gild_rec_segment_decode(struct gild_rec_segment *record, const void *value, size_t length) {
    struct catalog_reader from =
        catalog_open_upto(value, length, CATALOG_RECORD_SEGMENT, CATALOG_RECORD_VERSION_2);
    record->state = catalog_get_enum(&from, GILD_SEGMENT_FULL + 1);
    record->holds_nodes = catalog_get_enum(&from, 2);
    record->live_blocks = catalog_get_u64(&from);
    record->closed_s = from.version >= CATALOG_RECORD_VERSION_2 ? catalog_get_u64(&from) : 0;
    return catalog_end(&from);
}

size_t gild_rec_stream_encode(const struct gild_rec_stream *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_STREAM);
    catalog_put_u64(&to, record->checkpoint_lsn);
    catalog_put_u64(&to, record->segment);
    return catalog_length(&to);
}

int gild_rec_stream_decode(struct gild_rec_stream *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_STREAM);
    record->checkpoint_lsn = catalog_get_u64(&from);
    record->segment = catalog_get_u64(&from);
    return catalog_end(&from);
}

size_t gild_rec_quarantine_encode(const struct gild_rec_quarantine *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_QUARANTINE);
    catalog_put_u64(&to, record->since_ns);
    catalog_put_text(&to, record->why, sizeof record->why);
    return catalog_length(&to);
}

int gild_rec_quarantine_decode(struct gild_rec_quarantine *record, const void *value,
                               size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_QUARANTINE);
    record->since_ns = catalog_get_u64(&from);
    catalog_get_text(&from, record->why, sizeof record->why);
    return catalog_end(&from);
}

size_t gild_rec_lost_encode(const struct gild_rec_lost *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_LOST);
    catalog_put_u64(&to, record->since_ns);
    catalog_put_u32(&to, record->count);
    for (uint32_t i = 0; i < record->count && i < GILD_LOST_RANGES; i++) {
        catalog_put_u32(&to, record->range[i].first);
        catalog_put_u32(&to, record->range[i].groups);
    }
    return catalog_length(&to);
}

int gild_rec_lost_decode(struct gild_rec_lost *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_LOST);
    record->since_ns = catalog_get_u64(&from);
    record->count = catalog_get_u32(&from);
    if (record->count > GILD_LOST_RANGES)
        return -EUCLEAN;
    for (uint32_t i = 0; i < record->count; i++) {
        record->range[i].first = catalog_get_u32(&from);
        record->range[i].groups = catalog_get_u32(&from);
    }
    return catalog_end(&from);
}

size_t gild_rec_growth_encode(const struct gild_rec_growth *record, void *out) {
    struct catalog_writer to = catalog_begin(out, CATALOG_RECORD_GROWTH);
    catalog_put_u32(&to, record->count);
    for (uint32_t i = 0; i < record->count && i < GILD_GROWTH_SAMPLES; i++) {
        catalog_put_u64(&to, record->sample[i].at_s);
        catalog_put_u64(&to, record->sample[i].bytes);
    }
    return catalog_length(&to);
}

int gild_rec_growth_decode(struct gild_rec_growth *record, const void *value, size_t length) {
    struct catalog_reader from = catalog_open(value, length, CATALOG_RECORD_GROWTH);
    record->count = catalog_get_u32(&from);
    if (record->count > GILD_GROWTH_SAMPLES)
        return -EUCLEAN;
    for (uint32_t i = 0; i < record->count; i++) {
        record->sample[i].at_s = catalog_get_u64(&from);
        record->sample[i].bytes = catalog_get_u64(&from);
        if (i && record->sample[i].at_s <= record->sample[i - 1].at_s)
            return -EUCLEAN;
    }
    return catalog_end(&from);
}

/* ---- growth, by delta ------------------------------------------------------------------------ */

#define GROWTH_KEY 32u

static size_t growth_key(uint64_t id, char key[GROWTH_KEY]) {
    return (size_t)snprintf(key, GROWTH_KEY, "growth:%016" PRIx64, id);
}

int gild_rec_put_growth(struct gild_txn *txn, uint64_t id, const struct gild_rec_growth *record) {
    char key[GROWTH_KEY];
    unsigned char value[16 + 16 * GILD_GROWTH_SAMPLES];
    size_t length = growth_key(id, key);
    return gild_txn_put(txn, GILD_TABLE_META, key, length, value,
                        gild_rec_growth_encode(record, value));
}

int gild_rec_get_growth(struct gild_txn *txn, uint64_t id, struct gild_rec_growth *record) {
    char key[GROWTH_KEY];
    const void *value;
    size_t length;
    int result = gild_txn_peek(txn, GILD_TABLE_META, key, growth_key(id, key), &value, &length);
    return result ? result : gild_rec_growth_decode(record, value, length);
}

int gild_rec_delete_growth(struct gild_txn *txn, uint64_t id) {
    char key[GROWTH_KEY];
    int result = gild_txn_delete(txn, GILD_TABLE_META, key, growth_key(id, key));
    return result == -ENOENT ? 0 : result;
}

/* ---- quarantine, by delta -------------------------------------------------------------------- */

#define QUARANTINE_KEY 32u

static size_t quarantine_key(uint64_t delta_id, char key[QUARANTINE_KEY]) {
    return (size_t)snprintf(key, QUARANTINE_KEY, "quarantine:%016" PRIx64, delta_id);
}

int gild_rec_put_quarantine(struct gild_txn *txn, uint64_t delta_id,
                            const struct gild_rec_quarantine *record) {
    char key[QUARANTINE_KEY];
    unsigned char value[256];
    size_t length = quarantine_key(delta_id, key);
    return gild_txn_put(txn, GILD_TABLE_META, key, length, value,
                        gild_rec_quarantine_encode(record, value));
}

int gild_rec_get_quarantine(struct gild_txn *txn, uint64_t delta_id,
                            struct gild_rec_quarantine *record) {
    char key[QUARANTINE_KEY];
    const void *value;
    size_t length;
    int result =
        gild_txn_peek(txn, GILD_TABLE_META, key, quarantine_key(delta_id, key), &value, &length);
    return result ? result : gild_rec_quarantine_decode(record, value, length);
}

int gild_rec_delete_quarantine(struct gild_txn *txn, uint64_t delta_id) {
    char key[QUARANTINE_KEY];
    int result = gild_txn_delete(txn, GILD_TABLE_META, key, quarantine_key(delta_id, key));
    return result == -ENOENT ? 0 : result;
}
