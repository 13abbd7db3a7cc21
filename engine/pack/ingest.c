/* An ingest: blocks in, places out, in order.
 *
 *   add -> batch of 64 blocks -> [worker: SHA-256, XXH3] -> dedup, places (in order, here)
 *                                                             | new blocks
 *                            pack file <- frames in order <- [worker: zstd] <- group of 16
 *
 * Everything but the boxes in brackets runs on the caller's thread, in the order of adding; batches
 * and groups are rings of fixed size, which bounds memory and the pool's queue. What is written
 * depends only on the blocks: batches have one size however they were added, and a pack is ended by
 * what was written up to a group that every ring depth has surely written by then (ROLL_LAG).
 *
 * A block is looked for in the pack that is being written (own, in memory), in the packs that this
 * ingest sealed (rolled: not in the set before finish, since an abort takes them back), and in the
 * set. Packs are ended at batch boundaries only, so that an answer holds for the whole batch.
 *
 * With `verify`, an answer of a sealed pack, of the set or of this ingest, holds only if the bytes
 * are the same (twins.h). One of own holds as it is: both blocks were hashed by this ingest, in
 * memory, and nothing that was stored had a say in it; the frames are in part not written yet, and
 * which are depends on the number of threads, which the result must not.
 *
 * Invariants: submitted - retired <= depth; own holds exactly the blocks of the writer's pack; a
 * place is handed out before its frame is written, so nothing may be kept of a failed ingest.
 *
 * Failure modes: the first failure is kept and every later call returns it; destroy then unlinks
 * all that was written. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec/hash.h"
#include "codec/zstd.h"
#include "pack/own.h"
#include "pack/pool.h"
#include "pack/twins.h"
#include "pack/writer.h"

#define BATCH_BLOCKS 64u
#define BATCH_RING 16u
#define GROUP_RING 64u
#define ROLL_LAG GROUP_RING
#define OWN_BLOCKS_MAX (1u << 21) /* of one pack: bounds the memory of own at 92 MB */
#define DEFAULT_LEVEL 2
#define DEFAULT_TARGET_BYTES (512ull << 20)

struct batch {
    struct pool_job job;
    uint32_t count;
    int error;
    uint64_t tag[BATCH_BLOCKS];
    uint32_t check[BATCH_BLOCKS];
    uint8_t fingerprint[BATCH_BLOCKS][GILD_FINGERPRINT_BYTES];
    _Alignas(64) uint8_t block[BATCH_BLOCKS][PACK_BLOCK_BYTES];
};

struct group {
    struct pool_job job;
    uint32_t pack_id, number, count;
    int level, error;
    uint32_t frame_bytes;
    uint64_t check;
    const uint8_t *frame; /* packed, or block if it did not shrink */
    _Alignas(64) uint8_t block[GILD_GROUP_BLOCKS][PACK_BLOCK_BYTES];
    uint8_t packed[GILD_GROUP_BYTES];
};

struct gild_ingest {
    struct gild_packs *packs;
    struct gild_ingest_options options;
    struct pool *pool;
    int failure;
    bool finished;

    struct batch *batches;
    uint32_t batch_depth;
    uint64_t batches_submitted, batches_placed;

    struct group *groups;
    uint32_t group_depth;
    uint32_t submitted, retired; /* of the writer's pack */
    struct group *open;          /* being filled, NULL: none */

    struct pack_writer *writer; /* NULL: no pack is open */
    uint32_t pack_id;
    struct own own;
    struct twins *twins; /* NULL: a fingerprint is proof enough */

    struct pack **rolled; /* sealed by this ingest; the set's after finish */
    uint32_t *pack_ids;
    uint32_t rolled_count, rolled_room;
    uint32_t hot; /* the pack of the set that answered last */
    uint64_t blocks_in, blocks_new, frame_bytes, hits_refused;
};

/* ---- on the workers -------------------------------------------------------------------------- */

static void hash_batch(struct pool_job *job) {
    struct batch *batch = (struct batch *)job;
    batch->error = 0;
    for (uint32_t i = 0; i < batch->count && !batch->error; i++) {
        batch->error = gild_sha256(batch->block[i], PACK_BLOCK_BYTES, batch->fingerprint[i]);
        batch->check[i] = gild_block_check(batch->block[i], 0);
    }
}

static void compress_group(struct pool_job *job) {
    struct group *group = (struct group *)job;
    size_t whole = (size_t)group->count * PACK_BLOCK_BYTES;
    ssize_t bytes = gild_zstd_compress(group->packed, whole - 1, group->block, whole, group->level);
    group->error = bytes < 0 ? (int)bytes : 0;
    group->frame = bytes > 0 ? group->packed : group->block[0];
    group->frame_bytes = bytes > 0 ? (uint32_t)bytes : (uint32_t)whole;
    group->check =
        pack_frame_check(group->frame, group->frame_bytes, group->pack_id, group->number);
}

/* ---- groups and packs ------------------------------------------------------------------------ */

static int retire_group(struct gild_ingest *ingest) {
    struct group *group = &ingest->groups[ingest->retired % ingest->group_depth];
    pool_wait(ingest->pool, &group->job);
    int err = group->error;
    if (!err)
        err = writer_frame(ingest->writer, group->frame, group->frame_bytes, group->count, 0,
                           group->check);
    if (err)
        return err;
    ingest->frame_bytes += group->frame_bytes;
    ingest->retired++;
    return 0;
}

static void submit_group(struct gild_ingest *ingest) {
    struct group *group = ingest->open;
    ingest->open = NULL;
    ingest->submitted++;
    pool_submit(ingest->pool, &group->job);
}

static int open_group(struct gild_ingest *ingest) {
    int err;
    if (!ingest->writer) {
        err = ingest->options.next_pack_id(ingest->options.context, &ingest->pack_id);
        if (!err)
            err = ingest->pack_id > SET_ID_MAX ? -EINVAL : 0;
        if (!err)
            err = writer_create(&ingest->writer, ingest->packs, ingest->pack_id, 1, 0);
        if (err)
            return err;
    }
    if (ingest->submitted - ingest->retired == ingest->group_depth) {
        err = retire_group(ingest);
        if (err)
            return err;
    }
    struct group *group = &ingest->groups[ingest->submitted % ingest->group_depth];
    group->job.run = compress_group;
    group->pack_id = ingest->pack_id;
    group->number = ingest->submitted;
    group->count = 0;
    group->level = ingest->options.level;
    ingest->open = group;
    return 0;
}

static int keep_rolled(struct gild_ingest *ingest) {
    if (ingest->rolled_count == ingest->rolled_room) {
        uint32_t room = ingest->rolled_room ? ingest->rolled_room * 2 : 16;
        struct pack **rolled = realloc(ingest->rolled, room * sizeof(*rolled));
        if (!rolled)
            return -ENOMEM;
        ingest->rolled = rolled;
        uint32_t *ids = realloc(ingest->pack_ids, room * sizeof *ids);
        if (!ids)
            return -ENOMEM;
        ingest->pack_ids = ids;
        ingest->rolled_room = room;
    }
    ingest->rolled[ingest->rolled_count] = NULL;
    ingest->pack_ids[ingest->rolled_count++] = ingest->pack_id;
    return 0;
}

/* Ends the pack that is being written, if there is one. */
static int seal_pack(struct gild_ingest *ingest) {
    char path[PATH_MAX];
    struct gild_error ignored;
    int err = 0;
    if (!ingest->writer)
        return 0;
    if (ingest->open)
        submit_group(ingest);
    while (ingest->retired < ingest->submitted && !err)
        err = retire_group(ingest);
    if (!err)
        err = writer_finish(ingest->writer, ingest->own.print, ingest->own.count);
    if (!err)
        err = writer_publish(ingest->writer);
    /* From here on the file has its name; it is listed before anything else can fail, or unlinked
     * at once. */
    if (!err) {
        set_path(ingest->packs, ingest->pack_id, true, path);
        err = keep_rolled(ingest);
        if (err)
            unlink(path);
    }
    if (err)
        return err;
    writer_destroy(ingest->writer);
    ingest->writer = NULL;
    ingest->submitted = ingest->retired = 0;
    own_clear(&ingest->own);
    return pack_open(&ingest->rolled[ingest->rolled_count - 1], path, ingest->packs->store_id,
                     ingest->pack_id, &ignored);
}

/* True if the open pack is to be ended: decided by what is known at every ring depth. */
static bool pack_is_full(const struct gild_ingest *ingest) {
    if (ingest->own.count >= OWN_BLOCKS_MAX)
        return true;
    return ingest->writer && ingest->submitted > ROLL_LAG &&
           writer_frame_end(ingest->writer, ingest->submitted - 1 - ROLL_LAG) >=
               ingest->options.pack_target_bytes;
}

/* ---- deduplication --------------------------------------------------------------------------- */

/* Gives a place to a block that no pack has. */
static int place_new(struct gild_ingest *ingest, const struct batch *batch, uint32_t i,
                     uint32_t *where) {
    int err = ingest->open ? 0 : open_group(ingest);
    if (err)
        return err;
    struct group *group = ingest->open;
    *where = group->number << 4 | group->count;
    if (!own_add(&ingest->own, batch->fingerprint[i], *where))
        return -ENOMEM;
    memcpy(group->block[group->count++], batch->block[i], PACK_BLOCK_BYTES);
    ingest->blocks_new++;
    if (group->count == GILD_GROUP_BLOCKS)
        submit_group(ingest);
    return 0;
}

/* A hit stands if the bytes there can be read and are the block's; else it counts as a miss. */
static uint64_t verify_hit(struct gild_ingest *ingest, uint64_t place, const void *block) {
    const struct pack *pack = NULL;
    if (!place || !ingest->twins)
        return place;
    for (uint32_t i = 0; i < ingest->rolled_count && !pack; i++)
        if (ingest->pack_ids[i] == gild_place_pack_id(place))
            pack = ingest->rolled[i];
    if (twins_same(ingest->twins, pack, place, block))
        return place;
    ingest->hits_refused++;
    return 0;
}

/* Asks the sealed packs for what own does not have; place[i] stays 0 for the rest. */
static void find_sealed(struct gild_ingest *ingest, const struct batch *batch, uint64_t *place) {
    uint8_t ask[BATCH_BLOCKS][GILD_FINGERPRINT_BYTES];
    uint64_t answer[BATCH_BLOCKS] = {0};
    uint32_t from[BATCH_BLOCKS], open = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        place[i] = 0;
        if (own_find(&ingest->own, batch->fingerprint[i]) >= 0)
            continue;
        memcpy(ask[open], batch->fingerprint[i], GILD_FINGERPRINT_BYTES);
        from[open++] = i;
    }
    const uint8_t(*asked)[GILD_FINGERPRINT_BYTES] = (const void *)ask;
    for (uint32_t i = ingest->rolled_count; open && i-- > 0;)
        pack_find_many(ingest->rolled[i], asked, open, answer);
    set_find_many(ingest->packs, &ingest->hot, asked, open, answer);
    for (uint32_t i = 0; i < open; i++)
        place[from[i]] = verify_hit(ingest, answer[i], batch->block[from[i]]);
}

static int place_batch(struct gild_ingest *ingest, struct batch *batch) {
    uint64_t place[BATCH_BLOCKS];
    pool_wait(ingest->pool, &batch->job);
    int err = batch->error;
    if (!err && pack_is_full(ingest))
        err = seal_pack(ingest);
    if (err)
        return err;
    find_sealed(ingest, batch, place);
    for (uint32_t i = 0; i < batch->count; i++) {
        if (!place[i]) {
            int64_t known = own_find(&ingest->own, batch->fingerprint[i]);
            uint32_t where = (uint32_t)known;
            err = known < 0 ? place_new(ingest, batch, i, &where) : 0;
            if (err)
                return err;
            place[i] = gild_place_pack(ingest->pack_id, where >> 4, where & 15);
        }
        err = ingest->options.placed(ingest->options.context, batch->tag[i], place[i],
                                     batch->check[i], batch->fingerprint[i]);
        if (err)
            return err < 0 ? err : -ECANCELED;
    }
    return 0;
}

static int place_oldest(struct gild_ingest *ingest) {
    int err = place_batch(ingest, &ingest->batches[ingest->batches_placed % ingest->batch_depth]);
    ingest->batches_placed++;
    return err;
}

static void submit_batch(struct gild_ingest *ingest, struct batch *batch) {
    batch->job.run = hash_batch;
    ingest->batches_submitted++;
    pool_submit(ingest->pool, &batch->job);
}

/* ---- the public calls ------------------------------------------------------------------------ */

int gild_ingest_create(struct gild_ingest **out, struct gild_packs *packs,
                       const struct gild_ingest_options *options, struct gild_error *error) {
    struct gild_ingest *ingest = calloc(1, sizeof *ingest);
    if (!ingest)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to take in blocks");
    ingest->packs = packs;
    ingest->options = *options;
    if (!ingest->options.level)
        ingest->options.level = DEFAULT_LEVEL;
    if (!ingest->options.pack_target_bytes)
        ingest->options.pack_target_bytes = DEFAULT_TARGET_BYTES;
    /* Without workers a deep ring would only push the data out of the processor's caches. */
    ingest->batch_depth = options->threads ? BATCH_RING : 1;
    ingest->group_depth = options->threads ? GROUP_RING : 1;
    ingest->batches = aligned_alloc(64, ingest->batch_depth * sizeof *ingest->batches);
    ingest->groups = aligned_alloc(64, ingest->group_depth * sizeof *ingest->groups);
    int err =
        ingest->batches && ingest->groups ? pool_create(&ingest->pool, options->threads) : -ENOMEM;
    if (!err && options->verify)
        err = twins_create(&ingest->twins, packs, options->copy, options->context);
    if (err) {
        gild_ingest_destroy(ingest, false);
        return gild_fail(error, GILD_FAILED, -err,
                         "%u threads to take in blocks can not be started: %s", options->threads,
                         strerror(-err));
    }
    ingest->batches[0].count = 0;
    *out = ingest;
    return 0;
}

int gild_ingest_add(struct gild_ingest *ingest, const void *blocks, size_t count, uint64_t tag) {
    const uint8_t *from = blocks;
    if (ingest->finished)
        return -EINVAL;
    while (count && !ingest->failure) {
        struct batch *batch = &ingest->batches[ingest->batches_submitted % ingest->batch_depth];
        size_t room = BATCH_BLOCKS - batch->count, n = count < room ? count : room;
        memcpy(batch->block[batch->count], from, n * PACK_BLOCK_BYTES);
        for (size_t i = 0; i < n; i++)
            batch->tag[batch->count++] = tag++;
        from += n * PACK_BLOCK_BYTES;
        count -= n;
        ingest->blocks_in += n;
        if (batch->count < BATCH_BLOCKS)
            break;
        submit_batch(ingest, batch);
        if (ingest->batches_submitted - ingest->batches_placed == ingest->batch_depth)
            ingest->failure = place_oldest(ingest);
        ingest->batches[ingest->batches_submitted % ingest->batch_depth].count = 0;
    }
    return ingest->failure;
}

static int finish(struct gild_ingest *ingest) {
    struct batch *last = &ingest->batches[ingest->batches_submitted % ingest->batch_depth];
    int err = ingest->failure;
    if (err)
        return err;
    if (last->count)
        submit_batch(ingest, last);
    while (ingest->batches_placed < ingest->batches_submitted && !err)
        err = place_oldest(ingest);
    if (!err)
        err = seal_pack(ingest);
    if (!err && ingest->rolled_count)
        err = set_sync_folder(ingest->packs);
    for (uint32_t i = 0; i < ingest->rolled_count && !err; i++) {
        err = set_insert(ingest->packs, ingest->rolled[i]);
        if (!err)
            ingest->rolled[i] = NULL; /* the set's */
    }
    return err;
}

int gild_ingest_finish(struct gild_ingest *ingest, struct gild_error *error) {
    if (ingest->finished)
        return gild_fail(error, GILD_FAILED, EINVAL, "the blocks were taken in already");
    int err = ingest->failure = finish(ingest);
    if (err)
        return gild_fail(error, gild_code_of_errno(-err), -err,
                         err == -ENOSPC || err == -EDQUOT
                             ? "the file system of %s is full (%s); free space and try again"
                             : "a pack can not be written to %s: %s",
                         ingest->packs->directory, strerror(-err));
    ingest->finished = true;
    return 0;
}

void gild_ingest_get_totals(const struct gild_ingest *ingest, struct gild_ingest_totals *totals) {
    totals->blocks_in = ingest->blocks_in;
    totals->blocks_new = ingest->blocks_new;
    totals->frame_bytes = ingest->frame_bytes;
    totals->hits_refused = ingest->hits_refused;
    totals->pack_count = ingest->rolled_count;
    totals->pack_ids = ingest->pack_ids;
}

/* Takes one pack of this ingest back, whether the set has it already or not. */
static void take_back(struct gild_ingest *ingest, uint32_t i) {
    char path[PATH_MAX];
    if (gild_packs_remove(ingest->packs, ingest->pack_ids[i], NULL) != -ENOENT)
        return;
    set_path(ingest->packs, ingest->pack_ids[i], true, path);
    unlink(path);
}

void gild_ingest_destroy(struct gild_ingest *ingest, bool keep) {
    if (!ingest)
        return;
    pool_destroy(ingest->pool);
    writer_destroy(ingest->writer);
    for (uint32_t i = 0; i < ingest->rolled_count; i++) {
        pack_close(ingest->rolled[i]);
        if (!ingest->finished || !keep)
            take_back(ingest, i);
    }
    own_fini(&ingest->own);
    twins_destroy(ingest->twins);
    free(ingest->rolled);
    free(ingest->pack_ids);
    free(ingest->groups);
    free(ingest->batches);
    free(ingest);
}
