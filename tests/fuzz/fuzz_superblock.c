/* libFuzzer entry: the superblock of a store, edited. See fuzz.h for the input. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "disk/superblock.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct fuzz_object valid;
    static char path[128];
    struct gild_error error = {0};
    struct superblock block;
    int lock;
    if (!valid.length) {
        FUZZ_MUST(superblock_create(fuzz_folder(), 0, &error) == 0);
        snprintf(path, sizeof path, "%s/superblock", fuzz_folder());
        fuzz_load(path, &valid);
    }
    if (!size)
        return 0;
    struct fuzz_object *object = fuzz_edit(&valid, data, size);
    if (fuzz_wants_checks(data) && object->length >= SUPERBLOCK_BYTES) {
        uint64_t check = XXH3_64bits(object->bytes + 16, SUPERBLOCK_BYTES - 16);
        memcpy(object->bytes + 8, &check, sizeof check);
    }
    fuzz_store(path, object);
    int err = superblock_open(fuzz_folder(), &block, &lock, &error);
    if (err) {
        FUZZ_MUST(error.message[0]);
    } else {
        FUZZ_MUST(block.magic == SUPERBLOCK_MAGIC && !block.incompatible);
        FUZZ_MUST(memcmp(&block, object->bytes, sizeof block) == 0);
        close(lock);
    }
    fuzz_must_hold(path, object);
    return 0;
}
