/* See pack_rig.h. A failed system call ends the test program: it would test nothing. */
#include "pack_rig.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/place.h"
#include "codec/hash.h"

const uint8_t rig_store[16] = "0123456789abcde";

static uint64_t state = 20261122;

uint32_t rig_draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static void must(bool condition, const char *what) {
    if (!condition) {
        perror(what);
        abort();
    }
}

void rig_init(struct rig *rig) {
    const char *parent = getenv("TMPDIR");
    memset(rig, 0, sizeof *rig);
    snprintf(rig->folder, sizeof rig->folder, "%s/gild-pack-XXXXXX", parent ? parent : "/tmp");
    must(mkdtemp(rig->folder) != NULL, "mkdtemp");
    must(gild_packs_create(&rig->packs, rig->folder, rig_store, NULL) == 0, "packs");
    rig->refuse_at = UINT64_MAX;
}

static size_t walk(const char *folder, bool remove_them) {
    char path[512];
    size_t count = 0;
    DIR *dir = opendir(folder);
    must(dir != NULL, "opendir");
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        count++;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (remove_them)
            unlink(path);
    }
    closedir(dir);
    return count;
}

size_t rig_files(const struct rig *rig) {
    return walk(rig->folder, false);
}

size_t rig_descriptors(const struct rig *rig) {
    char path[512], target[512];
    size_t count = 0;
    DIR *dir = opendir("/proc/self/fd");
    must(dir != NULL, "opendir");
    for (struct dirent *entry; (entry = readdir(dir));) {
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length > 0 ? length : 0] = 0;
        count += strncmp(target, rig->folder, strlen(rig->folder)) == 0;
    }
    closedir(dir);
    return count;
}

void rig_fini(struct rig *rig) {
    gild_packs_destroy(rig->packs);
    walk(rig->folder, true);
    rmdir(rig->folder);
    free(rig->place);
    free(rig->check);
}

int rig_reopen(struct rig *rig, uint32_t first, uint32_t last, struct gild_error *error) {
    int err = 0;
    gild_packs_destroy(rig->packs);
    must(gild_packs_create(&rig->packs, rig->folder, rig_store, NULL) == 0, "packs");
    for (uint32_t id = first; id <= last && !err; id++)
        err = gild_packs_add(rig->packs, id, error);
    return err;
}

void rig_block(uint64_t number, uint8_t *block) {
    uint64_t x = (number + 1) * 0x9e3779b97f4a7c15u;
    uint64_t few = number % 8 ? 0x0303030303030303u : ~0ull;
    for (size_t i = 0; i < BLOCK / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint64_t word = x & few;
        memcpy(block + 8 * i, &word, 8);
    }
    memcpy(block, &number, sizeof number);
}

static int next_id(void *context, uint32_t *pack_id) {
    struct rig *rig = context;
    if (rig->no_ids)
        return -ENOLCK;
    *pack_id = ++rig->last_id;
    return 0;
}

static int placed(void *context, uint64_t tag, uint64_t place, uint32_t check,
                  const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    struct rig *rig = context;
    (void)fingerprint;
    if (tag != rig->placed || rig->placed == rig->refuse_at)
        return -EDOM; /* out of order, or as the test asked */
    if (rig->placed == rig->room) {
        rig->room = rig->room ? rig->room * 2 : 1024;
        rig->place = realloc(rig->place, rig->room * sizeof *rig->place);
        rig->check = realloc(rig->check, rig->room * sizeof *rig->check);
        must(rig->place && rig->check, "realloc");
    }
    rig->place[rig->placed] = place;
    rig->check[rig->placed++] = check;
    return 0;
}

struct gild_ingest_options rig_options(struct rig *rig, unsigned threads) {
    rig->placed = 0;
    return (struct gild_ingest_options){
        .threads = threads, .next_pack_id = next_id, .placed = placed, .context = rig};
}

int rig_ingest(struct rig *rig, const uint64_t *numbers, size_t count, unsigned threads,
               uint64_t target_bytes, struct gild_ingest_totals *totals) {
    struct gild_ingest_options options = rig_options(rig, threads);
    struct gild_ingest *ingest;
    static uint8_t blocks[100][BLOCK];
    size_t done = 0;
    options.pack_target_bytes = target_bytes;
    int err = gild_ingest_create(&ingest, rig->packs, &options, NULL);
    if (err)
        return err;
    while (done < count && !err) {
        size_t n = rig_draw() % 100 + 1;
        n = n < count - done ? n : count - done;
        for (size_t i = 0; i < n; i++)
            rig_block(numbers[done + i], blocks[i]);
        err = gild_ingest_add(ingest, blocks, n, done);
        done += n;
    }
    if (!err)
        err = gild_ingest_finish(ingest, NULL);
    if (totals) {
        gild_ingest_get_totals(ingest, totals);
        totals->pack_ids = NULL; /* dies with the ingest */
    }
    gild_ingest_destroy(ingest, !err);
    return err;
}

/* Reads the group of a place into `out`: the mask of its slots, or -errno. */
static int read_group(struct rig *rig, uint64_t place, uint8_t *out) {
    static _Alignas(4096) uint8_t page[4096], cover[GILD_GROUP_BYTES + 2 * 4096];
    struct gild_pack_page where;
    struct gild_pack_frame frame;
    uint32_t pack = gild_place_pack_id(place), group = gild_place_group(place);
    int err = gild_pack_table_page(rig->packs, pack, group, &where);
    if (err)
        return err;
    must(pread(where.fd, page, sizeof page, (off_t)where.file_offset) == sizeof page, "table");
    err = gild_pack_table_verify(page, pack, where.page);
    if (!err)
        err = gild_pack_table_entry(page, pack, group, where.index, &frame);
    if (err)
        return err;
    must(frame.read_bytes <= sizeof cover, "cover");
    must(pread(where.fd, cover, frame.read_bytes, (off_t)frame.read_offset) ==
             (ssize_t)frame.read_bytes,
         "frame");
    err =
        gild_pack_decode(cover + (frame.file_offset - frame.read_offset), &frame, pack, group, out);
    return err ? err : frame.slots;
}

size_t rig_verify(struct rig *rig, const uint64_t *numbers, size_t count, size_t *refused) {
    static uint8_t group[GILD_GROUP_BYTES];
    uint8_t expected[BLOCK];
    uint64_t in_hand = 0; /* the group's place; no place is 0 */
    size_t right = 0;
    int slots = 0;
    *refused = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *block = group + gild_place_slot(rig->place[i]) * BLOCK;
        if (in_hand != (rig->place[i] & ~15ull)) {
            in_hand = rig->place[i] & ~15ull;
            slots = read_group(rig, in_hand, group);
        }
        if (slots < 0 || !(slots >> gild_place_slot(rig->place[i]) & 1)) {
            ++*refused;
            continue;
        }
        rig_block(numbers[i], expected);
        right += memcmp(block, expected, BLOCK) == 0 && rig->check[i] == gild_block_check(block, 0);
    }
    return right;
}

char *rig_path(const struct rig *rig, uint32_t pack_id, char path[256]) {
    snprintf(path, 256, "%s/%08x.pack", rig->folder, pack_id);
    return path;
}

uint8_t *rig_load(const char *path, size_t *length) {
    struct stat status;
    FILE *file = fopen(path, "rb");
    must(file && fstat(fileno(file), &status) == 0, path);
    *length = (size_t)status.st_size;
    uint8_t *data = malloc(*length);
    must(data && fread(data, 1, *length, file) == *length, path);
    fclose(file);
    return data;
}

void rig_save(const char *path, const void *data, size_t length) {
    FILE *file = fopen(path, "wb");
    must(file && fwrite(data, 1, length, file) == length && fclose(file) == 0, path);
}
