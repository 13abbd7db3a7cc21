/* bench_recovery: what bench/recovery times, through the engine's public headers.
 *
 *     bench_recovery fill  STORE ...   writes a block into each MiB of the disks, and --settled-mib
 * of data behind them; closes the store in order bench_recovery crash STORE ...   random 4 KiB
 * writes with flushes, a last flush of every disk, then SIGKILL: no checkpoint, all of it lies in
 * the log bench_recovery open  STORE ...   times the open and the first read after it, checks that
 * the last thousand writes are there, and ends without a close
 *
 * Which blocks are written follows from the seed, so `open` knows what `crash` wrote. Prints one
 * line of JSON; exits 1 with a sentence when anything fails or a block is not what was written. */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "gild/disk.h"
#include "gild/store.h"

#define DISKS_MOST 64u
#define DEPTH 64u
#define FLUSH_EVERY 32u
#define LOOKED_AT 1000u
#define MIB ((uint64_t)1 << 20)

struct plan {
    const char *verb, *directory;
    unsigned disks, threads;
    uint64_t span_mib, settled_mib, writes, seed;
};

struct bench {
    struct plan plan;
    struct gild_store *store;
    struct gild_disk *disks[DISKS_MOST];
    pthread_mutex_t lock;
    pthread_cond_t freed;
    struct request *idle;
    unsigned in_flight;
    int error;
};

struct request {
    struct gild_op op; /* first: an op's address is its request's */
    struct bench *bench;
    struct request *next;
    struct iovec vector;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    uint8_t *bytes;
};

struct where {
    unsigned disk;
    uint64_t block;
};

static void fail(const char *what, const char *why) {
    fprintf(stderr, "bench_recovery: %s: %s\n", what, why);
    exit(1);
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static double cpu_ms(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e3;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static struct where where_of(const struct plan *plan, uint64_t write) {
    uint64_t dice = mix(plan->seed << 32 ^ write);
    return (struct where){.disk = (unsigned)(dice % plan->disks),
                          .block = (dice >> 8) % (plan->span_mib * (MIB / GILD_BLOCK_BYTES))};
}

static void stamp(uint8_t *block, struct where where, uint64_t turn) {
    uint64_t words[4] = {turn, where.disk, where.block, mix(turn ^ where.block)};
    for (unsigned i = 0; i < GILD_BLOCK_BYTES; i += sizeof words)
        memcpy(block + i, words, sizeof words);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void request_done(struct gild_op *op) {
    struct request *request = (struct request *)op;
    struct bench *bench = request->bench;
    size_t at = 0;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        memcpy(request->bytes + at, op->pieces[i].data, op->pieces[i].bytes);
        at += op->pieces[i].bytes;
    }
    gild_op_release(op);
    pthread_mutex_lock(&bench->lock);
    if (op->error)
        bench->error = op->error;
    request->next = bench->idle;
    bench->idle = request;
    bench->in_flight--;
    pthread_cond_signal(&bench->freed);
    pthread_mutex_unlock(&bench->lock);
}

static struct request *take(struct bench *bench) {
    pthread_mutex_lock(&bench->lock);
    while (!bench->idle)
        pthread_cond_wait(&bench->freed, &bench->lock);
    struct request *request = bench->idle;
    bench->idle = request->next;
    bench->in_flight++;
    pthread_mutex_unlock(&bench->lock);
    memset(&request->op, 0, sizeof request->op);
    request->op.done = request_done;
    return request;
}

static void drain(struct bench *bench) {
    pthread_mutex_lock(&bench->lock);
    while (bench->in_flight)
        pthread_cond_wait(&bench->freed, &bench->lock);
    pthread_mutex_unlock(&bench->lock);
    if (bench->error)
        fail("a request failed", strerror(-bench->error));
}

static void start(struct request *request, struct gild_disk *disk, enum gild_op_kind kind,
                  uint64_t offset, uint64_t length) {
    struct gild_op *op = &request->op;
    op->disk = disk;
    op->kind = kind;
    op->offset_bytes = offset;
    op->length_bytes = length;
    if (kind == GILD_OP_WRITE) {
        request->vector = (struct iovec){request->bytes, length};
        op->payload = &request->vector;
        op->payload_count = 1;
    } else if (kind == GILD_OP_READ) {
        op->pieces = request->pieces;
        op->piece_limit = GILD_OP_MAX_PIECES;
    }
    gild_disk_post(op);
}

static void flush_all(struct bench *bench) {
    drain(bench);
    for (unsigned i = 0; i < bench->plan.disks; i++)
        start(take(bench), bench->disks[i], GILD_OP_FLUSH, 0, 0);
    drain(bench);
}

static struct request *make_requests(struct bench *bench) {
    struct request *requests = calloc(DEPTH, sizeof *requests);
    for (unsigned i = 0; requests && i < DEPTH; i++) {
        requests[i].bench = bench;
        requests[i].bytes = aligned_alloc(4096, MIB);
        if (!requests[i].bytes)
            fail("memory", "there is none");
        memset(requests[i].bytes, 7, MIB); /* zeroes would be no content */
        requests[i].next = bench->idle;
        bench->idle = &requests[i];
    }
    if (!requests)
        fail("memory", "there is none");
    return requests;
}

/* ---- the store ------------------------------------------------------------------------------- */

static void open_disk(struct bench *bench, unsigned number) {
    char path[64];
    bool writable;
    struct gild_error error = {0};
    snprintf(path, sizeof path, "desktops/r%04u/os", number + 1);
    if (gild_disk_open(bench->store, path, "nbd", GILD_OPEN_WRITE, &bench->disks[number], &writable,
                       &error))
        fail(path, error.message);
}

static void open_store(struct bench *bench) {
    const struct gild_store_options options = {
        .threads = bench->plan.threads,
        .checkpoint_log_bytes = UINT64_MAX,
        .no_cleaner = true,
    };
    struct gild_error error = {0};
    if (gild_store_open(bench->plan.directory, &options, &bench->store, &error))
        fail(bench->plan.directory, error.message);
}

static void open_all(struct bench *bench) {
    open_store(bench);
    for (unsigned i = 0; i < bench->plan.disks; i++)
        open_disk(bench, i);
}

static void fill(struct bench *bench) {
    const struct plan *plan = &bench->plan;
    open_all(bench);
    for (uint64_t mib = 0; mib < plan->span_mib; mib++)
        for (unsigned i = 0; i < plan->disks; i++) {
            struct request *request = take(bench);
            stamp(request->bytes, (struct where){i, mib}, plan->seed);
            start(request, bench->disks[i], GILD_OP_WRITE, mib * MIB, GILD_BLOCK_BYTES);
        }
    for (uint64_t mib = 0; mib < plan->settled_mib; mib++) {
        struct request *request = take(bench);
        uint64_t at = plan->span_mib + mib / plan->disks;
        for (uint64_t b = 0; b < MIB / GILD_BLOCK_BYTES; b++)
            stamp(request->bytes + b * GILD_BLOCK_BYTES, (struct where){mib % plan->disks, b}, mib);
        start(request, bench->disks[mib % plan->disks], GILD_OP_WRITE, at * MIB, MIB);
    }
    flush_all(bench);
    for (unsigned i = 0; i < plan->disks; i++)
        gild_disk_close(bench->disks[i], "nbd", true);
    struct gild_error error = {0};
    if (gild_store_close(bench->store, &error))
        fail(plan->directory, error.message);
    printf("{\"settled_mib\": %" PRIu64 "}\n", plan->settled_mib);
}

static void crash(struct bench *bench) {
    const struct plan *plan = &bench->plan;
    open_all(bench);
    struct gild_error error = {0};
    if (gild_store_checkpoint(bench->store, &error)) /* the start's own checkpoint is behind us */
        fail(plan->directory, error.message);
    double begun = now_ms();
    for (uint64_t i = 0; i < plan->writes; i++) {
        struct request *request = take(bench);
        struct where where = where_of(plan, i);
        stamp(request->bytes, where, i);
        start(request, bench->disks[where.disk], GILD_OP_WRITE, where.block * GILD_BLOCK_BYTES,
              GILD_BLOCK_BYTES);
        if (i % FLUSH_EVERY == FLUSH_EVERY - 1)
            start(take(bench), bench->disks[where.disk], GILD_OP_FLUSH, 0, 0);
    }
    flush_all(bench);
    printf("{\"write_ms\": %.1f}\n", now_ms() - begun);
    fflush(stdout);
    kill(getpid(), SIGKILL);
    pause();
}

/* ---- opening --------------------------------------------------------------------------------- */

static void read_block(struct bench *bench, struct request **request, struct where where) {
    *request = take(bench);
    start(*request, bench->disks[where.disk], GILD_OP_READ, where.block * GILD_BLOCK_BYTES,
          GILD_BLOCK_BYTES);
    drain(bench);
}

/* The last writes are what later ones can not have changed, but for those among them. */
static uint64_t last_write_of(const struct plan *plan, uint64_t from, struct where where) {
    for (uint64_t i = plan->writes; i-- > from;) {
        struct where other = where_of(plan, i);
        if (other.disk == where.disk && other.block == where.block)
            return i;
    }
    return from;
}

static void look(struct bench *bench) {
    const struct plan *plan = &bench->plan;
    struct request *request;
    uint8_t expected[GILD_BLOCK_BYTES];
    double begun = now_ms(), cpu = cpu_ms();
    open_store(bench);
    cpu = cpu_ms() - cpu;
    double opened = now_ms();
    struct where first = where_of(plan, plan->writes - 1);
    open_disk(bench, first.disk);
    read_block(bench, &request, first);
    double served = now_ms();
    struct gild_store_info info;
    struct gild_error error = {0};
    if (gild_store_get_info(bench->store, &info, &error))
        fail(plan->directory, error.message);
    for (unsigned i = 0; i < plan->disks; i++)
        if (i != first.disk)
            open_disk(bench, i);
    uint64_t from = plan->writes > LOOKED_AT ? plan->writes - LOOKED_AT : 0;
    for (uint64_t i = from; i < plan->writes; i++) {
        struct where where = where_of(plan, i);
        stamp(expected, where, last_write_of(plan, from, where));
        read_block(bench, &request, where);
        if (memcmp(expected, request->bytes, sizeof expected) != 0)
            fail(gild_disk_path(bench->disks[where.disk]), "a block is not what was written last");
    }
    printf("{\"open_ms\": %.1f, \"served_ms\": %.1f, \"cpu_ms\": %.1f, \"batches\": %" PRIu64
           ", \"log_bytes\": %" PRIu64 ", \"used_bytes\": %" PRIu64 ", \"pack_bytes\": %" PRIu64
           ", \"desktops\": %" PRIu64 "}\n",
           opened - begun, served - begun, cpu, info.recovered_batches, info.recovered_bytes,
           info.used_bytes, info.pack_bytes, info.desktops);
    fflush(stdout);
    _exit(0);
}

/* ---- the command line ------------------------------------------------------------------------ */

static uint64_t number(const char *name, const char *text) {
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    if (!*text || *end)
        fail(name, "wants a number");
    return value;
}

int main(int count, char **words) {
    static struct bench bench = {.plan = {.disks = 16, .span_mib = 1024, .writes = 262144}};
    struct plan *plan = &bench.plan;
    if (count < 3)
        fail("usage",
             "bench_recovery fill|crash|open STORE [--disks N] [--span-mib N] "
             "[--settled-mib N] [--writes N] [--seed N] [--threads N]");
    plan->verb = words[1];
    plan->directory = words[2];
    for (int i = 3; i + 1 < count; i += 2) {
        uint64_t value = number(words[i], words[i + 1]);
        if (!strcmp(words[i], "--disks"))
            plan->disks = (unsigned)value;
        else if (!strcmp(words[i], "--span-mib"))
            plan->span_mib = value;
        else if (!strcmp(words[i], "--settled-mib"))
            plan->settled_mib = value;
        else if (!strcmp(words[i], "--writes"))
            plan->writes = value;
        else if (!strcmp(words[i], "--seed"))
            plan->seed = value;
        else if (!strcmp(words[i], "--threads"))
            plan->threads = (unsigned)value;
        else
            fail(words[i], "no such option");
    }
    if (!plan->disks || plan->disks > DISKS_MOST || !plan->span_mib || !plan->writes)
        fail("usage", "1 to 64 disks, a span and some writes");
    pthread_mutex_init(&bench.lock, NULL);
    pthread_cond_init(&bench.freed, NULL);
    struct request *requests = make_requests(&bench);
    if (!strcmp(plan->verb, "fill"))
        fill(&bench);
    else if (!strcmp(plan->verb, "crash"))
        crash(&bench);
    else if (!strcmp(plan->verb, "open"))
        look(&bench);
    else
        fail(plan->verb, "no such verb: fill, crash or open");
    for (unsigned i = 0; i < DEPTH; i++)
        free(requests[i].bytes);
    free(requests);
    return 0;
}
