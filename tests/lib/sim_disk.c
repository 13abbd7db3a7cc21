/* See sim_disk.h. The pages of files, and what a power cut leaves of them; names are in
 * sim_names.c, the calls of the C library in sim_files.c.
 *
 * One thread runs at a time (sim_threads.h), so nothing here is locked. Memory of unlinked files
 * and settled versions goes back; the rest lives as long as the process, which is one history. */
#include "sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "sim_inode.h"
#include "sim_threads.h"

static struct {
    void (*point)(void *context, enum sim_point what);
    void *context;
    uint64_t points;
    uint64_t next_order;
    struct {
        bool armed, for_good;
        uint64_t after, fired;
        int error;
    } faults[SIM_CALLS];
} disk;

/* ---- points and faults ----------------------------------------------------------------------- */

void sim_disk_on_point(void (*point)(void *context, enum sim_point what), void *context) {
    disk.point = point;
    disk.context = context;
}

void sim_disk_point(enum sim_point what) {
    disk.points++;
    if (disk.point)
        disk.point(disk.context, what);
}

uint64_t sim_disk_points(void) {
    return disk.points;
}

void sim_disk_fail(enum sim_call call, uint64_t after, int error, bool for_good) {
    disk.faults[call].armed = true;
    disk.faults[call].for_good = for_good;
    disk.faults[call].after = after;
    disk.faults[call].error = error;
}

void sim_disk_mend(void) {
    for (unsigned i = 0; i < SIM_CALLS; i++)
        disk.faults[i].armed = false;
}

uint64_t sim_disk_fired(enum sim_call call) {
    uint64_t fired = disk.faults[call].fired;
    disk.faults[call].fired = 0;
    return fired;
}

static int fault(enum sim_call call) {
    if (!disk.faults[call].armed || disk.faults[call].after-- > 0)
        return 0;
    disk.faults[call].after = 0;
    disk.faults[call].armed = disk.faults[call].for_good;
    disk.faults[call].fired++;
    return -disk.faults[call].error;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void *need(void *memory) {
    if (!memory)
        abort();
    return memory;
}

static struct sim_page *page_at(struct sim_inode *inode, uint64_t number, bool make) {
    if (number >= inode->page_room) {
        if (!make)
            return NULL;
        uint64_t room = inode->page_room ? inode->page_room : 64;
        while (room <= number)
            room *= 2;
        inode->pages = need(realloc(inode->pages, room * sizeof *inode->pages));
        memset(inode->pages + inode->page_room, 0,
               (room - inode->page_room) * sizeof *inode->pages);
        inode->page_room = room;
    }
    if (!inode->pages[number] && make) {
        inode->pages[number] = need(calloc(1, sizeof(struct sim_page)));
    }
    return inode->pages[number];
}

static bool is_zero(const uint8_t *bytes, size_t length) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* What a reader sees of the page; NULL: zeroes. */
static const uint8_t *seen(const struct sim_page *page) {
    if (!page)
        return NULL;
    return page->newest ? page->newest->bytes : page->durable;
}

static void add_version(struct sim_inode *inode, struct sim_page *page, const uint8_t *bytes,
                        uint64_t write) {
    struct sim_version *version = need(malloc(sizeof *version));
    version->write = write;
    version->done = 0;
    memcpy(version->bytes, bytes, SIM_PAGE);
    version->older = page->newest;
    page->newest = version;
    if (!page->listed) { /* among the pages that a sync has to look at */
        page->listed = true;
        page->next = inode->unsynced;
        inode->unsynced = page;
    }
}

/* A version and what is older than it settles: it becomes the durable one. */
static void settle(struct sim_page *page, struct sim_version **at) {
    struct sim_version *version = *at;
    *at = NULL;
    if (!page->durable)
        page->durable = need(malloc(SIM_PAGE));
    memcpy(page->durable, version->bytes, SIM_PAGE);
    while (version) {
        struct sim_version *older = version->older;
        free(version);
        version = older;
    }
}

/* Of each page the newest version that was done before `order`. */
static void settle_all(struct sim_inode *inode, uint64_t order) {
    struct sim_page **at = &inode->unsynced, *page;
    while ((page = *at)) {
        struct sim_version **version = &page->newest;
        while (*version && !((*version)->done && (*version)->done < order))
            version = &(*version)->older;
        if (*version)
            settle(page, version);
        if (page->newest) {
            at = &page->next;
        } else {
            page->listed = false;
            *at = page->next;
        }
    }
}

/* ---- transfers ------------------------------------------------------------------------------- */

long sim_disk_read(int fd, void *buffer, size_t length, uint64_t offset) {
    struct sim_inode *inode = sim_inode_of(fd);
    if (!inode)
        return -EBADF;
    int error = fault(SIM_CALL_READ);
    if (error)
        return error;
    if (offset >= inode->size)
        return 0;
    if (length > inode->size - offset)
        length = (size_t)(inode->size - offset);
    for (size_t did = 0; did < length;) {
        size_t in = (offset + did) % SIM_PAGE, part = SIM_PAGE - in;
        if (part > length - did)
            part = length - did;
        const uint8_t *bytes = seen(page_at(inode, (offset + did) / SIM_PAGE, false));
        if (bytes)
            memcpy((uint8_t *)buffer + did, bytes + in, part);
        else
            memset((uint8_t *)buffer + did, 0, part);
        did += part;
    }
    return (long)length;
}

long sim_disk_write_begin(int fd, const void *buffer, size_t length, uint64_t offset,
                          uint64_t *write) {
    struct sim_inode *inode = sim_inode_of(fd);
    uint8_t whole[SIM_PAGE];
    if (!inode)
        return -EBADF;
    int error = fault(SIM_CALL_WRITE);
    if (error)
        return error;
    *write = ++disk.next_order;
    bool changed = offset + length > inode->size;
    for (size_t did = 0; did < length;) {
        size_t in = (offset + did) % SIM_PAGE, part = SIM_PAGE - in;
        if (part > length - did)
            part = length - did;
        const uint8_t *from = (const uint8_t *)buffer + did;
        uint64_t number = (offset + did) / SIM_PAGE;
        did += part;
        /* Zeroes where nothing ever was: what a file is prepared with. */
        if (!page_at(inode, number, false) && is_zero(from, part))
            continue;
        struct sim_page *page = page_at(inode, number, true);
        const uint8_t *before = seen(page);
        if (before)
            memcpy(whole, before, SIM_PAGE);
        else
            memset(whole, 0, SIM_PAGE);
        memcpy(whole + in, from, part);
        add_version(inode, page, whole, *write);
        changed = true;
    }
    if (offset + length > inode->size)
        inode->size = offset + length;
    if (changed)
        sim_disk_point(SIM_WRITE);
    return (long)length;
}

void sim_disk_write_done(int fd, uint64_t write, bool durable) {
    struct sim_inode *inode = sim_inode_of(fd);
    uint64_t now = ++disk.next_order;
    for (struct sim_page *page = inode ? inode->unsynced : NULL; page; page = page->next) {
        struct sim_version **at = &page->newest;
        while (*at && (*at)->write != write)
            at = &(*at)->older;
        if (!*at)
            continue;
        (*at)->done = now;
        if (durable)
            settle(page, at);
    }
    if (!durable || !inode)
        return;
    inode->durable_size = inode->size;
    sim_disk_point(SIM_SYNCED);
}

int sim_disk_sync_begin(int fd, uint64_t *sync) {
    int error = sim_inode_of(fd) ? fault(SIM_CALL_SYNC) : -EBADF;
    if (error)
        return error;
    *sync = ++disk.next_order; /* what is done by now, has a lower number */
    sim_disk_point(SIM_SYNC);
    return 0;
}

void sim_disk_sync_done(int fd, uint64_t sync) {
    struct sim_inode *inode = sim_inode_of(fd);
    if (!inode)
        return;
    settle_all(inode, sync);
    inode->durable_size = inode->size;
    sim_names_settle(inode);
    sim_disk_point(SIM_SYNCED);
}

/* ---- the power cut --------------------------------------------------------------------------- */

static void tear(struct sim_page *page, enum sim_cut cut, uint8_t out[SIM_PAGE]) {
    unsigned versions = 0;
    for (struct sim_version *version = page->newest; version; version = version->older)
        versions++;
    for (unsigned at = 0; at < SIM_PAGE; at += SIM_SECTOR) {
        const uint8_t *from = page->durable;
        bool under_way = false;
        uint64_t pick = sim_below(versions + 1); /* 0: the durable one */
        for (struct sim_version *version = page->newest; pick; version = version->older, pick--) {
            from = version->bytes;
            under_way = !version->done;
        }
        if (from)
            memcpy(out + at, from + at, SIM_SECTOR);
        else
            memset(out + at, 0, SIM_SECTOR);
        if (cut == SIM_GARBLE && under_way && sim_chance(200))
            for (unsigned i = 0; i < SIM_SECTOR; i++)
                out[at + i] = (uint8_t)sim_random();
    }
}

static void cut_page(struct sim_page *page, enum sim_cut cut) {
    uint8_t left[SIM_PAGE];
    page->listed = false;
    if (!page->newest) /* settled by a write of its own */
        return;
    bool keep = cut == SIM_KEEP_ALL || (cut != SIM_DROP_ALL && sim_chance(500));
    bool torn = keep && cut >= SIM_TEAR && sim_chance(300);
    if (torn) {
        tear(page, cut, left);
    } else if (keep) {
        struct sim_version *version = page->newest;
        while (cut != SIM_KEEP_ALL && version->older && sim_chance(500))
            version = version->older;
        memcpy(left, version->bytes, SIM_PAGE);
    }
    if (keep) {
        if (!page->durable)
            page->durable = need(malloc(SIM_PAGE));
        memcpy(page->durable, left, SIM_PAGE);
    }
    while (page->newest) {
        struct sim_version *older = page->newest->older;
        free(page->newest);
        page->newest = older;
    }
}

void sim_inode_cut(struct sim_inode *inode, enum sim_cut cut) {
    while (inode->unsynced) {
        struct sim_page *page = inode->unsynced;
        inode->unsynced = page->next;
        cut_page(page, cut);
    }
    if (cut == SIM_KEEP_ALL || (cut != SIM_DROP_ALL && sim_chance(500)))
        inode->durable_size = inode->size;
    inode->size = inode->durable_size;
    for (uint64_t i = 0; i < inode->page_room; i++) /* what lay beyond the end is not there */
        if (inode->pages[i] && i * SIM_PAGE >= inode->size) {
            free(inode->pages[i]->durable);
            inode->pages[i]->durable = NULL;
        }
}

uint64_t sim_inode_hash(const struct sim_inode *inode, uint64_t seed) {
    uint64_t sum = seed ^ inode->durable_size;
    for (uint64_t i = 0; i < inode->page_room; i++) {
        const struct sim_page *page = inode->pages[i];
        if (page && page->durable && !is_zero(page->durable, SIM_PAGE))
            sum = XXH3_64bits_withSeed(page->durable, SIM_PAGE, sum * 31 + i);
    }
    return sum;
}

void sim_disk_cut(enum sim_cut cut) {
    sim_names_cut(cut);
    disk.point = NULL;
    sim_disk_mend();
}

uint64_t sim_disk_hash(void) {
    return sim_names_hash();
}
