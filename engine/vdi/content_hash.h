/* The content hash of a disk: what proves that an image version never changed (D3). It depends on
 * the size and the non-zero blocks only, not on how they are stored; docs/format-content-hash.md.
 *
 * Private to engine/vdi. One thread at a time per object. */
#ifndef GILD_VDI_CONTENT_HASH_H
#define GILD_VDI_CONTENT_HASH_H

#include <stdint.h>

struct vdi_content_hash;

/* 0 or -errno. size_bytes: the disk's virtual size. */
int vdi_content_hash_create(struct vdi_content_hash **out, uint64_t size_bytes);

/* A non-zero block and its SHA-256, in strictly ascending order of blocks. 0 or -errno. */
int vdi_content_hash_add(struct vdi_content_hash *hash, uint64_t block,
                         const uint8_t fingerprint[32]);

/* Once, at the end. 0 or -errno. */
int vdi_content_hash_final(struct vdi_content_hash *hash, uint8_t out[32]);

void vdi_content_hash_destroy(struct vdi_content_hash *hash); /* NULL is fine */

#endif
