# The calls that make something durable, so that a collection can be broken off at each.
set(pack_calls gild_file_write fsync renameat2)
list(TRANSFORM pack_calls PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE pack_wraps)
gild_test(pack unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack_rot.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack_compact.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_pack_verify.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/pack_rig.c
          LIBS gild_pack gild_codec gild_io gild_base)
target_link_options(test_pack PRIVATE ${pack_wraps})
