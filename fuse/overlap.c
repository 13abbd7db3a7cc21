/* Changes to one file that must not meet.
 *
 * A write that does not begin or end on a sector reads the sectors at its ends, mixes, and writes
 * them whole. If another write to the same sector ran between the two, its acknowledged bytes would
 * be lost. So such a change is exclusive: it waits for all that overlaps it, and all that overlaps
 * it waits. Changes that are whole sectors never wait for each other; the engine orders them.
 *
 * Invariants: an active exclusive change overlaps no other active change; a waiting change is
 * started as soon as nothing active and nothing that waits before it stands against it, so nobody
 * starves. Thread: the disk's loop only. */
#include "mount.h"

void overlaps_init(struct overlaps *overlaps) {
    gild_list_init(&overlaps->active);
    gild_list_init(&overlaps->waiting);
    overlaps->exclusive_count = 0;
}

static bool against(const struct overlap *a, const struct overlap *b) {
    return (a->exclusive || b->exclusive) && a->first < b->end && b->first < a->end;
}

/* Does anything in the list, up to (not including) `until`, stand against it? */
static bool any_against(struct gild_list *list, const struct overlap *overlap,
                        const struct gild_list *until) {
    for (struct gild_list *at = list->next; at != until; at = at->next)
        if (against(gild_container_of(at, struct overlap, link), overlap))
            return true;
    return false;
}

bool overlap_enter(struct overlaps *overlaps, struct overlap *overlap) {
    if (overlap->exclusive)
        overlaps->exclusive_count++;
    if (overlaps->exclusive_count &&
        (any_against(&overlaps->active, overlap, &overlaps->active) ||
         any_against(&overlaps->waiting, overlap, &overlaps->waiting))) {
        gild_list_push_back(&overlaps->waiting, &overlap->link);
        return false;
    }
    gild_list_push_front(&overlaps->active, &overlap->link);
    return true;
}

void overlap_leave(struct overlaps *overlaps, struct overlap *overlap,
                   void (*start)(struct overlap *overlap)) {
    gild_list_remove(&overlap->link);
    if (overlap->exclusive)
        overlaps->exclusive_count--;
    struct gild_list *next;
    for (struct gild_list *at = overlaps->waiting.next; at != &overlaps->waiting; at = next) {
        next = at->next;
        struct overlap *waiter = gild_container_of(at, struct overlap, link);
        if (any_against(&overlaps->active, waiter, &overlaps->active) ||
            any_against(&overlaps->waiting, waiter, at))
            continue;
        gild_list_remove(at);
        gild_list_push_front(&overlaps->active, at);
        start(waiter);
    }
}
