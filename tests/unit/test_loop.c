/* What the loop promises about tasks, turns, timers, waking and stopping, on each backend; and
 * about short file transfers, over a backend that makes them. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/prng.h"
#include "base/queue.h"
#include "io/backend.h"
#include "loop_rig.h"
#include "test_loop.h"

enum gild_loop_backend tested_backend;

static struct gild_loop_options tested_options(void) {
    return (struct gild_loop_options){.backend = tested_backend};
}

static struct loop_rig started(void) {
    struct loop_rig rig;
    struct gild_loop_options options = tested_options();
    loop_rig_start(&rig, &options);
    return rig;
}

/* ---- tasks --------------------------------------------------------------------------------- */

#define POSTERS 4
#define PER_POSTER 5000

struct counted {
    struct gild_task task;
    struct tally *tally;
    unsigned poster, number;
};

struct tally {
    struct gild_loop *loop;
    unsigned next[POSTERS];
    unsigned wrong, total;
    sem_t all;
};

static void run_counted(struct gild_task *task) {
    struct counted *counted = gild_container_of(task, struct counted, task);
    struct tally *tally = counted->tally;
    if (counted->number != tally->next[counted->poster]++ || !gild_loop_is_current(tally->loop))
        tally->wrong++;
    if (++tally->total == POSTERS * PER_POSTER)
        sem_post(&tally->all);
}

static void *post_all(void *argument) {
    struct counted *tasks = argument;
    for (unsigned i = 0; i < PER_POSTER; i++)
        gild_loop_post(tasks->tally->loop, &tasks[i].task);
    return NULL;
}

static void test_posts_from_many_threads_run_once_and_in_order(void) {
    struct loop_rig rig = started();
    struct tally tally = {.loop = rig.loop};
    struct counted *tasks = calloc(POSTERS * PER_POSTER, sizeof *tasks);
    pthread_t threads[POSTERS];
    sem_init(&tally.all, 0, 0);
    for (unsigned i = 0; i < POSTERS * PER_POSTER; i++)
        tasks[i] = (struct counted){{NULL, run_counted}, &tally, i / PER_POSTER, i % PER_POSTER};
    for (unsigned p = 0; p < POSTERS; p++)
        pthread_create(&threads[p], NULL, post_all, tasks + p * PER_POSTER);
    while (sem_wait(&tally.all))
        ;
    for (unsigned p = 0; p < POSTERS; p++)
        pthread_join(threads[p], NULL);
    loop_rig_stop(&rig);
    CU_ASSERT_EQUAL(tally.wrong, 0);
    CU_ASSERT_EQUAL(tally.total, POSTERS * PER_POSTER);
    free(tasks);
}

static void count_call(void *context) {
    ++*(unsigned *)context;
}

static void test_a_sleeping_loop_is_woken_each_time(void) {
    struct loop_rig rig = started();
    unsigned count = 0;
    for (unsigned i = 0; i < 2000; i++)
        loop_rig_call(&rig, count_call, &count);
    loop_rig_stop(&rig);
    CU_ASSERT_EQUAL(count, 2000);
}

/* Writes its letter down; may start others. */
struct letter {
    struct gild_task task;
    struct gild_io io;
    struct story *story;
    char letter;
};

struct story {
    struct gild_loop *loop;
    char text[16];
    uint64_t now_ns[16];
    unsigned length;
    struct letter a, b, c, p, q;
    sem_t end;
};

static void write_letter(struct story *story, char letter) {
    story->now_ns[story->length] = gild_loop_now_ns(story->loop);
    story->text[story->length++] = letter;
}

static void run_letter(struct gild_task *task) {
    struct letter *letter = gild_container_of(task, struct letter, task);
    struct story *story = letter->story;
    write_letter(story, letter->letter);
    if (letter == &story->a) {
        gild_loop_post(story->loop, &story->p.task);
        gild_io_timeout(story->loop, &story->q.io, 0);
        gild_loop_defer(story->loop, &story->b.task);
        write_letter(story, '.'); /* nothing ran inside those calls */
    } else if (letter == &story->b) {
        gild_loop_defer(story->loop, &story->c.task);
    }
}

static void letter_done(struct gild_io *io) {
    struct letter *letter = gild_container_of(io, struct letter, io);
    write_letter(letter->story, letter->letter);
    sem_post(&letter->story->end);
}

static void test_a_turn_has_its_order(void) {
    struct loop_rig rig = started();
    struct story story = {.loop = rig.loop};
    struct letter *all[] = {&story.a, &story.b, &story.c, &story.p, &story.q};
    sem_init(&story.end, 0, 0);
    for (unsigned i = 0; i < 5; i++) {
        all[i]->task.run = run_letter;
        all[i]->io.done = letter_done;
        all[i]->letter = "abcpq"[i];
        all[i]->story = &story;
    }
    gild_loop_post(rig.loop, &story.a.task);
    while (sem_wait(&story.end))
        ;
    loop_rig_stop(&rig);
    /* Deferred tasks end the turn of a, deferred by deferred too; posts and completions begin the
     * next. The timeout of 0 may end in the turn of a (its time has come) or in the next. */
    if (!strcmp(story.text, "a.qbcp")) {
        CU_ASSERT_EQUAL(story.now_ns[4], story.now_ns[0]);
    } else {
        CU_ASSERT_STRING_EQUAL(story.text, "a.bcpq");
        CU_ASSERT_EQUAL(story.now_ns[3], story.now_ns[0]);
        CU_ASSERT_TRUE(story.now_ns[4] > story.now_ns[0]);
    }
}

/* ---- timers -------------------------------------------------------------------------------- */

static void test_timeouts_are_never_early_and_can_be_cancelled(void) {
    struct loop_rig rig = started();
    struct rig_io soon, late;
    rig_io_init(&soon, &rig, -1);
    rig_io_init(&late, &rig, -1);
    uint64_t before_ns = io_monotonic_ns();
    rig_timeout(&late, 3600000000000u);
    rig_timeout(&soon, 20000000u);
    CU_ASSERT_EQUAL(rig_io_wait(&soon), 0);
    CU_ASSERT_TRUE(io_monotonic_ns() - before_ns >= 20000000u);
    rig_cancel(&late);
    CU_ASSERT_EQUAL(rig_io_wait(&late), -ECANCELED);
    rig_cancel(&late); /* ended: nothing happens */
    rig_timeout(&late, UINT64_MAX);
    rig_cancel(&late);
    CU_ASSERT_EQUAL(rig_io_wait(&late), -ECANCELED);
    CU_ASSERT_EQUAL(late.done_count, 2);
    loop_rig_stop(&rig);
}

#define TIMERS 600

struct timer {
    struct gild_io io;
    struct timers *timers;
    uint64_t due_ns;
    bool cancelled, ended;
};

struct timers {
    struct gild_loop *loop;
    struct gild_prng prng;
    struct timer timer[TIMERS];
    unsigned left, wrong;
    uint64_t last_turn_ns, last_due_ns;
    sem_t end;
};

static void timer_done(struct gild_io *io) {
    struct timer *timer = gild_container_of(io, struct timer, io);
    struct timers *timers = timer->timers;
    if (timer->ended || io->result != (timer->cancelled ? -ECANCELED : 0))
        timers->wrong++;
    timer->ended = true;
    if (!timer->cancelled) {
        if (timer->due_ns > gild_loop_now_ns(timers->loop))
            timers->wrong++;
        /* Soonest first. */
        if (timer->due_ns < timers->last_due_ns)
            timers->wrong++;
        timers->last_due_ns = timer->due_ns;
    }
    if (--timers->left == 0)
        sem_post(&timers->end);
}

static void start_timers(void *context) {
    struct timers *timers = context;
    for (unsigned i = 0; i < TIMERS; i++) {
        struct timer *timer = &timers->timer[i];
        timer->io.done = timer_done;
        timer->timers = timers;
        gild_io_timeout(timers->loop, &timer->io, gild_prng_below(&timers->prng, 30000000));
        timer->due_ns = timer->io.offset;
        if (gild_prng_below(&timers->prng, 3) == 0) {
            struct timer *other = &timers->timer[gild_prng_below(&timers->prng, i + 1)];
            other->cancelled = true;
            gild_io_cancel(timers->loop, &other->io);
        }
    }
}

static void test_many_timeouts_end_soonest_first(void) {
    struct loop_rig rig = started();
    struct timers *timers = calloc(1, sizeof *timers);
    uint64_t seed = io_monotonic_ns();
    printf("seed %llu ", (unsigned long long)seed);
    gild_prng_seed(&timers->prng, seed);
    timers->loop = rig.loop;
    timers->left = TIMERS;
    sem_init(&timers->end, 0, 0);
    loop_rig_call(&rig, start_timers, timers);
    while (sem_wait(&timers->end))
        ;
    loop_rig_stop(&rig);
    CU_ASSERT_EQUAL(timers->wrong, 0);
    free(timers);
}

/* ---- life ---------------------------------------------------------------------------------- */

static void test_stop_forgets_what_is_under_way(void) {
    struct loop_rig rig = started();
    struct rig_io recv, timeout, poll;
    int pair[2];
    char byte;
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    rig_io_init(&recv, &rig, pair[0]);
    rig_io_init(&timeout, &rig, -1);
    rig_io_init(&poll, &rig, pair[1]);
    rig_recv(&recv, &byte, 1);
    rig_poll(&poll, 1 /* POLLIN */);
    rig_timeout(&timeout, 3600000000000u);
    loop_rig_stop(&rig);
    CU_ASSERT_EQUAL(recv.done_count + timeout.done_count + poll.done_count, 0);
    close(pair[0]);
    close(pair[1]);
}

static void test_stop_before_run_and_twice(void) {
    struct loop_rig rig;
    struct gild_loop_options options = tested_options();
    CU_ASSERT_EQUAL_FATAL(gild_loop_create(&rig.loop, &options, NULL), 0);
    CU_ASSERT_FALSE(gild_loop_is_current(rig.loop));
    gild_loop_stop(rig.loop);
    gild_loop_stop(rig.loop);
    gild_loop_run(rig.loop);
    CU_ASSERT_FALSE(gild_loop_is_current(rig.loop));
    gild_loop_destroy(rig.loop);
    /* One that never ran. */
    CU_ASSERT_EQUAL_FATAL(gild_loop_create(&rig.loop, &options, NULL), 0);
    gild_loop_destroy(rig.loop);
}

static void test_backend_is_the_one_asked_for(void) {
    struct gild_loop *loop;
    struct gild_loop_options options = tested_options();
    CU_ASSERT_EQUAL_FATAL(gild_loop_create(&loop, &options, NULL), 0);
    CU_ASSERT_STRING_EQUAL(gild_loop_backend_name(loop),
                           tested_backend == GILD_LOOP_URING ? "io_uring" : "threads");
    gild_loop_destroy(loop);
}

/* ---- short transfers ----------------------------------------------------------------------- */

/* A backend over 100 bytes of memory that moves at most 7 at a time, stumbles now and then, and
 * ends as direct I/O does. */
struct short_backend {
    struct io_backend base;
    unsigned char file[100];
    unsigned calls;
};

static void short_submit(struct io_backend *backend, struct gild_io *io) {
    struct short_backend *file = (struct short_backend *)(void *)backend;
    size_t left = io->offset < sizeof file->file ? sizeof file->file - io->offset : 0;
    size_t part = io->vectors->iov_len < 7 ? io->vectors->iov_len : 7;
    if (part > left)
        part = left;
    if (++file->calls % 5 == 0) {
        io_complete(backend, io, file->calls % 2 ? -EINTR : -EAGAIN);
        return;
    }
    if (io->kind == IO_READ && !left && io->offset % 512) {
        io_complete(backend, io, -EINVAL);
        return;
    }
    if (io->kind == IO_READ)
        memcpy(io->vectors->iov_base, file->file + io->offset, part);
    else
        memcpy(file->file + io->offset, io->vectors->iov_base, part);
    io_complete(backend, io, (int)part);
}

static void short_nothing(struct io_backend *backend) {
    (void)backend;
}

static void short_wait(struct io_backend *backend, uint64_t deadline_ns) {
    (void)backend, (void)deadline_ns;
}

static void short_cancel(struct io_backend *backend, struct gild_io *io) {
    (void)backend, (void)io;
}

static uint64_t short_now_ns(struct io_backend *backend) {
    (void)backend;
    return 1;
}

static const struct io_backend_ops short_ops = {
    .name = "short",
    .destroy = short_nothing,
    .start = short_nothing,
    .finish = short_nothing,
    .submit = short_submit,
    .cancel = short_cancel,
    .wait = short_wait,
    .wake = short_nothing,
    .now_ns = short_now_ns,
};

struct transfer {
    struct gild_io io;
    struct gild_task task;
    struct gild_loop *loop;
    struct iovec vectors[3];
    unsigned char bytes[120];
    size_t length;
    uint64_t offset;
    bool write, cancel;
};

static void transfer_done(struct gild_io *io) {
    gild_loop_stop(gild_container_of(io, struct transfer, io)->loop);
}

static void start_transfer(struct gild_task *task) {
    struct transfer *t = gild_container_of(task, struct transfer, task);
    if (t->write) {
        gild_io_write(t->loop, &t->io, 3, t->bytes, t->length, t->offset, false);
    } else {
        t->vectors[0] = (struct iovec){t->bytes, 10};
        t->vectors[1] = (struct iovec){t->bytes + 10, 1};
        t->vectors[2] = (struct iovec){t->bytes + 11, t->length - 11};
        gild_io_readv(t->loop, &t->io, 3, t->vectors, 3, t->offset);
    }
    if (t->cancel)
        gild_io_cancel(t->loop, &t->io);
}

static int transferred(struct short_backend *backend, struct transfer *t) {
    backend->base = (struct io_backend){.ops = &short_ops};
    if (io_loop_create_over(&t->loop, &backend->base))
        return -ENOMEM;
    t->io.done = transfer_done;
    t->task.run = start_transfer;
    gild_loop_post(t->loop, &t->task);
    gild_loop_run(t->loop);
    gild_loop_destroy(t->loop);
    return t->io.result;
}

static void test_short_transfers_are_resumed(void) {
    struct short_backend backend = {0};
    struct transfer write = {.length = 90, .offset = 5, .write = true};
    for (unsigned i = 0; i < 90; i++)
        write.bytes[i] = (unsigned char)(i + 1);
    CU_ASSERT_EQUAL(transferred(&backend, &write), 90);
    CU_ASSERT_EQUAL(memcmp(backend.file + 5, write.bytes, 90), 0);
    CU_ASSERT_TRUE(backend.calls > 90 / 7);
    struct transfer read = {.length = 90, .offset = 5};
    CU_ASSERT_EQUAL(transferred(&backend, &read), 90);
    CU_ASSERT_EQUAL(memcmp(read.bytes, write.bytes, 90), 0);
    /* Up to the end of the file, which direct I/O tells with EINVAL. */
    struct transfer end = {.length = 110, .offset = 50};
    CU_ASSERT_EQUAL(transferred(&backend, &end), 50);
    CU_ASSERT_EQUAL(memcmp(end.bytes, backend.file + 50, 50), 0);
    /* A file that takes nothing is an error, not an endless loop. */
    struct transfer full = {.length = 20, .offset = 90, .write = true};
    CU_ASSERT_EQUAL(transferred(&backend, &full), -EIO);
    struct transfer cancelled = {.length = 90, .write = true, .cancel = true};
    CU_ASSERT_EQUAL(transferred(&backend, &cancelled), -ECANCELED);
}

/* ---- where io_uring is refused ------------------------------------------------------------- */

/* As a container's seccomp filter does it. */
static int refuse_io_uring(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? -errno : 0;
}

enum { SERVED_BY_THREADS = 10, NO_FILTER, NOT_REFUSED, NO_SENTENCE, NOT_SERVED };

static int serve_without_io_uring(void) {
    struct gild_loop_options uring = {.backend = GILD_LOOP_URING}, any = {0};
    struct gild_loop *loop;
    struct gild_error error = {0};
    if (refuse_io_uring())
        return NO_FILTER;
    if (gild_loop_create(&loop, &uring, &error) != -EPERM)
        return NOT_REFUSED;
    if (!strstr(error.message, "io_uring is refused"))
        return NO_SENTENCE;
    for (int i = 0; i < 2; i++) {
        if (gild_loop_create(&loop, &any, &error) ||
            strcmp(gild_loop_backend_name(loop), "threads"))
            return NOT_SERVED;
        gild_loop_destroy(loop);
    }
    return SERVED_BY_THREADS;
}

static void test_threads_serve_where_io_uring_is_refused_and_say_so_once(void) {
    char text[2048] = {0};
    int ends[2], status;
    CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        _exit(serve_without_io_uring());
    }
    close(ends[1]);
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT_TRUE(WIFEXITED(status));
    CU_ASSERT_EQUAL(WEXITSTATUS(status), SERVED_BY_THREADS);
    CU_ASSERT_TRUE(read(ends[0], text, sizeof text - 1) > 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "threads instead"));
    CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + strlen(text) - 1);
    close(ends[0]);
}

/* ---- suites -------------------------------------------------------------------------------- */

static int use_uring(void) {
    tested_backend = GILD_LOOP_URING;
    return 0;
}

static int use_threads(void) {
    tested_backend = GILD_LOOP_THREADS;
    return 0;
}

static void add_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_backend_is_the_one_asked_for);
    CU_ADD_TEST(suite, test_posts_from_many_threads_run_once_and_in_order);
    CU_ADD_TEST(suite, test_a_sleeping_loop_is_woken_each_time);
    CU_ADD_TEST(suite, test_a_turn_has_its_order);
    CU_ADD_TEST(suite, test_timeouts_are_never_early_and_can_be_cancelled);
    CU_ADD_TEST(suite, test_many_timeouts_end_soonest_first);
    CU_ADD_TEST(suite, test_stop_forgets_what_is_under_way);
    CU_ADD_TEST(suite, test_stop_before_run_and_twice);
    add_io_tests(suite);
}

int main(void) {
    struct gild_loop_options uring = {.backend = GILD_LOOP_URING};
    struct gild_loop *loop;
    struct gild_error error;
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("loop", NULL, NULL);
    CU_ADD_TEST(suite, test_short_transfers_are_resumed);
    CU_ADD_TEST(suite, test_threads_serve_where_io_uring_is_refused_and_say_so_once);
    if (gild_loop_create(&loop, &uring, &error)) {
        printf("SKIPPED on io_uring: %s\n", error.message);
    } else {
        gild_loop_destroy(loop);
        add_tests(CU_add_suite("loop over io_uring", use_uring, NULL));
    }
    add_tests(CU_add_suite("loop over threads", use_threads, NULL));
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
