/* The bytes of a pack file, as docs/format.md has them. Private to this folder.
 *
 *   header | frames ... pad | table pages | fingerprint pages | index (filter, fences) | footer
 *
 * All numbers are little-endian; the structs are the bytes. Everything but the frames' end follows
 * from three numbers (groups, blocks, frames_end), so that a reader computes the layout and only
 * compares what the footer says. */
#ifndef GILD_PACK_FORMAT_H
#define GILD_PACK_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/place.h"
#include "pack/pack.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs are the bytes on disk");

#define PACK_VERSION 1u
#define PACK_HEADER_MAGIC "GILDPACK"
#define PACK_FOOTER_MAGIC "GILDPEND"
#define PACK_TABLE_MAGIC 0x42545047u  /* "GPTB" */
#define PACK_PRINTS_MAGIC 0x50465047u /* "GPFP" */
#define PACK_BLOCK_BYTES 4096u
#define PACK_TABLE_ENTRIES 169u  /* groups of a table page */
#define PACK_PRINTS 113u         /* fingerprints of a page */
#define PACK_FLAG_RAW 1u         /* the frame is the blocks themselves */
#define PACK_DROPS 1u            /* incompatible feature: groups may lack slots */
#define PACK_FEATURES PACK_DROPS /* that are known here */
#define PACK_FILTER_BITS 12u     /* of the filter, per block */
#define PACK_GROUPS_MAX (1u << 28)
#define PACK_FRAMES_END_MAX (1ull << 44)

/* What header and footer begin with. */
struct pack_head {
    char magic[8];
    uint32_t version;
    uint32_t generation; /* 1; a later rewrite under the same number counts up */
    uint64_t incompatible;
    uint64_t compatible;
    uint8_t store_id[16];
    uint32_t pack_id;
    uint32_t zero;
};

struct pack_header {
    struct pack_head head;
    uint8_t zero[4032];
    uint64_t check; /* XXH3-64 of the 4,088 bytes before it, seeded with the pack id */
};

struct pack_footer {
    struct pack_head head;
    uint32_t groups;
    uint32_t blocks;
    uint64_t frames_end; /* the byte after the last frame */
    uint64_t table_offset;
    uint64_t table_pages;
    uint64_t prints_offset;
    uint64_t prints_pages;
    uint64_t index_offset;
    uint64_t index_pages;
    uint64_t filter_blocks; /* of 32 bytes */
    uint64_t index_check;   /* XXH3-64 of the index's pages, seeded with the pack id */
    uint8_t zero[3952];
    uint64_t check; /* as in the header */
};

struct pack_entry {
    uint64_t offset; /* of the frame, from the start of the file */
    uint64_t check;  /* XXH3-64 of the frame, seeded with pack id << 32 | group */
    uint32_t bytes;
    uint8_t blocks; /* that are there: 1..16, with PACK_DROPS also 0 */
    uint8_t flags;
    uint16_t dropped; /* bit s: slot s is gone; blocks and dropped together are the slots */
};

struct pack_table {
    uint64_t check; /* XXH3-64 of the 4,088 bytes after it, seeded with pack id << 32 | page */
    uint32_t magic;
    uint32_t pack_id;
    uint32_t page;
    uint32_t count;
    uint64_t frames_end; /* as in the footer, so that a page alone bounds its frames */
    struct pack_entry entry[PACK_TABLE_ENTRIES];
    uint64_t
        features; /* the header's incompatible ones, so that a page alone says what it may do */
};

struct pack_print {
    uint8_t fingerprint[GILD_FINGERPRINT_BYTES];
    uint32_t where; /* group << 4 | slot */
};

struct pack_prints {
    uint64_t check; /* as in a table page */
    uint32_t magic;
    uint32_t pack_id;
    uint32_t page;
    uint32_t count;
    struct pack_print print[PACK_PRINTS]; /* ascending over all pages */
    uint32_t zero;
};

_Static_assert(sizeof(struct pack_head) == 56, "head");
_Static_assert(sizeof(struct pack_header) == GILD_PACK_PAGE_BYTES, "header");
_Static_assert(sizeof(struct pack_footer) == GILD_PACK_PAGE_BYTES, "footer");
_Static_assert(offsetof(struct pack_footer, index_check) == 128, "footer");
_Static_assert(sizeof(struct pack_entry) == 24, "entry");
_Static_assert(sizeof(struct pack_table) == GILD_PACK_PAGE_BYTES, "table");
_Static_assert(sizeof(struct pack_print) == 36, "print");
_Static_assert(sizeof(struct pack_prints) == GILD_PACK_PAGE_BYTES, "prints");

struct pack_layout {
    uint64_t groups, blocks, frames_end;
    uint64_t table_offset, table_pages;
    uint64_t prints_offset, prints_pages;
    uint64_t index_offset, index_pages, filter_blocks;
    uint64_t footer_offset, file_bytes;
};

/* Lays out a pack; -EUCLEAN if no pack has these numbers. features: the incompatible ones. Pure. */
int pack_layout(uint32_t groups, uint32_t blocks, uint64_t frames_end, uint64_t features,
                struct pack_layout *layout);

/* The first `count` slots of a group, as a mask. */
static inline uint16_t pack_slots(uint32_t count) {
    return (uint16_t)((1u << count) - 1);
}

static inline uint32_t pack_count(uint16_t slots) {
    return (uint32_t)__builtin_popcount(slots);
}

/* Moves the blocks of a mask's slots to the front of `to`, or from the front of a group in place to
 * their slots, with zeroes between them. */
void pack_gather(void *to, const void *group, uint16_t slots);
void pack_spread(void *group, uint16_t slots);

/* Fills a head for header or footer. */
void pack_head_fill(struct pack_head *head, const char *magic, const uint8_t store_id[16],
                    uint32_t pack_id, uint32_t generation, uint64_t features);
/* The check of a header or footer page, and of a table or fingerprint page. */
uint64_t pack_edge_check(const void *page, uint32_t pack_id);
uint64_t pack_page_check(const void *page, uint32_t pack_id, uint32_t page_number);
uint64_t pack_frame_check(const void *bytes, size_t length, uint32_t pack_id, uint32_t group);
/* The read that covers a frame whose place in the file is set: of nothing, if it has no bytes. */
void pack_frame_cover(struct gild_pack_frame *frame);

/* 0, -EBADMSG, or -ENOTSUP for a format of a newer version, -ESTALE for another store's or another
 * pack's page. Pure. */
int pack_head_verify(const void *page, const char *magic, const uint8_t store_id[16],
                     uint32_t pack_id);
/* 0 or -EBADMSG: `expected` is what the page must hold. Pure. */
int pack_prints_verify(const struct pack_prints *page, uint32_t pack_id, uint32_t page_number,
                       uint32_t expected);

/* The first 8 bytes of a fingerprint as a number that sorts as they do. */
uint64_t pack_print_prefix(const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]);

#endif
