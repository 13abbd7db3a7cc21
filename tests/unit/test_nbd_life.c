/* The NBD server's promises: connections that end, limits, stopping, addresses. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "test_nbd.h"

static int open_disk(const struct nbd_rig *rig) {
    int fd = nbd_client_open(rig->where, "d", false, NULL);
    CU_ASSERT_FATAL(fd >= 0);
    return fd;
}

static bool is_served(const struct nbd_rig *rig) {
    uint8_t data[4096] = {1};
    int fd = nbd_client_open(rig->where, "d", true, NULL);
    bool good = fd >= 0 && nbd_client_do(fd, true, 0, NBD_CMD_WRITE, 0, sizeof data, data) == 0 &&
                nbd_client_do(fd, true, 0, NBD_CMD_READ, 0, sizeof data, data) == 0;
    close(fd);
    return good;
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void test_a_request_without_its_magic_closes_the_connection(void) {
    struct nbd_rig rig;
    uint8_t header[NBD_REQUEST_BYTES];
    nbd_rig_start(&rig);
    int fd = open_disk(&rig);
    nbd_client_header(header, 0, NBD_CMD_READ, 1, 0, 512);
    header[0] ^= 1;
    CU_ASSERT(nbd_client_send(fd, header, sizeof header));
    CU_ASSERT(nbd_client_at_end(fd));
    close(fd);
    CU_ASSERT(is_served(&rig));
    nbd_rig_stop(&rig);
}

/* However the client says goodbye, requests before that are answered first. */
static void test_what_is_in_flight_is_answered_before_the_end(void) {
    struct nbd_rig rig;
    uint8_t data[4096];
    nbd_rig_start(&rig);
    for (unsigned half_close = 0; half_close < 2; half_close++) {
        struct nbd_client_frame frame;
        int fd = open_disk(&rig);
        fake_disk_hold(rig.disk, true);
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, 1, 0, sizeof data, NULL));
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_FLUSH, 2, 0, 0, NULL));
        bool said = half_close ? !shutdown(fd, SHUT_WR)
                               : nbd_client_request(fd, 0, NBD_CMD_DISC, 3, 0, 0, NULL);
        CU_ASSERT(said);
        CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 2));
        fake_disk_hold(rig.disk, false);
        CU_ASSERT(nbd_client_frame(fd, &frame) && frame.cookie == 2);
        CU_ASSERT(nbd_client_frame(fd, &frame) && frame.cookie == 1);
        CU_ASSERT(nbd_client_receive(fd, data, sizeof data));
        CU_ASSERT(nbd_client_at_end(fd));
        close(fd);
    }
    nbd_rig_stop(&rig);
}

static void test_a_client_that_vanishes_leaves_nothing_behind(void) {
    struct nbd_rig rig;
    static uint8_t data[200000];
    nbd_rig_start(&rig);
    for (unsigned how = 0; how < 4; how++) {
        int fd = open_disk(&rig);
        fake_disk_hold(rig.disk, true);
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, 1, 0, 8u << 20, NULL));
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_WRITE, 2, 0, 4096, data));
        CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 9));
        uint8_t header[NBD_REQUEST_BYTES];
        static const uint32_t lengths[] = {512, 4096, 100000 / 512 * 512, 30u << 20};
        nbd_client_header(header, 0, NBD_CMD_WRITE, 3, 0, lengths[how]);
        /* In the middle of a header, of a short, a middling and a long payload. */
        CU_ASSERT(nbd_client_send(fd, header, how ? sizeof header : 20));
        if (how)
            CU_ASSERT(nbd_client_send(fd, data, how == 3 ? sizeof data : lengths[how] - 1));
        CU_ASSERT(nbd_client_wait_taken(fd));
        close(fd);
        fake_disk_hold(rig.disk, false);
        CU_ASSERT(nbd_client_until(fake_disk_opens(rig.disk) == 0));
        CU_ASSERT(is_served(&rig));
        CU_ASSERT(nbd_client_until(fake_disk_opens(rig.disk) == 0));
    }
    nbd_rig_stop(&rig);
}

static void test_a_client_that_vanishes_while_its_disk_is_opened(void) {
    struct nbd_rig rig;
    uint8_t data[64];
    nbd_rig_start(&rig);
    int fd = nbd_client_connect(rig.where);
    fake_store_hold_opens(rig.store, true);
    CU_ASSERT(nbd_client_flags(fd, NBD_FLAG_FIXED_NEWSTYLE));
    CU_ASSERT(nbd_client_option(fd, NBD_OPT_GO, data, nbd_client_go_data(data, "d", 0, NULL)));
    CU_ASSERT(nbd_client_wait_taken(fd));
    close(fd);
    fake_store_hold_opens(rig.store, false);
    CU_ASSERT(is_served(&rig));
    CU_ASSERT(nbd_client_until(fake_disk_opens(rig.disk) == 0));
    nbd_rig_stop(&rig);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void test_a_connection_has_a_bounded_number_of_requests_in_flight(void) {
    struct nbd_rig rig;
    uint8_t data[512];
    bool answered[300] = {0};
    nbd_rig_start(&rig);
    int fd = open_disk(&rig);
    fake_disk_hold(rig.disk, true);
    for (unsigned i = 0; i < 300; i++)
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, i, i * 512, 512, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 128));
    /* The bound is a connection's: another's requests still get in, and this one's did not. */
    int other = open_disk(&rig);
    CU_ASSERT(nbd_client_request(other, 0, NBD_CMD_FLUSH, 1, 0, 0, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_ops(rig.disk, GILD_OP_FLUSH) == 1));
    CU_ASSERT_EQUAL(fake_disk_ops(rig.disk, GILD_OP_READ), 128);
    close(other);
    fake_disk_hold(rig.disk, false);
    for (unsigned i = 0; i < 300; i++) {
        struct nbd_client_frame frame;
        CU_ASSERT_FATAL(nbd_client_frame(fd, &frame) && frame.cookie < 300);
        CU_ASSERT(!answered[frame.cookie]);
        answered[frame.cookie] = true;
        CU_ASSERT(nbd_client_receive(fd, data, sizeof data));
    }
    close(fd);
    nbd_rig_stop(&rig);
}

/* A client that asks for much and reads nothing holds a bounded part of the cache. */
static void test_a_client_that_does_not_read_stops_being_served_and_then_gets_all(void) {
    struct nbd_rig rig;
    struct nbd_client_frame frame;
    nbd_rig_start(&rig);
    uint8_t *data = malloc(1u << 20);
    nbd_rig_fill(fake_disk_bytes(rig.disk), RIG_DISK_BYTES, 11);
    int fd = open_disk(&rig);
    for (unsigned i = 0; i < 60; i++)
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, i, (uint64_t)i << 20, 1u << 20, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_ops(rig.disk, GILD_OP_READ) >= 8));
    CU_ASSERT(is_served(&rig));
    CU_ASSERT(fake_disk_ops(rig.disk, GILD_OP_READ) <= 10); /* one is the other client's */
    for (unsigned i = 0; i < 60; i++) {
        CU_ASSERT_FATAL(nbd_client_frame(fd, &frame) && frame.cookie == i);
        CU_ASSERT_FATAL(nbd_client_receive(fd, data, 1u << 20));
        if (i)
            CU_ASSERT(fake_disk_holds_bytes(rig.disk, ((uint64_t)i << 20), data, 1u << 20));
    }
    close(fd);
    free(data);
    nbd_rig_stop(&rig);
}

/* More stalled clients than there are receive buffers, each in the middle of a write. */
static void test_stalled_clients_do_not_starve_the_others(void) {
    struct nbd_rig rig;
    static int fds[150];
    static uint8_t data[40000];
    uint8_t header[NBD_REQUEST_BYTES];
    nbd_rig_start(&rig);
    for (unsigned i = 0; i < 150; i++) {
        static const uint32_t lengths[] = {4096, 65536, 1u << 20, 32u << 20};
        fds[i] = open_disk(&rig);
        nbd_client_header(header, 0, NBD_CMD_WRITE, 3, 0, lengths[i % 4]);
        CU_ASSERT(nbd_client_send(fds[i], header, sizeof header));
        CU_ASSERT(nbd_client_send(fds[i], data, i % 4 ? sizeof data : 1000));
        CU_ASSERT(nbd_client_wait_taken(fds[i]));
    }
    for (unsigned i = 0; i < 10; i++)
        CU_ASSERT(is_served(&rig));
    /* One long write, now that the server's memory for payload is taken. */
    uint8_t *payload = malloc(20u << 20);
    nbd_rig_fill(payload, 20u << 20, 12);
    int fd = open_disk(&rig);
    CU_ASSERT_EQUAL(nbd_client_do(fd, false, 0, NBD_CMD_WRITE, 512, 20u << 20, payload), 0);
    CU_ASSERT(fake_disk_holds_bytes(rig.disk, 512, payload, 20u << 20));
    close(fd);
    free(payload);
    for (unsigned i = 0; i < 150; i++)
        close(fds[i]);
    nbd_rig_stop(&rig);
}

static void test_stalled_handshakes_do_not_hold_up_the_others(void) {
    struct nbd_rig rig;
    static int fds[100];
    nbd_rig_start(&rig);
    for (unsigned i = 0; i < 100; i++) {
        fds[i] = nbd_client_connect(rig.where);
        CU_ASSERT(fds[i] >= 0);
        if (i % 2)
            CU_ASSERT(nbd_client_send(fds[i], "\0\0\0\3IHAVE", 9));
    }
    CU_ASSERT(is_served(&rig));
    nbd_rig_stop(&rig);
    for (unsigned i = 0; i < 100; i++)
        close(fds[i]);
}

/* ---- stopping -------------------------------------------------------------------------------- */

struct stopper {
    struct nbd_rig *rig;
    unsigned grace_ms;
    pthread_t thread;
};

static void *stop_server(void *context) {
    struct stopper *stopper = context;
    gild_nbd_stop(stopper->rig->server, stopper->grace_ms);
    return NULL;
}

static void test_stop_answers_what_is_in_flight_and_closes(void) {
    struct nbd_rig rig;
    struct nbd_client_frame frame;
    uint8_t data[4096];
    nbd_rig_start(&rig);
    struct stopper stopper = {&rig, 60000, 0};
    int idle = open_disk(&rig), busy = open_disk(&rig), haggling = nbd_client_connect(rig.where);
    fake_disk_hold(rig.disk, true);
    CU_ASSERT(nbd_client_request(busy, 0, NBD_CMD_READ, 1, 0, sizeof data, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 1));
    CU_ASSERT(!pthread_create(&stopper.thread, NULL, stop_server, &stopper));
    CU_ASSERT(nbd_client_at_end(idle));
    CU_ASSERT(!nbd_client_greeting(haggling) || nbd_client_at_end(haggling));
    fake_disk_hold(rig.disk, false);
    CU_ASSERT(nbd_client_frame(busy, &frame) && frame.cookie == 1);
    CU_ASSERT(nbd_client_receive(busy, data, sizeof data));
    CU_ASSERT(nbd_client_at_end(busy));
    pthread_join(stopper.thread, NULL);
    close(idle);
    close(busy);
    close(haggling);
    nbd_rig_end(&rig);
}

static void test_stop_cuts_clients_that_do_not_read_when_its_grace_is_over(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = open_disk(&rig);
    for (unsigned i = 0; i < 20; i++)
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, i, 0, 1u << 20, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_ops(rig.disk, GILD_OP_READ) >= 8));
    gild_nbd_stop(rig.server, 50);
    close(fd);
    nbd_rig_end(&rig);
}

static void test_stop_while_a_disk_is_opened(void) {
    struct nbd_rig rig;
    uint8_t data[64];
    nbd_rig_start(&rig);
    struct stopper stopper = {&rig, 60000, 0};
    struct nbd_client_reply reply;
    int fd = nbd_client_connect(rig.where);
    fake_store_hold_opens(rig.store, true);
    CU_ASSERT(nbd_client_greeting(fd) && nbd_client_flags(fd, NBD_FLAG_FIXED_NEWSTYLE));
    CU_ASSERT(nbd_client_option(fd, NBD_OPT_GO, data, nbd_client_go_data(data, "d", 0, NULL)));
    CU_ASSERT(nbd_client_wait_taken(fd));
    int idle = nbd_client_connect(rig.where);
    CU_ASSERT(nbd_client_greeting(idle));
    CU_ASSERT(!pthread_create(&stopper.thread, NULL, stop_server, &stopper));
    CU_ASSERT(nbd_client_at_end(idle)); /* so the stop has begun */
    close(idle);
    fake_store_hold_opens(rig.store, false);
    CU_ASSERT(nbd_client_option_reply(fd, &reply));
    CU_ASSERT_EQUAL(reply.type, NBD_REP_ERR_SHUTDOWN);
    pthread_join(stopper.thread, NULL);
    close(fd);
    nbd_rig_end(&rig);
}

static void test_stop_with_nobody_there(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    gild_nbd_stop(rig.server, 0);
    nbd_rig_end(&rig);
    gild_nbd_stop(NULL, 0);
}

/* ---- addresses ------------------------------------------------------------------------------- */

static int bind_unix(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT(!bind(fd, (struct sockaddr *)&address, sizeof address));
    return fd;
}

static void test_a_unix_socket_is_private_and_replaces_only_a_dead_one(void) {
    struct nbd_rig rig;
    struct gild_nbd_server *server = NULL;
    struct gild_error error;
    struct stat status;
    char path[96], where[128];
    nbd_rig_start(&rig);
    CU_ASSERT(!stat(rig.where + 5, &status));
    CU_ASSERT_EQUAL(status.st_mode & 07777, 0600);
    /* Somebody answers there. */
    CU_ASSERT_EQUAL(gild_nbd_serve(rig.store, rig.where, &server, &error), -EADDRINUSE);
    CU_ASSERT_EQUAL(error.code, GILD_BUSY);
    CU_ASSERT(is_served(&rig));
    /* A dead server's socket. */
    snprintf(path, sizeof path, "%s/stale", rig.folder);
    snprintf(where, sizeof where, "unix:%s", path);
    close(bind_unix(path));
    CU_ASSERT_FATAL(!gild_nbd_serve(rig.store, where, &server, &error));
    CU_ASSERT_STRING_EQUAL(gild_nbd_where(server), where);
    int fd = nbd_client_open(where, "d", false, NULL);
    CU_ASSERT(fd >= 0);
    close(fd);
    /* Replaced behind its back: not its own any more, so it stays. */
    unlink(path);
    close(bind_unix(path));
    gild_nbd_stop(server, 1000);
    CU_ASSERT_EQUAL(unlink(path), 0);
    /* A file that is no socket. */
    FILE *file = fopen(path, "w");
    fclose(file);
    CU_ASSERT_EQUAL(gild_nbd_serve(rig.store, where, &server, &error), -EEXIST);
    CU_ASSERT_EQUAL(unlink(path), 0);
    nbd_rig_stop(&rig);
}

static void check_tcp(const struct nbd_rig *rig, const char *where, const char *shown) {
    struct gild_nbd_server *server = NULL;
    struct gild_error error;
    uint8_t data[512];
    if (gild_nbd_serve(rig->store, where, &server, &error)) {
        printf("%s: %s ", where, error.message);
        CU_ASSERT(error.err == EADDRNOTAVAIL || error.err == EAFNOSUPPORT);
        CU_ASSERT(where[4] == '['); /* a machine may lack IPv6, nothing else */
        return;
    }
    CU_ASSERT_EQUAL(strncmp(gild_nbd_where(server), shown, strlen(shown)), 0);
    CU_ASSERT(atoi(strrchr(gild_nbd_where(server), ':') + 1) > 0);
    int fd = nbd_client_open(gild_nbd_where(server), "d", true, NULL);
    CU_ASSERT(fd >= 0);
    CU_ASSERT_EQUAL(nbd_client_do(fd, true, 0, NBD_CMD_READ, 0, sizeof data, data), 0);
    close(fd);
    gild_nbd_stop(server, 1000);
}

static void test_tcp_addresses(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    check_tcp(&rig, "tcp:127.0.0.1:0", "tcp:127.0.0.1:");
    check_tcp(&rig, "tcp:[::1]:0", "tcp:[::1]:");
    check_tcp(&rig, "tcp::0", "tcp::");
    nbd_rig_stop(&rig);
}

static void test_bad_addresses_are_refused_with_a_sentence(void) {
    static const char long_path[] =
        "unix:/tmp/a-path-that-is-longer-than-the-hundred-and-seven-"
        "bytes-that-a-unix-socket-may-have-in-its-address-on-linux";
    static const char *const bad[] = {"",
                                      "/tmp/x",
                                      "unix:",
                                      "tcp:",
                                      "tcp:127.0.0.1",
                                      "tcp:127.0.0.1:",
                                      "tcp:::1:0",
                                      "udp:x",
                                      "tcp:h:p",
                                      "unix:/no/such/folder/sock",
                                      long_path};
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gild_nbd_server *server = NULL;
        struct gild_error error = {0};
        CU_ASSERT(gild_nbd_serve(rig.store, bad[i], &server, &error) < 0);
        CU_ASSERT(strlen(error.message) > 10);
    }
    nbd_rig_stop(&rig);
}

/* ---- garbage --------------------------------------------------------------------------------- */

/* Streams with some bytes changed: whatever the server makes of them, it stays alive, keeps the
 * disk's contract (the fake disk aborts on a breach) and serves the next client. */
static void test_garbage_harms_nobody_else(void) {
    struct nbd_rig rig;
    uint64_t seed = nbd_client_now_ns();
    printf("seed %llu ", (unsigned long long)seed);
    nbd_rig_start(&rig);
    for (unsigned round = 0; round < 400; round++) {
        uint8_t stream[4096], dice[16], data[64];
        size_t said = 0;
        nbd_rig_fill(dice, sizeof dice, seed + round);
        gild_put_be32(stream, NBD_FLAG_FIXED_NEWSTYLE);
        gild_put_be64(stream + 4, NBD_OPTION_MAGIC);
        gild_put_be32(stream + 12, dice[0] % 12);
        uint32_t length = nbd_client_go_data(data, "d", 0, NULL);
        gild_put_be32(stream + 16, length);
        memcpy(stream + 20, data, length);
        said = 20 + length;
        gild_put_be64(stream + said, NBD_OPTION_MAGIC);
        gild_put_be32(stream + said + 8, NBD_OPT_GO);
        gild_put_be32(stream + said + 12, length);
        memcpy(stream + said + 16, data, length);
        said += 16 + length;
        for (unsigned i = 0; i < 20; i++) {
            nbd_rig_fill(dice, sizeof dice, seed * 31 + round * 20 + i);
            nbd_client_header(stream + said, dice[1] % 32, dice[2] % 9, i,
                              (uint64_t)dice[3] << (dice[4] % 30) << 9,
                              (uint32_t)dice[5] << (dice[6] % 24));
            said += NBD_REQUEST_BYTES + dice[7] % 3 * 40;
        }
        for (unsigned i = 0; i < dice[8] % 4; i++)
            stream[4 + dice[9 + i] % (said - 4)] ^= dice[13];
        int fd = nbd_client_connect(rig.where);
        nbd_client_send(fd, stream, said);
        shutdown(fd, SHUT_WR);
        while (recv(fd, stream, sizeof stream, 0) > 0)
            ;
        close(fd);
    }
    CU_ASSERT(is_served(&rig));
    nbd_rig_stop(&rig);
}

void add_life_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_a_request_without_its_magic_closes_the_connection);
    CU_ADD_TEST(suite, test_what_is_in_flight_is_answered_before_the_end);
    CU_ADD_TEST(suite, test_a_client_that_vanishes_leaves_nothing_behind);
    CU_ADD_TEST(suite, test_a_client_that_vanishes_while_its_disk_is_opened);
    CU_ADD_TEST(suite, test_a_connection_has_a_bounded_number_of_requests_in_flight);
    CU_ADD_TEST(suite, test_a_client_that_does_not_read_stops_being_served_and_then_gets_all);
    CU_ADD_TEST(suite, test_stalled_clients_do_not_starve_the_others);
    CU_ADD_TEST(suite, test_stalled_handshakes_do_not_hold_up_the_others);
    CU_ADD_TEST(suite, test_stop_answers_what_is_in_flight_and_closes);
    CU_ADD_TEST(suite, test_stop_cuts_clients_that_do_not_read_when_its_grace_is_over);
    CU_ADD_TEST(suite, test_stop_while_a_disk_is_opened);
    CU_ADD_TEST(suite, test_stop_with_nobody_there);
    CU_ADD_TEST(suite, test_a_unix_socket_is_private_and_replaces_only_a_dead_one);
    CU_ADD_TEST(suite, test_tcp_addresses);
    CU_ADD_TEST(suite, test_bad_addresses_are_refused_with_a_sentence);
    CU_ADD_TEST(suite, test_garbage_harms_nobody_else);
}
