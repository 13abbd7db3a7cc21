/* Answers: what many verbs say in the same way, and errors as JSON. Pure; any thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control/control.h"

/* Said where there is not even memory to say it. */
static const char no_memory[] =
    "{\"error\": {\"code\": \"failed\", \"message\": \"there is no memory for the answer\"}}";

json_t *control_json_text(const char *text) {
    json_t *json = json_string(text);
    char *plain = json ? NULL : strdup(text);
    if (!plain)
        return json;
    for (char *at = plain; *at; at++)
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    json = json_string(plain);
    free(plain);
    return json;
}

json_t *control_error_json(const struct gild_error *error) {
    return json_pack("{s:{s:s, s:o}}", "error", "code", gild_code_name(error->code), "message",
                     control_json_text(error->message));
}

enum gild_code control_answer_code(const json_t *answer) {
    json_t *error = json_object_get(answer, "error");
    const char *name = json_string_value(json_object_get(error, "code"));
    if (!answer)
        return GILD_FAILED;
    if (!error)
        return GILD_OK;
    for (enum gild_code code = GILD_FAILED; name && code <= GILD_PARTLY; code++)
        if (strcmp(name, gild_code_name(code)) == 0)
            return code;
    return GILD_FAILED;
}

char *control_dump(const json_t *answer) {
    char *text = answer ? json_dumps(answer, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    return text ? text : strdup(no_memory);
}

json_t *control_json_time(uint64_t realtime_ns) {
    char text[32];
    time_t seconds = (time_t)(realtime_ns / 1000000000u);
    struct tm utc;
    if (!realtime_ns || !gmtime_r(&seconds, &utc) ||
        !strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc))
        return json_null();
    return json_string(text);
}

json_t *control_json_hex(const uint8_t *bytes, size_t count) {
    char text[129];
    if (count > (sizeof text - 1) / 2)
        return NULL;
    for (size_t i = 0; i < count; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return json_string(text);
}

json_t *control_json_reference(const char *image, uint32_t version) {
    char text[GILD_NAME_MAX + 16];
    snprintf(text, sizeof text, "%s@%" PRIu32, image, version);
    return control_json_text(text);
}

json_t *control_json_freed(const struct gild_freed *freed, bool dry_run) {
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I}", "dry_run", dry_run, "desktops",
                     (json_int_t)freed->desktops, "versions", (json_int_t)freed->versions, "disks",
                     (json_int_t)freed->disks, "freed_blocks", (json_int_t)freed->blocks,
                     "freed_bytes", (json_int_t)freed->bytes);
}
