/* See repair_harm.h. */
#include "repair_harm.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "io/file.h"

/* A block of a desktop that the tail has, and a later batch of the same stream behind it. */
uint64_t harm_tail_block(const char *directory, unsigned desktop, struct rig_spot *spot,
                         struct rig_spot *next) {
    for (unsigned w = 0; w < 3; w++)
        for (uint64_t b = rig_windows[w][0]; b < rig_windows[w][0] + rig_windows[w][1]; b++) {
            uint64_t lsn;
            if (!rig_in_tail(desktop, b))
                continue;
            *spot = rig_batch(directory, desktop, b, NULL, &lsn);
            struct rig_spot after;
            if (rig_batch_at(directory, *spot, lsn + 1, next) &&
                rig_batch_at(directory, *spot, lsn + 2, &after))
                return b;
        }
    rig_must(false, "there is no such block");
    return 0;
}

void harm_rot_tail_header(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot, next;
    uint64_t block = harm_tail_block(directory, 2, &spot, &next);
    rig_rot(&spot);
    expected->quarantined[2] = true;
    expected->stale[2][block] = 1;
}

void harm_lose_range(struct rig_expected *expected, unsigned desktop, uint64_t first,
                     uint64_t count) {
    for (uint64_t b = first; b < first + count && b < RIG_DISK_BLOCKS; b++)
        if (expected->clean || !rig_in_tail(desktop, b))
            rig_lose(expected, desktop, b, 1);
}

void harm_rot_leaf(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_node(directory, 0, GILD_NODE_LEAF, 400);
    rig_rot(&spot);
    harm_lose_range(expected, 0, 320, 320);
}

/* What the maps have in a segment, from block offset `from` on. */
static void lose_segment(const char *directory, struct rig_expected *expected, uint64_t serial,
                         uint32_t from) {
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        for (unsigned w = 0; w < 3; w++)
            for (uint64_t b = rig_windows[w][0]; b < rig_windows[w][0] + rig_windows[w][1]; b++) {
                if (!rig_written(true, d, b) || (!expected->clean && rig_in_tail(d, b)))
                    continue;
                uint64_t place = rig_place(directory, d, b);
                if (gild_place_serial(place) == serial && gild_place_offset(place) >= from)
                    rig_lose(expected, d, b, 1);
            }
}

uint64_t harm_serial_of(const char *directory, unsigned desktop) {
    for (uint64_t b = 0; b < 700; b++)
        if (rig_written(true, desktop, b))
            return gild_place_serial(rig_place(directory, desktop, b));
    return 0;
}

/* A full segment of guests' writes: the first that a desktop has anything in. */
void harm_remove_segment(const char *directory, struct rig_expected *expected) {
    uint64_t serial = harm_serial_of(directory, 0);
    struct rig_spot spot = rig_at(directory, gild_place_log(serial, 0));
    lose_segment(directory, expected, serial, 0);
    rig_must(unlink(spot.path) == 0, directory);
}

void harm_garble_segment(const char *directory, struct rig_expected *expected) {
    uint64_t serial = harm_serial_of(directory, 1);
    struct rig_spot spot = rig_at(directory, gild_place_log(serial, 0));
    lose_segment(directory, expected, serial, 0);
    int fd = open(spot.path, O_WRONLY | O_TRUNC);
    rig_must(write(fd, "not a segment", 13) == 13, directory);
    close(fd);
}

void harm_cut_segment(const char *directory, struct rig_expected *expected) {
    uint64_t serial = harm_serial_of(directory, 2);
    struct rig_spot spot = rig_at(directory, gild_place_log(serial, 0));
    lose_segment(directory, expected, serial, 100);
    rig_must(truncate(spot.path, 100 * 4096 + 777) == 0, directory);
}

void harm_rot_segment_header(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot, next;
    (void)expected;
    harm_tail_block(directory, 0, &spot, &next);
    int fd = open(spot.path, O_WRONLY);
    rig_must(pwrite(fd, "rotten rotten", 13, 3) == 13, directory);
    close(fd);
}

void harm_rot_map_leaf(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = rig_map_node(directory, 0, GILD_NODE_LEAF, 3);
    rig_rot(&spot);
    rig_lose_image(expected, 0, 960, 320);
}

void harm_remove_packs(const char *directory, struct rig_expected *expected) {
    char command[160];
    snprintf(command, sizeof command, "rm '%s'/packs/*", directory);
    rig_must(system(command) == 0, directory);
    for (unsigned i = 0; i < RIG_IMAGES; i++)
        rig_lose_image(expected, i, 0, RIG_IMAGE_BLOCKS);
}

void harm_rot_superblock(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = {.offset = 0};
    (void)expected;
    snprintf(spot.path, sizeof spot.path, "%s/superblock", directory);
    rig_rot(&spot);
}

void harm_remove_catalogue(const char *directory, struct rig_expected *expected) {
    char path[128];
    (void)expected;
    snprintf(path, sizeof path, "%s/catalogue/data.mdb", directory);
    rig_must(unlink(path) == 0, directory);
}

#define FRAME_BYTES 65536u /* of a group of an image's blocks, which are random */

void harm_rot_pack(const char *directory, struct rig_expected *expected) {
    struct rig_spot spot = {.offset = 0};
    uint64_t first = rig_image_place(directory, 0, 0);
    snprintf(spot.path, sizeof spot.path, "%s/packs/%08" PRIx32 ".pack", directory,
             gild_place_pack_id(first));
    rig_rot(&spot);
    spot.offset = 4096 + (uint64_t)gild_place_group(first) * FRAME_BYTES;
    rig_rot(&spot);
    for (uint64_t b = 0; b < RIG_IMAGE_BLOCKS; b++) {
        uint64_t place = rig_image_place(directory, 0, b);
        if (gild_place_pack_id(place) == gild_place_pack_id(first) &&
            gild_place_group(place) == gild_place_group(first))
            rig_lose_image(expected, 0, b, 1);
    }
}

/* Each record of the journal begins with its length (docs/format-catalogue.md). */
static void rot_last_record_but_one(const char *path) {
    struct rig_spot spot = {.offset = 4096}, before = {.offset = 0};
    uint8_t length[4];
    uint64_t records = 0, next;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    rig_must(fd >= 0, path);
    while (gild_file_read(fd, length, sizeof length, spot.offset) == 0 && gild_get_le32(length)) {
        next = spot.offset + gild_get_le32(length);
        records++;
        if (gild_file_read(fd, length, sizeof length, next) || !gild_get_le32(length))
            break;
        before.offset = spot.offset;
        spot.offset = next;
    }
    close(fd);
    rig_must(records > 3, "the journal has too few records");
    snprintf(before.path, sizeof before.path, "%s", path);
    rig_rot(&before);
}

void harm_lose_transactions(const char *directory, struct rig_expected *expected) {
    char path[160];
    struct dirent *entry;
    snprintf(path, sizeof path, "%s/journal", directory);
    DIR *stream = opendir(path);
    rig_must(stream != NULL, path);
    while ((entry = readdir(stream)))
        if (strstr(entry->d_name, ".journal"))
            snprintf(path, sizeof path, "%.90s/journal/%.60s", directory, entry->d_name);
    closedir(stream);
    rot_last_record_but_one(path);
    harm_remove_catalogue(directory, expected);
    for (unsigned d = 0; d < RIG_DESKTOPS; d++)
        expected->quarantined[d] = true;
}
