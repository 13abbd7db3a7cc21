# The comparison runs and has all its rows; what they say is not a test.
if(TARGET gildd AND TARGET bench_client)
  add_test(NAME bench_compare COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/bench.sh ${PROJECT_BINARY_DIR})
  set_tests_properties(bench_compare PROPERTIES LABELS system SKIP_RETURN_CODE 77 TIMEOUT 600)
endif()
# The room that two versions of a real system take.
if(TARGET gildd)
  add_test(NAME bench_space COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/bench_space.sh ${PROJECT_BINARY_DIR})
  set_tests_properties(bench_space PROPERTIES LABELS system SKIP_RETURN_CODE 77 TIMEOUT 900)
endif()
# The same of recoveries.
if(TARGET gild AND TARGET bench_recovery)
  add_test(NAME bench_recovery COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/recovery.sh ${PROJECT_BINARY_DIR})
  set_tests_properties(bench_recovery PROPERTIES LABELS system SKIP_RETURN_CODE 77 TIMEOUT 300)
endif()
