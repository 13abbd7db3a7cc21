gild_test(codec unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_codec.c LIBS gild_codec)
