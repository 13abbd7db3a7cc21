# The house rules that a machine can check, one ctest each.
set(libraries)
foreach(module IN ITEMS base io codec catalog pack log map cache disk vdi nbd control fuse)
  if(TARGET gild_${module})
    list(APPEND libraries $<TARGET_FILE:gild_${module}>)
  endif()
endforeach()
foreach(rule IN ITEMS includes lengths words format)
  add_test(NAME house_${rule} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/house.sh ${rule})
  set_tests_properties(house_${rule} PROPERTIES LABELS unit SKIP_RETURN_CODE 77 TIMEOUT 300)
endforeach()
# Sanitizers and coverage add symbols of their own.
if(NOT GILD_SANITIZE AND NOT GILD_COVERAGE)
  add_test(NAME house_symbols
           COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/house.sh symbols ${libraries})
  set_tests_properties(house_symbols PROPERTIES LABELS unit TIMEOUT 300)
endif()
# A mutant whose text has gone says nothing about the tests any more.
add_test(NAME house_mutants COMMAND ${PROJECT_SOURCE_DIR}/tests/mutation/run --list)
set_tests_properties(house_mutants PROPERTIES LABELS unit TIMEOUT 300)
