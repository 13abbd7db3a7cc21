/* A store of disks in memory, behind the engine's own symbols (gild/disk.h, gild/store.h): front
 * ends are tested against it. Ops cost nothing and complete inline unless told otherwise; every op
 * is checked against the contract of gild/disk.h, and a breach aborts. */
#ifndef GILD_TESTS_FAKE_DISK_H
#define GILD_TESTS_FAKE_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/disk.h"
#include "gild/store.h"

struct gild_store *fake_store_create(enum gild_loop_backend backend, unsigned reactors);
/* Aborts if a disk is still open or a piece still pinned. */
void fake_store_destroy(struct gild_store *store);

/* Any thread, before clients ask for it. Sparse; reads zeroes. */
struct gild_disk *fake_disk_add(struct gild_store *store, const char *path, uint64_t size_bytes,
                                bool read_only, unsigned reactor);

/* Its content: look only while no op is under way. */
uint8_t *fake_disk_bytes(struct gild_disk *disk);

/* Compares with its content: any thread, while no op touches these bytes. */
bool fake_disk_holds_bytes(struct gild_disk *disk, uint64_t offset, const void *bytes,
                           size_t count);

/* Knobs: any thread. */
void fake_disk_hold(struct gild_disk *disk, bool hold);   /* ops wait; letting go completes them */
void fake_disk_later(struct gild_disk *disk, bool later); /* ops complete in a later turn */
void fake_disk_fail(struct gild_disk *disk, uint64_t offset, uint64_t bytes, int err);
void fake_disk_busy(struct gild_disk *disk, bool busy); /* opens are refused with GILD_BUSY */
void fake_store_hold_opens(struct gild_store *store, bool hold);

/* Counters: any thread. */
unsigned fake_disk_ops(struct gild_disk *disk, enum gild_op_kind kind);
unsigned fake_disk_held(struct gild_disk *disk);
unsigned fake_disk_opens(struct gild_disk *disk);
unsigned fake_disk_flags_seen(struct gild_disk *disk); /* all op flags ever given */

#endif
