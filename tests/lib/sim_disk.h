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
 * Calls go here by the wraps of sim_wraps.cmake (open, pread, fsync, renameat, ...) and, from
 * loops, by the simulated backend (sim_loop.c). Every step that a power cut can come between is a
 * point: sim_disk_on_point. Paths are absolute; descriptors are numbers of our own. */
#ifndef GILD_TEST_SIM_DISK_H
#define GILD_TEST_SIM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sim_point { SIM_WRITE, SIM_SYNC, SIM_SYNCED, SIM_NAME, SIM_COMMIT, SIM_COMMITTED, SIM_POINTS };

/* An empty disk with one folder, "/". After sim_begin. */
void sim_disk_make(void);

/* Called at each point, by the thread that works there; it may fork. NULL: nobody. */
void sim_disk_on_point(void (*point)(void *context, enum sim_point what), void *context);
void sim_disk_point(enum sim_point what);
uint64_t sim_disk_points(void); /* how many there were */

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

/* Faults: the `after`-th call from now on (0: the next) fails with -error, once or for good. */
enum sim_call { SIM_CALL_READ, SIM_CALL_WRITE, SIM_CALL_SYNC, SIM_CALLS };
void sim_disk_fail(enum sim_call call, uint64_t after, int error, bool for_good);
void sim_disk_mend(void);
/* How many fired since this was asked last. */
uint64_t sim_disk_fired(enum sim_call call);

/* Transfers for the simulated loop. A write is begun, and done later; a sync is begun (what is done
 * by then), and ended later. -errno from an injected fault. */
long sim_disk_read(int fd, void *buffer, size_t length, uint64_t offset);
long sim_disk_write_begin(int fd, const void *buffer, size_t length, uint64_t offset,
                          uint64_t *write);
void sim_disk_write_done(int fd, uint64_t write, bool durable);
int sim_disk_sync_begin(int fd, uint64_t *sync);
void sim_disk_sync_done(int fd, uint64_t sync);

#endif
