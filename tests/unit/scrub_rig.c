/* See scrub_rig.h. One thread; ends the program where it can not go on. */
#include "scrub_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/prng.h"
#include "io/file.h"
#include "pack/format.h"
#include "store_rig.h"
#include "vdi/vdi.h"

static const struct gild_store_options options = {
    .threads = 2, .cache_bytes = 16u << 20, .segment_blocks = 256, .no_cleaner = true};

static void must(bool good, const char *what, const struct gild_error *error) {
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    abort();
}

void scrub_rig_open(struct scrub_rig *rig) {
    struct gild_error error = {0};
    must(gild_store_open(rig->directory, &options, &rig->store, &error) == 0, "open", &error);
}

void scrub_rig_close(struct scrub_rig *rig) {
    store_rig_close(rig->store);
    rig->store = NULL;
}

void scrub_rig_import(struct scrub_rig *rig) {
    char path[128];
    struct gild_error error = {0};
    struct gild_image_info made;
    const struct gild_image_import request = {.name = "win", .source = path, .format = "raw"};
    snprintf(path, sizeof path, "%s.raw", rig->directory);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    must(gild_file_write(fd, rig->image, IMAGE_BLOCKS * 4096, 0) == 0, path, NULL);
    close(fd);
    must(gild_image_import(rig->store, &request, &made, &error) == 0, "import", &error);
    unlink(path);
}

static void make_desktop(struct scrub_rig *rig, const char *name) {
    struct gild_error error = {0};
    uint32_t made;
    const struct gild_desktop_create request = {
        .name = name, .image = "win@1", .size_bytes = (uint64_t)4096 * 4096};
    must(gild_desktop_create(rig->store, &request, &made, &error) == 0, "create", &error);
}

const uint8_t *scrub_rig_block(const struct scrub_rig *rig, uint64_t block) {
    return rig->image + block * 4096;
}

void scrub_rig_written(uint64_t block, uint8_t *bytes) {
    struct gild_prng prng;
    gild_prng_seed(&prng, block);
    gild_prng_fill(&prng, bytes, 4096);
}

void scrub_rig_begin(struct scrub_rig *rig) {
    struct gild_prng prng;
    uint8_t *bytes = gild_file_buffer(4096);
    gild_prng_seed(&prng, 77);
    rig->image = malloc(IMAGE_BLOCKS * 4096);
    gild_prng_fill(&prng, rig->image, IMAGE_BLOCKS * 4096);
    store_rig_make(rig->directory, (uint64_t)2 << 30);
    scrub_rig_open(rig);
    scrub_rig_import(rig);
    make_desktop(rig, "d1");
    make_desktop(rig, "d2");
    for (uint64_t block = WRITTEN_FIRST; block < WRITTEN_FIRST + WRITTEN; block++) {
        scrub_rig_written(block, bytes);
        scrub_rig_write(rig, "desktops/d1/os", block, bytes);
    }
    free(bytes);
    scrub_rig_close(rig);
    scrub_rig_open(rig);
}

void scrub_rig_end(struct scrub_rig *rig) {
    if (rig->store)
        scrub_rig_close(rig);
    store_rig_remove(rig->directory);
    free(rig->image);
}

/* ---- disks ----------------------------------------------------------------------------------- */

struct gild_disk *scrub_rig_disk(struct scrub_rig *rig, const char *path, unsigned flags) {
    struct gild_disk *disk;
    struct gild_error error = {0};
    bool writable;
    must(gild_disk_open(rig->store, path, "test", flags, &disk, &writable, &error) == 0, path,
         &error);
    return disk;
}

int scrub_rig_read(struct scrub_rig *rig, const char *path, uint64_t block) {
    uint8_t *bytes = gild_file_buffer(8192);
    struct gild_disk *disk = scrub_rig_disk(rig, path, 0);
    int err = store_rig_do(disk, GILD_OP_READ, block * 4096, 4096, bytes, 0);
    if (block < IMAGE_BLOCKS)
        memcpy(bytes + 4096, scrub_rig_block(rig, block), 4096);
    else
        scrub_rig_written(block, bytes + 4096);
    err = err ? err : memcmp(bytes, bytes + 4096, 4096) != 0;
    gild_disk_close(disk, "test", false);
    free(bytes);
    return err;
}

void scrub_rig_write(struct scrub_rig *rig, const char *path, uint64_t block, const void *bytes) {
    uint8_t *aligned = gild_file_buffer(4096);
    struct gild_disk *disk = scrub_rig_disk(rig, path, GILD_OPEN_WRITE);
    memcpy(aligned, bytes, 4096);
    must(store_rig_do(disk, GILD_OP_WRITE, block * 4096, 4096, aligned, 0) == 0, "write", NULL);
    gild_disk_close(disk, "test", true);
    free(aligned);
}

/* ---- rot ------------------------------------------------------------------------------------- */

static void flip(const char *path, uint64_t offset) {
    uint8_t bytes[16];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    must(fd >= 0 && gild_file_read(fd, bytes, sizeof bytes, offset) == 0, path, NULL);
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] ^= 0xa5;
    must(gild_file_write(fd, bytes, sizeof bytes, offset) == 0 && gild_file_sync(fd) == 0, path,
         NULL);
    close(fd);
}

static glob_t files_of(struct scrub_rig *rig, const char *folder, const char *suffix) {
    char pattern[128];
    glob_t files;
    snprintf(pattern, sizeof pattern, "%s/%s/*%s", rig->directory, folder, suffix);
    must(glob(pattern, 0, NULL, &files) == 0, pattern, NULL);
    return files;
}

unsigned scrub_rig_rot(struct scrub_rig *rig, const char *folder, const void *content) {
    glob_t files = files_of(rig, folder, "");
    unsigned found = 0;
    for (size_t i = 0; i < files.gl_pathc; i++) {
        void *bytes;
        size_t length;
        must(gild_file_slurp(AT_FDCWD, files.gl_pathv[i], (size_t)1 << 30, &bytes, &length) == 0,
             files.gl_pathv[i], NULL);
        const uint8_t *at = memmem(bytes, length, content, 4096);
        if (at)
            flip(files.gl_pathv[i], (uint64_t)(at - (uint8_t *)bytes) + 1000);
        found += at != NULL;
        free(bytes);
    }
    globfree(&files);
    return found;
}

void scrub_rig_rot_at(struct scrub_rig *rig, const char *folder, const char *suffix,
                      int64_t offset) {
    glob_t files = files_of(rig, folder, suffix);
    struct stat st;
    must(stat(files.gl_pathv[0], &st) == 0, "stat", NULL);
    flip(files.gl_pathv[0], (uint64_t)(offset < 0 ? st.st_size + offset : offset));
    globfree(&files);
}

void scrub_rig_rot_pack(struct scrub_rig *rig, enum scrub_rig_part part) {
    glob_t files = files_of(rig, "packs", ".pack");
    struct pack_footer footer;
    struct stat st;
    int fd = open(files.gl_pathv[0], O_RDONLY | O_CLOEXEC);
    must(fstat(fd, &st) == 0 &&
             gild_file_read(fd, &footer, sizeof footer, (uint64_t)st.st_size - 4096) == 0,
         "the footer", NULL);
    close(fd);
    const uint64_t offsets[] = {8, footer.table_offset + 300, footer.prints_offset + 300,
                                footer.index_offset + 8, (uint64_t)st.st_size - 4096 + 60};
    flip(files.gl_pathv[0], offsets[part]);
    globfree(&files);
}

uint64_t scrub_rig_bytes(struct scrub_rig *rig, const char *folder) {
    glob_t files = files_of(rig, folder, "");
    uint64_t bytes = 0;
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct stat st;
        must(stat(files.gl_pathv[i], &st) == 0, "stat", NULL);
        bytes += (uint64_t)st.st_size;
    }
    globfree(&files);
    return bytes;
}

/* ---- what is said ---------------------------------------------------------------------------- */

void scrub_rig_found(void *context, const struct gild_finding *finding) {
    struct scrub_said *said = context;
    size_t length = strlen(said->text);
    unsigned *count = strcmp(finding->kind, "lost") == 0       ? &said->lost
                      : strcmp(finding->kind, "damaged") == 0  ? &said->damaged
                      : strcmp(finding->kind, "repaired") == 0 ? &said->repaired
                                                               : &said->other;
    ++*count;
    snprintf(said->text + length, sizeof said->text - length, "%s: %s: %s\n", finding->object,
             finding->kind, finding->message);
}

static struct scrub_said scrub(struct scrub_rig *rig, bool dry_run) {
    struct scrub_said said = {0};
    const struct gild_scrub_options how = {
        .dry_run = dry_run, .found = scrub_rig_found, .context = &said};
    said.result = gild_store_scrub(rig->store, &how, &said.counts, &said.error);
    return said;
}

struct scrub_said scrub_rig_scrub(struct scrub_rig *rig) {
    return scrub(rig, false);
}

struct scrub_said scrub_rig_look(struct scrub_rig *rig) {
    return scrub(rig, true);
}

struct scrub_said scrub_rig_check(struct scrub_rig *rig) {
    struct scrub_said said = {0};
    struct gild_check_result counts;
    said.result = gild_store_check(rig->store, scrub_rig_found, &said, &counts, &said.error);
    return said;
}
