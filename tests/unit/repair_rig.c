/* See repair_rig.h. Blocks carry desktop, number and generation; images are random bytes by seed.
 */
#include "repair_rig.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "disk/store.h"
#include "disk/superblock.h"
#include "gild/disk.h"
#include "io/file.h"
#include "log/format.h"
#include "map/format.h"
#include "store_rig.h"
#include "vdi/vdi.h"

#define AT_ONCE 64u /* blocks of a read */

const uint32_t rig_windows[3][2] = {{0, 700}, {3000, 160}, {161280, 400}};
uint64_t rig_seed;

static char template[64]; /* a folder with the stores "clean" and "killed" */
static uint8_t *image_bytes[RIG_IMAGES];
static uint64_t deltas[RIG_DESKTOPS], maps[RIG_IMAGES];
/* Generations by block: 0 never written; as of the checkpoint, and of the end. */
static uint8_t *settled[RIG_DESKTOPS], *latest[RIG_DESKTOPS];

/* No cleaner: what the tests harm must stay where they looked it up, and the tail be theirs. */
static const struct gild_store_options options = {
    .threads = 2, .cache_bytes = 16u << 20, .segment_blocks = 256, .no_cleaner = true};

static void must(bool good, const char *what, const struct gild_error *error) {
    if (good)
        return;
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    abort();
}

void rig_must(bool good, const char *what) {
    must(good, what, NULL);
}

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...) {
    char command[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    must(system(command) == 0, command, NULL);
}

static void make_folder(char path[64]) {
    const char *base = getenv("TMPDIR");
    if (!base || !*base) /* hundreds of stores: in memory if there is a place for it */
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/var/tmp";
    snprintf(path, 64, "%.40s/gild-test-XXXXXX", base);
    must(mkdtemp(path) != NULL, "mkdtemp", NULL);
}

/* ---- the template ------------------------------------------------------------------------------
 */

static void block_content(unsigned desktop, uint64_t block, uint8_t generation, uint8_t *bytes) {
    uint64_t words[3] = {desktop + 1, block, generation};
    for (unsigned at = 0; at + sizeof words <= 4096; at += sizeof words)
        memcpy(bytes + at, words, sizeof words);
    memset(bytes + 4080, (int)generation, 16);
}

static void make_image(struct gild_store *store, unsigned image) {
    char path[128];
    struct gild_error error = {0};
    struct gild_image_info made;
    struct gild_image_import request = {.name = "win", .source = path, .format = "raw"};
    struct gild_prng prng;
    gild_prng_seed(&prng, rig_seed + image);
    image_bytes[image] = malloc(RIG_IMAGE_BLOCKS * 4096);
    gild_prng_fill(&prng, image_bytes[image], RIG_IMAGE_BLOCKS * 4096);
    snprintf(path, sizeof path, "%s/source.raw", template);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    must(gild_file_write(fd, image_bytes[image], RIG_IMAGE_BLOCKS * 4096, 0) == 0, path, NULL);
    close(fd);
    must(gild_image_import(store, &request, &made, &error) == 0, "import", &error);
    unlink(path);
    maps[image] = made.record.map_id;
}

static unsigned image_of(unsigned desktop) {
    return desktop < 4 ? 0 : 1;
}

static void make_desktop(struct gild_store *store, unsigned desktop) {
    char name[16];
    struct gild_error error = {0};
    struct gild_desktop_info info;
    uint32_t made;
    snprintf(name, sizeof name, "d%u", desktop + 1);
    struct gild_desktop_create request = {.name = name,
                                          .image = image_of(desktop) ? "win@2" : "win@1",
                                          .size_bytes = (uint64_t)RIG_DISK_BLOCKS * 4096};
    must(gild_desktop_create(store, &request, &made, &error) == 0, "create", &error);
    must(gild_desktop_show(store, name, &info, &error) == 0, "show", &error);
    deltas[desktop] = info.record.os_delta;
    settled[desktop] = calloc(RIG_DISK_BLOCKS, 1);
    latest[desktop] = calloc(RIG_DISK_BLOCKS, 1);
}

static struct gild_disk *open_disk(struct gild_store *store, unsigned disk, unsigned flags,
                                   struct gild_error *error) {
    struct gild_disk *opened = NULL;
    bool writable;
    return gild_disk_open(store, rig_path(disk), "test", flags, &opened, &writable, error) ? NULL
                                                                                           : opened;
}

/* Deterministic: parent and child write the same. Above the checkpoint each write is a batch. */
static void write_some(struct gild_store *store, struct gild_prng *prng, unsigned writes,
                       uint8_t generation, uint8_t *const generations[RIG_DESKTOPS]) {
    uint8_t *bytes = gild_file_buffer(4096);
    struct gild_error error = {0};
    for (unsigned d = 0; d < RIG_DESKTOPS; d++) {
        struct gild_disk *disk = store ? open_disk(store, d, GILD_OPEN_WRITE, &error) : NULL;
        must(!store || disk, "open", &error);
        for (unsigned i = 0; i < writes; i++) {
            const uint32_t *window = rig_windows[gild_prng_below(prng, 3)];
            uint64_t block = window[0] + gild_prng_below(prng, window[1]);
            generations[d][block] = generation;
            if (!store)
                continue;
            block_content(d, block, generation, bytes);
            must(store_rig_do(disk, GILD_OP_WRITE, block * 4096, 4096, bytes,
                              generation > 1 ? GILD_OP_FUA : 0) == 0,
                 "write", NULL);
        }
        if (store)
            gild_disk_close(disk, "test", true);
    }
    free(bytes);
}

/* The child's process ends with the store open. */
static void kill_after_writes(const char *directory) {
    int ends[2], status;
    char byte;
    must(pipe(ends) == 0, "pipe", NULL);
    pid_t child = fork();
    if (child == 0) {
        struct gild_store *store;
        struct gild_error error = {0};
        struct gild_prng prng;
        gild_prng_seed(&prng, rig_seed + 100);
        must(gild_store_open(directory, &options, &store, &error) == 0, "open", &error);
        /* What an open leaves to the keeper is done: all that is written is above a checkpoint. */
        must(gild_store_checkpoint(store, &error) == 0, "checkpoint", &error);
        write_some(store, &prng, 25, 2, latest);
        must(write(ends[1], "x", 1) == 1, "tell", NULL);
        for (;;)
            pause();
    }
    close(ends[1]);
    must(read(ends[0], &byte, 1) == 1, "the child", NULL);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    close(ends[0]);
    struct gild_prng prng;
    gild_prng_seed(&prng, rig_seed + 100);
    write_some(NULL, &prng, 25, 2, latest);
}

void rig_begin(void) {
    char path[128];
    struct gild_error error = {0};
    struct gild_store *store;
    struct gild_prng prng;
    make_folder(template);
    snprintf(path, sizeof path, "%s/clean", template);
    must(gild_store_init(path, 0, &error) == 0, "init", &error);
    must(gild_store_open(path, &options, &store, &error) == 0, "open", &error);
    for (unsigned i = 0; i < RIG_IMAGES; i++)
        make_image(store, i);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        make_desktop(store, d);
    gild_prng_seed(&prng, rig_seed + 99);
    write_some(store, &prng, 250, 1, settled);
    must(gild_store_close(store, &error) == 0, "close", &error);
    shell("cp -a '%s/clean' '%s/killed'", template, template);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        memcpy(latest[d], settled[d], RIG_DISK_BLOCKS);
    snprintf(path, sizeof path, "%s/killed", template);
    kill_after_writes(path);
}

void rig_end(void) {
    rig_drop(template);
    for (unsigned i = 0; i < RIG_IMAGES; i++)
        free(image_bytes[i]);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++) {
        free(settled[d]);
        free(latest[d]);
    }
}

void rig_take(char directory[64], bool clean) {
    char from[128];
    make_folder(directory);
    snprintf(from, sizeof from, "%s/%s", template, clean ? "clean" : "killed");
    shell("cp -a '%s'/. '%s'", from, directory);
}

void rig_drop(const char *directory) {
    shell("rm -rf '%s'", directory);
}

const char *rig_path(unsigned disk) {
    static const char *const paths[RIG_DISKS] = {
        "desktops/d1/os", "desktops/d2/os", "desktops/d3/os", "desktops/d4/os",
        "desktops/d5/os", "desktops/d6/os", "images/win@1",   "images/win@2"};
    return paths[disk];
}

uint64_t rig_delta(unsigned desktop) {
    return deltas[desktop];
}

uint64_t rig_map(unsigned image) {
    return maps[image];
}

bool rig_written(bool clean, unsigned desktop, uint64_t block) {
    return (clean ? settled : latest)[desktop][block] != 0;
}

bool rig_in_tail(unsigned desktop, uint64_t block) {
    return latest[desktop][block] == 2;
}

/* ---- where things are -------------------------------------------------------------------------
 */

static void store_id(const char *directory, uint8_t id[16]) {
    struct superblock super;
    char path[128];
    snprintf(path, sizeof path, "%s/superblock", directory);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(gild_file_read(fd, &super, sizeof super, 0) == 0, path, NULL);
    close(fd);
    memcpy(id, super.id, 16);
}

struct search {
    const char *directory;
    uint8_t id[16];
    uint64_t delta, block; /* or */
    uint64_t stream, lsn;
    bool by_number, any_number, found;
    struct rig_spot spot;
    struct gild_batch_header header; /* the newest that fits */
};

static bool fits(const struct search *search, const struct gild_batch_header *header) {
    if (search->by_number)
        return header->stream == search->stream &&
               (search->any_number || header->lsn == search->lsn);
    for (uint32_t i = 0; i < header->entry_count; i++)
        if (header->entries[i].kind == GILD_ENTRY_DATA &&
            header->entries[i].delta == search->delta && header->entries[i].block == search->block)
            return true;
    return false;
}

bool rig_begun(const char *directory, uint64_t serial) {
    struct gild_batch_header *header = gild_file_buffer(4096);
    uint8_t id[16];
    char path[160];
    uint64_t bytes = 0;
    store_id(directory, id);
    snprintf(path, sizeof path, "%s/log/%016" PRIx64 ".seg", directory, serial);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0 && gild_file_size(fd, &bytes) == 0, path, NULL);
    must(gild_file_read(fd, header, 4096, 4096) == 0, path, NULL);
    bool begun = gild_batch_valid(header, id, serial, (uint32_t)(bytes / 4096), 1);
    close(fd);
    free(header);
    return begun;
}

static void search_segment(struct search *search, uint64_t serial) {
    struct gild_batch_header *header = gild_file_buffer(4096);
    char path[160];
    uint64_t bytes = 0;
    snprintf(path, sizeof path, "%s/log/%016" PRIx64 ".seg", search->directory, serial);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        must(gild_file_size(fd, &bytes) == 0, path, NULL);
    uint32_t blocks = (uint32_t)(bytes / 4096);
    for (uint32_t at = 1; at < blocks;) {
        must(gild_file_read(fd, header, 4096, (uint64_t)at * 4096) == 0, path, NULL);
        if (!gild_batch_valid(header, search->id, serial, blocks, at))
            break;
        if (fits(search, header) && (!search->found || header->stream > search->header.stream ||
                                     header->lsn > search->header.lsn)) {
            search->found = true;
            search->header = *header;
            strcpy(search->spot.path, path);
            search->spot.offset = (uint64_t)at * 4096;
        }
        at += 1 + header->payload_blocks;
    }
    if (fd >= 0)
        close(fd);
    free(header);
}

struct rig_spot rig_batch(const char *directory, unsigned desktop, uint64_t block, uint64_t *serial,
                          uint64_t *lsn) {
    struct search *search = calloc(1, sizeof *search);
    search->directory = directory;
    search->delta = deltas[desktop];
    search->block = block;
    store_id(directory, search->id);
    for (uint64_t s = 1; s < 200; s++)
        search_segment(search, s);
    must(search->found, "there is no batch of the block", NULL);
    struct rig_spot spot = search->spot;
    if (serial)
        *serial = search->header.serial;
    if (lsn)
        *lsn = search->header.lsn;
    free(search);
    return spot;
}

static void read_at(const struct rig_spot *spot, void *bytes) {
    int fd = open(spot->path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0 && gild_file_read(fd, bytes, 4096, spot->offset) == 0, spot->path, NULL);
    close(fd);
}

struct streams {
    uint64_t id[8];
    unsigned count;
};

static int note_stream(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct streams *streams = context;
    (void)key_length, (void)value, (void)length;
    must(streams->count < 8, "streams", NULL);
    streams->id[streams->count++] = gild_rec_key_u64(key);
    return 0;
}

bool rig_ends_seen(const char *directory) {
    struct gild_catalog *catalog = rig_catalog(directory);
    struct search *search = calloc(1, sizeof *search);
    struct streams streams = {.count = 0};
    struct gild_txn *txn;
    bool all = true;
    must(gild_txn_begin(catalog, false, &txn) == 0, "begin", NULL);
    must(gild_txn_scan(txn, GILD_TABLE_STREAMS, NULL, 0, note_stream, &streams) == 0, "scan", NULL);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    for (unsigned i = 0; i < streams.count; i++) {
        *search = (struct search){
            .directory = directory, .stream = streams.id[i], .by_number = true, .any_number = true};
        store_id(directory, search->id);
        for (uint64_t s = 1; s < 200; s++)
            search_segment(search, s);
        const struct gild_batch_header *last = &search->header;
        all = all && search->found && last->payload_blocks &&
              last->offset + 1 + last->payload_blocks + GILD_LEAST_ROOM <= options.segment_blocks;
    }
    free(search);
    return all;
}

bool rig_batch_at(const char *directory, struct rig_spot of, uint64_t lsn, struct rig_spot *spot) {
    struct search *search = calloc(1, sizeof *search);
    search->directory = directory;
    store_id(directory, search->id);
    int fd = open(of.path, O_RDONLY | O_CLOEXEC);
    must(gild_file_read(fd, &search->header, 4096, of.offset) == 0, of.path, NULL);
    close(fd);
    search->stream = search->header.stream;
    search->lsn = lsn;
    search->by_number = true;
    for (uint64_t s = 1; s < 200; s++)
        search_segment(search, s);
    bool found = search->found;
    *spot = search->spot;
    free(search);
    return found;
}

struct gild_catalog *rig_catalog(const char *directory) {
    char path[128], journal[128];
    struct gild_error error = {0};
    struct gild_catalog *catalog;
    struct superblock super;
    snprintf(path, sizeof path, "%s/superblock", directory);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(gild_file_read(fd, &super, sizeof super, 0) == 0, path, NULL);
    close(fd);
    snprintf(path, sizeof path, "%s/catalogue", directory);
    snprintf(journal, sizeof journal, "%s/journal", directory);
    const struct gild_catalog_options how = {
        .map_bytes = (uint64_t)1 << 30, .journal = journal, .note = &super};
    must(gild_catalog_open(&catalog, path, &how, &error) == 0, "catalogue", &error);
    return catalog;
}

struct rig_spot rig_at(const char *directory, uint64_t place) {
    struct rig_spot spot = {.offset = (uint64_t)gild_place_offset(place) * 4096};
    snprintf(spot.path, sizeof spot.path, "%s/log/%016" PRIx64 ".seg", directory,
             gild_place_serial(place));
    return spot;
}

/* The place of the node, or of the block (kind 0). */
static uint64_t find_place(const char *directory, unsigned desktop, int kind, uint64_t block) {
    struct gild_rec_delta *record = malloc(sizeof *record);
    uint8_t *page = gild_file_buffer(4096);
    char path[128];
    struct gild_error error = {0};
    /* Thousands of times: without a look at all of it, and its journal, each time. */
    const struct gild_catalog_options quick = {.map_bytes = (uint64_t)1 << 30};
    struct gild_catalog *catalog;
    snprintf(path, sizeof path, "%s/catalogue", directory);
    must(gild_catalog_open(&catalog, path, &quick, &error) == 0, "catalogue", &error);
    struct gild_txn *txn;
    must(gild_txn_begin(catalog, false, &txn) == 0, "txn", NULL);
    must(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, deltas[desktop], record) == 0, "delta", NULL);
    gild_txn_abort(txn);
    gild_catalog_close(catalog);
    uint64_t place = record->roots[0], leaf = block / GILD_LEAF_BLOCKS;
    for (int at = GILD_NODE_ROOT; at != kind && gild_place_type(place) == GILD_PLACE_LOG; at++) {
        struct rig_spot spot = rig_at(directory, place);
        read_at(&spot, page);
        const struct gild_dir *dir = (void *)page;
        if (at == GILD_NODE_ROOT)
            place = dir->ref[leaf / GILD_DIR_REFS];
        else if (at == GILD_NODE_DIR)
            place = dir->ref[leaf % GILD_DIR_REFS];
        else {
            place = ((const struct gild_leaf *)(void *)page)->place[block % GILD_LEAF_BLOCKS];
            break;
        }
    }
    free(page);
    free(record);
    return place;
}

struct rig_spot rig_node(const char *directory, unsigned desktop, enum gild_node_kind kind,
                         uint64_t block) {
    uint64_t place = find_place(directory, desktop, (int)kind, block);
    must(gild_place_type(place) == GILD_PLACE_LOG, "there is no such node", NULL);
    return rig_at(directory, place);
}

uint64_t rig_place(const char *directory, unsigned desktop, uint64_t block) {
    return find_place(directory, desktop, 0, block);
}

struct rig_spot rig_map_end(const char *directory, unsigned image, bool footer) {
    struct rig_spot spot = {.offset = 0};
    struct stat st;
    snprintf(spot.path, sizeof spot.path, "%s/maps/%016" PRIx64 ".map", directory, maps[image]);
    must(stat(spot.path, &st) == 0, spot.path, NULL);
    if (footer)
        spot.offset = (uint64_t)st.st_size - 4096;
    return spot;
}

struct rig_spot rig_map_node(const char *directory, unsigned image, enum gild_node_kind kind,
                             uint64_t index) {
    struct rig_spot end = rig_map_end(directory, image, true), spot = end;
    uint8_t *page = gild_file_buffer(4096);
    bool found = false;
    for (spot.offset = 4096; spot.offset < end.offset && !found; spot.offset += 4096) {
        read_at(&spot, page);
        found = gild_node_verify(page, kind, maps[image], index) == 0;
    }
    free(page);
    must(found, "the map has no such node", NULL);
    spot.offset -= 4096;
    return spot;
}

uint64_t rig_image_place(const char *directory, unsigned image, uint64_t block) {
    struct rig_spot spot = rig_map_node(directory, image, GILD_NODE_LEAF, block / GILD_LEAF_BLOCKS);
    uint8_t *page = gild_file_buffer(4096);
    read_at(&spot, page);
    uint64_t place = ((const struct gild_leaf *)(void *)page)->place[block % GILD_LEAF_BLOCKS];
    free(page);
    return place;
}

void rig_rot(const struct rig_spot *spot) {
    uint8_t bytes[64];
    int fd = open(spot->path, O_RDWR | O_CLOEXEC);
    must(fd >= 0 && gild_file_read(fd, bytes, sizeof bytes, spot->offset + 100) == 0, spot->path,
         NULL);
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] ^= 0xa5;
    must(gild_file_write(fd, bytes, sizeof bytes, spot->offset + 100) == 0, spot->path, NULL);
    close(fd);
}

/* ---- what is said -------------------------------------------------------------------------------
 */

static void said_repaired(void *context, const char *sentence) {
    struct rig_said *said = context;
    size_t length = strlen(said->text);
    snprintf(said->text + length, sizeof said->text - length, "%s\n", sentence);
}

static unsigned number_of(const char *disk) {
    unsigned number = 0;
    while (number < RIG_DISKS && strcmp(disk, rig_path(number)) != 0)
        number++;
    return number;
}

static void said_lost(void *context, const char *disk, uint64_t first, uint64_t blocks) {
    struct rig_said *said = context;
    unsigned number = number_of(disk);
    said->strangers += number == RIG_DISKS || first + blocks > RIG_DISK_BLOCKS;
    for (uint64_t b = first; number < RIG_DISKS && b < first + blocks && b < RIG_DISK_BLOCKS; b++)
        said->lost[number][b]++;
}

static void said_quarantined(void *context, const char *disk, const char *why) {
    struct rig_said *said = context;
    unsigned number = number_of(disk);
    said->strangers += number == RIG_DISKS || !*why;
    if (number < RIG_DISKS)
        said->quarantined[number] = true;
}

struct rig_said *rig_repair(const char *directory, bool dry_run) {
    struct rig_said *said = calloc(1, sizeof *said);
    const struct gild_repair_report report = {said_repaired, said_lost, said_quarantined, said};
    for (unsigned d = 0; d < RIG_DISKS; d++)
        said->lost[d] = calloc(RIG_DISK_BLOCKS, 1);
    said->result = gild_store_repair(directory, dry_run, &report, &said->counts, &said->error);
    return said;
}

void rig_said_free(struct rig_said *said) {
    for (unsigned d = 0; d < RIG_DISKS; d++)
        free(said->lost[d]);
    free(said);
}

/* ---- what is expected ---------------------------------------------------------------------------
 */

struct rig_expected *rig_expected(bool clean) {
    struct rig_expected *expected = calloc(1, sizeof *expected);
    expected->clean = clean;
    for (unsigned d = 0; d < RIG_DISKS; d++) {
        expected->lost[d] = calloc(RIG_DISK_BLOCKS, 1);
        expected->stale[d] = calloc(RIG_DISK_BLOCKS, 1);
    }
    return expected;
}

void rig_expected_free(struct rig_expected *expected) {
    for (unsigned d = 0; d < RIG_DISKS; d++) {
        free(expected->lost[d]);
        free(expected->stale[d]);
    }
    free(expected);
}

void rig_lose(struct rig_expected *expected, unsigned disk, uint64_t first, uint64_t count) {
    memset(expected->lost[disk] + first, 1, count);
}

void rig_lose_image(struct rig_expected *expected, unsigned image, uint64_t first, uint64_t count) {
    rig_lose(expected, RIG_DESKTOPS + image, first, count);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        for (uint64_t b = first; b < first + count && image_of(d) == image; b++)
            if (!rig_written(expected->clean, d, b))
                expected->lost[d][b] = 1;
}

unsigned rig_compare(const struct rig_said *said, const struct rig_expected *expected) {
    unsigned faults = said->strangers;
    for (unsigned d = 0; d < RIG_DISKS; d++) {
        if (said->quarantined[d] != expected->quarantined[d]) {
            fprintf(stderr, "%s: quarantined %d, expected %d\n", rig_path(d), said->quarantined[d],
                    expected->quarantined[d]);
            faults++;
        }
        for (uint64_t b = 0; b < RIG_DISK_BLOCKS; b++) {
            if (said->lost[d][b] == expected->lost[d][b])
                continue;
            if (faults++ < 10)
                fprintf(stderr, "%s block %" PRIu64 ": lost %u, expected %u\n", rig_path(d), b,
                        said->lost[d][b], expected->lost[d][b]);
        }
    }
    return faults;
}

/* ---- what is there ------------------------------------------------------------------------------
 */

static void right_content(const struct rig_expected *expected, unsigned disk, uint64_t block,
                          uint8_t *bytes) {
    unsigned image = disk < RIG_DESKTOPS ? image_of(disk) : disk - RIG_DESKTOPS;
    uint8_t generation =
        disk < RIG_DESKTOPS ? (expected->clean ? settled : latest)[disk][block] : 0;
    if (generation)
        block_content(disk, block, generation, bytes);
    else if (block < RIG_IMAGE_BLOCKS)
        memcpy(bytes, image_bytes[image] + block * 4096, 4096);
    else
        memset(bytes, 0, 4096);
}

static unsigned verify_block(const struct rig_expected *expected, struct gild_disk *disk,
                             unsigned number, uint64_t block, uint8_t *bytes, uint8_t *right) {
    int err = store_rig_do(disk, GILD_OP_READ, block * 4096, 4096, bytes, 0);
    if (expected->stale[number][block])
        return 0;
    right_content(expected, number, block, right);
    bool good =
        expected->lost[number][block] ? err == -EIO : err == 0 && memcmp(bytes, right, 4096) == 0;
    if (!good)
        fprintf(stderr, "%s block %" PRIu64 ": %s\n", rig_path(number), block,
                err ? strerror(-err) : "another content");
    return !good;
}

/* Of blocks that are not lost many at once, which is quicker; one by one if that fails. */
static unsigned verify_blocks(const struct rig_expected *expected, struct gild_disk *disk,
                              unsigned number, uint64_t first, uint64_t count, uint8_t *bytes,
                              uint8_t *right) {
    unsigned faults = 0;
    for (uint64_t b = first, n; b < first + count && faults < 10; b += n) {
        for (n = 0; n < AT_ONCE && b + n < first + count && !expected->lost[number][b + n];)
            n++;
        bool whole = n && store_rig_do(disk, GILD_OP_READ, b * 4096, n * 4096, bytes, 0) == 0;
        for (uint64_t i = 0; i < n && whole; i++) {
            right_content(expected, number, b + i, right);
            whole = expected->stale[number][b + i] || memcmp(bytes + i * 4096, right, 4096) == 0;
        }
        n = n ? n : 1;
        for (uint64_t i = 0; i < n && !whole; i++)
            faults += verify_block(expected, disk, number, b + i, bytes, right);
    }
    return faults;
}

static unsigned verify_disk(struct gild_store *store, const struct rig_expected *expected,
                            unsigned number) {
    uint8_t *bytes = gild_file_buffer(AT_ONCE * 4096), *right = gild_file_buffer(4096);
    struct gild_error error = {0};
    unsigned faults = 0;
    struct gild_disk *disk = open_disk(store, number, 0, &error);
    if (!disk)
        fprintf(stderr, "%s: %s\n", rig_path(number), error.message);
    if (disk)
        faults = verify_blocks(expected, disk, number, 0, RIG_IMAGE_BLOCKS, bytes, right);
    for (unsigned w = 0; w < 3 && disk && number < RIG_DESKTOPS; w++)
        faults += verify_blocks(expected, disk, number, rig_windows[w][0], rig_windows[w][1], bytes,
                                right);
    if (disk)
        gild_disk_close(disk, "test", false);
    free(bytes);
    free(right);
    if (disk && expected->quarantined[number]) {
        disk = open_disk(store, number, GILD_OPEN_WRITE, &error);
        faults += disk || error.err != EROFS;
        return faults;
    }
    return faults + !disk;
}

unsigned rig_verify(const char *directory, const struct rig_expected *expected) {
    struct gild_store *store;
    struct gild_error error = {0};
    unsigned faults = 0;
    if (gild_store_open(directory, &options, &store, &error)) {
        fprintf(stderr, "after the repair: %s\n", error.message);
        return 1;
    }
    for (unsigned d = 0; d < RIG_DISKS; d++)
        faults += verify_disk(store, expected, d);
    must(gild_store_close(store, &error) == 0, "close", &error);
    return faults;
}
