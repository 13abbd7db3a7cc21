/* A raw NBD client for tests: it sends exactly what it is told to, right or wrong, and reads
 * replies strictly. Every wait ends after NBD_CLIENT_SECONDS; then, and on any breach by the
 * server, the call returns false or a negative number, never hangs. */
#ifndef GILD_TESTS_NBD_CLIENT_H
#define GILD_TESTS_NBD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd/wire.h"

#define NBD_CLIENT_SECONDS 20

/* "unix:PATH" or "tcp:127.0.0.1:PORT"; -1 if nobody answers. */
int nbd_client_connect(const char *where);

bool nbd_client_send(int fd, const void *bytes, size_t count);
bool nbd_client_receive(int fd, void *bytes, size_t count);
bool nbd_client_at_end(int fd);     /* the server has closed, and nothing came before that */
bool nbd_client_wait_taken(int fd); /* all that was sent has been read by the server */
bool nbd_client_greeting(int fd);   /* receives and checks it */
bool nbd_client_flags(int fd, uint32_t flags);

bool nbd_client_option(int fd, uint32_t option, const void *data, uint32_t length);

struct nbd_client_reply {
    uint32_t option, type, length;
    uint8_t data[4096]; /* the first bytes of it, NUL-terminated */
};
bool nbd_client_option_reply(int fd, struct nbd_client_reply *reply);
/* Sends an option, skips to the final reply; returns its type, 0 on failure. */
uint32_t nbd_client_ask(int fd, uint32_t option, const void *data, uint32_t length,
                        struct nbd_client_reply *last);

/* Builders; all return bytes written. */
uint32_t nbd_client_go_data(uint8_t *to, const char *name, unsigned count, const uint16_t *infos);
uint32_t nbd_client_context_data(uint8_t *to, const char *name, unsigned count,
                                 const char *const *queries);
void nbd_client_header(uint8_t to[NBD_REQUEST_BYTES], unsigned flags, unsigned type,
                       uint64_t cookie, uint64_t offset, uint32_t length);

/* Connects and goes to transmission; structured replies bring base:allocation along. -1: refused.
 */
struct nbd_client_export {
    uint64_t size_bytes;
    unsigned flags;
};
int nbd_client_open(const char *where, const char *name, bool structured,
                    struct nbd_client_export *export);

bool nbd_client_request(int fd, unsigned flags, unsigned type, uint64_t cookie, uint64_t offset,
                        uint32_t length, const void *payload);

/* One reply frame: a simple reply (its payload, which only the caller can know of, is not read) or
 * a chunk (its payload is read into data, at most `room` bytes of data, else false). */
struct nbd_client_frame {
    bool structured, done;
    unsigned type; /* chunk */
    uint64_t cookie;
    uint32_t error;    /* simple, or error chunk */
    uint32_t length;   /* payload bytes of a chunk's data (offset, error fields taken off) */
    uint64_t offset;   /* OFFSET_DATA */
    char message[256]; /* error chunk */
    uint8_t *data;
    size_t room;
};
bool nbd_client_frame(int fd, struct nbd_client_frame *frame);

/* A whole command, alone in flight: 0, the NBD error, or -1 (broken stream). READ fills `data`. */
int nbd_client_do(int fd, bool structured, unsigned flags, unsigned type, uint64_t offset,
                  uint32_t length, void *data);

/* Runs until the condition holds; false after NBD_CLIENT_SECONDS. */
#define nbd_client_until(condition)                                                             \
    __extension__({                                                                             \
        uint64_t until_limit = nbd_client_now_ns() + NBD_CLIENT_SECONDS * UINT64_C(1000000000); \
        while (!(condition) && nbd_client_now_ns() < until_limit)                               \
            nbd_client_yield();                                                                 \
        (condition);                                                                            \
    })
uint64_t nbd_client_now_ns(void);
void nbd_client_yield(void);

#endif
