/* One-shot zstd with the thread's own contexts. Any thread; no memory after a thread's first call
 * of each kind (decompressing) or first call at its highest level (compressing). */
#include "codec/zstd.h"

#include <errno.h>
#include <zstd_errors.h>

#include "codec/thread.h"

ssize_t gild_zstd_compress(void *out, size_t room, const void *data, size_t length, int level) {
    struct codec_thread *thread = codec_thread();
    if (thread && !thread->compressor)
        thread->compressor = ZSTD_createCCtx();
    if (!thread || !thread->compressor)
        return -ENOMEM;
    size_t n = ZSTD_compressCCtx(thread->compressor, out, room, data, length, level);
    if (!ZSTD_isError(n))
        return (ssize_t)n;
    switch (ZSTD_getErrorCode(n)) {
    case ZSTD_error_dstSize_tooSmall:
        return 0;
    case ZSTD_error_memory_allocation:
        return -ENOMEM;
    default:
        return -EINVAL;
    }
}

ssize_t gild_zstd_decompress(void *out, size_t room, const void *data, size_t length) {
    struct codec_thread *thread = codec_thread();
    if (thread && !thread->decompressor)
        thread->decompressor = ZSTD_createDCtx();
    if (!thread || !thread->decompressor)
        return -ENOMEM;
    size_t n = ZSTD_decompressDCtx(thread->decompressor, out, room, data, length);
    if (!ZSTD_isError(n))
        return (ssize_t)n;
    return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -ENOMEM : -EBADMSG;
}

int gild_zstd_measure(const void *data, size_t length, size_t *frame_bytes, size_t *content_bytes) {
    size_t n = ZSTD_findFrameCompressedSize(data, length);
    unsigned long long made = ZSTD_getFrameContentSize(data, length);
    if (ZSTD_isError(n) || made == ZSTD_CONTENTSIZE_UNKNOWN || made == ZSTD_CONTENTSIZE_ERROR)
        return -EBADMSG;
    *frame_bytes = n;
    *content_bytes = (size_t)made;
    return 0;
}
