/* What an import reads from: every format gives the same bytes in ascending order, holes are not
 * read, and whatever is wrong with an image is refused with one sentence, with no child process, no
 * folder and no descriptor left behind.
 *
 * Needs qemu-img and qemu-nbd (skipped without them). */
#include "vdi/source.h"

#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK_BYTES ((24u << 20) + 512) /* the last block is not whole */
#define DATA_BYTES (5u << 20)

static char folder[64];
static uint8_t *disk; /* what every image of the test holds */

/* ---- helpers --------------------------------------------------------------------------------- */

static char *path_of(const char *name) {
    static char paths[4][256];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

/* Runs a shell line in the test's folder. */
static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...) {
    char line[1024], full[1200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    snprintf(full, sizeof(full), "cd %s && %s", folder, line);
    CU_ASSERT_EQUAL_FATAL(system(full), 0);
}

static void fill_random(uint8_t *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t mixed = seed ^ seed >> 29;
        memcpy(at + i, &mixed, 8);
    }
}

/* Data at the start, a long stretch, single blocks, one sector, and the very end. */
static int make_disk(void) {
    disk = calloc(1, DISK_BYTES + 4096);
    fill_random(disk, 4096, 1);
    fill_random(disk + (1u << 20) + 8192, 4u << 20, 2);
    for (unsigned i = 0; i < 20; i++) {
        fill_random(disk + (12u << 20) + i * 139264, 4096, 100 + i);
    }
    fill_random(disk + (20u << 20) + 512, 512, 3);
    fill_random(disk + DISK_BYTES - 1024, 1024, 4);
    FILE *file = fopen(path_of("disk.raw"), "w");
    for (size_t at = 0; at < DISK_BYTES; at += 4096) {
        size_t bytes = DISK_BYTES - at < 4096 ? DISK_BYTES - at : 4096;
        bool zero = disk[at] == 0 && memcmp(disk + at, disk + at + 1, bytes - 1) == 0;
        if (zero) {
            fseek(file, (long)bytes, SEEK_CUR);
        } else {
            fwrite(disk + at, bytes, 1, file);
        }
    }
    return fclose(file) != 0 || truncate(path_of("disk.raw"), DISK_BYTES) != 0;
}

static unsigned count_entries(const char *where) {
    DIR *directory = opendir(where);
    unsigned count = 0;
    while (directory && readdir(directory)) {
        count++;
    }
    closedir(directory);
    return count;
}

/* What must be the same before and after: our descriptors, our children, the temporary folder. */
struct traces {
    unsigned fds, temporary;
};

static struct traces look(void) {
    return (struct traces){count_entries("/proc/self/fd"), count_entries(path_of("tmp"))};
}

static void check_no_traces(struct traces before) {
    struct traces after = look();
    CU_ASSERT_EQUAL(after.fds, before.fds);
    CU_ASSERT_EQUAL(after.temporary, before.temporary);
    CU_ASSERT_EQUAL(waitpid(-1, NULL, WNOHANG), -1);
    CU_ASSERT_EQUAL(errno, ECHILD);
}

/* Reads it all; compares with `expected`; returns how many bytes were given. */
static uint64_t read_all(const char *name, const char *format, bool allow_backing,
                         const char *format_found, const uint8_t *expected, uint64_t size) {
    struct traces before = look();
    struct vdi_source *source = NULL;
    struct vdi_chunk chunk;
    struct gild_error error = {0};
    uint64_t given = 0, at = 0;
    int result = vdi_source_open(&source, name, format, allow_backing, &error);
    if (result < 0) {
        printf("\n    %s: %s ", name, error.message);
        CU_FAIL("not opened");
        return 0;
    }
    CU_ASSERT_EQUAL(vdi_source_size_bytes(source), size);
    CU_ASSERT_STRING_EQUAL(vdi_source_format(source), format_found);
    uint8_t *got = calloc(1, size + 4096);
    while ((result = vdi_source_next(source, &chunk, &error)) > 0) {
        if (chunk.bytes == 0) {
            continue;
        }
        CU_ASSERT_TRUE_FATAL(chunk.offset_bytes >= at);
        CU_ASSERT_TRUE_FATAL(chunk.offset_bytes + chunk.bytes <= size + 4095);
        CU_ASSERT_EQUAL(chunk.offset_bytes % 4096, 0);
        CU_ASSERT_EQUAL(chunk.bytes % 4096, 0);
        memcpy(got + chunk.offset_bytes, chunk.data, chunk.bytes);
        at = chunk.offset_bytes + chunk.bytes;
        given += chunk.bytes;
    }
    if (result < 0) {
        printf("\n    %s: %s ", name, error.message);
    }
    CU_ASSERT_EQUAL(result, 0);
    CU_ASSERT_EQUAL(memcmp(got, expected, size), 0);
    CU_ASSERT_EQUAL(got[size], 0); /* the last block is filled up */
    free(got);
    vdi_source_close(source);
    check_no_traces(before);
    return given;
}

/* Opens (and reads, if it opens) and expects a refusal that names the file and says `says`. */
static void refused(const char *name, const char *format, enum gild_code code, const char *says) {
    struct traces before = look();
    struct vdi_source *source = NULL;
    struct vdi_chunk chunk;
    struct gild_error error = {0};
    int result = vdi_source_open(&source, name, format, false, &error);
    if (result == 0) {
        while ((result = vdi_source_next(source, &chunk, &error)) > 0) {
        }
        vdi_source_close(source);
    }
    CU_ASSERT_TRUE(result < 0);
    CU_ASSERT_EQUAL(error.code, code);
    bool good = strstr(error.message, says) && strstr(error.message, name);
    if (!good || error.code != code) {
        printf("\n    %s: code %d: %s ", name, error.code, error.message);
    }
    CU_ASSERT_TRUE(good);
    CU_ASSERT_PTR_NULL(strchr(error.message, '\n'));
    check_no_traces(before);
}

/* ---- what is read ---------------------------------------------------------------------------- */

static void test_all_formats_give_the_same_bytes(void) {
    static const char *const formats[] = {"qcow2", "vmdk", "vhdx", "vdi"};
    uint64_t given = read_all(path_of("disk.raw"), NULL, false, "raw", disk, DISK_BYTES);
    CU_ASSERT_TRUE(given < DATA_BYTES);
    for (unsigned i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof(name), "disk.%s", formats[i]);
        shell("qemu-img convert -f raw -O %s disk.raw %s", formats[i], name);
        given = read_all(path_of(name), NULL, false, formats[i], disk, DISK_BYTES);
        read_all(path_of(name), formats[i], false, formats[i], disk, DISK_BYTES);
        if (strcmp(formats[i], "vhdx") != 0) { /* VHDX reports holes as data */
            CU_ASSERT_TRUE(given < DISK_BYTES / 2);
        }
    }
}

static void test_other_kinds_of_images_give_the_same_bytes(void) {
    shell("qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2");
    read_all(path_of("packed.qcow2"), NULL, false, "qcow2", disk, DISK_BYTES);
    shell(
        "qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd,cluster_size=4k disk.raw "
        "small.qcow2");
    read_all(path_of("small.qcow2"), NULL, false, "qcow2", disk, DISK_BYTES);
    shell("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw stream.vmdk");
    read_all(path_of("stream.vmdk"), NULL, false, "vmdk", disk, DISK_BYTES);
    shell("qemu-img convert -f raw -O qcow2 -o preallocation=metadata disk.raw prealloc.qcow2");
    read_all(path_of("prealloc.qcow2"), NULL, false, "qcow2", disk, DISK_BYTES);
    shell("qemu-img convert -f raw -O vdi -o static=on disk.raw static.vdi");
    read_all(path_of("static.vdi"), NULL, false, "vdi", disk, DISK_BYTES);
    shell("qemu-img convert -f raw -O vhdx -o subformat=fixed disk.raw fixed.vhdx");
    read_all(path_of("fixed.vhdx"), NULL, false, "vhdx", disk, DISK_BYTES);
    shell("cp disk.qcow2 'odd, json:{name}.qcow2' && cp disk.raw 'nbd:odd'");
    read_all(path_of("odd, json:{name}.qcow2"), NULL, false, "qcow2", disk, DISK_BYTES);
    read_all(path_of("nbd:odd"), NULL, false, "raw", disk, DISK_BYTES);
    shell("rm -f packed.qcow2 small.qcow2 stream.vmdk prealloc.qcow2 static.vdi fixed.vhdx *odd*");
}

static void test_an_all_hole_image_gives_nothing(void) {
    uint8_t *nothing = calloc(1, (1u << 20) + 4096);
    shell("truncate -s 1M hole.raw && qemu-img convert -f raw -O qcow2 hole.raw hole.qcow2");
    CU_ASSERT_EQUAL(read_all(path_of("hole.raw"), NULL, false, "raw", nothing, 1u << 20), 0);
    CU_ASSERT_EQUAL(read_all(path_of("hole.qcow2"), NULL, false, "qcow2", nothing, 1u << 20), 0);
    free(nothing);
}

static void test_an_nbd_uri_is_read(void) {
    char uri[256];
    shell("qemu-nbd --fork -r -f raw -x '' -k %s/nbd.sock disk.raw", folder);
    snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s/nbd.sock", folder);
    uint64_t given = read_all(uri, NULL, false, "nbd", disk, DISK_BYTES);
    CU_ASSERT_TRUE(given < DATA_BYTES);
    refused(uri, "qcow2", GILD_USAGE, "leave out --format");
    refused("nbd+unix:///?socket=/nowhere/nbd.sock", NULL, GILD_NOT_FOUND, "cannot connect");
}

static void test_closing_early_leaves_nothing(void) {
    const char *names[] = {"disk.raw", "disk.qcow2", "disk.vhdx"};
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned chunks = 0; chunks < 3; chunks++) {
            struct traces before = look();
            struct vdi_source *source = NULL;
            struct vdi_chunk chunk;
            struct gild_error error;
            CU_ASSERT_EQUAL_FATAL(vdi_source_open(&source, path_of(names[i]), NULL, false, &error),
                                  0);
            for (unsigned n = 0; n < chunks; n++) {
                CU_ASSERT_EQUAL(vdi_source_next(source, &chunk, &error), 1);
            }
            vdi_source_close(source);
            check_no_traces(before);
        }
    }
}

/* ---- what leans on other files --------------------------------------------------------------- */

static void test_backing_and_data_files_are_refused_unless_allowed(void) {
    shell(
        "qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 child.qcow2 && "
        "qemu-img create -q -f qcow2 -o data_file=data.raw data.qcow2 1M && "
        "qemu-io -f qcow2 -c 'write -P 9 64k 64k' data.qcow2 >/dev/null && "
        "qemu-img convert -f raw -O vmdk -o subformat=twoGbMaxExtentFlat disk.raw split.vmdk && "
        "qemu-img create -q -f vmdk -b disk.vmdk -F vmdk child.vmdk");
    refused(path_of("child.qcow2"), NULL, GILD_USAGE, "--allow-backing");
    refused(path_of("child.vmdk"), NULL, GILD_USAGE, "--allow-backing");
    refused(path_of("data.qcow2"), NULL, GILD_USAGE, "--allow-backing");
    refused(path_of("split.vmdk"), NULL, GILD_USAGE, "--allow-backing");
    read_all(path_of("child.qcow2"), NULL, true, "qcow2", disk, DISK_BYTES);
    read_all(path_of("child.vmdk"), NULL, true, "vmdk", disk, DISK_BYTES);
    read_all(path_of("split.vmdk"), NULL, true, "vmdk", disk, DISK_BYTES);
    uint8_t *expected = calloc(1, (1u << 20) + 4096);
    memset(expected + 65536, 9, 65536);
    read_all(path_of("data.qcow2"), NULL, true, "qcow2", expected, 1u << 20);
    free(expected);
    /* A backing file that is not there. */
    shell(
        "rm disk.vmdk child.vmdk && qemu-img create -q -u -f qcow2 -b gone.qcow2 -F qcow2 "
        "orphan.qcow2 1M");
    refused(path_of("orphan.qcow2"), NULL, GILD_USAGE, "gone.qcow2");
}

/* ---- what is wrong --------------------------------------------------------------------------- */

static void test_what_is_no_image_is_refused(void) {
    shell(
        "mkdir -p dir && : > empty && printf 'hello\\n' > text && head -c 1024 /dev/urandom | "
        "base64 -w0 | head -c 1024 > text512 && head -c 1000 /dev/urandom > odd && mkfifo pipe && "
        "gzip -kc disk.qcow2 > disk.gz && qemu-img create -q -f vpc disk.vhd 2M");
    refused(path_of("missing.qcow2"), NULL, GILD_NOT_FOUND, "there is no image file");
    refused(path_of("dir"), NULL, GILD_USAGE, "is a directory");
    refused(path_of("empty"), NULL, GILD_USAGE, "is empty");
    refused(path_of("text"), NULL, GILD_USAGE, "looks like text");
    refused(path_of("text512"), NULL, GILD_USAGE, "looks like text");
    refused(path_of("odd"), NULL, GILD_USAGE, "not a multiple of 512");
    refused(path_of("odd"), "raw", GILD_USAGE, "not a multiple of 512");
    refused(path_of("pipe"), NULL, GILD_USAGE, "no regular file");
    refused(path_of("disk.gz"), NULL, GILD_USAGE, "gzip");
    refused(path_of("disk.vhd"), NULL, GILD_USAGE, "VHD");
    refused("http://host/disk.qcow2", NULL, GILD_USAGE, "URI");
    refused("/dev/zero", NULL, GILD_USAGE, "no regular file");
    struct vdi_source *source;
    struct gild_error error;
    CU_ASSERT_TRUE(vdi_source_open(&source, path_of("disk.raw"), "ova", false, &error) < 0);
    CU_ASSERT_EQUAL(error.code, GILD_USAGE);
}

static void test_wrong_formats_are_refused(void) {
    refused(path_of("disk.raw"), "qcow2", GILD_CORRUPT, "not in qcow2 format");
    refused(path_of("disk.qcow2"), "vmdk", GILD_CORRUPT, "cannot be read as vmdk");
    refused(path_of("disk.qcow2"), "vdi", GILD_CORRUPT, "cannot be read as vdi");
    refused(path_of("disk.vdi"), "vhdx", GILD_CORRUPT, "cannot be read as vhdx");
}

/* Cuts a copy of an image off: it must be refused, or (if what is lost held nothing) read right.
 * True if it was refused. */
static bool cut_is_noticed(const char *name, long long length) {
    struct traces before = look();
    struct vdi_source *source = NULL;
    struct vdi_chunk chunk;
    struct gild_error error = {0};
    char cut[64];
    snprintf(cut, sizeof(cut), "cut-%s", name);
    shell("cp %s %s && truncate -s %lld %s", name, cut, length, cut);
    uint8_t *got = calloc(1, DISK_BYTES + 4096);
    int result = vdi_source_open(&source, path_of(cut), strrchr(name, '.') + 1, false, &error);
    if (result == 0) {
        while ((result = vdi_source_next(source, &chunk, &error)) > 0) {
            memcpy(got + chunk.offset_bytes, chunk.data, chunk.bytes);
        }
    }
    vdi_source_close(source);
    if (result < 0) {
        CU_ASSERT_EQUAL(error.code, GILD_CORRUPT);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.message, cut));
    } else {
        CU_ASSERT_EQUAL(memcmp(got, disk, DISK_BYTES), 0);
    }
    free(got);
    check_no_traces(before);
    return result < 0;
}

static void test_truncated_images_are_refused(void) {
    static const char *const names[] = {"disk.qcow2", "disk.vmdk", "disk.vhdx", "disk.vdi",
                                        "packed.qcow2"};
    shell(
        "qemu-img convert -f raw -O vmdk disk.raw disk.vmdk && "
        "qemu-img convert -c -f raw -O qcow2 disk.raw packed.qcow2");
    for (unsigned i = 0; i < 5; i++) {
        struct stat status;
        unsigned noticed = 0;
        CU_ASSERT_EQUAL(stat(path_of(names[i]), &status), 0);
        for (unsigned cut = 1; cut < 10; cut++) {
            noticed += cut_is_noticed(names[i], (long long)(status.st_size * cut / 10));
        }
        CU_ASSERT_TRUE(noticed >= 8);
    }
    /* Within the last clusters, where data and tables alternate. */
    for (unsigned i = 0; i < 5; i += 4) {
        struct stat status;
        CU_ASSERT_EQUAL(stat(path_of(names[i]), &status), 0);
        for (long long cut = 1; cut < 300000; cut += 19997) {
            cut_is_noticed(names[i], (long long)status.st_size - cut);
        }
    }
}

static void overwrite(const char *name, long offset, unsigned bytes) {
    FILE *file = fopen(path_of(name), "r+");
    uint8_t rubbish[4096];
    fill_random(rubbish, sizeof(rubbish), (uint64_t)offset + 77);
    fseek(file, offset, SEEK_SET);
    fwrite(rubbish, bytes, 1, file);
    fclose(file);
}

static void test_damaged_images_are_refused(void) {
    shell("cp disk.qcow2 header.qcow2 && cp disk.qcow2 tables.qcow2 && cp disk.vhdx header.vhdx");
    overwrite("header.qcow2", 16, 64); /* behind the mark and the version */
    refused(path_of("header.qcow2"), NULL, GILD_CORRUPT, "header.qcow2");
    overwrite("tables.qcow2", 3 * 65536, 4096); /* L1 */
    refused(path_of("tables.qcow2"), NULL, GILD_CORRUPT, "tables.qcow2");
    overwrite("header.vhdx", 64 << 10, 4096); /* both headers: nothing is valid any more */
    overwrite("header.vhdx", 128 << 10, 4096);
    refused(path_of("header.vhdx"), NULL, GILD_CORRUPT, "header.vhdx");
    /* A compressed cluster that is rubbish: only reading it shows. */
    shell(
        "yes gild | head -c 1048576 > plain.raw && "
        "qemu-img convert -c -f raw -O qcow2 plain.raw rot.qcow2");
    struct stat status;
    CU_ASSERT_EQUAL(stat(path_of("rot.qcow2"), &status), 0);
    shell("qemu-img map --output=json rot.qcow2 > /dev/null");
    for (long at = 5 * 65536; at < status.st_size; at += 4096) {
        overwrite("rot.qcow2", at, 4096);
    }
    refused(path_of("rot.qcow2"), NULL, GILD_CORRUPT, "damaged");
}

static void test_a_file_that_is_written_meanwhile_is_refused(void) {
    struct vdi_source *source = NULL;
    struct vdi_chunk chunk;
    struct gild_error error;
    int result;
    shell("cp --sparse=always disk.raw busy.raw");
    CU_ASSERT_EQUAL_FATAL(vdi_source_open(&source, path_of("busy.raw"), NULL, false, &error), 0);
    CU_ASSERT_EQUAL(vdi_source_next(source, &chunk, &error), 1);
    overwrite("busy.raw", 8192, 4096);
    while ((result = vdi_source_next(source, &chunk, &error)) > 0) {
    }
    CU_ASSERT_TRUE(result < 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, "was written while it was read"));
    vdi_source_close(source);
}

static void test_the_server_dies_with_us(void) {
    int told[2];
    CU_ASSERT_EQUAL_FATAL(pipe2(told, O_CLOEXEC), 0);
    pid_t importer = fork();
    if (importer == 0) {
        struct vdi_source *source;
        struct gild_error error;
        char children[64] = "", where[64];
        pid_t server = -1;
        if (vdi_source_open(&source, path_of("disk.vhdx"), NULL, false, &error) == 0) {
            snprintf(where, sizeof(where), "/proc/self/task/%d/children", getpid());
            int fd = open(where, O_RDONLY);
            if (read(fd, children, sizeof(children) - 1) > 0) {
                server = atoi(children);
            }
        }
        ssize_t written = write(told[1], &server, sizeof(server));
        (void)written;
        pause();
    }
    pid_t server = -1;
    CU_ASSERT_EQUAL(read(told[0], &server, sizeof(server)), sizeof(server));
    CU_ASSERT_TRUE_FATAL(server > 0);
    int handle = pidfd_open(server, 0);
    CU_ASSERT_TRUE_FATAL(handle >= 0);
    struct pollfd ended = {.fd = handle, .events = POLLIN};
    CU_ASSERT_EQUAL(poll(&ended, 1, 0), 0); /* it lives */
    kill(importer, SIGKILL);
    CU_ASSERT_EQUAL(waitpid(importer, NULL, 0), importer);
    CU_ASSERT_EQUAL(poll(&ended, 1, 20000), 1);
    close(handle);
    close(told[0]);
    close(told[1]);
}

int main(void) {
    if (system("qemu-img --version >/dev/null 2>&1 && qemu-nbd --version >/dev/null 2>&1") != 0) {
        printf("skipped: qemu-img or qemu-nbd is missing (package qemu-utils)\n");
        return 77;
    }
    CU_TestInfo tests[] = {
        {"all formats give the same bytes", test_all_formats_give_the_same_bytes},
        {"other kinds of images too", test_other_kinds_of_images_give_the_same_bytes},
        {"an all-hole image gives nothing", test_an_all_hole_image_gives_nothing},
        {"an NBD URI is read", test_an_nbd_uri_is_read},
        {"closing early leaves nothing", test_closing_early_leaves_nothing},
        {"what is no image is refused", test_what_is_no_image_is_refused},
        {"wrong formats are refused", test_wrong_formats_are_refused},
        {"backing and data files are refused unless allowed",
         test_backing_and_data_files_are_refused_unless_allowed},
        {"truncated images are refused", test_truncated_images_are_refused},
        {"damaged images are refused", test_damaged_images_are_refused},
        {"a file that is written meanwhile is refused",
         test_a_file_that_is_written_meanwhile_is_refused},
        {"the server dies with us", test_the_server_dies_with_us},
        CU_TEST_INFO_NULL,
    };
    CU_SuiteInfo suites[] = {{"import source", make_disk, NULL, NULL, NULL, tests},
                             CU_SUITE_INFO_NULL};
    char *shared = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/gild-test-XXXXXX",
             shared && strlen(shared) < 40 ? shared : "/tmp");
    if (!mkdtemp(folder) || mkdir(path_of("tmp"), 0700) < 0 ||
        setenv("TMPDIR", path_of("tmp"), 1) < 0 || CU_initialize_registry() != CUE_SUCCESS ||
        CU_register_suites(suites) != CUE_SUCCESS) {
        return 1;
    }
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures() + CU_get_number_of_failure_records();
    CU_cleanup_registry();
    char remove[96];
    snprintf(remove, sizeof(remove), "rm -rf %s", folder);
    free(disk);
    return system(remove) != 0 || failed ? 1 : 0;
}
