/* libFuzzer entry: a client's bytes, in the handshake or in transmission, to a server over disks in
 * memory.
 *
 * The first byte of the input chooses: even, all that follows is said from the client's flags on;
 * odd, a handshake that is right comes first (bit 1: with structured replies; bit 2: the read-only
 * disk; bit 3: ops complete in a later turn). The fake disk aborts on any breach of the engine's
 * contract, the sanitizers on the rest, and a server that does not end the connection is found by
 * the time limit.
 *
 *   CC=clang-14 cmake -B build-fuzz && cmake --build build-fuzz --target fuzz_nbd
 *   build-fuzz/tests/fuzz_nbd -max_len=4096 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "fake_disk.h"
#include "gild/nbd.h"
#include "nbd_client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct gild_disk *disk;
static const char *where;

static void start_server(void) {
    static char folder[] = "/tmp/gild-nbd-XXXXXX";
    static char address[64];
    struct gild_nbd_server *server;
    struct gild_error error;
    if (!mkdtemp(folder))
        abort();
    snprintf(address, sizeof address, "unix:%s/sock", folder);
    struct gild_store *store = fake_store_create(GILD_LOOP_AUTO, 1);
    if (!store || gild_nbd_serve(store, address, &server, &error))
        abort();
    disk = fake_disk_add(store, "d", 4u << 20, false, 0);
    fake_disk_add(store, "ro", 4u << 20, true, 0);
    gild_log_set_level(GILD_LOG_ERROR);
    where = gild_nbd_where(server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char answer[65536];
    if (!where)
        start_server();
    if (!size)
        return 0;
    bool transmits = data[0] & 1;
    fake_disk_later(disk, data[0] & 8);
    int fd = transmits ? nbd_client_open(where, data[0] & 4 ? "ro" : "d", data[0] & 2, NULL)
                       : nbd_client_connect(where);
    if (fd < 0)
        abort();
    nbd_client_send(fd, data + 1, size - 1);
    shutdown(fd, SHUT_WR);
    while (recv(fd, answer, sizeof answer, 0) > 0)
        ;
    close(fd);
    return 0;
}
