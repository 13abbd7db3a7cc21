/* The rows that read a mounted file instead of an NBD export. */
#ifndef BENCH_FILE_ROWS_H
#define BENCH_FILE_ROWS_H

#include "work.h"

/* Size of the file in bytes, 0 after printing why not. */
uint64_t file_rows_size(const char *path);

/* Reads with O_DIRECT through io_uring, `depth` in flight, until work_next has no more. 0, or -1
 * after printing why. */
int file_rows_run(const char *path, unsigned depth, struct work *work);

#endif
