# sim_test(NAME ARGUMENTS sources...): a program in which the engine runs on a simulated machine: its
# threads, clock, files, loops and catalogue are those of tests/lib/sim_*.c. Calls are sent there by
# the linker, so that the engine's own code is the code under test.
set(sim_calls
    pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock
    pthread_rwlock_init pthread_rwlock_destroy pthread_rwlock_rdlock pthread_rwlock_wrlock
    pthread_rwlock_trywrlock pthread_rwlock_unlock
    pthread_cond_init pthread_cond_destroy pthread_cond_wait pthread_cond_timedwait pthread_cond_signal
    pthread_cond_broadcast pthread_create pthread_join clock_gettime
    open openat close flock pread pwrite write fsync fdatasync fallocate posix_fallocate posix_fadvise
    fstat fstatat stat mkdir rmdir unlink unlinkat rename renameat renameat2 statvfs
    ftruncate lseek sysconf opendir fdopendir readdir dirfd closedir getrandom
    gild_loop_create gild_log gild_file_buffer)
list(TRANSFORM sim_calls PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE sim_wraps)

# What a test was built from, for whoever replays one of its seeds.
set(sim_commit unknown)
find_program(GIT git)
if(GIT)
  execute_process(COMMAND ${GIT} describe --always --dirty WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                  OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(sim_commit ${described})
  endif()
endif()

function(sim_test name arguments)
  set(lib ${CMAKE_CURRENT_SOURCE_DIR}/lib)
  set(sim ${CMAKE_CURRENT_SOURCE_DIR}/sim)
  # No header declares what only the linker calls.
  set_source_files_properties(${lib}/sim_threads.c ${lib}/sim_files.c ${lib}/sim_loop.c
                              PROPERTIES COMPILE_OPTIONS -Wno-missing-prototypes)
  add_executable(test_${name} ${ARGN} ${sim}/machine.c ${sim}/work.c ${sim}/admin.c ${sim}/oracle.c
                              ${sim}/content.c ${sim}/counts.c ${sim}/jobs.c ${lib}/sim_threads.c ${lib}/sim_disk.c ${lib}/sim_names.c
                              ${lib}/sim_files.c ${lib}/sim_faults.c ${lib}/sim_loop.c ${lib}/sim_kv.c)
  target_include_directories(test_${name} PRIVATE ${PROJECT_SOURCE_DIR}/engine ${lib}
                                                  ${sim})
  target_link_libraries(test_${name} PRIVATE gild_flags gild_vdi gild_disk gild_map gild_log gild_pack gild_cache
                                             gild_catalog gild_codec gild_io gild_base
                                             PkgConfig::libxxhash)
  target_compile_definitions(test_${name} PRIVATE GILD_TEST_COMMIT="${sim_commit}")
  target_link_options(test_${name} PRIVATE ${sim_wraps})
  # A sanitized program is ten times as slow: it runs the test's own, shorter default.
  if(GILD_SANITIZE)
    set(arguments "")
  endif()
  separate_arguments(arguments)
  add_test(NAME ${name} COMMAND test_${name} ${arguments})
  set_tests_properties(${name} PROPERTIES LABELS ${name} TIMEOUT 900 PROCESSORS 2)
  if(GILD_SANITIZE MATCHES thread)
    # A power cut is a fork, and the child starts threads.
    set_tests_properties(${name} PROPERTIES ENVIRONMENT TSAN_OPTIONS=die_after_fork=0)
  endif()
endfunction()
