gild_test(cache unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_cache.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_cache_race.c LIBS gild_cache gild_base)
