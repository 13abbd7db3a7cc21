/* Map leaves read ahead of a replay: one after the other, each would cost the device's latency, and
 * a log of 1 GiB may change some ten thousand of them.
 *
 *   entries -> leaves (sorted, each once) -> their places -> runs of neighbours
 *           -> [threads: read a run, verify its nodes] -> installed in the maps, here
 *
 * A checkpoint writes a disk's leaves side by side, so runs tend to be long. Nothing here can fail:
 * a leaf that could not be read, or is rotten, is simply not in memory when the replay wants it.
 * Before reactors run; the threads touch only their own nodes' bytes. */
#include <errno.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "disk/recovery.h"
#include "io/file.h"

#define READERS 8u
#define ROUND_BLOCKS 3072u /* in memory at once */
#define RUN_MOST 256u      /* blocks of one read */
#define GAP_MOST 8u        /* blocks that are read for nothing rather than begin another */
#define FILL_LEAVES 64u    /* of a trim, that are worth it */

struct leaf_name {
    uint64_t delta_id, leaf;
};

struct want {
    struct gild_disk *disk;
    uint64_t leaf, place;
    bool good;
};

struct run {
    uint32_t first, count; /* wants */
    uint32_t at, blocks;   /* in the round's memory */
};

struct preload {
    struct replay *replay;
    struct leaf_name *names;
    size_t name_count, room;
    struct want *wants;
    size_t count;
    struct run *runs;
    size_t run_count;
    uint8_t *memory;
    uint32_t round_blocks;
};

static int want_leaf(struct preload *p, uint64_t delta_id, uint64_t leaf) {
    const struct leaf_name *last = p->name_count ? &p->names[p->name_count - 1] : NULL;
    if (last && last->delta_id == delta_id && last->leaf == leaf)
        return 0;
    if (p->name_count == p->room) {
        size_t room = p->room ? 2 * p->room : 4096;
        struct leaf_name *grown = realloc(p->names, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        p->names = grown;
        p->room = room;
    }
    p->names[p->name_count++] = (struct leaf_name){delta_id, leaf};
    return 0;
}

static int want_batch(void *context, const struct gild_batch_header *header, const uint8_t *payload,
                      bool in_doubt) {
    struct preload *p = context;
    int err = 0;
    (void)payload, (void)in_doubt;
    for (uint32_t i = 0; i < header->entry_count && !err; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        if (entry->kind == GILD_ENTRY_NODE)
            continue;
        uint64_t leaf = entry->block / GILD_LEAF_BLOCKS, leaves = 1;
        if (entry->kind != GILD_ENTRY_DATA)
            leaves = (entry->block % GILD_LEAF_BLOCKS + entry->count) / GILD_LEAF_BLOCKS + 1;
        for (uint64_t n = 0; n < leaves && n < FILL_LEAVES && !err; n++)
            err = want_leaf(p, entry->delta, leaf + n);
    }
    return err;
}

static int by_leaf(const void *a, const void *b) {
    const struct leaf_name *x = a, *y = b;
    if (x->delta_id != y->delta_id)
        return x->delta_id < y->delta_id ? -1 : 1;
    return x->leaf < y->leaf ? -1 : x->leaf > y->leaf;
}

static int by_place(const void *a, const void *b) {
    const struct want *x = a, *y = b;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Where a leaf is that is not in memory; false: nowhere, or it can not be said. */
static bool locate(struct preload *p, const struct leaf_name *name, struct want *want) {
    struct gild_map_need need;
    uint64_t ref;
    *want = (struct want){.leaf = name->leaf};
    if (recovery_disk(p->replay, name->delta_id, &want->disk) != 0 ||
        want->leaf >= (uint64_t)want->disk->map.dir_count * GILD_DIR_REFS)
        return false;
    while (gild_delta_look(&want->disk->map, want->leaf, &ref, &need) == GILD_MAP_NEED_NODE)
        if (recovery_satisfy(p->replay, want->disk, GILD_MAP_NEED_NODE, &need) != 0)
            return false;
    want->place = ref;
    return !gild_ref_is_page(ref) && gild_place_type(ref) == GILD_PLACE_LOG;
}

static int locate_all(struct preload *p) {
    size_t names = 0;
    if (!p->name_count)
        return 0;
    qsort(p->names, p->name_count, sizeof *p->names, by_leaf);
    for (size_t i = 0; i < p->name_count; i++)
        if (!i || by_leaf(&p->names[i], &p->names[names - 1]) != 0)
            p->names[names++] = p->names[i];
    p->wants = malloc(names * sizeof *p->wants);
    if (!p->wants)
        return -ENOMEM;
    for (size_t i = 0; i < names; i++)
        if (locate(p, &p->names[i], &p->wants[p->count]))
            p->count++;
    if (p->count)
        qsort(p->wants, p->count, sizeof *p->wants, by_place);
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

static void read_run(void *context, unsigned thread, size_t number) {
    struct preload *p = context;
    const struct run *run = &p->runs[number];
    uint64_t place = p->wants[run->first].place;
    struct gild_segment *segment =
        gild_segments_find(p->replay->store->segments, gild_place_serial(place));
    (void)thread;
    if (!segment || segment->fd < 0)
        return;
    uint8_t *to = p->memory + (size_t)run->at * GILD_LOG_BLOCK;
    if (gild_file_read(segment->fd, to, (size_t)run->blocks * GILD_LOG_BLOCK,
                       (uint64_t)gild_place_offset(place) * GILD_LOG_BLOCK) != 0)
        return;
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        struct want *want = &p->wants[i];
        const uint8_t *node = to + (size_t)(want->place - place) * GILD_LOG_BLOCK;
        want->good = gild_delta_node_verify(node, GILD_NODE_LEAF, want->disk->delta_id, want->leaf,
                                            want->place) == 0;
    }
}

/* The run that begins with want `first`; its blocks are counted from its first place. */
static struct run run_of(const struct preload *p, size_t first) {
    struct run run = {.first = (uint32_t)first, .count = 1, .blocks = 1};
    uint64_t place = p->wants[first].place;
    for (size_t i = first + 1; i < p->count; i++) {
        uint64_t other = p->wants[i].place;
        if (gild_place_serial(other) != gild_place_serial(place) || other - place >= RUN_MOST ||
            other - place > run.blocks + GAP_MOST)
            break;
        run.blocks = (uint32_t)(other - place) + 1;
        run.count++;
    }
    return run;
}

static void install(struct preload *p, const struct run *run) {
    uint64_t place = p->wants[run->first].place;
    const uint8_t *from = p->memory + (size_t)run->at * GILD_LOG_BLOCK;
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        const struct want *want = &p->wants[i];
        struct gild_map_need need = {want->place, want->leaf, GILD_NODE_LEAF};
        if (want->good)
            gild_delta_install(&want->disk->map, &need,
                               from + (size_t)(want->place - place) * GILD_LOG_BLOCK);
    }
}

/* As many runs from want `first` on as fit into memory; gives the next want. */
static size_t round_from(struct preload *p, size_t first) {
    uint32_t at = 0;
    p->run_count = 0;
    while (first < p->count) {
        struct run run = run_of(p, first);
        if (at + run.blocks > p->round_blocks)
            break;
        run.at = at;
        at += run.blocks;
        first += run.count;
        p->runs[p->run_count++] = run;
    }
    gild_parallel(READERS, p->run_count, read_run, p);
    for (size_t i = 0; i < p->run_count; i++)
        install(p, &p->runs[i]);
    return first;
}

void preload_leaves(struct replay *replay) {
    struct preload p = {.replay = replay};
    int err = gild_log_again(replay->store->recovered, want_batch, &p);
    if (!err)
        err = locate_all(&p);
    if (!err && p.count > 1) {
        p.round_blocks = p.count < ROUND_BLOCKS / (GAP_MOST + 1)
                             ? (uint32_t)p.count * (GAP_MOST + 1)
                             : ROUND_BLOCKS;
        p.memory = gild_file_buffer((size_t)p.round_blocks * GILD_LOG_BLOCK);
        p.runs = malloc(p.round_blocks * sizeof *p.runs);
        for (size_t next = 0; p.memory && p.runs && next < p.count;)
            next = round_from(&p, next);
    }
    free(p.memory);
    free(p.runs);
    free(p.wants);
    free(p.names);
}
