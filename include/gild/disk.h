/* A virtual disk: what front ends (NBD, FUSE) turn a guest's requests into.
 *
 * A disk belongs to one reactor; all its doors meet there. A front end fills a caller-embedded
 * struct gild_op and submits it on the disk's loop (gild_disk_submit), or from any other thread
 * (gild_disk_post). The op and its write payload belong to the engine until it is done; the done
 * callback is the engine's last touch, but for the pieces of a read, which stay pinned until
 * gild_op_release.
 *
 *   fill -> submit --true--------------------> done: error/pieces/extents are set
 *              `----false--> (waits) -> done() called on the disk's loop
 */
#ifndef GILD_DISK_H
#define GILD_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "gild/error.h"
#include "gild/loop.h"

struct gild_store;
struct gild_disk;

#define GILD_BLOCK_BYTES 4096u
#define GILD_SECTOR_BYTES 512u
/* The most one op may carry; front ends split longer requests. */
#define GILD_OP_MAX_BYTES (1u << 20)
/* Pieces that suffice for any read of GILD_OP_MAX_BYTES at any alignment. */
#define GILD_OP_MAX_PIECES 257u

enum gild_op_kind {
    GILD_OP_READ,     /* pieces: length_bytes of data in order */
    GILD_OP_WRITE,    /* payload -> disk */
    GILD_OP_FLUSH,    /* all writes done before it was submitted are durable (D1) */
    GILD_OP_TRIM,     /* range reads zeroes afterwards; host space may be freed; any length */
    GILD_OP_ZERO,     /* range reads zeroes afterwards; any length */
    GILD_OP_EXTENTS,  /* block status of the range; any length */
    GILD_OP_PREFETCH, /* brings the range into the cache; errors are not reported */
};

enum gild_op_flag {
    GILD_OP_FUA = 1u << 0,        /* WRITE, TRIM, ZERO: durable when done */
    GILD_OP_NO_HOLE = 1u << 1,    /* ZERO: the range stays allocated (not reported as a hole) */
    GILD_OP_ONE_EXTENT = 1u << 2, /* EXTENTS: the first extent is enough */
};

/* Bytes of a read's answer: borrowed, immutable, pinned until gild_op_release. */
struct gild_piece {
    const void *data;
    uint32_t bytes;
    uint32_t pin_kind; /* the engine's */
    void *pin;         /* the engine's */
};

enum gild_extent_flag { GILD_EXTENT_HOLE = 1u, GILD_EXTENT_ZERO = 2u };

struct gild_extent {
    uint64_t bytes;
    uint32_t flags;
};

struct gild_op {
    /* Set by the caller. Offsets and lengths are multiples of GILD_SECTOR_BYTES and lie within the
     * disk (else -EINVAL); WRITE, TRIM, ZERO on a read-only disk are -EPERM. */
    struct gild_disk *disk;
    enum gild_op_kind kind;
    uint32_t flags;
    uint64_t offset_bytes;
    uint64_t length_bytes;
    const struct iovec *payload; /* WRITE */
    unsigned payload_count;
    uint32_t piece_limit; /* READ: GILD_OP_MAX_PIECES always suffices */
    struct gild_piece *pieces;
    uint32_t extent_limit; /* EXTENTS: at least 1; the answer may cover less than the range */
    struct gild_extent *extents;
    void (*done)(struct gild_op *op);

    /* Set by the engine. */
    int error; /* 0 or -errno */
    uint32_t piece_count;
    uint32_t extent_count;

    /* The engine's own: do not touch, zero before the first use. */
    uint32_t state;
    uint32_t pending;
    uint64_t cursor;
    uint64_t ticket;
    struct gild_op *next;
    struct gild_op *previous;
    struct gild_task task;
    void *wait[6];
};

/* On the disk's loop only. True: done already, op->done will not be called. False: op->done will
 * be called later, on the disk's loop, from the top of the loop. */
bool gild_disk_submit(struct gild_op *op);

/* Any thread: submits on the disk's loop; op->done is always called, on the disk's loop. */
void gild_disk_post(struct gild_op *op);

/* Unpins a read's pieces (after error too; idempotent). On the disk's loop only. */
void gild_op_release(struct gild_op *op);

/* ---- opening ------------------------------------------------------------------------------- */

enum gild_open_flag {
    GILD_OPEN_WRITE = 1u << 0, /* refused on read-only disks with -EROFS */
    /* Falls back to read-only where the disk is read-only or another door writes. */
    GILD_OPEN_WRITE_IF_POSSIBLE = 1u << 1,
};

/* A door is one way in: "nbd" or "fuse". Several opens through one door may share a disk; a second
 * door to a disk that has a writer (or a writer where another door is open) is refused with -EBUSY
 * and a sentence. Blocking (reads the catalogue); any thread but a reactor's. The disk lives until
 * the last close. */
int gild_disk_open(struct gild_store *store, const char *path, const char *door, unsigned flags,
                   struct gild_disk **out, bool *writable, struct gild_error *error);

/* Any thread, reactors included; not blocking. No op of this opener may be in flight. */
void gild_disk_close(struct gild_disk *disk, const char *door, bool writable);

/* gild_disk_open for reactors: runs on a thread of the store, then calls done on `loop`. */
struct gild_disk_opening {
    struct gild_store *store;
    char path[1024];
    const char *door; /* static storage */
    unsigned flags;
    struct gild_loop *loop;
    void (*done)(struct gild_disk_opening *opening);
    int result; /* 0 or -errno */
    struct gild_disk *disk;
    bool writable;
    struct gild_error error;
    struct gild_task task; /* the engine's */
};
void gild_disk_open_async(struct gild_disk_opening *opening);

/* Any thread, while the disk is open. */
uint64_t gild_disk_size_bytes(const struct gild_disk *disk);
bool gild_disk_read_only(const struct gild_disk *disk);
const char *gild_disk_path(const struct gild_disk *disk);
struct gild_loop *gild_disk_loop(const struct gild_disk *disk);

/* ---- names --------------------------------------------------------------------------------- */

struct gild_path_info {
    bool directory; /* "", "desktops", "desktops/d1": a folder of the tree of paths */
    bool read_only;
    uint64_t size_bytes;
    uint64_t allocated_bytes; /* mapped, an estimate that may lag */
    uint64_t inode;           /* stable for the life of the disk, unique in the store, > 1 */
    uint64_t modified_ns;     /* CLOCK_REALTIME, 0 if unknown */
};

/* Blocking; any thread but a reactor's. -ENOENT if there is no such path. */
int gild_path_stat(struct gild_store *store, const char *path, struct gild_path_info *info);

/* Calls back for each direct child of a folder ("" is the root), sorted by name; a non-zero return
 * ends the walk and is returned. Blocking; any thread but a reactor's. */
typedef int gild_path_visit(void *context, const char *name, const struct gild_path_info *info);
int gild_path_list(struct gild_store *store, const char *folder, gild_path_visit *visit,
                   void *context);

/* Calls back with the full path of every disk, sorted. */
int gild_path_each_disk(struct gild_store *store, gild_path_visit *visit, void *context);

#endif
