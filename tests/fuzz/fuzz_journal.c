/* libFuzzer entry: a file of the catalogue's journal, edited, as an open or a rebuild reads it. See
 * fuzz.h for the input; bit 1 of its first byte: only transactions up to the third are asked for.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "catalog/journal.h"
#include "fuzz.h"

#define HEAD_BYTES 4096u
#define RECORD_BYTES 32u

static struct fuzz_object valid;
static char path[128];

static void append(struct gild_journal *journal, uint64_t number) {
    struct gild_changes changes = {0};
    for (unsigned i = 0; i < 4; i++) {
        char key[16];
        int length = snprintf(key, sizeof key, "key %u", (unsigned)(number + i) % 5);
        gild_changes_add(&changes, i % 3, key, (size_t)length,
                         i == 3 && number > 2 ? NULL : "value", 5);
    }
    FUZZ_MUST(number == 1 ? gild_journal_roll(journal, number, &changes) == 0
                          : gild_journal_append(journal, number, &changes) == 0);
    gild_changes_free(&changes);
}

/* Six transactions; the fourth stayed in doubt, and the fifth follows the third. */
static void make_valid(void) {
    struct gild_journal *journal;
    struct gild_journal_contents contents;
    snprintf(path, sizeof path, "%s/%016x.journal", fuzz_folder(), 1);
    FUZZ_MUST(gild_journal_open(&journal, fuzz_folder(), NULL, NULL) == 0);
    for (uint64_t number = 1; number <= 6; number++) {
        append(journal, number);
        if (number != 4) {
            gild_journal_accept(journal);
            continue;
        }
        gild_journal_close(journal);
        FUZZ_MUST(gild_journal_read(fuzz_folder(), 3, &contents) == 0 && contents.last == 4);
        FUZZ_MUST(gild_journal_open(&journal, fuzz_folder(), NULL, &contents) == 0);
        gild_journal_contents_free(&contents);
    }
    gild_journal_close(journal);
    FUZZ_MUST(gild_journal_read(fuzz_folder(), UINT64_MAX, &contents) == 0);
    FUZZ_MUST(contents.number == 6 && contents.base == 5);
    FUZZ_MUST(truncate(path, (off_t)contents.end_bytes + 512) == 0);
    gild_journal_contents_free(&contents);
    fuzz_load(path, &valid);
}

/* The check that a record's link names now: that of the record it named, else of the one before. */
struct links {
    uint64_t was[16], is[16];
    unsigned count;
};

static uint64_t follow(const struct links *links, uint64_t link) {
    for (unsigned i = links->count; i-- > 0;)
        if (links->was[i] == link)
            return links->is[i];
    return links->is[links->count - 1];
}

static void add_link(struct links *links, uint64_t was, uint64_t is) {
    unsigned at = links->count < 15 ? links->count++ : 15;
    links->was[at] = was;
    links->is[at] = is;
    links->count = at + 1;
}

/* The head's check, then each record's, linked to the one that it followed. */
static void seal(struct fuzz_object *object) {
    struct links links = {0};
    if (object->length < HEAD_BYTES)
        return;
    uint64_t generation = gild_get_le64(object->bytes + 32);
    uint64_t check = XXH3_64bits(object->bytes + 16, HEAD_BYTES - 16);
    add_link(&links, gild_get_le64(object->bytes + 8), check);
    gild_put_le64(object->bytes + 8, check);
    for (size_t at = HEAD_BYTES; at + RECORD_BYTES <= object->length;) {
        uint8_t *record = object->bytes + at;
        size_t length = gild_get_le32(record);
        if (!length || length % HEAD_BYTES || length > object->length - at)
            return;
        gild_put_le64(record + 16, follow(&links, gild_get_le64(record + 16)));
        uint64_t seed = XXH3_64bits_withSeed(record, RECORD_BYTES - 8, generation);
        check = XXH3_64bits_withSeed(record + RECORD_BYTES, length - RECORD_BYTES, seed);
        add_link(&links, gild_get_le64(record + 24), check);
        gild_put_le64(record + 24, check);
        at += length;
    }
}

static int compare(const struct gild_journal_entry *a, const struct gild_journal_entry *b) {
    if (a->table != b->table)
        return a->table < b->table ? -1 : 1;
    uint32_t common = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, common);
    return order ? order : (int)a->key_length - (int)b->key_length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gild_journal_contents contents;
    if (!valid.length)
        make_valid();
    if (!size)
        return 0;
    struct fuzz_object *object = fuzz_edit(&valid, data, size);
    if (fuzz_wants_checks(data))
        seal(object);
    fuzz_store(path, object);
    uint64_t upto = data[0] & 2 ? 3 : UINT64_MAX;
    int err = gild_journal_read(fuzz_folder(), upto, &contents);
    if (!err) {
        FUZZ_MUST(contents.number <= upto && contents.end_bytes <= object->length);
        FUZZ_MUST(contents.dump_bytes <= contents.sure_bytes);
        FUZZ_MUST(contents.sure_bytes <= contents.end_bytes);
        FUZZ_MUST(contents.dumped <= contents.number && contents.number <= contents.last);
        FUZZ_MUST(contents.base <= contents.last);
        for (size_t i = 0; i < contents.count; i++) {
            const struct gild_journal_entry *entry = &contents.entries[i];
            fuzz_touch(entry->key, entry->key_length);
            fuzz_touch(entry->value, entry->length);
            FUZZ_MUST(!i || compare(entry - 1, entry) < 0);
        }
    } else {
        FUZZ_MUST(err == -EBADMSG || err == -ENOTSUP);
    }
    gild_journal_contents_free(&contents);
    fuzz_must_hold(path, object);
    return 0;
}
