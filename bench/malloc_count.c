/* malloc_count.so: preloaded into a server, counts its heap allocations into a mapped file, so that
 * the comparison can say how many a read costs.
 *
 *   LD_PRELOAD=.../malloc_count.so MALLOC_COUNT_FILE=/path server ...
 *
 * The file holds one 64-bit counter. It wraps glibc's own entry points, which need no symbol lookup
 * (dlsym itself allocates). Any thread; where the file can not be mapped nothing is counted. */
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static uint64_t *counter;

__attribute__((constructor)) static void map_counter(void) {
    const char *path = getenv("MALLOC_COUNT_FILE");
    int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || ftruncate(fd, 4096)) {
        return;
    }
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) {
        counter = map;
    }
}

static void count(void) {
    if (counter) {
        __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    }
}

EXPORTED void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}

EXPORTED void *calloc(size_t number, size_t size) {
    count();
    return __libc_calloc(number, size);
}

EXPORTED void *realloc(void *old, size_t size) {
    count();
    return __libc_realloc(old, size);
}

EXPORTED void *memalign(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

EXPORTED void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

EXPORTED int posix_memalign(void **out, size_t alignment, size_t size) {
    void *memory = memalign(alignment, size);
    if (!memory) {
        return 12; /* ENOMEM */
    }
    *out = memory;
    return 0;
}
