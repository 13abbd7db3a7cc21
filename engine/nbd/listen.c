/* Where clients come in: a Unix socket or a TCP port.
 *
 * A Unix socket left behind by a dead server is replaced, one that somebody answers on is not, and
 * nothing but a socket is ever unlinked. Its mode is 0600 from its first moment: Linux gives the
 * inode the mode that the socket had (fchmod before bind), so there is no time when others could
 * connect and no umask to change under other threads' feet. At the end it is unlinked only if it is
 * still the one made here.
 *
 * Thread: the caller's; no reactor's (getaddrinfo blocks). Failure: a sentence. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd/server.h"

#define BACKLOG 1024

/* ---- Unix ------------------------------------------------------------------------------------ */

static int unix_fail(struct gild_error *error, int err, const char *path, const char *hint) {
    return gild_fail(error, gild_code_of_errno(err), err, "Can not listen on unix:%s: %s%s.", path,
                     strerror(err), hint);
}

/* Is this the socket of a server that is gone? Then it is unlinked. */
static int replace_stale(const struct sockaddr_un *address, struct gild_error *error) {
    struct stat status;
    if (lstat(address->sun_path, &status))
        return errno == ENOENT ? 0 : unix_fail(error, errno, address->sun_path, "");
    if (!S_ISSOCK(status.st_mode))
        return gild_fail(error, GILD_FAILED, EEXIST,
                         "Can not listen on unix:%s: a file that is no socket has that name; move "
                         "it away or choose another.",
                         address->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return unix_fail(error, errno, address->sun_path, "");
    int err = connect(fd, (const struct sockaddr *)address, sizeof *address) ? errno : 0;
    close(fd);
    if (err != ECONNREFUSED)
        return gild_fail(error, GILD_BUSY, EADDRINUSE,
                         "Can not listen on unix:%s: another server answers there.",
                         address->sun_path);
    if (unlink(address->sun_path) && errno != ENOENT)
        return unix_fail(error, errno, address->sun_path,
                         ", and the old socket can not be removed");
    return 0;
}

static int listen_unix(struct gild_nbd_server *server, const char *path, struct gild_error *error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat status;
    if (!*path || strlen(path) >= sizeof address.sun_path)
        return gild_fail(error, GILD_USAGE, ENAMETOOLONG,
                         "A Unix socket's path has 1 to %zu bytes: \"%s\" has %zu.",
                         sizeof address.sun_path - 1, path, strlen(path));
    strcpy(address.sun_path, path);
    server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (server->fd < 0 || fchmod(server->fd, 0600))
        return unix_fail(error, errno, path, "");
    int result = bind(server->fd, (struct sockaddr *)&address, sizeof address) ? errno : 0;
    if (result == EADDRINUSE) {
        result = replace_stale(&address, error);
        if (result)
            return result;
        result = bind(server->fd, (struct sockaddr *)&address, sizeof address) ? errno : 0;
    }
    if (result)
        return unix_fail(error, result, path, "");
    server->unix_path = strdup(path);
    if (!server->unix_path || stat(path, &status)) {
        unlink(path);
        return unix_fail(error, server->unix_path ? errno : ENOMEM, path, "");
    }
    server->unix_device = status.st_dev;
    server->unix_inode = status.st_ino;
    if (listen(server->fd, BACKLOG))
        return unix_fail(error, errno, path, "");
    return asprintf(&server->where, "unix:%s", path) < 0 ? -ENOMEM : 0;
}

/* ---- TCP ------------------------------------------------------------------------------------- */

static int usage(struct gild_error *error, const char *where) {
    return gild_fail(error, GILD_USAGE, EINVAL,
                     "\"%s\" is no NBD address: give unix:PATH or tcp:HOST:PORT.", where);
}

/* "HOST:PORT", "[V6]:PORT", ":PORT" (all addresses). */
static int split_host(const char *text, char *host, size_t room, const char **port) {
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;
    if (!colon || !colon[1])
        return -EINVAL;
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    } else if (memchr(text, ':', length)) {
        return -EINVAL;
    }
    if (length >= room)
        return -EINVAL;
    memcpy(host, text, length);
    host[length] = 0;
    *port = colon + 1;
    return 0;
}

static int open_tcp(const struct addrinfo *at) {
    int on = 1, off = 0;
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (at->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, at->ai_addr, at->ai_addrlen) || listen(fd, BACKLOG)) {
        int err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

/* With the real port, so that a test or a script can ask for port 0. */
static int name_tcp(struct gild_nbd_server *server, const char *host) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    if (getsockname(server->fd, (struct sockaddr *)&address, &length))
        return -errno;
    unsigned port = address.ss_family == AF_INET6
                        ? ntohs(((struct sockaddr_in6 *)&address)->sin6_port)
                        : ntohs(((struct sockaddr_in *)&address)->sin_port);
    bool brackets = strchr(host, ':');
    return asprintf(&server->where, "tcp:%s%s%s:%u", brackets ? "[" : "", host, brackets ? "]" : "",
                    port) < 0
               ? -ENOMEM
               : 0;
}

static int listen_tcp(struct gild_nbd_server *server, const char *text, const char *where,
                      struct gild_error *error) {
    char host[256];
    const char *port;
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    if (split_host(text, host, sizeof host, &port))
        return usage(error, where);
    int result = getaddrinfo(*host ? host : NULL, port, &hints, &found);
    if (result)
        return gild_fail(error, GILD_USAGE, EADDRNOTAVAIL, "Can not listen on %s: %s.", where,
                         gai_strerror(result));
    result = -EADDRNOTAVAIL;
    /* All addresses: the IPv6 one takes both kinds of clients, where there is IPv6. */
    for (int round = *host ? 1 : 0; round < 2 && server->fd < 0; round++)
        for (struct addrinfo *at = found; at && server->fd < 0; at = at->ai_next) {
            if (round == 0 && at->ai_family != AF_INET6)
                continue;
            result = open_tcp(at);
            if (result >= 0)
                server->fd = result;
        }
    freeaddrinfo(found);
    if (server->fd < 0)
        return gild_fail(error, gild_code_of_errno(-result), -result, "Can not listen on %s: %s.",
                         where, strerror(-result));
    return name_tcp(server, host);
}

/* ---- both ------------------------------------------------------------------------------------ */

int nbd_listen(struct gild_nbd_server *server, const char *where, struct gild_error *error) {
    if (strncmp(where, "unix:", 5) == 0)
        return listen_unix(server, where + 5, error);
    if (strncmp(where, "tcp:", 4) == 0)
        return listen_tcp(server, where + 4, where, error);
    return usage(error, where);
}

void nbd_unlisten(struct gild_nbd_server *server) {
    struct stat status;
    if (server->fd >= 0)
        close(server->fd);
    if (server->unix_path && lstat(server->unix_path, &status) == 0 &&
        status.st_dev == server->unix_device && status.st_ino == server->unix_inode)
        unlink(server->unix_path);
    free(server->unix_path);
}
