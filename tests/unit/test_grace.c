/* What is freed, and what is changed, while a read is still in flight: the device of these tests
 * keeps back what a reactor reads until it is let go, so that the rare order of things is the only
 * one. One reactor, one disk on a real store in a temporary folder. */
#include <CUnit/Basic.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk/internal.h"
#include "loop_rig.h"
#include "store_rig.h"

#define DISK_BYTES ((uint64_t)2 << 30)
#define DIR_BYTES (GILD_DIR_BLOCKS * GILD_BLOCK_BYTES)
#define LEAF_BYTES ((uint64_t)GILD_LEAF_BLOCKS * GILD_BLOCK_BYTES)
#define BLOCKS 64u /* written at the disk's front; all in one leaf */
#define MOST_HELD 8u
#define MOST_RECYCLED 64u

/* ---- a device that keeps reads back ---------------------------------------------------------- */

struct held {
    struct gild_loop *loop;
    struct gild_io *io;
    int fd;
    struct iovec one;
    struct iovec *vectors;
    unsigned count;
    uint64_t offset;
};

static atomic_bool holding;
static sem_t came;                    /* one for each read that is kept back */
static struct held held[MOST_HELD];   /* the reactor's */
static _Atomic unsigned first, ended; /* of `held`: those that are kept back */

void __real_gild_io_read(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer,
                         size_t length, uint64_t offset);
void __wrap_gild_io_read(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer,
                         size_t length, uint64_t offset);
void __real_gild_io_readv(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                          unsigned count, uint64_t offset);
void __wrap_gild_io_readv(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                          unsigned count, uint64_t offset);

void __wrap_gild_io_readv(struct gild_loop *loop, struct gild_io *io, int fd, struct iovec *vectors,
                          unsigned count, uint64_t offset) {
    if (!holding || ended == MOST_HELD) {
        __real_gild_io_readv(loop, io, fd, vectors, count, offset);
        return;
    }
    held[ended++] = (struct held){
        .loop = loop, .io = io, .fd = fd, .vectors = vectors, .count = count, .offset = offset};
    sem_post(&came);
}

void __wrap_gild_io_read(struct gild_loop *loop, struct gild_io *io, int fd, void *buffer,
                         size_t length, uint64_t offset) {
    if (!holding || ended == MOST_HELD) {
        __real_gild_io_read(loop, io, fd, buffer, length, offset);
        return;
    }
    held[ended++] =
        (struct held){.loop = loop, .io = io, .fd = fd, .one = {buffer, length}, .offset = offset};
    sem_post(&came);
}

static void do_let_go(void *context) {
    (void)context;
    if (first == ended)
        return;
    const struct held *h = &held[first++];
    if (h->vectors)
        __real_gild_io_readv(h->loop, h->io, h->fd, h->vectors, h->count, h->offset);
    else
        __real_gild_io_read(h->loop, h->io, h->fd, h->one.iov_base, h->one.iov_len, h->offset);
}

static void hold(void) {
    first = ended = 0;
    holding = true;
}

static void wait_held(void) {
    while (sem_wait(&came) != 0)
        continue;
}

static struct loop_rig reactor; /* its loop only */

static void let_go(void) {
    loop_rig_call(&reactor, do_let_go, NULL);
}

static void do_nothing(void *context) {
    (void)context;
}

/* What was posted before has been looked at. */
static void turn(void) {
    loop_rig_call(&reactor, do_nothing, NULL);
}

/* ---- the keeper, watched --------------------------------------------------------------------- */

void __real_keeper_pass(struct gild_store *store);
void __wrap_keeper_pass(struct gild_store *store);
int __real_gild_segments_recycle(struct gild_segments *segments, struct gild_segment *segment);
int __wrap_gild_segments_recycle(struct gild_segments *segments, struct gild_segment *segment);

static struct {
    _Atomic unsigned recycled, twice;
    _Atomic unsigned under_a_read;
    /* The keeper's: those since readers last passed. */
    struct gild_segment *segment[MOST_RECYCLED];
    unsigned count;
} seen;

/* Readers that are kept back can pass only if they are let go. */
void __wrap_keeper_pass(struct gild_store *store) {
    seen.count = 0;
    while (first != ended)
        let_go();
    __real_keeper_pass(store);
}

int __wrap_gild_segments_recycle(struct gild_segments *segments, struct gild_segment *segment) {
    seen.recycled++;
    seen.under_a_read += first != ended;
    for (unsigned i = 0; i < seen.count; i++)
        if (seen.segment[i] == segment) {
            seen.twice++;
            return 0; /* it is gone */
        }
    if (seen.count < MOST_RECYCLED)
        seen.segment[seen.count++] = segment;
    return __real_gild_segments_recycle(segments, segment);
}

static void forget_what_was_seen(void) {
    seen.recycled = seen.twice = seen.under_a_read = 0;
}

/* ---- the store ------------------------------------------------------------------------------- */

static char directory[64];
static struct gild_store *store;
static struct gild_disk *disk;

static void checkpoint(void) {
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
}

/* The keeper has done what an open asks it for. */
static void open_store(void) {
    const struct gild_store_options options = {
        .threads = 1, .cache_bytes = (uint64_t)16 << 20, .segment_blocks = 256, .no_cleaner = true};
    struct gild_error error = {0};
    int err = gild_store_open(directory, &options, &store, &error);
    if (err)
        fprintf(stderr, "open: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(err, 0);
    reactor.loop = gild_store_reactor(store, 0);
    checkpoint();
}

static void close_store(void) {
    struct store_rig_findings findings = {0};
    holding = false;
    store_rig_release(disk);
    CU_ASSERT_EQUAL(store_rig_check(store, &findings), 0);
    store_rig_close(store);
}

static void stamp(uint8_t *bytes, uint64_t offset, uint64_t length) {
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t word = (offset + at) * 0x9e3779b97f4a7c15u + 1;
        memcpy(bytes + at, &word, 8);
    }
}

static void write_stamped(uint64_t offset, uint64_t length) {
    uint8_t *bytes = malloc(length);
    stamp(bytes, offset, length);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, offset, length, bytes, GILD_OP_FUA), 0);
    free(bytes);
}

static bool is_stamped(const uint8_t *bytes, uint64_t offset, uint64_t length) {
    uint8_t *expected = malloc(length);
    stamp(expected, offset, length);
    bool same = memcmp(bytes, expected, length) == 0;
    free(expected);
    return same;
}

static bool reads_stamped(uint64_t offset, uint64_t length) {
    uint8_t *bytes = calloc(1, length);
    int err = store_rig_do(disk, GILD_OP_READ, offset, length, bytes, 0);
    bool same = err == 0 && is_stamped(bytes, offset, length);
    free(bytes);
    return same;
}

/* The disk's first blocks lie in a segment of an earlier start, none of them in memory, but the map
 * nodes that lead there are. */
static void begin(void) {
    sem_init(&came, 0, 0);
    first = ended = 0;
    holding = false;
    store_rig_make(directory, 0);
    open_store();
    store_rig_deltas(store, DISK_BYTES, 1, 1);
    disk = store_rig_disk(store, 1);
    write_stamped(0, (uint64_t)BLOCKS * GILD_BLOCK_BYTES);
    store_rig_release(disk);
    store_rig_close(store);
    open_store();
    disk = store_rig_disk(store, 1);
    CU_ASSERT_TRUE(reads_stamped((uint64_t)(BLOCKS - 1) * GILD_BLOCK_BYTES, GILD_BLOCK_BYTES));
    forget_what_was_seen();
}

static void end(void) {
    close_store();
    sem_destroy(&came);
    store_rig_remove(directory);
}

/* ---- freeing under a read (D4) --------------------------------------------------------------- */

static void a_segment_stays_while_a_read_is_in_it(void) {
    struct store_rig_op *read = calloc(1, sizeof *read);
    uint64_t length = (uint64_t)16 * GILD_BLOCK_BYTES;
    uint8_t *bytes = calloc(1, length);
    begin();
    hold();
    store_rig_start(read, disk, GILD_OP_READ, 0, length, bytes, 0);
    wait_held();
    /* Nothing reaches the segment any more, but for the read. */
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 0, DISK_BYTES, NULL, GILD_OP_FUA), 0);
    checkpoint();
    CU_ASSERT_TRUE(seen.recycled > 0);
    CU_ASSERT_EQUAL(seen.under_a_read, 0);
    while (first != ended) /* if nobody has waited for it */
        let_go();
    CU_ASSERT_EQUAL(store_rig_wait(read), 0);
    CU_ASSERT_TRUE(is_stamped(bytes, 0, length)); /* what was there when it began */
    end();
    free(bytes);
    free(read);
}

struct pass {
    struct keeper_call call;
    pthread_mutex_t lock;
    pthread_cond_t answered;
    unsigned outstanding;
};

static bool answered(struct pass *pass) {
    pthread_mutex_lock(&pass->lock);
    bool is = pass->outstanding == 0;
    pthread_mutex_unlock(&pass->lock);
    return is;
}

/* Asked whether readers have passed, a reactor answers once those have that were there; others that
 * come meanwhile do not put it off. */
static void readers_pass_when_those_before_are_done(void) {
    struct store_rig_op *before = calloc(1, sizeof *before), *after = calloc(1, sizeof *after);
    uint8_t bytes[2][GILD_BLOCK_BYTES];
    struct pass pass = {
        .lock = PTHREAD_MUTEX_INITIALIZER, .answered = PTHREAD_COND_INITIALIZER, .outstanding = 1};
    begin();
    pass.call = (struct keeper_call){
        .task.run = reactor_call,
        .reactor = &store->reactors[0],
        .kind = CALL_PASS,
        .lock = &pass.lock,
        .answered = &pass.answered,
        .outstanding = &pass.outstanding,
    };
    hold();
    store_rig_start(before, disk, GILD_OP_READ, 0, GILD_BLOCK_BYTES, bytes[0], 0);
    wait_held();
    gild_loop_post(reactor.loop, &pass.call.task);
    turn();
    CU_ASSERT_FALSE(answered(&pass));
    store_rig_start(after, disk, GILD_OP_READ, (uint64_t)8 * GILD_BLOCK_BYTES, GILD_BLOCK_BYTES,
                    bytes[1], 0);
    wait_held();
    CU_ASSERT_FALSE(answered(&pass));
    let_go();
    CU_ASSERT_EQUAL(store_rig_wait(before), 0);
    CU_ASSERT_TRUE(answered(&pass));
    let_go();
    CU_ASSERT_EQUAL(store_rig_wait(after), 0);
    CU_ASSERT_TRUE(is_stamped(bytes[0], 0, GILD_BLOCK_BYTES));
    end();
    pthread_cond_destroy(&pass.answered);
    pthread_mutex_destroy(&pass.lock);
    free(before);
    free(after);
}

/* What checkpoints find empty while a check runs is freed once, after it. */
static void what_waits_for_a_check_is_freed_once(void) {
    begin();
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, 0, DISK_BYTES, NULL, GILD_OP_FUA), 0);
    atomic_fetch_add(&store->checks, 1); /* as a check does */
    for (unsigned i = 0; i < 3; i++)
        checkpoint();
    CU_ASSERT_EQUAL(seen.recycled, 0);
    atomic_fetch_sub(&store->checks, 1);
    checkpoint();
    CU_ASSERT_TRUE(seen.recycled > 0);
    CU_ASSERT_EQUAL(seen.twice, 0);
    end();
}

/* ---- changing under a read ------------------------------------------------------------------- */

/* D2: a part of a block is written, which needs the rest of it; a trim of the block that comes
 * meanwhile does not give way to that rest. */
static void a_trim_waits_for_a_write_of_a_part(void) {
    struct store_rig_op *write = calloc(1, sizeof *write), *trim = calloc(1, sizeof *trim);
    uint64_t block = (uint64_t)3 * GILD_BLOCK_BYTES;
    uint8_t *bytes = calloc(1, GILD_BLOCK_BYTES), sector[GILD_SECTOR_BYTES];
    static const uint8_t zeroes[GILD_BLOCK_BYTES];
    memset(sector, 0xee, sizeof sector);
    begin();
    hold();
    store_rig_start(write, disk, GILD_OP_WRITE, block + sizeof sector, sizeof sector, sector, 0);
    wait_held();
    store_rig_start(trim, disk, GILD_OP_TRIM, block, GILD_BLOCK_BYTES, NULL, 0);
    turn();
    let_go();
    CU_ASSERT_EQUAL(store_rig_wait(write), 0);
    CU_ASSERT_EQUAL(store_rig_wait(trim), 0);
    holding = false;
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, block, GILD_BLOCK_BYTES, bytes, 0), 0);
    /* The sector is the one's or the other's; around it nobody wrote but the trim. */
    CU_ASSERT_EQUAL(memcmp(bytes, zeroes, sizeof sector), 0);
    CU_ASSERT_EQUAL(memcmp(bytes + 2 * sizeof sector, zeroes, GILD_BLOCK_BYTES - 2 * sizeof sector),
                    0);
    end();
    free(bytes);
    free(write);
    free(trim);
}

/* A write has its directory in memory, and waits for its leaf: just then a checkpoint is made, and
 * after it the process ends. */
static void child_ends_behind_a_checkpoint(void) {
    struct store_rig_op *write = calloc(1, sizeof *write);
    uint8_t *bytes = calloc(1, GILD_BLOCK_BYTES);
    open_store();
    disk = store_rig_disk(store, 1);
    write_stamped(LEAF_BYTES, GILD_BLOCK_BYTES); /* something for the checkpoint to write */
    hold();
    store_rig_start(write, disk, GILD_OP_WRITE, DIR_BYTES + GILD_BLOCK_BYTES, GILD_BLOCK_BYTES,
                    bytes, 0);
    wait_held();
    let_go(); /* the directory */
    wait_held();
    checkpoint();
    _exit(CU_get_number_of_failures() ? 1 : 0);
}

/* D10: a directory that is in memory as it is on disk stays what the root names. */
static void a_checkpoint_keeps_a_clean_directory(void) {
    int status = -1;
    begin();
    write_stamped(DIR_BYTES, GILD_BLOCK_BYTES);
    write_stamped(DIR_BYTES + 2 * LEAF_BYTES, GILD_BLOCK_BYTES);
    close_store();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        child_ends_behind_a_checkpoint();
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT_EQUAL(status, 0);
    open_store();
    disk = store_rig_disk(store, 1);
    CU_ASSERT_TRUE(reads_stamped(0, (uint64_t)BLOCKS * GILD_BLOCK_BYTES));
    CU_ASSERT_TRUE(reads_stamped(LEAF_BYTES, GILD_BLOCK_BYTES));
    CU_ASSERT_TRUE(reads_stamped(DIR_BYTES, GILD_BLOCK_BYTES));
    CU_ASSERT_TRUE(reads_stamped(DIR_BYTES + 2 * LEAF_BYTES, GILD_BLOCK_BYTES));
    end();
}

int main(void) {
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("grace", NULL, NULL);
    CU_add_test(suite, "D4: a segment stays while a read is in it",
                a_segment_stays_while_a_read_is_in_it);
    CU_add_test(suite, "D4: readers pass when those before are done",
                readers_pass_when_those_before_are_done);
    CU_add_test(suite, "D4: what waits for a check is freed once",
                what_waits_for_a_check_is_freed_once);
    CU_add_test(suite, "D2: a trim waits for a write of a part",
                a_trim_waits_for_a_write_of_a_part);
    CU_add_test(suite, "D10: a checkpoint keeps a clean directory",
                a_checkpoint_keeps_a_clean_directory);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
