/* See judge.h. */
#include "judge.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gild/disk.h"
#include "gild/nbd.h"
#include "gild/store.h"
#include "nbd_client.h"
#include "rig.h"

#define READ_BLOCKS 64u

static void note(struct judgement *judgement, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void note(struct judgement *judgement, const char *format, ...) {
    va_list arguments;
    if (judgement->text[0])
        return;
    va_start(arguments, format);
    vsnprintf(judgement->text, sizeof judgement->text, format, arguments);
    va_end(arguments);
}

static struct gild_store *open_store(const char *store, struct gild_error *error) {
    struct gild_store_options options = {.threads = 1,
                                         .cache_bytes = 16u << 20,
                                         .backend = GILD_LOOP_AUTO,
                                         .offline = true,
                                         .segment_blocks = RIG_SMALL_SEGMENT};
    struct gild_store *opened = NULL;
    return gild_store_open(store, &options, &opened, error) ? NULL : opened;
}

/* ---- disks and paths ------------------------------------------------------------------------- */

static void judge_blocks(const struct oracle_disk *disk, int connection, uint64_t as_of,
                         struct judgement *judgement) {
    static uint8_t bytes[READ_BLOCKS * ORACLE_BLOCK];
    for (uint32_t first = 0; first < disk->block_count; first += READ_BLOCKS) {
        uint32_t count = disk->block_count - first;
        if (count > READ_BLOCKS)
            count = READ_BLOCKS;
        int error = nbd_client_do(connection, false, 0, NBD_CMD_READ,
                                  (uint64_t)first * ORACLE_BLOCK, count * ORACLE_BLOCK, bytes);
        if (error) {
            judgement->lost += count;
            note(judgement, "%s: blocks %u to %u can not be read: error %d", disk->path, first,
                 first + count - 1, error);
            continue;
        }
        for (uint32_t i = 0; i < count; i++) {
            bool lost;
            const char *wrong =
                oracle_judge(disk, first + i, bytes + i * ORACLE_BLOCK, as_of, &lost);
            if (!wrong)
                continue;
            judgement->lost += lost;
            judgement->wrong += !lost;
            note(judgement, "%s", wrong);
        }
    }
}

static bool exists(struct gild_store *store, const char *path) {
    struct gild_path_info info;
    return gild_path_stat(store, path, &info) == 0;
}

static void judge_disks(struct gild_store *store, const char *socket, const struct oracle *oracle,
                        uint64_t as_of, struct judgement *judgement) {
    struct gild_nbd_server *server;
    struct gild_error error = {0};
    char where[120];
    snprintf(where, sizeof where, "unix:%s", socket);
    if (gild_nbd_serve(store, where, &server, &error)) {
        note(judgement, "no NBD door: %s", error.message);
        judgement->paths++;
        return;
    }
    for (unsigned i = 0; i < oracle->disk_count; i++) {
        if (!exists(store, oracle->disks[i]->path))
            continue;
        int connection = nbd_client_open(where, oracle->disks[i]->path, false, NULL);
        if (connection < 0) {
            note(judgement, "%s can not be opened", oracle->disks[i]->path);
            judgement->paths++;
            continue;
        }
        judge_blocks(oracle->disks[i], connection, as_of, judgement);
        close(connection);
    }
    gild_nbd_stop(server, 10000);
}

static void judge_paths(struct gild_store *store, const struct oracle *oracle, uint64_t as_of,
                        struct judgement *judgement) {
    for (unsigned i = 0; i < oracle->path_count; i++) {
        const char *path = oracle->paths[i].path;
        bool may, must, there = exists(store, path);
        oracle_path_state(oracle, path, as_of, &may, &must);
        if ((there && !may) || (!there && must)) {
            judgement->paths++;
            note(judgement, "%s %s", path, there ? "is there" : "is not there");
        }
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static uint64_t count_files(const char *store, const char *folder, const char *suffix,
                            struct judgement *judgement) {
    char path[1024];
    uint64_t count = 0;
    struct dirent *entry;
    snprintf(path, sizeof path, "%s/%s", store, folder);
    DIR *stream = opendir(path);
    while (stream && (entry = readdir(stream))) {
        size_t length = strlen(entry->d_name), tail = strlen(suffix);
        if (entry->d_name[0] == '.')
            continue;
        if (length > tail && strcmp(entry->d_name + length - tail, suffix) == 0) {
            count++;
        } else {
            judgement->orphans++;
            note(judgement, "%s/%s is nobody's file", folder, entry->d_name);
        }
    }
    if (stream)
        closedir(stream);
    return count;
}

static void judge_files(const char *store, const struct gild_check_result *counted,
                        struct judgement *judgement) {
    uint64_t packs = count_files(store, "packs", ".pack", judgement);
    uint64_t maps = count_files(store, "maps", ".map", judgement);
    uint64_t segments = count_files(store, "log", ".seg", judgement);
    if (packs != counted->packs || maps != counted->maps || segments != counted->segments) {
        judgement->orphans++;
        note(judgement,
             "%llu packs, %llu maps, %llu segments in the folders, %llu, %llu, %llu in the "
             "catalogue",
             (unsigned long long)packs, (unsigned long long)maps, (unsigned long long)segments,
             (unsigned long long)counted->packs, (unsigned long long)counted->maps,
             (unsigned long long)counted->segments);
    }
}

/* ---- the child ------------------------------------------------------------------------------- */

static void note_finding(void *context, const struct gild_finding *finding) {
    note(context, "check: %s", finding->message);
}

static void check_store(struct gild_store *store, struct gild_check_result *result,
                        struct judgement *judgement) {
    struct gild_error error = {0};
    int status = gild_store_check(store, note_finding, judgement, result, &error);
    judgement->findings += result->findings;
    if (status && !result->findings) {
        judgement->findings++;
        note(judgement, "the check failed: %s", error.message);
    }
}

static void judge_here(const char *directory, const char *socket, const struct oracle *oracle,
                       uint64_t as_of, struct judgement *judgement) {
    struct gild_error error = {0};
    struct gild_check_result counted = {0};
    struct gild_store *store = open_store(directory, &error);
    judgement->opened = store != NULL;
    if (!store) {
        if (oracle->made_at <= as_of)
            note(judgement, "the store can not be opened: %s", error.message);
        return;
    }
    check_store(store, &counted, judgement);
    judge_paths(store, oracle, as_of, judgement);
    judge_disks(store, socket, oracle, as_of, judgement);
    if (gild_store_close(store, &error)) {
        judgement->findings++;
        note(judgement, "the store can not be closed: %s", error.message);
    }
    store = open_store(directory, &error);
    if (!store) {
        judgement->findings++;
        note(judgement, "the store can not be opened once more: %s", error.message);
        return;
    }
    check_store(store, &counted, judgement);
    judge_files(directory, &counted, judgement);
    if (gild_store_close(store, &error)) {
        judgement->findings++;
        note(judgement, "the store can not be closed once more: %s", error.message);
    }
}

void judge_store(const char *store, const char *socket, const struct oracle *oracle, uint64_t as_of,
                 struct judgement *judgement) {
    struct judgement *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) /* the engine's log: each state has a lot to say */
            _exit(125);
        judge_here(store, socket, oracle, as_of, shared);
        _exit(0);
    }
    int code = pid < 0 ? 126 : rig_wait(pid);
    *judgement = *shared;
    munmap(shared, sizeof *shared);
    if (code == 0)
        return;
    judgement->findings++;
    judgement->text[0] = 0;
    note(judgement, "the engine ended with %d where it opens, checks and reads the store", code);
}
