/* The model's inside: what its walk (model.c) and its builder (model_build.c) share. */
#ifndef GILD_TESTS_REAL_MODEL_OWN_H
#define GILD_TESTS_REAL_MODEL_OWN_H

#include <stdbool.h>
#include <stddef.h>

#include "model.h"

#define MODEL_PAGE 4096u
#define MODEL_SECTOR 512u

/* A change of a file's bytes or size, or of a folder's names, that is not durable. */
struct model_change {
    const struct trace_event *event;
    uint64_t at, ended;      /* positions in the trace; ended 0: under way, or it failed */
    struct model_file *file; /* of a name: whose */
    bool arrives;            /* the half of a move that gives the new name */
    bool durable;
};

struct model_name {
    const char *name; /* in the trace, or adopted */
    struct model_file *file;
};

struct model_names {
    struct model_name *list;
    size_t count, room;
};

struct model_file {
    uint64_t inode;
    bool is_folder;
    /* What is durable. */
    uint8_t **pages;
    size_t page_count;
    uint64_t size;
    struct model_names names;
    /* What is not, in order. */
    struct model_change *changes;
    size_t change_count, change_room;
};

/* Began, and has not ended. */
struct model_open {
    uint64_t at;
    const struct trace_event *event;
    struct model_file *file;
};

struct model {
    const struct trace_head *head;
    uint64_t at, next, odd;
    struct model_file *root;
    struct model_file **files;
    size_t file_count, file_room;
    struct model_open *open;
    size_t open_count, open_room;
    char **adopted; /* names that are not in the trace */
    size_t adopted_count, adopted_room;
};

uint64_t model_size_after(const struct trace_event *event, uint64_t size);
void model_apply_name(struct model_names *names, const struct model_change *change);

#endif
