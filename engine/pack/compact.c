/* Collection inside a pack: blocks that nothing reaches any more go, and the file with them, by a
 * rewrite under the same number.
 *
 *   plan    from the group table: what each group keeps
 *   write   the next generation into NUMBER.pack.new: groups of which half or more lives as they
 *           are, the others verified, decoded and compressed again with only what lives; synced
 *   replace read back, renamed, swapped (replace.c)
 *
 * Groups and slots keep their numbers, so that no map changes; a slot that is dropped is marked in
 * the table, and a read of it is an error for ever. A group that lives by half or more keeps its
 * dead blocks: to compress it again costs time and bytes for less than half of it.
 *
 * Invariants: what is live is in the new file exactly as it was: the same frame, or blocks that
 * have the SHA-256 that the pack has for them. A group that can not be verified is copied as it is,
 * with all its slots. Fingerprints go with their blocks.
 *
 * Blocking, one thread; readers go on. Memory: 36 bytes for each block of the pack. Failure modes:
 * no space, I/O errors, or a pack whose table or fingerprints are damaged (a repair's work): the
 * ".new" file is unlinked and the old one stays. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec/hash.h"
#include "pack/replace.h"

#define LEVEL 3
#define WINDOW_BYTES (1u << 20)

struct group {
    struct gild_pack_frame frame;
    uint16_t keep; /* of the frame's slots; all of them: the frame is copied */
};

struct compact {
    struct gild_packs *packs;
    const struct pack *pack;
    const struct gild_pack_compacting *options;
    struct gild_pack_compacted *result;
    struct group *group;
    struct pack_print *print; /* ascending by fingerprint, as in the file */
    uint8_t *window;          /* of the old file */
    uint64_t window_at;
    size_t window_bytes;
    uint8_t *out;
};

static int paced(const struct compact *c, uint64_t bytes) {
    int stop = c->options->pace ? c->options->pace(c->options->context, bytes) : 0;
    return stop < 0 ? stop : stop ? -ECANCELED : 0;
}

static int take(const struct compact *c, void *buffer, size_t length, uint64_t offset) {
    int err = paced(c, length);
    return err ? err : pack_read(c->pack->direct_fd, buffer, length, offset);
}

/* ---- plan ------------------------------------------------------------------------------------ */

static uint16_t keep_of(uint16_t slots, uint16_t live) {
    live &= slots;
    return live && 2 * pack_count(live) >= pack_count(slots) ? slots : live;
}

static int walk_table(const struct pack *pack, gild_pack_group *visit, void *context) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_layout *l = &pack->layout;
    for (uint32_t group = 0; group < l->groups; group++) {
        uint32_t number = group / PACK_TABLE_ENTRIES, index = group % PACK_TABLE_ENTRIES;
        struct gild_pack_frame frame;
        int err = index ? 0
                        : pack_read(pack->direct_fd, page, sizeof page,
                                    l->table_offset + (uint64_t)number * sizeof page);
        if (!err && !index)
            err = gild_pack_table_verify(page, pack->id, number);
        if (!err)
            err = gild_pack_table_entry(page, pack->id, group, index, &frame);
        if (!err && frame.file_offset + frame.bytes > l->frames_end)
            err = -EUCLEAN;
        if (err)
            return err;
        visit(context, group, &frame);
    }
    return 0;
}

int gild_pack_groups(struct gild_packs *packs, uint32_t pack_id, gild_pack_group *visit,
                     void *context) {
    struct pack *pack = set_hold(packs, pack_id);
    int err = pack ? walk_table(pack, visit, context) : -ENOENT;
    if (pack)
        pack_release(pack);
    return err;
}

struct estimate {
    const uint16_t *live;
    uint64_t blocks, frame_bytes;
};

/* Fewer blocks in one frame compress less: by about a quarter, for what is like text. */
static void estimate_entry(void *context, uint32_t group, const struct gild_pack_frame *frame) {
    struct estimate *e = context;
    uint16_t keep = keep_of(frame->slots, e->live[group]);
    uint64_t bytes = frame->bytes;
    if (keep != frame->slots)
        bytes = bytes * pack_count(keep) * 5 / (pack_count(frame->slots) * 4);
    uint64_t raw = (uint64_t)pack_count(keep) * PACK_BLOCK_BYTES;
    e->blocks += pack_count(keep);
    e->frame_bytes += bytes < raw ? bytes : raw;
}

static int estimate(const struct pack *pack, const uint16_t *live, uint64_t *after) {
    struct estimate e = {.live = live};
    struct pack_layout layout;
    *after = 0;
    int err = walk_table(pack, estimate_entry, &e);
    if (err || !e.blocks)
        return err;
    err = pack_layout((uint32_t)pack->layout.groups, (uint32_t)e.blocks,
                      GILD_PACK_PAGE_BYTES + e.frame_bytes, PACK_DROPS, &layout);
    *after = layout.file_bytes;
    return err;
}

int gild_pack_compact_saves(struct gild_packs *packs, uint32_t pack_id, const uint16_t *live,
                            uint64_t *bytes_before, uint64_t *bytes_after) {
    struct pack *pack = set_hold(packs, pack_id);
    if (!pack)
        return -ENOENT;
    *bytes_before = pack->layout.file_bytes;
    int err = estimate(pack, live, bytes_after);
    pack_release(pack);
    return err;
}

/* ---- write ----------------------------------------------------------------------------------- */

static int read_prints(struct compact *c) {
    const struct pack_layout *l = &c->pack->layout;
    _Alignas(GILD_PACK_PAGE_BYTES) struct pack_prints page;
    struct pack_print *to = c->print;
    for (uint64_t i = 0; i < l->prints_pages; i++) {
        uint64_t rest = l->blocks - i * PACK_PRINTS;
        int err = take(c, &page, sizeof page, l->prints_offset + i * sizeof page);
        if (!err)
            err = pack_prints_verify(&page, c->pack->id, (uint32_t)i,
                                     rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS);
        for (uint32_t k = 0; !err && k < page.count; k++) {
            uint32_t where = page.print[k].where;
            if (where >> 4 >= l->groups || !(c->group[where >> 4].frame.slots >> (where & 15) & 1))
                err = -EUCLEAN;
            *to++ = page.print[k];
        }
        if (err)
            return err;
    }
    return 0;
}

/* The bytes of a group's frame, good until the next call. */
static int frame_bytes(struct compact *c, const struct gild_pack_frame *frame,
                       const uint8_t **bytes) {
    uint64_t end = frame->read_offset + frame->read_bytes;
    *bytes = c->window;
    if (!frame->bytes)
        return 0;
    if (frame->read_offset < c->window_at || end > c->window_at + c->window_bytes) {
        uint64_t rest = c->pack->layout.table_offset - frame->read_offset;
        c->window_at = frame->read_offset;
        c->window_bytes = rest < WINDOW_BYTES ? (size_t)rest : WINDOW_BYTES;
        int err = take(c, c->window, c->window_bytes, c->window_at);
        if (err == -EIO) { /* a bad sector is the trouble of its own group only */
            c->window_bytes = frame->read_bytes;
            err = take(c, c->window, c->window_bytes, c->window_at);
        }
        if (err) {
            c->window_bytes = 0;
            return err;
        }
    }
    *bytes = c->window + (frame->file_offset - c->window_at);
    return 0;
}

static int by_print(const void *a, const void *b) {
    return memcmp(((const struct pack_print *)a)->fingerprint,
                  ((const struct pack_print *)b)->fingerprint, GILD_FINGERPRINT_BYTES);
}

/* True if the pack has this content under this place. */
static bool right_block(const struct compact *c, uint32_t where, const void *block) {
    struct pack_print key;
    if (gild_sha256(block, PACK_BLOCK_BYTES, key.fingerprint) != 0)
        return false;
    const struct pack_print *print =
        bsearch(&key, c->print, c->pack->layout.blocks, sizeof key, by_print);
    return print && print->where == where;
}

/* Decodes a group into c->out; false if what it keeps is not what it was. */
static bool good_content(struct compact *c, uint32_t number, const uint8_t *bytes) {
    const struct group *group = &c->group[number];
    if (gild_pack_decode(bytes, &group->frame, c->pack->id, number, c->out) != 0)
        return false;
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++)
        if (group->keep >> slot & 1 &&
            !right_block(c, number << 4 | slot, c->out + slot * PACK_BLOCK_BYTES))
            return false;
    return true;
}

static int write_group(struct compact *c, struct pack_writer *writer, uint32_t number) {
    struct group *group = &c->group[number];
    const struct gild_pack_frame *frame = &group->frame;
    uint16_t gone = frame->slots & (uint16_t)~group->keep;
    const uint8_t *bytes;
    if (!group->keep) {
        c->result->gone_groups += frame->slots != 0;
        return writer_group(writer, NULL, 0, frame->dropped | gone, LEVEL);
    }
    int err = frame_bytes(c, frame, &bytes);
    if (err)
        return err;
    if (gone && good_content(c, number, bytes)) {
        c->result->packed_groups++;
        return writer_group(writer, c->out, group->keep, frame->dropped | gone,
                            c->options->level ? c->options->level : LEVEL);
    }
    c->result->damaged_groups += gone != 0;
    if (gone && c->options->whole_only)
        return -EBADMSG;
    c->result->copied_groups++;
    group->keep = frame->slots;
    return writer_frame(writer, bytes, frame->bytes, pack_count(frame->slots), frame->dropped,
                        frame->check);
}

static int write_all(struct compact *c, struct pack_writer *writer) {
    const struct pack_layout *l = &c->pack->layout;
    struct pack_layout made;
    uint32_t groups = (uint32_t)l->groups, count = 0;
    int err = 0;
    for (uint32_t number = 0; number < groups && !err; number++)
        err = write_group(c, writer, number);
    for (uint64_t i = 0; i < l->blocks && !err; i++) {
        uint32_t where = c->print[i].where;
        if (c->group[where >> 4].keep >> (where & 15) & 1)
            c->print[count++] = c->print[i];
    }
    if (!err)
        err = pack_layout(groups, count, writer_frame_end(writer, groups - 1), PACK_DROPS, &made);
    if (err)
        return err;
    c->result->bytes_after = made.file_bytes;
    c->result->dropped_blocks = (uint32_t)l->blocks - count;
    return made.file_bytes < l->file_bytes ? writer_finish(writer, c->print, count) : 0;
}

/* ---- replace --------------------------------------------------------------------------------- */

/* A fault of the new file is let pass where the old one has the very same frame. */
static bool same_frame(void *context, const struct pack *made, uint32_t number) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    struct compact *c = context;
    const struct gild_pack_frame *old = &c->group[number].frame;
    uint32_t at = number / PACK_TABLE_ENTRIES;
    struct gild_pack_frame new;
    const uint8_t *bytes;
    if (number >= c->pack->layout.groups ||
        pack_read(made->direct_fd, page, sizeof page,
                  made->layout.table_offset + (uint64_t)at * sizeof page) != 0 ||
        gild_pack_table_verify(page, made->id, at) != 0 ||
        gild_pack_table_entry(page, made->id, number, number % PACK_TABLE_ENTRIES, &new) != 0 ||
        new.slots != old->slots || new.bytes != old->bytes || new.check != old->check ||
        frame_bytes(c, old, &bytes) != 0)
        return false;
    uint8_t *cover = aligned_alloc(GILD_PACK_PAGE_BYTES, PACK_COVER_BYTES);
    bool same = cover && pack_read(made->direct_fd, cover, new.read_bytes, new.read_offset) == 0 &&
                memcmp(cover + (new.file_offset - new.read_offset), bytes, new.bytes) == 0;
    free(cover);
    return same;
}

static int replace_pace(void *context, uint64_t bytes) {
    return paced(context, bytes);
}

static int rewrite(struct compact *c) {
    const struct pack_replacing how = {.allowed = c->options->whole_only ? NULL : same_frame,
                                       .pace = replace_pace,
                                       .context = c,
                                       .keep_lost = true};
    struct pack_writer *writer;
    int err = writer_create(&writer, c->packs, c->pack->id, c->pack->generation + 1, PACK_DROPS);
    if (err)
        return err;
    err = write_all(c, writer);
    bool smaller = c->result->bytes_after < c->result->bytes_before;
    if (!err && smaller)
        err = pack_replace(c->packs, c->pack->id, writer, &how, &c->result->old);
    c->result->rewritten = !err && smaller;
    writer_destroy(writer);
    return err;
}

struct planning {
    struct compact *compact;
    const uint16_t *live;
};

static void plan_entry(void *context, uint32_t group, const struct gild_pack_frame *frame) {
    const struct planning *planning = context;
    planning->compact->group[group] =
        (struct group){*frame, keep_of(frame->slots, planning->live[group])};
}

static int compact(struct compact *c, const uint16_t *live) {
    const struct pack_layout *l = &c->pack->layout;
    struct planning planning = {c, live};
    uint64_t after;
    c->result->bytes_before = c->result->bytes_after = l->file_bytes;
    int err = estimate(c->pack, live, &after);
    if (err)
        return err;
    c->result->nothing_lives = after == 0;
    if (!after || after >= l->file_bytes ||
        (l->file_bytes - after) * 100 < l->file_bytes * c->options->least_saved_percent)
        return 0;
    c->group = calloc(l->groups, sizeof *c->group);
    c->print = malloc(l->prints_pages * PACK_PRINTS * sizeof *c->print);
    c->window = aligned_alloc(GILD_PACK_PAGE_BYTES, WINDOW_BYTES);
    c->out = malloc(GILD_GROUP_BYTES);
    if (!c->group || !c->print || !c->window || !c->out)
        return -ENOMEM;
    err = walk_table(c->pack, plan_entry, &planning);
    if (!err)
        err = read_prints(c);
    return err ? err : rewrite(c);
}

int gild_pack_compact(struct gild_packs *packs, uint32_t pack_id, const uint16_t *live,
                      const struct gild_pack_compacting *options,
                      struct gild_pack_compacted *result) {
    struct pack *pack = set_hold(packs, pack_id);
    struct compact c = {.packs = packs, .pack = pack, .options = options, .result = result};
    memset(result, 0, sizeof *result);
    if (!pack)
        return -ENOENT;
    int err = compact(&c, live);
    if (!result->rewritten)
        result->bytes_after = result->bytes_before;
    pack_release(pack);
    free(c.group);
    free(c.print);
    free(c.window);
    free(c.out);
    return err;
}
