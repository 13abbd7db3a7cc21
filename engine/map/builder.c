/* Writing a sealed map: blocks come in ascending order, nodes go out as they fill, so memory stays
 * at one leaf, one directory and the list of directories, whatever the size of the disk. One
 * thread. A file that was not finished is unlinked; a crash leaves at most an orphan that the
 * catalogue does not know and the next open of the store removes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file.h"
#include "map/format.h"
#include "map/sealed.h"

#define BUFFER_PAGES 256u

struct gild_map_builder {
    char directory[3072];
    char path[4096];
    int fd;
    bool finished;
    uint8_t store_id[16];
    uint64_t map_id, size_bytes;
    uint64_t next_block; /* the least that may come */
    uint64_t data_blocks, leaves;
    uint64_t leaf_index, dir_index; /* under construction; UINT64_MAX = none */
    uint64_t pages;                 /* written or buffered so far */
    uint64_t *dirs;                 /* pages of the directories written */
    uint64_t dir_count;
    uint32_t buffered;
    int failed;
    struct gild_leaf leaf;
    struct gild_dir dir;
    uint8_t (*buffer)[GILD_NODE_BYTES];
};

static int flush_buffer(struct gild_map_builder *b) {
    if (!b->failed)
        b->failed = gild_file_write(b->fd, b->buffer, (size_t)b->buffered * GILD_NODE_BYTES,
                                    (b->pages - b->buffered) * GILD_NODE_BYTES);
    b->buffered = 0;
    return b->failed;
}

/* Appends one page and says which it is. */
static uint64_t append(struct gild_map_builder *b, const void *page) {
    if (b->buffered == BUFFER_PAGES)
        flush_buffer(b);
    memcpy(b->buffer[b->buffered++], page, GILD_NODE_BYTES);
    return b->pages++;
}

static void end_leaf(struct gild_map_builder *b) {
    if (b->leaf_index == UINT64_MAX)
        return;
    gild_node_seal(&b->leaf, GILD_NODE_LEAF, b->map_id, b->leaf_index);
    b->dir.ref[b->leaf_index % GILD_DIR_REFS] = append(b, &b->leaf);
    b->leaves++;
    b->leaf_index = UINT64_MAX;
}

static void end_dir(struct gild_map_builder *b) {
    if (b->dir_index == UINT64_MAX)
        return;
    gild_node_seal(&b->dir, GILD_NODE_DIR, b->map_id, b->dir_index);
    b->dirs[b->dir_index] = append(b, &b->dir);
    b->dir_index = UINT64_MAX;
}

int gild_map_builder_create(struct gild_map_builder **out, const char *directory,
                            const uint8_t store_id[16], uint64_t map_id, uint64_t size_bytes,
                            struct gild_error *error) {
    struct gild_map_builder *b = calloc(1, sizeof *b);
    if (!b)
        return gild_fail(error, GILD_FAILED, ENOMEM, "no memory to build a map");
    b->fd = -1;
    b->map_id = map_id;
    b->size_bytes = size_bytes;
    b->leaf_index = b->dir_index = UINT64_MAX;
    b->dir_count = gild_dirs_of(size_bytes);
    memcpy(b->store_id, store_id, 16);
    snprintf(b->directory, sizeof b->directory, "%s", directory);
    snprintf(b->path, sizeof b->path, "%s/%016llx.map", b->directory, (unsigned long long)map_id);
    b->dirs = calloc(b->dir_count ? b->dir_count : 1, sizeof *b->dirs);
    b->buffer = malloc((size_t)BUFFER_PAGES * GILD_NODE_BYTES);
    if (b->dirs && b->buffer)
        b->fd = open(b->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    else
        errno = ENOMEM;
    if (b->fd < 0) {
        int err = errno;
        int result = gild_fail(error, gild_code_of_errno(err), err,
                               "the map file %s can not be made: %s", b->path, strerror(err));
        b->finished = true; /* there is nothing of ours to unlink */
        gild_map_builder_destroy(b, true);
        return result;
    }
    struct map_header header = {
        .magic = MAP_HEADER_MAGIC,
        .version = MAP_FORMAT_VERSION,
        .map_id = map_id,
        .size_bytes = size_bytes,
    };
    memcpy(header.store_id, store_id, 16);
    header.check = map_page_check(&header, map_id);
    append(b, &header);
    *out = b;
    return 0;
}

int gild_map_builder_add(struct gild_map_builder *b, uint64_t block, uint64_t place,
                         uint32_t check) {
    if (block < b->next_block || block >= gild_blocks_of(b->size_bytes))
        return -EINVAL;
    uint64_t leaf = block / GILD_LEAF_BLOCKS, dir = leaf / GILD_DIR_REFS;
    if (leaf != b->leaf_index) {
        end_leaf(b);
        if (dir != b->dir_index) {
            end_dir(b);
            memset(&b->dir, 0, sizeof b->dir);
            b->dir_index = dir;
        }
        memset(&b->leaf, 0, sizeof b->leaf);
        for (uint32_t i = 0; i < GILD_LEAF_BLOCKS; i++)
            b->leaf.place[i] = gild_place_of_type(GILD_PLACE_HOLE);
        b->leaf_index = leaf;
    }
    b->leaf.place[block % GILD_LEAF_BLOCKS] = place;
    b->leaf.check[block % GILD_LEAF_BLOCKS] = check;
    b->next_block = block + 1;
    if (gild_place_type(place) == GILD_PLACE_PACK)
        b->data_blocks++;
    return b->failed;
}

static void append_roots(struct gild_map_builder *b, struct map_footer *footer) {
    struct gild_dir root;
    if (!b->leaves)
        return;
    footer->root_page = b->pages;
    for (uint64_t first = 0; first < b->dir_count; first += GILD_DIR_REFS) {
        memset(&root, 0, sizeof root);
        for (uint64_t i = 0; i < GILD_DIR_REFS && first + i < b->dir_count; i++)
            root.ref[i] = b->dirs[first + i];
        gild_node_seal(&root, GILD_NODE_ROOT, b->map_id, first / GILD_DIR_REFS);
        append(b, &root);
        footer->root_count++;
    }
}

static int sync_folder(const char *directory) {
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = gild_file_sync_folder(fd);
    close(fd);
    return err;
}

int gild_map_builder_finish(struct gild_map_builder *b, const uint8_t content_hash[32],
                            struct gild_error *error) {
    end_leaf(b);
    end_dir(b);
    struct map_footer footer = {.magic = MAP_FOOTER_MAGIC,
                                .map_id = b->map_id,
                                .data_blocks = b->data_blocks,
                                .leaves = b->leaves};
    append_roots(b, &footer);
    footer.pages = b->pages + 1;
    memcpy(footer.content_hash, content_hash, 32);
    footer.check = map_page_check(&footer, b->map_id);
    append(b, &footer);
    flush_buffer(b);
    if (!b->failed)
        b->failed = gild_file_sync(b->fd);
    if (!b->failed)
        b->failed = sync_folder(b->directory);
    if (b->failed)
        return gild_fail(error, gild_code_of_errno(-b->failed), -b->failed,
                         "the map file %s can not be written: %s", b->path, strerror(-b->failed));
    b->finished = true;
    return 0;
}

void gild_map_builder_destroy(struct gild_map_builder *b, bool keep) {
    if (!b)
        return;
    if (b->fd >= 0)
        close(b->fd);
    if (b->fd >= 0 && (!b->finished || !keep))
        unlink(b->path);
    free(b->dirs);
    free(b->buffer);
    free(b);
}
