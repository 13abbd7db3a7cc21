/* A simulated disk with a file system on it: what the engine's file calls reach in a simulation.
 *
 * It keeps two things apart: what a reader sees, and what is durable. A write makes a new version
 * of each page that it touches; a sync of the file makes those versions durable that were done when
 * the sync began. A file's size is durable with its sync, a name with its folder's. A power cut
 * leaves of each page any version since the durable one, or the durable one, or (torn) sectors of
 * several, or garbage where a write was under way; of names and sizes not yet synced, any subset.
 *
 *   write begun -> version, not done -> done -> (sync begun and ended later) durable
 *
 * Faults are armed by sim_faults.h. After a failed sync what it should have made durable is never
 * made so by a later one, though readers still see it: so it is with a page cache.
 *
 * Calls go here by the wraps of sim_wraps.cmake (open, pread, fsync, renameat, ...) and, from
 * loops, by the simulated backend (sim_loop.c). Every step that a power cut can come between is a
 * point: sim_disk_on_point. Paths are absolute; descriptors are numbers of our own. */
#ifndef GILD_TEST_SIM_DISK_H
#define GILD_TEST_SIM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sim_faults.h"

enum sim_point { SIM_WRITE, SIM_SYNC, SIM_SYNCED, SIM_NAME, SIM_COMMIT, SIM_COMMITTED, SIM_POINTS };

/* An empty disk with one folder, "/". After sim_begin. */
void sim_disk_make(void);

/* Called at each point, by the thread that works there; it may fork. NULL: nobody. */
void sim_disk_on_point(void (*point)(void *context, enum sim_point what), void *context);
void sim_disk_point(enum sim_point what);
uint64_t sim_disk_points(void); /* how many there were */

/* The file system's size: what would grow a file past it gives ENOSPC. 0: as large as anybody
 * wants. What is there stays there, and may be written over. */
void sim_disk_bound(uint64_t bytes);
uint64_t sim_disk_used(void);
/* Bytes free; UINT64_MAX without a bound. */
uint64_t sim_disk_free(void);

/* What a power cut does with what is not durable. */
enum sim_cut {
    SIM_KEEP_ALL,
    SIM_DROP_ALL,
    SIM_KEEP_SOME, /* each page and each name for itself */
    SIM_TEAR,      /* so, and pages of sectors of several versions */
    SIM_GARBLE,    /* so, and garbage in some sectors of writes that were under way */
};
void sim_disk_cut(enum sim_cut cut);
/* XXH3 of all that is durable: names, sizes, pages. */
uint64_t sim_disk_hash(void);

/* What faults did to bytes that were durable, or should have been. */
struct sim_damage {
    unsigned rots, misdirected; /* since the disk was made or forgiven */
    bool log;                   /* one of them hit a segment of the log */
};
const struct sim_damage *sim_disk_damage(void);
/* Rot at rest: some durable page of a store that is not open. False if there is none. */
bool sim_disk_rot(void);
/* Pages that have rotted, and were not written since, are as they were. */
void sim_disk_unrot(void);
void sim_disk_forgive(void);

/* A file whose content is made when it is read; `fill` gives a page of it. */
typedef void sim_disk_fill(uint64_t seed, uint64_t page, uint8_t out[4096]);
void sim_disk_make_file(const char *path, uint64_t size, sim_disk_fill *fill, uint64_t seed);

/* Segments of the log: those whose last blocks were written with something, those whose file got a
 * new name. Shared by all processes of a run. */
struct sim_disk_counts {
    _Atomic uint64_t full, recycled;
};
void sim_disk_count_in(struct sim_disk_counts *counts);

/* The names in a folder: calls back with each. */
typedef void sim_disk_visit(void *context, const char *name);
void sim_disk_list(const char *folder, sim_disk_visit *visit, void *context);

/* Transfers, for the file calls and the simulated loop: `site` says whose faults they meet. A write
 * is begun, and done later; a sync is begun (what is done by then), and ended later. -errno. */
long sim_disk_read(enum sim_site site, int fd, void *buffer, size_t length, uint64_t offset);
long sim_disk_write_begin(enum sim_site site, int fd, const void *buffer, size_t length,
                          uint64_t offset, uint64_t *write);
void sim_disk_write_done(int fd, uint64_t write, bool durable);
int sim_disk_sync_begin(enum sim_site site, int fd, uint64_t *sync);
void sim_disk_sync_done(int fd, uint64_t sync);

#endif
