/* Bitmaps over caller-owned words; bit i is bit i % 64 of word i / 64. Not atomic. */
#ifndef GILD_BASE_BITMAP_H
#define GILD_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GILD_BITMAP_NONE SIZE_MAX

static inline size_t gild_bitmap_words(size_t bits) {
    return bits / 64 + (bits % 64 != 0);
}

static inline bool gild_bitmap_test(const uint64_t *words, size_t bit) {
    return words[bit / 64] >> (bit % 64) & 1;
}

static inline void gild_bitmap_set(uint64_t *words, size_t bit) {
    words[bit / 64] |= 1ull << (bit % 64);
}

static inline void gild_bitmap_clear(uint64_t *words, size_t bit) {
    words[bit / 64] &= ~(1ull << (bit % 64));
}

/* The words' bits past `bits` must be zero. */
static inline size_t gild_bitmap_count(const uint64_t *words, size_t bits) {
    size_t count = 0;
    for (size_t i = 0; i < gild_bitmap_words(bits); i++)
        count += (size_t)__builtin_popcountll(words[i]);
    return count;
}

/* The first bit at or after `from` that is set (or clear), GILD_BITMAP_NONE if there is none below
 * `bits`. */
static inline size_t gild_bitmap_find(const uint64_t *words, size_t bits, size_t from, bool set) {
    uint64_t flip = set ? 0 : ~0ull;
    for (size_t bit = from; bit < bits; bit = (bit / 64 + 1) * 64) {
        uint64_t word = (words[bit / 64] ^ flip) >> (bit % 64);
        if (word) {
            bit += (size_t)__builtin_ctzll(word);
            return bit < bits ? bit : GILD_BITMAP_NONE;
        }
    }
    return GILD_BITMAP_NONE;
}

#endif
