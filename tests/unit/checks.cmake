gild_test(checks unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_checks.c LIBS gild_catalog gild_log gild_map gild_pack gild_codec gild_io gild_base)
