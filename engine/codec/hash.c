/* Hashes over OpenSSL EVP and libxxhash. No state but codec_thread's; any thread. The algorithm is
 * fetched once per thread, because a lookup by name at each block costs as much as the hash. */
#include "codec/hash.h"

#include <errno.h>
#include <stdlib.h>
#include <xxhash.h>

#include "codec/thread.h"

#define BLOCK_BYTES 4096u

int gild_sha256(const void *data, size_t length, uint8_t out[GILD_SHA256_BYTES]) {
    struct codec_thread *thread = codec_thread();
    if (!thread)
        return -ENOMEM;
    if (EVP_DigestInit_ex2(thread->digest, thread->sha256, NULL) != 1 ||
        EVP_DigestUpdate(thread->digest, data, length) != 1 ||
        EVP_DigestFinal_ex(thread->digest, out, NULL) != 1)
        return -EIO;
    return 0;
}

struct gild_sha256 {
    EVP_MD *algorithm;
    EVP_MD_CTX *digest;
};

int gild_sha256_create(struct gild_sha256 **out) {
    struct gild_sha256 *sha = calloc(1, sizeof *sha);
    if (!sha)
        return -ENOMEM;
    sha->algorithm = EVP_MD_fetch(NULL, "SHA2-256", NULL);
    sha->digest = EVP_MD_CTX_new();
    if (!sha->algorithm || !sha->digest ||
        EVP_DigestInit_ex2(sha->digest, sha->algorithm, NULL) != 1) {
        gild_sha256_destroy(sha);
        return -ENOMEM;
    }
    *out = sha;
    return 0;
}

int gild_sha256_update(struct gild_sha256 *sha, const void *data, size_t length) {
    return EVP_DigestUpdate(sha->digest, data, length) == 1 ? 0 : -EIO;
}

int gild_sha256_final(struct gild_sha256 *sha, uint8_t out[GILD_SHA256_BYTES]) {
    if (EVP_DigestFinal_ex(sha->digest, out, NULL) != 1 ||
        EVP_DigestInit_ex2(sha->digest, sha->algorithm, NULL) != 1)
        return -EIO;
    return 0;
}

void gild_sha256_destroy(struct gild_sha256 *sha) {
    if (!sha)
        return;
    EVP_MD_CTX_free(sha->digest);
    EVP_MD_free(sha->algorithm);
    free(sha);
}

uint64_t gild_xxh3(const void *data, size_t length, uint64_t seed) {
    return XXH3_64bits_withSeed(data, length, seed);
}

uint32_t gild_block_check(const void *block, uint64_t seed) {
    return (uint32_t)XXH3_64bits_withSeed(block, BLOCK_BYTES, seed);
}
