gild_test(vdi_race unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_vdi_race.c
          LIBS gild_vdi gild_disk gild_catalog gild_io gild_base)
# Something happens between a deletion's look and its transaction.
target_link_options(test_vdi_race PRIVATE LINKER:--wrap=gild_txn_begin)
