/* See content.h. Pure functions. */
#include "content.h"

#include <string.h>

#include "base/prng.h"

#define MAGIC 0x746e65746e6f63ull
#define SHARED 48u
#define SECTORS_OF_BLOCK 8u

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t state = a * 0x9e3779b97f4a7c15ull ^ b;
    return gild_splitmix64(&state);
}

static void fill(uint64_t seed, uint64_t sector, uint8_t out[CONTENT_SECTOR]) {
    uint64_t draw = mix(seed, sector / SECTORS_OF_BLOCK), origin = seed, at = sector;
    uint64_t words[CONTENT_SECTOR / 8];
    if (draw % 3 == 0) {
        memset(out, 0, CONTENT_SECTOR);
        return;
    }
    if (draw % 3 == 1) {
        origin = 0;
        at = draw / 3 % SHARED * SECTORS_OF_BLOCK + sector % SECTORS_OF_BLOCK;
    }
    uint64_t state = mix(origin, at);
    words[0] = MAGIC;
    words[1] = origin;
    words[2] = at;
    for (unsigned i = 3; i < CONTENT_SECTOR / 8; i++) /* half of it compresses */
        words[i] = i % 2 ? gild_splitmix64(&state) : origin;
    memcpy(out, words, CONTENT_SECTOR);
}

void content_sector(const struct content *content, uint32_t sector, uint8_t out[CONTENT_SECTOR]) {
    if (content->seed && sector < content->sectors)
        fill(content->seed, sector, out);
    else
        memset(out, 0, CONTENT_SECTOR);
}

void content_page(uint64_t seed, uint64_t page, uint8_t out[4096]) {
    for (unsigned i = 0; i < SECTORS_OF_BLOCK; i++)
        fill(seed, page * SECTORS_OF_BLOCK + i, out + (size_t)i * CONTENT_SECTOR);
}
