/* The command line (command.h): getopt_long three times over, for what stands before the noun,
 * between noun and verb, and behind the verb, so that options are taken in any position. One
 * thread. */
#include "tools/gild/command.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Values that getopt_long returns for long options. */
enum { LONG_GLOBAL = 256, LONG_VERB = 512, LONG_DRY_RUN = 768, LONG_MAN, LONG_COMPLETION };

#define LONGS_MAX 20

struct parser {
    struct command *command;
    char *sentence;
    struct option longs[LONGS_MAX];
    char shorts[24];
};

static bool wrong(struct parser *parser, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool wrong(struct parser *parser, const char *format, ...) {
    const struct command *command = parser->command;
    char text[SENTENCE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(parser->sentence, SENTENCE_BYTES, "%s; see `gild%s%s%s%s --help`", text,
             command->noun ? " " : "", command->noun ? command->noun->name : "",
             command->verb && !command->verb->alone ? " " : "",
             command->verb && !command->verb->alone ? command->verb->name : "");
    return false;
}

static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = words; *at; at += strspn(at, " ")) {
        size_t part = strcspn(at, " ");
        if (part == length && memcmp(at, word, length) == 0)
            return true;
        at += part;
    }
    return false;
}

/* ---- values ---------------------------------------------------------------------------------- */

/* The text as JSON; a path is made absolute, since the daemon stands in another folder. */
static json_t *source_json(const char *text) {
    char folder[PATH_MAX], path[2 * PATH_MAX];
    if (strstr(text, "://") || *text == '/' || !*text || !getcwd(folder, sizeof folder))
        return json_string(text);
    snprintf(path, sizeof path, "%s/%s", folder, text);
    return json_string(path);
}

static bool set_value(struct parser *parser, const char *name, const char *key,
                      enum value_type type, const char *choices, const char *text) {
    json_t *value = NULL;
    char *end;
    if (json_object_get(parser->command->args, key))
        return wrong(parser, "%s is given twice", name);
    switch (type) {
    case VALUE_SETTINGS: /* taken by take_settings */
        break;
    case VALUE_FLAG:
        value = json_true();
        break;
    case VALUE_COUNT:
        errno = 0;
        long long count = strtoll(text, &end, 10);
        if (*text < '0' || *text > '9' || *end || errno)
            return wrong(parser, "%s must be a whole number, not '%.60s'", name, text);
        value = json_integer(count);
        break;
    case VALUE_CHOICE:
        if (!has_word(choices, text))
            return wrong(parser, "%s must be one of %s, not '%.60s'", name, choices, text);
        value = json_string(text);
        break;
    case VALUE_SOURCE:
        value = source_json(text);
        break;
    case VALUE_TEXT:
    case VALUE_SIZE:
        value = json_string(text);
        break;
    }
    if (!value)
        return wrong(parser, "%s is not UTF-8 text", name);
    json_object_set_new(parser->command->args, key, value);
    return true;
}

static bool set_global(struct parser *parser, const struct global_option *option,
                       const char *text) {
    struct command *command = parser->command;
    if (option->choices && !has_word(option->choices, text))
        return wrong(parser, "--%s must be one of %s, not '%.60s'", option->name, option->choices,
                     text);
    if (strcmp(option->name, "store") == 0)
        command->store = text;
    else if (strcmp(option->name, "output") == 0)
        command->json = strcmp(text, "json") == 0;
    else if (strcmp(option->name, "no-headings") == 0)
        command->bare = true;
    else if (strcmp(option->name, "yes") == 0)
        command->yes = true;
    else if (strcmp(option->name, "help") == 0)
        command->help = true;
    else if (strcmp(option->name, "version") == 0)
        command->version = true;
    return true;
}

/* ---- options --------------------------------------------------------------------------------- */

static void add_long(struct parser *parser, size_t *count, const char *name, bool value, int code) {
    if (*count + 1 < LONGS_MAX)
        parser->longs[(*count)++] =
            (struct option){name, value ? required_argument : no_argument, NULL, code};
}

static void fill_options(struct parser *parser) {
    const struct verb *verb = parser->command->verb;
    size_t count = 0, used = 0;
    memset(parser->longs, 0, sizeof parser->longs);
    if (!verb) /* stop at the noun, then at the verb */
        parser->shorts[used++] = '+';
    parser->shorts[used++] = ':';
    for (int i = 0; global_options[i].name; i++) {
        const struct global_option *option = &global_options[i];
        add_long(parser, &count, option->name, option->metavar, LONG_GLOBAL + i);
        if (!option->short_name)
            continue;
        parser->shorts[used++] = option->short_name;
        if (option->metavar)
            parser->shorts[used++] = ':';
    }
    parser->shorts[used] = 0;
    if (!parser->command->noun) {
        add_long(parser, &count, "man", false, LONG_MAN);
        add_long(parser, &count, "completion", false, LONG_COMPLETION);
    }
    for (int i = 0; verb && i < OPTIONS_MAX && verb->options[i].name; i++)
        add_long(parser, &count, verb->options[i].name, verb->options[i].type != VALUE_FLAG,
                 LONG_VERB + i);
    if (verb && verb->destroys)
        add_long(parser, &count, "dry-run", false, LONG_DRY_RUN);
}

static bool take_option(struct parser *parser, int code, char **argv) {
    struct command *command = parser->command;
    char name[80];
    if (code == ':')
        return wrong(parser, "%.60s needs a value", argv[optind - 1]);
    if (code == '?' && optopt > 0 && optopt < 256)
        return wrong(parser, "there is no option -%c", optopt);
    if (code == '?')
        return wrong(parser, "there is no option %.60s, or not with such a value",
                     argv[optind - 1]);
    if (code == LONG_MAN)
        command->man = true;
    else if (code == LONG_COMPLETION)
        command->completion = true;
    else if (code == LONG_DRY_RUN)
        command->dry_run = true;
    if (code >= LONG_DRY_RUN)
        return true;
    if (code >= LONG_VERB) {
        const struct verb_option *option = &command->verb->options[code - LONG_VERB];
        snprintf(name, sizeof name, "--%s", option->name);
        return set_value(parser, name, option->key, option->type, option->choices, optarg);
    }
    for (int i = 0; global_options[i].name; i++)
        if (code == LONG_GLOBAL + i || code == global_options[i].short_name)
            return set_global(parser, &global_options[i], optarg);
    return true;
}

/* Takes options from argv[1] on; *next is the first argument that is none. */
static bool take_options(struct parser *parser, int argc, char **argv, int *next) {
    int code;
    fill_options(parser);
    optind = 0; /* glibc: begin anew */
    opterr = 0;
    while ((code = getopt_long(argc, argv, parser->shorts, parser->longs, NULL)) != -1)
        if (!take_option(parser, code, argv))
            return false;
    *next = optind;
    return true;
}

/* ---- noun, verb, arguments ------------------------------------------------------------------- */

static bool take_settings(struct parser *parser, const char *key, int argc, char **argv) {
    json_t *settings = json_object();
    json_object_set_new(parser->command->args, key, settings);
    for (int i = 0; i < argc; i++) {
        char name[64];
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : 0;
        if (!length || length >= sizeof name)
            return wrong(parser, "'%.60s' is no KEY=VALUE", argv[i]);
        memcpy(name, argv[i], length);
        name[length] = 0;
        if (json_object_get(settings, name))
            return wrong(parser, "%s is given twice", name);
        if (json_object_set_new(settings, name, json_string(equals + 1)))
            return wrong(parser, "%s is not UTF-8 text", name);
    }
    return true;
}

static bool take_arguments(struct parser *parser, int argc, char **argv) {
    const struct verb *verb = parser->command->verb;
    char words[VERB_WORDS_BYTES];
    int at = 0;
    verb_words(verb, words);
    for (int i = 0; i < ARGUMENTS_MAX && verb->arguments[i].metavar; i++) {
        const struct argument *argument = &verb->arguments[i];
        if (at == argc && !argument->optional)
            return wrong(parser, "%s: %s is missing", words, argument->metavar);
        if (argument->type == VALUE_SETTINGS)
            return take_settings(parser, argument->key, argc - at, argv + at);
        if (at < argc &&
            !set_value(parser, argument->metavar, argument->key, argument->type, NULL, argv[at++]))
            return false;
    }
    if (at < argc)
        return wrong(parser, "%s: '%.60s' is one argument too many", words, argv[at]);
    for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++)
        if (verb->options[i].required &&
            !json_object_get(parser->command->args, verb->options[i].key))
            return wrong(parser, "%s: --%s is missing", words, verb->options[i].name);
    return true;
}

static bool done_early(const struct command *command) {
    return command->help || command->version || command->man || command->completion;
}

static bool parse(struct parser *parser, int argc, char **argv) {
    struct command *command = parser->command;
    int next;
    if (!take_options(parser, argc, argv, &next))
        return false;
    if (next == argc)
        return done_early(command) || wrong(parser, "a noun and a verb are missing");
    command->noun = find_noun(argv[next]);
    if (!command->noun)
        return wrong(parser, "there is no noun '%.60s'", argv[next]);
    argc -= next;
    argv += next;
    command->verb = find_lone_verb(command->noun->name);
    if (!take_options(parser, argc, argv, &next))
        return false;
    if (command->verb)
        return done_early(command) || take_arguments(parser, argc - next, argv + next);
    if (next == argc)
        return done_early(command) || wrong(parser, "%s: a verb is missing", command->noun->name);
    command->verb = find_verb(command->noun->name, argv[next]);
    if (!command->verb)
        return wrong(parser, "there is no verb '%.60s' of %s", argv[next], command->noun->name);
    argc -= next;
    argv += next;
    if (!take_options(parser, argc, argv, &next))
        return false;
    return done_early(command) || take_arguments(parser, argc - next, argv + next);
}

/* Whether errors are wanted as JSON must be known before the first of them. */
static bool wants_json(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "-ojson") == 0 || strcmp(argv[i], "--output=json") == 0 ||
            ((strcmp(argv[i], "-o") == 0 || strcmp(argv[i], "--output") == 0) &&
             strcmp(value, "json") == 0))
            return true;
    }
    return false;
}

bool command_parse(struct command *out, int argc, char **argv, char sentence[SENTENCE_BYTES]) {
    struct parser parser = {.command = out, .sentence = sentence};
    const char *store = getenv("GILD_STORE");
    *out = (struct command){.store = store && *store ? store : NULL,
                            .json = wants_json(argc, argv),
                            .args = json_object()};
    if (!parse(&parser, argc, argv))
        return false;
    if (!done_early(out) && (!out->store || !*out->store)) {
        snprintf(sentence, SENTENCE_BYTES,
                 "which store is meant? Give --store DIR, or set GILD_STORE");
        return false;
    }
    if (out->dry_run)
        json_object_set_new(out->args, "dry_run", json_true());
    return true;
}
