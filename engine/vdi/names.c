/* Names: what may be one, references to versions, patterns, quoting and percent-encoding
 * (names.h, vdi.h). Pure functions, any thread. */
#include "vdi/names.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vdi/vdi.h"

/* The bytes of the UTF-8 character at `text` (RFC 3629: no overlong form, no surrogate, at most
 * U+10FFFF), 0 if there is none. */
static size_t utf8_length(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    unsigned char low = 0x80, high = 0xbf;
    size_t length;
    if (at[0] < 0x80)
        return at[0] != 0;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    length = at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (at[0] == 0xe0)
        low = 0xa0;
    else if (at[0] == 0xed)
        high = 0x9f;
    else if (at[0] == 0xf0)
        low = 0x90;
    else if (at[0] == 0xf4)
        high = 0x8f;
    if (at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

/* C0, DEL and C1 (U+0080 to U+009F). */
static bool is_control(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    return at[0] < 0x20 || at[0] == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0);
}

/* What a screen does not show, or shows by turning the text around it: U+200B to U+200F, U+2028 to
 * U+202E, U+2060 to U+206F, U+FEFF. Two names could look alike, or a name like another sentence. */
static bool is_invisible(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    if (at[0] == 0xe2 && at[1] == 0x80)
        return (at[2] >= 0x8b && at[2] <= 0x8f) || (at[2] >= 0xa8 && at[2] <= 0xae);
    if (at[0] == 0xe2 && at[1] == 0x81)
        return at[2] >= 0xa0 && at[2] <= 0xaf;
    return at[0] == 0xef && at[1] == 0xbb && at[2] == 0xbf;
}

char *gild_name_quote(const char *name, char out[GILD_NAME_QUOTED]) {
    size_t used = 0, left = GILD_NAME_MAX;
    while (*name && left) {
        size_t length = utf8_length(name);
        if (length > left)
            break;
        if (length == 0 || is_control(name) || is_invisible(name)) {
            used += (size_t)snprintf(out + used, 5, "\\x%02x", (unsigned char)*name);
            length = 1;
        } else {
            memcpy(out + used, name, length);
            used += length;
        }
        name += length;
        left -= length;
    }
    strcpy(out + used, *name ? "..." : "");
    return out;
}

static int refuse(struct gild_error *error, const char *kind, const char *name, const char *why) {
    char quoted[GILD_NAME_QUOTED];
    return gild_fail(error, GILD_USAGE, EINVAL, "%s name '%s' %s", kind,
                     gild_name_quote(name, quoted), why);
}

int gild_name_check(const char *name, const char *kind, struct gild_error *error) {
    size_t length = strlen(name);
    if (!length)
        return gild_fail(error, GILD_USAGE, EINVAL, "the %s's name is empty; give it one", kind);
    if (length > GILD_NAME_MAX)
        return refuse(error, kind, name, "is too long; a name has at most 120 bytes");
    if (name[0] == '-' || name[0] == '.')
        return refuse(error, kind, name, "begins with '-' or '.'; use another first letter");
    for (const char *at = name; *at;) {
        size_t bytes = utf8_length(at);
        if (!bytes)
            return refuse(error, kind, name, "is not UTF-8 text; use another name");
        if (is_control(at))
            return refuse(error, kind, name, "has a control character in it; use another name");
        if (is_invisible(at))
            return refuse(error, kind, name, "has an invisible character in it; use another name");
        if (strchr("/@:%+*?[", *at))
            return refuse(error, kind, name, "has one of / @ : % + * ? [ in it; use another name");
        at += bytes;
    }
    return 0;
}

int gild_reference_parse(const char *text, struct gild_reference *out, struct gild_error *error) {
    char quoted[GILD_NAME_QUOTED];
    const char *at = strrchr(text, '@');
    size_t length = at ? (size_t)(at - text) : strlen(text);
    uint64_t version = 0;
    memset(out, 0, sizeof *out);
    if (length > GILD_NAME_MAX)
        return gild_name_check(text, "image", error);
    memcpy(out->name, text, length);
    int result = gild_name_check(out->name, "image", error);
    if (result || !at)
        return result;
    const char *digit = at + 1;
    bool good = *digit >= '1' && *digit <= '9';
    for (; good && *digit; digit++) {
        good = *digit >= '0' && *digit <= '9' && version <= UINT32_MAX;
        version = version * 10 + (uint64_t)(*digit - '0');
    }
    if (!good || version > UINT32_MAX)
        return gild_fail(error, GILD_USAGE, EINVAL,
                         "'%s' is no version of an image; write it as NAME@NUMBER",
                         gild_name_quote(text, quoted));
    out->version = (uint32_t)version;
    return 0;
}

/* ---- patterns -------------------------------------------------------------------------------- */

static int refuse_pattern(struct gild_error *error, const char *text, const char *why) {
    char quoted[GILD_NAME_QUOTED];
    return gild_fail(error, GILD_USAGE, EINVAL, "name pattern '%s' %s; write it as 'd%%04d'",
                     gild_name_quote(text, quoted), why);
}

/* The length of the number's place that begins at the '%' at `at` ("%d", "%04d"), 0 if it is none.
 */
static size_t number_place(const char *at, int *width) {
    *width = 0;
    if (at[1] == 'd')
        return 2;
    if (at[1] != '0' || at[2] < '1' || at[2] > '9' || at[3] != 'd')
        return 0;
    *width = at[2] - '0';
    return 4;
}

int gild_name_pattern_parse(const char *text, struct gild_name_pattern *out,
                            struct gild_error *error) {
    bool found = false;
    size_t used = 0;
    memset(out, 0, sizeof *out);
    char *side = out->before;
    for (const char *at = text; *at; at++) {
        if (at[0] == '%' && at[1] == '%') {
            at++;
        } else if (at[0] == '%') {
            int width;
            size_t length = number_place(at, &width);
            if (!length)
                return refuse_pattern(error, text, "has a % that is neither %d nor %0Nd");
            if (found)
                return refuse_pattern(error, text, "has two places for the number");
            found = true;
            out->width = width;
            side = out->after;
            used = 0;
            at += length - 1;
            continue;
        }
        if (used == GILD_NAME_MAX)
            return refuse_pattern(error, text, "is too long");
        side[used++] = *at;
    }
    return found ? 0 : refuse_pattern(error, text, "has no place for the number");
}

int gild_name_pattern_make(const struct gild_name_pattern *pattern, uint32_t number,
                           const char *kind, char name[GILD_NAME_MAX + 1],
                           struct gild_error *error) {
    char full[2 * GILD_NAME_MAX + 16];
    snprintf(full, sizeof full, "%s%0*u%s", pattern->before, pattern->width, number,
             pattern->after);
    int result = gild_name_check(full, kind, error);
    if (result == 0)
        memcpy(name, full, strlen(full) + 1);
    return result;
}

/* ---- percent-encoding ------------------------------------------------------------------------ */

static bool is_unreserved(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~';
}

size_t gild_percent_encode(const char *text, const char *keep, char *out, size_t room) {
    static const char digits[] = "0123456789ABCDEF";
    size_t used = 0;
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        bool plain = is_unreserved(*text) || strchr(keep, *text);
        char code[3] = {plain ? *text : '%', digits[byte >> 4], digits[byte & 15]};
        for (size_t i = 0; i < (plain ? 1u : 3u); i++, used++)
            if (used + 1 < room)
                out[used] = code[i];
    }
    if (room)
        out[used < room ? used : room - 1] = 0;
    return used;
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int gild_percent_decode(const char *text, char *out, size_t room) {
    size_t used = 0;
    for (; *text; text++) {
        char byte = *text;
        if (byte == '%') {
            int high = hex_value(text[1]), low = high < 0 ? -1 : hex_value(text[2]);
            if (low < 0 || (high == 0 && low == 0))
                return -EINVAL;
            byte = (char)(high << 4 | low);
            text += 2;
        }
        if (used + 1 >= room)
            return -ENOBUFS;
        out[used++] = byte;
    }
    if (used >= room)
        return -ENOBUFS;
    out[used] = 0;
    return 0;
}
