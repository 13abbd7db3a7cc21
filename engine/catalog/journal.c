/* See journal.h: the files of the journal, and how they are read.
 *
 * A file is allocated ahead of its end, so that an append changes no metadata and a full host still
 * takes the changes that make room. What lies behind the end is zeroes or the rest of a tail that
 * was never accepted; each record names the check of the one before it, so no such rest can be
 * taken for what follows.
 *
 * Failure modes: -ENOSPC before anything was written; any other error of a write or sync, after
 * which the catalogue takes no more changes (D5). A damaged file is noticed by its checks; a record
 * that is damaged while later ones are whole is told from a torn end by looking for those. */
#include "catalog/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/log.h"
#include "io/file.h"

#define HEAD_BYTES 4096u
#define HEAD_MAGIC 0x314e524a444c4947u /* "GILDJRN1" */
#define HEAD_VERSION 1u
#define NOTE_OFFSET 512u
#define PAGE_BYTES \
    4096u /* of a record's length: none lies in a page that a later one is written to */
#define RECORD_BYTES 32u /* what comes before a record's changes */
#define CHANGE_BYTES 8u  /* what comes before a change's key */
#define MOST_BYTES ((size_t)1 << 32)
#define AHEAD_BYTES (1u << 20)
#define ROLL_BYTES (4u << 20)
#define NAME_BYTES 40u

enum kind { PUT = 1, DELETE = 2 };

struct gild_journal {
    int folder, fd; /* fd -1: no file yet */
    uint64_t generation;
    uint64_t end_bytes, tail_bytes; /* of the accepted records; of these and the tail */
    uint64_t dump_bytes, allocated_bytes;
    uint64_t check, tail_check; /* of the last accepted record, of the tail */
    uint8_t *unsure;            /* records behind that, which may not be durable */
    uint64_t unsure_bytes;
    uint8_t note[GILD_JOURNAL_NOTE_BYTES];
};

static void file_name(uint64_t generation, char name[NAME_BYTES]) {
    snprintf(name, NAME_BYTES, "%016llx.journal", (unsigned long long)generation);
}

/* ---- changes --------------------------------------------------------------------------------- */

static uint8_t *changes_room(struct gild_changes *changes, size_t bytes) {
    size_t needed = gild_max_u64(changes->length, RECORD_BYTES) + bytes;
    if (needed > MOST_BYTES - PAGE_BYTES) {
        changes->failed = -E2BIG;
        return NULL;
    }
    if (needed > changes->room) {
        size_t room = gild_max_u64(4096, 2 * needed);
        uint8_t *grown = realloc(changes->bytes, room);
        if (!grown) {
            changes->failed = -ENOMEM;
            return NULL;
        }
        changes->bytes = grown;
        changes->room = room;
    }
    uint8_t *at = changes->bytes + needed - bytes;
    changes->length = needed;
    return at;
}

void gild_changes_add(struct gild_changes *changes, unsigned table, const void *key,
                      size_t key_length, const void *value, size_t length) {
    size_t value_length = value ? length : 0;
    uint8_t *at =
        changes->failed ? NULL : changes_room(changes, CHANGE_BYTES + key_length + value_length);
    if (!at)
        return;
    at[0] = (uint8_t)table;
    at[1] = value ? PUT : DELETE;
    gild_put_le16(at + 2, (uint16_t)key_length);
    gild_put_le32(at + 4, (uint32_t)value_length);
    memcpy(at + CHANGE_BYTES, key, key_length);
    if (value_length)
        memcpy(at + CHANGE_BYTES + key_length, value, value_length);
    changes->count++;
}

void gild_changes_free(struct gild_changes *changes) {
    free(changes->bytes);
    *changes = (struct gild_changes){0};
}

/* ---- records --------------------------------------------------------------------------------- */

/* Of a record: its head but for the check, and its changes. */
static uint64_t record_check(const uint8_t *record, size_t length, uint64_t generation) {
    uint64_t seed = XXH3_64bits_withSeed(record, RECORD_BYTES - 8, generation);
    return XXH3_64bits_withSeed(record + RECORD_BYTES, length - RECORD_BYTES, seed);
}

/* Fills the head of the record that the changes are; its bytes are then ready to be written. The
 * length is that of the record, padded to whole pages. */
static int seal(struct gild_changes *changes, uint64_t number, uint64_t before,
                uint64_t generation) {
    if (!changes->length)
        changes_room(changes, 0);
    size_t padded = gild_align_up(changes->length, PAGE_BYTES);
    uint8_t *padding = changes->failed ? NULL : changes_room(changes, padded - changes->length);
    if (changes->failed)
        return changes->failed;
    memset(padding, 0, (size_t)(changes->bytes + padded - padding));
    gild_put_le32(changes->bytes, (uint32_t)padded);
    gild_put_le32(changes->bytes + 4, changes->count);
    gild_put_le64(changes->bytes + 8, number);
    gild_put_le64(changes->bytes + 16, before);
    gild_put_le64(changes->bytes + 24, record_check(changes->bytes, padded, generation));
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

struct reading {
    struct gild_journal_contents *contents;
    const uint8_t *bytes;
    size_t length, room; /* of the file; of contents->entries */
};

/* Is there a whole record at `at`? Its length, or 0. */
static size_t whole_record(const struct reading *reading, uint64_t generation, size_t at) {
    const uint8_t *record = reading->bytes + at;
    if (reading->length - at < RECORD_BYTES)
        return 0;
    size_t length = gild_get_le32(record);
    if (!length || length % PAGE_BYTES || length > reading->length - at)
        return 0;
    return gild_get_le64(record + 24) == record_check(record, length, generation) ? length : 0;
}

static int take_change(struct reading *reading, const uint8_t *at, uint32_t key_length,
                       uint32_t length) {
    struct gild_journal_contents *c = reading->contents;
    if (c->count == reading->room) {
        size_t room = reading->room ? 2 * reading->room : 1024;
        struct gild_journal_entry *grown = realloc(c->entries, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->entries = grown;
        reading->room = room;
    }
    const uint8_t *key = at + CHANGE_BYTES;
    c->entries[c->count] = (struct gild_journal_entry){
        .key = key,
        .value = at[1] == PUT ? key + key_length : NULL,
        .table = at[0],
        .key_length = key_length,
        .length = length,
        .order = (uint32_t)c->count,
    };
    c->count++;
    return 0;
}

static int take_record(struct reading *reading, const uint8_t *record, size_t length) {
    size_t at = RECORD_BYTES;
    for (uint32_t n = gild_get_le32(record + 4); n; n--) {
        if (length - at < CHANGE_BYTES)
            return -EBADMSG;
        uint32_t key_length = gild_get_le16(record + at + 2);
        uint32_t value_length = gild_get_le32(record + at + 4);
        if (length - at - CHANGE_BYTES < (uint64_t)key_length + value_length || !key_length ||
            (record[at + 1] != PUT && record[at + 1] != DELETE))
            return -EBADMSG;
        int err = take_change(reading, record + at, key_length, value_length);
        if (err)
            return err;
        at += CHANGE_BYTES + key_length + value_length;
    }
    return 0;
}

static int compare_keys(const struct gild_journal_entry *a, const struct gild_journal_entry *b) {
    if (a->table != b->table)
        return a->table < b->table ? -1 : 1;
    uint32_t common = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, common);
    if (order)
        return order;
    return a->key_length < b->key_length ? -1 : a->key_length > b->key_length;
}

static int compare_entries(const void *left, const void *right) {
    const struct gild_journal_entry *a = left, *b = right;
    int order = compare_keys(a, b);
    return order ? order : a->order < b->order ? -1 : 1;
}

/* Of each key its last change stays, unless that deletes it. */
static void settle(struct gild_journal_contents *c) {
    size_t kept = 0;
    if (c->count)
        qsort(c->entries, c->count, sizeof *c->entries, compare_entries);
    for (size_t i = 0; i < c->count; i++) {
        bool last = i + 1 == c->count || compare_keys(&c->entries[i], &c->entries[i + 1]) != 0;
        if (last && c->entries[i].value)
            c->entries[kept++] = c->entries[i];
    }
    c->count = kept;
}

/* The records behind the first that is not whole: are there any? Then that one is no torn end. */
static void look_behind(struct reading *reading, size_t at) {
    struct gild_journal_contents *c = reading->contents;
    for (; at + RECORD_BYTES <= reading->length; at += PAGE_BYTES) {
        uint64_t number = gild_get_le64(reading->bytes + at + 8);
        if (number > c->last + 1 && number - c->last < 1u << 24 &&
            whole_record(reading, c->generation, at))
            c->seen = number;
    }
}

struct record {
    size_t at, length;
    uint64_t number, before, check;
};

struct records {
    struct record *list;
    size_t count, room;
};

static int note_record(struct records *records, const struct record *record) {
    if (records->count == records->room) {
        size_t room = records->room ? 2 * records->room : 256;
        struct record *grown = realloc(records->list, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        records->list = grown;
        records->room = room;
    }
    records->list[records->count++] = *record;
    return 0;
}

/* Of the record that `at` follows: its index, or `at` itself. */
static size_t base_of(const struct records *records, size_t at) {
    for (size_t i = at; i-- > 0;)
        if (records->list[i].check == records->list[at].before)
            return i;
    return at;
}

/* Each whole record, one behind the other; the first follows the head, others one before them. */
static int list_records(struct reading *reading, struct records *records) {
    struct gild_journal_contents *c = reading->contents;
    struct record record = {.at = HEAD_BYTES};
    for (; (record.length = whole_record(reading, c->generation, record.at));
         record.at += record.length) {
        const uint8_t *bytes = reading->bytes + record.at;
        record.number = gild_get_le64(bytes + 8);
        record.before = gild_get_le64(bytes + 16);
        record.check = gild_get_le64(bytes + 24);
        int err = note_record(records, &record);
        if (err)
            return err;
        size_t at = records->count - 1;
        bool follows = at ? base_of(records, at) != at && record.number == c->last + 1
                          : record.before == gild_get_le64(reading->bytes + 8);
        if (!follows) {
            records->count--;
            break;
        }
        c->last = record.number;
        c->end_bytes = record.at + record.length;
    }
    look_behind(reading, record.at);
    return 0;
}

/* The dump, and what leads from it to the record of `upto` (or the last): others stand between
 * them that the next one did not follow. */
static int take_records(struct reading *reading, const struct records *records, uint64_t upto) {
    struct gild_journal_contents *c = reading->contents;
    const struct record *list = records->list;
    if (!records->count)
        return -EBADMSG;
    c->dumped = list[0].number;
    c->base = list[base_of(records, records->count - 1)].number;
    if (upto < c->dumped)
        return -EBADMSG;
    size_t end = upto < c->last ? (size_t)(upto - c->dumped) : records->count - 1, count = 0;
    size_t *way = malloc((end + 1) * sizeof *way);
    if (!way)
        return -ENOMEM;
    for (size_t at = end;; at = base_of(records, at)) {
        way[count++] = at;
        if (!at)
            break;
    }
    int err = 0;
    while (count && !err) {
        const struct record *record = &list[way[--count]];
        err = take_record(reading, reading->bytes + record->at, record->length);
    }
    free(way);
    c->number = list[end].number;
    c->check = list[end].check;
    c->sure_bytes = list[end].at + list[end].length;
    c->dump_bytes = list[0].at + list[0].length;
    return err;
}

static int read_records(struct reading *reading, uint64_t upto) {
    struct records records = {0};
    int err = list_records(reading, &records);
    if (!err)
        err = take_records(reading, &records, upto);
    free(records.list);
    settle(reading->contents);
    return err;
}

static int read_file(int folder, const char *name, uint64_t upto,
                     struct gild_journal_contents *contents) {
    size_t length;
    int err = gild_file_slurp(folder, name, MOST_BYTES, &contents->bytes, &length);
    if (err)
        return err;
    struct reading reading = {.contents = contents, .bytes = contents->bytes, .length = length};
    const uint8_t *head = contents->bytes;
    if (length < HEAD_BYTES || gild_get_le64(head) != HEAD_MAGIC ||
        gild_get_le64(head + 8) != XXH3_64bits(head + 16, HEAD_BYTES - 16))
        return -EBADMSG;
    if (gild_get_le32(head + 16) != HEAD_VERSION || gild_get_le32(head + 20))
        return -ENOTSUP;
    contents->generation = gild_get_le64(head + 32);
    memcpy(contents->note, head + NOTE_OFFSET, GILD_JOURNAL_NOTE_BYTES);
    return read_records(&reading, upto);
}

struct newest {
    uint64_t generation, below; /* the highest one below `below` */
    bool found;
};

static int look_at_name(void *context, const char *name) {
    struct newest *newest = context;
    char *end;
    uint64_t generation = strtoull(name, &end, 16);
    if (end - name == 16 && strcmp(end, ".journal") == 0 && generation < newest->below &&
        (!newest->found || generation > newest->generation)) {
        newest->generation = generation;
        newest->found = true;
    }
    return 0;
}

int gild_journal_read(const char *folder, uint64_t upto, struct gild_journal_contents *contents) {
    char name[NAME_BYTES];
    struct newest newest = {.below = UINT64_MAX};
    *contents = (struct gild_journal_contents){0};
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err, result = -ENOENT;
    while ((err = gild_file_list(fd, look_at_name, &newest)) == 0 && newest.found) {
        uint64_t last = contents->last, dumped = contents->dumped;
        gild_journal_contents_free(contents);
        file_name(newest.generation, name);
        int one = read_file(fd, name, upto, contents);
        if (one != -EBADMSG || result == -ENOENT)
            result = one;
        if (one != -EBADMSG)
            break;
        contents->last = gild_max_u64(contents->last, last);
        contents->dumped = gild_max_u64(contents->dumped, dumped);
        newest = (struct newest){.below = newest.generation};
    }
    close(fd);
    return err ? err : result;
}

void gild_journal_contents_free(struct gild_journal_contents *contents) {
    free(contents->entries);
    free(contents->bytes);
    *contents = (struct gild_journal_contents){0};
}

/* ---- writing --------------------------------------------------------------------------------- */

static int keep_unsure(struct gild_journal *journal, const struct gild_journal_contents *contents) {
    journal->unsure_bytes = contents->end_bytes - contents->sure_bytes;
    if (!journal->unsure_bytes)
        return 0;
    journal->unsure = malloc(journal->unsure_bytes);
    if (!journal->unsure)
        return -ENOMEM;
    memcpy(journal->unsure, (const uint8_t *)contents->bytes + contents->sure_bytes,
           journal->unsure_bytes);
    return 0;
}

int gild_journal_open(struct gild_journal **out, const char *folder, const void *note,
                      const struct gild_journal_contents *contents) {
    char name[NAME_BYTES];
    struct gild_journal *journal = calloc(1, sizeof *journal);
    if (!journal)
        return -ENOMEM;
    journal->fd = -1;
    if (note)
        memcpy(journal->note, note, sizeof journal->note);
    journal->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = journal->folder < 0 ? -errno : 0;
    if (!err && contents) {
        file_name(contents->generation, name);
        journal->fd = gild_file_open(journal->folder, name, O_RDWR, 0, NULL);
        err =
            journal->fd < 0 ? journal->fd : gild_file_size(journal->fd, &journal->allocated_bytes);
        journal->generation = contents->generation;
        journal->end_bytes = journal->tail_bytes = contents->end_bytes;
        journal->dump_bytes = contents->dump_bytes;
        journal->check = journal->tail_check = contents->check;
        if (!err)
            err = keep_unsure(journal, contents);
    }
    if (err) {
        gild_journal_close(journal);
        return err;
    }
    *out = journal;
    return 0;
}

void gild_journal_close(struct gild_journal *journal) {
    if (!journal)
        return;
    if (journal->fd >= 0)
        close(journal->fd);
    if (journal->folder >= 0)
        close(journal->folder);
    free(journal->unsure);
    free(journal);
}

bool gild_journal_must_roll(const struct gild_journal *journal) {
    return journal->fd < 0;
}

bool gild_journal_should_roll(const struct gild_journal *journal) {
    uint64_t since = journal->end_bytes - journal->dump_bytes;
    return journal->fd < 0 || since > gild_max_u64(ROLL_BYTES, 2 * journal->dump_bytes);
}

static int write_new(struct gild_journal *journal, const char *name, uint64_t generation,
                     uint64_t number, struct gild_changes *dump, uint64_t *allocated) {
    uint8_t head[HEAD_BYTES] = {0};
    gild_put_le64(head, HEAD_MAGIC);
    gild_put_le32(head + 16, HEAD_VERSION);
    gild_put_le64(head + 32, generation);
    memcpy(head + NOTE_OFFSET, journal->note, sizeof journal->note);
    gild_put_le64(head + 8, XXH3_64bits(head + 16, HEAD_BYTES - 16));
    int err = seal(dump, number, gild_get_le64(head + 8), generation);
    if (err)
        return err;
    int fd = gild_file_open(journal->folder, name, O_RDWR | O_CREAT | O_TRUNC, 0600, NULL);
    if (fd < 0)
        return fd;
    *allocated = gild_align_up(HEAD_BYTES + dump->length, HEAD_BYTES) + AHEAD_BYTES;
    err = gild_file_allocate(fd, *allocated);
    if (!err)
        err = gild_file_write(fd, head, sizeof head, 0);
    if (!err)
        err = gild_file_write(fd, dump->bytes, dump->length, HEAD_BYTES);
    if (!err && fsync(fd) != 0)
        err = -errno;
    if (err) {
        close(fd);
        gild_file_remove(journal->folder, name);
        return err;
    }
    return fd;
}

struct sweep {
    int folder;
    const char *but;
};

static int sweep_name(void *context, const char *name) {
    struct sweep *sweep = context;
    size_t length = strlen(name);
    bool ours = (length > 8 && strcmp(name + length - 8, ".journal") == 0) ||
                (length > 4 && strcmp(name + length - 4, ".new") == 0);
    return ours && strcmp(name, sweep->but) != 0 ? gild_file_remove(sweep->folder, name) : 0;
}

/* No file in the folder may hide behind a number that is not below ours. */
static int next_generation(struct gild_journal *journal, uint64_t *generation) {
    struct newest newest = {.below = UINT64_MAX};
    int err = gild_file_list(journal->folder, look_at_name, &newest);
    *generation = gild_max_u64(journal->generation, newest.found ? newest.generation : 0) + 1;
    return err;
}

int gild_journal_roll(struct gild_journal *journal, uint64_t number, struct gild_changes *dump) {
    char name[NAME_BYTES], new_name[NAME_BYTES + 4];
    uint64_t generation, allocated;
    int err = next_generation(journal, &generation);
    if (err)
        return err;
    file_name(generation, name);
    snprintf(new_name, sizeof new_name, "%s.new", name);
    int fd = write_new(journal, new_name, generation, number, dump, &allocated);
    if (fd < 0)
        return fd;
    if (renameat(journal->folder, new_name, journal->folder, name) != 0) {
        err = -errno;
        close(fd);
        gild_file_remove(journal->folder, new_name);
        return err;
    }
    /* The new file may be found from here on, and hides the old one: no going on with that. */
    if (gild_file_sync_folder(journal->folder)) {
        close(fd);
        return -EIO;
    }
    if (journal->fd >= 0)
        close(journal->fd);
    journal->fd = fd;
    journal->generation = generation;
    journal->allocated_bytes = allocated;
    journal->dump_bytes = journal->end_bytes = journal->tail_bytes = HEAD_BYTES + dump->length;
    journal->check = journal->tail_check = gild_get_le64(dump->bytes + 24);
    struct sweep sweep = {journal->folder, name};
    err = gild_file_list(journal->folder, sweep_name, &sweep);
    if (err)
        gild_log(GILD_LOG_WARN, "old files of the catalogue's journal stay: %s", strerror(-err));
    return 0;
}

/* An append failed. Want of space is a plain refusal only if nothing of the record can be found
 * later: it can, where the sync failed, or where it can not be taken back. */
static int undone(struct gild_journal *journal, bool whole, int err) {
    if (err != -ENOSPC && err != -EDQUOT && err != -ENOMEM)
        return err;
    return whole || gild_journal_retract(journal) ? -EIO : err;
}

/* What was read may be in memory only, its sync may have failed. It is durable before anything
 * stands behind it: a power cut that kept just the latter would leave a hole. */
static int make_sure(struct gild_journal *journal) {
    if (!journal->unsure_bytes)
        return 0;
    int err = gild_file_write(journal->fd, journal->unsure, journal->unsure_bytes,
                              journal->end_bytes - journal->unsure_bytes);
    if (err)
        return err;
    if (gild_file_sync(journal->fd))
        return -EIO;
    journal->unsure_bytes = 0;
    return 0;
}

int gild_journal_append(struct gild_journal *journal, uint64_t number,
                        struct gild_changes *changes) {
    int err = seal(changes, number, journal->check, journal->generation);
    if (err)
        return err;
    uint64_t end = journal->end_bytes + changes->length;
    if (end + AHEAD_BYTES / 2 > journal->allocated_bytes) {
        uint64_t wanted = gild_align_up(end, HEAD_BYTES) + AHEAD_BYTES;
        err = gild_file_allocate(journal->fd, wanted);
        if (!err)
            journal->allocated_bytes = wanted;
        else if (end > journal->allocated_bytes && err != -EOPNOTSUPP)
            return err;
    }
    err = make_sure(journal);
    if (!err)
        err = gild_file_write(journal->fd, changes->bytes, changes->length, journal->end_bytes);
    bool whole = !err;
    if (!err)
        err = gild_file_sync(journal->fd);
    if (err)
        return undone(journal, whole, err);
    journal->tail_bytes = end;
    journal->tail_check = gild_get_le64(changes->bytes + 24);
    return 0;
}

void gild_journal_accept(struct gild_journal *journal) {
    journal->end_bytes = journal->tail_bytes;
    journal->check = journal->tail_check;
}

int gild_journal_retract(struct gild_journal *journal) {
    static const uint8_t nothing[RECORD_BYTES];
    journal->tail_bytes = journal->end_bytes;
    journal->tail_check = journal->check;
    int err = gild_file_write(journal->fd, nothing, sizeof nothing, journal->end_bytes);
    return err ? err : gild_file_sync(journal->fd);
}
