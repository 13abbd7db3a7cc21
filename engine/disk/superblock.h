/* The superblock: the first file that an open reads, and the one whose lock owns the store. */
#ifndef GILD_DISK_SUPERBLOCK_H
#define GILD_DISK_SUPERBLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "gild/error.h"

#define SUPERBLOCK_BYTES 4096u
#define SUPERBLOCK_MAGIC 0x524f5453444c4947ull /* "GILDSTOR" */

struct superblock {
    uint64_t magic;
    uint64_t check;                    /* XXH3-64 of the block from byte 16 on */
    uint32_t format;                   /* GILD_STORE_FORMAT */
    uint32_t incompatible, compatible; /* feature bits */
    uint32_t reserved;
    uint8_t id[16];
    uint64_t size_limit_bytes; /* 0 = none */
    uint64_t created_ns;
    uint8_t unused[SUPERBLOCK_BYTES - 64];
};
_Static_assert(sizeof(struct superblock) == SUPERBLOCK_BYTES, "superblock");

/* Writes a new, durable superblock file (must not exist). */
int superblock_create(const char *directory, uint64_t size_limit_bytes, struct gild_error *error);

/* Opens and locks the superblock, then verifies it. *lock_fd holds the lock until closed. Nothing
 * is written. */
int superblock_open(const char *directory, struct superblock *out, int *lock_fd,
                    struct gild_error *error);

/* For a repair: the lock alone, on whatever the file holds (*block: zeroes behind its end); a
 * missing file is made, but with `look_only`, where *lock_fd is then -1. */
int superblock_lock(const char *directory, bool look_only, struct superblock *block, int *lock_fd,
                    struct gild_error *error);
/* Is it whole, and of a format that is known? */
int superblock_judge(const struct superblock *block, const char *directory,
                     struct gild_error *error);
/* Writes it over what is there, durably. */
int superblock_restore(int lock_fd, const struct superblock *block);

#endif
