/* See machine.h. Ops are sent by the machine's first thread and end on the store's reactors; the
 * schedule runs one thread at a time, so what they share is not locked. */
#include "machine.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/queue.h"
#include "catalog/records.h"
#include "disk/store.h"
#include "gild/disk.h"
#include "gild/store.h"
#include "oracle.h"
#include "sim_kv.h"
#include "sim_threads.h"

#define DIRECTORY "/store"
#define SECTORS 5120u /* 2.5 MiB a disk: two leaves of its map */
#define MOST_SLOTS 24u
#define MOST_SECTORS 96u /* of one op that carries data */

struct slot {
    struct gild_op op;
    struct iovec payload;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    enum machine_op kind;
    bool busy;
    uint32_t disk, first, count, generation;
    uint64_t moment;
    uint8_t bytes[MOST_SECTORS * ORACLE_SECTOR];
};

static struct {
    struct gild_store *store;
    struct gild_disk *disks[MACHINE_DISKS];
    struct oracle oracles[MACHINE_DISKS];
    struct slot slots[MOST_SLOTS];
    struct machine_counts *counts;
    uint64_t seed, moment;
    unsigned busy;
    bool errors;
} machine;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "seed %" PRIu64 ", at %" PRIu64 " ns, point %" PRIu64 ": %s: %s\n",
            machine.seed, sim_now_ns(), sim_disk_points(), what, why);
    _exit(1);
}

/* ---- counts ---------------------------------------------------------------------------------- */

void machine_stay_together(unsigned job) {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) || !CPU_COUNT(&all))
        return;
    job %= (unsigned)CPU_COUNT(&all);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all) && job-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(i, &one);
            sched_setaffinity(0, sizeof one, &one); /* only speed is lost without */
        }
}

struct machine_counts *machine_counts_make(void) {
    void *memory = mmap(NULL, sizeof(struct machine_counts), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    return memory;
}

void machine_counts_print(const struct machine_counts *counts) {
    static const char *const ops[] = {"write", "write FUA", "flush",      "trim",
                                      "zero",  "read",      "checkpoint", "reopen"};
    static const char *const cuts[] = {"all kept", "all dropped", "some kept", "torn", "garbled"};
    for (unsigned i = 0; i < MACHINE_OPS; i++)
        printf("  %-12s %10" PRIu64 "\n", ops[i], counts->ops[i]);
    for (unsigned i = 0; i <= SIM_GARBLE; i++)
        printf("  cut, %-12s %5" PRIu64 "\n", cuts[i], counts->cuts[i]);
    printf("  faults fired: %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " syncs\n",
           counts->faults[SIM_CALL_READ], counts->faults[SIM_CALL_WRITE],
           counts->faults[SIM_CALL_SYNC]);
    printf("  %" PRIu64 " times powered on, %" PRIu64 " power cuts, %" PRIu64
           " distinct durable images\n",
           counts->lives, counts->states, counts->distinct);
}

/* ---- power ----------------------------------------------------------------------------------- */

static void make_deltas(void) {
    struct gild_rec_delta *record = calloc(1, sizeof *record);
    struct gild_txn *txn;
    if (!record || gild_txn_begin(gild_store_catalog(machine.store), true, &txn))
        fail("making disks", "no memory");
    record->size_bytes = (uint64_t)SECTORS * ORACLE_SECTOR;
    for (uint64_t i = 0; i < MACHINE_DISKS; i++)
        if (gild_rec_put_delta(txn, GILD_TABLE_DELTAS, i + 1, record))
            fail("making disks", "put");
    if (gild_txn_commit(txn))
        fail("making disks", "commit");
    free(record);
}

static void open_store(void) {
    struct gild_store_options options = {.threads = 2, .cache_bytes = (uint64_t)4 << 20};
    struct gild_error error = {0};
    if (gild_store_open(DIRECTORY, &options, &machine.store, &error))
        fail("the store does not open", error.message);
}

static void open_disks(void) {
    struct gild_error error = {0};
    char path[32];
    bool writable;
    for (uint64_t i = 0; i < MACHINE_DISKS; i++) {
        snprintf(path, sizeof path, "test/%" PRIu64, i + 1);
        struct gild_disk_spec spec = {.path = path, .delta_id = i + 1};
        if (gild_disk_acquire(machine.store, &spec, "test", GILD_OPEN_WRITE, &machine.disks[i],
                              &writable, &error))
            fail("a disk does not open", error.message);
    }
}

void machine_make(uint64_t seed, struct machine_counts *counts) {
    struct gild_error error = {0};
    machine.seed = seed;
    machine.counts = counts;
    machine.moment = 1;
    gild_log_set_level(GILD_LOG_ERROR); /* each recovery says what it did */
    sim_begin(seed);
    sim_disk_make();
    sim_kv_make();
    for (uint32_t i = 0; i < MACHINE_DISKS; i++)
        oracle_init(&machine.oracles[i], i + 1, SECTORS);
    if (gild_store_init(DIRECTORY, 0, &error))
        fail("init", error.message);
    open_store();
    make_deltas();
    machine_off();
}

static void found(void *context, const char *sentence) {
    unsigned *findings = context;
    fprintf(stderr, "check: %s\n", sentence);
    ++*findings;
}

static void check_store(void) {
    struct gild_check_result result;
    struct gild_error error = {0};
    unsigned findings = 0;
    int err = gild_store_check(machine.store, found, &findings, &result, &error);
    if (err && !findings)
        fail("check", error.message);
    if (findings)
        fail("check", "the store is not consistent");
}

static void on_end(struct gild_op *op);

static void post(struct slot *slot, enum gild_op_kind kind, uint32_t flags, bool data) {
    slot->payload = (struct iovec){slot->bytes, (size_t)slot->count * ORACLE_SECTOR};
    slot->op = (struct gild_op){
        .disk = machine.disks[slot->disk],
        .kind = kind,
        .flags = flags,
        .offset_bytes = (uint64_t)slot->first * ORACLE_SECTOR,
        .length_bytes = (uint64_t)slot->count * ORACLE_SECTOR,
        .payload = data ? &slot->payload : NULL,
        .payload_count = data,
        .pieces = slot->pieces,
        .piece_limit = GILD_OP_MAX_PIECES,
        .done = on_end,
    };
    slot->busy = true;
    machine.busy++;
    gild_disk_post(&slot->op);
}

/* Everything of every disk, by its own slot. */
static void read_all(void) {
    struct slot *slot = &machine.slots[0];
    for (slot->disk = 0; slot->disk < MACHINE_DISKS; slot->disk++)
        for (slot->first = 0; slot->first < SECTORS; slot->first += slot->count) {
            slot->count = SECTORS - slot->first;
            if (slot->count > MOST_SECTORS)
                slot->count = MOST_SECTORS;
            slot->kind = MACHINE_READ;
            slot->moment = 1; /* settle */
            post(slot, GILD_OP_READ, 0, false);
            machine_wait_all();
        }
}

void machine_on(void) {
    machine.counts->lives++;
    open_store();
    check_store();
    open_disks();
    read_all();
}

void machine_off(void) {
    struct gild_error error = {0};
    machine_wait_all();
    for (unsigned i = 0; i < MACHINE_DISKS; i++)
        if (machine.disks[i])
            gild_disk_close(machine.disks[i], "test", true);
    memset(machine.disks, 0, sizeof machine.disks);
    int err = gild_store_close(machine.store, &error);
    machine.store = NULL;
    if (err && !machine.errors)
        fail("the store does not close", error.message);
    /* An orderly end makes everything durable. */
    for (unsigned i = 0; i < MACHINE_DISKS && !err; i++)
        oracle_flushed(&machine.oracles[i], ++machine.moment);
}

static void note_state(uint64_t hash) {
    machine.counts->states++;
    hash += hash == 0;
    for (unsigned i = 0; i < 64; i++) {
        _Atomic uint64_t *slot = &machine.counts->hashes[(hash + i) % MACHINE_HASHES];
        uint64_t there = 0;
        if (atomic_compare_exchange_strong(slot, &there, hash)) {
            machine.counts->distinct++;
            return;
        }
        if (there == hash)
            return;
    }
}

void machine_cut(uint64_t seed, enum sim_cut cut) {
    sim_after_fork(seed);
    sim_disk_cut(cut);
    sim_kv_cut();
    note_state(sim_disk_hash() + sim_kv_hash());
    machine.seed = seed;
    machine.counts->cuts[cut]++;
    machine.store = NULL;
    machine.busy = 0;
    machine_expect_errors(false);
    memset(machine.disks, 0, sizeof machine.disks);
    for (unsigned i = 0; i < MOST_SLOTS; i++)
        machine.slots[i].busy = false;
}

void machine_expect_errors(bool expected) {
    machine.errors = expected;
    if (expected)
        return;
    sim_disk_mend();
    for (unsigned i = 0; i < SIM_CALLS; i++)
        machine.counts->faults[i] += sim_disk_fired((enum sim_call)i);
}

/* ---- work ------------------------------------------------------------------------------------ */

static void check_read(struct slot *slot) {
    uint8_t got[MOST_SECTORS * ORACLE_SECTOR];
    size_t at = 0;
    for (uint32_t i = 0; i < slot->op.piece_count; i++) {
        memcpy(got + at, slot->op.pieces[i].data, slot->op.pieces[i].bytes);
        at += slot->op.pieces[i].bytes;
    }
    if (at != (size_t)slot->count * ORACLE_SECTOR)
        fail("a read", "answers too little");
    if (!oracle_read(&machine.oracles[slot->disk], slot->first, slot->count, got, slot->moment))
        fail("a read", "answers what may not be there");
}

/* On the disk's reactor. */
static void on_end(struct gild_op *op) {
    struct slot *slot = gild_container_of(op, struct slot, op);
    struct oracle *oracle = &machine.oracles[slot->disk];
    if (op->error && !machine.errors)
        fail("an op fails", strerror(-op->error));
    if (!op->error && slot->kind == MACHINE_READ)
        check_read(slot);
    else if (!op->error && slot->kind == MACHINE_FLUSH)
        oracle_flushed(oracle, slot->moment);
    else if (!op->error)
        oracle_acknowledged(oracle, slot->generation, slot->first, slot->count, ++machine.moment,
                            op->flags & GILD_OP_FUA);
    gild_op_release(op);
    slot->busy = false;
    machine.busy--;
    sim_wake(&machine.busy);
}

void machine_wait_all(void) {
    while (machine.busy)
        sim_wait(&machine.busy, SIM_FOREVER);
}

static struct slot *free_slot(unsigned most) {
    while (machine.busy >= most || machine.busy == MOST_SLOTS)
        sim_wait(&machine.busy, SIM_FOREVER);
    for (unsigned i = 0; i < MOST_SLOTS; i++)
        if (!machine.slots[i].busy)
            return &machine.slots[i];
    return NULL;
}

static bool overlaps(const struct slot *mine) {
    for (unsigned i = 0; i < MOST_SLOTS; i++) {
        const struct slot *slot = &machine.slots[i];
        if (slot->busy && slot != mine && slot->disk == mine->disk && slot->kind != MACHINE_FLUSH &&
            slot->first < mine->first + mine->count && mine->first < slot->first + slot->count)
            return true;
    }
    return false;
}

/* A place of some disk: mostly a few blocks that are met again and again, mostly whole ones. */
static void choose_place(struct slot *slot, uint32_t most) {
    slot->disk = (uint32_t)sim_below(MACHINE_DISKS);
    if (sim_chance(800)) {
        slot->count = 8 * (1 + (uint32_t)sim_below(sim_chance(700) ? 2 : most / 8));
        slot->first = 8 * (uint32_t)sim_below(SECTORS / 8);
    } else {
        slot->count = 1 + (uint32_t)sim_below(20);
        slot->first = (uint32_t)sim_below(SECTORS);
    }
    if (sim_chance(600))
        slot->first = slot->first % 256;
    if (slot->first + slot->count > SECTORS)
        slot->first = SECTORS - slot->count;
}

void machine_do(enum machine_op op, unsigned most) {
    machine.counts->ops[op]++;
    if (op == MACHINE_CHECKPOINT) {
        struct gild_error error = {0};
        if (gild_store_checkpoint(machine.store, &error) && !machine.errors)
            fail("a checkpoint", error.message);
        return;
    }
    if (op == MACHINE_REOPEN) {
        machine_off();
        machine_expect_errors(false);
        machine_on();
        return;
    }
    struct slot *slot = free_slot(most);
    slot->kind = op;
    slot->moment = 0;
    bool long_one = op == MACHINE_TRIM || op == MACHINE_ZERO;
    do
        choose_place(slot, long_one ? SECTORS / 2 : MOST_SECTORS);
    while (op != MACHINE_FLUSH && overlaps(slot));
    struct oracle *oracle = &machine.oracles[slot->disk];
    switch (op) {
    case MACHINE_WRITE:
    case MACHINE_WRITE_FUA:
        slot->generation = oracle_sent(oracle, slot->first, slot->count, false);
        oracle_fill(oracle, slot->generation, slot->first, slot->count, slot->bytes);
        post(slot, GILD_OP_WRITE, op == MACHINE_WRITE_FUA ? GILD_OP_FUA : 0, true);
        break;
    case MACHINE_TRIM:
    case MACHINE_ZERO:
        slot->generation = oracle_sent(oracle, slot->first, slot->count, true);
        post(slot, op == MACHINE_TRIM ? GILD_OP_TRIM : GILD_OP_ZERO,
             (sim_chance(200) ? GILD_OP_FUA : 0) |
                 (op == MACHINE_ZERO && sim_chance(300) ? GILD_OP_NO_HOLE : 0),
             false);
        break;
    case MACHINE_FLUSH:
        slot->first = slot->count = 0;
        slot->moment = ++machine.moment;
        post(slot, GILD_OP_FLUSH, 0, false);
        break;
    default:
        post(slot, GILD_OP_READ, 0, false);
        break;
    }
}

void machine_random_op(unsigned most) {
    static const unsigned of_1000[MACHINE_OPS] = {480, 60, 120, 60, 60, 200, 12, 8};
    uint64_t pick = sim_below(1000);
    unsigned op = 0;
    while (op + 1 < MACHINE_OPS && pick >= of_1000[op])
        pick -= of_1000[op++];
    machine_do((enum machine_op)op, most);
}
