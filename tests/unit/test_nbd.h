/* The parts of the NBD server's test: handshake (test_nbd.c), requests (test_nbd_requests.c), life
 * and limits (test_nbd_life.c). Each test runs on both backends of the loop. */
#ifndef GILD_TEST_NBD_H
#define GILD_TEST_NBD_H

#include <CUnit/Basic.h>

#include "fake_disk.h"
#include "gild/nbd.h"
#include "nbd_client.h"

#define RIG_DISK_BYTES (UINT64_C(64) << 20)

/* A server on a Unix socket in a folder of its own; two reactors, disk "d" is not on the first. */
struct nbd_rig {
    struct gild_store *store;
    struct gild_disk *disk;      /* "d" */
    struct gild_disk *read_only; /* "ro" */
    struct gild_nbd_server *server;
    const char *where;
    char folder[64];
};
void nbd_rig_start(struct nbd_rig *rig);
void nbd_rig_stop(struct nbd_rig *rig); /* also checks that no disk is open any more */
void nbd_rig_end(struct nbd_rig *rig);  /* after a gild_nbd_stop of the test's own */

/* Deterministic bytes, other ones for each seed. */
void nbd_rig_fill(uint8_t *bytes, size_t count, uint64_t seed);

void add_request_tests(CU_pSuite suite);
void add_life_tests(CU_pSuite suite);

#endif
