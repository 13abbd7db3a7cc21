/* How a hypervisor reaches a disk: URI, QEMU's words, libvirt's XML. Pure functions, any thread.
 *
 * NBD URIs: the NBD project's doc/uri.md; the export name is the URI's path without its first '/'.
 * QEMU: qemu-options and qapi/block-core.json; a ',' inside a value is doubled.
 * libvirt: formatdomain, "Hard drives"; its schema refuses <reconnect> on NBD. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control.h"
#include "vdi/names.h"

#define ENCODED_BYTES 4096u

/* ---- doors ----------------------------------------------------------------------------------- */

bool control_door_parse(const char *where, struct control_door *out) {
    memset(out, 0, sizeof *out);
    if (strncmp(where, "unix:", 5) == 0) {
        size_t length = strlen(where + 5);
        if (!length || length >= sizeof out->path)
            return false;
        memcpy(out->path, where + 5, length + 1);
        return true;
    }
    if (strncmp(where, "tcp:", 4) != 0)
        return false;
    const char *host = where + 4, *colon = strrchr(host, ':');
    if (!colon || !colon[1] || strlen(colon + 1) >= sizeof out->port)
        return false;
    size_t length = (size_t)(colon - host);
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host++;
        length -= 2;
    }
    if (length >= sizeof out->host)
        return false;
    memcpy(out->host, host, length);
    if (!length || strcmp(out->host, "0.0.0.0") == 0 || strcmp(out->host, "::") == 0)
        strcpy(out->host, "localhost");
    strcpy(out->port, colon + 1);
    out->tcp = true;
    return true;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* The text with `from` replaced by what `become` gives; to free. */
static char *replace(const char *text, const char *(*become)(char c)) {
    size_t length = 0;
    for (const char *at = text; *at; at++) {
        const char *other = become(*at);
        length += other ? strlen(other) : 1;
    }
    char *out = malloc(length + 1), *to = out;
    if (!out)
        return NULL;
    for (const char *at = text; *at; at++) {
        const char *other = become(*at);
        if (other)
            to = stpcpy(to, other);
        else
            *to++ = *at;
    }
    *to = 0;
    return out;
}

static const char *in_qemu(char c) {
    return c == ',' ? ",," : NULL;
}

static const char *in_xml(char c) {
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '\'':
        return "&apos;";
    case '"':
        return "&quot;";
    default:
        return NULL;
    }
}

static const char *in_shell_quotes(char c) {
    return c == '\'' ? "'\\''" : NULL;
}

/* asprintf that says NULL. */
static char *text_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *text_of(const char *format, ...) {
    char *text;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    return length < 0 ? NULL : text;
}

char *control_shell_line(char *const words[], size_t count) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        "_@%+=:,./-";
    char *line = strdup("");
    for (size_t i = 0; i < count && line; i++) {
        const char *space = i ? " " : "";
        bool quote = words[i][strspn(words[i], plain)] != 0;
        char *word = quote ? replace(words[i], in_shell_quotes) : strdup(words[i]);
        char *longer = word ? text_of(quote ? "%s%s'%s'" : "%s%s%s", line, space, word) : NULL;
        free(word);
        free(line);
        line = longer;
    }
    return line;
}

/* ---- the three forms ------------------------------------------------------------------------- */

char *control_address_file(const struct control_address *address) {
    return text_of("%s/%s.raw", address->mount, address->disk);
}

char *control_address_uri(const struct control_address *address) {
    char name[ENCODED_BYTES], path[ENCODED_BYTES];
    if (address->mount) {
        gild_percent_encode(address->mount, "/@", path, sizeof path);
        gild_percent_encode(address->disk, "/@", name, sizeof name);
        return text_of("file://%s/%s.raw", path, name);
    }
    const struct control_door *door = &address->door;
    gild_percent_encode(address->disk, "/@", name, sizeof name);
    if (!door->tcp) {
        gild_percent_encode(door->path, "/", path, sizeof path);
        return text_of("nbd+unix:///%s?socket=%s", name, path);
    }
    return text_of(strchr(door->host, ':') ? "nbd://[%s]:%s/%s" : "nbd://%s:%s/%s", door->host,
                   door->port, name);
}

/* The node's name: the disk's part of its path ("os"), or "image". */
static const char *node_name(const struct control_address *address) {
    const char *slash = strrchr(address->disk, '/');
    return strncmp(address->disk, "images/", 7) == 0 || !slash ? "image" : slash + 1;
}

static char *qemu_source(const struct control_address *address) {
    char *name = NULL, *source = NULL;
    if (address->mount) {
        char *file = control_address_file(address);
        name = file ? replace(file, in_qemu) : NULL;
        if (name)
            source = text_of(
                "driver=raw,node-name=%s,file.driver=file,file.filename=%s,"
                "file.aio=%s,file.cache.direct=on",
                node_name(address), name, address->io_uring ? "io_uring" : "threads");
        free(file);
        free(name);
        return source;
    }
    const struct control_door *door = &address->door;
    char *host = replace(door->tcp ? door->host : door->path, in_qemu);
    name = replace(address->disk, in_qemu);
    if (host && name && door->tcp)
        source = text_of(
            "driver=nbd,node-name=%s,server.type=inet,server.host=%s,server.port=%s,"
            "export=%s,reconnect-delay=30,open-timeout=10",
            node_name(address), host, door->port, name);
    else if (host && name)
        source = text_of(
            "driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,"
            "reconnect-delay=30,open-timeout=10",
            node_name(address), host, name);
    free(host);
    free(name);
    return source;
}

bool control_address_qemu(const struct control_address *address, char *words[4]) {
    char *source = qemu_source(address);
    words[0] = strdup("-blockdev");
    words[1] =
        source ? text_of("%s,cache.direct=on,%s", source,
                         address->read_only ? "read-only=on" : "discard=unmap,detect-zeroes=unmap")
               : NULL;
    words[2] = strdup("-device");
    words[3] = text_of("virtio-blk-pci,drive=%s,serial=%s,werror=stop,rerror=report",
                       node_name(address), address->serial);
    free(source);
    if (words[0] && words[1] && words[2] && words[3])
        return true;
    for (size_t i = 0; i < 4; i++)
        free(words[i]);
    return false;
}

static char *xml_source(const struct control_address *address) {
    char *source = NULL;
    if (address->mount) {
        char *file = control_address_file(address);
        char *name = file ? replace(file, in_xml) : NULL;
        if (name)
            source = text_of("  <source file='%s'/>\n", name);
        free(file);
        free(name);
        return source;
    }
    const struct control_door *door = &address->door;
    char *host = replace(door->tcp ? door->host : door->path, in_xml);
    char *name = replace(address->disk, in_xml);
    if (host && name && door->tcp)
        source = text_of(
            "  <source protocol='nbd' name='%s'>\n"
            "    <host name='%s' port='%s'/>\n"
            "  </source>\n",
            name, host, door->port);
    else if (host && name)
        source = text_of(
            "  <source protocol='nbd' name='%s'>\n"
            "    <host transport='unix' socket='%s'/>\n"
            "  </source>\n",
            name, host);
    free(host);
    free(name);
    return source;
}

/* error_policy='stop': a full store, or a quota, pauses the guest, which goes on once there is
 * room. Left alone, rerror_policy would follow it, and one damaged block pause a desktop for ever:
 * reads report. */
char *control_address_xml(const struct control_address *address) {
    char *source = xml_source(address);
    if (!source)
        return NULL;
    const char *io = !address->mount ? "" : address->io_uring ? " io='io_uring'" : " io='threads'";
    char *xml = text_of(
        "<disk type='%s' device='disk'>\n"
        "  <driver name='qemu' type='raw' cache='none'%s error_policy='stop' "
        "rerror_policy='report'%s/>\n"
        "%s"
        "  <target dev='vda' bus='virtio'/>\n"
        "%s"
        "  <serial>%s</serial>\n"
        "</disk>\n",
        address->mount ? "file" : "network", io,
        address->read_only ? "" : " discard='unmap' detect_zeroes='unmap'", source,
        address->read_only ? "  <readonly/>\n  <shareable/>\n" : "", address->serial);
    free(source);
    return xml;
}
