/* The verbs on limits, and on what happened: limit set, limit show, events. Any thread but a
 * reactor's. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control/control.h"
#include "disk/events.h"
#include "vdi/limits.h"
#include "vdi/names.h"

/* ---- limits ---------------------------------------------------------------------------------- */

static int add_limit(void *context, const struct gild_limit *limit) {
    return json_array_append_new(
               context,
               json_pack(
                   "{s:o, s:s, s:s, s:o, s:o}", "target", control_json_text(limit->target), "key",
                   limit->key, "value", limit->value, "limit_bytes",
                   limit->limit_bytes ? json_integer((json_int_t)limit->limit_bytes) : json_null(),
                   "used_bytes",
                   limit->used_bytes ? json_integer((json_int_t)limit->used_bytes) : json_null()))
               ? -ENOMEM
               : 0;
}

static json_t *show(struct control_call *call, const char *target) {
    json_t *list = json_array();
    if (gild_limit_show(call->store, target, add_limit, list, call->error) == 0)
        return list;
    json_decref(list);
    return NULL;
}

json_t *control_limit_show(struct control_call *call) {
    return show(call, control_text(call, "target"));
}

#define SETTINGS_MAX 8u

json_t *control_limit_set(struct control_call *call) {
    struct gild_setting settings[SETTINGS_MAX];
    json_t *given = json_object_get(call->args, "settings"), *value;
    const char *key, *target = control_text(call, "target");
    size_t count = 0;
    json_object_foreach(given, key, value) {
        if (count == SETTINGS_MAX || !json_is_string(value)) {
            gild_fail(call->error, GILD_USAGE, EINVAL,
                      "limit set: the settings must be up to %u texts by their keys", SETTINGS_MAX);
            return NULL;
        }
        settings[count++] = (struct gild_setting){key, json_string_value(value)};
    }
    if (!count) {
        gild_fail(call->error, GILD_USAGE, EINVAL,
                  "limit set: what is to be set? Give KEY=VALUE, such as quota=10G");
        return NULL;
    }
    return gild_limit_set(call->store, target, settings, count, call->error) ? NULL
                                                                             : show(call, target);
}

/* ---- events ---------------------------------------------------------------------------------- */

static json_t *event_json(const struct gild_event *event) {
    return json_pack(
        "{s:I, s:o, s:s, s:o, s:o, s:o}", "sequence", (json_int_t)event->sequence, "time",
        control_json_time(event->time_ns), "event", gild_event_name(event->kind), "uid",
        event->uid == EVENT_NOBODY ? json_null() : json_integer(event->uid), "object",
        control_json_text(event->object), "message", control_json_text(event->message));
}

static int add_event(void *context, const struct gild_event *event) {
    return json_array_append_new(context, event_json(event)) ? -ENOMEM : 0;
}

/* "15m", "2h", "7d" ago, or RFC 3339 in UTC: "2026-03-14", "2026-03-14T09:26:53Z". */
static bool parse_since(const char *text, uint64_t *since_ns) {
    static const char units[] = "smhd";
    static const unsigned seconds[] = {1, 60, 3600, 86400};
    struct timespec now;
    struct tm utc = {0};
    char *end;
    errno = 0;
    unsigned long long number = *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : 0;
    const char *unit = number && *end ? strchr(units, *end) : NULL;
    if (unit && !end[1] && !errno && number < 1000000) {
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t ago = number * seconds[unit - units];
        *since_ns = (uint64_t)now.tv_sec > ago ? ((uint64_t)now.tv_sec - ago) * 1000000000u : 0;
        return true;
    }
    const char *rest = strptime(text, "%Y-%m-%d", &utc);
    if (rest && *rest)
        rest = strptime(rest, "T%H:%M:%SZ", &utc);
    time_t time = rest && !*rest ? timegm(&utc) : -1;
    *since_ns = (uint64_t)time * 1000000000u;
    return time >= 0;
}

#define WAIT_MS 200u

/* Until there is something to tell; false: the client has gone, or the daemon ends. */
static bool wait_for_event(struct control_call *call, uint64_t after) {
    while (gild_events_wait(call->store, after, WAIT_MS) <= after)
        if (call->progress && call->progress(call->context, "waiting", 0, 0))
            return false;
    return true;
}

json_t *control_events_show(struct control_call *call) {
    const char *since = control_text(call, "since");
    uint64_t since_ns = 0, after = control_number(call, "after");
    char quoted[GILD_NAME_QUOTED];
    if (since && !parse_since(since, &since_ns)) {
        gild_fail(call->error, GILD_USAGE, EINVAL,
                  "events: '%s' is no time: give 30m, 12h or 7d (ago), or 2026-03-14T09:26:53Z",
                  gild_name_quote(since, quoted));
        return NULL;
    }
    bool follow = control_flag(call, "follow");
    if (follow && !call->doors) {
        gild_fail(call->error, GILD_FAILED, ENOTCONN,
                  "no daemon serves store %s, so nothing happens there that could be followed",
                  gild_store_directory(call->store));
        return NULL;
    }
    if (follow && json_object_get(call->args, "after") && !wait_for_event(call, after)) {
        gild_fail(call->error, GILD_FAILED, ECANCELED, "the daemon of store %s ends",
                  gild_store_directory(call->store));
        return NULL;
    }
    json_t *list = json_array();
    int err = gild_events_read(call->store, after, since_ns, add_event, list);
    if (!err)
        return list;
    json_decref(list);
    gild_fail(call->error, gild_code_of_errno(-err), -err,
              "the events of store %s can not be read: %s", gild_store_directory(call->store),
              strerror(-err));
    return NULL;
}

/* ---- what verbs did -------------------------------------------------------------------------- */

static const char *argument(const json_t *args, const char *key) {
    const char *text = json_string_value(json_object_get(args, key));
    return text ? text : "";
}

static void note_settings(const struct control_call *call, uid_t uid) {
    const char *target = argument(call->args, "target"), *key;
    bool pool = strcmp(target, "store") != 0 && !strchr(target, '/');
    char object[320], text[400] = "";
    size_t used = 0;
    json_t *value;
    json_object_foreach(json_object_get(call->args, "settings"), key, value) {
        int more = snprintf(text + used, sizeof text - used, "%s%s=%s", used ? " " : "", key,
                            json_string_value(value));
        used = more > 0 && used + (size_t)more < sizeof text ? used + (size_t)more : used;
    }
    snprintf(object, sizeof object, "%s%s", pool ? "pools/" : "", target + (*target == '@'));
    gild_events_note(call->store, GILD_EVENT_LIMIT, uid, object, "set %s", text);
}

void control_note_event(const struct control_call *call, const char *noun, const char *verb,
                        const json_t *answer, uid_t uid) {
    char object[320];
    bool created = strcmp(verb, "create") == 0 || strcmp(verb, "import") == 0;
    bool deleted = strcmp(verb, "delete") == 0 && !control_flag(call, "dry_run");
    if (strcmp(noun, "limit") == 0 && strcmp(verb, "set") == 0)
        note_settings(call, uid);
    if (!created && !deleted)
        return;
    const char *name = strcmp(verb, "import") == 0       ? argument(answer, "image")
                       : strcmp(noun, "image") == 0      ? argument(call->args, "image")
                       : *argument(call->args, "select") ? argument(call->args, "select")
                                                         : argument(call->args, "name");
    snprintf(object, sizeof object, "%ss/%s", noun, name);
    json_t *count =
        json_object_get(answer, strcmp(noun, "pool") == 0 || deleted ? "desktops" : "made");
    if (created && strcmp(noun, "image") == 0)
        gild_events_note(call->store, GILD_EVENT_CREATED, uid, object, "imported from %s",
                         argument(call->args, "source"));
    else if (created)
        gild_events_note(call->store, GILD_EVENT_CREATED, uid, object, "%lld desktops of %s",
                         (long long)json_integer_value(count), argument(call->args, "image"));
    else if (strcmp(noun, "image") == 0)
        gild_events_note(call->store, GILD_EVENT_DELETED, uid, object, "deleted");
    else
        gild_events_note(call->store, GILD_EVENT_DELETED, uid, object, "%lld desktops",
                         (long long)json_integer_value(count));
}
