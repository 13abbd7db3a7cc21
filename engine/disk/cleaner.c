/* A pass of the cleaner. See cleaner.h for the way of a block.
 *
 * In memory at once: one segment (64 MiB), the ingest's rings, and 56 bytes for each block that is
 * to be packed. Disks are held open (gild_disk.holds) from their first block to the pass's end.
 *
 * The ingest lock is held shared from the first fingerprint to the last map change, so that no pack
 * that a block is to share is collected meanwhile. */
#include "disk/cleaner.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

struct held {
    uint64_t delta;
    struct gild_disk *disk; /* NULL: there is no such disk any more */
};

struct waiting {
    pthread_mutex_t lock;
    pthread_cond_t all;
    size_t left;
};

struct run { /* the moves of one disk */
    struct move_op moving;
    struct waiting *waiting;
};

struct pass {
    struct gild_store *store;
    const struct clean_choice *choice;
    struct clean_result *result;
    struct clean_scan scan;
    uint32_t cold_s;
    uint64_t now_s;
    bool only_log;
    bool stuck;        /* something in the segment can not be moved */
    struct held *held; /* sorted */
    size_t held_count, held_room;
    struct move *moves; /* of the segment, live ones in front of each disk's part */
    size_t move_room;

    struct gild_ingest *ingest;
    uint64_t *pack_delta; /* of the blocks in the ingest, in the order of adding */
    struct move *pack_moves;
    size_t pack_count, pack_room;
};

static uint64_t wall_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec;
}

/* ---- disks ----------------------------------------------------------------------------------- */

/* The disk of a delta, in memory until unheld; NULL if it was deleted, or can not be opened. */
static struct gild_disk *hold_disk(struct gild_store *store, uint64_t delta_id) {
    char path[40];
    struct gild_error ignored = {0};
    snprintf(path, sizeof path, "(delta %" PRIu64 ")", delta_id);
    const struct gild_disk_spec spec = {.path = path, .delta_id = delta_id};
    pthread_mutex_lock(&store->open_lock);
    pthread_mutex_lock(&store->disks_lock);
    struct gild_disk *disk = disk_find(store, delta_id, 0);
    if (disk)
        disk->holds++;
    pthread_mutex_unlock(&store->disks_lock);
    if (!disk && disk_make(store, &spec, &disk, &ignored) == 0) {
        pthread_mutex_lock(&store->disks_lock);
        disk->holds++;
        pthread_mutex_unlock(&store->disks_lock);
    }
    pthread_mutex_unlock(&store->open_lock);
    return disk;
}

static int disk_of(struct pass *pass, uint64_t delta_id, struct gild_disk **disk) {
    size_t low = 0, high = pass->held_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pass->held[middle].delta < delta_id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < pass->held_count && pass->held[low].delta == delta_id) {
        *disk = pass->held[low].disk;
        return 0;
    }
    if (pass->held_count == pass->held_room) {
        size_t room = pass->held_room ? 2 * pass->held_room : 64;
        struct held *grown = realloc(pass->held, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        pass->held = grown;
        pass->held_room = room;
    }
    *disk = hold_disk(pass->store, delta_id);
    memmove(&pass->held[low + 1], &pass->held[low], (pass->held_count - low) * sizeof *pass->held);
    pass->held[low] = (struct held){delta_id, *disk};
    pass->held_count++;
    return 0;
}

static void unhold_all(struct pass *pass) {
    pthread_mutex_lock(&pass->store->disks_lock);
    for (size_t i = 0; i < pass->held_count; i++)
        if (pass->held[i].disk)
            pass->held[i].disk->holds--;
    pthread_mutex_unlock(&pass->store->disks_lock);
    free(pass->held);
}

/* ---- asking the reactors --------------------------------------------------------------------- */

static void run_done(struct move_op *moving) {
    struct waiting *waiting = CONTAINER(moving, struct run, moving)->waiting;
    pthread_mutex_lock(&waiting->lock);
    if (--waiting->left == 0)
        pthread_cond_signal(&waiting->all);
    pthread_mutex_unlock(&waiting->lock);
}

/* A run of moves of one disk: [first, first + count) of a list. */
struct part {
    uint64_t delta;
    size_t first, count;
};

/* One disk whose map is damaged, or whose log has failed, must not keep the others from being
 * cleaned: what was not done of its part is let alone. */
static int outcome(struct pass *pass, struct move_op *moving) {
    int err = moving->op.error;
    if (!err || !moving->op.disk)
        return 0;
    for (size_t i = moving->at; i < moving->count; i++)
        moving->moves[i].live = false;
    pass->stuck = true;
    return err == -ENOSPC || err == -ENOMEM ? err : 0;
}

/* Has all parts' moves sifted or applied, at once, and waits. Moves of a disk that is gone are not
 * live. The first error of any. */
static int ask(struct pass *pass, struct move *moves, const struct part *parts, size_t part_count,
               enum move_what what) {
    struct waiting waiting = {.left = part_count};
    struct run *runs = calloc(part_count + 1, sizeof *runs);
    int err = runs ? 0 : -ENOMEM;
    if (err)
        return err;
    pthread_mutex_init(&waiting.lock, NULL);
    pthread_cond_init(&waiting.all, NULL);
    size_t posted = 0;
    for (; posted < part_count && !err; posted++) {
        const struct part *part = &parts[posted];
        struct run *run = &runs[posted];
        struct gild_disk *disk = NULL;
        err = disk_of(pass, part->delta, &disk);
        run->waiting = &waiting;
        run->moving.what = what;
        run->moving.moves = &moves[part->first];
        run->moving.count = part->count;
        run->moving.done = run_done;
        run->moving.op.disk = disk;
        if (!err && disk) {
            move_post(&run->moving);
            continue;
        }
        for (size_t i = 0; i < part->count; i++)
            run->moving.moves[i].live = false;
        run_done(&run->moving);
    }
    pthread_mutex_lock(&waiting.lock);
    waiting.left -= part_count - posted;
    while (waiting.left)
        pthread_cond_wait(&waiting.all, &waiting.lock);
    pthread_mutex_unlock(&waiting.lock);
    for (size_t i = 0; i < posted && !err; i++)
        err = outcome(pass, &runs[i].moving);
    pthread_cond_destroy(&waiting.all);
    pthread_mutex_destroy(&waiting.lock);
    free(runs);
    return err;
}

/* ---- the ingest ------------------------------------------------------------------------------ */

static int next_pack_id(void *context, uint32_t *pack_id) {
    struct pass *pass = context;
    struct gild_txn *txn;
    uint64_t id = 0;
    int err = gild_txn_begin(pass->store->catalog, true, &txn);
    if (err)
        return err;
    err = gild_txn_next_id(txn, "pack", 1, &id);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    *pack_id = (uint32_t)id;
    return gild_txn_commit(txn);
}

static int placed(void *context, uint64_t tag, uint64_t place, uint32_t check,
                  const uint8_t fingerprint[GILD_FINGERPRINT_BYTES]) {
    struct pass *pass = context;
    (void)fingerprint;
    pass->pack_moves[tag].to = place;
    pass->pack_moves[tag].check = check;
    return 0;
}

static int begin_ingest(struct pass *pass) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct gild_error error = {0};
    const struct gild_ingest_options options = {
        .threads =
            pass->choice->urgency == CLEAN_HURRY && processors > 1 ? (unsigned)processors : 1,
        .next_pack_id = next_pack_id,
        .placed = placed,
        .verify = true,
        .context = pass,
    };
    return gild_ingest_create(&pass->ingest, pass->store->packs, &options, &error);
}

/* The block goes into a pack: where, is known when the ingest says so. */
static int pack_block(struct pass *pass, const struct clean_block *block) {
    int err = pass->ingest ? 0 : begin_ingest(pass);
    if (err)
        return err;
    if (pass->pack_count == pass->pack_room) {
        size_t room = pass->pack_room ? 2 * pass->pack_room : 16384;
        struct move *moves = realloc(pass->pack_moves, room * sizeof *moves);
        if (!moves)
            return -ENOMEM;
        pass->pack_moves = moves;
        uint64_t *deltas = realloc(pass->pack_delta, room * sizeof *deltas);
        if (!deltas)
            return -ENOMEM;
        pass->pack_delta = deltas;
        pass->pack_room = room;
    }
    size_t tag = pass->pack_count++;
    pass->pack_moves[tag] = block->move;
    pass->pack_moves[tag].data = NULL;
    pass->pack_delta[tag] = block->delta;
    return gild_ingest_add(pass->ingest, block->move.data, 1, tag);
}

static int put_packs(struct pass *pass, struct gild_txn *txn) {
    struct gild_ingest_totals totals;
    gild_ingest_get_totals(pass->ingest, &totals);
    int err = 0;
    for (uint32_t i = 0; i < totals.pack_count && !err; i++) {
        struct gild_pack_facts facts;
        err = gild_pack_get_facts(pass->store->packs, totals.pack_ids[i], &facts);
        if (err)
            return err;
        free(facts.group_slots);
        const struct gild_rec_pack record = {
            .file_bytes = facts.file_bytes, .groups = facts.groups, .blocks = facts.blocks};
        err = gild_rec_put_pack(txn, totals.pack_ids[i], &record);
        pass->result->pack_bytes += facts.file_bytes;
    }
    return err;
}

/* *keep: the catalogue knows the packs, or (after an I/O error) may. */
static int commit_packs(struct pass *pass, bool *keep) {
    struct gild_txn *txn;
    int err = gild_txn_begin(pass->store->catalog, true, &txn);
    if (err)
        return err;
    err = put_packs(pass, txn);
    if (err) {
        gild_txn_abort(txn);
        return err;
    }
    err = gild_txn_commit(txn);
    *keep = err == 0 || err == -EIO;
    return err;
}

/* Nothing may be counted of a pack that the table does not know. */
static int know_packs(struct pass *pass) {
    uint32_t last = UINT32_MAX;
    int err = 0;
    for (size_t i = 0; i < pass->pack_count && !err; i++) {
        uint32_t pack_id = gild_place_pack_id(pass->pack_moves[i].to);
        if (pack_id != last)
            err = pack_refs_ensure(pass->store->refs, pack_id);
        last = pack_id;
    }
    return err;
}

/* What was overwritten meanwhile came into its pack dead. */
static void note_stale(struct pass *pass) {
    for (size_t i = 0; i < pass->pack_count; i++) {
        struct pack_ref *ref =
            pack_refs_find(pass->store->refs, gild_place_pack_id(pass->pack_moves[i].to));
        if (pass->pack_moves[i].live)
            pass->result->packed++;
        else if (ref)
            atomic_fetch_add(&ref->stale, 1);
    }
}

static int apply_packed(struct pass *pass) {
    struct part *parts = malloc((pass->pack_count + 1) * sizeof *parts);
    size_t count = 0;
    int err = parts ? know_packs(pass) : -ENOMEM;
    for (size_t i = 0; i < pass->pack_count && !err; i++) {
        if (!count || pass->pack_delta[i] != parts[count - 1].delta)
            parts[count++] = (struct part){pass->pack_delta[i], i, 0};
        parts[count - 1].count++;
        pass->pack_moves[i].live = false;
    }
    if (!err)
        err = ask(pass, pass->pack_moves, parts, count, MOVE_APPLY);
    if (parts)
        note_stale(pass);
    free(parts);
    return err;
}

static int end_ingest(struct pass *pass, int err) {
    struct gild_error error = {0};
    bool keep = false;
    if (!pass->ingest)
        return err;
    if (!err)
        err = gild_ingest_finish(pass->ingest, &error);
    if (!err)
        err = commit_packs(pass, &keep);
    if (!err) {
        struct gild_ingest_totals totals;
        gild_ingest_get_totals(pass->ingest, &totals);
        pass->result->shared += totals.blocks_in - totals.blocks_new;
        err = apply_packed(pass);
    }
    gild_ingest_destroy(pass->ingest, keep);
    pass->ingest = NULL;
    return err;
}

/* ---- a segment ------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *bytes) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, GILD_BLOCK_BYTES - 1) == 0;
}

/* The runs of one disk, and their moves side by side. */
static int list_parts(struct pass *pass, struct part **parts, size_t *part_count) {
    struct clean_scan *scan = &pass->scan;
    if (scan->count > pass->move_room) {
        struct move *grown = realloc(pass->moves, scan->count * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        pass->moves = grown;
        pass->move_room = scan->count;
    }
    *part_count = 0;
    *parts = malloc((scan->count + 1) * sizeof **parts);
    if (!*parts)
        return -ENOMEM;
    for (size_t i = 0; i < scan->count; i++) {
        if (!i || scan->blocks[i].delta != scan->blocks[i - 1].delta)
            (*parts)[(*part_count)++] = (struct part){scan->blocks[i].delta, i, 0};
        (*parts)[*part_count - 1].count++;
        pass->moves[i] = scan->blocks[i].move;
    }
    return 0;
}

/* Root pages are known by the disks' records: one that its record does not name is dead. */
static int sift_roots(struct pass *pass, const struct part *parts, size_t part_count) {
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct gild_txn *txn;
    int err = record ? gild_txn_begin(pass->store->catalog, false, &txn) : -ENOMEM;
    if (err) {
        free(record);
        return err;
    }
    for (size_t i = 0; i < part_count && !err; i++) {
        bool read = false, known = false;
        for (size_t m = parts[i].first; m < parts[i].first + parts[i].count; m++) {
            struct move *move = &pass->moves[m];
            if (!move->live || move->node != GILD_NODE_ROOT)
                continue;
            known = read ? known
                         : gild_rec_get_delta(txn, GILD_TABLE_DELTAS, parts[i].delta, record) == 0;
            read = true;
            move->live = known && move->block < record->root_count &&
                         record->roots[move->block] == move->from;
        }
    }
    gild_txn_abort(txn);
    free(record);
    return err;
}

/* A live block: zero, to the log's end (kept in `moves`), or into a pack. *stays: it is to be
 * applied now. */
static int decide(struct pass *pass, const struct clean_block *block, struct move *move,
                  uint64_t age_s, bool *stays) {
    uint64_t serial = gild_place_serial(move->from), age = age_s + move->age_s;
    *stays = false;
    if (move->node) {
        *stays = true;
        return 0;
    }
    if (gild_log_check(move->data, serial, block->delta, move->block) != block->log_check) {
        pass->stuck = true; /* rotten: it stays where it is, and a scrub says so */
        return 0;
    }
    if (is_zero(move->data)) {
        move->to = gild_place_of_type(GILD_PLACE_ZERO);
        move->check = 0;
        pass->result->zeroes++;
        *stays = true;
        return 0;
    }
    if (!pass->only_log && (age >= pass->cold_s || pass->choice->pack_young)) {
        struct clean_block packed = *block;
        packed.move = *move;
        return pack_block(pass, &packed);
    }
    move->age_s = age > UINT32_MAX ? UINT32_MAX : (uint32_t)age;
    *stays = true;
    return 0;
}

static int decide_all(struct pass *pass, struct part *parts, size_t part_count, uint64_t age_s) {
    int err = 0;
    for (size_t i = 0; i < part_count && !err; i++) {
        size_t kept = parts[i].first, end = parts[i].first + parts[i].count;
        for (size_t m = parts[i].first; m < end && !err; m++) {
            bool stays = false;
            if (pass->moves[m].live)
                err = decide(pass, &pass->scan.blocks[m], &pass->moves[m], age_s, &stays);
            if (stays)
                pass->moves[kept++] = pass->moves[m];
        }
        parts[i].count = kept - parts[i].first;
    }
    return err;
}

static void count_moved(struct pass *pass, const struct part *parts, size_t part_count) {
    for (size_t i = 0; i < part_count; i++)
        for (size_t m = parts[i].first; m < parts[i].first + parts[i].count; m++)
            pass->result->moved +=
                pass->moves[m].live && (!pass->moves[m].to || pass->moves[m].node);
}

static int clean_segment(struct pass *pass, const struct gild_segment *segment, uint64_t closed_s) {
    struct part *parts = NULL;
    size_t part_count;
    uint64_t age_s = closed_s && closed_s < pass->now_s ? pass->now_s - closed_s : 0;
    pass->stuck = false;
    int err = cleaner_scan(pass->store, segment, cleaner_pace(pass->store, pass->choice->urgency),
                           &pass->scan);
    if (!err)
        err = list_parts(pass, &parts, &part_count);
    if (!err)
        err = ask(pass, pass->moves, parts, part_count, MOVE_SIFT);
    if (!err)
        err = sift_roots(pass, parts, part_count);
    if (!err)
        err = decide_all(pass, parts, part_count, age_s);
    if (!err)
        err = ask(pass, pass->moves, parts, part_count, MOVE_APPLY);
    if (!err)
        count_moved(pass, parts, part_count);
    pass->result->segments += !err;
    if (!err && pass->stuck)
        err = cleaner_note_stuck(pass->store, segment->serial);
    free(parts);
    return err;
}

static int clean_victims(struct pass *pass) {
    int err = 0;
    for (size_t i = 0; i < pass->choice->count && !err; i++) {
        const struct gild_segment_fact *victim = &pass->choice->victims[i];
        struct gild_segment *segment = gild_segments_pin(pass->store->segments, victim->serial);
        if (!segment)
            continue; /* emptied meanwhile */
        err = cleaner_stopping(pass->store) ? -ECANCELED
                                            : clean_segment(pass, segment, victim->closed_s);
        gild_segments_unpin(pass->store->segments, segment);
    }
    return err;
}

/* ---- the pass -------------------------------------------------------------------------------- */

static int run_pass(struct gild_store *store, const struct clean_choice *choice,
                    struct clean_need *need, struct clean_result *result) {
    struct pass pass = {
        .store = store,
        .choice = choice,
        .result = result,
        .cold_s = need->cold_s,
        .now_s = need->now_s,
        .only_log = need->only_log,
    };
    gild_store_ingest_begin(store);
    int err = clean_victims(&pass);
    /* What is in packs by now is as good as it would have been at the pass's end. */
    int ended = end_ingest(&pass, err == -ECANCELED ? 0 : err);
    err = err ? err : ended;
    unhold_all(&pass);
    gild_store_ingest_end(store);
    cleaner_scan_free(&pass.scan);
    free(pass.moves);
    free(pass.pack_moves);
    free(pass.pack_delta);
    return err;
}

static bool no_space(int err) {
    return err == -ENOSPC || err == -EDQUOT;
}

/* Those up to a serial. */
static size_t facts_upto(struct gild_segment_fact *facts, size_t count, uint64_t serial) {
    while (count && facts[count - 1].serial > serial)
        count--;
    return count;
}

/* Packs are written before what they hold leaves the log; a file system that is full to the brim
 * has no room for a catalogue, or a socket. The pass becomes so small that it fits; false: there is
 * room for none. */
static bool fit(struct gild_store *store, struct clean_choice *choice) {
    uint64_t live = 0;
    size_t taken = 0;
    for (; taken < choice->count; taken++) {
        live += choice->victims[taken].live_blocks;
        if (gild_store_admit_bytes(store, live * GILD_BLOCK_BYTES) != 0)
            break;
    }
    bool fits = taken || !choice->count;
    choice->count = taken;
    return fits;
}

int cleaner_pass(struct gild_store *store, uint64_t all_upto, struct clean_result *result) {
    struct gild_segments_totals totals;
    struct clean_need need = {
        .now_s = wall_s(), .cold_s = cleaner_cold_s(store), .all = all_upto != 0};
    *result = (struct clean_result){0};
    if (!cleaner_begin(store))
        return -EBUSY;
    gild_segments_get_totals(store->segments, &totals);
    need.available = totals.available;
    need.total = totals.count + totals.available;
    need.room = totals.available + store->reactor_count; /* those that are kept for moves */
    int err = 0;
    do {
        struct gild_segment_fact *facts = NULL;
        size_t count;
        need.only_log = no_space(err);
        err = gild_segments_full(store->segments, &facts, &count);
        if (!err)
            count = cleaner_unstuck(store, facts,
                                    all_upto ? facts_upto(facts, count, all_upto) : count);
        if (!err) {
            struct clean_choice choice = cleaner_choose(facts, count, &need);
            if (!need.only_log && !fit(store, &choice)) {
                need.only_log = true;
                choice = cleaner_choose(facts, count, &need);
            }
            result->urgency = choice.urgency;
            err = choice.count ? run_pass(store, &choice, &need, result) : 0;
        }
        free(facts);
    } while (no_space(err) && !need.only_log);
    if (!err && (all_upto ? !cleaner_done(result) : result->urgency != CLEAN_HURRY))
        err = cleaner_packs(store, all_upto != 0, result);
    cleaner_end(store, result);
    return err;
}
