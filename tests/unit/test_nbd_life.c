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

void add_life_tests(CU_pSuite suite) {
    (void)suite;
}
