/* See log_rig.h. */
#include "log_rig.h"

#include <CUnit/CUnit.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/queue.h"
#include "io/backend.h"

#include "loop_rig.h"

const uint8_t store_id[16] = "a store's own id";

/* ---- a log on it -------------------------------------------------------------------------------
 */

static uint64_t headroom(void *context, enum gild_segment_use use) {
    (void)use;
    return ((struct rig *)context)->room_bytes;
}

void open_segments(struct rig *rig, unsigned ready, unsigned reserve) {
    struct gild_segments_options options = {
        .directory = rig->log_path,
        .catalog = rig->catalog,
        .ready_target = ready,
        .reserve = reserve,
        .for_nodes = reserve / 2,
        .headroom = headroom,
        .context = rig,
    };
    memcpy(options.store_id, store_id, 16);
    CU_ASSERT_EQUAL_FATAL(gild_segments_create(&rig->segments, &options, NULL), 0);
}

void start_loop(struct rig *rig) {
    rig->device.base = (struct io_backend){.ops = &log_device_ops};
    rig->device.now_ns = 1;
    pthread_mutex_init(&rig->device.lock, NULL);
    pthread_cond_init(&rig->device.woken, NULL);
    CU_ASSERT_EQUAL_FATAL(io_loop_create_over(&rig->loop.loop, &rig->device.base), 0);
}

static void *loop_main(void *loop) {
    gild_loop_run(loop);
    return NULL;
}

struct gild_log *make_log(struct rig *rig, uint64_t stream, unsigned buffers) {
    struct gild_log *log = NULL;
    struct gild_log_options options = {
        .loop = rig->loop.loop, .segments = rig->segments, .stream = stream, .buffers = buffers};
    memcpy(options.store_id, store_id, 16);
    CU_ASSERT_EQUAL_FATAL(gild_log_create(&log, &options), 0);
    return log;
}

void run_loop(struct rig *rig) {
    CU_ASSERT_EQUAL_FATAL(pthread_create(&rig->loop.thread, NULL, loop_main, rig->loop.loop), 0);
}

struct rig *rig_make(unsigned buffers, unsigned ready, unsigned reserve) {
    struct rig *rig = calloc(1, sizeof *rig);
    rig->room_bytes = (uint64_t)1 << 40;
    char path[96];
    strcpy(rig->directory, "/var/tmp/gild-test-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(rig->directory));
    snprintf(path, sizeof path, "%s/catalogue", rig->directory);
    snprintf(rig->log_path, sizeof rig->log_path, "%s/log", rig->directory);
    CU_ASSERT_EQUAL_FATAL(mkdir(path, 0700) | mkdir(rig->log_path, 0700), 0);
    CU_ASSERT_EQUAL_FATAL(gild_catalog_open(&rig->catalog, path,
                                            &(struct gild_catalog_options){.map_bytes = 64 << 20},
                                            NULL),
                          0);
    open_segments(rig, ready, reserve);
    start_loop(rig);
    rig->log = make_log(rig, 1, buffers);
    rig->second = make_log(rig, 2, buffers);
    CU_ASSERT_EQUAL(gild_segments_start(rig->segments), 0);
    run_loop(rig);
    return rig;
}

void rig_stop(struct rig *rig) {
    gild_segments_stop(rig->segments);
    loop_rig_stop(&rig->loop);
    gild_log_destroy(rig->log);
    gild_log_destroy(rig->second);
    gild_segments_destroy(rig->segments);
    pthread_mutex_destroy(&rig->device.lock);
    pthread_cond_destroy(&rig->device.woken);
}

void rig_remove(struct rig *rig) {
    char command[96];
    gild_catalog_close(rig->catalog);
    snprintf(command, sizeof command, "rm -rf '%s'", rig->directory);
    CU_ASSERT_EQUAL(system(command), 0);
    free(rig);
}

void rig_end(struct rig *rig) {
    rig_stop(rig);
    rig_remove(rig);
}

/* ---- calls on the loop's thread
 * ------------------------------------------------------------------
 */

void fill(void *slot, uint64_t delta, uint64_t block) {
    uint64_t *words = slot;
    for (unsigned i = 0; i < 512; i += 2) {
        words[i] = delta;
        words[i + 1] = block;
    }
}

bool filled(const void *slot, uint64_t delta, uint64_t block) {
    uint8_t expected[4096] __attribute__((aligned(8)));
    fill(expected, delta, block);
    return memcmp(slot, expected, 4096) == 0;
}

static void step_told(struct gild_task *task) {
    sem_post(&gild_container_of(task, struct step, waiter.task)->told);
}

struct step step_of(struct rig *rig, struct gild_log *log) {
    struct step step = {.rig = rig, .log = log, .data = true, .delta = 7};
    return step;
}

void step_prepare(struct step *step) {
    sem_init(&step->told, 0, 0);
    memset(&step->waiter, 0, sizeof step->waiter);
    step->waiter.task.run = step_told;
}

void step_wait(struct step *step) {
    while (sem_wait(&step->told))
        ;
}

void do_append(void *context) {
    struct step *step = context;
    uint32_t check;
    step->result = gild_log_room(step->log, step->data, &step->waiter);
    if (step->result)
        return;
    if (!step->data) {
        gild_log_mark(step->log, GILD_ENTRY_HOLE, step->delta, step->block, 1);
        return;
    }
    fill(gild_log_slot(step->log), step->delta, step->block);
    gild_log_data(step->log, step->delta, step->block, &step->place, &check);
}

int try_append(struct step *step) {
    step_prepare(step);
    loop_rig_call(&step->rig->loop, do_append, step);
    return step->result;
}

int append(struct step *step) {
    while (try_append(step) == -EAGAIN)
        step_wait(step);
    return step->result;
}

/* As many as fit without waiting; all of them in one turn of the loop. */
static void do_append_many(void *context) {
    struct step *step = context;
    for (; step->count; step->count--, step->block++) {
        do_append(step);
        if (step->result)
            return;
    }
}

void append_many(struct step *step, uint64_t count) {
    step->count = count;
    while (step->count) {
        step_prepare(step);
        loop_rig_call(&step->rig->loop, do_append_many, step);
        if (step->count && step->result == -EAGAIN)
            step_wait(step);
        else if (step->result)
            return;
    }
}

static void do_sync(void *context) {
    struct step *step = context;
    step->ready = gild_log_sync(step->log, &step->waiter);
}

void sync_start(struct step *step) {
    step_prepare(step);
    loop_rig_call(&step->rig->loop, do_sync, step);
}

int sync_wait(struct step *step) {
    if (!step->ready)
        step_wait(step);
    return step->ready ? 0 : step->waiter.error;
}

bool sync_ended(struct step *step) {
    int value = 0;
    sem_getvalue(&step->told, &value);
    return step->ready || value > 0;
}

int sync_now(struct rig *rig, struct gild_log *log) {
    struct step step = step_of(rig, log);
    sync_start(&step);
    return sync_wait(&step);
}

void do_peek(void *context) {
    struct step *step = context;
    step->bytes = gild_log_peek(step->log, step->place, &step->pin);
}

void do_unpin(void *context) {
    struct step *step = context;
    gild_log_unpin(step->log, step->pin);
}

void do_hold(void *context) {
    struct rig *rig = context;
    rig->device.hold_writes = rig->device.hold_flushes = true;
}

/* What is held now goes; what it brings about is held again or not, as before. */
void do_let_go(void *context) {
    struct rig *rig = context;
    struct io_queue held = rig->device.held;
    struct gild_io *io;
    rig->device.held.first = NULL;
    while ((io = io_queue_pop(&held)))
        log_device_carry_out(&rig->device, io);
}

void do_hold_no_more(void *context) {
    struct rig *rig = context;
    rig->device.hold_writes = rig->device.hold_flushes = false;
    do_let_go(context);
}

static void do_nothing(void *context) {
    (void)context;
}

/* Whole turns pass: what deferred tasks and completions had to do is done. */
void turns(struct rig *rig) {
    for (unsigned i = 0; i < 4; i++)
        loop_rig_call(&rig->loop, do_nothing, NULL);
}
