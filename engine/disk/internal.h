/* What a store is made of, for the files of this folder. */
#ifndef GILD_DISK_INTERNAL_H
#define GILD_DISK_INTERNAL_H

#include "disk/pack_refs.h"
#include "disk/reactor.h"
#include "log/recover.h"

#define MAX_REACTORS 8u

struct superblock;
struct repair;

/* Damage that guests' reads have met, each once (damage.c): told in the background. */
#define DAMAGE_MET_MAX 64u
struct damage_met {
    _Atomic uint64_t object[DAMAGE_MET_MAX];
    bool told[DAMAGE_MET_MAX]; /* the helper thread's */
    _Atomic bool posted;
    struct gild_task task;
};

struct gild_store {
    char directory[2048];
    int lock_fd;
    uint8_t id[16];
    uint64_t made_bytes;               /* the size that the store was made with */
    _Atomic uint64_t size_limit_bytes; /* that, or what was set since; 0 = none */
    bool offline;
    enum gild_loop_backend backend;
    struct gild_catalog *catalog;
    struct gild_packs *packs;
    struct gild_cache *content; /* groups */
    struct gild_cache *nodes;   /* map nodes, pack tables, blocks read back from the log */
    struct gild_segments *segments;
    struct pack_refs *refs;    /* of deltas, to packs */
    unsigned reserve_segments; /* that guests' data leaves */
    struct reactor reactors[MAX_REACTORS];
    unsigned reactor_count;
    uint64_t streams[MAX_REACTORS];
    uint64_t recovered_batches, recovered_bytes;
    struct gild_recovered *recovered; /* between recovery_verify and recovery_run */
    struct gild_recover_stream *recovered_streams;
    uint64_t checkpoint_log_bytes;    /* unsettled, before a checkpoint is asked for */
    _Atomic uint64_t unsettled_bytes; /* of the log, over all reactors */
    _Atomic bool released;         /* maps stopped reaching something since the last checkpoint */
    _Atomic int checkpoint_failed; /* 0, or what ops get that wait for what it would have given */

    /* Disks and sealed maps in memory. open_lock is held over the blocking work of an open, so that
     * one disk is never made twice; disks_lock is short and nests inside it. */
    pthread_mutex_t open_lock;
    pthread_mutex_t disks_lock;
    struct gild_disk *disks;
    struct sealed_ref *sealed;
    uint64_t *held_deltas, *held_maps;
    size_t held_delta_count, held_map_count;

    _Atomic unsigned checks; /* running: no segment is recycled under them */

    /* An ingest may come to depend on any pack; collecting packs waits for none to run. */
    pthread_rwlock_t ingest_lock;

    _Atomic unsigned ingests;     /* that run: their files are not in the catalogue yet */
    _Atomic bool collect_skipped; /* a collection met the lock held */
    _Atomic bool scrubbing;       /* one scrub, or repair of packs, at a time */
    struct damage_met damage_met;

    struct repair *repair; /* while it is being repaired, else NULL */

    struct quota_book *quotas; /* under open_lock */
    struct events *events;
    struct watch *watch;
    struct keeper *keeper;
    struct cleaner *cleaner;
    _Atomic bool pack_unnamed; /* a checkpoint has found a pack that no delta names any more */
    /* The cleaner is at work and has gained room lately: a write waits for it, and is not refused.
     */
    _Atomic bool cleaner_gains;
    _Atomic bool roll; /* the next freeze closes the segments that are being written */
    struct checkpoint *checkpoint;
    uint64_t growth_due_s; /* the keeper's: when growth is to be noted next */
};

/* store.c */
void store_path(const struct gild_store *store, const char *name, char path[4096]);
uint64_t store_used_bytes(struct gild_store *store);
/* gild_store_open, for a repair too: one that has only looked must be freed, not closed. */
int store_open(const char *directory, const struct gild_store_options *options,
               struct repair *repair, struct gild_store **out, struct gild_error *error);
void store_free(struct gild_store *store);

/* disks.c */
struct gild_disk *disk_find(struct gild_store *store, uint64_t delta_id, uint64_t map_id);
int disk_make(struct gild_store *store, const struct gild_disk_spec *spec, struct gild_disk **out,
              struct gild_error *error);
/* Unlinks and frees what nobody holds and no checkpoint needs. The keeper's. */
void disks_drop_idle(struct gild_store *store, bool all);
void disk_free(struct gild_disk *disk);
/* Reads and verifies a delta's node. Blocking, not on a reactor. */
int store_read_node(struct gild_store *store, uint64_t place, uint64_t delta_id,
                    enum gild_node_kind kind, uint64_t index, void *page);

/* keeper.c: the thread of checkpoints and of freeing, and the helper thread for what blocks. */
int keeper_create(struct gild_store *store, struct gild_error *error);
int keeper_start(struct gild_store *store);
void keeper_stop(struct gild_store *store);
void keeper_destroy(struct gild_store *store);
/* Any thread: asks for a checkpoint soon. */
void keeper_ask(struct gild_store *store);
/* Frees a disk that is in no list any more, on its reactor. */
void keeper_drop(struct gild_store *store, struct gild_disk *disk);
/* All reactors have let go of what was unreachable when this was called. The keeper's. */
void keeper_pass(struct gild_store *store);
/* The same for other threads, which wait for the keeper to do it. */
void keeper_wait_pass(struct gild_store *store);

/* checkpoint.c: one checkpoint at once, by the caller: before reactors run, or on the keeper's
 * thread. */
struct checkpoint;
int checkpoint_create(struct gild_store *store);
void checkpoint_destroy(struct gild_store *store);
int checkpoint_run(struct gild_store *store);
/* The writer of blocks that a recovery copies (D5). */
struct gild_log_writer *checkpoint_tail_writer(struct gild_store *store);
/* Asks all reactors at once and waits for their answers; directly where they do not run. */
int keeper_call_all(struct gild_store *store, int kind);

/* collect.c: frees what dropped deltas and deleted maps reached. The keeper's. */
int collect_run(struct gild_store *store);
/* Unlinks files that the catalogue does not know: what a crash broke off. Before reactors run. */
int collect_orphans(struct gild_store *store, struct gild_error *error);

/* collect.c: packs and maps stay between these two, and what a collection skipped meanwhile is
 * asked for again. */
void collect_hold(struct gild_store *store);
void collect_release(struct gild_store *store);

/* lost.c: groups of packs that are known to be lost (quarantine). */
int lost_load(struct gild_store *store, struct gild_error *error);
/* Exactly these groups of the pack are lost, and its record is of the file that there is now, in
 * one transaction. 0 or -errno. */
int lost_write(struct gild_store *store, uint32_t pack_id, const uint32_t *groups, size_t count);
/* With a pack that goes. */
int lost_forget(struct gild_txn *txn, uint32_t pack_id);
/* Calls back for each range, ascending by pack and group. */
typedef int lost_visit(void *context, uint32_t pack_id, uint32_t first_group, uint32_t groups);
int lost_scan(struct gild_txn *txn, lost_visit *visit, void *context);

/* recovery.c: the first adds the segments, reads the log and finds rot, writing nothing (D6); the
 * second replays what was read. */
int recovery_verify(struct gild_store *store, struct gild_error *error);
int recovery_run(struct gild_store *store, struct gild_error *error);
void recovery_forget(struct gild_store *store);
/* For a repair: visits the batches above the checkpoint; the segments are there already. */
int recovery_look(struct gild_store *store, gild_recover_visit *visit, void *context,
                  const struct gild_recover_repair *repair, struct gild_error *error);

/* load.c */
void fetches_free(struct reactor *reactor);
/* write.c */
void rmws_free(struct reactor *reactor);

#endif
