/* libFuzzer entry: a pack's file, edited, as the store opens it, reads it, searches it and checks
 * it. See fuzz.h for the input; bit 1 of its first byte: the check is a deep one; bit 2: the pack
 * is one that slots were dropped from; bit 3: it is collected, too. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "codec/hash.h"
#include "fuzz.h"
#include "pack/format.h"
#include "pack/set.h"

#define PACK_ID 1u
#define BLOCKS 150u /* ten groups, two pages of fingerprints */

static const uint8_t store_id[16] = "fuzzed store id";
static struct fuzz_object valid, collected;
static struct pack_layout whole; /* of the valid pack */
static uint8_t prints[BLOCKS][GILD_FINGERPRINT_BYTES];
static char path[128];

static int next_id(void *context, uint32_t *id) {
    (void)context;
    *id = PACK_ID;
    return 0;
}

static int placed(void *context, uint64_t tag, uint64_t place, uint32_t check,
                  const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    (void)context, (void)place, (void)check;
    memcpy(prints[tag], fingerprint, GILD_FINGERPRINT_BYTES);
    return 0;
}

/* Drops slots of the groups from the fourth on: all, all but one, ends, and every other one of two
 * thirds. */
static void collect(struct gild_packs *packs) {
    const uint16_t live[(BLOCKS + 15) / 16] = {0xffff, 0xffff, 0xffff, 0,      0x0100,
                                               0x8001, 0x0492, 0,      0x4000, 2};
    const struct gild_pack_compacting options = {0};
    struct gild_pack_compacted done;
    FUZZ_MUST(gild_pack_compact(packs, PACK_ID, live, &options, &done) == 0 && done.rewritten);
    gild_pack_let_go(done.old);
    fuzz_load(path, &collected);
}

static void make_valid(void) {
    static uint8_t blocks[BLOCKS][PACK_BLOCK_BYTES];
    const struct gild_ingest_options options = {.next_pack_id = next_id, .placed = placed};
    struct gild_error error = {0};
    struct gild_packs *packs;
    struct gild_ingest *ingest;
    uint32_t random = 1;
    for (unsigned i = 0; i < BLOCKS; i++)
        for (unsigned at = 0; at < PACK_BLOCK_BYTES; at++) {
            random = random * 1664525 + 1013904223;
            /* Most groups compress; the second is stored as it is. */
            blocks[i][at] = i / 16 == 1 ? (uint8_t)(random >> 24) : (uint8_t)(at < 4 ? i + 1 : i);
        }
    FUZZ_MUST(gild_packs_create(&packs, fuzz_folder(), store_id, &error) == 0);
    FUZZ_MUST(gild_ingest_create(&ingest, packs, &options, &error) == 0);
    FUZZ_MUST(gild_ingest_add(ingest, blocks, BLOCKS, 0) == 0);
    FUZZ_MUST(gild_ingest_finish(ingest, &error) == 0);
    gild_ingest_destroy(ingest, true);
    whole = set_get(packs, PACK_ID)->layout;
    set_path(packs, PACK_ID, true, path);
    fuzz_load(path, &valid);
    collect(packs);
    gild_packs_destroy(packs);
    chmod(path, 0600);
}

/* ---- checks made right ----------------------------------------------------------------------- */

static void seal_frames(struct fuzz_object *object, struct pack_table *table) {
    for (uint32_t i = 0; i < PACK_TABLE_ENTRIES; i++) {
        struct pack_entry *entry = &table->entry[i];
        if (entry->offset <= object->length && entry->bytes <= object->length - entry->offset)
            entry->check = pack_frame_check(object->bytes + entry->offset, entry->bytes, PACK_ID,
                                            table->page * PACK_TABLE_ENTRIES + i);
    }
}

static void seal_pages(struct fuzz_object *object) {
    for (size_t at = 0; at + GILD_PACK_PAGE_BYTES <= object->length; at += GILD_PACK_PAGE_BYTES) {
        uint8_t *page = object->bytes + at;
        uint32_t magic, number;
        memcpy(&magic, page + 8, sizeof magic);
        memcpy(&number, page + offsetof(struct pack_table, page), sizeof number);
        if (magic == PACK_TABLE_MAGIC)
            seal_frames(object, (struct pack_table *)page);
        uint64_t check = pack_page_check(page, PACK_ID, number);
        if (magic == PACK_TABLE_MAGIC || magic == PACK_PRINTS_MAGIC)
            memcpy(page, &check, sizeof check);
    }
}

static void seal_edge(uint8_t *page) {
    uint32_t id;
    memcpy(&id, page + offsetof(struct pack_head, pack_id), sizeof id);
    uint64_t check = pack_edge_check(page, id);
    memcpy(page + GILD_PACK_PAGE_BYTES - 8, &check, sizeof check);
}

static void seal(struct fuzz_object *object) {
    struct pack_layout l;
    if (object->length < 2 * GILD_PACK_PAGE_BYTES)
        return;
    struct pack_footer *footer =
        (void *)(object->bytes + (object->length / GILD_PACK_PAGE_BYTES - 1) * 4096);
    seal_pages(object);
    seal_edge(object->bytes);
    if (pack_layout(footer->groups, footer->blocks, footer->frames_end, footer->head.incompatible,
                    &l) == 0 &&
        l.footer_offset <= object->length)
        footer->index_check = gild_xxh3(object->bytes + l.index_offset,
                                        l.index_pages * GILD_PACK_PAGE_BYTES, PACK_ID);
    seal_edge((uint8_t *)footer);
}

/* ---- the parser ------------------------------------------------------------------------------ */

static void found(void *context, const struct gild_pack_fault *fault) {
    unsigned *findings = context;
    fuzz_touch(fault->sentence, strlen(fault->sentence));
    (*findings)++;
}

static int read_whole(int fd, void *buffer, size_t bytes, uint64_t offset) {
    return pack_read(fd, buffer, bytes, offset);
}

static void read_group(struct gild_packs *packs, uint32_t group) {
    static _Alignas(4096) uint8_t page[GILD_PACK_PAGE_BYTES];
    static _Alignas(4096) uint8_t cover[GILD_GROUP_BYTES + 2 * GILD_PACK_PAGE_BYTES];
    uint8_t *out = malloc(GILD_GROUP_BYTES);
    struct gild_pack_page where;
    struct gild_pack_frame frame;
    FUZZ_MUST(out);
    if (gild_pack_table_page(packs, PACK_ID, group, &where) == 0 &&
        read_whole(where.fd, page, sizeof page, where.file_offset) == 0 &&
        gild_pack_table_verify(page, PACK_ID, where.page) == 0 &&
        gild_pack_table_entry(page, PACK_ID, group, where.index, &frame) == 0) {
        FUZZ_MUST(frame.read_bytes <= sizeof cover && !(frame.slots & frame.dropped));
        FUZZ_MUST(!frame.bytes ||
                  frame.file_offset - frame.read_offset + frame.bytes <= frame.read_bytes);
        if (read_whole(where.fd, cover, frame.read_bytes, frame.read_offset) == 0 &&
            gild_pack_decode(cover + (frame.file_offset - frame.read_offset), &frame, PACK_ID,
                             group, out) == 0)
            fuzz_touch(out, GILD_GROUP_BYTES);
    }
    free(out);
}

static void look(struct gild_packs *packs, bool deep) {
    uint64_t places[BLOCKS] = {0};
    uint32_t hot = PACK_ID;
    unsigned findings = 0;
    uint64_t groups = set_get(packs, PACK_ID)->layout.groups;
    set_find_many(packs, &hot, prints, BLOCKS, places);
    for (unsigned i = 0; i < BLOCKS; i++)
        FUZZ_MUST(!places[i] || gild_place_group(places[i]) < groups);
    for (uint32_t group = 0; group < whole.groups + 2; group++)
        read_group(packs, group);
    const struct gild_pack_look look = {.deep = deep, .found = found, .context = &findings};
    int err = gild_pack_check(packs, PACK_ID, &look);
    FUZZ_MUST(err == 0 ? !findings : err == -EUCLEAN ? findings : err == -ENOMEM);
}

/* Whatever the pack is, a collection ends, and what it writes is whole but for what it could not
 * read before. */
static void collect_again(struct gild_packs *packs) {
    const struct gild_pack_compacting options = {0};
    struct gild_pack_compacted done;
    uint64_t groups = set_get(packs, PACK_ID)->layout.groups;
    uint16_t *live = calloc(groups, sizeof *live);
    FUZZ_MUST(live);
    for (uint64_t i = 0; i < groups; i++)
        live[i] = (uint16_t)(0x0210 << i % 3);
    int err = gild_pack_compact(packs, PACK_ID, live, &options, &done);
    FUZZ_MUST(!done.rewritten || (!err && done.bytes_after < done.bytes_before));
    gild_pack_let_go(done.old);
    for (uint32_t group = 0; group < whole.groups; group++)
        read_group(packs, group);
    free(live);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gild_error error = {0};
    struct gild_packs *packs;
    if (!valid.length)
        make_valid();
    if (!size)
        return 0;
    struct fuzz_object *object = fuzz_edit(data[0] & 4 ? &collected : &valid, data, size);
    if (fuzz_wants_checks(data))
        seal(object);
    fuzz_store(path, object);
    FUZZ_MUST(gild_packs_create(&packs, fuzz_folder(), store_id, &error) == 0);
    if (gild_packs_add(packs, PACK_ID, &error) == 0)
        look(packs, data[0] & 2);
    else
        FUZZ_MUST(error.message[0]);
    fuzz_must_hold(path, object);
    if (data[0] & 8 && set_get(packs, PACK_ID))
        collect_again(packs);
    gild_packs_destroy(packs);
    return 0;
}
