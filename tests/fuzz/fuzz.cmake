# The fuzz targets: libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, over the engine's own
# sources. Built by the preset `fuzz` (clang); each runs its corpus and then five seconds of its own
# under ctest -L fuzz. Longer: see docs/fuzzing.md.
set(fuzz_seconds 5 CACHE STRING "How long each fuzz target runs under ctest")

if(NOT GILD_FUZZ)
  return()
endif()
add_custom_target(fuzz)
include(CheckCSourceCompiles)
set(CMAKE_REQUIRED_FLAGS -fsanitize=fuzzer)
check_c_source_compiles("int LLVMFuzzerTestOneInput(const char *d, unsigned long n);
                         int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9; }"
                        GILD_HAS_LIBFUZZER)
unset(CMAKE_REQUIRED_FLAGS)
if(NOT GILD_HAS_LIBFUZZER)
  add_test(NAME fuzz COMMAND ${CMAKE_COMMAND} -E echo
           "skipped: ${CMAKE_C_COMPILER} has no libFuzzer (Debian: clang-14, libclang-rt-14-dev)")
  set_tests_properties(fuzz PROPERTIES LABELS fuzz SKIP_REGULAR_EXPRESSION "skipped:")
  return()
endif()

# fuzz_target(NAME sources... LIBS libs...)
function(fuzz_target name)
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  set(here ${CMAKE_CURRENT_SOURCE_DIR}/fuzz)
  set(corpus ${here}/corpus/${name})
  set(found ${CMAKE_CURRENT_BINARY_DIR}/fuzz-${name})
  add_executable(fuzz_${name} ${here}/fuzz_${name}.c ${arg_UNPARSED_ARGUMENTS})
  add_dependencies(fuzz fuzz_${name})
  target_include_directories(fuzz_${name} PRIVATE ${PROJECT_SOURCE_DIR}/engine
                                                  ${CMAKE_CURRENT_SOURCE_DIR}/lib)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(fuzz_${name} PRIVATE gild_flags ${arg_LIBS})
  file(MAKE_DIRECTORY ${found})
  # What is found new stays in the build folder; a failing input is left there as crash-*.
  add_test(NAME fuzz_${name}
           COMMAND fuzz_${name} -seed=1 -max_total_time=${fuzz_seconds} -max_len=256 -len_control=0 -timeout=20
                   -rss_limit_mb=512 -artifact_prefix=${found}/ -verbosity=0 -print_final_stats=1
                   ${found} ${corpus})
  # A small quarantine keeps the memory limit sharp, short stacks the runs fast.
  set_tests_properties(fuzz_${name} PROPERTIES LABELS fuzz TIMEOUT 120
                       ENVIRONMENT ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=4)
endfunction()

set(edit ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz.c)
set(engine ${PROJECT_SOURCE_DIR}/engine)
fuzz_target(superblock ${edit} ${engine}/disk/superblock.c LIBS gild_io gild_base PkgConfig::libxxhash)
fuzz_target(log ${edit} LIBS gild_log gild_catalog gild_io gild_base)
fuzz_target(pack ${edit} LIBS gild_pack gild_codec gild_base)
fuzz_target(map ${edit} LIBS gild_map gild_io gild_base PkgConfig::libxxhash)
fuzz_target(delta ${edit} LIBS gild_map gild_io gild_base)
fuzz_target(records ${edit} ${engine}/catalog/records.c ${engine}/catalog/records_blocks.c ${engine}/catalog/records_limits.c
            ${engine}/catalog/counters.c LIBS gild_base)
fuzz_target(event ${edit} ${engine}/disk/events.c LIBS gild_io gild_base PkgConfig::libxxhash)
fuzz_target(names ${edit} ${engine}/vdi/names.c LIBS gild_base)
fuzz_target(journal ${edit} ${engine}/catalog/journal.c LIBS gild_io gild_base PkgConfig::libxxhash)
fuzz_target(nbd ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_disk.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/nbd_client.c
            LIBS gild_nbd gild_io gild_base)
