/* See guest.h. What was sent is told to the oracle before it is sent, what was answered after the
 * answer was read: so the order of positions is the order in which the guest could know. */
#include "guest.h"

#include <string.h>
#include <unistd.h>

#include "nbd_client.h"

#define MOST_BLOCKS 8u

struct request {
    uint32_t first, count, generation;
    unsigned kind; /* an NBD command */
    bool fua, answered;
};

void guests_init(struct guests *guests, struct rig *rig, struct oracle *oracle, uint64_t seed) {
    *guests = (struct guests){.rig = rig, .oracle = oracle};
    gild_prng_seed(&guests->prng, seed);
}

void guests_add(struct guests *guests, struct oracle_disk *disk) {
    guests->connections[guests->count] = -1;
    guests->disks[guests->count++] = disk;
}

bool guests_connect(struct guests *guests) {
    for (unsigned i = 0; i < guests->count; i++) {
        guests->connections[i] =
            nbd_client_open(guests->rig->socket, guests->disks[i]->path, false, NULL);
        if (guests->connections[i] < 0)
            return false;
    }
    return true;
}

void guests_leave(struct guests *guests) {
    for (unsigned i = 0; i < guests->count; i++) {
        if (guests->connections[i] < 0)
            continue;
        nbd_client_request(guests->connections[i], 0, NBD_CMD_DISC, 0, 0, 0, NULL);
        close(guests->connections[i]);
        guests->connections[i] = -1;
    }
}

static bool send_one(struct guests *guests, unsigned at, struct request *request, uint64_t cookie) {
    static uint8_t bytes[MOST_BLOCKS * ORACLE_BLOCK];
    struct oracle_disk *disk = guests->disks[at];
    bool zeroes = request->kind != NBD_CMD_WRITE;
    request->generation =
        oracle_sent(disk, request->first, request->count, zeroes, rig_now(guests->rig));
    for (uint32_t i = 0; i < request->count && !zeroes; i++)
        oracle_fill(disk->id, request->first + i, request->generation, bytes + i * ORACLE_BLOCK);
    return nbd_client_request(guests->connections[at], request->fua ? NBD_CMD_FLAG_FUA : 0,
                              request->kind, cookie, (uint64_t)request->first * ORACLE_BLOCK,
                              request->count * ORACLE_BLOCK, bytes);
}

/* An answer: 0, the NBD error, or -1 (broken). */
static int answer_of(struct guests *guests, int connection, uint64_t *cookie) {
    struct nbd_client_frame frame = {0};
    if (!nbd_client_frame(connection, &frame))
        return -1;
    *cookie = frame.cookie;
    if (frame.error == NBD_EIO)
        guests->eio++;
    else if (frame.error) {
        guests->refused++;
        guests->refused_with = (int)frame.error;
    }
    return (int)frame.error;
}

static unsigned draw(struct guests *guests, unsigned at, struct request requests[GUEST_WRITES]) {
    struct oracle_disk *disk = guests->disks[at];
    unsigned count = 1 + (unsigned)gild_prng_below(&guests->prng, GUEST_WRITES);
    /* One strip of the disk for each: no two of a round overlap. */
    uint32_t strip = disk->block_count / GUEST_WRITES;
    for (unsigned i = 0; i < count; i++) {
        uint32_t blocks = 1 + (uint32_t)gild_prng_below(&guests->prng, MOST_BLOCKS);
        uint64_t odds = gild_prng_below(&guests->prng, 16);
        requests[i] = (struct request){
            .first = i * strip + (uint32_t)gild_prng_below(&guests->prng, strip - blocks + 1),
            .count = blocks,
            .kind = odds == 0   ? NBD_CMD_TRIM
                    : odds == 1 ? NBD_CMD_WRITE_ZEROES
                                : NBD_CMD_WRITE,
            .fua = odds >= 13};
    }
    return count;
}

static bool take_answers(struct guests *guests, unsigned at, struct request *requests,
                         unsigned count) {
    bool good = true;
    for (unsigned i = 0; i < count; i++) {
        uint64_t cookie = count;
        int error = answer_of(guests, guests->connections[at], &cookie);
        if (error < 0 || cookie >= count || requests[cookie].answered)
            return false;
        struct request *request = &requests[cookie];
        request->answered = true;
        good &= error == 0;
        if (error == 0)
            oracle_acknowledged(guests->disks[at], request->generation, request->first,
                                request->count, rig_now(guests->rig), request->fua);
    }
    return good;
}

static bool flush_some(struct guests *guests, unsigned which) {
    uint64_t sent[GUEST_DISKS], cookie;
    bool good = true;
    for (unsigned i = 0; i < guests->count; i++) {
        if (!(which >> i & 1))
            continue;
        sent[i] = rig_now(guests->rig);
        if (!nbd_client_request(guests->connections[i], 0, NBD_CMD_FLUSH, 0, 0, 0, NULL))
            return false;
    }
    for (unsigned i = 0; i < guests->count; i++) {
        if (!(which >> i & 1))
            continue;
        int error = answer_of(guests, guests->connections[i], &cookie);
        if (error == 0)
            oracle_flushed(guests->disks[i], sent[i], rig_now(guests->rig));
        good &= error == 0;
    }
    return good;
}

bool guests_round(struct guests *guests) {
    struct request requests[GUEST_DISKS][GUEST_WRITES];
    unsigned counts[GUEST_DISKS];
    bool good = true;
    for (unsigned i = 0; i < guests->count; i++) {
        counts[i] = draw(guests, i, requests[i]);
        for (unsigned k = 0; k < counts[i]; k++)
            if (!send_one(guests, i, &requests[i][k], k))
                return false;
    }
    for (unsigned i = 0; i < guests->count; i++)
        good &= take_answers(guests, i, requests[i], counts[i]);
    return good && flush_some(guests, (unsigned)gild_prng_next(&guests->prng));
}

bool guests_flush(struct guests *guests) {
    return flush_some(guests, ~0u);
}

bool guests_checkpoint(struct guests *guests) {
    uint64_t sent = rig_now(guests->rig);
    if (!rig_checkpoint(guests->rig))
        return false;
    for (unsigned i = 0; i < guests->count; i++)
        oracle_flushed(guests->disks[i], sent, rig_now(guests->rig));
    return true;
}
