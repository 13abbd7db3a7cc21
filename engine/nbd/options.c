/* Options: what a client may ask in the handshake, and the answers (proto.md "Option types").
 *
 * Every refusal but that of EXPORT_NAME, whose protocol has none, carries a sentence for a human.
 * GO and EXPORT_NAME open the disk; INFO only looks it up, because opening a desktop's disk for
 * writing begins a run of that desktop, which asking about it must not.
 *
 * Metadata contexts: base:allocation is the only one; it holds for the export name it was selected
 * with.
 *
 * Thread: reactor 0's, but for nbd_handshake_put_server. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "nbd/clerk.h"
#include "nbd/handshake.h"

static const char context_name[] = "base:allocation";

/* ---- option replies -------------------------------------------------------------------------- */

static void put_header(struct nbd_handshake *handshake, uint32_t type, size_t length) {
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    gild_put_be64(header, NBD_OPTION_REPLY_MAGIC);
    gild_put_be32(header + 8, handshake->option);
    gild_put_be32(header + 12, type);
    gild_put_be32(header + 16, (uint32_t)length);
    nbd_handshake_put(handshake, header, sizeof header);
}

static void put_reply(struct nbd_handshake *handshake, uint32_t type, const void *data,
                      size_t length) {
    put_header(handshake, type, length);
    if (length)
        nbd_handshake_put(handshake, data, length);
}

static void acknowledge(struct nbd_handshake *handshake, enum nbd_after after) {
    put_reply(handshake, NBD_REP_ACK, NULL, 0);
    nbd_handshake_answer(handshake, after);
}

static void refuse(struct nbd_handshake *handshake, uint32_t type, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void refuse(struct nbd_handshake *handshake, uint32_t type, const char *format, ...) {
    char sentence[1024 + 512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (length < 0)
        length = 0;
    if ((size_t)length >= sizeof sentence)
        length = sizeof sentence - 1;
    if (handshake->option == NBD_OPT_EXPORT_NAME) {
        gild_log(GILD_LOG_INFO, "nbd: a client on %s is sent away: %s", handshake->server->where,
                 sentence);
        nbd_handshake_close(handshake);
        return;
    }
    handshake->out_bytes = 0; /* replies before an error are void */
    put_reply(handshake, type, sentence, (size_t)length);
    nbd_handshake_answer(handshake, NBD_AFTER_NEXT);
}

static bool refuse_stopping(struct nbd_handshake *handshake) {
    if (!handshake->server->hubs[0].stopping)
        return false;
    refuse(handshake, NBD_REP_ERR_SHUTDOWN, "The server is being shut down.");
    return true;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Copies an export name into the path that the store will be asked for. False: refused. */
static bool take_name(struct nbd_handshake *handshake, const uint8_t *name, uint32_t length) {
    char *path = handshake->opening.path;
    if (!length) {
        refuse(handshake, NBD_REP_ERR_UNKNOWN,
               "There is no default disk: name one, for example desktops/d1/os (nbdinfo --list "
               "shows them all).");
        return false;
    }
    if (length > NBD_STRING_MAX || memchr(name, 0, length)) {
        refuse(handshake, NBD_REP_ERR_INVALID,
               "A disk's name is at most 4096 bytes long and holds no NUL.");
        return false;
    }
    if (length >= sizeof handshake->opening.path) {
        refuse(handshake, NBD_REP_ERR_UNKNOWN, "No disk of this store has so long a name.");
        return false;
    }
    memcpy(path, name, length);
    path[length] = 0;
    return true;
}

/* The name as it may be shown: a client's control characters are not passed on. */
static const char *shown(struct nbd_handshake *handshake) {
    for (char *at = handshake->opening.path; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    return handshake->opening.path;
}

static void refuse_unknown(struct nbd_handshake *handshake) {
    refuse(handshake, NBD_REP_ERR_UNKNOWN,
           "This store has no disk named %s; nbdinfo --list shows them all.", shown(handshake));
}

/* ---- INFO, GO, EXPORT_NAME ------------------------------------------------------------------- */

static uint16_t transmission_flags(const struct nbd_handshake *handshake, bool writable) {
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (handshake->structured)
        flags |= NBD_FLAG_SEND_DF;
    if (writable)
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    else
        flags |= NBD_FLAG_READ_ONLY;
    return (uint16_t)flags;
}

static void put_info_text(struct nbd_handshake *handshake, uint16_t type, const char *text) {
    uint8_t kind[2];
    gild_put_be16(kind, type);
    put_header(handshake, NBD_REP_INFO, sizeof kind + strlen(text));
    nbd_handshake_put(handshake, kind, sizeof kind);
    nbd_handshake_put(handshake, text, strlen(text));
}

static void put_infos(struct nbd_handshake *handshake, uint64_t size_bytes, bool writable) {
    uint8_t info[14];
    gild_put_be16(info, NBD_INFO_EXPORT);
    gild_put_be64(info + 2, size_bytes);
    gild_put_be16(info + 10, transmission_flags(handshake, writable));
    put_reply(handshake, NBD_REP_INFO, info, 12);
    /* Also unasked: the limits hold for clients that did not ask, too. */
    gild_put_be16(info, NBD_INFO_BLOCK_SIZE);
    gild_put_be32(info + 2, NBD_BLOCK_MINIMUM);
    gild_put_be32(info + 6, NBD_BLOCK_PREFERRED);
    gild_put_be32(info + 10, NBD_PAYLOAD_MAX);
    put_reply(handshake, NBD_REP_INFO, info, 14);
    if (handshake->wants_name)
        put_info_text(handshake, NBD_INFO_NAME, handshake->opening.path);
    if (handshake->wants_description) {
        char text[64], size[16];
        snprintf(text, sizeof text, "%s %s disk of a gild store",
                 gild_format_size(size_bytes, size, sizeof size),
                 writable ? "writable" : "read-only");
        put_info_text(handshake, NBD_INFO_DESCRIPTION, text);
    }
}

/* The answer to EXPORT_NAME has no frame (proto.md "Newstyle negotiation"). */
static void put_export(struct nbd_handshake *handshake, uint64_t size_bytes, bool writable) {
    uint8_t export[10 + NBD_EXPORT_NAME_ZEROES] = {0};
    gild_put_be64(export, size_bytes);
    gild_put_be16(export + 8, transmission_flags(handshake, writable));
    nbd_handshake_put(handshake, export, handshake->no_zeroes ? 10 : sizeof export);
}

static uint32_t reply_of(const struct gild_error *error) {
    switch (error->code) {
    case GILD_NOT_FOUND:
    case GILD_USAGE:
        return NBD_REP_ERR_UNKNOWN;
    case GILD_BUSY:
        return NBD_REP_ERR_POLICY;
    default:
        /* "The requested export is not available": nothing else fits a disk that can not be read.
         */
        return NBD_REP_ERR_UNKNOWN;
    }
}

static void opened(struct gild_disk_opening *opening) {
    struct nbd_handshake *handshake = gild_container_of(opening, struct nbd_handshake, opening);
    handshake->working = false;
    if (opening->result)
        opening->disk = NULL;
    if (handshake->closing) {
        nbd_handshake_done(handshake);
        return;
    }
    if (opening->result) {
        refuse(handshake, reply_of(&opening->error), "%s",
               *opening->error.message ? opening->error.message : strerror(-opening->result));
    } else if (handshake->server->hubs[0].stopping) {
        gild_disk_close(opening->disk, NBD_DOOR, opening->writable);
        opening->disk = NULL;
        refuse_stopping(handshake);
    } else {
        uint64_t size_bytes = gild_disk_size_bytes(opening->disk);
        if (handshake->option == NBD_OPT_EXPORT_NAME) {
            put_export(handshake, size_bytes, opening->writable);
            nbd_handshake_answer(handshake, NBD_AFTER_TRANSMIT);
        } else {
            put_infos(handshake, size_bytes, opening->writable);
            acknowledge(handshake, NBD_AFTER_TRANSMIT);
        }
    }
    nbd_handshake_done(handshake);
}

static void open_disk(struct nbd_handshake *handshake) {
    struct gild_disk_opening *opening = &handshake->opening;
    handshake->state = NBD_SHAKE_WORKING;
    handshake->working = true;
    opening->store = handshake->server->store;
    opening->door = NBD_DOOR;
    opening->flags = GILD_OPEN_WRITE_IF_POSSIBLE;
    opening->loop = handshake->server->hubs[0].loop;
    opening->done = opened;
    opening->result = 0;
    opening->disk = NULL;
    opening->error.message[0] = 0;
    gild_disk_open_async(opening);
}

static void looked_up(struct nbd_handshake *handshake) {
    if (handshake->result == -ENOENT || (!handshake->result && handshake->info.directory)) {
        refuse_unknown(handshake);
    } else if (handshake->result) {
        refuse(handshake, NBD_REP_ERR_UNKNOWN, "Disk %s can not be looked up: %s.",
               shown(handshake), strerror(-handshake->result));
    } else {
        put_infos(handshake, handshake->info.size_bytes, !handshake->info.read_only);
        acknowledge(handshake, NBD_AFTER_NEXT);
    }
}

/* name length, name, number of requests, requests */
static void option_info(struct nbd_handshake *handshake, const uint8_t *data) {
    uint32_t length = handshake->length;
    uint32_t name_length = length >= 4 ? gild_get_be32(data) : 0;
    if (length < 6 || name_length > length - 6 ||
        length != 6 + name_length + 2u * gild_get_be16(data + 4 + name_length)) {
        refuse(handshake, NBD_REP_ERR_INVALID, "The lengths in this option do not add up.");
        return;
    }
    const uint8_t *list = data + 4 + name_length;
    unsigned count = gild_get_be16(list);
    handshake->wants_name = handshake->wants_description = false;
    for (unsigned i = 0; i < count; i++) {
        unsigned wanted = gild_get_be16(list + 2 + 2 * i);
        handshake->wants_name |= wanted == NBD_INFO_NAME;
        handshake->wants_description |= wanted == NBD_INFO_DESCRIPTION;
    }
    if (!take_name(handshake, data + 4, name_length))
        return;
    if (handshake->option == NBD_OPT_GO) {
        open_disk(handshake);
        return;
    }
    handshake->job = NBD_JOB_STAT;
    nbd_handshake_ask(handshake);
}

/* ---- LIST ------------------------------------------------------------------------------------ */

int nbd_handshake_put_server(struct nbd_handshake *handshake, const char *name) {
    uint8_t length[4];
    gild_put_be32(length, (uint32_t)strlen(name));
    put_header(handshake, NBD_REP_SERVER, sizeof length + strlen(name));
    nbd_handshake_put(handshake, length, sizeof length);
    nbd_handshake_put(handshake, name, strlen(name));
    return handshake->out_failed ? -ENOMEM : 0;
}

static void listed(struct nbd_handshake *handshake) {
    struct gild_nbd_server *server = handshake->server;
    if (handshake->result && !handshake->out_failed) {
        refuse(handshake, NBD_REP_ERR_POLICY, "The disks can not be listed: %s.",
               strerror(-handshake->result));
        return;
    }
    if (server->listing_bytes &&
        server->listing_bytes + handshake->out_room > NBD_LISTINGS_BYTES_MAX) {
        refuse(handshake, NBD_REP_ERR_POLICY,
               "Too many clients are being sent the list of disks; ask again.");
        return;
    }
    handshake->listing_bytes = handshake->out_room;
    server->listing_bytes += handshake->listing_bytes;
    acknowledge(handshake, NBD_AFTER_NEXT);
}

static void option_list(struct nbd_handshake *handshake) {
    if (handshake->length) {
        refuse(handshake, NBD_REP_ERR_INVALID, "LIST has no data.");
        return;
    }
    handshake->job = NBD_JOB_LIST;
    nbd_handshake_ask(handshake);
}

/* ---- asking the clerk ------------------------------------------------------------------------ */

static void answered(struct gild_task *task) {
    struct nbd_handshake *handshake = gild_container_of(task, struct nbd_handshake, task);
    handshake->working = false;
    if (!handshake->closing && !refuse_stopping(handshake)) {
        if (handshake->job == NBD_JOB_LIST)
            listed(handshake);
        else
            looked_up(handshake);
    }
    nbd_handshake_done(handshake);
}

void nbd_handshake_ask(struct nbd_handshake *handshake) {
    handshake->state = NBD_SHAKE_WORKING;
    handshake->working = true;
    handshake->task.run = answered;
    nbd_clerk_ask(handshake);
}

/* ---- metadata contexts ----------------------------------------------------------------------- */

struct query {
    const uint8_t *text;
    uint32_t length;
};

/* Takes a counted string off the option's data. False: it would reach beyond the end. */
static bool take_string(const uint8_t **at, const uint8_t *end, struct query *string) {
    if (end - *at < 4)
        return false;
    string->length = gild_get_be32(*at);
    string->text = *at + 4;
    if (string->length > (size_t)(end - string->text))
        return false;
    *at = string->text + string->length;
    return true;
}

static bool is_text(const struct query *query, const char *text) {
    return query->length == strlen(text) && memcmp(query->text, text, query->length) == 0;
}

/* export name, number of queries, queries. False: the lengths do not add up. */
static bool parse_queries(const uint8_t *data, uint32_t length, bool listing, struct query *name,
                          bool *matches) {
    const uint8_t *at = data, *end = data + length;
    if (!take_string(&at, end, name) || end - at < 4)
        return false;
    uint32_t count = gild_get_be32(at);
    at += 4;
    *matches = listing && !count;
    for (uint32_t i = 0; i < count; i++) {
        struct query query;
        if (!take_string(&at, end, &query))
            return false;
        /* "base:" is a wildcard when listing and selects nothing when setting. */
        *matches |= is_text(&query, context_name) || (listing && is_text(&query, "base:"));
    }
    return at == end;
}

static void option_contexts(struct nbd_handshake *handshake, const uint8_t *data) {
    bool setting = handshake->option == NBD_OPT_SET_META_CONTEXT, matches;
    struct query name;
    if (setting) {
        /* "including when this command fails" */
        free(handshake->context_name);
        handshake->context_name = NULL;
        handshake->context_selected = false;
    }
    if (!handshake->structured) {
        refuse(handshake, NBD_REP_ERR_INVALID,
               "Metadata contexts need structured replies: ask for those first.");
        return;
    }
    if (!parse_queries(data, handshake->length, !setting, &name, &matches)) {
        refuse(handshake, NBD_REP_ERR_INVALID, "The lengths in this option do not add up.");
        return;
    }
    if (name.length > NBD_STRING_MAX || memchr(name.text, 0, name.length)) {
        refuse(handshake, NBD_REP_ERR_INVALID,
               "A disk's name is at most 4096 bytes long and holds no NUL.");
        return;
    }
    if (setting && matches) {
        handshake->context_name = strndup((const char *)name.text, name.length);
        handshake->context_selected = handshake->context_name != NULL;
        handshake->out_failed |= !handshake->context_selected;
    }
    if (matches) {
        uint8_t context[4 + sizeof context_name];
        gild_put_be32(context, setting ? NBD_CONTEXT_ID : 0);
        memcpy(context + 4, context_name, sizeof context_name);
        put_reply(handshake, NBD_REP_META_CONTEXT, context, 4 + strlen(context_name));
    }
    acknowledge(handshake, NBD_AFTER_NEXT);
}

/* ---- all options ----------------------------------------------------------------------------- */

void nbd_option(struct nbd_handshake *handshake, const uint8_t *data) {
    if (handshake->option != NBD_OPT_ABORT && refuse_stopping(handshake))
        return;
    switch (handshake->option) {
    case NBD_OPT_EXPORT_NAME:
        if (take_name(handshake, data, handshake->length))
            open_disk(handshake);
        break;
    case NBD_OPT_ABORT:
        acknowledge(handshake, NBD_AFTER_CLOSE);
        break;
    case NBD_OPT_LIST:
        option_list(handshake);
        break;
    case NBD_OPT_STARTTLS:
        refuse(handshake, NBD_REP_ERR_UNSUP,
               "This server offers no TLS: use its Unix socket, or a tunnel.");
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        option_info(handshake, data);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        if (handshake->length) {
            refuse(handshake, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY has no data.");
        } else {
            handshake->structured = true;
            acknowledge(handshake, NBD_AFTER_NEXT);
        }
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        option_contexts(handshake, data);
        break;
    default:
        refuse(handshake, NBD_REP_ERR_UNSUP, "This server does not know option %u.",
               handshake->option);
        break;
    }
}

void nbd_option_too_long(struct nbd_handshake *handshake) {
    switch (handshake->option) {
    case NBD_OPT_ABORT:
        acknowledge(handshake, NBD_AFTER_CLOSE);
        break;
    case NBD_OPT_SET_META_CONTEXT:
        handshake->context_selected = false;
        /* fall through */
    case NBD_OPT_EXPORT_NAME:
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
    case NBD_OPT_LIST_META_CONTEXT:
        refuse(handshake, NBD_REP_ERR_TOO_BIG, "This server takes at most 16 KiB with an option.");
        break;
    case NBD_OPT_LIST:
    case NBD_OPT_STRUCTURED_REPLY:
        refuse(handshake, NBD_REP_ERR_INVALID, "This option has no data.");
        break;
    default:
        refuse(handshake, NBD_REP_ERR_UNSUP, "This server does not know option %u.",
               handshake->option);
        break;
    }
}
