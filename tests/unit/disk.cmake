gild_test(disk unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_disk.c
          LIBS gild_disk gild_map gild_log gild_pack gild_cache gild_catalog gild_codec gild_io gild_base)
