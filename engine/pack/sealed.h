/* One sealed pack, open for reading. Private to this folder. */
#ifndef GILD_PACK_SEALED_H
#define GILD_PACK_SEALED_H

#include <stdatomic.h>

#include "pack/filter.h"
#include "pack/format.h"

struct pack {
    uint32_t id, generation;
    uint64_t features; /* the incompatible ones */
    atomic_uint refs;  /* the set's, and one for each blocking user (set_hold) */
    int direct_fd;     /* frames and table; O_DIRECT where the file system has it */
    int buffered_fd;   /* fingerprints: the page cache keeps what lookups come back to */
    struct pack_layout layout;
    /* NULL if the index is damaged: then the pack is read but nothing is deduplicated into it. */
    const struct pack_filter_block *filter;
    const uint64_t *fences; /* prefix of each fingerprint page's first */
    void *index;
    atomic_uint hits;      /* lookups that read a page; saturates */
    atomic_bool unindexed; /* lookups for an ingest pass it by; changed under the set's lock */
    /* One bit for each group whose content is lost: nothing is deduplicated into it. NULL: none.
     * Under the set's lock. */
    uint64_t *lost;
};

/* path: the file. Verifies it as gild_packs_add says. Blocking. */
int pack_open(struct pack **out, const char *path, const uint8_t store_id[16], uint32_t pack_id,
              struct gild_error *error);
/* The same for a file whose header or footer is damaged: what they say is made out from the rest.
 */
int pack_open_damaged(struct pack **out, const char *path, const uint8_t store_id[16],
                      uint32_t pack_id, struct gild_error *error);
void pack_close(struct pack *pack); /* NULL is fine */
/* Exactly these groups are lost. Under the set's lock, or before the pack is in a set. 0, -ENOMEM.
 */
int pack_mark_lost(struct pack *pack, const uint32_t *groups, size_t count);
/* Gives a reference back; the last one closes. */
void pack_release(struct pack *pack);

uint64_t pack_memory_bytes(const struct pack *pack);

/* Where in the pack the content is (group << 4 | slot), or -ENOENT. A page that can not be read or
 * is damaged counts as absent: it costs a second copy, never wrong data. Blocking (one page read,
 * none if the filter says no). Any thread. */
int64_t pack_find(struct pack *pack, const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]);

/* Asks `count` questions at once of one pack, unless it is unindexed: for each i with places[i] ==
 * 0 that the pack has, sets places[i]. Returns how many it set. */
unsigned pack_find_many(struct pack *pack, const uint8_t (*fingerprints)[GILD_FINGERPRINT_BYTES],
                        unsigned count, uint64_t *places);

/* Reads, verifies and decodes a group into `out` (GILD_GROUP_BYTES), past the page cache. `cover`:
 * PACK_COVER_BYTES, aligned to pages. *slots: those that are there. 0, -EBADMSG, -EUCLEAN or
 * -errno. Blocking. */
#define PACK_COVER_BYTES (GILD_GROUP_BYTES + 2 * GILD_PACK_PAGE_BYTES)
int pack_read_group(const struct pack *pack, uint32_t group, void *cover, void *out,
                    uint16_t *slots);

/* Reads whole pages of a pack with its O_DIRECT descriptor; buffer and length aligned. 0, -EBADMSG
 * if the file ends before, -errno. */
int pack_read(int fd, void *buffer, size_t length, uint64_t offset);

#endif
