/* The control door's pure parts: requests that are refused before any verb runs, addresses of disks
 * in the three forms, and how answers are written. No store is needed for any of it. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control.h"

/* ---- requests -------------------------------------------------------------------------------- */

static void refuses(const char *request, enum gild_code code, const char *part) {
    json_t *answer = control_run(NULL, NULL, 0, request, NULL, NULL);
    const char *told =
        json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
    CU_ASSERT_EQUAL(control_answer_code(answer), code);
    CU_ASSERT_PTR_NOT_NULL_FATAL(told);
    if (!strstr(told, part)) {
        printf("\n%s: '%s' has no '%s'\n", request, told, part);
        CU_FAIL("another sentence");
    }
    json_decref(answer);
}

static void what_is_no_request_is_refused(void) {
    refuses("", GILD_USAGE, "JSON");
    refuses("[]", GILD_USAGE, "JSON object");
    refuses("{\"noun\": \"pool\"}", GILD_USAGE, "noun");
    refuses("{\"noun\": \"pool\", \"verb\": 1}", GILD_USAGE, "noun");
    refuses("{\"noun\": \"pool\", \"verb\": \"list\", \"args\": []}", GILD_USAGE, "args");
    refuses("{\"noun\": \"pool\", \"verb\": \"list\", \"more\": 1}", GILD_USAGE, "more");
    refuses("{\"noun\": \"pool\", \"noun\": \"pool\", \"verb\": \"list\"}", GILD_USAGE,
            "duplicate");
    refuses("{\"noun\": \"pool\", \"verb\": \"burn\"}", GILD_USAGE, "pool burn");
    refuses("{\"noun\": \"po\\nol\", \"verb\": \"list\"}", GILD_USAGE, "po\\x0aol");
    refuses("{\"noun\": \"store\", \"verb\": \"init\"}", GILD_FAILED, "already");
}

static void arguments_are_checked_by_the_table(void) {
    refuses("{\"noun\":\"pool\",\"verb\":\"list\",\"args\":{\"x\":1}}", GILD_USAGE, "'x'");
    refuses("{\"noun\":\"pool\",\"verb\":\"show\"}", GILD_USAGE, "needs the argument 'name'");
    refuses("{\"noun\":\"pool\",\"verb\":\"show\",\"args\":{\"name\":1}}", GILD_USAGE, "text");
    refuses("{\"noun\":\"pool\",\"verb\":\"delete\",\"args\":{\"name\":\"p\",\"dry_run\":1}}",
            GILD_USAGE, "true or false");
    static const char *const counts[] = {"0", "-1", "1.5", "\"3\"", "4294967296", "null"};
    static const char *const sizes[] = {"0",        "-1",     "1.5",  "\"x\"", "\"0\"",
                                        "\"1.5G\"", "\"-1\"", "null", "true",  "\"99999999T\""};
    char request[200];
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        snprintf(request, sizeof request,
                 "{\"noun\":\"desktop\",\"verb\":\"create\",\"args\":{\"name\":\"d\",\"image\":"
                 "\"i\",\"count\":%s}}",
                 counts[i]);
        refuses(request, GILD_USAGE, "count");
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        snprintf(request, sizeof request,
                 "{\"noun\":\"desktop\",\"verb\":\"create\",\"args\":{\"name\":\"d\",\"image\":"
                 "\"i\",\"size\":%s}}",
                 sizes[i]);
        refuses(request, GILD_USAGE, "size");
    }
}

/* ---- addresses ------------------------------------------------------------------------------- */

static void doors_are_taken_apart(void) {
    struct control_door door;
    CU_ASSERT(control_door_parse("unix:/run/a b.sock", &door) && !door.tcp);
    CU_ASSERT_STRING_EQUAL(door.path, "/run/a b.sock");
    CU_ASSERT(control_door_parse("tcp:host.example:10809", &door) && door.tcp);
    CU_ASSERT_STRING_EQUAL(door.host, "host.example");
    CU_ASSERT_STRING_EQUAL(door.port, "10809");
    CU_ASSERT(control_door_parse("tcp:[fe80::1]:1", &door));
    CU_ASSERT_STRING_EQUAL(door.host, "fe80::1");
    CU_ASSERT(control_door_parse("tcp:0.0.0.0:1", &door));
    CU_ASSERT_STRING_EQUAL(door.host, "localhost");
    CU_ASSERT(control_door_parse("tcp:[::]:1", &door));
    CU_ASSERT_STRING_EQUAL(door.host, "localhost");
    CU_ASSERT_FALSE(control_door_parse("unix:", &door));
    CU_ASSERT_FALSE(control_door_parse("tcp:host", &door));
    CU_ASSERT_FALSE(control_door_parse("tcp:host:", &door));
    CU_ASSERT_FALSE(control_door_parse("tcp:host:123456789", &door));
    CU_ASSERT_FALSE(control_door_parse("vsock:1", &door));
}

static struct control_address address_of(const char *disk, const char *where) {
    struct control_address address = {.disk = disk, .serial = "gild01"};
    CU_ASSERT_TRUE_FATAL(control_door_parse(where, &address.door));
    return address;
}

static void says(char *text, const char *wanted) {
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    CU_ASSERT_STRING_EQUAL(text, wanted);
    free(text);
}

static void uris_are_percent_encoded(void) {
    struct control_address address = address_of("images/win10@3", "unix:/run/g+1&?.sock");
    says(control_address_uri(&address), "nbd+unix:///images/win10@3?socket=/run/g%2B1%26%3F.sock");
    address = address_of("desktops/a b#\"\xc3\xbc/os", "tcp:[::1]:10809");
    says(control_address_uri(&address), "nbd://[::1]:10809/desktops/a%20b%23%22%C3%BC/os");
    address = address_of("desktops/d/os", "tcp:h:1");
    says(control_address_uri(&address), "nbd://h:1/desktops/d/os");
    address.mount = "/mnt/a b";
    says(control_address_uri(&address), "file:///mnt/a%20b/desktops/d/os.raw");
    says(control_address_file(&address), "/mnt/a b/desktops/d/os.raw");
}

static void qemu_words(const struct control_address *address, const char *source,
                       const char *line_part) {
    char *words[4];
    CU_ASSERT_TRUE_FATAL(control_address_qemu(address, words));
    CU_ASSERT_STRING_EQUAL(words[0], "-blockdev");
    CU_ASSERT_STRING_EQUAL(words[1], source);
    CU_ASSERT_STRING_EQUAL(words[2], "-device");
    CU_ASSERT_PTR_NOT_NULL(strstr(words[3], "virtio-blk-pci,drive="));
    char *line = control_shell_line(words, 4);
    CU_ASSERT_PTR_NOT_NULL_FATAL(line);
    CU_ASSERT_PTR_NOT_NULL(strstr(line, line_part));
    free(line);
    for (size_t i = 0; i < 4; i++)
        free(words[i]);
}

static void qemu_words_double_commas_and_quote_for_the_shell(void) {
    struct control_address address = address_of("desktops/d/os", "unix:/s.sock");
    qemu_words(&address,
               "driver=nbd,node-name=os,server.type=unix,server.path=/s.sock,export=desktops/d/os,"
               "reconnect-delay=30,open-timeout=10,cache.direct=on,discard=unmap,"
               "detect-zeroes=unmap",
               "-blockdev driver=nbd");
    address = address_of("desktops/a,'b/os", "tcp:h:1");
    qemu_words(&address,
               "driver=nbd,node-name=os,server.type=inet,server.host=h,server.port=1,"
               "export=desktops/a,,'b/os,reconnect-delay=30,open-timeout=10,cache.direct=on,"
               "discard=unmap,detect-zeroes=unmap",
               "-blockdev 'driver=nbd");
    address = address_of("images/i@1", "unix:/s.sock");
    address.mount = "/m";
    address.read_only = true;
    qemu_words(&address,
               "driver=raw,node-name=image,file.driver=file,file.filename=/m/images/i@1.raw,"
               "file.aio=threads,file.cache.direct=on,cache.direct=on,read-only=on",
               "drive=image");
}

static void a_shell_takes_the_words_back(void) {
    char one[] = "plain", two[] = "it's, \"two\" $words", three[] = "x;y";
    char *words[] = {one, two, three};
    says(control_shell_line(words, 3), "plain 'it'\\''s, \"two\" $words' 'x;y'");
}

static void xml_is_escaped(void) {
    struct control_address address = address_of("desktops/<&'\">/os", "unix:/a&b");
    char *xml = control_address_xml(&address);
    CU_ASSERT_PTR_NOT_NULL_FATAL(xml);
    CU_ASSERT_PTR_NOT_NULL(strstr(xml, "name='desktops/&lt;&amp;&apos;&quot;&gt;/os'"));
    CU_ASSERT_PTR_NOT_NULL(strstr(xml, "socket='/a&amp;b'"));
    CU_ASSERT_PTR_NOT_NULL(strstr(xml, "error_policy='stop'"));
    CU_ASSERT_PTR_NULL(strstr(xml, "<readonly/>"));
    free(xml);
    address.read_only = true;
    xml = control_address_xml(&address);
    CU_ASSERT_PTR_NOT_NULL_FATAL(xml);
    CU_ASSERT_PTR_NOT_NULL(strstr(xml, "<readonly/>"));
    CU_ASSERT_PTR_NULL(strstr(xml, "discard="));
    free(xml);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void json_says(json_t *json, const char *wanted) {
    char *text = json_dumps(json, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    json_decref(json);
    says(text, wanted);
}

static void answers_are_written_the_same_everywhere(void) {
    const uint8_t bytes[] = {0, 0xab, 0xff};
    struct gild_error error = {.code = GILD_NO_SPACE};
    json_says(control_json_time(0), "null");
    json_says(control_json_time(951827696999999999u), "\"2000-02-29T12:34:56Z\"");
    json_says(control_json_hex(bytes, sizeof bytes), "\"00abff\"");
    json_says(control_json_reference("win10", 4294967295u), "\"win10@4294967295\"");
    json_says(control_json_text("plain"), "\"plain\"");
    json_says(control_json_text("no\xffUTF"), "\"no?UTF\"");
    strcpy(error.message, "full");
    json_t *json = control_error_json(&error);
    CU_ASSERT_EQUAL(control_answer_code(json), GILD_NO_SPACE);
    json_decref(json);
    json = json_object();
    CU_ASSERT_EQUAL(control_answer_code(json), GILD_OK);
    json_decref(json);
    CU_ASSERT_EQUAL(control_answer_code(NULL), GILD_FAILED);
}

static void long_paths_get_an_address_too(void) {
    struct sockaddr_un address;
    int folder_fd;
    char path[200] = "/";
    CU_ASSERT_EQUAL(control_socket_address("/short", &address, &folder_fd), 0);
    CU_ASSERT_STRING_EQUAL(address.sun_path, "/short/control.sock");
    CU_ASSERT_EQUAL(folder_fd, -1);
    while (strlen(path) < 150)
        strcat(path, "./");
    CU_ASSERT_EQUAL(control_socket_address(path, &address, &folder_fd), 0);
    CU_ASSERT(folder_fd >= 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(address.sun_path, "/proc/self/fd/"));
    CU_ASSERT_PTR_NOT_NULL(strstr(address.sun_path, "/control.sock"));
    close(folder_fd);
    strcat(path, "no-such-folder");
    CU_ASSERT_EQUAL(control_socket_address(path, &address, &folder_fd), -ENOENT);
}

int main(void) {
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("control", NULL, NULL);
#define ADD(test) CU_add_test(suite, #test, test)
    ADD(what_is_no_request_is_refused);
    ADD(arguments_are_checked_by_the_table);
    ADD(doors_are_taken_apart);
    ADD(uris_are_percent_encoded);
    ADD(qemu_words_double_commas_and_quote_for_the_shell);
    ADD(a_shell_takes_the_words_back);
    ADD(xml_is_escaped);
    ADD(answers_are_written_the_same_everywhere);
    ADD(long_paths_get_an_address_too);
#undef ADD
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
