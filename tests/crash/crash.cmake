sim_test(crash "--count 100" ${CMAKE_CURRENT_SOURCE_DIR}/crash/test_crash.c)
