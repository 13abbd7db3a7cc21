/* One sealed pack: opening it and finding fingerprints in it.
 *
 * What is held per pack: two descriptors, the filter (12 bits a block) and the fences (8 bytes for
 * 113 blocks). A question is answered by the filter (no I/O), or by the one fingerprint page that
 * the fences name.
 *
 * Invariants: everything in struct pack but `hits`, `refs` and `lost` is constant after pack_open;
 * layout was recomputed from three numbers and agrees with footer and file size, so that each page
 * number below its count lies within the file.
 *
 * Failure modes: a damaged header, footer or size refuses the pack; a damaged index or fingerprint
 * page only ends deduplication into what it covers. */
#include "pack/sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/hash.h"
#include "io/file.h"

/* Lookups in one pack after which its fingerprints are read ahead: hashes have no locality, but an
 * image that meets a pack meets it often. */
#define WARM_AFTER 16u

/* A file that ends too early is damaged. */
int pack_read(int fd, void *buffer, size_t length, uint64_t offset) {
    int err = gild_file_read(fd, buffer, length, offset);
    return err == -ENODATA ? -EBADMSG : err;
}

static int refuse(struct gild_error *error, int err, const char *path) {
    switch (-err) {
    case ENOTSUP:
        return gild_fail(error, GILD_FAILED, ENOTSUP,
                         "the pack %s was written by a newer gild; open the store with that", path);
    case ENOENT:
        return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                         "the pack %s is missing: put it back, or run `gild store check --repair`",
                         path);
    case ESTALE:
        return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                         "the file %s is a pack of another store or another number: put the right "
                         "one back, or run `gild store check --repair`",
                         path);
    case EBADMSG:
    case EUCLEAN:
        return gild_fail(error, GILD_CORRUPT, -err,
                         "the pack %s is damaged or cut short: restore it from a backup, or run "
                         "`gild store check --repair`",
                         path);
    default:
        return gild_fail(error, gild_code_of_errno(-err), -err, "the pack %s can not be read: %s",
                         path, strerror(-err));
    }
}

static int open_files(struct pack *pack, const char *path, uint64_t *size) {
    struct stat status;
    pack->buffered_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (pack->buffered_fd < 0 || fstat(pack->buffered_fd, &status) != 0)
        return -errno;
    if (!S_ISREG(status.st_mode) || status.st_size % GILD_PACK_PAGE_BYTES != 0 ||
        status.st_size < 2 * (off_t)GILD_PACK_PAGE_BYTES)
        return -EUCLEAN;
    *size = (uint64_t)status.st_size;
    pack->direct_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_DIRECT);
    if (pack->direct_fd < 0 && errno == EINVAL)
        pack->direct_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return pack->direct_fd < 0 ? -errno : 0;
}

static int verify_footer(struct pack *pack, const struct pack_footer *footer, uint64_t size) {
    struct pack_layout *l = &pack->layout;
    int err = pack_layout(footer->groups, footer->blocks, footer->frames_end, pack->features, l);
    if (err)
        return err;
    if (l->file_bytes != size || footer->table_offset != l->table_offset ||
        footer->table_pages != l->table_pages || footer->prints_offset != l->prints_offset ||
        footer->prints_pages != l->prints_pages || footer->index_offset != l->index_offset ||
        footer->index_pages != l->index_pages || footer->filter_blocks != l->filter_blocks)
        return -EUCLEAN;
    return 0;
}

/* 0 also if the index is damaged: the pack then stays without one. */
static int load_index(struct pack *pack, uint64_t check) {
    const struct pack_layout *l = &pack->layout;
    size_t length = l->index_pages * GILD_PACK_PAGE_BYTES;
    void *index = aligned_alloc(GILD_PACK_PAGE_BYTES, length);
    if (!index)
        return -ENOMEM;
    int err = pack_read(pack->direct_fd, index, length, l->index_offset);
    if (err || gild_xxh3(index, length, pack->id) != check) {
        free(index);
        return 0;
    }
    pack->index = index;
    pack->filter = index;
    pack->fences = (const uint64_t *)index + l->filter_blocks * 4;
    return 0;
}

static int open_verified(struct pack *pack, const char *path, const uint8_t store_id[16]) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    struct pack_footer footer;
    uint64_t size = 0;
    int err = open_files(pack, path, &size);
    if (!err)
        err = pack_read(pack->direct_fd, page, sizeof page, 0);
    if (!err)
        err = pack_head_verify(page, PACK_HEADER_MAGIC, store_id, pack->id);
    if (err)
        return err;
    pack->generation = ((const struct pack_header *)page)->head.generation;
    pack->features = ((const struct pack_header *)page)->head.incompatible;
    err = pack_read(pack->direct_fd, page, sizeof page, size - sizeof page);
    if (!err)
        err = pack_head_verify(page, PACK_FOOTER_MAGIC, store_id, pack->id);
    if (err)
        return err;
    memcpy(&footer, page, sizeof footer);
    if (footer.head.generation != pack->generation)
        return -EUCLEAN;
    if (footer.head.incompatible != pack->features)
        return -EUCLEAN;
    err = verify_footer(pack, &footer, size);
    return err ? err : load_index(pack, footer.index_check);
}

/* ---- a pack whose ends are damaged ----------------------------------------------------------- */

/* Does the file begin its table and its fingerprints where this layout has them? */
static bool layout_fits(const struct pack *pack, const struct pack_layout *l, uint64_t size,
                        void *page) {
    return l->file_bytes == size &&
           (pack_read(pack->direct_fd, page, GILD_PACK_PAGE_BYTES, l->table_offset) == 0 &&
            gild_pack_table_verify(page, pack->id, 0) == 0 &&
            ((const struct pack_table *)page)->frames_end == l->frames_end);
}

/* From the end backwards: fingerprint pages and table pages say themselves which ones they are. The
 * last of each kind must be whole. */
static int find_layout(struct pack *pack, uint64_t size, void *page) {
    const struct pack_table *table = page;
    const struct pack_prints *prints = page;
    uint64_t blocks = 0;
    for (uint64_t at = size; at >= 2 * GILD_PACK_PAGE_BYTES;) {
        at -= GILD_PACK_PAGE_BYTES;
        int err = pack_read(pack->direct_fd, page, GILD_PACK_PAGE_BYTES, at);
        if (err)
            return err;
        if (!blocks && prints->magic == PACK_PRINTS_MAGIC &&
            pack_prints_verify(prints, pack->id, prints->page, prints->count) == 0)
            blocks = (uint64_t)prints->page * PACK_PRINTS + prints->count;
        if (table->magic != PACK_TABLE_MAGIC ||
            gild_pack_table_verify(page, pack->id, table->page) != 0)
            continue;
        uint64_t groups = (uint64_t)table->page * PACK_TABLE_ENTRIES + table->count;
        pack->features = table->features;
        if (groups > PACK_GROUPS_MAX || blocks > UINT32_MAX ||
            pack_layout((uint32_t)groups, (uint32_t)blocks, table->frames_end, table->features,
                        &pack->layout) ||
            pack->layout.file_bytes != size ||
            pack->layout.table_offset + (uint64_t)table->page * GILD_PACK_PAGE_BYTES != at)
            return -EUCLEAN;
        return 0;
    }
    return -EUCLEAN;
}

/* Another store's page under a right check is no damage, but the wrong file. */
static bool foreign(const void *page, const char *magic, const struct pack *pack,
                    const uint8_t store_id[16]) {
    int err = pack_head_verify(page, magic, store_id, pack->id);
    return err == -ESTALE || err == -ENOTSUP;
}

static int salvage(struct pack *pack, const char *path, const uint8_t store_id[16]) {
    _Alignas(GILD_PACK_PAGE_BYTES) uint8_t page[GILD_PACK_PAGE_BYTES];
    const struct pack_head *head = (const struct pack_head *)page;
    struct pack_footer footer;
    uint64_t size = 0;
    pack->generation = 1;
    int err = open_files(pack, path, &size);
    if (!err)
        err = pack_read(pack->direct_fd, page, sizeof page, 0);
    if (!err && foreign(page, PACK_HEADER_MAGIC, pack, store_id))
        err = -ESTALE;
    if (err)
        return err;
    if (pack_head_verify(page, PACK_HEADER_MAGIC, store_id, pack->id) == 0) {
        pack->generation = head->generation;
        pack->features = head->incompatible;
    }
    err = pack_read(pack->direct_fd, page, sizeof page, size - sizeof page);
    if (!err && foreign(page, PACK_FOOTER_MAGIC, pack, store_id))
        err = -ESTALE;
    if (err)
        return err;
    memcpy(&footer, page, sizeof footer);
    bool whole = pack_head_verify(page, PACK_FOOTER_MAGIC, store_id, pack->id) == 0;
    if (whole && footer.head.generation > pack->generation)
        pack->generation = footer.head.generation;
    if (whole)
        pack->features = footer.head.incompatible;
    bool known =
        pack_layout(footer.groups, footer.blocks, footer.frames_end, pack->features,
                    &pack->layout) == 0 &&
        (whole ? pack->layout.file_bytes == size : layout_fits(pack, &pack->layout, size, page));
    err = known ? 0 : find_layout(pack, size, page);
    return !err && whole ? load_index(pack, footer.index_check) : err;
}

static int open_with(int (*verify)(struct pack *pack, const char *path, const uint8_t store_id[16]),
                     struct pack **out, const char *path, const uint8_t store_id[16],
                     uint32_t pack_id, struct gild_error *error) {
    struct pack *pack = calloc(1, sizeof *pack);
    if (!pack)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open the pack %s", path);
    pack->id = pack_id;
    pack->direct_fd = pack->buffered_fd = -1;
    atomic_store(&pack->refs, 1);
    int err = verify(pack, path, store_id);
    if (err) {
        pack_close(pack);
        return refuse(error, err, path);
    }
    posix_fadvise(pack->buffered_fd, 0, 0, POSIX_FADV_RANDOM);
    *out = pack;
    return 0;
}

int pack_open(struct pack **out, const char *path, const uint8_t store_id[16], uint32_t pack_id,
              struct gild_error *error) {
    return open_with(open_verified, out, path, store_id, pack_id, error);
}

int pack_open_damaged(struct pack **out, const char *path, const uint8_t store_id[16],
                      uint32_t pack_id, struct gild_error *error) {
    return open_with(salvage, out, path, store_id, pack_id, error);
}

void pack_close(struct pack *pack) {
    if (!pack)
        return;
    if (pack->direct_fd >= 0)
        close(pack->direct_fd);
    if (pack->buffered_fd >= 0)
        close(pack->buffered_fd);
    free(pack->index);
    free(pack->lost);
    free(pack);
}

int pack_mark_lost(struct pack *pack, const uint32_t *groups, size_t count) {
    size_t words = pack->layout.groups / 64 + 1;
    if (count && !pack->lost) {
        pack->lost = calloc(words, sizeof *pack->lost);
        if (!pack->lost)
            return -ENOMEM;
    }
    if (pack->lost)
        memset(pack->lost, 0, words * sizeof *pack->lost);
    for (size_t i = 0; i < count; i++)
        if (groups[i] < pack->layout.groups)
            pack->lost[groups[i] / 64] |= (uint64_t)1 << groups[i] % 64;
    return 0;
}

void pack_release(struct pack *pack) {
    if (pack && atomic_fetch_sub(&pack->refs, 1) == 1)
        pack_close(pack);
}

int pack_read_group(const struct pack *pack, uint32_t group, void *cover, void *out,
                    uint16_t *slots) {
    struct gild_pack_frame frame;
    uint32_t number = group / PACK_TABLE_ENTRIES;
    if (group >= pack->layout.groups)
        return -EUCLEAN;
    int err = pack_read(pack->direct_fd, cover, GILD_PACK_PAGE_BYTES,
                        pack->layout.table_offset + (uint64_t)number * GILD_PACK_PAGE_BYTES);
    if (!err)
        err = gild_pack_table_verify(cover, pack->id, number);
    if (!err)
        err = gild_pack_table_entry(cover, pack->id, group, group % PACK_TABLE_ENTRIES, &frame);
    if (!err)
        err = pack_read(pack->direct_fd, cover, frame.read_bytes, frame.read_offset);
    if (!err)
        err = gild_pack_decode((uint8_t *)cover + (frame.file_offset - frame.read_offset), &frame,
                               pack->id, group, out);
    if (!err)
        *slots = frame.slots;
    return err;
}

uint64_t pack_memory_bytes(const struct pack *pack) {
    return sizeof *pack + (pack->index ? pack->layout.index_pages * GILD_PACK_PAGE_BYTES : 0);
}

/* The first page that may hold the prefix: the last whose fence is below it (a page's fence equal
 * to the prefix may follow a page that ends with it). */
static uint64_t first_page(const struct pack *pack, uint64_t prefix) {
    uint64_t low = 0, high = pack->layout.prints_pages;
    /* The fences below `low` are below the prefix, those from `high` on are not. */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (pack->fences[middle] < prefix)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? low - 1 : 0;
}

static int64_t search_page(const struct pack_prints *page, const uint8_t *fingerprint) {
    uint32_t low = 0, high = page->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        int order = memcmp(page->print[middle].fingerprint, fingerprint, GILD_FINGERPRINT_BYTES);
        if (order == 0)
            return page->print[middle].where;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -ENOENT;
}

static void count_hit(struct pack *pack) {
    if (atomic_load_explicit(&pack->hits, memory_order_relaxed) > WARM_AFTER)
        return;
    if (atomic_fetch_add_explicit(&pack->hits, 1, memory_order_relaxed) == WARM_AFTER)
        posix_fadvise(pack->buffered_fd, (off_t)pack->layout.prints_offset,
                      (off_t)(pack->layout.prints_pages * GILD_PACK_PAGE_BYTES),
                      POSIX_FADV_WILLNEED);
}

static bool group_lost(const struct pack *pack, uint64_t group) {
    return pack->lost && (pack->lost[group / 64] >> group % 64 & 1);
}

static int64_t search_pages(struct pack *pack, const uint8_t *fingerprint) {
    const struct pack_layout *l = &pack->layout;
    uint64_t prefix = pack_print_prefix(fingerprint);
    struct pack_prints page;
    for (uint64_t i = first_page(pack, prefix); i < l->prints_pages; i++) {
        if (pack->fences[i] > prefix)
            break;
        uint64_t rest = l->blocks - i * PACK_PRINTS;
        if (pack_read(pack->buffered_fd, &page, sizeof page,
                      l->prints_offset + i * GILD_PACK_PAGE_BYTES) != 0 ||
            pack_prints_verify(&page, pack->id, (uint32_t)i,
                               rest < PACK_PRINTS ? (uint32_t)rest : PACK_PRINTS) != 0)
            continue;
        int64_t where = search_page(&page, fingerprint);
        if (where >= 0)
            return (uint64_t)where >> 4 < l->groups && !group_lost(pack, (uint64_t)where >> 4)
                       ? where
                       : -ENOENT;
    }
    return -ENOENT;
}

int64_t pack_find(struct pack *pack, const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    if (!pack->filter || !pack_filter_has(pack->filter, pack->layout.filter_blocks, fingerprint))
        return -ENOENT;
    count_hit(pack);
    return search_pages(pack, fingerprint);
}

unsigned pack_find_many(struct pack *pack, const uint8_t (*fingerprints)[GILD_FINGERPRINT_BYTES],
                        unsigned count, uint64_t *places) {
    uint64_t blocks = pack->layout.filter_blocks;
    unsigned found = 0;
    if (!pack->filter || atomic_load_explicit(&pack->unindexed, memory_order_relaxed))
        return 0;
    /* With many packs each question is a cache miss: all are begun before one is waited for. */
    for (unsigned i = 0; i < count; i++)
        if (!places[i])
            pack_filter_prefetch(pack->filter, blocks, fingerprints[i]);
    for (unsigned i = 0; i < count; i++) {
        if (places[i] || !pack_filter_has(pack->filter, blocks, fingerprints[i]))
            continue;
        count_hit(pack);
        int64_t where = search_pages(pack, fingerprints[i]);
        if (where < 0)
            continue;
        places[i] = gild_place_pack(pack->id, (uint32_t)where >> 4, (uint32_t)where & 15);
        found++;
    }
    return found;
}
