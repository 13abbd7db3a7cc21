/* libFuzzer entry: two segments of the log, edited, as an open scans and replays them and as a
 * repair goes on past what is rotten. See fuzz.h for the input; bit 1 of its first byte: each
 * batch's check of the one before it is made right too; bit 2: the segments are recorded as open.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "log/recover.h"

#define BLOCKS GILD_SEGMENT_LEAST_BLOCKS
#define SEGMENTS 2u
#define SEGMENT_BYTES ((size_t)BLOCKS * GILD_LOG_BLOCK)
#define STREAM 7u

static const uint8_t store_id[16] = "fuzzed store id";
static struct fuzz_object valid; /* both segments, one behind the other */

static uint8_t *block_at(struct fuzz_object *object, size_t block) {
    return object->bytes + block * GILD_LOG_BLOCK;
}

/* Batches of 1, 2, 3 ... blocks of data and one hole each; two streams take turns in a segment that
 * has but one in life, so that a wrong one is no news to the scanner. */
static void make_valid(void) {
    uint64_t lsn = 0, before = 0;
    valid.length = valid.room = SEGMENTS * SEGMENT_BYTES;
    valid.bytes = calloc(1, valid.room);
    FUZZ_MUST(valid.bytes);
    for (uint64_t serial = 1; serial <= SEGMENTS; serial++) {
        size_t first = (serial - 1) * BLOCKS;
        gild_segment_header_seal((void *)block_at(&valid, first), store_id, serial, BLOCKS);
        for (uint32_t at = 1, size = 1; at + 1 + size <= BLOCKS - 4; at += 1 + size, size++) {
            struct gild_batch_header *header = (void *)block_at(&valid, first + at);
            gild_batch_begin(header, store_id, serial, STREAM, ++lsn, at);
            header->previous_check = before;
            header->durable_lsn = lsn > 6 ? lsn - 6 : 0;
            gild_batch_add(header, GILD_ENTRY_HOLE, 5, lsn * 100, 10, NULL);
            for (uint32_t i = 0; i < size; i++) {
                uint8_t *payload = block_at(&valid, first + at + 1 + i);
                memset(payload, (int)(lsn + i), GILD_LOG_BLOCK);
                gild_batch_add(header, GILD_ENTRY_DATA, 5, lsn * 10 + i, 1, payload);
            }
            gild_batch_seal(header);
            before = header->check;
        }
    }
}

/* ---- checks made right ----------------------------------------------------------------------- */

static void seal_batch(struct fuzz_object *object, size_t block) {
    struct gild_batch_header *header = (void *)block_at(object, block);
    size_t end = object->length / GILD_LOG_BLOCK, at = block + 1;
    uint32_t count = header->entry_count < GILD_BATCH_ENTRIES ? header->entry_count : 0;
    for (uint32_t i = 0; i < count; i++) {
        struct gild_log_entry *entry = &header->entries[i];
        if ((entry->kind == GILD_ENTRY_DATA || entry->kind == GILD_ENTRY_NODE) && at < end)
            entry->check =
                gild_log_check(block_at(object, at++), header->serial, entry->delta, entry->block);
    }
    if (header->entry_count < GILD_BATCH_ENTRIES)
        gild_batch_seal(header);
}

static void seal(struct fuzz_object *object, bool chain) {
    uint64_t before = 0;
    for (size_t block = 0; block < object->length / GILD_LOG_BLOCK; block++) {
        struct gild_batch_header *header = (void *)block_at(object, block);
        struct gild_segment_header *segment = (void *)header;
        if (header->magic == GILD_BATCH_MAGIC) {
            if (chain)
                header->previous_check = before;
            seal_batch(object, block);
            before = header->check;
        } else if (segment->magic == GILD_SEGMENT_MAGIC) {
            struct gild_segment_header fresh;
            gild_segment_header_seal(&fresh, segment->store_id, segment->serial, segment->blocks);
            if (segment->version == GILD_LOG_VERSION && !segment->incompatible)
                *segment = fresh;
        }
    }
}

/* ---- the parser ------------------------------------------------------------------------------ */

static int visit(void *context, const struct gild_batch_header *header, const uint8_t *payload,
                 bool in_doubt) {
    unsigned *batches = context;
    FUZZ_MUST(header->entry_count && header->entry_count <= GILD_BATCH_ENTRIES);
    FUZZ_MUST(header->payload_blocks <= GILD_BATCH_ENTRIES);
    FUZZ_MUST(header->offset + 1 + header->payload_blocks <= BLOCKS);
    uint32_t with_payload = 0;
    for (uint32_t i = 0; i < header->entry_count; i++)
        with_payload += header->entries[i].kind == GILD_ENTRY_DATA ||
                        header->entries[i].kind == GILD_ENTRY_NODE;
    /* A repair may see a batch whose payload is rotten, but never is more of it named than there.
     */
    FUZZ_MUST(with_payload <= header->payload_blocks);
    FUZZ_MUST(payload || !in_doubt);
    if (payload)
        fuzz_touch(payload, (size_t)header->payload_blocks * GILD_LOG_BLOCK);
    (*batches)++;
    return 0;
}

static void lost(void *context, uint64_t stream, uint64_t first, uint64_t last,
                 const uint64_t *filter) {
    unsigned *losses = context;
    FUZZ_MUST(stream == STREAM && first <= last);
    if (filter)
        fuzz_touch(filter, GILD_FILTER_WORDS * sizeof *filter);
    (*losses)++;
}

static struct gild_segments *open_segments(uint8_t state, unsigned *added) {
    struct gild_error error = {0};
    struct gild_segments *segments;
    struct gild_segments_options options = {.directory = fuzz_folder(), .segment_blocks = BLOCKS};
    const struct gild_rec_segment record = {.state = state};
    memcpy(options.store_id, store_id, sizeof options.store_id);
    FUZZ_MUST(gild_segments_create(&segments, &options, &error) == 0);
    *added = 0;
    for (uint64_t serial = 1; serial <= SEGMENTS; serial++) {
        int err = gild_segments_add(segments, serial, &record, &error);
        FUZZ_MUST(!err || error.message[0]);
        *added += !err;
    }
    return segments;
}

/* look: nothing but a look, as before anything is written. */
static void open_log(uint8_t state, bool look, bool mend) {
    struct gild_error error = {0};
    struct gild_recover_stream stream = {.stream = STREAM};
    struct gild_recover_totals totals;
    unsigned added, batches = 0, losses = 0;
    const struct gild_recover_repair repair = {.lost = lost, .context = &losses};
    struct gild_segments *segments = open_segments(state, &added);
    int err = mend ? gild_log_recover_rest(segments, store_id, &stream, 1, visit, &batches, &repair,
                                           &totals, &error)
                   : gild_log_recover(segments, store_id, &stream, 1, look ? NULL : visit, &batches,
                                      &totals, &error);
    if (err) {
        FUZZ_MUST(error.message[0]);
        FUZZ_MUST(!mend); /* a repair gets through */
    } else {
        FUZZ_MUST(look || totals.batches == batches);
        FUZZ_MUST(stream.last_lsn >= stream.durable_lsn);
    }
    FUZZ_MUST(totals.blocks <= (uint64_t)added * BLOCKS);
    gild_segments_destroy(segments);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[SEGMENTS][128];
    if (!valid.length)
        make_valid();
    if (!size)
        return 0;
    struct fuzz_object *object = fuzz_edit(&valid, data, size);
    if (fuzz_wants_checks(data))
        seal(object, data[0] & 2);
    struct fuzz_object part[SEGMENTS];
    for (unsigned i = 0; i < SEGMENTS; i++) {
        size_t from = i * SEGMENT_BYTES < object->length ? i * SEGMENT_BYTES : object->length;
        size_t rest = object->length - from;
        part[i].bytes = object->bytes + from;
        part[i].length = i + 1 < SEGMENTS && rest > SEGMENT_BYTES ? SEGMENT_BYTES : rest;
        snprintf(path[i], sizeof path[i], "%s/%016x.seg", fuzz_folder(), i + 1);
        fuzz_store(path[i], &part[i]);
    }
    uint8_t state = data[0] & 4 ? GILD_SEGMENT_OPEN : GILD_SEGMENT_READY;
    open_log(state, true, false);
    open_log(state, false, false);
    open_log(state, false, true);
    for (unsigned i = 0; i < SEGMENTS; i++)
        fuzz_must_hold(path[i], &part[i]);
    return 0;
}
