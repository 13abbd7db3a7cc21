/* Pseudo-random numbers for tests, simulators and sampling: xoshiro256** seeded by splitmix64
 * (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2018). The same seed
 * gives the same run. Not for secrets. */
#ifndef GILD_BASE_PRNG_H
#define GILD_BASE_PRNG_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct gild_prng {
    uint64_t state[4];
};

static inline uint64_t gild_splitmix64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline void gild_prng_seed(struct gild_prng *prng, uint64_t seed) {
    for (unsigned i = 0; i < 4; i++)
        prng->state[i] = gild_splitmix64(&seed);
}

static inline uint64_t gild_prng_rotate(uint64_t x, unsigned by) {
    return x << by | x >> (64 - by);
}

static inline uint64_t gild_prng_next(struct gild_prng *prng) {
    uint64_t *s = prng->state;
    uint64_t result = gild_prng_rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = gild_prng_rotate(s[3], 45);
    return result;
}

/* Uniform in [0, bound), bound > 0; the bias is below bound / 2^64. */
static inline uint64_t gild_prng_below(struct gild_prng *prng, uint64_t bound) {
    return (uint64_t)((unsigned __int128)gild_prng_next(prng) * bound >> 64);
}

static inline void gild_prng_fill(struct gild_prng *prng, void *to, size_t length) {
    unsigned char *bytes = to;
    while (length) {
        uint64_t value = gild_prng_next(prng);
        size_t part = length < sizeof value ? length : sizeof value;
        memcpy(bytes, &value, part);
        bytes += part;
        length -= part;
    }
}

#endif
