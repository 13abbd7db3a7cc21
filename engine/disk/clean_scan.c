/* Reading a full segment for the cleaner: its batches say what each block in it was, when it was
 * written. A batch that can not be read hides its blocks; they stay where they are, and a check or
 * a scrub says what is wrong with them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/cleaner.h"
#include "io/file.h"

#define READ_BYTES (1u << 20)

static int add(struct clean_scan *scan, const struct clean_block *block) {
    if (scan->count == scan->block_room) {
        size_t room = scan->block_room ? 2 * scan->block_room : 4096;
        struct clean_block *grown = realloc(scan->blocks, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        scan->blocks = grown;
        scan->block_room = room;
    }
    scan->blocks[scan->count++] = *block;
    return 0;
}

static int take_entry(struct clean_scan *scan, uint64_t serial, uint32_t offset,
                      const struct gild_log_entry *entry) {
    const uint8_t *bytes = scan->bytes + (size_t)offset * GILD_LOG_BLOCK;
    struct clean_block block = {
        .delta = entry->delta,
        .log_check = entry->check,
        .move = {.block = entry->block,
                 .from = gild_place_log(serial, offset),
                 .data = bytes,
                 .age_s = entry->age_s},
    };
    if (entry->kind == GILD_ENTRY_NODE) {
        const struct gild_node_header *node = (const void *)bytes;
        if (node->kind < GILD_NODE_ROOT || node->kind > GILD_NODE_LEAF)
            return 0; /* rotten: it stays */
        block.move.node = (uint8_t)node->kind;
    }
    return add(scan, &block);
}

static int take_batch(struct clean_scan *scan, uint64_t serial,
                      const struct gild_batch_header *header) {
    uint32_t offset = header->offset + 1, end = offset + header->payload_blocks;
    int err = 0;
    for (uint32_t i = 0; i < header->entry_count && offset < end && !err; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        if (entry->kind != GILD_ENTRY_DATA && entry->kind != GILD_ENTRY_NODE)
            continue;
        err = take_entry(scan, serial, offset++, entry);
    }
    return err;
}

static int by_disk(const void *a, const void *b) {
    const struct clean_block *x = a, *y = b;
    if (x->delta != y->delta)
        return x->delta < y->delta ? -1 : 1;
    if (x->move.node != y->move.node)
        return x->move.node < y->move.node ? -1 : 1;
    if (x->move.block != y->move.block)
        return x->move.block < y->move.block ? -1 : 1;
    return x->move.from < y->move.from ? -1 : x->move.from > y->move.from;
}

static int read_whole(const struct gild_segment *segment, struct pace *pace,
                      struct clean_scan *scan) {
    size_t bytes = (size_t)segment->blocks * GILD_LOG_BLOCK;
    if (scan->room < bytes) {
        free(scan->bytes);
        scan->room = 0;
        scan->bytes = gild_file_buffer(bytes);
        if (!scan->bytes)
            return -ENOMEM;
        scan->room = bytes;
    }
    int err = 0;
    for (size_t at = 0; at < bytes && !err; at += READ_BYTES) {
        size_t part = bytes - at < READ_BYTES ? bytes - at : READ_BYTES;
        err = pace_take(pace, part);
        if (!err)
            err = gild_file_read(segment->fd, scan->bytes + at, part, at);
    }
    return err;
}

int cleaner_scan(struct gild_store *store, const struct gild_segment *segment, struct pace *pace,
                 struct clean_scan *scan) {
    int err = read_whole(segment, pace, scan);
    scan->count = 0;
    for (uint32_t offset = 1; offset < segment->blocks && !err;) {
        const struct gild_batch_header *header =
            (const void *)(scan->bytes + (size_t)offset * GILD_LOG_BLOCK);
        if (!gild_batch_valid(header, store->id, segment->serial, segment->blocks, offset)) {
            offset++; /* its end, a torn tail, or rot */
            continue;
        }
        err = take_batch(scan, segment->serial, header);
        offset += 1 + header->payload_blocks;
    }
    if (!err && scan->count)
        qsort(scan->blocks, scan->count, sizeof *scan->blocks, by_disk);
    return err;
}

void cleaner_scan_free(struct clean_scan *scan) {
    free(scan->bytes);
    free(scan->blocks);
    *scan = (struct clean_scan){0};
}
