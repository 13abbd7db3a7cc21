/* Verifying and decoding what a pack holds: pure functions, any thread. Nothing that comes from a
 * file is used as an offset, length or count before it was checked against the bounds that the
 * caller can rely on; a wrong check is always -EBADMSG and never data. */
#include "pack/format.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "codec/hash.h"
#include "codec/zstd.h"

static uint64_t pages_of(uint64_t bytes) {
    return (bytes + GILD_PACK_PAGE_BYTES - 1) / GILD_PACK_PAGE_BYTES;
}

int pack_layout(uint32_t groups, uint32_t blocks, uint64_t frames_end, uint64_t features,
                struct pack_layout *l) {
    /* Groups that have a block, and so a frame of at least one byte. */
    uint32_t least =
        features & PACK_DROPS ? (blocks + GILD_GROUP_BLOCKS - 1) / GILD_GROUP_BLOCKS : groups;
    if (!groups || groups > PACK_GROUPS_MAX || !blocks || blocks < least ||
        blocks > (uint64_t)groups * GILD_GROUP_BLOCKS || frames_end > PACK_FRAMES_END_MAX ||
        frames_end < GILD_PACK_PAGE_BYTES + (uint64_t)least)
        return -EUCLEAN;
    *l = (struct pack_layout){.groups = groups, .blocks = blocks, .frames_end = frames_end};
    l->table_offset = pages_of(frames_end) * GILD_PACK_PAGE_BYTES;
    l->table_pages = (groups + PACK_TABLE_ENTRIES - 1) / PACK_TABLE_ENTRIES;
    l->prints_offset = l->table_offset + l->table_pages * GILD_PACK_PAGE_BYTES;
    l->prints_pages = ((uint64_t)blocks + PACK_PRINTS - 1) / PACK_PRINTS;
    l->index_offset = l->prints_offset + l->prints_pages * GILD_PACK_PAGE_BYTES;
    l->filter_blocks = ((uint64_t)blocks * PACK_FILTER_BITS + 255) / 256;
    l->index_pages = pages_of(l->filter_blocks * 32 + l->prints_pages * 8);
    l->footer_offset = l->index_offset + l->index_pages * GILD_PACK_PAGE_BYTES;
    l->file_bytes = l->footer_offset + GILD_PACK_PAGE_BYTES;
    return 0;
}

void pack_head_fill(struct pack_head *head, const char *magic, const uint8_t store_id[16],
                    uint32_t pack_id, uint32_t generation, uint64_t features) {
    memset(head, 0, sizeof *head);
    memcpy(head->magic, magic, sizeof head->magic);
    head->version = PACK_VERSION;
    head->generation = generation;
    head->incompatible = features;
    memcpy(head->store_id, store_id, sizeof head->store_id);
    head->pack_id = pack_id;
}

uint64_t pack_edge_check(const void *page, uint32_t pack_id) {
    return gild_xxh3(page, GILD_PACK_PAGE_BYTES - 8, pack_id);
}

uint64_t pack_page_check(const void *page, uint32_t pack_id, uint32_t page_number) {
    return gild_xxh3((const char *)page + 8, GILD_PACK_PAGE_BYTES - 8,
                     (uint64_t)pack_id << 32 | page_number);
}

uint64_t pack_frame_check(const void *bytes, size_t length, uint32_t pack_id, uint32_t group) {
    return gild_xxh3(bytes, length, (uint64_t)pack_id << 32 | group);
}

int pack_head_verify(const void *page, const char *magic, const uint8_t store_id[16],
                     uint32_t pack_id) {
    const struct pack_header *header = page;
    const struct pack_head *head = &header->head;
    if (memcmp(head->magic, magic, sizeof head->magic) != 0)
        return -EBADMSG;
    /* A page that is sound under its own number but not ours was misplaced, not damaged. */
    if (pack_edge_check(page, head->pack_id) != header->check)
        return -EBADMSG;
    if (head->version != PACK_VERSION || head->incompatible & ~(uint64_t)PACK_FEATURES)
        return -ENOTSUP;
    if (head->pack_id != pack_id || memcmp(head->store_id, store_id, 16) != 0)
        return -ESTALE;
    return 0;
}

int pack_prints_verify(const struct pack_prints *page, uint32_t pack_id, uint32_t page_number,
                       uint32_t expected) {
    if (page->magic != PACK_PRINTS_MAGIC || page->pack_id != pack_id || page->page != page_number ||
        page->count != expected || expected > PACK_PRINTS ||
        pack_page_check(page, pack_id, page_number) != page->check)
        return -EBADMSG;
    return 0;
}

uint64_t pack_print_prefix(const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    uint64_t prefix;
    memcpy(&prefix, fingerprint, sizeof prefix);
    return be64toh(prefix);
}

int gild_pack_table_verify(const void *page, uint32_t pack_id, uint32_t page_number) {
    const struct pack_table *table = page;
    if (table->magic != PACK_TABLE_MAGIC || table->pack_id != pack_id ||
        table->page != page_number || !table->count || table->count > PACK_TABLE_ENTRIES ||
        table->frames_end > PACK_FRAMES_END_MAX ||
        pack_page_check(page, pack_id, page_number) != table->check)
        return -EBADMSG;
    return 0;
}

/* What an entry says of its group's slots and its frame's length, whatever lies where. */
static bool shape_is_right(const struct pack_entry *entry, uint64_t features) {
    uint32_t whole = (uint32_t)entry->blocks * PACK_BLOCK_BYTES;
    uint32_t slots = entry->blocks + pack_count(entry->dropped);
    if (!slots || slots > GILD_GROUP_BLOCKS || entry->dropped & ~pack_slots(slots) ||
        (entry->dropped && !(features & PACK_DROPS)) || entry->flags > PACK_FLAG_RAW)
        return false;
    if (!entry->blocks)
        return !entry->bytes && !entry->flags;
    return entry->flags & PACK_FLAG_RAW ? entry->bytes == whole
                                        : entry->bytes && entry->bytes < whole;
}

void pack_frame_cover(struct gild_pack_frame *frame) {
    uint64_t end = frame->file_offset + frame->bytes;
    frame->read_offset = frame->file_offset & ~(uint64_t)(GILD_PACK_PAGE_BYTES - 1);
    frame->read_bytes =
        frame->bytes ? (uint32_t)(pages_of(end) * GILD_PACK_PAGE_BYTES - frame->read_offset) : 0;
}

int gild_pack_table_entry(const void *page, uint32_t pack_id, uint32_t group, uint32_t index,
                          struct gild_pack_frame *frame) {
    const struct pack_table *table = page;
    if (table->pack_id != pack_id || index >= PACK_TABLE_ENTRIES || index >= table->count ||
        (uint64_t)table->page * PACK_TABLE_ENTRIES + index != group)
        return -EUCLEAN;
    const struct pack_entry *entry = &table->entry[index];
    if (!shape_is_right(entry, table->features))
        return -EUCLEAN;
    if (table->frames_end > PACK_FRAMES_END_MAX || entry->offset < GILD_PACK_PAGE_BYTES ||
        entry->offset > table->frames_end || entry->bytes > table->frames_end - entry->offset)
        return -EUCLEAN;
    frame->file_offset = entry->offset;
    frame->bytes = entry->bytes;
    frame->dropped = entry->dropped;
    frame->slots =
        pack_slots(entry->blocks + pack_count(entry->dropped)) & (uint16_t)~entry->dropped;
    frame->check = entry->check;
    pack_frame_cover(frame);
    return 0;
}

void pack_gather(void *to, const void *group, uint16_t slots) {
    uint8_t *at = to;
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++) {
        if (!(slots >> slot & 1))
            continue;
        memcpy(at, (const uint8_t *)group + slot * PACK_BLOCK_BYTES, PACK_BLOCK_BYTES);
        at += PACK_BLOCK_BYTES;
    }
}

/* From the last slot down, so that no block is overwritten before it was moved: those that are left
 * are never more than the slots that are left. */
void pack_spread(void *group, uint16_t slots) {
    uint32_t left = pack_count(slots);
    for (uint32_t slot = GILD_GROUP_BLOCKS; slot-- > 0;) {
        uint8_t *to = (uint8_t *)group + slot * PACK_BLOCK_BYTES;
        if (!(slots >> slot & 1))
            memset(to, 0, PACK_BLOCK_BYTES);
        else if (--left != slot)
            memcpy(to, (const uint8_t *)group + left * PACK_BLOCK_BYTES, PACK_BLOCK_BYTES);
    }
}

int gild_pack_decode(const void *bytes, const struct gild_pack_frame *frame, uint32_t pack_id,
                     uint32_t group, void *out) {
    uint32_t whole = pack_count(frame->slots) * PACK_BLOCK_BYTES;
    if (frame->bytes > whole || (whole && !frame->bytes) ||
        pack_frame_check(bytes, frame->bytes, pack_id, group) != frame->check)
        return -EBADMSG;
    if (frame->bytes == whole) {
        memcpy(out, bytes, whole);
    } else {
        ssize_t made = gild_zstd_decompress(out, whole, bytes, frame->bytes);
        if (made < 0)
            return (int)made;
        if (made != (ssize_t)whole)
            return -EBADMSG;
    }
    pack_spread(out, frame->slots);
    return 0;
}
