/* Names: what is refused is refused with a sentence fit for a terminal, what is taken has one
 * spelling, and a pattern makes exactly the names it says. */
#include "vdi/names.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/prng.h"
#include "vdi/vdi.h"

static uint64_t seed;

#define TEN "0123456789"
#define HUNDRED TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN

/* Does the sentence hold a byte that a terminal would act on? */
static bool is_plain(const char *sentence) {
    for (; *sentence; sentence++)
        if ((unsigned char)*sentence < 0x20 || *sentence == 0x7f)
            return false;
    return true;
}

static void names_are_taken_or_refused(void) {
    static const char *const good[] = {"d1",
                                       "win10",
                                       "a b",
                                       "a.b",
                                       "a-b",
                                       "_",
                                       "Büro",
                                       "東京",
                                       "a\xe2\x80\x93"
                                       "b", /* a dash, between the invisible ones */
                                       "a\\b",
                                       "x!\"#$&'(),;<=>]^`{|}~",
                                       HUNDRED TEN TEN,
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"",
                                      ".",
                                      "..",
                                      ".a",
                                      "-a",
                                      "a/b",
                                      "a@1",
                                      "a:b",
                                      "a%b",
                                      "a+b",
                                      "a*",
                                      "a?",
                                      "a[",
                                      "a\n",
                                      "a\x1b[31m",
                                      "\x7f",
                                      "a\xc2\x85", /* C1 */
                                      "a\xe2\x80\xae"
                                      "b",             /* turns the text around */
                                      "a\xe2\x80\x8b", /* a space of no width */
                                      "a\xe2\x81\xa6"
                                      "b", /* an isolate */
                                      "\xef\xbb\xbf"
                                      "a",                /* a byte order mark */
                                      "\xff",             /* never in UTF-8 */
                                      "\xc0\xaf",         /* '/' in two bytes */
                                      "\xe0\x80\xaf",     /* in three */
                                      "\xed\xa0\x80",     /* a surrogate */
                                      "\xf4\x90\x80\x80", /* above U+10FFFF */
                                      "\xe6\x9d",         /* cut off */
                                      HUNDRED TEN TEN "x"};
    struct gild_error error;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CU_ASSERT_EQUAL(gild_name_check(good[i], "desktop", &error), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&error, 0, sizeof error);
        CU_ASSERT_EQUAL(gild_name_check(bad[i], "desktop", &error), -EINVAL);
        CU_ASSERT_EQUAL(error.code, GILD_USAGE);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.message, "desktop"));
        CU_ASSERT_TRUE(is_plain(error.message));
    }
}

static void references_have_one_spelling(void) {
    static const struct {
        const char *text, *name;
        uint32_t version;
    } good[] = {{"win10", "win10", 0},
                {"win10@1", "win10", 1},
                {"w@4294967295", "w", UINT32_MAX},
                {HUNDRED TEN TEN "@10", HUNDRED TEN TEN, 10}};
    static const char *const bad[] = {"",
                                      "@1",
                                      "w@",
                                      "w@0",
                                      "w@01",
                                      "w@+1",
                                      "w@ 1",
                                      "w@1x",
                                      "w@x",
                                      "w@-1",
                                      "w@1@2",
                                      "w@4294967296",
                                      "w@99999999999999999999999",
                                      "w:test",
                                      "a/b@1",
                                      "w@1\n",
                                      HUNDRED TEN TEN "x@1"};
    struct gild_reference reference;
    struct gild_error error;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CU_ASSERT_EQUAL(gild_reference_parse(good[i].text, &reference, &error), 0);
        CU_ASSERT_STRING_EQUAL(reference.name, good[i].name);
        CU_ASSERT_EQUAL(reference.version, good[i].version);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&error, 0, sizeof error);
        CU_ASSERT_EQUAL(gild_reference_parse(bad[i], &reference, &error), -EINVAL);
        CU_ASSERT_EQUAL(error.code, GILD_USAGE);
        CU_ASSERT_TRUE(error.message[0] && is_plain(error.message));
    }
}

static void patterns_make_the_names_they_say(void) {
    static const struct {
        const char *pattern;
        uint32_t number;
        const char *name;
    } good[] = {{"d%d", 1, "d1"},         {"d%04d", 7, "d0007"},
                {"%02d-x", 5, "05-x"},    {"a%03db", 12345, "a12345b"},
                {"%09d", 1, "000000001"}, {"%d", UINT32_MAX, "4294967295"},
                {"d0%d", 3, "d03"},       {"d%0dd", 0, NULL},
                {"d%01d", 9, "d9"},       {"pc %d of 9", 2, "pc 2 of 9"}};
    static const char *const bad[] = {"",
                                      "d",
                                      "d%",
                                      "d%d%d",
                                      "d%4d",
                                      "d%04",
                                      "d%00d",
                                      "d%010d",
                                      "d%s",
                                      "d%n",
                                      "d%ld",
                                      "d%-4d",
                                      "d%%d",
                                      "d%*d",
                                      "d%1$d",
                                      "d% d",
                                      "%d%",
                                      "d%x",
                                      HUNDRED TEN TEN "x%d"};
    struct gild_name_pattern pattern;
    struct gild_error error;
    char name[GILD_NAME_MAX + 1];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int result = gild_name_pattern_parse(good[i].pattern, &pattern, &error);
        CU_ASSERT_EQUAL(result, good[i].name ? 0 : -EINVAL);
        if (!good[i].name || result)
            continue;
        CU_ASSERT_EQUAL(gild_name_pattern_make(&pattern, good[i].number, "desktop", name, &error),
                        0);
        CU_ASSERT_STRING_EQUAL(name, good[i].name);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&error, 0, sizeof error);
        CU_ASSERT_EQUAL(gild_name_pattern_parse(bad[i], &pattern, &error), -EINVAL);
        CU_ASSERT_EQUAL(error.code, GILD_USAGE);
        CU_ASSERT_TRUE(error.message[0] && is_plain(error.message));
    }
    /* What a pattern makes must be a name: too long with its number, or with a % of its own. */
    CU_ASSERT_EQUAL(gild_name_pattern_parse(HUNDRED TEN "12345678%d", &pattern, &error), 0);
    CU_ASSERT_EQUAL(gild_name_pattern_make(&pattern, 99, "desktop", name, &error), 0);
    CU_ASSERT_EQUAL(gild_name_pattern_make(&pattern, 100, "desktop", name, &error), -EINVAL);
    CU_ASSERT_EQUAL(gild_name_pattern_parse("d%%%d", &pattern, &error), 0);
    CU_ASSERT_STRING_EQUAL(pattern.before, "d%");
    CU_ASSERT_EQUAL(gild_name_pattern_make(&pattern, 1, "desktop", name, &error), -EINVAL);
    CU_ASSERT_EQUAL(gild_name_pattern_parse("-%d", &pattern, &error), 0);
    CU_ASSERT_EQUAL(gild_name_pattern_make(&pattern, 1, "desktop", name, &error), -EINVAL);
}

static void percent_encoding_returns(void) {
    static const char *const broken[] = {"%", "%4", "%g1", "%1g", "%00", "a%", "%%41"};
    struct gild_prng prng;
    char text[64], code[256], back[64];
    gild_prng_seed(&prng, seed);
    CU_ASSERT_EQUAL(gild_percent_encode("a b/ü%", "", code, sizeof code), 17);
    CU_ASSERT_STRING_EQUAL(code, "a%20b%2F%C3%BC%25");
    CU_ASSERT_EQUAL(gild_percent_encode("desktops/a b", "/", code, sizeof code), 14);
    CU_ASSERT_STRING_EQUAL(code, "desktops/a%20b");
    CU_ASSERT_EQUAL(gild_percent_encode("abc", "", code, 3), 3);
    CU_ASSERT_STRING_EQUAL(code, "ab");
    CU_ASSERT_EQUAL(gild_percent_encode("abc", "", NULL, 0), 3);
    for (unsigned round = 0; round < 2000; round++) {
        size_t length = gild_prng_below(&prng, sizeof text);
        for (size_t i = 0; i < length; i++)
            text[i] = (char)(1 + gild_prng_below(&prng, 255));
        text[length] = 0;
        CU_ASSERT_TRUE(gild_percent_encode(text, "", code, sizeof code) < sizeof code);
        CU_ASSERT_TRUE(is_plain(code));
        CU_ASSERT_EQUAL(gild_percent_decode(code, back, sizeof back), 0);
        CU_ASSERT_STRING_EQUAL(back, text);
        CU_ASSERT_EQUAL(gild_percent_decode(code, back, length), -ENOBUFS);
    }
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        CU_ASSERT_EQUAL(gild_percent_decode(broken[i], back, sizeof back), -EINVAL);
}

/* Whatever bytes come as a name, the parsers end, stay in their rooms (ASan), and say something
 * fit for a terminal. */
static void garbage_is_refused_in_plain_words(void) {
    static const char often[] = "%@0d/9:*[";
    struct gild_prng prng;
    struct gild_reference reference;
    struct gild_name_pattern pattern;
    char text[400], name[GILD_NAME_MAX + 1], quoted[GILD_NAME_QUOTED];
    gild_prng_seed(&prng, seed + 1);
    for (unsigned round = 0; round < 20000; round++) {
        struct gild_error error = {0};
        size_t length = gild_prng_below(&prng, gild_prng_below(&prng, 4) ? 8 : sizeof text);
        for (size_t i = 0; i < length; i++)
            text[i] = gild_prng_below(&prng, 2) ? often[gild_prng_below(&prng, sizeof often - 1)]
                                                : (char)(1 + gild_prng_below(&prng, 255));
        text[length] = 0;
        CU_ASSERT_TRUE_FATAL(is_plain(gild_name_quote(text, quoted)));
        if (gild_name_check(text, "image", &error) == 0)
            CU_ASSERT_STRING_EQUAL(text, quoted);
        CU_ASSERT_TRUE_FATAL(is_plain(error.message));
        gild_reference_parse(text, &reference, &error);
        CU_ASSERT_TRUE_FATAL(is_plain(error.message));
        if (gild_name_pattern_parse(text, &pattern, &error) == 0)
            gild_name_pattern_make(&pattern, (uint32_t)gild_prng_next(&prng), "pool", name, &error);
        CU_ASSERT_TRUE_FATAL(is_plain(error.message));
    }
}

int main(void) {
    const char *fixed = getenv("GILD_SEED");
    seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 " (GILD_SEED replays it)\n", seed);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("names", NULL, NULL);
    CU_add_test(suite, "names are taken or refused", names_are_taken_or_refused);
    CU_add_test(suite, "references have one spelling", references_have_one_spelling);
    CU_add_test(suite, "patterns make the names they say", patterns_make_the_names_they_say);
    CU_add_test(suite, "percent-encoding returns", percent_encoding_returns);
    CU_add_test(suite, "garbage is refused in plain words", garbage_is_refused_in_plain_words);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int bad = CU_get_number_of_tests_failed() != 0 || CU_get_error() != CUE_SUCCESS;
    CU_cleanup_registry();
    return bad;
}
