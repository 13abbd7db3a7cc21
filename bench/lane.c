/* One NBD connection (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), fixed
 * newstyle, NBD_OPT_GO, simple replies.
 *
 * Requests are gathered as an array of vectors and go out in one sendmsg a turn. The socket is
 * never blocked on for sending, so a server that waits for us to read can not deadlock us. Replies
 * are parsed out of one 256 KiB buffer.
 *
 * Failure: everything unexpected is printed and ends the run; a comparison with errors in it is
 * worth nothing. */
#include "lane.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define IN_BYTES (256u << 10)
#define OUT_VECTORS (LANE_DEPTH_MAX * (1u + 2u * LANE_WRITE_BLOCKS))
#define SEND_VECTORS 1000u

static int get(int fd, void *buffer, size_t length) {
    ssize_t n = recv(fd, buffer, length, MSG_WAITALL);
    return n == (ssize_t)length ? 0 : -1;
}

static int put(int fd, const void *buffer, size_t length) {
    ssize_t n = send(fd, buffer, length, MSG_NOSIGNAL);
    return n == (ssize_t)length ? 0 : -1;
}

static uint16_t load16(const uint8_t *from) {
    uint16_t v;
    memcpy(&v, from, sizeof v);
    return be16toh(v);
}

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

static void store32(uint8_t *to, uint32_t v) {
    v = htobe32(v);
    memcpy(to, &v, sizeof v);
}

static void store64(uint8_t *to, uint64_t v) {
    v = htobe64(v);
    memcpy(to, &v, sizeof v);
}

/* Reads the answers to NBD_OPT_GO until its ACK. */
static int read_go_answers(struct lane *lane) {
    for (;;) {
        uint8_t head[20], body[4096];
        if (get(lane->fd, head, sizeof head)) {
            return -1;
        }
        uint32_t type = load32(head + 12), length = load32(head + 16);
        if (length > sizeof body || (length && get(lane->fd, body, length))) {
            return -1;
        }
        if (type == 1) { /* NBD_REP_ACK */
            return 0;
        }
        if (type != 3) { /* NBD_REP_INFO */
            fprintf(stderr, "server refused: type %x: %.*s\n", type, (int)length,
                    (const char *)body);
            return -1;
        }
        if (length >= 12 && load16(body) == 0) { /* NBD_INFO_EXPORT */
            lane->size_bytes = load64(body + 2);
        }
    }
}

static int handshake(struct lane *lane, const char *export_name) {
    uint8_t hello[18], option[16 + 4 + 4096 + 2];
    size_t name_length = strlen(export_name);
    if (name_length > 4096 || get(lane->fd, hello, sizeof hello) ||
        memcmp(hello, "NBDMAGICIHAVEOPT", 16) != 0) {
        return -1;
    }
    store32(option, load16(hello + 16) & 3u); /* fixed newstyle, no zeroes: as offered */
    if (put(lane->fd, option, 4)) {
        return -1;
    }
    memcpy(option, "IHAVEOPT", 8);
    store32(option + 8, 7); /* NBD_OPT_GO */
    store32(option + 12, (uint32_t)(4 + name_length + 2));
    store32(option + 16, (uint32_t)name_length);
    memcpy(option + 20, export_name, name_length);
    memset(option + 20 + name_length, 0, 2);
    if (put(lane->fd, option, 20 + name_length + 2)) {
        return -1;
    }
    return read_go_answers(lane);
}

int lane_open(struct lane *lane, const char *socket_path, const char *export_name, unsigned depth) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memset(lane, 0, sizeof *lane);
    lane->depth = depth < LANE_DEPTH_MAX ? depth : LANE_DEPTH_MAX;
    for (unsigned i = 0; i < lane->depth; i++) {
        lane->idle[i] = lane->depth - 1 - i;
    }
    lane->idle_count = lane->depth;
    lane->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (lane->fd < 0 || connect(lane->fd, (struct sockaddr *)&address, sizeof address)) {
        fprintf(stderr, "connect %s: %s\n", socket_path, strerror(errno));
        return -1;
    }
    int buffer = 1 << 20;
    (void)setsockopt(lane->fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    lane->out = calloc(OUT_VECTORS, sizeof *lane->out);
    lane->in = malloc(IN_BYTES);
    if (!lane->out || !lane->in) {
        return -1;
    }
    if (handshake(lane, export_name)) {
        fprintf(stderr, "handshake on %s for '%s' failed\n", socket_path, export_name);
        return -1;
    }
    return 0;
}

void lane_close(struct lane *lane) {
    uint8_t bye[28] = {0};
    store32(bye, 0x25609513u);
    bye[7] = 2; /* NBD_CMD_DISC */
    (void)put(lane->fd, bye, sizeof bye);
    close(lane->fd);
    free(lane->out);
    free(lane->in);
}

struct lane_slot *lane_take(struct lane *lane) {
    return lane->idle_count ? &lane->slots[lane->idle[--lane->idle_count]] : NULL;
}

size_t lane_content_offset(const struct lane_stamp *stamp) {
    uint64_t z = stamp->where * 0x9e3779b97f4a7c15u + stamp->turn * 0xbf58476d1ce4e5b9u;
    z ^= z >> 29;
    z *= 0x94d049bb133111ebu;
    return (z >> 20) % (LANE_POOL_BYTES - LANE_BLOCK) & ~(size_t)7;
}

static void append(struct lane *lane, const void *data, size_t length) {
    union {
        const void *from;
        void *to;
    } base = {.from = data};
    lane->out[lane->out_first + lane->out_count++] =
        (struct iovec){.iov_base = base.to, .iov_len = length};
}

void lane_queue(struct lane *lane, struct lane_slot *slot, const uint8_t *pool, uint64_t now_ns) {
    memset(slot->header, 0, 8);
    store32(slot->header, 0x25609513u);
    slot->header[7] = (uint8_t)slot->command;
    store64(slot->header + 8, (uint64_t)(slot - lane->slots));
    store64(slot->header + 16, slot->offset);
    store32(slot->header + 24, slot->bytes);
    slot->started_ns = now_ns;
    if (lane->out_first &&
        lane->out_first + lane->out_count + 1 + 2 * LANE_WRITE_BLOCKS > OUT_VECTORS) {
        memmove(lane->out, lane->out + lane->out_first, lane->out_count * sizeof *lane->out);
        lane->out_first = 0;
    }
    append(lane, slot->header, sizeof slot->header);
    if (slot->command == LANE_WRITE) {
        for (unsigned i = 0; i < slot->bytes / LANE_BLOCK; i++) {
            const struct lane_stamp *stamp = &slot->stamps[i];
            append(lane, stamp, sizeof *stamp);
            append(lane, pool + lane_content_offset(stamp), LANE_BLOCK - sizeof *stamp);
        }
    }
    lane->in_flight++;
}

int lane_send(struct lane *lane) {
    while (lane->out_count) {
        struct iovec *first = lane->out + lane->out_first;
        struct msghdr message = {
            .msg_iov = first,
            .msg_iovlen = lane->out_count < SEND_VECTORS ? lane->out_count : SEND_VECTORS,
        };
        ssize_t sent = sendmsg(lane->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                return 1;
            }
            perror("send");
            return -1;
        }
        size_t left = (size_t)sent;
        while (left && left >= first->iov_len) {
            left -= first->iov_len;
            first++;
            lane->out_first++;
            lane->out_count--;
        }
        if (left) {
            first->iov_base = (uint8_t *)first->iov_base + left;
            first->iov_len -= left;
        }
    }
    lane->out_first = 0;
    return 0;
}

static void finish(struct lane *lane, struct lane_slot *slot, lane_done *done, void *context) {
    lane->in_flight--;
    lane->idle[lane->idle_count++] = (unsigned)(slot - lane->slots);
    done(context, lane, slot);
}

static int parse_header(struct lane *lane, const uint8_t *at) {
    uint64_t cookie = load64(at + 8);
    if (load32(at) != 0x67446698u || cookie >= lane->depth) {
        fprintf(stderr, "not a simple reply: magic %x\n", load32(at));
        return -1;
    }
    lane->current = &lane->slots[cookie];
    if (load32(at + 4)) {
        fprintf(stderr, "command %u at %llu+%u failed: error %u\n", lane->current->command,
                (unsigned long long)lane->current->offset, lane->current->bytes, load32(at + 4));
        return -1;
    }
    lane->payload_left = lane->current->command == LANE_READ ? lane->current->bytes : 0;
    return 0;
}

static int parse(struct lane *lane, lane_done *done, void *context) {
    size_t at = 0;
    for (;;) {
        if (!lane->current) {
            if (lane->in_have - at < 16) {
                break;
            }
            if (parse_header(lane, lane->in + at)) {
                return -1;
            }
            at += 16;
        }
        size_t part = lane->in_have - at;
        part = part < lane->payload_left ? part : lane->payload_left;
        if (lane->copy_to && part) {
            memcpy(lane->copy_to, lane->in + at, part);
            lane->copy_to += part;
        }
        at += part;
        lane->payload_left -= part;
        if (lane->payload_left) {
            break;
        }
        struct lane_slot *slot = lane->current;
        lane->current = NULL;
        finish(lane, slot, done, context);
    }
    memmove(lane->in, lane->in + at, lane->in_have - at);
    lane->in_have -= at;
    return 0;
}

int lane_receive(struct lane *lane, bool wait, lane_done *done, void *context) {
    if (wait && lane->out_count) {
        struct pollfd both = {.fd = lane->fd, .events = POLLIN | POLLOUT};
        if (poll(&both, 1, -1) < 0 || !(both.revents & POLLIN)) {
            return 0; /* room to send first */
        }
    }
    ssize_t n =
        recv(lane->fd, lane->in + lane->in_have, IN_BYTES - lane->in_have, wait ? 0 : MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    if (n <= 0) {
        fprintf(stderr, "receive: %s\n", n ? strerror(errno) : "the server closed the connection");
        return -1;
    }
    lane->in_have += (size_t)n;
    return parse(lane, done, context);
}
