/* Packs: the deduplicated, compressed content.
 *
 * A pack is a file `packs/%08x.pack`, written once and then immutable: header, zstd frames of up to
 * 16 blocks (groups), a group table of 4 KiB pages, the fingerprints sorted by SHA-256, a footer.
 * Byte by byte in docs/format.md.
 *
 * Reading is split so that reactors can do it without blocking: this module says what to read and
 * verifies and decodes it (pure functions), the caller does the I/O and the caching:
 *
 *   place -> gild_pack_table_page -> [read or cache 4 KiB] -> gild_pack_table_verify
 *         -> gild_pack_table_entry -> [read frame] -> gild_pack_decode -> 16 slots
 *
 * Writing is an ingest: a stream of blocks in, a place for each out, in order; hashing and
 * compressing run on an ordered pool whose output is the same, byte for byte, as its serial twin
 * (threads = 0). */
#ifndef GILD_PACK_H
#define GILD_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gild/error.h"

#define GILD_GROUP_BYTES (64u << 10)
#define GILD_PACK_PAGE_BYTES 4096u
#define GILD_FINGERPRINT_BYTES 32u

struct gild_packs; /* the sealed packs of one store, and their fingerprints */

/* directory: the store's packs folder (exists). store_id: 16 bytes, in every header. */
int gild_packs_create(struct gild_packs **out, const char *directory, const uint8_t store_id[16],
                      struct gild_error *error);
void gild_packs_destroy(struct gild_packs *packs);

/* Opens a sealed pack: verifies header, footer, and the footer's checks of table and fingerprints'
 * bounds (not the frames). GILD_CORRUPT with a sentence that names the file. Any thread. */
int gild_packs_add(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error);

/* The same for a pack whose header or footer is damaged: what they say is made out from the rest of
 * the file. For a repair, which then rewrites it. GILD_CORRUPT if too little of it is left. */
int gild_packs_add_damaged(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error);

/* From now on exactly these groups of the pack are lost: nothing is deduplicated into them. 0,
 * -ENOENT, -ENOMEM. Any thread. */
int gild_packs_set_lost(struct gild_packs *packs, uint32_t pack_id, const uint32_t *groups,
                        size_t count);

/* Whether an ingest may share the pack's blocks: false before a collection looks at what of them is
 * reached, true again after it. Once it returns, no lookup is in flight that has not seen it;
 * places that were given before may still be on their way into a map. A new pack is indexed. 0,
 * -ENOENT. Any thread. */
int gild_packs_set_indexed(struct gild_packs *packs, uint32_t pack_id, bool indexed);

/* Forgets and unlinks a pack; the caller knows that nothing reaches it and no read is in flight. */
int gild_packs_remove(struct gild_packs *packs, uint32_t pack_id, struct gild_error *error);

struct gild_packs_totals {
    uint64_t packs, groups, blocks, file_bytes;
    uint64_t index_memory_bytes;
};
void gild_packs_get_totals(struct gild_packs *packs, struct gild_packs_totals *totals);

/* ---- reading (any thread, wait-free against add; O_DIRECT descriptors) ----------------------- */

struct gild_pack_page {
    int fd;
    uint64_t file_offset; /* of a 4 KiB page, 4 KiB aligned */
    uint32_t page;        /* cache position */
    uint32_t index;       /* of the group's entry in the page */
    uint32_t generation;  /* of the file: a rewritten pack's pages are others */
};
/* -ENOENT for an unknown pack, -EUCLEAN for a group that it does not have. */
int gild_pack_table_page(struct gild_packs *packs, uint32_t pack_id, uint32_t group,
                         struct gild_pack_page *where);

/* 0, or -EBADMSG: wrong magic, pack, page number or check. */
int gild_pack_table_verify(const void *page, uint32_t pack_id, uint32_t page_number);

struct gild_pack_frame {
    uint64_t file_offset; /* where the frame's bytes are */
    uint32_t bytes;
    uint16_t slots;   /* bit s: the block of slot s is there; a read of any other is an error */
    uint16_t dropped; /* bit s: it was there, but a collection took it */
    uint64_t check;   /* XXH3-64 of the frame's bytes, seeded with pack and group */
    /* The 4 KiB aligned read that covers the frame, for O_DIRECT. No bytes, if no slot is there. */
    uint64_t read_offset;
    uint32_t read_bytes; /* at most GILD_GROUP_BYTES + 2 * 4096 */
};
/* 0, or -EUCLEAN for an entry whose offsets make no sense. */
int gild_pack_table_entry(const void *page, uint32_t pack_id, uint32_t group, uint32_t index,
                          struct gild_pack_frame *frame);

/* Verifies and decompresses a frame into `out` (GILD_GROUP_BYTES): the block of slot s at 4096 s,
 * whatever slots are there, so that a group of one generation stands for one of another. Where no
 * block is, `out` is zeroed; that is no content, and frame->slots says so. `bytes` points at
 * frame->file_offset's byte. 0 or -EBADMSG. Uses a thread-local zstd context. */
int gild_pack_decode(const void *bytes, const struct gild_pack_frame *frame, uint32_t pack_id,
                     uint32_t group, void *out);

/* ---- writing --------------------------------------------------------------------------------- */

struct gild_ingest;

struct gild_ingest_options {
    unsigned threads;           /* workers of the ordered pool; 0 = serial, in the caller */
    int level;                  /* zstd, 0 = 2 */
    uint64_t pack_target_bytes; /* a pack is sealed past this size; 0 = 512 MiB */
    /* Gives the number of the next new pack (unique for ever in the store); 0 or -errno. */
    int (*next_pack_id)(void *context, uint32_t *pack_id);
    /* Says where the block that was added under `tag` is; called in the order of adding, on the
     * thread that calls add or finish. check: low 32 bits of XXH3-64 of the block. fingerprint: its
     * SHA-256. Non-zero ends the ingest. */
    int (*placed)(void *context, uint64_t tag, uint64_t place, uint32_t check,
                  const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]);
    /* For content that guests wrote: a block is shared with a sealed pack's only if all its bytes
     * are the same; one that can not be read or differs is stored anew, whatever its fingerprint.
     * Within the pack that is being written the SHA-256 alone decides. */
    bool verify;
    /* With verify: copies a group that somebody has in memory (as gild_pack_decode gives it,
     * GILD_GROUP_BYTES) to out; the slots that are there, 0 for none. May be NULL: groups are then
     * read. Called on the thread that adds or finishes. */
    uint16_t (*copy)(void *context, uint32_t pack_id, uint32_t group, void *out);
    void *context;
};

int gild_ingest_create(struct gild_ingest **out, struct gild_packs *packs,
                       const struct gild_ingest_options *options, struct gild_error *error);

/* Adds `count` blocks of 4 KiB with tags tag, tag + 1, ...; copies what it must keep. The caller
 * has dropped zero blocks already. May block for the pool. 0 or -errno (ENOSPC: nothing is lost,
 * abort). */
int gild_ingest_add(struct gild_ingest *ingest, const void *blocks, size_t count, uint64_t tag);

/* Flushes the last group, seals and syncs the last pack and the folder, adds the new packs to the
 * set. After this all `placed` calls have been made and everything is durable. */
int gild_ingest_finish(struct gild_ingest *ingest, struct gild_error *error);

struct gild_ingest_totals {
    uint64_t blocks_in, blocks_new, frame_bytes;
    uint64_t hits_refused;    /* with verify: whose bytes were not the same, or could not be read */
    uint32_t pack_count;      /* new packs */
    const uint32_t *pack_ids; /* the ingest's own storage */
};
void gild_ingest_get_totals(const struct gild_ingest *ingest, struct gild_ingest_totals *totals);

/* Frees; if not finished, or if `keep` is false, the new packs are forgotten and unlinked. */
void gild_ingest_destroy(struct gild_ingest *ingest, bool keep);

/* ---- for check, scrub and repair (blocking, any thread) ---------------------------------------
 */

struct gild_pack_fault {
    const char *sentence; /* names the file */
    uint32_t first_group; /* whose blocks can not be read, or are not what they were */
    uint32_t groups;      /* 0: all can be read */
    bool gone;            /* the file can not be read at all */
};

struct gild_pack_look {
    bool deep; /* every block's SHA-256 against the fingerprints, too */
    void (*found)(void *context, const struct gild_pack_fault *fault); /* may be NULL */
    /* Called before so many bytes are read; non-zero ends the check with that. May be NULL. */
    int (*pace)(void *context, uint64_t bytes);
    void *context;
};

/* Reads a sealed pack whole, past the page cache: header, table, every frame's check, fingerprints,
 * index, footer. 0, -EUCLEAN with findings, or -errno. */
int gild_pack_check(struct gild_packs *packs, uint32_t pack_id, const struct gild_pack_look *look);

struct gild_pack_facts {
    uint32_t generation, groups, blocks;
    uint64_t file_bytes;
    bool unlinked; /* its file has no name any more */
    /* Of each group the slots that are there, bit s for slot s; all bits where the table can not be
     * read. The caller's to free(). */
    uint16_t *group_slots;
};
/* 0, -ENOENT, -ENOMEM. */
int gild_pack_get_facts(struct gild_packs *packs, uint32_t pack_id, struct gild_pack_facts *facts);

/* Reads, verifies and decodes one group, as gild_pack_decode does; out: GILD_GROUP_BYTES. *slots:
 * those that are there. 0, -ENOENT, -EBADMSG, ... */
int gild_pack_read_group(struct gild_packs *packs, uint32_t pack_id, uint32_t group, void *out,
                         uint16_t *slots);

/* Calls back for each fingerprint of the pack that can be read, in their order. A non-zero return
 * ends the walk and is returned. 0, -ENOENT. */
typedef int gild_pack_print(void *context, uint32_t group,
                            const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]);
int gild_pack_prints(struct gild_packs *packs, uint32_t pack_id, gild_pack_print *visit,
                     void *context);

struct gild_pack_repair {
    /* A copy of a group that somebody has in memory: copies GILD_GROUP_BYTES to out, or false. It
     * is taken only if its blocks have the right fingerprints. May be NULL. */
    bool (*copy)(void *context, uint32_t pack_id, uint32_t group, void *out);
    /* The same for one block of 4 KiB. May be NULL. */
    bool (*block)(void *context, const uint8_t fingerprint[GILD_FINGERPRINT_BYTES], void *out);
    int (*pace)(void *context, uint64_t bytes); /* as in a check */
    /* The new file is whole, the old one still has its name: what is lost for good can be noted
     * first, where nobody would look for it in a file that opens. Not 0 ends the repair. May be
     * NULL. */
    int (*lost)(void *context, uint32_t pack_id, const uint32_t *groups, uint32_t count);
    void *context;
};

struct gild_pack_old; /* a rewritten pack's file as it was, which readers may still be in */

struct gild_pack_repaired {
    bool rewritten;
    uint32_t healed; /* groups that can be read again */
    uint32_t *lost;  /* groups that no good copy was found of, ascending; free() */
    uint32_t lost_count;
    struct gild_pack_old *old; /* NULL, or to let go once all readers have passed */
};

/* Makes of a damaged pack what can be made: the file is written anew under the same number, next
 * generation, with the same groups and slots, so that no map changes. What its parts say of each
 * other is made again (header, footer, table, fingerprints, index); a damaged group is taken from
 * any copy that has the right SHA-256, in memory or in another pack. A group without one keeps its
 * damaged bytes. Each step is durable before the next, so that a crash leaves the old file or the
 * new one, whole. What is good is never replaced by less: the new file is read back first.
 * 0 also if nothing could be done; -EUCLEAN if the pack is too damaged; -errno (-ENOSPC: nothing is
 * changed). */
int gild_pack_repair(struct gild_packs *packs, uint32_t pack_id,
                     const struct gild_pack_repair *repair, struct gild_pack_repaired *result);
void gild_pack_let_go(struct gild_pack_old *old); /* NULL is fine */

/* ---- collection (blocking, any thread but a reactor's) ------------------------------------------
 *
 * `live`: of each of the pack's groups the slots that something reaches (bits of slots that are not
 * there mean nothing). What is not in it is gone for good, so the caller must know that nobody
 * comes to reach it: gild_packs_set_indexed(false) before it looks, and waits for what was under
 * way.
 *
 * The catalogue's record of a pack is written after the file, and no open trusts it: the file
 * itself says its generation, groups and blocks. After a crash the record may be that of an earlier
 * generation than the file's, with more bytes and blocks and as many groups; it is never newer. */

/* Calls back for each group's entry of the table, ascending. 0, -ENOENT, -EBADMSG or -EUCLEAN for a
 * damaged table, -errno. */
typedef void gild_pack_group(void *context, uint32_t group, const struct gild_pack_frame *frame);
int gild_pack_groups(struct gild_packs *packs, uint32_t pack_id, gild_pack_group *visit,
                     void *context);

/* What a compaction would make of the file, from the group table alone. *bytes_after: about; 0 if
 * nothing lives, so that the whole pack may go. 0, -ENOENT, -EBADMSG or -EUCLEAN for a damaged
 * table, -errno. */
int gild_pack_compact_saves(struct gild_packs *packs, uint32_t pack_id, const uint16_t *live,
                            uint64_t *bytes_before, uint64_t *bytes_after);

struct gild_pack_compacting {
    int level;                    /* zstd, for what is compressed again; 0 = 3 */
    uint32_t least_saved_percent; /* of the file: less (by the estimate) is not worth a rewrite */
    bool whole_only; /* a pack of which a group that is kept is damaged stays as it is: -EBADMSG */
    int (*pace)(void *context, uint64_t bytes); /* as in a check; may be NULL */
    void *context;
};

struct gild_pack_compacted {
    bool rewritten;                     /* false: the pack is as it was */
    bool nothing_lives;                 /* it was not rewritten: the caller may remove it */
    uint64_t bytes_before, bytes_after; /* of the file */
    uint32_t dropped_blocks;            /* by this time */
    uint32_t copied_groups, packed_groups, gone_groups;
    uint32_t damaged_groups;   /* of the copied: that had to be compressed again, but are damaged */
    struct gild_pack_old *old; /* NULL, or to let go once all readers have passed */
};

/* Writes the pack anew under the same number, next generation, without what is dead: a group of
 * which at least half lives is copied as it is, one of which less lives keeps only that, one of
 * which nothing lives goes. Groups and slots keep their numbers; which groups are lost stays. The
 * new file is read back before it takes the old one's place, and a crash leaves one or the other,
 * whole. One rewrite of a pack at a time, and no removal during it. 0 also if it was not worth it;
 * -EBADMSG or -EUCLEAN if table or fingerprints are damaged (repair it first); what `pace` ended it
 * with; -errno. After an error the pack is as it was. */
int gild_pack_compact(struct gild_packs *packs, uint32_t pack_id, const uint16_t *live,
                      const struct gild_pack_compacting *options,
                      struct gild_pack_compacted *result);

#endif
