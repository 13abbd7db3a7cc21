sim_test(sim "--histories 2000" ${CMAKE_CURRENT_SOURCE_DIR}/sim/test_sim.c)
