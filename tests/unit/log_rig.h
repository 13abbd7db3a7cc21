/* A log, and a second one, on segments of a catalogue of their own in a temporary folder, over
 * log_device.h; and calls of it on its loop's thread, for tests. */
#ifndef GILD_TEST_LOG_RIG_H
#define GILD_TEST_LOG_RIG_H

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "log/log.h"
#include "log_device.h"
#include "loop_rig.h"

extern const uint8_t store_id[16];

struct rig {
    char directory[64], log_path[80];
    struct gild_catalog *catalog;
    struct gild_segments *segments;
    struct device device;
    struct loop_rig loop;
    struct gild_log *log, *second; /* streams 1 and 2 */
    _Atomic uint64_t room_bytes;   /* that may be taken from the host; much */
};

struct step {
    struct rig *rig;
    struct gild_log *log;
    struct gild_log_waiter waiter;
    sem_t told;
    bool data, ready;
    uint64_t delta, block, place, count;
    int result;
    void *pin;
    const void *bytes;
};

void open_segments(struct rig *rig, unsigned ready, unsigned reserve);
void start_loop(struct rig *rig);
struct gild_log *make_log(struct rig *rig, uint64_t stream, unsigned buffers);
void run_loop(struct rig *rig);
struct rig *rig_make(unsigned buffers, unsigned ready, unsigned reserve);
void rig_stop(struct rig *rig);
void rig_remove(struct rig *rig);
void rig_end(struct rig *rig);
void fill(void *slot, uint64_t delta, uint64_t block);
bool filled(const void *slot, uint64_t delta, uint64_t block);
void step_prepare(struct step *step);
void step_wait(struct step *step);
void do_append(void *context);
struct step step_of(struct rig *rig, struct gild_log *log);
/* Waits for room as often as it must; or does not. */
int append(struct step *step);
int try_append(struct step *step);
void append_many(struct step *step, uint64_t count);
void sync_start(struct step *step);
int sync_wait(struct step *step);
bool sync_ended(struct step *step);
int sync_now(struct rig *rig, struct gild_log *log);
void do_peek(void *context);
void do_unpin(void *context);
void do_hold(void *context);
void do_let_go(void *context);
void do_hold_no_more(void *context);
void turns(struct rig *rig);

#endif
