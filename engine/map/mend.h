/* Mending a sealed map's file (a repair's): what is whole in it is kept, what is not becomes LOST.
 */
#ifndef GILD_MAP_MEND_H
#define GILD_MAP_MEND_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/error.h"

struct gild_map_mend {
    const char *directory; /* of the map files */
    const char *aside;     /* folder that keeps a damaged file, made if need be; same file system */
    const uint8_t *store_id;
    uint64_t map_id;
    /* As the catalogue has them, of what was sealed: */
    uint64_t size_bytes, data_blocks;
    uint8_t content_hash[32];
    /* Is this pack gone? Then what the map has in it is lost too. */
    bool (*pack_lost)(void *context, uint32_t pack_id);
    /* Ranges that are lost, now or since an earlier repair, in order. */
    void (*lost)(void *context, uint64_t first_block, uint64_t count);
    void *context;
    bool dry_run; /* only looks */
};

struct gild_map_mended {
    bool damaged;         /* the file was (with dry_run: would be) written anew */
    uint64_t data_blocks; /* that the map has now */
    uint64_t lost_blocks;
};

/* Looks at the whole file and, if it is damaged, puts one in its place that has all that can be
 * known: leaves say themselves where they belong, so that a lost directory, root, header or footer
 * is made again from them; a leaf that is rotten, and whatever a lost directory may have named
 * besides, is LOST. A crash in between leaves the old file or the new one. Blocking. */
int gild_map_mend(const struct gild_map_mend *mend, struct gild_map_mended *result,
                  struct gild_error *error);

#endif
