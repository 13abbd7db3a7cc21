/* The NBD server's promises: requests and replies. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "test_nbd.h"

static int open_disk(const struct nbd_rig *rig, const char *name, bool structured) {
    int fd = nbd_client_open(rig->where, name, structured, NULL);
    CU_ASSERT_FATAL(fd >= 0);
    return fd;
}

/* The stream is still in step: a request after all that went before is answered rightly. */
static void check_in_step(const struct nbd_rig *rig, int fd, bool structured) {
    uint8_t data[1536];
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_READ, 512, sizeof data, data), 0);
    CU_ASSERT(fake_disk_holds_bytes(rig->disk, 512, data, sizeof data));
}

static void both_ways(void (*check)(const struct nbd_rig *rig, int fd, bool structured)) {
    for (unsigned round = 0; round < 4; round++) {
        struct nbd_rig rig;
        nbd_rig_start(&rig);
        nbd_rig_fill(fake_disk_bytes(rig.disk), RIG_DISK_BYTES, 7);
        fake_disk_later(rig.disk, round & 2);
        int fd = open_disk(&rig, "d", round & 1);
        check(&rig, fd, round & 1);
        check_in_step(&rig, fd, round & 1);
        close(fd);
        nbd_rig_stop(&rig);
    }
}

/* ---- each command ---------------------------------------------------------------------------- */

static void check_reads(const struct nbd_rig *rig, int fd, bool structured) {
    static const uint32_t lengths[] = {
        0, 512, 4096, 65536, 65536 + 512, 1u << 20, (1u << 20) + 512, 5u << 20, 32u << 20};
    uint8_t *data = malloc(32u << 20);
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        static const uint64_t offsets[] = {0, 512, 4096 * 3 + 1024, RIG_DISK_BYTES - (32u << 20)};
        for (unsigned k = 0; k < 4; k++) {
            CU_ASSERT_EQUAL(
                nbd_client_do(fd, structured, 0, NBD_CMD_READ, offsets[k], lengths[i], data), 0);
            CU_ASSERT(fake_disk_holds_bytes(rig->disk, offsets[k], data, lengths[i]));
        }
    }
    free(data);
}

static void test_reads_of_all_lengths_give_the_disk_s_bytes(void) {
    both_ways(check_reads);
}

static void check_writes(const struct nbd_rig *rig, int fd, bool structured) {
    static const uint32_t lengths[] = {
        0, 512, 4096, 65536, 65536 + 512, 1u << 20, (1u << 20) + 512, 5u << 20, 32u << 20};
    uint8_t *data = malloc(32u << 20);
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint64_t offset = 512 * (2 * i + 5);
        nbd_rig_fill(data, lengths[i], i + 100);
        CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_WRITE, offset, lengths[i], data),
                        0);
        CU_ASSERT(fake_disk_holds_bytes(rig->disk, offset, data, lengths[i]));
    }
    CU_ASSERT_EQUAL(fake_disk_ops(rig->disk, GILD_OP_FLUSH), 0);
    free(data);
}

static void test_writes_of_all_lengths_reach_the_disk(void) {
    both_ways(check_writes);
}

static void check_flush_and_fua(const struct nbd_rig *rig, int fd, bool structured) {
    uint8_t *data = calloc(1, 3u << 20);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_FLUSH, 0, 0, NULL), 0);
    CU_ASSERT_EQUAL(fake_disk_ops(rig->disk, GILD_OP_FLUSH), 1);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_WRITE, 0, 4096, data), 0);
    CU_ASSERT_EQUAL(fake_disk_flags_seen(rig->disk) & GILD_OP_FUA, 0);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 0, 4096, data),
                    0);
    CU_ASSERT_EQUAL(fake_disk_flags_seen(rig->disk) & GILD_OP_FUA, GILD_OP_FUA);
    CU_ASSERT_EQUAL(fake_disk_ops(rig->disk, GILD_OP_FLUSH), 1);
    /* A long one: its parts, then one flush for all. */
    CU_ASSERT_EQUAL(
        nbd_client_do(fd, structured, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 0, 3u << 20, data), 0);
    CU_ASSERT_EQUAL(fake_disk_ops(rig->disk, GILD_OP_FLUSH), 2);
    /* Every command may carry FUA. */
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_FUA, NBD_CMD_READ, 0, 4096, data),
                    0);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_FUA, NBD_CMD_FLUSH, 0, 0, NULL), 0);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_FUA, NBD_CMD_CACHE, 0, 4096, NULL),
                    0);
    free(data);
}

static void test_flush_and_fua_are_passed_on(void) {
    both_ways(check_flush_and_fua);
}

static bool reads_zeroes(const struct nbd_rig *rig, uint64_t offset, size_t count) {
    uint8_t *zeroes = calloc(1, count);
    bool same = fake_disk_holds_bytes(rig->disk, offset, zeroes, count);
    free(zeroes);
    return same;
}

static void check_trim_zero_cache(const struct nbd_rig *rig, int fd, bool structured) {
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_TRIM, 1u << 20, 40u << 20, NULL), 0);
    CU_ASSERT(reads_zeroes(rig, (1u << 20), 40u << 20));
    CU_ASSERT(!reads_zeroes(rig, (41u << 20), 512));
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_FUA,
                                  NBD_CMD_WRITE_ZEROES, 41u << 20, 512, NULL),
                    0);
    CU_ASSERT(reads_zeroes(rig, (41u << 20), 512));
    CU_ASSERT(!reads_zeroes(rig, (41u << 20) + 512, 512));
    CU_ASSERT_EQUAL(fake_disk_flags_seen(rig->disk), GILD_OP_FUA);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES,
                                  8u << 20, 33u << 20, NULL),
                    0);
    CU_ASSERT_EQUAL(fake_disk_flags_seen(rig->disk), GILD_OP_FUA | GILD_OP_NO_HOLE);
    CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_CACHE, 512, 20u << 20, NULL), 0);
    CU_ASSERT_EQUAL(fake_disk_ops(rig->disk, GILD_OP_PREFETCH), 20);
    static const unsigned empty[] = {NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES};
    for (unsigned i = 0; i < 3; i++)
        CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, empty[i], 512, 0, NULL), 0);
}

static void test_trim_zeroes_and_cache_do_what_they_say(void) {
    both_ways(check_trim_zero_cache);
}

static void test_block_status_tells_holes_zeroes_and_data(void) {
    struct nbd_rig rig;
    uint8_t data[8192] = {1}, status[8 * 256];
    struct nbd_client_frame frame = {.data = status, .room = sizeof status};
    nbd_rig_start(&rig);
    int fd = open_disk(&rig, "d", true);
    CU_ASSERT_EQUAL(nbd_client_do(fd, true, 0, NBD_CMD_WRITE, 4096, 8192, data), 0);
    CU_ASSERT_EQUAL(
        nbd_client_do(fd, true, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 12288, 4096, NULL), 0);
    static const uint32_t expected[] = {
        4096, NBD_STATE_HOLE | NBD_STATE_ZERO, 8192, 0, 4096, NBD_STATE_ZERO,
        512,  NBD_STATE_HOLE | NBD_STATE_ZERO};
    CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 16384 + 512, NULL));
    CU_ASSERT(nbd_client_frame(fd, &frame));
    CU_ASSERT(frame.structured && frame.done && frame.type == NBD_REPLY_TYPE_BLOCK_STATUS);
    CU_ASSERT_EQUAL_FATAL(frame.length, sizeof expected);
    for (unsigned i = 0; i < 8; i++)
        CU_ASSERT_EQUAL(gild_get_be32(status + 4 * i), expected[i]);
    CU_ASSERT(
        nbd_client_request(fd, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 6, 4096, 512, NULL));
    CU_ASSERT(nbd_client_frame(fd, &frame));
    CU_ASSERT_EQUAL(frame.length, 8);
    CU_ASSERT_EQUAL(gild_get_be32(status), 512);
    CU_ASSERT_EQUAL(gild_get_be32(status + 4), 0);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_block_status_with_more_extents_than_fit_covers_less(void) {
    struct nbd_rig rig;
    uint8_t data[512] = {1}, status[8 * 256];
    struct nbd_client_frame frame = {.data = status, .room = sizeof status};
    nbd_rig_start(&rig);
    int fd = open_disk(&rig, "d", true);
    for (unsigned i = 0; i < 200; i++)
        CU_ASSERT_EQUAL(nbd_client_do(fd, true, 0, NBD_CMD_WRITE, i * 8192, 512, data), 0);
    CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 200 * 8192, NULL));
    CU_ASSERT(nbd_client_frame(fd, &frame));
    CU_ASSERT_EQUAL(frame.length, 8 * 256);
    close(fd);
    nbd_rig_stop(&rig);
}

/* ---- refusals -------------------------------------------------------------------------------- */

struct refusal {
    const char *disk;
    bool structured;
    unsigned flags, type;
    uint64_t offset;
    uint32_t length;
    uint32_t error;
};

static const struct refusal refusals[] = {
    {"d", true, 0, NBD_CMD_READ, RIG_DISK_BYTES - 512, 1024, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_READ, RIG_DISK_BYTES, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_READ, UINT64_MAX - 511, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_READ, 100, 512, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_READ, 512, 100, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_READ, 0, (32u << 20) + 512, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_READ, 0, UINT32_MAX, NBD_EINVAL},
    {"d", false, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {"d", true, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {"d", true, 1u << 5, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_WRITE, RIG_DISK_BYTES - 512, 1024, NBD_ENOSPC},
    {"d", false, 0, NBD_CMD_WRITE, 1, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_WRITE, 512, 511, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_WRITE, 0, (32u << 20) + 512, NBD_EINVAL},
    {"d", true, NBD_CMD_FLAG_DF, NBD_CMD_WRITE, 0, 512, NBD_EINVAL},
    {"ro", true, 0, NBD_CMD_WRITE, 0, 70000, NBD_EPERM},
    {"ro", false, 0, NBD_CMD_WRITE, 0, 0, NBD_EPERM},
    {"ro", true, 0, NBD_CMD_TRIM, 0, 512, NBD_EPERM},
    {"ro", false, 0, NBD_CMD_WRITE_ZEROES, 0, 512, NBD_EPERM},
    {"d", true, 0, NBD_CMD_TRIM, RIG_DISK_BYTES, 512, NBD_EINVAL},
    {"d", true, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_TRIM, 0, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_WRITE_ZEROES, RIG_DISK_BYTES, 512, NBD_ENOSPC},
    {"d", false, 0, NBD_CMD_WRITE_ZEROES, 512, 1, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_CACHE, 0, (32u << 20) + 512, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_CACHE, RIG_DISK_BYTES, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_FLUSH, 512, 0, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_FLUSH, 0, 512, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_BLOCK_STATUS, 0, 0, NBD_EINVAL},
    {"d", true, 0, NBD_CMD_BLOCK_STATUS, RIG_DISK_BYTES, 512, NBD_EINVAL},
    {"d", true, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_BLOCK_STATUS, 0, 512, NBD_EINVAL},
    {"d", false, 0, NBD_CMD_BLOCK_STATUS, 0, 512, NBD_EINVAL},
    {"d", true, 0, 8, 0, 512, NBD_EINVAL},
    {"d", false, 0, 65535, 0, 512, NBD_EINVAL},
};

static void test_what_can_not_be_done_is_answered_and_the_connection_lives_on(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    uint8_t *data = calloc(1, (32u << 20) + 512);
    for (unsigned i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *refusal = &refusals[i];
        struct nbd_client_frame frame = {0};
        int fd = open_disk(&rig, refusal->disk, refusal->structured);
        CU_ASSERT(nbd_client_request(fd, refusal->flags, refusal->type, 9, refusal->offset,
                                     refusal->length, data));
        CU_ASSERT(nbd_client_frame(fd, &frame));
        CU_ASSERT_EQUAL(frame.cookie, 9);
        CU_ASSERT(frame.done);
        CU_ASSERT_EQUAL(frame.structured, refusal->structured);
        CU_ASSERT_EQUAL(frame.error, refusal->error);
        if (refusal->structured)
            CU_ASSERT(strlen(frame.message) > 10);
        check_in_step(&rig, fd, refusal->structured);
        close(fd);
    }
    CU_ASSERT_EQUAL(fake_disk_ops(rig.disk, GILD_OP_WRITE), 0);
    free(data);
    nbd_rig_stop(&rig);
}

static void check_disk_errors(const struct nbd_rig *rig, int fd, bool structured) {
    static const struct {
        int err;
        int error;
    } errors[] = {{EIO, NBD_EIO},       {EBADMSG, NBD_EIO},  {ENOSPC, NBD_ENOSPC},
                  {EDQUOT, NBD_ENOSPC}, {EPERM, NBD_EPERM},  {EROFS, NBD_EPERM},
                  {EINVAL, NBD_EINVAL}, {ENOMEM, NBD_ENOMEM}};
    uint8_t *data = malloc(8u << 20);
    for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
        fake_disk_fail(rig->disk, 2u << 20, 512, errors[i].err);
        /* A short one, then long ones that fail in the middle. */
        static const uint32_t lengths[] = {4096, 5u << 20};
        for (unsigned k = 0; k < 2; k++) {
            uint64_t offset = k ? 512 : 2u << 20;
            CU_ASSERT_EQUAL(
                nbd_client_do(fd, structured, 0, NBD_CMD_WRITE, offset, lengths[k], data),
                errors[i].error);
            CU_ASSERT_EQUAL(nbd_client_do(fd, false, 0, NBD_CMD_CACHE, offset, lengths[k], NULL),
                            errors[i].error);
            if (!k || !structured)
                CU_ASSERT_EQUAL(
                    nbd_client_do(fd, structured, 0, NBD_CMD_READ, offset, lengths[k], data),
                    errors[i].error);
        }
        CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_FLUSH, 0, 0, NULL),
                        errors[i].error);
        CU_ASSERT_EQUAL(nbd_client_do(fd, structured, 0, NBD_CMD_TRIM, 2u << 20, 512, NULL),
                        errors[i].error);
        fake_disk_fail(rig->disk, 0, 0, 0);
    }
    free(data);
}

static void test_the_disk_s_errors_become_nbd_errors(void) {
    both_ways(check_disk_errors);
}

static void test_a_structured_read_that_fails_midway_says_so_in_its_last_chunk(void) {
    struct nbd_rig rig;
    uint8_t *data = malloc(2u << 20);
    struct nbd_client_frame frame = {.data = data, .room = 2u << 20};
    nbd_rig_start(&rig);
    int fd = open_disk(&rig, "d", true);
    fake_disk_fail(rig.disk, 4u << 20, 512, EIO);
    CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, 3, 0, 32u << 20, NULL));
    unsigned errors = 0;
    do {
        CU_ASSERT_FATAL(nbd_client_frame(fd, &frame));
        CU_ASSERT(frame.structured && frame.cookie == 3);
        errors += frame.error == NBD_EIO;
        if (!frame.error)
            CU_ASSERT(frame.offset != 4u << 20);
    } while (!frame.done);
    CU_ASSERT_EQUAL(errors, 1);
    CU_ASSERT_EQUAL(frame.error, NBD_EIO);
    check_in_step(&rig, fd, true);
    close(fd);
    free(data);
    nbd_rig_stop(&rig);
}

static void test_dont_fragment_gives_one_chunk_however_long(void) {
    struct nbd_rig rig;
    uint8_t *data = malloc(32u << 20);
    struct nbd_client_frame frame = {.data = data, .room = 32u << 20};
    nbd_rig_start(&rig);
    nbd_rig_fill(fake_disk_bytes(rig.disk), RIG_DISK_BYTES, 3);
    int fd = open_disk(&rig, "d", true);
    for (unsigned hold = 0; hold < 2; hold++) {
        fake_disk_hold(rig.disk, hold); /* letting go completes the parts backwards */
        CU_ASSERT(nbd_client_request(fd, NBD_CMD_FLAG_DF, NBD_CMD_READ, 3, 512, 32u << 20, NULL));
        if (hold)
            CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 32));
        fake_disk_hold(rig.disk, false);
        CU_ASSERT(nbd_client_frame(fd, &frame));
        CU_ASSERT(frame.done && frame.type == NBD_REPLY_TYPE_OFFSET_DATA && frame.offset == 512);
        CU_ASSERT_EQUAL(frame.length, 32u << 20);
        CU_ASSERT(fake_disk_holds_bytes(rig.disk, 512, data, 32u << 20));
    }
    close(fd);
    free(data);
    nbd_rig_stop(&rig);
}

/* ---- streams --------------------------------------------------------------------------------- */

/* Everything a client says from its flags to its disconnect, and what it must hear. */
struct script {
    uint8_t says[2048];
    size_t said;
};

static void say(struct script *script, const void *bytes, size_t count) {
    memcpy(script->says + script->said, bytes, count);
    script->said += count;
}

static void say_option(struct script *script, uint32_t option, const void *data, uint32_t length) {
    uint8_t header[NBD_OPTION_HEADER_BYTES];
    gild_put_be64(header, NBD_OPTION_MAGIC);
    gild_put_be32(header + 8, option);
    gild_put_be32(header + 12, length);
    say(script, header, sizeof header);
    say(script, data, length);
}

static void say_request(struct script *script, unsigned type, uint64_t offset, uint32_t length,
                        const void *payload) {
    uint8_t header[NBD_REQUEST_BYTES];
    nbd_client_header(header, 0, type, 1, offset, length);
    say(script, header, sizeof header);
    if (payload)
        say(script, payload, length);
}

static size_t write_script(struct script *script) {
    uint8_t data[64], payload[512];
    script->said = 0;
    gild_put_be32(data, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    say(script, data, 4);
    say_option(script, 99, "unknown", 7);
    size_t options = script->said;
    say_option(script, NBD_OPT_GO, data, nbd_client_go_data(data, "d", 0, NULL));
    memset(payload, 0x5a, sizeof payload);
    say_request(script, NBD_CMD_WRITE, 1024, 512, payload);
    say_request(script, NBD_CMD_READ, 512, 1024, NULL);
    say_request(script, NBD_CMD_WRITE, 100, 99, payload); /* refused */
    say_request(script, NBD_CMD_FLUSH, 0, 0, NULL);
    say_request(script, NBD_CMD_DISC, 0, 0, NULL);
    return options;
}

/* Sends the script cut in two at `cut`; the second part goes when the server has read the first. */
static bool play(const struct nbd_rig *rig, const struct script *script, size_t cut) {
    uint8_t expected[1024] = {0}, data[1024];
    struct nbd_client_reply reply;
    struct nbd_client_frame frame;
    int fd = nbd_client_connect(rig->where);
    memset(expected + 512, 0x5a, 512);
    bool good = fd >= 0 && nbd_client_send(fd, script->says, cut) && nbd_client_wait_taken(fd) &&
                nbd_client_send(fd, script->says + cut, script->said - cut);
    good = good && nbd_client_greeting(fd) && nbd_client_option_reply(fd, &reply) &&
           reply.type == NBD_REP_ERR_UNSUP;
    do
        good = good && nbd_client_option_reply(fd, &reply);
    while (good && reply.type == NBD_REP_INFO);
    good = good && reply.type == NBD_REP_ACK;
    good = good && nbd_client_frame(fd, &frame) && !frame.error;
    good = good && nbd_client_frame(fd, &frame) && !frame.error &&
           nbd_client_receive(fd, data, sizeof data) && memcmp(data, expected, sizeof data) == 0;
    good = good && nbd_client_frame(fd, &frame) && frame.error == NBD_EINVAL;
    good = good && nbd_client_frame(fd, &frame) && !frame.error && nbd_client_at_end(fd);
    close(fd);
    return good;
}

static void test_a_stream_may_be_cut_anywhere(void) {
    struct nbd_rig rig;
    struct script script;
    nbd_rig_start(&rig);
    size_t options = write_script(&script);
    unsigned wrong = 0;
    for (size_t cut = 0; cut <= script.said; cut++) {
        /* What is sent ahead of an answer is only read once that is out: nothing to wait for. */
        size_t taken = cut > options ? options : cut;
        memset(fake_disk_bytes(rig.disk) + 1024, 0, 512);
        if (!play(&rig, &script, cut)) {
            printf("cut at %zu (%zu)\n", cut, taken);
            wrong++;
        }
    }
    CU_ASSERT_EQUAL(wrong, 0);
    nbd_rig_stop(&rig);
}

/* ---- many at a time -------------------------------------------------------------------------- */

#define SLOTS 600u
#define SLOT_BYTES (96u << 10)

struct pipeline {
    int fd;
    uint64_t seed;
    bool sent;
};

/* What request i does, from the seed alone: half are writes; each has a slot of its own. */
static uint32_t slot_length(uint64_t seed, unsigned i) {
    uint8_t bits[2];
    nbd_rig_fill(bits, 2, seed * SLOTS + i);
    return bits[0] < 200 ? 512u * (1 + bits[1] % 16) : 512u * (1 + bits[1] % 192);
}

static void *send_all(void *context) {
    struct pipeline *pipeline = context;
    uint8_t *data = malloc(SLOT_BYTES);
    pipeline->sent = true;
    for (unsigned i = 0; i < SLOTS; i++) {
        uint32_t length = slot_length(pipeline->seed, i);
        nbd_rig_fill(data, length, i + 1000);
        pipeline->sent &=
            nbd_client_request(pipeline->fd, 0, i % 2 ? NBD_CMD_WRITE : NBD_CMD_READ, i,
                               (uint64_t)i * SLOT_BYTES, length, i % 2 ? data : NULL);
    }
    free(data);
    return NULL;
}

static void run_pipeline(const struct nbd_rig *rig, bool structured, uint64_t seed) {
    struct pipeline pipeline = {.fd = open_disk(rig, "d", structured), .seed = seed};
    uint8_t *data = malloc(SLOT_BYTES), *bytes = fake_disk_bytes(rig->disk);
    bool answered[SLOTS] = {0};
    unsigned wrong = 0;
    pthread_t sender;
    nbd_rig_fill(bytes, SLOTS * SLOT_BYTES, seed);
    fake_disk_hold(rig->disk, false); /* also hands the bytes over to the reactor */
    CU_ASSERT_FATAL(!pthread_create(&sender, NULL, send_all, &pipeline));
    for (unsigned n = 0; n < SLOTS; n++) {
        struct nbd_client_frame frame = {.data = data, .room = SLOT_BYTES};
        bool good = nbd_client_frame(pipeline.fd, &frame) && frame.cookie < SLOTS && frame.done &&
                    !frame.error && !answered[frame.cookie];
        CU_ASSERT_FATAL(good);
        uint32_t length = slot_length(seed, (unsigned)frame.cookie);
        answered[frame.cookie] = true;
        if (frame.cookie % 2)
            nbd_rig_fill(data, length, frame.cookie + 1000);
        else if (!frame.structured)
            CU_ASSERT(nbd_client_receive(pipeline.fd, data, length));
        wrong += !fake_disk_holds_bytes(rig->disk, frame.cookie * SLOT_BYTES, data, length);
    }
    pthread_join(sender, NULL);
    CU_ASSERT(pipeline.sent);
    CU_ASSERT_EQUAL(wrong, 0);
    close(pipeline.fd);
    free(data);
}

static void test_hundreds_of_mixed_requests_at_a_time(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    uint64_t seed = nbd_client_now_ns();
    printf("seed %llu ", (unsigned long long)seed);
    for (unsigned round = 0; round < 8; round++) {
        fake_disk_later(rig.disk, round & 2);
        run_pipeline(&rig, round & 1, seed + round);
    }
    nbd_rig_stop(&rig);
}

static void test_replies_come_in_any_order_each_with_its_cookie(void) {
    struct nbd_rig rig;
    uint8_t data[512];
    nbd_rig_start(&rig);
    nbd_rig_fill(fake_disk_bytes(rig.disk), 1u << 20, 5);
    int fd = open_disk(&rig, "d", false);
    fake_disk_hold(rig.disk, true);
    for (unsigned i = 0; i < 50; i++)
        CU_ASSERT(nbd_client_request(fd, 0, NBD_CMD_READ, 1000 + i, i * 4096, 512, NULL));
    CU_ASSERT(nbd_client_until(fake_disk_held(rig.disk) == 50));
    fake_disk_hold(rig.disk, false);
    for (unsigned i = 50; i-- > 0;) {
        struct nbd_client_frame frame;
        CU_ASSERT_FATAL(nbd_client_frame(fd, &frame));
        CU_ASSERT_EQUAL(frame.cookie, 1000 + i);
        CU_ASSERT(nbd_client_receive(fd, data, sizeof data));
        CU_ASSERT(fake_disk_holds_bytes(rig.disk, i * 4096, data, 512));
    }
    close(fd);
    nbd_rig_stop(&rig);
}

void add_request_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_reads_of_all_lengths_give_the_disk_s_bytes);
    CU_ADD_TEST(suite, test_writes_of_all_lengths_reach_the_disk);
    CU_ADD_TEST(suite, test_flush_and_fua_are_passed_on);
    CU_ADD_TEST(suite, test_trim_zeroes_and_cache_do_what_they_say);
    CU_ADD_TEST(suite, test_block_status_tells_holes_zeroes_and_data);
    CU_ADD_TEST(suite, test_block_status_with_more_extents_than_fit_covers_less);
    CU_ADD_TEST(suite, test_what_can_not_be_done_is_answered_and_the_connection_lives_on);
    CU_ADD_TEST(suite, test_the_disk_s_errors_become_nbd_errors);
    CU_ADD_TEST(suite, test_a_structured_read_that_fails_midway_says_so_in_its_last_chunk);
    CU_ADD_TEST(suite, test_dont_fragment_gives_one_chunk_however_long);
    CU_ADD_TEST(suite, test_a_stream_may_be_cut_anywhere);
    CU_ADD_TEST(suite, test_hundreds_of_mixed_requests_at_a_time);
    CU_ADD_TEST(suite, test_replies_come_in_any_order_each_with_its_cookie);
}
