/* The FUSE door: the store's tree of paths as a datastore mount (files named PATH.raw). */
#ifndef GILD_FUSE_H
#define GILD_FUSE_H

#include "gild/error.h"
#include "gild/store.h"

struct gild_mount;

/* Mounts on the existing empty folder `directory` and serves on threads of its own until
 * gild_mount_stop. Any thread but a reactor's. */
int gild_mount_start(struct gild_store *store, const char *directory, struct gild_mount **out,
                     struct gild_error *error);

/* True once the kernel has ended the session from outside (umount, fusermount3 -u). Any thread. */
bool gild_mount_ended(const struct gild_mount *mount);

/* Unmounts (lazily if busy, so that it always ends), waits for requests in flight, closes every
 * disk it holds, frees the mount. Any thread but a reactor's. */
void gild_mount_stop(struct gild_mount *mount);

#endif
