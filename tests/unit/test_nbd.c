/* The NBD server's promises: the handshake. */
#include "test_nbd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

static enum gild_loop_backend backend; /* of the suite that runs */

void nbd_rig_start(struct nbd_rig *rig) {
    struct gild_error error;
    char where[96];
    strcpy(rig->folder, "/tmp/gild-nbd-XXXXXX");
    if (!mkdtemp(rig->folder))
        abort();
    rig->store = fake_store_create(backend, 2);
    rig->disk = fake_disk_add(rig->store, "d", RIG_DISK_BYTES, false, 1);
    rig->read_only = fake_disk_add(rig->store, "ro", RIG_DISK_BYTES, true, 0);
    snprintf(where, sizeof where, "unix:%s/sock", rig->folder);
    if (gild_nbd_serve(rig->store, where, &rig->server, &error)) {
        fprintf(stderr, "%s\n", error.message);
        abort();
    }
    rig->where = gild_nbd_where(rig->server);
}

void nbd_rig_end(struct nbd_rig *rig) {
    CU_ASSERT_EQUAL(fake_disk_opens(rig->disk), 0);
    CU_ASSERT_EQUAL(fake_disk_opens(rig->read_only), 0);
    fake_store_destroy(rig->store);
    CU_ASSERT_EQUAL(rmdir(rig->folder), 0); /* the socket is gone */
}

void nbd_rig_stop(struct nbd_rig *rig) {
    gild_nbd_stop(rig->server, 10000);
    nbd_rig_end(rig);
}

void nbd_rig_fill(uint8_t *bytes, size_t count, uint64_t seed) {
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    while (count) {
        size_t part = count < sizeof state ? count : sizeof state;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(bytes, &state, part);
        bytes += part;
        count -= part;
    }
}

/* Connected, greeted, flags sent. */
static int haggler(const struct nbd_rig *rig, bool structured) {
    int fd = nbd_client_connect(rig->where);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT(nbd_client_greeting(fd));
    CU_ASSERT(nbd_client_flags(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
    if (structured)
        CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL), NBD_REP_ACK);
    return fd;
}

static uint32_t ask_named(int fd, uint32_t option, const char *name,
                          struct nbd_client_reply *last) {
    uint8_t data[8192];
    return nbd_client_ask(fd, option, data, nbd_client_go_data(data, name, 0, NULL), last);
}

/* ---- before options -------------------------------------------------------------------------- */

static void test_unknown_client_flags_close_the_connection(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = nbd_client_connect(rig.where);
    CU_ASSERT(nbd_client_greeting(fd));
    CU_ASSERT(nbd_client_flags(fd, 4));
    CU_ASSERT(nbd_client_at_end(fd));
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_a_wrong_option_magic_closes_the_connection(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    uint8_t header[NBD_OPTION_HEADER_BYTES] = "IHAVEOPS";
    CU_ASSERT(nbd_client_send(fd, header, sizeof header));
    CU_ASSERT(nbd_client_at_end(fd));
    close(fd);
    nbd_rig_stop(&rig);
}

/* ---- EXPORT_NAME ----------------------------------------------------------------------------- */

static void check_export_name(uint32_t client_flags, size_t zeroes) {
    struct nbd_rig rig;
    uint8_t export[10 + NBD_EXPORT_NAME_ZEROES], block[512];
    nbd_rig_start(&rig);
    int fd = nbd_client_connect(rig.where);
    CU_ASSERT(nbd_client_greeting(fd));
    CU_ASSERT(nbd_client_flags(fd, client_flags));
    CU_ASSERT(nbd_client_option(fd, NBD_OPT_EXPORT_NAME, "d", 1));
    CU_ASSERT(nbd_client_receive(fd, export, 10 + zeroes));
    CU_ASSERT_EQUAL(gild_get_be64(export), RIG_DISK_BYTES);
    CU_ASSERT_EQUAL(gild_get_be16(export + 8), 0xd6d);
    CU_ASSERT(gild_is_zero(export + 10, zeroes));
    CU_ASSERT_EQUAL(nbd_client_do(fd, false, 0, NBD_CMD_READ, 0, 512, block), 0);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_old_clients_enter_by_export_name(void) {
    check_export_name(0, NBD_EXPORT_NAME_ZEROES);
    check_export_name(NBD_FLAG_FIXED_NEWSTYLE, NBD_EXPORT_NAME_ZEROES);
    check_export_name(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, 0);
}

static void test_export_name_that_is_unknown_closes_the_connection(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    static const char *const names[] = {"nope", ""};
    for (unsigned i = 0; i < 2; i++) {
        int fd = haggler(&rig, false);
        CU_ASSERT(nbd_client_option(fd, NBD_OPT_EXPORT_NAME, names[i], (uint32_t)strlen(names[i])));
        CU_ASSERT(nbd_client_at_end(fd));
        close(fd);
    }
    nbd_rig_stop(&rig);
}

static void test_clients_that_are_not_fixed_newstyle_get_no_option_replies(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = nbd_client_connect(rig.where);
    CU_ASSERT(nbd_client_greeting(fd));
    CU_ASSERT(nbd_client_flags(fd, 0));
    CU_ASSERT(nbd_client_option(fd, NBD_OPT_LIST, NULL, 0));
    CU_ASSERT(nbd_client_at_end(fd));
    close(fd);
    nbd_rig_stop(&rig);
}

/* ---- the small options ----------------------------------------------------------------------- */

static void test_list_names_every_disk(void) {
    struct nbd_rig rig;
    struct nbd_client_reply reply;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    CU_ASSERT(nbd_client_option(fd, NBD_OPT_LIST, NULL, 0));
    static const char *const names[] = {"d", "ro"};
    for (unsigned i = 0; i < 2; i++) {
        CU_ASSERT(nbd_client_option_reply(fd, &reply));
        CU_ASSERT_EQUAL(reply.option, NBD_OPT_LIST);
        CU_ASSERT_EQUAL(reply.type, NBD_REP_SERVER);
        CU_ASSERT_EQUAL(gild_get_be32(reply.data), strlen(names[i]));
        CU_ASSERT_STRING_EQUAL(reply.data + 4, names[i]);
    }
    CU_ASSERT(nbd_client_option_reply(fd, &reply));
    CU_ASSERT_EQUAL(reply.type, NBD_REP_ACK);
    CU_ASSERT_EQUAL(reply.length, 0);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_LIST, "x", 1, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_LIST, NULL, 0, NULL), NBD_REP_ACK);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_unknown_options_and_tls_are_unsupported_with_a_sentence(void) {
    struct nbd_rig rig;
    struct nbd_client_reply reply;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    static const uint32_t options[] = {NBD_OPT_STARTTLS, 4, 11, 0, 0xffffffff};
    for (unsigned i = 0; i < sizeof options / sizeof *options; i++) {
        CU_ASSERT_EQUAL(nbd_client_ask(fd, options[i], "some data", 9, &reply), NBD_REP_ERR_UNSUP);
        CU_ASSERT(reply.length > 10);
    }
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, "d", NULL), NBD_REP_ACK);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_options_that_are_too_long_are_drained_and_refused(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, true);
    size_t length = 3u << 20;
    uint8_t *data = calloc(1, length);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, data, (uint32_t)length, NULL),
                    NBD_REP_ERR_TOO_BIG);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, 77, data, (uint32_t)length, NULL), NBD_REP_ERR_UNSUP);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_LIST, data, (16u << 10) + 1, NULL),
                    NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_SET_META_CONTEXT, data, (16u << 10) + 1, NULL),
                    NBD_REP_ERR_TOO_BIG);
    /* All zeroes: no name, no information requests, and bytes that nobody announced. */
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_INFO, data, 16u << 10, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, "d", NULL), NBD_REP_ACK);
    free(data);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_abort_is_acknowledged_then_closed(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    for (unsigned with_data = 0; with_data < 2; with_data++) {
        int fd = haggler(&rig, false);
        CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_ABORT, "data", 4 * with_data, NULL),
                        NBD_REP_ACK);
        CU_ASSERT(nbd_client_at_end(fd));
        close(fd);
    }
    nbd_rig_stop(&rig);
}

static void test_structured_reply_has_no_data(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, "x", 1, NULL),
                    NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL), NBD_REP_ACK);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL), NBD_REP_ACK);
    close(fd);
    nbd_rig_stop(&rig);
}

/* ---- INFO and GO ----------------------------------------------------------------------------- */

struct infos {
    unsigned flags, count;
    uint64_t size_bytes;
    uint32_t minimum, preferred, maximum;
    char name[64], description[128];
};

static uint32_t ask_infos(int fd, uint32_t option, const char *name, struct infos *infos) {
    static const uint16_t wanted[] = {NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE, 99};
    uint8_t data[256];
    struct nbd_client_reply reply;
    memset(infos, 0, sizeof *infos);
    nbd_client_option(fd, option, data, nbd_client_go_data(data, name, 4, wanted));
    while (nbd_client_option_reply(fd, &reply) && reply.type == NBD_REP_INFO) {
        infos->count++;
        switch (gild_get_be16(reply.data)) {
        case NBD_INFO_EXPORT:
            CU_ASSERT_EQUAL(reply.length, 12);
            infos->size_bytes = gild_get_be64(reply.data + 2);
            infos->flags = gild_get_be16(reply.data + 10);
            break;
        case NBD_INFO_NAME:
            snprintf(infos->name, sizeof infos->name, "%.60s", (char *)reply.data + 2);
            break;
        case NBD_INFO_DESCRIPTION:
            snprintf(infos->description, sizeof infos->description, "%.120s",
                     (char *)reply.data + 2);
            break;
        case NBD_INFO_BLOCK_SIZE:
            CU_ASSERT_EQUAL(reply.length, 14);
            infos->minimum = gild_get_be32(reply.data + 2);
            infos->preferred = gild_get_be32(reply.data + 6);
            infos->maximum = gild_get_be32(reply.data + 10);
            break;
        }
    }
    return reply.type;
}

static void test_info_and_go_say_the_same_and_info_opens_nothing(void) {
    struct nbd_rig rig;
    struct infos info, go;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, true);
    CU_ASSERT_EQUAL(ask_infos(fd, NBD_OPT_INFO, "d", &info), NBD_REP_ACK);
    CU_ASSERT_EQUAL(fake_disk_opens(rig.disk), 0);
    CU_ASSERT_EQUAL(info.count, 4);
    CU_ASSERT_EQUAL(info.size_bytes, RIG_DISK_BYTES);
    CU_ASSERT_EQUAL(info.minimum, 512);
    CU_ASSERT_EQUAL(info.preferred, 4096);
    CU_ASSERT_EQUAL(info.maximum, 32u << 20);
    CU_ASSERT_STRING_EQUAL(info.name, "d");
    CU_ASSERT_STRING_EQUAL(info.description, "64M writable disk of a gild store");
    /* has flags, flush, FUA, trim, write zeroes, DF, multi-conn, cache, fast zero */
    CU_ASSERT_EQUAL(info.flags, 0xded);
    CU_ASSERT_EQUAL(ask_infos(fd, NBD_OPT_GO, "d", &go), NBD_REP_ACK);
    CU_ASSERT_EQUAL(fake_disk_opens(rig.disk), 1);
    CU_ASSERT_EQUAL(memcmp(&info, &go, sizeof go), 0);
    close(fd);
    fd = haggler(&rig, false);
    CU_ASSERT_EQUAL(ask_infos(fd, NBD_OPT_GO, "ro", &go), NBD_REP_ACK);
    /* has flags, read-only, flush, FUA, multi-conn, cache; no DF without structured replies */
    CU_ASSERT_EQUAL(go.flags, 0x50f);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_unknown_and_default_names_are_refused_with_a_sentence(void) {
    struct nbd_rig rig;
    struct nbd_client_reply reply;
    char name[NBD_STRING_MAX + 2];
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    static const uint32_t options[] = {NBD_OPT_INFO, NBD_OPT_GO};
    for (unsigned i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(ask_named(fd, options[i], "nope\n", &reply), NBD_REP_ERR_UNKNOWN);
        CU_ASSERT_PTR_NOT_NULL(strstr((char *)reply.data, "nope"));
        CU_ASSERT_EQUAL(ask_named(fd, options[i], "", &reply), NBD_REP_ERR_UNKNOWN);
        CU_ASSERT_PTR_NOT_NULL(strstr((char *)reply.data, "name one"));
        memset(name, 'a', sizeof name);
        name[sizeof name - 1] = 0;
        CU_ASSERT_EQUAL(ask_named(fd, options[i], name, &reply), NBD_REP_ERR_INVALID);
        name[2000] = 0;
        CU_ASSERT_EQUAL(ask_named(fd, options[i], name, &reply), NBD_REP_ERR_UNKNOWN);
    }
    /* A NUL within the name, then lengths that do not add up. */
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, "\0\0\0\3a\0b\0\0", 9, NULL),
                    NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, "\0\0\0\4d\0\0", 7, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, "\0\0\0\1d\0\1", 7, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, "\377\377\377\377d\0\0", 7, NULL),
                    NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, "\0\0", 2, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_GO, NULL, 0, NULL), NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, "d", NULL), NBD_REP_ACK);
    close(fd);
    nbd_rig_stop(&rig);
}

static void test_a_busy_disk_is_refused_with_its_sentence_and_can_be_had_later(void) {
    struct nbd_rig rig;
    struct nbd_client_reply reply;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    fake_disk_busy(rig.disk, true);
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, "d", &reply), NBD_REP_ERR_POLICY);
    CU_ASSERT_STRING_EQUAL(reply.data, "Disk d is held elsewhere.");
    fake_disk_busy(rig.disk, false);
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, "d", &reply), NBD_REP_ACK);
    close(fd);
    nbd_rig_stop(&rig);
}

/* ---- metadata contexts ----------------------------------------------------------------------- */

/* The number of contexts in the answer; *type gets the final reply. */
static unsigned contexts(int fd, uint32_t option, unsigned count, const char *const *queries,
                         uint32_t *type) {
    uint8_t data[512];
    struct nbd_client_reply reply;
    unsigned found = 0;
    nbd_client_option(fd, option, data, nbd_client_context_data(data, "d", count, queries));
    while (nbd_client_option_reply(fd, &reply) && reply.type == NBD_REP_META_CONTEXT) {
        CU_ASSERT_STRING_EQUAL(reply.data + 4, "base:allocation");
        CU_ASSERT_EQUAL(gild_get_be32(reply.data),
                        option == NBD_OPT_SET_META_CONTEXT ? NBD_CONTEXT_ID : 0);
        found++;
    }
    *type = reply.type;
    return found;
}

static void test_metadata_contexts_are_listed_and_selected(void) {
    static const char *const all[] = {"base:allocation", "base:",      "qemu:dirty-bitmap:x",
                                      "nonsense",        "base:other", "base:allocation"};
    struct nbd_rig rig;
    uint32_t type;
    nbd_rig_start(&rig);
    int fd = haggler(&rig, false);
    contexts(fd, NBD_OPT_LIST_META_CONTEXT, 0, NULL, &type);
    CU_ASSERT_EQUAL(type, NBD_REP_ERR_INVALID);
    contexts(fd, NBD_OPT_SET_META_CONTEXT, 1, all, &type);
    CU_ASSERT_EQUAL(type, NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL), NBD_REP_ACK);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_LIST_META_CONTEXT, 0, NULL, &type), 1);
    CU_ASSERT_EQUAL(type, NBD_REP_ACK);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_LIST_META_CONTEXT, 1, all + 1, &type), 1);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_LIST_META_CONTEXT, 3, all + 2, &type), 0);
    CU_ASSERT_EQUAL(type, NBD_REP_ACK);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_SET_META_CONTEXT, 0, NULL, &type), 0);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_SET_META_CONTEXT, 4, all + 1, &type), 0);
    CU_ASSERT_EQUAL(contexts(fd, NBD_OPT_SET_META_CONTEXT, 6, all, &type), 1);
    CU_ASSERT_EQUAL(type, NBD_REP_ACK);
    static const char bad[] = "\0\0\0\1d\0\0\0\1\0\0\0\11base:";
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_LIST_META_CONTEXT, bad, sizeof bad - 1, NULL),
                    NBD_REP_ERR_INVALID);
    close(fd);
    nbd_rig_stop(&rig);
}

/* Block status after some history of SET_META_CONTEXT. */
static int status_after(const struct nbd_rig *rig, const char *set_for, bool then_fail,
                        const char *go) {
    static const char *const queries[] = {"base:allocation"};
    uint8_t data[256], status[8 * 16];
    int fd = haggler(rig, true);
    uint32_t length = nbd_client_context_data(data, set_for, 1, queries);
    CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_SET_META_CONTEXT, data, length, NULL), NBD_REP_ACK);
    if (then_fail)
        CU_ASSERT_EQUAL(nbd_client_ask(fd, NBD_OPT_SET_META_CONTEXT, data, length - 1, NULL),
                        NBD_REP_ERR_INVALID);
    CU_ASSERT_EQUAL(ask_named(fd, NBD_OPT_GO, go, NULL), NBD_REP_ACK);
    int error = nbd_client_do(fd, true, 0, NBD_CMD_BLOCK_STATUS, 0, sizeof status * 4096, status);
    close(fd);
    return error;
}

static void test_contexts_hold_for_the_name_they_were_set_for_and_fall_by_a_failed_set(void) {
    struct nbd_rig rig;
    nbd_rig_start(&rig);
    CU_ASSERT_EQUAL(status_after(&rig, "d", false, "d"), 0);
    CU_ASSERT_EQUAL(status_after(&rig, "ro", false, "d"), NBD_EINVAL);
    CU_ASSERT_EQUAL(status_after(&rig, "d", true, "d"), NBD_EINVAL);
    nbd_rig_stop(&rig);
}

/* ---- main ------------------------------------------------------------------------------------ */

static int use_uring(void) {
    backend = GILD_LOOP_URING;
    return 0;
}

static int use_threads(void) {
    backend = GILD_LOOP_THREADS;
    return 0;
}

static void add_tests(CU_pSuite suite) {
    CU_ADD_TEST(suite, test_unknown_client_flags_close_the_connection);
    CU_ADD_TEST(suite, test_a_wrong_option_magic_closes_the_connection);
    CU_ADD_TEST(suite, test_old_clients_enter_by_export_name);
    CU_ADD_TEST(suite, test_export_name_that_is_unknown_closes_the_connection);
    CU_ADD_TEST(suite, test_clients_that_are_not_fixed_newstyle_get_no_option_replies);
    CU_ADD_TEST(suite, test_list_names_every_disk);
    CU_ADD_TEST(suite, test_unknown_options_and_tls_are_unsupported_with_a_sentence);
    CU_ADD_TEST(suite, test_options_that_are_too_long_are_drained_and_refused);
    CU_ADD_TEST(suite, test_abort_is_acknowledged_then_closed);
    CU_ADD_TEST(suite, test_structured_reply_has_no_data);
    CU_ADD_TEST(suite, test_info_and_go_say_the_same_and_info_opens_nothing);
    CU_ADD_TEST(suite, test_unknown_and_default_names_are_refused_with_a_sentence);
    CU_ADD_TEST(suite, test_a_busy_disk_is_refused_with_its_sentence_and_can_be_had_later);
    CU_ADD_TEST(suite, test_metadata_contexts_are_listed_and_selected);
    CU_ADD_TEST(suite, test_contexts_hold_for_the_name_they_were_set_for_and_fall_by_a_failed_set);
    add_request_tests(suite);
    add_life_tests(suite);
}

int main(void) {
    struct gild_loop_options uring = {.backend = GILD_LOOP_URING};
    struct gild_loop *loop;
    struct gild_error error;
    gild_log_set_level(GILD_LOG_ERROR); /* clients that misbehave are most of this test */
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    if (gild_loop_create(&loop, &uring, &error)) {
        printf("SKIPPED on io_uring: %s\n", error.message);
    } else {
        gild_loop_destroy(loop);
        add_tests(CU_add_suite("nbd over io_uring", use_uring, NULL));
    }
    add_tests(CU_add_suite("nbd over threads", use_threads, NULL));
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
