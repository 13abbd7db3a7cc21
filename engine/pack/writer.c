/* Writing a pack: everything is appended through one aligned buffer in large O_DIRECT writes, so
 * that an import neither evicts the page cache nor ends in one long sync.
 *
 * Invariants: the buffer starts at a 4 KiB boundary of the file; the file has its final name only
 * after all of it was synced; nothing is read back. One thread.
 *
 * Failure modes: the first failed write or sync ends the pack (it is never retried); destroy then
 * unlinks it. A crash leaves a ".new" file that nothing refers to. */
#include "pack/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/hash.h"
#include "codec/zstd.h"
#include "io/file.h"

#define BUFFER_BYTES (1u << 20)

struct pack_writer {
    struct gild_packs *packs;
    uint32_t pack_id, generation;
    uint64_t features;
    int fd;
    bool sealed;
    uint64_t offset; /* of the buffer in the file */
    size_t filled;
    struct pack_entry *entry;
    uint32_t groups, room;
    uint8_t *buffer;
    uint8_t *gathered, *packed; /* of one group, made by the first writer_group */
};

int writer_create(struct pack_writer **out, struct gild_packs *packs, uint32_t pack_id,
                  uint32_t generation, uint64_t features) {
    char path[PATH_MAX];
    struct pack_writer *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->buffer = aligned_alloc(GILD_PACK_PAGE_BYTES, BUFFER_BYTES);
    if (!w->buffer) {
        free(w);
        return -ENOMEM;
    }
    w->packs = packs;
    w->pack_id = pack_id;
    w->generation = generation;
    w->features = features;
    set_path(packs, pack_id, false, path);
    /* Of a rewrite that was broken off: no open has removed it, if that open does this one. */
    if (generation > 1)
        unlink(path);
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    w->fd = open(path, flags | O_DIRECT, 0600);
    if (w->fd < 0 && errno == EINVAL) {
        /* Some kernels make the file before they refuse the flag. */
        unlink(path);
        w->fd = open(path, flags, 0600);
    }
    if (w->fd < 0) {
        int err = -errno;
        free(w->buffer);
        free(w);
        return err;
    }
    struct pack_header *header = (struct pack_header *)w->buffer;
    memset(header, 0, sizeof *header);
    pack_head_fill(&header->head, PACK_HEADER_MAGIC, packs->store_id, pack_id, generation,
                   features);
    header->check = pack_edge_check(header, pack_id);
    w->filled = sizeof *header;
    *out = w;
    return 0;
}

static int flush(struct pack_writer *w) {
    int err = gild_file_write(w->fd, w->buffer, w->filled, w->offset);
    if (err)
        return err;
    w->offset += w->filled;
    w->filled = 0;
    return 0;
}

static int append(struct pack_writer *w, const void *data, size_t length) {
    const uint8_t *from = data;
    while (length) {
        size_t n = BUFFER_BYTES - w->filled < length ? BUFFER_BYTES - w->filled : length;
        memcpy(w->buffer + w->filled, from, n);
        w->filled += n;
        from += n;
        length -= n;
        int err = w->filled == BUFFER_BYTES ? flush(w) : 0;
        if (err)
            return err;
    }
    return 0;
}

int writer_frame(struct pack_writer *w, const void *frame, uint32_t bytes, uint32_t blocks,
                 uint16_t dropped, uint64_t check) {
    if (w->groups == w->room) {
        uint32_t room = w->room ? w->room * 2 : 1024;
        struct pack_entry *entry = realloc(w->entry, room * sizeof *entry);
        if (!entry)
            return -ENOMEM;
        w->entry = entry;
        w->room = room;
    }
    w->entry[w->groups++] = (struct pack_entry){
        .offset = w->offset + w->filled,
        .check = check,
        .bytes = bytes,
        .blocks = (uint8_t)blocks,
        .flags = blocks && bytes == blocks * PACK_BLOCK_BYTES ? PACK_FLAG_RAW : 0,
        .dropped = dropped,
    };
    return append(w, frame, bytes);
}

int writer_group(struct pack_writer *w, const void *group, uint16_t slots, uint16_t dropped,
                 int level) {
    uint32_t blocks = pack_count(slots);
    size_t whole = (size_t)blocks * PACK_BLOCK_BYTES;
    if (!w->gathered)
        w->gathered = malloc(GILD_GROUP_BYTES);
    if (!w->packed)
        w->packed = malloc(GILD_GROUP_BYTES);
    if (!w->gathered || !w->packed)
        return -ENOMEM;
    pack_gather(w->gathered, group, slots);
    ssize_t bytes = whole ? gild_zstd_compress(w->packed, whole - 1, w->gathered, whole, level) : 0;
    if (bytes < 0)
        return (int)bytes;
    const uint8_t *frame = bytes ? w->packed : w->gathered;
    uint32_t length = bytes ? (uint32_t)bytes : (uint32_t)whole;
    return writer_frame(w, frame, length, blocks, dropped,
                        pack_frame_check(frame, length, w->pack_id, w->groups));
}

uint64_t writer_frame_end(const struct pack_writer *w, uint32_t group) {
    return w->entry[group].offset + w->entry[group].bytes;
}

static int append_table(struct pack_writer *w, uint64_t frames_end) {
    struct pack_table page;
    int err = 0;
    for (uint32_t first = 0; first < w->groups && !err; first += PACK_TABLE_ENTRIES) {
        uint32_t rest = w->groups - first;
        memset(&page, 0, sizeof page);
        page.magic = PACK_TABLE_MAGIC;
        page.pack_id = w->pack_id;
        page.page = first / PACK_TABLE_ENTRIES;
        page.count = rest < PACK_TABLE_ENTRIES ? rest : PACK_TABLE_ENTRIES;
        page.frames_end = frames_end;
        page.features = w->features;
        memcpy(page.entry, &w->entry[first], page.count * sizeof page.entry[0]);
        page.check = pack_page_check(&page, w->pack_id, page.page);
        err = append(w, &page, sizeof page);
    }
    return err;
}

static int compare(const void *left, const void *right) {
    const struct pack_print *a = left, *b = right;
    return memcmp(a->fingerprint, b->fingerprint, sizeof a->fingerprint);
}

static int append_prints(struct pack_writer *w, const struct pack_print *prints, uint32_t count) {
    struct pack_prints page;
    int err = 0;
    for (uint32_t first = 0; first < count && !err; first += PACK_PRINTS) {
        uint32_t rest = count - first;
        memset(&page, 0, sizeof page);
        page.magic = PACK_PRINTS_MAGIC;
        page.pack_id = w->pack_id;
        page.page = first / PACK_PRINTS;
        page.count = rest < PACK_PRINTS ? rest : PACK_PRINTS;
        memcpy(page.print, &prints[first], page.count * sizeof page.print[0]);
        page.check = pack_page_check(&page, w->pack_id, page.page);
        err = append(w, &page, sizeof page);
    }
    return err;
}

static int append_index(struct pack_writer *w, const struct pack_layout *l,
                        const struct pack_print *prints, uint64_t *check) {
    size_t length = l->index_pages * GILD_PACK_PAGE_BYTES;
    void *index = calloc(1, length);
    if (!index)
        return -ENOMEM;
    struct pack_filter_block *filter = index;
    uint64_t *fences = (uint64_t *)index + l->filter_blocks * 4;
    for (uint64_t i = 0; i < l->blocks; i++)
        pack_filter_set(filter, l->filter_blocks, prints[i].fingerprint);
    for (uint64_t i = 0; i < l->prints_pages; i++)
        fences[i] = pack_print_prefix(prints[i * PACK_PRINTS].fingerprint);
    *check = gild_xxh3(index, length, w->pack_id);
    int err = append(w, index, length);
    free(index);
    return err;
}

static int append_footer(struct pack_writer *w, const struct pack_layout *l, uint64_t index_check) {
    struct pack_footer footer = {
        .groups = (uint32_t)l->groups,
        .blocks = (uint32_t)l->blocks,
        .frames_end = l->frames_end,
        .table_offset = l->table_offset,
        .table_pages = l->table_pages,
        .prints_offset = l->prints_offset,
        .prints_pages = l->prints_pages,
        .index_offset = l->index_offset,
        .index_pages = l->index_pages,
        .filter_blocks = l->filter_blocks,
        .index_check = index_check,
    };
    pack_head_fill(&footer.head, PACK_FOOTER_MAGIC, w->packs->store_id, w->pack_id, w->generation,
                   w->features);
    footer.check = pack_edge_check(&footer, w->pack_id);
    return append(w, &footer, sizeof footer);
}

int writer_finish(struct pack_writer *w, struct pack_print *prints, uint32_t count) {
    static const uint8_t zeroes[GILD_PACK_PAGE_BYTES];
    struct pack_layout layout;
    uint64_t index_check = 0, frames_end = w->offset + w->filled;
    int err = pack_layout(w->groups, count, frames_end, w->features, &layout);
    if (err)
        return err;
    qsort(prints, count, sizeof *prints, compare);
    err = append(w, zeroes, layout.table_offset - frames_end);
    if (!err)
        err = append_table(w, frames_end);
    if (!err)
        err = append_prints(w, prints, count);
    if (!err)
        err = append_index(w, &layout, prints, &index_check);
    if (!err)
        err = append_footer(w, &layout, index_check);
    if (!err)
        err = flush(w);
    if (err)
        return err;
    return fsync(w->fd) == 0 ? 0 : -errno;
}

int writer_publish(struct pack_writer *w) {
    char from[PATH_MAX], to[PATH_MAX];
    set_path(w->packs, w->pack_id, false, from);
    set_path(w->packs, w->pack_id, true, to);
    /* A new pack replaces none: a number that is taken means that numbers were given twice. */
    unsigned flags = w->generation > 1 ? 0 : RENAME_NOREPLACE;
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) != 0 &&
        (errno != EINVAL || rename(from, to) != 0))
        return -errno;
    w->sealed = true;
    return 0;
}

void writer_destroy(struct pack_writer *w) {
    char path[PATH_MAX];
    if (!w)
        return;
    close(w->fd);
    if (!w->sealed) {
        set_path(w->packs, w->pack_id, false, path);
        unlink(path);
    }
    free(w->entry);
    free(w->gathered);
    free(w->packed);
    free(w->buffer);
    free(w);
}
