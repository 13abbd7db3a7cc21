/* Files of a store, from threads that may block (never a reactor): open, whole transfers, durable
 * creation. All return 0 (or what they say) or -errno; nothing here is retried after a failed
 * fsync (D5). Any thread. */
#ifndef GILD_IO_FILE_H
#define GILD_IO_FILE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* What direct I/O's buffers, offsets and lengths are aligned to in a store. */
#define GILD_DIRECT_BYTES 4096u

/* openat(folder, name) with O_CLOEXEC; folder may be AT_FDCWD. With O_DIRECT in flags, a file
 * system that refuses it is opened without: *direct (may be NULL) says which. A descriptor or
 * -errno. */
int gild_file_open(int folder, const char *name, int flags, mode_t mode, bool *direct);

/* Reads or writes the whole length at the offset, resuming short transfers. A read that meets the
 * end of the file is -ENODATA; *_some gives the bytes up to the end instead. */
int gild_file_read(int fd, void *buffer, size_t length, uint64_t offset);
ssize_t gild_file_read_some(int fd, void *buffer, size_t length, uint64_t offset);
int gild_file_write(int fd, const void *buffer, size_t length, uint64_t offset);

int gild_file_sync(int fd);        /* fdatasync */
int gild_file_sync_folder(int fd); /* fsync: its entries are durable */
/* mkdir, and its name is durable; also where it is there already: whoever made it may have ended
 * before that. */
int gild_file_make_folder(const char *path);
int gild_file_size(int fd, uint64_t *bytes);

/* Files that are made in the folder from now on are written in place, on a file system that would
 * else copy (btrfs): only there is what was allocated really room. Nothing where that is not so. */
void gild_file_in_place(int folder);

/* Reserves the blocks and sets the size; writes zeroes where the file system can not reserve. */
int gild_file_allocate(int fd, uint64_t bytes);

/* Makes folder/name hold exactly these bytes, durably and at once: a temporary file (name + ".tmp")
 * is written, synced, renamed over, and the folder is synced. After a crash, or on failure, the old
 * content is whole. */
int gild_file_replace(int folder, const char *name, const void *bytes, size_t length, mode_t mode);

/* The whole of a small file, malloc()ed, with a NUL after it that *length does not count. -EFBIG
 * past most_bytes. */
int gild_file_slurp(int folder, const char *name, size_t most_bytes, void **bytes, size_t *length);

/* Calls back for each entry but "." and "..", in no set order; a non-zero return ends the walk and
 * is returned. Entries unlinked by the visitor are fine. */
typedef int gild_file_visit(void *context, const char *name);
int gild_file_list(int folder, gild_file_visit *visit, void *context);

/* unlinkat; a missing file is fine. Durable after gild_file_sync_folder. */
int gild_file_remove(int folder, const char *name);

/* Memory for direct I/O: aligned and rounded up to GILD_DIRECT_BYTES, zeroed; NULL if there is
 * none. Freed with free(). */
void *gild_file_buffer(size_t bytes);

#endif
