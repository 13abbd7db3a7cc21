# The NBD server over disks in memory, with the clients that are installed.
gild_test(nbd_clients system ${CMAKE_CURRENT_SOURCE_DIR}/system/test_nbd_clients.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_disk.c LIBS gild_nbd gild_io gild_base)
