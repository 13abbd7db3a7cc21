/* The halves of the loop's test: tasks and turns (test_loop.c), files and sockets (test_loop_io.c).
 */
#ifndef GILD_TEST_LOOP_H
#define GILD_TEST_LOOP_H

#include <CUnit/Basic.h>

#include "gild/loop.h"

extern enum gild_loop_backend tested_backend; /* of the suite that runs */

void add_io_tests(CU_pSuite suite);

#endif
