/* See workload.h. */
#include "workload.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "judge.h"

#define ROUNDS_PER_CHECKPOINT 6u

void workload_make(struct workload *workload, uint64_t seed) {
    uint8_t bytes[ORACLE_BLOCK];
    memset(workload, 0, sizeof *workload);
    rig_make(&workload->rig);
    oracle_init(&workload->oracle);
    guests_init(&workload->guests, &workload->rig, &workload->oracle, seed);
    snprintf(workload->source, sizeof workload->source, "%s/image.raw", workload->rig.work);
    int fd = open(workload->source, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    for (uint32_t block = 0; block < WORKLOAD_BLOCKS; block++) {
        oracle_fill(WORKLOAD_IMAGE, block, 0, bytes);
        if (write(fd, bytes, sizeof bytes) != (ssize_t)sizeof bytes)
            abort();
    }
    close(fd);
}

void workload_remove(struct workload *workload) {
    guests_leave(&workload->guests);
    rig_remove(&workload->rig);
    oracle_fini(&workload->oracle);
}

/* ---- steps ----------------------------------------------------------------------------------- */

bool workload_store_init(struct workload *workload) {
    workload->code = rig_gild(&workload->rig, "store", "init", NULL);
    if (workload->code == 0)
        workload->oracle.made_at = rig_now(&workload->rig);
    return workload->code == 0;
}

bool workload_import(struct workload *workload, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "images/%s@1", name);
    unsigned entry = oracle_path_sent(&workload->oracle, path, true, rig_now(&workload->rig));
    oracle_add_disk(&workload->oracle, path, WORKLOAD_IMAGE, WORKLOAD_BLOCKS);
    workload->code = rig_gild(&workload->rig, "image", "import", name, workload->source, NULL);
    if (workload->code == 0)
        workload->oracle.paths[entry].acknowledged = rig_now(&workload->rig);
    return workload->code == 0;
}

bool workload_desktop(struct workload *workload, const char *name, bool join) {
    char path[64];
    snprintf(path, sizeof path, "desktops/%s/os", name);
    unsigned entry = oracle_path_sent(&workload->oracle, path, true, rig_now(&workload->rig));
    struct oracle_disk *disk =
        oracle_add_disk(&workload->oracle, path, WORKLOAD_IMAGE, WORKLOAD_BLOCKS);
    if (join)
        guests_add(&workload->guests, disk);
    workload->code = rig_gild(&workload->rig, "desktop", "create", name, "--image", "img@1", NULL);
    if (workload->code == 0)
        workload->oracle.paths[entry].acknowledged = rig_now(&workload->rig);
    return workload->code == 0;
}

bool workload_desktop_delete(struct workload *workload, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "desktops/%s/os", name);
    unsigned entry = oracle_path_sent(&workload->oracle, path, false, rig_now(&workload->rig));
    workload->code = rig_gild(&workload->rig, "desktop", "delete", name, NULL);
    if (workload->code == 0)
        workload->oracle.paths[entry].acknowledged = rig_now(&workload->rig);
    return workload->code == 0;
}

static unsigned pool_sent(struct workload *workload, const char *name, unsigned count,
                          bool exists) {
    char path[64];
    uint64_t at = rig_now(&workload->rig);
    unsigned first = workload->oracle.path_count;
    for (unsigned i = 1; i <= count; i++) {
        snprintf(path, sizeof path, "desktops/%s%u/os", name, i);
        oracle_path_sent(&workload->oracle, path, exists, at);
    }
    return first;
}

static bool pool_answered(struct workload *workload, unsigned first, unsigned count) {
    uint64_t at = rig_now(&workload->rig);
    for (unsigned i = 0; i < count && workload->code == 0; i++)
        workload->oracle.paths[first + i].acknowledged = at;
    return workload->code == 0;
}

bool workload_pool(struct workload *workload, const char *name, unsigned count) {
    char number[16], pattern[64];
    unsigned first = pool_sent(workload, name, count, true);
    snprintf(number, sizeof number, "%u", count);
    snprintf(pattern, sizeof pattern, "%s%%d", name);
    workload->code = rig_gild(&workload->rig, "pool", "create", name, "--image", "img@1", "--count",
                              number, "--name-pattern", pattern, NULL);
    return pool_answered(workload, first, count);
}

bool workload_pool_delete(struct workload *workload, const char *name, unsigned count) {
    unsigned first = pool_sent(workload, name, count, false);
    workload->code = rig_gild(&workload->rig, "pool", "delete", name, NULL);
    return pool_answered(workload, first, count);
}

bool workload_prepare(struct workload *workload) {
    workload->rig.head->recording = false;
    return workload_store_init(workload) && workload_import(workload, "img") &&
           workload_desktop(workload, "d1", true) && workload_desktop(workload, "d2", true);
}

bool workload_daemon(struct workload *workload, bool small, const char *backend, unsigned rounds) {
    struct guests *guests = &workload->guests;
    bool good = rig_daemon_start(&workload->rig, small, backend) && guests_connect(guests);
    for (unsigned i = 0; i < rounds && good; i++) {
        good = guests_round(guests);
        if (good && small && i % ROUNDS_PER_CHECKPOINT == ROUNDS_PER_CHECKPOINT - 1)
            good = guests_checkpoint(guests);
    }
    guests_leave(guests);
    workload->code = rig_daemon_stop(&workload->rig);
    return good && workload->code == 0;
}

bool workload_judge(struct workload *workload, const char *when) {
    struct judgement judgement;
    char socket[100];
    snprintf(socket, sizeof socket, "%s/judge", workload->rig.work);
    int code = 0;
    if (workload->oracle.made_at != ORACLE_NEVER)
        code = rig_plain_gild(&workload->rig, "store", "check", NULL);
    if (code)
        printf("%s: gild store check: exit code %d: %s\n", when, code, rig_log(&workload->rig));
    judge_store(workload->rig.store, socket, &workload->oracle, ORACLE_LATEST, &judgement);
    if (judgement.text[0])
        printf("%s: %s\n", when, judgement.text);
    return code == 0 && !judgement.text[0];
}
