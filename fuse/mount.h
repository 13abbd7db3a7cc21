/* What the parts of the FUSE door share. See docs/fuse.md for the picture.
 *
 * Two kinds of requests come out of /dev/fuse:
 *   - data requests (read, write, fsync, flush, fallocate, lseek) are parsed here, straight from
 * the kernel's structs, and run on the reactor that owns the disk: no thread is woken, nothing is
 *     allocated;
 *   - all others (names, attributes, open, release) may block on the catalogue: they are copied and
 *     given to libfuse on the mount's own name threads. */
#ifndef GILD_FUSE_MOUNT_H
#define GILD_FUSE_MOUNT_H

#define FUSE_USE_VERSION 314

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "gild/disk.h"
#include "gild/fuse.h"

#include "base/queue.h"

struct gild_mount;
struct handle;

/* ---- request.c: the pool of requests in flight ---------------------------------------------- */

/* Most requests in flight at once on one mount; the kernel's queue waits beyond it. */
#define REQUEST_COUNT 320u
/* A write's payload up to this lies in the request itself. */
#define REQUEST_DATA_BYTES (16u << 10)
/* Longer writes also hold one of these, so that fewer of them are in flight. */
#define LARGE_COUNT 32u
#define LARGE_BYTES (1u << 20)
#define REQUEST_EXTENTS 64u

/* How a request's bytes arrive: the header and the fixed arguments in `head`, which is exactly as
 * long for a read and a write, so that a write's payload begins page-aligned in `data`. */
union request_head {
    struct {
        struct fuse_in_header in;
        union {
            struct fuse_read_in read;
            struct fuse_write_in write;
            struct fuse_fsync_in fsync;
            struct fuse_flush_in flush;
            struct fuse_fallocate_in fallocate;
            struct fuse_lseek_in lseek;
        };
    };
    uint8_t bytes[sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in)];
};

/* Which wait a request is in; data.c has the picture. */
enum request_step {
    STEP_BODY,
    STEP_HEAD,
    STEP_TAIL,
    STEP_HEAD_ZERO,
    STEP_TAIL_ZERO,
    STEP_REPLY,
};

/* The place of a change (write, trim, zero) among the others on the same file; overlap.c. */
struct overlap {
    struct gild_list link;
    uint64_t first, end; /* bytes, widened to whole sectors */
    bool exclusive;      /* reads before it writes: nothing may overlap it */
};

struct request {
    struct gild_op op;
    struct gild_task task;
    struct gild_mount *mount;
    struct handle *handle;
    struct request *next; /* in the pool */

    enum request_step step;
    int error;              /* 0 or -errno, as answered */
    uint32_t op_flags;      /* enum gild_op_flag */
    uint64_t unique;        /* the kernel's number of this request */
    uint64_t offset, bytes; /* as asked, cut at the end of the disk */
    uint64_t first, end;    /* the same, widened to whole sectors */
    uint64_t cursor;        /* how far the body got, relative to `first` */
    uint64_t step_bytes;    /* what the body's op in flight carries */
    uint64_t answer;        /* lseek */
    bool want_hole;         /* lseek */
    bool mixed_tail;        /* a read's last sector was fetched into edge[1] */
    struct overlap overlap;
    struct iovec payload[5];

    void *large; /* LARGE_BYTES, or NULL */
    uint8_t *data;
    uint8_t edge[2][GILD_SECTOR_BYTES]; /* the sectors that hold an unaligned range's ends */
    union request_head head;
    union {
        struct gild_piece pieces[GILD_OP_MAX_PIECES];
        struct gild_extent extents[REQUEST_EXTENTS];
    };
};

struct request_pool {
    pthread_mutex_t lock;
    pthread_cond_t all_home;
    struct request *free;
    void *large[LARGE_COUNT];
    unsigned free_count, large_count;
    bool starved; /* a reader waits: request_pool_give tells it */
    void *memory;
    size_t memory_bytes;
};

int request_pool_init(struct request_pool *pool, struct gild_mount *mount); /* 0 or -errno */
void request_pool_fini(struct request_pool *pool);
/* Fills what is NULL of the two. False: the pool is short of it; reader_resume will be called. Any
 * thread. */
bool request_pool_take(struct request_pool *pool, struct request **request, void **large);
/* Takes back a request and the large buffer that it holds, if any. Any thread. */
void request_pool_give(struct request_pool *pool, struct request *request);
void request_pool_give_large(struct request_pool *pool, void *large);
/* Blocks until all are home; no reader may be running. */
void request_pool_wait(struct request_pool *pool);

/* ---- overlap.c: changes to one file that must not meet --------------------------------------- */

struct overlaps {
    struct gild_list active;  /* any order */
    struct gild_list waiting; /* first come, first served */
    unsigned exclusive_count; /* among both */
};

void overlaps_init(struct overlaps *overlaps);

/* True: go ahead. False: `start` is called later for it. All on the disk's loop. */
bool overlap_enter(struct overlaps *overlaps, struct overlap *overlap);
void overlap_leave(struct overlaps *overlaps, struct overlap *overlap,
                   void (*start)(struct overlap *overlap));

/* ---- reader.c: requests out of /dev/fuse ----------------------------------------------------- */

/* One per reactor; only one of them, the holder, reads at a time, and the right moves to the
 * reactor whose disks are asked. */
struct reader {
    struct gild_mount *mount;
    struct gild_loop *loop;
    struct gild_task task;      /* a turn of reading */
    struct gild_task stop_task; /* ends the poll */
    struct gild_io poll;
    bool polling;
    struct request *spare; /* what the next message is read into: its start */
    void *large;           /* and its end, if it is a long write */
    struct reader *lured_by;
    unsigned lured; /* requests in a row for disks of that other reactor */
};

int readers_start(struct gild_mount *mount);
void readers_stop(struct gild_mount *mount);  /* blocks until none reads */
void reader_resume(struct gild_mount *mount); /* the pool has requests again; any thread */

/* Answers with a bare error number (0 or -errno). Any thread. */
void mount_reply_error(struct gild_mount *mount, uint64_t unique, int error);

/* ---- names.c: threads for what may block ------------------------------------------------------
 */

#define NAME_THREADS 4u

struct name_message {
    struct name_message *next;
    size_t bytes;
    uint8_t data[];
};

struct name_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct name_message *first, *last;
    bool stopping;
    unsigned started;
    pthread_t threads[NAME_THREADS];
};

int names_start(struct gild_mount *mount);
void names_stop(struct gild_mount *mount); /* answers what is queued, then joins; idempotent */
void names_post(struct gild_mount *mount, struct name_message *message);
/* For libfuse: how it writes and reads. */
ssize_t names_reply_through(int fd, struct iovec *vectors, int count, void *context);
ssize_t names_read_through(int fd, void *buffer, size_t bytes, void *context);

/* ---- tree.c: nodes, handles -------------------------------------------------------------------
 */

#define NODE_BUCKETS 4096u

/* A file or folder that the kernel knows of. */
struct node {
    struct node *next; /* in its bucket */
    uint64_t inode;
    uint64_t references; /* the kernel's lookups and the handles; under tree.lock */
    bool directory, read_only;
    struct overlaps overlaps; /* on the disk's loop */
    char path[];              /* of the disk or folder, without ".raw" */
};

/* One open file. Lives until released and its last request is done. */
struct handle {
    struct gild_list link; /* in the tree */
    struct gild_mount *mount;
    struct node *node;
    struct gild_disk *disk;
    struct gild_loop *loop;
    bool writable;
    atomic_uint references;
};

struct tree {
    pthread_mutex_t lock;
    struct node *root;
    struct node *buckets[NODE_BUCKETS];
    struct gild_list handles;
};

int tree_init(struct tree *tree);
void tree_fini(struct gild_mount *mount); /* closes every handle that is left */
/* The node of a path, with one reference more; NULL: out of memory. */
struct node *tree_node_get(struct tree *tree, const char *path, const struct gild_path_info *info);
void tree_node_drop(struct tree *tree, struct node *node, uint64_t references);
struct node *tree_node(struct tree *tree, fuse_ino_t number);
fuse_ino_t tree_node_number(const struct tree *tree, const struct node *node);

int handle_open(struct gild_mount *mount, struct node *node, bool write, struct handle **out,
                struct gild_error *error);
void handle_drop(struct handle *handle); /* any thread */

/* ---- operations.c: what libfuse calls on the name threads --------------------------------------
 */

extern const struct fuse_lowlevel_ops mount_operations;

/* ---- data.c: data requests ---------------------------------------------------------------------
 */

/* Runs the request whose head has been read, on any loop; it answers and gives it back itself. */
void request_start(struct request *request);

/* ------------------------------------------------------------------------------------------------
 */

struct gild_mount {
    struct gild_store *store;
    char *directory;
    struct fuse_session *session;
    bool mounted;
    int fd;                           /* the session's */
    atomic_bool ended;                /* the kernel has closed the session */
    atomic_bool stopping;             /* gild_mount_stop was called */
    _Atomic uint64_t init_unique;     /* the kernel's number of its INIT message */
    uint32_t init_flags, init_flags2; /* what it offered in it; set before init_unique */
    atomic_bool direct_is_coherent;   /* an uncached write drops cached pages of its range */

    struct request_pool pool;
    struct name_queue names;
    struct tree tree;

    struct reader *readers;
    unsigned reader_count;
    pthread_mutex_t reading_lock;
    pthread_cond_t reading_changed;
    bool reading; /* one reader has the right to read, or is being told so */
    unsigned stops_left;
    _Atomic(struct reader *) holder; /* of the right to read */
};

#endif
