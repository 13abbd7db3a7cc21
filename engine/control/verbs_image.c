/* The verbs on images: import, list, show, delete. Any thread but a reactor's. */
#include <errno.h>
#include <stdio.h>

#include "control/control.h"

static const char *stage_name(uint8_t stage) {
    static const char *const names[] = {"maintenance", "test", "production", "retired"};
    return stage < sizeof names / sizeof names[0] ? names[stage] : "unknown";
}

static json_t *image_json(const struct gild_image_info *info) {
    const struct gild_rec_version *record = &info->record;
    char path[GILD_NAME_MAX + 32];
    snprintf(path, sizeof path, "images/%s@%u", info->name, info->version);
    return json_pack("{s:o, s:s, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:o, s:o}", "image",
                     control_json_reference(info->name, info->version), "name", info->name,
                     "version", (int)info->version, "path", path, "stage",
                     stage_name(record->stage), "size_bytes", (json_int_t)record->size_bytes,
                     "data_bytes", (json_int_t)record->data_blocks * 4096, "new_bytes",
                     (json_int_t)record->new_blocks * 4096, "stored_bytes",
                     (json_int_t)record->stored_bytes, "source_format", record->source_format,
                     "desktops", (json_int_t)info->desktops, "content_hash",
                     control_json_hex(record->content_hash, sizeof record->content_hash), "created",
                     control_json_time(record->created_ns));
}

json_t *control_image_import(struct control_call *call) {
    struct gild_image_info made;
    const struct gild_image_import request = {.name = control_text(call, "name"),
                                              .source = control_text(call, "source"),
                                              .format = control_text(call, "format"),
                                              .allow_backing = control_flag(call, "allow_backing"),
                                              .progress = call->progress,
                                              .context = call->context};
    return gild_image_import(call->store, &request, &made, call->error) ? NULL : image_json(&made);
}

static int add_image(void *context, const struct gild_image_info *info) {
    return json_array_append_new(context, image_json(info)) ? -ENOMEM : 0;
}

json_t *control_image_list(struct control_call *call) {
    json_t *list = json_array();
    if (gild_image_list(call->store, control_text(call, "name"), add_image, list, call->error)) {
        json_decref(list);
        return NULL;
    }
    return list;
}

json_t *control_image_show(struct control_call *call) {
    struct gild_image_info info;
    return gild_image_show(call->store, control_text(call, "image"), &info, call->error)
               ? NULL
               : image_json(&info);
}

json_t *control_image_delete(struct control_call *call) {
    struct gild_freed freed;
    bool dry_run = control_flag(call, "dry_run");
    return gild_image_delete(call->store, control_text(call, "image"), dry_run, &freed, call->error)
               ? NULL
               : control_json_freed(&freed, dry_run);
}
