# A full file system under a real daemon.
if(TARGET gild AND TARGET gildd)
  add_test(NAME system_space COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/space.sh)
  set_tests_properties(system_space PROPERTIES
    LABELS system SKIP_RETURN_CODE 77 TIMEOUT 600
    ENVIRONMENT "GILD=$<TARGET_FILE:gild>;GILDD=$<TARGET_FILE:gildd>")
endif()
