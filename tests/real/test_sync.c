/* D5 in the real process: sync number N of a running daemon fails with EIO (fdatasync, fsync, a
 * write with RWF_DSYNC or on a descriptor with O_DSYNC, by itself or through io_uring; LMDB's own
 * too). What depends on it fails and says EIO, reads go on, a segment whose sync failed is never
 * synced again, and a restart serves what was flushed before.
 *
 *   test_sync [--all] [--points N] [--seed N] [--workload NAME] */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbd_client.h"
#include "options.h"
#include "workload.h"

#define ROUNDS 14u

static const struct {
    const char *name, *backend;
    bool small;
} workloads[] = {
    {"uring", "auto", true},
    {"threads", "threads", true},
    {"gildd", "auto", false},
};

struct outcome {
    uint64_t syncs;
    bool fired, served, guest_saw; /* of the failure */
    char failed[128];
};

/* What the server says when it refuses an export. */
static const char *refusal(const struct rig *rig, const char *path) {
    static struct nbd_client_reply reply;
    uint8_t data[256];
    reply.data[0] = 0;
    int fd = nbd_client_connect(rig->socket);
    if (fd < 0)
        return "nobody answers";
    if (nbd_client_greeting(fd) &&
        nbd_client_flags(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        nbd_client_ask(fd, NBD_OPT_GO, data, nbd_client_go_data(data, path, 0, NULL), &reply);
    close(fd);
    return (const char *)reply.data;
}

/* Reads every disk of a daemon whose writes may have failed. */
static bool reads_go_on(struct workload *workload, const char *when) {
    static uint8_t bytes[ORACLE_BLOCK];
    bool good = true;
    for (unsigned i = 0; i < workload->guests.count && good; i++) {
        const struct oracle_disk *disk = workload->guests.disks[i];
        int connection = nbd_client_open(workload->rig.socket, disk->path, false, NULL);
        if (connection < 0) {
            printf("%s: %s can not be opened for reading: %s\n", when, disk->path,
                   refusal(&workload->rig, disk->path));
            return false;
        }
        for (uint32_t block = 0; block < disk->block_count && good; block++) {
            bool lost;
            int error = nbd_client_do(connection, false, 0, NBD_CMD_READ,
                                      (uint64_t)block * ORACLE_BLOCK, ORACLE_BLOCK, bytes);
            const char *wrong = error ? "it can not be read"
                                      : oracle_judge(disk, block, bytes, ORACLE_LATEST, &lost);
            if (wrong)
                printf("%s: %s, block %u, error %d: %s\n", when, disk->path, block, error, wrong);
            good = !wrong;
        }
        close(connection);
    }
    return good;
}

/* No segment of the log is synced again once the failure is known (`since`: syncs that were under
 * way when it failed have ended). */
static bool nothing_is_retried(const struct trace_head *head, uint64_t since, const char *when) {
    uint64_t failed_file = 0, at = TRACE_FIRST, here;
    const struct trace_event *event, *begun;
    if (strncmp(head->sync_failed, "log/", 4) != 0)
        return true;
    while (here = at, (event = trace_at(head, at, &at))) {
        uint64_t ignored;
        if (failed_file && here > since && event->file == failed_file &&
            (event->kind == TRACE_SYNC ||
             (event->kind == TRACE_WRITE && event->flags & TRACE_DSYNC))) {
            printf("%s: %s is synced again\n", when, head->sync_failed);
            return false;
        }
        if (event->kind == TRACE_END && event->result == -EIO &&
            (begun = trace_at(head, event->ref, &ignored)))
            failed_file = begun->file;
    }
    return true;
}

/* What the guests do once a request has failed: one more round, which must not break anything. */
static bool guests_run(struct workload *workload, bool small) {
    struct guests *guests = &workload->guests;
    bool good = true;
    for (unsigned i = 0; i < ROUNDS && good; i++) {
        good = guests_round(guests);
        if (good && small && i % 6 == 5)
            guests_checkpoint(guests); /* it may fail: the guests go on */
    }
    return good;
}

static bool once(size_t which, uint64_t sync_at, uint64_t seed, struct outcome *outcome) {
    struct workload workload;
    char when[80];
    workload_make(&workload, seed);
    snprintf(when, sizeof when, "%s, sync %" PRIu64 " fails", workloads[which].name, sync_at);
    bool good = workload_prepare(&workload);
    rig_forget(&workload.rig, true);
    struct trace_head *head = workload.rig.head;
    head->sync_at = sync_at;
    struct guests *guests = &workload.guests;
    outcome->served =
        good && rig_daemon_start(&workload.rig, workloads[which].small, workloads[which].backend);
    bool went_well =
        outcome->served && guests_connect(guests) && guests_run(&workload, workloads[which].small);
    uint64_t since = rig_now(&workload.rig);
    if (outcome->served && !went_well)
        guests_round(guests);
    guests_leave(guests);
    if (outcome->served && rig_daemon_is_gone(&workload.rig)) {
        printf("%s: the daemon ended with %d: %s\n", when, workload.rig.daemon_code,
               rig_log(&workload.rig));
        good = false;
    } else if (outcome->served) {
        good = good && reads_go_on(&workload, when);
    }
    int code = rig_daemon_stop(&workload.rig);
    outcome->fired = head->sync_failed[0];
    outcome->syncs = atomic_load(&head->syncs);
    outcome->guest_saw = guests->eio != 0;
    memcpy(outcome->failed, head->sync_failed, sizeof outcome->failed);
    if (code != 0 && code != 1) {
        printf("%s (%s): the daemon's exit code is %d: %s\n", when, head->sync_failed, code,
               rig_log(&workload.rig));
        good = false;
    }
    if (guests->refused) {
        printf("%s (%s): a guest saw error %d instead of EIO\n", when, head->sync_failed,
               guests->refused_with);
        good = false;
    }
    if (!sync_at && (!went_well || code)) {
        printf("%s: without a failure it fails: exit code %d: %s\n", when, code,
               rig_log(&workload.rig));
        good = false;
    }
    head->recording = false;
    good = nothing_is_retried(head, since, when) && good;
    good = workload_judge(&workload, when) && good;
    workload_remove(&workload);
    return good;
}

static bool fail_all(size_t which, const struct options *options) {
    struct outcome outcome;
    uint64_t bad = 0, fired = 0, saw = 0, not_served = 0, of_log = 0;
    if (!once(which, 0, options->seed, &outcome))
        return false;
    uint64_t syncs = outcome.syncs;
    for (uint64_t i = 0; i < options_points(options, syncs); i++) {
        bad += !once(which, options_place(options, i, syncs), options->seed, &outcome);
        fired += outcome.fired;
        saw += outcome.guest_saw;
        not_served += !outcome.served;
        of_log += strncmp(outcome.failed, "log/", 4) == 0;
    }
    printf("%s: %" PRIu64 " syncs, %" PRIu64 " made to fail (%" PRIu64
           " of the log); a guest saw "
           "EIO in %" PRIu64 " runs, the daemon did not start in %" PRIu64 "; %" PRIu64 " bad\n",
           workloads[which].name, syncs, fired, of_log, saw, not_served, bad);
    fflush(stdout);
    return bad == 0;
}

int main(int argc, char **argv) {
    const struct options options = options_read(argc, argv, 12);
    bool good = true;
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (options_want(&options, workloads[i].name))
            good &= fail_all(i, &options);
    return good ? 0 : 1;
}
