/* The tree of paths, and opening a disk by its path (gild/disk.h, docs/cli.md).
 *
 *   ""                  folder
 *   desktops            folder
 *   desktops/D          folder
 *   desktops/D/os       a delta
 *   images              folder
 *   images/NAME@V       a sealed map, read-only
 *
 * A path names a disk in exactly one spelling. Inodes come from ids that are never reused: a disk's
 * from its delta or map, a desktop's folder from its delta too; the last four bits say which.
 *
 * A listing is copied out of its transaction and sorted before the visitor sees it, so that a
 * visitor may take its time and ask for paths itself. Any thread but a reactor's, but for
 * gild_disk_open_async, which moves the work to the store's helper thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/hash.h"
#include "disk/store.h"
#include "vdi/lookup.h"

enum inode_kind { INODE_MAP = 1, INODE_DELTA = 2, INODE_FOLDER = 3, INODE_DESKTOP = 4 };
enum fixed_folder { FOLDER_ROOT, FOLDER_IMAGES, FOLDER_DESKTOPS };

static uint64_t inode_of(uint64_t id, enum inode_kind kind) {
    return id << 4 | kind;
}

/* What a path stands for. */
struct place {
    struct gild_path_info info;
    uint64_t delta_id, map_id; /* of a disk; 0 and 0: a folder */
};

static void place_folder(struct place *place, uint64_t id, enum inode_kind kind,
                         uint64_t modified_ns) {
    *place = (struct place){.info = {.directory = true,
                                     .read_only = true,
                                     .inode = inode_of(id, kind),
                                     .modified_ns = modified_ns}};
}

static void place_version(struct place *place, const struct gild_rec_version *record) {
    *place = (struct place){.map_id = record->map_id,
                            .info = {.read_only = true,
                                     .size_bytes = record->size_bytes,
                                     .allocated_bytes = record->data_blocks * GILD_BLOCK_BYTES,
                                     .inode = inode_of(record->map_id, INODE_MAP),
                                     .modified_ns = record->created_ns}};
}

/* Allocated bytes come later (look_at_delta): they are asked of the store, outside the
 * transaction. */
static int place_desktop(struct gild_txn *txn, struct place *place,
                         const struct gild_rec_desktop *record) {
    struct gild_rec_delta delta;
    int result = gild_rec_get_delta(txn, GILD_TABLE_DELTAS, record->os_delta, &delta);
    if (result)
        return result == -ENOENT ? -EUCLEAN : result;
    *place = (struct place){.delta_id = record->os_delta,
                            .info = {.size_bytes = delta.size_bytes,
                                     .inode = inode_of(record->os_delta, INODE_DELTA),
                                     .modified_ns = delta.changed_ns}};
    return 0;
}

static void look_at_delta(struct gild_store *store, struct place *place) {
    if (place->delta_id)
        place->info.allocated_bytes =
            gild_disk_mapped_blocks(store, place->delta_id) * GILD_BLOCK_BYTES;
}

/* ---- one path -------------------------------------------------------------------------------- */

static int find_version(struct gild_txn *txn, const char *reference, struct place *place) {
    struct gild_reference version;
    struct gild_rec_version record;
    if (gild_reference_parse(reference, &version, NULL) || !version.version)
        return -ENOENT;
    int result = vdi_get_version(txn, version.name, version.version, &record);
    if (result == 0)
        place_version(place, &record);
    return result;
}

/* rest: "D" or "D/os". */
static int find_desktop(struct gild_txn *txn, const char *rest, struct place *place) {
    char name[GILD_NAME_MAX + 1];
    struct gild_rec_desktop record;
    size_t length = strcspn(rest, "/");
    const char *disk = rest[length] ? rest + length + 1 : NULL;
    if (!length || length > GILD_NAME_MAX || (disk && strcmp(disk, "os")))
        return -ENOENT;
    memcpy(name, rest, length);
    name[length] = 0;
    int result = vdi_get_desktop(txn, name, &record);
    if (result || disk)
        return result ? result : place_desktop(txn, place, &record);
    place_folder(place, record.os_delta, INODE_DESKTOP, record.created_ns);
    return 0;
}

static int find_in_txn(struct gild_txn *txn, const char *path, struct place *place) {
    if (!*path)
        place_folder(place, FOLDER_ROOT, INODE_FOLDER, 0);
    else if (strcmp(path, "images") == 0)
        place_folder(place, FOLDER_IMAGES, INODE_FOLDER, 0);
    else if (strcmp(path, "desktops") == 0)
        place_folder(place, FOLDER_DESKTOPS, INODE_FOLDER, 0);
    else if (strncmp(path, "images/", 7) == 0)
        return find_version(txn, path + 7, place);
    else if (strncmp(path, "desktops/", 9) == 0)
        return find_desktop(txn, path + 9, place);
    else
        return -ENOENT;
    return 0;
}

static int find(struct gild_store *store, const char *path, struct place *place) {
    struct gild_txn *txn;
    int result = gild_txn_begin(gild_store_catalog(store), false, &txn);
    if (result)
        return result;
    result = find_in_txn(txn, path, place);
    gild_txn_abort(txn);
    return result;
}

int gild_path_stat(struct gild_store *store, const char *path, struct gild_path_info *info) {
    struct place place;
    int result = find(store, path, &place);
    if (result)
        return result;
    look_at_delta(store, &place);
    *info = place.info;
    return 0;
}

/* The serial is the path's alone: it outlives refreshes, new image versions and moves to another
 * store. */
int gild_path_serial(struct gild_store *store, const char *path, char serial[21]) {
    struct place place;
    int result = find(store, path, &place);
    if (result)
        return result;
    if (place.info.directory)
        return -ENOENT;
    snprintf(serial, 21, "gild%016" PRIx64, gild_xxh3(path, strlen(path), 0));
    return 0;
}

/* ---- listings -------------------------------------------------------------------------------- */

struct entry {
    char *name;
    struct place place;
};

struct listing {
    struct entry *items;
    size_t count, room;
    struct gild_txn *txn;
    const char *prefix; /* of the names: "" or "images/", "desktops/" */
    bool disks;         /* desktops as their disks, not as folders */
};

static void listing_free(struct listing *listing) {
    for (size_t i = 0; i < listing->count; i++)
        free(listing->items[i].name);
    free(listing->items);
}

static int listing_add(struct listing *listing, const char *name, const char *suffix,
                       const struct place *place) {
    if (listing->count == listing->room) {
        size_t room = listing->room ? 2 * listing->room : 64;
        struct entry *grown = realloc(listing->items, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        listing->items = grown;
        listing->room = room;
    }
    struct entry *entry = &listing->items[listing->count];
    if (asprintf(&entry->name, "%s%s%s", listing->prefix, name, suffix) < 0)
        return -ENOMEM;
    entry->place = *place;
    listing->count++;
    return 0;
}

static int note_version(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct listing *listing = context;
    struct gild_reference version;
    struct gild_rec_version record;
    struct place place;
    char number[16];
    int result = vdi_version_key_read(key, key_length, &version)
                     ? gild_rec_version_decode(&record, value, length)
                     : -EUCLEAN;
    if (result)
        return result;
    place_version(&place, &record);
    snprintf(number, sizeof number, "@%u", version.version);
    return listing_add(listing, version.name, number, &place);
}

static int note_desktop(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct listing *listing = context;
    char name[GILD_NAME_MAX + 1];
    struct gild_rec_desktop record;
    struct place place;
    int result = vdi_name_key_read(key, key_length, name)
                     ? gild_rec_desktop_decode(&record, value, length)
                     : -EUCLEAN;
    if (result == 0 && listing->disks)
        result = place_desktop(listing->txn, &place, &record);
    else
        place_folder(&place, record.os_delta, INODE_DESKTOP, record.created_ns);
    return result ? result : listing_add(listing, name, listing->disks ? "/os" : "", &place);
}

static int list_versions(struct listing *listing) {
    return gild_txn_scan(listing->txn, GILD_TABLE_VERSIONS, NULL, 0, note_version, listing);
}

static int list_desktops(struct listing *listing) {
    return gild_txn_scan(listing->txn, GILD_TABLE_DESKTOPS, NULL, 0, note_desktop, listing);
}

/* The children of the folder in the listing's transaction. */
static int list_folder(struct listing *listing, const char *folder) {
    struct place place;
    int result = find_in_txn(listing->txn, folder, &place);
    if (result)
        return result;
    if (!place.info.directory)
        return -ENOTDIR;
    if (strcmp(folder, "images") == 0)
        return list_versions(listing);
    if (strcmp(folder, "desktops") == 0)
        return list_desktops(listing);
    if (*folder) {
        char path[GILD_NAME_MAX + 16];
        snprintf(path, sizeof path, "%s/os", folder);
        result = find_in_txn(listing->txn, path, &place);
        return result ? result : listing_add(listing, "os", "", &place);
    }
    place_folder(&place, FOLDER_DESKTOPS, INODE_FOLDER, 0);
    result = listing_add(listing, "desktops", "", &place);
    if (result)
        return result;
    place_folder(&place, FOLDER_IMAGES, INODE_FOLDER, 0);
    return listing_add(listing, "images", "", &place);
}

static int list_disks(struct listing *listing) {
    listing->disks = true;
    listing->prefix = "desktops/";
    int result = list_desktops(listing);
    listing->prefix = "images/";
    return result ? result : list_versions(listing);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* folder NULL: every disk. */
static int list(struct gild_store *store, const char *folder, gild_path_visit *visit,
                void *context) {
    struct listing listing = {.prefix = ""};
    int result = gild_txn_begin(gild_store_catalog(store), false, &listing.txn);
    if (result)
        return result;
    result = folder ? list_folder(&listing, folder) : list_disks(&listing);
    gild_txn_abort(listing.txn);
    if (listing.count)
        qsort(listing.items, listing.count, sizeof *listing.items, by_name);
    for (size_t i = 0; i < listing.count && result == 0; i++) {
        look_at_delta(store, &listing.items[i].place);
        result = visit(context, listing.items[i].name, &listing.items[i].place.info);
    }
    listing_free(&listing);
    return result;
}

int gild_path_list(struct gild_store *store, const char *folder, gild_path_visit *visit,
                   void *context) {
    return list(store, folder, visit, context);
}

int gild_path_each_disk(struct gild_store *store, gild_path_visit *visit, void *context) {
    return list(store, NULL, visit, context);
}

/* ---- opening --------------------------------------------------------------------------------- */

static int open_failed(const char *path, int result, struct gild_error *error) {
    char quoted[GILD_NAME_QUOTED];
    gild_name_quote(path, quoted);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no disk '%s'; `gild desktop list` and `gild image list` show "
                         "what there is",
                         quoted);
    if (result == -EISDIR)
        return gild_fail(error, GILD_USAGE, EISDIR,
                         "'%s' is a folder of disks; name one disk in it", quoted);
    return vdi_catalog_failed(error, result, quoted);
}

int gild_disk_open(struct gild_store *store, const char *path, const char *door, unsigned flags,
                   struct gild_disk **out, bool *writable, struct gild_error *error) {
    struct place place, again;
    int result = find(store, path, &place);
    if (result == 0 && place.info.directory)
        result = -EISDIR;
    if (result)
        return open_failed(path, result, error);
    struct gild_disk_spec spec = {.path = path, .delta_id = place.delta_id, .map_id = place.map_id};
    result = gild_disk_acquire(store, &spec, door, flags, out, writable, error);
    if (result)
        return result;
    /* A delete that committed between the two has let go of its hold already. From here on the open
     * disk itself keeps deletes away. */
    result = find(store, path, &again);
    if (result == 0 && (again.delta_id != place.delta_id || again.map_id != place.map_id))
        result = -ENOENT;
    if (result) {
        gild_disk_close(*out, door, *writable);
        *out = NULL;
        return open_failed(path, result, error);
    }
    return 0;
}

/* ---- opening for reactors -------------------------------------------------------------------- */

static struct gild_disk_opening *opening_of(struct gild_task *task) {
    return (struct gild_disk_opening *)((char *)task - offsetof(struct gild_disk_opening, task));
}

static void opening_done(struct gild_task *task) {
    struct gild_disk_opening *opening = opening_of(task);
    opening->done(opening);
}

static void opening_run(struct gild_task *task) {
    struct gild_disk_opening *opening = opening_of(task);
    opening->result = gild_disk_open(opening->store, opening->path, opening->door, opening->flags,
                                     &opening->disk, &opening->writable, &opening->error);
    task->run = opening_done;
    gild_loop_post(opening->loop, task);
}

void gild_disk_open_async(struct gild_disk_opening *opening) {
    opening->task.run = opening_run;
    gild_store_run_async(opening->store, &opening->task);
}
