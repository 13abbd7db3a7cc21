gild_test(loop unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_loop.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_loop_io.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/loop_rig.c LIBS gild_io gild_base)
gild_test(file unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_file.c LIBS gild_io gild_base)
