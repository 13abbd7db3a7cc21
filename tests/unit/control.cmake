gild_test(control unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_control.c
  LIBS gild_control gild_vdi gild_disk gild_log gild_map gild_pack gild_cache gild_catalog
       gild_codec gild_io gild_base PkgConfig::jansson)
