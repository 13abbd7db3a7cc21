/* Records by name: keys, and reading and writing of what names stand for (lookup.h).
 *
 * Any thread but a reactor's; each function works in its caller's transaction. */
#include "vdi/lookup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"

uint64_t vdi_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int vdi_catalog_failed(struct gild_error *error, int result, const char *what) {
    switch (result) {
    case -EBADMSG:
    case -EUCLEAN:
        return gild_fail(error, GILD_CORRUPT, -result,
                         "%s: a record of the catalogue is damaged; run `gild store check`", what);
    case -ENOSPC:
        return gild_fail(error, GILD_NO_SPACE, -result,
                         "%s: there is no space left; delete what is not needed", what);
    default:
        return gild_fail(error, gild_code_of_errno(result), -result, "%s: %s", what,
                         strerror(-result));
    }
}

/* ---- keys ------------------------------------------------------------------------------------ */

size_t vdi_version_key(const char *image, uint32_t version, uint8_t key[VDI_VERSION_KEY_BYTES]) {
    size_t length = strlen(image) + 1;
    memcpy(key, image, length);
    gild_put_be32(key + length, version);
    return length + 4;
}

bool vdi_name_key_read(const void *key, size_t length, char name[GILD_NAME_MAX + 1]) {
    if (!length || length > GILD_NAME_MAX || memchr(key, 0, length))
        return false;
    memcpy(name, key, length);
    name[length] = 0;
    return true;
}

bool vdi_version_key_read(const void *key, size_t length, struct gild_reference *out) {
    const uint8_t *bytes = key;
    if (length < 6 || bytes[length - 5] != 0 || !vdi_name_key_read(key, length - 5, out->name))
        return false;
    out->version = gild_get_be32(bytes + length - 4);
    return true;
}

/* ---- records --------------------------------------------------------------------------------- */

/* Room for any record that is found by a name. */
#define NAMED_RECORD_BYTES 512u

#define BY_NAME(kind, table)                                                                     \
    int vdi_get_##kind(struct gild_txn *txn, const char *name, struct gild_rec_##kind *record) { \
        const void *value;                                                                       \
        size_t length;                                                                           \
        int result = gild_txn_peek(txn, table, name, strlen(name), &value, &length);             \
        return result ? result : gild_rec_##kind##_decode(record, value, length);                \
    }                                                                                            \
    int vdi_put_##kind(struct gild_txn *txn, const char *name,                                   \
                       const struct gild_rec_##kind *record) {                                   \
        uint8_t value[NAMED_RECORD_BYTES];                                                       \
        return gild_txn_put(txn, table, name, strlen(name), value,                               \
                            gild_rec_##kind##_encode(record, value));                            \
    }
BY_NAME(image, GILD_TABLE_IMAGES)
BY_NAME(desktop, GILD_TABLE_DESKTOPS)
BY_NAME(pool, GILD_TABLE_POOLS)
#undef BY_NAME

int vdi_get_version(struct gild_txn *txn, const char *image, uint32_t version,
                    struct gild_rec_version *record) {
    uint8_t key[VDI_VERSION_KEY_BYTES];
    const void *value;
    size_t length, key_length = vdi_version_key(image, version, key);
    int result = gild_txn_peek(txn, GILD_TABLE_VERSIONS, key, key_length, &value, &length);
    return result ? result : gild_rec_version_decode(record, value, length);
}

int vdi_put_version(struct gild_txn *txn, const char *image, uint32_t version,
                    const struct gild_rec_version *record) {
    uint8_t key[VDI_VERSION_KEY_BYTES], value[NAMED_RECORD_BYTES];
    size_t key_length = vdi_version_key(image, version, key);
    return gild_txn_put(txn, GILD_TABLE_VERSIONS, key, key_length, value,
                        gild_rec_version_encode(record, value));
}

/* ---- the version that is meant --------------------------------------------------------------- */

struct newest {
    const char *image;
    struct gild_reference found;
    struct gild_rec_version record;
    unsigned retired;
};

/* Walks versions from the image's first on; 1 ends the walk behind its last. */
static int note_newest(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct newest *newest = context;
    struct gild_reference at;
    struct gild_rec_version record;
    if (!vdi_version_key_read(key, key_length, &at))
        return -EUCLEAN;
    if (strcmp(at.name, newest->image))
        return 1;
    int result = gild_rec_version_decode(&record, value, length);
    if (result)
        return result;
    if (record.stage == GILD_STAGE_RETIRED) {
        newest->retired++;
    } else {
        newest->found = at;
        newest->record = record;
    }
    return 0;
}

static int find_newest(struct gild_txn *txn, struct gild_reference *reference,
                       struct gild_rec_version *record, struct gild_error *error) {
    struct newest newest = {.image = reference->name};
    uint8_t key[VDI_VERSION_KEY_BYTES];
    size_t key_length = vdi_version_key(reference->name, 0, key);
    int result = gild_txn_scan(txn, GILD_TABLE_VERSIONS, key, key_length, note_newest, &newest);
    if (result < 0)
        return vdi_catalog_failed(error, result, reference->name);
    if (newest.found.version) {
        reference->version = newest.found.version;
        *record = newest.record;
        return 0;
    }
    if (newest.retired)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "all versions of image %s are retired; name one as %s@NUMBER",
                         reference->name, reference->name);
    return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                     "there is no image %s; `gild image list` shows what there is",
                     reference->name);
}

int vdi_find_version(struct gild_txn *txn, struct gild_reference *reference,
                     struct gild_rec_version *record, struct gild_error *error) {
    if (!reference->version)
        return find_newest(txn, reference, record, error);
    int result = vdi_get_version(txn, reference->name, reference->version, record);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no image %s@%u; `gild image list` shows what there is",
                         reference->name, reference->version);
    return result ? vdi_catalog_failed(error, result, reference->name) : 0;
}
