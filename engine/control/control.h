/* Between the files of this folder: a verb's call, its checked arguments, its answer.
 *
 * A verb is a row of the table in run.c. The row names the arguments, so that a verb is only called
 * with those that it knows, each of the right type, none that it needs missing. Verbs block; they
 * run on any thread but a reactor's. */
#ifndef GILD_CONTROL_PRIVATE_H
#define GILD_CONTROL_PRIVATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "gild/control.h"
#include "gild/error.h"
#include "vdi/vdi.h"

struct control_call {
    struct gild_store *store;
    const struct gild_control_doors *doors; /* NULL: the store is open in a command, not served */
    json_t *args;                           /* an object, checked */
    gild_control_progress *progress;        /* may be NULL */
    void *context;
    struct gild_error *error;
};

/* A new reference, or NULL with *call->error set. An answer may carry an "error" beside its facts
 * (a check that found something does): that is the verb's outcome. */
typedef json_t *control_verb(struct control_call *call);

control_verb control_store_info, control_store_check, control_store_scrub, control_store_gc;
control_verb control_image_import, control_image_list, control_image_show, control_image_delete;
control_verb control_desktop_create, control_desktop_list, control_desktop_show,
    control_desktop_delete;
control_verb control_pool_create, control_pool_list, control_pool_show, control_pool_delete;
control_verb control_space_show, control_who_show;
control_verb control_limit_set, control_limit_show, control_events_show;
control_verb control_disk_uri, control_disk_qemu, control_disk_xml;

/* ---- arguments: checked by the table, so these can not fail ---------------------------------- */

const char *control_text(const struct control_call *call, const char *name); /* NULL: absent */
uint64_t control_number(const struct control_call *call, const char *name);  /* 0: absent */
bool control_flag(const struct control_call *call, const char *name);        /* false: absent */

/* What a verb that has succeeded did goes into the store's events: who asked, to what. */
void control_note_event(const struct control_call *call, const char *noun, const char *verb,
                        const json_t *answer, uid_t uid);

/* `store init`: the one verb that has no open store. */
json_t *control_store_init(const char *directory, json_t *args, struct gild_error *error);

/* `store check` with `repair`: that, too, is done with no open store. The second checks the
 * arguments first. */
json_t *control_store_repair(const char *directory, json_t *args, struct gild_error *error);
json_t *control_check_repair(const char *directory, json_t *args, struct gild_error *error);
/* -EBUSY: what a daemon says to it. */
int control_repair_refuse_served(const char *directory, struct gild_error *error);

/* ---- running --------------------------------------------------------------------------------- */

struct control_request {
    json_t *json; /* owns what is below */
    const char *noun, *verb;
    json_t *args; /* NULL: none were given */
};

/* 0, or -EINVAL with a sentence. The caller calls control_request_fini in any case. */
int control_request_parse(struct control_request *out, const char *text, struct gild_error *error);
void control_request_fini(struct control_request *request);

/* The answer's JSON, always set; a failure's too. A new reference. uid: who asks. */
json_t *control_run(struct gild_store *store, const struct gild_control_doors *doors, uid_t uid,
                    const char *request, gild_control_progress *progress, void *context);

/* ---- answers --------------------------------------------------------------------------------- */

json_t *control_error_json(const struct gild_error *error); /* {"error": {...}} */
/* The code that an answer carries; GILD_OK if it has no error. */
enum gild_code control_answer_code(const json_t *answer);
/* One line, for the caller to free. */
char *control_dump(const json_t *answer);

/* json_string that takes any bytes: what is not UTF-8 becomes '?'. */
json_t *control_json_text(const char *text);
json_t *control_json_time(uint64_t realtime_ns); /* "2026-03-14T09:26:53Z"; null for 0 */
json_t *control_json_hex(const uint8_t *bytes, size_t count);
json_t *control_json_reference(const char *image, uint32_t version); /* "win10@3" */
json_t *control_json_freed(const struct gild_freed *freed, bool dry_run);

/* ---- addresses of disks ---------------------------------------------------------------------- */

/* A door of the daemon, taken apart. */
struct control_door {
    bool tcp;
    char path[512]; /* a Unix socket's */
    char host[256]; /* without brackets; an address of "any" becomes "localhost" */
    char port[8];
};
/* False: not an address. */
bool control_door_parse(const char *where, struct control_door *out);

/* How a hypervisor reaches one disk. */
struct control_address {
    const char *disk; /* the disk's path */
    const char *serial;
    bool read_only;
    bool io_uring;            /* the host lets processes use it */
    struct control_door door; /* NBD */
    const char *mount;        /* not NULL: through the mount instead */
};
/* Each for the caller to free; NULL if there is no memory. */
char *control_address_file(const struct control_address *address); /* the mount's file */
char *control_address_uri(const struct control_address *address);
char *control_address_xml(const struct control_address *address);
/* The words of QEMU's command line: words[0..3], each to free. False: no memory. */
bool control_address_qemu(const struct control_address *address, char *words[4]);
/* The words as a shell takes them. */
char *control_shell_line(char *const words[], size_t count);

/* ---- the socket ------------------------------------------------------------------------------ */

#define CONTROL_SOCKET_NAME "control.sock"
#define CONTROL_RPC_PATH "/api/v1/rpc"

/* The address of the store's socket. A path that is too long for it goes through /proc/self/fd of
 * *folder_fd, which is -1 if that was not needed and the caller's to close once the address is of
 * no more use. 0 or -errno. */
int control_socket_address(const char *directory, struct sockaddr_un *out, int *folder_fd);

#endif
