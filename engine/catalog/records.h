/* The catalogue's records: C structs, and their little-endian form on disk (docs/format.md). Each
 * value begins with a u16 type and a u16 version; a decoder refuses what it does not know with
 * -EUCLEAN and never reads past the length. Pure functions, any thread. */
#ifndef GILD_RECORDS_H
#define GILD_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "catalog/catalog.h"

#define GILD_NAME_MAX 120u          /* bytes of a name, without NUL */
#define GILD_RECORD_MAX (64u << 10) /* bytes of any encoded record */
/* Root pages of a delta's map tree: each covers 504 * 504 * 320 blocks (310 GiB). */
#define GILD_DELTA_ROOTS_MAX 256u

struct gild_rec_image {
    uint32_t latest_version; /* the highest number ever given */
    uint64_t created_ns;     /* CLOCK_REALTIME */
};

enum gild_stage {
    GILD_STAGE_MAINTENANCE,
    GILD_STAGE_TEST,
    GILD_STAGE_PRODUCTION,
    GILD_STAGE_RETIRED
};

struct gild_rec_version {
    uint64_t map_id;
    uint64_t size_bytes;
    uint64_t created_ns;
    uint8_t content_hash[32];
    uint8_t stage;
    uint64_t data_blocks;   /* non-zero blocks */
    uint64_t new_blocks;    /* blocks that no earlier pack held */
    uint64_t stored_bytes;  /* compressed bytes that this import added */
    char source_format[16]; /* "qcow2" */
};

struct gild_rec_desktop {
    char image[GILD_NAME_MAX + 1];
    uint32_t version;
    char pool[GILD_NAME_MAX + 1]; /* "" if none */
    uint64_t os_delta;            /* delta id */
    uint64_t size_bytes;
    uint64_t created_ns;
};

struct gild_rec_pool {
    char image[GILD_NAME_MAX + 1];
    uint32_t version;
    char name_pattern[GILD_NAME_MAX + 1];
    uint32_t count;
    uint64_t created_ns;
};

/* A writable disk's map as of the last checkpoint. */
struct gild_rec_delta {
    uint64_t size_bytes;
    uint64_t parent_map; /* sealed map id, 0 = none */
    uint64_t parent_size_bytes;
    uint64_t mapped_blocks; /* blocks with content of its own: in the log, or in packs */
    uint64_t packed_blocks; /* of these, in packs */
    uint64_t changed_ns;
    uint32_t root_count;
    uint64_t roots[GILD_DELTA_ROOTS_MAX]; /* places of root pages (log), 0 = nothing mapped */
};

struct gild_rec_map {
    uint64_t size_bytes;
    uint64_t data_blocks;
    uint8_t content_hash[32];
    uint32_t pack_count; /* the packs that it reaches */
    uint32_t packs[(GILD_RECORD_MAX - 256) / 4];
};

struct gild_rec_pack {
    uint64_t file_bytes;
    uint64_t groups;
    uint64_t blocks;
    uint64_t delta_refs; /* blocks of deltas, as of the last checkpoint, that name it */
    uint64_t stale_refs; /* references that went since it was last looked through: a hint */
};

enum gild_segment_state {
    GILD_SEGMENT_READY, /* prepared; a reactor may have begun to write it since */
    GILD_SEGMENT_OPEN,  /* was being written at the last checkpoint */
    GILD_SEGMENT_FULL,
};

struct gild_rec_segment {
    uint8_t state;
    uint8_t holds_nodes;  /* 1: map nodes of checkpoints, 0: guests' writes */
    uint64_t live_blocks; /* blocks that maps of the last checkpoint reach */
    uint64_t closed_s;    /* when its writer went on, seconds since 1970; 0 = not known */
};

/* Where replay of a stream begins. Streams are numbered anew at each start, one per reactor. */
struct gild_rec_stream {
    uint64_t checkpoint_lsn; /* batches at or below it are in the maps */
    uint64_t segment;        /* serial that held it, 0 = none */
};

/* A disk that may have lost flushed writes, nobody knows which: it opens for reading only. */
struct gild_rec_quarantine {
    uint64_t since_ns;
    char why[200]; /* for people */
};

/* Groups of a pack that are lost: no good copy of them was found, and nothing is deduplicated into
 * them. Kept in the table INTENTS (docs/format-catalogue.md); a pack with more has several. */
#define GILD_LOST_RANGES 1024u
struct gild_rec_lost {
    uint64_t since_ns;
    uint32_t count;
    struct {
        uint32_t first, groups;
    } range[GILD_LOST_RANGES];
};

/* How much a delta, or the store, held at times gone by: the younger, the closer together. Kept in
 * the table META. */
#define GILD_GROWTH_SAMPLES 32u
struct gild_rec_growth {
    uint32_t count;
    struct {
        uint64_t at_s; /* seconds since 1970, ascending */
        uint64_t bytes;
    } sample[GILD_GROWTH_SAMPLES];
};

/* What an admin allows the whole store; kept in the table META. Absent: nothing but the size that
 * the store was made with. */
enum gild_overcommit {
    GILD_OVERCOMMIT_UNBOUNDED,
    GILD_OVERCOMMIT_NONE,         /* 1x the store's capacity */
    GILD_OVERCOMMIT_CONSERVATIVE, /* 4x */
    GILD_OVERCOMMIT_MODERATE,     /* 7x */
    GILD_OVERCOMMIT_AGGRESSIVE,   /* 15x */
    GILD_OVERCOMMIT_COUNT,
};
#define GILD_WARN_MAX 8u
struct gild_rec_limits {
    uint8_t size_set;    /* 1: size_bytes stands in for the superblock's */
    uint64_t size_bytes; /* 0: none */
    uint8_t overcommit;
    uint8_t warn_count;
    uint8_t warn[GILD_WARN_MAX]; /* percent used, 1 to 99, ascending */
};

/* Of a pool, or of one disk's delta; kept in the table META. Bytes of written blocks, 0 = none. */
struct gild_rec_quota {
    uint64_t quota_bytes;
    uint64_t desktop_bytes; /* a pool's: of each of its desktops */
};

#define GILD_RECORD(name)                                                             \
    /* Bytes written to out (GILD_RECORD_MAX suffices). */                            \
    size_t gild_rec_##name##_encode(const struct gild_rec_##name *record, void *out); \
    int gild_rec_##name##_decode(struct gild_rec_##name *record, const void *value, size_t length);

GILD_RECORD(image)
GILD_RECORD(version)
GILD_RECORD(desktop)
GILD_RECORD(pool)
GILD_RECORD(delta)
GILD_RECORD(map)
GILD_RECORD(pack)
GILD_RECORD(segment)
GILD_RECORD(stream)
GILD_RECORD(quarantine)
GILD_RECORD(lost)
GILD_RECORD(growth)
GILD_RECORD(limits)
GILD_RECORD(quota)
#undef GILD_RECORD

/* Get, put and delete by typed key, built on the above. -ENOENT, -EBADMSG, -EUCLEAN. */
int gild_rec_get_u64(struct gild_txn *txn, enum gild_table table, uint64_t id, const void **value,
                     size_t *length);
int gild_rec_put_delta(struct gild_txn *txn, enum gild_table table, uint64_t id,
                       const struct gild_rec_delta *record);
int gild_rec_get_delta(struct gild_txn *txn, enum gild_table table, uint64_t id,
                       struct gild_rec_delta *record);
int gild_rec_put_segment(struct gild_txn *txn, uint64_t serial,
                         const struct gild_rec_segment *record);
int gild_rec_put_stream(struct gild_txn *txn, uint64_t id, const struct gild_rec_stream *record);
int gild_rec_put_pack(struct gild_txn *txn, uint32_t id, const struct gild_rec_pack *record);
int gild_rec_get_pack(struct gild_txn *txn, uint32_t id, struct gild_rec_pack *record);
int gild_rec_put_map(struct gild_txn *txn, uint64_t id, const struct gild_rec_map *record);
int gild_rec_get_map(struct gild_txn *txn, uint64_t id, struct gild_rec_map *record);
/* Of a delta; kept in the table META. */
int gild_rec_put_quarantine(struct gild_txn *txn, uint64_t delta_id,
                            const struct gild_rec_quarantine *record);
int gild_rec_get_quarantine(struct gild_txn *txn, uint64_t delta_id,
                            struct gild_rec_quarantine *record);
int gild_rec_delete_quarantine(struct gild_txn *txn, uint64_t delta_id);
/* Of a delta, or of the store (id 0); kept in the table META. */
int gild_rec_put_growth(struct gild_txn *txn, uint64_t id, const struct gild_rec_growth *record);
int gild_rec_get_growth(struct gild_txn *txn, uint64_t id, struct gild_rec_growth *record);
int gild_rec_delete_growth(struct gild_txn *txn, uint64_t id);
/* Kept in the table META. A get of what is not there is all zeroes; a put of zeroes deletes. */
int gild_rec_get_limits(struct gild_txn *txn, struct gild_rec_limits *record);
int gild_rec_put_limits(struct gild_txn *txn, const struct gild_rec_limits *record);
int gild_rec_get_pool_quota(struct gild_txn *txn, const char *pool, struct gild_rec_quota *record);
int gild_rec_put_pool_quota(struct gild_txn *txn, const char *pool,
                            const struct gild_rec_quota *record);
int gild_rec_get_disk_quota(struct gild_txn *txn, uint64_t delta_id, struct gild_rec_quota *record);
int gild_rec_put_disk_quota(struct gild_txn *txn, uint64_t delta_id,
                            const struct gild_rec_quota *record);
/* All of them: pool is NULL for a disk's. A non-zero return ends the walk and is returned. */
typedef int gild_rec_quota_visit(void *context, const char *pool, uint64_t delta_id,
                                 const struct gild_rec_quota *record);
int gild_rec_each_quota(struct gild_txn *txn, gild_rec_quota_visit *visit, void *context);
int gild_rec_delete_u64(struct gild_txn *txn, enum gild_table table, uint64_t id);
uint64_t gild_rec_key_u64(const void *key); /* big-endian key bytes -> number */

#endif
