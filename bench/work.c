/* The request streams of the comparison.
 *
 * Invariants: a block has at most one write in flight, so that its last turn says what it must
 * hold; a block's content is its stamp (clone and block, turn) and 4,080 bytes of a 1 MiB random
 * pool at a place chosen by the stamp: no two alike, and nothing for a compressor to find. One
 * thread. Failure to allocate ends the program. */
#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHUNK (1u << 20)
#define BOOT_BYTES (256u << 20)
#define REPLAY_READS_PERCENT 84u

uint64_t work_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t work_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t below(uint64_t *state, uint64_t bound) {
    return (uint64_t)((unsigned __int128)work_random(state) * bound >> 64);
}

static void *need(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) {
        perror("calloc");
        exit(1);
    }
    return memory;
}

static void add_range(struct work *work, uint64_t offset, uint64_t bytes) {
    uint64_t end = offset + bytes < work->size_bytes ? offset + bytes : work->size_bytes;
    for (uint64_t b = offset / LANE_BLOCK; (b + 1) * LANE_BLOCK <= end; b++) {
        work->blocks[work->block_count++] = (uint32_t)b;
        uint32_t chunk = (uint32_t)(b * LANE_BLOCK / CHUNK);
        bool known = work->chunk_count && work->chunks[work->chunk_count - 1] == chunk;
        if (!known && (uint64_t)(chunk + 1) * CHUNK <= work->size_bytes) {
            work->chunks[work->chunk_count++] = chunk;
        }
    }
}

/* Pieces of 4 to 64 KiB at random places of the data, in the order every clone boots. */
static void make_boot_set(struct work *work) {
    static const uint32_t sizes[] = {4, 4, 4, 8, 16, 16, 32, 64};
    uint64_t random = work->seed ^ 0xb007u, total = 0;
    uint64_t want = work->block_count * LANE_BLOCK / 4;
    want = want < BOOT_BYTES ? want : BOOT_BYTES;
    work->boot = need(want / LANE_BLOCK + 1, sizeof *work->boot);
    while (total < want && work->boot_count <= want / LANE_BLOCK) {
        uint64_t offset = (uint64_t)work->blocks[below(&random, work->block_count)] * LANE_BLOCK;
        uint32_t bytes = sizes[below(&random, 8)] << 10;
        if (offset + bytes <= work->size_bytes) {
            work->boot[work->boot_count++] = (struct work_boot){.offset = offset, .bytes = bytes};
            total += bytes;
        }
    }
}

bool work_init(struct work *work, uint64_t seed, uint64_t size_bytes, unsigned clones,
               uint64_t region_bytes, const char *ranges_file) {
    uint64_t blocks = size_bytes / LANE_BLOCK, random = seed ^ 0xf00du;
    memset(work, 0, sizeof *work);
    work->seed = seed;
    work->size_bytes = size_bytes;
    work->clone_count = clones;
    work->region_blocks = (region_bytes < size_bytes ? region_bytes : size_bytes) / LANE_BLOCK;
    work->blocks = need(blocks, sizeof *work->blocks);
    work->chunks = need(size_bytes / CHUNK + 1, sizeof *work->chunks);
    work->clones = need(clones, sizeof *work->clones);
    work->pool = need(LANE_POOL_BYTES, 1);
    for (size_t i = 0; i < LANE_POOL_BYTES; i += 8) {
        uint64_t r = work_random(&random);
        memcpy(work->pool + i, &r, 8);
    }
    if (ranges_file) {
        FILE *file = fopen(ranges_file, "r");
        struct work_range range;
        if (!file) {
            perror(ranges_file);
            return false;
        }
        while (fscanf(file, "%lu %lu", &range.offset, &range.bytes) == 2) {
            add_range(work, range.offset, range.bytes);
        }
        fclose(file);
    } else {
        add_range(work, 0, size_bytes);
    }
    if (!work->block_count || !work->chunk_count) {
        fprintf(stderr, "the ranges hold no data\n");
        return false;
    }
    make_boot_set(work);
    for (unsigned c = 0; c < clones; c++) {
        work->clones[c].random = seed + 77u * c;
    }
    return true;
}

static void track_writes(struct work *work) {
    uint64_t blocks = work->size_bytes / LANE_BLOCK;
    for (unsigned c = 0; c < work->clone_count; c++) {
        if (!work->clones[c].turns) {
            work->clones[c].turns = need(blocks, sizeof *work->clones[c].turns);
            work->clones[c].busy = need(blocks, 1);
        }
    }
}

void work_begin(struct work *work, enum work_kind kind, double seconds) {
    uint64_t blocks = work->size_bytes / LANE_BLOCK;
    work->kind = kind;
    work->stopping = false;
    work->operations = work->bytes = work->reads = 0;
    histogram_init(&work->latencies);
    for (unsigned c = 0; c < work->clone_count; c++) {
        work->clones[c].cursor = 0;
        work->clones[c].flush_queued = false;
    }
    if (kind >= WORK_PREPARE) {
        track_writes(work);
    }
    if (kind == WORK_FIRST && !work->order) {
        uint64_t random = work->seed ^ 0x5caffu;
        work->order = need(blocks, sizeof *work->order);
        for (uint64_t i = 0; i < blocks; i++) {
            uint64_t j = below(&random, i + 1);
            work->order[i] = work->order[j];
            work->order[j] = (uint32_t)i;
        }
    }
    work->end_ns = seconds > 0 ? work_now_ns() + (uint64_t)(seconds * 1e9) : UINT64_MAX;
}

static bool read_at(struct lane_slot *slot, uint64_t offset, uint32_t bytes) {
    slot->command = LANE_READ;
    slot->offset = offset;
    slot->bytes = bytes;
    return true;
}

/* False if one of the blocks has a write in flight. */
static bool write_at(struct work *work, struct lane *lane, struct lane_slot *slot, uint64_t block,
                     unsigned count) {
    struct work_clone *clone = &work->clones[lane->number];
    for (unsigned i = 0; i < count; i++) {
        if (clone->busy[block + i]) {
            return false;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        clone->busy[block + i] = 1;
        slot->stamps[i].where = (uint64_t)lane->number << 40 | (block + i);
        slot->stamps[i].turn = ++clone->turns[block + i] ^ work->seed << 32;
    }
    slot->command = LANE_WRITE;
    slot->offset = block * LANE_BLOCK;
    slot->bytes = count * LANE_BLOCK;
    return true;
}

static bool flush_once(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    if (work->kind <= WORK_READ1M || clone->flush_queued || lane->in_flight) {
        return false;
    }
    clone->flush_queued = true;
    slot->command = LANE_FLUSH;
    slot->offset = slot->bytes = 0;
    return true;
}

static bool next_prepare(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    uint64_t left = work->region_blocks - clone->cursor;
    if (!left) {
        return flush_once(work, lane, slot);
    }
    unsigned count = left < LANE_WRITE_BLOCKS ? (unsigned)left : LANE_WRITE_BLOCKS;
    bool filled = write_at(work, lane, slot, clone->cursor, count);
    clone->cursor += count;
    return filled;
}

static bool next_first(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    if (clone->cursor == work->size_bytes / LANE_BLOCK) {
        return flush_once(work, lane, slot);
    }
    return write_at(work, lane, slot, work->order[clone->cursor++], 1);
}

static bool next_overwrite(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    while (!write_at(work, lane, slot, below(&clone->random, work->region_blocks), 1)) {
    }
    return true;
}

/* Writes and flushes in turn; the pair is one operation. */
static bool next_flushed(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    if (clone->cursor++ % 2 == 0) {
        clone->pair_started_ns = work_now_ns();
        return next_overwrite(work, lane, slot);
    }
    slot->command = LANE_FLUSH;
    slot->offset = slot->bytes = 0;
    return true;
}

static bool next_replay(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    if (below(&clone->random, 100) < REPLAY_READS_PERCENT) {
        const struct work_boot *piece = &work->boot[clone->cursor++ % work->boot_count];
        return read_at(slot, piece->offset, piece->bytes);
    }
    uint64_t quarter = work->size_bytes / LANE_BLOCK / 4;
    unsigned count = 1u << below(&clone->random, 3);
    while (!write_at(work, lane, slot, below(&clone->random, quarter - count), count)) {
    }
    return true;
}

bool work_next(struct work *work, struct lane *lane, struct lane_slot *slot) {
    struct work_clone *clone = &work->clones[lane->number];
    if (work->stopping) {
        return flush_once(work, lane, slot);
    }
    switch (work->kind) {
    case WORK_WARM:
        /* One clone's pass warms the image for all: they share its content. */
        if (lane->number != 0 || clone->cursor == work->chunk_count) {
            return false;
        }
        return read_at(slot, (uint64_t)work->chunks[clone->cursor++] * CHUNK, CHUNK);
    case WORK_READ1M:
        return read_at(slot, (uint64_t)work->chunks[clone->cursor++ % work->chunk_count] * CHUNK,
                       CHUNK);
    case WORK_READ4K:
        return read_at(
            slot, (uint64_t)work->blocks[below(&clone->random, work->block_count)] * LANE_BLOCK,
            LANE_BLOCK);
    case WORK_PREPARE:
        return next_prepare(work, lane, slot);
    case WORK_FIRST:
        return next_first(work, lane, slot);
    case WORK_OVERWRITE:
        return next_overwrite(work, lane, slot);
    case WORK_FLUSHED:
        return next_flushed(work, lane, slot);
    case WORK_REPLAY:
        return next_replay(work, lane, slot);
    }
    return false;
}

void work_done(struct work *work, struct lane *lane, struct lane_slot *slot, uint64_t now_ns) {
    if (now_ns >= work->end_ns) {
        work->stopping = true;
    }
    if (slot->command == LANE_WRITE) {
        for (unsigned i = 0; i < slot->bytes / LANE_BLOCK; i++) {
            work->clones[lane->number].busy[slot->offset / LANE_BLOCK + i] = 0;
        }
    }
    if (work->kind == WORK_FLUSHED) {
        if (slot->command == LANE_FLUSH && !work->clones[lane->number].flush_queued) {
            work->operations++;
            work->bytes += LANE_BLOCK;
            histogram_add(&work->latencies, now_ns - work->clones[lane->number].pair_started_ns);
        }
    } else if (slot->command != LANE_FLUSH) {
        work->operations++;
        work->bytes += slot->bytes;
        work->reads += slot->command == LANE_READ;
        histogram_add(&work->latencies, now_ns - slot->started_ns);
    }
}
