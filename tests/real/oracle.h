/* What a workload was told, and so what a store must hold afterwards, whenever the power goes.
 *
 * Everything has a position: the trace's, or a count where nothing is traced. A state of the store
 * is judged as of a position: what was acknowledged before it must be there, what was asked for
 * before it may be, nothing else may.
 *
 * Each block that is written says its disk, its number and its generation. Threads: one. */
#ifndef GILD_TESTS_REAL_ORACLE_H
#define GILD_TESTS_REAL_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ORACLE_BLOCK 4096u
#define ORACLE_NEVER UINT64_MAX /* not acknowledged */
#define ORACLE_LATEST (UINT64_MAX - 1)

struct oracle_value {
    uint32_t generation; /* 0: zeroes */
    uint64_t sent, acknowledged;
    uint64_t durable; /* acknowledged with FUA, or ORACLE_NEVER */
};

struct oracle_block {
    struct oracle_value *values; /* in the order of sending; before the first: the origin */
    uint32_t count, room;
};

struct oracle_disk {
    char path[64];
    uint32_t id, origin; /* of the disk; of the image below, 0 = zeroes */
    uint32_t block_count, next_generation;
    struct oracle_block *blocks;
    struct {
        uint64_t sent, acknowledged;
    } * flushes;
    uint32_t flush_count, flush_room;
};

/* Does a path exist? Each change of that, in order. */
struct oracle_path {
    char path[64];
    bool exists; /* afterwards */
    uint64_t sent, acknowledged;
};

struct oracle {
    struct oracle_disk *disks[16];
    unsigned disk_count;
    struct oracle_path *paths;
    unsigned path_count, path_room;
    uint64_t made_at; /* `store init` was acknowledged; ORACLE_NEVER: not */
};

void oracle_init(struct oracle *oracle);
void oracle_fini(struct oracle *oracle);

struct oracle_disk *oracle_add_disk(struct oracle *oracle, const char *path, uint32_t origin,
                                    uint32_t block_count);
void oracle_fill(uint32_t disk, uint32_t block, uint32_t generation, uint8_t bytes[ORACLE_BLOCK]);

uint32_t oracle_sent(struct oracle_disk *disk, uint32_t first, uint32_t count, bool zeroes,
                     uint64_t at);
void oracle_acknowledged(struct oracle_disk *disk, uint32_t generation, uint32_t first,
                         uint32_t count, uint64_t at, bool durable);
void oracle_flushed(struct oracle_disk *disk, uint64_t sent, uint64_t acknowledged);

/* Gives the index, for the acknowledgement. */
unsigned oracle_path_sent(struct oracle *oracle, const char *path, bool exists, uint64_t at);

/* May the disk's block hold these bytes as of `at`? NULL: yes; else a sentence in static storage.
 * *lost: it is an acknowledgement that was lost, else wrong bytes. */
const char *oracle_judge(const struct oracle_disk *disk, uint32_t block,
                         const uint8_t bytes[ORACLE_BLOCK], uint64_t at, bool *lost);

/* May, must the path exist as of `at`? */
void oracle_path_state(const struct oracle *oracle, const char *path, uint64_t at, bool *may,
                       bool *must);

#endif
