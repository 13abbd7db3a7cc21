/* What codecs promise: the published hashes, frames that come back as they were, and a decoder that
 * keeps to its room whatever it is fed. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "codec/hash.h"
#include "codec/zstd.h"

static const uint8_t abc_hash[GILD_SHA256_BYTES] = {
    0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
    0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
};

static uint64_t state;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static void sha256_is_that_of_fips_180_4(void) {
    uint8_t hash[GILD_SHA256_BYTES];
    CU_ASSERT_EQUAL(gild_sha256("abc", 3, hash), 0);
    CU_ASSERT_EQUAL(memcmp(hash, abc_hash, sizeof hash), 0);
}

static void sha256_in_pieces_is_that_of_the_whole(void) {
    struct gild_sha256 *sha;
    uint8_t data[10000], whole[GILD_SHA256_BYTES], pieces[GILD_SHA256_BYTES];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)draw();
    CU_ASSERT_EQUAL_FATAL(gild_sha256_create(&sha), 0);
    for (int round = 0; round < 20; round++) {
        size_t length = draw() % sizeof data, done = 0;
        gild_sha256(data, length, whole);
        while (done < length) {
            size_t n = draw() % (length - done) + 1;
            CU_ASSERT_EQUAL(gild_sha256_update(sha, data + done, n), 0);
            done += n;
        }
        CU_ASSERT_EQUAL(gild_sha256_final(sha, pieces), 0);
        CU_ASSERT_EQUAL(memcmp(whole, pieces, sizeof whole), 0);
    }
    gild_sha256_destroy(sha);
}

static void xxh3_is_that_of_its_specification(void) {
    uint8_t block[4096] = {1};
    CU_ASSERT_EQUAL(gild_xxh3("", 0, 0), 0x2d06800538d394c2u);
    CU_ASSERT_EQUAL(gild_block_check(block, 7), (uint32_t)gild_xxh3(block, sizeof block, 7));
    CU_ASSERT_NOT_EQUAL(gild_block_check(block, 7), gild_block_check(block, 8));
}

static void *hash_on_a_thread(void *context) {
    (void)context;
    uint8_t hash[GILD_SHA256_BYTES];
    int wrong = 0;
    for (int i = 0; i < 100; i++)
        wrong |= gild_sha256("abc", 3, hash) || memcmp(hash, abc_hash, sizeof hash) != 0;
    return wrong ? (void *)1 : NULL;
}

static void threads_do_not_share_contexts(void) {
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread[i], NULL, hash_on_a_thread, NULL), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong = (void *)1;
        pthread_join(thread[i], &wrong);
        CU_ASSERT_PTR_NULL(wrong);
    }
}

static void fill(uint8_t *data, size_t length) {
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(draw() % 7 * 31);
}

static void frames_come_back_as_they_were(void) {
    static uint8_t data[65536], frame[65536], again[65536], back[65536];
    fill(data, sizeof data);
    ssize_t n = gild_zstd_compress(frame, sizeof frame, data, sizeof data, 3);
    CU_ASSERT_FATAL(n > 0);
    CU_ASSERT_EQUAL(gild_zstd_decompress(back, sizeof back, frame, (size_t)n),
                    (ssize_t)sizeof data);
    CU_ASSERT_EQUAL(memcmp(data, back, sizeof data), 0);
    gild_zstd_compress(again, sizeof again, data, 5000, 9);
    CU_ASSERT_EQUAL(gild_zstd_compress(again, sizeof again, data, sizeof data, 3), n);
    CU_ASSERT_EQUAL(memcmp(frame, again, (size_t)n), 0);
}

static void data_that_does_not_shrink_is_told(void) {
    uint8_t data[4096], frame[4096];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(draw() >> 8);
    CU_ASSERT_EQUAL(gild_zstd_compress(frame, sizeof data - 1, data, sizeof data, 3), 0);
}

static void a_decoder_never_leaves_its_room(void) {
    static uint8_t data[16384], frame[20000], broken[20000], out[16384 + 64];
    fill(data, sizeof data);
    size_t n = (size_t)gild_zstd_compress(frame, sizeof frame, data, sizeof data, 3);
    int refused = 0;
    for (int round = 0; round < 3000; round++) {
        size_t length = round % 3 ? n : draw() % n, room = draw() % 2 ? 16384 : draw() % 16384;
        memcpy(broken, frame, n);
        for (uint32_t flips = draw() % 4; flips; flips--)
            broken[draw() % n] ^= (uint8_t)(1u << draw() % 8);
        memset(out, 0xa5, sizeof out);
        ssize_t made = gild_zstd_decompress(out, room, broken, length);
        CU_ASSERT(made == -EBADMSG || (made >= 0 && made <= (ssize_t)room));
        refused += made == -EBADMSG;
        for (size_t i = room; i < room + 64; i++)
            CU_ASSERT_EQUAL(out[i], 0xa5);
    }
    CU_ASSERT(refused > 1000);
    CU_ASSERT_EQUAL(gild_zstd_decompress(out, 16383, frame, n), -EBADMSG);
}

int main(void) {
    state = 20261122;
    printf("seed %llu\n", (unsigned long long)state);
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("codec", NULL, NULL);
    CU_ADD_TEST(suite, sha256_is_that_of_fips_180_4);
    CU_ADD_TEST(suite, sha256_in_pieces_is_that_of_the_whole);
    CU_ADD_TEST(suite, xxh3_is_that_of_its_specification);
    CU_ADD_TEST(suite, threads_do_not_share_contexts);
    CU_ADD_TEST(suite, frames_come_back_as_they_were);
    CU_ADD_TEST(suite, data_that_does_not_shrink_is_told);
    CU_ADD_TEST(suite, a_decoder_never_leaves_its_room);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
