/* The failing allocator of the interposed library: from the program's main on, allocations are
 * counted, and the one of a given number fails once.
 *
 * By default those that the program itself asks for (the engine is linked into it); with alloc_any
 * those of its libraries too. Threads: any. */
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recorder.h"

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static bool armed;
static uintptr_t text_begin, text_end;

static bool fails(const void *caller) {
    struct trace_head *head = armed ? recorder_head() : NULL;
    uintptr_t address = (uintptr_t)caller;
    Dl_info info;
    if (!head || (!head->alloc_any && (address < text_begin || address >= text_end)))
        return false;
    if (atomic_fetch_add(&head->allocs, 1) + 1 != head->alloc_at)
        return false;
    if (dladdr((void *)address, &info) && info.dli_fname) {
        const char *slash = strrchr(info.dli_fname, '/');
        strncpy(head->alloc_object, slash ? slash + 1 : info.dli_fname,
                sizeof head->alloc_object - 1);
        head->alloc_address = address - (uintptr_t)info.dli_fbase;
    }
    errno = ENOMEM;
    return true;
}

#define FAILS fails(__builtin_return_address(0))

RECORDER_EXPORT void *malloc(size_t bytes) {
    return FAILS ? NULL : __libc_malloc(bytes);
}

RECORDER_EXPORT void *calloc(size_t count, size_t bytes) {
    return FAILS ? NULL : __libc_calloc(count, bytes);
}

RECORDER_EXPORT void *realloc(void *old, size_t bytes) {
    return FAILS ? NULL : __libc_realloc(old, bytes);
}

RECORDER_EXPORT void *aligned_alloc(size_t alignment, size_t bytes) {
    return FAILS ? NULL : __libc_memalign(alignment, bytes);
}

RECORDER_EXPORT int posix_memalign(void **out, size_t alignment, size_t bytes) {
    if (FAILS)
        return ENOMEM;
    *out = __libc_memalign(alignment, bytes);
    return *out ? 0 : ENOMEM;
}

/* The first object is the program. */
static int note_program(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size, (void)context;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            text_begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            text_end = text_begin + info->dlpi_phdr[i].p_memsz;
        }
    return 1;
}

typedef int main_function(int, char **, char **);
static main_function *program_main;

static int counted_main(int argc, char **argv, char **environment) {
    dl_iterate_phdr(note_program, NULL);
    armed = true;
    return program_main(argc, argv, environment);
}

RECORDER_EXPORT int __libc_start_main(main_function *main, int argc, char **argv,
                                      void (*init)(void), void (*fini)(void),
                                      void (*loader_fini)(void), void *stack_end);
RECORDER_EXPORT int __libc_start_main(main_function *main, int argc, char **argv,
                                      void (*init)(void), void (*fini)(void),
                                      void (*loader_fini)(void), void *stack_end) {
    int (*next)(main_function *, int, char **, void (*)(void), void (*)(void), void (*)(void),
                void *) = RECORDER_NEXT(__libc_start_main);
    program_main = main;
    return next(counted_main, argc, argv, init, fini, loader_fini, stack_end);
}
