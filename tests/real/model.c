/* See model.h. Files are found by inode; a new file with an inode that was there before is another
 * file. */
#include "model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_own.h"

static void *grown(void *array, size_t count, size_t *room, size_t bytes) {
    if (count < *room)
        return array;
    *room = *room ? *room * 2 : 16;
    array = realloc(array, *room * bytes);
    if (!array)
        abort();
    return array;
}

/* ---- files ----------------------------------------------------------------------------------- */

static struct model_file *file_of(const struct model *model, uint64_t inode) {
    for (size_t i = model->file_count; i > 0; i--)
        if (model->files[i - 1]->inode == inode)
            return model->files[i - 1];
    return NULL;
}

static struct model_file *new_file(struct model *model, uint64_t inode, bool is_folder) {
    struct model_file *file = calloc(1, sizeof *file);
    if (!file)
        abort();
    file->inode = inode;
    file->is_folder = is_folder;
    model->files = grown(model->files, model->file_count, &model->file_room, sizeof *model->files);
    model->files[model->file_count++] = file;
    return file;
}

static struct model_change *new_change(struct model_file *file, const struct trace_event *event,
                                       uint64_t at) {
    file->changes =
        grown(file->changes, file->change_count, &file->change_room, sizeof *file->changes);
    struct model_change *change = &file->changes[file->change_count++];
    *change = (struct model_change){.event = event, .at = at};
    return change;
}

static void write_base(struct model_file *file, uint64_t offset, uint64_t length,
                       const uint8_t *bytes) {
    uint64_t last = (offset + length + MODEL_PAGE - 1) / MODEL_PAGE;
    if (last > file->page_count) {
        file->pages = realloc(file->pages, last * sizeof *file->pages);
        if (!file->pages)
            abort();
        memset(file->pages + file->page_count, 0, (last - file->page_count) * sizeof *file->pages);
        file->page_count = last;
    }
    while (length) {
        uint64_t page = offset / MODEL_PAGE, in_page = offset % MODEL_PAGE;
        uint64_t part = MODEL_PAGE - in_page < length ? MODEL_PAGE - in_page : length;
        if (!file->pages[page] && bytes && !(file->pages[page] = calloc(1, MODEL_PAGE)))
            abort();
        if (bytes)
            memcpy(file->pages[page] + in_page, bytes, part);
        else if (file->pages[page])
            memset(file->pages[page] + in_page, 0, part);
        bytes = bytes ? bytes + part : NULL;
        offset += part;
        length -= part;
    }
}

uint64_t model_size_after(const struct trace_event *event, uint64_t size) {
    uint64_t end = event->offset + event->length;
    if (event->kind == TRACE_SIZE)
        return event->length;
    return end > size ? end : size;
}

static void make_durable(struct model_file *file, const struct model_change *change) {
    const struct trace_event *event = change->event;
    if (event->kind == TRACE_WRITE)
        write_base(file, event->offset, event->length,
                   event->flags & TRACE_ZEROES ? NULL : event->payload);
    else if (event->kind == TRACE_SIZE && event->length < file->size)
        write_base(file, event->length, file->size - event->length, NULL);
    file->size = model_size_after(event, file->size);
}

/* Is the later one only there if the earlier one is? */
static bool implies(const struct trace_event *later, const struct trace_event *earlier) {
    if (earlier->kind == TRACE_SIZE)
        return true;
    if (earlier->kind == TRACE_ALLOCATE)
        return later->kind == TRACE_SIZE;
    if (earlier->kind != TRACE_WRITE)
        return true; /* names */
    if (later->kind == TRACE_SIZE)
        return later->length < earlier->offset + earlier->length;
    return later->kind == TRACE_WRITE && later->offset < earlier->offset + earlier->length &&
           earlier->offset < later->offset + later->length;
}

/* What was synced, and what that implies: earlier changes of the same bytes. */
static void settle(struct model_file *file) {
    size_t kept = 0;
    for (size_t i = file->change_count; i > 0; i--)
        for (size_t j = i - 1; file->changes[i - 1].durable && j > 0; j--)
            if (implies(file->changes[i - 1].event, file->changes[j - 1].event))
                file->changes[j - 1].durable = true;
    for (size_t i = 0; i < file->change_count; i++) {
        struct model_change *change = &file->changes[i];
        if (!change->durable)
            file->changes[kept++] = *change;
        else if (file->is_folder)
            model_apply_name(&file->names, change);
        else
            make_durable(file, change);
    }
    file->change_count = kept;
}

/* ---- names ----------------------------------------------------------------------------------- */

static struct model_name *name_in(const struct model_names *names, const char *name) {
    for (size_t i = 0; i < names->count; i++)
        if (strcmp(names->list[i].name, name) == 0)
            return &names->list[i];
    return NULL;
}

static void drop_name(struct model_names *names, const char *name) {
    struct model_name *entry = name_in(names, name);
    if (entry)
        *entry = names->list[--names->count];
}

static void set_name(struct model_names *names, const char *name, struct model_file *file) {
    drop_name(names, name);
    names->list = grown(names->list, names->count, &names->room, sizeof *names->list);
    names->list[names->count++] = (struct model_name){.name = name, .file = file};
}

void model_apply_name(struct model_names *names, const struct model_change *change) {
    const char *first = (const char *)change->event->payload;
    if (change->event->kind == TRACE_MAKE) {
        set_name(names, first, change->file);
    } else if (change->event->kind == TRACE_UNLINK) {
        struct model_name *entry = name_in(names, first);
        if (entry && entry->file == change->file)
            drop_name(names, first);
    } else if (change->event->kind == TRACE_LINK) {
        set_name(names, first, change->file);
    } else if (change->arrives) {
        set_name(names, first + strlen(first) + 1, change->file);
    } else if (change->event->kind == TRACE_MOVE) {
        struct model_name *entry = name_in(names, first);
        if (entry && entry->file == change->file)
            drop_name(names, first);
    } else {
        struct model_name *entry = name_in(names, first);
        struct model_file *file = change->file;
        if (!entry || entry->file != file)
            return;
        drop_name(names, first);
        set_name(names, first + strlen(first) + 1, file);
    }
}

/* The file that a name means when all that was told has happened. */
static struct model_file *meant_by(struct model_file *folder, const char *name) {
    struct model_names now = {0};
    for (size_t i = 0; i < folder->names.count; i++)
        set_name(&now, folder->names.list[i].name, folder->names.list[i].file);
    for (size_t i = 0; i < folder->change_count; i++)
        model_apply_name(&now, &folder->changes[i]);
    struct model_name *entry = name_in(&now, name);
    struct model_file *file = entry ? entry->file : NULL;
    free(now.list);
    return file;
}

/* ---- the walk -------------------------------------------------------------------------------- */

struct model *model_create(const struct trace_head *head, uint64_t root) {
    struct model *model = calloc(1, sizeof *model);
    if (!model)
        abort();
    model->head = head;
    model->next = TRACE_FIRST;
    model->root = new_file(model, root, true);
    return model;
}

void model_destroy(struct model *model) {
    for (size_t i = 0; i < model->file_count; i++) {
        struct model_file *file = model->files[i];
        for (size_t page = 0; page < file->page_count; page++)
            free(file->pages[page]);
        free(file->pages);
        free(file->changes);
        free(file->names.list);
        free(file);
    }
    for (size_t i = 0; i < model->adopted_count; i++)
        free(model->adopted[i]);
    free(model->adopted);
    free(model->files);
    free(model->open);
    free(model);
}

/* ---- what was there before ------------------------------------------------------------------- */

static int adopt_bytes(struct model_file *file, const char *path) {
    uint8_t bytes[MODEL_PAGE];
    ssize_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC), result = fd < 0 ? -errno : 0;
    for (off_t at = 0; !result && (length = pread(fd, bytes, sizeof bytes, at)) > 0; at += length) {
        bool zeroes = bytes[0] == 0 && memcmp(bytes, bytes + 1, (size_t)length - 1) == 0;
        write_base(file, (uint64_t)at, (uint64_t)length, zeroes ? NULL : bytes);
    }
    if (length < 0)
        result = -errno;
    if (fd >= 0)
        close(fd);
    return result;
}

static int adopt_folder(struct model *model, struct model_file *folder, const char *path) {
    DIR *stream = opendir(path);
    struct dirent *entry;
    int result = stream ? 0 : -errno;
    while (stream && !result && (entry = readdir(stream))) {
        char child[1024], *name;
        struct stat status;
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (lstat(child, &status)) {
            result = -errno;
            break;
        }
        if (!S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode))
            continue; /* a socket */
        model->adopted = grown(model->adopted, model->adopted_count, &model->adopted_room,
                               sizeof *model->adopted);
        model->adopted[model->adopted_count++] = name = strdup(entry->d_name);
        struct model_file *file = new_file(model, (uint64_t)status.st_ino, S_ISDIR(status.st_mode));
        file->size = file->is_folder ? 0 : (uint64_t)status.st_size;
        set_name(&folder->names, name, file);
        result = file->is_folder ? adopt_folder(model, file, child) : adopt_bytes(file, child);
    }
    if (stream)
        closedir(stream);
    return result;
}

int model_adopt(struct model *model, const char *folder) {
    return adopt_folder(model, model->root, folder);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void begin(struct model *model, const struct trace_event *event, uint64_t at,
                  struct model_file *file) {
    model->open = grown(model->open, model->open_count, &model->open_room, sizeof *model->open);
    model->open[model->open_count++] = (struct model_open){.at = at, .event = event, .file = file};
}

static void synced(struct model_file *file, uint64_t since) {
    for (size_t i = 0; i < file->change_count; i++)
        if (file->changes[i].ended && file->changes[i].ended < since)
            file->changes[i].durable = true;
    settle(file);
}

/* False: nothing (more) that the event ends is under way. */
static bool end(struct model *model, const struct trace_event *event, uint64_t at) {
    size_t i = 0;
    while (i < model->open_count && model->open[i].at != event->ref)
        i++;
    if (i == model->open_count)
        return false;
    struct model_open was = model->open[i];
    model->open[i] = model->open[--model->open_count];
    if (was.event->kind == TRACE_SYNC) {
        if (event->result >= 0)
            synced(was.file, was.at);
        return true;
    }
    for (size_t k = 0; k < was.file->change_count; k++) {
        struct model_change *change = &was.file->changes[k];
        if (change->at != was.at)
            continue;
        if (event->result >= 0) {
            change->ended = at;
            change->durable = was.event->flags & TRACE_DSYNC;
            if (change->durable)
                settle(was.file);
        } else if (was.file->is_folder) {
            /* Refused: no name has changed. */
            memmove(change, change + 1,
                    (was.file->change_count - k - 1) * sizeof *was.file->changes);
            was.file->change_count--;
        }
        break;
    }
    return true;
}

/* Two changes, one of each folder, that are there together until one of these is synced. */
static void move(struct model *model, const struct trace_event *event, uint64_t at,
                 struct model_file *from, struct model_file *to) {
    struct model_file *file = meant_by(from, (const char *)event->payload);
    new_change(from, event, at)->file = file;
    struct model_change *arrival = new_change(to, event, at);
    arrival->file = file;
    arrival->arrives = true;
    begin(model, event, at, from);
    begin(model, event, at, to);
}

static void take_in(struct model *model, const struct trace_event *event, uint64_t at) {
    struct model_file *file = file_of(model, event->file ? event->file : event->folder);
    struct model_change *change;
    switch ((enum trace_kind)event->kind) {
    case TRACE_END:
        while (end(model, event, at))
            ;
        return;
    case TRACE_MAKE:
        file = file_of(model, event->folder);
        if (!file)
            break;
        change = new_change(file, event, at);
        change->file = new_file(model, event->file, event->flags & TRACE_FOLDER);
        change->ended = at;
        return;
    case TRACE_MOVE: {
        struct model_file *from = file_of(model, event->folder);
        if (!file || !from)
            break;
        move(model, event, at, from, file);
        return;
    }
    case TRACE_LINK: {
        struct model_file *folder = file_of(model, event->folder);
        if (!file || !folder)
            break;
        new_change(folder, event, at)->file = file;
        begin(model, event, at, folder);
        return;
    }
    case TRACE_RENAME:
    case TRACE_UNLINK:
        if (!file)
            break;
        struct model_file *meant = meant_by(file, (const char *)event->payload);
        new_change(file, event, at)->file = meant;
        begin(model, event, at, file);
        return;
    case TRACE_WRITE:
    case TRACE_SIZE:
    case TRACE_ALLOCATE:
        if (!file)
            break;
        new_change(file, event, at);
        begin(model, event, at, file);
        return;
    case TRACE_SYNC:
        if (!file)
            break;
        begin(model, event, at, file);
        return;
    case TRACE_MARK:
        return;
    case TRACE_ODD:
        break;
    }
    model->odd++;
}

const struct trace_event *model_step(struct model *model) {
    uint64_t at = model->next;
    const struct trace_event *event = trace_at(model->head, at, &model->next);
    if (!event)
        return NULL;
    model->at = at;
    take_in(model, event, at);
    return event;
}

const struct trace_event *model_look(const struct model *model) {
    uint64_t ignored;
    return trace_at(model->head, model->next, &ignored);
}

uint64_t model_position(const struct model *model) {
    return model->at;
}

uint64_t model_odd(const struct model *model) {
    return model->odd;
}

uint64_t model_pending(const struct model *model) {
    uint64_t count = 0;
    for (size_t i = 0; i < model->file_count; i++)
        count += model->files[i]->change_count;
    return count;
}

uint64_t model_pending_names(const struct model *model) {
    uint64_t count = 0;
    for (size_t i = 0; i < model->file_count; i++)
        count += model->files[i]->is_folder ? model->files[i]->change_count : 0;
    return count;
}

uint64_t model_pending_ref(const struct model *model, uint64_t index) {
    for (size_t i = 0; i < model->file_count; i++) {
        if (index < model->files[i]->change_count)
            return model->files[i]->changes[index].at;
        index -= model->files[i]->change_count;
    }
    return 0;
}
