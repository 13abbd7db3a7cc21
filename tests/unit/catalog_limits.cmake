gild_test(catalog_limits unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_catalog_limits.c
          LIBS gild_catalog gild_codec gild_io gild_base)
