/* Importing an image: a source's data into packs and a sealed map, then one catalogue transaction.
 *
 *   source --chunks--> non-zero runs --> ingest (hash, deduplicate, compress: its own threads)
 *                                           | placed, in order of adding, on this thread
 *                                           v
 *                            map builder, content hash, the set of packs reached
 *                                           |
 *              packs and map synced --> transaction: packs, map, version, image
 *
 * Invariants:
 *   - Blocks are added in ascending order, so the map is built in one pass.
 *   - Until the transaction, the catalogue knows only that some ids were given out; packs and map
 *     are files that nobody reaches. A failure unlinks them here; after a crash the store's open
 *     removes them, since the catalogue does not know them.
 *   - Content may be deduplicated against any pack of the set, so the transaction makes sure that
 *     each pack that the map reaches is the catalogue's, too.
 *   - Files are durable before the transaction (D10).
 *
 * Thread: the caller's, which must not be a reactor's; it blocks. Failure modes: whatever the
 * source or the disk says; a full store; the caller's wish to stop. Each leaves the store as it
 * was. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/place.h"
#include "catalog/records.h"
#include "disk/store.h"
#include "map/sealed.h"
#include "pack/pack.h"
#include "vdi/content_hash.h"
#include "vdi/lookup.h"
#include "vdi/source.h"
#include "vdi/vdi.h"

#define PROGRESS_STEP_BYTES (8u << 20)
#define ADMIT_STEP_BYTES (64u << 20)
#define PACKS_MAX (sizeof(((struct gild_rec_map *)0)->packs) / sizeof(uint32_t))
#define PACK_ID_MAX 0x0fffffffu

/* A pack that the map reaches. */
struct reached {
    uint32_t id;
    uint32_t last; /* the highest group << 4 | slot */
};

struct import {
    struct gild_store *store;
    const struct gild_image_import *request;
    struct gild_error *error;
    struct vdi_source *source;
    struct gild_ingest *ingest;
    struct gild_map_builder *map;
    struct vdi_content_hash *hash;
    struct reached *packs; /* ascending by id */
    size_t pack_count, pack_room, pack_at;
    uint64_t size_bytes, map_id, data_blocks;
    uint64_t admitted_bytes; /* of blocks that may still be added before asking again */
    uint64_t reported_bytes;
    struct gild_rec_version version;
    struct gild_rec_map *map_record;
    uint32_t version_number;
};

/* ---- ids ------------------------------------------------------------------------------------- */

/* Ids are given out in transactions of their own: what is lost with a failed import is a number. */
static int take_id(struct gild_store *store, const char *name, uint64_t *id) {
    struct gild_txn *txn;
    int result = gild_txn_begin(gild_store_catalog(store), true, &txn);
    if (result < 0) {
        return result;
    }
    result = gild_txn_next_id(txn, name, 1, id);
    if (result < 0) {
        gild_txn_abort(txn);
        return result;
    }
    return gild_txn_commit(txn);
}

static int next_pack_id(void *context, uint32_t *pack_id) {
    struct import *import = context;
    uint64_t id;
    int result = take_id(import->store, "pack", &id);
    if (result == 0 && id > PACK_ID_MAX) {
        result = -EOVERFLOW;
    }
    *pack_id = (uint32_t)id;
    return result;
}

/* ---- where blocks went ----------------------------------------------------------------------- */

/* Finds the pack among those reached, or makes room for it. -E2BIG: more than a map may reach. */
static int reach(struct import *import, uint32_t id) {
    size_t low = 0, high = import->pack_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (import->packs[middle].id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    import->pack_at = low;
    if (low < import->pack_count && import->packs[low].id == id) {
        return 0;
    }
    if (import->pack_count == PACKS_MAX) {
        return -E2BIG;
    }
    if (import->pack_count == import->pack_room) {
        size_t room = import->pack_room ? import->pack_room * 2 : 64;
        struct reached *grown = realloc(import->packs, room * sizeof(*grown));
        if (!grown) {
            return -ENOMEM;
        }
        import->packs = grown;
        import->pack_room = room;
    }
    memmove(&import->packs[low + 1], &import->packs[low],
            (import->pack_count - low) * sizeof(import->packs[0]));
    import->packs[low] = (struct reached){.id = id};
    import->pack_count++;
    return 0;
}

static int placed(void *context, uint64_t block, uint64_t place, uint32_t check,
                  const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    struct import *import = context;
    uint32_t id = gild_place_pack_id(place);
    if (import->pack_count == 0 || import->packs[import->pack_at].id != id) {
        int result = reach(import, id);
        if (result < 0) {
            return result;
        }
    }
    struct reached *pack = &import->packs[import->pack_at];
    uint32_t position = (uint32_t)place;
    if (position > pack->last) {
        pack->last = position;
    }
    import->data_blocks++;
    int result = gild_map_builder_add(import->map, block, place, check);
    return result ? result : vdi_content_hash_add(import->hash, block, fingerprint);
}

/* ---- the pump -------------------------------------------------------------------------------- */

static int fail_storing(struct import *import, int result) {
    const char *name = import->request->name;
    if (result == -ENOSPC || result == -EDQUOT) {
        return gild_fail(import->error, GILD_NO_SPACE, -result,
                         "the store has no room for image %s; make room (delete images or "
                         "desktops) or enlarge the store, then import again",
                         name);
    }
    if (result == -E2BIG) {
        return gild_fail(import->error, GILD_FAILED, E2BIG,
                         "the content of image %s is spread over more than %zu packs, which one "
                         "map cannot hold",
                         name, (size_t)PACKS_MAX);
    }
    return gild_fail(import->error, gild_code_of_errno(-result), -result,
                     "cannot store image %s: %s", name, strerror(-result));
}

static int report(struct import *import, uint64_t done_bytes, bool always) {
    const struct gild_image_import *request = import->request;
    if (!request->progress ||
        (!always && done_bytes - import->reported_bytes < PROGRESS_STEP_BYTES)) {
        return 0;
    }
    import->reported_bytes = done_bytes;
    if (request->progress(request->context, "import", done_bytes, import->size_bytes) != 0) {
        return gild_fail(import->error, GILD_FAILED, ECANCELED,
                         "the import of image %s was stopped; nothing of it is kept",
                         request->name);
    }
    return 0;
}

static int add_run(struct import *import, const uint8_t *data, size_t count, uint64_t block) {
    uint64_t bytes = (uint64_t)count * VDI_BLOCK_BYTES;
    if (import->admitted_bytes < bytes) {
        int result = gild_store_admit_bytes(import->store, ADMIT_STEP_BYTES);
        if (result < 0) {
            return fail_storing(import, result);
        }
        import->admitted_bytes = ADMIT_STEP_BYTES;
    }
    import->admitted_bytes -= bytes;
    int result = gild_ingest_add(import->ingest, data, count, block);
    return result < 0 ? fail_storing(import, result) : 0;
}

/* Cuts a chunk at its zero blocks. */
static int add_chunk(struct import *import, const struct vdi_chunk *chunk) {
    const uint8_t *data = chunk->data;
    size_t blocks = chunk->bytes / VDI_BLOCK_BYTES;
    uint64_t first = chunk->offset_bytes / VDI_BLOCK_BYTES;
    for (size_t at = 0; at < blocks;) {
        size_t end = at;
        while (end < blocks && !gild_is_zero_block(data + end * VDI_BLOCK_BYTES)) {
            end++;
        }
        if (end > at) {
            int result = add_run(import, data + at * VDI_BLOCK_BYTES, end - at, first + at);
            if (result < 0) {
                return result;
            }
        }
        at = end + 1; /* end is zero, or past the chunk */
    }
    return 0;
}

static int pump(struct import *import) {
    struct vdi_chunk chunk;
    uint64_t done = 0;
    int result = report(import, 0, true);
    while (result == 0) {
        result = vdi_source_next(import->source, &chunk, import->error);
        if (result <= 0) {
            break;
        }
        result = add_chunk(import, &chunk);
        if (chunk.bytes) {
            done = gild_min_u64(chunk.offset_bytes + chunk.bytes, import->size_bytes);
        }
        if (result == 0) {
            result = report(import, done, chunk.bytes == 0);
        }
    }
    return result;
}

/* Everything to disk: packs, then the map that names them. */
static int seal(struct import *import) {
    int result = gild_ingest_finish(import->ingest, import->error);
    if (result < 0) {
        return result;
    }
    result = vdi_content_hash_final(import->hash, import->version.content_hash);
    if (result < 0) {
        return fail_storing(import, result);
    }
    return gild_map_builder_finish(import->map, import->version.content_hash, import->error);
}

/* ---- the catalogue --------------------------------------------------------------------------- */

static void fill_records(struct import *import) {
    struct gild_ingest_totals totals;
    struct gild_rec_version *version = &import->version;
    struct gild_rec_map *map = import->map_record;
    gild_ingest_get_totals(import->ingest, &totals);
    version->map_id = import->map_id;
    version->size_bytes = import->size_bytes;
    version->created_ns = vdi_now_ns();
    version->stage = GILD_STAGE_PRODUCTION;
    version->data_blocks = import->data_blocks;
    version->new_blocks = totals.blocks_new;
    version->stored_bytes = totals.frame_bytes;
    strncpy(version->source_format, vdi_source_format(import->source),
            sizeof(version->source_format) - 1);
    map->size_bytes = import->size_bytes;
    map->data_blocks = import->data_blocks;
    memcpy(map->content_hash, version->content_hash, sizeof(map->content_hash));
    map->pack_count = (uint32_t)import->pack_count;
    for (size_t i = 0; i < import->pack_count; i++) {
        map->packs[i] = import->packs[i].id;
    }
}

/* A pack that this import made. All its blocks are ours and groups fill up one after the other, so
 * the last place tells how many there are. */
static int put_new_pack(struct import *import, struct gild_txn *txn, const struct reached *pack) {
    char path[4096];
    struct stat status;
    snprintf(path, sizeof(path), "%s/packs/%08x.pack", gild_store_directory(import->store),
             pack->id);
    if (stat(path, &status) < 0) {
        return -errno;
    }
    struct gild_rec_pack record = {.file_bytes = (uint64_t)status.st_size,
                                   .groups = pack->last / GILD_GROUP_BLOCKS + 1,
                                   .blocks = (uint64_t)pack->last + 1};
    return gild_rec_put_pack(txn, pack->id, &record);
}

static int put_packs(struct import *import, struct gild_txn *txn) {
    struct gild_ingest_totals totals;
    gild_ingest_get_totals(import->ingest, &totals);
    for (size_t i = 0; i < import->pack_count; i++) {
        const struct reached *pack = &import->packs[i];
        const void *value;
        size_t length;
        bool is_new = false;
        for (uint32_t n = 0; n < totals.pack_count; n++) {
            is_new = is_new || totals.pack_ids[n] == pack->id;
        }
        uint8_t key[4];
        gild_put_be32(key, pack->id);
        int result = is_new
                         ? put_new_pack(import, txn, pack)
                         : gild_txn_peek(txn, GILD_TABLE_PACKS, key, sizeof(key), &value, &length);
        if (result == -ENOENT && !is_new) {
            return gild_fail(import->error, GILD_BUSY, EBUSY,
                             "content that image %s shares was deleted while it was imported; "
                             "import it again",
                             import->request->name);
        }
        if (result < 0) {
            return fail_storing(import, result);
        }
    }
    return 0;
}

/* The next number of the image, and its record. */
static int put_version(struct import *import, struct gild_txn *txn) {
    const char *name = import->request->name;
    struct gild_rec_image image = {.created_ns = import->version.created_ns};
    int result = vdi_get_image(txn, name, &image);
    if (result < 0 && result != -ENOENT) {
        return result;
    }
    import->version_number = ++image.latest_version;
    result = vdi_put_image(txn, name, &image);
    return result ? result : vdi_put_version(txn, name, import->version_number, &import->version);
}

/* *committed: it is, or (after an I/O error) may be. */
static int commit(struct import *import, bool *committed) {
    struct gild_txn *txn;
    fill_records(import);
    int result = gild_txn_begin(gild_store_catalog(import->store), true, &txn);
    if (result < 0) {
        return fail_storing(import, result);
    }
    result = put_packs(import, txn);
    if (result < 0) {
        gild_txn_abort(txn);
        return result; /* has its sentence */
    }
    result = gild_rec_put_map(txn, import->map_id, import->map_record);
    result = result ? result : put_version(import, txn);
    if (result < 0) {
        gild_txn_abort(txn);
        return fail_storing(import, result);
    }
    result = gild_txn_commit(txn);
    /* A commit whose sync failed may stand on the disk: then the files must stay. If it does not
     * stand, the next open of the store removes them. */
    *committed = result == 0 || result == -EIO;
    return result < 0 ? fail_storing(import, result) : 0;
}

/* ---- the verb -------------------------------------------------------------------------------- */

static int begin(struct import *import) {
    struct gild_store *store = import->store;
    char folder[4096];
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    import->size_bytes = vdi_source_size_bytes(import->source);
    import->map_record = calloc(1, sizeof(*import->map_record));
    int result = import->map_record ? take_id(store, "map", &import->map_id) : -ENOMEM;
    result = result ? result : vdi_content_hash_create(&import->hash, import->size_bytes);
    if (result < 0) {
        return fail_storing(import, result);
    }
    snprintf(folder, sizeof(folder), "%s/maps", gild_store_directory(store));
    result = gild_map_builder_create(&import->map, folder, gild_store_id(store), import->map_id,
                                     import->size_bytes, import->error);
    if (result < 0) {
        return result;
    }
    struct gild_ingest_options options = {.threads = processors > 0 ? (unsigned)processors : 1,
                                          .next_pack_id = next_pack_id,
                                          .placed = placed,
                                          .context = import};
    return gild_ingest_create(&import->ingest, gild_store_packs(store), &options, import->error);
}

static void end(struct import *import, bool keep) {
    if (import->ingest) {
        gild_ingest_destroy(import->ingest, keep);
    }
    if (import->map) {
        gild_map_builder_destroy(import->map, keep);
    }
    vdi_content_hash_destroy(import->hash);
    free(import->map_record);
    free(import->packs);
}

int gild_image_import(struct gild_store *store, const struct gild_image_import *request,
                      struct gild_image_info *made, struct gild_error *error) {
    struct import import = {.store = store, .request = request, .error = error};
    bool committed = false;
    int result = gild_name_check(request->name, "image", error);
    if (result < 0) {
        return result;
    }
    /* Looking at a foreign image may take a while: before anything of the store is held. */
    result = vdi_source_open(&import.source, request->source, request->format,
                             request->allow_backing, error);
    if (result < 0) {
        return result;
    }
    gild_store_ingest_begin(store);
    result = begin(&import);
    result = result ? result : pump(&import);
    result = result ? result : seal(&import);
    result = result ? result : report(&import, import.size_bytes, true);
    result = result ? result : commit(&import, &committed);
    end(&import, committed);
    gild_store_ingest_end(store);
    vdi_source_close(import.source);
    if (result < 0) {
        return result;
    }
    memset(made, 0, sizeof(*made));
    strcpy(made->name, request->name); /* gild_name_check bounds it */
    made->version = import.version_number;
    made->record = import.version;
    return 0;
}
