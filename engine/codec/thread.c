/* Per-thread contexts: setting up OpenSSL's and zstd's contexts costs more than hashing or
 * decompressing a block with them, so each thread keeps its own until it ends.
 *
 * The key is the one piece of process-wide state here: POSIX has no other way to free a thread's
 * own memory at its end. It is written once, before any use. A thread that finds no memory gets
 * NULL and may try again. */
#include "codec/thread.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_made;
static _Thread_local struct codec_thread *mine;

static void forget(void *memory) {
    struct codec_thread *thread = memory;
    EVP_MD_CTX_free(thread->digest);
    EVP_MD_free(thread->sha256);
    ZSTD_freeCCtx(thread->compressor);
    ZSTD_freeDCtx(thread->decompressor);
    free(thread);
    mine = NULL;
}

static void make_key(void) {
    key_made = pthread_key_create(&key, forget) == 0;
}

struct codec_thread *codec_thread(void) {
    if (mine)
        return mine;
    pthread_once(&once, make_key);
    struct codec_thread *thread = key_made ? calloc(1, sizeof *thread) : NULL;
    if (!thread)
        return NULL;
    thread->sha256 = EVP_MD_fetch(NULL, "SHA2-256", NULL);
    thread->digest = EVP_MD_CTX_new();
    if (!thread->sha256 || !thread->digest || pthread_setspecific(key, thread) != 0) {
        forget(thread);
        return NULL;
    }
    return mine = thread;
}
