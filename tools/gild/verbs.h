/* The one table of nouns and verbs. Parsing, help, man page, completion and output are made from
 * it, so that they can not disagree. Constants only. */
#ifndef GILD_TOOL_VERBS_H
#define GILD_TOOL_VERBS_H

#include <stdbool.h>
#include <stddef.h>

enum value_type {
    VALUE_TEXT,
    VALUE_SOURCE, /* a path, made absolute, or a URI */
    VALUE_SIZE,   /* the daemon reads it */
    VALUE_COUNT,  /* a whole number */
    VALUE_FLAG,   /* no value */
    VALUE_CHOICE,
    VALUE_SETTINGS, /* an argument: this one and all behind it are KEY=VALUE */
};

/* A positional argument. */
struct argument {
    const char *metavar; /* NULL ends the list */
    const char *key;     /* in the request's args */
    enum value_type type;
    bool optional;
    const char *help;
};

struct verb_option {
    const char *name; /* without the dashes; NULL ends the list */
    const char *key;
    const char *metavar;
    enum value_type type;
    const char *choices; /* VALUE_CHOICE: "nbd fuse" */
    bool required;
    const char *help;
};

enum column_kind { COLUMN_TEXT, COLUMN_SIZE, COLUMN_NUMBER, COLUMN_BOOL };

struct column {
    const char *heading; /* NULL ends the list */
    const char *key;     /* in the answer */
    enum column_kind kind;
};

enum shape {
    SHAPE_LIST,   /* an array of records: a table */
    SHAPE_RECORD, /* one record: a line for each column */
    SHAPE_TEXT,   /* the answer's member `text`, as it is */
    SHAPE_NAMES,  /* the answer's member `text`, an array of names, one a line */
    SHAPE_FREED,  /* what a destroying verb freed */
    SHAPE_FOLLOW, /* as a list; with --follow each record as it comes */
    SHAPE_CHECK,  /* findings, or what was repaired and lost */
};

#define ARGUMENTS_MAX 3
#define OPTIONS_MAX 5

struct verb {
    const char *noun, *name; /* noun NULL ends the table */
    struct argument arguments[ARGUMENTS_MAX];
    struct verb_option options[OPTIONS_MAX];
    const char *summary;       /* one line, without a full stop */
    const char *text;          /* the long help; NULL: none */
    bool alone;                /* the only one of its noun, and not typed */
    bool destroys;             /* has --dry-run, asks or needs --yes */
    const char *destroys_with; /* only with this flag among the args; NULL: always */
    enum shape shape;
    const char *member;           /* SHAPE_TEXT, SHAPE_NAMES */
    const struct column *columns; /* SHAPE_LIST, SHAPE_RECORD */
    /* SHAPE_RECORD: of an answer that is a list all the same. NULL: it never is */
    const struct column *list_columns;
};

struct noun {
    const char *name; /* NULL ends the table */
    const char *summary;
};

extern const struct noun nouns[];
extern const struct verb verbs[];

/* What every verb takes. Terminated like a verb's options; a short form of 0 is none. */
struct global_option {
    const char *name;
    char short_name;
    const char *metavar; /* NULL: a flag */
    const char *choices;
    const char *help;
};
extern const struct global_option global_options[];

/* The exit codes, by number, "" at the end. */
extern const char *const exit_codes[];

const struct noun *find_noun(const char *name);
const struct verb *find_verb(const char *noun, const char *name);
/* The noun's verb that is not typed, or NULL. */
const struct verb *find_lone_verb(const char *noun);
/* As they are typed: "image list", "space". */
#define VERB_WORDS_BYTES 64u
const char *verb_words(const struct verb *verb, char text[VERB_WORDS_BYTES]);

#endif
