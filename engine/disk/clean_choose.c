/* Which segments the cleaner takes, see cleaner.h.
 *
 * Cost and gain: emptying a segment with a live share u costs reading it and writing u of it, and
 * gains 1 - u; what has lain for long will lie on, so age counts for it (the cost-benefit rule of
 * Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System", 1992,
 * section 3.4). While space lasts only cold segments are taken, whatever they hold, for their
 * blocks are worth more in a pack. */
#include <stdlib.h>

#include "base/bytes.h"
#include "disk/cleaner.h"

#define PASS_BLOCKS 131072u /* live blocks that one pass moves: 512 MiB */
#define LEAST_BLOCKS 8192u  /* a pack of less is not worth a pass, at leisure: 32 MiB */
#define HURRY_SHARE 8u      /* of the log: with less left guests will soon find no room */
#define HURRY_LEAST 4u
#define WORTH_PERCENT 75u /* live share above which moving within the log gains too little */
#define NODES_PERCENT 50u
#define NODES_ALL_PERCENT 90u

static unsigned live_percent(const struct gild_segment_fact *fact) {
    return (unsigned)(fact->live_blocks * 100 / (fact->blocks - 1));
}

static uint64_t age_of(const struct gild_segment_fact *fact, const struct clean_need *need) {
    return fact->closed_s && fact->closed_s < need->now_s ? need->now_s - fact->closed_s : 0;
}

/* Is it worth it at all, and for what? */
static bool eligible(const struct gild_segment_fact *fact, const struct clean_need *need,
                     bool hurry) {
    bool due = need->all || hurry || age_of(fact, need) >= need->cold_s;
    if (!fact->live_blocks)
        return false; /* the next checkpoint takes it */
    if (fact->holds_nodes)
        return due && live_percent(fact) <= (need->all ? NODES_ALL_PERCENT : NODES_PERCENT);
    return need->only_log ? live_percent(fact) <= WORTH_PERCENT : due;
}

struct scored {
    struct gild_segment_fact fact;
    double score;
};

static int by_score(const void *a, const void *b) {
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->fact.serial < y->fact.serial ? -1 : x->fact.serial > y->fact.serial;
}

static double score(const struct gild_segment_fact *fact, const struct clean_need *need) {
    double live = (double)fact->live_blocks / (double)(fact->blocks - 1);
    double gain = live < 1 ? 1 - live : 0;
    return (gain + 0.01) * (1 + (double)age_of(fact, need)) / (1 + live);
}

/* Takes victims until the pass is full, or enough of the log will be free. */
static void take(struct clean_choice *choice, size_t eligible_count,
                 const struct clean_need *need) {
    uint64_t live = 0, freed = 0, want = UINT64_MAX, most = PASS_BLOCKS;
    if (choice->urgency == CLEAN_HURRY && !need->all) {
        uint64_t target = gild_max_u64(2 * HURRY_LEAST, need->total / (HURRY_SHARE / 2));
        want = target > need->available ? target - need->available : 1;
        /* What is moved needs room before what it leaves is room: small passes, soon, where there
         * is little; guests fill the other half meanwhile. */
        most = gild_min_u64(most, need->room * choice->victims[0].blocks / 2);
    }
    while (choice->count < eligible_count && (!choice->count || live < most)) {
        const struct gild_segment_fact *fact = &choice->victims[choice->count];
        if (choice->count && live + fact->live_blocks > most)
            break;
        choice->count++;
        live += fact->live_blocks;
        freed += fact->blocks - gild_min_u64(fact->live_blocks, fact->blocks);
        if (freed / fact->blocks >= want)
            break;
    }
    if (choice->urgency == CLEAN_LEISURE && !need->all && live < LEAST_BLOCKS)
        choice->count = 0;
}

struct clean_choice cleaner_choose(struct gild_segment_fact *facts, size_t count,
                                   const struct clean_need *need) {
    struct clean_choice choice = {.victims = facts};
    uint64_t low = gild_max_u64(HURRY_LEAST, need->total / HURRY_SHARE);
    bool hurry = need->available < low;
    struct scored *scored = malloc((count + 1) * sizeof *scored);
    size_t n = 0;
    for (size_t i = 0; scored && i < count; i++)
        if (eligible(&facts[i], need, hurry))
            scored[n++] = (struct scored){facts[i], score(&facts[i], need)};
    if (n) {
        qsort(scored, n, sizeof *scored, by_score);
        for (size_t i = 0; i < n; i++)
            facts[i] = scored[i].fact;
        choice.urgency = hurry ? CLEAN_HURRY : CLEAN_LEISURE;
        choice.pack_young = need->all || live_percent(&facts[0]) > WORTH_PERCENT;
        take(&choice, n, need);
    }
    if (!choice.count)
        choice.urgency = CLEAN_REST;
    free(scored);
    return choice;
}
