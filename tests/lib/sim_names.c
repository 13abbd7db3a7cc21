/* See sim_inode.h: the names of the simulated file system. Flat: a name is a whole path.
 *
 * Two lists of names: what is seen, and what is durable. A change of names is a step (a rename is
 * one step of two changes) that is made in the list that is seen, and waits for the sync of its
 * folder to be made in the durable one. A power cut makes or forgets each waiting step. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "sim_inode.h"
#include "sim_threads.h"

#define MOST_NAMES 512u
#define MOST_STEPS 1024u
#define PATH_BYTES 128u

struct name {
    char path[PATH_BYTES];
    struct sim_inode *inode;
};

struct names {
    struct name list[MOST_NAMES];
    unsigned count;
};

struct step {
    char path[2][PATH_BYTES];   /* the second is empty unless it is a rename */
    struct sim_inode *inode[2]; /* NULL: the name goes */
};

static struct {
    struct names seen, durable;
    struct step steps[MOST_STEPS];
    unsigned step_count;
    uint64_t next_number;
} names;

static struct name *look_up(struct names *in, const char *path) {
    for (unsigned i = 0; i < in->count; i++)
        if (strcmp(in->list[i].path, path) == 0)
            return &in->list[i];
    return NULL;
}

static void set(struct names *in, const char *path, struct sim_inode *inode) {
    struct name *name = look_up(in, path);
    if (name && inode) {
        name->inode = inode;
    } else if (name) {
        *name = in->list[--in->count];
    } else if (inode) {
        if (in->count == MOST_NAMES)
            abort();
        name = &in->list[in->count++];
        snprintf(name->path, sizeof name->path, "%s", path);
        name->inode = inode;
    }
}

static void make_step(struct names *in, const struct step *step) {
    for (unsigned i = 0; i < 2; i++)
        if (step->path[i][0])
            set(in, step->path[i], step->inode[i]);
}

static int take_step(const struct step *step) {
    if (names.step_count == MOST_STEPS)
        abort();
    names.steps[names.step_count++] = *step;
    make_step(&names.seen, step);
    sim_disk_point(SIM_NAME);
    return 0;
}

/* The folder of a path, without the slash; "" is the root. */
static void folder_of(const char *path, char out[PATH_BYTES]) {
    const char *slash = strrchr(path, '/');
    snprintf(out, PATH_BYTES, "%.*s", (int)(slash ? slash - path : 0), path);
}

static int parent_is_there(const char *path) {
    char folder[PATH_BYTES];
    folder_of(path, folder);
    struct name *found = look_up(&names.seen, *folder ? folder : "/");
    if (!found)
        return -ENOENT;
    return found->inode->folder ? 0 : -ENOTDIR;
}

void sim_names_make(void) {
    memset(&names, 0, sizeof names);
    struct sim_inode *root = calloc(1, sizeof *root);
    if (!root)
        abort();
    root->folder = true;
    root->number = ++names.next_number;
    set(&names.seen, "/", root);
    set(&names.durable, "/", root);
}

uint64_t sim_names_bytes(void) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < names.seen.count; i++)
        if (!names.seen.list[i].inode->fill)
            bytes += names.seen.list[i].inode->size;
    return bytes;
}

int sim_names_find(const char *path, struct sim_inode **out) {
    struct name *name = look_up(&names.seen, path);
    if (!name)
        return -ENOENT;
    *out = name->inode;
    return 0;
}

unsigned sim_names_of(const struct sim_inode *inode) {
    unsigned count = 0;
    for (unsigned i = 0; i < names.seen.count; i++)
        count += names.seen.list[i].inode == inode;
    return count;
}

int sim_names_create(const char *path, bool folder, struct sim_inode **out) {
    if (strlen(path) >= PATH_BYTES)
        return -ENAMETOOLONG;
    if (look_up(&names.seen, path))
        return -EEXIST;
    int error = parent_is_there(path);
    if (error)
        return error;
    struct sim_inode *inode = calloc(1, sizeof *inode);
    struct step step = {0};
    if (!inode)
        abort();
    inode->folder = folder;
    inode->number = ++names.next_number;
    inode->log = strstr(path, "/log/") != NULL;
    inode->rots = !folder && (inode->log || strstr(path, "/packs/") || strstr(path, "/maps/"));
    strcpy(step.path[0], path);
    step.inode[0] = inode;
    *out = inode;
    return take_step(&step);
}

int sim_names_rename(const char *from, const char *to, bool replace) {
    struct name *name = look_up(&names.seen, from);
    struct step step = {0};
    if (strlen(to) >= PATH_BYTES)
        return -ENAMETOOLONG;
    if (!name)
        return -ENOENT;
    if (!replace && look_up(&names.seen, to))
        return -EEXIST;
    int error = parent_is_there(to);
    if (error)
        return error;
    strcpy(step.path[0], from);
    strcpy(step.path[1], to);
    step.inode[1] = name->inode;
    sim_disk_renamed(name->inode);
    return take_step(&step);
}

int sim_names_remove(const char *path) {
    struct step step = {0};
    if (!look_up(&names.seen, path))
        return -ENOENT;
    strcpy(step.path[0], path);
    return take_step(&step);
}

const char *sim_names_in(const char *folder, unsigned index) {
    char of[PATH_BYTES];
    for (unsigned i = 0; i < names.seen.count; i++) {
        const char *path = names.seen.list[i].path;
        folder_of(path, of);
        if (strcmp(of, folder) == 0 && path[1] && index-- == 0)
            return path + strlen(of) + 1;
    }
    return NULL;
}

struct sim_inode *sim_names_pick(void) {
    struct sim_inode *picked = NULL;
    uint64_t count = 0, page;
    for (unsigned i = 0; i < names.seen.count; i++)
        if (sim_inode_rottable(names.seen.list[i].inode, &page) && sim_below(++count) == 0)
            picked = names.seen.list[i].inode;
    return picked;
}

static bool touches(const struct step *step, const char *folder) {
    char of[PATH_BYTES];
    for (unsigned i = 0; i < 2; i++) {
        folder_of(step->path[i], of);
        if (step->path[i][0] && strcmp(of, folder) == 0)
            return true;
    }
    return false;
}

void sim_names_settle(const struct sim_inode *folder) {
    unsigned left = 0;
    const char *path = NULL;
    for (unsigned i = 0; folder->folder && i < names.seen.count; i++)
        if (names.seen.list[i].inode == folder)
            path = names.seen.list[i].path;
    if (!path)
        return;
    if (strcmp(path, "/") == 0)
        path = "";
    for (unsigned i = 0; i < names.step_count; i++) {
        if (touches(&names.steps[i], path))
            make_step(&names.durable, &names.steps[i]);
        else
            names.steps[left++] = names.steps[i];
    }
    names.step_count = left;
}

void sim_names_cut(enum sim_cut cut) {
    for (unsigned i = 0; i < names.step_count; i++)
        if (cut == SIM_KEEP_ALL || (cut != SIM_DROP_ALL && sim_chance(500)))
            make_step(&names.durable, &names.steps[i]);
    names.step_count = 0;
    names.seen = names.durable;
    for (unsigned i = 0; i < names.seen.count; i++)
        sim_inode_cut(names.seen.list[i].inode, cut);
}

uint64_t sim_names_hash(void) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < names.durable.count; i++) { /* in any order */
        const struct name *name = &names.durable.list[i];
        sum += sim_inode_hash(name->inode, XXH3_64bits(name->path, strlen(name->path)));
    }
    return sum;
}
