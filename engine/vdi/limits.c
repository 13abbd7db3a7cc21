/* Limits: set, show, and the promise that desktops' virtual sizes are (limits.h).
 *
 * A set is one transaction; then the engine is told, which applies it to open disks. What is set is
 * kept by name of a pool and by delta of a disk, and goes with them. The store's size may not be
 * set below what is used. Failure modes: a target or a value that is none is wrong usage, and
 * nothing is changed; a crash after the transaction finds the new limits at the next start. */
#include "vdi/limits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "disk/quota.h"
#include "disk/store.h"
#include "vdi/lookup.h"

static const char *const policies[GILD_OVERCOMMIT_COUNT] = {
    [GILD_OVERCOMMIT_UNBOUNDED] = "unbounded",       [GILD_OVERCOMMIT_NONE] = "none",
    [GILD_OVERCOMMIT_CONSERVATIVE] = "conservative", [GILD_OVERCOMMIT_MODERATE] = "moderate",
    [GILD_OVERCOMMIT_AGGRESSIVE] = "aggressive",
};

/* ---- targets --------------------------------------------------------------------------------- */

enum target_kind { TARGET_STORE, TARGET_POOL, TARGET_DISK };

struct target {
    enum target_kind kind;
    char name[GILD_NAME_MAX + 1]; /* a pool's or desktop's */
    uint64_t delta_id;
};

static int unknown(const char *target, struct gild_error *error) {
    char quoted[GILD_NAME_QUOTED];
    return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                     "'%s' is no target of limits: give store, a pool's name, or a disk's path "
                     "such as desktops/d1/os",
                     gild_name_quote(target, quoted));
}

static int find_disk(struct gild_txn *txn, const char *text, struct target *out,
                     struct gild_error *error) {
    struct gild_rec_desktop desktop;
    const char *name = text + strlen("desktops/");
    size_t length = strcspn(name, "/");
    if (strncmp(text, "desktops/", strlen("desktops/")) != 0 || !length || length > GILD_NAME_MAX ||
        strcmp(name + length, "/os") != 0)
        return unknown(text, error);
    memcpy(out->name, name, length);
    out->name[length] = 0;
    out->kind = TARGET_DISK;
    int result = vdi_get_desktop(txn, out->name, &desktop);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no desktop %s; `gild desktop list` shows what there is",
                         out->name);
    out->delta_id = desktop.os_delta;
    return result ? vdi_catalog_failed(error, result, out->name) : 0;
}

static int find_target(struct gild_txn *txn, const char *text, struct target *out,
                       struct gild_error *error) {
    struct gild_rec_pool pool;
    memset(out, 0, sizeof *out);
    if (strcmp(text, "store") == 0)
        return 0;
    if (strchr(text, '/'))
        return find_disk(txn, text, out, error);
    text += *text == '@';
    out->kind = TARGET_POOL;
    if (gild_name_check(text, "pool", NULL))
        return unknown(text, error);
    memcpy(out->name, text, strlen(text) + 1);
    int result = vdi_get_pool(txn, text, &pool);
    if (result == -ENOENT)
        return gild_fail(error, GILD_NOT_FOUND, ENOENT,
                         "there is no pool %s; `gild pool list` shows what there is", text);
    return result ? vdi_catalog_failed(error, result, text) : 0;
}

/* ---- values ---------------------------------------------------------------------------------- */

static int bad_value(const struct gild_setting *setting, const char *wanted,
                     struct gild_error *error) {
    char quoted[GILD_NAME_QUOTED];
    return gild_fail(error, GILD_USAGE, EINVAL, "limit set: %s=%s: give %s", setting->key,
                     gild_name_quote(setting->value, quoted), wanted);
}

/* "none" is 0. */
static int parse_bytes(const struct gild_setting *setting, uint64_t *bytes,
                       struct gild_error *error) {
    *bytes = 0;
    if (strcmp(setting->value, "none") == 0)
        return 0;
    if (gild_parse_size(setting->value, bytes) || *bytes < GILD_BLOCK_BYTES)
        return bad_value(setting, "a size of at least 4K, such as 10G, or none", error);
    return 0;
}

static int parse_warn(const struct gild_setting *setting, struct gild_rec_limits *limits,
                      struct gild_error *error) {
    static const char wanted[] =
        "up to 8 percentages from 1 to 99, ascending, such as 80,90, or "
        "none";
    const char *at = setting->value;
    memset(limits->warn, 0, sizeof limits->warn);
    limits->warn_count = 0;
    if (strcmp(at, "none") == 0)
        return 0;
    for (unsigned last = 0;; at++) {
        char *end;
        unsigned long percent = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (percent <= last || percent > 99 || limits->warn_count == GILD_WARN_MAX ||
            (*end && *end != ','))
            return bad_value(setting, wanted, error);
        limits->warn[limits->warn_count++] = (uint8_t)percent;
        last = (unsigned)percent;
        at = end;
        if (!*at)
            return 0;
    }
}

/* What the engine needs to go on lies between what is used and the limit, so no less than that. */
static int set_size(const struct gild_setting *setting, const struct gild_store_info *info,
                    struct gild_rec_limits *limits, struct gild_error *error) {
    char wanted[16], used[16];
    uint64_t bytes;
    int result = parse_bytes(setting, &bytes, error);
    if (result)
        return result;
    if (bytes % GILD_SECTOR_BYTES || (bytes && bytes < GILD_STORE_LEAST_BYTES))
        return bad_value(setting, "1G or more, a multiple of 512, or none", error);
    if (bytes && bytes < info->used_bytes)
        return gild_fail(error, GILD_NO_SPACE, ENOSPC,
                         "the store uses %s, so its size can not be %s: delete something first",
                         gild_format_size(info->used_bytes, used, sizeof used),
                         gild_format_size(bytes, wanted, sizeof wanted));
    limits->size_set = 1;
    limits->size_bytes = bytes;
    return 0;
}

static int set_store(const struct gild_setting *setting, const struct gild_store_info *info,
                     struct gild_rec_limits *limits, struct gild_error *error) {
    if (strcmp(setting->key, "size") == 0)
        return set_size(setting, info, limits, error);
    if (strcmp(setting->key, "warn") == 0)
        return parse_warn(setting, limits, error);
    if (strcmp(setting->key, "overcommit") != 0)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "the store has no limit '%.40s'; it has size, overcommit and warn",
                         setting->key);
    for (unsigned i = 0; i < GILD_OVERCOMMIT_COUNT; i++)
        if (strcmp(setting->value, policies[i]) == 0) {
            limits->overcommit = (uint8_t)i;
            return 0;
        }
    return bad_value(setting, "none, conservative, moderate, aggressive or unbounded", error);
}

static int set_quota(const struct gild_setting *setting, const struct target *target,
                     struct gild_rec_quota *quota, struct gild_error *error) {
    if (strcmp(setting->key, "quota") == 0)
        return parse_bytes(setting, &quota->quota_bytes, error);
    if (strcmp(setting->key, "desktop_quota") == 0 && target->kind == TARGET_POOL)
        return parse_bytes(setting, &quota->desktop_bytes, error);
    return gild_fail(error, GILD_USAGE, EINVAL, "a %s has no limit '%.40s'; it has %s",
                     target->kind == TARGET_POOL ? "pool" : "disk", setting->key,
                     target->kind == TARGET_POOL ? "quota and desktop_quota" : "quota");
}

/* ---- set ------------------------------------------------------------------------------------- */

static int set_in_txn(struct gild_txn *txn, const char *text, const struct gild_store_info *info,
                      const struct gild_setting *settings, size_t count, struct gild_error *error) {
    struct target target;
    struct gild_rec_limits limits = {0};
    struct gild_rec_quota quota = {0};
    int result = find_target(txn, text, &target, error);
    if (result)
        return result;
    result = target.kind == TARGET_STORE  ? gild_rec_get_limits(txn, &limits)
             : target.kind == TARGET_POOL ? gild_rec_get_pool_quota(txn, target.name, &quota)
                                          : gild_rec_get_disk_quota(txn, target.delta_id, &quota);
    if (result)
        return vdi_catalog_failed(error, result, text);
    for (size_t i = 0; i < count && !result; i++)
        result = target.kind == TARGET_STORE ? set_store(&settings[i], info, &limits, error)
                                             : set_quota(&settings[i], &target, &quota, error);
    if (result)
        return result;
    result = target.kind == TARGET_STORE  ? gild_rec_put_limits(txn, &limits)
             : target.kind == TARGET_POOL ? gild_rec_put_pool_quota(txn, target.name, &quota)
                                          : gild_rec_put_disk_quota(txn, target.delta_id, &quota);
    return result ? vdi_catalog_failed(error, result, text) : 0;
}

int gild_limit_set(struct gild_store *store, const char *target,
                   const struct gild_setting *settings, size_t count, struct gild_error *error) {
    struct gild_store_info info;
    struct gild_txn *txn;
    int result = gild_store_get_info(store, &info, error);
    if (result)
        return result;
    result = gild_txn_begin(gild_store_catalog(store), true, &txn);
    if (result)
        return vdi_catalog_failed(error, result, target);
    result = set_in_txn(txn, target, &info, settings, count, error);
    if (result) {
        gild_txn_abort(txn);
        return result;
    }
    result = gild_txn_commit(txn);
    if (!result)
        result = gild_store_limits_changed(store);
    return result ? vdi_catalog_failed(error, result, target) : 0;
}

/* ---- show ------------------------------------------------------------------------------------ */

struct shown {
    struct gild_store *store;
    struct gild_txn *txn;
    gild_limit_visit *visit;
    void *context;
    /* Of quotas: looked up once the transaction's walk is over. */
    struct shown_quota {
        char name[GILD_NAME_MAX + 1];
        uint64_t delta_id; /* 0: a pool */
        struct gild_rec_quota record;
    } * items;
    size_t count;
};

static int tell_bytes(const struct shown *shown, const char *target, const char *key,
                      uint64_t bytes, uint64_t used_bytes) {
    char text[16];
    const struct gild_limit limit = {.target = target,
                                     .key = key,
                                     .value = bytes ? gild_format_size(bytes, text, sizeof text)
                                                    : "none",
                                     .limit_bytes = bytes,
                                     .used_bytes = used_bytes};
    return shown->visit(shown->context, &limit);
}

static int add_promise(void *context, const void *key, size_t key_length, const void *value,
                       size_t length) {
    struct gild_rec_desktop desktop;
    uint64_t *sum = context;
    (void)key, (void)key_length;
    int result = gild_rec_desktop_decode(&desktop, value, length);
    if (result == 0 && !gild_add_u64(*sum, desktop.size_bytes, sum))
        *sum = UINT64_MAX;
    return result;
}

static int show_store(const struct shown *shown, const struct gild_rec_limits *limits,
                      uint64_t promised) {
    struct gild_store_info info;
    char text[GILD_WARN_MAX * 4] = "none";
    int result = gild_store_get_info(shown->store, &info, NULL);
    if (result)
        return result;
    result = tell_bytes(shown, "store", "size", info.size_limit_bytes, info.used_bytes);
    uint64_t bound = gild_overcommit_bound(limits->overcommit, info.capacity_bytes);
    const struct gild_limit overcommit = {.target = "store",
                                          .key = "overcommit",
                                          .value = policies[limits->overcommit],
                                          .limit_bytes = bound == UINT64_MAX ? 0 : bound,
                                          .used_bytes = promised};
    if (!result)
        result = shown->visit(shown->context, &overcommit);
    for (unsigned i = 0, at = 0; i < limits->warn_count; i++)
        at +=
            (unsigned)snprintf(text + at, sizeof text - at, "%s%u", i ? "," : "", limits->warn[i]);
    const struct gild_limit warn = {.target = "store", .key = "warn", .value = text};
    return result ? result : shown->visit(shown->context, &warn);
}

static uint64_t pool_use(struct gild_store *store, const char *name) {
    uint64_t blocks = 0;
    struct gild_pool_info info;
    if (gild_store_pool_use(store, name, &blocks))
        return blocks * GILD_BLOCK_BYTES;
    return gild_pool_show(store, name, &info, NULL) ? 0 : info.delta_blocks * GILD_BLOCK_BYTES;
}

static int show_quota(const struct shown *shown, const struct shown_quota *item, bool all) {
    char target[GILD_NAME_MAX + 32];
    snprintf(target, sizeof target, item->delta_id ? "desktops/%s/os" : "pools/%s", item->name);
    if (item->delta_id)
        return tell_bytes(shown, target, "quota", item->record.quota_bytes,
                          gild_disk_mapped_blocks(shown->store, item->delta_id) * GILD_BLOCK_BYTES);
    int result = 0;
    if (all || item->record.quota_bytes)
        result = tell_bytes(shown, target, "quota", item->record.quota_bytes,
                            pool_use(shown->store, item->name));
    if (!result && (all || item->record.desktop_bytes))
        result = tell_bytes(shown, target, "desktop_quota", item->record.desktop_bytes, 0);
    return result;
}

static struct shown_quota *add_item(struct shown *shown) {
    struct shown_quota *grown = realloc(shown->items, (shown->count + 1) * sizeof *shown->items);
    if (!grown)
        return NULL;
    shown->items = grown;
    memset(&grown[shown->count], 0, sizeof *grown);
    return &grown[shown->count++];
}

static int note_quota(void *context, const char *pool, uint64_t delta_id,
                      const struct gild_rec_quota *record) {
    struct shown_quota *item = add_item(context);
    if (!item)
        return -ENOMEM;
    item->delta_id = delta_id;
    item->record = *record;
    if (pool)
        strncpy(item->name, pool, GILD_NAME_MAX);
    return 0;
}

/* The names of the disks' desktops. */
static int name_desktop(void *context, const void *key, size_t key_length, const void *value,
                        size_t length) {
    struct shown *shown = context;
    struct gild_rec_desktop desktop;
    int result = gild_rec_desktop_decode(&desktop, value, length);
    for (size_t i = 0; i < shown->count && !result; i++)
        if (shown->items[i].delta_id == desktop.os_delta &&
            !vdi_name_key_read(key, key_length, shown->items[i].name))
            result = -EUCLEAN;
    return result;
}

static int collect_all(struct shown *shown) {
    int result = gild_rec_each_quota(shown->txn, note_quota, shown);
    if (!result && shown->count)
        result = gild_txn_scan(shown->txn, GILD_TABLE_DESKTOPS, NULL, 0, name_desktop, shown);
    return result;
}

static int collect_one(struct shown *shown, const char *text, bool *is_store,
                       struct gild_error *error) {
    struct target target;
    int result = find_target(shown->txn, text, &target, error);
    *is_store = target.kind == TARGET_STORE;
    if (result || *is_store)
        return result;
    struct shown_quota *item = add_item(shown);
    if (!item)
        return vdi_catalog_failed(error, -ENOMEM, text);
    memcpy(item->name, target.name, sizeof item->name);
    item->delta_id = target.delta_id;
    result = target.kind == TARGET_POOL
                 ? gild_rec_get_pool_quota(shown->txn, target.name, &item->record)
                 : gild_rec_get_disk_quota(shown->txn, target.delta_id, &item->record);
    return result ? vdi_catalog_failed(error, result, text) : 0;
}

int gild_limit_show(struct gild_store *store, const char *target, gild_limit_visit *visit,
                    void *context, struct gild_error *error) {
    struct shown shown = {.store = store, .visit = visit, .context = context};
    struct gild_rec_limits limits;
    uint64_t promised = 0;
    bool of_store = true;
    int result = gild_txn_begin(gild_store_catalog(store), false, &shown.txn);
    if (result)
        return vdi_catalog_failed(error, result, "limits");
    result = gild_rec_get_limits(shown.txn, &limits);
    if (!result)
        result = gild_txn_scan(shown.txn, GILD_TABLE_DESKTOPS, NULL, 0, add_promise, &promised);
    if (!result && !target)
        result = collect_all(&shown);
    if (result)
        vdi_catalog_failed(error, result, "limits");
    else if (target)
        result = collect_one(&shown, target, &of_store, error);
    gild_txn_abort(shown.txn);
    if (!result && of_store && (result = show_store(&shown, &limits, promised)))
        vdi_catalog_failed(error, result, "limits");
    for (size_t i = 0; i < shown.count && !result; i++)
        if ((result = show_quota(&shown, &shown.items[i], target != NULL)))
            vdi_catalog_failed(error, result, "limits");
    free(shown.items);
    return result;
}

/* ---- promises -------------------------------------------------------------------------------- */

uint64_t gild_overcommit_bound(enum gild_overcommit policy, uint64_t capacity_bytes) {
    static const unsigned factors[GILD_OVERCOMMIT_COUNT] = {
        [GILD_OVERCOMMIT_NONE] = 1,
        [GILD_OVERCOMMIT_CONSERVATIVE] = 4,
        [GILD_OVERCOMMIT_MODERATE] = 7,
        [GILD_OVERCOMMIT_AGGRESSIVE] = 15,
    };
    uint64_t bound;
    if (!factors[policy] || !gild_mul_u64(capacity_bytes, factors[policy], &bound))
        return UINT64_MAX;
    return bound;
}

int vdi_check_promise(struct gild_txn *txn, uint64_t capacity_bytes, uint64_t count,
                      uint64_t size_bytes, struct gild_error *error) {
    struct gild_rec_limits limits;
    uint64_t promised = 0, more, sum;
    char asked[16], there[16], allowed[16];
    int result = gild_rec_get_limits(txn, &limits);
    if (result)
        return vdi_catalog_failed(error, result, "limits");
    uint64_t bound = gild_overcommit_bound(limits.overcommit, capacity_bytes);
    if (bound == UINT64_MAX)
        return 0;
    result = gild_txn_scan(txn, GILD_TABLE_DESKTOPS, NULL, 0, add_promise, &promised);
    if (result)
        return vdi_catalog_failed(error, result, "desktops");
    if (!gild_mul_u64(count, size_bytes, &more))
        more = UINT64_MAX;
    if (gild_add_u64(promised, more, &sum) && sum <= bound)
        return 0;
    return gild_fail(error, GILD_NO_SPACE, ENOSPC,
                     "desktops of %s on top of the %s that are promised are more than the "
                     "over-commit policy '%s' allows, %s: make fewer, delete some, or change it "
                     "(`gild limit set store overcommit=...`)",
                     gild_format_size(more, asked, sizeof asked),
                     gild_format_size(promised, there, sizeof there), policies[limits.overcommit],
                     gild_format_size(bound, allowed, sizeof allowed));
}
