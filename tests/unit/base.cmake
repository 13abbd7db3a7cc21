gild_test(base unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_base.c LIBS gild_base)
