/* Disks in memory (fake_disk.h).
 *
 * Content is one sparse mapping per disk, beside it one byte per block: hole, data, or zeroes that
 * stay allocated. Reads hand out pointers into the mapping block by block, as the engine does with
 * its cache. Threads: ops on the disk's reactor; the knobs, counters and opens under the store's
 * lock. */
#include "fake_disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FAKE_DISKS 64u
#define FAKE_REACTORS 8u

#define MUST(condition)                                                                     \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "fake disk, line %d: a breach of the contract: %s\n", __LINE__, \
                    #condition);                                                            \
            abort();                                                                        \
        }                                                                                   \
    } while (0)

enum { HOLE = 0, DATA, ZERO };

struct gild_disk {
    struct gild_store *store;
    char *path;
    uint64_t size_bytes;
    bool read_only;
    struct gild_loop *loop;
    uint8_t *bytes;
    uint8_t *blocks;

    atomic_bool hold, later, busy;
    atomic_uint ops[GILD_OP_PREFETCH + 1], held, opens, flags_seen;
    atomic_uint performed; /* orders what ops and the test do to the bytes */
    _Atomic uint64_t fail_offset, fail_bytes;
    atomic_int fail_err;
    struct gild_op *held_first, *held_last; /* the disk's loop */
    struct gild_task release_task;
    long pinned; /* the disk's loop */
};

struct gild_store {
    unsigned reactor_count;
    struct gild_loop *loops[FAKE_REACTORS];
    pthread_t threads[FAKE_REACTORS];
    unsigned disk_count;
    struct gild_disk *disks[FAKE_DISKS];
    pthread_mutex_t lock;
    bool hold_opens;
    struct gild_disk_opening *openings[FAKE_DISKS];
    unsigned opening_count;
};

/* ---- store ----------------------------------------------------------------------------------- */

static void *reactor_main(void *loop) {
    gild_loop_run(loop);
    return NULL;
}

struct gild_store *fake_store_create(enum gild_loop_backend backend, unsigned reactors) {
    struct gild_store *store = calloc(1, sizeof *store);
    struct gild_error error;
    struct gild_loop_options options = {.backend = backend};
    MUST(store && reactors && reactors <= FAKE_REACTORS);
    pthread_mutex_init(&store->lock, NULL);
    store->reactor_count = reactors;
    for (unsigned i = 0; i < reactors; i++) {
        if (gild_loop_create(&store->loops[i], &options, &error)) {
            fprintf(stderr, "%s\n", error.message);
            MUST(i == 0);
            free(store);
            return NULL;
        }
        MUST(!pthread_create(&store->threads[i], NULL, reactor_main, store->loops[i]));
    }
    return store;
}

void fake_store_destroy(struct gild_store *store) {
    for (unsigned i = 0; i < store->reactor_count; i++) {
        gild_loop_stop(store->loops[i]);
        pthread_join(store->threads[i], NULL);
        gild_loop_destroy(store->loops[i]);
    }
    for (unsigned i = 0; i < store->disk_count; i++) {
        struct gild_disk *disk = store->disks[i];
        MUST(!disk->opens);
        MUST(!disk->pinned);
        MUST(!disk->held_first);
        munmap(disk->bytes, disk->size_bytes);
        free(disk->blocks);
        free(disk->path);
        free(disk);
    }
    pthread_mutex_destroy(&store->lock);
    free(store);
}

unsigned gild_store_reactor_count(const struct gild_store *store) {
    return store->reactor_count;
}

struct gild_loop *gild_store_reactor(const struct gild_store *store, unsigned index) {
    return store->loops[index];
}

/* ---- disks ----------------------------------------------------------------------------------- */

static void release_held(struct gild_task *task);

struct gild_disk *fake_disk_add(struct gild_store *store, const char *path, uint64_t size_bytes,
                                bool read_only, unsigned reactor) {
    struct gild_disk *disk = calloc(1, sizeof *disk);
    MUST(disk && store->disk_count < FAKE_DISKS && reactor < store->reactor_count);
    disk->store = store;
    disk->path = strdup(path);
    disk->size_bytes = size_bytes;
    disk->read_only = read_only;
    disk->loop = store->loops[reactor];
    disk->bytes = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    disk->blocks = calloc(1, size_bytes / GILD_BLOCK_BYTES + 1);
    disk->release_task.run = release_held;
    MUST(disk->path && disk->bytes != MAP_FAILED && disk->blocks);
    pthread_mutex_lock(&store->lock);
    store->disks[store->disk_count++] = disk;
    pthread_mutex_unlock(&store->lock);
    return disk;
}

bool fake_disk_holds_bytes(struct gild_disk *disk, uint64_t offset, const void *bytes,
                           size_t count) {
    atomic_load_explicit(&disk->performed, memory_order_acquire);
    bool same = memcmp(disk->bytes + offset, bytes, count) == 0;
    atomic_fetch_add_explicit(&disk->performed, 1, memory_order_release);
    return same;
}

uint8_t *fake_disk_bytes(struct gild_disk *disk) {
    atomic_load_explicit(&disk->performed, memory_order_acquire);
    return disk->bytes;
}

void fake_disk_later(struct gild_disk *disk, bool later) {
    disk->later = later;
}

void fake_disk_fail(struct gild_disk *disk, uint64_t offset, uint64_t bytes, int err) {
    disk->fail_offset = offset;
    disk->fail_bytes = bytes;
    disk->fail_err = err;
}

void fake_disk_busy(struct gild_disk *disk, bool busy) {
    disk->busy = busy;
}

unsigned fake_disk_ops(struct gild_disk *disk, enum gild_op_kind kind) {
    return disk->ops[kind];
}

unsigned fake_disk_held(struct gild_disk *disk) {
    return disk->held;
}

unsigned fake_disk_opens(struct gild_disk *disk) {
    return disk->opens;
}

unsigned fake_disk_flags_seen(struct gild_disk *disk) {
    return disk->flags_seen;
}

uint64_t gild_disk_size_bytes(const struct gild_disk *disk) {
    return disk->size_bytes;
}

bool gild_disk_read_only(const struct gild_disk *disk) {
    return disk->read_only;
}

const char *gild_disk_path(const struct gild_disk *disk) {
    return disk->path;
}

struct gild_loop *gild_disk_loop(const struct gild_disk *disk) {
    return disk->loop;
}

/* ---- ops ------------------------------------------------------------------------------------- */

static void check_op(const struct gild_op *op) {
    const struct gild_disk *disk = op->disk;
    MUST(gild_loop_is_current(disk->loop));
    MUST(disk->opens);
    MUST(op->done);
    MUST(op->kind <= GILD_OP_PREFETCH);
    if (op->kind == GILD_OP_FLUSH)
        return;
    MUST(op->offset_bytes % GILD_SECTOR_BYTES == 0 && op->length_bytes % GILD_SECTOR_BYTES == 0);
    MUST(op->offset_bytes <= disk->size_bytes);
    MUST(op->length_bytes <= disk->size_bytes - op->offset_bytes);
    if (op->kind == GILD_OP_WRITE || op->kind == GILD_OP_TRIM || op->kind == GILD_OP_ZERO)
        MUST(!disk->read_only);
    if (op->kind == GILD_OP_READ || op->kind == GILD_OP_WRITE || op->kind == GILD_OP_PREFETCH)
        MUST(op->length_bytes <= GILD_OP_MAX_BYTES);
    if (op->kind == GILD_OP_WRITE) {
        uint64_t bytes = 0;
        for (unsigned i = 0; i < op->payload_count; i++)
            bytes += op->payload[i].iov_len;
        MUST(bytes == op->length_bytes);
    }
}

static void read_blocks(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    uint64_t at = op->offset_bytes, end = at + op->length_bytes;
    while (at < end) {
        uint64_t part = GILD_BLOCK_BYTES - at % GILD_BLOCK_BYTES;
        if (part > end - at)
            part = end - at;
        MUST(op->piece_count < op->piece_limit);
        op->pieces[op->piece_count++] =
            (struct gild_piece){.data = disk->bytes + at, .bytes = (uint32_t)part, .pin = disk};
        disk->pinned++;
        at += part;
    }
}

static void mark(struct gild_disk *disk, uint64_t offset, uint64_t bytes, uint8_t state) {
    uint64_t first = offset / GILD_BLOCK_BYTES;
    uint64_t last = (offset + bytes + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES;
    if (state != DATA) { /* whole blocks only */
        first = (offset + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES;
        last = (offset + bytes) / GILD_BLOCK_BYTES;
    }
    if (last > first)
        memset(disk->blocks + first, state, last - first);
}

static void write_blocks(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    uint8_t *to = disk->bytes + op->offset_bytes;
    for (unsigned i = 0; i < op->payload_count; i++) {
        memcpy(to, op->payload[i].iov_base, op->payload[i].iov_len);
        to += op->payload[i].iov_len;
    }
    mark(disk, op->offset_bytes, op->length_bytes, DATA);
}

static void clear_blocks(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    memset(disk->bytes + op->offset_bytes, 0, op->length_bytes);
    mark(disk, op->offset_bytes, op->length_bytes, op->flags & GILD_OP_NO_HOLE ? ZERO : HOLE);
}

static void extents(struct gild_op *op) {
    static const uint32_t flags[] = {
        [HOLE] = GILD_EXTENT_HOLE | GILD_EXTENT_ZERO, [DATA] = 0, [ZERO] = GILD_EXTENT_ZERO};
    struct gild_disk *disk = op->disk;
    uint64_t at = op->offset_bytes, end = at + op->length_bytes;
    MUST(op->extent_limit);
    while (at < end) {
        uint8_t state = disk->blocks[at / GILD_BLOCK_BYTES];
        uint64_t stop = at;
        while (stop < end && disk->blocks[stop / GILD_BLOCK_BYTES] == state)
            stop = (stop / GILD_BLOCK_BYTES + 1) * GILD_BLOCK_BYTES;
        if (stop > end)
            stop = end;
        if (op->extent_count == op->extent_limit)
            return;
        op->extents[op->extent_count++] = (struct gild_extent){stop - at, flags[state]};
        at = stop;
        if (op->flags & GILD_OP_ONE_EXTENT)
            return;
    }
}

static bool is_to_fail(const struct gild_op *op) {
    const struct gild_disk *disk = op->disk;
    uint64_t offset = disk->fail_offset, bytes = disk->fail_bytes;
    if (!disk->fail_err)
        return false;
    return op->kind == GILD_OP_FLUSH ||
           (op->offset_bytes < offset + bytes && offset < op->offset_bytes + op->length_bytes);
}

static void perform_kind(struct gild_op *op) {
    switch (op->kind) {
    case GILD_OP_READ:
        read_blocks(op);
        break;
    case GILD_OP_WRITE:
        write_blocks(op);
        break;
    case GILD_OP_TRIM:
    case GILD_OP_ZERO:
        clear_blocks(op);
        break;
    case GILD_OP_EXTENTS:
        extents(op);
        break;
    case GILD_OP_FLUSH:
    case GILD_OP_PREFETCH:
        break;
    }
}

static void perform(struct gild_op *op) {
    atomic_load_explicit(&op->disk->performed, memory_order_acquire);
    op->error = is_to_fail(op) ? -op->disk->fail_err : 0;
    if (!op->error)
        perform_kind(op);
    atomic_fetch_add_explicit(&op->disk->performed, 1, memory_order_release);
}

static void run_later(struct gild_task *task) {
    struct gild_op *op = (struct gild_op *)(void *)((char *)task - offsetof(struct gild_op, task));
    perform(op);
    op->done(op);
}

bool gild_disk_submit(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    check_op(op);
    atomic_fetch_add_explicit(&disk->ops[op->kind], 1, memory_order_relaxed);
    atomic_fetch_or_explicit(&disk->flags_seen, op->flags, memory_order_relaxed);
    op->piece_count = op->extent_count = 0;
    if (disk->hold) {
        op->next = NULL;
        if (disk->held_first)
            disk->held_last->next = op;
        else
            disk->held_first = op;
        disk->held_last = op;
        disk->held++;
        return false;
    }
    if (disk->later) {
        op->task.run = run_later;
        gild_loop_post(disk->loop, &op->task);
        return false;
    }
    perform(op);
    return true;
}

/* The newest first, so that replies come out of order. */
static void release_held(struct gild_task *task) {
    struct gild_disk *disk =
        (struct gild_disk *)(void *)((char *)task - offsetof(struct gild_disk, release_task));
    struct gild_op *reversed = NULL, *next;
    for (struct gild_op *op = disk->held_first; op; op = next) {
        next = op->next;
        op->next = reversed;
        reversed = op;
    }
    disk->held_first = NULL;
    for (struct gild_op *op = reversed; op; op = next) {
        next = op->next;
        disk->held--;
        perform(op);
        op->done(op);
    }
}

void fake_disk_hold(struct gild_disk *disk, bool hold) {
    bool was = atomic_exchange(&disk->hold, hold);
    if (was && !hold)
        gild_loop_post(disk->loop, &disk->release_task);
}

void gild_op_release(struct gild_op *op) {
    MUST(gild_loop_is_current(op->disk->loop));
    op->disk->pinned -= op->piece_count;
    op->piece_count = 0;
}

/* ---- opening and names ----------------------------------------------------------------------- */

static struct gild_disk *find(struct gild_store *store, const char *path) {
    struct gild_disk *found = NULL;
    pthread_mutex_lock(&store->lock);
    for (unsigned i = 0; i < store->disk_count; i++)
        if (strcmp(store->disks[i]->path, path) == 0)
            found = store->disks[i];
    pthread_mutex_unlock(&store->lock);
    return found;
}

int gild_disk_open(struct gild_store *store, const char *path, const char *door, unsigned flags,
                   struct gild_disk **out, bool *writable, struct gild_error *error) {
    struct gild_disk *disk = find(store, path);
    MUST(door && strcmp(door, "nbd") == 0);
    if (!disk)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT, "There is no disk named %s.", path);
    if (disk->busy)
        return gild_fail(error, GILD_BUSY, EBUSY, "Disk %s is held elsewhere.", path);
    disk->opens++;
    *writable = flags && !disk->read_only;
    *out = disk;
    return 0;
}

void gild_disk_close(struct gild_disk *disk, const char *door, bool writable) {
    MUST(strcmp(door, "nbd") == 0);
    MUST(disk->opens && writable == !disk->read_only);
    disk->opens--;
}

static void open_now(struct gild_task *task) {
    struct gild_disk_opening *opening =
        (struct gild_disk_opening *)(void *)((char *)task -
                                             offsetof(struct gild_disk_opening, task));
    opening->result = gild_disk_open(opening->store, opening->path, opening->door, opening->flags,
                                     &opening->disk, &opening->writable, &opening->error);
    opening->done(opening);
}

void gild_disk_open_async(struct gild_disk_opening *opening) {
    struct gild_store *store = opening->store;
    opening->task.run = open_now;
    pthread_mutex_lock(&store->lock);
    bool hold = store->hold_opens;
    if (hold)
        store->openings[store->opening_count++] = opening;
    pthread_mutex_unlock(&store->lock);
    if (!hold)
        gild_loop_post(opening->loop, &opening->task);
}

void fake_store_hold_opens(struct gild_store *store, bool hold) {
    pthread_mutex_lock(&store->lock);
    store->hold_opens = hold;
    while (!hold && store->opening_count) {
        struct gild_disk_opening *opening = store->openings[--store->opening_count];
        gild_loop_post(opening->loop, &opening->task);
    }
    pthread_mutex_unlock(&store->lock);
}

int gild_path_stat(struct gild_store *store, const char *path, struct gild_path_info *info) {
    struct gild_disk *disk = find(store, path);
    for (unsigned i = 0; i < store->reactor_count; i++)
        MUST(!gild_loop_is_current(store->loops[i]));
    if (!disk)
        return -ENOENT;
    *info = (struct gild_path_info){.read_only = disk->read_only, .size_bytes = disk->size_bytes};
    return 0;
}

int gild_path_each_disk(struct gild_store *store, gild_path_visit *visit, void *context) {
    for (unsigned i = 0; i < store->disk_count; i++) {
        struct gild_path_info info;
        int result = gild_path_stat(store, store->disks[i]->path, &info);
        if (!result)
            result = visit(context, store->disks[i]->path, &info);
        if (result)
            return result;
    }
    return 0;
}
