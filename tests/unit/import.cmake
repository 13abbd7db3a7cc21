gild_test(import unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_import.c
          LIBS gild_vdi gild_map gild_pack gild_catalog gild_codec gild_base
               PkgConfig::libcrypto)
