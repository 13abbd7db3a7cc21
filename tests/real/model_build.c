/* One legal state of the model made a folder (model.h), and the hash of a folder's state.
 *
 * Pages of zeroes are left as holes: most of a store's log is zeroes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/prng.h"
#include "model_own.h"

#define NEVER (-1)

static uint64_t mixed(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t state = a ^ b * UINT64_C(0x9e3779b97f4a7c15) ^ c * UINT64_C(0xc2b2ae3d27d4eb4f);
    gild_splitmix64(&state);
    return gild_splitmix64(&state);
}

/* Is this part of the change there? part: number of the page or sector, or what else it is about.
 */
static bool is_there(const struct model_choice *choice, uint64_t at, uint64_t part) {
    switch (choice->mode) {
    case MODEL_NONE:
        return false;
    case MODEL_ALL:
        return true;
    case MODEL_UNTIL:
        return at < choice->ref;
    case MODEL_ONLY:
        return at == choice->ref;
    case MODEL_ALL_BUT:
        return at != choice->ref;
    case MODEL_SOME:
        return mixed(choice->seed, at, 0) & 1;
    case MODEL_TORN_PAGES:
        return mixed(choice->seed, at, part / (MODEL_PAGE / MODEL_SECTOR)) & 1;
    case MODEL_TORN_SECTORS:
        return mixed(choice->seed, at, part) & 1;
    }
    return false;
}

/* ---- one file -------------------------------------------------------------------------------- */

struct building {
    struct model *model;
    const struct model_choice *choice;
    uint64_t hash;
};

/* The last change of size that is there: those before it are implied. */
static uint64_t size_of(const struct building *building, const struct model_file *file,
                        int *last_size) {
    uint64_t size = file->size;
    *last_size = NEVER;
    for (size_t i = 0; i < file->change_count; i++)
        if (is_there(building->choice, file->changes[i].at, UINT64_MAX))
            *last_size = (int)i;
    for (int i = 0; i <= *last_size; i++)
        size = model_size_after(file->changes[i].event, size);
    return size;
}

/* last[sector - first]: the last write of the sector that is there. */
struct span {
    uint64_t first, count; /* sectors */
    int *last;
};

static struct span find_last(const struct building *building, const struct model_file *file) {
    struct span span = {.first = UINT64_MAX};
    uint64_t end = 0;
    for (size_t i = 0; i < file->change_count; i++) {
        const struct trace_event *event = file->changes[i].event;
        if (event->kind != TRACE_WRITE || !event->length)
            continue;
        uint64_t first = event->offset / MODEL_SECTOR;
        uint64_t last = (event->offset + event->length - 1) / MODEL_SECTOR;
        span.first = first < span.first ? first : span.first;
        end = last + 1 > end ? last + 1 : end;
    }
    if (!end)
        return span;
    span.count = end - span.first;
    span.last = malloc(span.count * sizeof *span.last);
    if (!span.last)
        abort();
    for (uint64_t i = 0; i < span.count; i++)
        span.last[i] = NEVER;
    for (size_t i = 0; i < file->change_count; i++) {
        const struct trace_event *event = file->changes[i].event;
        if (event->kind != TRACE_WRITE || !event->length)
            continue;
        uint64_t last = (event->offset + event->length - 1) / MODEL_SECTOR;
        for (uint64_t sector = event->offset / MODEL_SECTOR; sector <= last; sector++)
            if (is_there(building->choice, file->changes[i].at, sector))
                span.last[sector - span.first] = (int)i;
    }
    return span;
}

/* The bytes of one page: what is durable, and over it what is there of the changes. */
static void fill_page(const struct model_file *file, const struct span *span, int last_size,
                      uint64_t page, uint8_t bytes[MODEL_PAGE]) {
    uint64_t begin = page * MODEL_PAGE;
    if (page < file->page_count && file->pages[page])
        memcpy(bytes, file->pages[page], MODEL_PAGE);
    else
        memset(bytes, 0, MODEL_PAGE);
    for (size_t i = 0; i < file->change_count; i++) {
        const struct trace_event *event = file->changes[i].event;
        if (event->kind == TRACE_SIZE && (int)i <= last_size &&
            event->length < begin + MODEL_PAGE) {
            uint64_t from = event->length > begin ? event->length - begin : 0;
            memset(bytes + from, 0, MODEL_PAGE - from);
        }
        if (event->kind != TRACE_WRITE || event->offset >= begin + MODEL_PAGE ||
            event->offset + event->length <= begin)
            continue;
        for (uint64_t sector = begin / MODEL_SECTOR; sector < (begin + MODEL_PAGE) / MODEL_SECTOR;
             sector++) {
            uint64_t from = sector * MODEL_SECTOR, to = from + MODEL_SECTOR;
            uint64_t end = event->offset + event->length;
            if (from < event->offset)
                from = event->offset;
            if (to > end)
                to = end;
            if (from >= to || span->last[sector - span->first] < (int)i)
                continue;
            if (event->flags & TRACE_ZEROES)
                memset(bytes + (from - begin), 0, to - from);
            else
                memcpy(bytes + (from - begin), event->payload + (from - event->offset), to - from);
        }
    }
}

static bool is_zero(const uint8_t bytes[MODEL_PAGE]) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, MODEL_PAGE - 1) == 0;
}

static void add_page(uint64_t *hash, uint64_t page, const uint8_t *bytes, uint64_t length) {
    *hash = XXH3_64bits_withSeed(bytes, length, *hash ^ page);
}

static bool touched(const struct span *span, uint64_t page) {
    uint64_t first = page * (MODEL_PAGE / MODEL_SECTOR);
    return span->count && first < span->first + span->count &&
           span->first < first + MODEL_PAGE / MODEL_SECTOR;
}

static int build_file(struct building *building, struct model_file *file, int fd, bool counts,
                      uint64_t *hash) {
    uint8_t bytes[MODEL_PAGE];
    int last_size, result = 0;
    uint64_t size = size_of(building, file, &last_size);
    struct span span = find_last(building, file);
    *hash ^= size;
    if (ftruncate(fd, (off_t)size))
        result = -errno;
    for (uint64_t page = 0; page * MODEL_PAGE < size && !result; page++) {
        uint64_t left = size - page * MODEL_PAGE;
        bool known = page < file->page_count && file->pages[page];
        if (!known && !touched(&span, page))
            continue;
        fill_page(file, &span, last_size, page, bytes);
        uint64_t length = left < MODEL_PAGE ? left : MODEL_PAGE;
        memset(bytes + length, 0, MODEL_PAGE - length);
        if (is_zero(bytes))
            continue;
        if (counts)
            add_page(hash, page, bytes, MODEL_PAGE);
        if (pwrite(fd, bytes, length, (off_t)(page * MODEL_PAGE)) != (ssize_t)length)
            result = -EIO;
    }
    free(span.last);
    return result;
}

/* ---- folders --------------------------------------------------------------------------------- */

/* LMDB makes its lock file anew when nobody else has it open, and sockets say nothing. */
static bool name_counts(const char *name) {
    return strcmp(name, "lock.mdb") != 0;
}

static uint64_t hash_of_name(const char *path) {
    return XXH3_64bits(path, strlen(path));
}

static int build_folder(struct building *building, struct model_file *folder, const char *path,
                        size_t root_length) {
    struct model_names names = {0};
    int result = 0;
    names.list = calloc(folder->names.count + folder->change_count + 1, sizeof *names.list);
    if (!names.list)
        abort();
    names.room = folder->names.count + folder->change_count + 1;
    for (; names.count < folder->names.count; names.count++)
        names.list[names.count] = folder->names.list[names.count];
    for (size_t i = 0; i < folder->change_count; i++)
        if (is_there(building->choice, folder->changes[i].at, UINT64_MAX))
            model_apply_name(&names, &folder->changes[i]);
    for (size_t i = 0; i < names.count && !result; i++) {
        char child[1024];
        snprintf(child, sizeof child, "%s/%s", path, names.list[i].name);
        uint64_t hash = hash_of_name(child + root_length);
        struct model_file *file = names.list[i].file;
        if (file->is_folder) {
            result = mkdir(child, 0700) ? -errno : build_folder(building, file, child, root_length);
        } else {
            int fd = open(child, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            result = fd < 0
                         ? -errno
                         : build_file(building, file, fd, name_counts(names.list[i].name), &hash);
            if (fd >= 0)
                close(fd);
        }
        if (name_counts(names.list[i].name))
            building->hash += mixed(hash, 0, 0); /* in any order */
    }
    free(names.list);
    return result;
}

int model_build(struct model *model, const struct model_choice *choice, const char *folder,
                uint64_t *hash) {
    struct building building = {.model = model, .choice = choice};
    int result = build_folder(&building, model->root, folder, strlen(folder));
    *hash = building.hash;
    return result;
}

/* ---- what is really there -------------------------------------------------------------------- */

static int hash_file(const char *path, uint64_t *hash) {
    uint8_t bytes[MODEL_PAGE];
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC), result = 0;
    if (fd < 0 || fstat(fd, &status))
        result = -errno;
    else
        *hash ^= (uint64_t)status.st_size;
    for (uint64_t page = 0; !result; page++) {
        ssize_t length = pread(fd, bytes, MODEL_PAGE, (off_t)(page * MODEL_PAGE));
        if (length <= 0) {
            result = length < 0 ? -errno : 0;
            break;
        }
        memset(bytes + length, 0, MODEL_PAGE - (size_t)length);
        if (!is_zero(bytes))
            add_page(hash, page, bytes, MODEL_PAGE);
    }
    if (fd >= 0)
        close(fd);
    return result;
}

static int hash_folder(const char *path, size_t root_length, uint64_t *sum) {
    DIR *stream = opendir(path);
    struct dirent *entry;
    int result = stream ? 0 : -errno;
    while (stream && !result && (entry = readdir(stream))) {
        char child[1024];
        struct stat status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            !name_counts(entry->d_name))
            continue;
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        uint64_t hash = hash_of_name(child + root_length);
        if (lstat(child, &status))
            result = -errno;
        else if (S_ISDIR(status.st_mode))
            result = hash_folder(child, root_length, sum);
        else if (S_ISREG(status.st_mode))
            result = hash_file(child, &hash);
        else
            continue;
        *sum += mixed(hash, 0, 0);
    }
    if (stream)
        closedir(stream);
    return result;
}

int model_hash_of(const char *folder, uint64_t *hash) {
    *hash = 0;
    return hash_folder(folder, strlen(folder), hash);
}
