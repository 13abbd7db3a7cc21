/* See oracle.h. Out of memory ends the program. */
#include "oracle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"

#define MAGIC UINT64_C(0x6c6165722d6b6c62)

struct stamp {
    uint64_t magic;
    uint32_t disk, block, generation, reserved;
};

void oracle_init(struct oracle *oracle) {
    *oracle = (struct oracle){.made_at = ORACLE_NEVER};
}

void oracle_fini(struct oracle *oracle) {
    for (unsigned i = 0; i < oracle->disk_count; i++) {
        struct oracle_disk *disk = oracle->disks[i];
        for (uint32_t block = 0; block < disk->block_count; block++)
            free(disk->blocks[block].values);
        free(disk->blocks);
        free(disk->flushes);
        free(disk);
    }
    free(oracle->paths);
    memset(oracle, 0, sizeof *oracle);
}

struct oracle_disk *oracle_add_disk(struct oracle *oracle, const char *path, uint32_t origin,
                                    uint32_t block_count) {
    struct oracle_disk *disk = calloc(1, sizeof *disk);
    if (!disk || oracle->disk_count == sizeof oracle->disks / sizeof *oracle->disks ||
        !(disk->blocks = calloc(block_count, sizeof *disk->blocks)))
        abort();
    snprintf(disk->path, sizeof disk->path, "%s", path);
    disk->id = 100 + oracle->disk_count;
    disk->origin = origin;
    disk->block_count = block_count;
    disk->next_generation = 1;
    oracle->disks[oracle->disk_count++] = disk;
    return disk;
}

void oracle_fill(uint32_t disk, uint32_t block, uint32_t generation, uint8_t bytes[ORACLE_BLOCK]) {
    struct stamp stamp = {MAGIC, disk, block, generation, 0};
    uint64_t state = (uint64_t)generation << 40 ^ (uint64_t)disk << 20 ^ block;
    for (size_t i = 0; i < ORACLE_BLOCK; i += 8) {
        uint64_t word = gild_splitmix64(&state);
        memcpy(bytes + i, &word, 8);
    }
    memcpy(bytes, &stamp, sizeof stamp);
}

static void *grown(void *array, size_t count, uint32_t *room, size_t bytes) {
    if (count < *room)
        return array;
    *room = *room ? *room * 2 : 8;
    array = realloc(array, *room * bytes);
    if (!array)
        abort();
    return array;
}

uint32_t oracle_sent(struct oracle_disk *disk, uint32_t first, uint32_t count, bool zeroes,
                     uint64_t at) {
    uint32_t generation = disk->next_generation++;
    for (uint32_t i = first; i < first + count; i++) {
        struct oracle_block *block = &disk->blocks[i];
        block->values = grown(block->values, block->count, &block->room, sizeof *block->values);
        block->values[block->count++] = (struct oracle_value){.generation = zeroes ? 0 : generation,
                                                              .sent = at,
                                                              .acknowledged = ORACLE_NEVER,
                                                              .durable = ORACLE_NEVER};
    }
    return generation;
}

void oracle_acknowledged(struct oracle_disk *disk, uint32_t generation, uint32_t first,
                         uint32_t count, uint64_t at, bool durable) {
    (void)generation; /* the last one of each block: none is sent twice before its answer */
    for (uint32_t i = first; i < first + count; i++) {
        struct oracle_value *value = &disk->blocks[i].values[disk->blocks[i].count - 1];
        value->acknowledged = at;
        if (durable)
            value->durable = at;
    }
}

void oracle_flushed(struct oracle_disk *disk, uint64_t sent, uint64_t acknowledged) {
    disk->flushes =
        grown(disk->flushes, disk->flush_count, &disk->flush_room, sizeof *disk->flushes);
    disk->flushes[disk->flush_count].sent = sent;
    disk->flushes[disk->flush_count++].acknowledged = acknowledged;
}

unsigned oracle_path_sent(struct oracle *oracle, const char *path, bool exists, uint64_t at) {
    oracle->paths =
        grown(oracle->paths, oracle->path_count, &oracle->path_room, sizeof *oracle->paths);
    struct oracle_path *entry = &oracle->paths[oracle->path_count];
    *entry = (struct oracle_path){.exists = exists, .sent = at, .acknowledged = ORACLE_NEVER};
    snprintf(entry->path, sizeof entry->path, "%s", path);
    return oracle->path_count++;
}

/* ---- judging --------------------------------------------------------------------------------- */

static bool is_durable(const struct oracle_disk *disk, const struct oracle_value *value,
                       uint64_t at) {
    if (value->durable <= at)
        return true;
    for (uint32_t i = 0; i < disk->flush_count; i++)
        if (value->acknowledged < disk->flushes[i].sent && disk->flushes[i].acknowledged <= at)
            return true;
    return false;
}

static bool all_zero(const uint8_t *bytes) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, ORACLE_BLOCK - 1) == 0;
}

static bool holds(uint32_t disk, uint32_t block, uint32_t generation, const uint8_t *bytes) {
    uint8_t wanted[ORACLE_BLOCK];
    oracle_fill(disk, block, generation, wanted);
    return memcmp(wanted, bytes, ORACLE_BLOCK) == 0;
}

static bool is_value(const struct oracle_disk *disk, uint32_t block, uint32_t generation,
                     const uint8_t *bytes) {
    return generation ? holds(disk->id, block, generation, bytes) : all_zero(bytes);
}

static bool is_origin(const struct oracle_disk *disk, uint32_t block, const uint8_t *bytes) {
    return disk->origin ? holds(disk->origin, block, 0, bytes) : all_zero(bytes);
}

static const char *describe(const struct oracle_disk *disk, uint32_t block, const uint8_t *bytes,
                            uint32_t must) {
    static char text[300];
    struct stamp stamp;
    char what[120] = "bytes of nobody";
    memcpy(&stamp, bytes, sizeof stamp);
    if (all_zero(bytes))
        snprintf(what, sizeof what, "zeroes");
    else if (stamp.magic == MAGIC)
        snprintf(what, sizeof what, "disk %u block %u generation %u%s", stamp.disk, stamp.block,
                 stamp.generation,
                 holds(stamp.disk, stamp.block, stamp.generation, bytes) ? "" : ", garbled");
    snprintf(text, sizeof text, "%s (disk %u) block %u holds %s; at least generation %u is due",
             disk->path, disk->id, block, what, must);
    return text;
}

const char *oracle_judge(const struct oracle_disk *disk, uint32_t number,
                         const uint8_t bytes[ORACLE_BLOCK], uint64_t at, bool *lost) {
    const struct oracle_block *block = &disk->blocks[number];
    uint32_t first = 0; /* the oldest that may be there, as an index; count: see `origin` */
    bool origin = true;
    for (uint32_t i = 0; i < block->count; i++)
        if (block->values[i].sent < at && is_durable(disk, &block->values[i], at)) {
            first = i;
            origin = false;
        }
    *lost = false;
    if (origin && is_origin(disk, number, bytes))
        return NULL;
    for (uint32_t i = first; i < block->count && block->values[i].sent < at; i++)
        if (is_value(disk, number, block->values[i].generation, bytes))
            return NULL;
    *lost = is_origin(disk, number, bytes);
    for (uint32_t i = 0; i < first; i++)
        *lost |= is_value(disk, number, block->values[i].generation, bytes);
    return describe(disk, number, bytes, origin ? 0 : block->values[first].generation);
}

void oracle_path_state(const struct oracle *oracle, const char *path, uint64_t at, bool *may,
                       bool *must) {
    *may = *must = false;
    for (unsigned i = 0; i < oracle->path_count; i++) {
        const struct oracle_path *entry = &oracle->paths[i];
        if (strcmp(entry->path, path) != 0 || entry->sent >= at)
            continue;
        if (entry->acknowledged <= at) {
            *may = *must = entry->exists;
        } else {
            *may |= entry->exists;
            *must &= entry->exists;
        }
    }
}
