/* zstd frames (RFC 8878) with contexts that are per thread and reused. Any thread. */
#ifndef GILD_CODEC_ZSTD_H
#define GILD_CODEC_ZSTD_H

#include <stddef.h>
#include <sys/types.h>

/* Compresses into one frame: its bytes, 0 if `room` does not hold it (so that a caller who gives
 * length - 1 learns that the data does not shrink), or -ENOMEM, -EINVAL. The same input and level
 * give the same bytes whatever the thread did before. */
ssize_t gild_zstd_compress(void *out, size_t room, const void *data, size_t length, int level);

/* Decompresses; never writes past out + room, whatever the input. The bytes made, or -EBADMSG (no
 * frame, a broken one, or more than room), -ENOMEM. */
ssize_t gild_zstd_decompress(void *out, size_t room, const void *data, size_t length);

/* How long the frame is that `data` begins with, and what it says it decompresses to. 0, or
 * -EBADMSG if no whole frame begins there. Pure. */
int gild_zstd_measure(const void *data, size_t length, size_t *frame_bytes, size_t *content_bytes);

#endif
