# The programs from the outside: the command line, with and without a daemon; a full file system.
if(TARGET gild AND TARGET gildd)
  foreach(name IN ITEMS cli space limits)
    add_test(NAME system_${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/${name}.sh)
    set_tests_properties(system_${name} PROPERTIES
      LABELS system SKIP_RETURN_CODE 77 TIMEOUT 900
      ENVIRONMENT "GILD=$<TARGET_FILE:gild>;GILDD=$<TARGET_FILE:gildd>")
  endforeach()
endif()
