/* What io/file.h promises to those who keep a store's files. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"

static int folder = -1;
static char folder_path[] = "/tmp/gild-test-file-XXXXXX";

static int make_folder(void) {
    if (!mkdtemp(folder_path))
        return 1;
    folder = open(folder_path, O_RDONLY | O_DIRECTORY);
    return folder < 0;
}

static int remove_entry(void *context, const char *name) {
    ++*(int *)context;
    return gild_file_remove(folder, name);
}

static int remove_folder(void) {
    int count = 0;
    int result = gild_file_list(folder, remove_entry, &count);
    close(folder);
    return result || rmdir(folder_path);
}

static void test_replace_shows_all_or_the_old(void) {
    void *bytes;
    size_t length;
    CU_ASSERT_EQUAL(gild_file_replace(folder, "conf", "one", 3, 0600), 0);
    CU_ASSERT_EQUAL(gild_file_replace(folder, "conf", "second", 6, 0600), 0);
    CU_ASSERT_EQUAL_FATAL(gild_file_slurp(folder, "conf", 100, &bytes, &length), 0);
    CU_ASSERT_EQUAL(length, 6);
    CU_ASSERT_STRING_EQUAL(bytes, "second");
    free(bytes);
    CU_ASSERT_EQUAL(faccessat(folder, "conf.tmp", F_OK, 0), -1);
    CU_ASSERT_EQUAL(gild_file_slurp(folder, "conf", 5, &bytes, &length), -EFBIG);
    CU_ASSERT_EQUAL(gild_file_slurp(folder, "none", 5, &bytes, &length), -ENOENT);
    /* A failed rename leaves no temporary file. */
    CU_ASSERT_EQUAL(mkdirat(folder, "taken", 0700), 0);
    CU_ASSERT_EQUAL(gild_file_replace(folder, "taken", "x", 1, 0600), -EISDIR);
    CU_ASSERT_EQUAL(faccessat(folder, "taken.tmp", F_OK, 0), -1);
    CU_ASSERT_EQUAL(unlinkat(folder, "taken", AT_REMOVEDIR), 0);
}

static void test_reads_are_whole_or_say_so(void) {
    char text[16] = {0};
    int fd = gild_file_open(folder, "short", O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(gild_file_write(fd, "0123456789", 10, 5), 0);
    CU_ASSERT_EQUAL(gild_file_read(fd, text, 10, 5), 0);
    CU_ASSERT_STRING_EQUAL(text, "0123456789");
    CU_ASSERT_EQUAL(gild_file_read(fd, text, 11, 5), -ENODATA);
    CU_ASSERT_EQUAL(gild_file_read_some(fd, text, 11, 5), 10);
    CU_ASSERT_EQUAL(gild_file_read_some(fd, text, 1, 15), 0);
    CU_ASSERT_EQUAL(gild_file_sync(fd), 0);
    CU_ASSERT_EQUAL(gild_file_sync_folder(folder), 0);
    close(fd);
    CU_ASSERT_EQUAL(gild_file_open(folder, "short", O_RDWR | O_CREAT | O_EXCL, 0600, NULL),
                    -EEXIST);
    CU_ASSERT_EQUAL(gild_file_read(-1, text, 1, 0), -EBADF);
}

static void test_direct_files_end_at_any_byte(void) {
    bool direct;
    uint64_t size;
    char *buffer = gild_file_buffer(8192);
    int fd = gild_file_open(folder, "direct", O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600, &direct);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    CU_ASSERT_EQUAL((uintptr_t)buffer % GILD_DIRECT_BYTES, 0);
    CU_ASSERT_EQUAL(!!(fcntl(fd, F_GETFL) & O_DIRECT), direct);
    memset(buffer, 7, 8192);
    CU_ASSERT_EQUAL(gild_file_write(fd, buffer, 8192, 0), 0);
    CU_ASSERT_EQUAL(ftruncate(fd, 5000), 0);
    CU_ASSERT_EQUAL(gild_file_read_some(fd, buffer, 8192, 0), 5000);
    CU_ASSERT_EQUAL(gild_file_size(fd, &size), 0);
    CU_ASSERT_EQUAL(size, 5000);
    close(fd);
    free(buffer);
}

static void test_allocate_reserves_blocks(void) {
    struct stat status;
    int fd = gild_file_open(folder, "reserved", O_RDWR | O_CREAT, 0600, NULL);
    CU_ASSERT_EQUAL(gild_file_allocate(fd, 3 << 20), 0);
    CU_ASSERT_EQUAL(fstat(fd, &status), 0);
    CU_ASSERT_EQUAL(status.st_size, 3 << 20);
    CU_ASSERT_TRUE(status.st_blocks >= (3 << 20) / 512);
    close(fd);
    CU_ASSERT_EQUAL(gild_file_allocate(-1, 4096), -EBADF);
}

static int stop_at_first(void *context, const char *name) {
    (void)context, (void)name;
    return 42;
}

static void test_list_visits_and_stops(void) {
    int count = 0;
    CU_ASSERT_EQUAL(gild_file_remove(folder, "never there"), 0);
    CU_ASSERT_EQUAL(gild_file_replace(folder, "a", "", 0, 0600), 0);
    CU_ASSERT_EQUAL(gild_file_list(folder, stop_at_first, NULL), 42);
    CU_ASSERT_EQUAL(gild_file_list(folder, remove_entry, &count), 0);
    CU_ASSERT_TRUE(count >= 1);
    count = 0;
    CU_ASSERT_EQUAL(gild_file_list(folder, remove_entry, &count), 0);
    CU_ASSERT_EQUAL(count, 0);
}

int main(void) {
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("file", make_folder, remove_folder);
    CU_ADD_TEST(suite, test_replace_shows_all_or_the_old);
    CU_ADD_TEST(suite, test_reads_are_whole_or_say_so);
    CU_ADD_TEST(suite, test_direct_files_end_at_any_byte);
    CU_ADD_TEST(suite, test_allocate_reserves_blocks);
    CU_ADD_TEST(suite, test_list_visits_and_stops);
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
