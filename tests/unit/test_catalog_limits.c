/* Where LMDB ends: a full map, no reader's slot left, a data file cut off at each page, each page
 * of it garbled in turn. The catalogue refuses with a sentence or serves what was committed; it
 * never takes its process along, and its journal makes it again.
 *
 * What LMDB does by itself with a garbled page (it may assert, fault, or go round in circles) is
 * tried in child processes and told; the probe of an open meets the same in a child of its own. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/prng.h"
#include "catalog/catalog.h"
#include "io/file.h"

#define MAP_BYTES (64u << 20)
#define PAGE 4096u
#define KEYS 240u
#define BIG_EACH 20u /* every so many keys have a value of several pages */
#define BIG_BYTES 9000u
#define READERS 1024u
#define CHILD_SECONDS 20u

static uint64_t seed;
static struct gild_prng prng;
static char top[64], catalogue[96], journal[96];
static const struct gild_catalog_options options = {.map_bytes = MAP_BYTES, .journal = journal};

/* ---- a folder per test ----------------------------------------------------------------------- */

static void make_folder(void) {
    const char *base = getenv("TMPDIR");
    snprintf(top, sizeof top, "%.40s/gild-test-XXXXXX", base && *base ? base : "/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(top));
    snprintf(catalogue, sizeof catalogue, "%s/catalogue", top);
    snprintf(journal, sizeof journal, "%s/journal", top);
    CU_ASSERT_EQUAL(mkdir(catalogue, 0700), 0);
}

static int remove_entry(void *context, const char *name) {
    return gild_file_remove(*(int *)context, name);
}

static void drop_folder(void) {
    const char *const folders[] = {catalogue, journal};
    for (unsigned i = 0; i < 2; i++) {
        int fd = open(folders[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            continue;
        CU_ASSERT_EQUAL(gild_file_list(fd, remove_entry, &fd), 0);
        close(fd);
        CU_ASSERT_EQUAL(rmdir(folders[i]), 0);
    }
    CU_ASSERT_EQUAL(rmdir(top), 0);
}

static struct gild_catalog *opened(const struct gild_catalog_options *how) {
    struct gild_catalog *catalog;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, catalogue, how, &error);
    if (result)
        printf("open: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    return catalog;
}

static struct gild_txn *begun(struct gild_catalog *catalog, bool write) {
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, write, &txn), 0);
    return txn;
}

/* ---- known content --------------------------------------------------------------------------- */

static size_t value_of(uint32_t key, uint8_t value[BIG_BYTES]) {
    struct gild_prng bytes;
    size_t length = key % BIG_EACH == 7 ? BIG_BYTES : 40 + key % 300;
    gild_prng_seed(&bytes, key + 1);
    for (size_t i = 0; i < length; i++)
        value[i] = (uint8_t)gild_prng_next(&bytes);
    return length;
}

static enum gild_table table_of(uint32_t key) {
    return key % 3 ? GILD_TABLE_DESKTOPS : GILD_TABLE_SEGMENTS;
}

/* Several transactions, with deletes, so that there are free pages too. */
static void put_content(struct gild_catalog *catalog) {
    static uint8_t value[BIG_BYTES];
    for (uint32_t first = 0; first < KEYS; first += 30) {
        struct gild_txn *txn = begun(catalog, true);
        for (uint32_t key = first; key < first + 30; key++) {
            size_t length = value_of(key, value);
            CU_ASSERT_EQUAL(gild_txn_put(txn, table_of(key), &key, sizeof key, value, length), 0);
            CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, value, length), 0);
        }
        CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    }
    struct gild_txn *txn = begun(catalog, true);
    for (uint32_t key = 0; key < KEYS; key++)
        CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, &key, sizeof key), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
}

/* 0: all of it is there and nothing else. */
static int content_is_whole(struct gild_catalog *catalog) {
    static uint8_t value[BIG_BYTES], found[BIG_BYTES];
    struct gild_txn *txn;
    uint64_t first = 0, second = 0;
    int result = gild_txn_begin(catalog, false, &txn);
    if (result)
        return result;
    for (uint32_t key = 0; key < KEYS && !result; key++) {
        size_t length = value_of(key, value), got = sizeof found;
        result = gild_txn_get(txn, table_of(key), &key, sizeof key, found, &got);
        if (!result && (got != length || memcmp(found, value, length) != 0))
            result = -EILSEQ; /* nobody gives this: wrong bytes */
    }
    if (!result)
        result = gild_txn_count(txn, GILD_TABLE_DESKTOPS, &first);
    if (!result)
        result = gild_txn_count(txn, GILD_TABLE_SEGMENTS, &second);
    gild_txn_abort(txn);
    return result ? result : first + second == KEYS ? 0 : -EILSEQ;
}

/* ---- a full map ------------------------------------------------------------------------------ */

static void a_full_map_with_a_journal_goes_on(void) {
    static uint8_t big[16 << 10];
    const struct gild_catalog_options small = {.map_bytes = 3u << 20, .journal = journal};
    unsigned made = 0;
    make_folder();
    struct gild_catalog *catalog = opened(&small);
    put_content(catalog);
    for (unsigned round = 0; round < 3; round++) {
        int result = 0;
        for (made = 0; made < 1000 && !result; made += !result) {
            uint32_t key = 100000 + made;
            struct gild_txn *txn = begun(catalog, true);
            result = gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, big, sizeof big);
            int committed = gild_txn_commit(txn);
            CU_ASSERT_TRUE(result == 0 || committed == result);
            result = committed;
        }
        CU_ASSERT_EQUAL(result, -ENOSPC);
        CU_ASSERT_TRUE(made > 20);
        /* Undone: the key that did not fit is not there; all else is, and comes back by an open. */
        uint32_t key = 100000 + made;
        struct gild_txn *txn = begun(catalog, false);
        size_t length = sizeof big;
        CU_ASSERT_EQUAL(gild_txn_get(txn, GILD_TABLE_META, &key, sizeof key, big, &length),
                        -ENOENT);
        gild_txn_abort(txn);
        CU_ASSERT_EQUAL(content_is_whole(catalog), 0);
        gild_catalog_close(catalog);
        CU_ASSERT_EQUAL(gild_catalog_verify(catalogue, &small, NULL), 0);
        catalog = opened(&small);
        CU_ASSERT_EQUAL(content_is_whole(catalog), 0);
        /* One by one: none of the deletes needs more room than there is. */
        for (key = 100000; key < 100000 + made; key++) {
            txn = begun(catalog, true);
            CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, &key, sizeof key), 0);
            CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
        }
    }
    gild_catalog_close(catalog);
    CU_ASSERT_EQUAL(gild_catalog_verify(catalogue, &small, NULL), 0);
    drop_folder();
}

/* ---- no slot left ---------------------------------------------------------------------------- */

static void with_no_slot_left_it_says_so_and_goes_on(void) {
    static struct gild_txn *readers[READERS + 1];
    unsigned count = 0;
    int result = 0;
    make_folder();
    struct gild_catalog *catalog = opened(&options);
    put_content(catalog);
    struct gild_txn *txn = begun(catalog, false);
    uint64_t before = 0, seen = 0;
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_META, &before), 0);
    gild_txn_abort(txn);
    while (count <= READERS && !(result = gild_txn_begin(catalog, false, &readers[count])))
        count++;
    CU_ASSERT_EQUAL(result, -EAGAIN);
    CU_ASSERT_EQUAL(count, READERS);
    /* Writers need none, and what they commit the open readers do not see. */
    uint32_t key = 77777;
    txn = begun(catalog, true);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, "x", 1), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    CU_ASSERT_TRUE_FATAL(count > 0);
    CU_ASSERT_EQUAL(gild_txn_count(readers[0], GILD_TABLE_META, &seen), 0);
    CU_ASSERT_EQUAL(seen, before);
    gild_txn_abort(readers[--count]);
    CU_ASSERT_EQUAL(content_is_whole(catalog), 0);
    while (count)
        gild_txn_abort(readers[--count]);
    CU_ASSERT_EQUAL(content_is_whole(catalog), 0);
    gild_catalog_close(catalog);
    drop_folder();
}

/* ---- damaged files --------------------------------------------------------------------------- */

struct data_file {
    uint8_t *bytes; /* as it should be */
    uint64_t length;
    uint64_t used; /* pages */
};

static int data_fd(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", catalogue);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    return fd;
}

static struct data_file read_data(uint64_t used_bytes) {
    struct data_file file = {.used = used_bytes / PAGE};
    int fd = data_fd();
    CU_ASSERT_EQUAL_FATAL(gild_file_size(fd, &file.length), 0);
    file.bytes = malloc(file.length);
    CU_ASSERT_PTR_NOT_NULL_FATAL(file.bytes);
    CU_ASSERT_EQUAL_FATAL(gild_file_read(fd, file.bytes, file.length, 0), 0);
    close(fd);
    return file;
}

/* Puts it back as it was, but for one page, and for its length. page NULL: none. */
static void write_data(const struct data_file *file, uint64_t number, const uint8_t *page,
                       uint64_t length) {
    int fd = data_fd();
    CU_ASSERT_EQUAL_FATAL(ftruncate(fd, 0), 0);
    CU_ASSERT_EQUAL_FATAL(gild_file_write(fd, file->bytes, length, 0), 0);
    if (page)
        CU_ASSERT_EQUAL_FATAL(gild_file_write(fd, page, PAGE, number * PAGE), 0);
    close(fd);
}

static bool data_is(const struct data_file *file, uint64_t number, const uint8_t *page,
                    uint64_t length) {
    struct data_file now = read_data(0);
    uint64_t after = number + 1;
    bool same =
        now.length == length && (!page || memcmp(now.bytes + number * PAGE, page, PAGE) == 0);
    if (same && !page)
        same = memcmp(now.bytes, file->bytes, length) == 0;
    else if (same)
        same = memcmp(now.bytes, file->bytes, number * PAGE) == 0 &&
               memcmp(now.bytes + after * PAGE, file->bytes + after * PAGE,
                      length - after * PAGE) == 0;
    free(now.bytes);
    return same;
}

enum outcome { WHOLE, REFUSED, WRONG };

/* Opens it: whole, or refused as corrupt with a sentence; anything else is wrong. */
static enum outcome try_open(const struct gild_catalog_options *how) {
    struct gild_catalog *catalog;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, catalogue, how, &error);
    if (result)
        return error.code == GILD_CORRUPT && strstr(error.message, catalogue) ? REFUSED : WRONG;
    result = content_is_whole(catalog);
    gild_catalog_close(catalog);
    return result ? WRONG : WHOLE;
}

static void rebuilt_is_whole(void) {
    struct gild_catalog_rebuilt rebuilt;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_catalog_rebuild(catalogue, &options, &rebuilt, &error), 0);
    CU_ASSERT_EQUAL(rebuilt.lost, 0);
    CU_ASSERT_EQUAL(try_open(&options), WHOLE);
}

static struct data_file make_content(void) {
    make_folder();
    struct gild_catalog *catalog = opened(&options);
    put_content(catalog);
    uint64_t used = gild_catalog_used_bytes(catalog);
    gild_catalog_close(catalog);
    return read_data(used);
}

/* What is whole can be changed: pages that were free, and are zeroes now, are written over. Without
 * a journal, which must not have more than the next file that is tried. */
static int goes_on(void) {
    static const uint8_t big[BIG_BYTES] = {1};
    const struct gild_catalog_options bare = {.map_bytes = MAP_BYTES};
    struct gild_catalog *catalog = opened(&bare);
    int result = 0;
    for (uint32_t key = 50000; key < 50020 && !result; key++) {
        struct gild_txn *txn = begun(catalog, true);
        CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, big, sizeof big), 0);
        result = gild_txn_commit(txn);
    }
    if (!result)
        result = content_is_whole(catalog);
    gild_catalog_close(catalog);
    return result;
}

static void cut_off_at_each_page_it_is_refused_or_whole(void) {
    struct data_file file = make_content();
    unsigned outcomes[3] = {0};
    for (uint64_t pages = 1; pages <= file.used; pages++) {
        write_data(&file, 0, NULL, pages * PAGE);
        enum outcome outcome = try_open(&options);
        outcomes[outcome]++;
        CU_ASSERT_NOT_EQUAL(outcome, WRONG);
        if (outcome == REFUSED)
            CU_ASSERT_TRUE(data_is(&file, 0, NULL, pages * PAGE));
        if (outcome == WHOLE)
            CU_ASSERT_EQUAL(goes_on(), 0);
    }
    printf("cut off: refused %u, whole %u of %" PRIu64 " lengths; ", outcomes[REFUSED],
           outcomes[WHOLE], file.used);
    CU_ASSERT_TRUE(outcomes[REFUSED] > 10);
    CU_ASSERT_TRUE(outcomes[WHOLE] >= 1);
    write_data(&file, 0, NULL, file.used / 2 * PAGE);
    CU_ASSERT_EQUAL(try_open(&options), REFUSED);
    rebuilt_is_whole();
    free(file.bytes);
    drop_folder();
}

/* D6: too short, but whole, as a crash may leave it; and older than its journal. It is refused for
 * that, and stays as short as it was. */
static void a_short_one_that_is_refused_is_not_changed(void) {
    static const uint8_t value[8] = {1};
    struct data_file file = make_content();
    unsigned whole = 0, last = 4;
    for (unsigned newer = 0; newer < 2; newer++) {
        for (uint64_t pages = file.used - last; pages < file.used; pages++) {
            write_data(&file, 0, NULL, pages * PAGE);
            enum outcome outcome = try_open(&options);
            whole += outcome == WHOLE;
            CU_ASSERT_TRUE(outcome == REFUSED || (outcome == WHOLE && !newer));
            if (outcome == REFUSED)
                CU_ASSERT_TRUE(data_is(&file, 0, NULL, pages * PAGE));
        }
        if (newer)
            break;
        write_data(&file, 0, NULL, file.length);
        struct gild_catalog *catalog = opened(&options);
        struct gild_txn *txn = begun(catalog, true);
        CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, "newer", 5, value, sizeof value), 0);
        CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
        txn = begun(catalog, true); /* the journal may have one more than the catalogue */
        CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, "newer", 5), 0);
        CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
        gild_catalog_close(catalog);
    }
    CU_ASSERT_TRUE(whole >= 1);
    free(file.bytes);
    drop_folder();
}

enum garble { NOISE, ZEROES, A_BIT, ANOTHER_PAGE, HEADER, GARBLES };
static const char *const garbles[] = {"noise", "zeroes", "a bit", "another page", "header"};

static void garble(const struct data_file *file, uint64_t number, enum garble how, uint8_t *page) {
    memcpy(page, file->bytes + number * PAGE, PAGE);
    uint64_t other = (number + 1 + gild_prng_below(&prng, file->used - 1)) % file->used;
    switch (how) {
    case NOISE:
        for (unsigned i = 0; i < PAGE; i++)
            page[i] = (uint8_t)gild_prng_next(&prng);
        break;
    case ZEROES:
        memset(page, 0, PAGE);
        break;
    case A_BIT:
        page[gild_prng_below(&prng, 200)] ^= (uint8_t)(1u << gild_prng_below(&prng, 8));
        break;
    case ANOTHER_PAGE:
        memcpy(page, file->bytes + other * PAGE, PAGE);
        break;
    default: /* flags, and the bounds of its free room */
        for (unsigned i = 10; i < 16; i++)
            page[i] = (uint8_t)gild_prng_next(&prng);
        break;
    }
}

static void with_each_page_garbled_it_is_refused_or_whole(void) {
    static uint8_t page[PAGE];
    struct data_file file = make_content();
    unsigned outcomes[GARBLES][3] = {0};
    for (uint64_t number = 0; number < file.used; number++)
        for (unsigned how = 0; how < GARBLES; how++) {
            garble(&file, number, (enum garble)how, page);
            write_data(&file, number, page, file.length);
            enum outcome outcome = try_open(&options);
            outcomes[how][outcome]++;
            if (outcome == WRONG)
                printf("page %" PRIu64 ", %s: neither refused nor whole\n", number, garbles[how]);
            CU_ASSERT_NOT_EQUAL(outcome, WRONG);
            if (outcome == REFUSED)
                CU_ASSERT_TRUE(data_is(&file, number, page, file.length));
            if (outcome == REFUSED && gild_prng_below(&prng, 16) == 0)
                rebuilt_is_whole();
        }
    for (unsigned how = 0; how < GARBLES; how++) {
        printf("%s: refused %u, whole %u; ", garbles[how], outcomes[how][REFUSED],
               outcomes[how][WHOLE]);
        CU_ASSERT_TRUE(outcomes[how][REFUSED] > 10);
    }
    free(file.bytes);
    drop_folder();
}

#define BRANCH \
    1u /* of a page's flags, at byte 10; its children's nodes are named from byte 16 on */

/* The second child of each branch is its first once more. */
static unsigned turn_back(struct data_file *file) {
    unsigned turned = 0;
    for (uint64_t number = 2; number < file->used; number++) {
        uint8_t *page = file->bytes + number * PAGE;
        uint16_t flags, lower, node[2];
        memcpy(&flags, page + 10, sizeof flags);
        memcpy(&lower, page + 12, sizeof lower);
        memcpy(node, page + 16, sizeof node);
        if (flags != BRANCH || lower < 16 + sizeof node)
            continue;
        memcpy(page + node[1], page + node[0], 6); /* the child's page number */
        turned++;
    }
    return turned;
}

static int count_keys(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    (void)key, (void)key_length, (void)value, (void)length;
    ++*(unsigned *)context;
    return 0;
}

/* Every page is whole, and every record; but a walk comes back to where it was. */
static void a_walk_that_turns_back_is_refused(void) {
    const struct gild_catalog_options bare = {.map_bytes = MAP_BYTES};
    struct data_file file = make_content();
    CU_ASSERT_TRUE_FATAL(turn_back(&file) >= 2);
    write_data(&file, 0, NULL, file.length);
    CU_ASSERT_EQUAL(try_open(&options), REFUSED);
    struct gild_catalog *catalog = opened(&bare); /* which looks at no record */
    struct gild_txn *txn = begun(catalog, false);
    for (unsigned i = 0; i < 2; i++) {
        unsigned keys = 0;
        uint64_t count = 0;
        enum gild_table table = i ? GILD_TABLE_SEGMENTS : GILD_TABLE_DESKTOPS;
        CU_ASSERT_EQUAL(gild_txn_scan(txn, table, NULL, 0, count_keys, &keys), -EUCLEAN);
        CU_ASSERT_EQUAL(gild_txn_count(txn, table, &count), 0);
        CU_ASSERT_TRUE(keys < count); /* none of them twice */
    }
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    free(file.bytes);
    drop_folder();
}

/* With no journal nothing looks at the file first: this is LMDB by itself, in a child. */
static int alone(void) {
    const struct gild_catalog_options bare = {.map_bytes = MAP_BYTES};
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        alarm(CHILD_SECONDS);
        _exit((int)try_open(&bare));
    }
    int status = 0;
    CU_ASSERT_TRUE_FATAL(child > 0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Nor is one that was cut off believed where nobody has looked first; refused, it keeps its length.
 */
static void cut_off_without_a_journal_it_is_not_believed(void) {
    struct data_file file = make_content();
    unsigned refused = 0;
    for (uint64_t pages = 3; pages < file.used; pages += 5) {
        write_data(&file, 0, NULL, pages * PAGE);
        int outcome = alone();
        refused += outcome == REFUSED;
        CU_ASSERT_NOT_EQUAL(outcome, WRONG); /* LMDB may assert */
        if (outcome == REFUSED)
            CU_ASSERT_TRUE(data_is(&file, 0, NULL, pages * PAGE));
    }
    CU_ASSERT_TRUE(refused > 10);
    free(file.bytes);
    drop_folder();
}

static void told_what_lmdb_does_alone(void) {
    static uint8_t page[PAGE];
    struct data_file file = make_content();
    unsigned ended[GARBLES][256] = {0};
    for (uint64_t number = 0; number < file.used; number++)
        for (unsigned how = 0; how < GARBLES; how++) {
            garble(&file, number, (enum garble)how, page);
            write_data(&file, number, page, file.length);
            ended[how][alone() & 255]++;
        }
    for (unsigned how = 0; how < GARBLES; how++)
        printf(
            "\n    LMDB alone, %s: refused %u, whole %u, error or wrong at reading %u, "
            "assertion %u, SIGSEGV %u, SIGBUS %u, no end %u",
            garbles[how], ended[how][REFUSED], ended[how][WHOLE], ended[how][WRONG],
            ended[how][128 + SIGABRT], ended[how][128 + SIGSEGV], ended[how][128 + SIGBUS],
            ended[how][128 + SIGALRM]);
    printf("\n  ");
    free(file.bytes);
    drop_folder();
}

int main(void) {
    const char *fixed = getenv("GILD_SEED");
    seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    gild_prng_seed(&prng, seed);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("catalogue's limits", NULL, NULL);
    CU_add_test(suite, "a full map with a journal goes on", a_full_map_with_a_journal_goes_on);
    CU_add_test(suite, "with no slot left it says so and goes on",
                with_no_slot_left_it_says_so_and_goes_on);
    CU_add_test(suite, "cut off at each page it is refused or whole",
                cut_off_at_each_page_it_is_refused_or_whole);
    CU_add_test(suite, "D6: a short one that is refused is not changed",
                a_short_one_that_is_refused_is_not_changed);
    CU_add_test(suite, "with each page garbled it is refused or whole",
                with_each_page_garbled_it_is_refused_or_whole);
    CU_add_test(suite, "D9: a walk that turns back is refused", a_walk_that_turns_back_is_refused);
    CU_add_test(suite, "D6: cut off without a journal it is not believed",
                cut_off_without_a_journal_it_is_not_believed);
    CU_add_test(suite, "what LMDB does alone is told", told_what_lmdb_does_alone);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
