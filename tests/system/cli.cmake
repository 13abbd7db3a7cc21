# The command line from the outside, with and without a daemon.
if(TARGET gild AND TARGET gildd)
  add_test(NAME system_cli COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/cli.sh)
  set_tests_properties(system_cli PROPERTIES
    LABELS system SKIP_RETURN_CODE 77 TIMEOUT 900
    ENVIRONMENT "GILD=$<TARGET_FILE:gild>;GILDD=$<TARGET_FILE:gildd>")
endif()
