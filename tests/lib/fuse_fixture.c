/* See fuse_fixture.h. */
#include "fuse_fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

void fuse_fixture_require(void) {
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0 || geteuid()) {
        printf("skipped: needs root and /dev/fuse\n");
        exit(77);
    }
    close(fd);
}

void fuse_fixture_start(struct fuse_fixture *fixture, enum fake_mode mode) {
    struct gild_error error = {0};
    snprintf(fixture->directory, sizeof(fixture->directory), "/tmp/gild-fuse-XXXXXX");
    if (!mkdtemp(fixture->directory))
        abort();
    fixture->store = fake_store_create(2, GILD_LOOP_AUTO);
    fake_store_set_mode(fixture->store, mode);
    fake_store_add(fixture->store, FIXTURE_OS, FIXTURE_OS_BYTES, false, 0);
    fake_store_add(fixture->store, FIXTURE_TEMP, FIXTURE_TEMP_BYTES, false, 1);
    fake_store_add(fixture->store, FIXTURE_IMAGE, FIXTURE_IMAGE_BYTES, true, 1);
    fake_store_add(fixture->store, FIXTURE_ODD, FIXTURE_ODD_BYTES, false, 0);
    if (gild_mount_start(fixture->store, fixture->directory, &fixture->mount, &error)) {
        fprintf(stderr, "%s\n", error.message);
        abort();
    }
}

void fuse_fixture_stop(struct fuse_fixture *fixture) {
    gild_mount_stop(fixture->mount);
    fake_store_destroy(fixture->store);
    rmdir(fixture->directory);
}

const char *fuse_fixture_file(const struct fuse_fixture *fixture, const char *path, char out[256]) {
    snprintf(out, 256, "%s/%s.raw", fixture->directory, path);
    return out;
}

bool fuse_fixture_shell(const struct fuse_fixture *fixture, const char *script) {
    char file[256];
    setenv("M", fixture->directory, 1);
    setenv("F", fuse_fixture_file(fixture, FIXTURE_OS, file), 1);
    setenv("T", fuse_fixture_file(fixture, FIXTURE_TEMP, file), 1);
    int status = system(script);
    if (status)
        printf("\nfailed with status %d: %s\n", status, script);
    return status == 0;
}
