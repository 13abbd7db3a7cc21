/* Arithmetic on sizes that come from outside: it says so when it would wrap. Pure. */
#ifndef GILD_BASE_CHECKED_H
#define GILD_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True if it fits; *out is undefined else. */
static inline bool gild_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

static inline bool gild_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* Does [offset, offset + length) lie within [0, size)? An empty range at the end does. */
static inline bool gild_range_within(uint64_t offset, uint64_t length, uint64_t size) {
    return offset <= size && length <= size - offset;
}

/* "10G", "64K", "1T", "4096": powers of 1024; also "10GiB" and lower case. 0, -EINVAL (not a size)
 * or -ERANGE (more than 2^63 - 1, what a file offset holds). */
int gild_parse_size(const char *text, uint64_t *bytes);

/* The shortest such text with at most one decimal ("10 GiB" -> "10G", "1.5G", "512"); returns
 * `text`. 16 bytes always suffice. */
char *gild_format_size(uint64_t bytes, char *text, size_t room);

#endif
