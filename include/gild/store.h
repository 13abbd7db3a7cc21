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

struct gild_store_options {
    unsigned threads;     /* reactors; 0 = one per processor, at most 8 */
    uint64_t cache_bytes; /* 0 = an eighth of the host, 256 MiB to 2 GiB */
    enum gild_loop_backend backend;
    bool offline; /* opened by a command for as long as it takes: one reactor, a small cache */
    /* Size of the log's segments that are made from now on, in blocks of 4 KiB: 64 to 16384, 0 =
     * 16384 (64 MiB). For tests and very small stores: the fewer blocks, the more often a segment
     * must be changed and synced. Those that are there keep theirs. */
    uint32_t segment_blocks;
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
    uint64_t pack_bytes, log_bytes, map_bytes, catalogue_bytes;
    uint64_t images, versions, desktops, pools;
    uint64_t cache_bytes, cache_used_bytes;
    uint64_t recovered_batches; /* replayed when this process opened the store */
    const char *backend;        /* "io_uring" or "threads" */
    unsigned reactors;
};

/* Any thread but a reactor's. */
int gild_store_get_info(struct gild_store *store, struct gild_store_info *info,
                        struct gild_error *error);

/* Makes everything acknowledged so far durable and checkpointed. Any thread but a reactor's. */
int gild_store_checkpoint(struct gild_store *store, struct gild_error *error);

/* Recounts references, maps, packs and segments against the catalogue; reads and verifies every
 * checksum of the metadata. Each finding is one sentence. Returns 0 (clean), -EUCLEAN (findings),
 * or -errno. Any thread but a reactor's. */
typedef void gild_check_found(void *context, const char *sentence);
struct gild_check_result {
    uint64_t disks, maps, packs, segments, blocks, findings;
};
int gild_store_check(struct gild_store *store, gild_check_found *found, void *context,
                     struct gild_check_result *result, struct gild_error *error);

#endif
