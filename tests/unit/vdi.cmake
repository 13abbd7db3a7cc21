gild_test(vdi unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_vdi.c
          LIBS gild_vdi gild_disk gild_catalog gild_codec gild_io gild_base)
