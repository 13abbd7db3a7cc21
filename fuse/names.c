/* The name threads: everything that may wait for the catalogue (names, attributes, open, release),
 * and INIT. They hand the kernel's message to libfuse, which calls operations.c.
 *
 * libfuse's answers pass through names_reply_through, since libfuse 3.14 can not ask for all that
 * the kernel offers in INIT:
 *   HANDLE_KILLPRIV_V2   without it the kernel asks for the attribute security.capability before
 *                        each write, which would double the requests. Our files have no
 *                        set-user-id bit and never get one, so nothing is left to do for it.
 *   DIRECT_IO_ALLOW_MMAP a descriptor that is open with O_DIRECT can still be mapped.
 *
 * Threads: these; names_post from any. Messages of several callers are answered in any order, which
 * the kernel allows. Failure: none of its own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "mount.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* The kernel's FUSE protocol 7.39; older headers do not name it. */
#define DIRECT_IO_ALLOW_MMAP_2 (1u << 4)

ssize_t names_reply_through(int fd, struct iovec *vectors, int count, void *context) {
    struct gild_mount *mount = context;
    const struct fuse_out_header *out = vectors[0].iov_base;
    uint64_t init = atomic_load(&mount->init_unique);
    if (init && out->unique == init && !out->error && count > 1 &&
        vectors[1].iov_len >= sizeof(struct fuse_init_out)) {
        struct fuse_init_out *answer = vectors[1].iov_base;
        answer->flags |= mount->init_flags & (FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT);
        if (mount->init_flags & FUSE_INIT_EXT)
            answer->flags2 |= mount->init_flags2 & DIRECT_IO_ALLOW_MMAP_2;
    }
    return writev(fd, vectors, count);
}

/* libfuse asks for this one; the readers read. */
ssize_t names_read_through(int fd, void *buffer, size_t bytes, void *context) {
    (void)context;
    return read(fd, buffer, bytes);
}

static void note_init(struct gild_mount *mount, const struct name_message *message) {
    struct fuse_in_header in;
    struct fuse_init_in init = {0};
    memcpy(&in, message->data, sizeof(in));
    if (in.opcode != FUSE_INIT || message->bytes < sizeof(in))
        return;
    size_t bytes = message->bytes - sizeof(in);
    memcpy(&init, message->data + sizeof(in), bytes < sizeof(init) ? bytes : sizeof(init));
    mount->init_flags = init.flags;
    mount->init_flags2 = init.flags2;
    /* Linux 6.6 speaks 7.39 and is the first to keep cached pages right under direct writes. */
    atomic_store(&mount->direct_is_coherent, init.major == 7 && init.minor >= 39);
    atomic_store(&mount->init_unique, in.unique);
}

static struct name_message *next_message(struct name_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    while (!queue->first && !queue->stopping)
        pthread_cond_wait(&queue->changed, &queue->lock);
    struct name_message *message = queue->first;
    if (message)
        queue->first = message->next;
    pthread_mutex_unlock(&queue->lock);
    return message;
}

static void *name_thread(void *context) {
    struct gild_mount *mount = context;
    struct name_message *message;
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    pthread_setname_np(pthread_self(), "gild-names");
    while ((message = next_message(&mount->names))) {
        struct fuse_buf buffer = {.size = message->bytes, .mem = message->data};
        note_init(mount, message);
        fuse_session_process_buf(mount->session, &buffer);
        free(message);
    }
    return NULL;
}

void names_post(struct gild_mount *mount, struct name_message *message) {
    struct name_queue *queue = &mount->names;
    message->next = NULL;
    pthread_mutex_lock(&queue->lock);
    if (queue->first)
        queue->last->next = message;
    else
        queue->first = message;
    queue->last = message;
    pthread_cond_signal(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

int names_start(struct gild_mount *mount) {
    struct name_queue *queue = &mount->names;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    while (queue->started < NAME_THREADS) {
        int error = pthread_create(&queue->threads[queue->started], NULL, name_thread, mount);
        if (error) {
            names_stop(mount);
            return -error;
        }
        queue->started++;
    }
    return 0;
}

void names_stop(struct gild_mount *mount) {
    struct name_queue *queue = &mount->names;
    if (!queue->started)
        return;
    pthread_mutex_lock(&queue->lock);
    queue->stopping = true;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    for (unsigned i = 0; i < queue->started; i++)
        pthread_join(queue->threads[i], NULL);
    queue->started = 0;
}
