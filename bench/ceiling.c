/* bench_ceiling: what a server could do that has no engine at all. A file mapped into memory, and
 * replies sent in batches; writes change a private copy in memory, flushes do nothing.
 *
 *   bench_ceiling --image FILE --unix SOCKET      NBD, any export name, one thread a connection
 *   bench_ceiling --image FILE --mount DIR        FUSE, one file DIR/disk.raw
 *
 * Prints "ready" once it serves, ends on SIGTERM. It is a yardstick and not a server: it trusts its
 * client as far as memory safety allows, and ends a connection at the first thing it does not know.
 */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ceiling.h"

static int map_image(const char *path, struct ceiling_image *image) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) || status.st_size == 0) {
        perror(path);
        return -1;
    }
    image->bytes = (uint64_t)status.st_size;
    image->data =
        mmap(NULL, image->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    close(fd);
    if (image->data == MAP_FAILED) {
        perror("mmap");
        return -1;
    }
    return 0;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"image", 1, NULL, 'i'},
                                            {"unix", 1, NULL, 'u'},
                                            {"mount", 1, NULL, 'm'},
                                            {NULL, 0, NULL, 0}};
    const char *path = NULL, *socket_path = NULL, *mount = NULL;
    struct ceiling_image image;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'i':
            path = optarg;
            break;
        case 'u':
            socket_path = optarg;
            break;
        case 'm':
            mount = optarg;
            break;
        default:
            return 2;
        }
    }
    if (!path || !socket_path == !mount) {
        fprintf(stderr, "usage: bench_ceiling --image FILE --unix SOCKET | --mount DIR\n");
        return 2;
    }
    if (map_image(path, &image)) {
        return 1;
    }
    return socket_path ? ceiling_serve_nbd(&image, socket_path) : ceiling_serve_fuse(&image, mount);
}
