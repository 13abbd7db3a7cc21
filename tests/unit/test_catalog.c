/* The catalogue: transactions are all or nothing, ids are never given twice, scans are in order,
 * rot is never returned as data, and a full map refuses the transaction that met it and no other.
 * A random history of transactions is checked against a model held in memory. */
#include "catalog/catalog.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
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

#define MAP_BYTES (64u << 20)

static uint64_t seed;
static char folder[64];

/* ---- a folder per test ----------------------------------------------------------------------- */

static void path_of(char out[128], const char *name) {
    snprintf(out, 128, "%s/%s", folder, name);
}

static void make_folder(void) {
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.40s/gild-test-XXXXXX", base && *base ? base : "/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
}

static void drop_folder(void) {
    char path[128];
    path_of(path, "data.mdb");
    unlink(path);
    path_of(path, "lock.mdb");
    unlink(path);
    CU_ASSERT_EQUAL(rmdir(folder), 0);
}

static struct gild_catalog *opened(uint64_t map_bytes) {
    struct gild_catalog *catalog;
    struct gild_error error = {0};
    int result = gild_catalog_open(&catalog, folder,
                                   &(struct gild_catalog_options){.map_bytes = map_bytes}, &error);
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

static int put(struct gild_txn *txn, enum gild_table table, const char *key, const char *value) {
    return gild_txn_put(txn, table, key, strlen(key), value, strlen(value));
}

/* "" if there is none. */
static const char *got(struct gild_txn *txn, enum gild_table table, const char *key,
                       char text[256]) {
    size_t length = 255;
    int result = gild_txn_get(txn, table, key, strlen(key), text, &length);
    text[result ? 0 : length] = 0;
    CU_ASSERT_TRUE(result == 0 || result == -ENOENT);
    return text;
}

/* ---- transactions ---------------------------------------------------------------------------- */

static void a_transaction_is_all_or_nothing(void) {
    char text[256];
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "win10", "one"), 0);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_DESKTOPS, "win10", "two"), 0);
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_IMAGES, "win10", text), "one");
    struct gild_txn *reader = begun(catalog, false);
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_IMAGES, "win10", text), "");
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    /* An open reader still sees its own instant; a new one sees the commit. */
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_IMAGES, "win10", text), "");
    gild_txn_abort(reader);
    reader = begun(catalog, false);
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_IMAGES, "win10", text), "one");
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_DESKTOPS, "win10", text), "two");
    CU_ASSERT_EQUAL(put(reader, GILD_TABLE_IMAGES, "x", "y"), -EINVAL);
    CU_ASSERT_EQUAL(gild_txn_commit(reader), 0);

    txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "win10", "three"), 0);
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_DESKTOPS, "win10", 5), 0);
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_DESKTOPS, "win10", 5), -ENOENT);
    gild_txn_abort(txn);
    gild_txn_abort(NULL);
    gild_catalog_close(catalog);

    catalog = opened(MAP_BYTES);
    reader = begun(catalog, false);
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_IMAGES, "win10", text), "one");
    CU_ASSERT_STRING_EQUAL(got(reader, GILD_TABLE_DESKTOPS, "win10", text), "two");
    gild_txn_abort(reader);
    gild_catalog_close(catalog);
    drop_folder();
}

static void a_killed_writer_leaves_what_it_committed(void) {
    char text[256];
    int status;
    make_folder();
    pid_t child = fork();
    if (child == 0) {
        struct gild_catalog *catalog;
        struct gild_txn *txn;
        if (gild_catalog_open(&catalog, folder,
                              &(struct gild_catalog_options){.map_bytes = MAP_BYTES}, NULL) ||
            gild_txn_begin(catalog, true, &txn) || put(txn, GILD_TABLE_POOLS, "kept", "yes") ||
            gild_txn_commit(txn) || gild_txn_begin(catalog, true, &txn) ||
            put(txn, GILD_TABLE_POOLS, "kept", "no") || put(txn, GILD_TABLE_POOLS, "lost", "yes"))
            _exit(1);
        kill(getpid(), SIGKILL);
    }
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT_TRUE(WIFSIGNALED(status));
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true); /* its lock died with it */
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_POOLS, "kept", text), "yes");
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_POOLS, "lost", text), "");
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_POOLS, "kept", "still"), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
    drop_folder();
}

static void keys_and_rooms_are_checked(void) {
    char key[512], value[8];
    size_t length = sizeof value;
    memset(key, 'k', sizeof key);
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, key, 512, "v", 1), -EINVAL);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, key, 0, "v", 1), -EINVAL);
    CU_ASSERT_EQUAL(gild_txn_get(txn, GILD_TABLE_META, key, 512, value, &length), -EINVAL);
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, key, 512), -EINVAL);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, key, 511, "123456789", 9), 0);
    CU_ASSERT_EQUAL(gild_txn_get(txn, GILD_TABLE_META, key, 511, value, &length), -ENOBUFS);
    CU_ASSERT_EQUAL(length, 9);
    CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, key, 511, "", 0), 0);
    length = sizeof value;
    CU_ASSERT_EQUAL(gild_txn_get(txn, GILD_TABLE_META, key, 511, value, &length), 0);
    CU_ASSERT_EQUAL(length, 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
    drop_folder();
}

static void ids_are_never_given_twice(void) {
    uint64_t first = 0;
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "delta", 3, &first), 0);
    CU_ASSERT_EQUAL(first, 1);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "delta", 1, &first), 0);
    CU_ASSERT_EQUAL(first, 4);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "map", 1, &first), 0);
    CU_ASSERT_EQUAL(first, 1);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
    catalog = opened(MAP_BYTES);
    txn = begun(catalog, true);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "delta", 1000, &first), 0);
    CU_ASSERT_EQUAL(first, 5);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "delta", UINT64_MAX - 1000, &first), -EOVERFLOW);
    CU_ASSERT_EQUAL(gild_txn_next_id(txn, "delta", 1, &first), 0);
    CU_ASSERT_EQUAL(first, 1005);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    drop_folder();
}

/* ---- scans and a model ----------------------------------------------------------------------- */

struct seen {
    unsigned count;
    uint32_t last, stop_at;
};

static int see(void *context, const void *key, size_t key_length, const void *value,
               size_t length) {
    struct seen *seen = context;
    CU_ASSERT_EQUAL(key_length, 4);
    uint32_t number = gild_get_be32(key);
    CU_ASSERT_TRUE(seen->count == 0 || number > seen->last);
    CU_ASSERT_TRUE(length == 4 && gild_get_le32(value) == number);
    seen->last = number;
    seen->count++;
    return number == seen->stop_at ? 77 : 0;
}

static void scans_are_in_order(void) {
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    for (uint32_t i = 0; i < 1000; i++) {
        unsigned char key[4], value[4];
        uint32_t number = (i * 617u) % 1000 * 300;
        gild_put_be32(key, number);
        gild_put_le32(value, number);
        CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_PACKS, key, 4, value, 4), 0);
    }
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    txn = begun(catalog, false);
    struct seen seen = {.stop_at = UINT32_MAX};
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, see, &seen), 0);
    CU_ASSERT_EQUAL(seen.count, 1000);
    unsigned char from[4];
    gild_put_be32(from, 299 * 300 + 1); /* between two keys */
    seen = (struct seen){.stop_at = 600 * 300};
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_PACKS, from, 4, see, &seen), 77);
    CU_ASSERT_EQUAL(seen.count, 301);
    gild_put_be32(from, UINT32_MAX);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_PACKS, from, 4, see, &seen), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_MAPS, NULL, 0, see, &seen), 0);
    CU_ASSERT_EQUAL(seen.count, 301);
    uint64_t count = 0;
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_PACKS, &count), 0);
    CU_ASSERT_EQUAL(count, 1000);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    drop_folder();
}

#define MODEL_KEYS 64u
struct model {
    uint32_t length[MODEL_KEYS]; /* 0 = absent */
    uint32_t fill[MODEL_KEYS];
};

static void model_value(const struct model *model, unsigned key, unsigned char *out) {
    struct gild_prng prng;
    gild_prng_seed(&prng, model->fill[key]);
    gild_prng_fill(&prng, out, model->length[key]);
}

static void compare_with_model(struct gild_catalog *catalog, const struct model *model) {
    static unsigned char wanted[16384];
    struct gild_txn *txn = begun(catalog, false);
    for (unsigned key = 0; key < MODEL_KEYS; key++) {
        const void *value;
        size_t length;
        int result = gild_txn_peek(txn, GILD_TABLE_META, &key, sizeof key, &value, &length);
        if (model->length[key] == 0) {
            CU_ASSERT_EQUAL(result, -ENOENT);
            continue;
        }
        model_value(model, key, wanted);
        CU_ASSERT_EQUAL_FATAL(result, 0);
        CU_ASSERT_TRUE(length == model->length[key] && !memcmp(value, wanted, length));
    }
    gild_txn_abort(txn);
}

static void a_random_history_matches_its_model(void) {
    static struct model model, next;
    static unsigned char value[16384];
    struct gild_prng prng;
    gild_prng_seed(&prng, seed);
    make_folder();
    memset(&model, 0, sizeof model);
    struct gild_catalog *catalog = opened(MAP_BYTES);
    for (unsigned round = 0; round < 60; round++) {
        struct gild_txn *txn = begun(catalog, true);
        next = model;
        for (unsigned step = 0; step < 20; step++) {
            unsigned key = (unsigned)gild_prng_below(&prng, MODEL_KEYS);
            if (gild_prng_below(&prng, 3) == 0) {
                int wanted = next.length[key] ? 0 : -ENOENT;
                CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, &key, sizeof key), wanted);
                next.length[key] = 0;
            } else {
                next.length[key] = 1 + (uint32_t)gild_prng_below(&prng, sizeof value);
                next.fill[key] = (uint32_t)gild_prng_next(&prng);
                model_value(&next, key, value);
                CU_ASSERT_EQUAL(
                    gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, value, next.length[key]),
                    0);
            }
        }
        if (gild_prng_below(&prng, 4) == 0) {
            gild_txn_abort(txn);
        } else {
            CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
            model = next;
        }
        if (gild_prng_below(&prng, 8) == 0) {
            gild_catalog_close(catalog);
            catalog = opened(MAP_BYTES);
        }
        compare_with_model(catalog, &model);
    }
    gild_catalog_close(catalog);
    drop_folder();
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* Flips one bit in each copy of `marker` in the data file; gives how many there were. */
static unsigned rot_marker(const char *marker, size_t at) {
    char path[128];
    struct stat file;
    path_of(path, "data.mdb");
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CU_ASSERT_TRUE_FATAL(fd >= 0 && fstat(fd, &file) == 0);
    char *bytes = malloc((size_t)file.st_size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    CU_ASSERT_EQUAL_FATAL(pread(fd, bytes, (size_t)file.st_size, 0), file.st_size);
    unsigned found = 0;
    char *from = bytes, *hit;
    size_t left = (size_t)file.st_size;
    while ((hit = memmem(from, left, marker, strlen(marker)))) {
        hit[at] ^= 4;
        CU_ASSERT_EQUAL(pwrite(fd, hit + at, 1, hit + (ptrdiff_t)at - bytes), 1);
        found++;
        left -= (size_t)(hit + 1 - from);
        from = hit + 1;
    }
    free(bytes);
    close(fd);
    return found;
}

static int count_records(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    (void)key, (void)key_length, (void)value, (void)length;
    ++*(unsigned *)context;
    return 0;
}

static void rot_is_never_returned_as_data(void) {
    char text[256];
    const void *value;
    size_t length = sizeof text;
    unsigned count = 0;
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "a", "good"), 0);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "b", "this-value-will-rot"), 0);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_POOLS, "key-that-will-rot", "v"), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    gild_catalog_close(catalog);
    CU_ASSERT_TRUE(rot_marker("this-value-will-rot", 7) >= 1);
    CU_ASSERT_TRUE(rot_marker("key-that-will-rot", 16) >= 1);

    catalog = opened(MAP_BYTES);
    txn = begun(catalog, false);
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_IMAGES, "a", text), "good");
    CU_ASSERT_EQUAL(gild_txn_get(txn, GILD_TABLE_IMAGES, "b", 1, text, &length), -EBADMSG);
    CU_ASSERT_EQUAL(gild_txn_peek(txn, GILD_TABLE_IMAGES, "b", 1, &value, &length), -EBADMSG);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_IMAGES, NULL, 0, count_records, &count),
                    -EBADMSG);
    CU_ASSERT_EQUAL(count, 1);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_POOLS, NULL, 0, count_records, &count), -EBADMSG);
    gild_txn_abort(txn);
    /* It can be replaced and deleted. */
    txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "b", "new"), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    txn = begun(catalog, false);
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_IMAGES, "b", text), "new");
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    drop_folder();
}

static void refused_as_corrupt(const char *word) {
    struct gild_catalog *catalog;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_catalog_open(&catalog, folder,
                                      &(struct gild_catalog_options){.map_bytes = MAP_BYTES},
                                      &error),
                    -EUCLEAN);
    CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
    CU_ASSERT_PTR_NULL(catalog);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, word));
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, folder));
}

static void a_damaged_file_is_refused_with_a_sentence(void) {
    char path[128], big[3000];
    struct stat before, after;
    make_folder();
    path_of(path, "data.mdb");
    memset(big, 'x', sizeof big);
    struct gild_catalog *catalog = opened(MAP_BYTES);
    struct gild_txn *txn = begun(catalog, true);
    for (unsigned key = 0; key < 200; key++)
        CU_ASSERT_EQUAL(gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, big, sizeof big), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    uint64_t used = gild_catalog_used_bytes(catalog);
    CU_ASSERT_TRUE(used > 200 * 3000 && used < MAP_BYTES);
    gild_catalog_close(catalog);
    CU_ASSERT_EQUAL(stat(path, &before), 0);
    CU_ASSERT_TRUE((uint64_t)before.st_size >= used);

    /* Cut off behind what is used: as good as whole. Cut off before: refused, and not touched. */
    CU_ASSERT_EQUAL(truncate(path, (off_t)used), 0);
    gild_catalog_close(opened(MAP_BYTES));
    CU_ASSERT_EQUAL(truncate(path, (off_t)used / 2), 0);
    refused_as_corrupt("cut off");
    CU_ASSERT_EQUAL(stat(path, &after), 0);
    CU_ASSERT_EQUAL((uint64_t)after.st_size, used / 2);

    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    for (unsigned i = 0; i < 10; i++)
        CU_ASSERT_EQUAL(write(fd, big, sizeof big), (ssize_t)sizeof big);
    close(fd);
    refused_as_corrupt("damaged");
    drop_folder();

    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_catalog_open(&catalog, folder,
                                      &(struct gild_catalog_options){.map_bytes = MAP_BYTES},
                                      &error),
                    -ENOENT);
    CU_ASSERT_EQUAL(error.code, GILD_NOT_FOUND);
}

/* ---- a full map ------------------------------------------------------------------------------ */

static void a_full_map_refuses_and_goes_on(void) {
    static char big[64 << 10];
    char text[256];
    unsigned key = 0, made;
    memset(big, 'x', sizeof big);
    make_folder();
    struct gild_catalog *catalog = opened(2u << 20);
    struct gild_txn *txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "win10", "kept"), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    /* One transaction that is too big. Its later steps and its commit give the same error. */
    txn = begun(catalog, true);
    int result = 0;
    for (key = 0; key < 100 && result == 0; key++)
        result = gild_txn_put(txn, GILD_TABLE_META, &key, sizeof key, big, sizeof big);
    CU_ASSERT_EQUAL(result, -ENOSPC);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "a", "b"), -ENOSPC);
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_IMAGES, "win10", 5), -ENOSPC);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), -ENOSPC);
    /* Many small ones, until it is full for good; what was committed stays. */
    for (made = 0, result = 0; made < 100; made++) {
        txn = begun(catalog, true);
        result = gild_txn_put(txn, GILD_TABLE_META, &made, sizeof made, big, sizeof big);
        int committed = gild_txn_commit(txn);
        CU_ASSERT_EQUAL(committed, result);
        if (result)
            break;
    }
    CU_ASSERT_EQUAL(result, -ENOSPC);
    CU_ASSERT_TRUE(made > 10);
    /* Reads, deletes and, with what they freed, writes. */
    txn = begun(catalog, true);
    CU_ASSERT_STRING_EQUAL(got(txn, GILD_TABLE_IMAGES, "win10", text), "kept");
    for (key = 0; key < made; key += 2)
        CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_META, &key, sizeof key), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    txn = begun(catalog, true);
    CU_ASSERT_EQUAL(put(txn, GILD_TABLE_IMAGES, "win11", "new"), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    uint64_t count = 0;
    txn = begun(catalog, false);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_META, &count), 0);
    CU_ASSERT_EQUAL(count, made / 2);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    drop_folder();
}

/* ---- threads --------------------------------------------------------------------------------- */

#define THREADS 4u
#define ROUNDS 25u

static void *take_ids(void *context) {
    uint64_t *ids = calloc(ROUNDS, sizeof *ids);
    for (unsigned i = 0; ids && i < ROUNDS; i++) {
        struct gild_txn *txn;
        uint64_t seen = 0;
        if (gild_txn_begin(context, true, &txn))
            break;
        if (gild_txn_next_id(txn, "shared", 1, &ids[i]) == 0)
            (void)gild_txn_count(txn, GILD_TABLE_META, &seen);
        if (gild_txn_commit(txn))
            ids[i] = 0;
        if (gild_txn_begin(context, false, &txn) == 0)
            gild_txn_abort(txn);
    }
    return ids;
}

static void writers_exclude_each_other(void) {
    pthread_t threads[THREADS];
    bool given[THREADS * ROUNDS + 1] = {false};
    make_folder();
    struct gild_catalog *catalog = opened(MAP_BYTES);
    for (unsigned i = 0; i < THREADS; i++)
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, take_ids, catalog), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *ids = NULL;
        pthread_join(threads[i], &ids);
        CU_ASSERT_PTR_NOT_NULL_FATAL(ids);
        for (unsigned k = 0; k < ROUNDS; k++) {
            uint64_t id = ((uint64_t *)ids)[k];
            CU_ASSERT_TRUE_FATAL(id >= 1 && id <= THREADS * ROUNDS);
            CU_ASSERT_FALSE(given[id]);
            given[id] = true;
        }
        free(ids);
    }
    gild_catalog_close(catalog);
    drop_folder();
}

int main(void) {
    const char *fixed = getenv("GILD_SEED");
    seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("catalog", NULL, NULL);
    CU_add_test(suite, "a transaction is all or nothing", a_transaction_is_all_or_nothing);
    CU_add_test(suite, "a killed writer leaves what it committed",
                a_killed_writer_leaves_what_it_committed);
    CU_add_test(suite, "keys and rooms are checked", keys_and_rooms_are_checked);
    CU_add_test(suite, "ids are never given twice", ids_are_never_given_twice);
    CU_add_test(suite, "scans are in order", scans_are_in_order);
    CU_add_test(suite, "a random history matches its model", a_random_history_matches_its_model);
    CU_add_test(suite, "rot is never returned as data", rot_is_never_returned_as_data);
    CU_add_test(suite, "a damaged file is refused with a sentence",
                a_damaged_file_is_refused_with_a_sentence);
    CU_add_test(suite, "a full map refuses and goes on", a_full_map_refuses_and_goes_on);
    CU_add_test(suite, "writers exclude each other", writers_exclude_each_other);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
