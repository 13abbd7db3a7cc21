/* Help, the man page and bash completion, all from the table of verbs.h. One thread. */
#include <stdio.h>
#include <string.h>

#include "tools/gild/command.h"

#define LEFT_COLUMN 28

/* "NAME SOURCE [--format F] [--allow-backing]" */
static void synopsis(const struct verb *verb, char *out, size_t room) {
    size_t used = 0;
    out[0] = 0;
#define ADD(...) used += (size_t)snprintf(out + used, used < room ? room - used : 0, __VA_ARGS__)
    for (int i = 0; i < ARGUMENTS_MAX && verb->arguments[i].metavar; i++)
        ADD(verb->arguments[i].optional ? " [%s]" : " %s", verb->arguments[i].metavar);
    for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++) {
        const struct verb_option *option = &verb->options[i];
        ADD("%s--%s%s%s%s", option->required ? " " : " [", option->name, option->metavar ? " " : "",
            option->metavar ? option->metavar : "", option->required ? "" : "]");
    }
    if (verb->destroys)
        ADD(" [--dry-run]");
#undef ADD
}

static void entry(const char *left, const char *right) {
    if (strlen(left) < LEFT_COLUMN - 3)
        printf("  %-*s %s\n", LEFT_COLUMN - 3, left, right);
    else
        printf("  %s\n  %-*s %s\n", left, LEFT_COLUMN - 3, "", right);
}

/* Words of the text, at most `width` characters a line. */
static void wrapped(const char *text, size_t width) {
    size_t used = 0;
    for (const char *at = text; *at; at += strspn(at, " ")) {
        size_t part = strcspn(at, " ");
        if (used && used + 1 + part > width) {
            putchar('\n');
            used = 0;
        }
        printf("%s%.*s", used ? " " : "", (int)part, at);
        used += part + (used != 0);
        at += part;
    }
    putchar('\n');
}

/* "--name METAVAR" and its help, with the choices behind it. */
static void option_entry(char short_name, const char *name, const char *metavar,
                         const char *choices, const char *help) {
    char left[80], right[400], dash[8] = "";
    if (short_name)
        snprintf(dash, sizeof dash, "-%c, ", short_name);
    snprintf(left, sizeof left, "%s--%s%s%s", dash, name, metavar ? " " : "",
             metavar ? metavar : "");
    snprintf(right, sizeof right, "%s%s%s%s", help, choices ? " (" : "", choices ? choices : "",
             choices ? ")" : "");
    entry(left, right);
}

static void globals_help(void) {
    puts("\nOptions of every command:");
    for (const struct global_option *option = global_options; option->name; option++)
        option_entry(option->short_name, option->name, option->metavar, option->choices,
                     option->help);
}

static void verb_help(const struct verb *verb) {
    char line[512], words[VERB_WORDS_BYTES];
    synopsis(verb, line, sizeof line);
    verb_words(verb, words);
    printf("Usage: gild [OPTIONS] %s%s\n\n", words, line);
    snprintf(line, sizeof line, "%s: %s.", words, verb->summary);
    wrapped(line, 80);
    if (verb->text) {
        putchar('\n');
        wrapped(verb->text, 80);
    }
    putchar('\n');
    for (int i = 0; i < ARGUMENTS_MAX && verb->arguments[i].metavar; i++)
        entry(verb->arguments[i].metavar, verb->arguments[i].help);
    for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++) {
        const struct verb_option *option = &verb->options[i];
        option_entry(0, option->name, option->metavar, option->choices, option->help);
    }
    if (verb->destroys)
        entry("--dry-run", "say what would be freed, and change nothing");
    globals_help();
}

static void noun_help(const struct noun *noun) {
    printf("%s: %s\n\nUsage:\n", noun->name, noun->summary);
    for (const struct verb *verb = verbs; verb->noun; verb++) {
        char line[512], words[VERB_WORDS_BYTES];
        if (strcmp(verb->noun, noun->name) != 0)
            continue;
        synopsis(verb, line, sizeof line);
        printf("  gild %s%s\n      %s\n", verb_words(verb, words), line, verb->summary);
    }
}

void help_print(const struct noun *noun, const struct verb *verb) {
    if (verb) {
        verb_help(verb);
        return;
    }
    if (noun) {
        noun_help(noun);
        globals_help();
        return;
    }
    puts(
        "gild: golden images, and thousands of desktops that share them\n\n"
        "Usage: gild [--store DIR] [-o json|text] [-H] [--yes] NOUN VERB [ARGS]\n");
    for (noun = nouns; noun->name; noun++) {
        noun_help(noun);
        putchar('\n');
    }
    puts(
        "Sizes take K, M, G and T (powers of 1024). A command is sent to the store's daemon\n"
        "(gildd) if one runs, and otherwise opens the store itself.");
    globals_help();
    puts("\nExit codes:");
    for (int code = 0; *exit_codes[code]; code++)
        printf("  %d  %s\n", code, exit_codes[code]);
}

/* ---- man page -------------------------------------------------------------------------------- */

/* A '-' that is typed, a '\' and a line's first '.' need care in roff. */
static void roff(const char *text) {
    for (const char *at = text; *at; at++) {
        if (*at == '-' || *at == '\\')
            putchar('\\');
        if (at == text && (*at == '.' || *at == '\''))
            printf("\\&");
        putchar(*at == '\\' ? 'e' : *at);
    }
}

static void man_option(char short_name, const char *name, const char *metavar, const char *choices,
                       const char *help) {
    puts(".TP");
    if (short_name)
        printf("\\fB\\-%c\\fR, ", short_name);
    printf("\\fB\\-\\-");
    roff(name);
    printf("\\fR");
    if (metavar)
        printf(" \\fI%s\\fR", metavar);
    putchar('\n');
    roff(help);
    if (choices) {
        printf(" (");
        roff(choices);
        putchar(')');
    }
    puts(".");
}

static void man_verb(const struct verb *verb) {
    char line[512], words[VERB_WORDS_BYTES];
    synopsis(verb, line, sizeof line);
    printf(".SS gild %s", verb_words(verb, words));
    roff(line);
    printf("\n%c", verb->summary[0] - 'a' + 'A');
    roff(verb->summary + 1);
    puts(".");
    if (verb->text) {
        roff(verb->text);
        putchar('\n');
    }
    for (int i = 0; i < ARGUMENTS_MAX && verb->arguments[i].metavar; i++) {
        printf(".TP\n\\fI%s\\fR\n", verb->arguments[i].metavar);
        roff(verb->arguments[i].help);
        puts(".");
    }
    for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++) {
        const struct verb_option *option = &verb->options[i];
        man_option(0, option->name, option->metavar, option->choices, option->help);
    }
    if (verb->destroys)
        man_option(0, "dry-run", NULL, NULL, "say what would be freed, and change nothing");
}

void man_print(void) {
    printf(".TH GILD 1 \"\" \"gild %s\" \"User Commands\"\n", GILD_VERSION);
    puts(".SH NAME\ngild \\- golden images, and thousands of desktops that share them");
    puts(
        ".SH SYNOPSIS\n.B gild\n[\\fB\\-\\-store\\fR \\fIDIR\\fR] [\\fB\\-o\\fR json|text] "
        "[\\fB\\-H\\fR] [\\fB\\-\\-yes\\fR] \\fINOUN\\fR \\fIVERB\\fR [\\fIARGS\\fR]");
    puts(
        ".SH DESCRIPTION\nSizes take K, M, G and T (powers of 1024). A command is sent to the "
        "store's daemon,\n.BR gildd (8),\nif one runs, and otherwise opens the store itself for "
        "as long as it takes.\nA verb that destroys asks on a terminal; elsewhere it needs "
        "\\fB\\-\\-yes\\fR.");
    puts(".SH OPTIONS");
    for (const struct global_option *option = global_options; option->name; option++)
        man_option(option->short_name, option->name, option->metavar, option->choices,
                   option->help);
    puts(".SH COMMANDS");
    for (const struct verb *verb = verbs; verb->noun; verb++)
        man_verb(verb);
    puts(".SH EXIT STATUS");
    for (int code = 0; *exit_codes[code]; code++)
        printf(".TP\n%d\n%c%s.\n", code, exit_codes[code][0] - 'a' + 'A', exit_codes[code] + 1);
    puts(".SH ENVIRONMENT\n.TP\n.B GILD_STORE\nThe store, where \\fB\\-\\-store\\fR is not given.");
    puts(".SH SEE ALSO\n.BR gildd (8)");
}

/* ---- completion ------------------------------------------------------------------------------ */

static void completion_verb(const struct verb *verb) {
    printf("    '%s %s%s) words=\"$globals", verb->noun, verb->alone ? "" : verb->name,
           verb->alone ? "'*" : "'");
    for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++)
        printf(" --%s", verb->options[i].name);
    printf("%s\"", verb->destroys ? " --dry-run" : "");
    for (int i = 0; i < ARGUMENTS_MAX && verb->arguments[i].metavar; i++)
        if (verb->arguments[i].type == VALUE_SOURCE)
            printf(" files=yes");
    puts(" ;;");
}

static void completion_choices(const char *name, const char *choices) {
    printf("    --%s) COMPREPLY=($(compgen -W '%s' -- \"$current\")) && return ;;\n", name,
           choices);
}

/* Options with values, as the pattern of a case: the word behind them is no noun or verb. */
static void completion_valued(void) {
    printf("        -o");
    for (const struct global_option *option = global_options; option->name; option++)
        if (option->metavar)
            printf(" | --%s", option->name);
    puts(") ((i++)) ;;");
}

void completion_print(void) {
    puts(
        "# Completion of gild(1) for bash; made by `gild --completion`.\n"
        "_gild() {\n"
        "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}\n"
        "    local noun= verb= word words= files=no i globals=");
    printf("    globals='");
    for (const struct global_option *option = global_options; option->name; option++)
        printf("%s--%s", option == global_options ? "" : " ", option->name);
    puts(
        "'\n    for ((i = 1; i < COMP_CWORD; i++)); do\n"
        "        word=${COMP_WORDS[i]}\n"
        "        case $word in");
    completion_valued();
    puts(
        "        -*) ;;\n"
        "        *) if [ -z \"$noun\" ]; then noun=$word; elif [ -z \"$verb\" ]; then "
        "verb=$word; fi ;;\n"
        "        esac\n"
        "    done\n"
        "    case $previous in\n"
        "    --store) COMPREPLY=($(compgen -d -- \"$current\")) && return ;;\n"
        "    -o) COMPREPLY=($(compgen -W 'text json' -- \"$current\")) && return ;;");
    for (const struct global_option *option = global_options; option->name; option++)
        if (option->choices)
            completion_choices(option->name, option->choices);
    for (const struct verb *verb = verbs; verb->noun; verb++)
        for (int i = 0; i < OPTIONS_MAX && verb->options[i].name; i++)
            if (verb->options[i].choices)
                completion_choices(verb->options[i].name, verb->options[i].choices);
    puts("    esac\n    case \"$noun $verb\" in");
    printf("    ' ') words=\"$globals");
    for (const struct noun *noun = nouns; noun->name; noun++)
        printf(" %s", noun->name);
    puts("\" ;;");
    for (const struct noun *noun = nouns; noun->name; noun++) {
        if (find_lone_verb(noun->name))
            continue;
        printf("    '%s ') words=\"$globals", noun->name);
        for (const struct verb *verb = verbs; verb->noun; verb++)
            if (strcmp(verb->noun, noun->name) == 0)
                printf(" %s", verb->name);
        puts("\" ;;");
    }
    for (const struct verb *verb = verbs; verb->noun; verb++)
        completion_verb(verb);
    puts(
        "    esac\n"
        "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
        "    [ \"$files\" = no ] || COMPREPLY+=($(compgen -f -- \"$current\"))\n"
        "}\n"
        "complete -o filenames -F _gild gild");
}
