/* Disks on a real store in a temporary folder: random histories of every op against a flat array,
 * over checkpoints, clean reopens and SIGKILL. Seeds are printed; GILD_SEED replays one. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "catalog/records.h"
#include "disk/store.h"
#include "gild/disk.h"
#include "gild/store.h"
#include "map/sealed.h"

#define DISK_BYTES ((uint64_t)5 << 20 | 512 * 3) /* not a multiple of a block */
#define DISKS 3u

static char directory[64];
static uint64_t seed;
static enum gild_loop_backend backend;

/* ---- a store with deltas -----------------------------------------------------------------------
 */

static struct gild_store *open_store(unsigned threads) {
    struct gild_store_options options = {
        .threads = threads, .cache_bytes = (uint64_t)16 << 20, .backend = backend};
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    if (gild_store_open(directory, &options, &store, &error))
        fprintf(stderr, "open: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL_FATAL(store);
    return store;
}

static void make_store(uint64_t size_bytes) {
    struct gild_error error = {0};
    strcpy(directory, "/var/tmp/gild-test-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    CU_ASSERT_EQUAL_FATAL(gild_store_init(directory, size_bytes, &error), 0);
}

static void remove_store(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    CU_ASSERT_EQUAL(system(command), 0);
}

static void make_deltas(struct gild_store *store, uint64_t size_bytes, unsigned count) {
    struct gild_rec_delta *record = calloc(1, sizeof *record);
    struct gild_txn *txn;
    record->size_bytes = size_bytes;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    for (unsigned i = 0; i < count; i++)
        CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, i + 1, record), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_commit(txn), 0);
    free(record);
}

static struct gild_disk *open_delta(struct gild_store *store, uint64_t id) {
    char path[32];
    bool writable;
    struct gild_disk *disk = NULL;
    struct gild_error error = {0};
    snprintf(path, sizeof path, "test/%" PRIu64, id);
    struct gild_disk_spec spec = {.path = path, .delta_id = id};
    if (gild_disk_acquire(store, &spec, "test", GILD_OPEN_WRITE, &disk, &writable, &error))
        fprintf(stderr, "acquire: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL_FATAL(disk);
    CU_ASSERT_TRUE(writable);
    return disk;
}

/* ---- ops, waited for ---------------------------------------------------------------------------
 */

struct call {
    struct gild_op op;
    struct gild_task task;
    sem_t done;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    struct gild_extent extents[64];
    uint8_t *into; /* READ */
};

static void call_done(struct gild_op *op) {
    struct call *call = (struct call *)((char *)op - offsetof(struct call, op));
    size_t at = 0;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        memcpy(call->into + at, op->pieces[i].data, op->pieces[i].bytes);
        at += op->pieces[i].bytes;
    }
    gild_op_release(op);
    sem_post(&call->done);
}

static void call_start(struct call *call, struct gild_disk *disk, enum gild_op_kind kind,
                       uint64_t offset, uint64_t length, const struct iovec *payload,
                       unsigned payload_count, uint32_t flags) {
    memset(&call->op, 0, sizeof call->op);
    call->op.disk = disk;
    call->op.kind = kind;
    call->op.flags = flags;
    call->op.offset_bytes = offset;
    call->op.length_bytes = length;
    call->op.payload = payload;
    call->op.payload_count = payload_count;
    call->op.pieces = call->pieces;
    call->op.piece_limit = GILD_OP_MAX_PIECES;
    call->op.extents = call->extents;
    call->op.extent_limit = 64;
    call->op.done = call_done;
    sem_init(&call->done, 0, 0);
    gild_disk_post(&call->op);
}

static int call_wait(struct call *call) {
    while (sem_wait(&call->done) != 0)
        continue;
    sem_destroy(&call->done);
    return call->op.error;
}

static int run(struct call *call, struct gild_disk *disk, enum gild_op_kind kind, uint64_t offset,
               uint64_t length, void *data, uint32_t flags) {
    struct iovec payload = {data, length};
    call->into = data;
    call_start(call, disk, kind, offset, length, &payload, 1, flags);
    return call_wait(call);
}

/* ---- random histories --------------------------------------------------------------------------
 */

struct model {
    uint8_t *bytes[DISKS];
};

static void fill_random(struct gild_prng *prng, uint8_t *bytes, size_t length) {
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = gild_prng_next(prng);
        memcpy(bytes + i, &word, length - i < 8 ? length - i : 8);
    }
}

static void pick_range(struct gild_prng *prng, uint64_t *offset, uint64_t *length) {
    uint64_t sectors = DISK_BYTES / 512;
    uint64_t most = gild_prng_below(prng, 8) == 0 ? 2048 : 40;
    *offset = gild_prng_below(prng, sectors);
    *length = 1 + gild_prng_below(prng, most);
    if (gild_prng_below(prng, 2)) { /* aligned */
        *offset &= ~(uint64_t)7;
        *length = (*length + 7) & ~(uint64_t)7;
    }
    if (*offset + *length > sectors)
        *length = sectors - *offset;
    *offset *= 512;
    *length *= 512;
}

static void step(struct gild_prng *prng, struct gild_disk **disks, struct model *model,
                 struct call *call, uint8_t *buffer) {
    unsigned which = (unsigned)gild_prng_below(prng, DISKS);
    struct gild_disk *disk = disks[which];
    uint8_t *truth = model->bytes[which];
    uint64_t offset, length;
    uint32_t fua = gild_prng_below(prng, 16) == 0 ? GILD_OP_FUA : 0;
    pick_range(prng, &offset, &length);
    switch (gild_prng_below(prng, 10)) {
    case 0:
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_FLUSH, 0, 0, NULL, 0), 0);
        break;
    case 1:
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_TRIM, offset, length, NULL, fua), 0);
        memset(truth + offset, 0, length);
        break;
    case 2:
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_ZERO, offset, length, NULL,
                            fua | (gild_prng_below(prng, 2) ? GILD_OP_NO_HOLE : 0)),
                        0);
        memset(truth + offset, 0, length);
        break;
    case 3:
    case 4:
    case 5:
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_READ, offset, length, buffer, 0), 0);
        CU_ASSERT_EQUAL(memcmp(buffer, truth + offset, length), 0);
        break;
    default:
        fill_random(prng, buffer, length);
        memcpy(truth + offset, buffer, length);
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_WRITE, offset, length, buffer, fua), 0);
        break;
    }
}

static void verify(struct gild_disk **disks, const struct model *model, struct call *call,
                   uint8_t *buffer) {
    for (unsigned i = 0; i < DISKS; i++)
        for (uint64_t at = 0; at < DISK_BYTES; at += GILD_OP_MAX_BYTES) {
            uint64_t length =
                DISK_BYTES - at < GILD_OP_MAX_BYTES ? DISK_BYTES - at : GILD_OP_MAX_BYTES;
            CU_ASSERT_EQUAL(run(call, disks[i], GILD_OP_READ, at, length, buffer, 0), 0);
            CU_ASSERT_EQUAL(memcmp(buffer, model->bytes[i] + at, length), 0);
        }
}

static void print_finding(void *context, const struct gild_finding *finding) {
    (void)context;
    fprintf(stderr, "check: %s\n", finding->message);
}

static void check_clean(struct gild_store *store) {
    struct gild_check_result result;
    struct gild_error error = {0};
    int err = gild_store_check(store, print_finding, NULL, &result, &error);
    if (err)
        fprintf(stderr, "check: %d %s\n", err, error.message);
    CU_ASSERT_EQUAL(err, 0);
    CU_ASSERT_EQUAL(result.findings, 0);
}

static void open_disks(struct gild_store *store, struct gild_disk **disks) {
    for (unsigned i = 0; i < DISKS; i++)
        disks[i] = open_delta(store, i + 1);
}

static void close_disks(struct gild_disk **disks) {
    for (unsigned i = 0; i < DISKS; i++)
        gild_disk_close(disks[i], "test", true);
}

static void test_reads_return_what_was_written(void) {
    struct gild_prng prng;
    struct model model;
    struct gild_disk *disks[DISKS];
    struct call *call = calloc(1, sizeof *call);
    uint8_t *buffer = malloc(GILD_OP_MAX_BYTES);
    struct gild_error error = {0};
    gild_prng_seed(&prng, seed);
    make_store(0);
    for (unsigned i = 0; i < DISKS; i++)
        model.bytes[i] = calloc(1, DISK_BYTES);
    struct gild_store *store = open_store(2);
    make_deltas(store, DISK_BYTES, DISKS);
    open_disks(store, disks);
    for (unsigned round = 0; round < 6; round++) {
        for (unsigned i = 0; i < 400; i++) {
            step(&prng, disks, &model, call, buffer);
            if (gild_prng_below(&prng, 100) == 0)
                CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
        }
        verify(disks, &model, call, buffer);
        check_clean(store);
        close_disks(disks);
        CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
        store = open_store(1 + round % 3);
        open_disks(store, disks);
        verify(disks, &model, call, buffer);
    }
    close_disks(disks);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    for (unsigned i = 0; i < DISKS; i++)
        free(model.bytes[i]);
    free(buffer);
    free(call);
    remove_store();
}

/* ---- SIGKILL -----------------------------------------------------------------------------------
 */

/* A child writes generation numbers over all blocks of a disk at depth 8 and tells each flush
 * through a pipe; it is killed somewhere. Every block must then hold a generation at or above the
 * last flushed. */
#define KILL_BLOCKS 512u
#define KILL_DEPTH 8u

static void stamp(uint8_t *bytes, uint64_t block, uint64_t generation) {
    for (unsigned i = 0; i < 4096; i += 16) {
        memcpy(bytes + i, &block, 8);
        memcpy(bytes + i + 8, &generation, 8);
    }
}

static bool stamped(const uint8_t *bytes, uint64_t block, uint64_t *generation) {
    memcpy(generation, bytes + 8, 8);
    if (*generation == 0) {
        for (unsigned i = 0; i < 4096; i++)
            if (bytes[i])
                return false;
        return true;
    }
    uint8_t expected[4096];
    stamp(expected, block, *generation);
    return memcmp(bytes, expected, 4096) == 0;
}

static void child_writes(int pipe_fd, uint64_t child_seed) {
    struct gild_prng prng;
    struct call *calls = calloc(KILL_DEPTH, sizeof *calls);
    uint8_t(*buffers)[4096] = malloc(KILL_DEPTH * sizeof *buffers);
    struct iovec vectors[KILL_DEPTH];
    struct gild_error error;
    gild_prng_seed(&prng, child_seed);
    struct gild_store *store = open_store(1);
    struct gild_disk *disk = open_delta(store, 1);
    for (uint64_t generation = child_seed << 32 | 1;; generation++) {
        for (uint64_t block = 0; block < KILL_BLOCKS; block += KILL_DEPTH) {
            for (unsigned i = 0; i < KILL_DEPTH; i++) {
                stamp(buffers[i], block + i, generation);
                vectors[i] = (struct iovec){buffers[i], 4096};
                call_start(&calls[i], disk, GILD_OP_WRITE, (block + i) * 4096, 4096, &vectors[i], 1,
                           0);
            }
            for (unsigned i = 0; i < KILL_DEPTH; i++)
                if (call_wait(&calls[i]))
                    _exit(3);
        }
        if (gild_prng_below(&prng, 5) == 0)
            gild_store_checkpoint(store, &error);
        if (run(&calls[0], disk, GILD_OP_FLUSH, 0, 0, NULL, 0))
            _exit(4);
        if (write(pipe_fd, &generation, 8) != 8)
            _exit(5);
    }
}

static void test_flushed_writes_survive_sigkill(void) {
    struct gild_prng prng;
    uint8_t *buffer = malloc(4096);
    struct call *call = calloc(1, sizeof *call);
    struct gild_error error = {0};
    gild_prng_seed(&prng, seed ^ 99);
    make_store(0);
    struct gild_store *store = open_store(1);
    make_deltas(store, KILL_BLOCKS * 4096, 1);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    uint64_t flushed = 0, rounds = 0;
    for (unsigned kill_round = 1; kill_round <= 12; kill_round++) {
        int ends[2];
        CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
        pid_t child = fork();
        if (child == 0) {
            close(ends[0]);
            child_writes(ends[1], kill_round);
        }
        close(ends[1]);
        /* Killed after some flushes and then somewhere in the next writes. */
        uint64_t wanted = 1 + gild_prng_below(&prng, 20), got = 0, generation;
        while (got < wanted && read(ends[0], &generation, 8) == 8) {
            flushed = generation;
            got++;
        }
        struct timespec moment = {0, (long)gild_prng_below(&prng, 4000000)};
        nanosleep(&moment, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        CU_ASSERT_TRUE(WIFSIGNALED(status));
        while (read(ends[0], &generation, 8) == 8)
            flushed = generation;
        close(ends[0]);
        rounds += got;
        store = open_store(1);
        struct gild_disk *disk = open_delta(store, 1);
        for (uint64_t block = 0; block < KILL_BLOCKS; block++) {
            CU_ASSERT_EQUAL(run(call, disk, GILD_OP_READ, block * 4096, 4096, buffer, 0), 0);
            bool whole = stamped(buffer, block, &generation);
            CU_ASSERT_TRUE(whole);
            CU_ASSERT_TRUE(generation >= flushed);
        }
        check_clean(store);
        gild_disk_close(disk, "test", true);
        CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    }
    CU_ASSERT_TRUE(rounds >= 12);
    free(call);
    free(buffer);
    remove_store();
}

/* ---- smaller promises --------------------------------------------------------------------------
 */

static void test_extents_tell_holes_from_zeroes(void) {
    struct call *call = calloc(1, sizeof *call);
    uint8_t *buffer = calloc(1, 65536);
    struct gild_error error = {0};
    memset(buffer, 7, 65536);
    make_store(0);
    struct gild_store *store = open_store(1);
    make_deltas(store, (uint64_t)1 << 40, 1);
    struct gild_disk *disk = open_delta(store, 1);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_WRITE, 65536, 65536, buffer, 0), 0);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_ZERO, 131072, 65536, NULL, GILD_OP_NO_HOLE), 0);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_EXTENTS, 0, 262144, NULL, 0), 0);
    CU_ASSERT_EQUAL_FATAL(call->op.extent_count, 4);
    CU_ASSERT_EQUAL(call->extents[0].bytes, 65536);
    CU_ASSERT_EQUAL(call->extents[0].flags, GILD_EXTENT_HOLE | GILD_EXTENT_ZERO);
    CU_ASSERT_EQUAL(call->extents[1].bytes, 65536);
    CU_ASSERT_EQUAL(call->extents[1].flags, 0);
    CU_ASSERT_EQUAL(call->extents[2].flags, GILD_EXTENT_ZERO);
    CU_ASSERT_EQUAL(call->extents[3].flags, GILD_EXTENT_HOLE | GILD_EXTENT_ZERO);
    /* A terabyte at once: holes again, and nothing is left of the data. */
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_TRIM, 0, (uint64_t)1 << 40, NULL, GILD_OP_FUA), 0);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_EXTENTS, 0, 1 << 20, NULL, 0), 0);
    CU_ASSERT_EQUAL(call->op.extent_count, 1);
    CU_ASSERT_EQUAL(call->extents[0].flags, GILD_EXTENT_HOLE | GILD_EXTENT_ZERO);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_READ, 65536, 65536, buffer, 0), 0);
    CU_ASSERT_EQUAL(buffer[0] | buffer[65535], 0);
    check_clean(store);
    gild_disk_close(disk, "test", true);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    free(buffer);
    free(call);
    remove_store();
}

static void test_a_second_owner_and_a_second_door_are_refused(void) {
    struct gild_error error = {0};
    struct gild_store *second = NULL;
    struct gild_disk *other = NULL;
    bool writable;
    make_store(0);
    struct gild_store *store = open_store(1);
    CU_ASSERT_EQUAL(gild_store_open(directory, NULL, &second, &error), -EBUSY);
    CU_ASSERT_EQUAL(error.code, GILD_BUSY);
    make_deltas(store, 1 << 20, 1);
    struct gild_disk *disk = open_delta(store, 1);
    struct gild_disk_spec spec = {.path = "test/1", .delta_id = 1};
    CU_ASSERT_EQUAL(gild_disk_acquire(store, &spec, "other", 0, &other, &writable, &error), -EBUSY);
    CU_ASSERT_EQUAL(
        gild_disk_acquire(store, &spec, "test", GILD_OPEN_WRITE, &other, &writable, &error), 0);
    uint64_t id = 1;
    CU_ASSERT_EQUAL(gild_disk_hold(store, &id, NULL, 1, 0), -EBUSY);
    gild_disk_close(disk, "test", true);
    gild_disk_close(other, "test", true);
    CU_ASSERT_EQUAL(gild_disk_hold(store, &id, NULL, 1, 0), 0);
    CU_ASSERT_EQUAL(gild_disk_acquire(store, &spec, "test", 0, &other, &writable, &error), -EBUSY);
    gild_disk_unhold(store, &id, NULL, 1, 0);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    remove_store();
}

/* What a deleted disk held comes back as empty segments. */
static void test_dropped_deltas_free_their_segments(void) {
    struct call *call = calloc(1, sizeof *call);
    uint8_t *buffer = malloc(GILD_OP_MAX_BYTES);
    struct gild_error error = {0};
    struct gild_store_info before, after;
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    fill_random(&prng, buffer, GILD_OP_MAX_BYTES);
    make_store(0);
    struct gild_store *store = open_store(1);
    make_deltas(store, (uint64_t)1 << 30, 1);
    struct gild_disk *disk = open_delta(store, 1);
    for (uint64_t at = 0; at < (uint64_t)700 << 20; at += GILD_OP_MAX_BYTES)
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_WRITE, at, GILD_OP_MAX_BYTES, buffer, 0), 0);
    gild_disk_close(disk, "test", true);
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    CU_ASSERT_EQUAL(gild_store_get_info(store, &before, &error), 0);
    CU_ASSERT_TRUE(before.log_bytes > (uint64_t)700 << 20);
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct gild_txn *txn;
    CU_ASSERT_EQUAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, record), 0);
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DROPPED, 1, record), 0);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, 1), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_store_collect(store);
    for (unsigned i = 0; i < 3; i++) /* collecting is done within the checkpoints it asked for */
        CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    CU_ASSERT_EQUAL(gild_store_get_info(store, &after, &error), 0);
    CU_ASSERT_TRUE(after.log_bytes < (uint64_t)600 << 20);
    check_clean(store);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    free(record);
    free(buffer);
    free(call);
    remove_store();
}

/* Writes 32 MiB, each 64 KiB flushed, and ends without a close: how much of the log does the next
 * start read? */
static uint64_t unsettled_after(uint64_t checkpoint_log_bytes) {
    struct gild_store_options options = {.threads = 1,
                                         .checkpoint_log_bytes = checkpoint_log_bytes};
    struct gild_store *store = NULL;
    struct gild_store_info info;
    struct gild_error error = {0};
    int status;
    make_store(0);
    store = open_store(1);
    make_deltas(store, (uint64_t)32 << 20, 1);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    pid_t child = fork();
    if (child == 0) {
        struct call *call = calloc(1, sizeof *call);
        uint8_t *buffer = memset(malloc(65536), 7, 65536);
        if (gild_store_open(directory, &options, &store, &error))
            _exit(1);
        struct gild_disk *disk = open_delta(store, 1);
        for (uint64_t at = 0; at < (uint64_t)32 << 20; at += 65536)
            if (run(call, disk, GILD_OP_WRITE, at, 65536, buffer, GILD_OP_FUA))
                _exit(2);
        _exit(0);
    }
    waitpid(child, &status, 0);
    CU_ASSERT_EQUAL_FATAL(status, 0);
    store = open_store(1);
    CU_ASSERT_EQUAL(gild_store_get_info(store, &info, &error), 0);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    remove_store();
    return info.recovered_bytes;
}

static void test_an_option_bounds_the_unsettled_log(void) {
    CU_ASSERT_TRUE(unsettled_after((uint64_t)1 << 40) >= (uint64_t)32 << 20);
    CU_ASSERT_TRUE(unsettled_after((uint64_t)1 << 18) < (uint64_t)32 << 20);
}

/* What the cleaner can not make room for. */
static void noise(uint64_t at, uint8_t *buffer) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + at);
    gild_prng_fill(&prng, buffer, GILD_OP_MAX_BYTES);
}

/* A full store refuses writes with ENOSPC, keeps what it acknowledged, and goes on after space is
 * made. */
static void test_a_full_store_refuses_and_keeps(void) {
    struct call *call = calloc(1, sizeof *call);
    uint8_t *buffer = malloc(GILD_OP_MAX_BYTES), *back = malloc(GILD_OP_MAX_BYTES);
    struct gild_error error = {0};
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    make_store((uint64_t)1 << 30);
    struct gild_store *store = open_store(1);
    make_deltas(store, (uint64_t)2 << 30, 1);
    struct gild_disk *disk = open_delta(store, 1);
    uint64_t acknowledged = 0;
    int err = 0;
    while (!err && acknowledged < (uint64_t)2 << 30) {
        noise(acknowledged, buffer);
        err = run(call, disk, GILD_OP_WRITE, acknowledged, GILD_OP_MAX_BYTES, buffer, 0);
        acknowledged += err ? 0 : GILD_OP_MAX_BYTES;
    }
    CU_ASSERT_EQUAL(err, -ENOSPC);
    CU_ASSERT_TRUE(acknowledged > (uint64_t)500 << 20);
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_FLUSH, 0, 0, NULL, 0), 0);
    for (uint64_t at = 0; at < acknowledged; at += (uint64_t)16 << 20) {
        noise(at, buffer);
        CU_ASSERT_EQUAL(run(call, disk, GILD_OP_READ, at, GILD_OP_MAX_BYTES, back, 0), 0);
        CU_ASSERT_EQUAL(memcmp(buffer, back, GILD_OP_MAX_BYTES), 0);
    }
    /* Trims work on the full store, and what they free is there for the next write. */
    CU_ASSERT_EQUAL(run(call, disk, GILD_OP_TRIM, 0, (uint64_t)512 << 20, NULL, GILD_OP_FUA), 0);
    err = run(call, disk, GILD_OP_WRITE, 0, GILD_OP_MAX_BYTES, buffer, GILD_OP_FUA);
    CU_ASSERT_EQUAL(err, 0);
    struct gild_store_info info;
    CU_ASSERT_EQUAL(gild_store_get_info(store, &info, &error), 0);
    CU_ASSERT_EQUAL(info.used_bytes + info.free_bytes, info.capacity_bytes);
    CU_ASSERT_TRUE(info.capacity_bytes <= (uint64_t)1 << 30);
    gild_disk_close(disk, "test", true);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    store = open_store(1);
    check_clean(store);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    free(back);
    free(buffer);
    free(call);
    remove_store();
}

/* An empty catalogue where there was one must not make orphans of everything. */
static void test_a_lost_catalogue_is_refused(void) {
    struct gild_error error = {0};
    struct gild_store *store = NULL;
    make_store(0);
    store = open_store(1);
    char path[128];
    struct stat st;
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    snprintf(path, sizeof path, "%s/catalogue/data.mdb", directory);
    CU_ASSERT_EQUAL(unlink(path), 0);
    CU_ASSERT_EQUAL(gild_store_open(directory, NULL, &store, &error), -EBADMSG);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    CU_ASSERT_NOT_EQUAL(stat(path, &st), 0);
    remove_store();
}

static void test_each_byte_of_the_superblock_is_checked(void) {
    struct gild_error error = {0};
    struct gild_store *store = NULL;
    char path[128];
    make_store(0);
    snprintf(path, sizeof path, "%s/superblock", directory);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    for (off_t at = 0; at < 4096; at += at < 128 ? 1 : 331) {
        uint8_t was, is;
        CU_ASSERT_EQUAL(pread(fd, &was, 1, at), 1);
        is = was ^ 0x10;
        CU_ASSERT_EQUAL(pwrite(fd, &is, 1, at), 1);
        CU_ASSERT_NOT_EQUAL(gild_store_open(directory, NULL, &store, &error), 0);
        CU_ASSERT_EQUAL(pwrite(fd, &was, 1, at), 1);
    }
    close(fd);
    CU_ASSERT_EQUAL_FATAL(gild_store_open(directory, NULL, &store, &error), 0);
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    remove_store();
}

static void test_on_threads(void) {
    backend = GILD_LOOP_THREADS;
    test_reads_return_what_was_written();
    backend = GILD_LOOP_AUTO;
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 "\n", seed);
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("disk", NULL, NULL);
    CU_add_test(suite, "D2: reads return what was written, over checkpoints and reopens",
                test_reads_return_what_was_written);
    CU_add_test(suite, "the same on the thread-pool backend", test_on_threads);
    CU_add_test(suite, "D1: flushed writes survive SIGKILL", test_flushed_writes_survive_sigkill);
    CU_add_test(suite, "extents tell holes from zeroes", test_extents_tell_holes_from_zeroes);
    CU_add_test(suite, "D6: a second owner, and a second door, are refused",
                test_a_second_owner_and_a_second_door_are_refused);
    CU_add_test(suite, "D4: what a deleted disk held is freed",
                test_dropped_deltas_free_their_segments);
    CU_add_test(suite, "an option bounds what a start after a crash reads",
                test_an_option_bounds_the_unsettled_log);
    CU_add_test(suite, "D6: a lost catalogue is refused", test_a_lost_catalogue_is_refused);
    CU_add_test(suite, "D6: each byte of the superblock is checked",
                test_each_byte_of_the_superblock_is_checked);
    CU_add_test(suite, "D7: a full store refuses and keeps", test_a_full_store_refuses_and_keeps);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
