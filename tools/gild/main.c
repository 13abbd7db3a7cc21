/* gild, the admin's tool: a command line to one request, the answer to text or JSON.
 *
 * What destroys is asked for twice: on a terminal the person confirms what a dry run said,
 * elsewhere
 * --yes must be there. SIGINT and SIGTERM ask the verb to stop; it undoes what it did.
 *
 * Exit: the codes of enum gild_code. The error is a sentence on stderr and, where JSON is wanted,
 * the answer's error on stdout too. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gild/control.h"
#include "tools/gild/command.h"

#define BAR_CELLS 30
#define BAR_STEP_NS 100000000ull

/* ---- progress -------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_wanted;

static void want_stop(int signal) {
    (void)signal;
    stop_wanted = 1;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = want_stop, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

struct bar {
    bool on, drawn;
    unsigned long long began_ns, drawn_ns;
};

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000000000ull + (unsigned long long)now.tv_nsec;
}

static int note_progress(void *context, const char *what, uint64_t done, uint64_t total) {
    struct bar *bar = context;
    char done_text[32], total_text[32], rate_text[32], cells[BAR_CELLS + 1];
    unsigned long long now = now_ns();
    if (!bar->on || !total || done > total ||
        (bar->drawn && done < total && now - bar->drawn_ns < BAR_STEP_NS))
        return stop_wanted;
    double part = (double)done / (double)total;
    size_t full = (size_t)(part * BAR_CELLS);
    memset(cells, ' ', BAR_CELLS);
    memset(cells, '#', full);
    cells[BAR_CELLS] = 0;
    double seconds = (double)(now - bar->began_ns) / 1e9;
    fprintf(stderr, "\r%s [%s] %3d%% of %s, %s, %s/s\033[K", what, cells, (int)(part * 100),
            size_text((long long)total, total_text), size_text((long long)done, done_text),
            size_text(seconds > 0.1 ? (long long)((double)done / seconds) : 0, rate_text));
    bar->drawn = true;
    bar->drawn_ns = now;
    return stop_wanted;
}

/* ---- a request ------------------------------------------------------------------------------- */

static enum gild_code fail(const struct command *command, enum gild_code code,
                           const char *sentence) {
    if (command->json) {
        json_t *error =
            json_pack("{s:{s:s, s:s}}", "error", "code", gild_code_name(code), "message", sentence);
        if (error && json_dumpf(error, stdout, JSON_COMPACT) == 0)
            putchar('\n');
        json_decref(error);
    }
    fprintf(stderr, "gild: %s\n", sentence);
    return code;
}

/* *answer: the answer's JSON, to be freed; *text: as it came. */
static enum gild_code ask(const struct command *command, json_t *args, json_t **answer,
                          char **text) {
    struct bar bar = {.on = isatty(STDERR_FILENO), .began_ns = now_ns()};
    enum gild_code code = GILD_FAILED;
    json_t *request = json_pack("{s:s, s:s, s:O}", "noun", command->verb->noun, "verb",
                                command->verb->name, "args", args);
    char *line = request ? json_dumps(request, JSON_COMPACT) : NULL;
    *answer = NULL;
    *text = NULL;
    if (line)
        code = gild_control_call(command->store, line, note_progress, &bar, text);
    if (bar.drawn)
        fputs("\r\033[K", stderr);
    if (*text)
        *answer = json_loads(*text, JSON_DECODE_ANY, NULL);
    free(line);
    json_decref(request);
    return code;
}

static void complain(json_t *answer) {
    json_t *error = json_object_get(answer, "error");
    const char *sentence = json_string_value(json_object_get(error, "message"));
    fprintf(stderr, "gild: %s\n", sentence ? sentence : "there is no answer");
}

/* A check, or a repair: what it found is told whatever the outcome. */
static bool is_check(json_t *answer) {
    return json_object_get(answer, "findings") || json_object_get(answer, "repaired");
}

static enum gild_code run(const struct command *command) {
    json_t *answer;
    char *text;
    enum gild_code code = ask(command, command->args, &answer, &text);
    bool has_facts = code == GILD_OK || command->verb->shape == SHAPE_CHECK;
    if (command->json && text)
        puts(text);
    else if (answer && has_facts && (code == GILD_OK || is_check(answer)))
        answer_print(command, answer);
    if (code != GILD_OK)
        complain(answer);
    json_decref(answer);
    free(text);
    return code;
}

/* ---- what goes on ---------------------------------------------------------------------------- */

static void print_events(const struct command *command, json_t *events) {
    json_t *event;
    size_t index;
    if (!command->json) {
        answer_print(command, events);
        return;
    }
    json_array_foreach(events, index, event) {
        json_dumpf(event, stdout, JSON_COMPACT);
        putchar('\n');
    }
}

/* Asks again and again for what came after what is known, and the daemon answers when there is
 * something. An interrupt is how it ends. */
static enum gild_code run_following(struct command *command) {
    long long after = 0;
    command->bare = !command->json; /* rows that come one by one have no widths */
    for (;;) {
        json_t *answer;
        char *text;
        enum gild_code code = ask(command, command->args, &answer, &text);
        size_t count = json_array_size(answer);
        if (code == GILD_OK)
            print_events(command, answer);
        else if (!stop_wanted)
            complain(answer);
        if (count)
            after =
                json_integer_value(json_object_get(json_array_get(answer, count - 1), "sequence"));
        json_decref(answer);
        free(text);
        if (stop_wanted || code != GILD_OK)
            return stop_wanted ? GILD_OK : code;
        if (fflush(stdout)) /* nobody reads any more */
            return GILD_OK;
        json_object_del(command->args, "since");
        json_object_set_new(command->args, "after", json_integer(after));
    }
}

/* ---- what destroys --------------------------------------------------------------------------- */

/* Shows what would go and asks. GILD_OK: the person agrees. */
static enum gild_code confirm(const struct command *command) {
    json_t *args = json_copy(command->args), *answer;
    char *text, reply[16] = "";
    json_object_set_new(args, "dry_run", json_true());
    enum gild_code code = ask(command, args, &answer, &text);
    bool check = is_check(answer);
    if (code != GILD_OK && !check) {
        if (command->json && text)
            puts(text);
        complain(answer);
    } else {
        /* To the terminal, wherever stdout goes. */
        fflush(stdout);
        int saved = dup(STDOUT_FILENO);
        dup2(STDERR_FILENO, STDOUT_FILENO);
        code = GILD_OK;
        if (check)
            answer_print(command, answer);
        else
            freed_print(answer, "This deletes");
        fputs("Go on? [y/N] ", stdout);
        fflush(stdout);
        dup2(saved, STDOUT_FILENO);
        close(saved);
        if (!fgets(reply, sizeof reply, stdin) || (reply[0] != 'y' && reply[0] != 'Y'))
            code =
                fail(command, GILD_FAILED, check ? "nothing was changed" : "nothing was deleted");
    }
    json_decref(answer);
    json_decref(args);
    free(text);
    return code;
}

static enum gild_code run_destroying(const struct command *command) {
    char sentence[SENTENCE_BYTES], words[VERB_WORDS_BYTES];
    if (command->yes || command->dry_run)
        return run(command);
    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO)) {
        const char *with = command->verb->destroys_with;
        snprintf(sentence, sizeof sentence,
                 "%s%s%s destroys data: give --yes to do it, or --dry-run to see what would go",
                 verb_words(command->verb, words), with ? " --" : "", with ? with : "");
        return fail(command, GILD_USAGE, sentence);
    }
    enum gild_code code = confirm(command);
    return code == GILD_OK ? run(command) : code;
}

static bool destroys(const struct command *command) {
    const char *with = command->verb->destroys_with;
    return command->verb->destroys && (!with || json_object_get(command->args, with));
}

static bool follows(const struct command *command) {
    return command->verb->shape == SHAPE_FOLLOW && json_object_get(command->args, "follow");
}

static enum gild_code perform(struct command *command) {
    if (command->man)
        man_print();
    else if (command->completion)
        completion_print();
    else if (command->version)
        puts("gild " GILD_VERSION);
    else if (command->help)
        help_print(command->noun, command->verb);
    else
        return follows(command)    ? run_following(command)
               : destroys(command) ? run_destroying(command)
                                   : run(command);
    return GILD_OK;
}

int main(int argc, char **argv) {
    struct command command;
    char sentence[SENTENCE_BYTES];
    setlocale(LC_CTYPE, "");
    setenv("GILD_LOG", "warn", 0); /* what an opened store says in passing is for daemons */
    catch_signals();
    enum gild_code code = command_parse(&command, argc, argv, sentence)
                              ? perform(&command)
                              : fail(&command, GILD_USAGE, sentence);
    json_decref(command.args);
    if ((fflush(stdout) || ferror(stdout)) && code == GILD_OK) {
        fprintf(stderr, "gild: the answer can not be written: %s\n", strerror(errno));
        code = GILD_FAILED;
    }
    return (int)code;
}
