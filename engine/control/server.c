/* The daemon's side of the control door: HTTP on the store's Unix socket (gild/control.h).
 *
 *   connection's thread                     worker's thread
 *   body whole -> start the worker -------> the verb
 *   next_bytes: waits for news <-- lock --- progress: the newest replaces what was not yet sent
 *               sends it       <-- lock --- the answer
 *   ended (sent, or the client has gone): cancels, joins the worker, frees the job
 *
 * libmicrohttpd runs a thread for each connection, so next_bytes may wait. While a verb has nothing
 * to say, its last progress is repeated once a second: the client sees that the daemon lives, and a
 * client that has gone is noticed.
 *
 * Invariants: at most CONNECTIONS_MAX verbs at a time; a job holds one progress line, however slow
 * its client reads; a job is freed by the connection's thread only, after its worker has ended.
 *
 * Failure modes: no memory or thread for a job is answered with an error; a client that goes
 * cancels its verb, which undoes what it did if it can still be undone. */
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "control/control.h"

#define CONNECTIONS_MAX 64u
#define REQUEST_BYTES_MAX (1u << 20)
#define LOOK_MS 200u         /* how often a waiting connection looks whether its client is there */
#define HEARTBEAT_MS 1000u   /* the longest silence on a connection */
#define STOP_GRACE_MS 10000u /* for answers that their clients are slow to read */

struct gild_control_server {
    struct gild_store *store;
    const struct gild_control_doors *doors;
    char *directory;
    struct MHD_Daemon *http;
    atomic_bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t idle; /* jobs is 0 */
    unsigned jobs;       /* under lock */
};

struct job {
    struct gild_control_server *server;
    int client_fd;
    uid_t uid; /* of the process at its other end */
    char *request;
    size_t request_bytes;
    bool too_long;
    bool working; /* the worker is to be joined */
    pthread_t worker;
    atomic_bool cancelled;

    pthread_mutex_t lock;
    pthread_cond_t news;
    /* Under lock. */
    bool fresh; /* progress that was not sent */
    char what[64];
    uint64_t done, total;
    char *answer; /* the verb has ended */

    /* The connection's thread's. */
    char *line;
    size_t line_bytes, line_at;
    bool ended; /* the line is the last */
};

/* ---- the worker ------------------------------------------------------------------------------ */

static int note_progress(void *context, const char *what, uint64_t done, uint64_t total) {
    struct job *job = context;
    pthread_mutex_lock(&job->lock);
    snprintf(job->what, sizeof job->what, "%s", what ? what : "working");
    job->done = done;
    job->total = total;
    job->fresh = true;
    pthread_cond_signal(&job->news);
    pthread_mutex_unlock(&job->lock);
    return atomic_load(&job->cancelled) || atomic_load(&job->server->stopping);
}

static void *work(void *context) {
    struct job *job = context;
    struct gild_control_server *server = job->server;
    json_t *answer =
        control_run(server->store, server->doors, job->uid, job->request, note_progress, context);
    char *text = control_dump(answer);
    json_decref(answer);
    pthread_mutex_lock(&job->lock);
    job->answer = text ? text : strdup("");
    pthread_cond_signal(&job->news);
    pthread_mutex_unlock(&job->lock);
    return NULL;
}

/* ---- the answer's stream --------------------------------------------------------------------- */

static bool client_gone(const struct job *job) {
    struct pollfd look = {.fd = job->client_fd, .events = 0};
    return poll(&look, 1, 0) > 0 && (look.revents & (POLLHUP | POLLERR | POLLNVAL));
}

static void deadline_in(unsigned ms, struct timespec *at) {
    clock_gettime(CLOCK_MONOTONIC, at);
    at->tv_nsec += (long)ms * 1000000;
    at->tv_sec += at->tv_nsec / 1000000000;
    at->tv_nsec %= 1000000000;
}

/* Makes the next line. False: the client has gone, or there is no memory. */
static bool next_line(struct job *job) {
    json_t *progress = NULL;
    free(job->line);
    job->line = NULL;
    job->line_at = 0;
    pthread_mutex_lock(&job->lock);
    for (unsigned waited_ms = 0; !job->answer && !job->fresh && waited_ms < HEARTBEAT_MS;
         waited_ms += LOOK_MS) {
        struct timespec at;
        deadline_in(LOOK_MS, &at);
        pthread_cond_timedwait(&job->news, &job->lock, &at);
        if (client_gone(job)) {
            pthread_mutex_unlock(&job->lock);
            return false;
        }
    }
    job->ended = job->answer != NULL;
    if (!job->ended)
        progress =
            json_pack("{s:{s:o, s:I, s:I}}", "progress", "what", control_json_text(job->what),
                      "done", (json_int_t)job->done, "total", (json_int_t)job->total);
    job->fresh = false;
    pthread_mutex_unlock(&job->lock);
    int length = -1;
    char *text = job->ended ? NULL : control_dump(progress);
    if (job->ended)
        length = asprintf(&job->line, "{\"answer\": %s}\n", job->answer);
    else if (text)
        length = asprintf(&job->line, "%s\n", text);
    json_decref(progress);
    free(text);
    if (length < 0) {
        job->line = NULL;
        return false;
    }
    job->line_bytes = (size_t)length;
    return true;
}

static ssize_t next_bytes(void *context, uint64_t position, char *buffer, size_t room) {
    struct job *job = context;
    (void)position;
    if (!job->line || job->line_at == job->line_bytes) {
        if (job->ended)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (!next_line(job))
            return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t part = job->line_bytes - job->line_at;
    if (part > room)
        part = room;
    memcpy(buffer, job->line + job->line_at, part);
    job->line_at += part;
    return (ssize_t)part;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void monotonic_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static struct job *job_create(struct gild_control_server *server,
                              struct MHD_Connection *connection) {
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->server = server;
    job->client_fd =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    struct ucred peer;
    socklen_t peer_bytes = sizeof peer;
    job->uid = getsockopt(job->client_fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_bytes) == 0
                   ? peer.uid
                   : (uid_t)-1;
    strcpy(job->what, "working");
    pthread_mutex_init(&job->lock, NULL);
    monotonic_cond_init(&job->news);
    pthread_mutex_lock(&server->lock);
    server->jobs++;
    pthread_mutex_unlock(&server->lock);
    return job;
}

static void ended(void *context, struct MHD_Connection *connection, void **slot,
                  enum MHD_RequestTerminationCode why) {
    struct gild_control_server *server = context;
    struct job *job = *slot;
    (void)connection, (void)why;
    if (!job)
        return;
    *slot = NULL;
    atomic_store(&job->cancelled, true);
    if (job->working)
        pthread_join(job->worker, NULL);
    pthread_mutex_destroy(&job->lock);
    pthread_cond_destroy(&job->news);
    free(job->request);
    free(job->answer);
    free(job->line);
    free(job);
    pthread_mutex_lock(&server->lock);
    if (--server->jobs == 0)
        pthread_cond_broadcast(&server->idle);
    pthread_mutex_unlock(&server->lock);
}

static enum MHD_Result take_body(struct job *job, const char *data, size_t *bytes) {
    if (!job->too_long && *bytes <= REQUEST_BYTES_MAX - job->request_bytes) {
        char *grown = realloc(job->request, job->request_bytes + *bytes + 1);
        if (!grown)
            return MHD_NO;
        job->request = grown;
        memcpy(job->request + job->request_bytes, data, *bytes);
        job->request_bytes += *bytes;
        job->request[job->request_bytes] = 0;
    } else {
        job->too_long = true;
    }
    *bytes = 0;
    return MHD_YES;
}

static enum MHD_Result refuse(struct MHD_Connection *connection, unsigned status,
                              enum gild_code code, const char *sentence) {
    struct gild_error error = {0};
    gild_fail(&error, code, 0, "%s", sentence);
    json_t *answer = json_pack("{s:o}", "answer", control_error_json(&error));
    char *text = control_dump(answer);
    json_decref(answer);
    struct MHD_Response *response =
        text ? MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE) : NULL;
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", "application/json");
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_with(struct MHD_Connection *connection, struct job *job) {
    /* A NUL in the body would hide what follows it. */
    if (!job->request || strlen(job->request) != job->request_bytes)
        return refuse(connection, MHD_HTTP_BAD_REQUEST, GILD_USAGE,
                      "the request must be a JSON object, without NUL bytes");
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 32u << 10, next_bytes, job, NULL);
    if (!response)
        return MHD_NO;
    if (pthread_create(&job->worker, NULL, work, job) != 0) {
        MHD_destroy_response(response);
        return refuse(connection, MHD_HTTP_SERVICE_UNAVAILABLE, GILD_BUSY,
                      "the daemon can not start a thread for this request; try again later");
    }
    job->working = true;
    MHD_add_response_header(response, "Content-Type", "application/x-ndjson");
    enum MHD_Result result = MHD_queue_response(connection, MHD_HTTP_OK, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result take_request(void *context, struct MHD_Connection *connection,
                                    const char *path, const char *method, const char *version,
                                    const char *data, size_t *bytes, void **slot) {
    struct gild_control_server *server = context;
    struct job *job = *slot;
    (void)version;
    if (!job) {
        *slot = job_create(server, connection);
        return *slot ? MHD_YES : MHD_NO;
    }
    if (*bytes)
        return take_body(job, data, bytes);
    if (job->working) /* the answer is on its way */
        return MHD_YES;
    if (strcmp(path, CONTROL_RPC_PATH) != 0)
        return refuse(connection, MHD_HTTP_NOT_FOUND, GILD_NOT_FOUND,
                      "there is nothing at this path; POST requests to " CONTROL_RPC_PATH);
    if (strcmp(method, MHD_HTTP_METHOD_POST) != 0)
        return refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, GILD_USAGE,
                      "only POST is served at this path");
    if (job->too_long)
        return refuse(connection, MHD_HTTP_CONTENT_TOO_LARGE, GILD_USAGE,
                      "the request is longer than 1 MiB");
    return answer_with(connection, job);
}

/* ---- start and stop -------------------------------------------------------------------------- */

/* The store's lock is ours, so a socket that is there is a dead daemon's. */
static int listen_at(const char *directory, struct gild_error *error) {
    struct sockaddr_un address;
    int folder_fd;
    int result = control_socket_address(directory, &address, &folder_fd);
    int fd = result ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        unlink(address.sun_path);
        /* The mode of the socket before it is bound is the mode of its file (unix(7)). */
        if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&address, sizeof address) ||
            listen(fd, 128)) {
            result = -errno;
            close(fd);
            fd = -1;
        }
    } else if (!result) {
        result = -errno;
    }
    if (folder_fd >= 0)
        close(folder_fd);
    if (fd < 0)
        gild_fail(error, gild_code_of_errno(result), -result,
                  "the control socket %s/" CONTROL_SOCKET_NAME " can not be made: %s", directory,
                  strerror(-result));
    return fd;
}

static void remove_socket(const char *directory) {
    struct sockaddr_un address;
    int folder_fd;
    if (control_socket_address(directory, &address, &folder_fd) == 0)
        unlink(address.sun_path);
    if (folder_fd >= 0)
        close(folder_fd);
}

static void server_free(struct gild_control_server *server) {
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->idle);
    free(server->directory);
    free(server);
}

int gild_control_serve(struct gild_store *store, const struct gild_control_doors *served,
                       struct gild_control_server **out, struct gild_error *error) {
    struct gild_control_server *server = calloc(1, sizeof *server);
    if (!server)
        return gild_fail(error, GILD_FAILED, ENOMEM, "there is no memory for the control socket");
    server->store = store;
    server->doors = served;
    server->directory = strdup(gild_store_directory(store));
    pthread_mutex_init(&server->lock, NULL);
    monotonic_cond_init(&server->idle);
    int fd = server->directory ? listen_at(server->directory, error)
                               : gild_fail(error, GILD_FAILED, ENOMEM,
                                           "there is no memory for the control socket");
    if (fd < 0) {
        server_free(server);
        return fd;
    }
    server->http =
        MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
                             MHD_USE_POLL | MHD_USE_ITC,
                         0, NULL, NULL, take_request, server, MHD_OPTION_LISTEN_SOCKET, fd,
                         MHD_OPTION_NOTIFY_COMPLETED, ended, server, MHD_OPTION_CONNECTION_LIMIT,
                         CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_END);
    if (!server->http) {
        remove_socket(server->directory);
        server_free(server);
        return gild_fail(error, GILD_FAILED, EIO,
                         "the control socket of store %s can not be served",
                         gild_store_directory(store));
    }
    *out = server;
    return 0;
}

void gild_control_stop(struct gild_control_server *server) {
    atomic_store(&server->stopping, true);
    remove_socket(server->directory);
    int fd = MHD_quiesce_daemon(server->http);
    struct timespec until;
    deadline_in(STOP_GRACE_MS, &until);
    pthread_mutex_lock(&server->lock);
    if (server->jobs)
        gild_log(GILD_LOG_INFO, "waiting for %u requests to end", server->jobs);
    while (server->jobs && pthread_cond_timedwait(&server->idle, &server->lock, &until) == 0)
        continue;
    pthread_mutex_unlock(&server->lock);
    /* Cuts connections that are left, then joins their threads, and these their workers. */
    MHD_stop_daemon(server->http);
    if (fd >= 0)
        close(fd);
    server_free(server);
}
