gild_test(grace unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_grace.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/store_rig.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/loop_rig.c
          LIBS gild_disk gild_map gild_log gild_pack gild_cache gild_catalog gild_codec gild_io gild_base
               PkgConfig::libxxhash)
# Reads are kept back, and what the keeper frees is watched.
set(grace_calls gild_io_read gild_io_readv keeper_pass gild_segments_recycle)
list(TRANSFORM grace_calls PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE grace_wraps)
target_link_options(test_grace PRIVATE ${grace_wraps})
