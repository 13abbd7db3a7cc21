/* Timeouts of one loop, soonest first: a pairing heap through the I/Os' own fields, so that any
 * number of them costs no memory (Fredman et al., "The pairing heap", 1986). Adding is O(1), taking
 * the soonest or removing any is O(log n) amortised. Ties run in no set order. */
#ifndef GILD_IO_TIMERS_H
#define GILD_IO_TIMERS_H

#include <stdint.h>

#include "gild/loop.h"

struct io_timers {
    struct gild_io *soonest; /* NULL: none */
};

void io_timers_add(struct io_timers *timers, struct gild_io *io); /* io->offset: when, ns */
void io_timers_remove(struct io_timers *timers, struct gild_io *io);

#endif
