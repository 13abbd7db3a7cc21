/* What a scrub promises: whatever rots is found and named with the disks that it hits; what has
 * another copy is healed from it, what has none is known to be lost until one is there; it keeps
 * its pace; broken off, it is begun again; guests go on. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <glob.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/internal.h"
#include "disk/pace.h"
#include "io/file.h"
#include "scrub_rig.h"
#include "store_rig.h"

#define GROUP 16u /* blocks that are packed together, and lost together */

static void expect(const struct scrub_said *said, int result, unsigned lost, unsigned damaged,
                   unsigned repaired) {
    bool good = said->result == result && said->lost == lost && said->damaged == damaged &&
                said->repaired == repaired && !said->other;
    if (!good)
        fprintf(stderr, "result %d (%s), findings:\n%s", said->result, said->error.message,
                said->text);
    CU_ASSERT_TRUE(good);
}

static void says(const struct scrub_said *said, const char *words) {
    if (!strstr(said->text, words))
        fprintf(stderr, "does not say \"%s\", but:\n%s", words, said->text);
    CU_ASSERT_PTR_NOT_NULL(strstr(said->text, words));
}

static void a_healthy_store_is_read_whole(void) {
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 0);
    CU_ASSERT(said.counts.read_bytes >= scrub_rig_bytes(&rig, "packs") + WRITTEN * 4096);
    CU_ASSERT_EQUAL(said.counts.packs, 1);
    CU_ASSERT_EQUAL(said.counts.maps, 1);
    CU_ASSERT_EQUAL(said.counts.disks, 2);
    scrub_rig_end(&rig);
}

static void expect_reads(struct scrub_rig *rig, int of_group) {
    const char *const disks[] = {"images/win@1", "desktops/d1/os", "desktops/d2/os"};
    for (unsigned i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(scrub_rig_read(rig, disks[i], GROUP), of_group);
        CU_ASSERT_EQUAL(scrub_rig_read(rig, disks[i], 2 * GROUP - 1), of_group);
        CU_ASSERT_EQUAL(scrub_rig_read(rig, disks[i], GROUP - 1), 0);
        CU_ASSERT_EQUAL(scrub_rig_read(rig, disks[i], 2 * GROUP), 0);
    }
}

static void what_has_no_copy_is_lost_until_it_is_imported_again(void) {
    struct scrub_rig rig;
    uint8_t *bytes = gild_file_buffer(4096);
    scrub_rig_begin(&rig);
    scrub_rig_write(&rig, "desktops/d1/os", GROUP + 2, bytes); /* it no longer reads that one */
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, GROUP + 3)), 1);
    struct scrub_said look = scrub_rig_look(&rig);
    expect(&look, -EUCLEAN, 0, 1, 0);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, -EUCLEAN, 1, 0, 0);
    CU_ASSERT_EQUAL(said.counts.lost_groups, 1);
    says(&said, "image win@1 (blocks 16-31)");
    says(&said, "desktops d1 (blocks 16-17, 19-31), d2 (blocks 16-31)");
    says(&said, "import the same image again");
    expect_reads(&rig, -EIO);
    /* It stays known over a start, and a check and a second scrub say the same. */
    struct scrub_said online = scrub_rig_check(&rig);
    scrub_rig_close(&rig);
    scrub_rig_open(&rig);
    struct scrub_said again = scrub_rig_scrub(&rig), check = scrub_rig_check(&rig);
    CU_ASSERT_STRING_EQUAL(again.text, said.text);
    CU_ASSERT_STRING_EQUAL(check.text, said.text);
    CU_ASSERT_STRING_EQUAL(online.text, said.text);
    scrub_rig_import(&rig);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@2", GROUP + 3), 0);
    said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 1);
    CU_ASSERT_EQUAL(said.counts.repaired_groups, 1);
    expect_reads(&rig, 0);
    said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 0);
    scrub_rig_close(&rig);
    scrub_rig_open(&rig);
    check = scrub_rig_check(&rig);
    expect(&check, 0, 0, 0, 0);
    expect_reads(&rig, 0);
    free(bytes);
    scrub_rig_end(&rig);
}

static void memory_is_a_copy(void) {
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", GROUP), 0);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, GROUP + 3)), 1);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 1);
    scrub_rig_close(&rig);
    scrub_rig_open(&rig);
    expect_reads(&rig, 0);
    scrub_rig_end(&rig);
}

static void the_log_is_a_copy(void) {
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    /* A guest has copied a file of the image. */
    for (uint64_t i = 0; i < GROUP; i++)
        scrub_rig_write(&rig, "desktops/d1/os", 2000 + 3 * i, scrub_rig_block(&rig, GROUP + i));
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, GROUP + 3)), 1);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 1);
    CU_ASSERT_EQUAL(said.counts.lost_groups, 0);
    expect_reads(&rig, 0);
    struct scrub_said check = scrub_rig_check(&rig);
    expect(&check, 0, 0, 0, 0);
    scrub_rig_end(&rig);
}

static void every_part_of_a_pack_is_made_again(void) {
    static const enum scrub_rig_part parts[] = {PART_HEADER, PART_TABLE, PART_PRINTS, PART_INDEX,
                                                PART_FOOTER};
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        scrub_rig_rot_pack(&rig, parts[i]);
        struct scrub_said said = scrub_rig_scrub(&rig);
        CU_ASSERT_EQUAL(said.result, 0);
        CU_ASSERT(said.repaired > 0 && !said.damaged && !said.lost);
        CU_ASSERT_EQUAL(said.counts.repaired_packs, 1);
        if (said.result || said.damaged || said.lost || !said.repaired)
            fprintf(stderr, "part %u:\n%s", i, said.text);
        struct scrub_said check = scrub_rig_check(&rig);
        expect(&check, 0, 0, 0, 0);
        expect_reads(&rig, 0);
        scrub_rig_close(&rig);
        scrub_rig_open(&rig);
    }
    expect_reads(&rig, 0);
    scrub_rig_end(&rig);
}

/* Groups whose bytes are lost take no room in the new file, so that all behind them lies elsewhere:
 * the table of the old file, which is still in memory, is not the new one's. */
static void a_rewritten_pack_has_a_table_of_its_own(void) {
    enum { LOST = 3, HEALED = 10 };
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", 0), 0); /* it takes the table */
    for (uint64_t i = 0; i < GROUP; i++) /* a copy for one group behind the one that is lost */
        scrub_rig_write(&rig, "desktops/d1/os", 2000 + 3 * i,
                        scrub_rig_block(&rig, HEALED * GROUP + i));
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, LOST * GROUP)), 1);
    scrub_rig_rot_pack(&rig, PART_TABLE);
    struct scrub_said said = scrub_rig_scrub(&rig);
    CU_ASSERT_EQUAL(said.result, -EUCLEAN);
    CU_ASSERT_EQUAL(said.counts.repaired_groups, 1);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", LOST * GROUP), -EIO);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", HEALED * GROUP), 0);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", GROUP), 0);
    scrub_rig_end(&rig);
}

/* A map that names what a collection took (which no collection would take): it is an error, as long
 * as the group is not in memory as it was, and a check says so. */
static void a_dropped_slot_is_no_content(void) {
    struct scrub_rig rig;
    uint16_t live[IMAGE_BLOCKS / GROUP];
    const struct gild_pack_compacting options = {0};
    struct gild_pack_compacted done;
    scrub_rig_begin(&rig);
    memset(live, 0xff, sizeof live);
    live[3] = 0x8002;
    live[5] = 0;
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", 3 * GROUP + 7), 0);
    CU_ASSERT_EQUAL_FATAL(gild_pack_compact(rig.store->packs, 1, live, &options, &done), 0);
    CU_ASSERT_TRUE(done.rewritten);
    gild_pack_let_go(done.old);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", 3 * GROUP + 7), 0); /* in memory */
    scrub_rig_close(&rig);
    scrub_rig_open(&rig);
    for (uint64_t i = 0; i < 7 * GROUP; i++) {
        bool there = i / GROUP == 3 ? i % GROUP == 1 || i % GROUP == 15 : i / GROUP != 5;
        CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", i), there ? 0 : -EIO);
    }
    struct scrub_said said = scrub_rig_check(&rig);
    CU_ASSERT_EQUAL(said.result, -EUCLEAN);
    says(&said, "names groups or slots that no pack has, 30 blocks");
    CU_ASSERT_PTR_NULL(strstr(said.text, "its record says"));
    said = scrub_rig_scrub(&rig);
    CU_ASSERT_EQUAL(said.counts.repaired_packs, 0);
    CU_ASSERT_EQUAL(said.lost, 0);
    scrub_rig_end(&rig);
}

static void a_deleted_pack_is_written_again(void) {
    struct scrub_rig rig;
    char pattern[128];
    glob_t files;
    scrub_rig_begin(&rig);
    snprintf(pattern, sizeof pattern, "%s/packs/*.pack", rig.directory);
    CU_ASSERT_EQUAL_FATAL(glob(pattern, 0, NULL, &files), 0);
    CU_ASSERT_EQUAL_FATAL(unlink(files.gl_pathv[0]), 0);
    globfree(&files);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 1);
    scrub_rig_close(&rig);
    scrub_rig_open(&rig);
    expect_reads(&rig, 0);
    scrub_rig_end(&rig);
}

static void a_rotten_map_is_named(void) {
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    scrub_rig_rot_at(&rig, "maps", ".map", 4096 + 200); /* the first leaf */
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, -EUCLEAN, 0, 1, 0);
    says(&said, "image win@1 (blocks 0-319)");
    says(&said, "desktops d1 (blocks 0-319), d2 (blocks 0-319)");
    says(&said, "check --repair");
    scrub_rig_end(&rig);
}

static void a_guests_rotten_block_is_named_until_it_is_overwritten(void) {
    struct scrub_rig rig;
    uint8_t *bytes = gild_file_buffer(4096);
    uint64_t block = WRITTEN_FIRST + 7;
    scrub_rig_begin(&rig);
    scrub_rig_written(block, bytes);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "log", bytes), 1);
    for (unsigned i = 0; i < 2; i++) {
        struct scrub_said said = scrub_rig_scrub(&rig);
        expect(&said, -EUCLEAN, 0, 1, 0);
        says(&said, "it hits desktop d1 (block 1007)");
        CU_ASSERT_EQUAL(scrub_rig_read(&rig, "desktops/d1/os", block), -EIO);
        CU_ASSERT_EQUAL(scrub_rig_read(&rig, "desktops/d1/os", block + 1), 0);
    }
    scrub_rig_write(&rig, "desktops/d1/os", block, bytes);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 0);
    free(bytes);
    scrub_rig_end(&rig);
}

/* What the cleaner has packed is named as the desktop's, too. */
static void a_desktops_packed_content_is_named(void) {
    struct scrub_rig rig;
    struct gild_clean_result cleaned;
    struct gild_error error = {0};
    uint8_t *bytes = gild_file_buffer(4096);
    scrub_rig_begin(&rig);
    CU_ASSERT_EQUAL_FATAL(gild_store_clean(rig.store, NULL, &cleaned, &error), 0);
    CU_ASSERT_EQUAL(cleaned.packed_blocks, WRITTEN);
    scrub_rig_close(&rig);
    scrub_rig_written(WRITTEN_FIRST + 20, bytes);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", bytes), 1);
    scrub_rig_open(&rig);
    struct scrub_said said = scrub_rig_check(&rig);
    CU_ASSERT_EQUAL(said.result, -EUCLEAN);
    says(&said, "it hits desktop d1 (blocks 1016-1031)");
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "desktops/d1/os", WRITTEN_FIRST + 20), -EIO);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "desktops/d1/os", WRITTEN_FIRST + 40), 0);
    said = scrub_rig_scrub(&rig);
    expect(&said, -EUCLEAN, 1, 0, 0);
    says(&said, "it hits desktop d1 (blocks 1016-1031)");
    for (uint64_t block = WRITTEN_FIRST + 16; block < WRITTEN_FIRST + 32; block++) {
        scrub_rig_written(block, bytes);
        scrub_rig_write(&rig, "desktops/d1/os", block, bytes);
        CU_ASSERT_EQUAL(scrub_rig_read(&rig, "desktops/d1/os", block), 0);
    }
    free(bytes);
    scrub_rig_end(&rig);
}

static void a_bounded_scrub_lets_go_in_between(void) {
    struct scrub_rig rig;
    struct scrub_said slow = {0};
    uint8_t *bytes = gild_file_buffer(4096);
    const struct gild_scrub_options how = {
        .rate_bytes = 16u << 20, .found = scrub_rig_found, .context = &slow};
    scrub_rig_begin(&rig);
    for (uint64_t block = IMAGE_BLOCKS; block < 4096; block += 10) {
        scrub_rig_written(block, bytes);
        scrub_rig_write(&rig, "desktops/d2/os", block, bytes);
    }
    scrub_rig_close(&rig);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "log", bytes), 1); /* the last of them */
    scrub_rig_open(&rig);
    struct scrub_said fast = scrub_rig_scrub(&rig);
    expect(&fast, -EUCLEAN, 0, 1, 0);
    says(&fast, "it hits desktop d2 (block 4090)");
    slow.result = gild_store_scrub(rig.store, &how, &slow.counts, &slow.error);
    expect(&slow, -EUCLEAN, 0, 1, 0);
    CU_ASSERT_STRING_EQUAL(slow.text, fast.text);
    /* Each time it takes hold again it reads the nodes above where it goes on, and nothing else. */
    uint64_t again = slow.counts.read_bytes - fast.counts.read_bytes;
    CU_ASSERT(again >= 4 * 4096 && again <= 24 * 4096 && again % 4096 == 0);
    free(bytes);
    scrub_rig_end(&rig);
}

/* ---- the log's lines --------------------------------------------------------------------------
 */

static unsigned times(const char *text, const char *words) {
    unsigned count = 0;
    for (; (text = strstr(text, words)); text += strlen(words))
        count++;
    return count;
}

static void a_loop_of_bad_reads_is_no_flood(void) {
    char path[] = "/var/tmp/gild-test-log-XXXXXX";
    struct scrub_rig rig;
    uint8_t *bytes = gild_file_buffer(4096);
    void *text;
    size_t length;
    scrub_rig_begin(&rig);
    scrub_rig_written(WRITTEN_FIRST, bytes);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "log", bytes), 1);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, 0)), 1);
    int file = mkstemp(path), saved = dup(STDERR_FILENO);
    fflush(stderr);
    CU_ASSERT_FATAL(file >= 0 && saved >= 0 && dup2(file, STDERR_FILENO) >= 0);
    struct gild_disk *disk = scrub_rig_disk(&rig, "desktops/d1/os", 0);
    unsigned failed = 0;
    for (unsigned i = 0; i < 100; i++) {
        uint64_t block = i % 2 ? WRITTEN_FIRST : i % GROUP;
        failed += store_rig_do(disk, GILD_OP_READ, block * 4096, 4096, bytes, 0) == -EIO;
    }
    gild_disk_close(disk, "test", true);
    scrub_rig_close(&rig);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(file);
    CU_ASSERT_EQUAL(failed, 100);
    CU_ASSERT_EQUAL_FATAL(gild_file_slurp(AT_FDCWD, path, 1u << 20, &text, &length), 0);
    CU_ASSERT_EQUAL(times(text, "I/O on disk desktops/d1/os near byte"), 1);
    CU_ASSERT_EQUAL(times(text, "failed 99 times more"), 1);
    CU_ASSERT_EQUAL(times(text, "hits image win@1 (blocks 0-15), desktops d1"), 1);
    CU_ASSERT(times(text, "\n") < 6);
    unlink(path);
    free(text);
    free(bytes);
    scrub_rig_end(&rig);
}

/* ---- a store that does not open ----------------------------------------------------------------
 */

struct told {
    unsigned repaired, quarantined;
    uint64_t image, written, other; /* blocks that are lost: of win@1, d1, d2 */
    char text[1024];
};

static void told_repaired(void *context, const char *sentence) {
    struct told *told = context;
    told->repaired++;
    snprintf(told->text, sizeof told->text, "%s", sentence);
}

static void told_lost(void *context, const char *disk, uint64_t first, uint64_t blocks) {
    struct told *told = context;
    CU_ASSERT(first >= GROUP && first + blocks <= 2 * GROUP);
    *(!strcmp(disk, "images/win@1")     ? &told->image
      : !strcmp(disk, "desktops/d1/os") ? &told->written
                                        : &told->other) += blocks;
}

static void told_quarantined(void *context, const char *disk, const char *why) {
    (void)disk, (void)why;
    ((struct told *)context)->quarantined++;
}

static struct told repair(struct scrub_rig *rig, bool dry_run) {
    struct told told = {0};
    struct gild_error error = {0};
    struct gild_repair_result result;
    const struct gild_repair_report report = {told_repaired, told_lost, told_quarantined, &told};
    int err = gild_store_repair(rig->directory, dry_run, &report, &result, &error);
    if (err)
        fprintf(stderr, "repair: %s\n", error.message);
    CU_ASSERT_EQUAL(err, 0);
    CU_ASSERT_EQUAL(told.quarantined, 0);
    CU_ASSERT_EQUAL(told.image + told.written + told.other, result.lost_blocks);
    return told;
}

static void a_pack_without_its_ends_loses_nothing(void) {
    static const enum scrub_rig_part parts[] = {PART_HEADER, PART_FOOTER};
    struct scrub_rig rig;
    scrub_rig_begin(&rig);
    for (unsigned i = 0; i < 2; i++) {
        struct gild_store *store = NULL;
        struct gild_error error = {0};
        scrub_rig_close(&rig);
        scrub_rig_rot_pack(&rig, parts[i]);
        CU_ASSERT_NOT_EQUAL(gild_store_open(rig.directory, NULL, &store, &error), 0);
        struct told look = repair(&rig, true), told = repair(&rig, false);
        CU_ASSERT(look.repaired == 1 && told.repaired == 1);
        CU_ASSERT(told.image == 0 && told.written == 0 && told.other == 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(told.text, "pack 00000001"));
        CU_ASSERT_EQUAL(repair(&rig, false).repaired, 0);
        scrub_rig_open(&rig);
        expect_reads(&rig, 0);
        struct scrub_said said = scrub_rig_scrub(&rig);
        expect(&said, 0, 0, 0, 0);
    }
    scrub_rig_end(&rig);
}

static void a_repair_names_what_is_lost_in_packs(void) {
    struct scrub_rig rig;
    uint8_t *bytes = gild_file_buffer(4096);
    scrub_rig_begin(&rig);
    scrub_rig_write(&rig, "desktops/d1/os", GROUP + 2, bytes);
    scrub_rig_close(&rig);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, GROUP + 3)), 1);
    scrub_rig_rot_pack(&rig, PART_FOOTER);
    for (unsigned i = 0; i < 2; i++) { /* and again by the next, which does nothing */
        struct told told = repair(&rig, false);
        CU_ASSERT_EQUAL(told.repaired, i == 0);
        CU_ASSERT_EQUAL(told.image, GROUP);
        CU_ASSERT_EQUAL(told.written, GROUP - 1);
        CU_ASSERT_EQUAL(told.other, GROUP);
    }
    scrub_rig_open(&rig);
    expect_reads(&rig, -EIO);
    scrub_rig_import(&rig);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 1);
    expect_reads(&rig, 0);
    free(bytes);
    scrub_rig_end(&rig);
}

/* ---- being broken off ------------------------------------------------------------------------ */

struct stopping {
    struct scrub_said said;
    struct gild_store *store;
    unsigned calls, stop_at;
    int second; /* what another scrub meanwhile was answered */
};

static int stop_later(void *context, const char *what, uint64_t done, uint64_t total) {
    struct stopping *stopping = context;
    struct gild_scrub_result result;
    struct gild_error error = {0};
    const struct gild_scrub_options none = {0};
    CU_ASSERT_PTR_NOT_NULL(what);
    CU_ASSERT(done <= total);
    stopping->second = gild_store_scrub(stopping->store, &none, &result, &error);
    return ++stopping->calls == stopping->stop_at;
}

static void stopping_found(void *context, const struct gild_finding *finding) {
    scrub_rig_found(&((struct stopping *)context)->said, finding);
}

static void broken_off_anywhere_it_is_begun_again(void) {
    struct scrub_rig rig;
    unsigned stops = 0;
    scrub_rig_begin(&rig);
    scrub_rig_import(&rig);
    CU_ASSERT_EQUAL(scrub_rig_read(&rig, "images/win@1", GROUP), 0);
    CU_ASSERT_EQUAL(scrub_rig_rot(&rig, "packs", scrub_rig_block(&rig, GROUP + 3)), 1);
    for (bool ended = false; !ended;) {
        struct stopping stopping = {.store = rig.store, .stop_at = ++stops};
        const struct gild_scrub_options how = {
            .progress = stop_later, .found = stopping_found, .context = &stopping};
        int err = gild_store_scrub(rig.store, &how, &stopping.said.counts, &stopping.said.error);
        ended = stopping.calls < stops;
        CU_ASSERT_EQUAL(stopping.second, -EBUSY);
        CU_ASSERT_EQUAL(err, ended ? 0 : -ECANCELED);
        struct scrub_said check = scrub_rig_check(&rig);
        CU_ASSERT(check.result == 0 || (!ended && check.result == -EUCLEAN && check.damaged == 1));
        expect_reads(&rig, 0); /* from memory, until it is healed */
    }
    CU_ASSERT(stops > 5);
    struct scrub_said said = scrub_rig_scrub(&rig);
    expect(&said, 0, 0, 0, 0);
    scrub_rig_end(&rig);
}

/* ---- guests ---------------------------------------------------------------------------------- */

struct guest {
    struct scrub_rig *rig;
    _Atomic bool stop;
    _Atomic unsigned rounds;
    unsigned faults;
};

static void *guest_main(void *context) {
    struct guest *guest = context;
    uint8_t *bytes = gild_file_buffer(4096), *right = gild_file_buffer(4096);
    struct gild_disk *disk = scrub_rig_disk(guest->rig, "desktops/d2/os", GILD_OPEN_WRITE);
    for (unsigned round = 0; !atomic_load(&guest->stop); round++) {
        uint64_t block = round * 37 % 3000;
        scrub_rig_written(block + round, right);
        memcpy(bytes, right, 4096);
        guest->faults += store_rig_do(disk, GILD_OP_WRITE, block * 4096, 4096, bytes, 0) != 0;
        guest->faults += store_rig_do(disk, GILD_OP_READ, block * 4096, 4096, bytes, 0) != 0;
        guest->faults += memcmp(bytes, right, 4096) != 0;
        atomic_fetch_add(&guest->rounds, 1);
    }
    gild_disk_close(disk, "test", true);
    free(bytes);
    free(right);
    return NULL;
}

static void guests_go_on(void) {
    struct scrub_rig rig;
    struct guest guest = {.rig = &rig};
    pthread_t thread;
    scrub_rig_begin(&rig);
    CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, guest_main, &guest), 0);
    unsigned scrubs = 0;
    while (scrubs < 8 || atomic_load(&guest.rounds) < 3000) {
        if (scrubs++ % 4 == 3) /* a pack is rewritten under its readers */
            scrub_rig_rot_pack(&rig, PART_PRINTS);
        struct scrub_said said = scrub_rig_scrub(&rig);
        if (said.result || said.damaged || said.lost)
            fprintf(stderr, "beside guests: %s%s", said.error.message, said.text);
        CU_ASSERT_EQUAL(said.result, 0);
        CU_ASSERT(!said.damaged && !said.lost && !said.other);
    }
    atomic_store(&guest.stop, true);
    pthread_join(thread, NULL);
    CU_ASSERT_EQUAL(guest.faults, 0);
    scrub_rig_end(&rig);
}

/* ---- the pace -------------------------------------------------------------------------------- */

struct fake_clock {
    uint64_t now, waited, waits;
};

static uint64_t fake_now(void *context) {
    return ((struct fake_clock *)context)->now;
}

static int fake_wait(void *context, uint64_t ns) {
    struct fake_clock *clock = context;
    clock->now += ns;
    clock->waited += ns;
    clock->waits++;
    return 0;
}

static int fake_end(void *context, uint64_t ns) {
    (void)context, (void)ns;
    return -ECANCELED;
}

static void the_pace_is_kept(void) {
    const uint64_t second = 1000000000u, rate = 1u << 20;
    struct fake_clock clock = {.now = 5 * second};
    struct pace pace = {
        .rate_bytes = rate, .now_ns = fake_now, .wait = fake_wait, .context = &clock};
    uint64_t began = clock.now, taken = 0;
    /* However it is taken, never more than the rate and what a rest has saved up. */
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t bytes = i % 7 ? 4096 : 70000;
        CU_ASSERT_EQUAL(pace_take(&pace, bytes), 0);
        taken += bytes;
        double allowed = (double)(clock.now - began + PACE_BURST_NS) / 1e9 * (double)rate;
        CU_ASSERT((double)taken <= allowed + 1);
    }
    /* And not much less, either. */
    CU_ASSERT((double)taken >= (double)(clock.now - began) / 1e9 * (double)rate - 70000);
    /* A long rest saves no more than a burst. */
    clock.now += 3600 * second;
    uint64_t waited = clock.waited;
    CU_ASSERT_EQUAL(pace_take(&pace, 10 * rate), 0);
    CU_ASSERT(clock.waited - waited >= 10 * second - PACE_BURST_NS - 1000);
    /* A device that is slower than the rate is not waited for. */
    uint64_t waits = clock.waits;
    for (unsigned i = 0; i < 100; i++) {
        clock.now += second / 10;
        CU_ASSERT_EQUAL(pace_take(&pace, rate / 20), 0);
    }
    CU_ASSERT_EQUAL(clock.waits, waits);
    pace.rate_bytes = 0;
    waits = clock.waits;
    CU_ASSERT_EQUAL(pace_take(&pace, (uint64_t)1 << 32), 0);
    CU_ASSERT_EQUAL(clock.waits, waits);
    pace.rate_bytes = 1;
    pace.wait = fake_end;
    CU_ASSERT_EQUAL(pace_take(&pace, 4096), -ECANCELED);
}

int main(void) {
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("scrub", NULL, NULL);
    CU_ADD_TEST(suite, a_healthy_store_is_read_whole);
    CU_ADD_TEST(suite, what_has_no_copy_is_lost_until_it_is_imported_again);
    CU_ADD_TEST(suite, memory_is_a_copy);
    CU_ADD_TEST(suite, the_log_is_a_copy);
    CU_ADD_TEST(suite, every_part_of_a_pack_is_made_again);
    CU_ADD_TEST(suite, a_rewritten_pack_has_a_table_of_its_own);
    CU_ADD_TEST(suite, a_dropped_slot_is_no_content);
    CU_ADD_TEST(suite, a_deleted_pack_is_written_again);
    CU_ADD_TEST(suite, a_rotten_map_is_named);
    CU_ADD_TEST(suite, a_guests_rotten_block_is_named_until_it_is_overwritten);
    CU_ADD_TEST(suite, a_desktops_packed_content_is_named);
    CU_ADD_TEST(suite, a_bounded_scrub_lets_go_in_between);
    CU_ADD_TEST(suite, a_loop_of_bad_reads_is_no_flood);
    CU_ADD_TEST(suite, a_pack_without_its_ends_loses_nothing);
    CU_ADD_TEST(suite, a_repair_names_what_is_lost_in_packs);
    CU_ADD_TEST(suite, broken_off_anywhere_it_is_begun_again);
    CU_ADD_TEST(suite, guests_go_on);
    CU_ADD_TEST(suite, the_pace_is_kept);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
