# The FUSE door over a fake tree: what it promises, and the tools that people use on it.
foreach(part IN ITEMS fuse fuse_tools)
  gild_test(${part} system ${CMAKE_CURRENT_SOURCE_DIR}/system/test_${part}.c
    ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_tree.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/fuse_fixture.c
    LIBS gild_fuse gild_io gild_base PkgConfig::liburing)
endforeach()
