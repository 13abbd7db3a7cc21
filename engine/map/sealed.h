/* Sealed maps: the immutable, merged map of an image version, shared by all its clones.
 *
 * A file `maps/%016x.map`, written once: header, leaves of 320 entries, directories of 504 leaves,
 * a footer. Byte by byte in docs/format.md. */
#ifndef GILD_MAP_SEALED_H
#define GILD_MAP_SEALED_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/error.h"
#include "map/node.h"

/* ---- reading -----------------------------------------------------------------------------------
 */

/* An open sealed map: its directories are in memory (4 KiB for 630 MiB that has any content), its
 * leaves are read by the caller, through the cache. Immutable, shared by all reactors. */
struct gild_sealed_map {
    uint64_t map_id;
    uint64_t size_bytes;
    uint64_t data_blocks;
    uint8_t content_hash[32];
    uint32_t dir_count;
    int fd;                 /* O_DIRECT where the file system has it */
    struct gild_dir **dirs; /* NULL: all of it is a hole */
    struct gild_dir *lost;  /* one page for all directories that are lost */
};

/* Opens and verifies header, footer, root and directories. Blocking. GILD_CORRUPT names the file.
 */
int gild_sealed_open(struct gild_sealed_map **out, const char *directory,
                     const uint8_t store_id[16], uint64_t map_id, struct gild_error *error);
void gild_sealed_close(struct gild_sealed_map *map);

/* In place of a page's number: what it held is lost (a repair has said so). */
#define GILD_SEALED_LOST UINT64_MAX

/* The file page of a leaf's node (times GILD_NODE_BYTES is its offset), 0 if all of it is a hole,
 * GILD_SEALED_LOST.
 * Wait-free, any thread. The node's owner is the map id, its index the leaf index. */
static inline uint64_t gild_sealed_leaf_page(const struct gild_sealed_map *map,
                                             uint64_t leaf_index) {
    uint64_t dir = leaf_index / GILD_DIR_REFS;
    if (dir >= map->dir_count || !map->dirs[dir])
        return 0;
    return map->dirs[dir]->ref[leaf_index % GILD_DIR_REFS];
}

/* Calls back for every leaf in order, read and verified; for one that is known to be lost with all
 * of its places LOST. Blocking; for check and delete. A non-zero
 * return of the visitor ends the walk and is returned; -EBADMSG for a rotten leaf. */
typedef int gild_sealed_visit(void *context, uint64_t leaf_index, const struct gild_leaf *leaf);
int gild_sealed_walk(const struct gild_sealed_map *map, gild_sealed_visit *visit, void *context);

/* ---- writing -----------------------------------------------------------------------------------
 */

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
