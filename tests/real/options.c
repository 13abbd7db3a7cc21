/* See options.h. */
#include "options.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

struct options options_read(int argc, char **argv, uint64_t points) {
    static const struct option known[] = {{"all", no_argument, NULL, 'a'},
                                          {"points", required_argument, NULL, 'p'},
                                          {"states", required_argument, NULL, 'p'},
                                          {"seed", required_argument, NULL, 'r'},
                                          {"workload", required_argument, NULL, 'w'},
                                          {"libraries", no_argument, NULL, 'l'},
                                          {0}};
    struct options options = {.points = points, .seed = 1};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == '?')
            exit(2);
        if (option == 'a')
            options.points = 0;
        else if (option == 'l')
            options.libraries = true;
        else if (option == 'w')
            options.workload = optarg;
        else
            *(option == 'p' ? &options.points : &options.seed) = strtoull(optarg, NULL, 0);
    }
    rig_need();
    printf("seed %" PRIu64 "\n", options.seed);
    return options;
}

bool options_want(const struct options *options, const char *workload) {
    return !options->workload || strcmp(options->workload, workload) == 0;
}

uint64_t options_points(const struct options *options, uint64_t count) {
    return !options->points || options->points > count ? count : options->points;
}

uint64_t options_place(const struct options *options, uint64_t i, uint64_t count) {
    uint64_t points = options_points(options, count);
    return 1 + (points == count ? i : (i * count + options->seed % count) / points % count);
}
