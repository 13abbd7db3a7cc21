/* See events.h. The ring is read once, when it is first needed, to find where it goes on; a file
 * that is damaged or of another length is gone on with all the same, since each slot stands for
 * itself.
 *
 * Invariants: the next event's number is above each that is in the file; slot number MOD
 * EVENTS_SLOTS holds it. Failure modes: no room or no memory for the file: events are counted, and
 * said with the next one that can be kept. */
#include "disk/events.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/log.h"
#include "disk/internal.h"
#include "io/file.h"

#define RING_BYTES ((uint64_t)EVENTS_SLOTS * EVENT_BYTES)
#define SLOT_SEED 0x53544e455645ull
/* check, sequence, time: 3 x 8; uid: 4; kind, object's length, message's length: 3 x 2 */
#define SLOT_HEAD 34u

struct events {
    char folder[2048];
    pthread_mutex_t lock;
    pthread_cond_t news;
    int fd;        /* -1: not opened yet, or there is none */
    bool looked;   /* the file was looked at */
    uint64_t last; /* number of the newest */
    uint64_t lost; /* not kept since */
};

const char *gild_event_name(enum gild_event_kind kind) {
    static const char *const names[GILD_EVENT_KINDS] = {"created",   "deleted", "limit",
                                                        "refused",   "room",    "resumed",
                                                        "threshold", "space",   "dropped"};
    return names[kind];
}

/* ---- slots ----------------------------------------------------------------------------------- */

void gild_event_encode(const struct gild_event *event, uint8_t slot[EVENT_BYTES]) {
    size_t object = strnlen(event->object, sizeof event->object - 1);
    size_t message = strnlen(event->message, sizeof event->message - 1);
    memset(slot, 0, EVENT_BYTES);
    gild_put_le64(slot + 8, event->sequence);
    gild_put_le64(slot + 16, event->time_ns);
    gild_put_le32(slot + 24, event->uid);
    gild_put_le16(slot + 28, (uint16_t)event->kind);
    gild_put_le16(slot + 30, (uint16_t)object);
    gild_put_le16(slot + 32, (uint16_t)message);
    memcpy(slot + SLOT_HEAD, event->object, object);
    memcpy(slot + SLOT_HEAD + object, event->message, message);
    gild_put_le64(slot, XXH3_64bits_withSeed(slot + 8, EVENT_BYTES - 8, SLOT_SEED));
}

bool gild_event_decode(struct gild_event *event, const uint8_t slot[EVENT_BYTES]) {
    size_t object = gild_get_le16(slot + 30), message = gild_get_le16(slot + 32);
    unsigned kind = gild_get_le16(slot + 28);
    memset(event, 0, sizeof *event);
    if (gild_get_le64(slot) != XXH3_64bits_withSeed(slot + 8, EVENT_BYTES - 8, SLOT_SEED) ||
        kind >= GILD_EVENT_KINDS || object >= sizeof event->object ||
        message >= sizeof event->message || SLOT_HEAD + object + message > EVENT_BYTES)
        return false;
    event->sequence = gild_get_le64(slot + 8);
    event->time_ns = gild_get_le64(slot + 16);
    event->uid = gild_get_le32(slot + 24);
    event->kind = (enum gild_event_kind)kind;
    memcpy(event->object, slot + SLOT_HEAD, object);
    memcpy(event->message, slot + SLOT_HEAD + object, message);
    return event->sequence && event->sequence < UINT64_MAX && !memchr(event->object, 0, object) &&
           !memchr(event->message, 0, message);
}

/* ---- the file -------------------------------------------------------------------------------- */

struct events *events_create(const char *folder) {
    struct events *events = calloc(1, sizeof *events);
    if (!events)
        return NULL;
    snprintf(events->folder, sizeof events->folder, "%s", folder);
    events->fd = -1;
    pthread_mutex_init(&events->lock, NULL);
    pthread_cond_init(&events->news, NULL);
    return events;
}

void events_destroy(struct events *events) {
    if (!events)
        return;
    if (events->fd >= 0)
        close(events->fd);
    pthread_mutex_destroy(&events->lock);
    pthread_cond_destroy(&events->news);
    free(events);
}

/* The whole ring, zeroes behind its end; to free. Lock held. */
static uint8_t *slurp(const struct events *events) {
    uint8_t *ring = calloc(EVENTS_SLOTS, EVENT_BYTES);
    if (ring && gild_file_read_some(events->fd, ring, RING_BYTES, 0) < 0) {
        free(ring);
        return NULL;
    }
    return ring;
}

/* Lock held. 0 or -errno. */
static int look(struct events *events, bool make) {
    char path[4096];
    struct gild_event event;
    snprintf(path, sizeof path, "%s/events", events->folder);
    if (events->fd < 0)
        events->fd = open(path, O_RDWR | O_CLOEXEC | (make ? O_CREAT : 0), 0600);
    if (events->fd < 0)
        return -errno;
    if (events->looked)
        return 0;
    uint64_t bytes;
    int err = gild_file_size(events->fd, &bytes);
    if (!err && make && bytes < RING_BYTES)
        err = gild_file_allocate(events->fd, RING_BYTES);
    uint8_t *ring = err ? NULL : slurp(events);
    if (!err && !ring)
        err = -ENOMEM;
    for (size_t i = 0; i < EVENTS_SLOTS && !err; i++)
        if (gild_event_decode(&event, ring + i * EVENT_BYTES) && event.sequence > events->last)
            events->last = event.sequence;
    free(ring);
    events->looked = !err && make;
    return err;
}

/* Lock held. */
static int put(struct events *events, struct gild_event *event) {
    uint8_t slot[EVENT_BYTES];
    struct timespec now;
    int err = look(events, true);
    if (err)
        return err;
    clock_gettime(CLOCK_REALTIME, &now);
    event->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    event->sequence = events->last + 1;
    gild_event_encode(event, slot);
    err = gild_file_write(events->fd, slot, sizeof slot,
                          event->sequence % EVENTS_SLOTS * EVENT_BYTES);
    if (!err)
        events->last = event->sequence;
    return err;
}

/* What terminals and line readers would stumble over. */
static void make_plain(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

void gild_events_note(struct gild_store *store, enum gild_event_kind kind, uint32_t uid,
                      const char *object, const char *format, ...) {
    struct events *events = store->events;
    struct gild_event event = {.kind = kind, .uid = uid};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(event.message, sizeof event.message, format, arguments);
    va_end(arguments);
    snprintf(event.object, sizeof event.object, "%s", object);
    make_plain(event.message);
    make_plain(event.object);
    pthread_mutex_lock(&events->lock);
    if (events->lost) {
        struct gild_event gap = {.kind = GILD_EVENT_DROPPED, .uid = EVENT_NOBODY};
        snprintf(gap.object, sizeof gap.object, "store");
        snprintf(gap.message, sizeof gap.message, "%llu events could not be kept",
                 (unsigned long long)events->lost);
        if (put(events, &gap) == 0)
            events->lost = 0;
    }
    if (put(events, &event))
        events->lost++;
    pthread_cond_broadcast(&events->news);
    pthread_mutex_unlock(&events->lock);
}

static int by_sequence(const void *a, const void *b) {
    const struct gild_event *x = a, *y = b;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

int gild_events_read(struct gild_store *store, uint64_t after, uint64_t since_ns,
                     gild_events_visit *visit, void *context) {
    struct events *events = store->events;
    size_t count = 0;
    pthread_mutex_lock(&events->lock);
    int err = look(events, false);
    uint8_t *ring = err ? NULL : slurp(events);
    pthread_mutex_unlock(&events->lock);
    if (err)
        return err == -ENOENT ? 0 : err;
    struct gild_event *found = ring ? calloc(EVENTS_SLOTS, sizeof *found) : NULL;
    for (size_t i = 0; i < EVENTS_SLOTS && found; i++)
        if (gild_event_decode(&found[count], ring + i * EVENT_BYTES) &&
            found[count].sequence % EVENTS_SLOTS == i && found[count].sequence > after &&
            found[count].time_ns >= since_ns)
            count++;
    free(ring);
    if (!found)
        return -ENOMEM;
    qsort(found, count, sizeof *found, by_sequence);
    for (size_t i = 0; i < count && !err; i++)
        err = visit(context, &found[i]);
    free(found);
    return err;
}

uint64_t gild_events_wait(struct gild_store *store, uint64_t after, unsigned most_ms) {
    struct events *events = store->events;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)(most_ms % 1000) * 1000000;
    until.tv_sec += most_ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&events->lock);
    if (!events->looked)
        (void)look(events, false);
    while (events->last <= after &&
           pthread_cond_timedwait(&events->news, &events->lock, &until) == 0)
        continue;
    uint64_t last = events->last;
    pthread_mutex_unlock(&events->lock);
    return last;
}
