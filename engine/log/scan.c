/* See scan.h.
 *
 *   segments --(each to one thread)--> window of 2 MiB over its file --> header? -> keep, verify
 * payload none?   -> look for the next
 *
 * A segment is read from front to back through a window that is filled as far as it goes, so that
 * the device sees few large reads; while one thread hashes, others have theirs on the way. Where a
 * large read fails, what is needed at the moment is read alone: a bad sector in a part that nobody
 * needs keeps no store from opening.
 *
 * Invariants: a segment is one thread's until all are joined; what is found does not depend on the
 * number of threads. Memory: 128 bytes a batch and 32 an entry above the checkpoint, so a hundredth
 * of the log where it is data, and as much as the log where it is trims alone.
 *
 * Failure modes: a device that does not give what is needed, no memory: the first in order of
 * segments is told. Threads that can not be started are done without. */
#include "log/scan.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "io/file.h"

#define READERS 4u
#define WINDOW_BLOCKS 512u
#define CHUNK_BYTES (256u << 10)

struct log_chunk {
    struct log_chunk *next;
    size_t used;
    uint64_t bytes[CHUNK_BYTES / sizeof(uint64_t)];
};

struct work {
    const uint8_t *store_id;
    log_scan_settled *settled;
    const void *context;
    struct gild_segment **segments;
    size_t count, room;
    struct reader *readers;
    _Atomic bool failed;
};

struct reader {
    struct work *work;
    struct gild_segment *segment; /* that the window lies on */
    uint8_t *window;
    uint32_t window_blocks, at, have; /* blocks [at, at + have) of the segment are in it */
    struct log_batch *batches;
    size_t count, room;
    struct log_chunk *chunks;
    uint64_t begun_segments;
    size_t failed_at;
    int err;
};

bool log_payload_good(const struct gild_batch_header *header, const uint8_t *payload) {
    for (uint32_t i = 0, at = 0; i < header->entry_count; i++) {
        const struct gild_log_entry *entry = &header->entries[i];
        if (entry->kind < GILD_ENTRY_DATA || entry->kind > GILD_ENTRY_NODE)
            return false;
        if (entry->kind == GILD_ENTRY_HOLE || entry->kind == GILD_ENTRY_ZERO)
            continue;
        if (at == header->payload_blocks ||
            entry->check != gild_log_check(payload + (size_t)at * GILD_LOG_BLOCK, header->serial,
                                           entry->delta, entry->block))
            return false;
        at++;
    }
    return true;
}

/* ---- keeping --------------------------------------------------------------------------------- */

static void *keep_bytes(struct reader *r, const void *bytes, size_t length) {
    struct log_chunk *chunk = r->chunks;
    if (!chunk || sizeof chunk->bytes - chunk->used < length) {
        chunk = malloc(sizeof *chunk);
        if (!chunk)
            return NULL;
        chunk->used = 0;
        chunk->next = r->chunks;
        r->chunks = chunk;
    }
    void *kept = (uint8_t *)chunk->bytes + chunk->used;
    memcpy(kept, bytes, length);
    chunk->used += length;
    return kept;
}

static int keep(struct reader *r, const struct gild_batch_header *header, bool entries) {
    if (r->count == r->room) {
        size_t room = r->room ? 2 * r->room : 1024;
        struct log_batch *grown = realloc(r->batches, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        r->batches = grown;
        r->room = room;
    }
    size_t length = offsetof(struct gild_batch_header, entries);
    if (entries)
        length += header->entry_count * sizeof header->entries[0];
    struct log_batch *batch = &r->batches[r->count];
    *batch = (struct log_batch){r->segment, keep_bytes(r, header, length), 0};
    if (!batch->header)
        return -ENOMEM;
    r->count++;
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* `count` blocks from `offset` on are in the window: *blocks. More is read with them: as much as
 * there is room for, or (not ahead) as one batch can be long. */
static int look_at(struct reader *r, uint32_t offset, uint32_t count, bool ahead,
                   const void **blocks) {
    if (offset < r->at || offset - r->at + count > r->have) {
        uint32_t kept =
            offset >= r->at && offset - r->at < r->have ? r->have - (offset - r->at) : 0;
        if (kept)
            memmove(r->window, r->window + (size_t)(offset - r->at) * GILD_LOG_BLOCK,
                    (size_t)kept * GILD_LOG_BLOCK);
        r->at = offset;
        r->have = kept;
        uint32_t from = offset + kept, most = r->segment->blocks - from;
        uint32_t want = r->window_blocks - kept;
        if (!ahead && want > GILD_BATCH_ENTRIES + 1)
            want = GILD_BATCH_ENTRIES + 1;
        want = want < most ? want : most;
        uint8_t *to = r->window + (size_t)kept * GILD_LOG_BLOCK;
        int err = gild_file_read(r->segment->fd, to, (size_t)want * GILD_LOG_BLOCK,
                                 (uint64_t)from * GILD_LOG_BLOCK);
        if (err && want > count - kept) {
            want = count - kept;
            err = gild_file_read(r->segment->fd, to, (size_t)want * GILD_LOG_BLOCK,
                                 (uint64_t)from * GILD_LOG_BLOCK);
        }
        if (err)
            return err;
        r->have += want;
    }
    *blocks = r->window + (size_t)(offset - r->at) * GILD_LOG_BLOCK;
    return 0;
}

/* The offset of the first whole header from `offset` on, the size of the segment if there is none:
 * looked for where a header should be and is not. Beyond a torn tail there is nothing, or batches
 * that were in flight with it; beyond a rotten header are those that say that it was durable. A
 * segment that nobody seems to have begun is looked at for the length of one batch. */
static int next_header(struct reader *r, bool all, uint32_t *offset) {
    const struct gild_segment *segment = r->segment;
    uint32_t end = segment->blocks, most = GILD_BATCH_ENTRIES + 1;
    if (!all && end - *offset > most)
        end = *offset + most;
    for (; *offset < end; ++*offset) {
        const void *block;
        int err = look_at(r, *offset, 1, all, &block);
        if (err ||
            gild_batch_valid(block, r->work->store_id, segment->serial, segment->blocks, *offset))
            return err;
    }
    *offset = segment->blocks;
    return 0;
}

/* A whole header at `offset`: the batch is kept if its stream matters. */
static int take_batch(struct reader *r, const struct gild_batch_header *header) {
    uint64_t settled;
    if (!r->work->settled(r->work->context, header->stream, &settled))
        return 0;
    bool needed = header->lsn > settled;
    int err = keep(r, header, needed);
    if (err || !needed)
        return err;
    struct log_batch *batch = &r->batches[r->count - 1];
    const void *blocks;
    batch->payload =
        look_at(r, batch->header->offset, 1 + batch->header->payload_blocks, true, &blocks);
    if (!batch->payload &&
        !log_payload_good(batch->header, (const uint8_t *)blocks + GILD_LOG_BLOCK))
        batch->payload = -EBADMSG;
    return 0;
}

static int scan_segment(struct reader *r, struct gild_segment *segment) {
    uint32_t offset = 1;
    bool begun = false;
    r->segment = segment;
    r->at = r->have = 0;
    while (offset < segment->blocks) {
        const struct gild_batch_header *header;
        const void *block;
        bool all = begun || segment->state_recorded != GILD_SEGMENT_READY;
        int err = look_at(r, offset, 1, all, &block);
        if (err)
            return err;
        header = block;
        if (!gild_batch_valid(header, r->work->store_id, segment->serial, segment->blocks,
                              offset)) {
            offset++;
            if ((err = next_header(r, all, &offset)))
                return err;
            continue;
        }
        if (!begun) {
            segment->stream = header->stream;
            segment->first_lsn = header->lsn;
        }
        begun = true;
        segment->last_lsn = header->lsn;
        offset += 1 + header->payload_blocks;
        if ((err = take_batch(r, header)))
            return err;
    }
    if (begun || segment->state_recorded == GILD_SEGMENT_OPEN) {
        atomic_store(&segment->taken, true);
        atomic_store(&segment->closed, true); /* a new stream never goes on in it */
        r->begun_segments++;
    }
    return 0;
}

static void read_one(void *context, unsigned thread, size_t number) {
    struct work *work = context;
    struct reader *r = &work->readers[thread];
    if (atomic_load(&work->failed))
        return;
    r->failed_at = number;
    r->err = scan_segment(r, work->segments[number]);
    if (r->err)
        atomic_store(&work->failed, true);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int choose(void *context, struct gild_segment *segment) {
    struct work *work = context;
    if (segment->state_recorded == GILD_SEGMENT_FULL)
        return 0;
    if (work->count == work->room) {
        size_t room = work->room ? 2 * work->room : 64;
        struct gild_segment **grown = realloc(work->segments, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        work->segments = grown;
        work->room = room;
    }
    work->segments[work->count++] = segment;
    return 0;
}

static int run_readers(struct work *work, struct reader *readers, size_t count) {
    uint32_t blocks = GILD_SEGMENT_LEAST_BLOCKS;
    for (size_t i = 0; i < work->count; i++)
        if (work->segments[i]->blocks > blocks)
            blocks = work->segments[i]->blocks;
    for (size_t i = 0; i < count; i++) {
        readers[i].work = work;
        readers[i].window_blocks = blocks < WINDOW_BLOCKS ? blocks : WINDOW_BLOCKS;
        readers[i].window = gild_file_buffer((size_t)readers[i].window_blocks * GILD_LOG_BLOCK);
        if (!readers[i].window)
            return -ENOMEM;
    }
    work->readers = readers;
    gild_parallel((unsigned)count, work->count, read_one, work);
    const struct reader *first = NULL;
    for (size_t i = 0; i < count; i++)
        if (readers[i].err && (!first || readers[i].failed_at < first->failed_at))
            first = &readers[i];
    return first ? first->err : 0;
}

static int by_order(const void *a, const void *b) {
    const struct gild_batch_header *x = ((const struct log_batch *)a)->header,
                                   *y = ((const struct log_batch *)b)->header;
    if (x->stream != y->stream)
        return x->stream < y->stream ? -1 : 1;
    if (x->lsn != y->lsn)
        return x->lsn < y->lsn ? -1 : 1;
    return x->serial != y->serial ? (x->serial < y->serial ? -1 : 1)
                                  : (x->offset > y->offset) - (x->offset < y->offset);
}

static int gather(struct reader *readers, size_t count, struct log_scan *scan) {
    for (size_t i = 0; i < count; i++)
        scan->count += readers[i].count;
    scan->batches = malloc((scan->count ? scan->count : 1) * sizeof *scan->batches);
    if (!scan->batches)
        return -ENOMEM;
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (readers[i].count)
            memcpy(scan->batches + at, readers[i].batches,
                   readers[i].count * sizeof *scan->batches);
        at += readers[i].count;
        scan->segments += readers[i].begun_segments;
    }
    if (scan->count)
        qsort(scan->batches, scan->count, sizeof *scan->batches, by_order);
    return 0;
}

int log_scan_run(struct gild_segments *segments, const uint8_t store_id[16],
                 log_scan_settled *settled, const void *context, struct log_scan *scan) {
    struct work work = {.store_id = store_id, .settled = settled, .context = context};
    struct reader readers[READERS] = {0};
    memset(scan, 0, sizeof *scan);
    int err = gild_segments_each(segments, choose, &work);
    size_t count = work.count < READERS ? work.count : READERS;
    if (!err && count)
        err = run_readers(&work, readers, count);
    if (!err)
        err = gather(readers, count, scan);
    for (size_t i = 0; i < READERS; i++) {
        while (readers[i].chunks) {
            struct log_chunk *chunk = readers[i].chunks;
            readers[i].chunks = chunk->next;
            chunk->next = scan->chunks;
            scan->chunks = chunk;
        }
        free(readers[i].batches);
        free(readers[i].window);
    }
    free(work.segments);
    if (err)
        log_scan_free(scan);
    return err;
}

void log_scan_free(struct log_scan *scan) {
    while (scan->chunks) {
        struct log_chunk *next = scan->chunks->next;
        free(scan->chunks);
        scan->chunks = next;
    }
    free(scan->batches);
    memset(scan, 0, sizeof *scan);
}
