/* The admin's verbs on images, desktops and pools. Each function is one verb: one catalogue
 * transaction, or an intent that the next start completes or undoes (D8). All are blocking and run
 * on any thread but a reactor's; errors are one sentence in *error. */
#ifndef GILD_VDI_H
#define GILD_VDI_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog/records.h"
#include "gild/error.h"
#include "gild/store.h"

/* ---- names ----------------------------------------------------------------------------------- */

/* 1..GILD_NAME_MAX bytes of UTF-8 without '/', '@', ':', '%', '+', '*', '?', '[', control
 * characters or NUL, not "." or "..", not beginning with '-' or '.'. `kind` ("image", "desktop",
 * "pool") goes into the sentence. 0 or -EINVAL (GILD_USAGE). */
int gild_name_check(const char *name, const char *kind, struct gild_error *error);

/* ---- images ---------------------------------------------------------------------------------- */

struct gild_image_import {
    const char *name;
    const char *source; /* a path, or nbd://..., nbd+unix://... */
    const char *format; /* "raw", "qcow2", "vmdk", "vhdx", "vdi", or NULL: probed by content */
    bool allow_backing;
    int (*progress)(void *context, const char *what, uint64_t done, uint64_t total);
    void *context;
};

struct gild_image_info {
    char name[GILD_NAME_MAX + 1];
    uint32_t version;
    struct gild_rec_version record;
    uint64_t desktops; /* that stand on it */
};

/* Makes the next version of the image. A broken-off import leaves nothing behind, whether it failed
 * (here) or the process died (the next open). */
int gild_image_import(struct gild_store *store, const struct gild_image_import *request,
                      struct gild_image_info *made, struct gild_error *error);

typedef int gild_image_visit(void *context, const struct gild_image_info *info);
/* All versions, sorted by name, then number; name NULL = of all images. */
int gild_image_list(struct gild_store *store, const char *name, gild_image_visit *visit,
                    void *context, struct gild_error *error);
/* "win10@3", or "win10": the newest version that is not retired. */
int gild_image_show(struct gild_store *store, const char *reference, struct gild_image_info *info,
                    struct gild_error *error);

/* What a destroying verb frees, or would free: counted before it begins (disk/census.h). */
struct gild_freed {
    uint64_t desktops, versions, disks;
    uint64_t blocks; /* 4 KiB blocks, of packs and of the log, that nothing else names */
    uint64_t bytes;  /* host bytes, once the log and the packs have been cleaned */
};
/* reference must carry a version ("win10@3"). GILD_BUSY with names if desktops stand on it or it is
 * open. */
int gild_image_delete(struct gild_store *store, const char *reference, bool dry_run,
                      struct gild_freed *freed, struct gild_error *error);

/* ---- desktops -------------------------------------------------------------------------------- */

struct gild_desktop_create {
    const char *name;         /* or NULL with a pattern */
    const char *name_pattern; /* "d%04d": exactly one %d or %0Nd; names count from 1 */
    uint32_t count;           /* 0 or 1 = one desktop called name */
    const char *image;        /* NAME or NAME@V */
    const char *pool;         /* NULL = none */
    uint64_t size_bytes;      /* 0 = the image's; else at least the image's, a multiple of 512 */
};

struct gild_desktop_info {
    char name[GILD_NAME_MAX + 1];
    struct gild_rec_desktop record;
    uint64_t delta_blocks; /* written since the clone */
    const char *door;      /* open through "nbd", "fuse", or NULL */
};

/* All in one transaction: all are made, or none. *made counts them. */
int gild_desktop_create(struct gild_store *store, const struct gild_desktop_create *request,
                        uint32_t *made, struct gild_error *error);
typedef int gild_desktop_visit(void *context, const struct gild_desktop_info *info);
/* SEL: a name, a glob, "@POOL", or NULL for all; sorted by name. -ENOENT if a plain name or pool is
 * unknown; a glob that meets nothing is no error. */
int gild_desktop_list(struct gild_store *store, const char *select, gild_desktop_visit *visit,
                      void *context, struct gild_error *error);
int gild_desktop_show(struct gild_store *store, const char *name, struct gild_desktop_info *info,
                      struct gild_error *error);
/* GILD_BUSY names the open ones; then nothing is deleted. */
int gild_desktop_delete(struct gild_store *store, const char *select, bool dry_run,
                        struct gild_freed *freed, struct gild_error *error);

/* ---- pools ----------------------------------------------------------------------------------- */

struct gild_pool_info {
    char name[GILD_NAME_MAX + 1];
    struct gild_rec_pool record;
    uint64_t desktops, open_desktops, delta_blocks;
};

/* name_pattern NULL = "<pool>%04d". Pool and desktops in one transaction. */
int gild_pool_create(struct gild_store *store, const char *name, const char *image, uint32_t count,
                     const char *name_pattern, struct gild_pool_info *made,
                     struct gild_error *error);
typedef int gild_pool_visit(void *context, const struct gild_pool_info *info);
int gild_pool_list(struct gild_store *store, gild_pool_visit *visit, void *context,
                   struct gild_error *error);
int gild_pool_show(struct gild_store *store, const char *name, struct gild_pool_info *info,
                   struct gild_error *error);
/* With all its desktops. */
int gild_pool_delete(struct gild_store *store, const char *name, bool dry_run,
                     struct gild_freed *freed, struct gild_error *error);

/* ---- space ----------------------------------------------------------------------------------- */

enum gild_space_kind { GILD_SPACE_DESKTOP, GILD_SPACE_IMAGE, GILD_SPACE_POOL };

/* What one disk takes, or the disks of a pool together. */
struct gild_usage {
    char path[GILD_NAME_MAX + 32]; /* the disk's, or "@POOL" */
    enum gild_space_kind kind;
    uint8_t stage;             /* of an image version */
    uint64_t disks;            /* 1, or those of the pool */
    uint64_t desktops;         /* of an image version: those that stand on it */
    const char *door;          /* through which it, or one of them, is open; NULL */
    uint64_t virtual_bytes;    /* as guests see it */
    uint64_t mapped_bytes;     /* that have content of their own; of a desktop: since its clone */
    uint64_t unique_bytes;     /* of these, what nobody else has */
    uint64_t shared_bytes;     /* the rest: what others have, too, or what it has twice */
    uint64_t compressed_bytes; /* what the unique ones take in packs and in the log */
    uint64_t frees_bytes;      /* by which the store becomes smaller if it goes */
    bool growth_known;         /* of desktops: there is a sample that is old enough */
    int64_t growth_bytes_per_day;
};
/* text: desktops/D/os, images/NAME@V, or a pool. -ENOENT. */
int gild_space_of(struct gild_store *store, const char *text, struct gild_usage *space,
                  struct gild_error *error);

struct gild_space_totals {
    struct gild_store_info info;
    uint64_t virtual_bytes; /* of all desktops */
    uint64_t mapped_bytes;  /* of all disks, each counted for itself */
    uint64_t unique_bytes;  /* different content */
    uint64_t shared_bytes;  /* the difference */
    uint64_t compressed_bytes;
    uint64_t dead_bytes; /* in packs, that nothing names any more */
    bool growth_known;
    int64_t growth_bytes_per_day; /* of what the store's files take */
    uint64_t days_to_full;        /* at that rate; UINT64_MAX: never */
};
int gild_space_totals(struct gild_store *store, struct gild_space_totals *totals,
                      struct gild_error *error);

typedef int gild_space_visit(void *context, const struct gild_usage *space);
/* What to delete first: image versions and desktops (pool: only its desktops) by what they free
 * alone, those that are open or stood upon at the end. */
int gild_space_rank(struct gild_store *store, const char *pool, gild_space_visit *visit,
                    void *context, struct gild_error *error);

/* ---- disks by path (engine/vdi/paths.c implements gild_disk_open and gild_path_* too) ----------
 */

/* A stable serial of at most 20 bytes and a NUL for a disk path; -ENOENT. */
int gild_path_serial(struct gild_store *store, const char *path, char serial[21]);

#endif
