/* Answers as text on stdout: plain columns, or tab-separated rows without a heading. One thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/gild/command.h"

#define CELL_BYTES 512

char *size_text(long long bytes, char text[32]) {
    static const char units[] = "KMGTPE";
    unsigned long long whole =
        bytes < 0 ? 0 - (unsigned long long)bytes : (unsigned long long)bytes;
    unsigned long long rest = 0;
    const char *sign = bytes < 0 ? "-" : "";
    size_t power = 0;
    for (; whole >= 1024; power++) {
        rest = whole & 1023;
        whole >>= 10;
    }
    unsigned tenth = (unsigned)(rest * 10 / 1024);
    if (!power)
        snprintf(text, 32, "%s%llu", sign, whole);
    else if (!tenth || whole >= 100)
        snprintf(text, 32, "%s%llu%c", sign, whole, units[power - 1]);
    else
        snprintf(text, 32, "%s%llu.%u%c", sign, whole, tenth, units[power - 1]);
    return text;
}

/* With -H a program reads: sizes are whole numbers of bytes then. */
static const char *cell(const struct command *command, json_t *record, const struct column *column,
                        char text[CELL_BYTES]) {
    json_t *value = json_object_get(record, column->key);
    if (json_is_string(value))
        snprintf(text, CELL_BYTES, "%s", json_string_value(value));
    else if (json_is_integer(value) && column->kind == COLUMN_SIZE && !command->bare)
        size_text(json_integer_value(value), text);
    else if (json_is_integer(value))
        snprintf(text, CELL_BYTES, "%lld", (long long)json_integer_value(value));
    else if (json_is_boolean(value))
        strcpy(text, json_is_true(value) ? "yes" : "no");
    else
        strcpy(text, "-");
    return text;
}

/* Characters, not bytes: names may be any UTF-8. */
static int width_of(const char *text) {
    int width = 0;
    for (; *text; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void pad(int count) {
    printf("%*s", count > 0 ? count : 0, "");
}

static void put_cell(const char *text, int width, bool right, bool last) {
    int space = width - width_of(text);
    if (right)
        pad(space);
    fputs(text, stdout);
    if (!right && !last)
        pad(space);
    fputs(last ? "\n" : "  ", stdout);
}

static void table(const struct command *command, const struct column *columns, json_t *list) {
    char text[CELL_BYTES];
    json_t *record;
    size_t index, count = 0;
    int widths[16];
    for (; columns[count].heading; count++)
        widths[count] = width_of(columns[count].heading);
    if (command->bare) {
        json_array_foreach(list, index, record) for (size_t i = 0; i < count; i++)
            printf("%s%c", cell(command, record, &columns[i], text), i + 1 < count ? '\t' : '\n');
        return;
    }
    json_array_foreach(list, index, record) for (size_t i = 0; i < count; i++) {
        int width = width_of(cell(command, record, &columns[i], text));
        widths[i] = width > widths[i] ? width : widths[i];
    }
    for (size_t i = 0; i < count; i++)
        put_cell(columns[i].heading, widths[i], columns[i].kind != COLUMN_TEXT, i + 1 == count);
    json_array_foreach(list, index, record) for (size_t i = 0; i < count; i++)
        put_cell(cell(command, record, &columns[i], text), widths[i],
                 columns[i].kind != COLUMN_TEXT, i + 1 == count);
}

static void record_lines(const struct command *command, json_t *record) {
    const struct column *columns = command->verb->columns;
    char text[CELL_BYTES];
    int width = 0;
    for (size_t i = 0; columns[i].heading; i++)
        width = width_of(columns[i].heading) > width ? width_of(columns[i].heading) : width;
    for (size_t i = 0; columns[i].heading; i++) {
        if (!json_object_get(record, columns[i].key)) /* of another kind of target */
            continue;
        cell(command, record, &columns[i], text);
        if (command->bare)
            printf("%s\t%s\n", columns[i].heading, text);
        else
            printf("%-*s  %s\n", width, columns[i].heading, text);
    }
}

static long long number(json_t *answer, const char *key) {
    return (long long)json_integer_value(json_object_get(answer, key));
}

void freed_print(json_t *answer, const char *began) {
    char text[32];
    const struct {
        const char *key, *one, *many;
    } kinds[] = {{"versions", "image version", "image versions"},
                 {"desktops", "desktop", "desktops"},
                 {"disks", "disk", "disks"}};
    fputs(began, stdout);
    const char *separator = " ";
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        long long count = number(answer, kinds[i].key);
        if (!count)
            continue;
        printf("%s%lld %s", separator, count, count == 1 ? kinds[i].one : kinds[i].many);
        separator = ", ";
    }
    if (*separator == ' ')
        fputs(" nothing", stdout);
    printf("; frees %s\n", size_text(number(answer, "freed_bytes"), text));
}

static void more(json_t *answer, const char *key, json_t *list) {
    long long left = number(answer, key) - (long long)json_array_size(list);
    if (left > 0)
        printf("and %lld more\n", left);
}

static void repair_lines(json_t *answer) {
    json_t *repaired = json_object_get(answer, "repaired"), *lost = json_object_get(answer, "lost");
    json_t *quarantined = json_object_get(answer, "quarantined"), *entry;
    bool dry = json_is_true(json_object_get(answer, "dry_run"));
    size_t index;
    json_array_foreach(repaired, index, entry)
        printf("%s: %s\n", dry ? "would repair" : "repaired", json_string_value(entry));
    more(answer, "repaired_count", repaired);
    json_array_foreach(lost, index, entry)
        printf("lost: blocks %lld to %lld of %s\n", number(entry, "first_block"),
               number(entry, "first_block") + number(entry, "blocks") - 1,
               json_string_value(json_object_get(entry, "disk")));
    more(answer, "lost_count", lost);
    json_array_foreach(quarantined, index, entry)
        printf("quarantined: %s: %s\n", json_string_value(json_object_get(entry, "disk")),
               json_string_value(json_object_get(entry, "why")));
    more(answer, "quarantined_count", quarantined);
    if (json_is_true(json_object_get(answer, "clean")))
        puts("there is no damage; nothing was changed");
    else
        printf("%lld repairs, %lld blocks lost, %lld disks in quarantine\n",
               number(answer, "repaired_count"), number(answer, "lost_blocks"),
               number(answer, "quarantined_count"));
}

static void check_lines(json_t *answer) {
    if (json_object_get(answer, "repaired")) {
        repair_lines(answer);
        return;
    }
    json_t *findings = json_object_get(answer, "findings"), *finding;
    size_t index;
    json_array_foreach(findings, index, finding)
        puts(json_string_value(json_object_get(finding, "message")));
    long long left = number(answer, "finding_count") - (long long)json_array_size(findings);
    if (left > 0)
        printf("and %lld more\n", left);
    if (json_object_get(answer, "read_bytes")) {
        char text[32];
        printf(
            "scrubbed %s: %lld disks, %lld maps, %lld packs: %lld faults, %lld packs repaired, "
            "%lld groups of packs lost\n",
            size_text(number(answer, "read_bytes"), text), number(answer, "disks"),
            number(answer, "maps"), number(answer, "packs"), number(answer, "finding_count"),
            number(answer, "repaired_packs"), number(answer, "lost_groups"));
        return;
    }
    printf("checked %lld disks, %lld maps, %lld packs, %lld segments, %lld blocks: %lld faults\n",
           number(answer, "disks"), number(answer, "maps"), number(answer, "packs"),
           number(answer, "segments"), number(answer, "blocks"), number(answer, "finding_count"));
}

void answer_print(const struct command *command, json_t *answer) {
    const struct verb *verb = command->verb;
    json_t *member = verb->member ? json_object_get(answer, verb->member) : NULL, *name;
    size_t index;
    switch (verb->shape) {
    case SHAPE_LIST:
    case SHAPE_FOLLOW:
        table(command, verb->columns, answer);
        break;
    case SHAPE_RECORD:
        if (json_is_array(answer) && verb->list_columns)
            table(command, verb->list_columns, answer);
        else
            record_lines(command, answer);
        break;
    case SHAPE_TEXT: {
        const char *text = json_string_value(member);
        size_t length = text ? strlen(text) : 0;
        printf("%s%s", text ? text : "", length && text[length - 1] == '\n' ? "" : "\n");
        break;
    }
    case SHAPE_NAMES:
        json_array_foreach(member, index, name) puts(json_string_value(name));
        break;
    case SHAPE_FREED:
        freed_print(answer,
                    json_is_true(json_object_get(answer, "dry_run")) ? "would delete" : "deleted");
        break;
    case SHAPE_CHECK:
        check_lines(answer);
        break;
    }
}
