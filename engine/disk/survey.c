/* See survey.h. Nothing in memory is looked at but the table of segments. */
#include "disk/survey.h"

#include <errno.h>
#include <stdlib.h>

#include "disk/internal.h"
#include "io/file.h"

struct going {
    struct gild_store *store;
    const struct survey *survey;
    uint64_t delta_id, size_blocks;
    struct gild_dir *root, *dir;
    struct gild_leaf *leaf;
};

static bool before(const struct going *going, uint64_t first, uint64_t count) {
    return first + count <= going->survey->first_block;
}

static int tell(struct going *going, uint64_t first, uint64_t count, const struct gild_leaf *leaf,
                uint64_t uniform) {
    if (first >= going->size_blocks || before(going, first, count) || !going->survey->range)
        return 0;
    if (count > going->size_blocks - first)
        count = going->size_blocks - first;
    return going->survey->range(going->survey->context, first, count, leaf, uniform);
}

/* Reads a node and says so. *whole: it is as it was written. */
static int look(struct going *going, uint64_t place, enum gild_node_kind kind, uint64_t index,
                void *page, bool *whole) {
    int err = store_read_node(going->store, place, going->delta_id, kind, index, page);
    *whole = err == 0;
    if (err && err != -EBADMSG && !(err == -EIO && going->survey->past_errors))
        return err;
    return going->survey->node
               ? going->survey->node(going->survey->context, place, kind, index, *whole)
               : 0;
}

static int go_dir(struct going *going, uint64_t dir_index, uint64_t place) {
    uint64_t first = dir_index * GILD_DIR_BLOCKS;
    bool whole;
    if (before(going, first, GILD_DIR_BLOCKS))
        return 0;
    int err = look(going, place, GILD_NODE_DIR, dir_index, going->dir, &whole);
    if (!err && !whole)
        return tell(going, first, GILD_DIR_BLOCKS, NULL, gild_place_of_type(GILD_PLACE_LOST));
    for (uint32_t i = 0; i < GILD_DIR_REFS && !err; i++, first += GILD_LEAF_BLOCKS) {
        uint64_t ref = going->dir->ref[i], leaf_index = dir_index * GILD_DIR_REFS + i;
        if (gild_place_type(ref) != GILD_PLACE_LOG || before(going, first, GILD_LEAF_BLOCKS)) {
            err = tell(going, first, GILD_LEAF_BLOCKS, NULL, ref);
            continue;
        }
        err = look(going, ref, GILD_NODE_LEAF, leaf_index, going->leaf, &whole);
        if (!err)
            err = tell(going, first, GILD_LEAF_BLOCKS, whole ? going->leaf : NULL,
                       gild_place_of_type(GILD_PLACE_LOST));
    }
    return err;
}

static int go_root(struct going *going, uint32_t root_index, uint64_t place) {
    uint64_t dir = (uint64_t)root_index * GILD_DIR_REFS;
    uint64_t lost = gild_place_of_type(GILD_PLACE_LOST);
    bool whole = false;
    int err = 0;
    if (gild_place_type(place) != GILD_PLACE_LOG)
        return tell(going, dir * GILD_DIR_BLOCKS, GILD_DIR_REFS * GILD_DIR_BLOCKS, NULL, place);
    err = look(going, place, GILD_NODE_ROOT, root_index, going->root, &whole);
    if (!err && !whole)
        return tell(going, dir * GILD_DIR_BLOCKS, GILD_DIR_REFS * GILD_DIR_BLOCKS, NULL, lost);
    for (uint32_t i = 0; i < GILD_DIR_REFS && !err; i++) {
        uint64_t ref = going->root->ref[i];
        if (gild_place_type(ref) == GILD_PLACE_LOG)
            err = go_dir(going, dir + i, ref);
        else
            err = tell(going, (dir + i) * GILD_DIR_BLOCKS, GILD_DIR_BLOCKS, NULL, ref);
    }
    return err;
}

int survey_delta(struct gild_store *store, uint64_t delta_id, const struct gild_rec_delta *record,
                 const struct survey *survey) {
    uint8_t *pages = gild_file_buffer(3 * GILD_NODE_BYTES);
    if (!pages)
        return -ENOMEM;
    struct going going = {
        .store = store,
        .survey = survey,
        .delta_id = delta_id,
        .size_blocks = gild_blocks_of(record->size_bytes),
        .root = (void *)pages,
        .dir = (void *)(pages + GILD_NODE_BYTES),
        .leaf = (void *)(pages + 2 * (size_t)GILD_NODE_BYTES),
    };
    uint64_t each = GILD_DIR_REFS * GILD_DIR_BLOCKS;
    int err = 0;
    /* A disk that was never written has no roots yet. */
    for (uint32_t r = 0; r * each < going.size_blocks && !err; r++)
        err = go_root(&going, r, r < record->root_count ? record->roots[r] : 0);
    free(pages);
    return err;
}
