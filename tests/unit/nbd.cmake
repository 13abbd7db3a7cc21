gild_test(nbd unit ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd_requests.c
          ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_nbd_life.c
          ${CMAKE_CURRENT_SOURCE_DIR}/lib/fake_disk.c ${CMAKE_CURRENT_SOURCE_DIR}/lib/nbd_client.c
          LIBS gild_nbd gild_io gild_base)
