/* See trace.h. A full trace is told by an ODD event, for which room is kept at the end. */
#include "trace.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEPT_BYTES 4096u

struct trace_head *trace_map(const char *path, bool create) {
    int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0600);
    if (fd < 0)
        return NULL;
    struct trace_head *head = MAP_FAILED;
    if (!create || ftruncate(fd, (off_t)TRACE_BYTES) == 0)
        head = mmap(NULL, TRACE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (head == MAP_FAILED)
        return NULL;
    if (create)
        atomic_store(&head->used, TRACE_FIRST);
    return head;
}

void trace_unmap(struct trace_head *head) {
    if (head)
        munmap(head, TRACE_BYTES);
}

static struct trace_event *event_at(struct trace_head *head, uint64_t at) {
    return (struct trace_event *)(void *)((char *)head + at);
}

struct trace_event *trace_take(struct trace_head *head, enum trace_kind kind,
                               uint32_t payload_bytes) {
    if (!head || !head->recording)
        return NULL;
    uint64_t bytes = (sizeof(struct trace_event) + payload_bytes + 7) & ~UINT64_C(7);
    if (atomic_load(&head->used) + bytes + KEPT_BYTES > TRACE_BYTES) {
        kind = TRACE_ODD;
        payload_bytes = 0;
        bytes = sizeof(struct trace_event);
        if (atomic_load(&head->used) + KEPT_BYTES / 2 > TRACE_BYTES)
            return NULL;
    }
    struct trace_event *event = event_at(head, atomic_fetch_add(&head->used, bytes));
    *event = (struct trace_event){
        .kind = (uint16_t)kind, .payload_bytes = payload_bytes, .pid = (uint32_t)getpid()};
    event->bytes = (uint32_t)bytes;
    return event;
}

uint64_t trace_done(struct trace_head *head, struct trace_event *event) {
    return event ? (uint64_t)((char *)event - (char *)head) : 0;
}

void trace_end(struct trace_head *head, uint64_t ref, int64_t result) {
    struct trace_event *event = ref ? trace_take(head, TRACE_END, 0) : NULL;
    if (!event)
        return;
    event->ref = ref;
    event->result = result;
}

uint64_t trace_mark(struct trace_head *head, unsigned flags, uint64_t offset, uint64_t length) {
    struct trace_event *event = trace_take(head, TRACE_MARK, 0);
    if (!event)
        return 0;
    event->flags = (uint16_t)flags;
    event->offset = offset;
    event->length = length;
    return trace_done(head, event);
}

const struct trace_event *trace_at(const struct trace_head *head, uint64_t at, uint64_t *next) {
    if (at + sizeof(struct trace_event) > atomic_load(&head->used))
        return NULL;
    const struct trace_event *event =
        (const struct trace_event *)(const void *)((const char *)head + at);
    if (!event->bytes)
        return NULL;
    *next = at + event->bytes;
    return event;
}
