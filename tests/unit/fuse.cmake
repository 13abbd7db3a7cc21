gild_test(fuse_overlap unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_fuse_overlap.c
  LIBS gild_fuse PkgConfig::fuse3)
target_include_directories(test_fuse_overlap PRIVATE ${PROJECT_SOURCE_DIR}/fuse)
