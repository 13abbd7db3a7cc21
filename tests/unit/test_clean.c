/* The cleaner on a real store: what it packs, shares, moves and leaves alone; that what is read
 * afterwards is what was written; that nothing leaks. Which segments it takes is asked of the pure
 * part. */
#include <CUnit/Basic.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../lib/store_rig.h"
#include "base/prng.h"
#include "disk/cleaner.h"

#define BLOCK 4096u
#define DISK_BYTES ((uint64_t)8 << 20)
#define DISK_BLOCKS (DISK_BYTES / BLOCK)
#define DISKS 3u
#define SEGMENT_BLOCKS 128u
#define GUEST_OPS 5000u

static char directory[64];
static uint64_t seed;

static struct gild_store *open_store(void) {
    const struct gild_store_options options = {.threads = 2,
                                               .cache_bytes = (uint64_t)16 << 20,
                                               .segment_blocks = SEGMENT_BLOCKS,
                                               .no_cleaner = true};
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    if (gild_store_open(directory, &options, &store, &error))
        fprintf(stderr, "open: %s\n", error.message);
    CU_ASSERT_PTR_NOT_NULL_FATAL(store);
    return store;
}

static struct gild_store *make_store(void) {
    store_rig_make(directory, 0);
    struct gild_store *store = open_store();
    store_rig_deltas(store, DISK_BYTES, 1, DISKS);
    return store;
}

static void is_consistent(struct gild_store *store) {
    struct store_rig_findings findings = {0};
    CU_ASSERT_EQUAL(store_rig_check(store, &findings), 0);
    CU_ASSERT_EQUAL(findings.count, 0);
}

static void end_store(struct gild_store *store) {
    is_consistent(store);
    store_rig_close(store);
    store_rig_remove(directory);
}

/* Content that is a function of its number. */
static void make_block(uint64_t number, uint8_t *out) {
    uint64_t state = number;
    state = gild_splitmix64(&state); /* or one block would go on as the next begins */
    for (unsigned i = 0; i < BLOCK / 8; i++) {
        uint64_t word = i % 2 ? gild_splitmix64(&state) : number;
        memcpy(out + 8 * (size_t)i, &word, 8);
    }
}

static void write_block(struct gild_disk *disk, uint64_t block, uint64_t number) {
    uint8_t bytes[BLOCK];
    make_block(number, bytes);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, block * BLOCK, BLOCK, bytes, 0), 0);
}

/* 0: zeroes. */
static bool holds(struct gild_disk *disk, uint64_t block, uint64_t number) {
    uint8_t bytes[BLOCK], wanted[BLOCK] = {0};
    if (number)
        make_block(number, wanted);
    return store_rig_do(disk, GILD_OP_READ, block * BLOCK, BLOCK, bytes, 0) == 0 &&
           memcmp(bytes, wanted, BLOCK) == 0;
}

static struct gild_clean_result clean(struct gild_store *store) {
    struct gild_clean_result result;
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_store_clean(store, NULL, &result, &error), 0);
    return result;
}

static void checkpoint(struct gild_store *store) {
    struct gild_error error = {0};
    CU_ASSERT_EQUAL(gild_store_checkpoint(store, &error), 0);
}

static uint64_t packs_of(struct gild_store *store) {
    uint64_t packs = 0;
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(gild_store_catalog(store), false, &txn), 0);
    CU_ASSERT_EQUAL(gild_txn_count(txn, GILD_TABLE_PACKS, &packs), 0);
    gild_txn_abort(txn);
    return packs;
}

/* ---- what becomes of blocks ------------------------------------------------------------------ */

static void one_copy_of_what_many_wrote(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk[DISKS];
    for (unsigned d = 0; d < DISKS; d++) {
        disk[d] = store_rig_disk(store, d + 1);
        for (uint64_t b = 0; b < 300; b++)
            write_block(disk[d], b * 3, 1000 + b);
        for (uint64_t b = 0; b < 40; b++)
            write_block(disk[d], 1200 + b, 1 + 100 * d + b);
    }
    struct gild_clean_result result = clean(store);
    CU_ASSERT_EQUAL(result.packed_blocks, DISKS * 340);
    CU_ASSERT_EQUAL(result.shared_blocks, (DISKS - 1) * 300);
    CU_ASSERT_TRUE(result.moved_blocks < 100); /* map nodes at most */
    struct gild_segment_fact *facts;
    size_t count;
    CU_ASSERT_EQUAL_FATAL(gild_segments_full(store->segments, &facts, &count), 0);
    for (size_t i = 0; i < count; i++)
        CU_ASSERT_TRUE(facts[i].holds_nodes); /* the log holds nothing of guests' any more */
    free(facts);
    is_consistent(store);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned d = 0; d < DISKS; d++) {
            for (uint64_t b = 0; b < 300; b++)
                CU_ASSERT_TRUE(holds(disk[d], b * 3, 1000 + b));
            for (uint64_t b = 0; b < 40; b++)
                CU_ASSERT_TRUE(holds(disk[d], 1200 + b, 1 + 100 * d + b));
            CU_ASSERT_TRUE(holds(disk[d], 1, 0));
            store_rig_release(disk[d]);
        }
        store_rig_close(store);
        store = open_store();
        for (unsigned d = 0; d < DISKS; d++)
            disk[d] = store_rig_disk(store, d + 1);
    }
    /* Again: nothing is left to do. */
    result = clean(store);
    CU_ASSERT_EQUAL(result.packed_blocks, 0);
    for (unsigned d = 0; d < DISKS; d++)
        store_rig_release(disk[d]);
    end_store(store);
}

static void zeroes_are_no_content(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    uint8_t zeroes[BLOCK] = {0}, part[512] = {7};
    for (uint64_t b = 0; b < 50; b++)
        write_block(disk, b, b + 1);
    /* Not recognised as zeroes when they came: a part of a block at a time. */
    for (uint64_t b = 0; b < 20; b++) {
        CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, b * BLOCK, 512, part, 0), 0);
        for (unsigned s = 0; s < 8; s++)
            CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, b * BLOCK + 512 * s, 512, zeroes, 0),
                            0);
    }
    struct gild_clean_result result = clean(store);
    CU_ASSERT_EQUAL(result.zero_blocks, 20);
    CU_ASSERT_EQUAL(result.packed_blocks, 30);
    for (uint64_t b = 0; b < 50; b++)
        CU_ASSERT_TRUE(holds(disk, b, b < 20 ? 0 : b + 1));
    store_rig_release(disk);
    end_store(store);
}

/* A guest that writes zeroes gets an entry, and its log no block. */
static void written_zeroes_take_no_room(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    uint8_t *zeroes = calloc(64, BLOCK);
    for (uint64_t b = 0; b < 64; b++)
        write_block(disk, b, b + 1);
    CU_ASSERT_EQUAL(disk->map.mapped_blocks, 64);
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 0, 63 * BLOCK, zeroes, GILD_OP_FUA), 0);
    CU_ASSERT_EQUAL(disk->map.mapped_blocks, 1);
    zeroes[BLOCK - 1] = 1;
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_WRITE, 5 * BLOCK, BLOCK, zeroes, 0), 0);
    CU_ASSERT_EQUAL(disk->map.mapped_blocks, 2);
    free(zeroes);
    store_rig_release(disk);
    store_rig_close(store);
    store = open_store();
    disk = store_rig_disk(store, 1);
    for (uint64_t b = 0; b < 64; b++)
        CU_ASSERT_TRUE(b == 5 || holds(disk, b, b < 63 ? 0 : 64));
    store_rig_release(disk);
    end_store(store);
}

static void a_pack_goes_with_its_last_block(void) {
    struct gild_store *store = make_store();
    struct gild_disk *one = store_rig_disk(store, 1), *two = store_rig_disk(store, 2);
    for (uint64_t b = 0; b < 200; b++) {
        write_block(one, b, b + 1);
        write_block(two, 500 + b, b + 1);
    }
    clean(store);
    CU_ASSERT_EQUAL(packs_of(store), 1);
    CU_ASSERT_EQUAL(store_rig_do(one, GILD_OP_TRIM, 0, DISK_BYTES, NULL, 0), 0);
    checkpoint(store);
    checkpoint(store);
    CU_ASSERT_EQUAL(packs_of(store), 1);
    for (uint64_t b = 0; b < 200; b++)
        CU_ASSERT_TRUE(holds(two, 500 + b, b + 1));
    for (uint64_t b = 0; b < 200; b++)
        write_block(two, 500 + b, 7);
    checkpoint(store);
    checkpoint(store);
    CU_ASSERT_EQUAL(packs_of(store), 0);
    is_consistent(store);
    store_rig_release(one);
    store_rig_release(two);
    end_store(store);
}

static uint64_t pack_bytes(struct gild_store *store) {
    struct gild_packs_totals totals;
    gild_packs_get_totals(store->packs, &totals);
    return totals.file_bytes;
}

/* Fifteen of each sixteen are written again: what is left of the first pack is as large as what
 * lives in it. */
static void dead_blocks_leave_their_packs(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1), *other = store_rig_disk(store, 2);
    for (uint64_t b = 0; b < DISK_BLOCKS; b++)
        write_block(disk, b, b + 1);
    for (uint64_t b = 0; b < 160; b += 40) /* these live on for somebody else */
        write_block(other, b, b + 1);
    clean(store);
    uint64_t whole = pack_bytes(store);
    CU_ASSERT_EQUAL(packs_of(store), 1);
    for (uint64_t b = 0; b < DISK_BLOCKS; b++)
        if (b % 16)
            CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_TRIM, b * BLOCK, BLOCK, NULL, 0), 0);
    struct gild_clean_result result = clean(store);
    CU_ASSERT_TRUE(result.dropped_bytes > whole / 2);
    CU_ASSERT_TRUE(pack_bytes(store) * 16 < whole * 3 / 2 + 16 * 16384);
    is_consistent(store);
    store_rig_release(disk);
    store_rig_release(other);
    store_rig_close(store);
    store = open_store();
    disk = store_rig_disk(store, 1);
    other = store_rig_disk(store, 2);
    for (uint64_t b = 0; b < DISK_BLOCKS; b++)
        CU_ASSERT_TRUE(holds(disk, b, b % 16 ? 0 : b + 1));
    for (uint64_t b = 0; b < 160; b++)
        CU_ASSERT_TRUE(holds(other, b, b % 40 ? 0 : b + 1));
    /* What was dropped is stored anew; what lives is shared. */
    for (uint64_t b = 0; b < 64; b++)
        write_block(other, 1000 + b, b + 1);
    result = clean(store);
    CU_ASSERT_EQUAL(result.packed_blocks, 64);
    CU_ASSERT_EQUAL(result.shared_blocks, 4 + 1); /* 0, 16, 32, 48, and 40 */
    for (uint64_t b = 0; b < 64; b++)
        CU_ASSERT_TRUE(holds(other, 1000 + b, b + 1));
    store_rig_release(disk);
    store_rig_release(other);
    end_store(store);
}

static void a_deleted_disk_frees_its_packs(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    for (uint64_t b = 0; b < 200; b++)
        write_block(disk, b, b + 1);
    clean(store);
    CU_ASSERT_EQUAL(packs_of(store), 1);
    store_rig_release(disk);
    checkpoint(store);
    struct gild_rec_delta *record = malloc(sizeof *record);
    struct gild_txn *txn;
    CU_ASSERT_EQUAL_FATAL(gild_txn_begin(store->catalog, true, &txn), 0);
    CU_ASSERT_EQUAL(gild_rec_get_delta(txn, GILD_TABLE_DELTAS, 1, record), 0);
    CU_ASSERT_EQUAL(record->packed_blocks, 200);
    CU_ASSERT_EQUAL(gild_rec_put_delta(txn, GILD_TABLE_DROPPED, 1, record), 0);
    CU_ASSERT_EQUAL(gild_rec_delete_u64(txn, GILD_TABLE_DELTAS, 1), 0);
    CU_ASSERT_EQUAL_FATAL(gild_txn_commit(txn), 0);
    free(record);
    gild_store_collect(store);
    checkpoint(store);
    checkpoint(store);
    CU_ASSERT_EQUAL(packs_of(store), 0);
    end_store(store);
}

static void map_nodes_are_moved_too(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    for (unsigned round = 0; round < 60; round++) { /* most nodes of each checkpoint die soon */
        for (uint64_t leaf = 0; leaf < 3; leaf++)
            write_block(disk, leaf * GILD_LEAF_BLOCKS + round, round + 1);
        if (round == 5)
            write_block(disk, 6 * GILD_LEAF_BLOCKS, 99); /* this one's leaf lives on */
        checkpoint(store);
    }
    struct gild_segment_fact *facts;
    size_t before, after;
    CU_ASSERT_EQUAL_FATAL(gild_segments_full(store->segments, &facts, &before), 0);
    free(facts);
    clean(store);
    CU_ASSERT_EQUAL_FATAL(gild_segments_full(store->segments, &facts, &after), 0);
    free(facts);
    CU_ASSERT_TRUE(before >= 2);
    CU_ASSERT_EQUAL(after, 0);
    CU_ASSERT_TRUE(holds(disk, 6 * GILD_LEAF_BLOCKS, 99));
    for (unsigned round = 0; round < 60; round++)
        CU_ASSERT_TRUE(holds(disk, round, round + 1));
    store_rig_release(disk);
    end_store(store);
}

/* ---- what is left alone ---------------------------------------------------------------------- */

static uint64_t place_of(struct gild_disk *disk, uint64_t block) {
    struct gild_map_need need;
    uint64_t ref = 0;
    CU_ASSERT_EQUAL_FATAL(gild_delta_look(&disk->map, block / GILD_LEAF_BLOCKS, &ref, &need),
                          GILD_MAP_READY);
    CU_ASSERT_TRUE_FATAL(gild_ref_is_page(ref));
    return gild_ref_page(ref)->leaf.place[block % GILD_LEAF_BLOCKS];
}

static sem_t moved;
static void move_done(struct move_op *moving) {
    (void)moving;
    sem_post(&moved);
}

static void what_was_overwritten_is_not_moved(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    write_block(disk, 5, 1);
    write_block(disk, 6, 2);
    struct move moves[2] = {
        {.block = 5, .from = place_of(disk, 5), .to = gild_place_of_type(GILD_PLACE_ZERO)},
        {.block = 6, .from = place_of(disk, 6), .to = gild_place_of_type(GILD_PLACE_ZERO)}};
    write_block(disk, 5, 3);
    sem_init(&moved, 0, 0);
    for (unsigned what = MOVE_SIFT; what <= MOVE_APPLY; what++) {
        struct move_op moving = {
            .op.disk = disk, .what = what, .moves = moves, .count = 2, .done = move_done};
        move_post(&moving);
        sem_wait(&moved);
        CU_ASSERT_EQUAL(moving.op.error, 0);
        CU_ASSERT_FALSE(moves[0].live);
        CU_ASSERT_TRUE(moves[1].live);
    }
    CU_ASSERT_TRUE(holds(disk, 5, 3));
    CU_ASSERT_TRUE(holds(disk, 6, 0));
    store_rig_release(disk);
    end_store(store);
}

static void rot_is_not_packed(void) {
    struct gild_store *store = make_store();
    struct gild_disk *disk = store_rig_disk(store, 1);
    for (uint64_t b = 0; b < 60; b++)
        write_block(disk, b, b + 1);
    uint64_t place = place_of(disk, 33);
    store_rig_release(disk);
    store_rig_close(store);
    char path[160];
    snprintf(path, sizeof path, "%s/log/%016" PRIx64 ".seg", directory, gild_place_serial(place));
    int fd = open(path, O_RDWR);
    CU_ASSERT_TRUE_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(pwrite(fd, "rot", 3, gild_place_offset(place) * BLOCK + 100), 3);
    close(fd);
    store = open_store();
    struct gild_clean_result result = clean(store);
    CU_ASSERT_EQUAL(result.packed_blocks, 59);
    disk = store_rig_disk(store, 1);
    uint8_t bytes[BLOCK];
    CU_ASSERT_EQUAL(store_rig_do(disk, GILD_OP_READ, 33 * BLOCK, BLOCK, bytes, 0), -EIO);
    for (uint64_t b = 0; b < 60; b++)
        CU_ASSERT_TRUE(b == 33 || holds(disk, b, b + 1));
    write_block(disk, 33, 34);
    store_rig_release(disk);
    end_store(store);
}

/* ---- beside guests --------------------------------------------------------------------------- */

struct guest {
    struct gild_disk *disk;
    uint64_t seed;
    uint64_t number[DISK_BLOCKS];
    unsigned wrong; /* answers */
    _Atomic bool done;
};

/* Few blocks, often the same content, many times. */
static void *be_guest(void *context) {
    struct guest *guest = context;
    struct gild_prng prng;
    gild_prng_seed(&prng, guest->seed);
    for (unsigned i = 0; i < GUEST_OPS; i++) {
        uint64_t block = gild_prng_below(&prng, DISK_BLOCKS);
        unsigned what = (unsigned)gild_prng_below(&prng, 10);
        if (what == 0) {
            guest->wrong +=
                store_rig_do(guest->disk, GILD_OP_TRIM, block * BLOCK, BLOCK, NULL, 0) != 0;
            guest->number[block] = 0;
        } else if (what < 7) {
            uint8_t bytes[BLOCK];
            guest->number[block] = 1 + gild_prng_below(&prng, 400);
            make_block(guest->number[block], bytes);
            guest->wrong +=
                store_rig_do(guest->disk, GILD_OP_WRITE, block * BLOCK, BLOCK, bytes, 0) != 0;
        } else {
            guest->wrong += !holds(guest->disk, block, guest->number[block]);
        }
    }
    atomic_store(&guest->done, true);
    return NULL;
}

static void guests_go_on_meanwhile(void) {
    struct gild_store *store = make_store();
    struct guest *guests = calloc(DISKS, sizeof *guests);
    pthread_t threads[DISKS];
    struct gild_clean_result sum = {0};
    for (unsigned d = 0; d < DISKS; d++) {
        guests[d].disk = store_rig_disk(store, d + 1);
        guests[d].seed = seed + d;
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[d], NULL, be_guest, &guests[d]), 0);
    }
    for (bool done = false; !done;) {
        struct gild_clean_result result = clean(store);
        sum.packed_blocks += result.packed_blocks;
        sum.shared_blocks += result.shared_blocks;
        is_consistent(store);
        done = true;
        for (unsigned d = 0; d < DISKS; d++)
            done = done && atomic_load(&guests[d].done);
    }
    for (unsigned d = 0; d < DISKS; d++) {
        pthread_join(threads[d], NULL);
        CU_ASSERT_EQUAL(guests[d].wrong, 0);
    }
    CU_ASSERT_TRUE(sum.packed_blocks > 0 && sum.shared_blocks > 0);
    clean(store);
    for (unsigned d = 0; d < DISKS; d++) {
        for (uint64_t b = 0; b < DISK_BLOCKS; b++)
            CU_ASSERT_TRUE(holds(guests[d].disk, b, guests[d].number[b]));
        store_rig_release(guests[d].disk);
    }
    free(guests);
    end_store(store);
}

/* A store that is less than half full of what lives is never full for long: whoever finds no room
 * waits until the cleaner has made some. */
static void writes_wait_for_the_cleaner(void) {
    enum { CHUNK = 256, ROUNDS = 2500 }; /* blocks; 2.5 GiB */
    const struct gild_store_options options = {.threads = 1, .cache_bytes = (uint64_t)16 << 20};
    const uint64_t blocks = ((uint64_t)384 << 20) / BLOCK;
    struct gild_store *store = NULL;
    struct gild_error error = {0};
    struct gild_prng prng;
    uint8_t *bytes = malloc((size_t)CHUNK * BLOCK);
    uint64_t stamp = 0;
    unsigned refused = 0;
    gild_prng_seed(&prng, seed);
    gild_prng_fill(&prng, bytes, (size_t)CHUNK * BLOCK);
    store_rig_make(directory, (uint64_t)1 << 30);
    CU_ASSERT_EQUAL_FATAL(gild_store_open(directory, &options, &store, &error), 0);
    store_rig_deltas(store, blocks * BLOCK, 1, 1);
    struct gild_disk *disk = store_rig_disk(store, 1);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t first = gild_prng_below(&prng, blocks - CHUNK);
        for (unsigned b = 0; b < CHUNK; b++, stamp++)
            memcpy(bytes + (size_t)b * BLOCK, &stamp, sizeof stamp);
        refused += store_rig_do(disk, GILD_OP_WRITE, first * BLOCK, CHUNK * BLOCK, bytes, 0) != 0;
    }
    CU_ASSERT_EQUAL(refused, 0);
    free(bytes);
    store_rig_release(disk);
    end_store(store);
}

/* ---- which segments -------------------------------------------------------------------------- */

static struct gild_segment_fact fact(uint64_t serial, uint64_t live, uint64_t closed_s,
                                     bool nodes) {
    return (struct gild_segment_fact){serial, live, closed_s, 1001, nodes};
}

static void the_right_segments_are_chosen(void) {
    struct clean_need need = {.now_s = 10000, .available = 500, .total = 1000, .cold_s = 600};
    struct gild_segment_fact young[3] = {fact(1, 900, 9900, false), fact(2, 100, 9900, false),
                                         fact(3, 0, 100, false)};
    struct clean_choice choice = cleaner_choose(young, 3, &need);
    CU_ASSERT_EQUAL(choice.count, 0); /* there is room, and nothing is cold */
    CU_ASSERT_EQUAL(choice.urgency, CLEAN_REST);
    need.available = 20;
    choice = cleaner_choose(young, 3, &need);
    CU_ASSERT_EQUAL(choice.urgency, CLEAN_HURRY);
    CU_ASSERT_EQUAL(choice.count, 1); /* there is no room to move more */
    need.room = 22;
    choice = cleaner_choose(young, 3, &need);
    CU_ASSERT_EQUAL(choice.urgency, CLEAN_HURRY);
    CU_ASSERT_EQUAL(choice.count, 2);
    CU_ASSERT_EQUAL(choice.victims[0].serial, 2); /* the emptier one first, never the empty one */
    CU_ASSERT_FALSE(choice.pack_young);
    struct gild_segment_fact full[2] = {fact(1, 950, 9900, false), fact(2, 980, 9000, false)};
    choice = cleaner_choose(full, 2, &need);
    CU_ASSERT_TRUE(choice.pack_young); /* moving in the log would gain nothing */
    need.only_log = true;
    choice = cleaner_choose(full, 2, &need);
    CU_ASSERT_EQUAL(choice.count, 0);
    need.only_log = false;
    need.available = 500;
    struct gild_segment_fact cold[12];
    for (unsigned i = 0; i < 12; i++)
        cold[i] = fact(i, 1000, 100 + i, false);
    choice = cleaner_choose(cold, 12, &need);
    CU_ASSERT_EQUAL(choice.urgency, CLEAN_LEISURE);
    CU_ASSERT_EQUAL(choice.count, 12);
    choice = cleaner_choose(cold, 4, &need);
    CU_ASSERT_EQUAL(choice.count, 0); /* too little for a pack */
    need.all = true;
    choice = cleaner_choose(cold, 4, &need);
    CU_ASSERT_EQUAL(choice.count, 4);
    struct gild_segment_fact nodes[3] = {fact(1, 950, 100, true), fact(2, 600, 100, true),
                                         fact(3, 400, 100, true)};
    choice = cleaner_choose(nodes, 3, &need);
    CU_ASSERT_EQUAL(choice.count, 2);
}

int main(void) {
    const char *given = getenv("GILD_SEED");
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("clean", NULL, NULL);
    CU_add_test(suite, "one copy of what many wrote", one_copy_of_what_many_wrote);
    CU_add_test(suite, "zeroes are no content", zeroes_are_no_content);
    CU_add_test(suite, "written zeroes take no room", written_zeroes_take_no_room);
    CU_add_test(suite, "a pack goes with its last block", a_pack_goes_with_its_last_block);
    CU_add_test(suite, "dead blocks leave their packs", dead_blocks_leave_their_packs);
    CU_add_test(suite, "a deleted disk frees its packs", a_deleted_disk_frees_its_packs);
    CU_add_test(suite, "map nodes are moved, too", map_nodes_are_moved_too);
    CU_add_test(suite, "what was overwritten is not moved", what_was_overwritten_is_not_moved);
    CU_add_test(suite, "rot is not packed", rot_is_not_packed);
    CU_add_test(suite, "writes wait for the cleaner", writes_wait_for_the_cleaner);
    CU_add_test(suite, "guests go on meanwhile", guests_go_on_meanwhile);
    CU_add_test(suite, "the right segments are chosen", the_right_segments_are_chosen);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
