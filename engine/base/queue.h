/* Queues of embedded links: nothing here allocates, nothing here can fail.
 *
 *   gild_task_queue   FIFO of tasks, one thread
 *   gild_list         doubly linked ring of gild_list nodes, one thread (or the caller's lock)
 *   gild_mailbox      tasks from any thread to one; says when the taker sleeps and must be woken
 */
#ifndef GILD_BASE_QUEUE_H
#define GILD_BASE_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "gild/loop.h"

#define gild_container_of(pointer, type, member) \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* ---- FIFO of tasks ------------------------------------------------------------------------- */

struct gild_task_queue {
    struct gild_task *first;
    struct gild_task *last; /* undefined while first is NULL */
};

static inline bool gild_task_queue_empty(const struct gild_task_queue *queue) {
    return !queue->first;
}

static inline void gild_task_queue_push(struct gild_task_queue *queue, struct gild_task *task) {
    task->next = NULL;
    if (queue->first)
        queue->last->next = task;
    else
        queue->first = task;
    queue->last = task;
}

static inline struct gild_task *gild_task_queue_pop(struct gild_task_queue *queue) {
    struct gild_task *task = queue->first;
    if (task)
        queue->first = task->next;
    return task;
}

/* ---- doubly linked list -------------------------------------------------------------------- */

/* Both the head and each node; an unlinked node points at itself. */
struct gild_list {
    struct gild_list *next;
    struct gild_list *previous;
};

static inline void gild_list_init(struct gild_list *node) {
    node->next = node->previous = node;
}

static inline bool gild_list_empty(const struct gild_list *head) {
    return head->next == head;
}

static inline void gild_list_insert_after(struct gild_list *at, struct gild_list *node) {
    node->previous = at;
    node->next = at->next;
    at->next->previous = node;
    at->next = node;
}

static inline void gild_list_push_front(struct gild_list *head, struct gild_list *node) {
    gild_list_insert_after(head, node);
}

static inline void gild_list_push_back(struct gild_list *head, struct gild_list *node) {
    gild_list_insert_after(head->previous, node);
}

/* Safe on an initialised node that is in no list. */
static inline void gild_list_remove(struct gild_list *node) {
    node->previous->next = node->next;
    node->next->previous = node->previous;
    gild_list_init(node);
}

static inline struct gild_list *gild_list_pop_front(struct gild_list *head) {
    struct gild_list *node = head->next;
    if (node == head)
        return NULL;
    gild_list_remove(node);
    return node;
}

/* ---- mailbox ------------------------------------------------------------------------------- */

/* A stack that posters push on and the taker takes whole and turns round: FIFO per poster, one
 * atomic exchange for any number of tasks. The head is
 *     NULL            empty, the taker is awake
 *     the mailbox     empty, the taker sleeps or is about to: who pushes first must wake it
 *     a task          not empty
 * Pushing is lock-free; there is no ABA, for only the taker removes, and it removes all. */
struct gild_mailbox {
    _Atomic(void *) head;
};

/* Any thread. True: the taker sleeps and this caller must wake it. */
static inline bool gild_mailbox_push(struct gild_mailbox *mailbox, struct gild_task *task) {
    void *head = atomic_load_explicit(&mailbox->head, memory_order_relaxed);
    do
        task->next = head == (void *)mailbox ? NULL : head;
    while (!atomic_compare_exchange_weak_explicit(&mailbox->head, &head, task, memory_order_acq_rel,
                                                  memory_order_relaxed));
    return head == (void *)mailbox;
}

/* The taker: appends all that was pushed to the queue, oldest first; the taker counts as awake. */
static inline void gild_mailbox_take(struct gild_mailbox *mailbox, struct gild_task_queue *queue) {
    if (!atomic_load_explicit(&mailbox->head, memory_order_relaxed))
        return;
    void *head = atomic_exchange_explicit(&mailbox->head, NULL, memory_order_acq_rel);
    if (!head || head == (void *)mailbox)
        return;
    struct gild_task *newest = head, *older, *reversed = NULL;
    for (struct gild_task *task = newest; task; task = older) {
        older = task->next;
        task->next = reversed;
        reversed = task;
    }
    if (queue->first)
        queue->last->next = reversed;
    else
        queue->first = reversed;
    queue->last = newest;
}

/* The taker, before it sleeps: false if something was pushed meanwhile. */
static inline bool gild_mailbox_sleep(struct gild_mailbox *mailbox) {
    void *empty = NULL;
    return atomic_compare_exchange_strong_explicit(&mailbox->head, &empty, mailbox,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

#endif
