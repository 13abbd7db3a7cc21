/* Findings: what is wrong, said in one sentence with the images and desktops that it hits. Any
 * thread that may block; nothing is shared. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "disk/damage.h"

#define NAMES 2u  /* disks of a kind that a sentence names */
#define RANGES 2u /* ranges of each */

struct text {
    char *at;
    size_t room, used;
};

static void put(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text->at + text->used, text->room - text->used, format, arguments);
    va_end(arguments);
    text->used += n > 0 ? (size_t)n : 0;
    if (text->used >= text->room)
        text->used = text->room - 1;
}

static void put_ranges(struct text *text, const struct gild_hit *hit) {
    put(text, " (block%s", hit->blocks == 1 ? "" : "s");
    for (size_t i = 0; i < hit->range_count && i < RANGES; i++) {
        const struct gild_hit_range *range = &hit->ranges[i];
        put(text, "%s %" PRIu64, i ? "," : "", range->first_block);
        if (range->blocks > 1)
            put(text, "-%" PRIu64, range->first_block + range->blocks - 1);
    }
    if (hit->range_count > RANGES)
        put(text, " and others, %" PRIu64 " in all", hit->blocks);
    put(text, ")");
}

/* "desktops/d1/os" is the desktop d1. */
static void put_name(struct text *text, const char *disk) {
    const char *slash = strchr(disk, '/'), *name = slash ? slash + 1 : disk;
    put(text, "%.*s", (int)strcspn(name, "/"), name);
}

static void put_kind(struct text *text, const struct hits *hits, const char *prefix,
                     const char *one, const char *many) {
    size_t total = 0, named = 0;
    for (size_t i = 0; i < hits->count; i++)
        total += strncmp(hits->hit[i].disk, prefix, strlen(prefix)) == 0;
    for (size_t i = 0; i < hits->count && named < NAMES; i++) {
        const struct gild_hit *hit = &hits->hit[i];
        if (strncmp(hit->disk, prefix, strlen(prefix)) != 0)
            continue;
        put(text, "%s", text->used ? ", " : "");
        if (named++ == 0)
            put(text, "%s ", total == 1 ? one : many);
        put_name(text, hit->disk);
        put_ranges(text, hit);
    }
    if (total > named)
        put(text, " and %zu more", total - named);
}

void hits_words(const struct hits *hits, char *out, size_t room) {
    struct text text = {.at = out, .room = room};
    out[0] = 0;
    put_kind(&text, hits, "images/", "image", "images");
    put_kind(&text, hits, "desktops/", "desktop", "desktops");
    put_kind(&text, hits, "delta ", "the disk of", "the disks of");
    if (!text.used)
        put(&text, "no disk");
}

static void add(struct findings *findings, const char *object, const char *kind,
                const struct hits *hits, const char *advice, const char *format, va_list arguments)
    __attribute__((format(printf, 6, 0)));

static void add(struct findings *findings, const char *object, const char *kind,
                const struct hits *hits, const char *advice, const char *format,
                va_list arguments) {
    char words[1024], sentence[4096];
    vsnprintf(sentence, 2000, format, arguments);
    size_t n = strlen(sentence);
    if (hits) {
        hits_words(hits, words, sizeof words);
        n += (size_t)snprintf(sentence + n, sizeof sentence - n, "; it hits %s", words);
    }
    if (advice)
        snprintf(sentence + n, sizeof sentence - n, "; %s", advice);
    ++*findings->count;
    const struct gild_finding finding = {.object = object,
                                         .kind = kind,
                                         .message = sentence,
                                         .hits = hits ? hits->hit : NULL,
                                         .hit_count = hits ? hits->count : 0};
    if (findings->found)
        findings->found(findings->context, &finding);
}

void findings_add(struct findings *findings, const char *object, const char *kind,
                  const struct hits *hits, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    add(findings, object, kind, hits, NULL, format, arguments);
    va_end(arguments);
}

void findings_advise(struct findings *findings, const char *object, const char *kind,
                     const struct hits *hits, const char *advice, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    add(findings, object, kind, hits, advice, format, arguments);
    va_end(arguments);
}
