/* Limits, as the admin sets and sees them. Any thread but a reactor's; errors are one sentence. */
#ifndef GILD_VDI_LIMITS_H
#define GILD_VDI_LIMITS_H

#include <stdint.h>

#include "catalog/records.h"
#include "gild/error.h"
#include "gild/store.h"

/* One KEY=VALUE. */
struct gild_setting {
    const char *key, *value;
};

/* target: "store", a pool's name ("@NAME", too), or a disk's path "desktops/D/os". All settings or
 * none. Takes effect at once, on disks that are open, too. */
int gild_limit_set(struct gild_store *store, const char *target,
                   const struct gild_setting *settings, size_t count, struct gild_error *error);

struct gild_limit {
    const char *target; /* "store", "pools/p1", "desktops/d1/os" */
    const char *key;
    const char *value;    /* as it is set: "64G", "80,90", "none" */
    uint64_t limit_bytes; /* 0: the key is no number of bytes, or none is set */
    uint64_t used_bytes;  /* of it */
};
typedef int gild_limit_visit(void *context, const struct gild_limit *limit);
/* target NULL: the store's, and each pool's and disk's that is set. */
int gild_limit_show(struct gild_store *store, const char *target, gild_limit_visit *visit,
                    void *context, struct gild_error *error);

/* May desktops of so many bytes each be promised, on top of those that there are? capacity_bytes as
 * of gild_store_capacity, asked before the transaction. GILD_NO_SPACE with a sentence, or 0. */
struct gild_txn;
int vdi_check_promise(struct gild_txn *txn, uint64_t capacity_bytes, uint64_t count,
                      uint64_t size_bytes, struct gild_error *error);

/* The sum that the policy allows; UINT64_MAX: no bound. Saturates. Pure. */
uint64_t gild_overcommit_bound(enum gild_overcommit policy, uint64_t capacity_bytes);

#endif
