/* The store: one directory that one process owns at a time. */
#ifndef GILD_STORE_H
#define GILD_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/error.h"
#include "gild/loop.h"

struct gild_store;

#define GILD_STORE_FORMAT 1u
/* The least that a size limit may be: segments kept ready and in reserve, and some room. */
#define GILD_STORE_LEAST_BYTES ((uint64_t)1 << 30)

/* Unless asked otherwise: a start after a crash stays under two seconds on two cores. */
#define GILD_STORE_CHECKPOINT_BYTES ((uint64_t)1 << 30)

struct gild_store_options {
    unsigned threads;     /* reactors; 0 = one per processor, at most 8 */
    uint64_t cache_bytes; /* 0 = an eighth of the host, 256 MiB to 2 GiB */
    enum gild_loop_backend backend;
    bool offline; /* opened by a command for as long as it takes: one reactor, a small cache */
    /* Size of the log's segments that are made from now on, in blocks of 4 KiB: 64 to 16384, 0 =
     * 16384 (64 MiB). For tests and very small stores: the fewer blocks, the more often a segment
     * must be changed and synced. Those that are there keep theirs. */
    uint32_t segment_blocks;
    /* How much of the log (its own headers counted) may be unsettled, over all reactors, before a
     * checkpoint is started; 0 = GILD_STORE_CHECKPOINT_BYTES. It is what a start after a crash has
     * to read, once and at the device's sequential rate, before the first request is served:
     * docs/durability.md, "Recovery", has the figures. More means fewer checkpoints, so fewer
     * writes of map nodes, and a longer start. A checkpoint comes earlier when the maps' changes
     * fill half of the memory kept for them, or when 30 seconds have passed; the log grows on while
     * it runs. */
    uint64_t checkpoint_log_bytes;
    /* A guest's block that has been as it is for so many seconds is cold: the cleaner moves it into
     * a pack, deduplicated and compressed. 0 = 600. */
    uint32_t cold_s;
    bool no_cleaner; /* nothing in the background: only gild_store_clean cleans */
};

/* Makes an empty store in `directory` (made if missing, else it must be empty). size_bytes bounds
 * what the store may take of the host's file system, 0 = no bound of its own. */
int gild_store_init(const char *directory, uint64_t size_bytes, struct gild_error *error);

/* Opens, recovers if the last owner crashed, and starts the reactors. -EBUSY (GILD_BUSY) if another
 * process holds it; GILD_CORRUPT or GILD_FAILED (a newer format) without a byte written. */
int gild_store_open(const char *directory, const struct gild_store_options *options,
                    struct gild_store **out, struct gild_error *error);

/* Flushes, checkpoints, stops the reactors. All disks must be closed. Reports what could not be
 * made durable. Frees the store in any case. */
int gild_store_close(struct gild_store *store, struct gild_error *error);

const char *gild_store_directory(const struct gild_store *store);

/* The reactors: front ends spread listening sockets and sessions over them. */
unsigned gild_store_reactor_count(const struct gild_store *store);
struct gild_loop *gild_store_reactor(const struct gild_store *store, unsigned index);

struct gild_store_info {
    char id[37]; /* UUID text */
    uint32_t format;
    uint64_t size_limit_bytes; /* 0 = none */
    uint64_t capacity_bytes;   /* what the store may grow to: limit, or what the file system has */
    uint64_t used_bytes;       /* packs, segments, maps, catalogue on disk */
    uint64_t free_bytes;       /* capacity - used, as a guest's new data sees it */
    /* "plenty"; "low": warned of; "throttled": writes are slowed down; "full": they are refused
     * with ENOSPC, all else goes on */
    const char *space;
    uint64_t pack_bytes, log_bytes, map_bytes, catalogue_bytes;
    uint64_t images, versions, desktops, pools;
    uint64_t cache_bytes, cache_used_bytes;
    uint64_t recovered_batches; /* replayed when this process opened the store */
    uint64_t recovered_bytes;   /* of the log, their headers counted */
    const char *backend;        /* "io_uring" or "threads" */
    unsigned reactors;
};

/* Any thread but a reactor's. */
int gild_store_get_info(struct gild_store *store, struct gild_store_info *info,
                        struct gild_error *error);

/* Makes everything acknowledged so far durable and checkpointed. Any thread but a reactor's. */
int gild_store_checkpoint(struct gild_store *store, struct gild_error *error);

struct gild_clean_result {
    uint64_t blocks;        /* that were in full segments when it began */
    uint64_t segments;      /* looked through */
    uint64_t moved_blocks;  /* blocks and map nodes, within the log */
    uint64_t packed_blocks; /* into packs */
    uint64_t shared_blocks; /* of these, with content that a pack already had */
    uint64_t zero_blocks;   /* that turned out to hold zeroes */
    uint64_t pack_bytes;    /* of the packs that were written */
    uint64_t dropped_bytes; /* by which packs became smaller: dead blocks in them */
    uint64_t freed_bytes;   /* that the store takes less of its host */
};
struct gild_clean_options {
    /* After each part of the work; non-zero stops it. May be NULL. */
    int (*progress)(void *context, const struct gild_clean_result *so_far);
    void *context;
};

/* What was cleaned since the store was opened, in the background and by gild_store_clean. Any
 * thread. */
void gild_store_get_cleaned(struct gild_store *store, struct gild_clean_result *sum);

/* Cleans the whole log, whatever its blocks' age: all that desktops wrote is deduplicated and
 * compressed, and the segments that it lay in are freed. Guests go on meanwhile. May be stopped, or
 * broken off by a crash, at any point: what was done counts (GILD_PARTLY). Any thread but a
 * reactor's. */
int gild_store_clean(struct gild_store *store, const struct gild_clean_options *options,
                     struct gild_clean_result *result, struct gild_error *error);

/* Blocks of one disk that a fault hits: reads of them fail, or may be wrong. */
struct gild_hit_range {
    uint64_t first_block, blocks; /* of 4 KiB */
};
struct gild_hit {
    const char *disk;                    /* its path: "images/win10@3", "desktops/d1/os" */
    uint64_t blocks;                     /* all that are hit */
    const struct gild_hit_range *ranges; /* ascending */
    size_t range_count;
};

/* One thing that is wrong. All of it is valid during the call only. */
struct gild_finding {
    const char *object; /* "pack 00000001", "map 3", "desktops/d1/os", "segment 000000000000000a" */
    const char *kind;   /* "damaged", "lost" (known, quarantined), "missing", "orphan", "count",
                           "reference", "repaired" */
    const char *message; /* one sentence, with the images and desktops that it hits */
    const struct gild_hit *hits;
    size_t hit_count;
};
typedef void gild_check_found(void *context, const struct gild_finding *finding);

/* Recounts references, maps, packs and segments against the catalogue; reads and verifies every
 * checksum but those of guests' blocks in the log. Returns 0 (clean), -EUCLEAN (findings), or
 * -errno. Guests go on meanwhile. Any thread but a reactor's. */
struct gild_check_result {
    uint64_t disks, maps, packs, segments, blocks, findings;
};
int gild_store_check(struct gild_store *store, gild_check_found *found, void *context,
                     struct gild_check_result *result, struct gild_error *error);

/* Reads everything that is stored, past the page cache, and proves that it is what it was: packs
 * block by block against their SHA-256, maps, the log's blocks and nodes. A damaged pack is
 * repaired from any good copy (in memory, in another pack, in the log); what has none is put in
 * quarantine: nothing is deduplicated into it until a later import brings the same content and
 * another scrub heals it. Findings are what is (still) wrong, and what was repaired. Guests go on
 * meanwhile. Any thread but a reactor's; one at a time, -EBUSY else. */
struct gild_scrub_options {
    uint64_t rate_bytes; /* read in a second, 0 = as fast as it can */
    bool dry_run;        /* only looks */
    /* As in an import; a non-zero return stops the scrub: -ECANCELED. May be NULL. */
    int (*progress)(void *context, const char *what, uint64_t done, uint64_t total);
    gild_check_found *found;
    void *context;
};
struct gild_scrub_result {
    uint64_t read_bytes, packs, maps, disks;
    uint64_t findings;        /* faults, repaired or not */
    uint64_t repaired_packs;  /* written anew */
    uint64_t repaired_groups; /* of them, whose content came from another copy */
    uint64_t lost_groups;     /* known to be lost after this scrub */
};
/* 0 (all is well, or is now), -EUCLEAN (something is lost or damaged), or -errno. */
int gild_store_scrub(struct gild_store *store, const struct gild_scrub_options *options,
                     struct gild_scrub_result *result, struct gild_error *error);

/* ---- repair --------------------------------------------------------------------------------- */

/* What a repair says as it goes; any of the calls may be NULL. */
struct gild_repair_report {
    void (*repaired)(void *context, const char *sentence);
    /* Content that can not be had back: reads of it are EIO until it is overwritten. */
    void (*lost)(void *context, const char *disk, uint64_t first_block, uint64_t blocks);
    /* A disk that may have lost flushed writes, nobody knows which: it opens for reading only. */
    void (*quarantined)(void *context, const char *disk, const char *why);
    void *context;
};
struct gild_repair_result {
    uint64_t repaired, lost_ranges, lost_blocks, quarantined;
};

/* Makes a store that is refused, or whose check finds damage, one that opens: what can be known is
 * set right, what can not is marked as lost, never guessed. The store must not be held by anybody.
 * dry_run: changes nothing, and says what would be done as far as it can be seen. A store without
 * damage is not changed. What was lost or quarantined by an earlier repair is told again. 0, or
 * -errno with a sentence; broken off, it is done again from the start. Blocking. */
int gild_store_repair(const char *directory, bool dry_run, const struct gild_repair_report *report,
                      struct gild_repair_result *result, struct gild_error *error);

#endif
