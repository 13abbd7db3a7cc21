/* Opening, reading and walking sealed maps. Everything read is verified before it is believed: the
 * file may be truncated, foreign or rotten, and then it is refused by name. Blocking; the opened
 * map is immutable and may be read by any thread. */
#include "map/sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file.h"
#include "map/format.h"

static int read_page(int fd, uint64_t page, void *buffer) {
    int err = gild_file_read(fd, buffer, GILD_NODE_BYTES, page * GILD_NODE_BYTES);
    return err == -ENODATA ? -EBADMSG : err;
}

static int read_ends(struct gild_sealed_map *map, const uint8_t store_id[16], void *page,
                     struct map_footer *footer) {
    uint64_t bytes;
    int err = gild_file_size(map->fd, &bytes);
    if (err)
        return err;
    uint64_t pages = bytes / GILD_NODE_BYTES;
    if (pages < 2)
        return -EBADMSG;
    err = read_page(map->fd, 0, page);
    if (err)
        return err;
    const struct map_header *header = page;
    if (header->magic != MAP_HEADER_MAGIC || header->map_id != map->map_id ||
        header->check != map_page_check(page, map->map_id) ||
        memcmp(header->store_id, store_id, 16) != 0)
        return -EBADMSG;
    if (header->version != MAP_FORMAT_VERSION || header->incompatible != 0)
        return -ENOTSUP;
    map->size_bytes = header->size_bytes;
    err = read_page(map->fd, pages - 1, page);
    if (err)
        return err;
    memcpy(footer, page, sizeof *footer);
    /* What has no root needs no directories, whatever size the file claims. */
    uint64_t dirs = footer->root_page ? gild_dirs_of(map->size_bytes) : 0;
    if (map->size_bytes > INT64_MAX || footer->magic != MAP_FOOTER_MAGIC ||
        footer->map_id != map->map_id || footer->check != map_page_check(page, map->map_id) ||
        footer->pages != pages || footer->root_count > pages ||
        footer->root_page > pages - footer->root_count || dirs > UINT32_MAX ||
        (footer->root_page && footer->root_count != (dirs + GILD_DIR_REFS - 1) / GILD_DIR_REFS))
        return -EBADMSG;
    map->data_blocks = footer->data_blocks;
    memcpy(map->content_hash, footer->content_hash, 32);
    map->dir_count = (uint32_t)dirs;
    return 0;
}

static int read_directories(struct gild_sealed_map *map, const struct map_footer *footer,
                            struct gild_dir *root) {
    map->dirs = calloc(map->dir_count ? map->dir_count : 1, sizeof(struct gild_dir *));
    if (!map->dirs)
        return -ENOMEM;
    for (uint64_t r = 0; footer->root_page && r < footer->root_count; r++) {
        int err = read_page(map->fd, footer->root_page + r, root);
        if (!err)
            err = gild_node_verify(root, GILD_NODE_ROOT, map->map_id, r);
        if (err)
            return err;
        for (uint64_t i = 0; i < GILD_DIR_REFS; i++) {
            uint64_t dir = r * GILD_DIR_REFS + i;
            if (!root->ref[i])
                continue;
            bool lost = root->ref[i] == GILD_SEALED_LOST;
            if (dir >= map->dir_count || (!lost && root->ref[i] >= footer->pages))
                return -EBADMSG;
            void *page = lost ? map->lost : NULL;
            if (!page && !(page = gild_file_buffer(GILD_NODE_BYTES)))
                return -ENOMEM;
            map->dirs[dir] = page;
            if (lost) {
                map->lost = page;
                memset(map->lost->ref, 0xff, sizeof map->lost->ref);
                continue;
            }
            err = read_page(map->fd, root->ref[i], page);
            if (!err)
                err = gild_node_verify(page, GILD_NODE_DIR, map->map_id, dir);
            for (uint32_t j = 0; !err && j < GILD_DIR_REFS; j++)
                if (map->dirs[dir]->ref[j] >= footer->pages &&
                    map->dirs[dir]->ref[j] != GILD_SEALED_LOST)
                    err = -EBADMSG;
            if (err)
                return err;
        }
    }
    return 0;
}

int gild_sealed_open(struct gild_sealed_map **out, const char *directory,
                     const uint8_t store_id[16], uint64_t map_id, struct gild_error *error) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%016llx.map", directory, (unsigned long long)map_id);
    struct gild_sealed_map *map = calloc(1, sizeof *map);
    void *page = gild_file_buffer(GILD_NODE_BYTES);
    if (!map || !page) {
        free(map);
        free(page);
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to open the map %s", path);
    }
    map->map_id = map_id;
    map->fd = gild_file_open(AT_FDCWD, path, O_RDONLY | O_DIRECT, 0, NULL);
    struct map_footer footer;
    int err = map->fd < 0 ? map->fd : read_ends(map, store_id, page, &footer);
    if (!err)
        err = read_directories(map, &footer, page);
    free(page);
    if (!err) {
        *out = map;
        return 0;
    }
    gild_sealed_close(map);
    if (err == -EBADMSG)
        return gild_fail(
            error, GILD_CORRUPT, EBADMSG,
            "the map file %s is damaged: restore it from a backup, or delete the image "
            "version that it belongs to",
            path);
    if (err == -ENOTSUP)
        return gild_fail(error, GILD_FAILED, ENOTSUP,
                         "the map file %s has a newer format: use a newer gild", path);
    return gild_fail(error, gild_code_of_errno(-err), -err, "the map file %s can not be read: %s",
                     path, strerror(-err));
}

void gild_sealed_close(struct gild_sealed_map *map) {
    if (!map)
        return;
    for (uint32_t i = 0; map->dirs && i < map->dir_count; i++)
        if (map->dirs[i] != map->lost)
            free(map->dirs[i]);
    free(map->lost);
    free(map->dirs);
    if (map->fd >= 0)
        close(map->fd);
    free(map);
}

#define WINDOW_PAGES 256u /* a walk reads so many at once: leaves lie in order */

struct window {
    uint8_t *pages;
    uint64_t first, count, file_pages;
};

static int window_page(const struct gild_sealed_map *map, struct window *window, uint64_t at,
                       void **page) {
    if (at - window->first >= window->count) {
        uint64_t rest = at < window->file_pages ? window->file_pages - at : 1;
        window->first = at;
        window->count = rest < WINDOW_PAGES ? rest : WINDOW_PAGES;
        int err = gild_file_read(map->fd, window->pages, window->count * GILD_NODE_BYTES,
                                 at * GILD_NODE_BYTES);
        if (err) { /* a bad sector is the trouble of its own page only */
            window->count = 1;
            err = read_page(map->fd, at, window->pages);
        }
        if (err) {
            window->count = 0;
            return err;
        }
    }
    *page = window->pages + (at - window->first) * GILD_NODE_BYTES;
    return 0;
}

static void lose_leaf(const struct gild_sealed_map *map, uint64_t leaf_index,
                      struct gild_leaf *leaf) {
    uint64_t first = leaf_index * GILD_LEAF_BLOCKS, blocks = gild_blocks_of(map->size_bytes);
    memset(leaf, 0, sizeof *leaf);
    for (unsigned i = 0; i < GILD_LEAF_BLOCKS; i++)
        leaf->place[i] = gild_place_of_type(first + i < blocks ? GILD_PLACE_LOST : GILD_PLACE_HOLE);
}

int gild_sealed_walk(const struct gild_sealed_map *map, gild_sealed_visit *visit, void *context) {
    struct window window = {.pages = gild_file_buffer((size_t)WINDOW_PAGES * GILD_NODE_BYTES)};
    struct gild_leaf *lost = gild_file_buffer(GILD_NODE_BYTES);
    uint64_t bytes = 0;
    int err = window.pages && lost ? gild_file_size(map->fd, &bytes) : -ENOMEM;
    window.file_pages = bytes / GILD_NODE_BYTES;
    for (uint64_t dir = 0; dir < map->dir_count && !err; dir++) {
        if (!map->dirs[dir])
            continue;
        for (uint64_t i = 0; i < GILD_DIR_REFS && !err; i++) {
            uint64_t leaf = dir * GILD_DIR_REFS + i;
            uint64_t at = map->dirs[dir]->ref[i];
            void *page = lost;
            if (!at || leaf >= gild_leaves_of(map->size_bytes))
                continue;
            if (at == GILD_SEALED_LOST) {
                lose_leaf(map, leaf, lost);
            } else {
                err = window_page(map, &window, at, &page);
                if (!err)
                    err = gild_node_verify(page, GILD_NODE_LEAF, map->map_id, leaf);
            }
            if (!err)
                err = visit(context, leaf, page);
        }
    }
    free(window.pages);
    free(lost);
    return err;
}
