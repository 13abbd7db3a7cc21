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
#include <sys/stat.h>
#include <unistd.h>

#include "codec/hash.h"
#include "pack/set.h"

struct check {
    const struct gild_packs *packs;
    const struct pack *pack;
    const struct gild_pack_look *look;
    int stopped;
    uint64_t findings;
    uint8_t (*print)[GILD_FINGERPRINT_BYTES]; /* by group and slot, from the fingerprint pages */
    uint8_t *seen;                            /* by group and slot: 1 if print is set */
    uint64_t prints;                          /* how many are set */
    uint64_t blocks;                          /* that the table has */
    uint8_t *read;                            /* one frame's aligned cover */
    uint8_t *out;                             /* one group */
};

static void say(struct check *c, uint32_t group, uint32_t groups, const char *format,
                va_list arguments) __attribute__((format(printf, 4, 0)));

static void say(struct check *c, uint32_t group, uint32_t groups, const char *format,
                va_list arguments) {
    char path[PATH_MAX], sentence[PATH_MAX + 256];
    set_path(c->packs, c->pack->id, true, path);
    int n = snprintf(sentence, sizeof sentence, "pack %s: ", path);
    vsnprintf(sentence + n, sizeof sentence - (size_t)n, format, arguments);
    const struct gild_pack_fault fault = {sentence, group, groups, false};
    c->findings++;
    if (c->look->found)
        c->look->found(c->look->context, &fault);
}

/* What an error of a read or of a check means to whoever reads the sentence. */
static const char *reason(int err) {
    switch (err) {
    case -EBADMSG:
        return "its checksum is wrong";
    case -EUCLEAN:
        return "what it says makes no sense";
    case -ESTALE:
        return "it is another store's";
    default:
        return strerror(-err);
    }
}

/* Something is wrong that no read meets. */
static void find(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void find(struct check *c, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(c, 0, 0, format, arguments);
    va_end(arguments);
}

/* Something is wrong with the content of groups. */
static void find_groups(struct check *c, uint32_t group, uint32_t groups, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void find_groups(struct check *c, uint32_t group, uint32_t groups, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(c, group, groups, format, arguments);
    va_end(arguments);
}

/* Every read of the check. Once it is stopped, nothing more is read and nothing more is found. */
static int take(struct check *c, void *buffer, size_t length, uint64_t offset) {
    if (!c->stopped && c->look->pace)
        c->stopped = c->look->pace(c->look->context, length);
    return c->stopped ? c->stopped : pack_read(c->pack->direct_fd, buffer, length, offset);
}

static bool check_edge(struct check *c, const char *name, const char *magic, uint64_t offset) {
    int err = take(c, c->read, GILD_PACK_PAGE_BYTES, offset);
    if (!err)
        err = pack_head_verify(c->read, magic, c->packs->store_id, c->pack->id);
    if (!err && (((const struct pack_head *)c->read)->generation != c->pack->generation ||
                 ((const struct pack_head *)c->read)->incompatible != c->pack->features))
        err = -EBADMSG;
    if (err && !c->stopped)
        find(c, "the %s is damaged: %s", name, reason(err));
    return err == 0;
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
    for (uint64_t i = 0; i < l->prints_pages && !c->stopped; i++) {
        const struct pack_prints *page = (const struct pack_prints *)c->read;
        uint64_t rest = l->blocks - i * PACK_PRINTS;
        int err =
            take(c, c->read, GILD_PACK_PAGE_BYTES, l->prints_offset + i * GILD_PACK_PAGE_BYTES);
        if (!err)
            err = pack_prints_verify(page, c->pack->id, (uint32_t)i,
                                     rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS);
        if (c->stopped)
            return;
        if (err) {
            find(c, "fingerprint page %llu is damaged: %s", (unsigned long long)i, reason(err));
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
    int err = index ? take(c, index, length, l->index_offset) : -ENOMEM;
    if (!c->stopped && (err || gild_xxh3(index, length, c->pack->id) != expected))
        find(c, "the index is damaged: %s; nothing is shared with this pack until it is rewritten",
             reason(err ? err : -EBADMSG));
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
        find_groups(c, group, 1, "group %u slot %u is not the content its fingerprint names", group,
                    slot);
}

static void check_frame(struct check *c, uint32_t group, const struct gild_pack_frame *frame) {
    int err = take(c, c->read, frame->read_bytes, frame->read_offset);
    const uint8_t *bytes = c->read + (frame->file_offset - frame->read_offset);
    if (!err && !c->look->deep &&
        pack_frame_check(bytes, frame->bytes, c->pack->id, group) != frame->check)
        err = -EBADMSG;
    if (!err && c->look->deep)
        err = gild_pack_decode(bytes, frame, c->pack->id, group, c->out);
    if (err && !c->stopped)
        find_groups(c, group, 1, "group %u is damaged: %s", group, reason(err));
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS && !err && c->look->deep; slot++)
        if (frame->slots >> slot & 1)
            check_block(c, group, slot);
}

static void check_table(struct check *c) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_layout *l = &c->pack->layout;
    uint64_t end = GILD_PACK_PAGE_BYTES; /* of the frame before; 0: not known */
    for (uint32_t group = 0; group < l->groups && !c->stopped; group++) {
        struct gild_pack_frame frame;
        uint32_t number = group / PACK_TABLE_ENTRIES, index = group % PACK_TABLE_ENTRIES;
        int err = 0;
        if (!index) {
            err = take(c, page, sizeof page, l->table_offset + (uint64_t)number * sizeof page);
            if (!err)
                err = gild_pack_table_verify(page, c->pack->id, number);
            if (!err && ((const struct pack_table *)page)->features != c->pack->features)
                err = -EUCLEAN;
        }
        if (c->stopped)
            return;
        if (err) {
            uint64_t rest = l->groups - group;
            find_groups(c, group, rest < PACK_TABLE_ENTRIES ? (uint32_t)rest : PACK_TABLE_ENTRIES,
                        "table page %u is damaged: %s", number, reason(err));
            group += PACK_TABLE_ENTRIES - 1;
            end = 0;
            continue;
        }
        if (gild_pack_table_entry(page, c->pack->id, group, index, &frame) != 0 ||
            frame.file_offset + frame.bytes > l->frames_end || (end && frame.file_offset != end)) {
            find_groups(c, group, 1, "the table's entry of group %u makes no sense", group);
            end = 0;
            continue;
        }
        end = frame.file_offset + frame.bytes;
        c->blocks += pack_count(frame.slots);
        check_frame(c, group, &frame);
    }
}

/* What lies between the last frame and the table. */
static void check_padding(struct check *c) {
    const struct pack_layout *l = &c->pack->layout;
    uint64_t bad = 0;
    if (l->table_offset == l->frames_end)
        return;
    int err = take(c, c->read, GILD_PACK_PAGE_BYTES, l->table_offset - GILD_PACK_PAGE_BYTES);
    for (uint64_t i = l->frames_end % GILD_PACK_PAGE_BYTES; i < GILD_PACK_PAGE_BYTES && !err; i++)
        bad += c->read[i] != 0;
    if (!c->stopped && (err || bad))
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
    if (check_edge(c, "footer", PACK_FOOTER_MAGIC, l->footer_offset)) {
        index_check = ((const struct pack_footer *)c->read)->index_check;
        check_index(c, index_check);
    }
    check_prints(c);
    check_table(c);
    check_padding(c);
    if (c->stopped)
        return c->stopped;
    if (!c->findings && (c->blocks != l->blocks || c->prints != l->blocks))
        find(c, "the footer counts %llu blocks, the table %llu, the fingerprints %llu",
             (unsigned long long)l->blocks, (unsigned long long)c->blocks,
             (unsigned long long)c->prints);
    return c->findings ? -EUCLEAN : 0;
}

int pack_check(struct gild_packs *packs, const struct pack *pack,
               const struct gild_pack_look *look) {
    struct check check = {.packs = packs, .pack = pack, .look = look};
    int err = check_all(&check);
    free(check.read);
    free(check.out);
    free(check.print);
    free(check.seen);
    return err;
}

int gild_pack_check(struct gild_packs *packs, uint32_t pack_id, const struct gild_pack_look *look) {
    struct pack *pack = set_hold(packs, pack_id);
    if (!pack)
        return -ENOENT;
    int err = pack_check(packs, pack, look);
    pack_release(pack);
    return err;
}

int gild_pack_read_group(struct gild_packs *packs, uint32_t pack_id, uint32_t group, void *out,
                         uint16_t *slots) {
    struct pack *pack = set_hold(packs, pack_id);
    void *cover = aligned_alloc(GILD_PACK_PAGE_BYTES, PACK_COVER_BYTES);
    int err = !pack ? -ENOENT : cover ? pack_read_group(pack, group, cover, out, slots) : -ENOMEM;
    pack_release(pack);
    free(cover);
    return err;
}

int gild_pack_prints(struct gild_packs *packs, uint32_t pack_id, gild_pack_print *visit,
                     void *context) {
    struct pack_prints page;
    struct pack *pack = set_hold(packs, pack_id);
    int err = pack ? 0 : -ENOENT;
    for (uint64_t i = 0; !err && i < pack->layout.prints_pages; i++) {
        uint64_t rest = pack->layout.blocks - i * PACK_PRINTS;
        if (pack_read(pack->buffered_fd, &page, sizeof page,
                      pack->layout.prints_offset + i * GILD_PACK_PAGE_BYTES) != 0 ||
            pack_prints_verify(&page, pack->id, (uint32_t)i,
                               rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS) != 0)
            continue;
        for (uint32_t k = 0; k < page.count && !err; k++)
            err = visit(context, page.print[k].where >> 4, page.print[k].fingerprint);
    }
    pack_release(pack);
    return err;
}

static void list_slots(const struct pack *pack, uint16_t *group_slots) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_layout *l = &pack->layout;
    struct gild_pack_frame frame;
    memset(group_slots, 0xff, l->groups * sizeof *group_slots);
    for (uint32_t number = 0; number < l->table_pages; number++) {
        if (pack_read(pack->direct_fd, page, sizeof page,
                      l->table_offset + (uint64_t)number * sizeof page) != 0 ||
            gild_pack_table_verify(page, pack->id, number) != 0)
            continue;
        for (uint32_t i = 0; i < PACK_TABLE_ENTRIES; i++) {
            uint64_t group = (uint64_t)number * PACK_TABLE_ENTRIES + i;
            if (group < l->groups &&
                gild_pack_table_entry(page, pack->id, (uint32_t)group, i, &frame) == 0)
                group_slots[group] = frame.slots;
        }
    }
}

int gild_pack_get_facts(struct gild_packs *packs, uint32_t pack_id, struct gild_pack_facts *facts) {
    struct stat status = {0};
    char path[PATH_MAX];
    struct pack *pack = set_hold(packs, pack_id);
    memset(facts, 0, sizeof *facts);
    if (!pack)
        return -ENOENT;
    facts->generation = pack->generation;
    facts->groups = (uint32_t)pack->layout.groups;
    facts->blocks = (uint32_t)pack->layout.blocks;
    facts->file_bytes = pack->layout.file_bytes;
    /* A rewrite takes the name away from this file just before it takes its place in the set. */
    set_path(packs, pack_id, true, path);
    facts->unlinked =
        fstat(pack->direct_fd, &status) == 0 && status.st_nlink == 0 && stat(path, &status) != 0;
    facts->group_slots = malloc(facts->groups * sizeof *facts->group_slots);
    if (facts->group_slots)
        list_slots(pack, facts->group_slots);
    pack_release(pack);
    return facts->group_slots ? 0 : -ENOMEM;
}
