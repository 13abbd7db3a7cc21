/* See sim_kv.h. An instant is a sorted array of records for each table, never changed once it is
 * committed; records are shared between instants and live as long as the process. */
#include "sim_kv.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "catalog/catalog.h"
#include "catalog/kv.h"
#include "sim_disk.h"
#include "sim_threads.h"

struct record {
    size_t key_length, length;
    uint8_t bytes[]; /* the key, then the value */
};

struct table {
    struct record **records;
    size_t count;
};

struct instant {
    struct table tables[GILD_TABLE_COUNT];
};

struct gild_kv {
    pthread_mutex_t writing;
};

struct gild_kv_txn {
    struct gild_kv *kv;
    const struct instant *seen;
    struct instant *made; /* NULL: reads only */
};

/* in_doubt: its commit failed, and may still be found after a power cut. */
static struct instant *committed, *under_way, *in_doubt;

static void *need(void *memory) {
    if (!memory)
        abort();
    return memory;
}

void sim_kv_make(void) {
    committed = need(calloc(1, sizeof *committed));
    under_way = in_doubt = NULL;
}

void sim_kv_cut(void) {
    if (in_doubt && sim_chance(500))
        committed = in_doubt;
    else if (under_way && sim_chance(500))
        committed = under_way;
    under_way = in_doubt = NULL;
}

uint64_t sim_kv_count(unsigned table) {
    return committed->tables[table].count;
}

void sim_kv_each(unsigned table, void (*visit)(void *context, const void *value, size_t length),
                 void *context) {
    for (size_t i = 0; i < committed->tables[table].count; i++) {
        const struct record *record = committed->tables[table].records[i];
        visit(context, record->bytes + record->key_length, record->length);
    }
}

uint64_t sim_kv_hash(void) {
    uint64_t sum = 0;
    for (int i = 0; i < GILD_TABLE_COUNT; i++)
        for (size_t j = 0; j < committed->tables[i].count; j++) {
            const struct record *record = committed->tables[i].records[j];
            sum = XXH3_64bits_withSeed(record->bytes, record->key_length + record->length, sum + 1);
        }
    return sum;
}

/* ---- life ------------------------------------------------------------------------------------ */

/* The file that a store looks for before it opens its catalogue. */
static int make_file(const char *folder) {
    char path[256];
    snprintf(path, sizeof path, "%s/data.mdb", folder);
    int fd = open(path, O_RDWR), folder_fd;
    if (fd >= 0) {
        close(fd);
        return 0;
    }
    fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        return -errno;
    int err = write(fd, "simulated", 9) != 9 || fsync(fd) ? -errno : 0;
    close(fd);
    folder_fd = open(folder, O_RDONLY | O_DIRECTORY);
    if (!err && (folder_fd < 0 || fsync(folder_fd)))
        err = -errno;
    if (folder_fd >= 0)
        close(folder_fd);
    return err;
}

int gild_kv_open(struct gild_kv **out, const char *folder, const struct gild_kv_schema *schema,
                 uint64_t map_bytes, struct gild_error *error) {
    (void)schema, (void)map_bytes;
    int err = make_file(folder);
    if (err)
        return gild_fail(error, GILD_FAILED, -err, "the catalogue can not be made");
    struct gild_kv *kv = need(calloc(1, sizeof *kv));
    pthread_mutex_init(&kv->writing, NULL);
    *out = kv;
    return 0;
}

void gild_kv_close(struct gild_kv *kv) {
    if (!kv)
        return;
    pthread_mutex_destroy(&kv->writing);
    free(kv);
}

int gild_kv_exists(const char *folder) {
    (void)folder;
    return committed != NULL;
}

int gild_kv_set_aside(const char *folder) {
    (void)folder;
    committed = need(calloc(1, sizeof *committed));
    return 0;
}

int gild_kv_probe(const char *folder, const struct gild_kv_schema *schema, uint64_t map_bytes,
                  gild_kv_look *look, void *context, void *report, size_t report_bytes) {
    struct gild_kv_txn txn = {.seen = committed};
    (void)folder, (void)schema, (void)map_bytes, (void)report_bytes;
    return look(context, &txn, report);
}

uint64_t gild_kv_used_bytes(struct gild_kv *kv) {
    (void)kv;
    return 65536;
}

int gild_kv_begin(struct gild_kv *kv, bool write, struct gild_kv_txn **out) {
    struct gild_kv_txn *txn = need(calloc(1, sizeof *txn));
    txn->kv = kv;
    if (write)
        pthread_mutex_lock(&kv->writing);
    txn->seen = committed;
    if (write) {
        txn->made = need(calloc(1, sizeof *txn->made));
        for (int i = 0; i < GILD_TABLE_COUNT; i++) {
            const struct table *from = &committed->tables[i];
            struct table *to = &txn->made->tables[i];
            to->count = from->count;
            to->records = need(malloc((from->count + 1) * sizeof *to->records));
            if (from->count)
                memcpy(to->records, from->records, from->count * sizeof *to->records);
        }
        txn->seen = txn->made;
    }
    *out = txn;
    return 0;
}

int gild_kv_commit(struct gild_kv_txn *txn) {
    int error = txn->made ? sim_fault_error(SIM_AT_COMMIT) : 0;
    if (error) {
        if (error == -EIO && sim_chance(500))
            in_doubt = txn->made;
        gild_kv_abort(txn);
        return error;
    }
    if (txn->made) {
        under_way = txn->made;
        sim_disk_point(SIM_COMMIT);
        sim_wait(txn, sim_now_ns() + 50000 + sim_below(500000));
        committed = under_way;
        under_way = in_doubt = NULL;
        txn->made = NULL;
        sim_disk_point(SIM_COMMITTED);
        pthread_mutex_unlock(&txn->kv->writing);
    }
    free(txn);
    return 0;
}

void gild_kv_abort(struct gild_kv_txn *txn) {
    if (!txn)
        return;
    if (txn->made)
        pthread_mutex_unlock(&txn->kv->writing);
    free(txn);
}

/* ---- records --------------------------------------------------------------------------------- */

static int compare(const void *key, size_t key_length, const struct record *record) {
    size_t common = key_length < record->key_length ? key_length : record->key_length;
    int order = memcmp(key, record->bytes, common);
    if (order)
        return order;
    return key_length < record->key_length ? -1 : key_length > record->key_length;
}

/* The first record at or behind the key. */
static size_t find(const struct table *table, const void *key, size_t key_length, bool *same) {
    size_t low = 0, high = table->count;
    *same = false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = compare(key, key_length, table->records[middle]);
        if (order == 0) {
            *same = true;
            return middle;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

bool sim_kv_has(unsigned table, const void *key, size_t key_length) {
    bool same;
    find(&committed->tables[table], key, key_length, &same);
    return same;
}

int gild_kv_get(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                const void **value, size_t *length) {
    bool same;
    size_t at = find(&txn->seen->tables[table], key, key_length, &same);
    if (!same)
        return -ENOENT;
    const struct record *record = txn->seen->tables[table].records[at];
    *value = record->bytes + record->key_length;
    *length = record->length;
    return 0;
}

int gild_kv_put(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                size_t length, void **room) {
    struct table *in = &txn->made->tables[table];
    bool same;
    size_t at = find(in, key, key_length, &same);
    struct record *record = need(malloc(sizeof *record + key_length + length));
    record->key_length = key_length;
    record->length = length;
    memcpy(record->bytes, key, key_length);
    *room = record->bytes + key_length;
    if (!same) {
        in->records = need(realloc(in->records, (in->count + 1) * sizeof *in->records));
        memmove(in->records + at + 1, in->records + at, (in->count - at) * sizeof *in->records);
        in->count++;
    }
    in->records[at] = record;
    return 0;
}

int gild_kv_delete(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length) {
    struct table *in = &txn->made->tables[table];
    bool same;
    size_t at = find(in, key, key_length, &same);
    if (!same)
        return -ENOENT;
    in->count--;
    memmove(in->records + at, in->records + at + 1, (in->count - at) * sizeof *in->records);
    return 0;
}

int gild_kv_scan(struct gild_kv_txn *txn, unsigned table, const void *from, size_t from_length,
                 gild_kv_visit *visit, void *context) {
    const struct table *in = &txn->seen->tables[table];
    bool same;
    size_t at = from ? find(in, from, from_length, &same) : 0;
    for (; at < in->count; at++) {
        const struct record *record = in->records[at];
        int result = visit(context, record->bytes, record->key_length,
                           record->bytes + record->key_length, record->length);
        if (result)
            return result;
    }
    return 0;
}

int gild_kv_count(struct gild_kv_txn *txn, unsigned table, uint64_t *count) {
    *count = txn->seen->tables[table].count;
    return 0;
}
