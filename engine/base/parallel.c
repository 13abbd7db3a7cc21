/* See parallel.h. Pieces are handed out by one counter; nothing else is shared. Any thread. */
#include "base/parallel.h"

#include <pthread.h>
#include <stdatomic.h>

struct crew {
    gild_parallel_work *work;
    void *context;
    size_t count;
    _Atomic size_t next;
};

struct hand {
    struct crew *crew;
    unsigned number;
    pthread_t thread;
};

static void *hand_main(void *argument) {
    struct hand *hand = argument;
    struct crew *crew = hand->crew;
    size_t piece;
    while ((piece = atomic_fetch_add(&crew->next, 1)) < crew->count)
        crew->work(crew->context, hand->number, piece);
    return NULL;
}

void gild_parallel(unsigned threads, size_t count, gild_parallel_work *work, void *context) {
    struct crew crew = {.work = work, .context = context, .count = count};
    struct hand hands[GILD_PARALLEL_MOST];
    unsigned started = 1; /* the first is the caller */
    if (threads > GILD_PARALLEL_MOST)
        threads = GILD_PARALLEL_MOST;
    hands[0] = (struct hand){.crew = &crew};
    for (; started < threads && started < count; started++) {
        hands[started] = (struct hand){.crew = &crew, .number = started};
        if (pthread_create(&hands[started].thread, NULL, hand_main, &hands[started]) != 0)
            break;
    }
    hand_main(&hands[0]);
    for (unsigned i = 1; i < started; i++)
        pthread_join(hands[i].thread, NULL);
}
