/* Rewriting a damaged pack: what can be made out is written anew under the same number.
 *
 *   survey  every part is read and verified; a lost table page is made out again from the frames
 *           behind each other, each proven by the fingerprints of its blocks
 *   search  for each damaged group a copy with the right SHA-256: in memory, or in other packs,
 *           whole or block by block
 *   write   the next generation into NUMBER.pack.new: good frames as they are, healed ones anew,
 *           lost ones with their damaged bytes; synced
 *   read    the new file whole and deep; it must have no fault but the groups that are lost
 *   rename  over the old file, folder synced, swapped in the set
 *
 * Invariants: groups and slots stay, so no map changes; nothing is taken as content whose SHA-256
 * is not the one that the pack has for it; a group that was good is good in the new file, or
 * nothing is changed. If the survey finds nothing that a new file would better, none is written.
 *
 * Blocking, one thread; readers go on. Failure modes: no space, I/O errors: the ".new" file is
 * unlinked and the old one stays. A crash leaves the old file (and a ".new" that the next open or
 * the next rewriting removes) or the new one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "codec/hash.h"
#include "codec/zstd.h"
#include "pack/replace.h"

#define LEVEL 2

enum state { GOOD, BAD, UNKNOWN /* not even where its frame is */ };

struct group {
    struct gild_pack_frame frame; /* slots: also of an UNKNOWN one */
    uint8_t state;
    bool healed;
};

struct mend {
    struct gild_packs *packs;
    const struct pack *pack;
    const struct gild_pack_repair *repair;
    struct gild_pack_repaired *result;
    struct group *group;
    struct pack_print *print; /* by group << 4 | slot */
    uint8_t *has;             /* the same: 1 if the fingerprint is known */
    bool structure;           /* something but the content of groups is damaged */
    bool all_prints;          /* each block's fingerprint is known */
    uint64_t end;             /* of the last frame, 0 if not known */
    uint8_t *cover, *out, *other;
};

static int take(struct mend *m, void *buffer, size_t length, uint64_t offset) {
    int stop = m->repair->pace ? m->repair->pace(m->repair->context, length) : 0;
    return stop ? (stop < 0 ? stop : -ECANCELED)
                : pack_read(m->pack->direct_fd, buffer, length, offset);
}

/* Not what is on the disk is wrong, but the look at it must end. */
static bool ends(int err) {
    return err == -ECANCELED || err == -ENOMEM;
}

/* ---- survey: the edges, fingerprints, index, padding ----------------------------------------- */

static void survey_edges(struct mend *m) {
    static const char *const magics[] = {PACK_HEADER_MAGIC, PACK_FOOTER_MAGIC};
    const struct pack_layout *l = &m->pack->layout;
    struct stat status;
    /* A file without a name is as good as gone: it is written anew from what is still open. */
    if (fstat(m->pack->direct_fd, &status) == 0 && status.st_nlink == 0)
        m->structure = true;
    for (unsigned i = 0; i < 2; i++) {
        const struct pack_head *head = (const struct pack_head *)m->cover;
        if (pack_read(m->pack->direct_fd, m->cover, GILD_PACK_PAGE_BYTES,
                      i ? l->footer_offset : 0) != 0 ||
            pack_head_verify(head, magics[i], m->packs->store_id, m->pack->id) != 0 ||
            head->generation != m->pack->generation || head->incompatible != m->pack->features)
            m->structure = true;
    }
    const struct pack_footer *footer = (const struct pack_footer *)m->cover;
    size_t length = l->index_pages * GILD_PACK_PAGE_BYTES;
    void *index = aligned_alloc(GILD_PACK_PAGE_BYTES, length);
    uint64_t expected = footer->index_check;
    if (!index || m->structure ||
        pack_read(m->pack->direct_fd, index, length, l->index_offset) != 0 ||
        gild_xxh3(index, length, m->pack->id) != expected)
        m->structure = true;
    free(index);
    if (l->table_offset == l->frames_end)
        return;
    if (pack_read(m->pack->direct_fd, m->cover, GILD_PACK_PAGE_BYTES,
                  l->table_offset - GILD_PACK_PAGE_BYTES) != 0)
        m->structure = true;
    for (uint64_t i = l->frames_end % GILD_PACK_PAGE_BYTES; i < GILD_PACK_PAGE_BYTES; i++)
        m->structure = m->structure || m->cover[i] != 0;
}

static int survey_prints(struct mend *m) {
    const struct pack_layout *l = &m->pack->layout;
    const struct pack_prints *page = (const struct pack_prints *)m->cover;
    uint64_t known = 0;
    for (uint64_t i = 0; i < l->prints_pages; i++) {
        uint64_t rest = l->blocks - i * PACK_PRINTS;
        int err =
            take(m, m->cover, GILD_PACK_PAGE_BYTES, l->prints_offset + i * GILD_PACK_PAGE_BYTES);
        if (!err)
            err = pack_prints_verify(page, m->pack->id, (uint32_t)i,
                                     rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS);
        if (ends(err))
            return err;
        for (uint32_t k = 0; !err && k < page->count; k++) {
            const struct pack_print *print = &page->print[k];
            if (print->where >> 4 >= l->groups || m->has[print->where])
                continue;
            m->print[print->where] = *print;
            m->has[print->where] = 1;
            known++;
        }
    }
    m->all_prints = known == l->blocks;
    m->structure = m->structure || !m->all_prints;
    return 0;
}

/* ---- survey: groups -------------------------------------------------------------------------- */

/* Slots of a group as the fingerprints know them; none if there is a hole among them that nothing
 * explains. */
static uint16_t slots_by_prints(const struct mend *m, uint32_t group) {
    uint16_t slots = 0;
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++)
        slots |= (uint16_t)(m->has[group << 4 | slot] << slot);
    bool hole = slots & (slots + 1);
    return hole && !(m->pack->features & PACK_DROPS) ? 0 : slots;
}

static bool right_block(const struct mend *m, uint32_t group, uint32_t slot, const void *block) {
    uint8_t print[GILD_FINGERPRINT_BYTES];
    return gild_sha256(block, PACK_BLOCK_BYTES, print) == 0 &&
           memcmp(print, m->print[group << 4 | slot].fingerprint, sizeof print) == 0;
}

/* strict: each block must have its fingerprint. Otherwise one that has none stands by its frame's
 * check. */
static bool right_content(const struct mend *m, uint32_t group, uint16_t slots, const uint8_t *out,
                          bool strict) {
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++) {
        if (!(slots >> slot & 1))
            continue;
        if (!m->has[group << 4 | slot]) {
            if (strict)
                return false;
        } else if (!right_block(m, group, slot, out + slot * PACK_BLOCK_BYTES)) {
            return false;
        }
    }
    return true;
}

/* Decodes a group whose entry is known. */
static int read_known(struct mend *m, uint32_t number) {
    const struct gild_pack_frame *frame = &m->group[number].frame;
    int err = take(m, m->cover, frame->read_bytes, frame->read_offset);
    if (!err)
        err = gild_pack_decode(m->cover + (frame->file_offset - frame->read_offset), frame,
                               m->pack->id, number, m->out);
    if (!err && !right_content(m, number, frame->slots, m->out, false))
        err = -EBADMSG;
    return err;
}

/* What is known of a group's slots without its entry: trailing ones that were dropped are nobody's,
 * so they need not be known. */
static void set_slots(struct gild_pack_frame *frame, uint16_t slots) {
    uint16_t below = slots;
    for (unsigned shift = 1; shift < GILD_GROUP_BLOCKS; shift *= 2)
        below |= below >> shift;
    frame->slots = slots;
    frame->dropped = slots ? below & (uint16_t)~slots : 1;
}

static void set_frame(struct mend *m, uint32_t number, uint64_t offset, const void *bytes,
                      size_t length) {
    struct gild_pack_frame *frame = &m->group[number].frame;
    frame->file_offset = offset;
    frame->bytes = (uint32_t)length;
    frame->check = pack_frame_check(bytes, length, m->pack->id, number);
    pack_frame_cover(frame);
    m->group[number].state = GOOD;
}

/* A group whose entry is lost: its frame must begin where the one before ended, and its blocks must
 * all be what the fingerprints say. */
static int make_out(struct mend *m, uint32_t number) {
    const struct pack_layout *l = &m->pack->layout;
    struct group *group = &m->group[number];
    uint16_t slots = slots_by_prints(m, number);
    uint64_t start = m->end;
    if (!slots && m->all_prints && m->pack->features & PACK_DROPS) {
        set_slots(&group->frame, 0);
        set_frame(m, number, start, "", 0);
        return 0;
    }
    group->state = UNKNOWN;
    set_slots(&group->frame, slots ? slots : pack_slots(GILD_GROUP_BLOCKS));
    m->end = 0;
    if (!start || !slots || start >= l->frames_end)
        return 0;
    uint64_t first = start & ~(uint64_t)(GILD_PACK_PAGE_BYTES - 1), length = PACK_COVER_BYTES;
    if (length > l->table_offset - first)
        length = l->table_offset - first;
    int err = take(m, m->cover, length, first);
    if (err)
        return ends(err) ? err : 0;
    const uint8_t *bytes = m->cover + (start - first);
    size_t room = (size_t)(length - (start - first)), frame_bytes, content_bytes;
    uint32_t whole = pack_count(slots) * PACK_BLOCK_BYTES;
    if (gild_zstd_measure(bytes, room, &frame_bytes, &content_bytes) == 0 &&
        content_bytes == whole && frame_bytes < whole && start + frame_bytes <= l->frames_end) {
        m->end = start + frame_bytes; /* right or wrong: what follows proves itself */
        if (gild_zstd_decompress(m->out, whole, bytes, frame_bytes) != (ssize_t)whole)
            return 0;
        pack_spread(m->out, slots);
        if (right_content(m, number, slots, m->out, true))
            set_frame(m, number, start, bytes, frame_bytes);
    } else if (room >= whole) {
        memcpy(m->out, bytes, whole);
        pack_spread(m->out, slots);
        if (!right_content(m, number, slots, m->out, true))
            return 0;
        m->end = start + whole;
        set_frame(m, number, start, bytes, whole);
    }
    return 0;
}

static int survey_groups(struct mend *m) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_layout *l = &m->pack->layout;
    bool whole = false;
    m->end = GILD_PACK_PAGE_BYTES;
    for (uint32_t number = 0; number < l->groups; number++) {
        uint32_t index = number % PACK_TABLE_ENTRIES, at = number / PACK_TABLE_ENTRIES;
        struct group *group = &m->group[number];
        int err = 0;
        if (!index) {
            err = take(m, page, sizeof page, l->table_offset + (uint64_t)at * sizeof page);
            if (ends(err))
                return err;
            whole = !err && gild_pack_table_verify(page, m->pack->id, at) == 0 &&
                    ((const struct pack_table *)page)->features == m->pack->features;
        }
        if (!whole || gild_pack_table_entry(page, m->pack->id, number, index, &group->frame) != 0 ||
            group->frame.file_offset + group->frame.bytes > l->frames_end) {
            m->structure = true;
            err = make_out(m, number);
        } else {
            err = read_known(m, number);
            group->state = err ? BAD : GOOD;
            m->end = group->frame.file_offset + group->frame.bytes;
        }
        if (ends(err))
            return err;
    }
    return 0;
}

/* ---- search ---------------------------------------------------------------------------------- */

static bool block_elsewhere(struct mend *m, uint32_t group, uint32_t slot) {
    const struct pack_print *print = &m->print[group << 4 | slot];
    uint8_t *into = m->out + slot * PACK_BLOCK_BYTES;
    if (m->repair->block && m->repair->block(m->repair->context, print->fingerprint, into) &&
        right_block(m, group, slot, into))
        return true;
    uint64_t place = set_find_elsewhere(m->packs, m->pack->id, print->fingerprint);
    const uint8_t *block = m->other + gild_place_slot(place) * PACK_BLOCK_BYTES;
    uint16_t slots;
    if (!place ||
        gild_pack_read_group(m->packs, gild_place_pack_id(place), gild_place_group(place), m->other,
                             &slots) != 0 ||
        !right_block(m, group, slot, block))
        return false;
    memcpy(into, block, PACK_BLOCK_BYTES);
    return true;
}

/* Fills m->out with a group's content from a good copy. */
static bool find_copy(struct mend *m, uint32_t number) {
    uint16_t slots = m->group[number].frame.slots;
    if (slots_by_prints(m, number) != slots)
        return false;
    if (m->repair->copy && m->repair->copy(m->repair->context, m->pack->id, number, m->out) &&
        right_content(m, number, slots, m->out, true))
        return true;
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++)
        if (slots >> slot & 1 && !block_elsewhere(m, number, slot))
            return false;
    return true;
}

static int list_lost(struct mend *m) {
    struct gild_pack_repaired *r = m->result;
    uint32_t groups = (uint32_t)m->pack->layout.groups, count = 0;
    for (uint32_t number = 0; number < groups; number++)
        count += m->group[number].state != GOOD && !m->group[number].healed;
    free(r->lost);
    r->lost_count = 0;
    r->lost = malloc((count + 1) * sizeof *r->lost);
    for (uint32_t number = 0; r->lost && number < groups; number++)
        if (m->group[number].state != GOOD && !m->group[number].healed)
            r->lost[r->lost_count++] = number;
    return r->lost ? 0 : -ENOMEM;
}

static int search(struct mend *m) {
    const struct pack_layout *l = &m->pack->layout;
    for (uint32_t number = 0; number < l->groups; number++) {
        struct group *group = &m->group[number];
        if (group->state == GOOD)
            continue;
        group->healed = find_copy(m, number);
        m->result->healed += group->healed;
    }
    return list_lost(m);
}

/* ---- write ----------------------------------------------------------------------------------- */

static int write_frame(struct pack_writer *writer, const void *bytes, uint32_t length,
                       const struct gild_pack_frame *frame, uint64_t check) {
    return writer_frame(writer, bytes, length, pack_count(frame->slots), frame->dropped, check);
}

/* A lost group keeps its bytes under the check that they fail; one whose bytes are lost too gets
 * one byte under a wrong check. */
static int write_lost(struct mend *m, struct pack_writer *writer, uint32_t number) {
    static const uint8_t nothing[1];
    const struct group *group = &m->group[number];
    const struct gild_pack_frame *frame = &group->frame;
    if (group->state == BAD) {
        int err = take(m, m->cover, frame->read_bytes, frame->read_offset);
        if (ends(err))
            return err;
        if (!err)
            return write_frame(writer, m->cover + (frame->file_offset - frame->read_offset),
                               frame->bytes, frame, frame->check);
    }
    return write_frame(writer, nothing, sizeof nothing, frame,
                       ~pack_frame_check(nothing, 1, m->pack->id, number));
}

static int write_group(struct mend *m, struct pack_writer *writer, uint32_t number) {
    const struct group *group = &m->group[number];
    if (group->state == GOOD) {
        int err = read_known(m, number);
        return err ? err
                   : write_frame(writer,
                                 m->cover + (group->frame.file_offset - group->frame.read_offset),
                                 group->frame.bytes, &group->frame, group->frame.check);
    }
    if (!group->healed)
        return write_lost(m, writer, number);
    if (!find_copy(m, number))
        return -EAGAIN;
    return writer_group(writer, m->out, group->frame.slots, group->frame.dropped, LEVEL);
}

/* The fingerprints that are missing: of what can be read, its own; of what is lost for good, one
 * that no content has. */
static int add_prints(struct mend *m, uint32_t number) {
    bool readable = m->group[number].state == GOOD || m->group[number].healed;
    for (uint32_t slot = 0; slot < GILD_GROUP_BLOCKS; slot++) {
        uint32_t where = number << 4 | slot;
        uint32_t nobody[2] = {m->pack->id, where};
        if (!(m->group[number].frame.slots >> slot & 1) || m->has[where])
            continue;
        int err =
            gild_sha256(readable ? (const void *)(m->out + slot * PACK_BLOCK_BYTES) : nobody,
                        readable ? PACK_BLOCK_BYTES : sizeof nobody, m->print[where].fingerprint);
        if (err)
            return err;
        m->print[where].where = where;
        m->has[where] = 1;
    }
    return 0;
}

static int write_all(struct mend *m, struct pack_writer *writer) {
    uint32_t groups = (uint32_t)m->pack->layout.groups, count = 0;
    int err = 0;
    for (uint32_t number = 0; number < groups && !err; number++) {
        err = write_group(m, writer, number);
        if (!err)
            err = add_prints(m, number);
    }
    /* What no block has any more (a fingerprint page that lied) is left out. */
    for (uint32_t where = 0; where < groups << 4 && !err; where++)
        if (m->has[where] && m->group[where >> 4].frame.slots >> (where & 15) & 1)
            m->print[count++] = m->print[where];
    return err ? err : writer_finish(writer, m->print, count);
}

/* ---- in place of the old one ------------------------------------------------------------------
 */

static int by_number(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static bool known_lost(void *context, const struct pack *made, uint32_t group) {
    const struct gild_pack_repaired *r = ((const struct mend *)context)->result;
    (void)made;
    return r->lost_count && bsearch(&group, r->lost, r->lost_count, sizeof *r->lost, by_number);
}

static int note_lost(void *context) {
    const struct mend *m = context;
    const struct gild_pack_repair *repair = m->repair;
    return repair->lost
               ? repair->lost(repair->context, m->pack->id, m->result->lost, m->result->lost_count)
               : 0;
}

static int rewrite(struct mend *m) {
    const struct pack_replacing how = {.allowed = known_lost,
                                       .ready = note_lost,
                                       .context = m,
                                       .lost = m->result->lost,
                                       .lost_count = m->result->lost_count};
    struct pack_writer *writer;
    int err =
        writer_create(&writer, m->packs, m->pack->id, m->pack->generation + 1, m->pack->features);
    if (err)
        return err;
    err = write_all(m, writer);
    if (!err)
        err = pack_replace(m->packs, m->pack->id, writer, &how, &m->result->old);
    m->result->rewritten = !err;
    writer_destroy(writer);
    return err;
}

static int repair(struct mend *m) {
    size_t groups = m->pack->layout.groups, slots = groups * GILD_GROUP_BLOCKS;
    m->group = calloc(groups, sizeof *m->group);
    m->print = malloc(slots * sizeof *m->print);
    m->has = calloc(slots, 1);
    m->cover = aligned_alloc(GILD_PACK_PAGE_BYTES, PACK_COVER_BYTES);
    m->out = malloc(GILD_GROUP_BYTES);
    m->other = malloc(GILD_GROUP_BYTES);
    if (!m->group || !m->print || !m->has || !m->cover || !m->out || !m->other)
        return -ENOMEM;
    survey_edges(m);
    int err = survey_prints(m);
    if (!err)
        err = survey_groups(m);
    if (!err)
        err = search(m);
    if (err)
        return err;
    if (m->structure || m->result->healed)
        err = rewrite(m);
    if (m->result->rewritten)
        return err;
    /* What could be healed but was not is as lost as the rest, until the next time. */
    for (uint32_t number = 0; number < groups; number++)
        m->group[number].healed = false;
    m->result->healed = 0;
    int marked = list_lost(m);
    if (!marked)
        marked = gild_packs_set_lost(m->packs, m->pack->id, m->result->lost, m->result->lost_count);
    return err ? err : marked;
}

int gild_pack_repair(struct gild_packs *packs, uint32_t pack_id,
                     const struct gild_pack_repair *wanted, struct gild_pack_repaired *result) {
    struct pack *pack = set_hold(packs, pack_id);
    struct mend mend = {.packs = packs, .pack = pack, .repair = wanted, .result = result};
    memset(result, 0, sizeof *result);
    if (!pack)
        return -ENOENT;
    int err = repair(&mend);
    pack_release(pack);
    free(mend.group);
    free(mend.print);
    free(mend.has);
    free(mend.cover);
    free(mend.out);
    free(mend.other);
    return err;
}
