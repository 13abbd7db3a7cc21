/* A reactor: one thread, one loop, one open segment, and the disks that are pinned to it. What is
 * in here is touched by its own thread only, but for what says otherwise. */
#ifndef GILD_DISK_REACTOR_H
#define GILD_DISK_REACTOR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"
#include "disk/quota.h"
#include "disk/store.h"
#include "gild/disk.h"
#include "gild/loop.h"
#include "log/log.h"
#include "log/segments.h"
#include "map/delta.h"
#include "map/sealed.h"
#include "pack/pack.h"

#define CONTAINER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

/* Map pages of one reactor, touched as they are needed. A recovery may need those of several
 * reactors of an earlier start in one, so more address space is reserved than is used later. */
#define POOL_BYTES (128u << 20)
#define POOL_RESERVED_BYTES ((size_t)2 << 30)
#define RUN_BLOCKS 32u /* log blocks fetched by one device read */

struct reactor {
    struct gild_store *store;
    unsigned index;
    struct gild_loop *loop;
    pthread_t thread;
    bool running;
    struct gild_log *log;
    struct gild_page_pool pool;
    size_t pages, tight_pages; /* the pool's limit: as a rule, and while space is tight */
    unsigned epoch; /* which of a segment's two counters of change is ours, see log/segments.h */

    struct gild_disk *dirty;  /* disks with something for the next checkpoint */
    struct gild_disk *frozen; /* disks that a checkpoint is writing */
    uint64_t frozen_lsn;
    uint64_t frozen_segment; /* serial that was open at the freeze, 0 = none */
    struct gild_op
        *space_waiters; /* writes on a full store, while the next checkpoint may free segments */
    struct gild_op *page_waiters; /* ops that wait for a checkpoint to free map pages */
    uint64_t frozen_bytes;        /* log written up to the last freeze */
    uint64_t unsettled_bytes;     /* log written since, as far as the store's sum counts it */
    bool asked;                   /* a checkpoint has been asked for and not begun */

    /* Ops in flight by the parity of `grace` at their start: readers have passed once the old one's
     * count is zero. */
    unsigned grace;
    _Atomic uint64_t begun; /* ops, ever: what the cleaner goes by */
    uint64_t active[2];
    bool passing;

    struct fetch *free_fetches;
    struct piece_wait *free_waits;
    struct rmw *free_rmws;
    struct keeper_call *call; /* the checkpoint's request that this reactor is busy with */
};

struct rmw;

struct gild_disk {
    struct gild_store *store;
    struct reactor *reactor;
    _Atomic(char *) path; /* until it is first opened by name, the cleaner's name for it */
    char *first_path;     /* which is kept: it may be in use */
    uint64_t delta_id, map_id;
    uint64_t size_bytes;
    bool read_only;
    bool quarantined;               /* read-only since it may have lost flushed writes */
    struct gild_sealed_map *parent; /* or the map itself of a read-only disk; NULL = none */
    uint64_t parent_blocks;
    struct gild_delta_map map; /* delta_id != 0 */
    struct rmw *rmws;          /* blocks being read, changed and written */

    /* The reactor's. */
    struct gild_disk *dirty_next, *frozen_next;
    bool on_dirty;
    uint64_t frozen_mapped, frozen_packed; /* of the map, at the freeze */
    uint64_t *frozen_dirs;                 /* map.dirs at the freeze; pages in it are frozen ones */
    bool frozen_any;                       /* the freeze found something */
    struct disk_quota quota;
    uint64_t fault_said_ns; /* when an op's failure was last said in the log, 0 = never */
    uint64_t faults_unsaid; /* since */

    /* Under store->disks_lock. */
    struct gild_disk *all_next;
    unsigned holds;   /* of the cleaner: it stays in memory, whoever opens or deletes it */
    const char *door; /* through which it is open, NULL if none */
    unsigned opens, writers;

    _Atomic bool unsettled; /* has changes that no checkpoint holds yet */
    _Atomic uint64_t mapped_blocks;
    _Atomic uint8_t refused; /* enum refused: why its writes were, and none was taken since */
    _Atomic bool room_told;  /* since it was refused last */
    struct gild_task task;   /* the keeper's, to drop it */
};

enum op_state {
    OP_NEW,
    OP_RUN,
    OP_WAIT_NODE,
    OP_WAIT_DATA,
    OP_WAIT_ROOM,
    OP_WAIT_PAGE,
    OP_WAIT_LOCK,
    OP_WAIT_READ, /* the read half of a read-modify-write */
    OP_WAIT_SYNC,
    OP_DONE,
};

/* Kinds of ops that are the engine's own (move.c). */
#define OP_MOVE ((enum gild_op_kind)100)

#define OP_GRACE 1u        /* op->ticket: which of reactor->active counts it */
#define OP_SYNC_ASKED 2u   /* op->ticket */
#define OP_SPACE_ASKED 4u  /* op->ticket: has waited for a checkpoint to make room */
#define OP_SPACE_AGAIN 16u /* op->ticket: and for the one after that */
#define OP_PAGE_ASKED 8u   /* op->ticket: has waited for a checkpoint to free map pages */

/* ops.c */
void disk_op_resume(struct gild_op *op);
void disk_op_finish(struct gild_op *op);
/* The op waits for what a checkpoint or another op must first give: it reads nothing meanwhile, so
 * it does not hold up the passing of readers. */
void disk_op_pause(struct gild_op *op, enum op_state state);
/* The op's error becomes EIO (or what it is), named in the log, though not more often than each
 * minute for a disk. */
void disk_op_fail(struct gild_op *op, int error, const char *what);
/* Before the disk is freed: how many failures were not named. */
void disk_fault_last_words(const struct gild_disk *disk);

/* load.c: every load either is ready at once, or resumes the op later (then op->error may be set).
 */
enum load { LOAD_READY, LOAD_WAIT };

struct node_want {
    struct gild_cache_key key;
    int fd;
    uint64_t file_offset;
    uint64_t owner, index;
    uint64_t place; /* of a delta's node; 0: it is of a sealed map */
    enum gild_node_kind kind;
};
/* A map node: READY with *page pinned in *entry (gild_cache_unpin on the node cache when done). */
enum load load_node(struct gild_op *op, const struct node_want *want,
                    struct gild_cache_entry **entry);
/* A delta's node by its place. */
enum load load_delta_node(struct gild_op *op, const struct gild_map_need *need,
                          struct gild_cache_entry **entry);
/* A leaf of a sealed map; *entry NULL = a hole. */
enum load load_sealed_leaf(struct gild_op *op, uint64_t leaf_index,
                           struct gild_cache_entry **entry);

/* A group of a pack: *entry is pinned; if it is not there yet, op->pending has been raised and
 * falls when it is (or has failed). */
void load_group(struct gild_op *op, uint64_t place, struct gild_cache_entry **entry);

/* Blocks of the log at consecutive places for consecutive guest blocks: gathers what is missing
 * into as few device reads as it can. */
struct log_run {
    struct fetch *fetch; /* under construction */
};
void load_log_block(struct gild_op *op, struct log_run *run, uint64_t block, uint64_t place,
                    uint32_t check, struct gild_cache_entry **entry);
void load_log_end(struct log_run *run);

/* An op's wait for one thing besides data: where its waiter lives. */
struct op_wait {
    union {
        struct gild_cache_waiter cache;
        struct gild_log_waiter log;
    };
    struct gild_cache_entry *entry;
};
_Static_assert(sizeof(struct op_wait) <= sizeof(((struct gild_op *)0)->wait),
               "op->wait is too small");
static inline struct op_wait *op_wait(struct gild_op *op) {
    return (struct op_wait *)(void *)op->wait;
}

/* Piece pins. */
enum pin_kind { PIN_NONE, PIN_GROUP, PIN_BLOCK, PIN_LOG, PIN_HEAP };

/* read.c, write.c, extents.c: one step each; true when the op is done. */
bool read_step(struct gild_op *op);
bool write_step(struct gild_op *op);
bool write_fill_step(struct gild_op *op);
bool extents_step(struct gild_op *op);
/* Where the blocks of one leaf are, for reading. READY: *leaf (or NULL and *uniform), pinned by
 * *pin (may be NULL). */
enum load read_delta_leaf(struct gild_op *op, uint64_t leaf_index, const struct gild_leaf **leaf,
                          uint64_t *uniform, struct gild_cache_entry **pin);

/* write.c */
void disk_mark_dirty(struct gild_disk *disk);
/* Something of the disk's was appended or changed: a checkpoint is asked for when it is due. */
void write_appended(struct gild_disk *disk);
/* What a change of a block needs, each in one synchronous step: a leaf that may be changed, room in
 * the log (data: a guest's). False: the op waits and is stepped again, or has failed (op->error).
 */
bool write_have_leaf(struct gild_op *op, uint64_t block, struct gild_page **leaf);
bool write_have_room(struct gild_op *op, bool data);
/* Loads what the map said it needs. True: ask the map again. False: as above. */
bool write_satisfy(struct gild_op *op, enum gild_map_step step, const struct gild_map_need *need);
/* Map pages are limited to what a checkpoint can write. Before the map is asked for pages. */
void write_limit_pages(struct reactor *reactor);
void write_page_ready(struct reactor *reactor);  /* pages were settled: waiting ops go on */
void write_space_ready(struct reactor *reactor); /* a checkpoint has freed what it could */

/* move.c */
bool move_step(struct gild_op *op);

/* reactor.c */
int reactor_create(struct reactor *reactor, struct gild_store *store, unsigned index,
                   uint64_t stream, struct gild_error *error);
int reactor_start(struct reactor *reactor);
void reactor_stop(struct reactor *reactor);
void reactor_destroy(struct reactor *reactor);
/* The reactor's part of a checkpoint; directly (before it runs) or on its thread. */
void reactor_freeze(struct reactor *reactor);
void reactor_settle(struct reactor *reactor, bool committed);
void reactor_op_begin(struct reactor *reactor, struct gild_op *op);
void reactor_op_end(struct reactor *reactor, struct gild_op *op);

/* A question of the keeper's to one reactor, answered on its thread. */
struct keeper_call {
    struct gild_task task;
    struct reactor *reactor;
    enum { CALL_FREEZE, CALL_SETTLE, CALL_ABANDON, CALL_PASS, CALL_DROP, CALL_SPACE } kind;
    struct gild_disk *disk; /* CALL_DROP */
    struct gild_log_waiter waiter;
    int result;
    pthread_mutex_t *lock;
    pthread_cond_t *answered;
    unsigned *outstanding;
};
void reactor_call(struct gild_task *task);

#endif
