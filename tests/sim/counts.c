/* See counts.h. */
#include "counts.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef GILD_TEST_COMMIT
#define GILD_TEST_COMMIT "unknown"
#endif

struct machine_counts *counts_make(void) {
    void *memory = mmap(NULL, sizeof(struct machine_counts), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    return memory;
}

void counts_note_state(struct machine_counts *counts, uint64_t hash) {
    counts->states++;
    hash += hash == 0;
    for (unsigned i = 0; i < 256; i++) {
        _Atomic uint64_t *slot = &counts->hashes[(hash + i) % COUNTS_HASHES];
        uint64_t there = 0;
        if (atomic_compare_exchange_strong(slot, &there, hash)) {
            counts->distinct++;
            return;
        }
        if (there == hash)
            return;
    }
}

/* The least of a run of power cuts that says it was enough. */
#define DISTINCT 10000u

static bool line(const char *what, uint64_t count, uint64_t least) {
    printf("  %-24s %10" PRIu64 "%s\n", what, count, count < least ? "   TOO FEW" : "");
    return count >= least;
}

bool counts_print(const struct machine_counts *counts, bool faults, uint64_t least) {
    static const char *const ops[MACHINE_OPS] = {
        "write",        "write of a part", "write FUA", "flush",        "trim",
        "zero",         "zero no hole",    "read",      "block status", "fill",
        "checkpoint",   "close, open",     "import",    "clone",        "clone delete",
        "image delete", "check",           "collect",   "clean"};
    static const char *const cuts[] = {"all kept", "all dropped", "some kept", "torn", "garbled"};
    static const char *const wrongs[WRONGS] = {"lost acknowledgements", "wrong bytes",
                                               "undetected rot", "other failures"};
    char name[40];
    bool enough = true;
    for (unsigned i = 0; i < MACHINE_OPS; i++)
        enough &= line(ops[i], counts->ops[i], faults ? least : 0);
    for (unsigned i = 0; i <= SIM_GARBLE; i++) {
        snprintf(name, sizeof name, "power cut, %s", cuts[i]);
        enough &= line(name, counts->cuts[i], least);
    }
    if (faults)
        enough &= sim_faults_print(&counts->faults, least);
    line("stores opened", counts->lives, 0);
    enough &= line("catalogues made again", counts->rebuilt, faults ? least : 0);
    line("at the second try", counts->retried, 0);
    line("refused, disk damaged", counts->refused, 0);
    line("EIO, disk damaged", counts->detected, 0);
    line("segments written to the end", counts->disk.full, faults ? least : 0);
    line("segments recycled", counts->disk.recycled, faults ? least : 0);
    enough &= line("file systems made full", counts->squeezed, faults ? least : 0);
    enough &= line("made roomy again", counts->relaxed, faults ? least : 0);
    enough &= line("blocks packed", counts->packed, least);
    enough &= line("of these, shared", counts->shared, faults ? least : 0);
    enough &= line("moved within the log", counts->relocated, least);
    enough &= line("refused for want of space", counts->no_space, faults ? least : 0);
    line("power cuts", counts->states, 0);
    enough &= line("distinct durable images", counts->distinct, faults || !least ? 0 : DISTINCT);
    for (unsigned i = 0; i < WRONGS; i++)
        line(wrongs[i], counts->wrong[i], 0);
    return enough;
}

const char *counts_commit(void) {
    return GILD_TEST_COMMIT;
}
