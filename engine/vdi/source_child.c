/* Child processes of an import: qemu-img for a short answer, qemu-nbd for as long as it reads.
 *
 * A child never outlives us: PR_SET_PDEATHSIG kills it with the thread that started it, and
 * vdi_child_end reaps it in every other case. What it prints goes to anonymous files, so that it
 * can never block on a pipe that nobody reads. Between fork and exec only what is safe there is
 * called. One thread per child. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vdi/source.h"

#define LISTEN_FD 3 /* sd_listen_fds(3): the first passed descriptor */
#define GRACE_MS 5000
#define PID_DIGITS 20

extern char **environ;

/* The environment with LISTEN_FDS and room for LISTEN_PID (its last entry), or NULL. */
static char **make_environment(void) {
    size_t count = 0, kept = 0;
    while (environ[count]) {
        count++;
    }
    char **made = calloc(count + 4, sizeof(*made));
    char *process = calloc(1, sizeof("LISTEN_PID=") + PID_DIGITS);
    if (!made || !process) {
        free(made);
        free(process);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (strncmp(environ[i], "LISTEN_", 7) != 0 && strncmp(environ[i], "LC_", 3) != 0) {
            made[kept++] = environ[i];
        }
    }
    static const char plain_language[] = "LC_ALL=C", one_socket[] = "LISTEN_FDS=1";
    strcpy(process, "LISTEN_PID=");
    made[kept++] = (char *)(uintptr_t)plain_language;
    made[kept++] = process; /* the child fills it in; without a socket it is left out */
    made[kept] = (char *)(uintptr_t)one_socket;
    return made;
}

static char **process_entry(char **environment) {
    while (strncmp(*environment, "LISTEN_PID=", 11) != 0) {
        environment++;
    }
    return environment;
}

static void free_environment(char **environment) {
    if (environment) {
        free(*process_entry(environment));
        free(environment);
    }
}

/* After fork, in the child: only async-signal-safe calls. */
static void write_own_pid(char *at) {
    char digits[PID_DIGITS];
    unsigned count = 0;
    for (pid_t pid = getpid(); pid > 0; pid /= 10) {
        digits[count++] = (char)('0' + pid % 10);
    }
    while (count) {
        *at++ = digits[--count];
    }
    *at = '\0';
}

static _Noreturn void become(const struct vdi_child *child, const char *const argv[],
                             const char *folder, char **environment, char **process, int listen_fd,
                             int null_fd, pid_t parent) {
    sigset_t none;
    signal(SIGPIPE, SIG_DFL);
    signal(SIGINT, SIG_IGN); /* a terminal's ^C is the parent's to handle */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent) {
        _exit(126); /* the parent died before the kernel knew of our wish */
    }
    if (chdir(folder) < 0) {
        _exit(126);
    }
    if (listen_fd >= 0) {
        write_own_pid(*process + strlen("LISTEN_PID="));
    } else {
        *process = NULL;
    }
    if (dup2(null_fd, 0) < 0 || dup2(child->output, 1) < 0 || dup2(child->messages, 2) < 0) {
        _exit(126);
    }
    unsigned first_ours = LISTEN_FD;
    if (listen_fd >= 0) {
        if (dup2(listen_fd, LISTEN_FD) < 0 || fcntl(LISTEN_FD, F_SETFD, 0) < 0) {
            _exit(126);
        }
        first_ours++;
    }
    close_range(first_ours, ~0u, 0);
    execvpe(argv[0], (char *const *)(uintptr_t)argv, environment);
    _exit(errno == ENOENT ? 127 : 126);
}

int vdi_child_start(struct vdi_child *child, const char *const argv[], const char *folder,
                    int listen_fd, struct gild_error *error) {
    char **environment = make_environment();
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pid_t parent = getpid();
    int err;
    *child = (struct vdi_child){.pid = -1, .process = -1, .program = argv[0]};
    child->output = memfd_create("output", MFD_CLOEXEC);
    child->messages = memfd_create("messages", MFD_CLOEXEC);
    if (!environment || null_fd < 0 || child->output < 0 || child->messages < 0) {
        goto failed;
    }
    child->pid = fork();
    if (child->pid == 0) {
        become(child, argv, folder, environment, process_entry(environment), listen_fd, null_fd,
               parent);
    }
    if (child->pid < 0) {
        goto failed;
    }
    child->process = pidfd_open(child->pid, 0);
    if (child->process < 0) {
        goto failed;
    }
    free_environment(environment);
    close(null_fd);
    return 0;

failed:
    err = errno;
    free_environment(environment);
    if (null_fd >= 0) {
        close(null_fd);
    }
    vdi_child_end(child);
    return gild_fail(error, GILD_FAILED, err, "cannot start %s: %s", argv[0], strerror(err));
}

int vdi_child_wait(struct vdi_child *child, int timeout_ms) {
    struct pollfd ended = {.fd = child->process, .events = POLLIN};
    int count, status = 0;
    do {
        count = poll(&ended, 1, timeout_ms);
    } while (count < 0 && errno == EINTR);
    if (count <= 0) {
        return -ETIMEDOUT;
    }
    pid_t reaped;
    do {
        reaped = waitpid(child->pid, &status, 0);
    } while (reaped < 0 && errno == EINTR);
    child->pid = -1;
    if (reaped < 0) {
        return 255; /* somebody ignores SIGCHLD: the kernel has reaped it */
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

char *vdi_child_message(const struct vdi_child *child, char *text, size_t room) {
    char bytes[4096];
    ssize_t count = pread(child->messages, bytes, sizeof(bytes), 0);
    size_t first = 0, last = 0;
    while ((ssize_t)last < count && bytes[last] != '\n') {
        last++;
    }
    size_t prefix = strlen(child->program); /* "qemu-img: ..." */
    if (last - first > prefix + 2 && memcmp(bytes + first, child->program, prefix) == 0 &&
        bytes[first + prefix] == ':') {
        first += prefix + 2;
    }
    /* "Could not open 'NAME': Image is not in qcow2 format": the caller names the file better. */
    for (size_t i = first; i + 3 < last; i++) {
        if (memcmp(bytes + i, "': ", 3) == 0) {
            first = i + 3;
        }
    }
    size_t length = last - first < room - 1 ? last - first : room - 1;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[first + i];
        text[i] = (char)(c < ' ' || c == 127 ? ' ' : c);
    }
    text[length] = '\0';
    return text;
}

void vdi_child_end(struct vdi_child *child) {
    if (child->pid > 0) {
        kill(child->pid, child->process >= 0 ? SIGTERM : SIGKILL);
        if (child->process < 0) {
            waitpid(child->pid, NULL, 0);
        } else if (vdi_child_wait(child, GRACE_MS) == -ETIMEDOUT) {
            kill(child->pid, SIGKILL);
            vdi_child_wait(child, -1);
        }
        child->pid = -1;
    }
    int *fds[] = {&child->process, &child->output, &child->messages};
    for (unsigned i = 0; i < 3; i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
            *fds[i] = -1;
        }
    }
}
