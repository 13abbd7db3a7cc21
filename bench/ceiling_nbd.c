/* The ceiling over NBD: minimal fixed newstyle (NBD_OPT_GO only), simple replies.
 *
 * One thread a connection: receive up to 256 KiB, answer every whole request in it with one sendmsg
 * whose vectors point into the mapped image. A write's payload that has not all arrived is waited
 * for. An unknown request or a range outside the image ends the connection. */
#include "ceiling.h"

#include <endian.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define IN_BYTES (256u << 10)
#define BATCH 256u

struct connection {
    const struct ceiling_image *image;
    int fd;
    size_t have, at;
    unsigned replies;
    struct iovec out[2 * BATCH];
    unsigned out_count;
    uint8_t headers[BATCH][16];
    uint8_t in[IN_BYTES];
};

static uint32_t load32(const uint8_t *from) {
    uint32_t v;
    memcpy(&v, from, sizeof v);
    return be32toh(v);
}

static uint64_t load64(const uint8_t *from) {
    uint64_t v;
    memcpy(&v, from, sizeof v);
    return be64toh(v);
}

static bool get(int fd, void *buffer, size_t length) {
    return recv(fd, buffer, length, MSG_WAITALL) == (ssize_t)length;
}

static bool put(int fd, const void *buffer, size_t length) {
    return send(fd, buffer, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static bool put_option_reply(int fd, uint32_t option, uint32_t type, const void *data,
                             uint32_t length) {
    uint8_t head[20];
    uint64_t magic = htobe64(0x3e889045565a9u);
    uint32_t words[3] = {htobe32(option), htobe32(type), htobe32(length)};
    memcpy(head, &magic, 8);
    memcpy(head + 8, words, 12);
    return put(fd, head, 20) && (!length || put(fd, data, length));
}

static bool handshake(struct connection *c) {
    static const uint8_t hello[18] = "NBDMAGICIHAVEOPT\0\3";
    uint8_t option[16];
    if (!put(c->fd, hello, 18) || !get(c->fd, option, 4)) {
        return false;
    }
    for (;;) {
        if (!get(c->fd, option, 16)) {
            return false;
        }
        uint32_t code = load32(option + 8), length = load32(option + 12);
        if (length > sizeof c->in || !get(c->fd, c->in, length)) {
            return false;
        }
        if (code != 7) { /* NBD_OPT_GO; all others: NBD_REP_ERR_UNSUP */
            if (!put_option_reply(c->fd, code, 0x80000001u, NULL, 0)) {
                return false;
            }
            continue;
        }
        uint8_t info[12] = {0};
        uint64_t size = htobe64(c->image->bytes);
        memcpy(info + 2, &size, 8);
        info[11] = 1 | 4; /* has flags, flush */
        return put_option_reply(c->fd, code, 3, info, 12) &&
               put_option_reply(c->fd, code, 1, NULL, 0);
    }
}

static bool send_replies(struct connection *c) {
    struct iovec *first = c->out;
    while (c->out_count) {
        struct msghdr message = {.msg_iov = first, .msg_iovlen = c->out_count};
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        size_t left = (size_t)sent;
        while (c->out_count && left >= first->iov_len) {
            left -= first->iov_len;
            first++;
            c->out_count--;
        }
        if (left) {
            first->iov_base = (uint8_t *)first->iov_base + left;
            first->iov_len -= left;
        }
    }
    c->replies = 0;
    return true;
}

/* Takes a write's payload out of the buffer and, where it is not all there, off the socket. */
static bool take_payload(struct connection *c, uint64_t offset, uint32_t length) {
    size_t here = c->have - c->at;
    here = here < length ? here : length;
    memcpy(c->image->data + offset, c->in + c->at, here);
    c->at += here;
    return here == length || get(c->fd, c->image->data + offset + here, length - here);
}

/* One whole request header is at c->at. */
static bool serve_one(struct connection *c) {
    const uint8_t *request = c->in + c->at;
    uint32_t command = load32(request + 4) & 0xffffu, length = load32(request + 24);
    uint64_t offset = load64(request + 16);
    if (load32(request) != 0x25609513u || command == 2 || command > 3 || offset > c->image->bytes ||
        length > c->image->bytes - offset) {
        return false;
    }
    uint8_t *header = c->headers[c->replies++];
    uint32_t magic = htobe32(0x67446698u);
    memcpy(header, &magic, 4);
    memset(header + 4, 0, 4);
    memcpy(header + 8, request + 8, 8);
    c->at += 28;
    if (command == 1 && !take_payload(c, offset, length)) {
        return false;
    }
    c->out[c->out_count++] = (struct iovec){.iov_base = header, .iov_len = 16};
    if (command == 0 && length) {
        c->out[c->out_count++] =
            (struct iovec){.iov_base = c->image->data + offset, .iov_len = length};
    }
    return c->replies < BATCH || send_replies(c);
}

static void *serve_connection(void *argument) {
    struct connection *c = argument;
    bool alive = handshake(c);
    c->have = 0;
    while (alive) {
        ssize_t n = recv(c->fd, c->in + c->have, IN_BYTES - c->have, 0);
        if (n <= 0) {
            break;
        }
        c->have += (size_t)n;
        c->at = 0;
        while (alive && c->have - c->at >= 28) {
            alive = serve_one(c);
        }
        alive = alive && send_replies(c);
        memmove(c->in, c->in + c->at, c->have - c->at);
        c->have -= c->at;
    }
    close(c->fd);
    free(c);
    return NULL;
}

int ceiling_serve_nbd(const struct ceiling_image *image, const char *socket_path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) {
        perror(socket_path);
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), buffer = 1 << 20;
        struct connection *c = fd < 0 ? NULL : malloc(sizeof *c);
        pthread_t thread;
        if (!c) {
            perror("accept");
            return 1;
        }
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
        c->image = image;
        c->fd = fd;
        c->replies = c->out_count = 0;
        if (pthread_create(&thread, NULL, serve_connection, c)) {
            perror("pthread_create");
            return 1;
        }
        pthread_detach(thread);
    }
}
