/* What packs promise of an ingest: every block comes back, content is kept once, the result does
 * not depend on the number of threads, and what fails leaves nothing. (Rot: test_pack_rot.c.) */
#include <CUnit/Basic.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/place.h"
#include "pack/filter.h"
#include "pack_rig.h"

#define COUNT 20000u

static uint64_t numbers[COUNT];

/* Numbers with repeats near and far: about `percent` of them are new. */
static void mix(uint64_t base, unsigned percent) {
    uint64_t fresh = 0;
    for (size_t i = 0; i < COUNT; i++)
        numbers[i] = base + (fresh && rig_draw() % 100 >= percent ? rig_draw() % fresh : fresh++);
}

static void count_finding(void *context, const struct gild_pack_fault *fault) {
    printf("%s\n", fault->sentence);
    ++*(unsigned *)context;
}

static unsigned findings(struct rig *rig, uint32_t first, uint32_t last) {
    unsigned found = 0;
    const struct gild_pack_look look = {.deep = true, .found = count_finding, .context = &found};
    for (uint32_t id = first; id <= last; id++)
        CU_ASSERT_EQUAL(gild_pack_check(rig->packs, id, &look), 0);
    return found;
}

static void every_block_comes_back(void) {
    struct rig rig;
    struct gild_ingest_totals totals;
    struct gild_packs_totals all;
    size_t refused;
    rig_init(&rig);
    mix(0, 70);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, COUNT, 2, 0, &totals), 0);
    CU_ASSERT_EQUAL(rig.placed, COUNT);
    CU_ASSERT_EQUAL(totals.blocks_in, COUNT);
    CU_ASSERT_EQUAL(totals.pack_count, 1);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), COUNT);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), COUNT);
    CU_ASSERT_EQUAL(findings(&rig, 1, 1), 0);
    gild_packs_get_totals(rig.packs, &all);
    CU_ASSERT_EQUAL(all.blocks, totals.blocks_new);
    CU_ASSERT_EQUAL(all.groups, (totals.blocks_new + 15) / 16);
    CU_ASSERT(all.file_bytes > totals.frame_bytes);
    /* Index on disk: at most 1.5% of the unique bytes, beside the pages at the edges. */
    CU_ASSERT(all.file_bytes - totals.frame_bytes < all.blocks * BLOCK * 15 / 1000 + 5 * 4096);
    rig_fini(&rig);
}

static void content_is_kept_once(void) {
    struct rig rig;
    struct gild_ingest_totals totals;
    uint64_t *before;
    size_t refused, fresh = 0;
    rig_init(&rig);
    mix(0, 50);
    for (size_t i = 0; i < COUNT; i++)
        fresh = numbers[i] + 1 > fresh ? numbers[i] + 1 : fresh;
    /* Several packs, so that a block may have its twin in one that is sealed already. */
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, COUNT, 2, 2 << 20, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, fresh);
    CU_ASSERT(totals.pack_count > 2);
    uint32_t packs = totals.pack_count;
    before = malloc(COUNT * sizeof *before);
    memcpy(before, rig.place, COUNT * sizeof *before);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, packs, NULL), 0);
    CU_ASSERT_EQUAL(findings(&rig, 1, packs), 0);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, COUNT, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, 0);
    CU_ASSERT_EQUAL(totals.pack_count, 0);
    CU_ASSERT_EQUAL(memcmp(before, rig.place, COUNT * sizeof *before), 0);
    CU_ASSERT_EQUAL(rig_files(&rig), packs);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), COUNT);
    free(before);
    rig_fini(&rig);
}

static void the_result_does_not_depend_on_threads(void) {
    static const unsigned threads[] = {0, 1, 2, 8};
    struct rig rig[4];
    struct gild_ingest_totals totals[4];
    char path[256];
    mix(1000000, 60);
    for (unsigned i = 0; i < 4; i++) {
        rig_init(&rig[i]);
        CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig[i], numbers, COUNT, threads[i], 3 << 20, &totals[i]),
                              0);
        CU_ASSERT_EQUAL(totals[i].pack_count, totals[0].pack_count);
        CU_ASSERT_EQUAL(memcmp(rig[i].place, rig[0].place, COUNT * 8), 0);
        CU_ASSERT_EQUAL(memcmp(rig[i].check, rig[0].check, COUNT * 4), 0);
        for (uint32_t id = 1; i && id <= totals[0].pack_count; id++) {
            size_t length, length0;
            uint8_t *twin = rig_load(rig_path(&rig[i], id, path), &length);
            uint8_t *serial = rig_load(rig_path(&rig[0], id, path), &length0);
            CU_ASSERT_EQUAL(length, length0);
            CU_ASSERT(length == length0 && memcmp(twin, serial, length) == 0);
            free(twin);
            free(serial);
        }
    }
    CU_ASSERT(totals[0].pack_count > 2);
    for (unsigned i = 0; i < 4; i++)
        rig_fini(&rig[i]);
}

static void an_empty_ingest_makes_no_pack(void) {
    struct rig rig;
    struct gild_ingest_totals totals;
    rig_init(&rig);
    CU_ASSERT_EQUAL(rig_ingest(&rig, numbers, 0, 2, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.pack_count, 0);
    CU_ASSERT_EQUAL(rig_files(&rig), 0);
    rig_fini(&rig);
}

/* An ingest that is broken off at each kind of place. */
static void a_broken_off_ingest_leaves_nothing(void) {
    static uint8_t blocks[5000][BLOCK];
    struct rig rig;
    struct gild_packs_totals totals;
    rig_init(&rig);
    for (size_t i = 0; i < 5000; i++)
        rig_block(i, blocks[i]);
    for (unsigned round = 0; round < 6; round++) {
        struct gild_ingest_options options = rig_options(&rig, round % 3);
        struct gild_ingest *ingest;
        struct gild_error error = {0};
        options.pack_target_bytes = 1 << 20;
        rig.refuse_at = round == 2 ? 3000 : UINT64_MAX;
        rig.no_ids = round == 3;
        CU_ASSERT_EQUAL_FATAL(gild_ingest_create(&ingest, rig.packs, &options, NULL), 0);
        int err = gild_ingest_add(ingest, blocks, 5000, 0);
        if (round != 2 && round != 3)
            CU_ASSERT_EQUAL(err, 0);
        if (round >= 1)
            err = gild_ingest_finish(ingest, &error);
        CU_ASSERT_EQUAL(err, round == 2 ? -EDOM : round == 3 ? -ENOLCK : 0);
        if (err)
            CU_ASSERT(error.code != GILD_OK && error.message[0]);
        CU_ASSERT(rig_files(&rig) > 0 || round == 3);
        /* Unfinished or failed, asking to keep it changes nothing. */
        gild_ingest_destroy(ingest, round == 0 || round == 2 || round == 3);
        CU_ASSERT_EQUAL(rig_files(&rig), 0);
        gild_packs_get_totals(rig.packs, &totals);
        CU_ASSERT_EQUAL(totals.packs, 0);
    }
    rig_fini(&rig);
}

static void a_full_disk_leaves_nothing(void) {
    struct rig rig;
    struct gild_packs_totals totals;
    struct rlimit before, small = {.rlim_cur = 5 << 20};
    rig_init(&rig);
    mix(0, 100);
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    CU_ASSERT_EQUAL(rig_ingest(&rig, numbers, COUNT, 2, 0, NULL), -EFBIG);
    setrlimit(RLIMIT_FSIZE, &before);
    CU_ASSERT_EQUAL(rig_files(&rig), 0);
    /* In a mount namespace of its own, so that a test that dies leaves no mount behind. */
    if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
        mount("none", rig.folder, "tmpfs", 0, "size=6m") == 0) {
        for (unsigned threads = 0; threads < 3; threads++) {
            rig.last_id = 0;
            CU_ASSERT_EQUAL(rig_ingest(&rig, numbers, COUNT, threads, 2 << 20, NULL), -ENOSPC);
            CU_ASSERT_EQUAL(rig_files(&rig), 0);
        }
        /* And it works again once there is room. */
        rig.last_id = 0;
        CU_ASSERT_EQUAL(rig_ingest(&rig, numbers, 500, 2, 0, NULL), 0);
        gild_packs_get_totals(rig.packs, &totals);
        CU_ASSERT_EQUAL(totals.packs, 1);
        CU_ASSERT_EQUAL(gild_packs_remove(rig.packs, 1, NULL), 0);
        umount(rig.folder);
    } else {
        printf("(no right to mount: ENOSPC on a small file system is not tried) ");
    }
    rig_fini(&rig);
}

struct reading {
    struct rig *rig;
    const uint64_t *place; /* of the first pack */
    size_t count;
    atomic_bool stop;
    size_t wrong, rounds;
};

static void *read_all_the_time(void *context) {
    struct reading *reading = context;
    struct gild_pack_page where;
    do {
        for (size_t i = 0; i < reading->count; i++)
            reading->wrong +=
                gild_pack_table_page(reading->rig->packs, gild_place_pack_id(reading->place[i]),
                                     gild_place_group(reading->place[i]), &where) != 0;
        reading->rounds++;
    } while (!atomic_load(&reading->stop));
    return NULL;
}

static void readers_do_not_mind_adds_and_removes(void) {
    struct rig rig;
    pthread_t thread;
    rig_init(&rig);
    mix(0, 100);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 1000, 2, 0, NULL), 0);
    struct reading reading = {.rig = &rig, .count = 1000};
    uint64_t *place = malloc(1000 * sizeof *place);
    memcpy(place, rig.place, 1000 * sizeof *place);
    reading.place = place;
    CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, read_all_the_time, &reading), 0);
    for (unsigned round = 0; round < 20; round++) {
        CU_ASSERT_EQUAL(rig_ingest(&rig, numbers + 500, 1000, round % 3, 0, NULL), 0);
        CU_ASSERT_EQUAL(gild_packs_remove(rig.packs, rig.last_id, NULL), 0);
    }
    atomic_store(&reading.stop, true);
    pthread_join(thread, NULL);
    CU_ASSERT_EQUAL(reading.wrong, 0);
    CU_ASSERT(reading.rounds > 0);
    free(place);
    rig_fini(&rig);
}

static void unknown_packs_and_groups_are_refused(void) {
    struct rig rig;
    struct gild_pack_page where;
    struct gild_error error;
    rig_init(&rig);
    mix(0, 100);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 100, 0, 0, NULL), 0);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 1, 6, &where), 0);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 1, 7, &where), -EUCLEAN);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 2, 0, &where), -ENOENT);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, UINT32_MAX, 0, &where), -ENOENT);
    CU_ASSERT_EQUAL(gild_packs_add(rig.packs, 9, &error), -EUCLEAN);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    CU_ASSERT_EQUAL(gild_packs_add(rig.packs, 1, &error), -EEXIST);
    CU_ASSERT_EQUAL(gild_packs_remove(rig.packs, 9, &error), -ENOENT);
    CU_ASSERT_EQUAL(gild_packs_remove(rig.packs, 1, &error), 0);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 1, 6, &where), -ENOENT);
    CU_ASSERT_EQUAL(rig_files(&rig), 0);
    rig_fini(&rig);
}

struct removing {
    struct rig *rig;
    unsigned visits;
    size_t open; /* descriptors, once it was removed */
};

static int remove_it(void *context, uint32_t group,
                     const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    struct removing *removing = context;
    (void)group, (void)fingerprint;
    if (removing->visits++ == 0) {
        CU_ASSERT_EQUAL(gild_packs_remove(removing->rig->packs, 1, NULL), 0);
        removing->open = rig_descriptors(removing->rig);
    }
    return 0;
}

/* Its space is the file system's again only when nobody has the file open. */
static void a_removed_pack_is_closed_by_the_last_who_reads_it(void) {
    struct rig rig;
    rig_init(&rig);
    mix(0, 100);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 500, 2, 0, NULL), 0);
    CU_ASSERT(rig_descriptors(&rig) > 0);
    struct removing removing = {.rig = &rig};
    CU_ASSERT_EQUAL(gild_pack_prints(rig.packs, 1, remove_it, &removing), 0);
    CU_ASSERT_EQUAL(removing.visits, 500); /* to the end, though it was gone */
    CU_ASSERT(removing.open > 0);
    CU_ASSERT_EQUAL(rig_descriptors(&rig), 0);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 500, 2, 0, NULL), 0);
    CU_ASSERT_EQUAL(gild_packs_remove(rig.packs, 2, NULL), 0);
    CU_ASSERT_EQUAL(rig_descriptors(&rig), 0);
    rig_fini(&rig);
}

static void the_filter_misses_nothing_and_seldom_errs(void) {
    enum { KEYS = 50000, BLOCKS = KEYS * 12 / 256 };
    struct pack_filter_block *filter = calloc(BLOCKS, sizeof *filter);
    uint8_t(*key)[32] = malloc(2 * KEYS * sizeof *key);
    size_t missed = 0, erred = 0;
    for (size_t i = 0; i < 2 * KEYS; i++)
        for (size_t k = 0; k < 32; k++)
            key[i][k] = (uint8_t)(rig_draw() >> 8);
    for (size_t i = 0; i < KEYS; i++)
        pack_filter_set(filter, BLOCKS, key[i]);
    for (size_t i = 0; i < KEYS; i++) {
        missed += !pack_filter_has(filter, BLOCKS, key[i]);
        erred += pack_filter_has(filter, BLOCKS, key[KEYS + i]);
    }
    CU_ASSERT_EQUAL(missed, 0);
    CU_ASSERT(erred < KEYS / 100);
    free(filter);
    free(key);
}

int main(void) {
    printf("seed 20261122\n");
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("pack", NULL, NULL);
    CU_ADD_TEST(suite, every_block_comes_back);
    CU_ADD_TEST(suite, content_is_kept_once);
    CU_ADD_TEST(suite, the_result_does_not_depend_on_threads);
    CU_ADD_TEST(suite, an_empty_ingest_makes_no_pack);
    CU_ADD_TEST(suite, a_broken_off_ingest_leaves_nothing);
    CU_ADD_TEST(suite, a_full_disk_leaves_nothing);
    CU_ADD_TEST(suite, readers_do_not_mind_adds_and_removes);
    CU_ADD_TEST(suite, unknown_packs_and_groups_are_refused);
    CU_ADD_TEST(suite, a_removed_pack_is_closed_by_the_last_who_reads_it);
    CU_ADD_TEST(suite, the_filter_misses_nothing_and_seldom_errs);
    add_rot_tests();
    add_compact_tests();
    add_verify_tests();
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
