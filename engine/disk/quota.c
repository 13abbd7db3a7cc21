/* See quota.h.
 *
 * A book says which deltas have a quota of their own or a pool that has one. A new book takes the
 * old one's place in three rounds over the reactors, so that a pool's counter is whole before it is
 * asked, and the old one stays whole as long as any reactor asks it:
 *
 *   JOIN   count in the old pool and in the new one; ask the old
 *   ASK    ask the new
 *   LEAVE  count in the new one only
 *
 * Disks neither come nor go meanwhile (open_lock); those that are not in memory are counted from
 * their records, which hold what was mapped when they left it. A store without quotas has an empty
 * book, and its writes look at one number of their disk. Failure modes: no memory, or a catalogue
 * that can not be read: the old book stays. */
#include "disk/quota.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "disk/internal.h"
#include "disk/watch.h"

struct book_entry {
    uint64_t delta_id, limit_blocks;
    size_t pool; /* SIZE_MAX: none */
    struct quota_pool *counts;
};

struct quota_book {
    struct book_entry *entries; /* ascending */
    size_t count, room;
    struct quota_pool *pools; /* not moved once disks know them */
    uint64_t *desktop_blocks; /* of each pool's desktops, UINT64_MAX = none */
    size_t pool_count;
    struct gild_rec_limits limits;
};

static void book_free(struct quota_book *book) {
    if (!book)
        return;
    free(book->entries);
    free(book->pools);
    free(book->desktop_blocks);
    free(book);
}

static uint64_t blocks_of(uint64_t bytes) {
    return bytes ? bytes / GILD_BLOCK_BYTES : UINT64_MAX;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int add_entry(struct quota_book *book, uint64_t delta_id, uint64_t limit, size_t pool) {
    if (book->count == book->room) {
        size_t room = book->room ? 2 * book->room : 64;
        struct book_entry *grown = realloc(book->entries, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        book->entries = grown;
        book->room = room;
    }
    book->entries[book->count++] = (struct book_entry){delta_id, limit, pool, NULL};
    return 0;
}

static int note_quota(void *context, const char *pool, uint64_t delta_id,
                      const struct gild_rec_quota *record) {
    struct quota_book *book = context;
    if (!pool)
        return add_entry(book, delta_id, blocks_of(record->quota_bytes), SIZE_MAX);
    size_t n = book->pool_count;
    struct quota_pool *pools = realloc(book->pools, (n + 1) * sizeof *pools);
    if (pools)
        book->pools = pools;
    uint64_t *each = realloc(book->desktop_blocks, (n + 1) * sizeof *each);
    if (each)
        book->desktop_blocks = each;
    if (!pools || !each)
        return -ENOMEM;
    memset(&pools[n], 0, sizeof pools[n]);
    strncpy(pools[n].name, pool, sizeof pools[n].name - 1);
    atomic_init(&pools[n].limit_blocks, blocks_of(record->quota_bytes));
    each[n] = blocks_of(record->desktop_bytes);
    book->pool_count++;
    return 0;
}

static int by_delta(const void *a, const void *b) {
    const struct book_entry *x = a, *y = b;
    return x->delta_id < y->delta_id ? -1 : x->delta_id > y->delta_id;
}

static int note_desktop(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct quota_book *book = context;
    struct gild_rec_desktop desktop;
    (void)key, (void)key_length;
    if (gild_rec_desktop_decode(&desktop, value, length))
        return 0; /* a check tells of it */
    for (size_t i = 0; i < book->pool_count && desktop.pool[0]; i++)
        if (strcmp(book->pools[i].name, desktop.pool) == 0)
            return add_entry(book, desktop.os_delta, book->desktop_blocks[i], i);
    return 0;
}

/* A delta may have both: its own quota, and its pool's. */
static void merge_entries(struct quota_book *book) {
    size_t kept = 0;
    if (book->count)
        qsort(book->entries, book->count, sizeof *book->entries, by_delta);
    for (size_t i = 0; i < book->count; i++) {
        struct book_entry *last = kept ? &book->entries[kept - 1] : NULL;
        const struct book_entry *entry = &book->entries[i];
        if (!last || last->delta_id != entry->delta_id) {
            book->entries[kept++] = *entry;
            continue;
        }
        if (entry->limit_blocks < last->limit_blocks)
            last->limit_blocks = entry->limit_blocks;
        if (entry->pool != SIZE_MAX)
            last->pool = entry->pool;
    }
    book->count = kept;
    for (size_t i = 0; i < kept; i++)
        if (book->entries[i].pool != SIZE_MAX)
            book->entries[i].counts = &book->pools[book->entries[i].pool];
}

static const struct book_entry *find_entry(const struct quota_book *book, uint64_t delta_id) {
    struct book_entry wanted = {.delta_id = delta_id};
    return book && book->count
               ? bsearch(&wanted, book->entries, book->count, sizeof wanted, by_delta)
               : NULL;
}

/* Those that are in memory are counted by their reactors. open_lock held. */
static int count_absent(struct gild_store *store, struct gild_txn *txn, struct quota_book *book) {
    struct gild_rec_delta *record = malloc(sizeof *record);
    int err = record ? 0 : -ENOMEM;
    for (size_t i = 0; i < book->count && !err; i++) {
        const struct book_entry *entry = &book->entries[i];
        pthread_mutex_lock(&store->disks_lock);
        bool here = disk_find(store, entry->delta_id, 0) != NULL;
        pthread_mutex_unlock(&store->disks_lock);
        if (!entry->counts || here)
            continue;
        err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, entry->delta_id, record);
        if (err == -ENOENT)
            err = 0; /* deleted meanwhile: the next book is without it */
        else if (!err)
            atomic_fetch_add(&entry->counts->used_blocks, record->mapped_blocks);
    }
    free(record);
    return err;
}

static int read_book(struct gild_store *store, struct quota_book **out) {
    struct quota_book *book = calloc(1, sizeof *book);
    struct gild_txn *txn;
    int err = book ? gild_txn_begin(store->catalog, false, &txn) : -ENOMEM;
    if (err) {
        book_free(book);
        return err;
    }
    err = gild_rec_get_limits(txn, &book->limits);
    if (!err)
        err = gild_rec_each_quota(txn, note_quota, book);
    if (!err && book->pool_count)
        err = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, note_desktop, book);
    if (!err) {
        merge_entries(book);
        err = count_absent(store, txn, book);
    }
    gild_txn_abort(txn);
    if (err)
        book_free(book);
    else
        *out = book;
    return err;
}

/* ---- disks ----------------------------------------------------------------------------------- */

void quota_attach(struct gild_disk *disk) {
    const struct book_entry *entry = find_entry(disk->store->quotas, disk->delta_id);
    disk->quota = (struct disk_quota){.limit_blocks = UINT64_MAX};
    if (!disk->delta_id || !entry)
        return;
    /* Its record's blocks are in the counter already. */
    disk->quota = (struct disk_quota){.limit_blocks = entry->limit_blocks,
                                      .pool = entry->counts,
                                      .counted = disk->map.mapped_blocks};
}

enum round { ROUND_JOIN, ROUND_ASK, ROUND_LEAVE };

struct round_call {
    struct gild_task task;
    struct reactor *reactor;
    const struct quota_book *book;
    enum round round;
    struct rounds *rounds;
};

struct rounds {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    unsigned outstanding;
    struct round_call calls[MAX_REACTORS];
};

static void turn(struct gild_disk *disk, const struct quota_book *book, enum round round) {
    struct disk_quota *quota = &disk->quota;
    const struct book_entry *entry = find_entry(book, disk->delta_id);
    struct quota_pool *old = quota->pool;
    switch (round) {
    case ROUND_JOIN:
        if (!old) /* nothing was counted so far */
            quota->counted = disk->map.mapped_blocks;
        quota->other = entry ? entry->counts : NULL;
        if (quota->other)
            atomic_fetch_add(&quota->other->used_blocks, quota->counted);
        break;
    case ROUND_ASK:
        quota->limit_blocks = entry ? entry->limit_blocks : UINT64_MAX;
        quota->pool = quota->other;
        quota->other = old;
        break;
    case ROUND_LEAVE:
        quota->other = NULL;
        break;
    }
}

/* open_lock is held by whoever waits for this: the list of disks only grows at its head. */
static void turn_all(struct reactor *reactor, const struct quota_book *book, enum round round) {
    struct gild_store *store = reactor->store;
    pthread_mutex_lock(&store->disks_lock);
    for (struct gild_disk *disk = store->disks; disk; disk = disk->all_next)
        if (disk->reactor == reactor && disk->delta_id)
            turn(disk, book, round);
    pthread_mutex_unlock(&store->disks_lock);
}

static void turn_here(struct gild_task *task) {
    struct round_call *call = CONTAINER(task, struct round_call, task);
    struct rounds *rounds = call->rounds;
    turn_all(call->reactor, call->book, call->round);
    pthread_mutex_lock(&rounds->lock);
    if (--rounds->outstanding == 0)
        pthread_cond_signal(&rounds->answered);
    pthread_mutex_unlock(&rounds->lock);
}

static void one_round(struct gild_store *store, struct rounds *rounds,
                      const struct quota_book *book, enum round round) {
    rounds->outstanding = store->reactor_count;
    for (unsigned i = 0; i < store->reactor_count; i++) {
        struct round_call *call = &rounds->calls[i];
        *call = (struct round_call){.task.run = turn_here,
                                    .reactor = &store->reactors[i],
                                    .book = book,
                                    .round = round,
                                    .rounds = rounds};
        if (store->reactors[i].running)
            gild_loop_post(store->reactors[i].loop, &call->task);
        else
            turn_here(&call->task);
    }
    pthread_mutex_lock(&rounds->lock);
    while (rounds->outstanding)
        pthread_cond_wait(&rounds->answered, &rounds->lock);
    pthread_mutex_unlock(&rounds->lock);
}

/* open_lock held. */
static void turn_to(struct gild_store *store, struct quota_book *book) {
    struct rounds rounds = {0};
    struct quota_book *old = store->quotas;
    if (book->count || (old && old->count)) {
        pthread_mutex_init(&rounds.lock, NULL);
        pthread_cond_init(&rounds.answered, NULL);
        for (enum round round = ROUND_JOIN; round <= ROUND_LEAVE; round++)
            one_round(store, &rounds, book, round);
        pthread_mutex_destroy(&rounds.lock);
        pthread_cond_destroy(&rounds.answered);
    }
    store->quotas = book;
    book_free(old);
}

int quota_load(struct gild_store *store) {
    struct quota_book *book;
    pthread_mutex_lock(&store->open_lock);
    int err = read_book(store, &book);
    if (!err) {
        const struct gild_rec_limits limits = book->limits;
        turn_to(store, book);
        if (limits.size_set)
            atomic_store(&store->size_limit_bytes, limits.size_bytes);
        else
            atomic_store(&store->size_limit_bytes, store->made_bytes);
    }
    pthread_mutex_unlock(&store->open_lock);
    return err;
}

void quota_destroy(struct gild_store *store) {
    book_free(store->quotas);
    store->quotas = NULL;
}

/* ---- for the admin --------------------------------------------------------------------------- */

int gild_store_limits_changed(struct gild_store *store) {
    int err = quota_load(store);
    if (err)
        gild_log(GILD_LOG_ERROR, "the limits of store %s can not be read: %s", store->directory,
                 strerror(-err));
    gild_segments_look(store->segments);
    watch_wake(store);
    return err;
}

bool gild_store_pool_use(struct gild_store *store, const char *pool, uint64_t *blocks) {
    bool found = false;
    pthread_mutex_lock(&store->open_lock);
    const struct quota_book *book = store->quotas;
    for (size_t i = 0; book && i < book->pool_count && !found; i++)
        if (strcmp(book->pools[i].name, pool) == 0) {
            *blocks = atomic_load(&book->pools[i].used_blocks);
            found = true;
        }
    pthread_mutex_unlock(&store->open_lock);
    return found;
}

struct gild_rec_limits quota_limits(struct gild_store *store) {
    struct gild_rec_limits limits = {0};
    pthread_mutex_lock(&store->open_lock);
    if (store->quotas)
        limits = store->quotas->limits;
    pthread_mutex_unlock(&store->open_lock);
    return limits;
}
