/* A raw NBD client for tests (nbd_client.h). */
#include "nbd_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"

uint64_t nbd_client_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void nbd_client_yield(void) {
    sched_yield();
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static int connect_to(const struct sockaddr *address, socklen_t length) {
    struct timeval patience = {.tv_sec = NBD_CLIENT_SECONDS};
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    int result;
    do
        result = connect(fd, address, length);
    while (result && errno == EINTR);
    if (result) {
        close(fd);
        return -1;
    }
    return fd;
}

int nbd_client_connect(const char *where) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 inet6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (strncmp(where, "unix:", 5) == 0) {
        snprintf(local.sun_path, sizeof local.sun_path, "%s", where + 5);
        return connect_to((struct sockaddr *)&local, sizeof local);
    }
    in_port_t port = htons((uint16_t)atoi(strrchr(where, ':') + 1));
    if (strchr(where, '[')) {
        inet6.sin6_port = port;
        return connect_to((struct sockaddr *)&inet6, sizeof inet6);
    }
    inet.sin_port = port;
    return connect_to((struct sockaddr *)&inet, sizeof inet);
}

bool nbd_client_send(int fd, const void *bytes, size_t count) {
    const char *at = bytes;
    while (count) {
        ssize_t sent = send(fd, at, count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue; /* with a time-out set, the kernel does not go on by itself */
        if (sent <= 0)
            return false;
        at += sent;
        count -= (size_t)sent;
    }
    return true;
}

bool nbd_client_receive(int fd, void *bytes, size_t count) {
    char *at = bytes;
    while (count) {
        ssize_t got = recv(fd, at, count, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        count -= (size_t)got;
    }
    return true;
}

bool nbd_client_at_end(int fd) {
    char byte;
    ssize_t got;
    do
        got = recv(fd, &byte, 1, 0);
    while (got < 0 && errno == EINTR);
    return got == 0 || (got < 0 && errno == ECONNRESET);
}

static bool nothing_waits(int fd) {
    int waiting = 1;
    return ioctl(fd, SIOCOUTQ, &waiting) == 0 && waiting == 0;
}

bool nbd_client_wait_taken(int fd) {
    return nbd_client_until(nothing_waits(fd));
}

/* ---- handshake ------------------------------------------------------------------------------- */

bool nbd_client_greeting(int fd) {
    uint8_t greeting[NBD_GREETING_BYTES];
    return nbd_client_receive(fd, greeting, sizeof greeting) &&
           gild_get_be64(greeting) == NBD_INIT_MAGIC &&
           gild_get_be64(greeting + 8) == NBD_OPTION_MAGIC &&
           gild_get_be16(greeting + 16) == (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

bool nbd_client_flags(int fd, uint32_t flags) {
    uint8_t bytes[4];
    gild_put_be32(bytes, flags);
    return nbd_client_send(fd, bytes, sizeof bytes);
}

bool nbd_client_option(int fd, uint32_t option, const void *data, uint32_t length) {
    uint8_t header[NBD_OPTION_HEADER_BYTES];
    gild_put_be64(header, NBD_OPTION_MAGIC);
    gild_put_be32(header + 8, option);
    gild_put_be32(header + 12, length);
    return nbd_client_send(fd, header, sizeof header) && nbd_client_send(fd, data, length);
}

bool nbd_client_option_reply(int fd, struct nbd_client_reply *reply) {
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    if (!nbd_client_receive(fd, header, sizeof header) ||
        gild_get_be64(header) != NBD_OPTION_REPLY_MAGIC)
        return false;
    reply->option = gild_get_be32(header + 8);
    reply->type = gild_get_be32(header + 12);
    reply->length = gild_get_be32(header + 16);
    if (reply->length >= sizeof reply->data)
        return false;
    reply->data[reply->length] = 0;
    return nbd_client_receive(fd, reply->data, reply->length);
}

uint32_t nbd_client_ask(int fd, uint32_t option, const void *data, uint32_t length,
                        struct nbd_client_reply *last) {
    struct nbd_client_reply own;
    struct nbd_client_reply *reply = last ? last : &own;
    if (!nbd_client_option(fd, option, data, length))
        return 0;
    do {
        if (!nbd_client_option_reply(fd, reply) || reply->option != option)
            return 0;
    } while (reply->type != NBD_REP_ACK && !(reply->type & 0x80000000u));
    return reply->type;
}

uint32_t nbd_client_go_data(uint8_t *to, const char *name, unsigned count, const uint16_t *infos) {
    uint32_t length = (uint32_t)strlen(name);
    gild_put_be32(to, length);
    memcpy(to + 4, name, length);
    gild_put_be16(to + 4 + length, (uint16_t)count);
    for (unsigned i = 0; i < count; i++)
        gild_put_be16(to + 6 + length + 2 * i, infos[i]);
    return 6 + length + 2 * count;
}

uint32_t nbd_client_context_data(uint8_t *to, const char *name, unsigned count,
                                 const char *const *queries) {
    uint8_t *at = to;
    gild_put_be32(at, (uint32_t)strlen(name));
    memcpy(at + 4, name, strlen(name));
    at += 4 + strlen(name);
    gild_put_be32(at, count);
    at += 4;
    for (unsigned i = 0; i < count; i++) {
        gild_put_be32(at, (uint32_t)strlen(queries[i]));
        memcpy(at + 4, queries[i], strlen(queries[i]));
        at += 4 + strlen(queries[i]);
    }
    return (uint32_t)(at - to);
}

static bool go(int fd, const char *name, struct nbd_client_export *export) {
    uint8_t data[256];
    struct nbd_client_reply reply;
    if (!nbd_client_option(fd, NBD_OPT_GO, data, nbd_client_go_data(data, name, 0, NULL)))
        return false;
    while (nbd_client_option_reply(fd, &reply) && reply.type == NBD_REP_INFO)
        if (gild_get_be16(reply.data) == NBD_INFO_EXPORT && export) {
            export->size_bytes = gild_get_be64(reply.data + 2);
            export->flags = gild_get_be16(reply.data + 10);
        }
    return reply.type == NBD_REP_ACK;
}

int nbd_client_open(const char *where, const char *name, bool structured,
                    struct nbd_client_export *export) {
    static const char *const queries[] = {"base:allocation"};
    uint8_t data[256];
    int fd = nbd_client_connect(where);
    if (fd < 0)
        return -1;
    bool good = nbd_client_greeting(fd) &&
                nbd_client_flags(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (good && structured)
        good = nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL) == NBD_REP_ACK &&
               nbd_client_ask(fd, NBD_OPT_SET_META_CONTEXT, data,
                              nbd_client_context_data(data, name, 1, queries), NULL) == NBD_REP_ACK;
    if (good && go(fd, name, export))
        return fd;
    close(fd);
    return -1;
}

/* ---- transmission ---------------------------------------------------------------------------- */

void nbd_client_header(uint8_t to[NBD_REQUEST_BYTES], unsigned flags, unsigned type,
                       uint64_t cookie, uint64_t offset, uint32_t length) {
    gild_put_be32(to, NBD_REQUEST_MAGIC);
    gild_put_be16(to + 4, (uint16_t)flags);
    gild_put_be16(to + 6, (uint16_t)type);
    gild_put_be64(to + 8, cookie);
    gild_put_be64(to + 16, offset);
    gild_put_be32(to + 24, length);
}

bool nbd_client_request(int fd, unsigned flags, unsigned type, uint64_t cookie, uint64_t offset,
                        uint32_t length, const void *payload) {
    uint8_t header[NBD_REQUEST_BYTES];
    nbd_client_header(header, flags, type, cookie, offset, length);
    return nbd_client_send(fd, header, sizeof header) &&
           (type != NBD_CMD_WRITE || nbd_client_send(fd, payload, length));
}

static bool chunk_fields(int fd, struct nbd_client_frame *frame) {
    uint8_t fields[8];
    uint32_t taken = 0;
    if (frame->type == NBD_REPLY_TYPE_OFFSET_DATA) {
        taken = 8;
        if (frame->length < 9 || !nbd_client_receive(fd, fields, 8))
            return false;
        frame->offset = gild_get_be64(fields);
    } else if (frame->type == NBD_REPLY_TYPE_ERROR) {
        if (frame->length < 6 || !nbd_client_receive(fd, fields, 6))
            return false;
        frame->error = gild_get_be32(fields);
        uint32_t length = gild_get_be16(fields + 4);
        if (!frame->error || length != frame->length - 6 || length >= sizeof frame->message ||
            !nbd_client_receive(fd, frame->message, length))
            return false;
        frame->message[length] = 0;
        frame->length = 0;
        return true;
    } else if (frame->type == NBD_REPLY_TYPE_BLOCK_STATUS) {
        taken = 4;
        if (frame->length < 12 || !nbd_client_receive(fd, fields, 4) ||
            gild_get_be32(fields) != NBD_CONTEXT_ID)
            return false;
    } else if (frame->type != NBD_REPLY_TYPE_NONE || frame->length || !frame->done) {
        return false;
    }
    frame->length -= taken;
    return frame->length <= frame->room && nbd_client_receive(fd, frame->data, frame->length);
}

bool nbd_client_frame(int fd, struct nbd_client_frame *frame) {
    uint8_t header[NBD_CHUNK_HEADER_BYTES];
    if (!nbd_client_receive(fd, header, NBD_SIMPLE_REPLY_BYTES))
        return false;
    frame->structured = gild_get_be32(header) == NBD_STRUCTURED_REPLY_MAGIC;
    frame->error = frame->length = 0;
    frame->message[0] = 0;
    frame->done = true;
    frame->cookie = gild_get_be64(header + 8);
    if (!frame->structured) {
        frame->error = gild_get_be32(header + 4);
        return gild_get_be32(header) == NBD_SIMPLE_REPLY_MAGIC;
    }
    if (!nbd_client_receive(fd, header + 16, 4))
        return false;
    unsigned flags = gild_get_be16(header + 4);
    frame->done = flags & NBD_REPLY_FLAG_DONE;
    frame->type = gild_get_be16(header + 6);
    frame->length = gild_get_be32(header + 16);
    return !(flags & ~NBD_REPLY_FLAG_DONE) && chunk_fields(fd, frame);
}

int nbd_client_do(int fd, bool structured, unsigned flags, unsigned type, uint64_t offset,
                  uint32_t length, void *data) {
    static const uint64_t cookie = UINT64_C(0x1122334455667788);
    struct nbd_client_frame frame;
    uint64_t got = 0;
    uint32_t error = 0;
    if (!nbd_client_request(fd, flags, type, cookie, offset, length, data))
        return -1;
    do {
        uint64_t rest = type == NBD_CMD_READ ? length - got : length;
        frame.data = type == NBD_CMD_READ ? (uint8_t *)data + got : data;
        frame.room = type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS ? rest : 0;
        if (!nbd_client_frame(fd, &frame) || frame.cookie != cookie)
            return -1;
        if (frame.error)
            error = frame.error;
        if (type == NBD_CMD_READ && frame.structured != structured)
            return -1;
        if (!frame.structured) {
            if (type == NBD_CMD_READ && !error && !nbd_client_receive(fd, data, length))
                return -1;
            return (int)error;
        }
        if (frame.type == NBD_REPLY_TYPE_OFFSET_DATA) {
            if (frame.offset != offset + got)
                return -1;
            got += frame.length;
        }
    } while (!frame.done);
    if (type == NBD_CMD_READ && !error && got != length)
        return -1;
    return (int)error;
}
