/* Hashes: SHA-256 names content, XXH3-64 notices rot. XXH3 is never identity.
 *
 * Threads: any; contexts are per thread and reused, nothing is allocated after a thread's first
 * call. */
#ifndef GILD_CODEC_HASH_H
#define GILD_CODEC_HASH_H

#include <stddef.h>
#include <stdint.h>

#define GILD_SHA256_BYTES 32u

/* SHA-256 (FIPS 180-4) of `length` bytes in one go. 0, or -ENOMEM when the thread's context can not
 * be made, -EIO when the library refuses. */
int gild_sha256(const void *data, size_t length, uint8_t out[GILD_SHA256_BYTES]);

/* The same over pieces. One thread at a time per object. */
struct gild_sha256;
int gild_sha256_create(struct gild_sha256 **out); /* 0, -ENOMEM, -EIO */
int gild_sha256_update(struct gild_sha256 *sha, const void *data, size_t length);
/* The hash of all updates since create or the last final; ready for the next message. */
int gild_sha256_final(struct gild_sha256 *sha, uint8_t out[GILD_SHA256_BYTES]);
void gild_sha256_destroy(struct gild_sha256 *sha); /* NULL is fine */

/* XXH3-64 (xxHash 0.8) of `length` bytes. Pure. */
uint64_t gild_xxh3(const void *data, size_t length, uint64_t seed);

/* What maps and the log keep of a 4 KiB block: the low 32 bits of its seeded XXH3-64. Pure. */
uint32_t gild_block_check(const void *block, uint64_t seed);

#endif
