/* A blocked Bloom filter over fingerprints: one 32-byte block, so one cache line, per question.
 * The form is the split-block filter of Putze, Sanders and Singler ("Cache-, Hash- and
 * Space-Efficient Bloom Filters", 2007); as the keys are SHA-256 already, their own bits choose the
 * block and the eight bits in it, and nothing is hashed again. Pure. */
#ifndef GILD_PACK_FILTER_H
#define GILD_PACK_FILTER_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct pack_filter_block {
    uint32_t word[8];
};

/* Bytes 8..11 of the fingerprint choose the block, bytes 16..23 give five bits for each word. */
static inline uint64_t pack_filter_at(const uint8_t *fingerprint, uint64_t blocks, uint64_t *bits) {
    uint32_t choice;
    memcpy(&choice, fingerprint + 8, sizeof choice);
    memcpy(bits, fingerprint + 16, sizeof *bits);
    return choice * blocks >> 32;
}

static inline void pack_filter_set(struct pack_filter_block *filter, uint64_t blocks,
                                   const uint8_t *fingerprint) {
    uint64_t bits;
    struct pack_filter_block *block = &filter[pack_filter_at(fingerprint, blocks, &bits)];
    for (unsigned i = 0; i < 8; i++)
        block->word[i] |= 1u << (bits >> (5 * i) & 31);
}

static inline void pack_filter_prefetch(const struct pack_filter_block *filter, uint64_t blocks,
                                        const uint8_t *fingerprint) {
    uint64_t bits;
    __builtin_prefetch(&filter[pack_filter_at(fingerprint, blocks, &bits)]);
}

/* False: certainly not in it. */
static inline bool pack_filter_has(const struct pack_filter_block *filter, uint64_t blocks,
                                   const uint8_t *fingerprint) {
    uint64_t bits;
    const struct pack_filter_block *block = &filter[pack_filter_at(fingerprint, blocks, &bits)];
    uint32_t all = 1;
    for (unsigned i = 0; i < 8; i++)
        all &= block->word[i] >> (bits >> (5 * i) & 31);
    return all & 1;
}

#endif
