gild_test(cache unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_cache.c LIBS gild_cache gild_base)
