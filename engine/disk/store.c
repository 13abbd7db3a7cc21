/* The store's life: made, opened (locked, recovered, reactors started), closed (checkpointed,
 * stopped).
 *
 *   init: folders, superblock last -> a half-made store has none and is refused
 *   open: lock + superblock -> catalogue -> packs -> segments -> replay, checkpoint -> orphans ->
 * threads close: last checkpoint -> threads stop -> everything freed -> lock
 *
 * Until the lock is held and the superblock is known to be ours, nothing is written (D6). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "disk/cleaner.h"
#include "disk/events.h"
#include "disk/repair.h"
#include "disk/superblock.h"
#include "disk/watch.h"
#include "io/file.h"

#define CATALOGUE_BYTES ((uint64_t)16 << 30) /* address space */
/* The cache's default: an eighth of the host's memory within these bounds; touched as it fills. */
#define LEAST_CACHE_BYTES ((uint64_t)256 << 20)
#define MOST_CACHE_BYTES ((uint64_t)2 << 30)
#define OFFLINE_CACHE_BYTES ((uint64_t)32 << 20)
#define READY_SEGMENTS 4u
/* Left free on the host's file system: two segments for checkpoints, and what they leave. */
#define HOST_MARGIN_BYTES ((uint64_t)144 << 20)
#define RESERVE_SHARE 32u        /* a store is small if one segment of each reactor is more of it */
#define LEAST_PAGES ((size_t)64) /* of maps: what a few ops at once may need */
#define LAST_MARGIN_BYTES ((uint64_t)16 << 20) /* by checkpoints, too */

static const char *const folders[] = {"catalogue", "journal", "packs", "maps", "log"};

void store_path(const struct gild_store *store, const char *name, char path[4096]) {
    snprintf(path, 4096, "%s/%s", store->directory, name);
}

/* ---- init ------------------------------------------------------------------------------------ */

static int sync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = fsync(fd) ? -errno : 0;
    close(fd);
    return err;
}

static bool is_empty(const char *directory) {
    DIR *dir = opendir(directory);
    struct dirent *entry;
    bool empty = dir != NULL;
    while (dir && empty && (entry = readdir(dir)))
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                strcmp(entry->d_name, "lost+found") == 0;
    if (dir)
        closedir(dir);
    return empty;
}

/* The catalogue is made with the store, so that one that is missing later is a loss and never taken
 * for an empty one (whose orphans would be cleaned up). */
static int make_catalogue(const char *directory, struct gild_error *error) {
    char path[4096];
    struct gild_catalog *catalog;
    snprintf(path, sizeof path, "%s/catalogue", directory);
    const struct gild_catalog_options options = {.map_bytes = CATALOGUE_BYTES};
    int err = gild_catalog_open(&catalog, path, &options, error);
    if (err)
        return err;
    gild_catalog_close(catalog);
    return 0;
}

static void remove_catalogue(const char *directory) {
    static const char *const names[] = {"data.mdb", "lock.mdb"};
    char path[4096];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/catalogue/%s", directory, names[i]);
        unlink(path);
    }
}

/* What is written ahead, and over again; packs and maps are written once. */
static bool written_in_place(const char *folder) {
    return strcmp(folder, "catalogue") == 0 || strcmp(folder, "journal") == 0 ||
           strcmp(folder, "log") == 0;
}

static void in_place(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    gild_file_in_place(fd);
    close(fd);
}

int gild_store_init(const char *directory, uint64_t size_bytes, struct gild_error *error) {
    char path[4096];
    if (strlen(directory) > 2000)
        return gild_fail(error, GILD_USAGE, ENAMETOOLONG, "the store's path is too long");
    if (size_bytes && size_bytes < GILD_STORE_LEAST_BYTES)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "a store needs at least 1G: give --size 1G or more, or leave it out");
    bool made = mkdir(directory, 0700) == 0;
    if (!made && errno != EEXIST)
        return gild_fail(error, gild_code_of_errno(errno), errno, "folder %s can not be made: %s",
                         directory, strerror(errno));
    if (!made && !is_empty(directory))
        return gild_fail(error, GILD_FAILED, EEXIST,
                         "%s is not an empty folder: name a new or an empty one for the store",
                         directory);
    int err = 0;
    size_t done = 0;
    for (; done < sizeof folders / sizeof folders[0] && !err; done++) {
        snprintf(path, sizeof path, "%s/%s", directory, folders[done]);
        if (mkdir(path, 0700) != 0)
            err = gild_fail(error, gild_code_of_errno(errno), errno,
                            "folder %s can not be made: %s", path, strerror(errno));
        else if (written_in_place(folders[done]))
            in_place(path);
    }
    if (!err)
        err = make_catalogue(directory, error);
    if (!err)
        err = superblock_create(directory, size_bytes, error);
    if (!err && sync_path(directory) != 0)
        err = gild_fail(error, GILD_FAILED, errno, "folder %s can not be synced: %s", directory,
                        strerror(errno));
    if (!err)
        return 0;
    snprintf(path, sizeof path, "%s/superblock", directory);
    unlink(path);
    remove_catalogue(directory);
    while (done--) {
        snprintf(path, sizeof path, "%s/%s", directory, folders[done]);
        rmdir(path);
    }
    if (made)
        rmdir(directory);
    return err;
}

static int catalogue_is_there(const struct gild_store *store, struct gild_error *error) {
    char path[4096];
    struct stat st;
    store_path(store, "catalogue/data.mdb", path);
    if (stat(path, &st) == 0 && st.st_size > 0)
        return 0;
    return gild_fail(error, GILD_CORRUPT, EBADMSG,
                     "the catalogue %s is missing or empty: run `gild store check --repair`; "
                     "nothing was changed",
                     path);
}

/* ---- space ----------------------------------------------------------------------------------- */

static uint64_t folder_bytes(const struct gild_store *store, const char *name) {
    char path[4096];
    store_path(store, name, path);
    DIR *dir = opendir(path);
    uint64_t bytes = 0;
    struct dirent *entry;
    struct stat st;
    while (dir && (entry = readdir(dir)))
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode))
            bytes += (uint64_t)st.st_blocks * 512;
    if (dir)
        closedir(dir);
    return bytes;
}

static uint64_t host_free(const struct gild_store *store) {
    struct statvfs fs;
    if (statvfs(store->directory, &fs) != 0)
        return 0;
    return (uint64_t)fs.f_bavail * fs.f_frsize;
}

static uint64_t catalogue_bytes(struct gild_store *store) {
    return gild_catalog_used_bytes(store->catalog) + folder_bytes(store, "journal");
}

uint64_t store_used_bytes(struct gild_store *store) {
    struct gild_packs_totals packs;
    struct gild_segments_totals segments;
    gild_packs_get_totals(store->packs, &packs);
    gild_segments_get_totals(store->segments, &segments);
    return packs.file_bytes + segments.bytes + folder_bytes(store, "maps") + catalogue_bytes(store);
}

static uint64_t less(uint64_t from, uint64_t what) {
    return from > what ? from - what : 0;
}

/* Bytes that may still be taken. What a checkpoint writes may go past the store's own size and into
 * the margin: without it nothing would ever be freed. */
static uint64_t headroom(void *context, enum gild_segment_use use) {
    struct gild_store *store = context;
    uint64_t host = host_free(store);
    if (use == GILD_SEGMENT_FOR_NODES)
        return less(host, LAST_MARGIN_BYTES);
    host = less(host, HOST_MARGIN_BYTES);
    uint64_t limit = atomic_load(&store->size_limit_bytes);
    return limit ? gild_min_u64(host, less(limit, store_used_bytes(store))) : host;
}

int gild_store_admit_bytes(struct gild_store *store, uint64_t bytes) {
    uint64_t left = headroom(store, GILD_SEGMENT_FOR_DATA);
    if (left >= bytes)
        return 0;
    gild_segments_release(store->segments, bytes - left);
    return headroom(store, GILD_SEGMENT_FOR_DATA) < bytes ? -ENOSPC : 0;
}

/* What a full store keeps for itself: what checkpoints write, one more for the segment that they go
 * on in, and one of each reactor for trims (a small store: one). Map pages are limited to what fits
 * into the former while less is left than unlimited ones might need. */
static unsigned node_segments(const struct gild_store *store) {
    return (store->reactor_count + 3) / 4;
}

static unsigned reserve_segments(const struct gild_store *store, uint32_t segment_blocks) {
    struct statvfs fs;
    uint64_t capacity = 0;
    if (statvfs(store->directory, &fs) == 0)
        capacity = (uint64_t)fs.f_blocks * fs.f_frsize;
    uint64_t limit = atomic_load(&store->size_limit_bytes);
    if (limit)
        capacity = gild_min_u64(capacity, limit);
    uint64_t share = (uint64_t)store->reactor_count * RESERVE_SHARE;
    bool small = capacity / GILD_LOG_BLOCK / segment_blocks < share;
    return node_segments(store) + 1 + (small ? 1 : store->reactor_count);
}

/* Of a reactor: the nodes of as many pages fit into node_segments(), batch headers and roots (one
 * for each two pages, at worst) counted. */
static size_t tight_pages(const struct gild_store *store, uint32_t segment_blocks) {
    size_t blocks = (size_t)node_segments(store) * (segment_blocks - 1);
    size_t pages = blocks / 16 * 15 / 3 * 2 / store->reactor_count;
    return gild_min_u64(gild_max_u64(pages, LEAST_PAGES), POOL_BYTES / sizeof(struct gild_page));
}

/* ---- open ------------------------------------------------------------------------------------ */

static unsigned reactors_wanted(const struct gild_store_options *options) {
    if (options->offline)
        return 1;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = options->threads ? options->threads : processors > 0 ? (unsigned)processors : 1;
    return n > MAX_REACTORS ? MAX_REACTORS : n;
}

static uint64_t default_cache_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t share = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 8 : 0;
    if (share < LEAST_CACHE_BYTES)
        return LEAST_CACHE_BYTES;
    return share > MOST_CACHE_BYTES ? MOST_CACHE_BYTES : share;
}

static int open_caches(struct gild_store *store, const struct gild_store_options *options,
                       struct gild_error *error) {
    uint64_t bytes = options->cache_bytes ? options->cache_bytes
                     : options->offline   ? OFFLINE_CACHE_BYTES
                                          : default_cache_bytes();
    /* A quarter for map nodes and blocks of the log, the rest for groups. */
    int err = gild_cache_create(&store->content, GILD_GROUP_BYTES, bytes / 4 * 3, 0, error);
    if (!err)
        err = gild_cache_create(&store->nodes, GILD_BLOCK_BYTES, bytes / 4, 0, error);
    return err;
}

struct pack_pass {
    struct gild_store *store;
    struct gild_error *error;
};

static int add_pack(void *context, const void *key, size_t key_length, const void *value,
                    size_t length) {
    struct pack_pass *pass = context;
    const uint8_t *k = key;
    if (key_length != 4)
        return gild_fail(pass->error, GILD_CORRUPT, EBADMSG,
                         "the catalogue of store %s has a damaged pack record",
                         pass->store->directory);
    uint32_t id = (uint32_t)k[0] << 24 | (uint32_t)k[1] << 16 | (uint32_t)k[2] << 8 | k[3];
    struct gild_rec_pack record;
    if (gild_rec_pack_decode(&record, value, length)) {
        if (!pass->store->repair)
            return gild_fail(pass->error, GILD_CORRUPT, EUCLEAN,
                             "the catalogue's record of pack %08x of store %s is damaged: run "
                             "`gild store check --repair`; nothing was changed",
                             id, pass->store->directory);
        record = (struct gild_rec_pack){0};
    }
    if (pack_refs_ensure(pass->store->refs, id))
        return gild_fail(pass->error, GILD_FAILED, ENOMEM, "no memory to open store %s",
                         pass->store->directory);
    struct pack_ref *ref = pack_refs_find(pass->store->refs, id);
    ref->base = record.delta_refs;
    atomic_store(&ref->stale, record.stale_refs);
    return pass->store->repair ? repair_pack(pass->store, id, pass->error)
                               : gild_packs_add(pass->store->packs, id, pass->error);
}

static int open_packs(struct gild_store *store, struct gild_error *error) {
    char path[4096];
    store_path(store, "packs", path);
    int err = gild_packs_create(&store->packs, path, store->id, error);
    if (!err && pack_refs_create(&store->refs))
        err = gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open store %s", store->directory);
    if (err)
        return err;
    struct gild_txn *txn;
    struct pack_pass pass = {store, error};
    err = gild_txn_begin(store->catalog, false, &txn);
    if (err)
        return gild_fail(error, GILD_FAILED, -err, "the catalogue of store %s can not be read: %s",
                         store->directory, strerror(-err));
    err = gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, add_pack, &pass);
    gild_txn_abort(txn);
    return err ? err : lost_load(store, error);
}

static int open_segments(struct gild_store *store, const struct gild_store_options *options,
                         struct gild_error *error) {
    char path[4096];
    store_path(store, "log", path);
    uint32_t blocks = options->segment_blocks ? options->segment_blocks : GILD_SEGMENT_BLOCKS;
    unsigned reserve = store->reserve_segments = reserve_segments(store, blocks);
    struct gild_segments_options segments = {
        .directory = path,
        .catalog = store->catalog,
        .segment_blocks = options->segment_blocks,
        .ready_target = READY_SEGMENTS > reserve + 2 ? READY_SEGMENTS : reserve + 2,
        .reserve = reserve,
        .for_nodes = node_segments(store),
        .tight = 3 * store->reactor_count + 2,
        .headroom = headroom,
        .context = store,
    };
    memcpy(segments.store_id, store->id, 16);
    return gild_segments_create(&store->segments, &segments, error);
}

static int open_reactors(struct gild_store *store, struct gild_error *error) {
    uint64_t first;
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, true, &txn);
    if (!err) {
        err = gild_txn_next_id(txn, "stream", store->reactor_count, &first);
        if (err)
            gild_txn_abort(txn);
        else
            err = gild_txn_commit(txn);
    }
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the catalogue of store %s can not be written: %s", store->directory,
                         strerror(-err));
    struct gild_segments_totals segments;
    gild_segments_get_totals(store->segments, &segments);
    uint32_t segment_blocks = (uint32_t)(segments.segment_bytes / GILD_LOG_BLOCK);
    for (unsigned i = 0; i < store->reactor_count && !err; i++) {
        store->reactors[i].pages = POOL_BYTES / sizeof(struct gild_page);
        store->reactors[i].tight_pages = tight_pages(store, segment_blocks);
        store->streams[i] = first + i;
        err = reactor_create(&store->reactors[i], store, i, store->streams[i], error);
    }
    return err;
}

/* An orderly end can not be taken for granted at any step, so everything here can be freed
 * half-made. */
void store_free(struct gild_store *store) {
    watch_stop(store);
    cleaner_stop(store);
    keeper_stop(store);
    if (store->segments)
        gild_segments_stop(store->segments);
    for (unsigned i = 0; i < store->reactor_count; i++)
        reactor_stop(&store->reactors[i]);
    disks_drop_idle(store, true);
    for (unsigned i = 0; i < store->reactor_count; i++)
        reactor_destroy(&store->reactors[i]);
    quota_destroy(store);
    watch_destroy(store);
    events_destroy(store->events);
    checkpoint_destroy(store);
    cleaner_destroy(store);
    keeper_destroy(store);
    recovery_forget(store);
    gild_segments_destroy(store->segments);
    pack_refs_destroy(store->refs);
    if (store->packs)
        gild_packs_destroy(store->packs);
    if (store->content)
        gild_cache_destroy(store->content);
    if (store->nodes)
        gild_cache_destroy(store->nodes);
    if (store->catalog)
        gild_catalog_close(store->catalog);
    if (store->lock_fd >= 0)
        close(store->lock_fd);
    pthread_mutex_destroy(&store->open_lock);
    pthread_mutex_destroy(&store->disks_lock);
    pthread_rwlock_destroy(&store->ingest_lock);
    free(store->held_deltas);
    free(store->held_maps);
    free(store);
}

static int start_threads(struct gild_store *store, struct gild_error *error) {
    int err = 0;
    for (unsigned i = 0; i < store->reactor_count && !err; i++)
        err = reactor_start(&store->reactors[i]);
    if (!err && !store->offline)
        err = gild_segments_start(store->segments);
    if (!err)
        err = keeper_start(store);
    if (!err)
        err = cleaner_start(store);
    if (!err)
        err = watch_start(store);
    return err ? gild_fail(error, GILD_FAILED, -err,
                           "the threads of store %s can not be started: %s", store->directory,
                           strerror(-err))
               : 0;
}

/* One descriptor for each segment and pack: the soft limit of 1024 would be a store of 64 GiB. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* No disk is served while it is not known what the loss of transactions means. */
static int repair_is_done(struct gild_store *store, struct gild_error *error) {
    uint64_t lost;
    int err = gild_catalog_lost(store->catalog, &lost);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the catalogue of store %s can not be read: %s", store->directory,
                         strerror(-err));
    return !lost ? 0
                 : gild_fail(error, GILD_CORRUPT, EUCLEAN,
                             "the repair of store %s was broken off: run `gild store check "
                             "--repair` again; nothing was changed",
                             store->directory);
}

static int open_catalogue(struct gild_store *store, const struct superblock *block,
                          struct gild_error *error) {
    char path[4096], journal[4096];
    store_path(store, "catalogue", path);
    store_path(store, "journal", journal);
    const struct gild_catalog_options options = {
        .map_bytes = CATALOGUE_BYTES,
        .journal = journal,
        .note = block,
    };
    int err = store->repair ? repair_catalogue(store, path, &options, error)
                            : catalogue_is_there(store, error);
    if (store->repair && store->repair->stop)
        return err;
    if (!err)
        err = gild_catalog_open(&store->catalog, path, &options, error);
    return err || store->repair ? err : repair_is_done(store, error);
}

static int open_all(struct gild_store *store, const struct gild_store_options *options,
                    const struct superblock *block, struct gild_error *error) {
    raise_descriptor_limit();
    int err = open_catalogue(store, block, error);
    if (store->repair && store->repair->stop)
        return err;
    if (!err)
        err = open_caches(store, options, error);
    if (!err)
        err = open_packs(store, error);
    if (!err)
        err = open_segments(store, options, error);
    if (!err)
        err = store->repair ? repair_look(store, error) : recovery_verify(store, error);
    if (store->repair && store->repair->stop)
        return err;
    /* From here on the store is written to. */
    if (!err)
        err = open_reactors(store, error);
    if (!err && checkpoint_create(store) != 0)
        err = gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open store %s", store->directory);
    if (!err && store->repair)
        err = repair_orphans(store, error);
    if (!err)
        err = collect_orphans(store, error);
    if (!err)
        err = recovery_run(store, error);
    if (!err && store->repair)
        err = repair_fix(store, error);
    if (!err && (err = quota_load(store)) != 0)
        err = gild_fail(error, gild_code_of_errno(-err), -err,
                        "the limits of store %s can not be read: %s", store->directory,
                        strerror(-err));
    if (!err)
        err = start_threads(store, error);
    return err;
}

int store_open(const char *directory, const struct gild_store_options *options,
               struct repair *repair, struct gild_store **out, struct gild_error *error) {
    static const struct gild_store_options defaults = {0};
    if (!options)
        options = &defaults;
    if (strlen(directory) > 2000)
        return gild_fail(error, GILD_USAGE, ENAMETOOLONG, "the store's path is too long");
    struct gild_store *store = calloc(1, sizeof *store);
    if (!store)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open store %s", directory);
    struct superblock block;
    store->repair = repair;
    int err = repair ? repair_superblock(repair, directory, &block, &store->lock_fd, error)
                     : superblock_open(directory, &block, &store->lock_fd, error);
    if (err) {
        free(store);
        return err;
    }
    snprintf(store->directory, sizeof store->directory, "%s", directory);
    memcpy(store->id, block.id, sizeof store->id);
    store->made_bytes = block.size_limit_bytes;
    atomic_store(&store->size_limit_bytes, block.size_limit_bytes);
    store->offline = options->offline;
    store->backend = options->backend;
    store->reactor_count = reactors_wanted(options);
    store->checkpoint_log_bytes =
        options->checkpoint_log_bytes ? options->checkpoint_log_bytes : GILD_STORE_CHECKPOINT_BYTES;
    pthread_mutex_init(&store->open_lock, NULL);
    pthread_mutex_init(&store->disks_lock, NULL);
    pthread_rwlock_init(&store->ingest_lock, NULL);
    err = keeper_create(store, error);
    store->events = events_create(directory);
    if (!err && (!store->events || watch_create(store) || cleaner_create(store, options)))
        err = gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open store %s", directory);
    if (!err)
        err = open_all(store, options, &block, error);
    if (err) {
        store_free(store);
        return err;
    }
    *out = store;
    return 0;
}

int gild_store_open(const char *directory, const struct gild_store_options *options,
                    struct gild_store **out, struct gild_error *error) {
    int err = store_open(directory, options, NULL, out, error);
    if (!err)
        gild_store_collect(*out); /* what a crash left in DROPPED */
    return err;
}

int gild_store_close(struct gild_store *store, struct gild_error *error) {
    int err = gild_store_checkpoint(store, error);
    store_free(store);
    return err;
}

uint64_t gild_store_capacity(struct gild_store *store) {
    struct gild_store_info info;
    return gild_store_get_info(store, &info, NULL) ? 0 : info.capacity_bytes;
}

/* ---- facts ----------------------------------------------------------------------------------- */

const char *gild_store_directory(const struct gild_store *store) {
    return store->directory;
}

unsigned gild_store_reactor_count(const struct gild_store *store) {
    return store->reactor_count;
}

struct gild_loop *gild_store_reactor(const struct gild_store *store, unsigned index) {
    return store->reactors[index].loop;
}

struct gild_catalog *gild_store_catalog(struct gild_store *store) {
    return store->catalog;
}

struct gild_packs *gild_store_packs(struct gild_store *store) {
    return store->packs;
}

const uint8_t *gild_store_id(const struct gild_store *store) {
    return store->id;
}

static int count_tables(struct gild_store *store, struct gild_store_info *info) {
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_txn_count(txn, GILD_TABLE_IMAGES, &info->images);
    if (!err)
        err = gild_txn_count(txn, GILD_TABLE_VERSIONS, &info->versions);
    if (!err)
        err = gild_txn_count(txn, GILD_TABLE_DESKTOPS, &info->desktops);
    if (!err)
        err = gild_txn_count(txn, GILD_TABLE_POOLS, &info->pools);
    gild_txn_abort(txn);
    return err;
}

static void id_text(const uint8_t id[16], char text[37]) {
    char *at = text;
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        at += snprintf(at, 3, "%02x", id[i]);
    }
}

int gild_store_get_info(struct gild_store *store, struct gild_store_info *info,
                        struct gild_error *error) {
    struct gild_packs_totals packs;
    struct gild_segments_totals segments;
    struct gild_cache_stats content, nodes;
    memset(info, 0, sizeof *info);
    int err = count_tables(store, info);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the catalogue of store %s can not be read: %s", store->directory,
                         strerror(-err));
    gild_packs_get_totals(store->packs, &packs);
    gild_segments_look(store->segments);
    gild_segments_get_totals(store->segments, &segments);
    gild_cache_get_stats(store->content, &content);
    gild_cache_get_stats(store->nodes, &nodes);
    id_text(store->id, info->id);
    info->format = GILD_STORE_FORMAT;
    info->size_limit_bytes = atomic_load(&store->size_limit_bytes);
    info->pack_bytes = packs.file_bytes;
    info->log_bytes = segments.bytes;
    info->map_bytes = folder_bytes(store, "maps");
    info->catalogue_bytes = catalogue_bytes(store);
    info->used_bytes = info->pack_bytes + info->log_bytes + info->map_bytes + info->catalogue_bytes;
    uint64_t host = host_free(store);
    info->free_bytes = host > HOST_MARGIN_BYTES ? host - HOST_MARGIN_BYTES : 0;
    if (info->size_limit_bytes) {
        uint64_t left = info->used_bytes < info->size_limit_bytes
                            ? info->size_limit_bytes - info->used_bytes
                            : 0;
        if (left < info->free_bytes)
            info->free_bytes = left;
    }
    /* Segments come whole, and those that are ready hold nothing yet: all but the reserve are free.
     */
    info->free_bytes -= info->free_bytes % segments.segment_bytes;
    unsigned reserve = store->reserve_segments;
    if (segments.ready > reserve) {
        uint64_t ready = segments.ready_bytes / segments.ready * (segments.ready - reserve);
        info->free_bytes += ready;
        info->used_bytes -= ready;
    }
    info->space = gild_space_name(segments.level);
    info->capacity_bytes = info->used_bytes + info->free_bytes;
    info->cache_bytes = content.frames * GILD_GROUP_BYTES + nodes.frames * GILD_BLOCK_BYTES;
    info->cache_used_bytes = content.used * GILD_GROUP_BYTES + nodes.used * GILD_BLOCK_BYTES;
    info->recovered_batches = store->recovered_batches;
    info->recovered_bytes = store->recovered_bytes;
    info->backend = gild_loop_backend_name(store->reactors[0].loop);
    info->reactors = store->reactor_count;
    return 0;
}
