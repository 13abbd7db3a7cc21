/* One mount of a fake tree in a private folder, for the tests of the FUSE door. */
#ifndef FUSE_FIXTURE_H
#define FUSE_FIXTURE_H

#include "fake_tree.h"
#include "gild/fuse.h"

#define FIXTURE_OS "desktops/d1/os"
#define FIXTURE_OS_BYTES (256ull << 20)
#define FIXTURE_TEMP "desktops/d1/temp" /* on the last reactor */
#define FIXTURE_TEMP_BYTES (512ull << 20)
#define FIXTURE_IMAGE "images/win10@3" /* read-only */
#define FIXTURE_IMAGE_BYTES (16ull << 20)
#define FIXTURE_ODD "desktops/d1/id" /* no multiple of a block */
#define FIXTURE_ODD_BYTES (1000ull * 512)

struct fuse_fixture {
    struct gild_store *store;
    struct gild_mount *mount;
    char directory[64];
};

/* Ends the test with 77 where FUSE can not be mounted. */
void fuse_fixture_require(void);
void fuse_fixture_start(struct fuse_fixture *fixture, enum fake_mode mode);
void fuse_fixture_stop(struct fuse_fixture *fixture);
/* The file of a disk under the mount; the caller's buffer. */
const char *fuse_fixture_file(const struct fuse_fixture *fixture, const char *path, char out[256]);
/* Runs a shell script with $M (the mount), $F (the os disk's file) and $T (the temp disk's) set;
 * true if it exits 0. */
bool fuse_fixture_shell(const struct fuse_fixture *fixture, const char *script);

#endif
