/* The verbs on space: what disks take and share, what would be freed, and what holds what. Any
 * thread but a reactor's. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "control/control.h"
#include "vdi/names.h"

static const char *kind_name(enum gild_space_kind kind) {
    static const char *const names[] = {"desktop", "image", "pool"};
    return names[kind];
}

/* For people, and null if nothing does. */
static json_t *holder_json(const struct gild_usage *space) {
    char text[80];
    if (space->kind == GILD_SPACE_IMAGE && space->desktops) {
        snprintf(text, sizeof text, "%" PRIu64 " desktop%s%s%s", space->desktops,
                 space->desktops == 1 ? "" : "s", space->door ? ", open through " : "",
                 space->door ? space->door : "");
        return json_string(text);
    }
    if (!space->door)
        return json_null();
    snprintf(text, sizeof text, "open through %s", space->door);
    return json_string(text);
}

static json_t *space_json(const struct gild_usage *space) {
    json_t *answer = json_pack(
        "{s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "path",
        control_json_text(space->path), "kind", kind_name(space->kind), "disks",
        (json_int_t)space->disks, "desktops", (json_int_t)space->desktops, "virtual_bytes",
        (json_int_t)space->virtual_bytes, "mapped_bytes", (json_int_t)space->mapped_bytes,
        "unique_bytes", (json_int_t)space->unique_bytes, "shared_bytes",
        (json_int_t)space->shared_bytes, "compressed_bytes", (json_int_t)space->compressed_bytes,
        "delete_frees_bytes", (json_int_t)space->frees_bytes, "held_by", holder_json(space), "open",
        space->door ? json_string(space->door) : json_null());
    /* A desktop without what it has written is as good as new. */
    if (answer && space->kind != GILD_SPACE_IMAGE)
        json_object_set_new(answer, "refresh_frees_bytes",
                            json_integer((json_int_t)space->frees_bytes));
    if (answer && space->kind != GILD_SPACE_IMAGE)
        json_object_set_new(answer, "growth_bytes_per_day",
                            space->growth_known
                                ? json_integer((json_int_t)space->growth_bytes_per_day)
                                : json_null());
    return answer;
}

static int add_space(void *context, const struct gild_usage *space) {
    return json_array_append_new(context, space_json(space)) ? -ENOMEM : 0;
}

static json_t *rank(struct control_call *call, const char *target) {
    json_t *list = json_array();
    char quoted[GILD_NAME_QUOTED];
    if (target && strchr(target, '/')) {
        gild_fail(call->error, GILD_USAGE, EINVAL,
                  "space: what could be deleted is listed for the store or for a pool, and '%s' is "
                  "one disk",
                  gild_name_quote(target, quoted));
    } else if (gild_space_rank(call->store, target, add_space, list, call->error) == 0) {
        return list;
    }
    json_decref(list);
    return NULL;
}

static json_t *totals(struct control_call *call) {
    struct gild_space_totals totals;
    if (gild_space_totals(call->store, &totals, call->error))
        return NULL;
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"desktops", totals.info.desktops},
        {"virtual_bytes", totals.virtual_bytes},
        {"mapped_bytes", totals.mapped_bytes},
        {"unique_bytes", totals.unique_bytes},
        {"shared_bytes", totals.shared_bytes},
        {"compressed_bytes", totals.compressed_bytes},
        {"dead_bytes", totals.dead_bytes},
        {"pack_bytes", totals.info.pack_bytes},
        {"log_bytes", totals.info.log_bytes},
        {"map_bytes", totals.info.map_bytes},
        {"catalogue_bytes", totals.info.catalogue_bytes},
        {"used_bytes", totals.info.used_bytes},
        {"free_bytes", totals.info.free_bytes},
        {"capacity_bytes", totals.info.capacity_bytes},
    };
    json_t *answer = json_object();
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        json_object_set_new(answer, numbers[i].key, json_integer((json_int_t)numbers[i].value));
    json_object_set_new(answer, "growth_bytes_per_day",
                        totals.growth_known ? json_integer((json_int_t)totals.growth_bytes_per_day)
                                            : json_null());
    json_object_set_new(answer, "days_to_full",
                        totals.days_to_full != UINT64_MAX
                            ? json_integer((json_int_t)totals.days_to_full)
                            : json_null());
    return answer;
}

json_t *control_space_show(struct control_call *call) {
    const char *target = control_text(call, "target");
    struct gild_usage space;
    if (control_flag(call, "reclaimable"))
        return rank(call, target);
    if (!target)
        return totals(call);
    return gild_space_of(call->store, target, &space, call->error) ? NULL : space_json(&space);
}

/* The names of those that stand on a version. */
struct standing {
    json_t *names;
    const char *image; /* "win10@3" */
};

static int add_standing(void *context, const struct gild_desktop_info *info) {
    struct standing *standing = context;
    char image[GILD_NAME_MAX + 16];
    snprintf(image, sizeof image, "%s@%" PRIu32, info->record.image, info->record.version);
    if (strcmp(image, standing->image) != 0)
        return 0;
    return json_array_append_new(standing->names, json_string(info->name)) ? -ENOMEM : 0;
}

json_t *control_who_show(struct control_call *call) {
    const char *path = control_text(call, "path");
    struct gild_usage space;
    struct gild_desktop_info info;
    if (gild_space_of(call->store, path, &space, call->error))
        return NULL;
    json_t *answer = space_json(&space);
    if (space.kind == GILD_SPACE_IMAGE) {
        struct standing standing = {json_array(), space.path + strlen("images/")};
        int result = gild_desktop_list(call->store, NULL, add_standing, &standing, call->error);
        json_object_set_new(answer, "desktop_names", standing.names);
        if (result) {
            json_decref(answer);
            return NULL;
        }
    } else if (space.kind == GILD_SPACE_DESKTOP) {
        char name[GILD_NAME_MAX + 1];
        size_t length = strlen(space.path) - strlen("desktops/") - strlen("/os");
        memcpy(name, space.path + strlen("desktops/"), length);
        name[length] = 0;
        if (gild_desktop_show(call->store, name, &info, call->error)) {
            json_decref(answer);
            return NULL;
        }
        json_object_set_new(answer, "image",
                            control_json_reference(info.record.image, info.record.version));
        json_object_set_new(answer, "pool",
                            info.record.pool[0] ? json_string(info.record.pool) : json_null());
    }
    return answer;
}
