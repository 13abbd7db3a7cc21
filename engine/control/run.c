/* Requests to verbs: the table, the check of a request against it, and the call.
 *
 * A request is refused before its verb is called when it names no row of the table, or an argument
 * that the row does not have, or misses one that the row needs: an option that does nothing does
 * not exist. Failure modes are the verbs'. Any thread but a reactor's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "control/control.h"
#include "vdi/names.h"

enum type { TEXT, SIZE, COUNT, FLAG, SETTINGS, COUNT64 };

struct argument {
    const char *name;
    enum type type;
    bool required;
};

#define ARGUMENTS_MAX 6

struct row {
    const char *noun, *verb;
    control_verb *run;
    struct argument arguments[ARGUMENTS_MAX]; /* ends with a NULL name */
};

static const struct row rows[] = {
    {"store", "info", control_store_info, {{0}}},
    {"store", "check", control_store_check, {{"repair", FLAG, false}, {"dry_run", FLAG, false}}},
    {"store", "scrub", control_store_scrub, {{"rate", SIZE, false}, {"dry_run", FLAG, false}}},
    {"store", "gc", control_store_gc, {{0}}},
    {"image",
     "import",
     control_image_import,
     {{"name", TEXT, true},
      {"source", TEXT, true},
      {"format", TEXT, false},
      {"allow_backing", FLAG, false}}},
    {"image", "list", control_image_list, {{"name", TEXT, false}}},
    {"image", "show", control_image_show, {{"image", TEXT, true}}},
    {"image", "delete", control_image_delete, {{"image", TEXT, true}, {"dry_run", FLAG, false}}},
    {"desktop",
     "create",
     control_desktop_create,
     {{"name", TEXT, true},
      {"image", TEXT, true},
      {"count", COUNT, false},
      {"name_pattern", TEXT, false},
      {"size", SIZE, false}}},
    {"desktop", "list", control_desktop_list, {{"select", TEXT, false}}},
    {"desktop", "show", control_desktop_show, {{"name", TEXT, true}}},
    {"desktop",
     "delete",
     control_desktop_delete,
     {{"select", TEXT, true}, {"dry_run", FLAG, false}}},
    {"pool",
     "create",
     control_pool_create,
     {{"name", TEXT, true},
      {"image", TEXT, true},
      {"count", COUNT, true},
      {"name_pattern", TEXT, false}}},
    {"pool", "list", control_pool_list, {{0}}},
    {"pool", "show", control_pool_show, {{"name", TEXT, true}}},
    {"pool", "delete", control_pool_delete, {{"name", TEXT, true}, {"dry_run", FLAG, false}}},
    {"disk", "uri", control_disk_uri, {{"path", TEXT, true}, {"transport", TEXT, false}}},
    {"disk", "qemu", control_disk_qemu, {{"path", TEXT, true}, {"transport", TEXT, false}}},
    {"disk", "xml", control_disk_xml, {{"path", TEXT, true}, {"transport", TEXT, false}}},
    {"space", "show", control_space_show, {{"target", TEXT, false}, {"reclaimable", FLAG, false}}},
    {"who", "show", control_who_show, {{"path", TEXT, true}}},
    {"limit", "set", control_limit_set, {{"target", TEXT, true}, {"settings", SETTINGS, true}}},
    {"limit", "show", control_limit_show, {{"target", TEXT, false}}},
    {"events",
     "show",
     control_events_show,
     {{"since", TEXT, false}, {"follow", FLAG, false}, {"after", COUNT64, false}}},
};

/* ---- arguments ------------------------------------------------------------------------------- */

static int check_size(const struct row *row, const char *name, json_t *value,
                      struct gild_error *error) {
    uint64_t bytes = 0;
    int result = 0;
    if (json_is_integer(value) && json_integer_value(value) >= 0)
        bytes = (uint64_t)json_integer_value(value);
    else if (json_is_string(value))
        result = gild_parse_size(json_string_value(value), &bytes);
    else
        result = -EINVAL;
    if (result == -ERANGE)
        return gild_fail(error, GILD_USAGE, ERANGE, "%s %s: the %s is too large", row->noun,
                         row->verb, name);
    if (result || !bytes)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "%s %s: the %s is no size; write bytes, or a whole number with K, M, G or "
                         "T, above 0",
                         row->noun, row->verb, name);
    return 0;
}

static int check_value(const struct row *row, const struct argument *argument, json_t *value,
                       struct gild_error *error) {
    const char *wanted = NULL;
    switch (argument->type) {
    case TEXT:
        wanted = json_is_string(value) ? NULL : "a text";
        break;
    case SIZE:
        return check_size(row, argument->name, value, error);
    case COUNT:
        if (!json_is_integer(value) || json_integer_value(value) < 1 ||
            json_integer_value(value) > UINT32_MAX)
            wanted = "a whole number above 0";
        break;
    case COUNT64:
        wanted = json_is_integer(value) && json_integer_value(value) >= 0 ? NULL : "a whole number";
        break;
    case SETTINGS:
        wanted = json_is_object(value) ? NULL : "an object of texts";
        break;
    case FLAG:
        wanted = json_is_boolean(value) ? NULL : "true or false";
        break;
    }
    if (!wanted)
        return 0;
    return gild_fail(error, GILD_USAGE, EINVAL, "%s %s: the %s must be %s", row->noun, row->verb,
                     argument->name, wanted);
}

static const struct argument *find_argument(const struct row *row, const char *name) {
    for (size_t i = 0; i < ARGUMENTS_MAX && row->arguments[i].name; i++)
        if (strcmp(row->arguments[i].name, name) == 0)
            return &row->arguments[i];
    return NULL;
}

static int check_arguments(const struct row *row, json_t *args, struct gild_error *error) {
    const char *name;
    json_t *value;
    char quoted[GILD_NAME_QUOTED];
    json_object_foreach(args, name, value) {
        const struct argument *argument = find_argument(row, name);
        if (!argument)
            return gild_fail(error, GILD_USAGE, EINVAL, "%s %s has no argument '%s'", row->noun,
                             row->verb, gild_name_quote(name, quoted));
        int result = check_value(row, argument, value, error);
        if (result)
            return result;
    }
    for (size_t i = 0; i < ARGUMENTS_MAX && row->arguments[i].name; i++)
        if (row->arguments[i].required && !json_object_get(args, row->arguments[i].name))
            return gild_fail(error, GILD_USAGE, EINVAL, "%s %s needs the argument '%s'", row->noun,
                             row->verb, row->arguments[i].name);
    return 0;
}

const char *control_text(const struct control_call *call, const char *name) {
    return json_string_value(json_object_get(call->args, name));
}

uint64_t control_number(const struct control_call *call, const char *name) {
    json_t *value = json_object_get(call->args, name);
    uint64_t number = 0;
    if (json_is_integer(value))
        return (uint64_t)json_integer_value(value);
    /* The table's check has seen that a size's text parses. */
    return value && gild_parse_size(json_string_value(value), &number) == 0 ? number : 0;
}

bool control_flag(const struct control_call *call, const char *name) {
    return json_is_true(json_object_get(call->args, name));
}

json_t *control_store_init(const char *directory, json_t *args, struct gild_error *error) {
    static const struct row row = {"store", "init", NULL, {{"size", SIZE, false}}};
    struct control_call call = {.args = args};
    if (args && check_arguments(&row, args, error))
        return NULL;
    uint64_t size_bytes = args ? control_number(&call, "size") : 0;
    if (size_bytes % 512) {
        gild_fail(error, GILD_USAGE, EINVAL,
                  "store init: a store can not have %llu bytes; use a multiple of 512",
                  (unsigned long long)size_bytes);
        return NULL;
    }
    if (gild_store_init(directory, size_bytes, error))
        return NULL;
    return json_pack("{s:o, s:o}", "directory", control_json_text(directory), "size_limit_bytes",
                     size_bytes ? json_integer((json_int_t)size_bytes) : json_null());
}

json_t *control_check_repair(const char *directory, json_t *args, struct gild_error *error) {
    const struct row *row = rows;
    while (strcmp(row->verb, "check") != 0)
        row++;
    return check_arguments(row, args, error) ? NULL : control_store_repair(directory, args, error);
}

/* ---- requests -------------------------------------------------------------------------------- */

int control_request_parse(struct control_request *out, const char *text, struct gild_error *error) {
    json_error_t trouble;
    const char *name;
    json_t *value;
    memset(out, 0, sizeof *out);
    out->json = json_loads(text, JSON_REJECT_DUPLICATES, &trouble);
    if (!json_is_object(out->json))
        return gild_fail(error, GILD_USAGE, EINVAL, "the request is no JSON object: %.200s",
                         out->json ? "it is something else" : trouble.text);
    json_object_foreach(out->json, name, value) {
        if (strcmp(name, "noun") == 0)
            out->noun = json_string_value(value);
        else if (strcmp(name, "verb") == 0)
            out->verb = json_string_value(value);
        else if (strcmp(name, "args") == 0)
            out->args = value;
        else
            return gild_fail(error, GILD_USAGE, EINVAL,
                             "the request has a member '%.40s'; it has noun, verb and args", name);
    }
    if (!out->noun || !out->verb || (out->args && !json_is_object(out->args)))
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "the request must be {\"noun\": TEXT, \"verb\": TEXT, \"args\": OBJECT}");
    return 0;
}

void control_request_fini(struct control_request *request) {
    json_decref(request->json);
}

static const struct row *find_row(const struct control_request *request, struct gild_error *error) {
    char noun[GILD_NAME_QUOTED], verb[GILD_NAME_QUOTED];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (strcmp(rows[i].noun, request->noun) == 0 && strcmp(rows[i].verb, request->verb) == 0)
            return &rows[i];
    if (strcmp(request->noun, "store") == 0 && strcmp(request->verb, "init") == 0)
        gild_fail(error, GILD_FAILED, EEXIST, "there is a store already, and it is in use");
    else
        gild_fail(error, GILD_USAGE, EINVAL, "there is no verb '%.100s %.100s'",
                  gild_name_quote(request->noun, noun), gild_name_quote(request->verb, verb));
    return NULL;
}

json_t *control_run(struct gild_store *store, const struct gild_control_doors *doors, uid_t uid,
                    const char *request_text, gild_control_progress *progress, void *context) {
    struct gild_error error = {0};
    struct control_request request;
    json_t *answer = NULL, *none = json_object();
    const struct row *row = NULL;
    if (control_request_parse(&request, request_text, &error) == 0)
        row = find_row(&request, &error);
    json_t *args = request.args ? request.args : none;
    if (row && check_arguments(row, args, &error) == 0) {
        struct control_call call = {.store = store,
                                    .doors = doors,
                                    .args = args,
                                    .progress = progress,
                                    .context = context,
                                    .error = &error};
        answer = row->run(&call);
        if (answer)
            control_note_event(&call, row->noun, row->verb, answer, uid);
        if (!answer && !error.code)
            gild_fail(&error, GILD_FAILED, ENOMEM, "%s %s: there is no memory for the answer",
                      row->noun, row->verb);
    }
    if (!answer)
        answer = control_error_json(&error);
    control_request_fini(&request);
    json_decref(none);
    return answer;
}

enum gild_code gild_control_run(struct gild_store *store, const char *request,
                                gild_control_progress *progress, void *context, char **answer) {
    json_t *json = control_run(store, NULL, getuid(), request, progress, context);
    enum gild_code code = control_answer_code(json);
    *answer = control_dump(json);
    json_decref(json);
    return code;
}
