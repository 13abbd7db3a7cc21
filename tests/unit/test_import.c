/* Importing into a store's parts: what comes out of packs and map is what was in the image, the
 * catalogue gains exactly one version, and an import that fails, is stopped or is killed leaves the
 * catalogue as it was.
 *
 * The store is replaced by its parts (a real catalogue, packs and maps folder) behind the few
 * functions of disk/store.h that an import calls. */
#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/place.h"
#include "catalog/records.h"
#include "codec/hash.h"
#include "disk/store.h"
#include "map/sealed.h"
#include "pack/pack.h"
#include "vdi/vdi.h"

#define DISK_BYTES ((12u << 20) + 1536)
#define DISK_BLOCKS ((DISK_BYTES + 4095u) / 4096u)

/* ---- a store made of its parts --------------------------------------------------------------- */

struct gild_store {
    char directory[128];
    struct gild_catalog *catalog;
    struct gild_packs *packs;
    uint64_t room_bytes;
    int ingests;
};

static const uint8_t store_id[16] = "an import's test";

const char *gild_store_directory(const struct gild_store *store) {
    return store->directory;
}
struct gild_catalog *gild_store_catalog(struct gild_store *store) {
    return store->catalog;
}
struct gild_packs *gild_store_packs(struct gild_store *store) {
    return store->packs;
}
const uint8_t *gild_store_id(const struct gild_store *store) {
    (void)store;
    return store_id;
}
int gild_store_admit_bytes(struct gild_store *store, uint64_t bytes) {
    if (bytes > store->room_bytes) {
        return -ENOSPC;
    }
    store->room_bytes -= bytes;
    return 0;
}
void gild_store_ingest_begin(struct gild_store *store) {
    store->ingests++;
}
void gild_store_ingest_end(struct gild_store *store) {
    store->ingests--;
}

static char folder[64];
static uint8_t *disk; /* what the images hold */

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...) {
    char line[512], full[700];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    snprintf(full, sizeof(full), "cd %s && %s", folder, line);
    CU_ASSERT_EQUAL_FATAL(system(full), 0);
}

static void store_reopen(struct gild_store *store) {
    char path[200];
    struct gild_error error;
    if (store->catalog) {
        gild_packs_destroy(store->packs);
        gild_catalog_close(store->catalog);
    }
    snprintf(path, sizeof(path), "%s/catalogue", store->directory);
    CU_ASSERT_EQUAL_FATAL(gild_catalog_open(&store->catalog, path,
                                            &(struct gild_catalog_options){.map_bytes = 1u << 30},
                                            &error),
                          0);
    snprintf(path, sizeof(path), "%s/packs", store->directory);
    CU_ASSERT_EQUAL_FATAL(gild_packs_create(&store->packs, path, store_id, &error), 0);
}

static void store_make(struct gild_store *store) {
    memset(store, 0, sizeof(*store));
    store->room_bytes = 1u << 30;
    snprintf(store->directory, sizeof(store->directory), "%s/store", folder);
    shell("rm -rf store && mkdir -p store/catalogue store/packs store/maps");
    store_reopen(store);
}

static void store_end(struct gild_store *store) {
    gild_packs_destroy(store->packs);
    gild_catalog_close(store->catalog);
    store->catalog = NULL;
}

static unsigned count_files(const struct gild_store *store, const char *sub) {
    char path[200];
    unsigned count = 0;
    snprintf(path, sizeof(path), "%s/%s", store->directory, sub);
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        count += entry->d_name[0] != '.';
    }
    closedir(directory);
    return count;
}

/* All that an import adds to. */
struct state {
    uint64_t images, versions, maps, packs;
    uint64_t set_packs;
    unsigned map_files, pack_files;
};

static struct state state_of(struct gild_store *store) {
    struct state state = {0};
    struct gild_txn *txn;
    struct gild_packs_totals totals;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(store->catalog, false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_IMAGES, &state.images), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_VERSIONS, &state.versions), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_MAPS, &state.maps), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_PACKS, &state.packs), 0);
    gild_txn_abort(txn);
    gild_packs_get_totals(store->packs, &totals);
    state.set_packs = totals.packs;
    state.map_files = count_files(store, "maps");
    state.pack_files = count_files(store, "packs");
    CU_ASSERT_EQUAL(store->ingests, 0);
    return state;
}

static void check_same(struct gild_store *store, struct state before) {
    struct state after = state_of(store);
    CU_ASSERT_EQUAL(memcmp(&before, &after, sizeof(before)), 0);
}

/* ---- importing, and reading what came of it -------------------------------------------------- */

struct watch {
    uint64_t last, total;
    unsigned calls, stop_at;
    bool backwards, killed;
};

static int watch_progress(void *context, const char *what, uint64_t done, uint64_t total) {
    struct watch *watch = context;
    watch->backwards = watch->backwards || done < watch->last || done > total || !what;
    watch->last = done;
    watch->total = total;
    watch->calls++;
    if (watch->killed && watch->calls == watch->stop_at) {
        raise(SIGKILL);
    }
    return watch->calls == watch->stop_at;
}

static int import(struct gild_store *store, const char *name, const char *file, struct watch *watch,
                  struct gild_image_info *made, struct gild_error *error) {
    char path[200];
    struct gild_image_info unused;
    snprintf(path, sizeof(path), "%s/%s", folder, file);
    struct gild_image_import request = {
        .name = name,
        .source = path,
        .progress = watch ? watch_progress : NULL,
        .context = watch,
    };
    memset(error, 0, sizeof(*error));
    int result = gild_image_import(store, &request, made ? made : &unused, error);
    if (result < 0) {
        CU_ASSERT_PTR_NULL(strchr(error->message, '\n'));
        CU_ASSERT_TRUE(error->message[0] != '\0');
    }
    return result;
}

static void import_well(struct gild_store *store, const char *name, const char *file,
                        struct gild_image_info *made) {
    struct watch watch = {0};
    struct gild_error error;
    int result = import(store, name, file, &watch, made, &error);
    if (result < 0) {
        printf("\n    %s: %s ", file, error.message);
    }
    CU_ASSERT_EQUAL_FATAL(result, 0);
    CU_ASSERT_FALSE(watch.backwards);
    CU_ASSERT_EQUAL(watch.last, made->record.size_bytes);
    CU_ASSERT_EQUAL(watch.total, made->record.size_bytes);
}

static int read_place(struct gild_packs *packs, uint64_t place, uint8_t *block) {
    static _Alignas(4096) uint8_t page[4096], bytes[GILD_GROUP_BYTES + 8192];
    static uint8_t group[GILD_GROUP_BYTES];
    uint32_t pack = gild_place_pack_id(place), number = gild_place_group(place);
    struct gild_pack_page where;
    struct gild_pack_frame frame;
    int result = gild_pack_table_page(packs, pack, number, &where);
    if (result < 0 || pread(where.fd, page, 4096, (off_t)where.file_offset) != 4096 ||
        gild_pack_table_verify(page, pack, where.page) < 0 ||
        gild_pack_table_entry(page, pack, number, where.index, &frame) < 0 ||
        pread(where.fd, bytes, frame.read_bytes, (off_t)frame.read_offset) < (ssize_t)frame.bytes ||
        gild_pack_decode(bytes + (frame.file_offset - frame.read_offset), &frame, pack, number,
                         group) < 0) {
        return -EIO;
    }
    memcpy(block, group + gild_place_slot(place) * 4096, 4096);
    return 0;
}

struct reading {
    struct gild_store *store;
    uint8_t *bytes;
    uint64_t blocks, size;
};

static int read_leaf(void *context, uint64_t leaf_index, const struct gild_leaf *leaf) {
    struct reading *reading = context;
    for (unsigned i = 0; i < GILD_LEAF_BLOCKS; i++) {
        uint64_t block = leaf_index * GILD_LEAF_BLOCKS + i;
        if (gild_place_type(leaf->place[i]) != GILD_PLACE_PACK) {
            continue;
        }
        uint8_t content[4096];
        if (block >= reading->size || read_place(reading->store->packs, leaf->place[i], content)) {
            return -EIO;
        }
        CU_ASSERT_EQUAL(leaf->check[i], gild_block_check(content, 0));
        memcpy(reading->bytes + block * 4096, content, 4096);
        reading->blocks++;
    }
    return 0;
}

/* Reads a version whole through its map, as the catalogue names it, and compares. */
static void check_content(struct gild_store *store, const struct gild_image_info *made,
                          const uint8_t *expected, uint64_t size_bytes) {
    char maps[200];
    struct gild_sealed_map *map = NULL;
    struct gild_error error;
    uint64_t blocks = (size_bytes + 4095) / 4096;
    struct reading reading = {store, calloc(blocks + 1, 4096), 0, blocks};
    snprintf(maps, sizeof(maps), "%s/maps", store->directory);
    CU_ASSERT_EQUAL_FATAL(gild_sealed_open(&map, maps, store_id, made->record.map_id, &error), 0);
    CU_ASSERT_EQUAL(map->size_bytes, size_bytes);
    CU_ASSERT_EQUAL(memcmp(map->content_hash, made->record.content_hash, 32), 0);
    CU_ASSERT_EQUAL(gild_sealed_walk(map, read_leaf, &reading), 0);
    CU_ASSERT_EQUAL(memcmp(reading.bytes, expected, size_bytes), 0);
    CU_ASSERT_EQUAL(reading.blocks, made->record.data_blocks);
    gild_sealed_close(map);
    free(reading.bytes);
}

/* The content hash by the letter of docs/format-content-hash.md, with another library. */
static void hash_content(const uint8_t *bytes, uint64_t size, uint8_t out[32], uint64_t *blocks) {
    uint8_t *message = malloc(23 + (size / 4096 + 1) * 40), *at = message + 23;
    memcpy(message, "gild-content-1", 15);
    gild_put_le64(message + 15, size);
    *blocks = 0;
    for (uint64_t block = 0; block * 4096 < size; block++) {
        if (!gild_is_zero(bytes + block * 4096, 4096)) {
            gild_put_le64(at, block);
            SHA256(bytes + block * 4096, 4096, at + 8);
            at += 40;
            ++*blocks;
        }
    }
    SHA256(message, (size_t)(at - message), out);
    free(message);
}

/* ---- the tests ------------------------------------------------------------------------------- */

static void test_what_comes_out_is_what_was_in(void) {
    struct gild_store store;
    struct gild_image_info made;
    uint8_t expected[32];
    uint64_t blocks;
    store_make(&store);
    import_well(&store, "debian", "disk.raw", &made);
    CU_ASSERT_STRING_EQUAL(made.name, "debian");
    CU_ASSERT_EQUAL(made.version, 1);
    CU_ASSERT_EQUAL(made.record.size_bytes, DISK_BYTES);
    CU_ASSERT_STRING_EQUAL(made.record.source_format, "raw");
    CU_ASSERT_TRUE(made.record.stored_bytes > 0);
    CU_ASSERT_TRUE(made.record.created_ns / 1000000000u + 60 > (uint64_t)time(NULL));
    hash_content(disk, DISK_BYTES, expected, &blocks);
    CU_ASSERT_EQUAL(memcmp(made.record.content_hash, expected, 32), 0);
    CU_ASSERT_EQUAL(made.record.data_blocks, blocks);
    CU_ASSERT_TRUE(made.record.new_blocks < blocks); /* the disk repeats some */
    check_content(&store, &made, disk, DISK_BYTES);
    struct state state = state_of(&store);
    CU_ASSERT_EQUAL(state.images, 1);
    CU_ASSERT_EQUAL(state.versions, 1);
    CU_ASSERT_EQUAL(state.maps, 1);
    CU_ASSERT_EQUAL(state.map_files, 1);
    CU_ASSERT_EQUAL(state.packs, state.pack_files);
    store_end(&store);
}

static int count_pack(void *context, const void *key, size_t key_length, const void *value,
                      size_t length) {
    struct gild_rec_pack record, *sum = context;
    (void)key;
    (void)key_length;
    int result = gild_rec_pack_decode(&record, value, length);
    sum->blocks += record.blocks;
    sum->groups += record.groups;
    sum->file_bytes += record.file_bytes;
    return result;
}

static void test_catalogue_tells_packs_and_what_maps_reach(void) {
    struct gild_store store;
    struct gild_image_info first, second;
    struct gild_rec_pack sum = {0};
    struct gild_packs_totals totals;
    struct gild_rec_map *map = calloc(1, sizeof(*map));
    struct gild_txn *txn;
    store_make(&store);
    import_well(&store, "a", "disk.raw", &first);
    import_well(&store, "b", "more.raw", &second);
    gild_packs_get_totals(store.packs, &totals);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(store.catalog, false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_scan(txn, GILD_TABLE_PACKS, NULL, 0, count_pack, &sum), 0);
    CU_ASSERT_EQUAL(sum.blocks, totals.blocks);
    CU_ASSERT_EQUAL(sum.groups, totals.groups);
    CU_ASSERT_EQUAL(sum.file_bytes, totals.file_bytes);
    CU_ASSERT_EQUAL(sum.blocks, first.record.new_blocks + second.record.new_blocks);
    CU_ASSERT_EQUAL(gild_rec_get_map(txn, first.record.map_id, map), 0);
    CU_ASSERT_EQUAL(map->pack_count, 1);
    CU_ASSERT_EQUAL(gild_rec_get_map(txn, second.record.map_id, map), 0);
    CU_ASSERT_EQUAL(map->pack_count, 2); /* its own, and the first's for what they share */
    CU_ASSERT_TRUE(map->packs[0] < map->packs[1]);
    CU_ASSERT_EQUAL(map->data_blocks, second.record.data_blocks);
    CU_ASSERT_EQUAL(map->size_bytes, second.record.size_bytes);
    gild_txn_abort(txn);
    free(map);
    store_end(&store);
}

static void test_same_content_again_costs_nothing(void) {
    struct gild_store store;
    struct gild_image_info first, second, other;
    store_make(&store);
    import_well(&store, "debian", "disk.raw", &first);
    struct state before = state_of(&store);
    import_well(&store, "debian", "disk.qcow2", &second);
    import_well(&store, "copy", "disk.vhdx", &other);
    CU_ASSERT_EQUAL(second.version, 2);
    CU_ASSERT_EQUAL(other.version, 1);
    CU_ASSERT_STRING_EQUAL(second.record.source_format, "qcow2");
    CU_ASSERT_EQUAL(memcmp(first.record.content_hash, second.record.content_hash, 32), 0);
    CU_ASSERT_EQUAL(memcmp(first.record.content_hash, other.record.content_hash, 32), 0);
    CU_ASSERT_EQUAL(second.record.new_blocks, 0);
    CU_ASSERT_EQUAL(second.record.stored_bytes, 0);
    struct state after = state_of(&store);
    CU_ASSERT_EQUAL(after.pack_files, before.pack_files);
    CU_ASSERT_EQUAL(after.versions, 3);
    CU_ASSERT_EQUAL(after.images, 2);
    check_content(&store, &second, disk, DISK_BYTES);
    check_content(&store, &other, disk, DISK_BYTES);
    store_end(&store);
}

static void test_an_empty_disk(void) {
    /* SHA-256 of the mark and a size of 1 MiB, computed by sha256sum. */
    static const uint8_t expected[32] = {0x6d, 0xdc, 0x35, 0xe4, 0xde, 0x0a, 0x73, 0xe2,
                                         0x85, 0x4a, 0xd1, 0x95, 0xd7, 0xb6, 0xb8, 0x56,
                                         0xbf, 0x61, 0x09, 0xd1, 0x18, 0x4b, 0xd9, 0x48,
                                         0xa7, 0x31, 0x25, 0x5c, 0x84, 0x08, 0x0f, 0xfe};
    struct gild_store store;
    struct gild_image_info made;
    uint8_t *nothing = calloc(1, (1u << 20) + 4096);
    store_make(&store);
    import_well(&store, "empty", "hole.raw", &made);
    CU_ASSERT_EQUAL(made.record.data_blocks, 0);
    CU_ASSERT_EQUAL(memcmp(made.record.content_hash, expected, 32), 0);
    CU_ASSERT_EQUAL(state_of(&store).pack_files, 0);
    check_content(&store, &made, nothing, 1u << 20);
    free(nothing);
    store_end(&store);
}

static void expect_failure(struct gild_store *store, const char *name, const char *file,
                           struct watch *watch, enum gild_code code, const char *says) {
    struct state before = state_of(store);
    struct gild_error error;
    CU_ASSERT_TRUE(import(store, name, file, watch, NULL, &error) < 0);
    CU_ASSERT_EQUAL(error.code, code);
    if (!strstr(error.message, says) || error.code != code) {
        printf("\n    %s: code %d: %s ", file, error.code, error.message);
    }
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, says));
    check_same(store, before);
}

static void test_a_failed_import_leaves_nothing(void) {
    struct gild_store store;
    struct gild_image_info made;
    store_make(&store);
    for (unsigned round = 0; round < 2; round++) { /* in an empty store, and in a full one */
        expect_failure(&store, "a/b", "disk.raw", NULL, GILD_USAGE, "image");
        expect_failure(&store, "debian", "missing", NULL, GILD_NOT_FOUND, "missing");
        expect_failure(&store, "debian", "cut.qcow2", NULL, GILD_CORRUPT, "cut.qcow2");
        expect_failure(&store, "debian", "rot.qcow2", NULL, GILD_CORRUPT, "rot.qcow2");
        for (unsigned stop_at = 1; stop_at < 4; stop_at++) {
            struct watch watch = {.stop_at = stop_at};
            expect_failure(&store, "debian", "more.raw", &watch, GILD_FAILED, "was stopped");
            CU_ASSERT_EQUAL(watch.calls, stop_at);
        }
        uint64_t room = store.room_bytes;
        store.room_bytes = 0;
        expect_failure(&store, "debian", "more.raw", NULL, GILD_NO_SPACE, "no room");
        store.room_bytes = room;
        import_well(&store, "debian", "disk.raw", &made);
        CU_ASSERT_EQUAL(made.version, round + 1); /* failures used up no number */
        check_content(&store, &made, disk, DISK_BYTES);
    }
    store_end(&store);
}

static void test_shared_content_must_be_the_catalogues(void) {
    struct gild_store store;
    struct gild_image_info made;
    struct gild_txn *txn;
    uint8_t key[4];
    store_make(&store);
    import_well(&store, "debian", "disk.raw", &made);
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(store.catalog, true, &txn), 0);
    gild_put_be32(key, 1);
    CU_ASSERT_EQUAL(gild_txn_delete(txn, GILD_TABLE_PACKS, key, 4), 0);
    CU_ASSERT_EQUAL(gild_txn_commit(txn), 0);
    expect_failure(&store, "other", "more.raw", NULL, GILD_BUSY, "import it again");
    store_end(&store);
}

static void test_a_killed_import_leaves_only_files_that_nobody_knows(void) {
    struct gild_store store;
    store_make(&store);
    for (unsigned stop_at = 1; stop_at < 4; stop_at++) {
        store_end(&store); /* an environment must not be open over a fork */
        pid_t importer = fork();
        if (importer == 0) {
            struct watch watch = {.stop_at = stop_at, .killed = true};
            struct gild_error error;
            store_reopen(&store);
            import(&store, "debian", "more.raw", &watch, NULL, &error);
            _exit(0);
        }
        int status = 0;
        CU_ASSERT_EQUAL(waitpid(importer, &status, 0), importer);
        CU_ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        store_reopen(&store);
        struct state state = state_of(&store);
        CU_ASSERT_EQUAL(state.images + state.versions + state.maps + state.packs, 0);
    }
    struct gild_image_info made;
    import_well(&store, "debian", "disk.raw", &made); /* with ids that no orphan has */
    check_content(&store, &made, disk, DISK_BYTES);
    store_end(&store);
}

/* ---- images ---------------------------------------------------------------------------------- */

static void fill_random(uint8_t *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t mixed = seed ^ seed >> 29;
        memcpy(at + i, &mixed, 8);
    }
}

static bool write_file(const char *name, const uint8_t *bytes, size_t size) {
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    return file && fwrite(bytes, size, 1, file) == 1 && fclose(file) == 0;
}

static int make_images(void) {
    size_t more_bytes = 40u << 20;
    disk = calloc(1, DISK_BLOCKS * 4096u);
    uint8_t *more = calloc(1, more_bytes);
    fill_random(disk + 4096, 3u << 20, 1);
    for (unsigned block = 1000; block < 1600; block++) { /* text, and each block twice */
        for (unsigned i = 0; i < 4096; i += 16) {
            snprintf((char *)disk + block * 4096 + i, 17, "line %04u %04u \n", block / 2, i);
        }
        disk[block * 4096 + 4096] = 0;
    }
    for (unsigned block = 1700; block < 2900; block += 7) {
        fill_random(disk + block * 4096, 4096, block);
    }
    fill_random(disk + DISK_BYTES - 1536, 1536, 5);
    memcpy(more, disk, DISK_BYTES - 1536);
    fill_random(more + (16u << 20), 22u << 20, 6);
    bool good =
        write_file("disk.raw", disk, DISK_BYTES) && write_file("more.raw", more, more_bytes);
    free(more);
    char line[1024];
    snprintf(line, sizeof(line),
             "cd %s && truncate -s 1M hole.raw && "
             "qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2 && "
             "qemu-img convert -f raw -O vhdx disk.raw disk.vhdx && "
             "cp disk.qcow2 cut.qcow2 && truncate -s 3M cut.qcow2 && "
             "seq 1 9000000 | head -c 20M > text.raw && "
             "qemu-img convert -c -f raw -O qcow2 text.raw rot.qcow2 && "
             "size=$(stat -c %%s rot.qcow2) && dd if=/dev/urandom of=rot.qcow2 bs=1k "
             "seek=$((size / 1536)) count=64 conv=notrunc status=none",
             folder);
    return good && system(line) == 0 ? 0 : 1;
}

int main(void) {
    if (system("qemu-img --version >/dev/null 2>&1 && qemu-nbd --version >/dev/null 2>&1") != 0) {
        printf("skipped: qemu-img or qemu-nbd is missing (package qemu-utils)\n");
        return 77;
    }
    CU_TestInfo tests[] = {
        {"what comes out is what was in", test_what_comes_out_is_what_was_in},
        {"the catalogue tells packs and what maps reach",
         test_catalogue_tells_packs_and_what_maps_reach},
        {"same content again costs nothing", test_same_content_again_costs_nothing},
        {"an empty disk", test_an_empty_disk},
        {"a failed import leaves nothing", test_a_failed_import_leaves_nothing},
        {"shared content must be the catalogue's", test_shared_content_must_be_the_catalogues},
        {"a killed import leaves only files that nobody knows",
         test_a_killed_import_leaves_only_files_that_nobody_knows},
        CU_TEST_INFO_NULL,
    };
    CU_SuiteInfo suites[] = {{"import", make_images, NULL, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/gild-test-XXXXXX",
             temporary && strlen(temporary) < 40 ? temporary : "/tmp");
    if (!mkdtemp(folder) || CU_initialize_registry() != CUE_SUCCESS ||
        CU_register_suites(suites) != CUE_SUCCESS) {
        return 1;
    }
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures() + CU_get_number_of_failure_records();
    CU_cleanup_registry();
    free(disk);
    char remove[96];
    snprintf(remove, sizeof(remove), "rm -rf %s", folder);
    return system(remove) != 0 || failed ? 1 : 0;
}
