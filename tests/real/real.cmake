# Real processes, real LMDB, a real file system: recorded and replayed, killed, starved of memory,
# their syncs made to fail. The interposed library wants to be loaded before a sanitizer's.
set(real ${CMAKE_CURRENT_SOURCE_DIR}/real)
set(real_engine gild_control gild_nbd gild_vdi gild_disk gild_log gild_map gild_pack gild_cache
                gild_catalog gild_codec gild_io gild_base)

add_library(gild_recorder MODULE ${real}/recorder.c ${real}/recorder_uring.c
                                 ${real}/recorder_memory.c ${real}/trace.c)
target_link_libraries(gild_recorder PRIVATE ${CMAKE_DL_LIBS})
target_compile_definitions(gild_recorder PRIVATE _GNU_SOURCE)
target_compile_options(gild_recorder PRIVATE -Wall -Wextra -Werror -Wshadow -fno-builtin)

add_executable(small_daemon ${real}/small_daemon.c)
target_link_libraries(small_daemon PRIVATE gild_flags ${real_engine})

function(real_test name)
  gild_test(real_${name} real ${real}/test_${name}.c ${real}/workload.c ${real}/judge.c
            ${real}/guest.c ${real}/oracle.c ${real}/rig.c ${real}/options.c ${real}/trace.c ${real}/model.c
            ${real}/model_build.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/nbd_client.c ${ARGN}
            LIBS ${real_engine} PkgConfig::libxxhash)
  add_dependencies(test_real_${name} gild_recorder small_daemon gild gildd)
  set_tests_properties(real_${name} PROPERTIES RUN_SERIAL TRUE ENVIRONMENT
    "GILD=$<TARGET_FILE:gild>;GILDD=$<TARGET_FILE:gildd>;GILD_SMALL=$<TARGET_FILE:small_daemon>;GILD_RECORDER=$<TARGET_FILE:gild_recorder>;GILD_SANITIZERS=${GILD_SANITIZE}")
endfunction()

if(TARGET gild AND TARGET gildd)
  real_test(replay)
  real_test(kill)
  real_test(sync)
  real_test(memory)
  real_test(journal ${real}/cuts.c ${real}/contents.c)
  # Damaged stores, and what is lost of them, are those of the unit test.
  real_test(repair ${real}/cuts.c ${real}/contents.c ${CMAKE_CURRENT_SOURCE_DIR}/unit/repair_rig.c
            ${CMAKE_CURRENT_SOURCE_DIR}/unit/repair_harm.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/store_rig.c)
  target_include_directories(test_real_repair PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/unit)
endif()
