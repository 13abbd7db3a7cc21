/* `gild store check --repair`: a store that is refused, or in which a check finds damage, becomes
 * one that opens. See gild/store.h for what it promises, repair.h for its parts.
 *
 *   look:   superblock -> catalogue -> packs -> segments -> sealed maps -> counts -> log's tail ->
 * list repair: the same steps, each setting right what it finds, then orphans -> replay, checkpoint
 * -> what is rotten becomes LOST, checkpoint -> list
 *
 * A repair looks first, and changes nothing if there is nothing to do. It never guesses: what has
 * no whole copy is marked as lost (a place of type LOST, a quarantined disk), and damaged files are
 * kept in STORE/lost+found. Every step may be broken off at any point: what it had not finished is
 * found again. One thread, blocking; no reactor runs before the store is as it shall be. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "disk/repair.h"
#include "io/file.h"

int repair_fail(struct gild_store *store, int err, const char *what, struct gild_error *error) {
    if (error && error->code)
        return err; /* said already, and better */
    return gild_fail(error, gild_code_of_errno(-err), -err,
                     "the repair of store %s was broken off: %s: %s", store->directory, what,
                     strerror(-err));
}

/* ---- lost+found -------------------------------------------------------------------------------
 */

static int sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = fd < 0 ? -errno : gild_file_sync_folder(fd);
    if (fd >= 0)
        close(fd);
    return err;
}

int repair_set_aside(struct gild_store *store, const char *folder, const char *name,
                     struct gild_error *error) {
    char from[4096], aside[4096], to[4096 + 300], path[4096 + 300];
    struct stat st;
    store_path(store, folder, from);
    store_path(store, "lost+found", aside);
    snprintf(path, sizeof path, "%s/%s", from, name);
    if (lstat(path, &st) != 0 && errno == ENOENT)
        return 0;
    int err = gild_file_make_folder(aside);
    for (unsigned n = 0; !err; n++) {
        snprintf(to, sizeof to, n ? "%s/%s.%u" : "%s/%s", aside, name, n);
        if (lstat(to, &st) != 0)
            break;
    }
    if (!err && rename(path, to) != 0)
        err = -errno;
    if (!err)
        err = sync_folder(aside);
    if (!err)
        err = sync_folder(from);
    return err ? repair_fail(store, err, "a file can not be moved to lost+found", error) : 0;
}

/* Where the catalogue has lost its last changes, a file that it does not know may be all that is
 * left of something. */
int repair_orphans(struct gild_store *store, struct gild_error *error) {
    static const struct {
        enum gild_table table;
        const char *folder, *suffix;
    } kinds[] = {{GILD_TABLE_MAPS, "maps", ".map"},
                 {GILD_TABLE_PACKS, "packs", ".pack"},
                 {GILD_TABLE_SEGMENTS, "log", ".seg"}};
    int err = 0;
    for (unsigned i = 0; i < 3 && !err && store->repair->lost_transactions; i++) {
        struct ids ids = {0};
        char path[4096], *end;
        store_path(store, kinds[i].folder, path);
        err = ids_read(store, kinds[i].table, &ids);
        DIR *dir = err ? NULL : opendir(path);
        struct dirent *entry;
        while (!err && dir && (entry = readdir(dir))) {
            uint64_t id = strtoull(entry->d_name, &end, 16);
            if (strcmp(end, kinds[i].suffix) != 0 || ids_have(&ids, id))
                continue;
            repair_say(store->repair,
                       "%s/%s, which the catalogue does not know, is moved to "
                       "lost+found",
                       kinds[i].folder, entry->d_name);
            err = repair_set_aside(store, kinds[i].folder, entry->d_name, error);
        }
        if (dir)
            closedir(dir);
        free(ids.id);
    }
    return err ? repair_fail(store, err, "files can not be listed", error) : 0;
}

/* ---- superblock -------------------------------------------------------------------------------
 */

/* Does any segment of the store carry this id? True also if there is none to ask. */
static bool id_fits(const char *directory, const uint8_t id[16]) {
    char path[4096];
    struct gild_segment_header *header = gild_file_buffer(GILD_LOG_BLOCK);
    bool any = false, fits = false;
    snprintf(path, sizeof path, "%s/log", directory);
    DIR *dir = header ? opendir(path) : NULL;
    struct dirent *entry;
    while (dir && !fits && (entry = readdir(dir))) {
        uint64_t serial = strtoull(entry->d_name, NULL, 16);
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && gild_file_read(fd, header, GILD_LOG_BLOCK, 0) == 0 &&
            header->magic == GILD_SEGMENT_MAGIC) {
            any = true;
            fits = gild_segment_header_verify(header, id, serial) == 0;
        }
        if (fd >= 0)
            close(fd);
    }
    if (dir)
        closedir(dir);
    free(header);
    return fits || !any;
}

static int restore_superblock(struct repair *repair, const char *directory,
                              struct superblock *block, int lock_fd, struct gild_error *error) {
    char journal[4096];
    struct gild_error why = {0};
    memset(block, 0, sizeof *block);
    snprintf(journal, sizeof journal, "%s/journal", directory);
    int err = gild_catalog_read_note(journal, (void *)block);
    if (err || superblock_judge(block, directory, &why))
        return gild_fail(
            error, why.err == ENOTSUP ? GILD_FAILED : GILD_CORRUPT,
            why.err == ENOTSUP ? ENOTSUP : EBADMSG,
            "the superblock of %s is missing or damaged, and the catalogue's journal has "
            "no whole copy of it: check the path, or restore the store from a backup",
            directory);
    if (!id_fits(directory, block->id))
        return gild_fail(
            error, GILD_CORRUPT, EBADMSG,
            "the superblock of %s is damaged, and the copy in the catalogue's journal is "
            "of another store than the log: restore the store from a backup",
            directory);
    repair_say(repair, "the superblock is written anew from its copy in the catalogue's journal");
    err = repair->dry_run ? 0 : superblock_restore(lock_fd, block);
    if (!err && !repair->dry_run)
        err = sync_folder(directory);
    return err ? gild_fail(error, gild_code_of_errno(-err), -err,
                           "the superblock of %s can not be written: %s", directory, strerror(-err))
               : 0;
}

int repair_superblock(struct repair *repair, const char *directory, struct superblock *block,
                      int *lock_fd, struct gild_error *error) {
    struct gild_error why = {0};
    char path[4096];
    struct stat st = {0};
    snprintf(path, sizeof path, "%s/journal", directory);
    if (stat(path, &st) != 0) {
        /* Nothing to make it from: as in any open, and no file is made where there is no store. */
        return superblock_open(directory, block, lock_fd, error);
    }
    int err = superblock_lock(directory, repair->dry_run, block, lock_fd, error);
    if (err)
        return err;
    if (superblock_judge(block, directory, &why)) {
        if (why.err == ENOTSUP) {
            *error = why;
            err = -ENOTSUP;
        } else {
            err = restore_superblock(repair, directory, block, *lock_fd, error);
        }
    }
    if (err && *lock_fd >= 0)
        close(*lock_fd);
    return err;
}

/* ---- catalogue ----------------------------------------------------------------------
 */

int repair_catalogue(struct gild_store *store, const char *folder,
                     const struct gild_catalog_options *options, struct gild_error *error) {
    struct repair *repair = store->repair;
    struct gild_catalog_rebuilt rebuilt;
    struct gild_error why = {0};
    int err = gild_catalog_verify(folder, options, &why);
    if (!err)
        return 0;
    if (why.code != GILD_CORRUPT) {
        *error = why;
        return err;
    }
    if (repair->dry_run) {
        repair_say(repair,
                   "the catalogue, which is damaged or missing, is made again from its "
                   "journal; what else is damaged is seen only then");
        repair->stop = true;
        return 0;
    }
    err = gild_catalog_rebuild(folder, options, &rebuilt, error);
    if (err)
        return err;
    repair->rebuilt = true;
    repair_say(repair,
               "the catalogue is made again from its journal: %" PRIu64
               " records as of transaction %" PRIu64,
               rebuilt.records, rebuilt.transaction);
    return 0;
}

/* ---- the steps --------------------------------------------------------------------------------
 */

/* Of this rebuild, or of one in a repair that was broken off. */
static int lost_transactions(struct gild_store *store) {
    struct repair *repair = store->repair;
    int err = gild_catalog_lost(store->catalog, &repair->lost_transactions);
    if (!err && repair->lost_transactions && !repair->rebuilt)
        repair_say(repair,
                   "a repair that made the catalogue again was broken off before it was known what "
                   "the loss of %" PRIu64 " transactions means: it is gone on with",
                   repair->lost_transactions);
    return err;
}

int repair_look(struct gild_store *store, struct gild_error *error) {
    int err = lost_transactions(store);
    if (!err)
        err = repair_names(store);
    if (err)
        return repair_fail(store, err, "the names of disks can not be read", error);
    err = repair_segments(store, error);
    if (!err)
        err = repair_packs(store, error);
    if (!err)
        err = repair_maps(store, error);
    if (!err)
        err = repair_counts(store, error);
    if (!err)
        err = repair_tail(store, error);
    if (!err && store->repair->dry_run)
        err = repair_list(store, error);
    store->repair->stop = store->repair->dry_run;
    return err;
}

int repair_fix(struct gild_store *store, struct gild_error *error) {
    int err = repair_deltas(store, error);
    if (!err)
        err = repair_list(store, error);
    if (err || !store->repair->lost_transactions)
        return err;
    err = gild_catalog_lost_settled(store->catalog);
    return err ? repair_fail(store, err, "its end can not be recorded", error) : 0;
}

/* ---- the whole --------------------------------------------------------------------------------
 */

static int look(const char *directory, const struct gild_repair_report *report,
                struct gild_repair_result *result, uint64_t *to_do, struct gild_error *error) {
    const struct gild_store_options options = {.offline = true};
    struct repair repair = {.dry_run = true, .report = report, .result = result};
    struct gild_store *store;
    int err = store_open(directory, &options, &repair, &store, error);
    if (!err)
        store_free(store);
    *to_do = repair.to_do;
    repair_free(&repair);
    return err;
}

int gild_store_repair(const char *directory, bool dry_run, const struct gild_repair_report *report,
                      struct gild_repair_result *result, struct gild_error *error) {
    static const struct gild_repair_report silent = {0};
    const struct gild_store_options options = {.offline = true};
    struct repair repair = {.report = report, .result = result};
    struct gild_store *store;
    uint64_t to_do;
    *result = (struct gild_repair_result){0};
    int err = look(directory, dry_run ? report : &silent, result, &to_do, error);
    if (err || dry_run)
        return err;
    if (!to_do) { /* but what was lost before is told */
        *result = (struct gild_repair_result){0};
        return look(directory, report, result, &to_do, error);
    }
    *result = (struct gild_repair_result){0};
    err = store_open(directory, &options, &repair, &store, error);
    if (!err) {
        store->repair = NULL;
        err = gild_store_close(store, error);
    }
    repair_free(&repair);
    return err;
}
