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

static void make_valid(void) {
    struct gild_journal *journal;
    struct gild_journal_contents contents;
    snprintf(path, sizeof path, "%s/%016x.journal", fuzz_folder(), 1);
    FUZZ_MUST(gild_journal_open(&journal, fuzz_folder(), NULL, NULL) == 0);
    for (uint64_t number = 1; number <= 6; number++) {
        struct gild_changes changes = {0};
        for (unsigned i = 0; i < 4; i++) {
            char key[16];
            int length = snprintf(key, sizeof key, "key %u", (unsigned)(number + i) % 5);
            gild_changes_add(&changes, i % 3, key, (size_t)length,
                             i == 3 && number > 2 ? NULL : "value", 5);
        }
        FUZZ_MUST(number == 1 ? gild_journal_roll(journal, number, &changes) == 0
                              : gild_journal_append(journal, number, &changes) == 0);
        gild_journal_accept(journal);
        gild_changes_free(&changes);
    }
    gild_journal_close(journal);
    FUZZ_MUST(gild_journal_read(fuzz_folder(), UINT64_MAX, &contents) == 0);
    FUZZ_MUST(truncate(path, (off_t)contents.end_bytes + 512) == 0);
    gild_journal_contents_free(&contents);
    fuzz_load(path, &valid);
}

/* The head's check, then each record's, linked to the one before. */
static void seal(struct fuzz_object *object) {
    if (object->length < HEAD_BYTES)
        return;
    uint64_t generation = gild_get_le64(object->bytes + 32);
    uint64_t before = XXH3_64bits(object->bytes + 16, HEAD_BYTES - 16);
    gild_put_le64(object->bytes + 8, before);
    for (size_t at = HEAD_BYTES; at + RECORD_BYTES <= object->length;) {
        uint8_t *record = object->bytes + at;
        size_t length = gild_get_le32(record);
        if (!length || length % HEAD_BYTES || length > object->length - at)
            return;
        gild_put_le64(record + 16, before);
        uint64_t seed = XXH3_64bits_withSeed(record, RECORD_BYTES - 8, generation);
        before = XXH3_64bits_withSeed(record + RECORD_BYTES, length - RECORD_BYTES, seed);
        gild_put_le64(record + 24, before);
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
        FUZZ_MUST(contents.dump_bytes <= contents.end_bytes);
        for (size_t i = 0; i < contents.count; i++) {
            const struct gild_journal_entry *entry = &contents.entries[i];
            fuzz_touch(entry->key, entry->key_length);
            fuzz_touch(entry->value, entry->length);
            FUZZ_MUST(!i || compare(entry - 1, entry) < 0);
        }
        for (size_t i = 0; i < contents.next_count; i++) {
            fuzz_touch(contents.next[i].key, contents.next[i].key_length);
            if (contents.next[i].value) /* not a delete */
                fuzz_touch(contents.next[i].value, contents.next[i].length);
        }
    } else {
        FUZZ_MUST(err == -EBADMSG || err == -ENOTSUP);
    }
    gild_journal_contents_free(&contents);
    fuzz_must_hold(path, object);
    return 0;
}
