/* The verbs on desktops and pools: create, list, show, delete. Any thread but a reactor's. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control/control.h"
#include "vdi/names.h"

/* ---- desktops -------------------------------------------------------------------------------- */

static json_t *desktop_json(const struct gild_desktop_info *info) {
    const struct gild_rec_desktop *record = &info->record;
    char path[GILD_NAME_MAX + 32];
    snprintf(path, sizeof path, "desktops/%s/os", info->name);
    return json_pack("{s:s, s:s, s:o, s:o, s:I, s:I, s:o, s:o}", "name", info->name, "path", path,
                     "image", control_json_reference(record->image, record->version), "pool",
                     record->pool[0] ? json_string(record->pool) : json_null(), "size_bytes",
                     (json_int_t)record->size_bytes, "written_bytes",
                     (json_int_t)info->delta_blocks * 4096, "open",
                     info->door ? json_string(info->door) : json_null(), "created",
                     control_json_time(record->created_ns));
}

/* One desktop is called by its name. Several, or those of a pattern, count from 1: "d0001". */
static const char *pattern_of(struct control_call *call, char text[GILD_NAME_MAX + 8]) {
    const char *given = control_text(call, "name_pattern");
    if (given || control_number(call, "count") <= 1)
        return given;
    snprintf(text, GILD_NAME_MAX + 8, "%.*s%%04d", (int)GILD_NAME_MAX, control_text(call, "name"));
    return text;
}

static json_t *names_json(const struct gild_desktop_create *request, uint32_t made) {
    json_t *names = json_array();
    struct gild_name_pattern pattern;
    char name[GILD_NAME_MAX + 1];
    if (!request->name_pattern) {
        json_array_append_new(names, json_string(request->name));
        return names;
    }
    if (gild_name_pattern_parse(request->name_pattern, &pattern, NULL))
        return names;
    for (uint32_t number = 1; number <= made; number++)
        if (gild_name_pattern_make(&pattern, number, "desktop", name, NULL) == 0)
            json_array_append_new(names, json_string(name));
    return names;
}

json_t *control_desktop_create(struct control_call *call) {
    char text[GILD_NAME_MAX + 8];
    struct gild_desktop_create request = {.name = control_text(call, "name"),
                                          .count = (uint32_t)control_number(call, "count"),
                                          .image = control_text(call, "image"),
                                          .size_bytes = control_number(call, "size")};
    uint32_t made;
    if (gild_name_check(request.name, "desktop", call->error))
        return NULL;
    request.name_pattern = pattern_of(call, text);
    if (request.name_pattern)
        request.name = NULL;
    if (gild_desktop_create(call->store, &request, &made, call->error))
        return NULL;
    return json_pack("{s:I, s:o}", "made", (json_int_t)made, "desktops",
                     names_json(&request, made));
}

static int add_desktop(void *context, const struct gild_desktop_info *info) {
    return json_array_append_new(context, desktop_json(info)) ? -ENOMEM : 0;
}

json_t *control_desktop_list(struct control_call *call) {
    json_t *list = json_array();
    if (gild_desktop_list(call->store, control_text(call, "select"), add_desktop, list,
                          call->error)) {
        json_decref(list);
        return NULL;
    }
    return list;
}

json_t *control_desktop_show(struct control_call *call) {
    struct gild_desktop_info info;
    char path[GILD_NAME_MAX + 32], serial[21];
    if (gild_desktop_show(call->store, control_text(call, "name"), &info, call->error))
        return NULL;
    json_t *answer = desktop_json(&info);
    snprintf(path, sizeof path, "desktops/%s/os", info.name);
    if (gild_path_serial(call->store, path, serial) == 0)
        json_object_set_new(answer, "serial", json_string(serial));
    return answer;
}

json_t *control_desktop_delete(struct control_call *call) {
    struct gild_freed freed;
    bool dry_run = control_flag(call, "dry_run");
    return gild_desktop_delete(call->store, control_text(call, "select"), dry_run, &freed,
                               call->error)
               ? NULL
               : control_json_freed(&freed, dry_run);
}

/* ---- pools ----------------------------------------------------------------------------------- */

static json_t *pool_json(const struct gild_pool_info *info) {
    const struct gild_rec_pool *record = &info->record;
    return json_pack("{s:s, s:o, s:s, s:I, s:I, s:I, s:I, s:o}", "name", info->name, "image",
                     control_json_reference(record->image, record->version), "name_pattern",
                     record->name_pattern, "count", (json_int_t)record->count, "desktops",
                     (json_int_t)info->desktops, "open_desktops", (json_int_t)info->open_desktops,
                     "written_bytes", (json_int_t)info->delta_blocks * 4096, "created",
                     control_json_time(record->created_ns));
}

json_t *control_pool_create(struct control_call *call) {
    struct gild_pool_info made;
    return gild_pool_create(call->store, control_text(call, "name"), control_text(call, "image"),
                            (uint32_t)control_number(call, "count"),
                            control_text(call, "name_pattern"), &made, call->error)
               ? NULL
               : pool_json(&made);
}

static int add_pool(void *context, const struct gild_pool_info *info) {
    return json_array_append_new(context, pool_json(info)) ? -ENOMEM : 0;
}

json_t *control_pool_list(struct control_call *call) {
    json_t *list = json_array();
    if (gild_pool_list(call->store, add_pool, list, call->error)) {
        json_decref(list);
        return NULL;
    }
    return list;
}

json_t *control_pool_show(struct control_call *call) {
    struct gild_pool_info info;
    return gild_pool_show(call->store, control_text(call, "name"), &info, call->error)
               ? NULL
               : pool_json(&info);
}

json_t *control_pool_delete(struct control_call *call) {
    struct gild_freed freed;
    bool dry_run = control_flag(call, "dry_run");
    return gild_pool_delete(call->store, control_text(call, "name"), dry_run, &freed, call->error)
               ? NULL
               : control_json_freed(&freed, dry_run);
}
