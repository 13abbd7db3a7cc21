/* Bytes: on-disk and wire integers at any alignment, zero tests, alignment. Pure, inline. */
#ifndef GILD_BASE_BYTES_H
#define GILD_BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t gild_get_le16(const void *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return le16toh(value);
}

static inline uint32_t gild_get_le32(const void *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return le32toh(value);
}

static inline uint64_t gild_get_le64(const void *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return le64toh(value);
}

static inline void gild_put_le16(void *to, uint16_t value) {
    value = htole16(value);
    memcpy(to, &value, sizeof value);
}

static inline void gild_put_le32(void *to, uint32_t value) {
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static inline void gild_put_le64(void *to, uint64_t value) {
    value = htole64(value);
    memcpy(to, &value, sizeof value);
}

static inline uint16_t gild_get_be16(const void *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return be16toh(value);
}

static inline uint32_t gild_get_be32(const void *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return be32toh(value);
}

static inline uint64_t gild_get_be64(const void *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return be64toh(value);
}

static inline void gild_put_be16(void *to, uint16_t value) {
    value = htobe16(value);
    memcpy(to, &value, sizeof value);
}

static inline void gild_put_be32(void *to, uint32_t value) {
    value = htobe32(value);
    memcpy(to, &value, sizeof value);
}

static inline void gild_put_be64(void *to, uint64_t value) {
    value = htobe64(value);
    memcpy(to, &value, sizeof value);
}

/* alignment: a power of two. */
static inline uint64_t gild_align_down(uint64_t value, uint64_t alignment) {
    return value & ~(alignment - 1);
}

/* Wraps if value is within alignment of 2^64: bound the value first. */
static inline uint64_t gild_align_up(uint64_t value, uint64_t alignment) {
    return (value + alignment - 1) & ~(alignment - 1);
}

static inline bool gild_is_aligned(uint64_t value, uint64_t alignment) {
    return (value & (alignment - 1)) == 0;
}

static inline uint64_t gild_min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint64_t gild_max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* Are all of `length` bytes zero? Data mostly says no in its first bytes; what remains is looked at
 * 256 bytes at a time in a form that the compiler turns into vector instructions. */
static inline bool gild_is_zero(const void *from, size_t length) {
    const unsigned char *bytes = from;
    uint64_t words[32];
    if (length >= 8 && gild_get_le64(bytes))
        return false;
    while (length >= sizeof words) {
        uint64_t any = 0;
        memcpy(words, bytes, sizeof words);
        for (unsigned i = 0; i < 32; i++)
            any |= words[i];
        if (any)
            return false;
        bytes += sizeof words;
        length -= sizeof words;
    }
    unsigned char rest = 0;
    for (size_t i = 0; i < length; i++)
        rest |= bytes[i];
    return rest == 0;
}

/* gild_is_zero of one 4 KiB block. */
static inline bool gild_is_zero_block(const void *block) {
    return gild_is_zero(block, 4096);
}

#endif
