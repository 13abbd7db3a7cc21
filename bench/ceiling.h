/* The parts of the ceiling server. */
#ifndef BENCH_CEILING_H
#define BENCH_CEILING_H

#include <stdint.h>

struct ceiling_image {
    uint8_t *data;
    uint64_t bytes;
};

/* Serve until a signal ends the process or the mount; exit status. */
int ceiling_serve_nbd(const struct ceiling_image *image, const char *socket_path);
int ceiling_serve_fuse(const struct ceiling_image *image, const char *directory);

#endif
