/* A simulated machine's processor and clock: the engine's own threads, run one at a time.
 *
 * A test program that is linked with the wraps of sim_wraps.cmake sends its calls of
 * pthread_mutex_*, pthread_cond_*, pthread_rwlock_*, pthread_create, pthread_join and clock_gettime
 * to this file. Between sim_begin and the end of the process one thread holds the baton; it passes
 * on only where a thread waits, and by chance where one takes a lock. Chance is seeded, so a seed
 * is one interleaving, and replays exactly. Time is virtual: it moves when all threads wait.
 *
 *           create                 waits (lock, condition, I/O, time)
 *   (none) --------> RUNNABLE <-------------------------------------> WAITING
 *                       | returns            woken, or its time comes
 *                       v
 *                     ENDED
 *
 * fork() by the thread that holds the baton makes a process in which only that thread lives: a
 * power cut. sim_after_fork() makes it the only one of the schedule too. */
#ifndef GILD_TEST_SIM_THREADS_H
#define GILD_TEST_SIM_THREADS_H

#include <stdbool.h>
#include <stdint.h>

#define SIM_FOREVER UINT64_MAX

/* From here on the calling thread is the first of the simulation. Once in a process. */
void sim_begin(uint64_t seed);
bool sim_running(void);

/* In the child of a fork, before anything else. A new seed for what follows. */
void sim_after_fork(uint64_t seed);

/* Before a fork: threads that have ended are really gone, with all that the C library and others
 * keep for them (whose locks the child would find taken for ever). */
void sim_settle_threads(void);

/* Waits until somebody wakes `object`, or the virtual clock reaches until_ns: true if that came
 * first. Aborts with a picture of all threads when nobody could ever go on. */
bool sim_wait(const void *object, uint64_t until_ns);
void sim_wake(const void *object);
/* Lets others go first, by chance. */
void sim_yield(void);

/* The wall clock when the machine is made. */
#define SIM_EPOCH_NS 1700000000000000000ull

uint64_t sim_now_ns(void);
uint64_t sim_random(void);
uint64_t sim_below(uint64_t bound); /* bound > 0 */
bool sim_chance(unsigned of_1000);

#endif
