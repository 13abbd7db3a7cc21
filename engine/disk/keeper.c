/* The keeper: a thread that runs checkpoints when they are asked for or due, and frees what nothing
 * reaches; and the helper: a thread for short blocking work of the reactors' (opening a disk),
 * which must not wait for a checkpoint.
 *
 * Failure modes: a checkpoint that fails (device, space) leaves everything as it was, is logged
 * once until it succeeds again, and is tried again when next due; nothing is lost, since the log is
 * replayed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "disk/growth.h"
#include "disk/internal.h"

#define PERIOD_S 30

struct keeper {
    struct gild_store *store;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t thread, helper_thread;
    bool running, stopping;
    uint64_t wanted, finished; /* checkpoints asked for and done, as a count */
    int result;                /* of the last */
    bool collect, pass;
    bool complained;
    unsigned waiting; /* for a checkpoint, in gild_store_checkpoint */
    struct gild_task *helper_first, **helper_last;
    pthread_cond_t helper_wake;
    /* For keeper_call_all. */
    pthread_mutex_t call_lock;
    pthread_cond_t answered;
    unsigned outstanding;
    struct keeper_call calls[MAX_REACTORS];
};

/* ---- asking reactors --------------------------------------------------------------------------
 */

static void call_prepare(struct keeper *keeper, struct keeper_call *call, struct reactor *reactor,
                         int kind) {
    *call = (struct keeper_call){
        .task.run = reactor_call,
        .reactor = reactor,
        .kind = kind,
        .lock = &keeper->call_lock,
        .answered = &keeper->answered,
        .outstanding = &keeper->outstanding,
    };
}

static void call_wait(struct keeper *keeper) {
    pthread_mutex_lock(&keeper->call_lock);
    while (keeper->outstanding)
        pthread_cond_wait(&keeper->answered, &keeper->call_lock);
    pthread_mutex_unlock(&keeper->call_lock);
}

static void call_directly(struct reactor *reactor, int kind) {
    switch (kind) {
    case CALL_FREEZE:
        reactor_freeze(reactor);
        break;
    case CALL_SETTLE:
    case CALL_ABANDON:
        reactor_settle(reactor, kind == CALL_SETTLE);
        break;
    default:
        break;
    }
}

int keeper_call_all(struct gild_store *store, int kind) {
    struct keeper *keeper = store->keeper;
    int err = 0;
    if (!store->reactors[0].running) {
        for (unsigned i = 0; i < store->reactor_count; i++)
            call_directly(&store->reactors[i], kind);
        return 0;
    }
    keeper->outstanding = store->reactor_count;
    for (unsigned i = 0; i < store->reactor_count; i++) {
        call_prepare(keeper, &keeper->calls[i], &store->reactors[i], kind);
        gild_loop_post(store->reactors[i].loop, &keeper->calls[i].task);
    }
    call_wait(keeper);
    for (unsigned i = 0; i < store->reactor_count && !err; i++)
        err = keeper->calls[i].result;
    return err;
}

void keeper_pass(struct gild_store *store) {
    keeper_call_all(store, CALL_PASS);
}

void keeper_drop(struct gild_store *store, struct gild_disk *disk) {
    struct keeper *keeper = store->keeper;
    if (!disk->reactor->running) {
        disk_free(disk);
        return;
    }
    struct keeper_call call;
    call_prepare(keeper, &call, disk->reactor, CALL_DROP);
    call.disk = disk;
    keeper->outstanding = 1;
    gild_loop_post(disk->reactor->loop, &call.task);
    call_wait(keeper);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static bool anything_unsettled(struct gild_store *store) {
    bool any = false;
    pthread_mutex_lock(&store->disks_lock);
    for (struct gild_disk *disk = store->disks; disk && !any; disk = disk->all_next)
        any = atomic_load(&disk->unsettled);
    pthread_mutex_unlock(&store->disks_lock);
    return any;
}

/* Lock held, given up meanwhile. */
static void run_once(struct keeper *keeper) {
    uint64_t serving = keeper->wanted;
    bool collect = keeper->collect, pass = keeper->pass;
    keeper->collect = keeper->pass = false;
    pthread_mutex_unlock(&keeper->lock);
    int err = checkpoint_run(keeper->store);
    if (!err) {
        disks_drop_idle(keeper->store, false);
        growth_note(keeper->store);
    }
    if (!err && atomic_exchange(&keeper->store->pack_unnamed, false))
        collect = true;
    if (!err && collect) {
        err = collect_run(keeper->store);
        if (!err)
            err = checkpoint_run(keeper->store); /* segments that it emptied become free */
    }
    if (pass)
        keeper_pass(keeper->store);
    pthread_mutex_lock(&keeper->lock);
    bool told = keeper->waiting > 0; /* by whoever waits for it */
    if (err && !keeper->complained && !told)
        gild_log(GILD_LOG_ERROR, "a checkpoint of store %s failed: %s", keeper->store->directory,
                 strerror(-err));
    keeper->complained = err && (keeper->complained || !told);
    keeper->result = err;
    keeper->finished = serving;
    if (err && collect)
        keeper->collect = true;
    pthread_cond_broadcast(&keeper->done);
}

static void *keeper_main(void *context) {
    struct keeper *keeper = context;
    pthread_mutex_lock(&keeper->lock);
    while (!keeper->stopping || keeper->wanted != keeper->finished) {
        if (keeper->wanted != keeper->finished) {
            bool failed = keeper->complained;
            run_once(keeper);
            if (failed && keeper->complained && !keeper->stopping) {
                /* It keeps failing: a breath between tries. */
                struct timespec until;
                clock_gettime(CLOCK_REALTIME, &until);
                until.tv_sec += 1;
                pthread_cond_timedwait(&keeper->wake, &keeper->lock, &until);
            }
            continue;
        }
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += PERIOD_S;
        int timed = pthread_cond_timedwait(&keeper->wake, &keeper->lock, &until);
        if (timed == ETIMEDOUT && keeper->wanted == keeper->finished) {
            pthread_mutex_unlock(&keeper->lock);
            bool due = anything_unsettled(keeper->store);
            if (!due)
                gild_segments_quiet(keeper->store->segments);
            pthread_mutex_lock(&keeper->lock);
            if (due || keeper->collect) /* a collection that failed is tried again, too */
                keeper->wanted++;
        }
    }
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

void keeper_ask(struct gild_store *store) {
    struct keeper *keeper = store->keeper;
    pthread_mutex_lock(&keeper->lock);
    /* One may be running already and have passed what this asks for: then another after it. */
    if (keeper->wanted < keeper->finished + 2)
        keeper->wanted++;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}

void gild_store_collect(struct gild_store *store) {
    pthread_mutex_lock(&store->keeper->lock);
    store->keeper->collect = true;
    pthread_mutex_unlock(&store->keeper->lock);
    keeper_ask(store);
}

int gild_store_checkpoint(struct gild_store *store, struct gild_error *error) {
    struct keeper *keeper = store->keeper;
    pthread_mutex_lock(&keeper->lock);
    uint64_t mine = keeper->wanted + 1;
    keeper->wanted = mine;
    keeper->waiting++;
    pthread_cond_signal(&keeper->wake);
    while (keeper->finished < mine)
        pthread_cond_wait(&keeper->done, &keeper->lock);
    keeper->waiting--;
    int err = keeper->result;
    pthread_mutex_unlock(&keeper->lock);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the store %s could not be checkpointed: %s", store->directory,
                         strerror(-err));
    return 0;
}

void keeper_wait_pass(struct gild_store *store) {
    struct keeper *keeper = store->keeper;
    if (!store->reactors[0].running)
        return;
    pthread_mutex_lock(&keeper->lock);
    uint64_t mine = keeper->wanted + 1;
    keeper->wanted = mine;
    keeper->pass = true;
    pthread_cond_signal(&keeper->wake);
    while (keeper->finished < mine)
        pthread_cond_wait(&keeper->done, &keeper->lock);
    pthread_mutex_unlock(&keeper->lock);
}

/* ---- the helper ------------------------------------------------------------------------------ */

static void *helper_main(void *context) {
    struct keeper *keeper = context;
    pthread_mutex_lock(&keeper->lock);
    for (;;) {
        struct gild_task *task = keeper->helper_first;
        if (task) {
            keeper->helper_first = task->next;
            if (!keeper->helper_first)
                keeper->helper_last = &keeper->helper_first;
            pthread_mutex_unlock(&keeper->lock);
            task->run(task);
            pthread_mutex_lock(&keeper->lock);
        } else if (keeper->stopping) {
            break;
        } else {
            pthread_cond_wait(&keeper->helper_wake, &keeper->lock);
        }
    }
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

void gild_store_run_async(struct gild_store *store, struct gild_task *task) {
    struct keeper *keeper = store->keeper;
    pthread_mutex_lock(&keeper->lock);
    task->next = NULL;
    *keeper->helper_last = task;
    keeper->helper_last = &task->next;
    pthread_cond_signal(&keeper->helper_wake);
    pthread_mutex_unlock(&keeper->lock);
}

/* ---- life ------------------------------------------------------------------------------------ */

int keeper_create(struct gild_store *store, struct gild_error *error) {
    struct keeper *keeper = calloc(1, sizeof *keeper);
    if (!keeper)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory for the store's keeper");
    keeper->store = store;
    keeper->helper_last = &keeper->helper_first;
    pthread_mutex_init(&keeper->lock, NULL);
    pthread_mutex_init(&keeper->call_lock, NULL);
    pthread_cond_init(&keeper->wake, NULL);
    pthread_cond_init(&keeper->done, NULL);
    pthread_cond_init(&keeper->helper_wake, NULL);
    pthread_cond_init(&keeper->answered, NULL);
    store->keeper = keeper;
    return 0;
}

int keeper_start(struct gild_store *store) {
    struct keeper *keeper = store->keeper;
    int err = pthread_create(&keeper->thread, NULL, keeper_main, keeper);
    if (err)
        return -err;
    err = pthread_create(&keeper->helper_thread, NULL, helper_main, keeper);
    if (err) {
        pthread_mutex_lock(&keeper->lock);
        keeper->stopping = true;
        pthread_cond_signal(&keeper->wake);
        pthread_mutex_unlock(&keeper->lock);
        pthread_join(keeper->thread, NULL);
        return -err;
    }
    pthread_setname_np(keeper->thread, "gild-keeper");
    pthread_setname_np(keeper->helper_thread, "gild-helper");
    keeper->running = true;
    return 0;
}

void keeper_stop(struct gild_store *store) {
    struct keeper *keeper = store->keeper;
    if (!keeper || !keeper->running)
        return;
    pthread_mutex_lock(&keeper->lock);
    keeper->stopping = true;
    pthread_cond_signal(&keeper->wake);
    pthread_cond_signal(&keeper->helper_wake);
    pthread_mutex_unlock(&keeper->lock);
    pthread_join(keeper->helper_thread, NULL);
    pthread_join(keeper->thread, NULL);
    keeper->running = false;
}

void keeper_destroy(struct gild_store *store) {
    if (!store->keeper)
        return;
    pthread_mutex_destroy(&store->keeper->lock);
    pthread_mutex_destroy(&store->keeper->call_lock);
    free(store->keeper);
    store->keeper = NULL;
}
