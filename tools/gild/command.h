/* A command line, taken apart with the table of verbs.h. */
#ifndef GILD_TOOL_COMMAND_H
#define GILD_TOOL_COMMAND_H

#include <jansson.h>
#include <stdbool.h>

#include "tools/gild/verbs.h"

#define SENTENCE_BYTES 600

struct command {
    const char *store; /* NULL: neither --store nor GILD_STORE */
    bool json, bare, yes, dry_run;
    bool help, version, man, completion;
    const struct noun *noun; /* NULL: none was given (help only) */
    const struct verb *verb; /* as above */
    json_t *args;            /* of the request; the command's */
};

/* False: wrong usage, and the sentence says what. The caller frees the args in any case. */
bool command_parse(struct command *out, int argc, char **argv, char sentence[SENTENCE_BYTES]);

/* Help on the command's noun and verb, or on all. */
void help_print(const struct noun *noun, const struct verb *verb);
/* gild(1), and the completion for bash. */
void man_print(void);
void completion_print(void);

/* "1.5G", as the engine writes sizes. Returns text. */
char *size_text(long long bytes, char text[32]);

/* An answer as text on stdout. */
void answer_print(const struct command *command, json_t *answer);
/* What a destroying verb freed, or would free. */
void freed_print(json_t *answer, const char *began);

#endif
