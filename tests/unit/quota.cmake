gild_test(quota unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_quota.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/store_rig.c
  LIBS gild_vdi gild_disk gild_log gild_map gild_pack gild_cache gild_catalog gild_codec gild_io gild_base)
