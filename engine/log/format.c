/* Checks of segments and batches. Pure functions, any thread. */
#include "log/format.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "batches are used in memory as on disk");

static uint64_t mix(uint64_t x) {
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ull;
    return x ^ x >> 29;
}

uint32_t gild_log_check(const void *bytes, uint64_t serial, uint64_t delta, uint64_t block) {
    uint64_t seed = mix(serial) ^ mix(delta + 0x51ed270b) * 3 ^ mix(block + 0x2545f491) * 5;
    return (uint32_t)XXH3_64bits_withSeed(bytes, GILD_LOG_BLOCK, seed);
}

static uint64_t block_check(const void *block, uint64_t serial) {
    return XXH3_64bits_withSeed((const char *)block + 16, GILD_LOG_BLOCK - 16, mix(serial));
}

void gild_segment_header_seal(struct gild_segment_header *header, const uint8_t store_id[16],
                              uint64_t serial, uint32_t blocks) {
    memset(header, 0, sizeof *header);
    header->magic = GILD_SEGMENT_MAGIC;
    header->version = GILD_LOG_VERSION;
    header->blocks = blocks;
    header->serial = serial;
    memcpy(header->store_id, store_id, 16);
    header->check = block_check(header, serial);
}

int gild_segment_header_verify(const struct gild_segment_header *header, const uint8_t store_id[16],
                               uint64_t serial) {
    if (header->magic != GILD_SEGMENT_MAGIC || header->check != block_check(header, serial) ||
        header->serial != serial || memcmp(header->store_id, store_id, 16) != 0)
        return -EBADMSG;
    if (header->version != GILD_LOG_VERSION || header->incompatible)
        return -ENOTSUP;
    return header->blocks >= GILD_SEGMENT_LEAST_BLOCKS && header->blocks <= GILD_SEGMENT_BLOCKS
               ? 0
               : -EBADMSG;
}

void gild_batch_begin(struct gild_batch_header *header, const uint8_t store_id[16], uint64_t serial,
                      uint64_t stream, uint64_t lsn, uint32_t offset) {
    memset(header, 0, offsetof(struct gild_batch_header, entries));
    header->magic = GILD_BATCH_MAGIC;
    memcpy(header->store_id, store_id, 16);
    header->serial = serial;
    header->stream = stream;
    header->lsn = lsn;
    header->offset = offset;
}

uint32_t gild_batch_add(struct gild_batch_header *header, enum gild_entry_kind kind, uint64_t delta,
                        uint64_t block, uint32_t count, const void *payload) {
    assert(header->entry_count < GILD_BATCH_ENTRIES);
    struct gild_log_entry *entry = &header->entries[header->entry_count++];
    *entry = (struct gild_log_entry){
        .delta = delta, .block = block, .count = count, .kind = (uint16_t)kind};
    if (payload) {
        entry->check = gild_log_check(payload, header->serial, delta, block);
        header->payload_blocks++;
    }
    return entry->check;
}

void gild_batch_seal(struct gild_batch_header *header) {
    memset(&header->entries[header->entry_count], 0,
           (GILD_BATCH_ENTRIES - header->entry_count) * sizeof header->entries[0]);
    header->check = block_check(header, header->serial);
}

static unsigned filter_bits(uint64_t delta, unsigned *second) {
    uint64_t hash = mix(mix(delta + 0x3c6ef372));
    *second = (unsigned)(hash >> 8) & 0xff;
    return (unsigned)hash & 0xff;
}

void gild_batch_filter(const struct gild_batch_header *header, uint64_t filter[GILD_FILTER_WORDS]) {
    uint64_t last = 0; /* no delta has it; neighbours are mostly of one disk */
    memset(filter, 0, GILD_FILTER_WORDS * sizeof *filter);
    for (uint32_t i = 0; i < header->entry_count; i++) {
        if (header->entries[i].delta == last)
            continue;
        last = header->entries[i].delta;
        unsigned second, first = filter_bits(last, &second);
        filter[first / 64] |= 1ull << first % 64;
        filter[second / 64] |= 1ull << second % 64;
    }
}

bool gild_batch_filter_may_have(const uint64_t filter[GILD_FILTER_WORDS], uint64_t delta) {
    unsigned second, first = filter_bits(delta, &second);
    return filter[first / 64] >> first % 64 & filter[second / 64] >> second % 64 & 1;
}

bool gild_batch_filter_known(const uint64_t filter[GILD_FILTER_WORDS]) {
    return filter[0] | filter[1] | filter[2] | filter[3];
}

bool gild_batch_valid(const struct gild_batch_header *header, const uint8_t store_id[16],
                      uint64_t serial, uint32_t blocks, uint32_t offset) {
    return header->magic == GILD_BATCH_MAGIC && header->serial == serial &&
           header->offset == offset && memcmp(header->store_id, store_id, 16) == 0 &&
           header->entry_count <= GILD_BATCH_ENTRIES &&
           header->payload_blocks <= header->entry_count && header->entry_count > 0 &&
           offset + 1 + header->payload_blocks <= blocks &&
           header->check == block_check(header, serial);
}
