/* The catalogue's records by name, for the verbs of this folder. Private to engine/vdi. */
#ifndef GILD_VDI_LOOKUP_H
#define GILD_VDI_LOOKUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "catalog/records.h"
#include "gild/error.h"
#include "gild/store.h"
#include "vdi/names.h"
#include "vdi/vdi.h"

uint64_t vdi_now_ns(void); /* CLOCK_REALTIME */

/* The sentence for trouble with the catalogue: "WHAT: can not ...". Gives `result` back. */
int vdi_catalog_failed(struct gild_error *error, int result, const char *what);

/* ---- records: 0, -ENOENT, -EBADMSG, -EUCLEAN; no sentence ------------------------------------ */

#define VDI_VERSION_KEY_BYTES (GILD_NAME_MAX + 5u)
size_t vdi_version_key(const char *image, uint32_t version, uint8_t key[VDI_VERSION_KEY_BYTES]);
/* False for bytes that are no such key. */
bool vdi_version_key_read(const void *key, size_t length, struct gild_reference *out);
/* A name that is a key: false if it is too long. */
bool vdi_name_key_read(const void *key, size_t length, char name[GILD_NAME_MAX + 1]);

int vdi_get_image(struct gild_txn *txn, const char *name, struct gild_rec_image *record);
int vdi_put_image(struct gild_txn *txn, const char *name, const struct gild_rec_image *record);
int vdi_get_version(struct gild_txn *txn, const char *image, uint32_t version,
                    struct gild_rec_version *record);
int vdi_put_version(struct gild_txn *txn, const char *image, uint32_t version,
                    const struct gild_rec_version *record);
int vdi_get_desktop(struct gild_txn *txn, const char *name, struct gild_rec_desktop *record);
int vdi_put_desktop(struct gild_txn *txn, const char *name, const struct gild_rec_desktop *record);
int vdi_get_pool(struct gild_txn *txn, const char *name, struct gild_rec_pool *record);
int vdi_put_pool(struct gild_txn *txn, const char *name, const struct gild_rec_pool *record);

/* The version that a reference means; without a number the newest that is not retired. Sets
 * reference->version. A sentence says what is missing. */
int vdi_find_version(struct gild_txn *txn, struct gild_reference *reference,
                     struct gild_rec_version *record, struct gild_error *error);

/* ---- desktops by selection ------------------------------------------------------------------- */

struct vdi_desktops {
    struct gild_desktop_info *items; /* name and record are set */
    size_t count, room;
};
void vdi_desktops_free(struct vdi_desktops *desktops);

/* SEL of vdi.h, sorted by name. The caller frees *out, after failure too. */
int vdi_select(struct gild_txn *txn, const char *select, struct vdi_desktops *out,
               struct gild_error *error);
/* The same in a transaction of its own. */
int vdi_select_now(struct gild_store *store, const char *select, struct vdi_desktops *out,
                   struct gild_error *error);

/* Sets delta_blocks and door of each. */
void vdi_desktops_look(struct gild_store *store, struct vdi_desktops *desktops);

/* "d1, d2, d3, d4, d5 and 7 more": the names of those that `take` wants (NULL: all). */
#define VDI_NAMES_BYTES 320u
char *vdi_desktops_names(const struct vdi_desktops *desktops,
                         bool (*take)(const struct gild_desktop_info *info),
                         char text[VDI_NAMES_BYTES]);

/* ---- changes that desktops and pools share --------------------------------------------------- */

/* Makes `count` desktops named by the pattern (or the one called name) on the version, in txn. */
struct vdi_clones {
    const char *name;
    const struct gild_name_pattern *pattern;
    uint32_t count;
    const char *pool; /* "" = none */
    uint64_t size_bytes;
    uint64_t capacity_bytes; /* of the store, asked before the transaction */
};
int vdi_make_clones(struct gild_txn *txn, const struct vdi_clones *clones,
                    const struct gild_reference *image, const struct gild_rec_version *version,
                    struct gild_error *error);

/* Sets blocks and bytes: what goes if these deltas go, and this map (0: none). Where it can not be
 * counted (a damaged map, a store that is too full for a checkpoint), that is an error only if it
 * is all that was asked for: a deletion goes on, and then it is the deltas' own blocks. */
int vdi_count_freed(struct gild_store *store, const uint64_t *deltas, size_t delta_count,
                    uint64_t map_id, bool must, struct gild_freed *freed, struct gild_error *error);

/* Deletes what `select` meets, and the pool called `pool` with it (NULL: none). */
int vdi_delete_desktops(struct gild_store *store, const char *select, const char *pool,
                        bool dry_run, struct gild_freed *freed, struct gild_error *error);

#endif
