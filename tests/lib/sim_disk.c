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
#include <sys/mman.h>
#include <xxhash.h>

#include "sim_inode.h"
#include "sim_threads.h"

#define MOST_ROTS 16u
#define MAP_AT_ONCE ((size_t)128 << 10)

static struct {
    void (*point)(void *context, enum sim_point what);
    void *context;
    uint64_t points;
    uint64_t next_order;
    struct sim_disk_counts *counts;
    struct sim_damage damage;
    struct rot {
        struct sim_inode *inode;
        uint64_t page;
        uint64_t settled;
        uint8_t before[SIM_PAGE];
    } rots[MOST_ROTS];
    unsigned rot_count;
    uint64_t bound;
} disk;

#define BIT(fault) (1u << (fault))

/* ---- points ---------------------------------------------------------------------------------- */

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

/* ---- size ------------------------------------------------------------------------------------ */

void sim_disk_bound(uint64_t bytes) {
    disk.bound = bytes;
}

uint64_t sim_disk_used(void) {
    return sim_names_bytes();
}

uint64_t sim_disk_free(void) {
    if (!disk.bound)
        return UINT64_MAX;
    uint64_t used = sim_names_bytes();
    return used < disk.bound ? disk.bound - used : 0;
}

bool sim_disk_fits(const struct sim_inode *inode, uint64_t size) {
    return size <= inode->size || size - inode->size <= sim_disk_free();
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
    inode->written_ns = sim_now_ns();
    struct sim_version *version = need(malloc(sizeof *version));
    version->write = write;
    version->done = 0;
    version->doomed = false;
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
    page->settled++;
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
        while (*version && ((*version)->doomed || !(*version)->done || (*version)->done >= order))
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

void sim_disk_count_in(struct sim_disk_counts *counts) {
    disk.counts = counts;
}

void sim_disk_renamed(const struct sim_inode *inode) {
    if (disk.counts && inode->log)
        disk.counts->recycled++;
}

/* ---- damage ---------------------------------------------------------------------------------- */

const struct sim_damage *sim_disk_damage(void) {
    return &disk.damage;
}

/* Can this page rot? What is durable and seen must be the same bytes, and some. */
static bool rottable(const struct sim_page *page) {
    return page && page->durable && !page->newest && !is_zero(page->durable, SIM_PAGE) &&
           disk.rot_count < MOST_ROTS;
}

void sim_inode_rot(struct sim_inode *inode, uint64_t number) {
    struct sim_page *page = inode->pages[number];
    struct rot *rot = &disk.rots[disk.rot_count++];
    rot->inode = inode;
    rot->page = number;
    rot->settled = page->settled;
    memcpy(rot->before, page->durable, SIM_PAGE);
    if (sim_chance(300)) { /* a sector that reads as something else */
        uint8_t *sector = page->durable + SIM_SECTOR * sim_below(SIM_PAGE / SIM_SECTOR);
        for (unsigned i = 0; i < SIM_SECTOR; i++)
            sector[i] = (uint8_t)sim_random();
    } else if (sim_chance(300)) {
        memset(page->durable, 0, SIM_PAGE);
    } else {
        page->durable[sim_below(SIM_PAGE)] ^= (uint8_t)(1u << sim_below(8));
    }
    disk.damage.rots++;
    disk.damage.log = disk.damage.log || inode->log;
}

static bool rottable_within(const struct sim_inode *inode, uint64_t first, uint64_t count,
                            uint64_t *out) {
    uint64_t found = 0;
    if (!inode->rots)
        return false;
    for (uint64_t i = first; i < first + count && i < inode->page_room; i++)
        if (rottable(inode->pages[i]) && sim_below(++found) == 0)
            *out = i;
    return found > 0;
}

bool sim_inode_rottable(const struct sim_inode *inode, uint64_t *page) {
    return rottable_within(inode, 0, inode->page_room, page);
}

bool sim_disk_rot(void) {
    struct sim_inode *inode = sim_names_pick();
    uint64_t page;
    if (!inode || !sim_inode_rottable(inode, &page))
        return false;
    sim_inode_rot(inode, page);
    sim_fault_note(SIM_AT_REST, SIM_ROT);
    return true;
}

void sim_disk_unrot(void) {
    while (disk.rot_count) { /* the newest first: a page may have rotted twice */
        struct rot *rot = &disk.rots[--disk.rot_count];
        struct sim_page *page = rot->inode->pages[rot->page];
        if (page->settled == rot->settled) /* else it was written anew */
            memcpy(page->durable, rot->before, SIM_PAGE);
    }
    disk.damage.rots = 0;
    if (!disk.damage.misdirected)
        disk.damage.log = false;
}

void sim_disk_forgive(void) {
    disk.rot_count = 0;
    memset(&disk.damage, 0, sizeof disk.damage);
}

void sim_disk_make_file(const char *path, uint64_t size, sim_disk_fill *fill, uint64_t seed) {
    struct sim_inode *inode;
    if (sim_names_find(path, &inode) && sim_names_create(path, false, &inode))
        abort();
    inode->size = inode->durable_size = size;
    inode->fill = fill;
    inode->seed = seed;
}

void sim_disk_list(const char *folder, sim_disk_visit *visit, void *context) {
    const char *name;
    for (unsigned i = 0; (name = sim_names_in(folder, i)); i++)
        visit(context, name);
}

/* ---- transfers ------------------------------------------------------------------------------- */

/* Fewer bytes than asked for, whole sectors. */
static size_t fewer(size_t length) {
    return SIM_SECTOR * (1 + (size_t)sim_below(length / SIM_SECTOR - 1));
}

static int fail_read(enum sim_site site, struct sim_inode *inode, size_t *length, uint64_t offset) {
    uint64_t page;
    unsigned able = BIT(SIM_EIO) | (*length >= 2 * SIM_SECTOR ? BIT(SIM_SHORT) : 0);
    if (rottable_within(inode, offset / SIM_PAGE, (*length + SIM_PAGE - 1) / SIM_PAGE, &page))
        able |= BIT(SIM_ROT);
    switch (sim_fault_at(site, able)) {
    case SIM_EIO:
        return -EIO;
    case SIM_SHORT:
        *length = fewer(*length);
        break;
    case SIM_ROT:
        sim_inode_rot(inode, page);
        break;
    default:
        break;
    }
    return 0;
}

/* Every machine that is opened reads mostly zeroes into fresh memory, page by page: half of the
 * time of the tests that cut the power was spent in those page faults. */
static void map_at_once(void *buffer, size_t length) {
    uintptr_t from = ((uintptr_t)buffer + SIM_PAGE - 1) & ~(uintptr_t)(SIM_PAGE - 1);
    uintptr_t end = ((uintptr_t)buffer + length) & ~(uintptr_t)(SIM_PAGE - 1);
    if (end > from && end - from >= MAP_AT_ONCE)
        madvise((void *)from, end - from, MADV_POPULATE_READ);
}

long sim_disk_read(enum sim_site site, int fd, void *buffer, size_t length, uint64_t offset) {
    struct sim_inode *inode = sim_inode_of(fd);
    uint8_t made[SIM_PAGE];
    if (!inode)
        return -EBADF;
    if (offset >= inode->size)
        return 0;
    if (length > inode->size - offset)
        length = (size_t)(inode->size - offset);
    int error = fail_read(site, inode, &length, offset);
    if (error)
        return error;
    map_at_once(buffer, length);
    for (size_t did = 0; did < length;) {
        size_t in = (offset + did) % SIM_PAGE, part = SIM_PAGE - in;
        if (part > length - did)
            part = length - did;
        const uint8_t *bytes = made;
        if (inode->fill)
            inode->fill(inode->seed, (offset + did) / SIM_PAGE, made);
        else
            bytes = seen(page_at(inode, (offset + did) / SIM_PAGE, false));
        if (bytes)
            memcpy((uint8_t *)buffer + did, bytes + in, part);
        else if (!is_zero((uint8_t *)buffer + did, part))
            memset((uint8_t *)buffer + did, 0, part);
        did += part;
    }
    return (long)length;
}

static int fail_write(enum sim_site site, struct sim_inode *inode, size_t *length,
                      uint64_t *offset) {
    uint64_t places = inode->size > *length ? (inode->size - *length) / SIM_PAGE + 1 : 1;
    unsigned able = BIT(SIM_EIO) | BIT(SIM_ENOSPC);
    if (*length >= 2 * SIM_SECTOR)
        able |= BIT(SIM_SHORT);
    if (inode->rots && places > 1 && *offset % SIM_PAGE == 0 && *length % SIM_PAGE == 0)
        able |= BIT(SIM_MISDIRECTED);
    switch (sim_fault_at(site, able)) {
    case SIM_EIO: /* some of it may have reached the device */
        if (*length < 2 * SIM_SECTOR || sim_chance(500))
            return -EIO;
        *length = fewer(*length);
        return 1;
    case SIM_ENOSPC:
        return -ENOSPC;
    case SIM_SHORT:
        *length = fewer(*length);
        break;
    case SIM_MISDIRECTED:
        *offset = (*offset / SIM_PAGE + 1 + sim_below(places - 1)) % places * SIM_PAGE;
        disk.damage.misdirected++;
        disk.damage.log = disk.damage.log || inode->log;
        break;
    default:
        break;
    }
    return 0;
}

long sim_disk_write_begin(enum sim_site site, int fd, const void *buffer, size_t length,
                          uint64_t offset, uint64_t *write) {
    struct sim_inode *inode = sim_inode_of(fd);
    uint8_t whole[SIM_PAGE];
    if (!inode)
        return -EBADF;
    int failed = fail_write(site, inode, &length, &offset);
    if (failed < 0)
        return failed;
    if (!sim_disk_fits(inode, offset + length))
        return -ENOSPC;
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
    if (inode->log && changed && offset && offset + length + 8 * SIM_PAGE > inode->size &&
        disk.counts)
        disk.counts->full++;
    if (changed)
        sim_disk_point(SIM_WRITE);
    return failed ? -EIO : (long)length;
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

int sim_disk_sync_begin(enum sim_site site, int fd, uint64_t *sync) {
    struct sim_inode *inode = sim_inode_of(fd);
    if (!inode)
        return -EBADF;
    if (sim_fault_at(site, BIT(SIM_EIO)) == SIM_EIO) {
        for (struct sim_page *page = inode->unsynced; page; page = page->next)
            for (struct sim_version *version = page->newest; version; version = version->older)
                version->doomed = true;
        return -EIO;
    }
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
        page->settled++;
    }
    while (page->newest) {
        struct sim_version *older = page->newest->older;
        free(page->newest);
        page->newest = older;
    }
}

void sim_inode_truncate(struct sim_inode *inode, uint64_t size) {
    inode->written_ns = sim_now_ns();
    uint8_t whole[SIM_PAGE];
    for (uint64_t i = size / SIM_PAGE; i < inode->page_room; i++) {
        const uint8_t *before = seen(inode->pages[i]);
        size_t keep = i == size / SIM_PAGE ? (size_t)(size % SIM_PAGE) : 0;
        if (!before || is_zero(before, SIM_PAGE))
            continue;
        memset(whole, 0, SIM_PAGE);
        memcpy(whole, before, keep);
        add_version(inode, inode->pages[i], whole, ++disk.next_order);
        inode->pages[i]->newest->done = ++disk.next_order;
    }
    inode->size = size;
    sim_disk_point(SIM_WRITE);
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
    sim_fault_mend();
}

uint64_t sim_disk_hash(void) {
    return sim_names_hash();
}
