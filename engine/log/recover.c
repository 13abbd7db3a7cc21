/* See recover.h. Two passes: the first (scan.h) reads the log, the second goes over what it kept:
 * the batches above the checkpoint in order. Payload is read again only where it is asked for: in
 * doubt, or by a repair. What is read is bounded by what was written since the checkpoint, not by
 * the store.
 */
#include "log/recover.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "log/scan.h"

struct gild_recovered {
    struct gild_segments *segments;
    uint8_t store_id[16];
    struct gild_recover_stream *streams; /* those of the caller */
    size_t stream_count;
    struct log_scan scan;
    uint8_t *buffer; /* one batch */
    struct gild_recover_totals *totals;
};

static bool settled_lsn(const void *context, uint64_t stream, uint64_t *lsn) {
    const struct gild_recovered *r = context;
    for (size_t i = 0; i < r->stream_count; i++)
        if (r->streams[i].stream == stream) {
            *lsn = r->streams[i].checkpoint_lsn;
            return true;
        }
    return false;
}

/* Prepared segments that nobody has begun go back on the ready list. */
static int offer_segment(void *context, struct gild_segment *segment) {
    struct gild_recovered *r = context;
    if (!atomic_load(&segment->taken))
        gild_segments_offer(r->segments, segment);
    return 0;
}

/* What one stream's second pass is about. */
struct replay {
    struct gild_recovered *r;
    struct gild_recover_stream *stream;
    const struct gild_recover_repair *repair;
    gild_recover_visit *visit;
    void *context;
    const struct log_batch *before; /* the batch that the next one must follow */
    uint64_t next;                  /* its LSN */
    struct gild_error *error;
};

static int unreadable(struct replay *replay, const struct log_batch *found, int err) {
    return gild_fail(replay->error, GILD_FAILED, -err,
                     "log segment %016" PRIx64 " can not be read: %s", found->segment->serial,
                     strerror(-err));
}

/* Reads a batch again; *whole: header and payload are as they were written. */
static int read_batch(struct replay *replay, const struct log_batch *found, bool *header_good,
                      bool *whole) {
    struct gild_recovered *r = replay->r;
    struct gild_segment *segment = found->segment;
    int err = gild_file_read(segment->fd, r->buffer,
                             (1u + found->header->payload_blocks) * (size_t)GILD_LOG_BLOCK,
                             (uint64_t)found->header->offset * GILD_LOG_BLOCK);
    if (err)
        return unreadable(replay, found, err);
    const struct gild_batch_header *header = (void *)r->buffer;
    *header_good = gild_batch_valid(header, r->store_id, segment->serial, segment->blocks,
                                    found->header->offset);
    *whole = *header_good && log_payload_good(header, r->buffer + GILD_LOG_BLOCK);
    return 0;
}

/* Batches from the next one up to `last` are lost; `after` is the whole one that follows, or NULL.
 */
static void lose(struct replay *replay, uint64_t last, const struct log_batch *after) {
    const uint64_t *filter = NULL;
    struct gild_batch_header *header = (void *)replay->r->buffer;
    bool header_good, whole;
    if (after && after->header->lsn == replay->next + 1 && last == replay->next &&
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
static bool end_is_seen(const struct log_batch *last) {
    return last && last->header->payload_blocks &&
           last->header->offset + 1 + last->header->payload_blocks + GILD_LEAST_ROOM <=
               last->segment->blocks;
}

/* Does what stands before it say that another batch should be here? */
static bool is_stranger(const struct replay *replay, const struct log_batch *found) {
    const struct log_batch *before = replay->before;
    return before && before->header->lsn + 1 == found->header->lsn &&
           before->header->check != found->header->previous_check;
}

/* What the first pass knows of a batch, or what a second look at it shows. */
static int look_again(struct replay *replay, const struct log_batch *found,
                      const struct gild_batch_header **header, const uint8_t **payload,
                      bool *header_good, bool *whole) {
    bool in_doubt = found->header->lsn > replay->stream->durable_lsn;
    *header = found->header;
    *payload = NULL;
    *header_good = true;
    *whole = found->payload == 0;
    if (found->payload && found->payload != -EBADMSG)
        return unreadable(replay, found, found->payload);
    if (!replay->repair && !(replay->visit && in_doubt && *whole))
        return 0;
    *header = (const void *)replay->r->buffer;
    *payload = replay->r->buffer + GILD_LOG_BLOCK;
    return read_batch(replay, found, header_good, whole);
}

/* The next batch of the stream. *ended: it is the log's tail, or behind it. */
static int replay_batch(struct replay *replay, const struct log_batch *found, bool *ended) {
    struct gild_recover_stream *stream = replay->stream;
    uint64_t lsn = found->header->lsn;
    const struct gild_batch_header *header;
    const uint8_t *payload;
    bool header_good = false, whole = false;
    if (lsn > replay->next && replay->repair && replay->next <= stream->durable_lsn)
        lose(replay, lsn - 1 < stream->durable_lsn ? lsn - 1 : stream->durable_lsn, found);
    bool stranger = is_stranger(replay, found);
    *ended = lsn != replay->next || (stranger && !replay->repair);
    int err = *ended ? 0 : look_again(replay, found, &header, &payload, &header_good, &whole);
    if (err || *ended)
        return err;
    if (stranger) {
        *ended = lsn > stream->durable_lsn;
        if (*ended)
            return 0;
        bool known = header_good && gild_batch_filter_known(header->previous_filter);
        replay->repair->lost(replay->repair->context, stream->stream, lsn - 1, lsn - 1,
                             known ? header->previous_filter : NULL);
    }
    *ended = !whole && !(replay->repair && header_good && lsn <= stream->durable_lsn);
    if (*ended)
        return 0;
    err = replay->visit ? replay->visit(replay->context, header, payload, lsn > stream->durable_lsn)
                        : 0;
    replay->r->totals->batches++;
    replay->r->totals->blocks += header->payload_blocks;
    replay->before = found;
    replay->next++;
    return err;
}

/* Second pass over one stream: batches [first, last) are its own, by LSN. */
static int replay_stream(struct replay *replay, size_t first, size_t last) {
    struct gild_recovered *r = replay->r;
    struct gild_recover_stream *stream = replay->stream;
    stream->durable_lsn = stream->checkpoint_lsn;
    for (size_t i = first; i < last; i++)
        if (r->scan.batches[i].header->durable_lsn > stream->durable_lsn)
            stream->durable_lsn = r->scan.batches[i].header->durable_lsn;
    replay->next = stream->checkpoint_lsn + 1;
    bool ended = false;
    for (size_t i = first; i < last && !ended; i++) {
        const struct log_batch *found = &r->scan.batches[i];
        if (found->header->lsn < replay->next) {
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
        !end_is_seen(last > first ? &r->scan.batches[last - 1] : NULL))
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

int gild_log_look(struct gild_recovered **out, struct gild_segments *segments,
                  const uint8_t store_id[16], struct gild_recover_stream *streams,
                  size_t stream_count, struct gild_error *error) {
    struct gild_recovered *r = calloc(1, sizeof *r);
    if (r)
        *r = (struct gild_recovered){.segments = segments,
                                     .streams = streams,
                                     .stream_count = stream_count,
                                     .buffer = gild_file_buffer(GILD_BATCH_BYTES)};
    if (!r || !r->buffer) {
        free(r);
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to read the log");
    }
    memcpy(r->store_id, store_id, sizeof r->store_id);
    int err = log_scan_run(segments, store_id, settled_lsn, r, &r->scan);
    if (err) {
        gild_recovered_free(r);
        return gild_fail(error, gild_code_of_errno(-err), -err, "the log can not be read: %s",
                         strerror(-err));
    }
    *out = r;
    return 0;
}

void gild_recovered_free(struct gild_recovered *r) {
    if (!r)
        return;
    log_scan_free(&r->scan);
    free(r->buffer);
    free(r);
}

int gild_log_replay(struct gild_recovered *r, gild_recover_visit *visit, void *context,
                    const struct gild_recover_repair *repair, struct gild_recover_totals *totals,
                    struct gild_error *error) {
    const struct log_batch *batches = r->scan.batches;
    int err = 0;
    *totals = (struct gild_recover_totals){.segments = r->scan.segments};
    r->totals = totals;
    if (visit && !(repair && repair->only_look))
        gild_segments_each(r->segments, offer_segment, r);
    for (size_t i = 0; i < r->stream_count && !err; i++) {
        size_t first = 0, last;
        while (first < r->scan.count && batches[first].header->stream != r->streams[i].stream)
            first++;
        for (last = first;
             last < r->scan.count && batches[last].header->stream == r->streams[i].stream;)
            last++;
        struct replay replay = {.r = r,
                                .stream = &r->streams[i],
                                .repair = repair,
                                .visit = visit,
                                .context = context,
                                .error = error};
        err = replay_stream(&replay, first, last);
    }
    return err;
}

int gild_log_again(const struct gild_recovered *r, gild_recover_visit *visit, void *context) {
    const struct gild_recover_stream *stream = NULL;
    int err = 0;
    for (size_t i = 0; i < r->scan.count && !err; i++) {
        const struct gild_batch_header *header = r->scan.batches[i].header;
        for (size_t s = 0; (!stream || stream->stream != header->stream) && s < r->stream_count;
             s++)
            if (r->streams[s].stream == header->stream)
                stream = &r->streams[s];
        if (header->lsn > stream->checkpoint_lsn && header->lsn <= stream->last_lsn)
            err = visit(context, header, NULL, header->lsn > stream->durable_lsn);
    }
    return err;
}

int gild_log_recover_rest(struct gild_segments *segments, const uint8_t store_id[16],
                          struct gild_recover_stream *streams, size_t stream_count,
                          gild_recover_visit *visit, void *context,
                          const struct gild_recover_repair *repair,
                          struct gild_recover_totals *totals, struct gild_error *error) {
    struct gild_recovered *r;
    memset(totals, 0, sizeof *totals);
    int err = gild_log_look(&r, segments, store_id, streams, stream_count, error);
    if (err)
        return err;
    err = gild_log_replay(r, visit, context, repair, totals, error);
    gild_recovered_free(r);
    return err;
}

int gild_log_recover(struct gild_segments *segments, const uint8_t store_id[16],
                     struct gild_recover_stream *streams, size_t stream_count,
                     gild_recover_visit *visit, void *context, struct gild_recover_totals *totals,
                     struct gild_error *error) {
    return gild_log_recover_rest(segments, store_id, streams, stream_count, visit, context, NULL,
                                 totals, error);
}
