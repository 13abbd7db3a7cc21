gild_test(histogram unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_histogram.c
                         ${PROJECT_SOURCE_DIR}/bench/histogram.c)
