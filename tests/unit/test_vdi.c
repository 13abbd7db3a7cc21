/* The admin's verbs on a real store: a clone reads what its image holds, what is refused leaves the
 * catalogue as it was, what stands on something or is open is not deleted, numbers and disks are
 * never given twice, and every disk has one path. */
#include "vdi/vdi.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"
#include "codec/hash.h"
#include "disk/store.h"
#include "gild/disk.h"

#define IMAGE_BYTES ((3u << 20) + 1536)

static char folder[64];
static struct gild_store *store;
static struct gild_error error;
static uint64_t seed;

/* ---- a store with images --------------------------------------------------------------------- */

static void open_store(void) {
    char path[128];
    struct gild_store_options options = {.threads = 2, .cache_bytes = 16u << 20};
    snprintf(path, sizeof path, "%s/store", folder);
    if (gild_store_open(path, &options, &store, &error))
        printf("open: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL_FATAL(store);
}

static void close_store(void) {
    CU_ASSERT_EQUAL(gild_store_close(store, &error), 0);
    store = NULL;
}

static void begin_store(void) {
    char path[128];
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.40s/gild-test-XXXXXX", base && *base ? base : "/var/tmp");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/store", folder);
    CU_ASSERT_EQUAL_FATAL(gild_store_init(path, 0, &error), 0);
    open_store();
}

static void end_store(void) {
    char command[128];
    close_store();
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CU_ASSERT_EQUAL(system(command), 0);
}

/* What version `number` holds: random blocks with zeroes between them. */
static void image_content(unsigned number, uint8_t *bytes) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + number);
    gild_prng_fill(&prng, bytes, IMAGE_BYTES);
    memset(bytes + (1u << 20), 0, 1u << 20);
}

/* Imports content `number` as the next version; gives its version number. */
static uint32_t import(const char *name, unsigned number) {
    char path[128];
    struct gild_image_info made = {0};
    struct gild_image_import request = {.name = name, .source = path, .format = "raw"};
    uint8_t *bytes = malloc(IMAGE_BYTES);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    image_content(number, bytes);
    snprintf(path, sizeof path, "%s/source.raw", folder);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CU_ASSERT_EQUAL_FATAL(write(fd, bytes, IMAGE_BYTES), (ssize_t)IMAGE_BYTES);
    close(fd);
    free(bytes);
    int result = gild_image_import(store, &request, &made, &error);
    if (result)
        printf("import: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    return made.version;
}

static int create(const char *name, const char *pattern, uint32_t count, const char *image,
                  const char *pool, uint64_t size_bytes, uint32_t *made) {
    struct gild_desktop_create request = {.name = name,
                                          .name_pattern = pattern,
                                          .count = count,
                                          .image = image,
                                          .pool = pool,
                                          .size_bytes = size_bytes};
    memset(&error, 0, sizeof error);
    return gild_desktop_create(store, &request, made, &error);
}

static void created(const char *name, const char *image) {
    uint32_t made = 0;
    int result = create(name, NULL, 0, image, NULL, 0, &made);
    if (result)
        printf("create: %s\n", error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    CU_ASSERT_EQUAL(made, 1);
}

/* ---- the catalogue as one number ------------------------------------------------------------- */

static int add_record(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    uint64_t *sum = context;
    /* These two count what goes on in the background as well. */
    if ((key_length == 16 && memcmp(key, "next:transaction", 16) == 0) ||
        (key_length == 12 && memcmp(key, "next:segment", 12) == 0))
        return 0;
    *sum = gild_xxh3(key, key_length, *sum);
    *sum = gild_xxh3(value, length, *sum);
    return 0;
}

/* Of the tables that the verbs of this folder change. */
static uint64_t catalogue_sum(void) {
    static const enum gild_table tables[] = {
        GILD_TABLE_META,  GILD_TABLE_IMAGES, GILD_TABLE_VERSIONS, GILD_TABLE_DESKTOPS,
        GILD_TABLE_POOLS, GILD_TABLE_DELTAS, GILD_TABLE_DROPPED,  GILD_TABLE_MAPS};
    struct gild_txn *txn;
    uint64_t sum = 0;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        CU_ASSERT_EQUAL(gild_txn_scan(txn, tables[i], NULL, 0, add_record, &sum), 0);
    gild_txn_abort(txn);
    return sum;
}

static uint64_t count_of(enum gild_table table) {
    struct gild_txn *txn;
    uint64_t count = 0;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, table, &count), 0);
    gild_txn_abort(txn);
    return count;
}

static bool refused(int result, int wanted, enum gild_code code, const char *word) {
    bool good = result == wanted && error.code == code && strstr(error.message, word);
    if (!good)
        printf("\n    %d (%d), code %d (%d): '%s' lacks '%s'\n", result, wanted, (int)error.code,
               (int)code, error.message, word);
    return good;
}

/* ---- disks ----------------------------------------------------------------------------------- */

struct call {
    struct gild_op op;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    uint8_t *into;
    sem_t done;
};

static void call_done(struct gild_op *op) {
    struct call *call = (struct call *)op;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        memcpy(call->into, op->pieces[i].data, op->pieces[i].bytes);
        call->into += op->pieces[i].bytes;
    }
    gild_op_release(op);
    sem_post(&call->done);
}

static int run(struct gild_disk *disk, enum gild_op_kind kind, uint64_t offset, uint64_t length,
               void *data) {
    struct iovec payload = {data, length};
    struct call *call = calloc(1, sizeof *call);
    CU_ASSERT_PTR_NOT_NULL_FATAL(call);
    call->into = data;
    call->op = (struct gild_op){.disk = disk,
                                .kind = kind,
                                .offset_bytes = offset,
                                .length_bytes = length,
                                .payload = &payload,
                                .payload_count = 1,
                                .piece_limit = GILD_OP_MAX_PIECES,
                                .pieces = call->pieces,
                                .done = call_done};
    sem_init(&call->done, 0, 0);
    gild_disk_post(&call->op);
    while (sem_wait(&call->done))
        continue;
    int result = call->op.error;
    sem_destroy(&call->done);
    free(call);
    return result;
}

static struct gild_disk *opened(const char *path, unsigned flags, bool *writable) {
    struct gild_disk *disk = NULL;
    int result = gild_disk_open(store, path, "test", flags, &disk, writable, &error);
    if (result)
        printf("open %s: %s\n", path, error.message);
    CU_ASSERT_EQUAL_FATAL(result, 0);
    return disk;
}

/* Does the disk read as content `number`, and zeroes behind it? */
static bool reads_as(const char *path, unsigned number) {
    bool writable, same = true;
    struct gild_disk *disk = opened(path, 0, &writable);
    uint64_t size = gild_disk_size_bytes(disk);
    uint8_t *wanted = calloc(1, size), *got = malloc(size);
    CU_ASSERT_TRUE_FATAL(wanted && got && size >= IMAGE_BYTES);
    image_content(number, wanted);
    for (uint64_t at = 0; at < size; at += GILD_OP_MAX_BYTES) {
        uint64_t part = size - at < GILD_OP_MAX_BYTES ? size - at : GILD_OP_MAX_BYTES;
        same = same && run(disk, GILD_OP_READ, at, part, got + at) == 0;
    }
    same = same && !memcmp(wanted, got, size);
    free(wanted);
    free(got);
    gild_disk_close(disk, "test", writable);
    return same;
}

/* ---- images ---------------------------------------------------------------------------------- */

struct text {
    char bytes[512];
};

static int append_image(void *context, const struct gild_image_info *info) {
    struct text *text = context;
    size_t used = strlen(text->bytes);
    snprintf(text->bytes + used, sizeof text->bytes - used, "%s@%u:%" PRIu64 " ", info->name,
             info->version, info->desktops);
    return 0;
}

static const char *images(const char *name, struct text *text) {
    text->bytes[0] = 0;
    if (gild_image_list(store, name, append_image, text, &error))
        return error.message;
    return text->bytes;
}

static void versions_are_listed_shown_and_deleted(void) {
    struct text text;
    struct gild_image_info info;
    struct gild_freed would, did;
    begin_store();
    CU_ASSERT_STRING_EQUAL(images(NULL, &text), "");
    for (unsigned i = 1; i <= 11; i++)
        CU_ASSERT_EQUAL(import("win", i), i);
    CU_ASSERT_EQUAL(import("win-x", 1), 1); /* sorts between win@ and its numbers as text */
    created("d1", "win@2");
    created("d2", "win@2");
    CU_ASSERT_STRING_EQUAL(images(NULL, &text),
                           "win@1:0 win@2:2 win@3:0 win@4:0 win@5:0 win@6:0 win@7:0 win@8:0 "
                           "win@9:0 win@10:0 win@11:0 win-x@1:0 ");
    CU_ASSERT_STRING_EQUAL(images("win-x", &text), "win-x@1:0 ");
    CU_ASSERT_EQUAL(gild_image_show(store, "win", &info, &error), 0);
    CU_ASSERT_TRUE(info.version == 11 && info.desktops == 0 && !strcmp(info.name, "win"));
    CU_ASSERT_EQUAL(gild_image_show(store, "win@2", &info, &error), 0);
    CU_ASSERT_TRUE(info.version == 2 && info.desktops == 2);
    CU_ASSERT_EQUAL(info.record.size_bytes, IMAGE_BYTES);

    uint64_t before = catalogue_sum();
    CU_ASSERT_TRUE(refused(gild_image_show(store, "win@12", &info, &error), -ENOENT, GILD_NOT_FOUND,
                           "win@12"));
    CU_ASSERT_TRUE(refused(gild_image_list(store, "wi", append_image, &text, &error), -ENOENT,
                           GILD_NOT_FOUND, "wi"));
    CU_ASSERT_TRUE(refused(gild_image_delete(store, "win", false, &did, &error), -EINVAL,
                           GILD_USAGE, "win@NUMBER"));
    CU_ASSERT_TRUE(refused(gild_image_delete(store, "win@99", false, &did, &error), -ENOENT,
                           GILD_NOT_FOUND, "win@99"));
    CU_ASSERT_TRUE(refused(gild_image_delete(store, "win@2", false, &did, &error), -EBUSY,
                           GILD_BUSY, "d1, d2"));
    CU_ASSERT_TRUE(
        refused(gild_image_delete(store, "win@2", true, &did, &error), -EBUSY, GILD_BUSY, "d1"));
    CU_ASSERT_EQUAL(gild_image_delete(store, "win@11", true, &would, &error), 0);
    CU_ASSERT_EQUAL(catalogue_sum(), before);

    CU_ASSERT_EQUAL(gild_image_delete(store, "win@11", false, &did, &error), 0);
    CU_ASSERT_EQUAL(memcmp(&would, &did, sizeof did), 0);
    CU_ASSERT_TRUE(did.versions == 1 && did.disks == 1 && did.blocks > 0 && did.bytes > 0);
    /* win-x@1 shares all its content with win@1: only the last one frees it. */
    CU_ASSERT_EQUAL(gild_image_delete(store, "win-x@1", false, &did, &error), 0);
    CU_ASSERT_TRUE(did.versions == 1 && did.blocks == 0);
    CU_ASSERT_TRUE(reads_as("images/win@1", 1));
    CU_ASSERT_EQUAL(gild_image_delete(store, "win@1", false, &did, &error), 0);
    CU_ASSERT_TRUE(did.blocks > 0);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_MAPS), 9);
    /* An image without versions is not shown, and its numbers go on. */
    CU_ASSERT_TRUE(refused(gild_image_list(store, "win-x", append_image, &text, &error), -ENOENT,
                           GILD_NOT_FOUND, "win-x"));
    CU_ASSERT_EQUAL(import("win-x", 3), 2);
    CU_ASSERT_EQUAL(import("win", 20), 12);
    CU_ASSERT_TRUE(reads_as("images/win@2", 2));
    CU_ASSERT_TRUE(reads_as("images/win@12", 20));
    CU_ASSERT_TRUE(reads_as("desktops/d2/os", 2));
    end_store();
}

static void an_open_version_is_not_deleted(void) {
    struct gild_freed freed;
    bool writable;
    begin_store();
    import("win", 1);
    struct gild_disk *disk = opened("images/win@1", GILD_OPEN_WRITE_IF_POSSIBLE, &writable);
    CU_ASSERT_FALSE(writable);
    CU_ASSERT_TRUE(gild_disk_read_only(disk));
    uint64_t before = catalogue_sum();
    CU_ASSERT_TRUE(refused(gild_image_delete(store, "win@1", false, &freed, &error), -EBUSY,
                           GILD_BUSY, "test"));
    CU_ASSERT_EQUAL(catalogue_sum(), before);
    gild_disk_close(disk, "test", writable);
    CU_ASSERT_TRUE(refused(
        gild_disk_open(store, "images/win@1", "test", GILD_OPEN_WRITE, &disk, &writable, &error),
        -EROFS, GILD_FAILED, "images/win@1"));
    /* A pool without desktops keeps its version, too. */
    CU_ASSERT_EQUAL(gild_pool_create(store, "empty", "win", 0, NULL, NULL, &error), 0);
    CU_ASSERT_TRUE(refused(gild_image_delete(store, "win@1", false, &freed, &error), -EBUSY,
                           GILD_BUSY, "pool empty"));
    CU_ASSERT_EQUAL(gild_pool_delete(store, "empty", false, &freed, &error), 0);
    CU_ASSERT_EQUAL(freed.desktops, 0);
    CU_ASSERT_EQUAL(gild_image_delete(store, "win@1", false, &freed, &error), 0);
    CU_ASSERT_TRUE(
        refused(gild_disk_open(store, "images/win@1", "test", 0, &disk, &writable, &error), -ENOENT,
                GILD_NOT_FOUND, "images/win@1"));
    end_store();
}

/* ---- desktops -------------------------------------------------------------------------------- */

static void a_clone_is_its_image_until_it_is_written(void) {
    uint8_t block[4096];
    bool writable;
    uint32_t made;
    struct gild_desktop_info info;
    begin_store();
    import("win", 1);
    import("win", 2);
    created("a", "win");
    created("b", "win@1");
    CU_ASSERT_EQUAL(create("big", NULL, 1, "win@1", NULL, 8u << 20, &made), 0);
    CU_ASSERT_TRUE(reads_as("desktops/a/os", 2));
    CU_ASSERT_TRUE(reads_as("desktops/b/os", 1));
    CU_ASSERT_TRUE(reads_as("desktops/big/os", 1)); /* and zeroes behind the image's end */

    struct gild_disk *disk = opened("desktops/a/os", GILD_OPEN_WRITE, &writable);
    CU_ASSERT_TRUE(writable);
    memset(block, 0x5a, sizeof block);
    CU_ASSERT_EQUAL(run(disk, GILD_OP_WRITE, 4096, sizeof block, block), 0);
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0); /* counts may lag until then */
    CU_ASSERT_EQUAL(gild_desktop_show(store, "a", &info, &error), 0);
    CU_ASSERT_EQUAL(info.delta_blocks, 1);
    CU_ASSERT_TRUE_FATAL(info.door != NULL);
    CU_ASSERT_STRING_EQUAL(info.door, "test");
    gild_disk_close(disk, "test", writable);
    close_store();
    open_store();
    CU_ASSERT_FALSE(reads_as("desktops/a/os", 2));
    CU_ASSERT_TRUE(reads_as("images/win@2", 2));
    created("c", "win@2");
    CU_ASSERT_TRUE(reads_as("desktops/c/os", 2));
    CU_ASSERT_EQUAL(gild_desktop_show(store, "a", &info, &error), 0);
    CU_ASSERT_EQUAL(info.delta_blocks, 1);
    CU_ASSERT_PTR_NULL(info.door);
    CU_ASSERT_TRUE(info.record.version == 2 && !strcmp(info.record.image, "win"));
    end_store();
}

static void what_is_refused_changes_nothing(void) {
    uint32_t made = 7;
    begin_store();
    import("win", 1);
    created("d0003", "win");
    uint64_t before = catalogue_sum();
    CU_ASSERT_TRUE(
        refused(create("d0003", NULL, 1, "win", NULL, 0, &made), -EEXIST, GILD_FAILED, "d0003"));
    CU_ASSERT_TRUE(
        refused(create(NULL, "d%04d", 5, "win", NULL, 0, &made), -EEXIST, GILD_FAILED, "d0003"));
    CU_ASSERT_EQUAL(made, 0);
    CU_ASSERT_TRUE(
        refused(create("a/b", NULL, 1, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "'a/b'"));
    CU_ASSERT_TRUE(
        refused(create("a\n", NULL, 1, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "control"));
    CU_ASSERT_TRUE(
        refused(create(NULL, "d%s", 2, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "pattern"));
    CU_ASSERT_TRUE(
        refused(create("d", "d%d", 2, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "one of them"));
    CU_ASSERT_TRUE(
        refused(create("d", NULL, 2, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "pattern"));
    CU_ASSERT_TRUE(
        refused(create(NULL, NULL, 1, "win", NULL, 0, &made), -EINVAL, GILD_USAGE, "name"));
    CU_ASSERT_TRUE(refused(create(NULL, "d%d", 1000000, "win", NULL, 0, &made), -EINVAL, GILD_USAGE,
                           "too many"));
    CU_ASSERT_TRUE(
        refused(create("d", NULL, 1, "linux", NULL, 0, &made), -ENOENT, GILD_NOT_FOUND, "linux"));
    CU_ASSERT_TRUE(
        refused(create("d", NULL, 1, "win@2", NULL, 0, &made), -ENOENT, GILD_NOT_FOUND, "win@2"));
    CU_ASSERT_TRUE(
        refused(create("d", NULL, 1, "win@0", NULL, 0, &made), -EINVAL, GILD_USAGE, "win@0"));
    CU_ASSERT_TRUE(
        refused(create("d", NULL, 1, "win", "p", 0, &made), -ENOENT, GILD_NOT_FOUND, "pool p"));
    CU_ASSERT_TRUE(refused(create("d", NULL, 1, "win", NULL, IMAGE_BYTES - 512, &made), -EINVAL,
                           GILD_USAGE, "smaller"));
    CU_ASSERT_TRUE(refused(create("d", NULL, 1, "win", NULL, IMAGE_BYTES + 100, &made), -EINVAL,
                           GILD_USAGE, "512"));
    CU_ASSERT_TRUE(refused(create("d", NULL, 1, "win", NULL, (uint64_t)1 << 62, &made), -EINVAL,
                           GILD_USAGE, "at most"));
    CU_ASSERT_TRUE(refused(gild_pool_create(store, "d", "win", 5, "d%04d", NULL, &error), -EEXIST,
                           GILD_FAILED, "d0003"));
    CU_ASSERT_TRUE(refused(gild_pool_create(store, "a@b", "win", 5, NULL, NULL, &error), -EINVAL,
                           GILD_USAGE, "pool name"));
    CU_ASSERT_EQUAL(catalogue_sum(), before);
    end_store();
}

static int append_desktop(void *context, const struct gild_desktop_info *info) {
    struct text *text = context;
    size_t used = strlen(text->bytes);
    snprintf(text->bytes + used, sizeof text->bytes - used, "%s ", info->name);
    return 0;
}

static const char *desktops(const char *select, struct text *text) {
    text->bytes[0] = 0;
    memset(&error, 0, sizeof error);
    if (gild_desktop_list(store, select, append_desktop, text, &error))
        snprintf(text->bytes, sizeof text->bytes, "%s", error.message);
    return text->bytes;
}

static void selections_meet_whom_they_mean(void) {
    struct text text;
    uint32_t made;
    begin_store();
    import("win", 1);
    CU_ASSERT_EQUAL(gild_pool_create(store, "p", "win", 3, NULL, NULL, &error), 0);
    CU_ASSERT_EQUAL(gild_pool_create(store, "q", "win", 2, "x%d", NULL, &error), 0);
    created("p0009", "win");
    created("a b", "win");
    created("a\\b", "win");
    CU_ASSERT_EQUAL(create("late", NULL, 1, "win", "q", 0, &made), 0);
    struct gild_pool_info joined;
    CU_ASSERT_EQUAL(gild_pool_show(store, "q", &joined, &error), 0);
    CU_ASSERT_TRUE(joined.record.count == 3 && joined.desktops == 3);
    CU_ASSERT_STRING_EQUAL(desktops(NULL, &text), "a b a\\b late p0001 p0002 p0003 p0009 x1 x2 ");
    CU_ASSERT_STRING_EQUAL(desktops("@p", &text), "p0001 p0002 p0003 ");
    CU_ASSERT_STRING_EQUAL(desktops("@q", &text), "late x1 x2 ");
    CU_ASSERT_STRING_EQUAL(desktops("p000[19]", &text), "p0001 p0009 ");
    CU_ASSERT_STRING_EQUAL(desktops("*2", &text), "p0002 x2 ");
    CU_ASSERT_STRING_EQUAL(desktops("a\\?", &text), "a\\b ");
    CU_ASSERT_STRING_EQUAL(desktops("a?b", &text), "a b a\\b ");
    CU_ASSERT_STRING_EQUAL(desktops("nobody*", &text), "");
    CU_ASSERT_EQUAL(error.code, GILD_OK);
    CU_ASSERT_STRING_EQUAL(desktops("p0002", &text), "p0002 ");
    desktops("nobody", &text);
    CU_ASSERT_EQUAL(error.code, GILD_NOT_FOUND);
    desktops("@nobody", &text);
    CU_ASSERT_EQUAL(error.code, GILD_NOT_FOUND);
    desktops("", &text);
    CU_ASSERT_EQUAL(error.code, GILD_USAGE);
    end_store();
}

static void an_open_desktop_is_named_and_nothing_is_deleted(void) {
    struct gild_freed would, did;
    uint8_t block[8192];
    bool writable;
    begin_store();
    import("win", 1);
    CU_ASSERT_EQUAL(gild_pool_create(store, "p", "win", 20, NULL, NULL, &error), 0);
    struct gild_disk *disk = opened("desktops/p0007/os", GILD_OPEN_WRITE, &writable);
    memset(block, 1, sizeof block);
    CU_ASSERT_EQUAL(run(disk, GILD_OP_WRITE, 0, sizeof block, block), 0);
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    uint64_t before = catalogue_sum();
    CU_ASSERT_TRUE(refused(gild_desktop_delete(store, "p00*", false, &did, &error), -EBUSY,
                           GILD_BUSY, "desktop p0007 is open"));
    CU_ASSERT_TRUE(
        refused(gild_pool_delete(store, "p", false, &did, &error), -EBUSY, GILD_BUSY, "p0007"));
    CU_ASSERT_TRUE(refused(gild_pool_delete(store, "nobody", false, &did, &error), -ENOENT,
                           GILD_NOT_FOUND, "nobody"));
    CU_ASSERT_EQUAL(catalogue_sum(), before);
    gild_disk_close(disk, "test", writable);
    CU_ASSERT_EQUAL(gild_desktop_delete(store, "p0007", true, &would, &error), 0);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DESKTOPS), 20);
    CU_ASSERT_EQUAL(gild_desktop_delete(store, "p0007", false, &did, &error), 0);
    CU_ASSERT_EQUAL(memcmp(&would, &did, sizeof did), 0);
    CU_ASSERT_TRUE(did.desktops == 1 && did.blocks == 2 && did.bytes == 8192);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DESKTOPS), 19);
    struct gild_pool_info pool;
    CU_ASSERT_EQUAL(gild_pool_show(store, "p", &pool, &error), 0);
    CU_ASSERT_TRUE(pool.record.count == 19 && pool.desktops == 19 && pool.open_desktops == 0);
    /* The same name is a new disk. */
    created("p0007", "win");
    CU_ASSERT_TRUE(reads_as("desktops/p0007/os", 1));
    close_store();
    open_store();
    CU_ASSERT_TRUE(reads_as("desktops/p0007/os", 1));
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DROPPED), 0);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DELTAS), 20);
    end_store();
}

/* ---- pools ----------------------------------------------------------------------------------- */

static int note_pool(void *context, const struct gild_pool_info *info) {
    struct text *text = context;
    size_t used = strlen(text->bytes);
    snprintf(text->bytes + used, sizeof text->bytes - used, "%s:%" PRIu64 "/%u ", info->name,
             info->desktops, info->record.count);
    return 0;
}

static void pools_come_and_go_with_their_desktops(void) {
    struct text text = {""};
    struct gild_pool_info pool;
    struct gild_freed would, did;
    begin_store();
    import("win", 1);
    CU_ASSERT_EQUAL(gild_pool_create(store, "p", "win", 3, NULL, &pool, &error), 0);
    CU_ASSERT_TRUE(pool.desktops == 3 && pool.record.count == 3 && pool.record.version == 1);
    CU_ASSERT_STRING_EQUAL(pool.record.name_pattern, "p%04d");
    CU_ASSERT_TRUE(refused(gild_pool_create(store, "p", "win", 3, "z%d", NULL, &error), -EEXIST,
                           GILD_FAILED, "pool p"));
    CU_ASSERT_EQUAL(gild_pool_create(store, "other", "win@1", 2, "o%02d", NULL, &error), 0);
    CU_ASSERT_EQUAL(gild_pool_list(store, note_pool, &text, &error), 0);
    CU_ASSERT_STRING_EQUAL(text.bytes, "other:2/2 p:3/3 ");
    CU_ASSERT_EQUAL(gild_pool_delete(store, "p", true, &would, &error), 0);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DESKTOPS), 5);
    CU_ASSERT_EQUAL(gild_pool_delete(store, "p", false, &did, &error), 0);
    CU_ASSERT_EQUAL(memcmp(&would, &did, sizeof did), 0);
    CU_ASSERT_EQUAL(did.desktops, 3);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DESKTOPS), 2);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_POOLS), 1);
    CU_ASSERT_EQUAL(gild_pool_create(store, "p", "win", 3, NULL, &pool, &error), 0);
    end_store();
}

/* ---- paths ----------------------------------------------------------------------------------- */

struct seen {
    char last[256];
    uint64_t inodes[32];
    unsigned count, disks;
    bool sorted, unique;
    struct text names;
};

static int see(void *context, const char *name, const struct gild_path_info *info) {
    struct seen *seen = context;
    seen->sorted = seen->sorted && strcmp(seen->last, name) < 0;
    snprintf(seen->last, sizeof seen->last, "%s", name);
    for (unsigned i = 0; i < seen->count; i++)
        seen->unique = seen->unique && seen->inodes[i] != info->inode;
    seen->unique = seen->unique && info->inode > 1;
    if (seen->count < 32)
        seen->inodes[seen->count++] = info->inode;
    seen->disks += !info->directory;
    size_t used = strlen(seen->names.bytes);
    snprintf(seen->names.bytes + used, sizeof seen->names.bytes - used, "%s ", name);
    return 0;
}

static const char *children(const char *path, struct seen *seen) {
    seen->names.bytes[0] = 0;
    seen->last[0] = 0;
    CU_ASSERT_EQUAL(gild_path_list(store, path, see, seen), 0);
    return seen->names.bytes;
}

static void every_disk_has_one_path(void) {
    static const char *const unknown[] = {"/",
                                          "image",
                                          "images/",
                                          "images/win",
                                          "images/win@2",
                                          "images/win@01",
                                          "images/win@1/",
                                          "desktops/",
                                          "desktops/nobody",
                                          "desktops/a/",
                                          "desktops/a/osx",
                                          "desktops/a/os/",
                                          "desktops//os",
                                          "desktops/a//os",
                                          "../images"};
    struct gild_path_info info, again;
    struct seen seen = {.sorted = true, .unique = true}, all = seen;
    char serial[21], other[21];
    begin_store();
    import("win", 1);
    created("a", "win");
    created("a b", "win"); /* "a b/os" sorts before "a/os", "a b" behind "a" */
    CU_ASSERT_STRING_EQUAL(children("", &seen), "desktops images ");
    CU_ASSERT_STRING_EQUAL(children("desktops", &seen), "a a b ");
    CU_ASSERT_STRING_EQUAL(children("images", &seen), "win@1 ");
    CU_ASSERT_STRING_EQUAL(children("desktops/a", &seen), "os ");
    CU_ASSERT_STRING_EQUAL(children("desktops/a b", &seen), "os ");
    CU_ASSERT_TRUE(seen.sorted && seen.unique && seen.disks == 3 && seen.count == 7);
    CU_ASSERT_EQUAL(gild_path_each_disk(store, see, &all), 0);
    CU_ASSERT_TRUE(all.sorted && all.unique && all.disks == 3);
    CU_ASSERT_STRING_EQUAL(all.names.bytes, "desktops/a b/os desktops/a/os images/win@1 ");
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        CU_ASSERT_EQUAL(gild_path_stat(store, unknown[i], &info), -ENOENT);
        CU_ASSERT_EQUAL(gild_path_serial(store, unknown[i], serial), -ENOENT);
    }
    CU_ASSERT_EQUAL(gild_path_list(store, "desktops/a/os", see, &seen), -ENOTDIR);
    CU_ASSERT_EQUAL(gild_path_list(store, "desktops/nobody", see, &seen), -ENOENT);
    CU_ASSERT_EQUAL(gild_path_serial(store, "desktops/a", serial), -ENOENT);
    CU_ASSERT_EQUAL(gild_path_serial(store, "desktops/a/os", serial), 0);
    CU_ASSERT_EQUAL(gild_path_serial(store, "desktops/a b/os", other), 0);
    CU_ASSERT_STRING_NOT_EQUAL(serial, other);
    CU_ASSERT_TRUE(strlen(serial) > 8 && strlen(serial) <= 20);

    CU_ASSERT_EQUAL(gild_path_stat(store, "images/win@1", &info), 0);
    CU_ASSERT_TRUE(info.read_only && !info.directory && info.size_bytes == IMAGE_BYTES);
    CU_ASSERT_TRUE(info.allocated_bytes > 1u << 20 && info.allocated_bytes < IMAGE_BYTES);
    CU_ASSERT_EQUAL(gild_path_stat(store, "desktops/a/os", &info), 0);
    CU_ASSERT_TRUE(!info.read_only && info.size_bytes == IMAGE_BYTES && !info.allocated_bytes);
    CU_ASSERT_TRUE(info.modified_ns > 0);
    close_store();
    open_store();
    CU_ASSERT_EQUAL(gild_path_stat(store, "desktops/a/os", &again), 0);
    CU_ASSERT_EQUAL(again.inode, info.inode);
    CU_ASSERT_EQUAL(gild_path_serial(store, "desktops/a/os", other), 0);
    CU_ASSERT_STRING_EQUAL(serial, other);
    struct gild_disk *disk = NULL;
    bool writable;
    CU_ASSERT_TRUE(refused(gild_disk_open(store, "desktops/a", "test", 0, &disk, &writable, &error),
                           -EISDIR, GILD_USAGE, "folder"));
    CU_ASSERT_TRUE(
        refused(gild_disk_open(store, "desktops/\n/os", "test", 0, &disk, &writable, &error),
                -ENOENT, GILD_NOT_FOUND, "desktops/\\x0a/os"));
    end_store();
}

struct asked {
    struct gild_disk_opening opening;
    bool on_loop;
    sem_t done;
};

static void asked_done(struct gild_disk_opening *opening) {
    struct asked *asked = (struct asked *)opening;
    asked->on_loop = gild_loop_is_current(opening->loop);
    sem_post(&asked->done);
}

static void ask(struct asked *asked, const char *path) {
    memset(&asked->opening, 0, sizeof asked->opening);
    snprintf(asked->opening.path, sizeof asked->opening.path, "%s", path);
    asked->opening.store = store;
    asked->opening.door = "test";
    asked->opening.flags = GILD_OPEN_WRITE;
    asked->opening.loop = gild_store_reactor(store, 1);
    asked->opening.done = asked_done;
    gild_disk_open_async(&asked->opening);
    while (sem_wait(&asked->done))
        continue;
    CU_ASSERT_TRUE(asked->on_loop);
}

static void reactors_open_without_blocking(void) {
    struct asked *asked = calloc(1, sizeof *asked);
    CU_ASSERT_PTR_NOT_NULL_FATAL(asked);
    sem_init(&asked->done, 0, 0);
    begin_store();
    import("win", 1);
    created("a", "win");
    ask(asked, "desktops/a/os");
    CU_ASSERT_EQUAL_FATAL(asked->opening.result, 0);
    CU_ASSERT_TRUE(asked->opening.writable);
    CU_ASSERT_STRING_EQUAL(gild_disk_path(asked->opening.disk), "desktops/a/os");
    gild_disk_close(asked->opening.disk, "test", true);
    ask(asked, "desktops/b/os");
    CU_ASSERT_EQUAL(asked->opening.result, -ENOENT);
    CU_ASSERT_EQUAL(asked->opening.error.code, GILD_NOT_FOUND);
    sem_destroy(&asked->done);
    free(asked);
    end_store();
}

/* ---- many ------------------------------------------------------------------------------------ */

static int count_entry(void *context, const char *name, const struct gild_path_info *info) {
    (void)name, (void)info;
    ++*(unsigned *)context;
    return 0;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The times are printed, not judged. */
static void ten_thousand_desktops_are_made_listed_and_deleted(void) {
    struct gild_freed freed;
    uint32_t made = 0;
    unsigned count = 0;
    struct text text;
    begin_store();
    import("win", 1);
    double start = seconds();
    CU_ASSERT_EQUAL(create(NULL, "d%05d", 1000, "win", NULL, 0, &made), 0);
    printf("\n    1,000 clones: %.3f s\n", seconds() - start);
    CU_ASSERT_EQUAL(gild_pool_create(store, "p", "win", 9000, "e%05d", NULL, &error), 0);
    start = seconds();
    CU_ASSERT_EQUAL(gild_path_list(store, "desktops", count_entry, &count), 0);
    printf("    10,000 desktops as folders: %.3f s\n", seconds() - start);
    CU_ASSERT_EQUAL(count, 10000);
    start = seconds();
    CU_ASSERT_EQUAL(gild_path_each_disk(store, count_entry, &count), 0);
    printf("    10,000 disks with their sizes: %.3f s\n", seconds() - start);
    CU_ASSERT_EQUAL(count, 20001);
    CU_ASSERT_STRING_EQUAL(images(NULL, &text), "win@1:10000 ");
    start = seconds();
    CU_ASSERT_EQUAL(gild_pool_delete(store, "p", false, &freed, &error), 0);
    printf("    9,000 desktops deleted: %.3f s\n", seconds() - start);
    CU_ASSERT_EQUAL(freed.desktops, 9000);
    CU_ASSERT_EQUAL(gild_desktop_delete(store, "d*", false, &freed, &error), 0);
    CU_ASSERT_EQUAL(freed.desktops, 1000);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DESKTOPS), 0);
    CU_ASSERT_EQUAL(count_of(GILD_TABLE_DELTAS), 0);
    CU_ASSERT_EQUAL(gild_image_delete(store, "win@1", false, &freed, &error), 0);
    end_store();
}

int main(void) {
    const char *fixed = getenv("GILD_SEED");
    seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("vdi", NULL, NULL);
    CU_add_test(suite, "versions are listed, shown and deleted",
                versions_are_listed_shown_and_deleted);
    CU_add_test(suite, "an open version is not deleted", an_open_version_is_not_deleted);
    CU_add_test(suite, "a clone is its image until it is written",
                a_clone_is_its_image_until_it_is_written);
    CU_add_test(suite, "what is refused changes nothing", what_is_refused_changes_nothing);
    CU_add_test(suite, "selections meet whom they mean", selections_meet_whom_they_mean);
    CU_add_test(suite, "an open desktop is named and nothing is deleted",
                an_open_desktop_is_named_and_nothing_is_deleted);
    CU_add_test(suite, "pools come and go with their desktops",
                pools_come_and_go_with_their_desktops);
    CU_add_test(suite, "every disk has one path", every_disk_has_one_path);
    CU_add_test(suite, "reactors open without blocking", reactors_open_without_blocking);
    CU_add_test(suite, "ten thousand desktops are made, listed and deleted",
                ten_thousand_desktops_are_made_listed_and_deleted);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
