# System tests: the two programs as they are installed, real guests, other people's clients.
if(TARGET gild AND TARGET gildd)
  foreach(name IN ITEMS guests clients)
    add_test(NAME system_${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/${name}.sh)
    set_tests_properties(system_${name} PROPERTIES
      LABELS system SKIP_RETURN_CODE 77 TIMEOUT 1500 RUN_SERIAL TRUE
      ENVIRONMENT "GILD=$<TARGET_FILE:gild>;GILDD=$<TARGET_FILE:gildd>")
  endforeach()
endif()
