/* See oracle.h. One thread at a time. */
#include "oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"

#define MAGIC 0x646c69672d6d6973ull

struct stamp {
    uint64_t magic;
    uint32_t disk, sector, generation, reserved;
};

void oracle_init(struct oracle *oracle, uint32_t disk, uint32_t sector_count) {
    *oracle = (struct oracle){.disk = disk, .sector_count = sector_count, .next_generation = 1};
    oracle->sectors = calloc(sector_count, sizeof *oracle->sectors);
    for (uint32_t i = 0; oracle->sectors && i < sector_count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        sector->room = 2;
        sector->values = calloc(sector->room, sizeof *sector->values);
        if (!sector->values)
            abort();
        sector->values[sector->count++] = (struct oracle_value){.zero = true, .acknowledged = 1};
    }
    if (!oracle->sectors)
        abort();
}

void oracle_fill(const struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                 void *out) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t words[ORACLE_SECTOR / 8];
        struct stamp stamp = {MAGIC, oracle->disk, first + i, generation, 0};
        uint64_t state = (uint64_t)generation << 40 ^ (uint64_t)oracle->disk << 32 ^ (first + i);
        for (size_t j = 0; j < ORACLE_SECTOR / 8; j++)
            words[j] = gild_splitmix64(&state);
        memcpy(words, &stamp, sizeof stamp);
        memcpy((uint8_t *)out + (size_t)i * ORACLE_SECTOR, words, ORACLE_SECTOR);
    }
}

uint32_t oracle_sent(struct oracle *oracle, uint32_t first, uint32_t count, bool zero) {
    uint32_t generation = oracle->next_generation++;
    for (uint32_t i = first; i < first + count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        if (sector->count == sector->room) {
            sector->room *= 2;
            sector->values = realloc(sector->values, sector->room * sizeof *sector->values);
            if (!sector->values)
                abort();
        }
        sector->values[sector->count++] = (struct oracle_value){generation, zero, 0};
    }
    return generation;
}

static void drop_before(struct oracle_sector *sector, uint32_t first) {
    sector->count -= first;
    memmove(sector->values, sector->values + first, sector->count * sizeof *sector->values);
}

void oracle_acknowledged(struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                         uint64_t moment, bool durable) {
    for (uint32_t i = first; i < first + count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        for (uint32_t j = 0; j < sector->count; j++) {
            if (sector->values[j].generation != generation)
                continue;
            sector->values[j].acknowledged = moment;
            if (durable)
                drop_before(sector, j);
            break;
        }
    }
}

void oracle_flushed(struct oracle *oracle, uint64_t moment) {
    for (uint32_t i = 0; i < oracle->sector_count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        uint32_t floor = 0;
        for (uint32_t j = 1; j < sector->count; j++)
            if (sector->values[j].acknowledged && sector->values[j].acknowledged < moment)
                floor = j;
        if (floor)
            drop_before(sector, floor);
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *bytes) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, ORACLE_SECTOR - 1) == 0;
}

static void complain(const struct oracle *oracle, uint32_t at, const uint8_t *bytes) {
    const struct oracle_sector *sector = &oracle->sectors[at];
    struct stamp stamp;
    memcpy(&stamp, bytes, sizeof stamp);
    fprintf(stderr, "disk %u, sector %u: found ", oracle->disk, at);
    if (is_zero(bytes))
        fprintf(stderr, "zeroes");
    else if (stamp.magic == MAGIC)
        fprintf(stderr, "disk %u, sector %u, generation %u", stamp.disk, stamp.sector,
                stamp.generation);
    else
        fprintf(stderr, "what was never written");
    fprintf(stderr, "; may be:");
    for (uint32_t i = 0; i < sector->count; i++)
        fprintf(stderr, " %u%s%s", sector->values[i].generation,
                sector->values[i].zero ? " (zeroes)" : "",
                sector->values[i].acknowledged ? "" : " (under way)");
    fprintf(stderr, "\n");
}

/* Does the sector hold this value? */
static bool holds(const struct oracle *oracle, uint32_t at, const struct oracle_value *value,
                  const uint8_t *bytes) {
    uint8_t wanted[ORACLE_SECTOR];
    if (value->zero)
        return is_zero(bytes);
    oracle_fill(oracle, value->generation, at, 1, wanted);
    return memcmp(bytes, wanted, ORACLE_SECTOR) == 0;
}

static uint32_t newest_acknowledged(const struct oracle_sector *sector) {
    uint32_t at = sector->count - 1;
    while (at > 0 && !sector->values[at].acknowledged)
        at--;
    return at;
}

bool oracle_read(struct oracle *oracle, uint32_t first, uint32_t count, const void *bytes,
                 bool settle) {
    bool right = true;
    for (uint32_t i = 0; i < count; i++) {
        struct oracle_sector *sector = &oracle->sectors[first + i];
        const uint8_t *found = (const uint8_t *)bytes + (size_t)i * ORACLE_SECTOR;
        /* A write that failed may have happened. */
        uint32_t at = sector->count, least = settle ? 0 : newest_acknowledged(sector);
        while (at > least && !holds(oracle, first + i, &sector->values[at - 1], found))
            at--;
        if (at == least) {
            if (right)
                complain(oracle, first + i, found);
            right = false;
        } else if (settle) {
            sector->values[0] = sector->values[at - 1];
            sector->values[0].acknowledged = 1;
            sector->count = 1;
        }
    }
    return right;
}
