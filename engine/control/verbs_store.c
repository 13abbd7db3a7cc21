/* The verbs on the store itself: info, check, scrub, gc. Any thread but a reactor's. */
#include <errno.h>

#include "control/control.h"

json_t *control_store_info(struct control_call *call) {
    struct gild_store_info info;
    if (gild_store_get_info(call->store, &info, call->error))
        return NULL;
    json_t *answer =
        json_pack("{s:o, s:s, s:i, s:b, s:s, s:i, s:s}", "directory",
                  control_json_text(gild_store_directory(call->store)), "id", info.id, "format",
                  (int)info.format, "served", call->doors != NULL, "io_backend", info.backend,
                  "reactors", (int)info.reactors, "space", info.space);
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"capacity_bytes", info.capacity_bytes},
        {"used_bytes", info.used_bytes},
        {"free_bytes", info.free_bytes},
        {"pack_bytes", info.pack_bytes},
        {"log_bytes", info.log_bytes},
        {"map_bytes", info.map_bytes},
        {"catalogue_bytes", info.catalogue_bytes},
        {"images", info.images},
        {"versions", info.versions},
        {"desktops", info.desktops},
        {"pools", info.pools},
        {"cache_bytes", info.cache_bytes},
        {"cache_used_bytes", info.cache_used_bytes},
        {"recovered_batches", info.recovered_batches},
    };
    int bad = json_object_set_new(
        answer, "size_limit_bytes",
        info.size_limit_bytes ? json_integer((json_int_t)info.size_limit_bytes) : json_null());
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        bad |=
            json_object_set_new(answer, numbers[i].key, json_integer((json_int_t)numbers[i].value));
    if (bad) {
        json_decref(answer);
        return NULL;
    }
    return answer;
}

/* A store in ruins has more to say than anybody reads; the count tells the rest. */
#define FINDINGS_MAX 1000u

#define DISKS_MAX 1000u /* of one finding */
#define RANGES_MAX 64u  /* of one disk */

static json_t *disk_json(const struct gild_hit *hit) {
    json_t *ranges = json_array();
    for (size_t i = 0; i < hit->range_count && i < RANGES_MAX; i++)
        json_array_append_new(ranges, json_pack("{s:I, s:I}", "first_block",
                                                (json_int_t)hit->ranges[i].first_block, "blocks",
                                                (json_int_t)hit->ranges[i].blocks));
    return json_pack("{s:o, s:I, s:o}", "disk", control_json_text(hit->disk), "blocks",
                     (json_int_t)hit->blocks, "ranges", ranges);
}

/* An answer's findings; a scrub's, beside the caller's progress. */
struct notes {
    json_t *findings;
    const struct control_call *call;
};

static void note_finding(void *context, const struct gild_finding *finding) {
    json_t *findings = ((struct notes *)context)->findings, *disks;
    if (json_array_size(findings) >= FINDINGS_MAX)
        return;
    disks = json_array();
    for (size_t i = 0; i < finding->hit_count && i < DISKS_MAX; i++)
        json_array_append_new(disks, disk_json(&finding->hits[i]));
    json_array_append_new(findings,
                          json_pack("{s:o, s:s, s:o, s:I, s:o}", "object",
                                    control_json_text(finding->object), "kind", finding->kind,
                                    "message", control_json_text(finding->message), "disk_count",
                                    (json_int_t)finding->hit_count, "disks", disks));
}

static void add_error(json_t *answer, const struct gild_error *error) {
    json_t *outcome = control_error_json(error);
    json_object_update(answer, outcome);
    json_decref(outcome);
}

json_t *control_store_check(struct control_call *call) {
    if (control_flag(call, "repair")) { /* here the store is open */
        control_repair_refuse_served(gild_store_directory(call->store), call->error);
        return NULL;
    }
    if (control_flag(call, "dry_run")) {
        gild_fail(call->error, GILD_USAGE, EINVAL,
                  "store check: a dry run is of a repair, so give --repair too; a check alone "
                  "changes nothing");
        return NULL;
    }
    struct gild_check_result result;
    struct gild_error error = {0};
    struct notes notes = {json_array(), call};
    json_t *findings = notes.findings;
    int err = gild_store_check(call->store, note_finding, &notes, &result, call->error);
    if (err && !(err == -EUCLEAN && result.findings)) {
        json_decref(findings);
        return NULL;
    }
    json_t *answer = json_pack(
        "{s:b, s:I, s:o, s:I, s:I, s:I, s:I, s:I}", "clean", result.findings == 0, "finding_count",
        (json_int_t)result.findings, "findings", findings, "disks", (json_int_t)result.disks,
        "maps", (json_int_t)result.maps, "packs", (json_int_t)result.packs, "segments",
        (json_int_t)result.segments, "blocks", (json_int_t)result.blocks);
    if (!answer || !result.findings)
        return answer;
    gild_fail(&error, GILD_CORRUPT, EUCLEAN,
              "the check of store %s found %llu fault%s; `gild store scrub` heals what has another "
              "copy, each line says what else can be done",
              gild_store_directory(call->store), (unsigned long long)result.findings,
              result.findings == 1 ? "" : "s");
    add_error(answer, &error);
    return answer;
}

/* ---- scrub ----------------------------------------------------------------------------------- */

/* A scrub without a rate leaves a disk enough for guests. */
#define BLOCK_BYTES 4096u
#define SCRUB_RATE_BYTES ((uint64_t)64 << 20)

static int note_progress(void *context, const char *what, uint64_t done, uint64_t total) {
    const struct control_call *call = ((struct notes *)context)->call;
    return call->progress ? call->progress(call->context, what, done, total) : 0;
}

static json_t *scrub_json(const struct gild_scrub_result *result, int err, bool dry_run,
                          json_t *findings) {
    return json_pack(
        "{s:b, s:b, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "clean", err == 0, "dry_run",
        dry_run, "finding_count", (json_int_t)result->findings, "findings", findings, "read_bytes",
        (json_int_t)result->read_bytes, "disks", (json_int_t)result->disks, "maps",
        (json_int_t)result->maps, "packs", (json_int_t)result->packs, "repaired_packs",
        (json_int_t)result->repaired_packs, "repaired_groups", (json_int_t)result->repaired_groups,
        "lost_groups", (json_int_t)result->lost_groups);
}

json_t *control_store_scrub(struct control_call *call) {
    struct notes notes = {json_array(), call};
    struct gild_scrub_result result;
    struct gild_error error = {0};
    uint64_t rate_bytes = control_number(call, "rate");
    const struct gild_scrub_options options = {
        .rate_bytes = rate_bytes ? rate_bytes : SCRUB_RATE_BYTES,
        .dry_run = control_flag(call, "dry_run"),
        .progress = note_progress,
        .found = note_finding,
        .context = &notes,
    };
    int err = gild_store_scrub(call->store, &options, &result, call->error);
    if (err && err != -EUCLEAN) {
        json_decref(notes.findings);
        return NULL;
    }
    json_t *answer = scrub_json(&result, err, options.dry_run, notes.findings);
    if (!answer || !err)
        return answer;
    gild_fail(&error, GILD_CORRUPT, EUCLEAN,
              "the scrub of store %s leaves damage: %llu faults, %llu packs repaired, %llu groups "
              "of packs lost; each line says what can be done",
              gild_store_directory(call->store), (unsigned long long)result.findings,
              (unsigned long long)result.repaired_packs, (unsigned long long)result.lost_groups);
    add_error(answer, &error);
    return answer;
}

/* ---- gc -------------------------------------------------------------------------------------- */

static int note_cleaned(void *context, const struct gild_clean_result *so_far) {
    const struct control_call *call = context;
    uint64_t done = so_far->packed_blocks + so_far->moved_blocks + so_far->zero_blocks;
    uint64_t total = so_far->blocks > done ? so_far->blocks : done;
    return call->progress
               ? call->progress(call->context, "cleaned", done * BLOCK_BYTES, total * BLOCK_BYTES)
               : 0;
}

json_t *control_store_gc(struct control_call *call) {
    const struct gild_clean_options options = {.progress = note_cleaned, .context = call};
    struct gild_clean_result result;
    if (gild_store_clean(call->store, &options, &result, call->error))
        return NULL;
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "segments", (json_int_t)result.segments,
        "packed_bytes", (json_int_t)(result.packed_blocks * BLOCK_BYTES), "shared_bytes",
        (json_int_t)(result.shared_blocks * BLOCK_BYTES), "moved_bytes",
        (json_int_t)(result.moved_blocks * BLOCK_BYTES), "zero_bytes",
        (json_int_t)(result.zero_blocks * BLOCK_BYTES), "pack_bytes", (json_int_t)result.pack_bytes,
        "dropped_bytes", (json_int_t)result.dropped_bytes, "freed_bytes",
        (json_int_t)result.freed_bytes);
}
