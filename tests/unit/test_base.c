/* What engine/base promises: errors, log lines, bytes, sizes, queues, bitmaps, seeded numbers. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "base/parallel.h"
#include "base/prng.h"
#include "base/queue.h"
#include "gild/error.h"

static void test_fail_fills_one_sentence_and_returns_errno(void) {
    struct gild_error error;
    CU_ASSERT_EQUAL(gild_fail(&error, GILD_BUSY, EBUSY, "disk %s is open", "d1"), -EBUSY);
    CU_ASSERT_EQUAL(error.code, GILD_BUSY);
    CU_ASSERT_EQUAL(error.err, EBUSY);
    CU_ASSERT_STRING_EQUAL(error.message, "disk d1 is open");
    CU_ASSERT_EQUAL(gild_fail(NULL, GILD_FAILED, 0, "x"), -EIO);
    gild_fail(&error, GILD_FAILED, 0, "%1000d", 7);
    CU_ASSERT_EQUAL(strlen(error.message), sizeof error.message - 1);
}

static void test_codes_of_errnos(void) {
    CU_ASSERT_EQUAL(gild_code_of_errno(ENOSPC), GILD_NO_SPACE);
    CU_ASSERT_EQUAL(gild_code_of_errno(-EDQUOT), GILD_NO_SPACE);
    CU_ASSERT_EQUAL(gild_code_of_errno(ENOENT), GILD_NOT_FOUND);
    CU_ASSERT_EQUAL(gild_code_of_errno(EAGAIN), GILD_BUSY);
    CU_ASSERT_EQUAL(gild_code_of_errno(EINVAL), GILD_USAGE);
    CU_ASSERT_EQUAL(gild_code_of_errno(EUCLEAN), GILD_CORRUPT);
    CU_ASSERT_EQUAL(gild_code_of_errno(EPERM), GILD_FAILED);
    CU_ASSERT_EQUAL(gild_code_of_errno(0), GILD_OK);
    CU_ASSERT_STRING_EQUAL(gild_code_name(GILD_NO_SPACE), "no_space");
    CU_ASSERT_STRING_EQUAL(gild_code_name(GILD_PARTLY), "partly");
}

/* Sends stderr to a file while a message is written, and gives what was written. */
static void captured(enum gild_log_level level, const char *message, char *text, size_t room) {
    FILE *file = tmpfile();
    int saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    gild_log(level, "%s", message);
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t length = pread(fileno(file), text, room - 1, 0);
    text[length > 0 ? length : 0] = '\0';
    fclose(file);
}

static void test_a_log_message_is_one_line(void) {
    char text[2048], big[1500];
    gild_log_set_level(GILD_LOG_INFO);
    captured(GILD_LOG_INFO, "two\nlines\x1b[31m", text, sizeof text);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "info: two lines [31m\n"));
    CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + strlen(text) - 1);
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = '\0';
    captured(GILD_LOG_ERROR, big, text, sizeof text);
    CU_ASSERT_TRUE(strlen(text) > 900 && strlen(text) <= 1024);
    CU_ASSERT_EQUAL(text[strlen(text) - 1], '\n');
}

static void test_log_levels_hide_what_is_finer(void) {
    char text[256];
    gild_log_set_level(GILD_LOG_WARN);
    CU_ASSERT_FALSE(gild_log_wants(GILD_LOG_INFO));
    captured(GILD_LOG_INFO, "hidden", text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "");
    errno = ENXIO;
    captured(GILD_LOG_WARN, "shown", text, sizeof text);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "warning: shown\n"));
    gild_log_set_level(GILD_LOG_INFO);
}

static void test_journal_prefix_only_on_the_journal(void) {
    char text[256];
    setenv("JOURNAL_STREAM", "1:1", 1);
    captured(GILD_LOG_INFO, "m", text, sizeof text);
    CU_ASSERT_NOT_EQUAL(text[0], '<');
    unsetenv("JOURNAL_STREAM");
}

static void test_bytes_have_their_order_at_any_alignment(void) {
    unsigned char raw[16] = {0};
    gild_put_le32(raw + 1, 0x01020304);
    CU_ASSERT_EQUAL(raw[1], 4);
    CU_ASSERT_EQUAL(gild_get_le32(raw + 1), 0x01020304);
    gild_put_be64(raw + 3, 0x0102030405060708);
    CU_ASSERT_EQUAL(raw[3], 1);
    CU_ASSERT_EQUAL(raw[10], 8);
    CU_ASSERT_EQUAL(gild_get_be64(raw + 3), 0x0102030405060708);
    gild_put_be16(raw, 0xabcd);
    CU_ASSERT_EQUAL(gild_get_le16(raw), 0xcdab);
    gild_put_le64(raw + 5, 1);
    CU_ASSERT_EQUAL(raw[5], 1);
    gild_put_be32(raw, 9);
    CU_ASSERT_EQUAL(gild_get_be32(raw), 9);
    gild_put_le16(raw + 1, 0x1234);
    CU_ASSERT_EQUAL(gild_get_be16(raw + 1), 0x3412);
    CU_ASSERT_EQUAL(gild_align_up(4097, 4096), 8192);
    CU_ASSERT_EQUAL(gild_align_up(4096, 4096), 4096);
    CU_ASSERT_EQUAL(gild_align_down(8191, 4096), 4096);
    CU_ASSERT_FALSE(gild_is_aligned(513, 512));
}

static void test_zero_check_sees_each_single_byte(void) {
    static unsigned char block[4096 + 8];
    CU_ASSERT_TRUE(gild_is_zero_block(block + 1));
    for (size_t i = 0; i < 4096; i++) {
        block[3 + i] = 1;
        if (gild_is_zero_block(block + 3))
            CU_FAIL("a set byte was not seen");
        block[3 + i] = 0;
    }
    block[3 + 4096] = 1; /* just past the end */
    CU_ASSERT_TRUE(gild_is_zero_block(block + 3));
    for (size_t length = 0; length < 600; length++) {
        CU_ASSERT_TRUE_FATAL(gild_is_zero(block, length));
        if (length) {
            block[length - 1] = 0x80;
            CU_ASSERT_FALSE_FATAL(gild_is_zero(block, length));
            block[length - 1] = 0;
        }
    }
}

static void test_sizes_are_parsed_strictly(void) {
    uint64_t bytes = 0;
    CU_ASSERT_EQUAL(gild_parse_size("10G", &bytes), 0);
    CU_ASSERT_EQUAL(bytes, 10ull << 30);
    CU_ASSERT_EQUAL(gild_parse_size("4096", &bytes), 0);
    CU_ASSERT_EQUAL(bytes, 4096);
    CU_ASSERT_EQUAL(gild_parse_size("1tib", &bytes), 0);
    CU_ASSERT_EQUAL(bytes, 1ull << 40);
    CU_ASSERT_EQUAL(gild_parse_size("0", &bytes), 0);
    CU_ASSERT_EQUAL(bytes, 0);
    static const char *const wrong[] = {"",   "G",   "-1",   " 1",   "1 G", "1KB",
                                        "1X", "1GG", "1.5G", "0x10", "1\n"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CU_ASSERT_EQUAL(gild_parse_size(wrong[i], &bytes), -EINVAL);
    CU_ASSERT_EQUAL(gild_parse_size("8E", &bytes), -ERANGE);
    CU_ASSERT_EQUAL(gild_parse_size("9223372036854775807", &bytes), 0);
    CU_ASSERT_EQUAL(gild_parse_size("9223372036854775808", &bytes), -ERANGE);
    CU_ASSERT_EQUAL(gild_parse_size("99999999999999999999999", &bytes), -ERANGE);
}

static void test_sizes_are_formatted_shortly(void) {
    char text[16];
    CU_ASSERT_STRING_EQUAL(gild_format_size(512, text, sizeof text), "512");
    CU_ASSERT_STRING_EQUAL(gild_format_size(10ull << 30, text, sizeof text), "10G");
    CU_ASSERT_STRING_EQUAL(gild_format_size(3ull << 29, text, sizeof text), "1.5G");
    CU_ASSERT_STRING_EQUAL(gild_format_size(UINT64_MAX, text, sizeof text), "15.9E");
}

static void test_checked_arithmetic_says_when_it_wraps(void) {
    uint64_t out;
    CU_ASSERT_TRUE(gild_add_u64(UINT64_MAX - 1, 1, &out));
    CU_ASSERT_EQUAL(out, UINT64_MAX);
    CU_ASSERT_FALSE(gild_add_u64(UINT64_MAX, 1, &out));
    CU_ASSERT_FALSE(gild_mul_u64(1ull << 32, 1ull << 32, &out));
    CU_ASSERT_TRUE(gild_range_within(10, 0, 10));
    CU_ASSERT_FALSE(gild_range_within(10, 1, 10));
    CU_ASSERT_FALSE(gild_range_within(1, UINT64_MAX, 10));
}

static void test_bitmaps_find_across_words(void) {
    uint64_t words[4] = {0};
    CU_ASSERT_EQUAL(gild_bitmap_words(200), 4);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 200, 0, true), GILD_BITMAP_NONE);
    gild_bitmap_set(words, 130);
    gild_bitmap_set(words, 199);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 200, 0, true), 130);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 200, 131, true), 199);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 199, 131, true), GILD_BITMAP_NONE);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 200, 130, false), 131);
    CU_ASSERT_EQUAL(gild_bitmap_count(words, 200), 2);
    gild_bitmap_clear(words, 130);
    CU_ASSERT_FALSE(gild_bitmap_test(words, 130));
    memset(words, 0xff, sizeof words);
    CU_ASSERT_EQUAL(gild_bitmap_find(words, 200, 0, false), GILD_BITMAP_NONE);
}

static void test_prng_replays_and_spreads(void) {
    struct gild_prng a, b;
    unsigned seen[10] = {0};
    unsigned char odd[13] = {0};
    gild_prng_seed(&a, 42);
    gild_prng_seed(&b, 42);
    for (int i = 0; i < 10000; i++) {
        uint64_t value = gild_prng_below(&a, 10);
        CU_ASSERT_EQUAL_FATAL(value, gild_prng_below(&b, 10));
        CU_ASSERT_TRUE_FATAL(value < 10);
        seen[value]++;
    }
    for (int i = 0; i < 10; i++)
        CU_ASSERT_TRUE(seen[i] > 800 && seen[i] < 1200);
    gild_prng_fill(&a, odd, 12);
    CU_ASSERT_EQUAL(odd[12], 0);
    /* Of the authors' splitmix64.c for seed 0. */
    uint64_t state = 0;
    CU_ASSERT_EQUAL(gild_splitmix64(&state), 0xe220a8397b1dcdafull);
}

static void test_list_keeps_order_and_removal(void) {
    struct gild_list head, a, b, c;
    gild_list_init(&head);
    gild_list_init(&a);
    gild_list_remove(&a); /* harmless */
    gild_list_push_back(&head, &b);
    gild_list_push_back(&head, &c);
    gild_list_push_front(&head, &a);
    gild_list_remove(&b);
    CU_ASSERT_PTR_EQUAL(gild_list_pop_front(&head), &a);
    CU_ASSERT_PTR_EQUAL(gild_list_pop_front(&head), &c);
    CU_ASSERT_PTR_NULL(gild_list_pop_front(&head));
    CU_ASSERT_TRUE(gild_list_empty(&head));
}

#define POSTERS 4
#define PER_POSTER 20000

struct numbered {
    struct gild_task task;
    unsigned poster, number;
};

struct poster {
    struct gild_mailbox *mailbox;
    struct numbered *tasks;
    unsigned wakes;
};

static void *post_all(void *argument) {
    struct poster *poster = argument;
    for (unsigned i = 0; i < PER_POSTER; i++)
        poster->wakes += gild_mailbox_push(poster->mailbox, &poster->tasks[i].task);
    return NULL;
}

static void test_mailbox_keeps_each_posters_order_and_loses_nothing(void) {
    struct gild_mailbox mailbox = {NULL};
    struct gild_task_queue queue = {0};
    struct poster posters[POSTERS];
    pthread_t threads[POSTERS];
    unsigned next[POSTERS] = {0}, taken = 0, sleeps = 0, wakes = 0;
    for (unsigned p = 0; p < POSTERS; p++) {
        posters[p] = (struct poster){&mailbox, calloc(PER_POSTER, sizeof(struct numbered)), 0};
        for (unsigned i = 0; i < PER_POSTER; i++)
            posters[p].tasks[i] = (struct numbered){{0}, p, i};
        pthread_create(&threads[p], NULL, post_all, &posters[p]);
    }
    while (taken < POSTERS * PER_POSTER) {
        struct gild_task *task;
        gild_mailbox_take(&mailbox, &queue);
        while ((task = gild_task_queue_pop(&queue))) {
            struct numbered *numbered = gild_container_of(task, struct numbered, task);
            CU_ASSERT_EQUAL_FATAL(numbered->number, next[numbered->poster]);
            next[numbered->poster]++;
            taken++;
        }
        /* Each sleep that a task ended was ended by exactly one poster. */
        if (taken < POSTERS * PER_POSTER && gild_mailbox_sleep(&mailbox))
            sleeps++;
        while (taken < POSTERS * PER_POSTER && atomic_load(&mailbox.head) == (void *)&mailbox)
            sched_yield();
    }
    for (unsigned p = 0; p < POSTERS; p++) {
        pthread_join(threads[p], NULL);
        wakes += posters[p].wakes;
        free(posters[p].tasks);
    }
    CU_ASSERT_EQUAL(wakes, sleeps);
}

struct pieces {
    unsigned threads;
    _Atomic unsigned done[100], strangers;
};

static void one_piece(void *context, unsigned thread, size_t piece) {
    struct pieces *pieces = context;
    pieces->done[piece]++;
    pieces->strangers += thread >= pieces->threads;
}

static void test_pieces_are_done_once_each_however_many_threads(void) {
    static const unsigned threads[] = {0, 1, 2, 5, 99}, counts[] = {0, 1, 3, 100};
    for (unsigned t = 0; t < 5; t++)
        for (unsigned c = 0; c < 4; c++) {
            struct pieces pieces = {.threads = threads[t] ? threads[t] : 1};
            unsigned wrong = 0;
            if (pieces.threads > GILD_PARALLEL_MOST)
                pieces.threads = GILD_PARALLEL_MOST;
            gild_parallel(threads[t], counts[c], one_piece, &pieces);
            for (unsigned i = 0; i < 100; i++)
                wrong += pieces.done[i] != (i < counts[c]);
            CU_ASSERT_EQUAL(wrong, 0);
            CU_ASSERT_EQUAL(pieces.strangers, 0);
        }
}

int main(void) {
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("base", NULL, NULL);
    CU_ADD_TEST(suite, test_fail_fills_one_sentence_and_returns_errno);
    CU_ADD_TEST(suite, test_codes_of_errnos);
    CU_ADD_TEST(suite, test_a_log_message_is_one_line);
    CU_ADD_TEST(suite, test_log_levels_hide_what_is_finer);
    CU_ADD_TEST(suite, test_journal_prefix_only_on_the_journal);
    CU_ADD_TEST(suite, test_bytes_have_their_order_at_any_alignment);
    CU_ADD_TEST(suite, test_zero_check_sees_each_single_byte);
    CU_ADD_TEST(suite, test_sizes_are_parsed_strictly);
    CU_ADD_TEST(suite, test_sizes_are_formatted_shortly);
    CU_ADD_TEST(suite, test_checked_arithmetic_says_when_it_wraps);
    CU_ADD_TEST(suite, test_bitmaps_find_across_words);
    CU_ADD_TEST(suite, test_prng_replays_and_spreads);
    CU_ADD_TEST(suite, test_list_keeps_order_and_removal);
    CU_ADD_TEST(suite, test_mailbox_keeps_each_posters_order_and_loses_nothing);
    CU_ADD_TEST(suite, test_pieces_are_done_once_each_however_many_threads);
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
