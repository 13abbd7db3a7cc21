/* A place: where a block's content is, in 64 bits. Maps hold one per block, with a 32-bit check.
 *
 *   63..60  59..                                                 0
 *   type 0  0                                ask the parent (or zero if there is none)
 *   type 1  0                                hole: reads zero, trimmed
 *   type 2  0                                zero: reads zero, allocated
 *   type 3  serial (44)        | offset (16)  log: segment serial, block offset in the segment
 *   type 4  pack (28) | group (28) | slot (4) pack: logical, survives compaction
 *   type 5  0                                lost to damage: a read is EIO until it is overwritten
 */
#ifndef GILD_PLACE_H
#define GILD_PLACE_H

#include <stdbool.h>
#include <stdint.h>

enum gild_place_type {
    GILD_PLACE_PARENT = 0,
    GILD_PLACE_HOLE = 1,
    GILD_PLACE_ZERO = 2,
    GILD_PLACE_LOG = 3,
    GILD_PLACE_PACK = 4,
    GILD_PLACE_LOST = 5,
};

#define GILD_GROUP_BLOCKS 16u

static inline enum gild_place_type gild_place_type(uint64_t place) {
    return (enum gild_place_type)(place >> 60);
}

static inline uint64_t gild_place_of_type(enum gild_place_type type) {
    return (uint64_t)type << 60;
}

static inline uint64_t gild_place_log(uint64_t serial, uint32_t offset) {
    return (uint64_t)GILD_PLACE_LOG << 60 | serial << 16 | offset;
}

static inline uint64_t gild_place_serial(uint64_t place) {
    return (place << 4) >> 20;
}

static inline uint32_t gild_place_offset(uint64_t place) {
    return (uint32_t)(place & 0xffff);
}

static inline uint64_t gild_place_pack(uint32_t pack, uint32_t group, uint32_t slot) {
    return (uint64_t)GILD_PLACE_PACK << 60 | (uint64_t)pack << 32 | (uint64_t)group << 4 | slot;
}

static inline uint32_t gild_place_pack_id(uint64_t place) {
    return (uint32_t)(place >> 32) & 0x0fffffff;
}

static inline uint32_t gild_place_group(uint64_t place) {
    return (uint32_t)(place >> 4) & 0x0fffffff;
}

static inline uint32_t gild_place_slot(uint64_t place) {
    return (uint32_t)place & 15;
}

static inline bool gild_place_reads_zero(uint64_t place) {
    enum gild_place_type type = gild_place_type(place);
    return type == GILD_PLACE_HOLE || type == GILD_PLACE_ZERO;
}

#endif
