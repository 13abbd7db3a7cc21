gild_test(records unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_records.c LIBS gild_catalog gild_base)
