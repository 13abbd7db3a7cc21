/* Sizes as people write them (base/checked.h). Pure, any thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"

static const char units[] = "KMGTPE";

/* The power of 1024 that a suffix stands for ("", "B", "K", "KB" is refused, "KiB"), or -1. */
static int unit_power(const char *suffix) {
    if (!*suffix || !strcasecmp(suffix, "B"))
        return 0;
    const char upper = (char)(*suffix & ~0x20);
    const char *unit = memchr(units, upper, sizeof units - 1);
    if (!unit || (suffix[1] && strcasecmp(suffix + 1, "iB")))
        return -1;
    return (int)(unit - units) + 1;
}

int gild_parse_size(const char *text, uint64_t *bytes) {
    uint64_t value = 0;
    const char *at = text;
    if (*at < '0' || *at > '9')
        return -EINVAL;
    for (; *at >= '0' && *at <= '9'; at++)
        if (!gild_mul_u64(value, 10, &value) || !gild_add_u64(value, (uint64_t)(*at - '0'), &value))
            return -ERANGE;
    int power = unit_power(at);
    if (power < 0)
        return -EINVAL;
    while (power-- > 0)
        if (!gild_mul_u64(value, 1024, &value))
            return -ERANGE;
    if (value > INT64_MAX)
        return -ERANGE;
    *bytes = value;
    return 0;
}

char *gild_format_size(uint64_t bytes, char *text, size_t room) {
    unsigned power = 0;
    uint64_t whole = bytes, rest = 0;
    while (whole >= 1024) {
        rest = whole & 1023;
        whole >>= 10;
        power++;
    }
    if (power == 0) {
        snprintf(text, room, "%" PRIu64, whole);
        return text;
    }
    unsigned tenth = (unsigned)(rest * 10 / 1024);
    if (tenth == 0 || whole >= 100)
        snprintf(text, room, "%" PRIu64 "%c", whole, units[power - 1]);
    else
        snprintf(text, room, "%" PRIu64 ".%u%c", whole, tenth, units[power - 1]);
    return text;
}
