gild_test(vdi_race unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_vdi_race.c
          LIBS gild_vdi gild_disk gild_catalog gild_io gild_base)
