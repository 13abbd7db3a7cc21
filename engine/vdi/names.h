/* Names as people and paths write them: one parser for all. Pure, any thread. */
#ifndef GILD_VDI_NAMES_H
#define GILD_VDI_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "catalog/records.h"
#include "gild/error.h"

/* Room for any name in a sentence (gild_name_quote). */
#define GILD_NAME_QUOTED (4 * GILD_NAME_MAX + 8)

/* A name fit for a terminal: what is not printable UTF-8 becomes \xNN, what is long is cut.
 * Returns out. */
char *gild_name_quote(const char *name, char out[GILD_NAME_QUOTED]);

/* NAME or NAME@V. */
struct gild_reference {
    char name[GILD_NAME_MAX + 1];
    uint32_t version; /* 0 = none was given */
};
/* 0 or -EINVAL (GILD_USAGE). V: 1..2^32-1 in decimal without leading zeroes, so that each version
 * has one spelling. */
int gild_reference_parse(const char *text, struct gild_reference *out, struct gild_error *error);

/* "d%04d": exactly one %d or %0Nd (N 1..9); %% stands for %. */
struct gild_name_pattern {
    char before[GILD_NAME_MAX + 1], after[GILD_NAME_MAX + 1];
    int width; /* 0 = as many digits as it takes */
};
int gild_name_pattern_parse(const char *text, struct gild_name_pattern *out,
                            struct gild_error *error); /* 0 or -EINVAL (GILD_USAGE) */
/* The name of that number, checked as gild_name_check does. 0 or -EINVAL (GILD_USAGE). */
int gild_name_pattern_make(const struct gild_name_pattern *pattern, uint32_t number,
                           const char *kind, char name[GILD_NAME_MAX + 1],
                           struct gild_error *error);

/* RFC 3986: keeps letters, digits, - . _ ~ and what is in `keep`; %XX for the rest. The length it
 * takes, without NUL; what does not fit in room is cut (as snprintf does). */
size_t gild_percent_encode(const char *text, const char *keep, char *out, size_t room);
/* The opposite. 0, -EINVAL (a % without two hex digits, or %00), -ENOBUFS. */
int gild_percent_decode(const char *text, char *out, size_t room);

#endif
