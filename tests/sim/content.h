/* The content of a golden image in a simulation: a function of its seed, so that nobody keeps it.
 * A third of its blocks are zero, a third are blocks that all images share, the others are its own;
 * each sector names the image (or the shared block) and its place. */
#ifndef GILD_TEST_CONTENT_H
#define GILD_TEST_CONTENT_H

#include <stdint.h>

#define CONTENT_SECTOR 512u

struct content {
    uint64_t seed;
    uint32_t sectors; /* beyond them everything is zero */
};

/* The sector's bytes. */
void content_sector(const struct content *content, uint32_t sector, uint8_t out[CONTENT_SECTOR]);
/* As sim_disk_fill: a page of the image that an import reads. */
void content_page(uint64_t seed, uint64_t page, uint8_t out[4096]);

#endif
