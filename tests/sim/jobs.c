/* See jobs.h. */
#include "jobs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int verdict(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int jobs_wait(int pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 2;
    return verdict(status);
}

static pid_t start(jobs_work *work, void *context, uint64_t index, unsigned worker) {
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        exit(2);
    }
    if (child == 0) {
        work(context, index, worker);
        _exit(0);
    }
    return child;
}

uint64_t jobs_run(uint64_t first, uint64_t end, unsigned at_once, jobs_work *work,
                  jobs_ended *ended, void *context) {
    pid_t children[JOBS_MOST] = {0};
    uint64_t indexes[JOBS_MOST] = {0}, failures = 0;
    unsigned busy = 0;
    while (first < end || busy) {
        for (unsigned i = 0; i < at_once && first < end; i++)
            if (!children[i]) {
                indexes[i] = first++;
                children[i] = start(work, context, indexes[i], i);
                busy++;
            }
        int status;
        pid_t child = wait(&status);
        for (unsigned i = 0; i < at_once; i++) {
            if (children[i] != child)
                continue;
            children[i] = 0;
            busy--;
            failures += verdict(status) != 0;
            ended(context, indexes[i], verdict(status));
        }
    }
    return failures;
}
