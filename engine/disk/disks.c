/* Disks in memory: made at first use, shared by their doors, dropped when nobody holds them and no
 * checkpoint needs them.
 *
 *   (catalogue only) --acquire--> open --last close--> idle --checkpoint settles--> dropped
 *                                  ^                    |
 *                                  `------acquire-------'
 *
 * Doors: one door may open a disk many times; another door only if neither writes. Everything here
 * blocks or takes locks and runs off the reactors, but gild_disk_close. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/internal.h"
#include "io/file.h"

struct sealed_ref {
    struct gild_sealed_map *map;
    unsigned refs;
    struct sealed_ref *next;
};

/* ---- sealed maps ----------------------------------------------------------------------------- */

static int sealed_acquire(struct gild_store *store, uint64_t map_id, struct gild_sealed_map **out,
                          struct gild_error *error) {
    char path[4096];
    for (struct sealed_ref *ref = store->sealed; ref; ref = ref->next)
        if (ref->map->map_id == map_id) {
            ref->refs++;
            *out = ref->map;
            return 0;
        }
    struct sealed_ref *ref = calloc(1, sizeof *ref);
    if (!ref)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open a disk");
    store_path(store, "maps", path);
    int err = gild_sealed_open(&ref->map, path, store->id, map_id, error);
    if (err) {
        free(ref);
        return err;
    }
    ref->refs = 1;
    ref->next = store->sealed;
    store->sealed = ref;
    *out = ref->map;
    return 0;
}

static void sealed_release(struct gild_store *store, struct gild_sealed_map *map) {
    if (!map)
        return;
    struct sealed_ref **at = &store->sealed;
    while ((*at)->map != map)
        at = &(*at)->next;
    struct sealed_ref *ref = *at;
    if (--ref->refs)
        return;
    *at = ref->next;
    gild_sealed_close(ref->map);
    free(ref);
}

/* ---- making ---------------------------------------------------------------------------------- */

int store_read_node(struct gild_store *store, uint64_t place, uint64_t delta_id,
                    enum gild_node_kind kind, uint64_t index, void *page) {
    struct gild_segment *segment = gild_segments_find(store->segments, gild_place_serial(place));
    if (!segment || segment->fd < 0)
        return -EBADMSG;
    int err = gild_file_read(segment->fd, page, GILD_NODE_BYTES,
                             (uint64_t)gild_place_offset(place) * GILD_LOG_BLOCK);
    if (err)
        return err == -ENODATA ? -EBADMSG : err;
    return gild_delta_node_verify(page, kind, delta_id, index, place);
}

/* A repair lets in what names unknown segments, to mark as lost what lies there. */
static bool is_there(const struct gild_store *store, uint64_t place) {
    return gild_place_type(place) == GILD_PLACE_PACK
               ? pack_refs_find(store->refs, gild_place_pack_id(place)) != NULL
               : gild_segments_find(store->segments, gild_place_serial(place)) != NULL;
}

static bool place_known(void *context, uint64_t place) {
    const struct gild_disk *disk = context;
    return disk->store->repair || is_there(disk->store, place);
}

static void count_place(void *context, uint64_t place, int sign) {
    struct gild_disk *disk = context;
    if (disk->store->repair && !is_there(disk->store, place))
        return; /* nothing is counted of what is not there */
    if (gild_place_type(place) == GILD_PLACE_PACK) {
        pack_refs_count(disk->store->refs, disk->reactor->epoch, place, sign);
        return;
    }
    gild_segments_count(disk->store->segments, disk->reactor->epoch, place, sign);
    if (sign < 0 && !atomic_load_explicit(&disk->store->released, memory_order_relaxed))
        atomic_store_explicit(&disk->store->released, true, memory_order_relaxed);
}

static int load_roots(struct gild_disk *disk, const struct gild_rec_delta *record) {
    void *page;
    if (posix_memalign(&page, GILD_NODE_BYTES, GILD_NODE_BYTES))
        return -ENOMEM;
    int err = 0;
    for (uint32_t r = 0; r < record->root_count && !err; r++) {
        if (!record->roots[r])
            continue;
        bool lost = gild_place_type(record->roots[r]) == GILD_PLACE_LOST;
        if (!lost)
            err = store_read_node(disk->store, record->roots[r], disk->delta_id, GILD_NODE_ROOT, r,
                                  page);
        if (err == -EBADMSG && disk->store->repair) {
            lost = disk->map.roots_dirty = true;
            err = 0;
        }
        const struct gild_dir *root = page;
        for (uint32_t i = 0; i < GILD_DIR_REFS && !err; i++) {
            uint64_t dir = (uint64_t)r * GILD_DIR_REFS + i;
            if (dir < disk->map.dir_count)
                disk->map.dirs[dir] = lost ? gild_place_of_type(GILD_PLACE_LOST) : root->ref[i];
        }
    }
    free(page);
    return err;
}

#define LARGEST_DELTA_BYTES \
    ((uint64_t)GILD_DELTA_ROOTS_MAX * GILD_DIR_REFS * GILD_DIR_BLOCKS * GILD_BLOCK_BYTES)

static int make_delta(struct gild_disk *disk, struct gild_error *error) {
    struct gild_store *store = disk->store;
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct gild_txn *txn;
    int err = record ? gild_txn_begin(store->catalog, false, &txn) : -ENOMEM;
    if (!err) {
        err = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, disk->delta_id, record);
        struct gild_rec_quarantine quarantine;
        int held = gild_rec_get_quarantine(txn, disk->delta_id, &quarantine);
        disk->read_only = disk->quarantined = held == 0;
        if (!err && held && held != -ENOENT)
            err = held;
        gild_txn_abort(txn);
    }
    if (err) {
        free(record);
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         "the catalogue's record of disk %s can not be read: %s", disk->path,
                         strerror(-err));
    }
    disk->size_bytes = record->size_bytes;
    disk->parent_blocks = gild_blocks_of(record->parent_size_bytes);
    /* A record may claim any size: what it asks for in memory is bounded by what can be mapped. */
    err = disk->size_bytes > LARGEST_DELTA_BYTES
              ? -EUCLEAN
              : gild_delta_map_init(&disk->map, disk->delta_id, disk->size_bytes,
                                    &disk->reactor->pool, count_place, disk);
    disk->map.known = place_known;
    if (!err && !(disk->frozen_dirs = calloc(disk->map.dir_count + 1, sizeof *disk->frozen_dirs)))
        err = -ENOMEM;
    if (!err)
        err = load_roots(disk, record);
    disk->map.mapped_blocks = record->mapped_blocks;
    disk->map.packed_blocks = record->packed_blocks;
    atomic_store(&disk->mapped_blocks, record->mapped_blocks);
    if (err)
        gild_fail(error, gild_code_of_errno(-err), -err, "the map of disk %s can not be read: %s",
                  disk->path, strerror(-err));
    else if (record->parent_map)
        err = sealed_acquire(store, record->parent_map, &disk->parent, error);
    free(record);
    return err;
}

void disk_free(struct gild_disk *disk) {
    disk_fault_last_words(disk);
    if (disk->delta_id && disk->map.dirs)
        gild_delta_map_fini(&disk->map);
    free(disk->frozen_dirs);
    if (disk->path != disk->first_path)
        free(disk->path);
    free(disk->first_path);
    free(disk);
}

int disk_make(struct gild_store *store, const struct gild_disk_spec *spec, struct gild_disk **out,
              struct gild_error *error) {
    struct gild_disk *disk = calloc(1, sizeof *disk);
    if (disk)
        disk->path = disk->first_path = strdup(spec->path);
    if (!disk || !disk->path) {
        free(disk);
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open disk %s", spec->path);
    }
    disk->store = store;
    disk->delta_id = spec->delta_id;
    disk->map_id = spec->map_id;
    disk->read_only = spec->delta_id == 0;
    disk->reactor =
        &store->reactors[(spec->delta_id ? spec->delta_id : spec->map_id) % store->reactor_count];
    int err;
    if (spec->delta_id) {
        err = make_delta(disk, error);
    } else {
        err = sealed_acquire(store, spec->map_id, &disk->parent, error);
        if (!err) {
            disk->size_bytes = disk->parent->size_bytes;
            disk->parent_blocks = gild_blocks_of(disk->size_bytes);
        }
    }
    if (err) {
        disk_free(disk);
        return err;
    }
    quota_attach(disk);
    if (disk->map.roots_dirty)
        disk_mark_dirty(disk); /* a repair: a root page is lost */
    pthread_mutex_lock(&store->disks_lock);
    disk->all_next = store->disks;
    store->disks = disk;
    pthread_mutex_unlock(&store->disks_lock);
    *out = disk;
    return 0;
}

struct gild_disk *disk_find(struct gild_store *store, uint64_t delta_id, uint64_t map_id) {
    for (struct gild_disk *disk = store->disks; disk; disk = disk->all_next)
        if (disk->delta_id == delta_id && disk->map_id == map_id)
            return disk;
    return NULL;
}

/* ---- doors ----------------------------------------------------------------------------------- */

static bool is_held(const struct gild_store *store, uint64_t delta_id, uint64_t map_id) {
    for (size_t i = 0; i < store->held_delta_count; i++)
        if (delta_id && store->held_deltas[i] == delta_id)
            return true;
    for (size_t i = 0; i < store->held_map_count; i++)
        if (map_id && store->held_maps[i] == map_id)
            return true;
    return false;
}

/* Lock held. Admits one more open, or says why not. */
static int admit(struct gild_disk *disk, const char *door, unsigned flags, bool *writable,
                 struct gild_error *error) {
    bool must = flags & GILD_OPEN_WRITE, would = flags & GILD_OPEN_WRITE_IF_POSSIBLE;
    bool other = disk->opens && strcmp(disk->door, door) != 0;
    if (must && disk->quarantined)
        return gild_fail(error, GILD_CORRUPT, EROFS,
                         "disk %s may have lost flushed writes to damage, so it opens for reading "
                         "only: copy off what is needed, then delete it",
                         disk->path);
    if (must && disk->read_only)
        return gild_fail(error, GILD_FAILED, EROFS,
                         "disk %s is read-only: open it for reading, or make a desktop from it",
                         disk->path);
    if (other && (disk->writers || must))
        return gild_fail(error, GILD_BUSY, EBUSY,
                         "disk %s is open through %s: close it there before opening it through %s",
                         disk->path, disk->door, door);
    *writable = !disk->read_only && (must || would) && !other;
    if (!other)
        disk->door = door;
    disk->opens++;
    disk->writers += *writable;
    return 0;
}

/* The cleaner and a recovery know a disk by its delta alone; people know it by its path. open_lock
 * held. */
static void take_name(struct gild_disk *disk, const char *path) {
    char *name =
        disk->path == disk->first_path && strcmp(disk->path, path) != 0 ? strdup(path) : NULL;
    if (name)
        disk->path = name;
}

int gild_disk_acquire(struct gild_store *store, const struct gild_disk_spec *spec, const char *door,
                      unsigned flags, struct gild_disk **out, bool *writable,
                      struct gild_error *error) {
    int err = 0;
    pthread_mutex_lock(&store->open_lock);
    pthread_mutex_lock(&store->disks_lock);
    struct gild_disk *disk = disk_find(store, spec->delta_id, spec->map_id);
    if (is_held(store, spec->delta_id, spec->map_id))
        err = gild_fail(error, GILD_BUSY, EBUSY, "disk %s is being deleted", spec->path);
    pthread_mutex_unlock(&store->disks_lock);
    if (!err && !disk)
        err = disk_make(store, spec, &disk, error);
    else if (!err)
        take_name(disk, spec->path);
    pthread_mutex_lock(&store->disks_lock);
    if (!err)
        err = admit(disk, door, flags, writable, error);
    pthread_mutex_unlock(&store->disks_lock);
    pthread_mutex_unlock(&store->open_lock);
    if (!err)
        *out = disk;
    return err;
}

void gild_disk_close(struct gild_disk *disk, const char *door, bool writable) {
    (void)door;
    pthread_mutex_lock(&disk->store->disks_lock);
    assert(disk->opens > 0);
    disk->opens--;
    disk->writers -= writable;
    if (!disk->opens)
        disk->door = NULL;
    pthread_mutex_unlock(&disk->store->disks_lock);
}

/* Every way in is told by its door's name alone, so the first to come names it. */
bool gild_disk_in_use(struct gild_store *store, uint64_t delta_id, uint64_t map_id,
                      const char **door) {
    pthread_mutex_lock(&store->disks_lock);
    struct gild_disk *disk = disk_find(store, delta_id, map_id);
    bool used = disk && disk->opens;
    if (door)
        *door = used ? disk->door : NULL;
    pthread_mutex_unlock(&store->disks_lock);
    return used;
}

uint64_t gild_disk_mapped_blocks(struct gild_store *store, uint64_t delta_id) {
    pthread_mutex_lock(&store->disks_lock);
    struct gild_disk *disk = disk_find(store, delta_id, 0);
    uint64_t blocks = disk ? atomic_load(&disk->mapped_blocks) : 0;
    bool known = disk != NULL;
    pthread_mutex_unlock(&store->disks_lock);
    struct gild_rec_delta *record = known ? NULL : malloc(sizeof *record);
    struct gild_txn *txn;
    if (record && gild_txn_begin(store->catalog, false, &txn) == 0) {
        if (gild_rec_get_delta(txn, GILD_TABLE_DELTAS, delta_id, record) == 0)
            blocks = record->mapped_blocks;
        gild_txn_abort(txn);
    }
    free(record);
    return blocks;
}

static int append_ids(uint64_t **ids, size_t *count, const uint64_t *more, size_t n) {
    if (!n)
        return 0;
    uint64_t *grown = realloc(*ids, (*count + n) * sizeof **ids);
    if (!grown)
        return -ENOMEM;
    memcpy(grown + *count, more, n * sizeof **ids);
    *ids = grown;
    *count += n;
    return 0;
}

static void remove_ids(uint64_t *ids, size_t *count, const uint64_t *gone, size_t n) {
    for (size_t g = 0; g < n; g++)
        for (size_t i = 0; i < *count; i++)
            if (ids[i] == gone[g]) {
                ids[i] = ids[--*count];
                break;
            }
}

/* Lock held. Walks the disks in memory, which are few, not the ids, which may be thousands. */
static bool any_in_use(struct gild_store *store, const uint64_t *delta_ids, const uint64_t *map_ids,
                       size_t delta_count, size_t map_count) {
    for (struct gild_disk *disk = store->disks; disk; disk = disk->all_next) {
        if (!disk->opens)
            continue;
        for (size_t i = 0; disk->delta_id && i < delta_count; i++)
            if (delta_ids[i] == disk->delta_id)
                return true;
        for (size_t i = 0; disk->map_id && i < map_count; i++)
            if (map_ids[i] == disk->map_id)
                return true;
    }
    return false;
}

int gild_disk_hold(struct gild_store *store, const uint64_t *delta_ids, const uint64_t *map_ids,
                   size_t delta_count, size_t map_count) {
    int err = 0;
    pthread_mutex_lock(&store->open_lock);
    pthread_mutex_lock(&store->disks_lock);
    if (any_in_use(store, delta_ids, map_ids, delta_count, map_count))
        err = -EBUSY;
    if (!err)
        err = append_ids(&store->held_deltas, &store->held_delta_count, delta_ids, delta_count);
    if (!err) {
        err = append_ids(&store->held_maps, &store->held_map_count, map_ids, map_count);
        if (err)
            remove_ids(store->held_deltas, &store->held_delta_count, delta_ids, delta_count);
    }
    pthread_mutex_unlock(&store->disks_lock);
    pthread_mutex_unlock(&store->open_lock);
    return err;
}

void gild_disk_unhold(struct gild_store *store, const uint64_t *delta_ids, const uint64_t *map_ids,
                      size_t delta_count, size_t map_count) {
    pthread_mutex_lock(&store->disks_lock);
    remove_ids(store->held_deltas, &store->held_delta_count, delta_ids, delta_count);
    remove_ids(store->held_maps, &store->held_map_count, map_ids, map_count);
    pthread_mutex_unlock(&store->disks_lock);
}

/* ---- dropping -------------------------------------------------------------------------------- */

void disks_drop_idle(struct gild_store *store, bool all) {
    pthread_mutex_lock(&store->open_lock);
    pthread_mutex_lock(&store->disks_lock);
    struct gild_disk *idle = NULL, **at = &store->disks;
    while (*at) {
        struct gild_disk *disk = *at;
        if (disk->opens || disk->holds || (!all && atomic_load(&disk->unsettled))) {
            at = &disk->all_next;
            continue;
        }
        *at = disk->all_next;
        disk->all_next = idle;
        idle = disk;
    }
    pthread_mutex_unlock(&store->disks_lock);
    while (idle) {
        struct gild_disk *disk = idle;
        idle = disk->all_next;
        sealed_release(store, disk->parent);
        disk->parent = NULL;
        keeper_drop(store, disk);
    }
    pthread_mutex_unlock(&store->open_lock);
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
    return disk->reactor->loop;
}
