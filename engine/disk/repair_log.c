/* A repair's part on the log: segments, and what of the log above the checkpoint is lost.
 *
 *   a segment's file is | whole               -> as in any open
 *                       | too short or long   -> made as long as its header says; what was cut off
 * is zero | of a damaged header -> the header is written anew, if batches inside are of | this
 * store and serial | else                -> missing: it stays in the table without a file until
 *                                                nothing names it (repair_deltas.c), then it is
 * forgotten
 *
 * No content is made up: each block and node has a check of its own, seeded with its segment, disk
 * and number. With a dry run a segment that would be mended is looked at in a copy in memory. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "disk/repair.h"
#include "io/file.h"
#include "log/recover.h"

#define COPY_BYTES (1u << 20)

struct pass {
    struct gild_store *store;
    struct gild_error *error;
    struct ids mended; /* gone, their records too */
    uint8_t *buffer;   /* COPY_BYTES */
};

/* ---- one segment's file -----------------------------------------------------------------------
 */

/* Is there a whole batch of this store and serial inside? Whatever the header says. */
static int has_batches(struct pass *pass, int fd, uint64_t serial, uint64_t blocks, bool *found) {
    uint32_t each = COPY_BYTES / GILD_LOG_BLOCK;
    *found = false;
    for (uint64_t at = 1; at < blocks && !*found; at += each) {
        uint64_t count = blocks - at < each ? blocks - at : each;
        int err = gild_file_read(fd, pass->buffer, count * GILD_LOG_BLOCK, at * GILD_LOG_BLOCK);
        if (err)
            return err;
        for (uint64_t i = 0; i < count && !*found; i++)
            *found =
                gild_batch_valid((const void *)(pass->buffer + i * GILD_LOG_BLOCK), pass->store->id,
                                 serial, (uint32_t)blocks, (uint32_t)(at + i));
    }
    return 0;
}

/* A copy without a name, as long as it should be. */
static int copy_in_memory(struct pass *pass, int fd, uint64_t bytes, uint64_t wanted, int *out) {
    int copy = memfd_create("segment", MFD_CLOEXEC);
    int err = copy < 0 || ftruncate(copy, (off_t)wanted) ? -errno : 0;
    uint64_t length = bytes < wanted ? bytes : wanted;
    for (uint64_t at = 0; at < length && !err; at += COPY_BYTES) {
        ssize_t n = gild_file_read_some(fd, pass->buffer, COPY_BYTES, at);
        if (n > (ssize_t)(length - at))
            n = (ssize_t)(length - at);
        err = n < 0 ? (int)n : gild_file_write(copy, pass->buffer, (size_t)n, at);
    }
    if (err && copy >= 0)
        close(copy);
    *out = copy;
    return err;
}

/* In place: cut off, or grown with zeroes, all of them written. */
static int make_long(struct pass *pass, int fd, uint64_t bytes, uint64_t wanted) {
    int err = bytes > wanted && ftruncate(fd, (off_t)wanted) ? -errno : 0;
    /* The last whole block first: a direct write begins at one. */
    uint64_t at = bytes / GILD_LOG_BLOCK * GILD_LOG_BLOCK;
    memset(pass->buffer, 0, COPY_BYTES);
    if (!err && at < bytes && at < wanted)
        err = ftruncate(fd, (off_t)at) ? -errno : 0;
    for (; at < wanted && !err; at += COPY_BYTES)
        err = gild_file_write(fd, pass->buffer, wanted - at < COPY_BYTES ? wanted - at : COPY_BYTES,
                              at);
    return err ? err : gild_file_sync(fd);
}

static int write_header(struct pass *pass, int fd, uint64_t serial, uint64_t blocks) {
    gild_segment_header_seal((void *)pass->buffer, pass->store->id, serial, (uint32_t)blocks);
    int err = gild_file_write(fd, pass->buffer, GILD_LOG_BLOCK, 0);
    return err ? err : gild_file_sync(fd);
}

struct look {
    uint64_t bytes, blocks; /* of the file; that it should have, 0: it is of no use */
    bool header_good;
};

static int look_at(struct pass *pass, int fd, uint64_t serial, struct look *look) {
    struct gild_segment_header *header = (void *)pass->buffer;
    bool found = false;
    *look = (struct look){0};
    int err = gild_file_size(fd, &look->bytes);
    uint64_t blocks = look->bytes / GILD_LOG_BLOCK;
    if (!err && blocks)
        err = gild_file_read(fd, header, GILD_LOG_BLOCK, 0);
    if (err || !blocks)
        return err;
    err = gild_segment_header_verify(header, pass->store->id, serial);
    look->header_good = err == 0;
    if (!err)
        look->blocks = header->blocks;
    if (err != -EBADMSG)
        return err;
    if (blocks < GILD_SEGMENT_LEAST_BLOCKS || blocks > GILD_SEGMENT_BLOCKS)
        return 0;
    err = has_batches(pass, fd, serial, blocks, &found);
    if (!err && found)
        look->blocks = blocks;
    return err;
}

/* *fd: what the table shall use, -1 if it is missing. */
static int mend_file(struct pass *pass, uint64_t serial, const struct look *look, int *fd) {
    uint64_t wanted = look->blocks * GILD_LOG_BLOCK;
    bool dry = pass->store->repair->dry_run;
    int err = 0, copy;
    if (look->bytes != wanted) {
        repair_say(pass->store->repair,
                   "log segment %016" PRIx64 " has %" PRIu64 " bytes instead of %" PRIu64
                   " and is made as long as it was",
                   serial, look->bytes, wanted);
        err = dry ? copy_in_memory(pass, *fd, look->bytes, wanted, &copy)
                  : make_long(pass, *fd, look->bytes, wanted);
        if (!err && dry) {
            close(*fd);
            *fd = copy;
        }
    }
    if (!err && !look->header_good) {
        repair_say(pass->store->repair, "the header of log segment %016" PRIx64 " is written anew",
                   serial);
        err = dry ? 0 : write_header(pass, *fd, serial, look->blocks);
    }
    return err;
}

static int add_missing(struct pass *pass, uint64_t serial, const struct gild_rec_segment *known) {
    struct gild_rec_segment record = {.state = GILD_SEGMENT_FULL,
                                      .holds_nodes = known->holds_nodes};
    if (known->state != GILD_SEGMENT_FULL && !known->holds_nodes)
        pass->store->repair->segment_missing = true;
    return gild_segments_adopt(pass->store->segments, serial, &record, -1, 0);
}

static int repair_segment(struct pass *pass, uint64_t serial,
                          const struct gild_rec_segment *record) {
    struct gild_store *store = pass->store;
    char name[32], path[4096 + 64], folder[4096];
    struct look look = {0};
    store_path(store, "log", folder);
    snprintf(name, sizeof name, "%016" PRIx64 ".seg", serial);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = gild_file_open(AT_FDCWD, path, O_RDWR | O_DIRECT, 0, NULL);
    int err = fd == -ENOENT ? 0 : fd < 0 ? fd : look_at(pass, fd, serial, &look);
    if (!err && look.blocks) {
        err = mend_file(pass, serial, &look, &fd);
        if (!err)
            err = gild_segments_adopt(store->segments, serial, record, fd, (uint32_t)look.blocks);
        if (!err)
            return 0;
    } else if (!err) {
        repair_say(store->repair,
                   fd < 0 ? "log segment %016" PRIx64 " is missing and is forgotten"
                          : "log segment %016" PRIx64
                            " can not be recognised: it goes to lost+found and is forgotten",
                   serial);
        err = add_missing(pass, serial, record);
        if (fd >= 0)
            close(fd);
        return err ? err
               : fd < 0 || store->repair->dry_run
                   ? 0
                   : repair_set_aside(store, "log", name, pass->error);
    }
    if (fd >= 0)
        close(fd);
    return gild_fail(pass->error, gild_code_of_errno(-err), -err,
                     err == -ENOTSUP
                         ? "the log segment %s has a newer format: use a newer gild (%s)"
                         : "the log segment %s can not be read or mended: %s",
                     path, strerror(-err));
}

static int each_segment(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct pass *pass = context;
    struct gild_rec_segment record;
    (void)key_length;
    int err = gild_rec_segment_decode(&record, value, length);
    return err ? repair_fail(pass->store, err, "the record of a log segment can not be read",
                             pass->error)
               : repair_segment(pass, gild_rec_key_u64(key), &record);
}

int repair_segments(struct gild_store *store, struct gild_error *error) {
    struct pass pass = {.store = store, .error = error, .buffer = gild_file_buffer(COPY_BYTES)};
    struct gild_txn *txn;
    int err = pass.buffer ? gild_txn_begin(store->catalog, false, &txn) : -ENOMEM;
    if (err) {
        free(pass.buffer);
        return repair_fail(store, err, "the log's segments can not be listed", error);
    }
    err = gild_txn_scan(txn, GILD_TABLE_SEGMENTS, NULL, 0, each_segment, &pass);
    gild_txn_abort(txn);
    free(pass.buffer);
    return err;
}

/* ---- the log above the checkpoint -------------------------------------------------------------
 */

struct tail {
    struct gild_store *store;
    struct ids deltas;      /* all that there are */
    struct ids quarantined; /* newly */
    int err;
};

static void lost_batches(void *context, uint64_t stream, uint64_t first, uint64_t last,
                         const uint64_t *filter) {
    struct tail *tail = context;
    size_t before = tail->quarantined.count;
    for (size_t i = 0; i < tail->deltas.count && !tail->err; i++)
        if (!filter || gild_batch_filter_may_have(filter, tail->deltas.id[i]))
            tail->err = ids_add(&tail->quarantined, tail->deltas.id[i]);
    size_t hit = tail->quarantined.count - before;
    if (last == UINT64_MAX)
        repair_say(tail->store->repair,
                   "stream %" PRIu64
                   " of the log ends in a segment that is missing, after batch "
                   "%" PRIu64 ": what followed is given up (%zu disks)",
                   stream, first - 1, hit);
    else
        repair_say(tail->store->repair,
                   "batches %" PRIu64 " to %" PRIu64 " of stream %" PRIu64
                   " of the log were flushed and are lost: the log goes on behind them (%zu "
                   "disks)",
                   first, last, stream, hit);
}

static int keep_entry(struct repair *repair, const struct gild_log_entry *entry, bool bad) {
    if (repair->tail_count == repair->tail_room) {
        size_t room = repair->tail_room ? 2 * repair->tail_room : 1024;
        struct tail_entry *grown = realloc(repair->tail, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        repair->tail = grown;
        repair->tail_room = room;
    }
    repair->tail[repair->tail_count++] =
        (struct tail_entry){entry->delta, entry->block, entry->count, bad};
    return 0;
}

static int look_batch(void *context, const struct gild_batch_header *header, const uint8_t *payload,
                      bool in_doubt) {
    struct tail *tail = context;
    uint32_t at = 0, rotten = 0;
    int err = 0;
    (void)in_doubt;
    for (uint32_t i = 0; i < header->entry_count && !err; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        bool bad = false;
        if (entry->kind == GILD_ENTRY_DATA || entry->kind == GILD_ENTRY_NODE) {
            bad = entry->check != gild_log_check(payload + (size_t)at * GILD_LOG_BLOCK,
                                                 header->serial, entry->delta, entry->block);
            at++;
        }
        rotten += bad;
        if (entry->kind != GILD_ENTRY_NODE && tail->store->repair->dry_run)
            err = keep_entry(tail->store->repair, entry, bad);
    }
    if (rotten)
        repair_say(tail->store->repair,
                   "batch %" PRIu64 " of stream %" PRIu64
                   " of the log is taken over although %" PRIu32 " of its blocks are rotten",
                   header->lsn, header->stream, rotten);
    return err;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Before the replay: a checkpoint that takes the log's rest for all that there was must not be
 * committed before this is known. */
static int commit_quarantine(struct tail *tail) {
    struct gild_rec_quarantine record = {.since_ns = now_ns()}, old;
    struct gild_txn *txn;
    if (!tail->quarantined.count || tail->store->repair->dry_run)
        return 0;
    snprintf(record.why, sizeof record.why,
             "flushed writes may be lost: a part of the log could not be read");
    int err = gild_txn_begin(tail->store->catalog, true, &txn);
    if (err)
        return err;
    for (size_t i = 0; i < tail->quarantined.count && !err; i++) {
        err = gild_rec_get_quarantine(txn, tail->quarantined.id[i], &old);
        if (err == -ENOENT)
            err = gild_rec_put_quarantine(txn, tail->quarantined.id[i], &record);
    }
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    return gild_txn_commit(txn);
}

/* All that are in quarantine, of now or of an earlier repair. */
static int tell_all(struct tail *tail) {
    struct gild_rec_quarantine record;
    struct gild_txn *txn;
    char text[64];
    int err = gild_txn_begin(tail->store->catalog, false, &txn);
    if (err)
        return err;
    ids_sort(&tail->quarantined);
    for (size_t i = 0; i < tail->deltas.count && !err; i++) {
        err = gild_rec_get_quarantine(txn, tail->deltas.id[i], &record);
        if (err == -ENOENT && ids_have(&tail->quarantined, tail->deltas.id[i])) {
            snprintf(record.why, sizeof record.why,
                     "flushed writes may be lost: a part of the log can not be read");
            err = 0;
        }
        if (!err)
            repair_tell_quarantined(
                tail->store->repair,
                repair_delta_name(tail->store->repair, tail->deltas.id[i], text), record.why);
        if (err == -ENOENT)
            err = 0;
    }
    gild_txn_abort(txn);
    return err;
}

int repair_tail(struct gild_store *store, struct gild_error *error) {
    struct tail tail = {.store = store};
    const struct gild_recover_repair recover = {.lost = lost_batches,
                                                .context = &tail,
                                                .segment_missing = store->repair->segment_missing,
                                                .only_look = true};
    int err = ids_read(store, GILD_TABLE_DELTAS, &tail.deltas);
    if (err)
        repair_fail(store, err, "the disks can not be listed", error);
    else
        err = recovery_look(store, look_batch, &tail, &recover, error);
    if (!err && store->repair->lost_transactions)
        lost_batches(&tail, 0, 1, UINT64_MAX, NULL);
    if (!err) {
        err = tail.err ? tail.err : commit_quarantine(&tail);
        if (!err)
            err = tell_all(&tail);
        if (err)
            repair_fail(store, err, "the quarantine of disks can not be recorded", error);
    }
    free(tail.deltas.id);
    free(tail.quarantined.id);
    return err;
}
