/* What collection inside packs promises: what lives is there as it was, what is dropped is an error
 * for ever and is not found by its fingerprint, nothing is made worse, and a crash at any step
 * leaves one generation or the other, whole. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/place.h"
#include "io/file.h"
#include "pack/format.h"
#include "pack_rig.h"

#define COUNT 1003u /* 63 groups, the last of eleven blocks */
#define GROUPS ((COUNT + 15) / 16)

/* ---- the calls that make something durable, each of which can be the last or fail -------------
 */

enum event { EVENT_WRITE, EVENT_SYNC, EVENT_FOLDER, EVENT_RENAME, EVENTS };

static struct {
    bool on;
    unsigned count, stop_at; /* 0: never */
    int error;               /* what the call then returns; 0: the process ends */
    unsigned last[EVENTS];   /* when each was seen last */
} calls;

static int call(enum event event) {
    if (!calls.on)
        return 0;
    calls.last[event] = ++calls.count;
    if (calls.count != calls.stop_at)
        return 0;
    if (!calls.error)
        _exit(0);
    return calls.error;
}

int rig_before_write(void) {
    return -call(EVENT_WRITE);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    struct stat status;
    fstat(fd, &status);
    errno = call(S_ISDIR(status.st_mode) ? EVENT_FOLDER : EVENT_SYNC);
    return errno ? -1 : __real_fsync(fd);
}

int __real_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    errno = call(EVENT_RENAME);
    return errno ? -1 : __real_renameat2(from_fd, from, to_fd, to, flags);
}

static void watch(unsigned stop_at, int error) {
    memset(&calls, 0, sizeof calls);
    calls.on = true;
    calls.stop_at = stop_at;
    calls.error = error;
}

/* ---- a pack and what of it is there -----------------------------------------------------------
 */

static uint64_t numbers[COUNT];
static uint16_t there[GROUPS]; /* the slots that the pack should have */

static void begin(struct rig *rig) {
    rig_init(rig);
    for (size_t i = 0; i < COUNT; i++)
        numbers[i] = i;
    CU_ASSERT_EQUAL_FATAL(rig_ingest(rig, numbers, COUNT, 0, 0, NULL), 0);
    for (uint32_t g = 0; g < GROUPS; g++)
        there[g] = pack_slots(COUNT - g * 16 < 16 ? COUNT - g * 16 : 16);
}

static int compact(struct rig *rig, const uint16_t *live, struct gild_pack_compacted *done) {
    static const struct gild_pack_compacting options = {0};
    return gild_pack_compact(rig->packs, 1, live, &options, done);
}

/* The rule, said once more: half or more stays whole. */
static void drop(const uint16_t *live) {
    for (uint32_t g = 0; g < GROUPS; g++)
        if (2 * pack_count(live[g] & there[g]) < pack_count(there[g]) || !(live[g] & there[g]))
            there[g] &= live[g];
}

struct finding {
    uint32_t group;
    unsigned count;
};

static void count_finding(void *context, const struct gild_pack_fault *fault) {
    struct finding *finding = context;
    finding->group = fault->groups == 1 ? fault->first_group : UINT32_MAX;
    finding->count++;
}

/* Every block that should be there is, every other is refused; `bad`: one group more can not be
 * read, and is all that a check finds. */
static void is_right(struct rig *rig, uint32_t bad) {
    struct finding found = {0};
    const struct gild_pack_look look = {.deep = true, .found = count_finding, .context = &found};
    size_t refused, expected = 0, all = 0;
    for (uint32_t g = 0; g < GROUPS; g++) {
        all += pack_count(there[g]);
        expected += g == bad ? 0 : pack_count(there[g]);
    }
    CU_ASSERT_EQUAL(rig_verify(rig, numbers, COUNT, &refused), expected);
    CU_ASSERT_EQUAL(refused, COUNT - expected);
    CU_ASSERT_EQUAL(gild_pack_check(rig->packs, 1, &look), found.count ? -EUCLEAN : 0);
    CU_ASSERT_EQUAL(found.count, bad < GROUPS);
    CU_ASSERT(!found.count || found.group == bad);
    struct gild_pack_facts facts;
    CU_ASSERT_EQUAL_FATAL(gild_pack_get_facts(rig->packs, 1, &facts), 0);
    CU_ASSERT_EQUAL(facts.blocks, all);
    CU_ASSERT_EQUAL(memcmp(facts.group_slots, there, sizeof there), 0);
    free(facts.group_slots);
}

static uint32_t generation(struct rig *rig) {
    struct gild_pack_facts facts;
    CU_ASSERT_EQUAL_FATAL(gild_pack_get_facts(rig->packs, 1, &facts), 0);
    free(facts.group_slots);
    return facts.generation;
}

/* Each shape of a mask: nothing, each slot alone, halves and just less, ends, holes, all. */
static void shapes(uint16_t *live) {
    static const uint16_t some[] = {0xffff, 0x00ff, 0x007f, 0xff00, 0xfe00, 0x5555,
                                    0x5554, 0x8001, 0x7ffe, 0x0180, 0x1111, 0x0000};
    for (uint32_t g = 0; g < GROUPS; g++)
        live[g] = g % 30 < 16 ? (uint16_t)(1u << g % 30)
                              : some[(g % 30 - 16) % (sizeof some / sizeof some[0])];
    live[GROUPS - 1] = 0x0402; /* two of eleven, the last among them */
    live[0] = 0;
}

/* ---- what lives and what does not -------------------------------------------------------------
 */

static void what_lives_stays_and_what_does_not_is_an_error(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    struct gild_ingest_totals totals;
    begin(&rig);
    shapes(live);
    for (uint32_t round = 2; round <= 4; round++) {
        uint64_t before, estimate;
        CU_ASSERT_EQUAL(gild_pack_compact_saves(rig.packs, 1, live, &before, &estimate), 0);
        CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
        CU_ASSERT_TRUE_FATAL(done.rewritten);
        CU_ASSERT_EQUAL(done.damaged_groups, 0);
        CU_ASSERT_EQUAL(done.bytes_before, before);
        CU_ASSERT(done.bytes_after < before);
        CU_ASSERT(done.bytes_after * 3 <= estimate * 4 && estimate * 3 <= done.bytes_after * 4);
        unsigned groups = 0; /* that had a block */
        for (uint32_t g = 0; g < GROUPS; g++)
            groups += there[g] != 0;
        CU_ASSERT_EQUAL(done.copied_groups + done.packed_groups + done.gone_groups, groups);
        gild_pack_let_go(done.old);
        drop(live);
        is_right(&rig, GROUPS);
        CU_ASSERT_EQUAL(generation(&rig), round);
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        is_right(&rig, GROUPS);
        CU_ASSERT_EQUAL(generation(&rig), round);
        CU_ASSERT_EQUAL(rig_files(&rig), 1);
        for (uint32_t g = 0; g < GROUPS; g++)
            live[g] &= (uint16_t)(rig_draw() & (round == 3 ? rig_draw() : 0xffff));
    }
    size_t left = 0;
    for (uint32_t g = 0; g < GROUPS; g++)
        left += pack_count(there[g]);
    /* The fingerprints of what went are not found, those of the rest are, where they lie. */
    uint64_t *place = malloc(COUNT * sizeof *place);
    memcpy(place, rig.place, COUNT * sizeof *place);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, COUNT, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, COUNT - left);
    for (uint32_t i = 0; i < COUNT; i++)
        CU_ASSERT_EQUAL(rig.place[i] == place[i], there[i / 16] >> i % 16 & 1);
    free(place);
    rig_fini(&rig);
}

/* A pack that nothing was taken from is no other than it ever was, and whatever drops says so. */
static void a_pack_with_dropped_slots_says_so(void) {
    struct rig rig;
    char path[256];
    size_t length;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    begin(&rig);
    for (unsigned round = 0; round < 2; round++) {
        uint8_t *data = rig_load(rig_path(&rig, 1, path), &length);
        const struct pack_footer *footer = (const void *)(data + length - 4096);
        const struct pack_table *table = (const void *)(data + footer->table_offset);
        CU_ASSERT_EQUAL(((const struct pack_header *)(const void *)data)->head.incompatible, round);
        CU_ASSERT_EQUAL(footer->head.incompatible, round);
        CU_ASSERT_EQUAL(table->features, round);
        CU_ASSERT_EQUAL(table->entry[1].dropped, round ? 0xfffd : 0);
        CU_ASSERT_EQUAL(table->entry[1].blocks, round ? 1 : 16);
        CU_ASSERT_EQUAL(table->entry[0].dropped, round ? 0xffff : 0);
        CU_ASSERT_EQUAL(table->entry[0].bytes == 0, round);
        free(data);
        shapes(live);
        CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
        gild_pack_let_go(done.old);
    }
    rig_fini(&rig);
}

static int stop(void *context, uint64_t bytes) {
    (void)bytes;
    return ++*(int *)context > 3 ? -ETIME : 0;
}

static void what_is_not_worth_it_is_not_done(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    struct gild_pack_compacting options = {.least_saved_percent = 10};
    begin(&rig);
    memset(live, 0xff, sizeof live);
    CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
    CU_ASSERT_FALSE(done.rewritten);
    live[3] = live[5] = 1;
    CU_ASSERT_EQUAL(gild_pack_compact(rig.packs, 1, live, &options, &done), 0);
    CU_ASSERT_FALSE(done.rewritten || done.nothing_lives);
    CU_ASSERT_EQUAL(done.bytes_before, done.bytes_after);
    CU_ASSERT_PTR_NULL(done.old);
    int asked = 0;
    options = (struct gild_pack_compacting){.pace = stop, .context = &asked};
    CU_ASSERT_EQUAL(gild_pack_compact(rig.packs, 1, live, &options, &done), -ETIME);
    CU_ASSERT_FALSE(done.rewritten);
    memset(live, 0, sizeof live);
    CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
    CU_ASSERT(done.nothing_lives && !done.rewritten);
    CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
    CU_ASSERT_EQUAL(gild_pack_compact(rig.packs, 7, live, &options, &done), -ENOENT);
    is_right(&rig, GROUPS);
    CU_ASSERT_EQUAL(generation(&rig), 1);
    CU_ASSERT_EQUAL(rig_files(&rig), 1);
    rig_fini(&rig);
}

/* Whoever read the table before the swap still reads the old file, until it is let go. */
static void readers_stay_in_the_old_file(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    struct gild_pack_page before, after;
    _Alignas(4096) uint8_t page[4096];
    begin(&rig);
    shapes(live);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 1, 1, &before), 0);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    CU_ASSERT_EQUAL(gild_pack_table_page(rig.packs, 1, 1, &after), 0);
    CU_ASSERT_EQUAL(after.generation, before.generation + 1);
    CU_ASSERT_EQUAL(pread(before.fd, page, sizeof page, (off_t)before.file_offset), sizeof page);
    CU_ASSERT_EQUAL(gild_pack_table_verify(page, 1, before.page), 0);
    CU_ASSERT_EQUAL(((struct pack_table *)(void *)page)->entry[1].dropped, 0);
    gild_pack_let_go(done.old);
    CU_ASSERT_EQUAL(pread(before.fd, page, sizeof page, (off_t)before.file_offset), -1);
    rig_fini(&rig);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static void rot(struct rig *rig, uint64_t offset) {
    char path[256];
    size_t length;
    uint8_t *data = rig_load(rig_path(rig, 1, path), &length);
    data[offset] ^= 1;
    rig_save(path, data, length);
    free(data);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(rig, 1, 1, NULL), 0);
}

static struct pack_entry entry_of(struct rig *rig, uint32_t group, struct pack_footer *footer) {
    char path[256];
    size_t length;
    uint8_t *data = rig_load(rig_path(rig, 1, path), &length);
    memcpy(footer, data + length - sizeof *footer, sizeof *footer);
    struct pack_entry entry =
        ((const struct pack_table *)(void *)(data + footer->table_offset))->entry[group];
    free(data);
    return entry;
}

/* A group that can not be verified is no worse afterwards: it keeps all its slots and bytes. */
static void a_damaged_group_is_copied_as_it_is(void) {
    static const uint16_t masks[] = {0x0002, 0xfffe, 0x0000};
    for (unsigned i = 0; i < 3; i++) {
        struct rig rig;
        struct pack_footer footer;
        uint16_t live[GROUPS];
        struct gild_pack_compacted done;
        begin(&rig);
        shapes(live);
        live[9] = masks[i];
        struct pack_entry before = entry_of(&rig, 9, &footer);
        rot(&rig, before.offset + before.bytes / 2);
        CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
        CU_ASSERT_TRUE(done.rewritten);
        CU_ASSERT_EQUAL(done.damaged_groups, i == 0);
        gild_pack_let_go(done.old);
        struct pack_entry after = entry_of(&rig, 9, &footer);
        CU_ASSERT_EQUAL(after.check == before.check, i < 2);
        if (i < 2)
            live[9] = 0xffff;
        drop(live);
        is_right(&rig, i < 2 ? 9 : GROUPS);
        rig_fini(&rig);
    }
}

/* The frame is sound, but not what the fingerprints say: it is not compressed again under them. */
static void content_that_is_not_its_fingerprints_is_copied(void) {
    struct rig rig;
    char path[256];
    size_t length;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    begin(&rig);
    shapes(live);
    uint8_t *data = rig_load(rig_path(&rig, 1, path), &length);
    struct pack_footer *footer = (void *)(data + length - 4096);
    for (uint64_t at = footer->prints_offset; at < footer->index_offset; at += 4096) {
        struct pack_prints *page = (void *)(data + at);
        for (uint32_t k = 0; k < page->count; k++)
            if (page->print[k].where >> 4 == 7) /* group 7 lives by its slot 7 alone */
                page->print[k].where ^= 1;
        page->check = pack_page_check(page, 1, page->page);
    }
    rig_save(path, data, length);
    free(data);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    CU_ASSERT_TRUE(done.rewritten);
    CU_ASSERT_EQUAL(done.damaged_groups, 1);
    gild_pack_let_go(done.old);
    live[7] = 0xffff;
    drop(live);
    size_t refused, expected = 0;
    for (uint32_t g = 0; g < GROUPS; g++)
        expected += pack_count(there[g]);
    CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), expected);
    rig_fini(&rig);
}

static void a_damaged_table_or_fingerprint_page_is_left_to_a_repair(void) {
    for (unsigned i = 0; i < 2; i++) {
        struct rig rig;
        struct pack_footer footer;
        uint16_t live[GROUPS];
        struct gild_pack_compacted done;
        static const struct gild_pack_repair how = {0};
        struct gild_pack_repaired repaired;
        begin(&rig);
        shapes(live);
        CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
        gild_pack_let_go(done.old);
        drop(live);
        entry_of(&rig, 0, &footer);
        rot(&rig, (i ? footer.prints_offset : footer.table_offset) + 200);
        live[2] = 0;
        live[20] = 0;
        CU_ASSERT_EQUAL(compact(&rig, live, &done), -EBADMSG);
        CU_ASSERT_FALSE(done.rewritten);
        CU_ASSERT_EQUAL(rig_files(&rig), 1);
        CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &repaired), 0);
        CU_ASSERT_TRUE(repaired.rewritten);
        CU_ASSERT_EQUAL(repaired.lost_count, 0);
        gild_pack_let_go(repaired.old);
        free(repaired.lost);
        size_t refused, expected = 0;
        for (uint32_t g = 0; g < GROUPS; g++)
            expected += pack_count(there[g]);
        CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), expected);
        CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
        CU_ASSERT_TRUE(done.rewritten);
        gild_pack_let_go(done.old);
        drop(live);
        expected = 0;
        for (uint32_t g = 0; g < GROUPS; g++)
            expected += pack_count(there[g]);
        CU_ASSERT_EQUAL(rig_verify(&rig, numbers, COUNT, &refused), expected);
        rig_fini(&rig);
    }
}

/* Header and footer gone: what drops is made out from the rest. */
static void a_collected_pack_is_salvaged(void) {
    struct rig rig;
    char path[256];
    size_t length;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    static const struct gild_pack_repair how = {0};
    struct gild_pack_repaired repaired;
    begin(&rig);
    shapes(live);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    gild_pack_let_go(done.old);
    drop(live);
    uint8_t *data = rig_load(rig_path(&rig, 1, path), &length);
    memset(data, 0xee, 4096);
    memset(data + length - 4096, 0xee, 4096);
    rig_save(path, data, length);
    free(data);
    CU_ASSERT_EQUAL(rig_reopen(&rig, 1, 1, NULL), -EBADMSG);
    CU_ASSERT_EQUAL_FATAL(gild_packs_add_damaged(rig.packs, 1, NULL), 0);
    CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &repaired), 0);
    CU_ASSERT_TRUE(repaired.rewritten);
    CU_ASSERT_EQUAL(repaired.lost_count, 0);
    gild_pack_let_go(repaired.old);
    free(repaired.lost);
    CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
    is_right(&rig, GROUPS);
    rig_fini(&rig);
}

/* A collected group that rots is healed from a copy that has all slots, to what it was. */
static void a_collected_group_is_healed(void) {
    struct rig rig;
    struct pack_footer footer;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    static const struct gild_pack_repair how = {0};
    struct gild_pack_repaired repaired;
    begin(&rig);
    shapes(live);
    uint64_t place[COUNT];
    uint32_t check[COUNT];
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    gild_pack_let_go(done.old);
    drop(live);
    struct pack_entry entry = entry_of(&rig, 23, &footer);
    rot(&rig, entry.offset + 10);
    /* The second pack has the same blocks, out of line with the first one's groups. */
    memcpy(place, rig.place, sizeof place);
    memcpy(check, rig.check, sizeof check);
    gild_packs_set_indexed(rig.packs, 1, false);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers + 3, COUNT - 3, 0, 0, NULL), 0);
    memcpy(rig.place, place, sizeof place);
    memcpy(rig.check, check, sizeof check);
    CU_ASSERT_EQUAL(gild_pack_repair(rig.packs, 1, &how, &repaired), 0);
    CU_ASSERT_EQUAL(repaired.healed, 1);
    gild_pack_let_go(repaired.old);
    free(repaired.lost);
    is_right(&rig, GROUPS);
    rig_fini(&rig);
}

static void what_is_lost_stays_lost(void) {
    static const uint32_t lost[] = {9, 40};
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    struct gild_ingest_totals totals;
    begin(&rig);
    shapes(live);
    live[9] = live[40] = 0xffff;
    CU_ASSERT_EQUAL(gild_packs_set_lost(rig.packs, 1, lost, 2), 0);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    gild_pack_let_go(done.old);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers + 9 * 16, 16, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, 16);
    rig_fini(&rig);
}

/* ---- crashes and failures ---------------------------------------------------------------------
 */

static void nothing_is_named_before_it_is_durable(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    begin(&rig);
    shapes(live);
    watch(0, 0);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    calls.on = false;
    gild_pack_let_go(done.old);
    CU_ASSERT(calls.last[EVENT_WRITE] < calls.last[EVENT_SYNC]);
    CU_ASSERT(calls.last[EVENT_SYNC] < calls.last[EVENT_RENAME]);
    CU_ASSERT(calls.last[EVENT_RENAME] < calls.last[EVENT_FOLDER]);
    rig_fini(&rig);
}

static void a_crash_at_any_step_leaves_a_whole_pack(void) {
    struct rig rig;
    char path[256];
    uint16_t live[GROUPS], whole[GROUPS];
    unsigned generations[3] = {0};
    size_t length;
    begin(&rig);
    shapes(live);
    memcpy(whole, there, sizeof whole);
    uint8_t *first = rig_load(rig_path(&rig, 1, path), &length);
    bool ended = false;
    for (unsigned step = 1; !ended && step < 100; step++) {
        struct gild_pack_compacted done;
        rig_save(path, first, length);
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            watch(step, 0);
            _exit(compact(&rig, live, &done) == 0 ? 7 : 8);
        }
        int status = 0;
        CU_ASSERT_EQUAL_FATAL(waitpid(child, &status, 0), child);
        CU_ASSERT_FATAL(WIFEXITED(status) && WEXITSTATUS(status) != 8);
        ended = WEXITSTATUS(status) == 7;
        unlink(strcat(rig_path(&rig, 1, path), ".new")); /* as the store's open does */
        rig_path(&rig, 1, path);
        CU_ASSERT_EQUAL_FATAL(rig_reopen(&rig, 1, 1, NULL), 0);
        CU_ASSERT_FATAL(generation(&rig) <= 2);
        generations[generation(&rig)]++;
        memcpy(there, whole, sizeof there);
        if (generation(&rig) == 2)
            drop(live);
        is_right(&rig, GROUPS);
    }
    CU_ASSERT(ended && generations[1] >= 3 && generations[2] >= 2);
    free(first);
    rig_fini(&rig);
}

static void a_failure_at_any_step_changes_nothing(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    int err = -EIO;
    begin(&rig);
    shapes(live);
    for (unsigned step = 1; err && step < 100; step++) {
        watch(step, step % 2 ? ENOSPC : EIO);
        err = compact(&rig, live, &done);
        calls.on = false;
        if (!err)
            break;
        CU_ASSERT(err == -ENOSPC || err == -EIO);
        CU_ASSERT_FALSE(done.rewritten);
        CU_ASSERT_EQUAL(generation(&rig), 1);
        is_right(&rig, GROUPS);
        CU_ASSERT_EQUAL(rig_files(&rig), 1);
    }
    CU_ASSERT_TRUE(done.rewritten);
    gild_pack_let_go(done.old);
    drop(live);
    is_right(&rig, GROUPS);
    rig_fini(&rig);
}

/* The disk writes one byte of what lives wrong: of a group that is copied, or one that is
 * compressed again. */
static void the_new_file_is_read_back_first(void) {
    static const uint32_t groups[] = {16, 9}; /* copied; compressed again */
    struct rig rig;
    struct pack_footer footer;
    struct pack_entry where[2];
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    begin(&rig);
    shapes(live);
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    gild_pack_let_go(done.old);
    for (unsigned i = 0; i < 2; i++)
        where[i] = entry_of(&rig, groups[i], &footer);
    rig_fini(&rig);
    for (unsigned i = 0; i < 2; i++) { /* the same again, to the byte */
        char path[256];
        size_t length, length_after;
        begin(&rig);
        uint8_t *before = rig_load(rig_path(&rig, 1, path), &length);
        rig_wrong_at = where[i].offset + where[i].bytes / 2;
        CU_ASSERT_EQUAL(compact(&rig, live, &done), -EIO);
        CU_ASSERT_EQUAL(rig_wrong_at, 0);
        CU_ASSERT(!done.rewritten && !done.old);
        is_right(&rig, GROUPS);
        CU_ASSERT_EQUAL(rig_files(&rig), 1);
        uint8_t *after = rig_load(path, &length_after);
        CU_ASSERT(length == length_after && memcmp(before, after, length) == 0);
        free(before);
        free(after);
        CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
        gild_pack_let_go(done.old);
        drop(live);
        is_right(&rig, GROUPS);
        rig_fini(&rig);
    }
}

/* ---- how small --------------------------------------------------------------------------------
 */

/* Made text: words of a vocabulary, the frequent ones often, with figures and lines between. */
static void text(uint64_t number, uint8_t *block) {
    uint64_t x = (number + 1) * 0x9e3779b97f4a7c15u;
    size_t at = 0;
    while (at < BLOCK) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint64_t a = x >> 11 & 0xfff, b = x >> 30 & 0xfff, word = a * b >> 12;
        uint64_t letters = (word + 1) * 0xd6e8feb86659fd93u;
        char piece[16];
        int n = 0;
        if (x >> 50 & 15)
            for (int end = 2 + (int)(letters >> 60) % 9; n < end; n++)
                piece[n] = "etaoinshrdlucmfwypvbgkqj"[(letters >> (5 * n) & 31) % 24];
        else
            n = snprintf(piece, sizeof piece, "%u", (unsigned)(x >> 40 & 0xffff));
        piece[n++] = x >> 54 & 7 ? ' ' : '\n';
        for (int i = 0; i < n && at < BLOCK; i++)
            block[at++] = (uint8_t)piece[i];
    }
}

static uint64_t ingest_text(struct rig *rig, size_t count, unsigned every) {
    struct gild_ingest_options options = rig_options(rig, 0);
    struct gild_packs_totals before, after;
    struct gild_ingest *ingest;
    uint8_t block[BLOCK];
    gild_packs_get_totals(rig->packs, &before);
    CU_ASSERT_EQUAL_FATAL(gild_ingest_create(&ingest, rig->packs, &options, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        text(i * every, block);
        CU_ASSERT_EQUAL_FATAL(gild_ingest_add(ingest, block, 1, i), 0);
    }
    CU_ASSERT_EQUAL_FATAL(gild_ingest_finish(ingest, NULL), 0);
    gild_ingest_destroy(ingest, true);
    gild_packs_get_totals(rig->packs, &after);
    return after.file_bytes - before.file_bytes;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Fifteen of every sixteen blocks die: what is left takes at most half more than packed afresh. */
static void what_is_left_is_small(void) {
    enum { BLOCKS = 16 * 1000 };
    struct rig rig, fresh;
    uint16_t *live = malloc(BLOCKS / 16 * sizeof *live);
    struct gild_pack_compacted done;
    uint64_t before, estimate;
    rig_init(&rig);
    rig_init(&fresh);
    uint64_t whole = ingest_text(&rig, BLOCKS, 1);
    uint64_t afresh = ingest_text(&fresh, BLOCKS / 16, 16);
    for (size_t g = 0; g < BLOCKS / 16; g++)
        live[g] = 1;
    CU_ASSERT_EQUAL(gild_pack_compact_saves(rig.packs, 1, live, &before, &estimate), 0);
    double start = now();
    CU_ASSERT_EQUAL_FATAL(compact(&rig, live, &done), 0);
    double seconds = now() - start;
    gild_pack_let_go(done.old);
    printf(
        "(%.2f of the blocks' bytes packed; left is %.2f of packed afresh, estimated %.2f; "
        "%.0f MB/s of content looked at) ",
        (double)whole / (BLOCKS * 4096.0), (double)done.bytes_after / (double)afresh,
        (double)estimate / (double)afresh, BLOCKS * 4096.0 / 1e6 / seconds);
    CU_ASSERT(done.rewritten && done.packed_groups == BLOCKS / 16);
    CU_ASSERT(done.bytes_after * 2 <= afresh * 3);
    CU_ASSERT(estimate * 4 < done.bytes_after * 5 && estimate * 5 > done.bytes_after * 4);
    free(live);
    rig_fini(&rig);
    rig_fini(&fresh);
}

/* ---- what an ingest may share -----------------------------------------------------------------
 */

static void an_unindexed_pack_is_not_shared(void) {
    struct rig rig;
    uint16_t live[GROUPS];
    struct gild_pack_compacted done;
    struct gild_ingest_totals totals;
    begin(&rig);
    CU_ASSERT_EQUAL(gild_packs_set_indexed(rig.packs, 1, false), 0);
    CU_ASSERT_EQUAL(gild_packs_set_indexed(rig.packs, 5, false), -ENOENT);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers, 20, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, 20);
    memset(live, 0xff, sizeof live);
    live[50] = live[51] = live[52] = 1;
    CU_ASSERT_EQUAL(compact(&rig, live, &done), 0);
    CU_ASSERT_TRUE(done.rewritten);
    gild_pack_let_go(done.old);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers + 100, 20, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, 20);
    CU_ASSERT_EQUAL(gild_packs_set_indexed(rig.packs, 1, true), 0);
    CU_ASSERT_EQUAL_FATAL(rig_ingest(&rig, numbers + 200, 20, 0, 0, &totals), 0);
    CU_ASSERT_EQUAL(totals.blocks_new, 0);
    rig_fini(&rig);
}

void add_compact_tests(void) {
    CU_pSuite suite = CU_add_suite("pack, collection", NULL, NULL);
    CU_ADD_TEST(suite, what_lives_stays_and_what_does_not_is_an_error);
    CU_ADD_TEST(suite, a_pack_with_dropped_slots_says_so);
    CU_ADD_TEST(suite, what_is_not_worth_it_is_not_done);
    CU_ADD_TEST(suite, readers_stay_in_the_old_file);
    CU_ADD_TEST(suite, a_damaged_group_is_copied_as_it_is);
    CU_ADD_TEST(suite, content_that_is_not_its_fingerprints_is_copied);
    CU_ADD_TEST(suite, a_damaged_table_or_fingerprint_page_is_left_to_a_repair);
    CU_ADD_TEST(suite, a_collected_pack_is_salvaged);
    CU_ADD_TEST(suite, a_collected_group_is_healed);
    CU_ADD_TEST(suite, what_is_lost_stays_lost);
    CU_ADD_TEST(suite, nothing_is_named_before_it_is_durable);
    CU_ADD_TEST(suite, a_crash_at_any_step_leaves_a_whole_pack);
    CU_ADD_TEST(suite, a_failure_at_any_step_changes_nothing);
    CU_ADD_TEST(suite, the_new_file_is_read_back_first);
    CU_ADD_TEST(suite, what_is_left_is_small);
    CU_ADD_TEST(suite, an_unindexed_pack_is_not_shared);
}
