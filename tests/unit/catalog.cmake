gild_test(catalog unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_catalog.c LIBS gild_catalog gild_base)
