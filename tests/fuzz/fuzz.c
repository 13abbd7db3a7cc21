/* See fuzz.h. One thread. Any failure of the machine itself (no folder, no memory) aborts. */
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

#define PAGE 4096u

static char folder[64];

_Noreturn void fuzz_broken(const char *what, const char *file, int line) {
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

static void remove_tree(const char *path) {
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char name[512];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (unlink(name) != 0)
            remove_tree(name);
    }
    if (directory)
        closedir(directory);
    rmdir(path);
}

static void remove_folder(void) {
    remove_tree(folder);
}

const char *fuzz_folder(void) {
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "%s/gild-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        FUZZ_MUST(mkdtemp(folder));
        atexit(remove_folder);
        gild_log_set_level(GILD_LOG_ERROR);
    }
    return folder;
}

static void reserve(struct fuzz_object *object, size_t room) {
    if (room <= object->room)
        return;
    object->bytes = realloc(object->bytes, room);
    FUZZ_MUST(object->bytes);
    object->room = room;
}

void fuzz_load(const char *path, struct fuzz_object *object) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    FUZZ_MUST(fd >= 0 && fstat(fd, &status) == 0);
    reserve(object, (size_t)status.st_size + 1);
    object->length = (size_t)status.st_size;
    FUZZ_MUST(pread(fd, object->bytes, object->length, 0) == status.st_size);
    close(fd);
}

void fuzz_store(const char *path, const struct fuzz_object *object) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_MUST(fd >= 0);
    FUZZ_MUST(pwrite(fd, object->bytes, object->length, 0) == (ssize_t)object->length);
    close(fd);
}

void fuzz_must_hold(const char *path, const struct fuzz_object *object) {
    static struct fuzz_object now;
    fuzz_load(path, &now);
    FUZZ_MUST(now.length == object->length);
    FUZZ_MUST(memcmp(now.bytes, object->bytes, now.length) == 0);
}

/* memcpy is checked by the range, which is a hundred times as fast as byte by byte. */
void fuzz_touch(const void *bytes, size_t length) {
    static uint8_t copy[64 << 10];
    for (size_t at = 0, step; at < length; at += step) {
        step = length - at < sizeof copy ? length - at : sizeof copy;
        memcpy(copy, (const uint8_t *)bytes + at, step);
    }
}

/* ---- edits ----------------------------------------------------------------------------------- */

enum what { SET_8, SET_16, SET_32, SET_64, ADD_64, FLIP, COPY_PAGE, RESIZE };

static const uint8_t value_bytes[] = {1, 2, 4, 8, 1, 1, 1, 2};

static void edit(struct fuzz_object *object, enum what what, size_t at, uint64_t value) {
    uint64_t old = 0;
    size_t width = what == ADD_64 ? 8 : value_bytes[what], rest = object->length - at;
    uint8_t *bytes = object->bytes + at;
    switch (what) {
    case COPY_PAGE: { /* of the object, to where `at` lies */
        size_t pages = object->length / PAGE;
        if (pages)
            memmove(object->bytes + at / PAGE % pages * PAGE, object->bytes + value % pages * PAGE,
                    PAGE);
        return;
    }
    case RESIZE: { /* by pages and bytes, up to two pages longer */
        size_t length = value & 1 ? at : at / PAGE * PAGE;
        if (value & 2) {
            size_t more = value & 1 ? value >> 2 & (PAGE - 1) : (1 + (value >> 2 & 1)) * PAGE;
            memset(object->bytes + object->length, (int)(value >> 8), more);
            length = object->length + more;
        }
        object->length = length;
        return;
    }
    case ADD_64:
        memcpy(&old, bytes, rest < width ? rest : width);
        value = old + (uint64_t)(int64_t)(int8_t)value;
        break;
    case FLIP:
        value = *bytes ^ 1u << value % 8;
        break;
    default:
        break;
    }
    memcpy(bytes, &value, rest < width ? rest : width);
}

struct fuzz_object *fuzz_edit(const struct fuzz_object *valid, const uint8_t *data, size_t size) {
    static struct fuzz_object object;
    size_t at = 1;
    reserve(&object, valid->length + 64 * 2 * PAGE);
    memcpy(object.bytes, valid->bytes, valid->length);
    object.length = valid->length;
    for (unsigned n = 0; n < 64 && at + 3 < size && object.length; n++) {
        enum what what = data[at] & 7;
        size_t offset = (size_t)(data[at] >> 3) * PAGE + (data[at + 1] | data[at + 2] << 8) % PAGE;
        uint64_t value = 0;
        at += 3;
        for (size_t i = 0; i < value_bytes[what] && at < size; i++)
            value |= (uint64_t)data[at++] << 8 * i;
        edit(&object, what, offset % object.length, value);
    }
    return &object;
}
