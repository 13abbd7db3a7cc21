/* Checking a sealed pack whole: what is on the device, read past the page cache, against every
 * checksum, and (deep) every block's SHA-256 against the fingerprints.
 *
 * Runs on the caller's thread, blocking; safe beside readers. Findings do not end the check, so
 * that one rotten frame does not hide another; only a failed read of memory does. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/hash.h"
#include "pack/set.h"

struct check {
    const struct gild_packs *packs;
    const struct pack *pack;
    bool deep;
    void (*found)(void *context, const char *sentence);
    void *context;
    uint64_t findings;
    uint8_t (*print)[GILD_FINGERPRINT_BYTES]; /* by group and slot, from the fingerprint pages */
    uint8_t *seen;                            /* by group and slot: 1 if print is set */
    uint64_t prints;                          /* how many are set */
    uint64_t blocks;                          /* that the table has */
    uint8_t *read;                            /* one frame's aligned cover */
    uint8_t *out;                             /* one group */
};

static void find(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void find(struct check *c, const char *format, ...) {
    char path[PATH_MAX], sentence[PATH_MAX + 256];
    va_list arguments;
    set_path(c->packs, c->pack->id, true, path);
    int n = snprintf(sentence, sizeof sentence, "pack %s: ", path);
    va_start(arguments, format);
    vsnprintf(sentence + n, sizeof sentence - (size_t)n, format, arguments);
    va_end(arguments);
    c->findings++;
    if (c->found)
        c->found(c->context, sentence);
}

static void check_edge(struct check *c, const char *name, const char *magic, uint64_t offset) {
    int err = pack_read(c->pack->direct_fd, c->read, GILD_PACK_PAGE_BYTES, offset);
    if (!err)
        err = pack_head_verify(c->read, magic, c->packs->store_id, c->pack->id);
    if (err)
        find(c, "the %s is damaged (%s)", name, strerror(-err));
}

static void take_print(struct check *c, const struct pack_print *print, uint64_t page) {
    if ((uint64_t)print->where >> 4 >= c->pack->layout.groups) {
        find(c, "fingerprint page %llu names group %u, which the pack does not have",
             (unsigned long long)page, print->where >> 4);
        return;
    }
    if (c->seen[print->where])
        find(c, "group %u slot %u has two fingerprints", print->where >> 4, print->where & 15);
    else
        c->prints++;
    c->seen[print->where] = 1;
    memcpy(c->print[print->where], print->fingerprint, GILD_FINGERPRINT_BYTES);
}

static void check_prints(struct check *c) {
    const struct pack_layout *l = &c->pack->layout;
    uint8_t last[GILD_FINGERPRINT_BYTES] = {0};
    for (uint64_t i = 0; i < l->prints_pages; i++) {
        const struct pack_prints *page = (const struct pack_prints *)c->read;
        uint64_t rest = l->blocks - i * PACK_PRINTS;
        int err = pack_read(c->pack->direct_fd, c->read, GILD_PACK_PAGE_BYTES,
                            l->prints_offset + i * GILD_PACK_PAGE_BYTES);
        if (!err)
            err = pack_prints_verify(page, c->pack->id, (uint32_t)i,
                                     rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS);
        if (err) {
            find(c, "fingerprint page %llu is damaged (%s)", (unsigned long long)i, strerror(-err));
            continue;
        }
        for (uint32_t k = 0; k < page->count; k++) {
            const uint8_t *print = page->print[k].fingerprint;
            if ((i || k) && memcmp(last, print, sizeof last) >= 0)
                find(c, "fingerprint page %llu is out of order", (unsigned long long)i);
            memcpy(last, print, sizeof last);
            take_print(c, &page->print[k], i);
            if (c->pack->filter && !pack_filter_has(c->pack->filter, l->filter_blocks, print))
                find(c, "the filter lacks a fingerprint of page %llu", (unsigned long long)i);
        }
    }
}

static void check_index(struct check *c, uint64_t expected) {
    const struct pack_layout *l = &c->pack->layout;
    size_t length = l->index_pages * GILD_PACK_PAGE_BYTES;
    void *index = aligned_alloc(GILD_PACK_PAGE_BYTES, length);
    int err = index ? pack_read(c->pack->direct_fd, index, length, l->index_offset) : -ENOMEM;
    if (err || gild_xxh3(index, length, c->pack->id) != expected)
        find(c, "the index is damaged (%s); nothing is shared with this pack until it is rewritten",
             strerror(err ? -err : EBADMSG));
    free(index);
}

static void check_block(struct check *c, uint32_t group, uint32_t slot) {
    uint8_t print[GILD_FINGERPRINT_BYTES];
    uint32_t where = group << 4 | slot;
    if (!c->seen[where]) {
        find(c, "group %u slot %u has no fingerprint", group, slot);
        return;
    }
    if (gild_sha256(c->out + slot * PACK_BLOCK_BYTES, PACK_BLOCK_BYTES, print) != 0 ||
        memcmp(print, c->print[where], sizeof print) != 0)
        find(c, "group %u slot %u is not the content its fingerprint names", group, slot);
}

static void check_frame(struct check *c, uint32_t group, const struct gild_pack_frame *frame) {
    int err = pack_read(c->pack->direct_fd, c->read, frame->read_bytes, frame->read_offset);
    const uint8_t *bytes = c->read + (frame->file_offset - frame->read_offset);
    if (!err && !c->deep &&
        pack_frame_check(bytes, frame->bytes, c->pack->id, group) != frame->check)
        err = -EBADMSG;
    if (!err && c->deep)
        err = gild_pack_decode(bytes, frame, c->pack->id, group, c->out);
    if (err)
        find(c, "group %u is damaged (%s)", group, strerror(-err));
    for (uint32_t slot = 0; slot < frame->blocks && !err && c->deep; slot++)
        check_block(c, group, slot);
}

static void check_table(struct check *c) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_layout *l = &c->pack->layout;
    uint64_t end = GILD_PACK_PAGE_BYTES; /* of the frame before; 0: not known */
    for (uint32_t group = 0; group < l->groups; group++) {
        struct gild_pack_frame frame;
        uint32_t number = group / PACK_TABLE_ENTRIES, index = group % PACK_TABLE_ENTRIES;
        int err = 0;
        if (!index) {
            err = pack_read(c->pack->direct_fd, page, sizeof page,
                            l->table_offset + (uint64_t)number * sizeof page);
            if (!err)
                err = gild_pack_table_verify(page, c->pack->id, number);
        }
        if (err) {
            find(c, "table page %u is damaged (%s)", number, strerror(-err));
            group += PACK_TABLE_ENTRIES - 1;
            end = 0;
            continue;
        }
        if (gild_pack_table_entry(page, c->pack->id, group, index, &frame) != 0 ||
            frame.file_offset + frame.bytes > l->frames_end || (end && frame.file_offset != end)) {
            find(c, "the table's entry of group %u makes no sense", group);
            end = 0;
            continue;
        }
        end = frame.file_offset + frame.bytes;
        c->blocks += frame.blocks;
        check_frame(c, group, &frame);
    }
}

/* What lies between the last frame and the table. */
static void check_padding(struct check *c) {
    const struct pack_layout *l = &c->pack->layout;
    uint64_t bad = 0;
    if (l->table_offset == l->frames_end)
        return;
    int err = pack_read(c->pack->direct_fd, c->read, GILD_PACK_PAGE_BYTES,
                        l->table_offset - GILD_PACK_PAGE_BYTES);
    for (uint64_t i = l->frames_end % GILD_PACK_PAGE_BYTES; i < GILD_PACK_PAGE_BYTES && !err; i++)
        bad += c->read[i] != 0;
    if (err || bad)
        find(c, "the padding behind the frames is damaged");
}

static int check_all(struct check *c) {
    const struct pack_layout *l = &c->pack->layout;
    uint64_t index_check;
    size_t slots = l->groups * GILD_GROUP_BLOCKS;
    c->read = aligned_alloc(GILD_PACK_PAGE_BYTES, GILD_GROUP_BYTES + 2 * GILD_PACK_PAGE_BYTES);
    c->out = malloc(GILD_GROUP_BYTES);
    c->print = malloc(slots * sizeof c->print[0]);
    c->seen = calloc(slots, 1);
    if (!c->read || !c->out || !c->print || !c->seen)
        return -ENOMEM;
    check_edge(c, "header", PACK_HEADER_MAGIC, 0);
    check_edge(c, "footer", PACK_FOOTER_MAGIC, l->footer_offset);
    index_check = ((const struct pack_footer *)c->read)->index_check;
    if (!c->findings)
        check_index(c, index_check);
    check_prints(c);
    check_table(c);
    check_padding(c);
    if (!c->findings && (c->blocks != l->blocks || c->prints != l->blocks))
        find(c, "the footer counts %llu blocks, the table %llu, the fingerprints %llu",
             (unsigned long long)l->blocks, (unsigned long long)c->blocks,
             (unsigned long long)c->prints);
    return c->findings ? -EUCLEAN : 0;
}

int gild_pack_check(struct gild_packs *packs, uint32_t pack_id, bool deep,
                    void (*found)(void *context, const char *sentence), void *context) {
    struct check check = {
        .packs = packs,
        .pack = set_get(packs, pack_id),
        .deep = deep,
        .found = found,
        .context = context,
    };
    if (!check.pack)
        return -ENOENT;
    int err = check_all(&check);
    free(check.read);
    free(check.out);
    free(check.print);
    free(check.seen);
    return err;
}
