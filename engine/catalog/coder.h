/* Cursors over a record's bytes: what records_*.c encode and decode with. Every record begins with
 * u16 type, u16 version. A reader that fails stays failed and gives zeroes; the caller looks once,
 * at the end. Pure. */
#ifndef GILD_CATALOG_CODER_H
#define GILD_CATALOG_CODER_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"

/* Type 1 is the counter of catalog.c. A number is never given again. */
enum catalog_record_type {
    CATALOG_RECORD_IMAGE = 2,
    CATALOG_RECORD_VERSION = 3,
    CATALOG_RECORD_DESKTOP = 4,
    CATALOG_RECORD_POOL = 5,
    CATALOG_RECORD_DELTA = 6,
    CATALOG_RECORD_MAP = 7,
    CATALOG_RECORD_PACK = 8,
    CATALOG_RECORD_SEGMENT = 9,
    CATALOG_RECORD_STREAM = 10,
    CATALOG_RECORD_QUARANTINE = 11,
    CATALOG_RECORD_LOST = 12,
    CATALOG_RECORD_GROWTH = 13,
    CATALOG_RECORD_LIMITS = 14,
    CATALOG_RECORD_QUOTA = 15,
};
#define CATALOG_RECORD_VERSION_1 1u
#define CATALOG_RECORD_VERSION_2 2u

struct catalog_writer {
    unsigned char *start, *at;
};

static inline void catalog_put_u8(struct catalog_writer *to, uint8_t value) {
    *to->at++ = value;
}

static inline void catalog_put_u16(struct catalog_writer *to, uint16_t value) {
    gild_put_le16(to->at, value);
    to->at += 2;
}

static inline void catalog_put_u32(struct catalog_writer *to, uint32_t value) {
    gild_put_le32(to->at, value);
    to->at += 4;
}

static inline void catalog_put_u64(struct catalog_writer *to, uint64_t value) {
    gild_put_le64(to->at, value);
    to->at += 8;
}

static inline void catalog_put_bytes(struct catalog_writer *to, const void *bytes, size_t length) {
    memcpy(to->at, bytes, length);
    to->at += length;
}

/* u8 length, then the bytes, no NUL. A string without a NUL in `room` bytes is cut. */
static inline void catalog_put_text(struct catalog_writer *to, const char *text, size_t room) {
    size_t length = strnlen(text, room - 1);
    catalog_put_u8(to, (uint8_t)length);
    catalog_put_bytes(to, text, length);
}

static inline struct catalog_writer catalog_begin_as(void *out, enum catalog_record_type type,
                                                     unsigned version) {
    struct catalog_writer to = {out, out};
    catalog_put_u16(&to, (uint16_t)type);
    catalog_put_u16(&to, (uint16_t)version);
    return to;
}

static inline struct catalog_writer catalog_begin(void *out, enum catalog_record_type type) {
    return catalog_begin_as(out, type, CATALOG_RECORD_VERSION_1);
}

static inline size_t catalog_length(const struct catalog_writer *to) {
    return (size_t)(to->at - to->start);
}

struct catalog_reader {
    const unsigned char *at, *end;
    bool failed;
    unsigned version;
};

/* The next `length` bytes, or NULL once the record has been too short. */
static inline const unsigned char *catalog_take(struct catalog_reader *from, size_t length) {
    const unsigned char *bytes = from->at;
    if (from->failed || (size_t)(from->end - from->at) < length) {
        from->failed = true;
        return NULL;
    }
    from->at += length;
    return bytes;
}

static inline uint8_t catalog_get_u8(struct catalog_reader *from) {
    const unsigned char *bytes = catalog_take(from, 1);
    return bytes ? *bytes : 0;
}

static inline uint16_t catalog_get_u16(struct catalog_reader *from) {
    const unsigned char *bytes = catalog_take(from, 2);
    return bytes ? gild_get_le16(bytes) : 0;
}

static inline uint32_t catalog_get_u32(struct catalog_reader *from) {
    const unsigned char *bytes = catalog_take(from, 4);
    return bytes ? gild_get_le32(bytes) : 0;
}

static inline uint64_t catalog_get_u64(struct catalog_reader *from) {
    const unsigned char *bytes = catalog_take(from, 8);
    return bytes ? gild_get_le64(bytes) : 0;
}

static inline void catalog_get_bytes(struct catalog_reader *from, void *out, size_t length) {
    const unsigned char *bytes = catalog_take(from, length);
    if (bytes)
        memcpy(out, bytes, length);
    else
        memset(out, 0, length);
}

/* Fills `out` (room bytes, NUL included) with the text, and zeroes behind it. */
static inline void catalog_get_text(struct catalog_reader *from, char *out, size_t room) {
    size_t length = catalog_get_u8(from);
    const unsigned char *bytes = length < room ? catalog_take(from, length) : NULL;
    memset(out, 0, room);
    if (!bytes || memchr(bytes, 0, length))
        from->failed = true;
    else
        memcpy(out, bytes, length);
}

/* A number that must be below `limit`. */
static inline uint8_t catalog_get_enum(struct catalog_reader *from, uint8_t limit) {
    uint8_t value = catalog_get_u8(from);
    if (value >= limit)
        from->failed = true;
    return value;
}

/* Of any layout up to `newest`: from.version says which. */
static inline struct catalog_reader catalog_open_upto(const void *value, size_t length,
                                                      enum catalog_record_type type,
                                                      unsigned newest) {
    struct catalog_reader from = {value, (const unsigned char *)value + length, false, 0};
    uint16_t is = catalog_get_u16(&from);
    from.version = catalog_get_u16(&from);
    if (is != (uint16_t)type || from.version < CATALOG_RECORD_VERSION_1 || from.version > newest)
        from.failed = true;
    return from;
}

static inline struct catalog_reader catalog_open(const void *value, size_t length,
                                                 enum catalog_record_type type) {
    return catalog_open_upto(value, length, type, CATALOG_RECORD_VERSION_1);
}

/* 0 if all was there and nothing was left over, else -EUCLEAN. */
static inline int catalog_end(const struct catalog_reader *from) {
    return from->failed || from->at != from->end ? -EUCLEAN : 0;
}

#endif
