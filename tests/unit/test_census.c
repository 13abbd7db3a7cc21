/* Who has what: the census of a real store against a plain model of what was written, and what a
 * dry run says against what deletion and cleaning then really free. */
#include <CUnit/Basic.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../lib/store_rig.h"
#include "base/prng.h"
#include "disk/census.h"
#include "disk/growth.h"
#include "disk/internal.h"
#include "vdi/vdi.h"

#define BLOCK 4096u
#define BLOCKS 2048u
#define DESKTOPS 4u
#define IMAGES 2u
#define DISKS (DESKTOPS + IMAGES)
#define CONTENTS 4000u

static char folder[64], directory[80];
static uint64_t seed;
static struct gild_store *store;

/* The content of each block of each disk: 0: none of its own. What lies in the log is marked. */
static uint32_t content[DISKS][BLOCKS];
static bool in_log[DISKS][BLOCKS];

static void make_block(uint32_t number, uint8_t *out) {
    struct gild_prng prng;
    gild_prng_seed(&prng, number);
    gild_prng_fill(&prng, out, BLOCK);
    memset(out + BLOCK / 2, (int)number, BLOCK / 2); /* half of it can be compressed */
}

static void begin(void) {
    const char *base = getenv("TMPDIR");
    const struct gild_store_options options = {
        .threads = 2, .cache_bytes = (uint64_t)16 << 20, .segment_blocks = 256, .no_cleaner = true};
    struct gild_error error = {0};
    snprintf(folder, sizeof folder, "%.40s/gild-test-XXXXXX", base && *base ? base : "/var/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
    snprintf(directory, sizeof directory, "%s/store", folder);
    CU_ASSERT_EQUAL_FATAL(gild_store_init(directory, 0, &error), 0);
    CU_ASSERT_EQUAL_FATAL(gild_store_open(directory, &options, &store, &error), 0);
    memset(content, 0, sizeof content);
    memset(in_log, 0, sizeof in_log);
}

static void end(void) {
    struct store_rig_findings findings = {0};
    char command[128];
    CU_ASSERT_EQUAL(store_rig_check(store, &findings), 0);
    CU_ASSERT_EQUAL(gild_store_close(store, NULL), 0);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CU_ASSERT_EQUAL(system(command), 0);
}

/* ---- content --------------------------------------------------------------------------------- */

static void import(unsigned image, uint32_t first, uint32_t count) {
    char path[128];
    uint8_t bytes[BLOCK];
    struct gild_image_info made;
    struct gild_error error = {0};
    const struct gild_image_import request = {.name = "win", .source = path, .format = "raw"};
    snprintf(path, sizeof path, "%s/source.raw", folder);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    for (uint32_t b = 0; b < count; b++) {
        make_block(first + b, bytes);
        CU_ASSERT_EQUAL(pwrite(fd, bytes, BLOCK, (off_t)b * BLOCK), BLOCK);
        content[DESKTOPS + image][b] = first + b;
    }
    CU_ASSERT_EQUAL(ftruncate(fd, (off_t)BLOCKS * BLOCK), 0);
    close(fd);
    CU_ASSERT_EQUAL_FATAL(gild_image_import(store, &request, &made, &error), 0);
}

static struct gild_disk *opened(unsigned desktop) {
    char path[64];
    struct gild_disk *disk = NULL;
    struct gild_error error = {0};
    bool writable;
    snprintf(path, sizeof path, "desktops/d%u/os", desktop + 1);
    CU_ASSERT_EQUAL_FATAL(
        gild_disk_open(store, path, "test", GILD_OPEN_WRITE, &disk, &writable, &error), 0);
    return disk;
}

static void set(struct gild_disk *disk, unsigned desktop, uint64_t block, uint32_t number) {
    uint8_t bytes[BLOCK];
    make_block(number, bytes);
    CU_ASSERT_EQUAL(number ? store_rig_do(disk, GILD_OP_WRITE, block * BLOCK, BLOCK, bytes, 0)
                           : store_rig_do(disk, GILD_OP_TRIM, block * BLOCK, BLOCK, NULL, 0),
                    0);
    content[desktop][block] = number;
    in_log[desktop][block] = number != 0;
}

static void clean(void) {
    struct gild_clean_result result;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_store_clean(store, NULL, &result, &error), 0);
    memset(in_log, 0, sizeof in_log);
}

/* ---- the model ------------------------------------------------------------------------------- */

/* Which contents the group has in packs and nobody else, and how many blocks in the log. */
static void model(const bool *inside, struct census_share *share) {
    static uint8_t named[CONTENTS]; /* bit 0: by the group, bit 1: by others */
    memset(named, 0, sizeof named);
    memset(share, 0, sizeof *share);
    for (unsigned d = 0; d < DISKS; d++)
        for (unsigned b = 0; b < BLOCKS; b++) {
            share->mapped_blocks += inside[d] && content[d][b];
            share->log_blocks += inside[d] && in_log[d][b];
            if (content[d][b] && !in_log[d][b])
                named[content[d][b]] |= inside[d] ? 1 : 2;
        }
    for (unsigned i = 0; i < CONTENTS; i++)
        share->unique_blocks += named[i] == 1;
}

struct group {
    uint64_t id[DISKS]; /* of the deltas, then of the maps; 0: not in it */
};

static size_t group_of(void *context, const struct reach_map *map) {
    const struct group *group = context;
    for (unsigned d = 0; d < DISKS; d++)
        if (group->id[d] == map->id && (d >= DESKTOPS) == (map->sealed != NULL))
            return 0;
    return CENSUS_OTHER;
}

static void ids_of(uint64_t id[DISKS]) {
    struct gild_desktop_info desktop;
    struct gild_image_info image;
    struct gild_error error = {0};
    char name[32];
    for (unsigned d = 0; d < DESKTOPS; d++) {
        snprintf(name, sizeof name, "d%u", d + 1);
        id[d] = gild_desktop_show(store, name, &desktop, &error) ? 0 : desktop.record.os_delta;
    }
    for (unsigned i = 0; i < IMAGES; i++) {
        snprintf(name, sizeof name, "win@%u", i + 1);
        id[DESKTOPS + i] = gild_image_show(store, name, &image, &error) ? 0 : image.record.map_id;
    }
}

static void agrees(unsigned mask) {
    struct group group = {0};
    uint64_t ids[DISKS];
    bool inside[DISKS];
    struct census_share wanted, everything;
    struct census_totals totals;
    struct census_freed freed;
    struct census *census;
    struct gild_error error = {0};
    static const bool all[DISKS] = {true, true, true, true, true, true};
    ids_of(ids);
    for (unsigned d = 0; d < DISKS; d++) {
        inside[d] = mask >> d & 1;
        group.id[d] = inside[d] ? ids[d] : 0;
    }
    model(inside, &wanted);
    model(all, &everything);
    CU_ASSERT_EQUAL_FATAL(census_take(store, 1, group_of, &group, &census, &error), 0);
    const struct census_share *share = census_share_of(census, 0);
    CU_ASSERT_EQUAL(share->mapped_blocks, wanted.mapped_blocks);
    CU_ASSERT_EQUAL(share->log_blocks, wanted.log_blocks);
    CU_ASSERT_EQUAL(share->unique_blocks, wanted.unique_blocks);
    CU_ASSERT_TRUE(share->unique_bytes <= share->unique_blocks * BLOCK);
    CU_ASSERT_TRUE(share->unique_bytes >= share->unique_blocks * BLOCK / 4);
    census_get_totals(census, &totals);
    CU_ASSERT_EQUAL(totals.mapped_blocks, everything.mapped_blocks);
    CU_ASSERT_EQUAL(totals.log_blocks, everything.log_blocks);
    CU_ASSERT_EQUAL(totals.pack_blocks, everything.unique_blocks);
    CU_ASSERT_EQUAL(census_frees(census, 0, &freed), 0);
    CU_ASSERT_EQUAL(freed.blocks, wanted.log_blocks + wanted.unique_blocks);
    CU_ASSERT_TRUE(freed.bytes >= wanted.log_blocks * BLOCK);
    census_destroy(census);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Two versions that share half; desktops that share with them, with each other, with nobody. */
static void make_disks(struct gild_prng *prng) {
    const struct gild_desktop_create request = {
        .name_pattern = "d%d", .count = DESKTOPS, .image = "win@1"};
    struct gild_error error = {0};
    uint32_t made;
    import(0, 1, 400);
    import(1, 201, 400);
    CU_ASSERT_EQUAL_FATAL(gild_desktop_create(store, &request, &made, &error), 0);
    for (unsigned d = 0; d < DESKTOPS; d++) {
        struct gild_disk *disk = opened(d);
        for (unsigned i = 0; i < 300; i++)
            set(disk, d, gild_prng_below(prng, BLOCKS),
                1 + (uint32_t)gild_prng_below(prng, CONTENTS - 1));
        for (unsigned i = 0; i < 200; i++) /* alike in all */
            set(disk, d, 500 + i, 1000 + i);
        gild_disk_close(disk, "test", true);
    }
}

static void the_census_is_the_models(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    begin();
    make_disks(&prng);
    agrees(1);
    clean();
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 8; i++)
            agrees((unsigned)gild_prng_below(&prng, 1u << DISKS));
        for (unsigned d = 0; d < DESKTOPS; d++) {
            struct gild_disk *disk = opened(d);
            for (unsigned i = 0; i < 100; i++)
                set(disk, d, gild_prng_below(&prng, BLOCKS),
                    gild_prng_below(&prng, 3) ? (uint32_t)gild_prng_below(&prng, CONTENTS) : 0);
            gild_disk_close(disk, "test", true);
        }
        for (unsigned i = 0; i < 4; i++)
            agrees((unsigned)gild_prng_below(&prng, 1u << DISKS));
        clean();
    }
    end();
}

static uint64_t pack_bytes(void) {
    struct gild_store_info info;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_store_get_info(store, &info, &error), 0);
    return info.pack_bytes;
}

/* What was deleted is still to be freed by the keeper. */
static void settle(void) {
    uint64_t dropped = 1;
    while (dropped) {
        struct gild_txn *txn;
        CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
        CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_DROPPED, &dropped), 0);
        gild_txn_abort(txn);
        sched_yield();
    }
    clean();
}

/* Packs shrink by what was said, within what compressing a group again may differ. */
static void frees(int (*delete)(bool dry_run, struct gild_freed *freed)) {
    struct gild_freed would, did;
    uint64_t before = pack_bytes();
    CU_ASSERT_EQUAL(delete (true, &would), 0);
    CU_ASSERT_EQUAL(pack_bytes(), before);
    CU_ASSERT_EQUAL(delete (false, &did), 0);
    CU_ASSERT_EQUAL(memcmp(&would, &did, sizeof did), 0);
    settle();
    uint64_t after = pack_bytes(), freed = before > after ? before - after : 0;
    uint64_t slack = would.bytes / 10 + (64u << 10);
    printf("(%" PRIu64 " KiB said, %" PRIu64 " freed) ", would.bytes >> 10, freed >> 10);
    CU_ASSERT_TRUE(would.bytes > 0);
    CU_ASSERT_TRUE(freed + slack >= would.bytes && freed <= would.bytes + slack);
}

static int delete_desktop(bool dry_run, struct gild_freed *freed) {
    struct gild_error error = {0};
    int result = gild_desktop_delete(store, "d1", dry_run, freed, &error);
    if (!dry_run)
        memset(content[0], 0, sizeof content[0]);
    return result;
}

static int delete_image(bool dry_run, struct gild_freed *freed) {
    struct gild_error error = {0};
    int result = gild_image_delete(store, "win@2", dry_run, freed, &error);
    if (!dry_run)
        memset(content[DESKTOPS + 1], 0, sizeof content[0]);
    return result;
}

static int delete_all(bool dry_run, struct gild_freed *freed) {
    struct gild_error error = {0};
    int result = gild_desktop_delete(store, "d*", dry_run, freed, &error);
    if (!dry_run)
        memset(content, 0, DESKTOPS * sizeof content[0]);
    return result;
}

static void what_is_said_is_freed(void) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    begin();
    make_disks(&prng);
    struct gild_disk *disk = opened(0);
    for (unsigned i = 0; i < 600; i++) /* its own, in one piece */
        set(disk, 0, 1000 + i, 2000 + i);
    gild_disk_close(disk, "test", true);
    clean();
    frees(delete_image);
    frees(delete_desktop);
    frees(delete_all);
    agrees(1u << DESKTOPS);
    end();
}

/* ---- growth ---------------------------------------------------------------------------------- */

static void growth_is_the_slope_of_the_last_month(void) {
    struct gild_rec_growth record = {0};
    const uint64_t hour = 3600, day = 24 * hour, begun = 1000 * day;
    int64_t per_day = 0;
    CU_ASSERT_FALSE(growth_per_day(&record, begun, 5, &per_day));
    /* 240 MiB a day, noted each hour for 100 days; then one that shrinks. */
    for (uint64_t i = 0; i <= 100 * 24; i++) {
        growth_add(&record, begun + i * hour, i * (10u << 20));
        CU_ASSERT_TRUE(record.count <= GILD_GROWTH_SAMPLES);
        for (uint32_t k = 1; k < record.count; k++)
            CU_ASSERT_TRUE(record.sample[k - 1].at_s < record.sample[k].at_s);
        if (!i)
            continue;
        CU_ASSERT_TRUE(growth_per_day(&record, begun + i * hour, i * (10u << 20), &per_day));
        CU_ASSERT_TRUE(llabs(per_day - (240 << 20)) <= 1); /* rounded */
    }
    CU_ASSERT_TRUE(record.sample[record.count - 2].at_s + 3 * hour >
                   record.sample[record.count - 1].at_s);
    CU_ASSERT_TRUE(record.sample[0].at_s + 61 * day > begun + 100 * day);
    CU_ASSERT_TRUE(growth_per_day(&record, begun + 101 * day, 0, &per_day));
    CU_ASSERT_TRUE(per_day < 0);
    growth_add(&record, begun + day, 7); /* the clock was set back */
    CU_ASSERT_EQUAL(record.sample[record.count - 1].bytes, 7);
    CU_ASSERT_FALSE(growth_per_day(&record, begun + day + 60, 7, &per_day) && record.count == 1);
}

static void the_store_notes_its_growth(void) {
    struct gild_rec_growth record = {0};
    struct gild_desktop_info desktop;
    struct gild_error error = {0};
    struct gild_prng prng;
    struct gild_txn *txn;
    gild_prng_seed(&prng, seed);
    begin();
    make_disks(&prng);
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    store->growth_due_s = 0; /* as in a later start */
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_get_growth(txn, 0, &record), 0);
    gild_txn_abort(txn);
    CU_ASSERT_EQUAL(record.count, 1); /* within the hour */
    CU_ASSERT_TRUE(record.sample[0].bytes > 0);
    CU_ASSERT_EQUAL(gild_desktop_show(store, "d1", &desktop, &error), 0);
    /* An hour later. */
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    record.sample[0].at_s -= 3601;
    CU_ASSERT_EQUAL(gild_rec_put_growth(txn, 0, &record), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    store->growth_due_s = 0;
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_get_growth(txn, 0, &record), 0);
    CU_ASSERT_EQUAL(record.count, 2);
    CU_ASSERT_EQUAL(gild_rec_get_growth(txn, desktop.record.os_delta, &record), 0);
    gild_txn_abort(txn);
    CU_ASSERT_EQUAL(record.count, 1);
    CU_ASSERT_EQUAL(record.sample[0].bytes, desktop.delta_blocks * BLOCK);
    end();
}

int main(void) {
    CU_pSuite suite;
    const char *text = getenv("GILD_SEED");
    seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS || !(suite = CU_add_suite("census", NULL, NULL)) ||
        !CU_add_test(suite, "the census is the model's", the_census_is_the_models) ||
        !CU_add_test(suite, "what a dry run says is freed", what_is_said_is_freed) ||
        !CU_add_test(suite, "growth is the slope of the last month",
                     growth_is_the_slope_of_the_last_month) ||
        !CU_add_test(suite, "the store notes its growth", the_store_notes_its_growth))
        return 2;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
