/* Segments and batches on disk (docs/format.md, "The log"). Little-endian, used in memory as on
 * disk. */
#ifndef GILD_LOG_FORMAT_H
#define GILD_LOG_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define GILD_LOG_BLOCK 4096u
/* A segment: one header block, then batches back to back. Its header says how many blocks it has;
 * segments of different sizes may live in one store. */
#define GILD_SEGMENT_LEAST_BLOCKS 64u
#define GILD_SEGMENT_BLOCKS 16384u /* 64 MiB: unless asked otherwise, and the most */
/* A batch: one header block with the entries, then the payload blocks of its data and node entries.
 */
#define GILD_BATCH_ENTRIES 124u
#define GILD_BATCH_BYTES ((1u + GILD_BATCH_ENTRIES) * GILD_LOG_BLOCK)

/* Blocks left in a segment that are worth a guest's batch: with less, a stream goes on in another.
 */
#define GILD_LEAST_ROOM 8u
/* A batch's filter of deltas: a Bloom filter of 256 bits, two a delta. */
#define GILD_FILTER_WORDS 4u

#define GILD_SEGMENT_MAGIC 0x31474553444c4947ull /* "GILDSEG1" */
#define GILD_BATCH_MAGIC 0x31544142444c4947ull   /* "GILDBAT1" */
#define GILD_LOG_VERSION 1u

struct gild_segment_header {
    uint64_t magic;
    uint64_t check; /* XXH3-64 of the block from byte 16 on, seeded with the serial */
    uint32_t version;
    uint32_t incompatible;
    uint32_t compatible;
    uint32_t blocks; /* of the segment */
    uint8_t store_id[16];
    uint64_t serial; /* never reused: it is the segment's generation too */
    uint8_t unused[GILD_LOG_BLOCK - 56];
};

enum gild_entry_kind {
    GILD_ENTRY_DATA = 1, /* one payload block: content of `block` of `delta` */
    GILD_ENTRY_HOLE = 2, /* `count` blocks from `block` on are trimmed */
    GILD_ENTRY_ZERO = 3, /* the same, staying allocated */
    GILD_ENTRY_NODE = 4, /* one payload block: a map node of `delta` (written by a checkpoint) */
};

struct gild_log_entry {
    uint64_t delta;
    uint64_t block;
    uint32_t count;
    uint32_t check; /* data: low 32 bits of XXH3-64 of the payload, see gild_log_check */
    uint16_t kind;
    uint16_t reserved;
    uint32_t age_s; /* data that was only moved: for how long it had been as it is, else 0 */
};

struct gild_batch_header {
    uint64_t magic;
    uint64_t check; /* XXH3-64 of the block from byte 16 on, seeded with the serial */
    uint8_t store_id[16];
    uint64_t serial;
    uint64_t stream;
    uint64_t lsn;            /* of this batch: 1, 2, 3, ... in its stream */
    uint64_t previous_check; /* of the batch before in the stream, 0 for the first */
    uint64_t durable_lsn;    /* all batches up to it were flushed when this one was written */
    uint32_t offset;         /* of this block in the segment, in blocks */
    uint32_t entry_count;
    uint32_t payload_blocks;
    uint32_t reserved;
    uint64_t reserved2;
    /* Of the batch before in the stream: should its header rot, this tells which disks it can have
     * been of. All zero: unknown. A compatible addition. */
    uint64_t previous_filter[GILD_FILTER_WORDS];
    struct gild_log_entry entries[GILD_BATCH_ENTRIES];
};

_Static_assert(sizeof(struct gild_segment_header) == GILD_LOG_BLOCK, "segment header");
_Static_assert(sizeof(struct gild_log_entry) == 32, "entry");
_Static_assert(sizeof(struct gild_batch_header) == GILD_LOG_BLOCK, "batch header");

/* The 32-bit check of a data block, seeded so that a block of another segment, delta or number
 * never passes for it. Pure. */
uint32_t gild_log_check(const void *block_bytes, uint64_t serial, uint64_t delta, uint64_t block);

void gild_segment_header_seal(struct gild_segment_header *header, const uint8_t store_id[16],
                              uint64_t serial, uint32_t blocks);
/* 0, -EBADMSG, or -ENOTSUP for a newer format. The caller compares `blocks` with the file. */
int gild_segment_header_verify(const struct gild_segment_header *header, const uint8_t store_id[16],
                               uint64_t serial);

void gild_batch_begin(struct gild_batch_header *header, const uint8_t store_id[16], uint64_t serial,
                      uint64_t stream, uint64_t lsn, uint32_t offset);
/* Adds an entry; with a payload (data, node) its block is counted and the check computed and
 * returned. */
uint32_t gild_batch_add(struct gild_batch_header *header, enum gild_entry_kind kind, uint64_t delta,
                        uint64_t block, uint32_t count, const void *payload);
/* Clears the unused entries and sets the check: nothing of the header may change afterwards. */
void gild_batch_seal(struct gild_batch_header *header);
/* The filter of the deltas that a sealed batch has entries of, and whether one may be among them.
 */
void gild_batch_filter(const struct gild_batch_header *header, uint64_t filter[GILD_FILTER_WORDS]);
bool gild_batch_filter_may_have(const uint64_t filter[GILD_FILTER_WORDS], uint64_t delta);
bool gild_batch_filter_known(const uint64_t filter[GILD_FILTER_WORDS]);
/* Is this a whole header of segment `serial`, which has `blocks`, at `offset`? Bounds of its counts
 * are checked too. */
bool gild_batch_valid(const struct gild_batch_header *header, const uint8_t store_id[16],
                      uint64_t serial, uint32_t blocks, uint32_t offset);

#endif
