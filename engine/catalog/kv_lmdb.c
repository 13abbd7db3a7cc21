/* The key-value store over LMDB (kv.h; lmdb.h 0.9.24 is the manual that this follows).
 *
 * One environment, one named database per table.
 *
 * Invariants
 *  - LMDB syncs before and with each commit (no MDB_NOSYNC, no MDB_NOMETASYNC).
 *  - The data file is never shorter than what the newest root reaches: LMDB reads it through a
 *    memory map, and a page past the end of a file is SIGBUS, not an error.
 *  - Some space past the used end is allocated ahead, so that deletes and checkpoints still commit
 *    when the host's file system is full.
 *
 * Threads: any but a reactor's. LMDB excludes writers from each other; readers take a slot each
 * (MDB_NOTLS: a slot belongs to the transaction, not to the thread).
 * Failure modes: those of kv.h; a damaged file may also fault in LMDB itself, so gild_kv_probe
 * looks at it in a child process first. */
#include "catalog/kv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <lmdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

#define KEY_MAX_BYTES 511u
#define READERS_MAX 1024u
#define AHEAD_BYTES (4u << 20)
#define NO_TABLE 0u /* LMDB's own numbers begin with 2 */
#define PROBE_MS                                                                    \
    60000 /* no store's catalogue takes as long to walk, unless it leads in circles \
           */

struct gild_kv {
    MDB_env *env;
    MDB_dbi *tables;
    const struct gild_kv_schema *schema;
    uint64_t map_bytes;
    uint32_t page_bytes;
    pthread_mutex_t size_lock; /* protects file_bytes and the growing of the file */
    uint64_t file_bytes;
    pthread_mutex_t looker_lock;
    struct gild_kv *looker; /* what reads go on with after a panic; NULL before */
};

struct gild_kv_txn {
    struct gild_kv *kv;
    MDB_txn *txn;
    bool write;
};

static int errno_of(int rc) {
    switch (rc) {
    case MDB_SUCCESS:
        return 0;
    case MDB_NOTFOUND:
        return -ENOENT;
    case MDB_MAP_FULL:
        return -ENOSPC;
    case MDB_READERS_FULL:
        return -EAGAIN;
    case MDB_TXN_FULL:
        return -E2BIG;
    case MDB_BAD_VALSIZE:
        return -EINVAL;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
        return -EUCLEAN;
    case MDB_PANIC:
        return -EIO;
    default: /* the other codes of its own can only come of a structure that is not sound */
        return rc > 0 ? -rc : -EUCLEAN;
    }
}

/* The sentence for a failed open; gives the -errno. */
static int open_failed(struct gild_error *error, const char *folder, int rc) {
    int result = errno_of(rc);
    switch (rc) {
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
        return gild_fail(
            error, GILD_CORRUPT, -result,
            "the catalogue %s/data.mdb is damaged (%s); run `gild store check --repair`", folder,
            mdb_strerror(rc));
    case MDB_VERSION_MISMATCH:
    case MDB_INCOMPATIBLE:
        return gild_fail(error, GILD_CORRUPT, -result,
                         "the catalogue %s/data.mdb was written by another version of LMDB; open "
                         "the store on the machine that wrote it",
                         folder);
    default:
        return gild_fail(error, gild_code_of_errno(result), -result,
                         "can not open the catalogue in %s: %s", folder, strerror(-result));
    }
}

/* ---- the environment ------------------------------------------------------------------------- */

uint64_t gild_kv_used_bytes(struct gild_kv *kv) {
    MDB_envinfo info;
    mdb_env_info(kv->env, &info);
    return ((uint64_t)info.me_last_pgno + 1) * kv->page_bytes;
}

/* Keeps the file as long as what is used, and some space allocated past that. */
static void reserve_ahead(struct gild_kv *kv) {
    mdb_filehandle_t fd;
    uint64_t used = gild_kv_used_bytes(kv);
    pthread_mutex_lock(&kv->size_lock);
    if (used + AHEAD_BYTES / 2 > kv->file_bytes && kv->file_bytes < kv->map_bytes &&
        mdb_env_get_fd(kv->env, &fd) == 0) {
        uint64_t wanted = gild_min_u64(used + AHEAD_BYTES, kv->map_bytes);
        if (fallocate(fd, 0, 0, (off_t)wanted) == 0)
            kv->file_bytes = wanted;
        else if (used > kv->file_bytes && ftruncate(fd, (off_t)used) == 0)
            kv->file_bytes = used;
    }
    pthread_mutex_unlock(&kv->size_lock);
}

enum missing { MISSING_FAILS, MISSING_IS_MADE, MISSING_IS_EMPTY };

/* Opens every table in one transaction. */
static int open_tables(struct gild_kv *kv, enum missing missing) {
    MDB_txn *txn;
    bool create = missing == MISSING_IS_MADE;
    int rc = mdb_txn_begin(kv->env, NULL, create ? 0 : MDB_RDONLY, &txn);
    if (rc)
        return rc;
    for (unsigned i = 0; i < kv->schema->count; i++) {
        rc = mdb_dbi_open(txn, kv->schema->names[i], create ? MDB_CREATE : 0, &kv->tables[i]);
        if (rc == MDB_NOTFOUND && missing == MISSING_IS_EMPTY)
            kv->tables[i] = NO_TABLE;
        else if (rc) {
            mdb_txn_abort(txn);
            return rc;
        }
    }
    return mdb_txn_commit(txn);
}

static int look_at_record(void *context, const void *key, size_t key_length, const void *value,
                          size_t length) {
    (void)context, (void)key, (void)key_length, (void)value;
    return length ? 0 : -EUCLEAN; /* no record of ours is empty: its page is zeroes */
}

/* Walks every record of every table. */
static int walk_all(struct gild_kv *kv) {
    struct gild_kv_txn *txn;
    int result = gild_kv_begin(kv, false, &txn);
    if (result)
        return result;
    for (unsigned i = 0; i < kv->schema->count && result == 0; i++)
        result = gild_kv_scan(txn, i, NULL, 0,
                              kv->schema->intact ? kv->schema->intact : look_at_record, &i);
    gild_kv_abort(txn);
    return result;
}

/* A data file that ends before the last used page: the crash of a commit may leave such a file
 * (pages at the end that were used and freed again are never written), and so may a copy that was
 * cut off. It is made long enough with zeroes, so that no access can fault; if then a record is
 * missing or its page is zeroes, the file gets its old length back and the catalogue is refused. */
static int open_short(struct gild_kv *kv, const char *folder, int fd, uint64_t have,
                      struct gild_error *error) {
    uint64_t used = gild_kv_used_bytes(kv);
    if (ftruncate(fd, (off_t)used))
        return open_failed(error, folder, errno);
    int rc = open_tables(kv, MISSING_FAILS);
    int result = rc ? errno_of(rc) : walk_all(kv);
    if (result == 0)
        return 0;
    if (ftruncate(fd, (off_t)have))
        gild_log(GILD_LOG_WARN, "%s/data.mdb: can not restore its length: %s", folder,
                 strerror(errno));
    return gild_fail(error, GILD_CORRUPT, EUCLEAN,
                     "the catalogue %s/data.mdb is cut off: %" PRIu64 " bytes of %" PRIu64
                     "; run `gild store check --repair`",
                     folder, have, used);
}

/* A new data file is only there after a crash if its folder's entry is durable too. */
static int sync_folder(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int rc = fsync(fd) ? errno : 0;
    close(fd);
    return rc;
}

/* LMDB maps its file of readers, and a page of it that has no block yet could not be written to on
 * a full file system: that is no error, but a signal. */
static void fill_lock_file(const char *folder) {
    char path[4096];
    struct stat file;
    snprintf(path, sizeof path, "%s/lock.mdb", folder);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &file) == 0)
        (void)posix_fallocate(fd, 0, file.st_size); /* as far as it goes */
    if (fd >= 0)
        close(fd);
}

/* Everything of open that can fail once the environment handle is there. */
static int open_environment(struct gild_kv *kv, const char *folder, struct gild_error *error) {
    MDB_env *env = kv->env;
    MDB_stat stat_of_main;
    mdb_filehandle_t fd;
    struct stat file;
    int dead, rc;
    if ((rc = mdb_env_set_mapsize(env, kv->map_bytes)) ||
        (rc = mdb_env_set_maxdbs(env, kv->schema->count)) ||
        (rc = mdb_env_set_maxreaders(env, READERS_MAX)) ||
        (rc = mdb_env_open(env, folder, MDB_NOTLS | MDB_NORDAHEAD, 0600)) ||
        (rc = mdb_reader_check(env, &dead)) || (rc = mdb_env_stat(env, &stat_of_main)) ||
        (rc = mdb_env_get_fd(env, &fd)) || (rc = fstat(fd, &file) ? errno : 0))
        return open_failed(error, folder, rc);
    kv->page_bytes = stat_of_main.ms_psize;
    kv->file_bytes = (uint64_t)file.st_size;
    if (stat_of_main.ms_entries != 0 && kv->file_bytes < gild_kv_used_bytes(kv)) {
        int result = open_short(kv, folder, fd, kv->file_bytes, error);
        if (result)
            return result;
        kv->file_bytes = gild_kv_used_bytes(kv);
    } else {
        rc = open_tables(kv, MISSING_FAILS);
        if (rc == MDB_NOTFOUND && !(rc = open_tables(kv, MISSING_IS_MADE)))
            rc = sync_folder(folder);
        if (rc)
            return open_failed(error, folder, rc);
    }
    reserve_ahead(kv);
    fill_lock_file(folder);
    return 0;
}

static struct gild_kv *kv_new(const struct gild_kv_schema *schema, uint64_t map_bytes) {
    struct gild_kv *kv = calloc(1, sizeof *kv);
    if (!kv)
        return NULL;
    kv->tables = calloc(schema->count, sizeof *kv->tables);
    kv->schema = schema;
    kv->map_bytes = gild_align_up(map_bytes, 64u << 10);
    pthread_mutex_init(&kv->size_lock, NULL);
    pthread_mutex_init(&kv->looker_lock, NULL);
    if (!kv->tables || mdb_env_create(&kv->env)) {
        gild_kv_close(kv);
        return NULL;
    }
    return kv;
}

int gild_kv_open(struct gild_kv **out, const char *folder, const struct gild_kv_schema *schema,
                 uint64_t map_bytes, struct gild_error *error) {
    struct gild_kv *kv = kv_new(schema, map_bytes);
    *out = NULL;
    if (!kv)
        return open_failed(error, folder, ENOMEM);
    int result = open_environment(kv, folder, error);
    if (result) {
        gild_kv_close(kv);
        return result;
    }
    *out = kv;
    return 0;
}

void gild_kv_close(struct gild_kv *kv) {
    if (!kv)
        return;
    if (kv->env)
        mdb_env_close(kv->env);
    gild_kv_close(kv->looker);
    pthread_mutex_destroy(&kv->size_lock);
    pthread_mutex_destroy(&kv->looker_lock);
    free(kv->tables);
    free(kv);
}

int gild_kv_exists(const char *folder) {
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/data.mdb", folder);
    if (stat(path, &st) == 0)
        return st.st_size > 0;
    return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
}

int gild_kv_set_aside(const char *folder) {
    char path[4096], aside[4096];
    struct stat st;
    unsigned n = 1;
    snprintf(path, sizeof path, "%s/lock.mdb", folder);
    if (unlink(path) != 0 && errno != ENOENT)
        return -errno;
    snprintf(path, sizeof path, "%s/data.mdb", folder);
    do
        snprintf(aside, sizeof aside, "%s/damaged-%u.mdb", folder, n++);
    while (stat(aside, &st) == 0);
    if (rename(path, aside) != 0 && errno != ENOENT)
        return -errno;
    return -sync_folder(folder);
}

/* ---- transactions ---------------------------------------------------------------------------- */

static int open_to_look(struct gild_kv *kv, const char *folder);

/* Once a root could not be synced, LMDB refuses reads too (MDB_PANIC), for as long as the
 * environment is open. Nobody writes any more then, so that one more environment, which takes no
 * locks and only reads, sees what the last commit left. */
static struct gild_kv *look_aside(struct gild_kv *kv) {
    const char *folder;
    pthread_mutex_lock(&kv->looker_lock);
    if (!kv->looker && mdb_env_get_path(kv->env, &folder) == 0) {
        kv->looker = kv_new(kv->schema, kv->map_bytes);
        if (kv->looker && open_to_look(kv->looker, folder)) {
            gild_kv_close(kv->looker);
            kv->looker = NULL;
        }
    }
    struct gild_kv *looker = kv->looker;
    pthread_mutex_unlock(&kv->looker_lock);
    return looker;
}

int gild_kv_begin(struct gild_kv *kv, bool write, struct gild_kv_txn **out) {
    *out = NULL;
    struct gild_kv_txn *txn = calloc(1, sizeof *txn);
    if (!txn)
        return -ENOMEM;
    txn->kv = kv;
    txn->write = write;
    int rc = mdb_txn_begin(kv->env, NULL, write ? 0 : MDB_RDONLY, &txn->txn);
    if (rc == MDB_PANIC && !write && (txn->kv = look_aside(kv)))
        rc = mdb_txn_begin(txn->kv->env, NULL, MDB_RDONLY, &txn->txn);
    int result = errno_of(rc);
    if (result) {
        free(txn);
        return result;
    }
    *out = txn;
    return 0;
}

int gild_kv_commit(struct gild_kv_txn *txn) {
    int result = errno_of(mdb_txn_commit(txn->txn));
    if (txn->write && result == 0)
        reserve_ahead(txn->kv);
    free(txn);
    return result;
}

void gild_kv_abort(struct gild_kv_txn *txn) {
    if (!txn)
        return;
    mdb_txn_abort(txn->txn);
    free(txn);
}

/* LMDB does not write to keys that it is given: its struct just has no const. */
static MDB_val borrow(const void *data, size_t length) {
    union {
        const void *in;
        void *out;
    } pointer = {.in = data};
    return (MDB_val){.mv_size = length, .mv_data = pointer.out};
}

static bool key_fits(size_t key_length) {
    return key_length > 0 && key_length <= KEY_MAX_BYTES;
}

int gild_kv_get(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                const void **value, size_t *length) {
    MDB_val name = borrow(key, key_length), stored;
    if (!key_fits(key_length))
        return -EINVAL;
    if (txn->kv->tables[table] == NO_TABLE)
        return -ENOENT;
    int rc = mdb_get(txn->txn, txn->kv->tables[table], &name, &stored);
    if (rc)
        return errno_of(rc);
    *value = stored.mv_data;
    *length = stored.mv_size;
    return 0;
}

int gild_kv_put(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length,
                size_t length, void **room) {
    MDB_val name = borrow(key, key_length), stored = {.mv_size = length};
    if (!key_fits(key_length) || !txn->write || length > UINT32_MAX)
        return -EINVAL;
    int rc = mdb_put(txn->txn, txn->kv->tables[table], &name, &stored, MDB_RESERVE);
    *room = stored.mv_data;
    return errno_of(rc);
}

int gild_kv_delete(struct gild_kv_txn *txn, unsigned table, const void *key, size_t key_length) {
    MDB_val name = borrow(key, key_length);
    if (!key_fits(key_length) || !txn->write)
        return -EINVAL;
    return errno_of(mdb_del(txn->txn, txn->kv->tables[table], &name, NULL));
}

static bool in_order(const MDB_val *before, const MDB_val *key) {
    size_t common = before->mv_size < key->mv_size ? before->mv_size : key->mv_size;
    int order = memcmp(before->mv_data, key->mv_data, common);
    return order < 0 || (order == 0 && before->mv_size < key->mv_size);
}

int gild_kv_scan(struct gild_kv_txn *txn, unsigned table, const void *from, size_t from_length,
                 gild_kv_visit *visit, void *context) {
    MDB_cursor *cursor;
    MDB_val key = borrow(from, from_length), stored, before = {0};
    if (txn->kv->tables[table] == NO_TABLE)
        return 0;
    int rc = mdb_cursor_open(txn->txn, txn->kv->tables[table], &cursor);
    if (rc)
        return errno_of(rc);
    int result = 0;
    bool all = !from || !from_length;
    rc = mdb_cursor_get(cursor, &key, &stored, all ? MDB_FIRST : MDB_SET_RANGE);
    while (rc == 0 && result == 0) {
        /* Garbled pages can lead in circles: keys that only grow end that. */
        if (before.mv_data && !in_order(&before, &key))
            result = -EUCLEAN;
        before = key;
        if (result == 0)
            result = visit(context, key.mv_data, key.mv_size, stored.mv_data, stored.mv_size);
        if (result == 0)
            rc = mdb_cursor_get(cursor, &key, &stored, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (result == 0 && rc != MDB_NOTFOUND)
        result = errno_of(rc);
    return result;
}

int gild_kv_count(struct gild_kv_txn *txn, unsigned table, uint64_t *count) {
    MDB_stat stat_of_table;
    *count = 0;
    if (txn->kv->tables[table] == NO_TABLE)
        return 0;
    int rc = mdb_stat(txn->txn, txn->kv->tables[table], &stat_of_table);
    if (rc)
        return errno_of(rc);
    *count = stat_of_table.ms_entries;
    return 0;
}

/* ---- the probe ------------------------------------------------------------------------------- */

/* Nothing is written, and nothing is mended. A page past the end of the file faults: but what the
 * newest root reaches was written before it, so that only what is no catalogue has none. */
static int open_to_look(struct gild_kv *kv, const char *folder) {
    MDB_stat stat_of_main;
    int rc;
    if ((rc = mdb_env_set_mapsize(kv->env, kv->map_bytes)) ||
        (rc = mdb_env_set_maxdbs(kv->env, kv->schema->count)))
        return errno_of(rc);
    rc = mdb_env_open(kv->env, folder, MDB_RDONLY | MDB_NOLOCK | MDB_NOTLS, 0600);
    if (rc == ENOMEM || rc == EINVAL || rc == EOVERFLOW)
        return -EUCLEAN; /* of a garbled root page, which says how much is to be mapped */
    if (rc || (rc = mdb_env_stat(kv->env, &stat_of_main)))
        return errno_of(rc);
    kv->page_bytes = stat_of_main.ms_psize;
    if (stat_of_main.ms_entries == 0)
        return 0;
    return errno_of(open_tables(kv, MISSING_IS_EMPTY));
}

/* LMDB has two root pages and writes them in turn: transaction n into page n & 1. It takes the one
 * with the higher number, so that one which rot has given a lower number would quietly take the
 * last transaction away. The numbers of a new environment are both 0. */
static int look_at_roots(struct gild_kv *kv) {
    enum { NUMBER = 144 }; /* where a root page has it (struct MDB_meta behind a page's head) */
    uint64_t number[2];
    mdb_filehandle_t fd;
    if (mdb_env_get_fd(kv->env, &fd))
        return -EIO;
    for (unsigned i = 0; i < 2; i++) {
        ssize_t got = pread(fd, &number[i], sizeof number[i], (off_t)(i * kv->page_bytes + NUMBER));
        if (got != (ssize_t)sizeof number[i])
            return got < 0 ? -errno : -EUCLEAN;
    }
    bool new = number[0] == 0 && number[1] == 0;
    bool in_turn = number[0] % 2 == 0 && number[1] % 2 == 1 &&
                   (number[0] + 1 == number[1] || number[1] + 1 == number[0]);
    return new || in_turn ? 0 : -EUCLEAN;
}

/* In the child. */
static void look_and_say(int pipe_fd, const char *folder, const struct gild_kv_schema *schema,
                         uint64_t map_bytes, gild_kv_look *look, void *context, void *report,
                         size_t report_bytes) {
    struct gild_kv *kv = kv_new(schema, map_bytes);
    struct gild_kv_txn *txn = NULL;
    int said = kv ? open_to_look(kv, folder) : -ENOMEM;
    if (!said)
        said = look_at_roots(kv);
    if (!said)
        said = gild_kv_begin(kv, false, &txn);
    if (!said)
        said = look(context, txn, report);
    if (write(pipe_fd, &said, sizeof said) != (ssize_t)sizeof said ||
        write(pipe_fd, report, report_bytes) != (ssize_t)report_bytes)
        _exit(1);
    _exit(0);
}

static int hear(int fd, void *to, size_t length) {
    size_t done = 0;
    while (done < length) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        int ready = poll(&wait, 1, PROBE_MS);
        if (ready < 0 && errno == EINTR)
            continue;
        ssize_t n = ready > 0 ? read(fd, (char *)to + done, length - done) : 0;
        if (n <= 0)
            return -EUCLEAN;
        done += (size_t)n;
    }
    return 0;
}

int gild_kv_probe(const char *folder, const struct gild_kv_schema *schema, uint64_t map_bytes,
                  gild_kv_look *look, void *context, void *report, size_t report_bytes) {
    int ends[2], status, said = 0;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -errno;
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        /* It may fault, and that is an answer, not a crash to report. */
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        prctl(PR_SET_DUMPABLE, 0);
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (nowhere >= 0)
            dup2(nowhere, STDERR_FILENO); /* LMDB's assertions */
        look_and_say(ends[1], folder, schema, map_bytes, look, context, report, report_bytes);
    }
    int result = child < 0 ? -errno : 0;
    close(ends[1]);
    if (!result)
        result = hear(ends[0], &said, sizeof said);
    if (!result)
        result = hear(ends[0], report, report_bytes);
    close(ends[0]);
    if (child < 0)
        return result;
    if (result)
        kill(child, SIGKILL);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return result ? result : said;
}
