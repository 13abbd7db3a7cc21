gild_test(space unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_space.c LIBS gild_log gild_base)
