/* The tools that people point at the mount, a loop device under memory pressure, and the mount's
 * life: what it refuses to be mounted on, what it takes over, how it ends. Over a fake tree. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse_fixture.h"

static struct fuse_fixture fixture;

static bool shell(const char *script) {
    return fuse_fixture_shell(&fixture, script);
}

/* ---- tools
 * -------------------------------------------------------------------------------------------- */

/* Makes a file system, fills it, mounts it again and compares; ends unmounted. */
#define LOOP_TEST(kind, direct)                                                           \
    "set -e; D=$(mktemp -d); S=$(mktemp -d); L=$(losetup -f --show --direct-io=" direct   \
    " $T); "                                                                              \
    "trap 'umount $D 2>/dev/null || true; losetup -d $L; rm -rf $D $S' EXIT; "            \
    "for i in $(seq 300); do seq $i $((i * 20)) >$S/$i; done; seq 2000000 >$S/big; " kind \
    " $L >/dev/null; mount $L $D; cp -r $S $D/all; cp -r $S $D/gone; sync -f $D; "        \
    "rm -r $D/gone; fstrim $D; umount $D; mount $L $D; diff -rq $S $D/all; umount $D; "

/* Loop devices may be missing in a container. */
static bool have_loops(void) {
    if (!system("losetup -f >/dev/null 2>&1"))
        return true;
    printf(" (no loop devices: not tried) ");
    return false;
}

static void test_ext4_on_a_loop_device(void) {
    if (!have_loops())
        return;
    CU_ASSERT_TRUE(shell(LOOP_TEST("mkfs.ext4 -q -F", "off") "e2fsck -fn $L >/dev/null"));
    CU_ASSERT_TRUE(shell(LOOP_TEST("mkfs.ext4 -q -F", "on") "e2fsck -fn $L >/dev/null"));
}

static void test_xfs_on_a_loop_device(void) {
    if (!have_loops())
        return;
    CU_ASSERT_TRUE(shell(LOOP_TEST("mkfs.xfs -q -f", "off") "xfs_repair -n $L >/dev/null 2>&1"));
    CU_ASSERT_TRUE(shell(LOOP_TEST("mkfs.xfs -q -f", "on") "xfs_repair -n $L >/dev/null 2>&1"));
}

static void test_mkfs_on_the_file_itself(void) {
    CU_ASSERT_TRUE(shell("mkfs.ext4 -q -F $F && e2fsck -fn $F >/dev/null"));
    CU_ASSERT_TRUE(shell("mkfs.xfs -q -f $T && xfs_repair -n -f $T >/dev/null 2>&1"));
}

static void test_qemu_img(void) {
    CU_ASSERT_TRUE(shell(
        "set -e; Q=$(mktemp); trap 'rm -f $Q' EXIT; qemu-img info -f raw $F >/dev/null; "
        "qemu-img convert -f raw -O qcow2 $F $Q; "
        "fallocate -p -o 0 -l 512M $T; qemu-img convert -n -f qcow2 -O raw -t none $Q $T; "
        "qemu-img compare -f raw -F raw $F $T >/dev/null; "
        "qemu-img map --output=json -f raw $F >/dev/null; "
        "qemu-io -f raw -t none -c 'write -P 7 1M 64k' -c 'write -z 3M 1M' -c 'discard 4M 1M' "
        "-c 'read -P 7 1M 64k' -c 'read -P 0 3M 2M' $T >/dev/null"));
}

static void test_fio_verifies(void) {
    static const char *const jobs[] = {
        "--direct=1 --ioengine=io_uring --iodepth=32 --bs=4k --rw=randwrite",
        "--direct=1 --ioengine=libaio --iodepth=8 --bs=512-300k --bs_unaligned=0 --rw=randwrite",
        "--direct=0 --ioengine=psync --bs=1-90k --bs_unaligned=1 --rw=randwrite",
        "--direct=0 --ioengine=psync --bs=1m --rw=write --numjobs=1",
        "--direct=1 --ioengine=io_uring --iodepth=16 --bs=1m --rw=write",
    };
    for (unsigned i = 0; i < sizeof(jobs) / sizeof(*jobs); i++) {
        char script[512];
        snprintf(
            script, sizeof(script),
            "fio --name=v --filename=$T --size=64m --io_size=48m --verify=crc32c "
            "--verify_fatal=1 --verify_state_save=0 --allow_file_create=0 --output=/dev/null %s",
            jobs[i]);
        CU_ASSERT_TRUE(shell(script));
    }
}

/* ---- memory pressure
 * ----------------------------------------------------------------------------------- */

/* Dirties four times what its memory group may hold, through a loop device on the mount. */
#define PRESSURE(direct)                                                                           \
    "set -e; C=/sys/fs/cgroup/memory; K=memory.limit_in_bytes; "                                   \
    "test -e $C/$K || { C=/sys/fs/cgroup; K=memory.max; "                                          \
    "grep -qw memory $C/cgroup.subtree_control 2>/dev/null || exit 77; }; "                        \
    "G=$C/gild-test-$$; mkdir $G; L=$(losetup -f --show --direct-io=" direct                       \
    " $T); "                                                                                       \
    "trap 'losetup -d $L; for i in $(seq 50); do rmdir $G 2>/dev/null && break; sleep 0.1; done' " \
    "EXIT; echo 67108864 >$G/$K; "                                                                 \
    "timeout 120 sh -c \"echo \\$\\$ >$G/cgroup.procs; "                                           \
    "exec dd if=/dev/zero of=$L bs=1M count=256 status=none conv=fsync\"; "                        \
    "timeout 120 sh -c \"echo \\$\\$ >$G/cgroup.procs; "                                           \
    "exec dd if=$L of=/dev/null bs=1M count=256 status=none\""

static void run_pressure(const char *script) {
    int status = system(script);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        printf(" (no memory controller: not tried) ");
    else
        CU_ASSERT_EQUAL(status, 0);
}

static void test_a_loop_device_under_memory_pressure_does_not_hang(void) {
    if (!have_loops())
        return;
    run_pressure(PRESSURE("off"));
    run_pressure(PRESSURE("on"));
    CU_ASSERT_TRUE(shell("cmp -n 268435456 $T /dev/zero"));
}

/* ---- life
 * -----------------------------------------------------------------------------------------------
 */

static void refused(const char *directory, int err, const char *why) {
    struct gild_mount *mount = NULL;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_mount_start(fixture.store, directory, &mount, &error), -err);
    CU_ASSERT_PTR_NULL(mount);
    if (!strstr(error.message, why))
        printf("\nsaid: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, why));
    CU_ASSERT_PTR_NOT_NULL(strstr(error.message, directory));
}

static void test_a_bad_mount_point_is_refused_with_a_sentence(void) {
    char directory[] = "/tmp/gild-fuse-XXXXXX", path[128];
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/file", directory);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    refused(path, ENOTDIR, "not a folder");
    refused(directory, ENOTEMPTY, "not empty");
    unlink(path);
    refused(path, ENOENT, "make the folder first");
    refused(fixture.directory, EBUSY, "mounted there already");
    rmdir(directory);
}

/* A daemon that is killed leaves a mount that answers ENOTCONN: the next start takes it over. */
static void test_a_dead_daemons_mount_is_taken_over(void) {
    char directory[] = "/tmp/gild-fuse-XXXXXX";
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    pid_t child = fork();
    if (!child) {
        struct gild_store *store = fake_store_create(1, GILD_LOOP_AUTO);
        struct gild_mount *mount;
        struct gild_error error;
        _exit(gild_mount_start(store, directory, &mount, &error) ? 1 : 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CU_ASSERT_EQUAL(status, 0);
    struct stat stat_buffer;
    /* A question that was on its way while the session died is answered ECONNABORTED. */
    CU_ASSERT_EQUAL(stat(directory, &stat_buffer), -1);
    CU_ASSERT_TRUE(errno == ENOTCONN || errno == ECONNABORTED);
    struct gild_mount *mount = NULL;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL_FATAL(gild_mount_start(fixture.store, directory, &mount, &error), 0);
    CU_ASSERT_EQUAL(stat(directory, &stat_buffer), 0);
    gild_mount_stop(mount);
    CU_ASSERT_EQUAL(rmdir(directory), 0);
}

static void test_umount_from_outside_ends_the_mount(void) {
    char directory[] = "/tmp/gild-fuse-XXXXXX";
    struct gild_mount *mount = NULL;
    struct gild_error error = {0};
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(directory));
    CU_ASSERT_EQUAL_FATAL(gild_mount_start(fixture.store, directory, &mount, &error), 0);
    CU_ASSERT_FALSE(gild_mount_ended(mount));
    CU_ASSERT_EQUAL(umount(directory), 0);
    for (int i = 0; i < 5000 && !gild_mount_ended(mount); i++)
        usleep(1000);
    CU_ASSERT_TRUE(gild_mount_ended(mount));
    gild_mount_stop(mount);
    CU_ASSERT_EQUAL(rmdir(directory), 0);
}

/* Stop while a file is open and others hammer it: it ends, users get an error, nothing is leaked
 * (the fake tree asserts that all is closed and unpinned). */
static void test_stop_ends_while_files_are_in_use(void) {
    struct fuse_fixture busy;
    char file[256], buffer[4096];
    fuse_fixture_start(&busy, FAKE_POSTPONE);
    fuse_fixture_file(&busy, FIXTURE_OS, file);
    int fd = open(file, O_RDWR | O_CLOEXEC);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    char script[512];
    snprintf(script, sizeof(script),
             "fio --name=h --filename=%s --direct=1 --ioengine=libaio --iodepth=32 --bs=4k "
             "--rw=randrw --time_based --runtime=30 --allow_file_create=0 >/dev/null 2>&1",
             file);
    pid_t child = fork();
    if (!child) {
        execl("/bin/sh", "sh", "-c", script, (char *)NULL);
        _exit(127);
    }
    struct fake_counts *counts = fake_store_counts(busy.store);
    for (int i = 0; i < 10000 && atomic_load(&counts->reads) < 1000; i++)
        usleep(1000);
    CU_ASSERT_TRUE(atomic_load(&counts->reads) >= 1000);
    fuse_fixture_stop(&busy);
    CU_ASSERT_EQUAL(pread(fd, buffer, sizeof(buffer), 0), -1);
    close(fd);
    int status = 0;
    waitpid(child, &status, 0);
    CU_ASSERT_NOT_EQUAL(status, 0);
}

static int start(void) {
    fuse_fixture_start(&fixture, FAKE_POSTPONE);
    return 0;
}

static int stop(void) {
    fuse_fixture_stop(&fixture);
    return 0;
}

int main(void) {
    fuse_fixture_require();
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("the mount and its users", start, stop);
    CU_ADD_TEST(suite, test_mkfs_on_the_file_itself);
    CU_ADD_TEST(suite, test_qemu_img);
    CU_ADD_TEST(suite, test_fio_verifies);
    CU_ADD_TEST(suite, test_ext4_on_a_loop_device);
    CU_ADD_TEST(suite, test_xfs_on_a_loop_device);
    CU_ADD_TEST(suite, test_a_loop_device_under_memory_pressure_does_not_hang);
    CU_ADD_TEST(suite, test_a_bad_mount_point_is_refused_with_a_sentence);
    CU_ADD_TEST(suite, test_a_dead_daemons_mount_is_taken_over);
    CU_ADD_TEST(suite, test_umount_from_outside_ends_the_mount);
    CU_ADD_TEST(suite, test_stop_ends_while_files_are_in_use);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
