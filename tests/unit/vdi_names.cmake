gild_test(vdi_names unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_vdi_names.c LIBS gild_vdi gild_base)
