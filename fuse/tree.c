/* The nodes that the kernel knows of, and the open files.
 *
 * A node is a path and the inode that it had when it was looked up: a disk that is deleted and made
 * again under the same name is another node. It lives as long as the kernel remembers it or a
 * handle is open on it; the kernel's number of a node is its address, but for the root.
 *
 * Invariants: at most one node for (path, inode); a handle holds its node and one open of the disk
 * through the door "fuse". Threads: any, under tree.lock, which is never held over a wait. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mount.h"

#define DOOR "fuse"

static struct node *node_create(const char *path, const struct gild_path_info *info) {
    size_t bytes = strlen(path) + 1;
    struct node *node = calloc(1, sizeof(*node) + bytes);
    if (!node)
        return NULL;
    memcpy(node->path, path, bytes);
    node->inode = info->inode;
    node->directory = info->directory;
    node->read_only = info->read_only;
    node->references = 1;
    overlaps_init(&node->overlaps);
    return node;
}

/* FNV-1a over the path. */
static struct node **bucket(struct tree *tree, const char *path) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *path; path++)
        hash = (hash ^ (uint8_t)*path) * 0x100000001b3u;
    return &tree->buckets[(hash ^ hash >> 32) % NODE_BUCKETS];
}

int tree_init(struct tree *tree) {
    const struct gild_path_info root = {.directory = true, .inode = FUSE_ROOT_ID};
    memset(tree, 0, sizeof(*tree));
    gild_list_init(&tree->handles);
    tree->root = node_create("", &root);
    if (!tree->root)
        return -ENOMEM;
    pthread_mutex_init(&tree->lock, NULL);
    return 0;
}

void tree_fini(struct gild_mount *mount) {
    struct tree *tree = &mount->tree;
    if (!tree->root)
        return;
    while (!gild_list_empty(&tree->handles))
        handle_drop(gild_container_of(tree->handles.next, struct handle, link));
    for (unsigned i = 0; i < NODE_BUCKETS; i++) {
        struct node *next;
        for (struct node *node = tree->buckets[i]; node; node = next) {
            next = node->next;
            free(node);
        }
    }
    free(tree->root);
    tree->root = NULL;
    pthread_mutex_destroy(&tree->lock);
}

struct node *tree_node_get(struct tree *tree, const char *path, const struct gild_path_info *info) {
    if (!*path)
        return tree->root;
    struct node **first = bucket(tree, path);
    pthread_mutex_lock(&tree->lock);
    struct node *node = *first;
    while (node && (node->inode != info->inode || node->directory != info->directory ||
                    strcmp(node->path, path)))
        node = node->next;
    if (node) {
        node->references++;
    } else {
        node = node_create(path, info);
        if (node) {
            node->next = *first;
            *first = node;
        }
    }
    pthread_mutex_unlock(&tree->lock);
    return node;
}

void tree_node_drop(struct tree *tree, struct node *node, uint64_t references) {
    if (node == tree->root)
        return;
    pthread_mutex_lock(&tree->lock);
    node->references -= references < node->references ? references : node->references;
    bool last = !node->references;
    if (last) {
        struct node **at = bucket(tree, node->path);
        while (*at != node)
            at = &(*at)->next;
        *at = node->next;
    }
    pthread_mutex_unlock(&tree->lock);
    if (last)
        free(node);
}

struct node *tree_node(struct tree *tree, fuse_ino_t number) {
    union {
        fuse_ino_t number;
        struct node *node;
    } known = {.number = number};
    return number == FUSE_ROOT_ID ? tree->root : known.node;
}

fuse_ino_t tree_node_number(const struct tree *tree, const struct node *node) {
    return node == tree->root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)node;
}

int handle_open(struct gild_mount *mount, struct node *node, bool write, struct handle **out,
                struct gild_error *error) {
    struct tree *tree = &mount->tree;
    struct handle *handle = calloc(1, sizeof(*handle));
    if (!handle)
        return gild_fail(error, GILD_FAILED, ENOMEM, "cannot open %s: out of memory", node->path);
    int result = gild_disk_open(mount->store, node->path, DOOR, write ? GILD_OPEN_WRITE : 0,
                                &handle->disk, &handle->writable, error);
    if (result) {
        free(handle);
        return result;
    }
    handle->mount = mount;
    handle->node = node;
    handle->loop = gild_disk_loop(handle->disk);
    atomic_init(&handle->references, 1);
    pthread_mutex_lock(&tree->lock);
    node->references++;
    gild_list_push_back(&tree->handles, &handle->link);
    pthread_mutex_unlock(&tree->lock);
    *out = handle;
    return 0;
}

void handle_drop(struct handle *handle) {
    if (atomic_fetch_sub_explicit(&handle->references, 1, memory_order_acq_rel) != 1)
        return;
    struct tree *tree = &handle->mount->tree;
    pthread_mutex_lock(&tree->lock);
    gild_list_remove(&handle->link);
    pthread_mutex_unlock(&tree->lock);
    gild_disk_close(handle->disk, DOOR, handle->writable);
    tree_node_drop(tree, handle->node, 1);
    free(handle);
}
