/* Where the store's control socket is. sun_path holds 107 bytes, a store's path may be longer: then
 * the address goes through a descriptor of the folder, which the kernel resolves (proc(5)). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "control/control.h"

int control_socket_address(const char *directory, struct sockaddr_un *out, int *folder_fd) {
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    *folder_fd = -1;
    int length =
        snprintf(out->sun_path, sizeof out->sun_path, "%s/" CONTROL_SOCKET_NAME, directory);
    if (length >= 0 && (size_t)length < sizeof out->sun_path)
        return 0;
    *folder_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*folder_fd < 0)
        return -errno;
    snprintf(out->sun_path, sizeof out->sun_path, "/proc/self/fd/%d/" CONTROL_SOCKET_NAME,
             *folder_fd);
    return 0;
}
