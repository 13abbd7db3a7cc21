/* The catalogue's journal: a catalogue that is lost, garbled, cut off or put back from an older
 * copy is refused without a change, and made again exactly as its last commit left it. Transactions
 * are random; a model in memory says what must be there. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/prng.h"
#include "catalog/catalog.h"
#include "catalog/journal.h"
#include "catalog/kv.h"
#include "io/file.h"

#define MAP_BYTES (64u << 20)
#define KEYS 300u
#define MOST_VALUE 700u

static uint64_t seed;
static struct gild_prng prng;
static char top[64], catalogue[96], journal[96];
static uint8_t note[GILD_CATALOG_NOTE_BYTES];

/* What must be there: of each key the seed and length of its value, 0 = none. */
struct model {
    uint32_t length[KEYS], content[KEYS];
};
static struct model model;

static const struct gild_catalog_options options = {
    .map_bytes = MAP_BYTES, .journal = journal, .note = note};

/* ---- a folder per test ----------------------------------------------------------------------- */

static void make_folder(void) {
    const char *base = getenv("TMPDIR");
    snprintf(top, sizeof top, "%.40s/gild-test-XXXXXX", base && *base ? base : "/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(top));
    snprintf(catalogue, sizeof catalogue, "%s/catalogue", top);
    snprintf(journal, sizeof journal, "%s/journal", top);
    CU_ASSERT_EQUAL(mkdir(catalogue, 0700), 0);
    memset(&model, 0, sizeof model);
    memset(note, 'n', sizeof note);
}

static int remove_entry(void *context, const char *name) {
    return gild_file_remove(*(int *)context, name);
}

static void empty_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return;
    CU_ASSERT_EQUAL(gild_file_list(fd, remove_entry, &fd), 0);
    close(fd);
    CU_ASSERT_EQUAL(rmdir(path), 0);
}

static void drop_folder(void) {
    empty_folder(catalogue);
    empty_folder(journal);
    CU_ASSERT_EQUAL(rmdir(top), 0);
}

/* The whole of a file; *length of it. */
static void *content_of(const char *folder, const char *name, size_t *length) {
    void *bytes = NULL;
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    CU_ASSERT_EQUAL_FATAL(gild_file_slurp(fd, name, 1u << 30, &bytes, length), 0);
    close(fd);
    return bytes;
}

static void put_content(const char *folder, const char *name, const void *bytes, size_t length) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    CU_ASSERT_EQUAL_FATAL(gild_file_replace(fd, name, bytes, length, 0600), 0);
    close(fd);
}

static int newest(void *context, const char *name) {
    char *best = context;
    if (strstr(name, ".journal") && strcmp(name, best) > 0)
        snprintf(best, 64, "%s", name);
    return 0;
}

static const char *journal_file(char name[64]) {
    int fd = open(journal, O_RDONLY | O_DIRECTORY);
    name[0] = 0;
    CU_ASSERT_EQUAL_FATAL(gild_file_list(fd, newest, name), 0);
    close(fd);
    return name;
}

/* ---- random transactions ----------------------------------------------------------------------
 */

static void fill(uint8_t *value, uint32_t length, uint32_t content) {
    struct gild_prng values;
    gild_prng_seed(&values, content);
    for (uint32_t i = 0; i < length; i++)
        value[i] = (uint8_t)gild_prng_next(&values);
}

static size_t key_of(uint32_t n, char key[32]) {
    return (size_t)snprintf(key, 32, "key %" PRIu32, n * 7919u);
}

static enum gild_table table_of(uint32_t n) {
    return n % 3 ? GILD_TABLE_DESKTOPS : GILD_TABLE_SEGMENTS;
}

/* One transaction of some puts and deletes; the model follows if it commits. */
static void change(struct gild_catalog *catalog, bool commit) {
    struct model next = model;
    struct gild_txn *txn;
    char key[32];
    uint8_t value[MOST_VALUE];
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, true, &txn), 0);
    for (uint64_t i = 1 + gild_prng_below(&prng, 20); i; i--) {
        uint32_t n = (uint32_t)gild_prng_below(&prng, KEYS);
        size_t key_length = key_of(n, key);
        if (next.length[n] && gild_prng_below(&prng, 3) == 0) {
            CU_ASSERT_EQUAL(gild_txn_delete(txn, table_of(n), key, key_length), 0);
            next.length[n] = 0;
            continue;
        }
        next.length[n] = 1 + (uint32_t)gild_prng_below(&prng, MOST_VALUE);
        next.content[n] = (uint32_t)gild_prng_next(&prng);
        fill(value, next.length[n], next.content[n]);
        CU_ASSERT_EQUAL(gild_txn_put(txn, table_of(n), key, key_length, value, next.length[n]), 0);
    }
    if (!commit) {
        gild_txn_abort(txn);
        return;
    }
    CU_ASSERT_EQUAL_FATAL(gild_txn_commit(txn), 0);
    model = next;
}

static bool holds_model(struct gild_catalog *catalog) {
    struct gild_txn *txn;
    uint64_t count[2], wanted = 0;
    uint8_t value[MOST_VALUE], stored[MOST_VALUE];
    char key[32];
    bool same = true;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, false, &txn), 0);
    for (uint32_t n = 0; n < KEYS; n++) {
        size_t length = sizeof stored;
        int result = gild_txn_get(txn, table_of(n), key, key_of(n, key), stored, &length);
        fill(value, model.length[n], model.content[n]);
        wanted += model.length[n] != 0;
        same = same && (model.length[n] ? result == 0 && length == model.length[n] &&
                                              memcmp(stored, value, length) == 0
                                        : result == -ENOENT);
    }
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_DESKTOPS, &count[0]), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_SEGMENTS, &count[1]), 0);
    gild_txn_abort(txn);
    return same && count[0] + count[1] == wanted;
}

static struct gild_catalog *opened(void) {
    struct gild_catalog *catalog;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, catalogue, &options, &error);
    if (result)
        printf("open: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    return catalog;
}

static void changes(unsigned n) {
    struct gild_catalog *catalog = opened();
    while (n--)
        change(catalog, gild_prng_below(&prng, 5) != 0);
    gild_catalog_close(catalog);
}

static void change_surely(void) {
    struct gild_catalog *catalog = opened();
    change(catalog, true);
    gild_catalog_close(catalog);
}

static bool refused(const char *word) {
    struct gild_catalog *catalog = NULL;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, catalogue, &options, &error);
    bool right = result == -EUCLEAN && error.code == GILD_CORRUPT && strstr(error.message, word);
    if (!right)
        printf("\n  open gave %d '%s'\n", result, error.message);
    gild_catalog_close(catalog);
    return right;
}

static struct gild_catalog_rebuilt rebuilt(void) {
    struct gild_catalog_rebuilt told = {0};
    struct gild_error error = {0};
    int result = gild_catalog_rebuild(catalogue, &options, &told, &error);
    if (result)
        printf("rebuild: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    struct gild_catalog *catalog = opened();
    CU_ASSERT_TRUE(holds_model(catalog));
    gild_catalog_close(catalog);
    return told;
}

/* ---- tests ------------------------------------------------------------------------------------
 */

static void test_lost(void) {
    char path[128];
    make_folder();
    for (unsigned round = 0; round < 6; round++) {
        change_surely(); /* what never committed anything has nothing to lose */
        changes(1 + (unsigned)gild_prng_below(&prng, 60));
        snprintf(path, sizeof path, "%s/data.mdb", catalogue);
        CU_ASSERT_EQUAL(round % 2 ? unlink(path) : truncate(path, 0), 0);
        CU_ASSERT_TRUE(refused("missing or empty"));
        CU_ASSERT_EQUAL(rebuilt().lost, 0);
    }
    drop_folder();
}

/* Rot anywhere in the file: what is opened is whole, or it is refused and comes back whole. */
static void test_garbled_page(void) {
    size_t length;
    unsigned refusals = 0, pages = 0;
    make_folder();
    changes(80);
    char *whole = content_of(catalogue, "data.mdb", &length);
    for (size_t page = 0; page < length / 4096; page++) {
        char *rotten = malloc(length);
        memcpy(rotten, whole, length);
        if (gild_is_zero(rotten + page * 4096, 4096)) {
            free(rotten);
            continue; /* allocated ahead, or free: LMDB never looks there */
        }
        pages++;
        for (unsigned i = 0; i < 4096; i++)
            if (page % 2 || gild_prng_below(&prng, 16) == 0)
                rotten[page * 4096 + i] = (char)gild_prng_next(&prng);
        put_content(catalogue, "data.mdb", rotten, length);
        struct gild_catalog *catalog = NULL;
        struct gild_error error = {0};
        int result = gild_catalog_open(&catalog, catalogue, &options, &error);
        if (result) {
            CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
            if (error.code != GILD_CORRUPT)
                printf("\n  page %zu: %d '%s'\n", page, result, error.message);
            size_t now_length;
            char *now = content_of(catalogue, "data.mdb", &now_length);
            CU_ASSERT_TRUE(now_length == length && memcmp(now, rotten, length) == 0);
            free(now);
            rebuilt();
            refusals++;
        } else {
            CU_ASSERT_TRUE(holds_model(catalog)); /* the page was free, or an old root */
            gild_catalog_close(catalog);
        }
        put_content(catalogue, "data.mdb", whole, length);
        free(rotten);
    }
    printf("(%u of %u garbled pages refused) ", refusals, pages);
    CU_ASSERT_TRUE(refusals > 10);
    free(whole);
    drop_folder();
}

/* LMDB's pages above the leaves: flags at byte 10, the end of the nodes' offsets at 12, then these;
 * a node has its key's length at 6, the key at 8. */
static void test_garbled_separator(void) {
    enum { FLAGS = 10, LOWER = 12, OFFSETS = 16, BRANCH = 1 };
    size_t length;
    unsigned separators = 0, refusals = 0;
    make_folder();
    changes(160);
    uint8_t *bytes = content_of(catalogue, "data.mdb", &length);
    for (uint8_t *page = bytes + 2 * 4096; page < bytes + length; page += 4096) {
        if (gild_get_le16(page + FLAGS) != BRANCH)
            continue;
        for (uint16_t at = OFFSETS + 2; at < gild_get_le16(page + LOWER); at += 2) {
            uint8_t *node = page + gild_get_le16(page + at), was = node[8];
            if (!gild_get_le16(node + 6))
                continue;
            node[8] = 0xff;
            put_content(catalogue, "data.mdb", bytes, length);
            struct gild_catalog *catalog = NULL;
            struct gild_error error = {0};
            int result = gild_catalog_open(&catalog, catalogue, &options, &error);
            separators++;
            refusals += result != 0;
            if (!result)
                CU_ASSERT_TRUE(holds_model(catalog)); /* of a page that is free by now */
            gild_catalog_close(catalog);
            node[8] = was;
            put_content(catalogue, "data.mdb", bytes, length);
        }
    }
    printf("(%u of %u garbled separators refused) ", refusals, separators);
    CU_ASSERT_TRUE(refusals > 3);
    free(bytes);
    drop_folder();
}

/* The newer of LMDB's two root pages; a lower number in it would leave the older one the truth. */
static void test_garbled_root(void) {
    enum { NUMBER = 144 };
    size_t length;
    make_folder();
    changes(20);
    uint8_t *bytes = content_of(catalogue, "data.mdb", &length);
    for (unsigned page = 0; page < 2; page++) {
        uint8_t *at = bytes + (size_t)page * 4096 + NUMBER;
        uint64_t number = gild_get_le64(at);
        uint64_t other = gild_get_le64(bytes + (size_t)!page * 4096 + NUMBER);
        for (unsigned bit = 0; bit < 64; bit++) {
            uint64_t garbled = number ^ UINT64_C(1) << bit;
            if (garbled == other + 1 || garbled + 1 == other)
                continue; /* as a crash may leave them */
            gild_put_le64(at, garbled);
            put_content(catalogue, "data.mdb", bytes, length);
            CU_ASSERT_TRUE(refused("damaged"));
        }
        gild_put_le64(at, number);
    }
    free(bytes);
    drop_folder();
}

static void test_older_copy(void) {
    size_t length;
    make_folder();
    changes(20);
    char *older = content_of(catalogue, "data.mdb", &length);
    changes(40);
    put_content(catalogue, "data.mdb", older, length);
    CU_ASSERT_TRUE(refused("older than its journal"));
    rebuilt();
    free(older);
    drop_folder();
}

static void lose_catalogue(void) {
    char path[128];
    snprintf(path, sizeof path, "%s/data.mdb", catalogue);
    CU_ASSERT_EQUAL(unlink(path), 0);
}

/* A record whose transaction the key-value store has or has not: a crash between the two, or a
 * device that failed, leaves that. */
static void test_tail(void) {
    size_t length;
    make_folder();
    for (unsigned round = 0; round < 9; round++) {
        changes(20);
        struct model before = model;
        char *kv = content_of(catalogue, "data.mdb", &length);
        struct gild_catalog *catalog = opened();
        change(catalog, true);
        gild_catalog_close(catalog);
        struct model after = model;
        size_t newer_length;
        char *newer = content_of(catalogue, "data.mdb", &newer_length);
        if (round % 2) { /* lost in this state: the transaction is there, it was durable */
            lose_catalogue();
            rebuilt();
        } else { /* in doubt: not there, then there after all, then not; and something follows */
            for (unsigned look = 0; look < 3; look++) {
                put_content(catalogue, "data.mdb", look == 1 ? newer : kv,
                            look == 1 ? newer_length : length);
                model = look == 1 ? after : before;
                catalog = opened();
                CU_ASSERT_TRUE(holds_model(catalog));
                gild_catalog_close(catalog);
            }
            catalog = opened();
            change(catalog, true);
            gild_catalog_close(catalog);
            put_content(catalogue, "data.mdb", newer, newer_length); /* and that is in doubt too */
            struct model last = model;
            model = after;
            catalog = opened();
            CU_ASSERT_TRUE(holds_model(catalog));
            gild_catalog_close(catalog);
            if (round % 4) {
                lose_catalogue();
                model = last;
                CU_ASSERT_EQUAL(rebuilt().lost, 0);
            }
            changes(5);
            lose_catalogue();
            CU_ASSERT_EQUAL(rebuilt().lost, 0);
        }
        free(newer);
        free(kv);
    }
    drop_folder();
}

/* A flipped byte anywhere in the journal costs nothing while the catalogue is whole. */
static void test_rotten_journal(void) {
    char name[64];
    size_t length;
    make_folder();
    changes(30);
    for (unsigned round = 0; round < 60; round++) {
        char *bytes = content_of(journal, journal_file(name), &length);
        size_t used = length;
        while (used && !bytes[used - 1])
            used--;
        bytes[gild_prng_below(&prng, used)] ^= (char)(1 + gild_prng_below(&prng, 255));
        put_content(journal, name, bytes, length);
        free(bytes);
        struct gild_catalog *catalog = opened();
        CU_ASSERT_TRUE(holds_model(catalog));
        change(catalog, true);
        gild_catalog_close(catalog);
        lose_catalogue();
        CU_ASSERT_EQUAL(rebuilt().lost, 0);
    }
    drop_folder();
}

/* Both lost: what is behind the damage is counted, and what is before it comes back. */
static void test_both(void) {
    char name[64];
    size_t length, early;
    struct model before;
    make_folder();
    changes(1);
    struct gild_catalog *catalog = opened();
    change(catalog, true);
    free(content_of(journal, journal_file(name), &length));
    before = model;
    char *bytes = content_of(journal, name, &length);
    for (early = length; early && !bytes[early - 1];)
        early--;
    early = (early + 4095) & ~(size_t)4095;
    free(bytes);
    for (unsigned i = 0; i < 10; i++)
        change(catalog, true);
    gild_catalog_close(catalog);
    bytes = content_of(journal, name, &length);
    bytes[early + 50] ^= 1;
    put_content(journal, name, bytes, length);
    free(bytes);
    lose_catalogue();
    model = before;
    CU_ASSERT_EQUAL(rebuilt().lost, 10);
    drop_folder();
}

static void test_roll(void) {
    char first[64], name[64];
    struct stat st;
    char path[192];
    make_folder();
    changes(1);
    struct gild_catalog *catalog = opened();
    change(catalog, true);
    journal_file(first);
    for (unsigned i = 0; i < 1500; i++)
        change(catalog, true);
    gild_catalog_close(catalog);
    CU_ASSERT_TRUE(strcmp(first, journal_file(name)) < 0); /* rolled */
    snprintf(path, sizeof path, "%s/%s", journal, name);
    CU_ASSERT_EQUAL(stat(path, &st), 0);
    CU_ASSERT_TRUE(st.st_size < 8 << 20);
    snprintf(path, sizeof path, "%s/%s", journal, first);
    CU_ASSERT_EQUAL(stat(path, &st), -1);
    lose_catalogue();
    rebuilt();
    drop_folder();
}

/* A catalogue from before there were journals gets one with its first change. */
static void test_first_journal(void) {
    struct gild_catalog *catalog;
    const struct gild_catalog_options bare = {.map_bytes = MAP_BYTES};
    make_folder();
    CU_ASSERT_EQUAL_FATAL(gild_catalog_open(&catalog, catalogue, &bare, NULL), 0);
    for (unsigned i = 0; i < 20; i++)
        change(catalog, true);
    gild_catalog_close(catalog);
    catalog = opened();
    CU_ASSERT_TRUE(holds_model(catalog));
    CU_ASSERT_EQUAL(access(journal, F_OK), -1);
    change(catalog, true);
    gild_catalog_close(catalog);
    uint8_t kept[GILD_CATALOG_NOTE_BYTES] = {0};
    CU_ASSERT_EQUAL(gild_catalog_read_note(journal, kept), 0);
    CU_ASSERT_EQUAL(memcmp(kept, note, sizeof note), 0);
    lose_catalogue();
    rebuilt();
    drop_folder();
}

/* ---- refused, and not taken back ------------------------------------------------------------- */

int __real_gild_kv_commit(struct gild_kv_txn *txn);
int __wrap_gild_kv_commit(struct gild_kv_txn *txn);
int __real_gild_journal_retract(struct gild_journal *of);
int __wrap_gild_journal_retract(struct gild_journal *of);

static int refuse_commit, refuse_retract; /* with this error, 0: not */

int __wrap_gild_kv_commit(struct gild_kv_txn *txn) {
    if (!refuse_commit)
        return __real_gild_kv_commit(txn);
    gild_kv_abort(txn);
    return refuse_commit;
}

int __wrap_gild_journal_retract(struct gild_journal *of) {
    return refuse_retract ? refuse_retract : __real_gild_journal_retract(of);
}

/* What a commit of one new key gives. */
static int commit_one(struct gild_catalog *catalog, const char *key) {
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, key, strlen(key), "v", 1), 0);
    return gild_txn_commit(txn);
}

static int found(struct gild_catalog *catalog, const char *key) {
    struct gild_txn *txn;
    char value[8];
    size_t length = sizeof value;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(catalog, false, &txn), 0);
    int result = gild_txn_get(txn, GILD_TABLE_META, key, strlen(key), value, &length);
    gild_txn_abort(txn);
    return result;
}

/* A transaction that LMDB had no room for is refused, and not there. If its record can not be taken
 * out of the journal, it may be found one day: nobody is told then that nothing has happened, and
 * nothing is committed behind it. */
static void test_not_taken_back(void) {
    static const int retracts[] = {-ENOSPC, -ENOMEM, -EIO};
    struct gild_txn *txn;
    make_folder();
    changes(10);
    struct gild_catalog *catalog = opened();
    refuse_commit = -ENOSPC;
    CU_ASSERT_EQUAL(commit_one(catalog, "refused"), -ENOSPC);
    refuse_commit = 0;
    CU_ASSERT_EQUAL(found(catalog, "refused"), -ENOENT);
    change(catalog, true); /* it goes on */
    gild_catalog_close(catalog);
    lose_catalogue();
    rebuilt();
    for (unsigned i = 0; i < sizeof retracts / sizeof retracts[0]; i++) {
        char key[16];
        snprintf(key, sizeof key, "in doubt %u", i);
        catalog = opened();
        refuse_commit = -ENOSPC;
        refuse_retract = retracts[i];
        CU_ASSERT_EQUAL(commit_one(catalog, key), -EIO);
        refuse_commit = refuse_retract = 0;
        CU_ASSERT_EQUAL(found(catalog, key), -ENOENT);
        CU_ASSERT_EQUAL(gild_txn_begin(catalog, true, &txn), -EIO);
        gild_catalog_close(catalog);
        if (i == 0) { /* and there it is */
            lose_catalogue();
            rebuilt();
            catalog = opened();
            CU_ASSERT_EQUAL(found(catalog, key), 0);
            gild_catalog_close(catalog);
        }
        changes(3); /* the next open goes on behind it */
    }
    lose_catalogue();
    rebuilt();
    drop_folder();
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    gild_prng_seed(&prng, seed);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    CU_pSuite suite;
    if (CU_initialize_registry() != CUE_SUCCESS || !(suite = CU_add_suite("journal", NULL, NULL)) ||
        !CU_add_test(suite, "a lost catalogue comes back", test_lost) ||
        !CU_add_test(suite, "no garbled page is taken for the catalogue", test_garbled_page) ||
        !CU_add_test(suite, "no garbled separator leads astray", test_garbled_separator) ||
        !CU_add_test(suite, "no garbled root number leads astray", test_garbled_root) ||
        !CU_add_test(suite, "an older copy is refused", test_older_copy) ||
        !CU_add_test(suite, "a record whose commit did not happen", test_tail) ||
        !CU_add_test(suite, "a rotten journal is begun anew", test_rotten_journal) ||
        !CU_add_test(suite, "catalogue and journal damaged", test_both) ||
        !CU_add_test(suite, "a journal is rolled", test_roll) ||
        !CU_add_test(suite, "a store from before the journal", test_first_journal) ||
        !CU_add_test(suite, "D8: refused, and not taken back", test_not_taken_back))
        return 2;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
