/* See machine.h: the admin's verbs, each in a thread of the simulation beside the guests' ops, and
 * what must be true of images and clones afterwards.
 *
 * A verb that was answered is a promise: what was made is there, what was deleted stays deleted,
 * also after a power cut (D8). One that failed, or was broken off, leaves all of it or nothing:
 * UNSURE, until the store is opened anew and we look. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "catalog/records.h"
#include "disk/store.h"
#include "own.h"
#include "sim_kv.h"
#include "sim_threads.h"
#include "vdi/vdi.h"

#define LEAST_IMAGE 65u /* sectors */
#define MOST_IMAGE 1500u
#define SMALL_IMAGE 250u

static struct {
    pthread_t thread;
    bool running;
    enum machine_op op;
    struct image *image;
    struct disk *disk;
} admin;

/* ---- verbs ----------------------------------------------------------------------------------- */

static void import_image(struct image *image) {
    char source[40];
    snprintf(source, sizeof source, "/source-%s", image->name);
    struct gild_image_import request = {.name = image->name, .source = source, .format = "raw"};
    struct gild_image_info info;
    struct gild_error error = {0};
    sim_disk_make_file(source, (uint64_t)image->content.sectors * CONTENT_SECTOR, content_page,
                       image->content.seed);
    int space = machine.space, err = gild_image_import(machine.store, &request, &info, &error);
    if (machine_lacked_space(err, space)) {
        image->presence = ABSENT;
        return;
    }
    if (err) {
        machine_failed("an import", error.message);
        return;
    }
    image->presence = THERE;
    image->hashed = true;
    memcpy(image->hash, info.record.content_hash, sizeof image->hash);
}

static void delete_image(struct image *image) {
    char reference[32];
    struct gild_freed freed;
    struct gild_error error = {0};
    snprintf(reference, sizeof reference, "%s@1", image->name);
    if (gild_image_delete(machine.store, reference, false, &freed, &error))
        machine_failed("the deletion of an image", error.message);
    else
        image->presence = ABSENT;
}

static void open_disk(struct disk *disk) {
    struct gild_error error = {0};
    bool writable;
    if (gild_disk_open(machine.store, disk->path, "test", GILD_OPEN_WRITE, &disk->disk, &writable,
                       &error)) {
        disk->disk = NULL;
        machine_failed("a clone does not open", error.message);
    }
}

static void make_clone(struct disk *disk) {
    struct gild_desktop_create request = {.name = disk->name,
                                          .image = machine.images[disk->image].name,
                                          .size_bytes =
                                              (uint64_t)disk->oracle.sector_count * ORACLE_SECTOR};
    struct gild_error error = {0};
    uint32_t made;
    int space = machine.space;
    int err = gild_desktop_create(machine.store, &request, &made, &error);
    if (machine_lacked_space(err, space)) {
        disk->presence = ABSENT;
        oracle_fini(&disk->oracle);
        return;
    }
    if (err) {
        machine_failed("a clone", error.message);
        return;
    }
    disk->presence = THERE;
    open_disk(disk);
}

static void delete_clone(struct disk *disk) {
    struct gild_freed freed;
    struct gild_error error = {0};
    work_wait_disk(disk);
    if (disk->disk)
        gild_disk_close(disk->disk, "test", true);
    disk->disk = NULL;
    if (gild_desktop_delete(machine.store, disk->name, false, &freed, &error)) {
        machine_failed("the deletion of a clone", error.message);
        return;
    }
    disk->presence = ABSENT;
    oracle_fini(&disk->oracle);
}

/* The base disks are deltas that were put into the catalogue by hand, without a desktop. */
static bool is_base(const struct gild_finding *finding) {
    unsigned delta;
    return strcmp(finding->kind, "orphan") == 0 &&
           sscanf(finding->object, "delta %u", &delta) == 1 && delta <= BASES;
}

static void found(void *context, const struct gild_finding *finding) {
    unsigned *findings = context;
    if (is_base(finding))
        return;
    ++*findings;
    if (!machine_damaged() && !machine.errors)
        fprintf(stderr, "check: %s\n", finding->message);
}

void admin_check(void) {
    struct gild_check_result result;
    struct gild_error error = {0};
    unsigned findings = 0;
    int err = gild_store_check(machine.store, found, &findings, &result, &error);
    if (err && err != -EUCLEAN)
        machine_failed("a check", error.message);
    if (findings)
        machine_failed("a check", "the store is not consistent");
}

static void *verb(void *context) {
    struct gild_error error = {0};
    struct gild_clean_result cleaned;
    int err, space = machine.space;
    switch (admin.op) {
    case MACHINE_IMPORT:
        import_image(admin.image);
        break;
    case MACHINE_IMAGE_DELETE:
        delete_image(admin.image);
        break;
    case MACHINE_CLONE:
        make_clone(admin.disk);
        break;
    case MACHINE_CLONE_DELETE:
        delete_clone(admin.disk);
        break;
    case MACHINE_CHECK:
        admin_check();
        break;
    case MACHINE_CLEAN:
        err = gild_store_clean(machine.store, NULL, &cleaned, &error);
        if (err && !machine_lacked_space(err, space))
            machine_failed("cleaning", error.message);
        break;
    default:
        gild_store_collect(machine.store);
        if (gild_store_checkpoint(machine.store, &error))
            machine_failed("a checkpoint", error.message);
        break;
    }
    return context;
}

/* ---- choosing -------------------------------------------------------------------------------- */

static bool stands_on(const struct image *image) {
    for (unsigned i = BASES; i < DISKS; i++)
        if (machine.disks[i].presence != ABSENT && &machine.images[machine.disks[i].image] == image)
            return true;
    return false;
}

static struct image *some_image(enum presence presence, bool free_of_clones) {
    struct image *picked = NULL;
    uint64_t count = 0;
    for (unsigned i = 0; i < IMAGES; i++) {
        struct image *image = &machine.images[i];
        if (image->presence == presence && !(free_of_clones && stands_on(image)) &&
            sim_below(++count) == 0)
            picked = image;
    }
    return picked;
}

static struct disk *some_clone(enum presence presence) {
    struct disk *picked = NULL;
    uint64_t count = 0;
    for (unsigned i = BASES; i < DISKS; i++)
        if (machine.disks[i].presence == presence && sim_below(++count) == 0)
            picked = &machine.disks[i];
    return picked;
}

static bool plan_import(void) {
    struct image *image = some_image(ABSENT, true);
    if (!image)
        return false;
    *image = (struct image){.presence = UNSURE};
    snprintf(image->name, sizeof image->name, "i%u", ++machine.serial);
    image->content.seed = sim_random() | 1;
    image->content.sectors =
        LEAST_IMAGE + (uint32_t)sim_below(machine.small ? SMALL_IMAGE : MOST_IMAGE);
    admin.image = image;
    return true;
}

static bool plan_clone(void) {
    struct image *image = some_image(THERE, false);
    struct disk *disk = some_clone(ABSENT);
    if (!image || !disk)
        return false;
    *disk = (struct disk){.presence = UNSURE, .image = (unsigned)(image - machine.images)};
    snprintf(disk->name, sizeof disk->name, "d%u", ++machine.serial);
    snprintf(disk->path, sizeof disk->path, "desktops/%s/os", disk->name);
    uint32_t more = sim_chance(300) ? (uint32_t)sim_below(300) : 0;
    oracle_init(&disk->oracle, machine.serial, image->content.sectors + more, image->content);
    admin.disk = disk;
    return true;
}

/* What there is to do; another verb where that can not be done: what it needs, or the next best. */
static bool plan(enum machine_op op) {
    switch (op) {
    case MACHINE_IMPORT:
        return plan_import();
    case MACHINE_CLONE:
        return plan_clone();
    case MACHINE_IMAGE_DELETE:
        admin.image = some_image(THERE, true);
        if (admin.image)
            admin.image->presence = UNSURE;
        return admin.image != NULL;
    case MACHINE_CLONE_DELETE:
        admin.disk = some_clone(THERE);
        if (admin.disk) {
            admin.disk->presence = UNSURE;
            admin.disk->leaving = true;
        }
        return admin.disk != NULL;
    default:
        return true;
    }
}

static enum machine_op instead(enum machine_op op) {
    switch (op) {
    case MACHINE_CLONE:
        return some_image(THERE, false) ? MACHINE_CLONE_DELETE : MACHINE_IMPORT;
    case MACHINE_CLONE_DELETE:
        return MACHINE_CLONE;
    case MACHINE_IMPORT:
        return MACHINE_IMAGE_DELETE;
    case MACHINE_IMAGE_DELETE:
        return some_clone(THERE) ? MACHINE_CLONE_DELETE : MACHINE_IMPORT;
    default:
        return MACHINE_COLLECT;
    }
}

void admin_wait(void) {
    if (admin.running)
        pthread_join(admin.thread, NULL);
    admin.running = false;
}

void admin_reset(void) {
    admin.running = false;
}

void admin_do(enum machine_op op) {
    admin_wait();
    for (unsigned tries = 0; !plan(op); tries++)
        op = tries < 3 ? instead(op) : MACHINE_COLLECT;
    machine.counts->ops[op]++;
    admin.op = op;
    admin.running = pthread_create(&admin.thread, NULL, verb, NULL) == 0;
}

/* ---- what is there --------------------------------------------------------------------------- */

static int look_at_image(void *context, const struct gild_image_info *info) {
    (void)context;
    for (unsigned i = 0; i < IMAGES; i++) {
        struct image *image = &machine.images[i];
        if (image->presence == ABSENT || strcmp(image->name, info->name) != 0)
            continue;
        if (image->hashed && memcmp(image->hash, info->record.content_hash, 32) != 0)
            machine_fail(WRONG_OTHER, "an image", "has another content hash (D3)");
        memcpy(image->hash, info->record.content_hash, 32);
        image->hashed = true;
        image->presence = THERE;
        machine.found_images |= 1u << i;
        return 0;
    }
    machine_fail(WRONG_OTHER, "an image is there again that was deleted", info->name);
}

static int look_at_clone(void *context, const struct gild_desktop_info *info) {
    (void)context;
    for (unsigned i = BASES; i < DISKS; i++) {
        struct disk *disk = &machine.disks[i];
        if (disk->presence == ABSENT || strcmp(disk->name, info->name) != 0)
            continue;
        disk->presence = THERE;
        machine.found_disks |= 1u << i;
        return 0;
    }
    machine_fail(WRONG_OTHER, "a clone is there again that was deleted", info->name);
}

void admin_look(void) {
    struct gild_error error = {0};
    machine.found_images = machine.found_disks = 0;
    if (gild_image_list(machine.store, NULL, look_at_image, NULL, &error) ||
        gild_desktop_list(machine.store, NULL, look_at_clone, NULL, &error))
        machine_fail(WRONG_OTHER, "the images and clones can not be listed", error.message);
    for (unsigned i = 0; i < IMAGES; i++) {
        struct image *image = &machine.images[i];
        if (machine.found_images >> i & 1)
            continue;
        if (image->presence == THERE)
            machine_fail(WRONG_LOST, "an image is gone", image->name);
        image->presence = ABSENT;
    }
    for (unsigned i = BASES; i < DISKS; i++) {
        struct disk *disk = &machine.disks[i];
        if (machine.found_disks >> i & 1)
            continue;
        if (disk->presence == THERE)
            machine_fail(WRONG_LOST, "a clone is gone", disk->name);
        if (disk->presence == UNSURE)
            oracle_fini(&disk->oracle);
        disk->presence = ABSENT;
    }
}

void admin_open_disks(void) {
    struct gild_error error = {0};
    char path[16];
    bool writable;
    for (unsigned i = 0; i < DISKS; i++) {
        struct disk *disk = &machine.disks[i];
        disk->disk = NULL;
        disk->leaving = false;
        if (i >= BASES) {
            if (disk->presence == THERE)
                open_disk(disk);
            continue;
        }
        snprintf(path, sizeof path, "base/%u", i + 1);
        struct gild_disk_spec spec = {.path = path, .delta_id = i + 1};
        if (gild_disk_acquire(machine.store, &spec, "test", GILD_OPEN_WRITE, &disk->disk, &writable,
                              &error)) {
            disk->disk = NULL;
            machine_failed("a disk does not open", error.message);
        }
    }
}

void admin_close_disks(void) {
    for (unsigned i = 0; i < DISKS; i++) {
        if (machine.disks[i].disk)
            gild_disk_close(machine.disks[i].disk, "test", true);
        machine.disks[i].disk = NULL;
    }
}

/* ---- nothing is left over -------------------------------------------------------------------- */

struct folder {
    const char *path, *suffix;
    unsigned table, key_bytes;
    uint64_t files;
};

static void look_at_file(void *context, const char *name) {
    struct folder *folder = context;
    uint8_t key[8];
    char *end;
    uint64_t id = strtoull(name, &end, 16);
    for (unsigned i = 0; i < folder->key_bytes; i++)
        key[i] = (uint8_t)(id >> 8 * (folder->key_bytes - 1 - i));
    if (strcmp(end, folder->suffix) != 0 || !sim_kv_has(folder->table, key, folder->key_bytes)) {
        fprintf(stderr, "%s/%s belongs to nothing\n", folder->path, name);
        machine_fail(WRONG_OTHER, "after an orderly end", "a file is left over (D4)");
    }
    folder->files++;
}

static void expect(const char *what, uint64_t found_count, uint64_t wanted) {
    if (found_count == wanted)
        return;
    fprintf(stderr, "%s: %" PRIu64 ", should be %" PRIu64 "\n", what, found_count, wanted);
    machine_fail(WRONG_OTHER, "after an orderly end", "the catalogue and what was done differ");
}

/* The catalogue puts a check before each record. */
static void look_at_pack(void *context, const void *value, size_t length) {
    uint64_t *unnamed = context;
    struct gild_rec_pack record;
    if (length < 8 || gild_rec_pack_decode(&record, (const char *)value + 8, length - 8))
        machine_fail(WRONG_OTHER, "after an orderly end", "a pack's record is damaged");
    *unnamed += record.delta_refs == 0;
}

void admin_audit(void) {
    struct folder folders[] = {{"/store/maps", ".map", GILD_TABLE_MAPS, 8, 0},
                               {"/store/packs", ".pack", GILD_TABLE_PACKS, 4, 0},
                               {"/store/log", ".seg", GILD_TABLE_SEGMENTS, 8, 0}};
    uint64_t images = 0, clones = 0;
    for (unsigned i = 0; i < 3; i++) {
        sim_disk_list(folders[i].path, look_at_file, &folders[i]);
        expect(folders[i].path, folders[i].files, sim_kv_count(folders[i].table));
    }
    for (unsigned i = 0; i < IMAGES; i++)
        images += machine.images[i].presence == THERE;
    for (unsigned i = BASES; i < DISKS; i++)
        clones += machine.disks[i].presence == THERE;
    expect("image versions", sim_kv_count(GILD_TABLE_VERSIONS), images);
    expect("maps", sim_kv_count(GILD_TABLE_MAPS), images);
    expect("desktops", sim_kv_count(GILD_TABLE_DESKTOPS), clones);
    expect("deltas", sim_kv_count(GILD_TABLE_DELTAS), BASES + clones);
    expect("deleted deltas that were not freed", sim_kv_count(GILD_TABLE_DROPPED), 0);
    uint64_t unnamed = 0;
    sim_kv_each(GILD_TABLE_PACKS, look_at_pack, &unnamed);
    if (!images)
        expect("packs that nothing reaches", unnamed, 0);
}
