/* The catalogue's journal: each change of the catalogue once more, in checksummed files of our own,
 * so that a catalogue that is lost or garbled can be made again exactly as it was.
 *
 *   STORE/journal/%016x.journal     a head, one record with all of the catalogue (the dump), then
 * one record for each transaction since
 *
 * Transactions are numbered 1, 2, 3 ...; the key-value store holds the number of its last one. The
 * record of number n is durable before the key-value store commits n, and counts only once that has
 * happened. If the key-value store refuses it, it is taken back. If it is not known whether the
 * key-value store has it (a crash, a device that failed), it stays: the next transaction has the
 * next number, and its record names the one that it follows, which is the one that the key-value
 * store was found to have.
 *
 *              append n (durable)        kv commit n
 *   ACCEPTED n-1 ---------------> TAIL n -----------> ACCEPTED n
 *        ^                         |  `-- a crash, a failed device: ACCEPTED n or n-1, as the next
 *        `---- refused: retract ---'      open finds; n+1 follows that one
 *
 * A file that has grown enough is rolled: a new one begins with a dump. Format:
 * docs/format-catalogue.md. Threads: one at a time (the catalogue's lock), blocking. */
#ifndef GILD_CATALOG_JOURNAL_H
#define GILD_CATALOG_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GILD_JOURNAL_NOTE_BYTES 512u /* the most that the head can carry for its owner */

/* Changes, collected. Zeroed: none yet. Owns its bytes. */
struct gild_changes {
    uint8_t *bytes; /* room for a record's head, then the changes */
    size_t length, room;
    uint32_t count;
    int failed; /* -ENOMEM, -E2BIG: not all are in it */
};
/* value NULL: the key is deleted. */
void gild_changes_add(struct gild_changes *changes, unsigned table, const void *key,
                      size_t key_length, const void *value, size_t length);
void gild_changes_free(struct gild_changes *changes);

/* ---- reading --------------------------------------------------------------------------------- */

struct gild_journal_entry {
    const uint8_t *key, *value;
    uint32_t table, key_length, length;
    uint32_t order; /* of the change, among all */
};

/* The catalogue as of one transaction, as the newest whole file tells it. */
struct gild_journal_contents {
    uint64_t number;     /* of the last transaction that is in `entries` */
    uint64_t last;       /* of the last one that the file holds whole */
    uint64_t dumped;     /* of the newest file's dump */
    uint64_t base;       /* of the one that the last follows: the key-value store has had it */
    uint64_t seen;       /* highest number behind a damaged record, 0 = none: these are lost */
    uint64_t generation; /* of the file */
    uint64_t dump_bytes; /* where the dump ends */
    uint64_t sure_bytes; /* where the record of `number` ends */
    uint64_t end_bytes;  /* where the last ends */
    uint64_t check;      /* of the record of `number` */
    struct gild_journal_entry *entries; /* sorted by table and key, no two alike */
    size_t count;
    uint8_t note[GILD_JOURNAL_NOTE_BYTES];
    void *bytes; /* that entries point into */
};
/* As of transaction `upto`, or the last if that is none of its own. -ENOENT: there
 * is no file; -EBADMSG: none is whole up to the end of its dump, or its dump is newer than `upto`
 * (then ->last says so). Free in any case. */
int gild_journal_read(const char *folder, uint64_t upto, struct gild_journal_contents *contents);
void gild_journal_contents_free(struct gild_journal_contents *contents);

/* ---- writing --------------------------------------------------------------------------------- */

struct gild_journal;

/* note: GILD_JOURNAL_NOTE_BYTES, kept in each head; NULL: zeroes. `contents`: what was read from
 * the folder, to go on after its `number`; NULL: there is nothing to go on from, and a roll must
 * come first. Writes nothing. */
int gild_journal_open(struct gild_journal **out, const char *folder, const void *note,
                      const struct gild_journal_contents *contents);
void gild_journal_close(struct gild_journal *journal); /* NULL is fine */

/* Must it (or had it better) be rolled before the next append? */
bool gild_journal_must_roll(const struct gild_journal *journal);
bool gild_journal_should_roll(const struct gild_journal *journal);
/* A new file with this dump of the catalogue as of `number`; the old ones go. -ENOSPC, -ENOMEM:
 * everything is as it was; -EIO: it may be found or not, and nothing may be appended. */
int gild_journal_roll(struct gild_journal *journal, uint64_t number, struct gild_changes *dump);

/* Makes the record durable as the tail. -ENOSPC, -ENOMEM leave everything as it was; after any
 * other error it may be found or not. */
int gild_journal_append(struct gild_journal *journal, uint64_t number,
                        struct gild_changes *changes);
/* The tail is accepted: the next record follows it. */
void gild_journal_accept(struct gild_journal *journal);
/* The tail is taken back, durably: its transaction was refused, and nothing may find it. */
int gild_journal_retract(struct gild_journal *journal);

#endif
