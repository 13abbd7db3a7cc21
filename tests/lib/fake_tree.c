/* See fake_tree.h. A disk's bytes are one private mapping; a bitmap says which blocks are
 * allocated, so that trims and extents tell the truth. Ops run on the disk's loop, opens under one
 * lock. */
#undef NDEBUG /* the assertions are what this is for */

#include "fake_tree.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_DISKS 64
#define MAX_REACTORS 8

struct gild_disk {
    struct gild_store *store;
    char path[256];
    uint64_t size_bytes, inode;
    bool read_only, present;
    uint8_t *bytes;
    uint8_t *allocated; /* one byte a block */
    struct gild_loop *loop;
    atomic_uint opens, writers;
    const char *door;
};

struct reactor {
    struct gild_loop *loop;
    pthread_t thread;
    struct gild_op *first, *last; /* postponed */
    struct gild_task task;
    bool posted;
    uint32_t random;
};

struct gild_store {
    pthread_mutex_t lock;
    struct reactor reactors[MAX_REACTORS];
    unsigned reactor_count;
    struct gild_disk disks[MAX_DISKS];
    atomic_uint disk_count;
    uint64_t next_inode;
    _Atomic enum fake_mode mode;
    struct fake_counts counts;
};

/* ---- the store
 * ------------------------------------------------------------------------------------- */

static void *run_reactor(void *context) {
    struct reactor *reactor = context;
    gild_loop_run(reactor->loop);
    return NULL;
}

static void run_postponed(struct gild_task *task);

struct gild_store *fake_store_create(unsigned reactors, enum gild_loop_backend backend) {
    struct gild_store *store = calloc(1, sizeof(*store));
    assert(store && reactors <= MAX_REACTORS);
    pthread_mutex_init(&store->lock, NULL);
    store->reactor_count = reactors;
    store->next_inode = 100;
    for (unsigned i = 0; i < reactors; i++) {
        struct gild_loop_options options = {.backend = backend};
        struct gild_error error = {0};
        struct reactor *reactor = &store->reactors[i];
        if (gild_loop_create(&reactor->loop, &options, &error)) {
            fprintf(stderr, "no loop: %s\n", error.message);
            abort();
        }
        reactor->task.run = run_postponed;
        reactor->random = 12345 + i;
        pthread_create(&reactor->thread, NULL, run_reactor, reactor);
    }
    return store;
}

void fake_store_destroy(struct gild_store *store) {
    assert(!atomic_load(&store->counts.pinned));
    for (unsigned i = 0; i < store->reactor_count; i++) {
        gild_loop_stop(store->reactors[i].loop);
        pthread_join(store->reactors[i].thread, NULL);
        gild_loop_destroy(store->reactors[i].loop);
    }
    for (unsigned i = 0; i < store->disk_count; i++) {
        assert(!store->disks[i].opens);
        munmap(store->disks[i].bytes, store->disks[i].size_bytes);
        free(store->disks[i].allocated);
    }
    pthread_mutex_destroy(&store->lock);
    free(store);
}

void fake_store_set_mode(struct gild_store *store, enum fake_mode mode) {
    atomic_store(&store->mode, mode);
}

struct fake_counts *fake_store_counts(struct gild_store *store) {
    return &store->counts;
}

void fake_store_add(struct gild_store *store, const char *path, uint64_t size_bytes, bool read_only,
                    unsigned reactor) {
    pthread_mutex_lock(&store->lock);
    assert(store->disk_count < MAX_DISKS && reactor < store->reactor_count);
    struct gild_disk *disk = &store->disks[store->disk_count];
    disk->store = store;
    snprintf(disk->path, sizeof(disk->path), "%s", path);
    disk->size_bytes = size_bytes;
    disk->inode = store->next_inode++;
    disk->read_only = read_only;
    disk->present = true;
    disk->loop = store->reactors[reactor].loop;
    disk->bytes = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    disk->allocated = calloc(1, size_bytes / GILD_BLOCK_BYTES + 1);
    assert(disk->bytes != MAP_FAILED && disk->allocated);
    store->disk_count++;
    pthread_mutex_unlock(&store->lock);
}

static struct gild_disk *find(struct gild_store *store, const char *path) {
    for (unsigned i = 0; i < store->disk_count; i++)
        if (store->disks[i].present && !strcmp(store->disks[i].path, path))
            return &store->disks[i];
    return NULL;
}

void fake_store_remove(struct gild_store *store, const char *path) {
    pthread_mutex_lock(&store->lock);
    struct gild_disk *disk = find(store, path);
    assert(disk);
    disk->present = false;
    pthread_mutex_unlock(&store->lock);
}

struct visit {
    struct gild_task task;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
};

static void arrive(struct gild_task *task) {
    struct visit *visit = (struct visit *)(void *)task;
    pthread_mutex_lock(&visit->lock);
    visit->done = true;
    pthread_cond_signal(&visit->changed);
    pthread_mutex_unlock(&visit->lock);
}

/* Comes back once the loop has passed all that it was in: what it did is then seen here. */
static void visit_loop(struct gild_loop *loop) {
    struct visit visit = {
        .task.run = arrive, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    gild_loop_post(loop, &visit.task);
    pthread_mutex_lock(&visit.lock);
    while (!visit.done)
        pthread_cond_wait(&visit.changed, &visit.lock);
    pthread_mutex_unlock(&visit.lock);
}

uint8_t *fake_store_bytes(struct gild_store *store, const char *path) {
    pthread_mutex_lock(&store->lock);
    struct gild_disk *disk = find(store, path);
    pthread_mutex_unlock(&store->lock);
    assert(disk);
    visit_loop(disk->loop);
    return disk->bytes;
}

unsigned gild_store_reactor_count(const struct gild_store *store) {
    return store->reactor_count;
}

struct gild_loop *gild_store_reactor(const struct gild_store *store, unsigned index) {
    assert(index < store->reactor_count);
    return store->reactors[index].loop;
}

int gild_store_get_info(struct gild_store *store, struct gild_store_info *info,
                        struct gild_error *error) {
    (void)error;
    memset(info, 0, sizeof(*info));
    info->capacity_bytes = 64ull << 30;
    info->used_bytes = 10ull << 30;
    info->free_bytes = 54ull << 30;
    info->reactors = store->reactor_count;
    return 0;
}

/* ---- names
 * ----------------------------------------------------------------------------------------- */

static void disk_info(const struct gild_disk *disk, struct gild_path_info *info) {
    uint64_t blocks = 0;
    for (uint64_t i = 0; i < disk->size_bytes / GILD_BLOCK_BYTES; i++)
        blocks += disk->allocated[i];
    *info = (struct gild_path_info){.read_only = disk->read_only,
                                    .size_bytes = disk->size_bytes,
                                    .allocated_bytes = blocks * GILD_BLOCK_BYTES,
                                    .inode = disk->inode,
                                    .modified_ns = 1700000000000000000u};
}

static void folder_info(const char *path, struct gild_path_info *info) {
    uint64_t hash = 5381;
    for (; *path; path++)
        hash = hash * 33 + (uint8_t)*path;
    *info = (struct gild_path_info){.directory = true, .inode = (1ull << 40) + hash % 1000000007u};
}

static bool is_folder(const struct gild_store *store, const char *path) {
    size_t bytes = strlen(path);
    if (!bytes)
        return true;
    for (unsigned i = 0; i < store->disk_count; i++)
        if (store->disks[i].present && !strncmp(store->disks[i].path, path, bytes) &&
            store->disks[i].path[bytes] == '/')
            return true;
    return false;
}

int gild_path_stat(struct gild_store *store, const char *path, struct gild_path_info *info) {
    int result = 0;
    pthread_mutex_lock(&store->lock);
    struct gild_disk *disk = find(store, path);
    if (disk)
        disk_info(disk, info);
    else if (is_folder(store, path))
        folder_info(path, info);
    else
        result = -ENOENT;
    pthread_mutex_unlock(&store->lock);
    return result;
}

struct child {
    char name[256];
    struct gild_path_info info;
};

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct child *)a)->name, ((const struct child *)b)->name);
}

/* The direct children of a folder, with repetitions; returns how many. */
static unsigned collect(struct gild_store *store, const char *folder, struct child *children) {
    unsigned count = 0;
    size_t bytes = strlen(folder);
    for (unsigned i = 0; i < store->disk_count; i++) {
        const struct gild_disk *disk = &store->disks[i];
        const char *rest = disk->path + (bytes ? bytes + 1 : 0);
        if (!disk->present || strncmp(disk->path, folder, bytes) ||
            (bytes && disk->path[bytes] != '/'))
            continue;
        const char *slash = strchr(rest, '/');
        struct child *child = &children[count++];
        snprintf(child->name, sizeof(child->name), "%.*s",
                 slash ? (int)(slash - rest) : (int)strlen(rest), rest);
        char path[256];
        snprintf(path, sizeof(path), "%.*s", (int)(rest - disk->path + (int)strlen(child->name)),
                 disk->path);
        if (slash)
            folder_info(path, &child->info);
        else
            disk_info(disk, &child->info);
    }
    qsort(children, count, sizeof(*children), by_name);
    return count;
}

int gild_path_list(struct gild_store *store, const char *folder, gild_path_visit *visit,
                   void *context) {
    struct child *children = calloc(MAX_DISKS, sizeof(*children));
    assert(children);
    pthread_mutex_lock(&store->lock);
    unsigned count = collect(store, folder, children);
    pthread_mutex_unlock(&store->lock);
    int result = 0;
    for (unsigned i = 0; i < count && !result; i++)
        if (!i || strcmp(children[i].name, children[i - 1].name))
            result = visit(context, children[i].name, &children[i].info);
    free(children);
    return result;
}

int gild_path_each_disk(struct gild_store *store, gild_path_visit *visit, void *context) {
    int result = 0;
    for (unsigned i = 0; i < store->disk_count && !result; i++) {
        struct gild_path_info info;
        if (!store->disks[i].present)
            continue;
        disk_info(&store->disks[i], &info);
        result = visit(context, store->disks[i].path, &info);
    }
    return result;
}

/* ---- opening
 * --------------------------------------------------------------------------------------- */

static int admit(struct gild_disk *disk, const char *door, unsigned flags, bool *writable,
                 struct gild_error *error) {
    bool other = disk->opens && strcmp(disk->door, door);
    *writable = (flags & (GILD_OPEN_WRITE | GILD_OPEN_WRITE_IF_POSSIBLE)) && !disk->read_only;
    if (*writable && other && !(flags & GILD_OPEN_WRITE))
        *writable = false;
    if ((flags & GILD_OPEN_WRITE) && disk->read_only)
        return gild_fail(error, GILD_FAILED, EROFS, "%s is read-only", disk->path);
    if (other && (*writable || disk->writers))
        return gild_fail(error, GILD_BUSY, EBUSY, "%s is open through %s; close it there first",
                         disk->path, disk->door);
    return 0;
}

int gild_disk_open(struct gild_store *store, const char *path, const char *door, unsigned flags,
                   struct gild_disk **out, bool *writable, struct gild_error *error) {
    pthread_mutex_lock(&store->lock);
    struct gild_disk *disk = find(store, path);
    int result = disk ? admit(disk, door, flags, writable, error)
                      : gild_fail(error, GILD_NOT_FOUND, ENOENT, "there is no disk %s", path);
    if (!result) {
        disk->opens++;
        disk->writers += *writable;
        disk->door = door;
        *out = disk;
    }
    pthread_mutex_unlock(&store->lock);
    return result;
}

void gild_disk_close(struct gild_disk *disk, const char *door, bool writable) {
    pthread_mutex_lock(&disk->store->lock);
    assert(disk->opens && !strcmp(disk->door, door) && disk->writers >= writable);
    disk->opens--;
    disk->writers -= writable;
    pthread_mutex_unlock(&disk->store->lock);
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

/* ---- ops
 * ------------------------------------------------------------------------------------------- */

static void fill_pieces(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    uint64_t at = op->offset_bytes, end = at + op->length_bytes;
    op->piece_count = 0;
    while (at < end) {
        uint64_t next = (at / GILD_BLOCK_BYTES + 1) * GILD_BLOCK_BYTES;
        if (next > end)
            next = end;
        assert(op->piece_count < op->piece_limit);
        op->pieces[op->piece_count++] = (struct gild_piece){
            .data = disk->bytes + at, .bytes = (uint32_t)(next - at), .pin = op};
        at = next;
    }
    op->wait[0] = op; /* pinned */
    atomic_fetch_add(&disk->store->counts.pinned, 1);
    atomic_fetch_add(&disk->store->counts.reads, 1);
}

static void set_allocated(struct gild_disk *disk, uint64_t offset, uint64_t bytes, bool allocated) {
    uint64_t first = offset / GILD_BLOCK_BYTES;
    uint64_t end = (offset + bytes + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES;
    if (!allocated) { /* only whole blocks become holes */
        first = (offset + GILD_BLOCK_BYTES - 1) / GILD_BLOCK_BYTES;
        end = (offset + bytes) / GILD_BLOCK_BYTES;
    }
    if (end > first)
        memset(disk->allocated + first, allocated, end - first);
}

static void store_payload(struct gild_op *op) {
    struct gild_disk *disk = op->disk;
    uint64_t at = op->offset_bytes;
    for (unsigned i = 0; i < op->payload_count; i++) {
        memcpy(disk->bytes + at, op->payload[i].iov_base, op->payload[i].iov_len);
        at += op->payload[i].iov_len;
    }
    assert(at == op->offset_bytes + op->length_bytes);
    set_allocated(disk, op->offset_bytes, op->length_bytes, true);
    atomic_fetch_add(&disk->store->counts.writes, 1);
}

static void erase(struct gild_op *op, bool allocated) {
    memset(op->disk->bytes + op->offset_bytes, 0, op->length_bytes);
    set_allocated(op->disk, op->offset_bytes, op->length_bytes, allocated);
}

static void fill_extents(struct gild_op *op) {
    uint64_t at = op->offset_bytes, end = at + op->length_bytes;
    op->extent_count = 0;
    while (at < end && op->extent_count < op->extent_limit) {
        bool allocated = op->disk->allocated[at / GILD_BLOCK_BYTES];
        uint64_t from = at;
        while (at < end && op->disk->allocated[at / GILD_BLOCK_BYTES] == allocated)
            at = (at / GILD_BLOCK_BYTES + 1) * GILD_BLOCK_BYTES;
        if (at > end)
            at = end;
        op->extents[op->extent_count++] = (struct gild_extent){
            .bytes = at - from, .flags = allocated ? 0 : GILD_EXTENT_HOLE | GILD_EXTENT_ZERO};
    }
}

static void execute(struct gild_op *op) {
    struct fake_counts *counts = &op->disk->store->counts;
    op->error = 0;
    if (op->flags & GILD_OP_FUA)
        atomic_fetch_add(&counts->fua, 1);
    switch (op->kind) {
    case GILD_OP_READ:
        fill_pieces(op);
        break;
    case GILD_OP_WRITE:
        store_payload(op);
        break;
    case GILD_OP_FLUSH:
        atomic_fetch_add(&counts->flushes, 1);
        break;
    case GILD_OP_TRIM:
        atomic_fetch_add(&counts->trims, 1);
        erase(op, false);
        break;
    case GILD_OP_ZERO:
        atomic_fetch_add(&counts->zeroes, 1);
        erase(op, op->flags & GILD_OP_NO_HOLE);
        break;
    case GILD_OP_EXTENTS:
        fill_extents(op);
        break;
    case GILD_OP_PREFETCH:
        break;
    }
    op->state = 0;
}

static void check_rules(const struct gild_op *op) {
    const struct gild_disk *disk = op->disk;
    assert(gild_loop_is_current(disk->loop));
    assert(disk->opens);
    assert(!op->state);   /* in flight already */
    assert(!op->wait[0]); /* pieces of the last read are still pinned */
    if (op->kind == GILD_OP_FLUSH)
        return;
    assert(op->offset_bytes % GILD_SECTOR_BYTES == 0 && op->length_bytes % GILD_SECTOR_BYTES == 0);
    assert(op->length_bytes && op->offset_bytes + op->length_bytes <= disk->size_bytes);
    if (op->kind == GILD_OP_READ || op->kind == GILD_OP_WRITE)
        assert(op->length_bytes <= GILD_OP_MAX_BYTES);
    if (op->kind == GILD_OP_WRITE || op->kind == GILD_OP_TRIM || op->kind == GILD_OP_ZERO)
        assert(!disk->read_only && disk->writers);
}

static struct reactor *reactor_of(const struct gild_disk *disk) {
    for (unsigned i = 0;; i++)
        if (disk->store->reactors[i].loop == disk->loop)
            return &disk->store->reactors[i];
}

/* Finishes one op that waits, now and then the second one, and comes back for the rest. */
static void run_postponed(struct gild_task *task) {
    struct reactor *reactor =
        (struct reactor *)(void *)((char *)task - offsetof(struct reactor, task));
    struct gild_op *op = reactor->first;
    reactor->random = reactor->random * 1664525u + 1013904223u;
    if (op->next && reactor->random >> 31) {
        struct gild_op *second = op->next;
        op->next = second->next;
        if (reactor->last == second)
            reactor->last = op;
        op = second;
    } else {
        reactor->first = op->next;
    }
    reactor->posted = reactor->first;
    if (reactor->posted)
        gild_loop_post(reactor->loop, &reactor->task);
    execute(op);
    op->done(op);
}

bool gild_disk_submit(struct gild_op *op) {
    check_rules(op);
    if (atomic_load_explicit(&op->disk->store->mode, memory_order_relaxed) == FAKE_INLINE) {
        execute(op);
        return true;
    }
    struct reactor *reactor = reactor_of(op->disk);
    op->state = 1;
    op->next = NULL;
    if (reactor->first)
        reactor->last->next = op;
    else
        reactor->first = op;
    reactor->last = op;
    if (!reactor->posted)
        gild_loop_post(reactor->loop, &reactor->task);
    reactor->posted = true;
    return false;
}

void gild_op_release(struct gild_op *op) {
    assert(gild_loop_is_current(op->disk->loop));
    if (op->wait[0])
        atomic_fetch_sub(&op->disk->store->counts.pinned, 1);
    op->wait[0] = NULL;
}
