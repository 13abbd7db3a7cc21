/* See recover.h. Two passes: the first hops over batch headers of every segment that was not yet
 * full at the checkpoint, the second reads the batches above the checkpoint in order and verifies
 * their payload. What it reads is bounded by what was written since the checkpoint, not by the
 * store. */
#include "log/recover.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

struct found {
    uint64_t stream, lsn, check, previous_check, durable_lsn;
    struct gild_segment *segment;
    uint32_t offset, payload_blocks;
};

struct recovery {
    struct gild_segments *segments;
    const uint8_t *store_id;
    struct gild_recover_stream *streams;
    size_t stream_count;
    struct found *found;
    size_t count, room;
    uint8_t *buffer; /* one batch */
    struct gild_recover_totals *totals;
    int err;
};

static struct gild_recover_stream *stream_of(struct recovery *r, uint64_t stream) {
    for (size_t i = 0; i < r->stream_count; i++)
        if (r->streams[i].stream == stream)
            return &r->streams[i];
    return NULL;
}

static int note(struct recovery *r, struct gild_segment *segment,
                const struct gild_batch_header *header) {
    if (r->count == r->room) {
        size_t room = r->room ? 2 * r->room : 1024;
        struct found *grown = realloc(r->found, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        r->found = grown;
        r->room = room;
    }
    r->found[r->count++] = (struct found){
        .stream = header->stream,
        .lsn = header->lsn,
        .check = header->check,
        .previous_check = header->previous_check,
        .durable_lsn = header->durable_lsn,
        .segment = segment,
        .offset = header->offset,
        .payload_blocks = header->payload_blocks,
    };
    return 0;
}

/* The offset of the first whole header from `offset` on, the size of the segment if there is none:
 * looked for where a header should be and is not. Beyond a torn tail there is nothing, or batches
 * that were in flight with it; beyond a rotten header are those that say that it was durable. A
 * segment that nobody seems to have begun is looked at for the length of one batch. */
static int next_header(struct recovery *r, struct gild_segment *segment, bool all,
                       uint32_t *offset) {
    uint32_t at = *offset, most = GILD_BATCH_ENTRIES + 1;
    *offset = segment->blocks;
    while (at < segment->blocks) {
        uint32_t count = segment->blocks - at < most ? segment->blocks - at : most;
        int err = gild_file_read(segment->fd, r->buffer, (size_t)count * GILD_LOG_BLOCK,
                                 (uint64_t)at * GILD_LOG_BLOCK);
        if (err)
            return err;
        for (uint32_t i = 0; i < count; i++) {
            const void *block = r->buffer + (size_t)i * GILD_LOG_BLOCK;
            if (gild_batch_valid(block, r->store_id, segment->serial, segment->blocks, at + i)) {
                *offset = at + i;
                return 0;
            }
        }
        at = all ? at + count : segment->blocks;
    }
    return 0;
}

/* First pass over one segment: hops from header to header. */
static int scan_segment(void *context, struct gild_segment *segment) {
    struct recovery *r = context;
    if (segment->state_recorded == GILD_SEGMENT_FULL)
        return 0;
    struct gild_batch_header *header = (void *)r->buffer;
    uint32_t offset = 1;
    bool begun = false;
    while (offset < segment->blocks) {
        int err =
            gild_file_read(segment->fd, header, GILD_LOG_BLOCK, (uint64_t)offset * GILD_LOG_BLOCK);
        if (err)
            return err;
        if (!gild_batch_valid(header, r->store_id, segment->serial, segment->blocks, offset)) {
            offset++;
            bool all = begun || segment->state_recorded != GILD_SEGMENT_READY;
            if ((err = next_header(r, segment, all, &offset)))
                return err;
            continue;
        }
        if (!begun) {
            segment->stream = header->stream;
            segment->first_lsn = header->lsn;
        }
        begun = true;
        segment->last_lsn = header->lsn;
        if (stream_of(r, header->stream) && (err = note(r, segment, header)))
            return err;
        offset += 1 + header->payload_blocks;
    }
    if (begun || segment->state_recorded == GILD_SEGMENT_OPEN) {
        atomic_store(&segment->taken, true);
        atomic_store(&segment->closed, true); /* a new stream never goes on in it */
        r->totals->segments++;
    }
    return 0;
}

/* Prepared segments that nobody has begun go back on the ready list. */
static int offer_segment(void *context, struct gild_segment *segment) {
    struct recovery *r = context;
    if (!atomic_load(&segment->taken))
        gild_segments_offer(r->segments, segment);
    return 0;
}

static int by_order(const void *a, const void *b) {
    const struct found *x = a, *y = b;
    if (x->stream != y->stream)
        return x->stream < y->stream ? -1 : 1;
    return x->lsn < y->lsn ? -1 : x->lsn > y->lsn;
}

static bool payload_good(const struct gild_batch_header *header, const uint8_t *payload) {
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

/* What one stream's second pass is about. */
struct replay {
    struct recovery *r;
    struct gild_recover_stream *stream;
    const struct gild_recover_repair *repair;
    gild_recover_visit *visit;
    void *context;
    const struct found *before; /* the batch that the next one must follow */
    uint64_t next;              /* its LSN */
    struct gild_error *error;
};

/* Reads a batch; *whole: header and payload are as they were written. */
static int read_batch(struct replay *replay, const struct found *found, bool *header_good,
                      bool *whole) {
    struct recovery *r = replay->r;
    struct gild_segment *segment = found->segment;
    int err = gild_file_read(segment->fd, r->buffer,
                             (1u + found->payload_blocks) * (size_t)GILD_LOG_BLOCK,
                             (uint64_t)found->offset * GILD_LOG_BLOCK);
    if (err)
        return gild_fail(replay->error, GILD_FAILED, -err,
                         "log segment %016" PRIx64 " can not be read: %s", segment->serial,
                         strerror(-err));
    const struct gild_batch_header *header = (void *)r->buffer;
    *header_good =
        gild_batch_valid(header, r->store_id, segment->serial, segment->blocks, found->offset);
    *whole = *header_good && payload_good(header, r->buffer + GILD_LOG_BLOCK);
    return 0;
}

/* Batches from the next one up to `last` are lost; `after` is the whole one that follows, or NULL.
 */
static void lose(struct replay *replay, uint64_t last, const struct found *after) {
    const uint64_t *filter = NULL;
    struct gild_batch_header *header = (void *)replay->r->buffer;
    bool header_good, whole;
    if (after && after->lsn == replay->next + 1 && last == replay->next &&
        read_batch(replay, after, &header_good, &whole) == 0 && header_good &&
        gild_batch_filter_known(header->previous_filter))
        filter = header->previous_filter;
    replay->repair->lost(replay->repair->context, replay->stream->stream, replay->next, last,
                         filter);
    replay->next = last + 1;
    replay->before = NULL;
}

/* Is it sure that the stream ended where it was last seen? It goes on in its segment while there is
 * room for a batch, unless it took that one for marks alone, on a full store. */
static bool end_is_seen(const struct found *last) {
    return last && last->payload_blocks &&
           last->offset + 1 + last->payload_blocks + GILD_LEAST_ROOM <= last->segment->blocks;
}

/* Does what stands before it say that another batch should be here? */
static bool is_stranger(const struct replay *replay, const struct found *found) {
    const struct found *before = replay->before;
    return before && before->lsn + 1 == found->lsn && before->check != found->previous_check;
}

/* The next batch of the stream. *ended: it is the log's tail, or behind it. */
static int replay_batch(struct replay *replay, const struct found *found, bool *ended) {
    struct gild_recover_stream *stream = replay->stream;
    bool header_good = false, whole = false;
    if (found->lsn > replay->next && replay->repair && replay->next <= stream->durable_lsn)
        lose(replay, found->lsn - 1 < stream->durable_lsn ? found->lsn - 1 : stream->durable_lsn,
             found);
    bool stranger = is_stranger(replay, found);
    *ended = found->lsn != replay->next || (stranger && !replay->repair);
    int err = *ended ? 0 : read_batch(replay, found, &header_good, &whole);
    if (err || *ended)
        return err;
    if (stranger) {
        *ended = found->lsn > stream->durable_lsn;
        if (*ended)
            return 0;
        const struct gild_batch_header *header = (void *)replay->r->buffer;
        bool known = header_good && gild_batch_filter_known(header->previous_filter);
        replay->repair->lost(replay->repair->context, stream->stream, found->lsn - 1,
                             found->lsn - 1, known ? header->previous_filter : NULL);
    }
    *ended = !whole && !(replay->repair && header_good && found->lsn <= stream->durable_lsn);
    if (*ended)
        return 0;
    const struct gild_batch_header *header = (void *)replay->r->buffer;
    err = replay->visit ? replay->visit(replay->context, header, replay->r->buffer + GILD_LOG_BLOCK,
                                        found->lsn > stream->durable_lsn)
                        : 0;
    replay->r->totals->batches++;
    replay->r->totals->blocks += header->payload_blocks;
    replay->before = found;
    replay->next++;
    return err;
}

/* Second pass over one stream: found[first .. last) are its batches by LSN. */
static int replay_stream(struct replay *replay, size_t first, size_t last) {
    struct recovery *r = replay->r;
    struct gild_recover_stream *stream = replay->stream;
    stream->durable_lsn = stream->checkpoint_lsn;
    for (size_t i = first; i < last; i++)
        if (r->found[i].durable_lsn > stream->durable_lsn)
            stream->durable_lsn = r->found[i].durable_lsn;
    replay->next = stream->checkpoint_lsn + 1;
    bool ended = false;
    for (size_t i = first; i < last && !ended; i++) {
        const struct found *found = &r->found[i];
        if (found->lsn < replay->next) {
            replay->before = found;
            continue;
        }
        int err = replay_batch(replay, found, &ended);
        if (err)
            return err;
    }
    if (replay->repair && replay->next <= stream->durable_lsn)
        lose(replay, stream->durable_lsn, NULL);
    if (replay->repair && replay->repair->segment_missing &&
        !end_is_seen(last > first ? &r->found[last - 1] : NULL))
        replay->repair->lost(replay->repair->context, stream->stream, replay->next, UINT64_MAX,
                             NULL);
    stream->last_lsn = replay->next - 1;
    if (stream->last_lsn < stream->durable_lsn)
        return gild_fail(replay->error, GILD_CORRUPT, EBADMSG,
                         "the log is damaged: batch %" PRIu64 " of stream %" PRIu64
                         " is lost although it was flushed (known durable up to %" PRIu64
                         "); nothing was changed, run `gild store check --repair`",
                         replay->next, stream->stream, stream->durable_lsn);
    return 0;
}

int gild_log_recover_rest(struct gild_segments *segments, const uint8_t store_id[16],
                          struct gild_recover_stream *streams, size_t stream_count,
                          gild_recover_visit *visit, void *context,
                          const struct gild_recover_repair *repair,
                          struct gild_recover_totals *totals, struct gild_error *error) {
    struct recovery r = {.segments = segments,
                         .store_id = store_id,
                         .streams = streams,
                         .stream_count = stream_count,
                         .totals = totals};
    memset(totals, 0, sizeof *totals);
    r.buffer = gild_file_buffer(GILD_BATCH_BYTES);
    if (!r.buffer)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to read the log");
    int err = gild_segments_each(segments, scan_segment, &r);
    if (err)
        gild_fail(error, gild_code_of_errno(-err), -err, "the log can not be read: %s",
                  strerror(-err));
    if (!err && visit && !(repair && repair->only_look))
        gild_segments_each(segments, offer_segment, &r);
    if (!err && r.count)
        qsort(r.found, r.count, sizeof *r.found, by_order);
    for (size_t i = 0; i < stream_count && !err; i++) {
        size_t first = 0, last;
        while (first < r.count && r.found[first].stream != streams[i].stream)
            first++;
        for (last = first; last < r.count && r.found[last].stream == streams[i].stream;)
            last++;
        struct replay replay = {.r = &r,
                                .stream = &streams[i],
                                .repair = repair,
                                .visit = visit,
                                .context = context,
                                .error = error};
        err = replay_stream(&replay, first, last);
    }
    free(r.found);
    free(r.buffer);
    return err;
}

int gild_log_recover(struct gild_segments *segments, const uint8_t store_id[16],
                     struct gild_recover_stream *streams, size_t stream_count,
                     gild_recover_visit *visit, void *context, struct gild_recover_totals *totals,
                     struct gild_error *error) {
    return gild_log_recover_rest(segments, store_id, streams, stream_count, visit, context, NULL,
                                 totals, error);
}
