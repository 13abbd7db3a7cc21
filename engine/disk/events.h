/* What happened in a store, for the admin: a bounded log of events that survives restarts.
 *
 * The file `events` of the store is a ring of EVENTS_SLOTS slots of EVENT_BYTES each, made (whole)
 * with the first event. Each slot stands for itself under a check; one that is torn or garbled is
 * an event that is lost, and nothing else. The log is a convenience: it is not synced, and a write
 * that fails is counted, never waited for.
 *
 * Threads: any but a reactor's. */
#ifndef GILD_DISK_EVENTS_H
#define GILD_DISK_EVENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EVENT_BYTES 1024u
#define EVENTS_SLOTS 2048u
#define EVENT_NOBODY UINT32_MAX /* uid: the store itself */

enum gild_event_kind {
    GILD_EVENT_CREATED,
    GILD_EVENT_DELETED,
    GILD_EVENT_LIMIT,     /* a limit was changed */
    GILD_EVENT_REFUSED,   /* a disk's writes are refused: no space, or over a quota */
    GILD_EVENT_ROOM,      /* they would be taken again: a paused guest may go on */
    GILD_EVENT_RESUMED,   /* one was */
    GILD_EVENT_THRESHOLD, /* the store's use went over, or back under, what is to be warned of */
    GILD_EVENT_SPACE,     /* the store's level: plenty, low, throttled, full */
    GILD_EVENT_DROPPED,   /* so many events could not be kept */
    GILD_EVENT_KINDS,
};
const char *gild_event_name(enum gild_event_kind kind);

struct gild_event {
    uint64_t sequence; /* from 1, never given twice */
    uint64_t time_ns;  /* CLOCK_REALTIME */
    uint32_t uid;      /* who asked, or EVENT_NOBODY */
    enum gild_event_kind kind;
    char object[320]; /* "desktops/d1/os", "pools/p1", "images/win10@3", "store" */
    char message[600];
};

/* A slot's bytes, and back: false for what is no whole event. Pure. */
void gild_event_encode(const struct gild_event *event, uint8_t slot[EVENT_BYTES]);
bool gild_event_decode(struct gild_event *event, const uint8_t slot[EVENT_BYTES]);

struct events;
struct gild_store;
/* folder: the store's. NULL: no memory. Nothing is opened yet. */
struct events *events_create(const char *folder);
void events_destroy(struct events *events);

/* One more event, now. */
void gild_events_note(struct gild_store *store, enum gild_event_kind kind, uint32_t uid,
                      const char *object, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Calls back with those later than both `after` and `since_ns`, oldest first; a non-zero return
 * ends the walk and is returned. 0 or -errno. */
typedef int gild_events_visit(void *context, const struct gild_event *event);
int gild_events_read(struct gild_store *store, uint64_t after, uint64_t since_ns,
                     gild_events_visit *visit, void *context);
/* Until there is one later than `after`, or so long. The last one's number. */
uint64_t gild_events_wait(struct gild_store *store, uint64_t after, unsigned most_ms);

#endif
