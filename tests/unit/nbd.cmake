gild_test(nbd unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd_requests.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd_life.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_disk.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/nbd_client.c
          LIBS gild_nbd gild_io gild_base)

# Made on request only, by clang: tests/fuzz/fuzz_nbd.c says how.
if(CMAKE_C_COMPILER_ID STREQUAL Clang)
  file(GLOB nbd_sources ${PROJECT_SOURCE_DIR}/engine/nbd/*.c)
  add_executable(fuzz_nbd EXCLUDE_FROM_ALL ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_nbd.c
    ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_disk.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/nbd_client.c
    ${nbd_sources})
  target_include_directories(fuzz_nbd PRIVATE ${PROJECT_SOURCE_DIR}/engine
                                              ${CMAKE_CURRENT_SOURCE_DIR}/lib)
  target_compile_options(fuzz_nbd PRIVATE -fsanitize=fuzzer,address,undefined)
  target_link_options(fuzz_nbd PRIVATE -fsanitize=fuzzer,address,undefined)
  target_link_libraries(fuzz_nbd PRIVATE gild_flags gild_io gild_base)
endif()
