sim_test(crash "--count 120" ${CMAKE_CURRENT_SOURCE_DIR}/crash/test_crash.c)
