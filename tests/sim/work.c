/* See machine.h: guests' ops. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/queue.h"
#include "own.h"
#include "sim_threads.h"

#define MOST_SLOTS 24u
#define MOST_EXTENTS 64u
#define FILL_WRITES 8u

struct slot {
    struct gild_op op;
    struct iovec payload;
    struct gild_piece pieces[GILD_OP_MAX_PIECES];
    struct gild_extent extents[MOST_EXTENTS];
    enum machine_op kind;
    bool busy;
    int space;         /* when it was sent */
    struct disk *disk; /* NULL: an image is read */
    struct image *image;
    enum oracle_mode mode;
    uint32_t first, count, generation;
    uint64_t moment;
    uint8_t bytes[MOST_SECTORS * ORACLE_SECTOR];
};

static struct slot slots[MOST_SLOTS];

void work_reset(void) {
    machine.busy = 0;
    for (unsigned i = 0; i < MOST_SLOTS; i++)
        if (slots[i].busy) /* what is not written stays shared with the process before */
            slots[i].busy = false;
    for (unsigned i = 0; i < DISKS; i++)
        machine.disks[i].busy = 0;
}

/* ---- an op's end ----------------------------------------------------------------------------- */

static size_t gather(const struct gild_op *op, uint8_t *out) {
    size_t at = 0;
    for (uint32_t i = 0; i < op->piece_count; i++) {
        memcpy(out + at, op->pieces[i].data, op->pieces[i].bytes);
        at += op->pieces[i].bytes;
    }
    return at;
}

static void check_image(const struct slot *slot, const uint8_t *bytes) {
    uint8_t wanted[CONTENT_SECTOR];
    for (uint32_t i = 0; i < slot->count; i++) {
        content_sector(&slot->image->content, slot->first + i, wanted);
        if (memcmp(wanted, bytes + (size_t)i * CONTENT_SECTOR, CONTENT_SECTOR) != 0) {
            fprintf(stderr, "image %s, sector %u is not as it was\n", slot->image->name,
                    slot->first + i);
            machine_fail(machine_damaged() ? WRONG_ROT : WRONG_BYTES, "a read of an image",
                         "answers what was never in it");
        }
    }
}

static void check_read(struct slot *slot) {
    uint8_t got[MOST_SECTORS * ORACLE_SECTOR];
    if (gather(&slot->op, got) != (size_t)slot->count * ORACLE_SECTOR)
        machine_fail(WRONG_BYTES, "a read", "answers too little");
    if (!slot->disk) {
        check_image(slot, got);
        return;
    }
    struct oracle *oracle = &slot->disk->oracle;
    if (oracle_read(oracle, slot->first, slot->count, got, slot->mode))
        return;
    if (machine_damaged())
        machine_fail(WRONG_ROT, "a read", "answers what a damaged disk gave");
    if (oracle_read(oracle, slot->first, slot->count, got, ORACLE_STALE))
        machine_fail(WRONG_LOST, "a read", "answers what was there before");
    machine_fail(WRONG_BYTES, "a read", "answers what may not be there");
}

static void check_status(struct slot *slot) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < slot->op.extent_count; i++) {
        const struct gild_extent *extent = &slot->op.extents[i];
        if (!extent->bytes || extent->bytes % ORACLE_SECTOR ||
            at + extent->bytes > (uint64_t)slot->count * ORACLE_SECTOR)
            machine_fail(WRONG_BYTES, "block status", "an extent of an impossible length");
        if (!oracle_status(&slot->disk->oracle, slot->first + (uint32_t)(at / ORACLE_SECTOR),
                           (uint32_t)(extent->bytes / ORACLE_SECTOR),
                           extent->flags & GILD_EXTENT_HOLE, extent->flags & GILD_EXTENT_ZERO))
            machine_fail(WRONG_BYTES, "block status", "is not what was written");
        at += extent->bytes;
    }
    if (!at)
        machine_fail(WRONG_BYTES, "block status", "answers nothing");
}

/* Trims and zeroes of whole blocks need no room: the reserve has it for them, while it can be made
 * good. */
static bool needs_room(const struct slot *slot) {
    switch (slot->kind) {
    case MACHINE_WRITE:
    case MACHINE_WRITE_PART:
    case MACHINE_WRITE_FUA:
    case MACHINE_FILL:
        return true;
    case MACHINE_TRIM:
    case MACHINE_ZERO:
    case MACHINE_ZERO_NO_HOLE:
        return slot->first % 8 || slot->count % 8 || slot->space == NOTHING_LEFT ||
               machine.space == NOTHING_LEFT;
    default:
        return false;
    }
}

static void check_end(struct slot *slot) {
    struct gild_op *op = &slot->op;
    if (op->error && needs_room(slot) && machine_lacked_space(op->error, slot->space))
        return;
    if (op->error) {
        char what[64];
        snprintf(what, sizeof what, "op %u of sectors %u to %u fails", (unsigned)slot->kind,
                 slot->first, slot->first + slot->count);
        machine_failed(what, strerror(-op->error));
        machine.counts->detected += machine_damaged();
        if (slot->disk && slot->mode == ORACLE_STALE)
            oracle_unread(&slot->disk->oracle, slot->first, slot->count);
        return;
    }
    switch (slot->kind) {
    case MACHINE_READ:
        check_read(slot);
        break;
    case MACHINE_STATUS:
        check_status(slot);
        break;
    case MACHINE_FLUSH:
        oracle_flushed(&slot->disk->oracle, slot->moment);
        break;
    default:
        oracle_acknowledged(&slot->disk->oracle, slot->generation, slot->first, slot->count,
                            ++machine.moment, op->flags & GILD_OP_FUA);
        break;
    }
}

/* On the disk's reactor. */
static void on_end(struct gild_op *op) {
    struct slot *slot = gild_container_of(op, struct slot, op);
    check_end(slot);
    gild_op_release(op);
    slot->busy = false;
    if (slot->disk)
        slot->disk->busy--;
    machine.busy--;
    sim_wake(&machine.busy);
}

/* ---- sending --------------------------------------------------------------------------------- */

static void wait_ops(void) {
    while (machine.busy)
        sim_wait(&machine.busy, SIM_FOREVER);
}

void machine_wait_all(void) {
    admin_wait();
    wait_ops();
}

void work_wait_disk(struct disk *disk) {
    while (disk->busy)
        sim_wait(&machine.busy, SIM_FOREVER);
}

static struct slot *free_slot(unsigned most) {
    while (machine.busy >= most || machine.busy == MOST_SLOTS)
        sim_wait(&machine.busy, SIM_FOREVER);
    unsigned i = 0;
    while (slots[i].busy)
        i++;
    return &slots[i];
}

static void post(struct slot *slot, struct gild_disk *disk, enum gild_op_kind kind,
                 uint32_t flags) {
    slot->payload = (struct iovec){slot->bytes, (size_t)slot->count * ORACLE_SECTOR};
    slot->op = (struct gild_op){
        .disk = disk,
        .kind = kind,
        .flags = flags,
        .offset_bytes = (uint64_t)slot->first * ORACLE_SECTOR,
        .length_bytes = (uint64_t)slot->count * ORACLE_SECTOR,
        .payload = &slot->payload,
        .payload_count = kind == GILD_OP_WRITE,
        .pieces = slot->pieces,
        .piece_limit = GILD_OP_MAX_PIECES,
        .extents = slot->extents,
        .extent_limit = MOST_EXTENTS,
        .done = on_end,
    };
    slot->space = machine.space;
    slot->busy = true;
    machine.busy++;
    if (slot->disk)
        slot->disk->busy++;
    gild_disk_post(&slot->op);
}

/* ---- reading everything ---------------------------------------------------------------------- */

static void read_whole(struct gild_disk *from, struct disk *disk, struct image *image,
                       enum oracle_mode mode, uint32_t sectors) {
    for (uint32_t at = 0; at < sectors;) {
        struct slot *slot = free_slot(8);
        slot->disk = disk;
        slot->image = image;
        slot->kind = MACHINE_READ;
        slot->mode = mode;
        slot->first = at;
        slot->count = sectors - at < MOST_SECTORS ? sectors - at : MOST_SECTORS;
        at += slot->count;
        post(slot, from, GILD_OP_READ, 0);
    }
    wait_ops();
}

void work_read_disk(struct disk *disk, enum oracle_mode mode) {
    read_whole(disk->disk, disk, NULL, mode, disk->oracle.sector_count);
}

void work_read_image(struct image *image) {
    struct gild_error error = {0};
    struct gild_disk *disk;
    char path[40];
    bool writable;
    snprintf(path, sizeof path, "images/%s@1", image->name);
    if (gild_disk_open(machine.store, path, "test", 0, &disk, &writable, &error)) {
        machine_failed("an image does not open", error.message);
        return;
    }
    if (gild_disk_size_bytes(disk) != (uint64_t)image->content.sectors * CONTENT_SECTOR)
        machine_fail(WRONG_BYTES, "an image", "has another size");
    read_whole(disk, NULL, image, ORACLE_CURRENT, image->content.sectors);
    gild_disk_close(disk, "test", false);
}

/* ---- work ------------------------------------------------------------------------------------ */

static bool overlaps(const struct slot *mine) {
    for (unsigned i = 0; i < MOST_SLOTS; i++) {
        const struct slot *slot = &slots[i];
        if (slot->busy && slot != mine && slot->disk == mine->disk && slot->kind != MACHINE_FLUSH &&
            slot->first < mine->first + mine->count && mine->first < slot->first + slot->count)
            return true;
    }
    return false;
}

static struct disk *some_disk(void) {
    for (;;) {
        struct disk *disk = &machine.disks[sim_below(sim_chance(500) ? BASES : DISKS)];
        if (disk->disk && !disk->leaving)
            return disk;
    }
}

static bool any_disk(void) {
    for (unsigned i = 0; i < BASES; i++)
        if (machine.disks[i].disk)
            return true;
    return false;
}

/* A place of some disk: mostly a few blocks that are met again and again. */
static void choose_place(struct slot *slot, uint32_t most, bool part) {
    slot->disk = some_disk();
    uint32_t sectors = slot->disk->oracle.sector_count;
    if (part) {
        slot->count = 1 + (uint32_t)sim_below(20);
        slot->first = (uint32_t)sim_below(sectors);
    } else {
        slot->count = 8 * (1 + (uint32_t)sim_below(sim_chance(700) ? 2 : most / 8));
        slot->first = 8 * (uint32_t)sim_below(sectors / 8 + 1);
    }
    if (slot->count > sectors)
        slot->count = sectors;
    if (sim_chance(600))
        slot->first = slot->first % 256;
    if (slot->first + slot->count > sectors)
        slot->first = sectors - slot->count;
}

static struct slot *prepare(enum machine_op op, unsigned most) {
    bool large = op == MACHINE_TRIM || op == MACHINE_ZERO || op == MACHINE_ZERO_NO_HOLE ||
                 op == MACHINE_STATUS;
    bool part = op == MACHINE_WRITE_PART || (op != MACHINE_WRITE && sim_chance(200));
    struct slot *slot = free_slot(most);
    slot->kind = op;
    slot->mode = ORACLE_CURRENT;
    slot->image = NULL;
    choose_place(slot, large ? 2048 : MOST_SECTORS, part);
    for (unsigned tries = 1; op != MACHINE_FLUSH && overlaps(slot); tries++) {
        if (tries % 16 == 0) /* what is under way may cover all that there is */
            sim_wait(&machine.busy, SIM_FOREVER);
        choose_place(slot, large ? 2048 : MOST_SECTORS, part);
    }
    return slot;
}

static void send_write(struct slot *slot, bool fua) {
    struct oracle *oracle = &slot->disk->oracle;
    slot->generation = oracle_sent(oracle, slot->first, slot->count, ORACLE_DATA);
    oracle_fill(oracle, slot->generation, slot->first, slot->count, slot->bytes);
    post(slot, slot->disk->disk, GILD_OP_WRITE, fua ? GILD_OP_FUA : 0);
}

static void send_zeroes(struct slot *slot) {
    bool stays = slot->kind == MACHINE_ZERO_NO_HOLE;
    slot->generation = oracle_sent(&slot->disk->oracle, slot->first, slot->count,
                                   stays ? ORACLE_ZERO : ORACLE_HOLE);
    post(slot, slot->disk->disk, slot->kind == MACHINE_TRIM ? GILD_OP_TRIM : GILD_OP_ZERO,
         (sim_chance(200) ? GILD_OP_FUA : 0) | (stays ? GILD_OP_NO_HOLE : 0));
}

/* More than a segment, mostly over the same blocks, so that the ones before become empty. */
static void fill(unsigned most) {
    for (unsigned i = 0; i < FILL_WRITES && any_disk(); i++) {
        struct slot *slot = prepare(MACHINE_WRITE, most > 4 ? most : 4);
        uint32_t sectors = slot->disk->oracle.sector_count;
        slot->first = 0;
        slot->count = MOST_SECTORS;
        if (slot->count > sectors)
            slot->count = sectors;
        while (overlaps(slot) && slot->first + 2 * slot->count <= sectors)
            slot->first += slot->count;
        while (overlaps(slot))
            sim_wait(&machine.busy, SIM_FOREVER);
        send_write(slot, false);
    }
}

static void reopen(void) {
    machine_off();
    /* What lies on a shelf may rot. */
    if (sim_chance(300) && machine.may_rot)
        sim_disk_rot();
    if (!machine_on())
        machine_end();
}

void machine_do(enum machine_op op, unsigned most) {
    if (op >= MACHINE_IMPORT) {
        admin_do(op);
        return;
    }
    machine.counts->ops[op]++;
    if (op == MACHINE_CHECKPOINT) {
        struct gild_error error = {0};
        if (gild_store_checkpoint(machine.store, &error))
            machine_failed("a checkpoint", error.message);
        return;
    }
    if (op == MACHINE_REOPEN) {
        reopen();
        return;
    }
    if (op == MACHINE_FILL) {
        fill(most);
        return;
    }
    if (!any_disk())
        return;
    struct slot *slot = prepare(op, most);
    switch (op) {
    case MACHINE_WRITE:
    case MACHINE_WRITE_PART:
    case MACHINE_WRITE_FUA:
        send_write(slot, op == MACHINE_WRITE_FUA);
        break;
    case MACHINE_TRIM:
    case MACHINE_ZERO:
    case MACHINE_ZERO_NO_HOLE:
        send_zeroes(slot);
        break;
    case MACHINE_FLUSH:
        slot->first = slot->count = 0;
        slot->moment = ++machine.moment;
        post(slot, slot->disk->disk, GILD_OP_FLUSH, 0);
        break;
    default:
        post(slot, slot->disk->disk, op == MACHINE_READ ? GILD_OP_READ : GILD_OP_EXTENTS, 0);
        break;
    }
}

void machine_random_op(unsigned most) {
    static const unsigned of_1000[MACHINE_OPS] = {
        [MACHINE_WRITE] = 318,       [MACHINE_WRITE_PART] = 80, [MACHINE_WRITE_FUA] = 60,
        [MACHINE_FLUSH] = 120,       [MACHINE_TRIM] = 50,       [MACHINE_ZERO] = 30,
        [MACHINE_ZERO_NO_HOLE] = 30, [MACHINE_READ] = 130,      [MACHINE_STATUS] = 40,
        [MACHINE_FILL] = 30,         [MACHINE_CHECKPOINT] = 16, [MACHINE_REOPEN] = 8,
        [MACHINE_IMPORT] = 12,       [MACHINE_CLONE] = 20,      [MACHINE_CLONE_DELETE] = 16,
        [MACHINE_IMAGE_DELETE] = 10, [MACHINE_CHECK] = 6,       [MACHINE_COLLECT] = 12,
        [MACHINE_CLEAN] = 12,
    };
    uint64_t pick = sim_below(1000);
    unsigned op = 0;
    while (op + 1 < MACHINE_OPS && pick >= of_1000[op])
        pick -= of_1000[op++];
    machine_do((enum machine_op)op, most);
}
