/* The content hash (content_hash.h), gathered into runs so that the hash sees few, long updates.
 * Nothing here knows where blocks lie: the same content gives the same hash whatever the store did
 * to it. Failure modes: no memory. */
#include "vdi/content_hash.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/hash.h"

#define MARK "gild-content-1" /* with its NUL */
#define ENTRY_BYTES 40u
#define GATHER_ENTRIES 100u

struct vdi_content_hash {
    struct gild_sha256 *sha;
    uint64_t next_block; /* the least that may come */
    size_t used;
    uint8_t gathered[GATHER_ENTRIES * ENTRY_BYTES];
};

int vdi_content_hash_create(struct vdi_content_hash **out, uint64_t size_bytes) {
    struct vdi_content_hash *hash = calloc(1, sizeof(*hash));
    if (!hash) {
        return -ENOMEM;
    }
    int result = gild_sha256_create(&hash->sha);
    if (result < 0) {
        free(hash);
        return result;
    }
    memcpy(hash->gathered, MARK, sizeof(MARK));
    gild_put_le64(hash->gathered + sizeof(MARK), size_bytes);
    hash->used = sizeof(MARK) + 8;
    *out = hash;
    return 0;
}

static int pass_on(struct vdi_content_hash *hash) {
    int result = gild_sha256_update(hash->sha, hash->gathered, hash->used);
    hash->used = 0;
    return result;
}

int vdi_content_hash_add(struct vdi_content_hash *hash, uint64_t block,
                         const uint8_t fingerprint[32]) {
    assert(block >= hash->next_block);
    hash->next_block = block + 1;
    if (hash->used + ENTRY_BYTES > sizeof(hash->gathered)) {
        int result = pass_on(hash);
        if (result < 0) {
            return result;
        }
    }
    gild_put_le64(hash->gathered + hash->used, block);
    memcpy(hash->gathered + hash->used + 8, fingerprint, 32);
    hash->used += ENTRY_BYTES;
    return 0;
}

int vdi_content_hash_final(struct vdi_content_hash *hash, uint8_t out[32]) {
    int result = pass_on(hash);
    return result < 0 ? result : gild_sha256_final(hash->sha, out);
}

void vdi_content_hash_destroy(struct vdi_content_hash *hash) {
    if (hash) {
        gild_sha256_destroy(hash->sha);
        free(hash);
    }
}
