/* See writer.h. A segment that fills is synced before the next one is taken, so at most one segment
 * is ever unsynced. A failed write or flush is not retried: the segment is closed and left to be
 * found empty. */
#include "log/writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/place.h"
#include "io/file.h"

int gild_log_writer_init(struct gild_log_writer *writer, struct gild_segments *segments,
                         const uint8_t store_id[16], uint64_t stream, bool holds_nodes) {
    void *memory = gild_file_buffer(GILD_BATCH_BYTES);
    if (!memory)
        return -ENOMEM;
    *writer = (struct gild_log_writer){
        .segments = segments, .stream = stream, .holds_nodes = holds_nodes, .header = memory};
    memcpy(writer->store_id, store_id, 16);
    return 0;
}

void gild_log_writer_fini(struct gild_log_writer *writer) {
    free(writer->header);
    writer->header = NULL;
}

static void close_segment(struct gild_log_writer *writer) {
    if (!writer->segment)
        return;
    writer->segment->last_lsn = writer->lsn;
    atomic_store(&writer->segment->closed, true);
    writer->segment = NULL;
    writer->unsynced = false; /* after an error: nothing of it may be referred to */
}

static int sync_segment(struct gild_log_writer *writer) {
    if (!writer->unsynced)
        return 0;
    writer->unsynced = false;
    int err = gild_file_sync(writer->segment->fd);
    if (err) {
        close_segment(writer);
        return err;
    }
    writer->durable = writer->lsn;
    return 0;
}

static int write_batch(struct gild_log_writer *writer) {
    if (!writer->open)
        return 0;
    struct gild_batch_header *header = writer->header;
    writer->open = false;
    header->previous_check = writer->last_check;
    header->durable_lsn = writer->durable;
    memcpy(header->previous_filter, writer->last_filter, sizeof writer->last_filter);
    gild_batch_seal(header);
    gild_batch_filter(header, writer->last_filter);
    writer->last_check = header->check;
    int err = gild_file_write(writer->segment->fd, header,
                              (1u + header->payload_blocks) * (size_t)GILD_LOG_BLOCK,
                              (uint64_t)header->offset * GILD_LOG_BLOCK);
    if (err) {
        close_segment(writer);
        return err;
    }
    writer->at += 1 + header->payload_blocks;
    writer->unsynced = true;
    return 0;
}

static int open_batch(struct gild_log_writer *writer) {
    int err;
    if (writer->segment && writer->segment->blocks - writer->at < 2) {
        if ((err = sync_segment(writer)))
            return err;
        close_segment(writer);
    }
    if (!writer->segment) {
        err = gild_segments_take_now(writer->segments, writer->holds_nodes, &writer->segment);
        if (err)
            return err;
        writer->segment->stream = writer->stream;
        writer->segment->first_lsn = writer->lsn + 1;
        writer->at = 1;
    }
    writer->lsn++;
    writer->segment->last_lsn = writer->lsn;
    gild_batch_begin(writer->header, writer->store_id, writer->segment->serial, writer->stream,
                     writer->lsn, writer->at);
    writer->open = true;
    return 0;
}

int gild_log_writer_next(struct gild_log_writer *writer, uint64_t *place) {
    const struct gild_batch_header *header = writer->header;
    if (writer->open && (header->entry_count == GILD_BATCH_ENTRIES ||
                         writer->at + 1 + header->payload_blocks == writer->segment->blocks)) {
        int err = write_batch(writer);
        if (err)
            return err;
    }
    if (!writer->open) {
        int err = open_batch(writer);
        if (err)
            return err;
    }
    *place = gild_place_log(writer->segment->serial, writer->at + header->payload_blocks + 1);
    return 0;
}

int gild_log_writer_append(struct gild_log_writer *writer, enum gild_entry_kind kind,
                           uint64_t delta, uint64_t block, const void *payload, uint64_t *place,
                           uint32_t *check) {
    struct gild_batch_header *header = writer->header;
    int err = gild_log_writer_next(writer, place);
    if (err)
        return err;
    uint8_t *slot = (uint8_t *)header + (size_t)(1 + header->payload_blocks) * GILD_LOG_BLOCK;
    memcpy(slot, payload, GILD_LOG_BLOCK);
    *check = gild_batch_add(header, kind, delta, block, 1, slot);
    return 0;
}

int gild_log_writer_flush(struct gild_log_writer *writer) {
    int err = write_batch(writer);
    return err ? err : sync_segment(writer);
}
