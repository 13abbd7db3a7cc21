/* The write log over a backend of the test's own: real files in a temporary folder, but each write
 * and flush is counted, can be held back, and can be made to fail. Time stands still unless the
 * test moves it, so no batch is written because it has aged. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/place.h"
#include "base/queue.h"
#include "io/backend.h"
#include "log/log.h"
#include "log/recover.h"
#include "log/writer.h"
#include "log_device.h"
#include "log_rig.h"

/* ---- durability ---------------------------------------------------------------------------------
 */

static void test_a_lone_sync_is_one_dsync_write(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    for (unsigned i = 1; i <= 5; i++) {
        CU_ASSERT_EQUAL(append(&step), 0);
        CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
        CU_ASSERT_EQUAL(rig->device.writes, i);
        CU_ASSERT_EQUAL(rig->device.dsyncs, i);
    }
    CU_ASSERT_EQUAL(rig->device.flushes, 0);
    /* Nothing new: nothing to do. */
    sync_start(&step);
    CU_ASSERT_TRUE(step.ready);
    CU_ASSERT_EQUAL(rig->device.writes, 5);
    rig_end(rig);
}

static void test_a_habit_of_lone_syncs_is_met_ahead(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    for (unsigned i = 0; i < 4; i++) {
        CU_ASSERT_EQUAL(append(&step), 0);
        CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    }
    for (unsigned i = 5; i <= 6; i++) { /* and goes on so */
        CU_ASSERT_EQUAL(append(&step), 0);
        turns(rig);
        CU_ASSERT_EQUAL(rig->device.dsyncs, i);
        sync_start(&step);
        CU_ASSERT_EQUAL(sync_wait(&step), 0);
        CU_ASSERT_EQUAL(rig->device.dsyncs, i);
    }
    /* Two writes without a sync between them: no more of it. */
    CU_ASSERT_EQUAL(append(&step), 0);
    turns(rig);
    CU_ASSERT_EQUAL(rig->device.dsyncs, 7);
    CU_ASSERT_EQUAL(append(&step), 0);
    turns(rig);
    CU_ASSERT_EQUAL(rig->device.dsyncs, 7);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    rig_end(rig);
}

static void test_syncs_that_come_together_share_a_flush(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step first = step_of(rig, rig->log), more[10];
    CU_ASSERT_EQUAL(append(&first), 0);
    loop_rig_call(&rig->loop, do_hold, rig);
    sync_start(&first); /* its dsync write is under way */
    turns(rig);
    for (unsigned i = 0; i < 10; i++) {
        more[i] = step_of(rig, rig->log);
        CU_ASSERT_EQUAL(append(&more[i]), 0);
        sync_start(&more[i]);
    }
    turns(rig);
    for (unsigned round = 0; round < 12; round++) { /* writes end, no flush has */
        loop_rig_call(&rig->loop, do_let_go, rig);
        turns(rig);
        if (rig->device.flushes)
            break;
    }
    CU_ASSERT_EQUAL(sync_wait(&first), 0);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    unsigned early = 0;
    for (unsigned i = 0; i < 10; i++)
        early += sync_ended(&more[i]);
    CU_ASSERT_EQUAL(early, 0);
    loop_rig_call(&rig->loop, do_hold_no_more, rig);
    for (unsigned i = 0; i < 10; i++)
        CU_ASSERT_EQUAL(sync_wait(&more[i]), 0);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    CU_ASSERT_EQUAL(rig->device.dsyncs, 1);
    rig_end(rig);
}

static void test_an_aged_batch_is_written(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    CU_ASSERT_EQUAL(append(&step), 0);
    turns(rig);
    CU_ASSERT_EQUAL(rig->device.writes, 0);
    rig->device.now_ns += 1000000000;
    log_device_ops.wake(&rig->device.base);
    turns(rig);
    CU_ASSERT_EQUAL(rig->device.writes, 1);
    CU_ASSERT_EQUAL(rig->device.dsyncs + rig->device.flushes, 0); /* nobody asked for that */
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    rig_end(rig);
}

/* ---- failure (D5) -------------------------------------------------------------------------------
 */

static void expect_dead(struct rig *rig, const struct step *earlier, unsigned count) {
    unsigned writes = rig->device.writes, flushes = rig->device.flushes;
    struct step step = step_of(rig, rig->log);
    for (unsigned i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(append(&step), -EIO);
        CU_ASSERT_EQUAL(sync_now(rig, rig->log), -EIO);
        turns(rig);
    }
    CU_ASSERT_EQUAL(gild_log_failure(rig->log), -EIO);
    CU_ASSERT_EQUAL(rig->device.writes, writes); /* never retried */
    CU_ASSERT_EQUAL(rig->device.flushes, flushes);
    for (unsigned i = 0; i < count; i++) { /* what was acknowledged is still read */
        struct step peek = earlier[i];
        loop_rig_call(&rig->loop, do_peek, &peek);
        CU_ASSERT_PTR_NOT_NULL_FATAL(peek.bytes);
        CU_ASSERT_TRUE(filled(peek.bytes, peek.delta, peek.block));
        if (peek.pin)
            loop_rig_call(&rig->loop, do_unpin, &peek);
    }
    /* Another log of the same device goes on. */
    step = step_of(rig, rig->second);
    CU_ASSERT_EQUAL(append(&step), 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->second), 0);
}

static void do_fail_write(void *context) {
    ((struct rig *)context)->device.fail_write = -EIO;
}

static void do_fail_flush(void *context) {
    ((struct rig *)context)->device.fail_flush = -EIO;
}

static void do_fail_no_more(void *context) {
    struct rig *rig = context;
    rig->device.fail_write = rig->device.fail_flush = 0;
}

static void test_a_failed_write_kills_the_log(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step steps[3];
    for (unsigned i = 0; i < 3; i++) {
        steps[i] = step_of(rig, rig->log);
        steps[i].block = i;
        CU_ASSERT_EQUAL(append(&steps[i]), 0);
        if (i == 0)
            CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    }
    loop_rig_call(&rig->loop, do_fail_write, rig);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), -EIO);
    loop_rig_call(&rig->loop, do_fail_no_more, rig); /* the device is well again: no matter */
    expect_dead(rig, steps, 3);
    rig_end(rig);
}

static void test_a_failed_flush_kills_the_log(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step steps[2];
    loop_rig_call(&rig->loop, do_hold, rig);
    for (unsigned i = 0; i < 2; i++) { /* the second is not alone, so it takes a flush */
        steps[i] = step_of(rig, rig->log);
        steps[i].block = i;
        CU_ASSERT_EQUAL(append(&steps[i]), 0);
        sync_start(&steps[i]);
        turns(rig);
    }
    loop_rig_call(&rig->loop, do_fail_flush, rig);
    loop_rig_call(&rig->loop, do_hold_no_more, rig);
    CU_ASSERT_EQUAL(sync_wait(&steps[0]), 0);
    CU_ASSERT_EQUAL(sync_wait(&steps[1]), -EIO);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    loop_rig_call(&rig->loop, do_fail_no_more, rig);
    expect_dead(rig, steps, 2);
    rig_end(rig);
}

/* ---- room
 * ---------------------------------------------------------------------------------------- */

static void test_back_pressure_and_pins(void) {
    struct rig *rig = rig_make(4, 2, 0);
    struct step step = step_of(rig, rig->log), pins[3], wait = step_of(rig, rig->log);
    append_many(&step, 1); /* there is a segment */
    loop_rig_call(&rig->loop, do_hold, rig);
    for (unsigned i = 0; i < 3; i++) {
        pins[i] = step; /* the block just appended, */
        pins[i].block--;
        append_many(&step, GILD_BATCH_ENTRIES); /* and on into the next batch */
    }
    append_many(&step, GILD_BATCH_ENTRIES - 1);
    /* Four buffers are full, none is written. */
    step_prepare(&wait);
    loop_rig_call(&rig->loop, do_append, &wait);
    CU_ASSERT_EQUAL(wait.result, -EAGAIN);
    for (unsigned i = 0; i < 3; i++)
        loop_rig_call(&rig->loop, do_peek, &pins[i]);
    CU_ASSERT_PTR_NOT_NULL(pins[0].pin);
    CU_ASSERT_PTR_NOT_NULL(pins[1].pin);
    CU_ASSERT_PTR_NULL(pins[2].pin); /* half of the buffers is never pinned */
    CU_ASSERT_PTR_NOT_NULL(pins[2].bytes);
    int early = 0;
    sem_getvalue(&wait.told, &early);
    CU_ASSERT_EQUAL(early, 0);
    loop_rig_call(&rig->loop, do_hold_no_more, rig);
    step_wait(&wait);
    /* Much more than the buffers hold, and what is pinned stays. */
    append_many(&step, 20 * GILD_BATCH_ENTRIES);
    CU_ASSERT_EQUAL(step.result, 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    for (unsigned i = 0; i < 2; i++)
        CU_ASSERT_TRUE(filled(pins[i].bytes, pins[i].delta, pins[i].block));
    loop_rig_call(&rig->loop, do_peek, &pins[2]);
    CU_ASSERT_PTR_NULL(pins[2].bytes); /* its buffer has gone on */
    for (unsigned i = 0; i < 2; i++)
        loop_rig_call(&rig->loop, do_unpin, &pins[i]);
    /* All four serve again: none stayed pinned, or so many could not be full at once. */
    loop_rig_call(&rig->loop, do_hold, rig);
    unsigned blocks = 0;
    while (try_append(&step) == 0)
        blocks++;
    CU_ASSERT_TRUE(blocks > 3 * GILD_BATCH_ENTRIES);
    loop_rig_call(&rig->loop, do_hold_no_more, rig);
    step_wait(&step);
    rig_end(rig);
}

/* All held writes but the one that was asked for first. */
static void do_let_go_but_one(void *context) {
    struct rig *rig = context;
    struct io_queue held = rig->device.held;
    struct gild_io *first = io_queue_pop(&held), *io;
    rig->device.held = (struct io_queue){0};
    io_queue_push(&rig->device.held, first);
    while ((io = io_queue_pop(&held)))
        log_device_carry_out(&rig->device, io);
}

static void test_a_buffer_stays_while_one_before_it_is_unwritten(void) {
    struct rig *rig = rig_make(4, 2, 0);
    struct step step = step_of(rig, rig->log);
    append_many(&step, 1); /* there is a segment */
    loop_rig_call(&rig->loop, do_hold, rig);
    while (try_append(&step) == 0)
        ;
    CU_ASSERT_EQUAL(step.result, -EAGAIN); /* four are full */
    loop_rig_call(&rig->loop, do_let_go_but_one, rig);
    turns(rig);
    CU_ASSERT_EQUAL(try_append(&step), -EAGAIN);
    loop_rig_call(&rig->loop, do_hold_no_more, rig);
    step_wait(&step);
    CU_ASSERT_EQUAL(append(&step), 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    rig_end(rig);
}

/* A write with RWF_DSYNC is durable itself, and nothing that was written before it is. */
static void test_a_sync_behind_unflushed_batches_flushes(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    append_many(&step, GILD_BATCH_ENTRIES + 1);
    turns(rig); /* the first batch is written, and not flushed */
    CU_ASSERT_EQUAL(rig->device.writes, 1);
    CU_ASSERT_EQUAL(rig->device.flushes, 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    CU_ASSERT_EQUAL(rig->device.dsyncs, 0);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    rig_end(rig);
}

struct later {
    struct step step;
    struct gild_task task;
};

static void fill_a_batch(struct gild_task *task) {
    struct later *later = gild_container_of(task, struct later, task);
    for (unsigned i = 0; i < GILD_BATCH_ENTRIES; i++) {
        do_append(&later->step);
        CU_ASSERT_EQUAL(later->step.result, 0);
    }
}

static void do_append_and_more_later(void *context) {
    struct later *later = context;
    do_append(&later->step);
    gild_loop_post(later->step.rig->loop.loop, &later->task);
}

/* A batch is about to be written ahead of the flush that is expected, when a burst of writes makes
 * it the second of two: its own RWF_DSYNC would say nothing of the first. */
static void test_a_write_ahead_does_not_count_for_one_before_it(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct later later = {.step = step_of(rig, rig->log), .task.run = fill_a_batch};
    for (unsigned i = 0; i < 4; i++) {
        CU_ASSERT_EQUAL(append(&later.step), 0);
        CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    }
    CU_ASSERT_EQUAL(rig->device.dsyncs, 4);
    step_prepare(&later.step);
    loop_rig_call(&rig->loop, do_append_and_more_later, &later);
    turns(rig);
    CU_ASSERT_TRUE(rig->device.writes >= 5); /* the first of the two, as a plain write */
    CU_ASSERT_EQUAL(rig->device.flushes, 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    CU_ASSERT_EQUAL(rig->device.flushes, 1);
    rig_end(rig);
}

/* ---- the keeper's writer ------------------------------------------------------------------------
 */

int __real_gild_file_sync(int fd);
int __wrap_gild_file_sync(int fd);

static _Atomic int failing_fd = -1; /* its next sync fails; what comes after it is counted */
static _Atomic unsigned failing_syncs;

int __wrap_gild_file_sync(int fd) {
    if (fd != failing_fd)
        return __real_gild_file_sync(fd);
    return failing_syncs++ ? __real_gild_file_sync(fd) : -EIO;
}

/* The page cache may show what a failed sync lost: nothing more is written there, and the sync is
 * not tried again (D5). */
static void test_a_segment_whose_sync_failed_is_left(void) {
    struct rig *rig = rig_make(0, 3, 0);
    struct gild_log_writer writer;
    uint8_t *page = calloc(1, GILD_LOG_BLOCK);
    uint64_t place = 0, first = 0;
    uint32_t check;
    CU_ASSERT_EQUAL_FATAL(gild_log_writer_init(&writer, rig->segments, store_id, 9, true), 0);
    for (uint64_t i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(
            gild_log_writer_append(&writer, GILD_ENTRY_NODE, 7, i, page, &first, &check), 0);
        failing_fd = i ? writer.segment->fd : -1;
        CU_ASSERT_EQUAL(gild_log_writer_flush(&writer), i ? -EIO : 0);
    }
    for (uint64_t i = 2; i < 4; i++) {
        CU_ASSERT_EQUAL(
            gild_log_writer_append(&writer, GILD_ENTRY_NODE, 7, i, page, &place, &check), 0);
        CU_ASSERT_NOT_EQUAL(gild_place_serial(place), gild_place_serial(first));
        CU_ASSERT_EQUAL(gild_log_writer_flush(&writer), 0);
    }
    CU_ASSERT_EQUAL(failing_syncs, 1);
    struct gild_segment *left = gild_segments_find(rig->segments, gild_place_serial(first));
    CU_ASSERT_PTR_NOT_NULL_FATAL(left);
    CU_ASSERT_TRUE(atomic_load(&left->closed)); /* so that a checkpoint finds it empty one day */
    failing_fd = -1;
    gild_log_writer_fini(&writer);
    free(page);
    rig_end(rig);
}

/* ---- recovery
 * ------------------------------------------------------------------------------------ */

struct seen {
    uint64_t next_block[3], last_lsn[3], blocks[3];
    unsigned wrong, in_doubt;
};

/* A batch that is not in doubt comes without payload: its checks say what it is. */
static bool content_is(const struct gild_batch_header *header, const struct gild_log_entry *entry,
                       const uint8_t *payload) {
    uint8_t block[4096];
    if (payload)
        return filled(payload, entry->delta, entry->block);
    fill(block, entry->delta, entry->block);
    return entry->check == gild_log_check(block, header->serial, entry->delta, entry->block);
}

static int see(void *context, const struct gild_batch_header *header, const uint8_t *payload,
               bool in_doubt) {
    struct seen *seen = context;
    uint64_t stream = header->stream;
    if (stream > 2 || header->lsn != ++seen->last_lsn[stream]) {
        seen->wrong++;
        return 0;
    }
    seen->in_doubt += in_doubt;
    for (uint32_t i = 0; i < header->entry_count; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        seen->wrong += entry->kind != GILD_ENTRY_DATA || entry->delta != stream ||
                       entry->block != seen->next_block[stream]++ ||
                       !content_is(header, entry, payload ? payload + i * 4096 : NULL);
        seen->blocks[stream]++;
    }
    return 0;
}

static int add_segment(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct rig *rig = context;
    struct gild_rec_segment record;
    (void)key_length;
    CU_ASSERT_EQUAL(gild_rec_segment_decode(&record, value, length), 0);
    return gild_segments_add(rig->segments, gild_rec_key_u64(key), &record, NULL);
}

/* The store is opened anew: what does its log say? */
static int recover(struct rig *rig, struct gild_recover_stream *streams, size_t count,
                   struct seen *seen, struct gild_error *error) {
    struct gild_txn *txn;
    struct gild_recover_totals totals;
    memset(seen, 0, sizeof *seen);
    for (size_t i = 0; i < count; i++)
        seen->last_lsn[streams[i].stream] = streams[i].checkpoint_lsn;
    open_segments(rig, 2, 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(rig->catalog, false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, add_segment, rig), 0);
    gild_txn_abort(txn);
    return gild_log_recover(rig->segments, store_id, streams, count, see, seen, &totals, error);
}

static void test_two_streams_over_segments_are_replayed_in_order(void) {
    struct rig *rig = rig_make(0, 3, 0);
    struct step a = step_of(rig, rig->log), b = step_of(rig, rig->second);
    a.delta = 1;
    b.delta = 2;
    for (unsigned i = 0; i < 70; i++) { /* the first stream fills more than a segment */
        append_many(&a, 300);
        append_many(&b, 17);
        CU_ASSERT_EQUAL(sync_now(rig, i % 3 ? rig->log : rig->second), 0);
    }
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->second), 0);
    uint64_t from = gild_log_segment(rig->log);
    rig_stop(rig);
    struct gild_recover_stream streams[] = {{.stream = 1}, {.stream = 2}};
    struct seen seen;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(recover(rig, streams, 2, &seen, &error), 0);
    CU_ASSERT_EQUAL(seen.wrong, 0);
    CU_ASSERT_EQUAL(seen.blocks[1], 70 * 300);
    CU_ASSERT_EQUAL(seen.blocks[2], 70 * 17);
    CU_ASSERT_TRUE(seen.in_doubt >= 2); /* the last of each: nothing later names them durable */
    CU_ASSERT_EQUAL(streams[0].last_lsn, seen.last_lsn[1]);
    CU_ASSERT_TRUE(streams[0].durable_lsn < streams[0].last_lsn);
    CU_ASSERT_TRUE(from > 1);
    gild_segments_destroy(rig->segments);
    /* Above a checkpoint only. */
    uint64_t middle = streams[0].last_lsn / 2, all = seen.blocks[1];
    struct gild_recover_stream later = {.stream = 1, .checkpoint_lsn = middle};
    CU_ASSERT_EQUAL(recover(rig, &later, 1, &seen, &error), 0);
    CU_ASSERT_EQUAL(seen.last_lsn[1], streams[0].last_lsn);
    CU_ASSERT_TRUE(seen.next_block[1] < all && seen.next_block[1] > 0);
    gild_segments_destroy(rig->segments);
    rig_remove(rig);
}

/* A crash at a turn when everything written is on the device but the last batches, which the device
 * took in an order of its own: a gap ends the log. */
static void test_a_gap_above_the_durable_ends_the_log(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    step.delta = 1;
    append_many(&step, 10);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    append_many(&step, 10);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0); /* names the first durable */
    loop_rig_call(&rig->loop, do_hold, rig);
    append_many(&step, 3 * GILD_BATCH_ENTRIES); /* two sealed and held, and one open */
    struct io_queue *held = &rig->device.held;
    turns(rig);
    CU_ASSERT_PTR_NOT_NULL_FATAL(held->first);
    struct gild_io *lost = io_queue_pop(held); /* never reaches the device */
    CU_ASSERT_PTR_NOT_NULL_FATAL(held->first);
    loop_rig_call(&rig->loop, do_let_go, rig);
    (void)lost;
    rig_stop(rig);
    struct gild_recover_stream stream = {.stream = 1};
    struct seen seen;
    CU_ASSERT_EQUAL(recover(rig, &stream, 1, &seen, NULL), 0);
    CU_ASSERT_EQUAL(seen.wrong, 0);
    CU_ASSERT_EQUAL(seen.blocks[1], 20);
    CU_ASSERT_EQUAL(stream.last_lsn, 2);
    gild_segments_destroy(rig->segments);
    rig_remove(rig);
}

static void test_rot_below_the_durable_is_refused(void) {
    struct rig *rig = rig_make(0, 2, 0);
    struct step step = step_of(rig, rig->log);
    uint64_t places[6];
    char path[128];
    step.delta = 1;
    for (unsigned i = 0; i < 6; i++) {
        append_many(&step, 5);
        places[i] = step.place;
        CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    }
    rig_stop(rig);
    for (unsigned i = 0; i < 6; i++) {
        struct gild_recover_stream stream = {.stream = 1};
        struct gild_error error = {0};
        struct seen seen;
        uint8_t saved, garbled;
        snprintf(path, sizeof path, "%s/%016llx.seg", rig->log_path,
                 (unsigned long long)gild_place_serial(places[i]));
        FILE *file = fopen(path, "r+b");
        CU_ASSERT_PTR_NOT_NULL_FATAL(file);
        long at = (long)gild_place_offset(places[i]) * 4096 + 77;
        fseek(file, at, SEEK_SET);
        CU_ASSERT_EQUAL(fread(&saved, 1, 1, file), 1);
        garbled = saved ^ 0x40;
        fseek(file, at, SEEK_SET);
        fwrite(&garbled, 1, 1, file);
        fflush(file);
        int err = recover(rig, &stream, 1, &seen, &error);
        gild_segments_destroy(rig->segments);
        CU_ASSERT_EQUAL(seen.wrong, 0);
        CU_ASSERT_EQUAL(seen.last_lsn[1], i); /* nothing at or after the rot was visited */
        if (i < 5) {
            CU_ASSERT_EQUAL(err, -EBADMSG);
            CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
        } else { /* the last: nobody says that it was durable */
            CU_ASSERT_EQUAL(err, 0);
        }
        fseek(file, at, SEEK_SET);
        fwrite(&saved, 1, 1, file);
        fclose(file);
    }
    rig_remove(rig);
}

static void forget(struct rig *rig, uint64_t serial) {
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(rig->catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_SEGMENTS, serial), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
}

/* A recycled file is still full of its old life's batches. */
static void test_an_old_life_is_never_replayed(void) {
    struct rig *rig = rig_make(0, 1, 0);
    struct step step = step_of(rig, rig->log);
    step.delta = 1;
    append_many(&step, 5000);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    uint64_t serial = gild_log_segment(rig->log);
    rig_stop(rig);
    /* Nothing reaches it any more: a checkpoint forgets and recycles it, and it is the next that is
     * written, by another stream. */
    struct gild_recover_stream stream = {.stream = 1};
    struct seen seen;
    CU_ASSERT_EQUAL(recover(rig, &stream, 1, &seen, NULL), 0);
    CU_ASSERT_EQUAL(seen.blocks[1], 5000);
    rig->room_bytes = 0; /* no new file */
    struct gild_segment *old = gild_segments_find(rig->segments, serial), *taken;
    CU_ASSERT_PTR_NOT_NULL_FATAL(old);
    forget(rig, serial);
    while (gild_segments_take_now(rig->segments, false, &taken) == 0)
        ; /* those that were ready */
    CU_ASSERT_EQUAL(gild_segments_recycle(rig->segments, old), 0);
    memset(&rig->device, 0, sizeof rig->device);
    start_loop(rig);
    rig->log = make_log(rig, 1, 0); /* never started */
    rig->second = make_log(rig, 2, 0);
    CU_ASSERT_EQUAL(gild_segments_start(rig->segments), 0);
    run_loop(rig);
    step = step_of(rig, rig->second);
    step.delta = 2;
    append_many(&step, 124 + 10);
    CU_ASSERT_EQUAL(step.result, 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->second), 0);
    CU_ASSERT_TRUE(gild_log_segment(rig->second) > serial);
    rig_stop(rig);
    struct gild_recover_stream both[] = {{.stream = 1}, {.stream = 2}};
    CU_ASSERT_EQUAL(recover(rig, both, 2, &seen, NULL), 0);
    CU_ASSERT_EQUAL(seen.wrong, 0);
    CU_ASSERT_EQUAL(seen.blocks[1], 0);
    CU_ASSERT_EQUAL(seen.blocks[2], 124 + 10);
    gild_segments_destroy(rig->segments);
    rig_remove(rig);
}

/* What was taken of late is worth its files, until somebody else wants the room. */
static void test_emptied_files_are_kept_for_what_comes(void) {
    enum { TAKEN = 16, EMPTIED = 4 };
    struct rig *rig = rig_make(0, 1, 0);
    CU_ASSERT_EQUAL(sync_now(rig, rig->log), 0);
    rig_stop(rig);
    struct gild_recover_stream stream = {.stream = 1};
    struct seen seen;
    struct gild_segment *taken[TAKEN];
    struct gild_segments_totals before, now;
    CU_ASSERT_EQUAL(recover(rig, &stream, 1, &seen, NULL), 0);
    for (unsigned i = 0; i < TAKEN; i++)
        CU_ASSERT_EQUAL_FATAL(gild_segments_take_now(rig->segments, false, &taken[i]), 0);
    gild_segments_get_totals(rig->segments, &before);
    for (unsigned i = 0; i < EMPTIED; i++) {
        forget(rig, taken[i]->serial);
        CU_ASSERT_EQUAL(gild_segments_recycle(rig->segments, taken[i]), 0);
    }
    gild_segments_quiet(rig->segments);
    gild_segments_get_totals(rig->segments, &now);
    CU_ASSERT_EQUAL(now.bytes, before.bytes);
    gild_segments_release(rig->segments, 1);
    gild_segments_get_totals(rig->segments, &now);
    CU_ASSERT_EQUAL(now.bytes, before.bytes - before.segment_bytes);
    gild_segments_release(rig->segments, UINT64_MAX);
    gild_segments_get_totals(rig->segments, &now);
    CU_ASSERT_TRUE(now.bytes <= before.bytes - 2 * before.segment_bytes);
    gild_segments_get_totals(rig->segments, &before);
    for (unsigned i = EMPTIED; i < TAKEN; i++) { /* not those of a log that has become small */
        forget(rig, taken[i]->serial);
        CU_ASSERT_EQUAL(gild_segments_recycle(rig->segments, taken[i]), 0);
    }
    gild_segments_quiet(rig->segments);
    gild_segments_get_totals(rig->segments, &now);
    CU_ASSERT_TRUE(now.bytes <= before.bytes / 2);
    gild_segments_destroy(rig->segments);
    rig_remove(rig);
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("log", NULL, NULL);
    CU_add_test(suite, "a lone sync is one dsync write", test_a_lone_sync_is_one_dsync_write);
    CU_add_test(suite, "a habit of lone syncs is met ahead",
                test_a_habit_of_lone_syncs_is_met_ahead);
    CU_add_test(suite, "syncs that come together share a flush",
                test_syncs_that_come_together_share_a_flush);
    CU_add_test(suite, "an aged batch is written", test_an_aged_batch_is_written);
    CU_add_test(suite, "D5: a failed write kills the log", test_a_failed_write_kills_the_log);
    CU_add_test(suite, "D5: a failed flush kills the log", test_a_failed_flush_kills_the_log);
    CU_add_test(suite, "back-pressure, and pins that hold", test_back_pressure_and_pins);
    CU_add_test(suite, "a buffer stays while one before it is unwritten",
                test_a_buffer_stays_while_one_before_it_is_unwritten);
    CU_add_test(suite, "D1: a sync behind unflushed batches flushes",
                test_a_sync_behind_unflushed_batches_flushes);
    CU_add_test(suite, "D1: a write ahead does not count for one before it",
                test_a_write_ahead_does_not_count_for_one_before_it);
    CU_add_test(suite, "D5: a segment whose sync failed is left",
                test_a_segment_whose_sync_failed_is_left);
    CU_add_test(suite, "D10: streams over segments are replayed in order",
                test_two_streams_over_segments_are_replayed_in_order);
    CU_add_test(suite, "a gap above the durable ends the log",
                test_a_gap_above_the_durable_ends_the_log);
    CU_add_test(suite, "rot below the durable is refused", test_rot_below_the_durable_is_refused);
    CU_add_test(suite, "an old life is never replayed", test_an_old_life_is_never_replayed);
    CU_add_test(suite, "emptied files are kept for what comes",
                test_emptied_files_are_kept_for_what_comes);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
