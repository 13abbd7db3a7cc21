/* See machine.h: power. The first thread of the machine sends ops and waits; ops end on the store's
 * reactors. */
#include "machine.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "catalog/catalog.h"
#include "catalog/records.h"
#include "disk/store.h"
#include "own.h"
#include "sim_kv.h"
#include "sim_threads.h"

#define DIRECTORY "/store"
#define LEAST_SEGMENT 64u

struct machine machine;

/* Two leaves of a map, and less. */
static const uint32_t base_sectors[BASES] = {5120, 2600, 1003},
                      small_sectors[BASES] = {2600, 520, 65};

void machine_fail(enum wrong wrong, const char *what, const char *why) {
    machine.counts->wrong[wrong]++;
    fprintf(stderr, "seed %" PRIu64 ", at %" PRIu64 " ns, point %" PRIu64 ": %s: %s\n",
            machine.seed, sim_now_ns(), sim_disk_points(), what, why);
    _exit(1);
}

bool machine_damaged(void) {
    return sim_disk_damage()->rots || sim_disk_damage()->misdirected;
}

void machine_failed(const char *what, const char *why) {
    if (!machine.errors && !machine_damaged())
        machine_fail(WRONG_OTHER, what, why);
}

void machine_stay_together(unsigned job) {
    cpu_set_t all, one;
    mallopt(M_ARENA_MAX, 1);              /* a fork copies less */
    mallopt(M_MMAP_THRESHOLD, 128 << 10); /* what is large is fresh */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
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

void machine_end(void) {
    _exit(0);
}

/* ---- faults ---------------------------------------------------------------------------------- */

void machine_arm(void) {
    enum sim_fault fault = sim_fault_arm_any();
    if (fault != SIM_SHORT && fault != SIM_NO_FAULT)
        machine.errors = true;
}

static void calm(void) {
    sim_fault_mend();
    machine.errors = false;
    machine.space = ROOMY;
    sim_disk_bound(0);
}

/* A start after a crash takes a part of the reserve, which can not be made good where nothing at
 * all is left: then it may be refused, and so may trims. */
static void calm_but_for_space(void) {
    sim_fault_mend();
    machine.errors = machine.space == NOTHING_LEFT;
}

/* ---- space ----------------------------------------------------------------------------------- */

#define MARGIN ((uint64_t)144 << 20) /* that the engine leaves on a file system */

static void rest(void) {
    uint64_t until = sim_now_ns() + 1000000000u;
    while (!sim_wait(&until, until))
        ;
}

/* Either the engine sees it coming; or others have taken what it had left for its own needs, too,
 * and it has only what it had allocated. */
void machine_squeeze(void) {
    rest(); /* a reserve is there once it could be made */
    machine.space = sim_chance(500) ? LITTLE_LEFT : NOTHING_LEFT;
    uint64_t left = machine.space == LITTLE_LEFT ? MARGIN + sim_below((uint64_t)4 << 20)
                                                 : sim_below((uint64_t)1 << 20);
    sim_disk_bound(sim_disk_used() + left);
    machine.counts->squeezed++;
    if (getenv("GILD_LOG"))
        fprintf(stderr, "-- %" PRIu64 " KiB are left on the file system\n", left >> 10);
}

void machine_relax(void) {
    if (machine.space == ROOMY)
        return;
    sim_disk_bound(0);
    if (getenv("GILD_LOG"))
        fprintf(stderr, "-- the file system has room again\n");
    rest();
    machine.space = ROOMY;
    machine.counts->relaxed++;
    for (unsigned i = 0; i < 4; i++) /* none of them may be refused now */
        machine_do(MACHINE_FILL, 4);
}

bool machine_lacked_space(int error, int space) {
    if (error != -ENOSPC || (space == ROOMY && machine.space == ROOMY))
        return false;
    machine.counts->no_space++;
    return true;
}

void machine_let_rot(void) {
    machine.may_rot = true;
}

void machine_mend(void) {
    if (!sim_disk_damage()->misdirected)
        sim_disk_unrot();
}

/* ---- power ----------------------------------------------------------------------------------- */

/* Rot in what a recovery reads can not be told from what a power cut tore: the end of the log may
 * be lost to it, also if the rot is mended afterwards. */
static void note_stale(void) {
    machine.stale = machine.stale || (machine.recovering && sim_disk_damage()->log);
}

static int try_open(struct gild_error *error) {
    struct gild_store_options options = {
        .threads = 2,
        .cache_bytes = (uint64_t)4 << 20,
        /* Another size each time: segments of all of them meet in one store. */
        .segment_blocks = LEAST_SEGMENT + (sim_chance(500) ? (uint32_t)sim_below(192) : 0),
        .no_cleaner = sim_chance(500),
        .cold_s = sim_chance(500) ? 1 : 0,
    };
    memset(error, 0, sizeof *error);
    machine.counts->lives++;
    machine.recovering = machine.recovering || !machine.orderly;
    note_stale();
    if (getenv("GILD_LOG"))
        fprintf(stderr,
                "-- opened %s a cut, after point %" PRIu64
                "; rotten pages %u, misdirected writes %u, in the log: %d\n",
                machine.orderly ? "without" : "after", sim_disk_points(), sim_disk_damage()->rots,
                sim_disk_damage()->misdirected, sim_disk_damage()->log);
    int err = gild_store_open(DIRECTORY, &options, &machine.store, error);
    note_stale();
    return err;
}

static bool rebuild(const char *what) {
    const struct gild_catalog_options options = {.map_bytes = 1u << 30,
                                                 .journal = DIRECTORY "/journal"};
    struct gild_catalog_rebuilt rebuilt;
    struct gild_error error = {0};
    if (gild_catalog_rebuild(DIRECTORY "/catalogue", &options, &rebuilt, &error)) {
        machine_failed(what, error.message);
        return false;
    }
    if (rebuilt.lost && !machine_damaged())
        machine_fail(WRONG_LOST, what, "transactions of its journal are lost");
    machine.losing = false;
    return true;
}

/* The catalogue is gone, and what its journal tells is all there is. */
static bool lose_catalogue(void) {
    machine.losing = true; /* a power cut in here is one with no catalogue */
    machine.counts->rebuilt++;
    if (getenv("GILD_LOG"))
        fprintf(stderr, "-- the catalogue is lost\n");
    if (rebuild("the catalogue is not made again"))
        return true;
    calm();
    return rebuild("the catalogue is not made again at the second try");
}

static bool open_store(void) {
    struct gild_error error;
    bool lost = machine.losing || (machine.made && !machine_damaged() && sim_chance(50));
    if (lost && !lose_catalogue())
        return false;
    if (try_open(&error) == 0)
        return true;
    machine_failed("the store does not open", error.message);
    calm();
    machine.counts->retried++;
    if (try_open(&error) == 0)
        return true;
    if (!machine_damaged())
        machine_fail(WRONG_OTHER, "the store does not open at the second try", error.message);
    machine.counts->refused++;
    if (sim_disk_damage()->misdirected)
        return false;
    sim_disk_unrot(); /* it was refused, so nothing was lost by it (D6) */
    if (try_open(&error))
        machine_fail(WRONG_OTHER, "the store does not open after rot was mended", error.message);
    return true;
}

static void make_bases(void) {
    struct gild_rec_delta *record = calloc(1, sizeof *record);
    struct gild_txn *txn;
    uint64_t id;
    if (!record || gild_txn_begin(gild_store_catalog(machine.store), true, &txn))
        machine_fail(WRONG_OTHER, "making disks", "no memory");
    const uint32_t *sectors = machine.small ? small_sectors : base_sectors;
    for (unsigned i = 0; i < BASES; i++) {
        record->size_bytes = (uint64_t)sectors[i] * ORACLE_SECTOR;
        if (gild_txn_next_id(txn, "delta", 1, &id) || id != i + 1 ||
            gild_rec_put_delta(txn, GILD_TABLE_DELTAS, id, record))
            machine_fail(WRONG_OTHER, "making disks", "put");
        machine.disks[i].presence = THERE;
        oracle_init(&machine.disks[i].oracle, ++machine.serial, sectors[i], (struct content){0});
    }
    if (gild_txn_commit(txn))
        machine_fail(WRONG_OTHER, "making disks", "commit");
    free(record);
}

void machine_make(uint64_t seed, bool furnished, struct machine_counts *counts) {
    struct gild_error error = {0};
    machine.seed = seed;
    machine.counts = counts;
    machine.moment = 1;
    machine.small = furnished;
    sim_faults_count_in(&counts->faults);
    sim_disk_count_in(&counts->disk);
    sim_begin(seed);
    sim_disk_make();
    sim_kv_make();
    if (gild_store_init(DIRECTORY, 0, &error))
        machine_fail(WRONG_OTHER, "init", error.message);
    open_store();
    make_bases();
    machine.made = true;
    if (furnished) {
        admin_do(MACHINE_IMPORT);
        admin_do(MACHINE_CLONE);
        admin_do(MACHINE_IMPORT); /* one that can be deleted */
    }
    machine_off();
}

/* After a cut: what is found is what there is from now on. */
static void read_all(void) {
    enum oracle_mode mode = machine.stale ? ORACLE_STALE : ORACLE_SETTLE;
    for (unsigned i = 0; i < DISKS; i++)
        if (machine.disks[i].disk) {
            oracle_power_on(&machine.disks[i].oracle);
            work_read_disk(&machine.disks[i], mode);
        } else if (machine.disks[i].presence != ABSENT && machine.stale) {
            oracle_unread(&machine.disks[i].oracle, 0, machine.disks[i].oracle.sector_count);
        }
    for (unsigned i = 0; i < IMAGES; i++)
        if (machine.images[i].presence == THERE)
            work_read_image(&machine.images[i]);
    machine.stale = machine.recovering = false;
}

bool machine_on(void) {
    if (!open_store())
        return false;
    admin_check();
    admin_look();
    admin_open_disks();
    read_all();
    return true;
}

void machine_off(void) {
    struct gild_error error = {0};
    struct gild_clean_result cleaned;
    bool was_open[DISKS];
    machine_wait_all();
    for (unsigned i = 0; i < DISKS; i++)
        was_open[i] = machine.disks[i].disk != NULL;
    admin_close_disks();
    gild_store_get_cleaned(machine.store, &cleaned);
    machine.counts->packed += cleaned.packed_blocks;
    machine.counts->shared += cleaned.shared_blocks;
    machine.counts->relocated += cleaned.moved_blocks;
    int err = gild_store_close(machine.store, &error);
    machine.store = NULL;
    if (err)
        machine_failed("the store does not close", error.message);
    machine.orderly = err == 0;
    /* An orderly end makes everything durable that was written since the store was opened. */
    for (unsigned i = 0; i < DISKS && !err; i++)
        if (was_open[i])
            oracle_flushed(&machine.disks[i].oracle, ++machine.moment);
    if (!err && !machine.errors && !machine_damaged())
        admin_audit();
    calm();
}

void machine_cut(uint64_t seed, enum sim_cut cut) {
    sim_after_fork(seed);
    sim_disk_cut(cut);
    sim_kv_cut();
    note_stale();
    counts_note_state(machine.counts, sim_disk_hash() + sim_kv_hash());
    machine.seed = seed;
    machine.counts->cuts[cut]++;
    machine.store = NULL;
    machine.orderly = false;
    if (sim_chance(500))
        calm();
    else
        calm_but_for_space();
    admin_reset();
    work_reset();
}
