/* The superblock: the first file that an open reads, and the one whose lock owns the store. */
#ifndef GILD_DISK_SUPERBLOCK_H
#define GILD_DISK_SUPERBLOCK_H

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

#endif
