gild_test(journal unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_journal.c LIBS gild_catalog gild_io gild_base)
