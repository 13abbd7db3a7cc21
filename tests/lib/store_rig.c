/* See store_rig.h. Everything a test hands over goes through gild_disk_post and a semaphore, so
 * that a race detector sees what the engine itself orders and no more. */
#include "store_rig.h"

#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/queue.h"
#include "catalog/records.h"

static void must(bool good, const char *what, const struct gild_error *error) {
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    abort();
}

void store_rig_make(char directory[64], uint64_t size_bytes) {
    struct gild_error error = {0};
    strcpy(directory, "/var/tmp/gild-test-XXXXXX");
    must(mkdtemp(directory) != NULL, "mkdtemp", NULL);
    must(gild_store_init(directory, size_bytes, &error) == 0, "init", &error);
}

void store_rig_remove(const char *directory) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    must(system(command) == 0, command, NULL);
}

struct gild_store *store_rig_open(const char *directory, unsigned threads) {
    /* Nothing is moved but by the test. */
    struct gild_store_options options = {
        .threads = threads, .cache_bytes = (uint64_t)16 << 20, .no_cleaner = true};
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    must(gild_store_open(directory, &options, &store, &error) == 0, "open", &error);
    return store;
}

void store_rig_close(struct gild_store *store) {
    struct gild_error error = {0};
    must(gild_store_close(store, &error) == 0, "close", &error);
}

void store_rig_deltas(struct gild_store *store, uint64_t size_bytes, uint64_t first,
                      unsigned count) {
    struct gild_rec_delta *record = calloc(1, sizeof *record);
    struct gild_txn *txn;
    record->size_bytes = size_bytes;
    must(gild_txn_begin(gild_store_catalog(store), true, &txn) == 0, "txn", NULL);
    for (unsigned i = 0; i < count; i++)
        must(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, first + i, record) == 0, "put", NULL);
    must(gild_txn_commit(txn) == 0, "commit", NULL);
    free(record);
}

struct gild_disk *store_rig_disk(struct gild_store *store, uint64_t delta_id) {
    char path[32];
    bool writable;
    struct gild_disk *disk = NULL;
    struct gild_error error = {0};
    snprintf(path, sizeof path, "test/%" PRIu64, delta_id);
    struct gild_disk_spec spec = {.path = path, .delta_id = delta_id};
    must(gild_disk_acquire(store, &spec, "test", GILD_OPEN_WRITE, &disk, &writable, &error) == 0,
         "acquire", &error);
    return disk;
}

void store_rig_release(struct gild_disk *disk) {
    gild_disk_close(disk, "test", true);
}

static void found(void *context, const struct gild_finding *finding) {
    struct store_rig_findings *findings = context;
    size_t length = strlen(findings->text);
    findings->count++;
    if (!findings->quiet)
        fprintf(stderr, "check: %s\n", finding->message);
    snprintf(findings->text + length, sizeof findings->text - length, "%s\n", finding->message);
}

int store_rig_check(struct gild_store *store, struct store_rig_findings *findings) {
    struct gild_check_result result;
    struct gild_error error = {0};
    findings->count = 0;
    findings->text[0] = 0;
    return gild_store_check(store, found, findings, &result, &error);
}

/* ---- hashing --------------------------------------------------------------------------------- */

/* nftw has no context: one test thread hashes at a time. */
static _Thread_local uint64_t hash_sum;
static _Thread_local size_t hash_root;

static int hash_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st, (void)ftw;
    if (type != FTW_F || strstr(path, "lock.mdb"))
        return 0;
    static _Thread_local unsigned char block[1 << 16];
    FILE *file = fopen(path, "rb");
    must(file != NULL, path, NULL);
    uint64_t sum = XXH3_64bits(path + hash_root, strlen(path + hash_root));
    size_t n;
    while ((n = fread(block, 1, sizeof block, file)) > 0)
        sum = XXH3_64bits_withSeed(block, n, sum);
    fclose(file);
    hash_sum += sum; /* in any order of the folder */
    return 0;
}

uint64_t store_rig_hash(const char *directory) {
    hash_sum = 0;
    hash_root = strlen(directory);
    must(nftw(directory, hash_one, 16, FTW_PHYS) == 0, "nftw", NULL);
    return hash_sum;
}

/* ---- ops ------------------------------------------------------------------------------------- */

static void op_done(struct gild_op *op) {
    struct store_rig_op *call = gild_container_of(op, struct store_rig_op, op);
    size_t at = 0;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        memcpy(call->into + at, op->pieces[i].data, op->pieces[i].bytes);
        at += op->pieces[i].bytes;
    }
    gild_op_release(op);
    if (call->then)
        call->then(call);
    else
        sem_post(&call->done);
}

void store_rig_start(struct store_rig_op *call, struct gild_disk *disk, enum gild_op_kind kind,
                     uint64_t offset, uint64_t length, void *data, uint32_t flags) {
    call->payload = (struct iovec){data, length};
    call->into = data;
    call->op = (struct gild_op){
        .disk = disk,
        .kind = kind,
        .flags = flags,
        .offset_bytes = offset,
        .length_bytes = length,
        .payload = &call->payload,
        .payload_count = 1,
        .pieces = call->pieces,
        .piece_limit = GILD_OP_MAX_PIECES,
        .extents = call->extents,
        .extent_limit = 64,
        .done = op_done,
    };
    if (!call->then)
        sem_init(&call->done, 0, 0);
    gild_disk_post(&call->op);
}

int store_rig_wait(struct store_rig_op *call) {
    while (sem_wait(&call->done) != 0)
        continue;
    sem_destroy(&call->done);
    return call->op.error;
}

int store_rig_do(struct gild_disk *disk, enum gild_op_kind kind, uint64_t offset, uint64_t length,
                 void *data, uint32_t flags) {
    struct store_rig_op *call = calloc(1, sizeof *call);
    store_rig_start(call, disk, kind, offset, length, data, flags);
    int err = store_rig_wait(call);
    free(call);
    return err;
}
