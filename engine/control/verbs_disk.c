/* The verbs on one disk: what a hypervisor needs to attach it, as URI, QEMU words or libvirt XML.
 * Any thread but a reactor's.
 *
 * Without --transport the daemon's first Unix socket is taken, then its first TCP port, then its
 * mount. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/control.h"
#include "gild/disk.h"
#include "vdi/names.h"

struct found {
    struct control_address address;
    char serial[21];
};

static int find_disk(struct control_call *call, struct found *found) {
    struct gild_path_info info;
    char quoted[GILD_NAME_QUOTED];
    const char *path = control_text(call, "path");
    int result = gild_path_stat(call->store, path, &info);
    if (result == 0 && info.directory)
        return gild_fail(call->error, GILD_USAGE, EISDIR,
                         "'%s' is a folder of disks; name one disk in it, such as desktops/d1/os",
                         gild_name_quote(path, quoted));
    if (result == 0)
        result = gild_path_serial(call->store, path, found->serial);
    if (result == -ENOENT || result == -ENOTDIR)
        return gild_fail(call->error, GILD_NOT_FOUND, ENOENT,
                         "there is no disk '%s'; `gild desktop list` and `gild image list` show "
                         "what there is",
                         gild_name_quote(path, quoted));
    if (result)
        return gild_fail(call->error, gild_code_of_errno(result), -result,
                         "disk '%s' can not be looked up: %s", gild_name_quote(path, quoted),
                         strerror(-result));
    found->address.disk = path;
    found->address.serial = found->serial;
    found->address.read_only = info.read_only;
    struct gild_loop *loop = gild_store_reactor(call->store, 0);
    found->address.io_uring = strcmp(gild_loop_backend_name(loop), "io_uring") == 0;
    return 0;
}

/* True if the daemon has an NBD door. */
static bool find_nbd(const struct gild_control_doors *doors, struct control_door *door) {
    bool found = false;
    for (size_t i = 0; doors->nbd && doors->nbd[i]; i++) {
        struct control_door other;
        if (!control_door_parse(doors->nbd[i], &other) || (found && (other.tcp || !door->tcp)))
            continue;
        *door = other;
        found = true;
    }
    return found;
}

static int find_door(struct control_call *call, struct control_address *address) {
    const char *transport = control_text(call, "transport");
    const char *store = gild_store_directory(call->store);
    bool nbd = !transport || strcmp(transport, "nbd") == 0;
    bool fuse = !transport || strcmp(transport, "fuse") == 0;
    if (!nbd && !fuse)
        return gild_fail(call->error, GILD_USAGE, EINVAL,
                         "there is no such transport; use nbd or fuse");
    if (!call->doors)
        return gild_fail(call->error, GILD_FAILED, ENOTCONN,
                         "no daemon serves store %s; start one with `gildd --store %s --nbd "
                         "unix:PATH`",
                         store, store);
    if (nbd && find_nbd(call->doors, &address->door))
        return 0;
    if (fuse && call->doors->mount) {
        address->mount = call->doors->mount;
        return 0;
    }
    return gild_fail(call->error, GILD_FAILED, ENOTCONN,
                     "the daemon of store %s has no %s; start it with %s too", store,
                     !fuse  ? "NBD socket"
                     : !nbd ? "mount"
                            : "NBD socket and no mount",
                     !fuse  ? "--nbd unix:PATH"
                     : !nbd ? "--mount DIR"
                            : "--nbd unix:PATH or --mount DIR");
}

static int find(struct control_call *call, struct found *found) {
    memset(found, 0, sizeof *found);
    int result = find_disk(call, found);
    return result ? result : find_door(call, &found->address);
}

/* {"path", "transport", "serial", "read_only", [KEY]: text}. Frees the text. */
static json_t *answer_of(const struct found *found, const char *key, char *text) {
    const struct control_address *address = &found->address;
    json_t *answer = json_pack("{s:s, s:s, s:s, s:b}", "path", address->disk, "transport",
                               address->mount ? "fuse" : "nbd", "serial", address->serial,
                               "read_only", address->read_only);
    int bad = !text || json_object_set_new(answer, key, control_json_text(text));
    free(text);
    if (!bad && address->mount) {
        char *file = control_address_file(address);
        bad = !file || json_object_set_new(answer, "file", control_json_text(file));
        free(file);
    }
    if (!bad)
        return answer;
    json_decref(answer);
    return NULL;
}

json_t *control_disk_uri(struct control_call *call) {
    struct found found;
    return find(call, &found) ? NULL
                              : answer_of(&found, "uri", control_address_uri(&found.address));
}

json_t *control_disk_xml(struct control_call *call) {
    struct found found;
    return find(call, &found) ? NULL
                              : answer_of(&found, "xml", control_address_xml(&found.address));
}

json_t *control_disk_qemu(struct control_call *call) {
    struct found found;
    char *words[4];
    if (find(call, &found) || !control_address_qemu(&found.address, words))
        return NULL;
    json_t *answer = answer_of(&found, "qemu", control_shell_line(words, 4));
    json_t *arguments = json_array();
    for (size_t i = 0; i < 4; i++) {
        json_array_append_new(arguments, control_json_text(words[i]));
        free(words[i]);
    }
    json_object_set_new(answer, "arguments", arguments);
    return answer;
}
