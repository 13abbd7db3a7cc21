/* What the parts of the simulated disk (sim_disk.h) share. */
#ifndef GILD_TEST_SIM_INODE_H
#define GILD_TEST_SIM_INODE_H

#include <stdbool.h>
#include <stdint.h>

#include "sim_disk.h"

#define SIM_PAGE 4096u
#define SIM_SECTOR 512u

struct sim_version {
    struct sim_version *older;
    uint64_t write; /* that made it */
    uint64_t done;  /* when it was done, in the order of the disk's events; 0: under way */
    bool doomed;    /* a sync failed over it: no later one makes it durable */
    uint8_t bytes[SIM_PAGE];
};

struct sim_page {
    uint8_t *durable;           /* NULL: zeroes */
    struct sim_version *newest; /* not durable yet */
    struct sim_page *next;      /* in `unsynced` */
    uint64_t settled;           /* how often a write took the place of what was durable */
    bool listed;
};

struct sim_inode {
    uint64_t number;
    bool folder;
    uint64_t size, durable_size;
    uint64_t written_ns; /* virtual time */
    struct sim_page **pages;
    uint64_t page_room;
    struct sim_page *unsynced;
    bool log, rots;      /* a segment of the log; a file that faults may change */
    sim_disk_fill *fill; /* NULL: content is in the pages */
    uint64_t seed;
};

void sim_disk_renamed(const struct sim_inode *inode);
/* NULL: no such descriptor. */
struct sim_inode *sim_inode_of(int fd);
/* Bytes of a durable page change by themselves. */
void sim_inode_rot(struct sim_inode *inode, uint64_t page);
/* Some page that could; false: none. */
bool sim_inode_rottable(const struct sim_inode *inode, uint64_t *page);
/* May the file have that size? */
bool sim_disk_fits(const struct sim_inode *inode, uint64_t size);
/* What lies beyond is gone for readers at once, durably with the next sync. */
void sim_inode_truncate(struct sim_inode *inode, uint64_t size);
void sim_inode_cut(struct sim_inode *inode, enum sim_cut cut);
uint64_t sim_inode_hash(const struct sim_inode *inode, uint64_t seed);

/* Names (sim_names.c): which inode a path leads to, what is durable of that. All 0 or -errno. */
void sim_names_make(void);
int sim_names_find(const char *path, struct sim_inode **out);
/* How many there are of one. */
unsigned sim_names_of(const struct sim_inode *inode);
int sim_names_create(const char *path, bool folder, struct sim_inode **out);
int sim_names_rename(const char *from, const char *to, bool replace);
int sim_names_remove(const char *path);
/* The `index`-th name in a folder, NULL at the end. */
const char *sim_names_in(const char *folder, unsigned index);
/* Bytes of all files of the store, as they are seen. */
uint64_t sim_names_bytes(void);
/* A sync of the folder's inode: its names are durable. Of a file: nothing. */
void sim_names_settle(const struct sim_inode *folder);
/* A file that faults may change, drawn from the seed; NULL: none. */
struct sim_inode *sim_names_pick(void);
void sim_names_cut(enum sim_cut cut);
uint64_t sim_names_hash(void);

#endif
