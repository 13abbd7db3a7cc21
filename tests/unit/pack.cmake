gild_test(pack unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack_rot.c ${CMAKE_CURRENT_SOURCE_DIR}/unit/pack_rig.c
          LIBS gild_pack gild_codec gild_base)
