/* Sealed maps: the immutable, merged map of an image version, shared by all its clones.
 *
 * A file `maps/%016x.map`, written once: header, leaves of 320 entries, directories of 504 leaves,
 * a footer. Byte by byte in docs/format.md. */
#ifndef GILD_MAP_SEALED_H
#define GILD_MAP_SEALED_H

#include <stdint.h>

#include "gild/error.h"

struct gild_map_builder;

/* Starts the file of map `map_id` (never reused) for a disk of size_bytes in the folder
 * `directory`. One thread. */
int gild_map_builder_create(struct gild_map_builder **out, const char *directory,
                            const uint8_t store_id[16], uint64_t map_id, uint64_t size_bytes,
                            struct gild_error *error);

/* Blocks in strictly ascending order; what is left out is a hole. place: type PACK or ZERO. */
int gild_map_builder_add(struct gild_map_builder *builder, uint64_t block, uint64_t place,
                         uint32_t check);

/* content_hash: SHA-256 of the content (docs/format.md), kept in the footer. Writes, syncs the file
 * and the folder. The file is then whole and durable. */
int gild_map_builder_finish(struct gild_map_builder *builder, const uint8_t content_hash[32],
                            struct gild_error *error);

/* Frees; unlinks the file if it was not finished, or if `keep` is false. */
void gild_map_builder_destroy(struct gild_map_builder *builder, bool keep);

#endif
