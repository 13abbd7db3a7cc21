gild_test(map unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_map.c LIBS gild_map gild_io gild_base)
