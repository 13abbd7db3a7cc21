/* A pack that was written anew takes the place of the one with its number. Private to this folder.
 */
#ifndef GILD_PACK_REPLACE_H
#define GILD_PACK_REPLACE_H

#include "pack/writer.h"

struct pack_replacing {
    /* The new file's group can not be read, or is not what its fingerprints say: true if that was
     * so before, which is all that is let pass. NULL: nothing is. */
    bool (*allowed)(void *context, const struct pack *made, uint32_t group);
    int (*pace)(void *context, uint64_t bytes); /* as in a check; may be NULL */
    int (*ready)(void *context); /* read back, not named yet; not 0 ends it; may be NULL */
    void *context;
    bool keep_lost; /* the groups that are lost stay so; else exactly these are */
    const uint32_t *lost;
    size_t lost_count;
};

/* Reads the finished file whole and deep, past the page cache; gives it the old one's name, syncs
 * the folder and swaps it in the set. *old: what it was, for gild_pack_let_go. 0; -EIO if the file
 * has a fault that is not allowed; -errno. After an error the old pack is the set's as before. */
int pack_replace(struct gild_packs *packs, uint32_t pack_id, struct pack_writer *writer,
                 const struct pack_replacing *how, struct gild_pack_old **old);

#endif
