gild_test(import_source unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_import_source.c
          LIBS gild_vdi gild_base)
