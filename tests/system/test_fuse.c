/* What the FUSE door promises, asked through system calls on a real mount over a fake tree. Each
 * test runs twice: with ops that are done at once, and with ops that are done later, out of order.
 */
#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fuse_fixture.h"

static struct fuse_fixture fixture;

static const char *file_of(const char *path) {
    static char file[256];
    return fuse_fixture_file(&fixture, path, file);
}

static int open_disk(const char *path, int flags) {
    return open(file_of(path), flags | O_CLOEXEC);
}

/* ---- names
 * ------------------------------------------------------------------------------------------ */

static void test_the_tree_shows_disks_as_raw_files(void) {
    struct stat stat_buffer;
    CU_ASSERT_EQUAL_FATAL(stat(file_of(FIXTURE_OS), &stat_buffer), 0);
    CU_ASSERT_EQUAL(stat_buffer.st_size, FIXTURE_OS_BYTES);
    CU_ASSERT_EQUAL(stat_buffer.st_mode, S_IFREG | 0600);
    CU_ASSERT_EQUAL(stat_buffer.st_ino, 100);
    CU_ASSERT_EQUAL(stat_buffer.st_mtim.tv_sec, 1700000000);
    CU_ASSERT_EQUAL_FATAL(stat(file_of(FIXTURE_IMAGE), &stat_buffer), 0);
    CU_ASSERT_EQUAL(stat_buffer.st_mode, S_IFREG | 0400);
    CU_ASSERT_TRUE(fuse_fixture_shell(&fixture, "test \"$(ls $M)\" = 'desktops\nimages'"));
    CU_ASSERT_TRUE(fuse_fixture_shell(
        &fixture, "test \"$(ls $M/desktops/d1)\" = \"$(printf 'id.raw\\nos.raw\\ntemp.raw')\""));
    CU_ASSERT_TRUE(fuse_fixture_shell(&fixture, "test $(find $M | wc -l) = 8"));
    CU_ASSERT_TRUE(fuse_fixture_shell(&fixture, "test -d $M/desktops/d1"));
}

static void test_unknown_names_are_not_found(void) {
    static const char *const names[] = {"nothing",         "desktops/d2",       "desktops/d1/os",
                                        "desktops/d1.raw", "desktops/d1/\n",    ".raw",
                                        "desktops/.raw",   "images/win10@4.raw"};
    struct stat stat_buffer;
    char path[512];
    for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "%s/%s", fixture.directory, names[i]);
        CU_ASSERT_EQUAL(stat(path, &stat_buffer), -1);
        CU_ASSERT_EQUAL(errno, ENOENT);
    }
}

static void test_nothing_is_made_or_removed_through_the_mount(void) {
    char path[512], other[512];
    snprintf(path, sizeof(path), "%s/desktops/new", fixture.directory);
    snprintf(other, sizeof(other), "%s", file_of(FIXTURE_OS));
    CU_ASSERT_EQUAL(mkdir(path, 0700), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(open(path, O_CREAT | O_RDWR, 0600), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(rename(other, path), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(unlink(other), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(symlink(other, path), -1);
    CU_ASSERT_EQUAL(link(other, path), -1);
    CU_ASSERT_EQUAL(chmod(other, 0644), -1);
    CU_ASSERT_EQUAL(chmod(other, 0600), 0);
}

static void test_size_can_not_change(void) {
    const char *file = file_of(FIXTURE_OS);
    CU_ASSERT_EQUAL(truncate(file, FIXTURE_OS_BYTES), 0);
    CU_ASSERT_EQUAL(truncate(file, FIXTURE_OS_BYTES - 512), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(truncate(file, FIXTURE_OS_BYTES + 512), -1);
    CU_ASSERT_EQUAL(errno, EPERM);
    CU_ASSERT_EQUAL(open_disk(FIXTURE_OS, O_RDWR | O_TRUNC), -1);
}

static void test_desktops_come_and_go(void) {
    struct stat stat_buffer;
    fake_store_add(fixture.store, "desktops/gone/os", 1 << 20, false, 0);
    CU_ASSERT_EQUAL(stat(file_of("desktops/gone/os"), &stat_buffer), 0);
    ino_t before = stat_buffer.st_ino;
    fake_store_remove(fixture.store, "desktops/gone/os");
    fake_store_add(fixture.store, "desktops/gone/os", 2 << 20, false, 0);
    CU_ASSERT_TRUE(fuse_fixture_shell(&fixture,
                                      "for i in $(seq 50); do test $(stat -c %s "
                                      "$M/desktops/gone/os.raw) = 2097152 && exit 0; "
                                      "sleep 0.1; done; exit 1"));
    CU_ASSERT_EQUAL(stat(file_of("desktops/gone/os"), &stat_buffer), 0);
    CU_ASSERT_NOT_EQUAL(stat_buffer.st_ino, before);
    fake_store_remove(fixture.store, "desktops/gone/os");
}

static void test_statfs_and_facts_tell_the_truth(void) {
    struct statvfs info;
    char value[256];
    CU_ASSERT_EQUAL_FATAL(statvfs(fixture.directory, &info), 0);
    CU_ASSERT_EQUAL(info.f_blocks * info.f_frsize, 64ull << 30);
    CU_ASSERT_EQUAL(info.f_bfree * info.f_frsize, 54ull << 30);
    CU_ASSERT_EQUAL(info.f_bavail * info.f_frsize, 54ull << 30);
    CU_ASSERT_EQUAL(info.f_files, 4);
    CU_ASSERT_EQUAL(info.f_ffree, 0);
    ssize_t bytes = getxattr(file_of(FIXTURE_OS), "user.gild.path", value, sizeof(value));
    CU_ASSERT_EQUAL(bytes, (ssize_t)strlen(FIXTURE_OS));
    CU_ASSERT_EQUAL(memcmp(value, FIXTURE_OS, strlen(FIXTURE_OS)), 0);
    CU_ASSERT_TRUE(listxattr(file_of(FIXTURE_OS), value, sizeof(value)) > 0);
    CU_ASSERT_STRING_EQUAL(value, "user.gild.path");
    CU_ASSERT_EQUAL(getxattr(file_of(FIXTURE_OS), "user.other", value, sizeof(value)), -1);
    CU_ASSERT_EQUAL(errno, ENODATA);
    CU_ASSERT_EQUAL(setxattr(file_of(FIXTURE_OS), "user.other", "x", 1, 0), -1);
}

/* ---- doors
 * ------------------------------------------------------------------------------------------ */

static void test_a_second_door_is_refused(void) {
    struct gild_disk *disk;
    struct gild_error error = {0};
    bool writable;
    CU_ASSERT_EQUAL_FATAL(
        gild_disk_open(fixture.store, FIXTURE_OS, "nbd", GILD_OPEN_WRITE, &disk, &writable, &error),
        0);
    CU_ASSERT_EQUAL(open_disk(FIXTURE_OS, O_RDWR), -1);
    CU_ASSERT_EQUAL(errno, EBUSY);
    CU_ASSERT_EQUAL(open_disk(FIXTURE_OS, O_RDONLY), -1);
    CU_ASSERT_EQUAL(errno, EBUSY);
    gild_disk_close(disk, "nbd", writable);
    int fd = open_disk(FIXTURE_OS, O_RDWR), second = open_disk(FIXTURE_OS, O_RDWR);
    CU_ASSERT_TRUE(fd >= 0 && second >= 0);
    CU_ASSERT_EQUAL(
        gild_disk_open(fixture.store, FIXTURE_OS, "nbd", GILD_OPEN_WRITE, &disk, &writable, &error),
        -EBUSY);
    close(fd);
    close(second);
}

static void test_images_are_read_only(void) {
    char byte;
    CU_ASSERT_EQUAL(open_disk(FIXTURE_IMAGE, O_RDWR), -1);
    CU_ASSERT_EQUAL(errno, EROFS);
    int fd = open_disk(FIXTURE_IMAGE, O_RDONLY);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(pread(fd, &byte, 1, FIXTURE_IMAGE_BYTES - 1), 1);
    CU_ASSERT_EQUAL(pread(fd, &byte, 1, FIXTURE_IMAGE_BYTES), 0);
    CU_ASSERT_EQUAL(fsync(fd), 0);
    close(fd);
}

/* ---- bytes
 * ------------------------------------------------------------------------------------------ */

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Any bytes at any offset, by two descriptors of one file, against a model. */
static void random_bytes(int flags, const char *path, uint64_t size, uint32_t seed) {
    const size_t longest = 1300000;
    printf(" seed %u ", seed);
    uint8_t *model = calloc(1, size);
    uint8_t *buffer = aligned_alloc(4096, 1 << 21);
    int fd = open_disk(path, O_RDWR | flags), reader = open_disk(path, O_RDONLY | flags);
    CU_ASSERT_TRUE_FATAL(fd >= 0 && reader >= 0 && model && buffer);
    memcpy(model, fake_store_bytes(fixture.store, path), size);
    for (unsigned i = 0; i < 400; i++) {
        size_t bytes = next_random(&seed) % (i % 8 ? 9000 : longest) + 1;
        uint64_t offset = next_random(&seed) % size;
        if (i % 5 == 0)
            offset &= ~511ull, bytes = (bytes + 511) & ~511ull;
        if (bytes > size - offset)
            bytes = size - offset;
        if (next_random(&seed) & 1) {
            for (size_t k = 0; k < bytes; k++)
                buffer[k] = (uint8_t)(seed + k * 7);
            memcpy(model + offset, buffer, bytes);
            CU_ASSERT_EQUAL(pwrite(fd, buffer, bytes, (off_t)offset), (ssize_t)bytes);
        } else {
            memset(buffer, 0xee, bytes);
            CU_ASSERT_EQUAL(pread(reader, buffer, bytes, (off_t)offset), (ssize_t)bytes);
            CU_ASSERT_EQUAL(memcmp(buffer, model + offset, bytes), 0);
        }
    }
    CU_ASSERT_EQUAL(fsync(fd), 0);
    CU_ASSERT_EQUAL(memcmp(fake_store_bytes(fixture.store, path), model, size), 0);
    close(fd);
    close(reader);
    free(model);
    free(buffer);
}

static void test_any_bytes_cached(void) {
    random_bytes(0, FIXTURE_OS, 8 << 20, 1);
    random_bytes(0, FIXTURE_ODD, FIXTURE_ODD_BYTES, 2);
}

static void test_any_bytes_direct(void) {
    random_bytes(O_DIRECT, FIXTURE_OS, 8 << 20, 3);
    random_bytes(O_DIRECT, FIXTURE_TEMP, 8 << 20, 4);
    random_bytes(O_DIRECT, FIXTURE_ODD, FIXTURE_ODD_BYTES, 5);
}

static void test_direct_and_cached_descriptors_agree(void) {
    char cached[4096], *direct = aligned_alloc(4096, 4096);
    int fd = open_disk(FIXTURE_OS, O_RDWR), fd_direct = open_disk(FIXTURE_OS, O_RDWR | O_DIRECT);
    CU_ASSERT_TRUE_FATAL(fd >= 0 && fd_direct >= 0 && direct);
    for (int i = 0; i < 32; i++) {
        memset(direct, 'a' + i, 4096);
        CU_ASSERT_EQUAL(pread(fd, cached, 4096, 1 << 20), 4096);
        CU_ASSERT_EQUAL(pwrite(fd_direct, direct, 4096, 1 << 20), 4096);
        CU_ASSERT_EQUAL(pread(fd, cached, 4096, 1 << 20), 4096);
        CU_ASSERT_EQUAL(memcmp(cached, direct, 4096), 0);
        memset(cached, 'A' + i, 4096);
        CU_ASSERT_EQUAL(pwrite(fd, cached, 4096, 1 << 20), 4096);
        CU_ASSERT_EQUAL(pread(fd_direct, direct, 4096, 1 << 20), 4096);
        CU_ASSERT_EQUAL(memcmp(cached, direct, 4096), 0);
    }
    close(fd);
    close(fd_direct);
    free(direct);
}

/* Many writes in flight that share sectors: none may bring back what its neighbour changed. */
static void test_neighbours_in_a_sector_keep_their_bytes(void) {
    enum { WRITES = 256, BYTES = 100 };
    static char data[WRITES][BYTES];
    struct io_uring ring;
    CU_ASSERT_EQUAL_FATAL(io_uring_queue_init(WRITES, &ring, 0), 0);
    int fd = open_disk(FIXTURE_OS, O_RDWR | O_DIRECT);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < WRITES; i++) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            memset(data[i], i + round, BYTES);
            io_uring_prep_write(sqe, fd, data[i], BYTES, 4096 + 50 + (uint64_t)i * BYTES);
        }
        CU_ASSERT_EQUAL(io_uring_submit(&ring), WRITES);
        for (int i = 0; i < WRITES; i++) {
            struct io_uring_cqe *cqe;
            CU_ASSERT_EQUAL_FATAL(io_uring_wait_cqe(&ring, &cqe), 0);
            CU_ASSERT_EQUAL(cqe->res, BYTES);
            io_uring_cqe_seen(&ring, cqe);
        }
        uint8_t *truth = fake_store_bytes(fixture.store, FIXTURE_OS) + 4096 + 50;
        CU_ASSERT_EQUAL(memcmp(truth, data, sizeof(data)), 0);
    }
    io_uring_queue_exit(&ring);
    close(fd);
}

static void test_the_end_of_a_disk_is_firm(void) {
    char buffer[1024] = {0};
    int fd = open_disk(FIXTURE_ODD, O_RDWR | O_DIRECT);
    CU_ASSERT_EQUAL(pwrite(fd, buffer, 1024, FIXTURE_ODD_BYTES - 1024), 1024);
    CU_ASSERT_EQUAL(pwrite(fd, buffer, 1024, FIXTURE_ODD_BYTES - 512), -1);
    CU_ASSERT_EQUAL(errno, EFBIG);
    CU_ASSERT_EQUAL(pwrite(fd, buffer, 1024, FIXTURE_ODD_BYTES), -1);
    CU_ASSERT_EQUAL(errno, EFBIG);
    CU_ASSERT_EQUAL(pread(fd, buffer, 1024, FIXTURE_ODD_BYTES - 100), 100);
    CU_ASSERT_EQUAL(pread(fd, buffer, 1024, FIXTURE_ODD_BYTES), 0);
    struct stat stat_buffer;
    CU_ASSERT_EQUAL(fstat(fd, &stat_buffer), 0);
    CU_ASSERT_EQUAL(stat_buffer.st_size, FIXTURE_ODD_BYTES);
    close(fd);
}

static void test_files_can_be_mapped(void) {
    static const int flags[] = {0, O_DIRECT};
    for (unsigned i = 0; i < 2; i++) {
        int fd = open_disk(FIXTURE_OS, O_RDWR | flags[i]);
        uint8_t *map = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CU_ASSERT_NOT_EQUAL_FATAL(map, MAP_FAILED);
        CU_ASSERT_EQUAL(memcmp(map, fake_store_bytes(fixture.store, FIXTURE_OS), 1 << 20), 0);
        memset(map + 5000, 0x21 + (int)i, 10000);
        CU_ASSERT_EQUAL(msync(map, 1 << 20, MS_SYNC), 0);
        CU_ASSERT_EQUAL(memcmp(map, fake_store_bytes(fixture.store, FIXTURE_OS), 1 << 20), 0);
        munmap(map, 1 << 20);
        close(fd);
    }
}

/* ---- durability, space
 * ------------------------------------------------------------------------------- */

static void test_fsync_is_a_flush(void) {
    struct fake_counts *counts = fake_store_counts(fixture.store);
    char buffer[512] = {1};
    int fd = open_disk(FIXTURE_OS, O_RDWR), dsync = open_disk(FIXTURE_OS, O_RDWR | O_DSYNC);
    unsigned before = atomic_load(&counts->flushes);
    CU_ASSERT_EQUAL(pwrite(fd, buffer, 512, 0), 512);
    CU_ASSERT_EQUAL(fsync(fd), 0);
    CU_ASSERT_EQUAL(atomic_load(&counts->flushes), before + 1);
    CU_ASSERT_EQUAL(fdatasync(fd), 0);
    CU_ASSERT_EQUAL(atomic_load(&counts->flushes), before + 2);
    unsigned durable = atomic_load(&counts->flushes) + atomic_load(&counts->fua);
    CU_ASSERT_EQUAL(pwrite(dsync, buffer, 512, 0), 512);
    CU_ASSERT_TRUE(atomic_load(&counts->flushes) + atomic_load(&counts->fua) > durable);
    before = atomic_load(&counts->flushes);
    close(fd);
    CU_ASSERT_EQUAL(atomic_load(&counts->flushes), before + 1);
    close(dsync);
}

/* Fills, then erases [from, from + bytes) and compares with what must be left. */
static void erase_range(int fd, int mode, off_t from, off_t bytes) {
    enum { AREA = 64 << 10 };
    static uint8_t area[AREA];
    memset(area, 0x77, AREA);
    CU_ASSERT_EQUAL(pwrite(fd, area, AREA, 0), AREA);
    CU_ASSERT_EQUAL(fallocate(fd, mode, from, bytes), 0);
    memset(area + from, 0, (size_t)bytes);
    CU_ASSERT_EQUAL(memcmp(area, fake_store_bytes(fixture.store, FIXTURE_OS), AREA), 0);
}

static void test_fallocate_punches_and_zeroes_any_bytes(void) {
    static const off_t ranges[][2] = {{0, 65536}, {4096, 8192}, {512, 1024},  {100, 50},
                                      {100, 412}, {512, 100},   {500, 24},    {100, 1000},
                                      {100, 924}, {4000, 9000}, {1024, 5000}, {511, 2}};
    struct fake_counts *counts = fake_store_counts(fixture.store);
    int fd = open_disk(FIXTURE_OS, O_RDWR);
    for (unsigned i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
        erase_range(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, ranges[i][0], ranges[i][1]);
        erase_range(fd, FALLOC_FL_ZERO_RANGE, ranges[i][0], ranges[i][1]);
        erase_range(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, ranges[i][0], ranges[i][1]);
    }
    unsigned trims = atomic_load(&counts->trims), zeroes = atomic_load(&counts->zeroes);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 128 << 20), 0);
    CU_ASSERT_EQUAL(atomic_load(&counts->trims), trims + 1);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 128 << 20), 0);
    CU_ASSERT_EQUAL(atomic_load(&counts->zeroes), zeroes + 1);
    close(fd);
}

static void test_fallocate_does_not_grow_a_disk(void) {
    off_t size = FIXTURE_OS_BYTES;
    int fd = open_disk(FIXTURE_OS, O_RDWR);
    CU_ASSERT_EQUAL(fallocate(fd, 0, 0, size), 0);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_KEEP_SIZE, 4096, 4096), 0);
    CU_ASSERT_EQUAL(fallocate(fd, 0, 0, size + 1), -1);
    CU_ASSERT_EQUAL(errno, EFBIG);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_ZERO_RANGE, size - 512, 1024), -1);
    CU_ASSERT_EQUAL(errno, EFBIG);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size - 512, 1 << 20),
                    0);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size, 1 << 20), 0);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -1);
    CU_ASSERT_EQUAL(errno, EOPNOTSUPP);
    close(fd);
}

static void test_holes_are_found(void) {
    static char block[4096] = {1};
    off_t size = FIXTURE_OS_BYTES;
    int fd = open_disk(FIXTURE_OS, O_RDWR);
    CU_ASSERT_EQUAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size), 0);
    CU_ASSERT_EQUAL(lseek(fd, 0, SEEK_DATA), -1);
    CU_ASSERT_EQUAL(errno, ENXIO);
    CU_ASSERT_EQUAL(lseek(fd, 77, SEEK_HOLE), 77);
    /* More runs than one answer of the engine holds. */
    for (off_t at = 0; at < 400; at += 2)
        CU_ASSERT_EQUAL(pwrite(fd, block, 4096, (8 << 20) + at * 4096), 4096);
    CU_ASSERT_EQUAL(lseek(fd, 0, SEEK_DATA), 8 << 20);
    CU_ASSERT_EQUAL(lseek(fd, 8 << 20, SEEK_HOLE), (8 << 20) + 4096);
    CU_ASSERT_EQUAL(lseek(fd, (8 << 20) + 100, SEEK_DATA), (8 << 20) + 100);
    CU_ASSERT_EQUAL(lseek(fd, (8 << 20) + 399 * 4096, SEEK_DATA), -1);
    for (off_t at = 0; at < 400; at++)
        CU_ASSERT_EQUAL(pwrite(fd, block, 4096, (16 << 20) + at * 4096), 4096);
    CU_ASSERT_EQUAL(lseek(fd, (8 << 20) + 399 * 4096, SEEK_DATA), 16 << 20);
    CU_ASSERT_EQUAL(lseek(fd, 16 << 20, SEEK_HOLE), (16 << 20) + 400 * 4096);
    CU_ASSERT_EQUAL(lseek(fd, size, SEEK_HOLE), -1);
    CU_ASSERT_EQUAL(errno, ENXIO);
    struct stat stat_buffer;
    CU_ASSERT_TRUE(fuse_fixture_shell(&fixture, "sleep 1.1"));
    CU_ASSERT_EQUAL(fstat(fd, &stat_buffer), 0);
    CU_ASSERT_EQUAL(stat_buffer.st_blocks, 600 * 8);
    close(fd);
}

/* ---- run
 * ---------------------------------------------------------------------------------------------- */

static enum fake_mode mode;

static int start(void) {
    fuse_fixture_start(&fixture, mode);
    return 0;
}

static int stop(void) {
    fuse_fixture_stop(&fixture);
    return 0;
}

static void add_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_the_tree_shows_disks_as_raw_files);
    CU_ADD_TEST(suite, test_unknown_names_are_not_found);
    CU_ADD_TEST(suite, test_nothing_is_made_or_removed_through_the_mount);
    CU_ADD_TEST(suite, test_size_can_not_change);
    CU_ADD_TEST(suite, test_statfs_and_facts_tell_the_truth);
    CU_ADD_TEST(suite, test_desktops_come_and_go);
    CU_ADD_TEST(suite, test_a_second_door_is_refused);
    CU_ADD_TEST(suite, test_images_are_read_only);
    CU_ADD_TEST(suite, test_any_bytes_cached);
    CU_ADD_TEST(suite, test_any_bytes_direct);
    CU_ADD_TEST(suite, test_direct_and_cached_descriptors_agree);
    CU_ADD_TEST(suite, test_neighbours_in_a_sector_keep_their_bytes);
    CU_ADD_TEST(suite, test_the_end_of_a_disk_is_firm);
    CU_ADD_TEST(suite, test_files_can_be_mapped);
    CU_ADD_TEST(suite, test_fsync_is_a_flush);
    CU_ADD_TEST(suite, test_fallocate_punches_and_zeroes_any_bytes);
    CU_ADD_TEST(suite, test_fallocate_does_not_grow_a_disk);
    CU_ADD_TEST(suite, test_holes_are_found);
}

/* The same promises in both modes, each on a mount of its own. */
int main(void) {
    fuse_fixture_require();
    unsigned failures = 0;
    for (mode = FAKE_INLINE; mode <= FAKE_POSTPONE; mode++) {
        CU_initialize_registry();
        CU_pSuite suite =
            CU_add_suite(mode == FAKE_INLINE ? "ops done at once" : "ops done later", start, stop);
        add_tests(suite);
        CU_basic_set_mode(CU_BRM_VERBOSE);
        CU_basic_run_tests();
        failures += CU_get_number_of_failures() + CU_get_number_of_suites_failed();
        CU_cleanup_registry();
    }
    return failures ? 1 : 0;
}
