/* What the fuzz targets of the on-disk parsers share.
 *
 * An input is a list of edits to a valid object (a pack's file, a segment, a page ...) that the
 * target makes once with the engine's own writer. Its first byte says, in bit 0, whether the
 * object's checks are made right again after the edits: without that nothing gets past the first
 * check, with it alone nothing tests the checks. Bits 1 to 7 are the target's.
 *
 * One edit: u8 what | page << 3, u16 offset in the page, then a value as long as `what` says. */
#ifndef GILD_FUZZ_H
#define GILD_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz_object {
    uint8_t *bytes;
    size_t length, room;
};

/* Ends the process, so that libFuzzer keeps the input, unless `what` is true. */
#define FUZZ_MUST(what) ((what) ? (void)0 : fuzz_broken(#what, __FILE__, __LINE__))
_Noreturn void fuzz_broken(const char *what, const char *file, int line);

/* A folder of the process's own, in memory where there is such a file system; it goes with it. */
const char *fuzz_folder(void);

/* Reads a whole file into an object, and writes one (replacing what is there). */
void fuzz_load(const char *path, struct fuzz_object *object);
void fuzz_store(const char *path, const struct fuzz_object *object);
/* The file holds exactly the object's bytes: its parser has left it as it was. */
void fuzz_must_hold(const char *path, const struct fuzz_object *object);

/* A copy of `valid` with the edits in data[1..size) made; may be shorter or longer. The bytes are
 * the callee's, until the next call. */
struct fuzz_object *fuzz_edit(const struct fuzz_object *valid, const uint8_t *data, size_t size);
static inline bool fuzz_wants_checks(const uint8_t *data) {
    return data[0] & 1;
}

/* Reads every byte, so that a sanitizer sees what is not there. */
void fuzz_touch(const void *bytes, size_t length);

#endif
