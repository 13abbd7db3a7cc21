/* What a repair says, and of whom: sentences, lost ranges, names of disks. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/repair.h"

/* ---- sets of blocks -------------------------------------------------------------------------- */

int range_add(struct range_set *set, uint64_t first, uint64_t count) {
    struct range *last = set->count ? &set->range[set->count - 1] : NULL;
    if (last && last->first + last->count == first) {
        last->count += count;
        return 0;
    }
    if (set->count == set->room) {
        size_t room = set->room ? 2 * set->room : 16;
        struct range *grown = realloc(set->range, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        set->range = grown;
        set->room = room;
    }
    set->range[set->count++] = (struct range){first, count};
    return 0;
}

int range_subtract(struct range_set *set, uint64_t first, uint64_t count) {
    uint64_t end = first + count;
    int err = 0;
    for (size_t i = 0, n = set->count; i < n && !err; i++) {
        struct range *range = &set->range[i];
        uint64_t range_end = range->first + range->count;
        if (range_end <= first || range->first >= end)
            continue;
        if (range->first < first) {
            range->count = first - range->first;
            if (range_end > end)
                err = range_add(set, end, range_end - end);
        } else {
            range->count = range_end > end ? range_end - end : 0;
            range->first = end;
        }
    }
    return err;
}

static int by_first(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

void range_merge(struct range_set *set) {
    size_t kept = 0;
    if (set->count)
        qsort(set->range, set->count, sizeof *set->range, by_first);
    for (size_t i = 0; i < set->count; i++) {
        struct range range = set->range[i], *last = kept ? &set->range[kept - 1] : NULL;
        uint64_t end = range.first + range.count;
        if (!range.count)
            continue;
        if (!last || last->first + last->count < range.first)
            set->range[kept++] = range;
        else if (end > last->first + last->count)
            last->count = end - last->first;
    }
    set->count = kept;
}

/* ---- telling --------------------------------------------------------------------------------- */

void repair_say(struct repair *repair, const char *format, ...) {
    char sentence[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    repair->result->repaired++;
    repair->to_do++;
    if (repair->report->repaired)
        repair->report->repaired(repair->report->context, sentence);
}

void repair_tell_quarantined(struct repair *repair, const char *disk, const char *why) {
    repair->result->quarantined++;
    if (repair->report->quarantined)
        repair->report->quarantined(repair->report->context, disk, why);
}

void repair_tell_lost(struct repair *repair, const char *disk, struct range_set *set) {
    range_merge(set);
    for (size_t i = 0; i < set->count; i++) {
        repair->result->lost_ranges++;
        repair->result->lost_blocks += set->range[i].count;
        if (repair->report->lost)
            repair->report->lost(repair->report->context, disk, set->range[i].first,
                                 set->range[i].count);
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

struct named {
    uint64_t delta_id, map_id; /* one of them is 0 */
    char *name;
};

static int name_add(struct repair *repair, uint64_t delta_id, uint64_t map_id, const char *name) {
    if (repair->name_count == repair->name_room) {
        size_t room = repair->name_room ? 2 * repair->name_room : 64;
        struct named *grown = realloc(repair->names, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        repair->names = grown;
        repair->name_room = room;
    }
    char *copy = strdup(name);
    if (!copy)
        return -ENOMEM;
    repair->names[repair->name_count++] = (struct named){delta_id, map_id, copy};
    return 0;
}

static int note_desktop(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct gild_rec_desktop desktop;
    char path[GILD_NAME_MAX + 32];
    if (gild_rec_desktop_decode(&desktop, value, length))
        return 0;
    snprintf(path, sizeof path, "desktops/%.*s/os", (int)key_length, (const char *)key);
    return name_add(context, desktop.os_delta, 0, path);
}

static int note_version(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct gild_rec_version version;
    const uint8_t *bytes = key;
    char path[GILD_NAME_MAX + 32];
    size_t name = strnlen(key, key_length);
    if (name + 5 != key_length || gild_rec_version_decode(&version, value, length))
        return 0;
    uint32_t number = (uint32_t)bytes[name + 1] << 24 | (uint32_t)bytes[name + 2] << 16 |
                      (uint32_t)bytes[name + 3] << 8 | bytes[name + 4];
    snprintf(path, sizeof path, "images/%s@%" PRIu32, (const char *)key, number);
    return name_add(context, 0, version.map_id, path);
}

int repair_names(struct gild_store *store) {
    struct gild_txn *txn;
    int err = gild_txn_begin(store->catalog, false, &txn);
    if (err)
        return err;
    err = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, note_desktop, store->repair);
    if (!err)
        err = gild_txn_scan(txn, GILD_TABLE_VERSIONS, NULL, 0, note_version, store->repair);
    gild_txn_abort(txn);
    return err;
}

const char *repair_delta_name(struct repair *repair, uint64_t delta_id, char text[64]) {
    for (size_t i = 0; i < repair->name_count; i++)
        if (repair->names[i].delta_id == delta_id)
            return repair->names[i].name;
    snprintf(text, 64, "delta %" PRIu64, delta_id);
    return text;
}

const char *repair_map_name(struct repair *repair, uint64_t map_id, char text[64]) {
    for (size_t i = 0; i < repair->name_count; i++)
        if (repair->names[i].map_id == map_id)
            return repair->names[i].name;
    snprintf(text, 64, "map %" PRIu64, map_id);
    return text;
}

void repair_free(struct repair *repair) {
    for (size_t i = 0; i < repair->name_count; i++)
        free(repair->names[i].name);
    for (size_t i = 0; i < repair->map_count; i++)
        free(repair->maps[i].ranges.range);
    free(repair->names);
    free(repair->maps);
    free(repair->tail);
    free(repair->lost_packs.id);
    free(repair->damaged_packs.id);
    free(repair->lost_groups.id);
}
