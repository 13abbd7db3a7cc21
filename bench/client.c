/* bench_client: does one row of the comparison against one server, and prints one JSON line.
 *
 *   bench_client --row ROW --target SOCKET,EXPORT [--target ...] | --file PATH
 *                [--depth N] [--seconds S] [--seed N] [--ranges FILE] [--image FILE]
 *                [--region BYTES] [--verify N] [--warm N]
 *
 * The same program, with the same requests, for every server. What is not the row itself is not
 * timed: warming passes (read rows and the storm, through one clone), writing the region
 * (overwrite, flushed), checking afterwards. The clock runs from the first request to the last
 * reply, the final flush included.
 *
 * Failure: any error reply, protocol error or wrong content ends it with status 1 and no JSON. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "file_rows.h"
#include "lane.h"
#include "work.h"

#define TARGETS_MAX 256u

struct run {
    const char *row;
    enum work_kind kind;
    unsigned depth;
    double seconds;
    uint64_t seed, region_bytes;
    const char *ranges, *image, *file;
    char *targets[TARGETS_MAX];
    unsigned target_count, verify, warm;
    struct work work;
    struct lane *lanes;
    uint64_t elapsed_ns;
    unsigned clones_used, verified;
};

static const struct {
    const char *name;
    enum work_kind kind;
    unsigned depth;
} rows[] = {
    {"read4k", WORK_READ4K, 32},       {"read1m", WORK_READ1M, 8},   {"first", WORK_FIRST, 32},
    {"overwrite", WORK_OVERWRITE, 32}, {"flushed", WORK_FLUSHED, 1}, {"replay", WORK_REPLAY, 8},
};

static void on_reply(void *context, struct lane *lane, struct lane_slot *slot) {
    struct run *run = context;
    work_done(&run->work, lane, slot, work_now_ns());
}

static int refill(struct run *run, struct lane *lane) {
    struct lane_slot *slot;
    while ((slot = lane_take(lane)) != NULL) {
        if (!work_next(&run->work, lane, slot)) {
            lane->idle[lane->idle_count++] = (unsigned)(slot - lane->slots);
            break;
        }
        lane_queue(lane, slot, run->work.pool, work_now_ns());
    }
    return lane_send(lane) < 0 ? -1 : 0;
}

/* One connection: receive, refill, send, until nothing is in flight. */
static int drive_one(struct run *run, struct lane *lane) {
    if (refill(run, lane)) {
        return -1;
    }
    while (lane->in_flight) {
        if (lane_receive(lane, true, on_reply, run) || refill(run, lane)) {
            return -1;
        }
    }
    return 0;
}

static int drive_many(struct run *run) {
    struct epoll_event events[64];
    int result = -1, poller = epoll_create1(EPOLL_CLOEXEC);
    unsigned busy = 0;
    for (unsigned i = 0; i < run->target_count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &run->lanes[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, run->lanes[i].fd, &event) ||
            refill(run, &run->lanes[i])) {
            goto out;
        }
        busy += run->lanes[i].in_flight > 0;
    }
    while (busy) {
        int count = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct lane *lane = events[i].data.ptr;
            if (lane_receive(lane, false, on_reply, run) || refill(run, lane)) {
                goto out;
            }
            struct epoll_event event = {.events = EPOLLIN, .data.ptr = lane};
            if (lane->out_count) {
                event.events |= EPOLLOUT;
            }
            if ((lane->out_count || events[i].events & EPOLLOUT) &&
                epoll_ctl(poller, EPOLL_CTL_MOD, lane->fd, &event)) {
                goto out;
            }
            busy -= lane->in_flight == 0;
        }
    }
    result = 0;
out:
    close(poller);
    return result;
}

/* Runs one kind of work on all lanes, timed. First writes take the clones one after another. */
static int drive(struct run *run, enum work_kind kind, double seconds) {
    int result = 0;
    work_begin(&run->work, kind, seconds);
    uint64_t start = work_now_ns();
    if (run->file) {
        result = file_rows_run(run->file, run->depth, &run->work);
    } else if (kind == WORK_FIRST) {
        run->clones_used = 0;
        for (unsigned i = 0; i < run->target_count && !result && !run->work.stopping; i++) {
            result = drive_one(run, &run->lanes[i]);
            run->clones_used++;
        }
    } else if (run->target_count == 1) {
        result = drive_one(run, &run->lanes[0]);
    } else {
        result = drive_many(run);
    }
    run->elapsed_ns = work_now_ns() - start;
    return result;
}

/* One request, waited for, its payload copied to `to`. */
static int read_block(struct run *run, struct lane *lane, uint64_t block, uint8_t *to) {
    struct lane_slot *slot = lane_take(lane);
    slot->command = LANE_READ;
    slot->offset = block * LANE_BLOCK;
    slot->bytes = LANE_BLOCK;
    lane->copy_to = to;
    lane_queue(lane, slot, run->work.pool, work_now_ns());
    while (lane->in_flight) {
        if (lane_send(lane) < 0 || lane_receive(lane, true, on_reply, run)) {
            return -1;
        }
    }
    lane->copy_to = NULL;
    return 0;
}

static bool expected(struct run *run, const struct lane *lane, uint64_t block, int image,
                     uint8_t *to) {
    const struct work *work = &run->work;
    const uint32_t *turns = work->clones[lane->number].turns;
    if (turns && turns[block]) {
        struct lane_stamp stamp = {.where = (uint64_t)lane->number << 40 | block,
                                   .turn = turns[block] ^ work->seed << 32};
        memcpy(to, &stamp, sizeof stamp);
        memcpy(to + sizeof stamp, work->pool + lane_content_offset(&stamp),
               LANE_BLOCK - sizeof stamp);
        return true;
    }
    return image >= 0 &&
           pread(image, to, LANE_BLOCK, (off_t)(block * LANE_BLOCK)) == (ssize_t)LANE_BLOCK;
}

/* Reads a sample back: what was written must be what was sent, what was not must be the image. */
static int verify(struct run *run) {
    uint8_t got[LANE_BLOCK], want[LANE_BLOCK];
    uint64_t random = run->seed ^ 0xc4ecu;
    int result = 0, image = run->image ? open(run->image, O_RDONLY | O_CLOEXEC) : -1;
    unsigned tries = run->verify * 64u;
    while (run->verified < run->verify && tries-- && !result) {
        struct lane *lane = &run->lanes[work_random(&random) % run->target_count];
        const uint32_t *turns = run->work.clones[lane->number].turns;
        uint64_t block = work_random(&random) % (run->work.size_bytes / LANE_BLOCK);
        if (tries % 4 == 0) {
            block = run->work.blocks[work_random(&random) % run->work.block_count];
        }
        if ((tries % 4 && turns && !turns[block]) || !expected(run, lane, block, image, want)) {
            continue;
        }
        result = read_block(run, lane, block, got);
        if (!result && memcmp(got, want, LANE_BLOCK) != 0) {
            fprintf(stderr, "clone %u, block %llu: wrong content\n", lane->number,
                    (unsigned long long)block);
            result = -1;
        }
        run->verified++;
    }
    if (image >= 0) {
        close(image);
    }
    return result;
}

static int open_targets(struct run *run) {
    run->lanes = calloc(run->target_count ? run->target_count : 1, sizeof *run->lanes);
    for (unsigned i = 0; run->lanes && i < run->target_count; i++) {
        char *comma = strchr(run->targets[i], ',');
        if (!comma) {
            fprintf(stderr, "--target wants SOCKET,EXPORT\n");
            return -1;
        }
        *comma = 0;
        if (lane_open(&run->lanes[i], run->targets[i], comma + 1, run->depth)) {
            return -1;
        }
        run->lanes[i].number = i;
    }
    return run->lanes ? 0 : -1;
}

/* The row with what goes before it. */
static int measure(struct run *run) {
    bool warm = run->kind == WORK_READ4K || run->kind == WORK_READ1M || run->kind == WORK_REPLAY;
    for (unsigned i = 0; warm && i < run->warm; i++) {
        if (drive(run, WORK_WARM, 0)) {
            return -1;
        }
    }
    if ((run->kind == WORK_OVERWRITE || run->kind == WORK_FLUSHED) && drive(run, WORK_PREPARE, 0)) {
        return -1;
    }
    return drive(run, run->kind, run->seconds);
}

static void report(const struct run *run) {
    const struct work *work = &run->work;
    double seconds = (double)run->elapsed_ns / 1e9;
    printf(
        "{\"row\": \"%s\", \"depth\": %u, \"connections\": %u, \"seed\": %llu, "
        "\"seconds\": %.3f, \"operations\": %llu, \"reads\": %llu, \"ops_per_s\": %.1f, "
        "\"mb_per_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
        "\"clones_used\": %u, \"verified\": %u}\n",
        run->row, run->depth, run->target_count, (unsigned long long)run->seed, seconds,
        (unsigned long long)work->operations, (unsigned long long)work->reads,
        (double)work->operations / seconds, (double)work->bytes / 1e6 / seconds,
        (double)histogram_quantile_ns(&work->latencies, 50000) / 1e3,
        (double)histogram_quantile_ns(&work->latencies, 99000) / 1e3,
        (double)histogram_quantile_ns(&work->latencies, 99900) / 1e3, run->clones_used,
        run->verified);
}

static int usage(void) {
    fprintf(stderr,
            "usage: bench_client --row read4k|read1m|first|overwrite|flushed|replay\n"
            "         --target SOCKET,EXPORT [--target ...] | --file PATH\n"
            "         [--depth N] [--seconds S] [--seed N] [--ranges FILE] [--image FILE]\n"
            "         [--region BYTES] [--verify N] [--warm PASSES]\n");
    return 2;
}

static bool choose_row(struct run *run, const char *name) {
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            run->row = rows[i].name;
            run->kind = rows[i].kind;
            run->depth = run->depth ? run->depth : rows[i].depth;
            return true;
        }
    }
    return false;
}

static bool take_options(struct run *run, int argc, char **argv) {
    static const struct option options[] = {
        {"row", 1, NULL, 'r'},    {"target", 1, NULL, 't'},  {"file", 1, NULL, 'f'},
        {"depth", 1, NULL, 'd'},  {"seconds", 1, NULL, 's'}, {"seed", 1, NULL, 'S'},
        {"ranges", 1, NULL, 'R'}, {"image", 1, NULL, 'i'},   {"region", 1, NULL, 'g'},
        {"verify", 1, NULL, 'v'}, {"warm", 1, NULL, 'w'},    {NULL, 0, NULL, 0}};
    const char *row = "";
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'r':
            row = optarg;
            break;
        case 't':
            if (run->target_count == TARGETS_MAX) {
                return false;
            }
            run->targets[run->target_count++] = optarg;
            break;
        case 'f':
            run->file = optarg;
            break;
        case 'd':
            run->depth = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 's':
            run->seconds = strtod(optarg, NULL);
            break;
        case 'S':
            run->seed = strtoull(optarg, NULL, 0);
            break;
        case 'R':
            run->ranges = optarg;
            break;
        case 'i':
            run->image = optarg;
            break;
        case 'g':
            run->region_bytes = strtoull(optarg, NULL, 0);
            break;
        case 'v':
            run->verify = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'w':
            run->warm = (unsigned)strtoul(optarg, NULL, 0);
            break;
        default:
            return false;
        }
    }
    return choose_row(run, row) && run->depth <= LANE_DEPTH_MAX &&
           (run->file ? run->kind <= WORK_READ1M && !run->target_count : run->target_count > 0);
}

int main(int argc, char **argv) {
    static struct run run = {.seconds = 10, .seed = 1, .region_bytes = 512u << 20, .warm = 1};
    if (!take_options(&run, argc, argv)) {
        return usage();
    }
    if (open_targets(&run)) {
        return 1;
    }
    uint64_t size = run.file ? file_rows_size(run.file) : run.lanes[0].size_bytes;
    unsigned clones = run.file ? 1 : run.target_count;
    if (!size || !work_init(&run.work, run.seed, size, clones, run.region_bytes, run.ranges) ||
        measure(&run)) {
        return 1;
    }
    struct work timed = run.work;
    if (!run.file && verify(&run)) {
        return 1;
    }
    run.work = timed;
    report(&run);
    for (unsigned i = 0; i < run.target_count; i++) {
        lane_close(&run.lanes[i]);
    }
    return 0;
}
