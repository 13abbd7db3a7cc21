/* `store check --repair`: the one verb besides `store init` that has no open store, since it is
 * there for stores that do not open. It needs the store to itself: a daemon that answers, or any
 * other holder, is a refusal. Any thread but a reactor's; blocking. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control/control.h"

/* A store in ruins has more to say than anybody reads; the counts tell the rest. */
#define ENTRIES_MAX 1000u

struct notes {
    json_t *repaired, *lost, *quarantined;
};

static void note(json_t *list, json_t *entry) {
    if (json_array_size(list) < ENTRIES_MAX)
        json_array_append_new(list, entry);
    else
        json_decref(entry);
}

static void note_repaired(void *context, const char *sentence) {
    note(((struct notes *)context)->repaired, control_json_text(sentence));
}

static void note_lost(void *context, const char *disk, uint64_t first_block, uint64_t blocks) {
    note(((struct notes *)context)->lost,
         json_pack("{s:o, s:I, s:I}", "disk", control_json_text(disk), "first_block",
                   (json_int_t)first_block, "blocks", (json_int_t)blocks));
}

static void note_quarantined(void *context, const char *disk, const char *why) {
    note(((struct notes *)context)->quarantined,
         json_pack("{s:o, s:o}", "disk", control_json_text(disk), "why", control_json_text(why)));
}

/* Even one whose superblock is gone, and with it the file that it has locked. */
static bool daemon_answers(const char *directory) {
    struct sockaddr_un address;
    int folder_fd;
    if (control_socket_address(directory, &address, &folder_fd))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answers = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        close(fd);
    if (folder_fd >= 0)
        close(folder_fd);
    return answers;
}

int control_repair_refuse_served(const char *directory, struct gild_error *error) {
    return gild_fail(error, GILD_BUSY, EBUSY,
                     "store %s is served by a daemon, and a repair needs it to itself: stop the "
                     "daemon, then repair",
                     directory);
}

/* What is not well after the repair, or what a dry run has found. */
static void add_error(json_t *answer, const char *directory, bool dry_run,
                      const struct gild_repair_result *result) {
    struct gild_error error = {0};
    if (dry_run && result->repaired)
        gild_fail(
            &error, GILD_CORRUPT, EUCLEAN,
            "store %s is damaged: %llu repairs would leave %llu blocks lost and %llu disks in "
            "quarantine; nothing was changed",
            directory, (unsigned long long)result->repaired,
            (unsigned long long)result->lost_blocks, (unsigned long long)result->quarantined);
    else if (result->lost_blocks || result->quarantined)
        gild_fail(&error, GILD_CORRUPT, EUCLEAN,
                  "store %s opens, but %llu blocks are lost and %llu disks are in quarantine: "
                  "restore what is named from a backup, or delete it",
                  directory, (unsigned long long)result->lost_blocks,
                  (unsigned long long)result->quarantined);
    if (!error.code)
        return;
    json_t *outcome = control_error_json(&error);
    json_object_update(answer, outcome);
    json_decref(outcome);
}

json_t *control_store_repair(const char *directory, json_t *args, struct gild_error *error) {
    bool dry_run = json_is_true(json_object_get(args, "dry_run"));
    struct notes notes = {json_array(), json_array(), json_array()};
    const struct gild_repair_report report = {note_repaired, note_lost, note_quarantined, &notes};
    struct gild_repair_result result;
    int err = daemon_answers(directory)
                  ? control_repair_refuse_served(directory, error)
                  : gild_store_repair(directory, dry_run, &report, &result, error);
    json_t *answer =
        err ? NULL
            : json_pack("{s:b, s:b, s:O, s:O, s:O, s:I, s:I, s:I, s:I}", "dry_run", dry_run,
                        "clean", !result.repaired && !result.lost_blocks && !result.quarantined,
                        "repaired", notes.repaired, "lost", notes.lost, "quarantined",
                        notes.quarantined, "repaired_count", (json_int_t)result.repaired,
                        "lost_count", (json_int_t)result.lost_ranges, "lost_blocks",
                        (json_int_t)result.lost_blocks, "quarantined_count",
                        (json_int_t)result.quarantined);
    json_decref(notes.repaired);
    json_decref(notes.lost);
    json_decref(notes.quarantined);
    if (answer)
        add_error(answer, directory, dry_run, &result);
    return answer;
}
