/* libFuzzer entry: names, references, patterns and percent escapes, as they come from commands, NBD
 * export names and URLs. The input is the text; what a parser accepts must survive being written
 * and read again. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "vdi/names.h"
#include "vdi/vdi.h"

static void parse_reference(const char *text) {
    struct gild_reference reference, again;
    struct gild_error error = {0};
    char written[GILD_NAME_MAX + 16];
    if (gild_reference_parse(text, &reference, &error) != 0) {
        FUZZ_MUST(error.message[0] && error.code == GILD_USAGE);
        return;
    }
    if (reference.version)
        snprintf(written, sizeof written, "%s@%u", reference.name, reference.version);
    else
        snprintf(written, sizeof written, "%s", reference.name);
    FUZZ_MUST(strcmp(written, text) == 0);
    FUZZ_MUST(gild_reference_parse(written, &again, &error) == 0);
}

static void parse_pattern(const char *text) {
    static const uint32_t numbers[] = {0, 1, 999, UINT32_MAX};
    struct gild_name_pattern pattern;
    struct gild_error error = {0};
    char name[GILD_NAME_MAX + 1];
    if (gild_name_pattern_parse(text, &pattern, &error) != 0) {
        FUZZ_MUST(error.message[0]);
        return;
    }
    FUZZ_MUST(pattern.width >= 0 && pattern.width <= 9);
    for (unsigned i = 0; i < 4; i++)
        if (gild_name_pattern_make(&pattern, numbers[i], "desktop", name, &error) == 0)
            FUZZ_MUST(gild_name_check(name, "desktop", &error) == 0);
}

static void escape(const char *text) {
    size_t length = strlen(text), room = 3 * length + 1;
    char *escaped = malloc(room), *back = malloc(length + 1), small[16];
    FUZZ_MUST(escaped && back);
    size_t taken = gild_percent_encode(text, "/", escaped, room);
    FUZZ_MUST(taken < room && strlen(escaped) == taken);
    FUZZ_MUST(gild_percent_decode(escaped, back, length + 1) == 0 && strcmp(back, text) == 0);
    gild_percent_encode(text, "", small, sizeof small);
    FUZZ_MUST(strlen(small) < sizeof small);
    int err = gild_percent_decode(text, back, length + 1);
    FUZZ_MUST(err == 0 || err == -EINVAL);
    err = gild_percent_decode(text, small, sizeof small);
    FUZZ_MUST(err || strlen(small) < sizeof small);
    free(escaped);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gild_error error = {0};
    char quoted[GILD_NAME_QUOTED];
    char *text = malloc(size + 1);
    FUZZ_MUST(text);
    memcpy(text, data, size);
    text[size] = 0;
    FUZZ_MUST(strlen(gild_name_quote(text, quoted)) < sizeof quoted);
    for (const char *at = quoted; *at; at++)
        FUZZ_MUST((unsigned char)*at >= ' ' && *at != 0x7f);
    FUZZ_MUST(gild_name_check(text, "desktop", &error) == 0 || error.message[0]);
    parse_reference(text);
    parse_pattern(text);
    escape(text);
    free(text);
    return 0;
}
