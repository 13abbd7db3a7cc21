gild_test(log unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_log.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/log_rig.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/loop_rig.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/log_device.c
          LIBS gild_log gild_catalog gild_io gild_base)
# A sync of the keeper's writer can be made to fail.
target_link_options(test_log PRIVATE LINKER:--wrap=gild_file_sync)
