/* What a store is after a crash or damage: SIGKILL in the midst of every kind of op, garbled and
 * missing files, checks that find what is wrong. Real stores in temporary folders. Seeds are
 * printed; GILD_SEED replays one. */
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

#include "base/prng.h"
#include "catalog/records.h"
#include "disk/superblock.h"
#include "io/file.h"
#include "log/format.h"
#include "store_rig.h"

static uint64_t seed;

static void check_clean(struct gild_store *store) {
    struct store_rig_findings findings = {0};
    CU_ASSERT_EQUAL(store_rig_check(store, &findings), 0);
}

/* ---- SIGKILL over every kind of op --------------------------------------------------------------
 *
 * A history is windows of ops that are in flight together; which ops follows from (seed, round,
 * window), so the parent knows what the child did. The child tells when a window begins, is done,
 * and is flushed. After the kill each sector must hold what its last durable window left there, or
 * what any later one wrote. */
#define KILL_DISKS 4u
#define KILL_SECTORS 515u /* not a multiple of a block */
#define WINDOW_OPS 8u
#define WINDOWS_MOST 4096u

struct kill_op {
    unsigned disk;
    enum gild_op_kind kind;
    uint32_t flags;
    uint64_t first, count; /* sectors */
    uint64_t tag;          /* what it leaves: 0 = zeroes */
};

static struct kill_op kill_op_of(uint64_t round, uint64_t window, unsigned i) {
    struct gild_prng prng;
    gild_prng_seed(&prng, seed ^ round << 40 ^ window << 8 ^ i);
    struct kill_op op = {.disk = (unsigned)gild_prng_below(&prng, KILL_DISKS)};
    uint64_t dice = gild_prng_below(&prng, 10);
    op.kind = dice == 0 ? GILD_OP_TRIM : dice == 1 ? GILD_OP_ZERO : GILD_OP_WRITE;
    op.flags = gild_prng_below(&prng, 8) == 0 ? GILD_OP_FUA : 0;
    if (op.kind == GILD_OP_ZERO && gild_prng_below(&prng, 2))
        op.flags |= GILD_OP_NO_HOLE;
    op.first = gild_prng_below(&prng, KILL_SECTORS);
    op.count = 1 + gild_prng_below(&prng, gild_prng_below(&prng, 4) ? 10 : 60);
    if (gild_prng_below(&prng, 2)) {
        op.first &= ~(uint64_t)7;
        op.count = (op.count + 7) & ~(uint64_t)7;
    }
    if (op.count > KILL_SECTORS - op.first)
        op.count = KILL_SECTORS - op.first;
    op.tag = op.kind == GILD_OP_WRITE ? round << 40 | window << 8 | (i + 1) : 0;
    return op;
}

static void stamp(uint8_t *sector, uint64_t tag, unsigned disk, uint64_t number) {
    uint64_t where = (uint64_t)disk << 32 | number;
    for (unsigned i = 0; i < 512; i += 16) {
        memcpy(sector + i, &tag, 8);
        memcpy(sector + i + 8, &where, 8);
    }
}

/* The tag of a whole sector, UINT64_MAX if it is torn or another's. */
static uint64_t tag_of(const uint8_t *sector, unsigned disk, uint64_t number) {
    static const uint8_t zeroes[512];
    uint8_t expected[512];
    uint64_t tag;
    if (memcmp(sector, zeroes, 512) == 0)
        return 0;
    memcpy(&tag, sector, 8);
    stamp(expected, tag, disk, number);
    return memcmp(sector, expected, 512) == 0 ? tag : UINT64_MAX;
}

struct news {
    enum { BEGUN, DONE, FLUSHED } what;
    uint32_t window;
};

static void tell(int pipe_fd, int what, uint32_t window) {
    struct news news = {what, window};
    if (write(pipe_fd, &news, sizeof news) != sizeof news)
        _exit(5);
}

static void *checkpoint_on_and_on(void *context) {
    struct gild_error error;
    for (;;)
        gild_store_checkpoint(context, &error);
    return NULL;
}

static void child_history(const char *directory, int pipe_fd, uint64_t round) {
    struct store_rig_op *calls = calloc(WINDOW_OPS, sizeof *calls);
    uint8_t *buffers = malloc(WINDOW_OPS * 64 * 512);
    struct gild_store *store = store_rig_open(directory, 1 + round % 2);
    struct gild_disk *disks[KILL_DISKS];
    pthread_t thread;
    struct gild_prng prng;
    gild_prng_seed(&prng, seed + round);
    for (unsigned i = 0; i < KILL_DISKS; i++)
        disks[i] = store_rig_disk(store, i + 1);
    if (round % 3)
        pthread_create(&thread, NULL, checkpoint_on_and_on, store);
    for (uint32_t window = 0; window < WINDOWS_MOST; window++) {
        tell(pipe_fd, BEGUN, window);
        for (unsigned i = 0; i < WINDOW_OPS; i++) {
            struct kill_op op = kill_op_of(round, window, i);
            uint8_t *buffer = buffers + i * 64 * 512;
            for (uint64_t s = 0; s < op.count; s++)
                stamp(buffer + s * 512, op.tag, op.disk, op.first + s);
            store_rig_start(&calls[i], disks[op.disk], op.kind, op.first * 512, op.count * 512,
                            buffer, op.flags);
        }
        for (unsigned i = 0; i < WINDOW_OPS; i++)
            if (store_rig_wait(&calls[i]))
                _exit(3);
        tell(pipe_fd, DONE, window);
        if (gild_prng_below(&prng, 4))
            continue;
        for (unsigned i = 0; i < KILL_DISKS; i++)
            if (store_rig_do(disks[i], GILD_OP_FLUSH, 0, 0, NULL, 0))
                _exit(4);
        tell(pipe_fd, FLUSHED, window);
    }
    for (;;)
        pause();
}

struct progress {
    int begun, done, flushed; /* highest window, -1 = none */
};

static bool hear(int pipe_fd, struct progress *progress) {
    struct news news;
    if (read(pipe_fd, &news, sizeof news) != sizeof news)
        return false;
    int *which = news.what == BEGUN  ? &progress->begun
                 : news.what == DONE ? &progress->done
                                     : &progress->flushed;
    *which = (int)news.window;
    return true;
}

/* content: tags as found now. before: as found before this round. */
static unsigned judge(uint64_t round, const struct progress *progress, const uint64_t *before,
                      const uint64_t *content) {
    static int base[KILL_DISKS * KILL_SECTORS];
    static bool good[KILL_DISKS * KILL_SECTORS];
    unsigned wrong = 0;
    memset(base, 0xff, sizeof base);
    for (int pass = 0; pass < 2; pass++) {
        for (int w = 0; w <= progress->begun; w++)
            for (unsigned i = 0; i < WINDOW_OPS; i++) {
                struct kill_op op = kill_op_of(round, (uint64_t)w, i);
                bool durable =
                    w <= progress->flushed || (w <= progress->done && op.flags & GILD_OP_FUA);
                for (uint64_t s = op.first; s < op.first + op.count; s++) {
                    unsigned at = op.disk * KILL_SECTORS + (unsigned)s;
                    if (pass == 0 && durable)
                        base[at] = w;
                    else if (pass == 1 && w >= base[at] && content[at] == op.tag)
                        good[at] = true;
                }
            }
        for (unsigned at = 0; pass == 0 && at < KILL_DISKS * KILL_SECTORS; at++)
            good[at] = base[at] < 0 && content[at] == before[at];
    }
    for (unsigned at = 0; at < KILL_DISKS * KILL_SECTORS; at++)
        if (!good[at] && ++wrong <= 5)
            fprintf(stderr,
                    "round %" PRIu64 " disk %u sector %u: found %" PRIx64 ", before %" PRIx64
                    ", last durable window %d of %d flushed, %d done, %d begun\n",
                    round, at / KILL_SECTORS, at % KILL_SECTORS, content[at], before[at], base[at],
                    progress->flushed, progress->done, progress->begun);
    return wrong;
}

static void read_tags(struct gild_store *store, uint64_t *content) {
    uint8_t *bytes = malloc(KILL_SECTORS * 512);
    for (unsigned i = 0; i < KILL_DISKS; i++) {
        struct gild_disk *disk = store_rig_disk(store, i + 1);
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 0, KILL_SECTORS * 512, bytes, 0), 0);
        for (uint64_t s = 0; s < KILL_SECTORS; s++)
            content[i * KILL_SECTORS + s] = tag_of(bytes + s * 512, i, s);
        store_rig_release(disk);
    }
    free(bytes);
}

static void test_every_kind_of_op_survives_sigkill(void) {
    static uint64_t content[2][KILL_DISKS * KILL_SECTORS];
    char directory[64];
    struct gild_prng prng;
    unsigned flushes = 0;
    gild_prng_seed(&prng, seed ^ 7);
    memset(content, 0, sizeof content);
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 1);
    store_rig_deltas(store, KILL_SECTORS * 512, 1, KILL_DISKS);
    store_rig_close(store);
    for (uint64_t round = 1; round <= 12; round++) {
        struct progress progress = {-1, -1, -1};
        int ends[2], status;
        CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
        pid_t child = fork();
        if (child == 0) {
            close(ends[0]);
            child_history(directory, ends[1], round);
        }
        close(ends[1]);
        int wanted = (int)gild_prng_below(&prng, 60);
        while (progress.done < wanted && hear(ends[0], &progress))
            continue;
        struct timespec moment = {0, (long)gild_prng_below(&prng, 3000000)}; /* somewhere */
        nanosleep(&moment, NULL);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        CU_ASSERT_TRUE(WIFSIGNALED(status));
        while (hear(ends[0], &progress))
            continue;
        close(ends[0]);
        flushes += progress.flushed >= 0;
        store = store_rig_open(directory, 1 + round % 3);
        read_tags(store, content[round & 1]);
        CU_ASSERT_EQUAL(judge(round, &progress, content[(round & 1) ^ 1], content[round & 1]), 0);
        check_clean(store);
        store_rig_close(store);
    }
    CU_ASSERT_TRUE(flushes >= 6);
    store_rig_remove(directory);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

#define IMAGE_BLOCKS 24u

/* A store whose owner was killed after writing and flushing block after block of delta 1: one
 * batch each, none of them checkpointed. */
static void crashed_store(char directory[64]) {
    int ends[2], status;
    char byte;
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 1);
    store_rig_deltas(store, IMAGE_BLOCKS * 4096, 1, 1);
    store_rig_close(store);
    CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        uint8_t *block = malloc(4096);
        store = store_rig_open(directory, 1);
        struct gild_disk *disk = store_rig_disk(store, 1);
        for (unsigned i = 0; i < IMAGE_BLOCKS; i++) {
            memset(block, (int)i + 1, 4096);
            if (store_rig_do(disk, GILD_OP_WRITE, i * 4096, 4096, block, GILD_OP_FUA))
                _exit(3);
        }
        if (write(ends[1], "x", 1) != 1)
            _exit(4);
        for (;;)
            pause();
    }
    close(ends[1]);
    CU_ASSERT_EQUAL(read(ends[0], &byte, 1), 1);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    close(ends[0]);
}

struct spot {
    char path[128];
    uint32_t offset; /* of the batch, in blocks */
    uint8_t saved[4096];
};

/* The batch that holds `block` of delta 1. */
static bool find_batch(const char *directory, uint64_t block, struct spot *spot) {
    struct superblock super;
    struct gild_error error;
    int lock, err = superblock_open(directory, &super, &lock, &error);
    struct gild_batch_header *header = gild_file_buffer(4096);
    bool found = false;
    CU_ASSERT_EQUAL_FATAL(err, 0);
    for (uint64_t serial = 1; serial < 64 && !found; serial++) {
        snprintf(spot->path, sizeof spot->path, "%s/log/%016" PRIx64 ".seg", directory, serial);
        int fd = open(spot->path, O_RDONLY);
        for (uint32_t at = 1; fd >= 0 && !found && at < GILD_SEGMENT_BLOCKS;) {
            if (pread(fd, header, 4096, (off_t)at * 4096) != 4096 ||
                !gild_batch_valid(header, super.id, serial, GILD_SEGMENT_BLOCKS, at))
                break;
            for (uint32_t i = 0; i < header->entry_count && !found; i++)
                found = header->entries[i].kind == GILD_ENTRY_DATA &&
                        header->entries[i].delta == 1 && header->entries[i].block == block;
            spot->offset = at;
            at += 1 + header->payload_blocks;
        }
        if (fd >= 0)
            close(fd);
    }
    free(header);
    close(lock);
    return found;
}

static void poke(const char *path, uint64_t offset, const void *bytes, size_t length, void *saved) {
    int fd = open(path, O_RDWR);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    if (saved)
        CU_ASSERT_EQUAL(pread(fd, saved, length, (off_t)offset), (ssize_t)length);
    CU_ASSERT_EQUAL(pwrite(fd, bytes, length, (off_t)offset), (ssize_t)length);
    close(fd);
}

static void expect_refused(const char *directory, enum gild_code code) {
    struct gild_store *store = NULL;
    struct gild_store_options options = {.threads = 1, .cache_bytes = (uint64_t)16 << 20};
    struct gild_error error = {0};
    CU_ASSERT_NOT_EQUAL(gild_store_open(directory, &options, &store, &error), 0);
    CU_ASSERT_EQUAL(error.code, code);
    CU_ASSERT_TRUE(strlen(error.message) > 20);
    if (error.code != code)
        fprintf(stderr, "code %d instead of %d: %s\n", error.code, code, error.message);
}

static void expect_unchanged(const char *directory, enum gild_code code) {
    uint64_t before = store_rig_hash(directory);
    expect_refused(directory, code);
    CU_ASSERT_EQUAL(store_rig_hash(directory), before);
}

static unsigned blocks_intact(struct gild_store *store) {
    struct gild_disk *disk = store_rig_disk(store, 1);
    uint8_t *block = malloc(4096);
    unsigned intact = 0;
    for (; intact < IMAGE_BLOCKS; intact++) {
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, intact * 4096, 4096, block, 0), 0);
        if (block[0] != intact + 1 || block[4095] != intact + 1)
            break;
    }
    for (unsigned i = intact; i < IMAGE_BLOCKS; i++) { /* nothing after the first that is lost */
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, i * 4096, 4096, block, 0), 0);
        CU_ASSERT_EQUAL(block[0] | block[4095], 0);
    }
    free(block);
    store_rig_release(disk);
    return intact;
}

static void test_a_rotten_flushed_batch_is_refused(void) {
    char directory[64];
    struct spot spot;
    static const uint8_t garbage[64] = {0xa5, 1, 2, 3};
    crashed_store(directory);
    /* The payload, in the first, a middle, and the last batch that a later one knows durable. */
    static const uint64_t blocks[] = {0, IMAGE_BLOCKS / 2, IMAGE_BLOCKS - 2};
    for (unsigned i = 0; i < 3; i++) {
        uint64_t at;
        CU_ASSERT_TRUE_FATAL(find_batch(directory, blocks[i], &spot));
        at = (spot.offset + 1) * (uint64_t)4096 + 1000;
        poke(spot.path, at, garbage, sizeof garbage, spot.saved);
        expect_unchanged(directory, GILD_CORRUPT);
        poke(spot.path, at, spot.saved, sizeof garbage, NULL);
    }
    struct gild_store *store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL(blocks_intact(store), IMAGE_BLOCKS);
    check_clean(store);
    store_rig_close(store);
    store_rig_remove(directory);
}

static void test_a_rotten_header_of_a_flushed_batch_is_refused(void) {
    char directory[64];
    struct spot spot;
    static const uint8_t garbage[64] = {0xa5, 1, 2, 3};
    crashed_store(directory);
    CU_ASSERT_TRUE_FATAL(find_batch(directory, IMAGE_BLOCKS / 2, &spot));
    poke(spot.path, spot.offset * (uint64_t)4096 + 200, garbage, sizeof garbage, NULL);
    expect_unchanged(directory, GILD_CORRUPT);
    store_rig_remove(directory);
}

static void test_a_torn_tail_is_cut(void) {
    static const uint8_t garbage[64] = {0xa5, 1, 2, 3};
    for (unsigned where = 0; where < 3; where++) { /* its header, its payload, not even begun */
        char directory[64];
        struct spot spot;
        uint8_t *zeroes = calloc(2, 4096);
        crashed_store(directory);
        CU_ASSERT_TRUE_FATAL(find_batch(directory, IMAGE_BLOCKS - 1, &spot));
        uint64_t at = (uint64_t)spot.offset * 4096;
        if (where == 2)
            poke(spot.path, at, zeroes, 8192, NULL);
        else
            poke(spot.path, at + where * 4096 + 300, garbage, sizeof garbage, NULL);
        for (unsigned again = 0; again < 2; again++) { /* and the cut holds */
            struct gild_store *store = store_rig_open(directory, 1);
            CU_ASSERT_EQUAL(blocks_intact(store), IMAGE_BLOCKS - 1);
            check_clean(store);
            store_rig_close(store);
        }
        free(zeroes);
        store_rig_remove(directory);
    }
}

static void test_missing_and_short_segments_are_refused(void) {
    char directory[64], aside[140];
    struct spot spot;
    struct stat st;
    crashed_store(directory);
    CU_ASSERT_TRUE_FATAL(find_batch(directory, 3, &spot));
    snprintf(aside, sizeof aside, "%s.aside", directory);
    CU_ASSERT_EQUAL(rename(spot.path, aside), 0);
    expect_unchanged(directory, GILD_CORRUPT);
    CU_ASSERT_EQUAL(rename(aside, spot.path), 0);
    /* Cut short; its tail is empty, so that nothing is lost that could not be put back. */
    CU_ASSERT_EQUAL(stat(spot.path, &st), 0);
    CU_ASSERT_EQUAL(truncate(spot.path, st.st_size - 4096), 0);
    expect_unchanged(directory, GILD_CORRUPT);
    CU_ASSERT_EQUAL(truncate(spot.path, st.st_size), 0);
    /* A header of another life. */
    uint8_t saved[4096];
    poke(spot.path, 48, "\xff\xff", 2, saved);
    expect_unchanged(directory, GILD_CORRUPT);
    poke(spot.path, 48, saved, 2, NULL);
    struct gild_store *store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL(blocks_intact(store), IMAGE_BLOCKS);
    store_rig_close(store);
    store_rig_remove(directory);
}

static void test_superblocks_that_are_not_ours_are_refused(void) {
    char directory[64], path[128];
    uint8_t saved[4096];
    uint32_t newer = GILD_STORE_FORMAT + 1;
    crashed_store(directory);
    snprintf(path, sizeof path, "%s/superblock", directory);
    poke(path, 16, &newer, 4, saved); /* format */
    expect_unchanged(directory, GILD_FAILED);
    poke(path, 16, saved, 4, NULL);
    poke(path, 20, "\x01", 1, saved); /* an incompatible feature */
    expect_unchanged(directory, GILD_FAILED);
    poke(path, 20, saved, 1, NULL);
    poke(path, 0, "X", 1, saved); /* magic */
    expect_unchanged(directory, GILD_CORRUPT);
    poke(path, 0, saved, 1, NULL);
    poke(path, 40, "X", 1, saved); /* the store's id, under the check */
    expect_unchanged(directory, GILD_CORRUPT);
    poke(path, 40, saved, 1, NULL);
    int fd = open(path, O_RDONLY);
    CU_ASSERT_EQUAL(read(fd, saved, 4096), 4096);
    close(fd);
    CU_ASSERT_EQUAL(truncate(path, 100), 0);
    expect_unchanged(directory, GILD_CORRUPT);
    CU_ASSERT_EQUAL(truncate(path, 0), 0);
    expect_unchanged(directory, GILD_CORRUPT);
    poke(path, 0, saved, 4096, NULL);
    struct gild_store *store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL(blocks_intact(store), IMAGE_BLOCKS);
    store_rig_close(store);
    CU_ASSERT_EQUAL(unlink(path), 0);
    expect_unchanged(directory, GILD_NOT_FOUND);
    store_rig_remove(directory);
}

/* ---- the check finds it ------------------------------------------------------------------------
 */

static struct gild_txn *writing(struct gild_store *store) {
    struct gild_txn *txn = NULL;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), true, &txn), 0);
    return txn;
}

static void expect_found(struct gild_store *store, const char *words) {
    struct store_rig_findings findings = {.quiet = true};
    CU_ASSERT_EQUAL(store_rig_check(store, &findings), -EUCLEAN);
    CU_ASSERT_TRUE(findings.count > 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(findings.text, words));
    if (!strstr(findings.text, words))
        fprintf(stderr, "not found: %s, but: %s\n", words, findings.text);
}

struct live {
    uint64_t serial;
    struct gild_rec_segment record;
};

static int find_live(void *context, const void *key, size_t key_length, const void *value,
                     size_t length) {
    struct live *live = context;
    struct gild_rec_segment record;
    (void)key_length;
    if (gild_rec_segment_decode(&record, value, length) == 0 && record.live_blocks &&
        !record.holds_nodes)
        *live = (struct live){gild_rec_key_u64(key), record};
    return 0;
}

static void test_check_finds_what_is_wrong(void) {
    char directory[64];
    crashed_store(directory);
    struct gild_store *store = store_rig_open(directory, 1);
    struct live live = {0};
    struct gild_error error;
    struct gild_rec_delta *delta = malloc(sizeof *delta), *lost = calloc(1, sizeof *lost);
    struct gild_rec_map *map = calloc(1, sizeof *map);
    check_clean(store);
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    /* A wrong live count. */
    struct gild_txn *txn = writing(store);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, find_live, &live), 0);
    CU_ASSERT_NOT_EQUAL_FATAL(live.serial, 0);
    live.record.live_blocks++;
    CU_ASSERT_EQUAL(gild_rec_put_segment(txn, live.serial, &live.record), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "live blocks, its record says");
    txn = writing(store);
    live.record.live_blocks--;
    CU_ASSERT_EQUAL(gild_rec_put_segment(txn, live.serial, &live.record), 0);
    /* A lost delta record. */
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, delta), 0);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, 1), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "holds 0 live blocks");
    /* A delta over a map that is not there. */
    txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, 1, delta), 0);
    lost->size_bytes = 1 << 20;
    lost->parent_map = 77;
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, 2, lost), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "stands on map 77, which is not there");
    /* A wrong count of a delta's blocks. */
    txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, 2), 0);
    delta->mapped_blocks += 3;
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, 1, delta), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "blocks, its record says");
    /* A map without its file, which needs a pack that nobody knows. */
    txn = writing(store);
    delta->mapped_blocks -= 3;
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DELTAS, 1, delta), 0);
    map->size_bytes = 1 << 20;
    map->pack_count = 1;
    map->packs[0] = 9;
    CU_ASSERT_EQUAL(gild_rec_put_map(txn, 5, map), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "needs pack 00000009, which the catalogue does not know");
    expect_found(store, "0000000000000005.map");
    /* A pack without its file. */
    txn = writing(store);
    struct gild_rec_pack pack = {.file_bytes = 4096, .groups = 1, .blocks = 1};
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_MAPS, 5), 0);
    CU_ASSERT_EQUAL(gild_rec_put_pack(txn, 6, &pack), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_found(store, "00000006");
    txn = writing(store);
    uint8_t key[4] = {0, 0, 0, 6};
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_PACKS, key, 4), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    check_clean(store);
    store_rig_close(store);
    free(map);
    free(lost);
    free(delta);
    store_rig_remove(directory);
}

/* A rotten map node, which only a walk sees: found, and the block is EIO, not another's. */
static void test_check_finds_a_rotten_node(void) {
    char directory[64], path[128];
    crashed_store(directory);
    struct gild_store *store = store_rig_open(directory, 1);
    struct gild_rec_delta *delta = malloc(sizeof *delta);
    struct gild_txn *txn = writing(store);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, delta), 0);
    gild_txn_abort(txn);
    uint64_t place = delta->roots[0];
    CU_ASSERT_NOT_EQUAL_FATAL(place, 0);
    snprintf(path, sizeof path, "%s/log/%016" PRIx64 ".seg", directory, place << 4 >> 20);
    store_rig_close(store);
    poke(path, (place & 0xffff) * 4096 + 100, "garbage", 7, NULL);
    store = store_rig_open(directory, 1);
    expect_found(store, "delta 1: nodes of its map are rotten");
    struct gild_disk_spec spec = {.path = "test/1", .delta_id = 1};
    struct gild_disk *disk;
    bool writable;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_disk_acquire(store, &spec, "test", 0, &disk, &writable, &error), -EBADMSG);
    store_rig_close(store);
    free(delta);
    store_rig_remove(directory);
}

/* ---- parts of blocks, many at once --------------------------------------------------------------
 */

#define PART_THREADS 4u
#define PART_DEPTH 8u
#define PART_SECTORS 48u /* six blocks: each is changed by all threads */

struct part_thread {
    struct gild_disk *disk;
    unsigned number, wrong, writes;
    struct gild_prng prng;
    uint64_t value[PART_SECTORS]; /* last completed, of this thread's sectors */
    pthread_t thread;
};

struct part_slot {
    struct store_rig_op call;
    uint8_t bytes[512];
    uint64_t sector, value;
    bool busy, reading;
};

static void part_finish(struct part_thread *self, struct part_slot *slot) {
    if (!slot->busy)
        return;
    slot->busy = false;
    self->wrong += store_rig_wait(&slot->call) != 0;
    if (!slot->reading)
        self->value[slot->sector] = slot->value;
    else
        self->wrong += tag_of(slot->bytes, 0, slot->sector) != self->value[slot->sector];
}

/* A thread owns every fourth sector and has at most one op in flight on each, so what a sector must
 * hold is known; the blocks are everybody's. */
static void *part_main(void *argument) {
    struct part_thread *self = argument;
    struct part_slot *slots = calloc(PART_DEPTH, sizeof *slots);
    for (unsigned i = 0; i < 4000; i++) {
        struct part_slot *slot = &slots[i % PART_DEPTH];
        part_finish(self, slot);
        slot->sector =
            self->number + PART_THREADS * gild_prng_below(&self->prng, PART_SECTORS / PART_THREADS);
        for (unsigned j = 0; j < PART_DEPTH; j++)
            if (slots[j].busy && slots[j].sector == slot->sector)
                part_finish(self, &slots[j]);
        unsigned dice = (unsigned)gild_prng_below(&self->prng, 16);
        slot->busy = true;
        slot->reading = dice < 4;
        slot->value = dice < 6 ? 0 : (uint64_t)self->number << 32 | (i + 1);
        self->writes += !slot->reading;
        if (slot->value)
            stamp(slot->bytes, slot->value, 0, slot->sector);
        enum gild_op_kind kind = slot->reading ? GILD_OP_READ
                                 : slot->value ? GILD_OP_WRITE
                                 : dice == 4   ? GILD_OP_TRIM
                                               : GILD_OP_ZERO;
        store_rig_start(&slot->call, self->disk, kind, slot->sector * 512, 512, slot->bytes,
                        dice == 15 ? GILD_OP_FUA : 0);
    }
    for (unsigned j = 0; j < PART_DEPTH; j++)
        part_finish(self, &slots[j]);
    free(slots);
    return NULL;
}

static unsigned parts_wrong(struct gild_store *store, const struct part_thread *threads) {
    struct gild_disk *disk = store_rig_disk(store, 1);
    uint8_t *bytes = malloc(PART_SECTORS * 512);
    unsigned wrong = 0;
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 0, PART_SECTORS * 512, bytes, 0), 0);
    for (unsigned s = 0; s < PART_SECTORS; s++)
        wrong += tag_of(bytes + s * 512, 0, s) != threads[s % PART_THREADS].value[s];
    free(bytes);
    store_rig_release(disk);
    return wrong;
}

static void test_parts_of_blocks_many_at_once(void) {
    static struct part_thread threads[PART_THREADS];
    char directory[64];
    struct gild_error error = {0};
    unsigned writes = 0;
    memset(threads, 0, sizeof threads);
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 2);
    store_rig_deltas(store, PART_SECTORS * 512, 1, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    for (unsigned i = 0; i < PART_THREADS; i++) {
        threads[i].disk = disk;
        threads[i].number = i;
        gild_prng_seed(&threads[i].prng, seed + i);
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i].thread, NULL, part_main, &threads[i]), 0);
    }
    for (unsigned i = 0; i < 20; i++)
        CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    for (unsigned i = 0; i < PART_THREADS; i++) {
        pthread_join(threads[i].thread, NULL);
        CU_ASSERT_EQUAL(threads[i].wrong, 0);
        writes += threads[i].writes;
    }
    CU_ASSERT_TRUE(writes > 8000);
    store_rig_release(disk);
    CU_ASSERT_EQUAL(parts_wrong(store, threads), 0);
    check_clean(store);
    store_rig_close(store);
    store = store_rig_open(directory, 1);
    CU_ASSERT_EQUAL(parts_wrong(store, threads), 0);
    store_rig_close(store);
    store_rig_remove(directory);
}

/* ---- many disks at once -------------------------------------------------------------------------
 */

#define MANY 1000u

static void test_a_thousand_dirty_disks(void) {
    char directory[64];
    struct gild_error error = {0};
    struct gild_disk **disks = calloc(MANY, sizeof *disks);
    uint8_t *bytes = malloc(4096);
    unsigned wrong = 0;
    store_rig_make(directory, 0);
    struct gild_store *store = store_rig_open(directory, 2);
    store_rig_deltas(store, (uint64_t)40 << 30, 1, MANY);
    for (unsigned i = 0; i < MANY; i++) {
        disks[i] = store_rig_disk(store, i + 1);
        memset(bytes, (int)(i % 255) + 1, 4096);
        wrong += store_rig_do(disks[i], GILD_OP_WRITE, (uint64_t)i << 24, 4096, bytes, 0) != 0;
    }
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
    for (unsigned i = 0; i < MANY; i++)
        store_rig_release(disks[i]);
    store_rig_close(store);
    store = store_rig_open(directory, 1);
    check_clean(store);
    for (unsigned i = 0; i < MANY; i++) {
        struct gild_disk *disk = store_rig_disk(store, i + 1);
        wrong += store_rig_do(disk, GILD_OP_READ, (uint64_t)i << 24, 4096, bytes, 0) != 0;
        wrong += bytes[0] != i % 255 + 1 || bytes[4095] != i % 255 + 1;
        store_rig_release(disk);
    }
    CU_ASSERT_EQUAL(wrong, 0);
    store_rig_close(store);
    free(bytes);
    free(disks);
    store_rig_remove(directory);
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 "\n", seed);
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("recovery", NULL, NULL);
    CU_add_test(suite, "D1, D2: every kind of op survives SIGKILL",
                test_every_kind_of_op_survives_sigkill);
    CU_add_test(suite, "a rotten flushed batch is refused", test_a_rotten_flushed_batch_is_refused);
    CU_add_test(suite, "a rotten header of a flushed batch is refused",
                test_a_rotten_header_of_a_flushed_batch_is_refused);
    CU_add_test(suite, "a torn tail is cut, and what was before it is there",
                test_a_torn_tail_is_cut);
    CU_add_test(suite, "D6: missing and short segments are refused",
                test_missing_and_short_segments_are_refused);
    CU_add_test(suite, "D6: superblocks that are not ours are refused, nothing written",
                test_superblocks_that_are_not_ours_are_refused);
    CU_add_test(suite, "the check finds what is wrong", test_check_finds_what_is_wrong);
    CU_add_test(suite, "D9: the check finds a rotten node, and the disk is refused",
                test_check_finds_a_rotten_node);
    CU_add_test(suite, "D2: parts of blocks, many at once", test_parts_of_blocks_many_at_once);
    CU_add_test(suite, "a thousand disks in one checkpoint", test_a_thousand_dirty_disks);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
