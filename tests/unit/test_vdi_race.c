/* Admins at work at once: threads make, delete and open the same few desktops and versions on a
 * real store. Every refusal is one that the verb may give; at the end the catalogue is whole, and
 * so it is after a reopen. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "disk/store.h"
#include "gild/disk.h"
#include "vdi/vdi.h"

#define IMAGE_BYTES (1u << 20)
#define THREADS 4u
#define ROUNDS 150u
#define VERSIONS 6u

static uint64_t seed;
static char folder[64];

struct admin {
    struct gild_store *store;
    struct gild_prng prng;
    pthread_t thread;
    unsigned done, refused, odd;
    char message[512]; /* of the first odd error */
};

struct write {
    struct gild_op op;
    sem_t done;
};

static void write_done(struct gild_op *op) {
    sem_post(&((struct write *)op)->done);
}

static int write_block(struct gild_disk *disk, uint64_t offset) {
    uint8_t block[4096];
    struct iovec payload = {block, sizeof block};
    struct write write = {.op = {.disk = disk,
                                 .kind = GILD_OP_WRITE,
                                 .offset_bytes = offset,
                                 .length_bytes = sizeof block,
                                 .payload = &payload,
                                 .payload_count = 1,
                                 .done = write_done}};
    memset(block, 0x77, sizeof block);
    sem_init(&write.done, 0, 0);
    gild_disk_post(&write.op);
    while (sem_wait(&write.done))
        continue;
    sem_destroy(&write.done);
    return write.op.error;
}

static int open_and_write(struct admin *admin, const char *path, struct gild_error *error) {
    struct gild_disk *disk;
    bool writable;
    int result = gild_disk_open(admin->store, path, "test", GILD_OPEN_WRITE_IF_POSSIBLE, &disk,
                                &writable, error);
    if (result)
        return result;
    if (writable && write_block(disk, gild_prng_below(&admin->prng, 256) * 4096))
        result = gild_fail(error, GILD_FAILED, EIO, "a write to %s failed", path);
    gild_disk_close(disk, "test", writable);
    return result;
}

static void one_step(struct admin *admin) {
    struct gild_prng *prng = &admin->prng;
    struct gild_error error = {0};
    struct gild_freed freed;
    char name[16], path[64], image[16];
    uint32_t made;
    int result;
    snprintf(name, sizeof name, "d%u", (unsigned)gild_prng_below(prng, 4));
    snprintf(image, sizeof image, "win@%u", 1 + (unsigned)gild_prng_below(prng, VERSIONS));
    switch (gild_prng_below(prng, 8)) {
    case 0:
    case 1:
        result = gild_desktop_create(admin->store,
                                     &(struct gild_desktop_create){.name = name, .image = image},
                                     &made, &error);
        break;
    case 2:
        result = gild_desktop_delete(admin->store, name, false, &freed, &error);
        break;
    case 3:
        result = gild_desktop_delete(admin->store, "d*", false, &freed, &error);
        break;
    case 4:
        result = gild_pool_create(admin->store, "p", image, 3, NULL, NULL, &error);
        break;
    case 5:
        result = gild_pool_delete(admin->store, "p", false, &freed, &error);
        break;
    case 6:
        result = gild_prng_below(prng, 16)
                     ? 0
                     : gild_image_delete(admin->store, image, false, &freed, &error);
        break;
    default:
        snprintf(path, sizeof path, "desktops/%s/os", name);
        result = open_and_write(admin, path, &error);
    }
    bool expected = error.code == GILD_NOT_FOUND || error.code == GILD_BUSY || error.err == EEXIST;
    admin->done += result == 0;
    admin->refused += result && expected;
    if (result && !expected && admin->odd++ == 0)
        memcpy(admin->message, error.message, sizeof error.message);
}

static void *work(void *context) {
    for (unsigned i = 0; i < ROUNDS; i++)
        one_step(context);
    return NULL;
}

/* ---- the catalogue's own sums ---------------------------------------------------------------- */

struct sums {
    struct gild_txn *txn;
    unsigned desktops, lost_deltas, lost_versions, in_pool;
};

static int check_desktop(void *context, const void *key, size_t key_length, const void *value,
                         size_t length) {
    struct sums *sums = context;
    struct gild_rec_desktop desktop;
    struct gild_rec_delta *delta = calloc(1, sizeof *delta);
    const void *map;
    size_t map_length;
    (void)key, (void)key_length;
    CU_ASSERT_EQUAL(gild_rec_desktop_decode(&desktop, value, length), 0);
    sums->desktops++;
    sums->in_pool += strcmp(desktop.pool, "p") == 0;
    if (gild_rec_get_delta(sums->txn, GILD_TABLE_DELTAS, desktop.os_delta, delta))
        sums->lost_deltas++;
    else if (gild_rec_get_u64(sums->txn, GILD_TABLE_MAPS, delta->parent_map, &map, &map_length))
        sums->lost_versions++;
    free(delta);
    return 0;
}

static int check_pool(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    struct gild_rec_pool pool;
    (void)key, (void)key_length;
    CU_ASSERT_EQUAL(gild_rec_pool_decode(&pool, value, length), 0);
    *(unsigned *)context = pool.count;
    return 0;
}

static void say(void *context, const struct gild_finding *finding) {
    (void)context;
    printf("\n    check: %s", finding->message);
}

static void check_whole(struct gild_store *store) {
    struct sums sums = {0};
    uint64_t deltas = 0;
    unsigned pool_count = 0;
    struct gild_check_result result;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &sums.txn), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(sums.txn, GILD_TABLE_DESKTOPS, NULL, 0, check_desktop, &sums), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(sums.txn, GILD_TABLE_POOLS, NULL, 0, check_pool, &pool_count), 0);
    CU_ASSERT_EQUAL(gild_txn_count(sums.txn, GILD_TABLE_DELTAS, &deltas), 0);
    gild_txn_abort(sums.txn);
    CU_ASSERT_EQUAL(sums.lost_deltas, 0);
    CU_ASSERT_EQUAL(sums.lost_versions, 0);
    CU_ASSERT_EQUAL(sums.in_pool, pool_count);
    CU_ASSERT_EQUAL(deltas, sums.desktops);
    int checked = gild_store_check(store, say, NULL, &result, &error);
    if (checked)
        printf("\n    check: %s", error.message);
    CU_ASSERT_EQUAL(checked, 0);
}

/* ---- the store ------------------------------------------------------------------------------- */

static struct gild_store *open_store(void) {
    char path[128];
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    struct gild_store_options options = {.threads = 2, .cache_bytes = 16u << 20};
    snprintf(path, sizeof path, "%s/store", folder);
    if (gild_store_open(path, &options, &store, &error))
        printf("open: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL_FATAL(store);
    return store;
}

static void import(struct gild_store *store, struct gild_prng *prng) {
    static uint8_t bytes[IMAGE_BYTES];
    char path[128];
    struct gild_image_info made;
    struct gild_error error = {0};
    snprintf(path, sizeof path, "%s/source.raw", folder);
    gild_prng_fill(prng, bytes, sizeof bytes);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CU_ASSERT_EQUAL_FATAL(write(fd, bytes, sizeof bytes), (ssize_t)sizeof bytes);
    close(fd);
    struct gild_image_import request = {.name = "win", .source = path, .format = "raw"};
    int result = gild_image_import(store, &request, &made, &error);
    if (result)
        printf("import: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
}

static void admins_at_once_leave_a_whole_store(void) {
    static struct admin admins[THREADS];
    struct gild_prng prng;
    char path[128];
    const char *base = getenv("TMPDIR");
    unsigned done = 0, refused = 0;
    snprintf(folder, sizeof folder, "%.40s/gild-test-XXXXXX", base && *base ? base : "/var/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/store", folder);
    CU_ASSERT_EQUAL_FATAL(gild_store_init(path, 0, NULL), 0);
    struct gild_store *store = open_store();
    gild_prng_seed(&prng, seed);
    for (unsigned i = 0; i < VERSIONS; i++)
        import(store, &prng);
    for (unsigned i = 0; i < THREADS; i++) {
        admins[i] = (struct admin){.store = store};
        gild_prng_seed(&admins[i].prng, seed + 1 + i);
        CU_ASSERT_EQUAL_FATAL(pthread_create(&admins[i].thread, NULL, work, &admins[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(admins[i].thread, NULL);
        if (admins[i].odd)
            printf("\n    odd: %s", admins[i].message);
        CU_ASSERT_EQUAL(admins[i].odd, 0);
        done += admins[i].done;
        refused += admins[i].refused;
    }
    printf("\n    %u verbs done, %u refused\n", done, refused);
    CU_ASSERT_TRUE(done > 50 && refused > 20);
    check_whole(store);
    CU_ASSERT_EQUAL(gild_store_close(store, NULL), 0);
    store = open_store();
    check_whole(store);
    CU_ASSERT_EQUAL(gild_store_close(store, NULL), 0);
    snprintf(path, sizeof path, "rm -rf '%s'", folder);
    CU_ASSERT_EQUAL(system(path), 0);
}

/* ---- an open in between ---------------------------------------------------------------------- */

/* Somebody opens a disk between a deletion's look at who has it open and its transaction. */
static struct {
    struct gild_store *store;
    const char *path;
    pthread_t thread; /* whose transaction is meant: the keeper has its own */
    int result;
} between;

int __real_gild_txn_begin(struct gild_catalog *catalog, bool write, struct gild_txn **out);
int __wrap_gild_txn_begin(struct gild_catalog *catalog, bool write, struct gild_txn **out);
int __wrap_gild_txn_begin(struct gild_catalog *catalog, bool write, struct gild_txn **out) {
    const char *path = write && pthread_equal(pthread_self(), between.thread) ? between.path : NULL;
    if (path) {
        struct gild_disk *disk;
        struct gild_error error = {0};
        bool writable;
        between.path = NULL;
        between.result = gild_disk_open(between.store, path, "nbd", 0, &disk, &writable, &error);
        if (!between.result)
            gild_disk_close(disk, "nbd", writable);
    }
    return __real_gild_txn_begin(catalog, write, out);
}

static void what_is_being_deleted_does_not_open(void) {
    struct gild_prng prng;
    struct gild_freed freed;
    struct gild_error error = {0};
    uint32_t made;
    char path[128];
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.40s/gild-test-XXXXXX", base && *base ? base : "/var/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/store", folder);
    CU_ASSERT_EQUAL_FATAL(gild_store_init(path, 0, NULL), 0);
    between.thread = pthread_self(); /* before there are other threads */
    between.store = open_store();
    gild_prng_seed(&prng, seed);
    import(between.store, &prng);
    const struct gild_desktop_create request = {.name = "d", .count = 1, .image = "win@1"};
    CU_ASSERT_EQUAL(gild_desktop_create(between.store, &request, &made, &error), 0);
    between.path = "desktops/d/os";
    CU_ASSERT_EQUAL(gild_desktop_delete(between.store, "d", false, &freed, &error), 0);
    CU_ASSERT_PTR_NULL(between.path);
    CU_ASSERT_EQUAL(between.result, -EBUSY);
    between.path = "images/win@1";
    CU_ASSERT_EQUAL(gild_image_delete(between.store, "win@1", false, &freed, &error), 0);
    CU_ASSERT_PTR_NULL(between.path);
    CU_ASSERT_EQUAL(between.result, -EBUSY);
    CU_ASSERT_EQUAL(gild_store_close(between.store, NULL), 0);
    snprintf(path, sizeof path, "rm -rf '%s'", folder);
    CU_ASSERT_EQUAL(system(path), 0);
}

int main(void) {
    const char *fixed = getenv("GILD_SEED");
    seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays each thread's steps)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("vdi race", NULL, NULL);
    CU_add_test(suite, "what is being deleted does not open", what_is_being_deleted_does_not_open);
    CU_add_test(suite, "admins at once leave a whole store", admins_at_once_leave_a_whole_store);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
