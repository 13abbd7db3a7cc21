# The calls that make something durable are counted, so that a repair can be broken off at each.
set(repair_calls gild_txn_commit gild_file_sync gild_file_write rename link ftruncate)
list(TRANSFORM repair_calls PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE repair_wraps)
gild_test(repair unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_repair.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/repair_rig.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/repair_harm.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/store_rig.c
          LIBS gild_vdi gild_disk gild_map gild_log gild_pack gild_cache gild_catalog gild_codec gild_io
               gild_base PkgConfig::libxxhash)
target_link_options(test_repair PRIVATE ${repair_wraps})
set_tests_properties(repair PROPERTIES TIMEOUT 600)
