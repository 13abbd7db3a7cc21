/* Other people's NBD clients, unmodified, against the server over disks in memory: nbdinfo,
 * nbdcopy, qemu-img, qemu-io, fio. Exit 77 if none of them is installed; each missing one is named.
 *
 *   test_nbd_clients                     runs them all, on both backends of the loop
 *   test_nbd_clients serve WHERE [SIZE]  serves disks "d" and "ro" until its input ends: what the
 * server costs with no engine behind it (docs/nbd.md) */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "fake_disk.h"
#include "gild/nbd.h"

#define DISK_BYTES (256u << 20)

static unsigned findings;
static char folder[] = "/tmp/gild-nbd-XXXXXX";
static char uri[256], read_only_uri[256], list_uri[256];

static bool installed(const char *program) {
    char command[128];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
    return system(command) == 0;
}

static void run(const char *promise, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A shell command that must succeed. */
static void run(const char *promise, const char *format, ...) {
    char command[2048], whole[2400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    snprintf(whole, sizeof whole, "cd %s && { %s; } >log 2>&1", folder, command);
    int status = system(whole);
    bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("  %s %s\n", good ? "ok  " : "FAIL", promise);
    if (good)
        return;
    findings++;
    printf("    %s\n", command);
    fflush(stdout);
    snprintf(whole, sizeof whole, "sed 's/^/    /' %s/log", folder);
    if (system(whole))
        printf("    (its output is lost)\n");
}

static void nbdinfo(void) {
    run("nbdinfo shows the size", "test \"$(nbdinfo --size '%s')\" = %u", uri, DISK_BYTES);
    static const char *const abilities[] = {"flush", "fua",       "multi-conn", "trim",
                                            "zero",  "fast-zero", "cache",      "df"};
    for (size_t i = 0; i < sizeof abilities / sizeof *abilities; i++)
        run(abilities[i], "nbdinfo --can %s '%s'", abilities[i], uri);
    run("a read-only disk is", "nbdinfo --is read-only '%s'", read_only_uri);
    run("a read-only disk can not be trimmed", "! nbdinfo --can trim '%s'", read_only_uri);
    run("nbdinfo lists all disks",
        "nbdinfo --list '%s' | tee list; grep -q 'export=\"d\"' list && "
        "grep -q 'export=\"ro\"' list && grep -q base:allocation list",
        list_uri);
    run("block sizes are announced",
        "nbdinfo '%s' | tee info; grep -q 'block_size_minimum: 512' info && grep -q "
        "'block_size_preferred: 4096' info && grep -q 'block_size_maximum: 33554432' info",
        uri);
    run("an unknown disk is refused", "! nbdinfo 'nbd+unix:///nope?socket=%s/sock'", folder);
}

static void nbdcopy(void) {
    run("a file for nbdcopy",
        "truncate -s %u a && dd if=/dev/urandom of=a bs=1M count=40 seek=7 "
        "conv=notrunc && dd if=/dev/urandom of=a bs=1000 count=3333 "
        "seek=150000 conv=notrunc",
        DISK_BYTES);
    run("nbdcopy writes", "nbdcopy --flush a '%s'", uri);
    run("nbdcopy reads it back", "rm -f b && nbdcopy '%s' b && cmp a b", uri);
    run("nbdcopy with four connections, 4 MiB requests",
        "rm -f b && nbdcopy -C 4 --request-size=4194304 '%s' b && cmp a b", uri);
    run("the map has holes",
        "nbdinfo --map '%s' | tee map; grep -q 'hole,zero' map && "
        "grep -q ' data' map",
        uri);
    run("nbdcopy from disk to disk", "nbdcopy '%s' '%s'", uri, uri);
}

static void qemu(void) {
    run("a file for qemu-img",
        "truncate -s %u c && dd if=/dev/urandom of=c bs=1M count=30 seek=3 "
        "conv=notrunc",
        DISK_BYTES);
    run("qemu-img convert into the disk",
        "qemu-img convert -n -f raw -O raw -t none c '%s' || qemu-img convert -n -f raw -O raw c "
        "'%s'",
        uri, uri);
    run("qemu-img compare", "qemu-img compare -f raw -F raw c '%s'", uri);
    run("qemu-img map",
        "qemu-img map --output=json -f raw '%s' | tee map; grep -q '\"data\": "
        "false' map && grep -q '\"data\": true' map",
        uri);
    run("qemu-io writes, zeroes, discards, flushes, reads",
        "qemu-io -f raw -t none -c 'write -P 0x5a 1M 64k' -c 'write -P 0x17 200M 512' -c 'write -f "
        "-P 0x77 100M 3M' -c 'write -z -u 20M 1M' -c 'write -z 30M 1M' -c 'discard 40M 1M' -c "
        "flush "
        "'%s' | tee w; ! grep -qiE 'fail|error' w",
        uri);
    run("qemu-io reads them back",
        "qemu-io -r -f raw -c 'read -P 0x5a 1M 64k' -c 'read -P 0x17 200M 512' -c 'read -P 0x77 "
        "100M "
        "3M' -c 'read -P 0 20M 1M' -c 'read -P 0 30M 1M' -c 'read -P 0 40M 1M' '%s' | tee r; ! "
        "grep "
        "-qiE 'fail|error|mismatch' r",
        uri);
    run("qemu-io can not write a read-only disk",
        "! qemu-io -f raw -c 'write 0 4k' '%s' 2>&1 | grep -q wrote", read_only_uri);
    run("a refusal's sentence reaches qemu's user",
        "! qemu-img info 'nbd+unix:///nope?socket=%s/sock' >why 2>&1; cat why; grep -q 'no disk' "
        "why",
        folder);
    run("qemu-img bench", "qemu-img bench -f raw -t none -c 20000 -d 32 -s 4096 -w '%s'", uri);
}

static void fio(void) {
    run("fio verifies mixed writes at depth 32",
        "fio --name=v --ioengine=nbd --uri='%s' --rw=randwrite --bsrange=4k-128k --size=64m "
        "--iodepth=32 --verify=crc32c --verify_fatal=1 --randseed=1",
        uri);
    run("fio reads 1 MiB at depth 8",
        "fio --name=r --ioengine=nbd --uri='%s' --rw=read --bs=1m --size=256m --iodepth=8", uri);
    run("fio with four jobs and trims",
        "fio --name=m --ioengine=nbd --uri='%s' --rw=randtrim --bs=64k --size=32m --iodepth=16 "
        "--numjobs=4",
        uri);
}

static struct gild_store *make_store(enum gild_loop_backend backend, uint64_t size_bytes) {
    struct gild_store *store = fake_store_create(backend, 2);
    if (store) {
        fake_disk_add(store, "d", size_bytes, false, 1);
        fake_disk_add(store, "ro", size_bytes, true, 0);
    }
    return store;
}

static int all_clients(enum gild_loop_backend backend, const char *name) {
    struct gild_store *store = make_store(backend, DISK_BYTES);
    struct gild_nbd_server *server;
    struct gild_error error;
    char where[128];
    if (!store) {
        printf("%s: not here\n", name);
        return 0;
    }
    printf("%s\n", name);
    snprintf(where, sizeof where, "unix:%s/sock", folder);
    if (gild_nbd_serve(store, where, &server, &error)) {
        printf("%s\n", error.message);
        return 1;
    }
    snprintf(uri, sizeof uri, "nbd+unix:///d?socket=%s/sock", folder);
    snprintf(read_only_uri, sizeof read_only_uri, "nbd+unix:///ro?socket=%s/sock", folder);
    snprintf(list_uri, sizeof list_uri, "nbd+unix:///?socket=%s/sock", folder);
    unsigned ran = 0;
    static const struct {
        const char *program;
        void (*work)(void);
    } clients[] = {{"nbdinfo", nbdinfo}, {"nbdcopy", nbdcopy}, {"qemu-io", qemu}, {"fio", fio}};
    for (size_t i = 0; i < sizeof clients / sizeof *clients; i++) {
        if (!installed(clients[i].program)) {
            printf("  skip: %s is not installed\n", clients[i].program);
            continue;
        }
        clients[i].work();
        ran++;
    }
    gild_nbd_stop(server, 5000);
    fake_store_destroy(store);
    return ran ? 0 : 77;
}

static int serve(const char *where, const char *size) {
    struct gild_nbd_server *server;
    struct gild_error error;
    uint64_t size_bytes = 1u << 30;
    char byte;
    if (size && gild_parse_size(size, &size_bytes))
        return 2;
    const char *backend = getenv("GILD_TEST_BACKEND");
    struct gild_store *store = make_store(
        backend && !strcmp(backend, "threads") ? GILD_LOOP_THREADS : GILD_LOOP_AUTO, size_bytes);
    if (!store || gild_nbd_serve(store, where, &server, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    printf("%s\n", gild_nbd_where(server));
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    gild_nbd_stop(server, 1000);
    fake_store_destroy(store);
    return 0;
}

int main(int argc, char **argv) {
    if (argc >= 3 && !strcmp(argv[1], "serve"))
        return serve(argv[2], argc > 3 ? argv[3] : NULL);
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    int result = all_clients(GILD_LOOP_URING, "io_uring");
    if (!result)
        result = all_clients(GILD_LOOP_THREADS, "threads");
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command))
        printf("%s is left behind\n", folder);
    if (findings)
        printf("%u promises broken\n", findings);
    return findings ? 1 : result;
}
