/* The client's side of the control door: to the daemon if one answers, else in this process
 * (gild/control.h).
 *
 *   connect --ok--> POST --lines--> progress ..., answer
 *      `---nobody listens---> open the store --ok--> run the verb --> close
 *                                 `---held---> connect again, for a while
 *
 * Whether nobody listens or something failed later, when the daemon may already have done what was
 * asked, is told apart by CURLE_COULDNT_CONNECT and the errno behind it.
 *
 * Thread: the caller's; no state is kept. Failure modes: a daemon that is silent for SILENCE_S is
 * given up (GILD_BUSY); a wish to stop closes the connection, and the daemon undoes the verb. */
#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "control/control.h"

#define SILENCE_S 20L
#define HELD_TRIES 15u
#define HELD_PAUSE_NS 200000000L

struct call {
    const char *directory;
    gild_control_progress *progress;
    void *context;
    bool cancelled;
    char what[64];
    uint64_t done, total;
    char *line; /* what came of the line in hand */
    size_t line_bytes, line_room;
    json_t *answer;
};

/* ---- what comes back ------------------------------------------------------------------------- */

static int tell_progress(struct call *call) {
    if (call->progress && call->progress(call->context, call->what, call->done, call->total))
        call->cancelled = true;
    return call->cancelled;
}

/* 0, or not to end the transfer. */
static int take_line(struct call *call) {
    json_t *line = json_loadb(call->line, call->line_bytes, 0, NULL);
    json_t *progress = json_object_get(line, "progress");
    json_t *answer = json_object_get(line, "answer");
    int result = 0;
    if (answer) {
        json_decref(call->answer);
        call->answer = json_incref(answer);
    } else if (progress) {
        const char *what = json_string_value(json_object_get(progress, "what"));
        strncpy(call->what, what ? what : "", sizeof call->what - 1);
        call->done = (uint64_t)json_integer_value(json_object_get(progress, "done"));
        call->total = (uint64_t)json_integer_value(json_object_get(progress, "total"));
        result = tell_progress(call);
    }
    json_decref(line);
    return result;
}

static bool keep_bytes(struct call *call, const char *data, size_t bytes) {
    size_t wanted = call->line_bytes + bytes;
    if (wanted > call->line_room) {
        size_t room = wanted + wanted / 2 + 256;
        char *grown = realloc(call->line, room);
        if (!grown)
            return false;
        call->line = grown;
        call->line_room = room;
    }
    memcpy(call->line + call->line_bytes, data, bytes);
    call->line_bytes = wanted;
    return true;
}

static size_t take_bytes(char *data, size_t size, size_t count, void *context) {
    struct call *call = context;
    size_t left = size * count;
    while (left) {
        char *end = memchr(data, '\n', left);
        size_t part = end ? (size_t)(end - data) : left;
        if (!keep_bytes(call, data, part))
            return 0;
        if (end) {
            part++;
            if (take_line(call))
                return 0;
            call->line_bytes = 0;
        }
        data += part;
        left -= part;
    }
    return size * count;
}

/* libcurl asks now and then, and after a signal: the time to notice that the caller wants out. */
static int look_up(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
    (void)a, (void)b, (void)c, (void)d;
    return tell_progress(context);
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static CURLcode post(CURL *curl, struct call *call, const char *socket_path, const char *request) {
    curl_easy_setopt(curl, CURLOPT_URL, "http://gild" CONTROL_RPC_PATH);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket_path);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, call);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, look_up);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, call);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, SILENCE_S);
    return curl_easy_perform(curl);
}

static void no_answer(const struct call *call, CURLcode code, struct gild_error *error) {
    const char *directory = call->directory;
    if (call->cancelled)
        gild_fail(error, GILD_FAILED, ECANCELED,
                  "stopped as asked; the daemon of store %s undoes what it had begun", directory);
    else if (code == CURLE_OPERATION_TIMEDOUT)
        gild_fail(error, GILD_BUSY, ETIMEDOUT,
                  "the daemon of store %s holds it but does not answer; see its log, or restart it",
                  directory);
    else
        gild_fail(error, GILD_FAILED, ECONNRESET,
                  "the daemon of store %s ended before it answered (%s); `gild store info` tells "
                  "whether the request was done",
                  directory, curl_easy_strerror(code));
}

/* Asks the daemon. 0: there is an answer, or *error. Else -errno: nobody was there to be asked. */
static int ask(struct call *call, const char *request, struct gild_error *error) {
    struct sockaddr_un address;
    int folder_fd;
    int result = control_socket_address(call->directory, &address, &folder_fd);
    if (result)
        return result;
    CURL *curl = curl_easy_init();
    if (!curl) {
        gild_fail(error, GILD_FAILED, ENOMEM, "there is no memory to ask the daemon");
    } else {
        CURLcode code = post(curl, call, address.sun_path, request);
        if (!call->answer && call->line_bytes) /* an answer that came without its line's end */
            take_line(call);
        long os_error = 0;
        if (code == CURLE_COULDNT_CONNECT)
            curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &os_error);
        if (os_error)
            result = -(int)os_error;
        else if (!call->answer)
            no_answer(call, code, error);
        curl_easy_cleanup(curl);
    }
    if (folder_fd >= 0)
        close(folder_fd);
    free(call->line);
    call->line = NULL;
    return result;
}

/* ---- in this process ------------------------------------------------------------------------- */

static json_t *run_here(struct gild_store *store, struct call *call, const char *request,
                        struct gild_error *error) {
    json_t *answer = control_run(store, NULL, getuid(), request, call->progress, call->context);
    if (gild_store_close(store, error) == 0 || control_answer_code(answer) != GILD_OK)
        return answer;
    json_decref(answer);
    return NULL;
}

static json_t *call_store(struct call *call, const char *request, struct gild_error *error) {
    const struct gild_store_options options = {.offline = true};
    const struct timespec pause = {.tv_nsec = HELD_PAUSE_NS};
    struct gild_store *store;
    for (unsigned tries = 0;; tries++) {
        int result = ask(call, request, error);
        if (result == 0)
            return call->answer;
        if (result == -EACCES || result == -EPERM) {
            gild_fail(error, GILD_FAILED, -result,
                      "store %s can not be reached: %s; run as the user who owns it",
                      call->directory, strerror(-result));
            return NULL;
        }
        if (gild_store_open(call->directory, &options, &store, error) == 0)
            return run_here(store, call, request, error);
        /* A daemon that starts or stops, or another command, holds it for a moment. */
        if (error->code != GILD_BUSY || tries == HELD_TRIES || tell_progress(call))
            break;
        nanosleep(&pause, NULL);
    }
    if (error->code == GILD_BUSY)
        gild_fail(error, GILD_BUSY, EBUSY,
                  "store %s is held by a process that does not answer; wait until it ends, or "
                  "start the daemon anew",
                  call->directory);
    return NULL;
}

/* Verbs that are done here, with no store open and no daemon. */
static bool is_offline(const struct control_request *request, const char *verb) {
    return strcmp(request->noun, "store") == 0 && strcmp(request->verb, verb) == 0;
}

enum gild_code gild_control_call(const char *directory, const char *request,
                                 gild_control_progress *progress, void *context, char **answer) {
    struct call call = {
        .directory = directory, .progress = progress, .context = context, .what = "waiting"};
    struct gild_error error = {0};
    struct control_request parsed;
    json_t *json = NULL;
    if (control_request_parse(&parsed, request, &error) == 0) {
        if (is_offline(&parsed, "init"))
            json = control_store_init(directory, parsed.args, &error);
        else if (is_offline(&parsed, "check") &&
                 json_is_true(json_object_get(parsed.args, "repair")))
            json = control_check_repair(directory, parsed.args, &error);
        else
            json = call_store(&call, request, &error);
    }
    control_request_fini(&parsed);
    if (!json)
        json = control_error_json(&error);
    enum gild_code code = control_answer_code(json);
    *answer = control_dump(json);
    json_decref(json);
    return code;
}
