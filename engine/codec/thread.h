/* What codecs keep per thread. Private to this folder. */
#ifndef GILD_CODEC_THREAD_H
#define GILD_CODEC_THREAD_H

#include <openssl/evp.h>
#include <zstd.h>

struct codec_thread {
    EVP_MD *sha256;
    EVP_MD_CTX *digest;
    ZSTD_CCtx *compressor;   /* made at first use */
    ZSTD_DCtx *decompressor; /* made at first use */
};

/* The calling thread's own, made at first use and freed when the thread ends; NULL: no memory. */
struct codec_thread *codec_thread(void);

#endif
