/* See cuts.h: what a repair has set aside is found again, whatever it is called. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "cuts.h"

#define MOST_BYTES (16 << 20) /* larger are only the segments that a repair gets ready */

static void fatal(const char *path) {
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    exit(1);
}

static uint64_t hash_of(const char *path, size_t length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *bytes = length ? mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (fd < 0 || bytes == MAP_FAILED)
        fatal(path);
    uint64_t hash = XXH3_64bits_withSeed(bytes, length, length);
    if (length)
        munmap(bytes, length);
    close(fd);
    return hash;
}

static void read_folder(struct contents *contents, const char *folder, size_t root_length) {
    DIR *stream = opendir(folder);
    struct dirent *entry;
    if (!stream)
        fatal(folder);
    while ((entry = readdir(stream))) {
        char path[1024];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            !strcmp(entry->d_name, "lock.mdb"))
            continue;
        if (lstat(path, &status))
            fatal(path);
        if (S_ISDIR(status.st_mode))
            read_folder(contents, path, root_length);
        if (!S_ISREG(status.st_mode) || status.st_size > MOST_BYTES)
            continue;
        if (contents->count == contents->room) {
            contents->room = contents->room ? 2 * contents->room : 64;
            contents->list = realloc(contents->list, contents->room * sizeof *contents->list);
            if (!contents->list)
                abort();
        }
        contents->list[contents->count++] =
            (struct content){strdup(path + root_length), hash_of(path, (size_t)status.st_size)};
    }
    closedir(stream);
}

void contents_read(struct contents *contents, const char *folder) {
    *contents = (struct contents){0};
    read_folder(contents, folder, strlen(folder));
}

void contents_free(struct contents *contents) {
    for (size_t i = 0; i < contents->count; i++)
        free(contents->list[i].path);
    free(contents->list);
}

static bool has(const struct contents *contents, uint64_t hash, const char *path) {
    for (size_t i = 0; i < contents->count; i++)
        if (contents->list[i].hash == hash && (!path || !strcmp(contents->list[i].path, path)))
            return true;
    return false;
}

void contents_moved(struct contents *contents, const struct contents *after) {
    size_t kept = 0;
    for (size_t i = 0; i < contents->count; i++) {
        struct content *one = &contents->list[i];
        if (has(after, one->hash, NULL) && !has(after, one->hash, one->path))
            contents->list[kept++] = *one;
        else
            free(one->path);
    }
    contents->count = kept;
}

const char *contents_missing(const struct contents *contents, const struct contents *there) {
    for (size_t i = 0; i < contents->count; i++)
        if (!has(there, contents->list[i].hash, NULL))
            return contents->list[i].path;
    return NULL;
}
