/* See mend.h.
 *
 *   read every page: whole nodes of this map are noted by their index
 *     -> each leaf is: there | a hole (its directory says so) | rotten (named, not there) | unknown
 *     -> unknown leaves are holes if all data that the catalogue counts is there, else LOST
 *     -> a new file beside the old one, synced; the old one linked to `aside`; renamed over
 *
 * A map's file is written once, so that a whole node of it is never a stale one. Blocking, any
 * thread. Failure modes: no memory, no space, an unreadable device; the old file stays. */
#include "map/mend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "map/format.h"
#include "map/sealed.h"

#define READ_PAGES 256u
#define NOT_THERE 0u /* page 0 is the header */

struct mending {
    const struct gild_map_mend *asked;
    struct gild_map_mended *result;
    int fd; /* of the damaged file, -1: there is none */
    uint64_t leaves, dirs, roots;
    uint64_t *leaf_at, *dir_at, *root_at; /* pages of whole nodes by index */
    uint64_t found_blocks, found_leaves;
    uint64_t footer_leaves; /* UINT64_MAX: not known */
    uint8_t *pages;         /* READ_PAGES */
    struct gild_dir *dir;   /* the one looked into last */
    uint64_t dir_index;
    struct gild_dir *root;
    uint64_t root_index;
    /* The range of lost blocks that is being told. */
    uint64_t lost_first, lost_count;
    /* Writing. */
    int to;
    uint64_t written;
};

static void tell_lost(struct mending *m, uint64_t block, uint64_t count) {
    m->result->lost_blocks += count;
    if (m->lost_count && m->lost_first + m->lost_count == block) {
        m->lost_count += count;
        return;
    }
    if (m->lost_count)
        m->asked->lost(m->asked->context, m->lost_first, m->lost_count);
    m->lost_first = block;
    m->lost_count = count;
}

static void tell_lost_end(struct mending *m) {
    if (m->lost_count)
        m->asked->lost(m->asked->context, m->lost_first, m->lost_count);
    m->lost_count = 0;
}

static uint64_t blocks_of_leaf(const struct mending *m, uint64_t leaf) {
    uint64_t blocks = gild_blocks_of(m->asked->size_bytes), first = leaf * GILD_LEAF_BLOCKS;
    return blocks - first < GILD_LEAF_BLOCKS ? blocks - first : GILD_LEAF_BLOCKS;
}

/* ---- is it whole? ---------------------------------------------------------------------------- */

/* Makes LOST what lies in lost packs; tells it and counts the rest. True: the leaf was changed. */
static bool judge_leaf(struct mending *m, uint64_t index, struct gild_leaf *leaf) {
    uint64_t blocks = blocks_of_leaf(m, index);
    bool changed = false;
    for (uint32_t i = 0; i < blocks; i++) {
        uint64_t place = leaf->place[i];
        bool packed = gild_place_type(place) == GILD_PLACE_PACK;
        if (packed && m->asked->pack_lost(m->asked->context, gild_place_pack_id(place))) {
            leaf->place[i] = gild_place_of_type(GILD_PLACE_LOST);
            leaf->check[i] = 0;
            changed = true;
            packed = false;
        }
        m->result->data_blocks += packed;
        if (gild_place_type(leaf->place[i]) == GILD_PLACE_LOST)
            tell_lost(m, index * GILD_LEAF_BLOCKS + i, 1);
    }
    return changed;
}

static int look_leaf(void *context, uint64_t index, const struct gild_leaf *leaf) {
    struct mending *m = context;
    struct gild_leaf *copy = (void *)m->pages;
    memcpy(copy, leaf, sizeof *copy);
    return judge_leaf(m, index, copy) ? -EBADMSG : 0;
}

/* 0: whole; -EBADMSG: to be mended; another: not to be judged. */
static int look(struct mending *m, struct gild_error *error) {
    const struct gild_map_mend *asked = m->asked;
    struct gild_sealed_map *map;
    int err = gild_sealed_open(&map, asked->directory, asked->store_id, asked->map_id, error);
    if (err)
        return err == -ENOENT ? -EBADMSG : err;
    if (map->size_bytes != asked->size_bytes)
        err = -EBADMSG;
    if (!err)
        err = gild_sealed_walk(map, look_leaf, m);
    gild_sealed_close(map);
    return err;
}

/* ---- what is there --------------------------------------------------------------------------- */

static void note_page(struct mending *m, uint64_t at, const uint8_t *page) {
    const struct gild_node_header *node = (const void *)page;
    uint64_t map_id = m->asked->map_id, index = node->index;
    if (node->magic != GILD_NODE_MAGIC || node->owner != map_id ||
        gild_node_verify(page, node->kind, map_id, index))
        return;
    if (node->kind == GILD_NODE_DIR && index < m->dirs)
        m->dir_at[index] = at;
    if (node->kind == GILD_NODE_ROOT && index < m->roots)
        m->root_at[index] = at;
    if (node->kind != GILD_NODE_LEAF || index >= m->leaves)
        return;
    const struct gild_leaf *leaf = (const void *)page;
    m->leaf_at[index] = at;
    m->found_leaves++;
    for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
        m->found_blocks += gild_place_type(leaf->place[i]) == GILD_PLACE_PACK;
}

static int scan(struct mending *m) {
    uint64_t bytes = 0;
    int err = m->fd < 0 ? 0 : gild_file_size(m->fd, &bytes);
    uint64_t pages = bytes / GILD_NODE_BYTES;
    for (uint64_t at = 0; at < pages && !err; at += READ_PAGES) {
        uint64_t count = pages - at < READ_PAGES ? pages - at : READ_PAGES;
        err = gild_file_read(m->fd, m->pages, count * GILD_NODE_BYTES, at * GILD_NODE_BYTES);
        for (uint64_t i = 0; i < count && !err; i++)
            note_page(m, at + i, m->pages + i * GILD_NODE_BYTES);
        const struct map_footer *footer = (const void *)(m->pages + (count - 1) * GILD_NODE_BYTES);
        if (!err && at + count == pages && footer->magic == MAP_FOOTER_MAGIC &&
            footer->map_id == m->asked->map_id && footer->pages == pages &&
            footer->check == map_page_check(footer, m->asked->map_id))
            m->footer_leaves = footer->leaves;
    }
    return err;
}

static int read_node(struct mending *m, uint64_t page, enum gild_node_kind kind, uint64_t index,
                     void *node) {
    int err = gild_file_read(m->fd, node, GILD_NODE_BYTES, page * GILD_NODE_BYTES);
    return err ? err : gild_node_verify(node, kind, m->asked->map_id, index);
}

enum leaf_state { LEAF_HERE, LEAF_HOLE, LEAF_LOST, LEAF_UNKNOWN };

/* What the root says of a directory that is not there: UNKNOWN if it may have named leaves. */
static int state_by_root(struct mending *m, uint64_t dir, enum leaf_state *state) {
    uint64_t root = dir / GILD_DIR_REFS;
    *state = LEAF_UNKNOWN;
    if (!m->root_at[root])
        return 0;
    if (m->root_index != root) {
        int err = read_node(m, m->root_at[root], GILD_NODE_ROOT, root, m->root);
        if (err)
            return err;
        m->root_index = root;
    }
    uint64_t ref = m->root->ref[dir % GILD_DIR_REFS];
    *state = ref == 0 ? LEAF_HOLE : ref == GILD_SEALED_LOST ? LEAF_LOST : LEAF_UNKNOWN;
    return 0;
}

static int state_of(struct mending *m, uint64_t leaf, enum leaf_state *state) {
    uint64_t dir = leaf / GILD_DIR_REFS;
    *state = LEAF_HERE;
    if (m->leaf_at[leaf])
        return 0;
    if (!m->dir_at[dir])
        return state_by_root(m, dir, state);
    if (m->dir_index != dir) {
        int err = read_node(m, m->dir_at[dir], GILD_NODE_DIR, dir, m->dir);
        if (err)
            return err;
        m->dir_index = dir;
    }
    *state = m->dir->ref[leaf % GILD_DIR_REFS] == 0 ? LEAF_HOLE : LEAF_LOST;
    return 0;
}

/* ---- writing anew ---------------------------------------------------------------------------- */

/* The number of the page that was written; none with dry_run. */
static int put_page(struct mending *m, const void *page, uint64_t *number) {
    *number = m->written++;
    return m->to < 0 ? 0 : gild_file_write(m->to, page, GILD_NODE_BYTES, *number * GILD_NODE_BYTES);
}

/* Copies (or judges) the leaves of one directory; its page, 0 or LOST in *ref. */
static int put_dir(struct mending *m, uint64_t dir, bool complete, uint64_t *ref,
                   uint64_t *leaf_count) {
    struct gild_dir *page = (void *)m->pages;
    struct gild_leaf *leaf = (void *)(m->pages + GILD_NODE_BYTES);
    bool any = false, all_lost = true;
    int err = 0;
    memset(page, 0, sizeof *page);
    for (uint64_t i = 0; i < GILD_DIR_REFS && !err; i++) {
        uint64_t index = dir * GILD_DIR_REFS + i;
        enum leaf_state state = LEAF_HOLE;
        if (index >= m->leaves)
            break;
        err = state_of(m, index, &state);
        if (!err && state == LEAF_HERE) {
            err = read_node(m, m->leaf_at[index], GILD_NODE_LEAF, index, leaf);
            if (!err && judge_leaf(m, index, leaf))
                gild_node_seal(leaf, GILD_NODE_LEAF, m->asked->map_id, index);
            if (!err)
                err = put_page(m, leaf, &page->ref[i]);
            ++*leaf_count;
        } else if (state == LEAF_LOST || (state == LEAF_UNKNOWN && !complete)) {
            page->ref[i] = GILD_SEALED_LOST;
            ++*leaf_count; /* as it was sealed: this file can never look complete again */
            tell_lost(m, index * GILD_LEAF_BLOCKS, blocks_of_leaf(m, index));
        }
        any = any || page->ref[i];
        all_lost = all_lost && page->ref[i] == GILD_SEALED_LOST;
    }
    *ref = !any ? 0 : GILD_SEALED_LOST;
    if (err || !any || all_lost)
        return err;
    gild_node_seal(page, GILD_NODE_DIR, m->asked->map_id, dir);
    return put_page(m, page, ref);
}

static int put_ends(struct mending *m, const uint64_t *dir_refs, uint64_t leaf_count) {
    struct map_footer footer = {.magic = MAP_FOOTER_MAGIC,
                                .map_id = m->asked->map_id,
                                .data_blocks = m->asked->data_blocks,
                                .leaves = leaf_count};
    struct gild_dir *root = (void *)m->pages;
    uint64_t number;
    bool any = false;
    int err = 0;
    for (uint64_t i = 0; i < m->dirs; i++)
        any = any || dir_refs[i];
    footer.root_page = any ? m->written : 0;
    footer.root_count = any ? m->roots : 0;
    for (uint64_t r = 0; r < footer.root_count && !err; r++) {
        memset(root, 0, sizeof *root);
        for (uint64_t i = 0; i < GILD_DIR_REFS && r * GILD_DIR_REFS + i < m->dirs; i++)
            root->ref[i] = dir_refs[r * GILD_DIR_REFS + i];
        gild_node_seal(root, GILD_NODE_ROOT, m->asked->map_id, r);
        err = put_page(m, root, &number);
    }
    footer.pages = m->written + 1;
    memcpy(footer.content_hash, m->asked->content_hash, 32);
    footer.check = map_page_check(&footer, m->asked->map_id);
    return err ? err : put_page(m, &footer, &number);
}

static int put_all(struct mending *m) {
    struct map_header header = {.magic = MAP_HEADER_MAGIC,
                                .version = MAP_FORMAT_VERSION,
                                .map_id = m->asked->map_id,
                                .size_bytes = m->asked->size_bytes};
    /* Nothing is missing that the catalogue or the footer counts: unknown leaves never were. */
    bool complete = m->fd >= 0 && (m->found_blocks == m->asked->data_blocks ||
                                   m->found_leaves == m->footer_leaves);
    uint64_t *refs = calloc(m->dirs + 1, sizeof *refs), number, leaf_count = 0;
    memcpy(header.store_id, m->asked->store_id, 16);
    header.check = map_page_check(&header, m->asked->map_id);
    int err = refs ? put_page(m, &header, &number) : -ENOMEM;
    for (uint64_t dir = 0; dir < m->dirs && !err; dir++)
        err = put_dir(m, dir, complete, &refs[dir], &leaf_count);
    if (!err)
        err = put_ends(m, refs, leaf_count);
    free(refs);
    return err;
}

static int sync_folder(const char *path) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = folder < 0 ? -errno : gild_file_sync_folder(folder);
    if (folder >= 0)
        close(folder);
    return err;
}

/* The old file stays in `aside`, and is sure to, before the new one takes its name. */
static int replace(struct mending *m, const char *path, const char *fresh, const char *name) {
    char kept[4300];
    int result = gild_file_sync(m->to);
    if (!result)
        result = gild_file_make_folder(m->asked->aside);
    for (unsigned n = 0; !result && m->fd >= 0; n++) {
        snprintf(kept, sizeof kept, n ? "%s/%s.%u" : "%s/%s", m->asked->aside, name, n);
        if (link(path, kept) == 0)
            break;
        if (errno != EEXIST)
            result = -errno;
    }
    if (!result)
        result = sync_folder(m->asked->aside);
    if (!result && rename(fresh, path) != 0)
        result = -errno;
    return result ? result : sync_folder(m->asked->directory);
}

static int mend(struct mending *m) {
    char path[4200], fresh[4300], name[32];
    snprintf(name, sizeof name, "%016llx.map", (unsigned long long)m->asked->map_id);
    snprintf(path, sizeof path, "%s/%s", m->asked->directory, name);
    snprintf(fresh, sizeof fresh, "%s.mended", path); /* an orphan, should this be broken off */
    m->leaf_at = calloc(m->leaves + 1, sizeof *m->leaf_at);
    m->dir_at = calloc(m->dirs + 1, sizeof *m->dir_at);
    m->root_at = calloc(m->roots + 1, sizeof *m->root_at);
    if (!m->leaf_at || !m->dir_at || !m->root_at)
        return -ENOMEM;
    m->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0 && errno != ENOENT)
        return -errno;
    int err = scan(m);
    if (!err && !m->asked->dry_run) {
        m->to = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        err = m->to < 0 ? -errno : 0;
    }
    if (!err)
        err = put_all(m);
    if (!err && m->to >= 0)
        err = replace(m, path, fresh, name);
    if (err && m->to >= 0)
        unlink(fresh);
    return err;
}

static void ignore(void *context, uint64_t first, uint64_t count) {
    (void)context, (void)first, (void)count;
}

int gild_map_mend(const struct gild_map_mend *asked, struct gild_map_mended *result,
                  struct gild_error *error) {
    struct gild_map_mend silent = *asked;
    struct mending m = {.asked = &silent,
                        .result = result,
                        .fd = -1,
                        .to = -1,
                        .leaves = gild_leaves_of(asked->size_bytes),
                        .dirs = gild_dirs_of(asked->size_bytes),
                        .footer_leaves = UINT64_MAX,
                        .dir_index = UINT64_MAX,
                        .root_index = UINT64_MAX};
    m.roots = (m.dirs + GILD_DIR_REFS - 1) / GILD_DIR_REFS;
    m.pages = gild_file_buffer((size_t)READ_PAGES * GILD_NODE_BYTES);
    m.dir = gild_file_buffer(GILD_NODE_BYTES);
    m.root = gild_file_buffer(GILD_NODE_BYTES);
    /* Told twice, since it is not known before the end whether the first look counts. */
    silent.lost = ignore;
    *result = (struct gild_map_mended){0};
    int err = m.pages && m.dir && m.root ? look(&m, error) : -ENOMEM;
    bool damaged = err == -EBADMSG;
    m.lost_count = 0;
    if (!err || damaged) {
        *result = (struct gild_map_mended){.damaged = damaged};
        m.asked = asked;
        err = damaged ? mend(&m) : look(&m, error);
        tell_lost_end(&m);
        if (err)
            gild_fail(error, gild_code_of_errno(-err), -err,
                      "the map %016llx can not be mended: %s", (unsigned long long)asked->map_id,
                      strerror(-err));
    }
    if (m.fd >= 0)
        close(m.fd);
    if (m.to >= 0)
        close(m.to);
    free(m.leaf_at);
    free(m.dir_at);
    free(m.root_at);
    free(m.pages);
    free(m.dir);
    free(m.root);
    return err;
}
