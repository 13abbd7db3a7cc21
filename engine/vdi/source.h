/* Where an import reads from: a raw file or block device, a foreign image behind a qemu-nbd child,
 * or an NBD server. Whatever it is, it gives its data in ascending order and passes over holes;
 * several reads are in flight behind the one who asks.
 *
 * Private to engine/vdi. One thread opens, asks and closes; it must be the same thread, and live
 * that long: a child process of ours is killed when the thread that started it ends. */
#ifndef GILD_VDI_SOURCE_H
#define GILD_VDI_SOURCE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "gild/error.h"

#define VDI_SOURCE_FORMAT_BYTES 16u

struct vdi_source;

/* A stretch of data: whole blocks of 4 KiB. The last block of the source is filled up with zeroes.
 * Zero blocks may be among them (some formats can not tell). */
struct vdi_chunk {
    uint64_t offset_bytes;
    size_t bytes; /* 0: nothing came within a second, ask again */
    const void *data;
};

/* source: a path, or nbd://, nbds://, nbd+unix://, nbds+unix://. format: "raw", "qcow2", "vmdk",
 * "vhdx", "vdi", or NULL: by content. Images that lean on other files are refused unless
 * allow_backing. Nothing is written anywhere. */
int vdi_source_open(struct vdi_source **out, const char *source, const char *format,
                    bool allow_backing, struct gild_error *error);

uint64_t vdi_source_size_bytes(const struct vdi_source *source); /* a multiple of 512, not 0 */
const char *vdi_source_format(const struct vdi_source *source);  /* "raw", ..., "nbd" */

/* 1: *chunk is set, valid until the next call. 0: all is read. -errno. */
int vdi_source_next(struct vdi_source *source, struct vdi_chunk *chunk, struct gild_error *error);

/* Stops what is in flight, reaps the child, frees. NULL is fine. */
void vdi_source_close(struct vdi_source *source);

/* ---- between the files of this source -------------------------------------------------------- */

#define VDI_CHUNK_BYTES (1u << 20)
#define VDI_RING_SLOTS 16u
#define VDI_BLOCK_BYTES 4096u

struct vdi_slot {
    uint64_t offset_bytes;
    size_t bytes;
    bool filled;
    uint8_t *data;
};

/* Readers claim slots in ascending order of offset and fill them in any; the consumer takes them in
 * the order of claiming. */
struct vdi_ring {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* for whoever waits: few threads, long waits */
    struct vdi_slot slots[VDI_RING_SLOTS];
    uint64_t head, tail; /* slots are numbered for ever; head: the consumer's */
    bool lent;           /* the consumer looks at slot head */
    bool ended;          /* nothing will be claimed any more */
    bool stopping;
    bool failed;
    struct gild_error error;
    int wake; /* eventfd, -1 if no reader polls */
    uint8_t *memory;
};

int vdi_ring_init(struct vdi_ring *ring, bool with_wake, struct gild_error *error);
void vdi_ring_fini(struct vdi_ring *ring);
/* NULL: stopped or failed, or (wait false) no slot is free. bytes <= VDI_CHUNK_BYTES. */
struct vdi_slot *vdi_ring_claim(struct vdi_ring *ring, uint64_t offset_bytes, size_t bytes,
                                bool wait);
void vdi_ring_filled(struct vdi_ring *ring, struct vdi_slot *slot);
void vdi_ring_end(struct vdi_ring *ring);
void vdi_ring_fail(struct vdi_ring *ring, const struct gild_error *error); /* the first counts */
void vdi_ring_stop(struct vdi_ring *ring);
bool vdi_ring_is_over(struct vdi_ring *ring); /* stopped or failed: readers end */
int vdi_ring_next(struct vdi_ring *ring, struct vdi_chunk *chunk, struct gild_error *error);

struct vdi_source {
    uint64_t size_bytes;
    char format[VDI_SOURCE_FORMAT_BYTES];
    struct vdi_ring ring;
    /* After all is read: was it read from something that stood still? */
    int (*verify)(struct vdi_source *source, struct gild_error *error);
    void (*close)(struct vdi_source *source); /* after vdi_ring_stop; frees the source */
};

/* fd becomes the source's, in case of failure too. name: for sentences. */
int vdi_source_open_raw(struct vdi_source **out, int fd, const char *name, uint64_t size_bytes,
                        struct gild_error *error);
int vdi_source_open_nbd(struct vdi_source **out, const char *uri, struct gild_error *error);
/* Reads through a connected handle. handle and *child (may be NULL) become the source's, in case of
 * failure too; the child is the server. */
struct nbd_handle;
struct vdi_child;
int vdi_source_read_nbd(struct vdi_source **out, struct nbd_handle *handle, struct vdi_child *child,
                        const char *name, const char *format, struct gild_error *error);
/* A handle that asks for base:allocation, or NULL with a sentence. */
struct nbd_handle *vdi_nbd_create(struct gild_error *error);
/* After nbd_aio_connect_*: 0, or -errno if it fails or takes more than a minute; no sentence. */
int vdi_nbd_finish_connecting(struct nbd_handle *handle);
/* path: absolute; name: for sentences; device: it is a block device; file_bytes: its size. Checks
 * the image, then serves it by qemu-nbd. */
int vdi_source_open_image(struct vdi_source **out, const char *path, const char *name,
                          const char *format, bool device, bool allow_backing, uint64_t file_bytes,
                          struct gild_error *error);

/* What a file's first bytes say: a format's name, NULL for "could be raw", or -errno with a
 * sentence for what no import takes (another format, text). */
#define VDI_PROBE_BYTES 512u
int vdi_source_probe(const uint8_t *bytes, size_t length, const char *name, const char **format,
                     struct gild_error *error);

/* ---- child processes ------------------------------------------------------------------------- */

struct vdi_child {
    pid_t pid;
    int process;  /* pidfd */
    int output;   /* what it printed: an anonymous file each */
    int messages; /* stderr */
    const char *program;
};

/* Starts argv[0] from PATH in `folder` with its stdin on /dev/null, a clean signal mask, and no
 * descriptor of ours but listen_fd (-1: none), which it gets by the socket activation protocol. It
 * is killed when the calling thread ends. */
int vdi_child_start(struct vdi_child *child, const char *const argv[], const char *folder,
                    int listen_fd, struct gild_error *error);
/* Waits for its end: the exit status (128 + signal if killed), or -ETIMEDOUT. Then it is reaped. */
int vdi_child_wait(struct vdi_child *child, int timeout_ms);
/* Why it failed: the first line of its stderr, less its own and the file's name, without control
 * characters; "" if none. Returns text. */
char *vdi_child_message(const struct vdi_child *child, char *text, size_t room);
/* Ends it (SIGTERM, after a grace SIGKILL), reaps it, closes what it printed. Idempotent. */
void vdi_child_end(struct vdi_child *child);

#endif
