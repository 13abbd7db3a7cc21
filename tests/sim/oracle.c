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

void oracle_init(struct oracle *oracle, uint32_t disk, uint32_t sector_count,
                 struct content origin) {
    *oracle = (struct oracle){
        .disk = disk, .sector_count = sector_count, .next_generation = 1, .origin = origin};
    oracle->sectors = calloc(sector_count, sizeof *oracle->sectors);
    for (uint32_t i = 0; oracle->sectors && i < sector_count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        sector->room = 2;
        sector->values = calloc(sector->room, sizeof *sector->values);
        if (!sector->values)
            abort();
        sector->values[sector->count++] =
            (struct oracle_value){.kind = ORACLE_ORIGIN, .sure = true, .acknowledged = 1};
    }
    if (!oracle->sectors)
        abort();
}

void oracle_fini(struct oracle *oracle) {
    for (uint32_t i = 0; i < oracle->sector_count; i++)
        free(oracle->sectors[i].values);
    free(oracle->sectors);
    memset(oracle, 0, sizeof *oracle);
}

/* Each sector names its origin; but one generation in eight writes what the other disks write, too:
 * few blocks, again and again, which the cleaner must find to be one. */
static struct stamp stamp_of(const struct oracle *oracle, uint32_t generation, uint32_t sector) {
    if (generation % 8 == 7)
        return (struct stamp){MAGIC, 0, generation / 8 % 4 * 8 + sector % 8, 7, 0};
    return (struct stamp){MAGIC, oracle->disk, sector, generation, 0};
}

void oracle_fill(const struct oracle *oracle, uint32_t generation, uint32_t first, uint32_t count,
                 void *out) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t words[ORACLE_SECTOR / 8];
        struct stamp stamp = stamp_of(oracle, generation, first + i);
        uint64_t state =
            (uint64_t)stamp.generation << 40 ^ (uint64_t)stamp.disk << 32 ^ stamp.sector;
        for (size_t j = 0; j < ORACLE_SECTOR / 8; j++)
            words[j] = gild_splitmix64(&state);
        memcpy(words, &stamp, sizeof stamp);
        memcpy((uint8_t *)out + (size_t)i * ORACLE_SECTOR, words, ORACLE_SECTOR);
    }
}

uint32_t oracle_sent(struct oracle *oracle, uint32_t first, uint32_t count, enum oracle_kind kind) {
    uint32_t generation = oracle->next_generation++;
    for (uint32_t i = first; i < first + count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        if (sector->count == sector->room) {
            sector->room *= 2;
            sector->values = realloc(sector->values, sector->room * sizeof *sector->values);
            if (!sector->values)
                abort();
        }
        sector->values[sector->count++] =
            (struct oracle_value){.generation = generation, .kind = (uint8_t)kind, .sure = true};
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
            sector->any = false;
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
    static const char *const kinds[] = {"", " (hole)", " (zeroes)", " (as cloned)"};
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
        fprintf(stderr, "what was never written there");
    fprintf(stderr, "; may be:");
    for (uint32_t i = 0; i < sector->count; i++)
        fprintf(stderr, " %u%s%s", sector->values[i].generation, kinds[sector->values[i].kind],
                sector->values[i].acknowledged ? "" : " (under way)");
    fprintf(stderr, "\n");
}

/* Does the sector hold this value? */
static bool holds(const struct oracle *oracle, uint32_t at, const struct oracle_value *value,
                  const uint8_t *bytes) {
    uint8_t wanted[ORACLE_SECTOR];
    if (value->kind == ORACLE_HOLE || value->kind == ORACLE_ZERO)
        return is_zero(bytes);
    if (value->kind == ORACLE_ORIGIN)
        content_sector(&oracle->origin, at, wanted);
    else
        oracle_fill(oracle, value->generation, at, 1, wanted);
    return memcmp(bytes, wanted, ORACLE_SECTOR) == 0;
}

/* Any that this sector has ever had. */
static bool held_once(const struct oracle *oracle, uint32_t at, const uint8_t *bytes,
                      struct oracle_value *value) {
    struct stamp stamp;
    memcpy(&stamp, bytes, sizeof stamp);
    *value = (struct oracle_value){.kind = ORACLE_ORIGIN};
    if (holds(oracle, at, value, bytes))
        return true;
    value->kind = ORACLE_HOLE;
    if (is_zero(bytes))
        return true;
    value->kind = ORACLE_DATA;
    value->generation = stamp.generation;
    if (stamp.disk == oracle->disk)
        return stamp.generation < oracle->next_generation && holds(oracle, at, value, bytes);
    for (value->generation = 7; value->generation < oracle->next_generation;
         value->generation += 8) /* what is shared does not say when it was written */
        if (holds(oracle, at, value, bytes))
            return true;
    return false;
}

static uint32_t newest_acknowledged(const struct oracle_sector *sector) {
    uint32_t at = sector->count - 1;
    while (at > 0 && !sector->values[at].acknowledged)
        at--;
    return at;
}

void oracle_power_on(struct oracle *oracle) {
    for (uint32_t i = 0; i < oracle->sector_count; i++) {
        struct oracle_sector *sector = &oracle->sectors[i];
        if (sector->count ==
            1) /* acknowledged; not touched: it is shared with the process before */
            continue;
        sector->values[0].acknowledged = 1;
        for (uint32_t j = 1; j < sector->count; j++)
            sector->values[j].acknowledged = 0;
    }
}

bool oracle_read(struct oracle *oracle, uint32_t first, uint32_t count, const void *bytes,
                 enum oracle_mode mode) {
    bool right = true;
    for (uint32_t i = 0; i < count; i++) {
        struct oracle_sector *sector = &oracle->sectors[first + i];
        struct oracle_value value;
        const uint8_t *found = (const uint8_t *)bytes + (size_t)i * ORACLE_SECTOR;
        /* A write that failed may have happened. */
        uint32_t at = sector->count, least = newest_acknowledged(sector);
        while (at > least && !holds(oracle, first + i, &sector->values[at - 1], found))
            at--;
        if (at > least) {
            value = sector->values[at - 1];
            value.sure = value.sure && sector->count == 1 && mode != ORACLE_STALE;
        } else if (!(mode == ORACLE_STALE || sector->any) ||
                   !held_once(oracle, first + i, found, &value)) {
            if (right)
                complain(oracle, first + i, found);
            right = false;
            continue;
        }
        if (mode != ORACLE_CURRENT) {
            value.acknowledged = 1;
            sector->values[0] = value;
            sector->count = 1;
            sector->any = false;
        }
    }
    return right;
}

void oracle_unread(struct oracle *oracle, uint32_t first, uint32_t count) {
    for (uint32_t i = first; i < first + count; i++)
        oracle->sectors[i].any = true;
}

/* ---- block status ---------------------------------------------------------------------------- */

static bool origin_is_zero(const struct oracle *oracle, uint32_t at) {
    uint8_t bytes[ORACLE_SECTOR];
    content_sector(&oracle->origin, at, bytes);
    return is_zero(bytes);
}

/* The block's eight sectors were last written by one op. */
static bool by_one_op(const struct oracle *oracle, uint32_t at) {
    uint32_t first = at / 8 * 8;
    const struct oracle_value *one = &oracle->sectors[first].values[0];
    for (uint32_t i = first; i < first + 8; i++) {
        if (i >= oracle->sector_count)
            return false;
        const struct oracle_sector *sector = &oracle->sectors[i];
        const struct oracle_value *value = &sector->values[newest_acknowledged(sector)];
        if (i == first)
            one = value;
        if (value != &sector->values[sector->count - 1] || !value->sure ||
            value->generation != one->generation)
            return false;
    }
    return true;
}

bool oracle_status(const struct oracle *oracle, uint32_t first, uint32_t count, bool hole,
                   bool zero) {
    for (uint32_t at = first; at < first + count; at++) {
        const struct oracle_sector *sector = &oracle->sectors[at];
        uint32_t newest = newest_acknowledged(sector);
        const struct oracle_value *value = &sector->values[newest];
        const char *wrong = NULL;
        if (newest + 1 != sector->count || sector->any)
            continue; /* one that failed since may have happened */
        bool is_data = value->kind == ORACLE_DATA ||
                       (value->kind == ORACLE_ORIGIN && !origin_is_zero(oracle, at));
        if ((hole || zero) && is_data)
            wrong = "data is reported as zeroes";
        else if (hole && value->kind == ORACLE_ZERO && value->sure)
            wrong = "what stays allocated is reported as a hole";
        else if (!(hole && zero) && value->kind == ORACLE_HOLE && by_one_op(oracle, at))
            wrong = "what was trimmed is no hole";
        else if (!zero && value->kind == ORACLE_ZERO && by_one_op(oracle, at))
            wrong = "what was zeroed is reported as data";
        if (!wrong)
            continue;
        fprintf(stderr, "disk %u, sector %u, generation %u: %s\n", oracle->disk, at,
                value->generation, wrong);
        return false;
    }
    return true;
}
