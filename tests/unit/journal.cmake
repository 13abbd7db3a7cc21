gild_test(journal unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_journal.c LIBS gild_catalog gild_io gild_base)
# LMDB can be made to refuse a commit, and the journal to keep its record.
target_link_options(test_journal PRIVATE LINKER:--wrap=gild_kv_commit LINKER:--wrap=gild_journal_retract)
