/* See sim_threads.h.
 *
 * Invariants: the thread `current` runs, all others wait for their `go`; who runs holds `baton`.
 * A lock's state is kept in the first bytes of the lock itself, which are zero when it is free, so
 * static initialisers serve; the C library never sees such a lock. */
#include "sim_threads.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/prng.h"

#define STACK_BYTES ((size_t)1 << 20)
#define MOST_THREADS 32u
#define YIELD_OF_1000 150u
#define CLOCK_STEP_NS 100u /* of each look at the clock */

enum state { RUNNABLE, WAITING, ENDED, JOINED };

struct thread {
    pthread_t real;
    void *stack;
    pthread_cond_t go, here;
    enum state state;
    const void *object;
    uint64_t until_ns;
    bool late;
    bool gone;    /* the real thread is joined */
    bool arrived; /* the real thread waits for its turn */
    void *(*entry)(void *);
    void *argument, *result;
};

static struct {
    bool running;
    pthread_mutex_t *baton;
    struct thread *threads[MOST_THREADS];
    unsigned count, current;
    uint64_t now_ns;
    struct gild_prng prng;
} world;

static _Thread_local unsigned self;

int __real_pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *);
int __real_pthread_mutex_destroy(pthread_mutex_t *);
int __real_pthread_mutex_lock(pthread_mutex_t *);
int __real_pthread_mutex_unlock(pthread_mutex_t *);
int __real_pthread_cond_init(pthread_cond_t *, const pthread_condattr_t *);
int __real_pthread_cond_destroy(pthread_cond_t *);
int __real_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __real_pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int __real_pthread_cond_signal(pthread_cond_t *);
int __real_pthread_cond_broadcast(pthread_cond_t *);
int __real_pthread_rwlock_init(pthread_rwlock_t *, const pthread_rwlockattr_t *);
int __real_pthread_rwlock_destroy(pthread_rwlock_t *);
int __real_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *);
int __real_pthread_rwlock_trywrlock(pthread_rwlock_t *);
int __real_pthread_rwlock_unlock(pthread_rwlock_t *);
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __real_pthread_join(pthread_t, void **);
int __real_clock_gettime(clockid_t, struct timespec *);

/* ---- the schedule ---------------------------------------------------------------------------- */

static struct thread *add_thread(void) {
    for (unsigned i = 0; i < world.count; i++)
        if (world.threads[i]->state == JOINED) {
            world.threads[i]->state = RUNNABLE;
            world.threads[i]->gone = world.threads[i]->arrived = false;
            return world.threads[i];
        }
    struct thread *thread = calloc(1, sizeof *thread);
    if (!thread || world.count == MOST_THREADS) {
        fprintf(stderr, "simulation: too many threads\n");
        abort();
    }
    __real_pthread_cond_init(&thread->go, NULL);
    __real_pthread_cond_init(&thread->here, NULL);
    world.threads[world.count++] = thread;
    return thread;
}

static void stuck(void) {
    fprintf(stderr, "simulation: at %llu ns nobody can go on\n", (unsigned long long)world.now_ns);
    for (unsigned i = 0; i < world.count; i++)
        fprintf(stderr, "  thread %u: state %d, waits for %p\n", i, world.threads[i]->state,
                world.threads[i]->object);
    abort();
}

/* Who goes next: any of those that can; if nobody can, the clock moves on to who waits least. */
static unsigned choose(void) {
    for (;;) {
        unsigned able[MOST_THREADS], count = 0;
        uint64_t soonest = SIM_FOREVER;
        for (unsigned i = 0; i < world.count; i++) {
            struct thread *thread = world.threads[i];
            if (thread->state == WAITING && thread->until_ns <= world.now_ns) {
                thread->state = RUNNABLE;
                thread->late = true;
            }
            if (thread->state == RUNNABLE)
                able[count++] = i;
            else if (thread->state == WAITING && thread->until_ns < soonest)
                soonest = thread->until_ns;
        }
        if (count)
            return able[sim_below(count)];
        if (soonest == SIM_FOREVER)
            stuck();
        world.now_ns = soonest;
    }
}

static void schedule(void) {
    unsigned next = choose();
    world.current = next;
    if (next == self)
        return;
    __real_pthread_cond_signal(&world.threads[next]->go);
    while (world.current != self)
        __real_pthread_cond_wait(&world.threads[self]->go, world.baton);
}

/* Always a new one: the one before a fork may be in any state inside. */
static void take_new_baton(void) {
    world.baton = calloc(1, sizeof *world.baton);
    if (!world.baton)
        abort();
    __real_pthread_mutex_init(world.baton, NULL);
    __real_pthread_mutex_lock(world.baton);
}

void sim_begin(uint64_t seed) {
    gild_prng_seed(&world.prng, seed);
    take_new_baton();
    self = 0;
    add_thread()->real = pthread_self();
    world.now_ns = 1;
    world.running = true;
}

bool sim_running(void) {
    return world.running;
}

void sim_after_fork(uint64_t seed) {
    take_new_baton();
    gild_prng_seed(&world.prng, seed);
    world.count = 0;
    world.current = self = 0;
    add_thread()->real = pthread_self();
}

static void see_off(struct thread *thread) {
    if (!thread->gone) {
        __real_pthread_join(thread->real, NULL);
        munmap(thread->stack, STACK_BYTES);
    }
    thread->gone = true;
}

void sim_settle_threads(void) {
    for (unsigned i = 0; i < world.count; i++)
        if (world.threads[i]->state == ENDED)
            see_off(world.threads[i]);
}

bool sim_wait(const void *object, uint64_t until_ns) {
    struct thread *me = world.threads[self];
    me->state = WAITING;
    me->object = object;
    me->until_ns = until_ns;
    me->late = false;
    schedule();
    me->object = NULL;
    return me->late;
}

void sim_wake(const void *object) {
    for (unsigned i = 0; i < world.count; i++)
        if (world.threads[i]->state == WAITING && world.threads[i]->object == object)
            world.threads[i]->state = RUNNABLE;
}

static void wake_one(const void *object) {
    unsigned waiting[MOST_THREADS], count = 0;
    for (unsigned i = 0; i < world.count; i++)
        if (world.threads[i]->state == WAITING && world.threads[i]->object == object)
            waiting[count++] = i;
    if (count)
        world.threads[waiting[sim_below(count)]]->state = RUNNABLE;
}

void sim_yield(void) {
    if (sim_chance(YIELD_OF_1000))
        schedule();
}

uint64_t sim_now_ns(void) {
    return world.now_ns;
}

uint64_t sim_random(void) {
    return gild_prng_next(&world.prng);
}

uint64_t sim_below(uint64_t bound) {
    return (uint64_t)((unsigned __int128)sim_random() * bound >> 64);
}

bool sim_chance(unsigned of_1000) {
    return sim_below(1000) < of_1000;
}

/* ---- locks ----------------------------------------------------------------------------------- */

struct lock {
    int owner; /* thread + 1, 0 = free */
    int readers;
};

_Static_assert(sizeof(struct lock) <= sizeof(pthread_mutex_t), "a mutex holds our state");
_Static_assert(sizeof(struct lock) <= sizeof(pthread_rwlock_t), "so does a lock of readers");

static void take(struct lock *lock, bool reading) {
    sim_yield();
    if (lock->owner == (int)self + 1) {
        fprintf(stderr, "simulation: thread %u takes a lock that it holds\n", self);
        abort();
    }
    while (lock->owner || (!reading && lock->readers))
        sim_wait(lock, SIM_FOREVER);
    if (reading)
        lock->readers++;
    else
        lock->owner = (int)self + 1;
}

static void give(struct lock *lock) {
    if (lock->owner == (int)self + 1) {
        lock->owner = 0;
    } else if (lock->readers > 0) {
        lock->readers--;
    } else {
        fprintf(stderr, "simulation: thread %u gives a lock that it does not hold\n", self);
        abort();
    }
    sim_wake(lock);
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
    if (!world.running)
        return __real_pthread_mutex_init(mutex, attributes);
    memset(mutex, 0, sizeof *mutex);
    return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex) {
    return world.running ? 0 : __real_pthread_mutex_destroy(mutex);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex) {
    if (!world.running)
        return __real_pthread_mutex_lock(mutex);
    take((struct lock *)mutex, false);
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex) {
    if (!world.running)
        return __real_pthread_mutex_unlock(mutex);
    give((struct lock *)mutex);
    return 0;
}

int __wrap_pthread_rwlock_init(pthread_rwlock_t *lock, const pthread_rwlockattr_t *attributes) {
    if (!world.running)
        return __real_pthread_rwlock_init(lock, attributes);
    memset(lock, 0, sizeof *lock);
    return 0;
}

int __wrap_pthread_rwlock_destroy(pthread_rwlock_t *lock) {
    return world.running ? 0 : __real_pthread_rwlock_destroy(lock);
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock) {
    if (!world.running)
        return __real_pthread_rwlock_rdlock(lock);
    take((struct lock *)lock, true);
    return 0;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock) {
    if (!world.running)
        return __real_pthread_rwlock_wrlock(lock);
    take((struct lock *)lock, false);
    return 0;
}

int __wrap_pthread_rwlock_trywrlock(pthread_rwlock_t *lock) {
    if (!world.running)
        return __real_pthread_rwlock_trywrlock(lock);
    struct lock *state = (struct lock *)lock;
    if (state->owner || state->readers)
        return EBUSY;
    state->owner = (int)self + 1;
    return 0;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *lock) {
    if (!world.running)
        return __real_pthread_rwlock_unlock(lock);
    give((struct lock *)lock);
    return 0;
}

/* ---- conditions ------------------------------------------------------------------------------ */

int __wrap_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes) {
    return world.running ? 0 : __real_pthread_cond_init(condition, attributes);
}

int __wrap_pthread_cond_destroy(pthread_cond_t *condition) {
    return world.running ? 0 : __real_pthread_cond_destroy(condition);
}

static int wait_condition(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t until_ns) {
    give((struct lock *)mutex);
    bool late = sim_wait(condition, until_ns);
    struct lock *lock = (struct lock *)mutex;
    while (lock->owner)
        sim_wait(lock, SIM_FOREVER);
    lock->owner = (int)self + 1;
    return late ? ETIMEDOUT : 0;
}

int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) {
    if (!world.running)
        return __real_pthread_cond_wait(condition, mutex);
    return wait_condition(condition, mutex, SIM_FOREVER);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                                  const struct timespec *until) {
    if (!world.running)
        return __real_pthread_cond_timedwait(condition, mutex, until);
    uint64_t until_ns = (uint64_t)until->tv_sec * 1000000000u + (uint64_t)until->tv_nsec;
    return wait_condition(condition, mutex,
                          until_ns > SIM_EPOCH_NS ? until_ns - SIM_EPOCH_NS : until_ns);
}

int __wrap_pthread_cond_signal(pthread_cond_t *condition) {
    if (!world.running)
        return __real_pthread_cond_signal(condition);
    wake_one(condition);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *condition) {
    if (!world.running)
        return __real_pthread_cond_broadcast(condition);
    sim_wake(condition);
    return 0;
}

/* ---- threads and the clock ------------------------------------------------------------------- */

static void *begin_thread(void *context) {
    struct thread *me = context;
    __real_pthread_mutex_lock(world.baton);
    for (self = 0; world.threads[self] != me;)
        self++;
    me->arrived = true;
    __real_pthread_cond_signal(&me->here);
    while (world.current != self)
        __real_pthread_cond_wait(&me->go, world.baton);
    void *result = me->result = me->entry(me->argument);
    me->state = ENDED;
    sim_wake(me);
    world.current = choose();
    __real_pthread_cond_signal(&world.threads[world.current]->go);
    __real_pthread_mutex_unlock(world.baton);
    return result;
}

/* The real thread, on a stack of our own: the C library would give it the stack, and with that the
 * name, of a thread that a fork left behind, which ThreadSanitizer takes for the same one. */
static int start(struct thread *thread) {
    pthread_attr_t attributes;
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        return errno;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, STACK_BYTES);
    int error = __real_pthread_create(&thread->real, &attributes, begin_thread, thread);
    pthread_attr_destroy(&attributes);
    if (error)
        munmap(stack, STACK_BYTES);
    else
        thread->stack = stack;
    return error;
}

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*entry)(void *),
                          void *argument) {
    if (!world.running)
        return __real_pthread_create(out, attributes, entry, argument);
    struct thread *thread = add_thread();
    thread->entry = entry;
    thread->argument = argument;
    int error = start(thread);
    if (error)
        thread->state = JOINED;
    /* Until then it may hold locks of the C library, which the child of a fork would find taken. */
    while (!error && !thread->arrived)
        __real_pthread_cond_wait(&thread->here, world.baton);
    *out = thread->real;
    return error;
}

int __wrap_pthread_join(pthread_t real, void **result) {
    if (!world.running)
        return __real_pthread_join(real, result);
    struct thread *thread = NULL;
    for (unsigned i = 0; i < world.count; i++)
        if (world.threads[i]->state != JOINED && pthread_equal(world.threads[i]->real, real))
            thread = world.threads[i];
    while (thread && thread->state != ENDED)
        sim_wait(thread, SIM_FOREVER);
    if (!thread)
        return ESRCH;
    see_off(thread);
    thread->state = JOINED;
    if (result)
        *result = thread->result;
    return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *out) {
    if (!world.running)
        return __real_clock_gettime(clock, out);
    world.now_ns += CLOCK_STEP_NS;
    uint64_t ns = world.now_ns + (clock == CLOCK_REALTIME ? SIM_EPOCH_NS : 0);
    *out = (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    return 0;
}
