/* What the loop promises about files, sockets and lent buffers, on each backend. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/prng.h"
#include "base/queue.h"
#include "io/backend.h"
#include "io/file.h"
#include "loop_rig.h"
#include "test_loop.h"

static struct loop_rig started(unsigned entries, unsigned shared_buffers) {
    struct loop_rig rig;
    struct gild_loop_options options = {tested_backend, entries, shared_buffers};
    loop_rig_start(&rig, &options);
    return rig;
}

/* A file without a name, with O_DIRECT if asked and possible. */
static int scratch_file(int flags) {
    char path[] = "/var/tmp/gild-test-loop-XXXXXX";
    int fd = mkstemp(path);
    if (fd >= 0 && flags) {
        close(fd);
        fd = gild_file_open(AT_FDCWD, path, O_RDWR | flags, 0, NULL);
    }
    unlink(path);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    return fd;
}

static void make_pair(int pair[2], int flags) {
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, pair), 0);
}

static void close_pair(int pair[2]) {
    close(pair[0]);
    close(pair[1]);
}

/* ---- files --------------------------------------------------------------------------------- */

static void test_files_are_read_back_and_synced(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io io;
    char text[32] = {0}, a[4] = {0}, b[8] = {0};
    int fd = scratch_file(0);
    rig_io_init(&io, &rig, fd);
    rig_write(&io, "0123456789", 10, 3, false);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 10);
    rig_write(&io, "ab", 2, 13, true);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 2);
    rig_fdatasync(&io);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 0);
    rig_read(&io, text, 12, 3);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 12);
    CU_ASSERT_STRING_EQUAL(text, "0123456789ab");
    io.vectors[0] = (struct iovec){a, 3};
    io.vectors[1] = (struct iovec){b, 7};
    rig_readv(&io, 2, 3);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 10);
    CU_ASSERT_STRING_EQUAL(a, "012");
    CU_ASSERT_STRING_EQUAL(b, "3456789");
    /* The end of the file. */
    rig_read(&io, text, 32, 10);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 5);
    rig_read(&io, text, 1, 15);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 0);
    rig_read(&io, text, 0, 0);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 0);
    close(fd);
    rig_io_fini(&io);
    loop_rig_stop(&rig);
}

/* An older kernel: the C library's own calls are not reached. */
static _Atomic bool no_dsync;
static _Atomic unsigned refused, synced;

ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
    if (no_dsync && flags & RWF_DSYNC) {
        refused++;
        errno = EOPNOTSUPP;
        return -1;
    }
    return syscall(SYS_pwritev2, fd, vectors, count, (long)offset, 0l, flags);
}

int fdatasync(int fd) {
    synced++;
    return (int)syscall(SYS_fdatasync, fd);
}

/* By threads only: io_uring came after RWF_DSYNC. */
static void test_durable_writes_without_rwf_dsync_are_synced(void) {
    if (tested_backend != GILD_LOOP_THREADS)
        return;
    struct loop_rig rig = started(0, 0);
    struct rig_io io;
    char text[4] = {0};
    rig_io_init(&io, &rig, scratch_file(0));
    no_dsync = true;
    refused = synced = 0;
    rig_write(&io, "abc", 3, 0, false);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 3);
    CU_ASSERT_EQUAL(synced, 0);
    rig_write(&io, "xyz", 3, 0, true);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 3);
    CU_ASSERT_EQUAL(refused, 1);
    CU_ASSERT_EQUAL(synced, 1);
    no_dsync = false;
    rig_read(&io, text, 3, 0);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 3);
    CU_ASSERT_STRING_EQUAL(text, "xyz");
    close(io.fd);
    loop_rig_stop(&rig);
}

static void test_file_errors_are_results(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io io;
    char byte = 0;
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    rig_io_init(&io, &rig, fd);
    rig_write(&io, "x", 1, 0, false);
    CU_ASSERT_EQUAL(rig_io_wait(&io), -EBADF);
    rig_fdatasync(&io);
    CU_ASSERT_EQUAL(rig_io_wait(&io), -EINVAL);
    close(fd);
    io.fd = -1;
    rig_read(&io, &byte, 1, 0);
    CU_ASSERT_EQUAL(rig_io_wait(&io), -EBADF);
    io.fd = open("/dev/full", O_RDWR | O_CLOEXEC);
    rig_write(&io, "x", 1, 0, false);
    CU_ASSERT_EQUAL(rig_io_wait(&io), -ENOSPC);
    close(io.fd);
    loop_rig_stop(&rig);
}

static void test_direct_reads_end_at_any_byte(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io io;
    char *buffer = gild_file_buffer(8192);
    int fd = scratch_file(O_DIRECT);
    memset(buffer, 5, 8192);
    rig_io_init(&io, &rig, fd);
    rig_write(&io, buffer, 8192, 0, true);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 8192);
    CU_ASSERT_EQUAL(ftruncate(fd, 5000), 0);
    rig_read(&io, buffer, 8192, 0);
    CU_ASSERT_EQUAL(rig_io_wait(&io), 5000);
    close(fd);
    free(buffer);
    loop_rig_stop(&rig);
}

#define CROWD 300
#define CHUNK 4096

struct crowd {
    struct gild_loop *loop;
    int fd;
    bool reading;
    unsigned left, wrong;
    unsigned nested;
    bool starting;
    sem_t end;
    struct member {
        struct gild_io io;
        struct crowd *crowd;
        uint64_t block;
        char *buffer;
    } member[CROWD];
};

static void member_done(struct gild_io *io) {
    struct member *member = gild_container_of(io, struct member, io);
    struct crowd *crowd = member->crowd;
    if (crowd->starting)
        crowd->nested++;
    if (io->result != CHUNK)
        crowd->wrong++;
    if (--crowd->left == 0)
        sem_post(&crowd->end);
}

static void start_crowd(void *context) {
    struct crowd *crowd = context;
    crowd->starting = true;
    crowd->left = CROWD;
    for (unsigned i = 0; i < CROWD; i++) {
        struct member *m = &crowd->member[i];
        if (crowd->reading)
            gild_io_read(crowd->loop, &m->io, crowd->fd, m->buffer, CHUNK, m->block * CHUNK);
        else
            gild_io_write(crowd->loop, &m->io, crowd->fd, m->buffer, CHUNK, m->block * CHUNK,
                          i % 50 == 0);
    }
    crowd->starting = false;
}

static void fill_block(char *buffer, uint64_t block) {
    struct gild_prng prng;
    gild_prng_seed(&prng, block);
    gild_prng_fill(&prng, buffer, CHUNK);
}

/* Far more I/Os at once than the submission queue has entries. */
static void test_a_full_queue_drops_nothing(void) {
    struct loop_rig rig = started(8, 0);
    struct crowd *crowd = calloc(1, sizeof *crowd);
    char *expected = gild_file_buffer(CHUNK);
    crowd->loop = rig.loop;
    crowd->fd = scratch_file(0);
    sem_init(&crowd->end, 0, 0);
    for (unsigned i = 0; i < CROWD; i++) {
        struct member *m = &crowd->member[i];
        m->io.done = member_done;
        m->crowd = crowd;
        m->block = i * 7919u % CROWD; /* each once, scattered */
        m->buffer = gild_file_buffer(CHUNK);
        fill_block(m->buffer, m->block);
    }
    for (int pass = 0; pass < 2; pass++) {
        crowd->reading = pass == 1;
        loop_rig_call(&rig, start_crowd, crowd);
        while (sem_wait(&crowd->end))
            ;
        for (unsigned i = 0; i < CROWD; i++) {
            fill_block(expected, crowd->member[i].block);
            if (memcmp(crowd->member[i].buffer, expected, CHUNK))
                CU_FAIL("a block came back with other content");
            memset(crowd->member[i].buffer, 0, CHUNK);
        }
        crowd->reading = true;
        if (pass == 0)
            continue;
    }
    loop_rig_stop(&rig);
    CU_ASSERT_EQUAL(crowd->wrong, 0);
    CU_ASSERT_EQUAL(crowd->nested, 0);
    for (unsigned i = 0; i < CROWD; i++)
        free(crowd->member[i].buffer);
    close(crowd->fd);
    free(expected);
    free(crowd);
}

/* ---- sockets ------------------------------------------------------------------------------- */

static void test_sockets_send_and_receive(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io out, in;
    char text[16] = {0}, he[] = "he", llo[] = "llo", one[] = "one";
    int pair[2];
    make_pair(pair, 0);
    rig_io_init(&out, &rig, pair[0]);
    rig_io_init(&in, &rig, pair[1]);
    rig_recv(&in, text, sizeof text); /* waits */
    out.vectors[0] = (struct iovec){he, 2};
    out.vectors[1] = (struct iovec){llo, 3};
    rig_send(&out, 2, false);
    CU_ASSERT_EQUAL(rig_io_wait(&out), 5);
    CU_ASSERT_EQUAL(rig_io_wait(&in), 5);
    CU_ASSERT_STRING_EQUAL(text, "hello");
    out.vectors[0] = (struct iovec){one, 3};
    rig_send(&out, 1, true);
    CU_ASSERT_EQUAL(rig_io_wait(&out), 3);
    rig_recv(&in, text, 2); /* is there already, and is more than asked for */
    CU_ASSERT_EQUAL(rig_io_wait(&in), 2);
    rig_recv(&in, text, 2);
    CU_ASSERT_EQUAL(rig_io_wait(&in), 1);
    shutdown(pair[0], SHUT_WR);
    rig_recv(&in, text, 2);
    CU_ASSERT_EQUAL(rig_io_wait(&in), 0);
    close(pair[1]);
    rig_send(&out, 1, false); /* and no SIGPIPE */
    CU_ASSERT_EQUAL(rig_io_wait(&out), -EPIPE);
    close(pair[0]);
    loop_rig_stop(&rig);
}

/* A send that must wait for room, and a descriptor that others made non-blocking. */
static void send_through_full_socket(int flags) {
    struct loop_rig rig = started(0, 0);
    struct rig_io out, in;
    static char big[4 << 20], sink[1 << 16];
    size_t sent = 0, received = 0;
    int pair[2];
    make_pair(pair, flags);
    rig_io_init(&out, &rig, pair[0]);
    rig_io_init(&in, &rig, pair[1]);
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 131 >> 7);
    while (sent < sizeof big) {
        out.vectors[0] = (struct iovec){big + sent, sizeof big - sent};
        rig_send(&out, 1, false);
        do {
            rig_recv(&in, sink, sizeof sink);
            int part = rig_io_wait(&in);
            CU_ASSERT_TRUE_FATAL(part > 0);
            CU_ASSERT_EQUAL_FATAL(memcmp(sink, big + received, (size_t)part), 0);
            received += (size_t)part;
        } while (sem_trywait(&out.ended));
        CU_ASSERT_TRUE_FATAL(out.io.result > 0);
        sent += (size_t)out.io.result;
        while (received < sent) {
            rig_recv(&in, sink, sizeof sink);
            received += (size_t)rig_io_wait(&in);
        }
    }
    CU_ASSERT_EQUAL(received, sizeof big);
    close_pair(pair);
    loop_rig_stop(&rig);
}

static void test_sends_wait_for_room(void) {
    send_through_full_socket(0);
}

static void test_nonblocking_descriptors_wait_too(void) {
    send_through_full_socket(SOCK_NONBLOCK);
}

static void test_accept_gives_a_close_on_exec_descriptor(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io io;
    /* A name the kernel picks, outside the file system. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_EQUAL_FATAL(bind(listener, (void *)&address, sizeof(sa_family_t)), 0);
    CU_ASSERT_EQUAL_FATAL(getsockname(listener, (void *)&address, &length), 0);
    CU_ASSERT_EQUAL_FATAL(listen(listener, 8), 0);
    rig_io_init(&io, &rig, listener);
    for (int round = 0; round < 3; round++) {
        int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (round != 1)
            rig_accept(&io); /* before the client comes, and after */
        CU_ASSERT_EQUAL_FATAL(connect(client, (void *)&address, length), 0);
        if (round == 1)
            rig_accept(&io);
        int server = rig_io_wait(&io);
        CU_ASSERT_TRUE_FATAL(server >= 0);
        CU_ASSERT_EQUAL(fcntl(server, F_GETFD), FD_CLOEXEC);
        close(server);
        close(client);
    }
    rig_accept(&io);
    rig_cancel(&io);
    CU_ASSERT_EQUAL(rig_io_wait(&io), -ECANCELED);
    close(listener);
    loop_rig_stop(&rig);
}

static void test_poll_tells_what_is_ready(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io in, out;
    int pair[2];
    make_pair(pair, 0);
    rig_io_init(&in, &rig, pair[0]);
    rig_io_init(&out, &rig, pair[0]);
    rig_poll(&in, POLLIN);
    rig_poll(&out, POLLOUT); /* both at once on one descriptor */
    CU_ASSERT_EQUAL(rig_io_wait(&out) & POLLOUT, POLLOUT);
    CU_ASSERT_EQUAL(sem_trywait(&in.ended), -1);
    CU_ASSERT_EQUAL(write(pair[1], "x", 1), 1);
    CU_ASSERT_EQUAL(rig_io_wait(&in) & POLLIN, POLLIN);
    close(pair[1]);
    rig_poll(&in, POLLIN);
    CU_ASSERT_TRUE(rig_io_wait(&in) & POLLHUP);
    close(pair[0]);
    loop_rig_stop(&rig);
}

static void test_cancel_ends_what_waits_once(void) {
    struct loop_rig rig = started(0, 0);
    struct rig_io recv, poll, shared;
    char byte;
    int pair[2];
    make_pair(pair, 0);
    rig_io_init(&recv, &rig, pair[0]);
    rig_io_init(&poll, &rig, pair[0]);
    rig_io_init(&shared, &rig, pair[1]);
    for (int round = 0; round < 3; round++) {
        rig_recv(&recv, &byte, 1);
        rig_poll(&poll, POLLIN);
        rig_recv_shared(&shared);
        rig_cancel(&recv);
        rig_cancel(&recv);
        rig_cancel(&poll);
        rig_cancel(&shared);
        CU_ASSERT_EQUAL(rig_io_wait(&recv), -ECANCELED);
        CU_ASSERT_EQUAL(rig_io_wait(&poll), -ECANCELED);
        CU_ASSERT_EQUAL(rig_io_wait(&shared), -ECANCELED);
        CU_ASSERT_PTR_NULL(shared.io.buffer);
    }
    rig_cancel(&recv); /* nothing is under way */
    CU_ASSERT_EQUAL(recv.done_count, 3);
    CU_ASSERT_EQUAL(shared.done_count, 3);
    /* A descriptor number that is used again by another socket works as new. */
    close_pair(pair);
    make_pair(pair, 0);
    recv.fd = pair[0];
    rig_recv(&recv, &byte, 1);
    CU_ASSERT_EQUAL(write(pair[1], "x", 1), 1);
    CU_ASSERT_EQUAL(rig_io_wait(&recv), 1);
    close_pair(pair);
    loop_rig_stop(&rig);
}

/* ---- lent buffers -------------------------------------------------------------------------- */

#define CONNECTIONS 12
#define BUFFERS 2

static void write_byte(int fd, char byte) {
    CU_ASSERT_EQUAL_FATAL(write(fd, &byte, 1), 1);
}

/* Idle connections hold no buffer; those with data wait for one, and each gets its own bytes. */
static void share_buffers(int flags) {
    struct loop_rig rig = started(0, BUFFERS);
    struct rig_io in[CONNECTIONS];
    int pairs[CONNECTIONS][2];
    unsigned received = 0, lent = 0;
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        make_pair(pairs[i], flags);
        rig_io_init(&in[i], &rig, pairs[i][0]);
        rig_recv_shared(&in[i]);
    }
    /* The last two first: the idle ones before them must not be in the way. */
    for (unsigned i = CONNECTIONS - 2; i < CONNECTIONS; i++) {
        write_byte(pairs[i][1], (char)('a' + i));
        CU_ASSERT_EQUAL(rig_io_wait(&in[i]), 1);
        CU_ASSERT_EQUAL_FATAL(*(char *)in[i].io.buffer, (char)('a' + i));
    }
    CU_ASSERT_PTR_NOT_EQUAL(in[CONNECTIONS - 1].io.buffer, in[CONNECTIONS - 2].io.buffer);
    /* All buffers are lent: who has data waits, who is cancelled does not. */
    for (unsigned i = 0; i < CONNECTIONS - 2; i++)
        write_byte(pairs[i][1], (char)('a' + i));
    rig_cancel(&in[3]);
    CU_ASSERT_EQUAL(rig_io_wait(&in[3]), -ECANCELED);
    /* Give back one by one: each time one more is served. */
    for (unsigned i = CONNECTIONS - 2; i < CONNECTIONS; i++)
        rig_give_back(&in[i]);
    while (received < CONNECTIONS - 3) {
        for (unsigned i = 0; i < CONNECTIONS - 2; i++) {
            if (i == 3 || in[i].fd < 0 || sem_trywait(&in[i].ended))
                continue;
            lent++;
            CU_ASSERT_EQUAL(in[i].io.result, 1);
            CU_ASSERT_EQUAL_FATAL(*(char *)in[i].io.buffer, (char)('a' + i));
            rig_give_back(&in[i]);
            in[i].fd = -1;
            received++;
        }
        sched_yield();
    }
    CU_ASSERT_EQUAL(lent, CONNECTIONS - 3);
    /* The end of a connection lends nothing. */
    rig_recv_shared(&in[3]);
    CU_ASSERT_EQUAL(rig_io_wait(&in[3]), 1);
    rig_give_back(&in[3]);
    close(pairs[3][1]);
    rig_recv_shared(&in[3]);
    CU_ASSERT_EQUAL(rig_io_wait(&in[3]), 0);
    close(pairs[3][0]);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        if (i != 3)
            close_pair(pairs[i]);
    loop_rig_stop(&rig);
}

static void test_shared_buffers_go_round(void) {
    share_buffers(0);
}

static void test_shared_buffers_go_round_on_nonblocking_descriptors(void) {
    share_buffers(SOCK_NONBLOCK);
}

/* Two senders' streams through one buffer, many times: nothing is lost, mixed or stuck. */
static void test_one_buffer_serves_many_streams(void) {
    enum { STREAMS = 5, ROUNDS = 400 };
    struct loop_rig rig = started(0, 1);
    struct rig_io in[STREAMS];
    int pairs[STREAMS][2];
    struct gild_prng prng;
    uint64_t seed = io_monotonic_ns();
    unsigned wrong = 0;
    printf("seed %llu ", (unsigned long long)seed);
    gild_prng_seed(&prng, seed);
    for (unsigned i = 0; i < STREAMS; i++) {
        make_pair(pairs[i], 0);
        rig_io_init(&in[i], &rig, pairs[i][0]);
        rig_recv_shared(&in[i]);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned first = (unsigned)gild_prng_below(&prng, STREAMS);
        unsigned second = (first + 1 + (unsigned)gild_prng_below(&prng, STREAMS - 1)) % STREAMS;
        write_byte(pairs[first][1], (char)round);
        write_byte(pairs[second][1], (char)round);
        for (unsigned served = 0; served < 2;) {
            for (unsigned i = 0; i < STREAMS; i++) {
                if (sem_trywait(&in[i].ended))
                    continue;
                wrong += in[i].io.result != 1 || *(char *)in[i].io.buffer != (char)round ||
                         (i != first && i != second);
                rig_give_back(&in[i]);
                rig_recv_shared(&in[i]);
                served++;
            }
            sched_yield();
        }
    }
    CU_ASSERT_EQUAL(wrong, 0);
    for (unsigned i = 0; i < STREAMS; i++) {
        rig_cancel(&in[i]);
        CU_ASSERT_EQUAL(rig_io_wait(&in[i]), -ECANCELED);
        close_pair(pairs[i]);
    }
    loop_rig_stop(&rig);
}

void add_io_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_files_are_read_back_and_synced);
    CU_ADD_TEST(suite, test_durable_writes_without_rwf_dsync_are_synced);
    CU_ADD_TEST(suite, test_file_errors_are_results);
    CU_ADD_TEST(suite, test_direct_reads_end_at_any_byte);
    CU_ADD_TEST(suite, test_a_full_queue_drops_nothing);
    CU_ADD_TEST(suite, test_sockets_send_and_receive);
    CU_ADD_TEST(suite, test_sends_wait_for_room);
    CU_ADD_TEST(suite, test_nonblocking_descriptors_wait_too);
    CU_ADD_TEST(suite, test_accept_gives_a_close_on_exec_descriptor);
    CU_ADD_TEST(suite, test_poll_tells_what_is_ready);
    CU_ADD_TEST(suite, test_cancel_ends_what_waits_once);
    CU_ADD_TEST(suite, test_shared_buffers_go_round);
    CU_ADD_TEST(suite, test_shared_buffers_go_round_on_nonblocking_descriptors);
    CU_ADD_TEST(suite, test_one_buffer_serves_many_streams);
}
