/* The check of files and numbers: what lies in the store's folders that the catalogue does not know
 * (a leak), and numbers that were given to something though their counter has not reached them
 * (they would be given again). See check.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "disk/check.h"
#include "io/file.h"

/* A file is made before the catalogue knows it; one that nobody has written for so long is none
 * that is being made. */
#define SETTLED_S 60

struct folder_check {
    struct check *check;
    const char *folder, *suffix;
    const struct ids *ids;
    int fd;
    struct timespec now;
};

static int check_file(void *context, const char *name) {
    struct folder_check *pass = context;
    struct stat status;
    char *end, object[CHECK_OBJECT_BYTES];
    uint64_t id = strtoull(name, &end, 16);
    if (name[0] == '.' ||
        (end != name && strcmp(end, pass->suffix) == 0 && ids_have(pass->ids, id)))
        return 0;
    if (fstatat(pass->fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0 ||
        pass->now.tv_sec - status.st_mtim.tv_sec < SETTLED_S)
        return 0;
    /* A segment that the catalogue has just forgotten keeps its file while a check runs, or until
     * it is written anew: that may have been done since the file was looked at. */
    if (pass->ids == &pass->check->segments &&
        (gild_segments_own(pass->check->store->segments, id) ||
         fstatat(pass->fd, name, &status, AT_SYMLINK_NOFOLLOW) != 0))
        return 0;
    snprintf(object, sizeof object, "file %s/%.100s", pass->folder, name);
    findings_add(&pass->check->findings, object, "orphan", NULL,
                 "nothing refers to the %s, which takes %" PRIu64
                 " bytes; the next start of the store removes it",
                 object, (uint64_t)status.st_blocks * 512);
    return 0;
}

int check_files(struct check *check) {
    const struct {
        const char *folder, *suffix;
        const struct ids *ids;
    } folders[] = {{"maps", ".map", &check->maps},
                   {"packs", ".pack", &check->packs},
                   {"log", ".seg", &check->segments}};
    int err = 0;
    for (unsigned i = 0; i < 3 && !err; i++) {
        char path[4096];
        struct folder_check pass = {check, folders[i].folder, folders[i].suffix, folders[i].ids, -1,
                                    {0}};
        /* Those of an import that runs are its own. */
        if (i < 2 && atomic_load(&check->store->ingests))
            continue;
        store_path(check->store, pass.folder, path);
        clock_gettime(CLOCK_REALTIME, &pass.now);
        pass.fd = gild_file_open(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0, NULL);
        err = pass.fd < 0 ? pass.fd : gild_file_list(pass.fd, check_file, &pass);
        if (pass.fd >= 0)
            close(pass.fd);
    }
    return err;
}

int check_counters(struct check *check) {
    const struct {
        const char *name;
        const struct ids *ids;
    } kinds[] = {{"map", &check->maps},
                 {"pack", &check->packs},
                 {"delta", &check->deltas},
                 {"delta", &check->dropped},
                 {"segment", &check->segments}};
    int err = 0;
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0] && !err; i++) {
        const struct ids *ids = kinds[i].ids;
        uint64_t last = 0;
        err = gild_txn_last_id(check->txn, kinds[i].name, &last);
        /* 0: the store never numbered any; what is there was made by other hands. */
        if (err || !last || !ids->count || ids->id[ids->count - 1] <= last)
            continue;
        findings_add(&check->findings, "store", "count", NULL,
                     "there is a %s %" PRIu64 ", but the highest number that was given is %" PRIu64,
                     kinds[i].name, ids->id[ids->count - 1], last);
    }
    return err;
}
