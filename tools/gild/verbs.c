/* The table of nouns and verbs (verbs.h). What a verb takes is checked again where it is run
 * (engine/control), so that no other client can pass by this table. */
#include "tools/gild/verbs.h"

#include <stdio.h>
#include <string.h>

const struct noun nouns[] = {
    {"store", "the folder that holds everything, and that one daemon owns at a time"},
    {"image", "golden images: numbered versions that never change"},
    {"desktop", "linked clones of an image version"},
    {"pool", "desktops that are made and deleted together"},
    {"disk", "what a hypervisor needs to attach one disk"},
    {"space", "what the store, a disk or a pool takes, and what to delete first"},
    {"limit", "sizes, quotas, over-commit, and what to warn of"},
    {"events", "what happened, who asked for it, and to what"},
    {"who", "what holds a disk, and what would be freed without it"},
    {0},
};

const struct global_option global_options[] = {
    {"store", 0, "DIR", NULL, "the store; the variable GILD_STORE stands in for it"},
    {"output", 'o', "FORMAT", "text json", "text for people (the default), or json"},
    {"no-headings", 'H', NULL, NULL, "text as tab-separated rows without a heading"},
    {"yes", 0, NULL, NULL, "do not ask before something is destroyed"},
    {"help", 'h', NULL, NULL, "show this help"},
    {"version", 'V', NULL, NULL, "show the version"},
    {0},
};

const char *const exit_codes[] = {
    "done",
    "failed; one sentence on stderr says what, on what, and what to do",
    "wrong usage",
    "not found",
    "busy, or held by another process",
    "no space",
    "corrupt",
    "partly done; each failure is named",
    "",
};

static const struct column store_columns[] = {
    {"DIRECTORY", "directory", COLUMN_TEXT},
    {"ID", "id", COLUMN_TEXT},
    {"FORMAT", "format", COLUMN_NUMBER},
    {"SERVED", "served", COLUMN_BOOL},
    {"IO BACKEND", "io_backend", COLUMN_TEXT},
    {"REACTORS", "reactors", COLUMN_NUMBER},
    {"SIZE LIMIT", "size_limit_bytes", COLUMN_SIZE},
    {"CAPACITY", "capacity_bytes", COLUMN_SIZE},
    {"USED", "used_bytes", COLUMN_SIZE},
    {"FREE", "free_bytes", COLUMN_SIZE},
    {"SPACE", "space", COLUMN_TEXT},
    {"IN PACKS", "pack_bytes", COLUMN_SIZE},
    {"IN THE LOG", "log_bytes", COLUMN_SIZE},
    {"IN MAPS", "map_bytes", COLUMN_SIZE},
    {"IN THE CATALOGUE", "catalogue_bytes", COLUMN_SIZE},
    {"IMAGES", "images", COLUMN_NUMBER},
    {"VERSIONS", "versions", COLUMN_NUMBER},
    {"DESKTOPS", "desktops", COLUMN_NUMBER},
    {"POOLS", "pools", COLUMN_NUMBER},
    {"CACHE", "cache_bytes", COLUMN_SIZE},
    {"CACHE USED", "cache_used_bytes", COLUMN_SIZE},
    {"RECOVERED BATCHES", "recovered_batches", COLUMN_NUMBER},
    {0},
};

static const struct column gc_columns[] = {
    {"SEGMENTS CLEANED", "segments", COLUMN_NUMBER},
    {"PACKED", "packed_bytes", COLUMN_SIZE},
    {"SHARED", "shared_bytes", COLUMN_SIZE},
    {"MOVED IN THE LOG", "moved_bytes", COLUMN_SIZE},
    {"ZEROES", "zero_bytes", COLUMN_SIZE},
    {"NEW PACKS", "pack_bytes", COLUMN_SIZE},
    {"DROPPED FROM PACKS", "dropped_bytes", COLUMN_SIZE},
    {"FREED", "freed_bytes", COLUMN_SIZE},
    {0},
};

static const struct column init_columns[] = {
    {"DIRECTORY", "directory", COLUMN_TEXT},
    {"SIZE LIMIT", "size_limit_bytes", COLUMN_SIZE},
    {0},
};

static const struct column image_list_columns[] = {
    {"IMAGE", "image", COLUMN_TEXT},
    {"STAGE", "stage", COLUMN_TEXT},
    {"SIZE", "size_bytes", COLUMN_SIZE},
    {"DATA", "data_bytes", COLUMN_SIZE},
    {"NEW", "new_bytes", COLUMN_SIZE},
    {"STORED", "stored_bytes", COLUMN_SIZE},
    {"DESKTOPS", "desktops", COLUMN_NUMBER},
    {"CREATED", "created", COLUMN_TEXT},
    {0},
};

static const struct column image_columns[] = {
    {"IMAGE", "image", COLUMN_TEXT},         {"PATH", "path", COLUMN_TEXT},
    {"STAGE", "stage", COLUMN_TEXT},         {"SIZE", "size_bytes", COLUMN_SIZE},
    {"DATA", "data_bytes", COLUMN_SIZE},     {"NEW", "new_bytes", COLUMN_SIZE},
    {"STORED", "stored_bytes", COLUMN_SIZE}, {"SOURCE FORMAT", "source_format", COLUMN_TEXT},
    {"DESKTOPS", "desktops", COLUMN_NUMBER}, {"CONTENT HASH", "content_hash", COLUMN_TEXT},
    {"CREATED", "created", COLUMN_TEXT},     {0},
};

static const struct column desktop_list_columns[] = {
    {"DESKTOP", "name", COLUMN_TEXT},
    {"IMAGE", "image", COLUMN_TEXT},
    {"POOL", "pool", COLUMN_TEXT},
    {"SIZE", "size_bytes", COLUMN_SIZE},
    {"WRITTEN", "written_bytes", COLUMN_SIZE},
    {"OPEN", "open", COLUMN_TEXT},
    {"CREATED", "created", COLUMN_TEXT},
    {0},
};

static const struct column desktop_columns[] = {
    {"DESKTOP", "name", COLUMN_TEXT},    {"PATH", "path", COLUMN_TEXT},
    {"IMAGE", "image", COLUMN_TEXT},     {"POOL", "pool", COLUMN_TEXT},
    {"SIZE", "size_bytes", COLUMN_SIZE}, {"WRITTEN", "written_bytes", COLUMN_SIZE},
    {"OPEN", "open", COLUMN_TEXT},       {"SERIAL", "serial", COLUMN_TEXT},
    {"CREATED", "created", COLUMN_TEXT}, {0},
};

static const struct column pool_columns[] = {
    {"POOL", "name", COLUMN_TEXT},
    {"IMAGE", "image", COLUMN_TEXT},
    {"NAMES", "name_pattern", COLUMN_TEXT},
    {"DESKTOPS", "desktops", COLUMN_NUMBER},
    {"OPEN", "open_desktops", COLUMN_NUMBER},
    {"WRITTEN", "written_bytes", COLUMN_SIZE},
    {"CREATED", "created", COLUMN_TEXT},
    {0},
};

#define SHARE_COLUMNS                                                                       \
    {"VIRTUAL", "virtual_bytes", COLUMN_SIZE}, {"MAPPED", "mapped_bytes", COLUMN_SIZE},     \
        {"UNIQUE", "unique_bytes", COLUMN_SIZE}, {"SHARED", "shared_bytes", COLUMN_SIZE}, { \
        "COMPRESSED", "compressed_bytes", COLUMN_SIZE                                       \
    }

static const struct column space_columns[] = {
    {"PATH", "path", COLUMN_TEXT},
    {"KIND", "kind", COLUMN_TEXT},
    {"DISKS", "disks", COLUMN_NUMBER},
    {"DESKTOPS", "desktops", COLUMN_NUMBER},
    SHARE_COLUMNS,
    {"DELETE FREES", "delete_frees_bytes", COLUMN_SIZE},
    {"REFRESH FREES", "refresh_frees_bytes", COLUMN_SIZE},
    {"DEAD IN PACKS", "dead_bytes", COLUMN_SIZE},
    {"IN PACKS", "pack_bytes", COLUMN_SIZE},
    {"IN THE LOG", "log_bytes", COLUMN_SIZE},
    {"IN MAPS", "map_bytes", COLUMN_SIZE},
    {"IN THE CATALOGUE", "catalogue_bytes", COLUMN_SIZE},
    {"USED", "used_bytes", COLUMN_SIZE},
    {"FREE", "free_bytes", COLUMN_SIZE},
    {"CAPACITY", "capacity_bytes", COLUMN_SIZE},
    {"GROWTH A DAY", "growth_bytes_per_day", COLUMN_SIZE},
    {"DAYS TO FULL", "days_to_full", COLUMN_NUMBER},
    {0},
};

static const struct column reclaimable_columns[] = {
    {"PATH", "path", COLUMN_TEXT},           {"FREES", "delete_frees_bytes", COLUMN_SIZE},
    {"UNIQUE", "unique_bytes", COLUMN_SIZE}, {"SHARED", "shared_bytes", COLUMN_SIZE},
    {"HELD BY", "held_by", COLUMN_TEXT},     {0},
};

static const struct column who_columns[] = {
    {"PATH", "path", COLUMN_TEXT},
    {"HELD BY", "held_by", COLUMN_TEXT},
    {"OPEN", "open", COLUMN_TEXT},
    {"IMAGE", "image", COLUMN_TEXT},
    {"POOL", "pool", COLUMN_TEXT},
    {"DESKTOPS", "desktops", COLUMN_NUMBER},
    {"MAPPED", "mapped_bytes", COLUMN_SIZE},
    {"UNIQUE", "unique_bytes", COLUMN_SIZE},
    {"SHARED", "shared_bytes", COLUMN_SIZE},
    {"DELETE FREES", "delete_frees_bytes", COLUMN_SIZE},
    {0},
};

static const struct column limit_columns[] = {
    {"TARGET", "target", COLUMN_TEXT},
    {"KEY", "key", COLUMN_TEXT},
    {"VALUE", "value", COLUMN_TEXT},
    {"LIMIT", "limit_bytes", COLUMN_SIZE},
    {"TAKEN OF IT", "used_bytes", COLUMN_SIZE},
    {0},
};

static const struct column event_columns[] = {
    {"TIME", "time", COLUMN_TEXT},       {"EVENT", "event", COLUMN_TEXT},
    {"UID", "uid", COLUMN_NUMBER},       {"OBJECT", "object", COLUMN_TEXT},
    {"MESSAGE", "message", COLUMN_TEXT}, {0},
};

#define IMAGE_OPTION                                                       \
    {                                                                      \
        "image", "image", "NAME[@V]", VALUE_TEXT, NULL, true,              \
            "the image version; without @V the newest that is not retired" \
    }
#define TRANSPORT_OPTION                                                                       \
    {                                                                                          \
        "transport", "transport", "DOOR", VALUE_CHOICE, "nbd fuse", false,                     \
            "over NBD or through the mount; by default whichever the daemon serves, NBD first" \
    }
#define DISK_ARGUMENT                                                   \
    {                                                                   \
        "PATH", "path", VALUE_TEXT, false,                              \
            "the disk's path, such as desktops/d1/os or images/win10@3" \
    }
#define SELECT_TEXT "a desktop's name, a glob such as 'd00*', or @POOL"

const struct verb verbs[] = {
    {.noun = "store",
     .name = "init",
     .options = {{"size", "size", "SIZE", VALUE_SIZE, NULL, false,
                  "the most that the store may take of its file system; at least 1G"}},
     .summary = "make an empty store",
     .text = "Makes the store in the folder that --store names: a new one, or an empty one.",
     .shape = SHAPE_RECORD,
     .columns = init_columns},
    {.noun = "store",
     .name = "info",
     .summary = "show the store's size, content and state",
     .shape = SHAPE_RECORD,
     .columns = store_columns},
    {.noun = "store",
     .name = "check",
     .options = {{"repair", "repair", NULL, VALUE_FLAG, NULL, false,
                  "make a damaged store one that opens; no daemon may run"}},
     .summary = "recount and verify the whole store, or repair it",
     .destroys = true,
     .destroys_with = "repair",
     .text = "Recounts references, maps, packs and segments against the catalogue, and verifies "
             "every checksum of the metadata. Nothing is changed. Each fault is one line on "
             "stdout; if there is any, the exit code is 6. With --repair, a store that is damaged "
             "or refused becomes one that opens: what has a whole copy is set right, what has none "
             "is marked as lost and named, disk by disk; nothing is guessed. Stop the daemon "
             "first. If anything is lost, the exit code is 6.",
     .shape = SHAPE_CHECK},
    {.noun = "store",
     .name = "scrub",
     .options = {{"rate", "rate", "SIZE", VALUE_SIZE, NULL, false,
                  "the most that is read in a second; by default 64M"},
                 {"dry-run", "dry_run", NULL, VALUE_FLAG, NULL, false,
                  "only look: repair nothing"}},
     .summary = "read everything, verify it, and repair what has another copy",
     .text = "Reads every block that is stored and verifies it: packs against the SHA-256 of their "
             "content, maps and the blocks that guests wrote against their checks. Guests go on "
             "meanwhile. A damaged pack is repaired from any good copy; what has none is put in "
             "quarantine, named with the images and desktops that it hits, and healed by a later "
             "scrub once the same image was imported again. A scrub that is stopped keeps what it "
             "has repaired. Exit code 0 if all is well or was repaired, 6 if anything is damaged "
             "or lost.",
     .shape = SHAPE_CHECK},

    {.noun = "store",
     .name = "gc",
     .summary = "deduplicate and compress what desktops wrote, and free what nothing reaches",
     .text =
         "Does at once, and to its end, what goes on in the background anyway: the whole log is "
         "cleaned, content that is there already is shared, the rest is compressed into packs, "
         "and the segments that it lay in are freed. Guests go on meanwhile. One that is "
         "stopped keeps what it has done.",
     .shape = SHAPE_RECORD,
     .columns = gc_columns},

    {.noun = "image",
     .name = "import",
     .arguments = {{"NAME", "name", VALUE_TEXT, false, "the image; made if there is none"},
                   {"SOURCE", "source", VALUE_SOURCE, false,
                    "a raw, qcow2, vmdk, vhdx or vdi file, a block device, or an NBD URI"}},
     .options = {{"format", "format", "F", VALUE_CHOICE, "raw qcow2 vmdk vhdx vdi", false,
                  "the source's format; by default its content tells"},
                 {"allow-backing", "allow_backing", NULL, VALUE_FLAG, NULL, false,
                  "read an image that leans on other files, too"}},
     .summary = "make an image's next version from a disk image",
     .text = "Holes and zeroes of the source are not read; content that the store has already is "
             "not stored again. An import that is broken off leaves nothing behind.",
     .shape = SHAPE_RECORD,
     .columns = image_columns},
    {.noun = "image",
     .name = "list",
     .arguments = {{"NAME", "name", VALUE_TEXT, true, "one image; by default all"}},
     .summary = "list the versions of images",
     .shape = SHAPE_LIST,
     .columns = image_list_columns},
    {.noun = "image",
     .name = "show",
     .arguments = {{"NAME[@V]", "image", VALUE_TEXT, false,
                    "the version; without @V the newest that is not retired"}},
     .summary = "show one version of an image",
     .shape = SHAPE_RECORD,
     .columns = image_columns},
    {.noun = "image",
     .name = "delete",
     .arguments = {{"NAME@V", "image", VALUE_TEXT, false, "the version"}},
     .summary = "delete one version of an image",
     .text = "Refused while desktops or pools stand on the version, or while it is open.",
     .destroys = true,
     .shape = SHAPE_FREED},

    {.noun = "desktop",
     .name = "create",
     .arguments = {{"D", "name", VALUE_TEXT, false, "the desktop's name"}},
     .options = {IMAGE_OPTION,
                 {"count", "count", "N", VALUE_COUNT, NULL, false,
                  "make N desktops, all of them or none"},
                 {"name-pattern", "name_pattern", "PATTERN", VALUE_TEXT, NULL, false,
                  "their names, counted from 1, such as 'd%04d'; by default D with four digits"},
                 {"size", "size", "SIZE", VALUE_SIZE, NULL, false,
                  "a larger virtual size than the image's"}},
     .summary = "make linked clones of an image version",
     .text = "Without --count and --name-pattern one desktop called D is made.",
     .shape = SHAPE_NAMES,
     .member = "desktops"},
    {.noun = "desktop",
     .name = "list",
     .arguments = {{"SEL", "select", VALUE_TEXT, true, SELECT_TEXT "; by default all"}},
     .summary = "list desktops",
     .shape = SHAPE_LIST,
     .columns = desktop_list_columns},
    {.noun = "desktop",
     .name = "show",
     .arguments = {{"D", "name", VALUE_TEXT, false, "the desktop"}},
     .summary = "show one desktop",
     .shape = SHAPE_RECORD,
     .columns = desktop_columns},
    {.noun = "desktop",
     .name = "delete",
     .arguments = {{"SEL", "select", VALUE_TEXT, false, SELECT_TEXT}},
     .summary = "delete desktops and what they have written",
     .text = "Refused, for all of them, while one of them is open.",
     .destroys = true,
     .shape = SHAPE_FREED},

    {.noun = "pool",
     .name = "create",
     .arguments = {{"P", "name", VALUE_TEXT, false, "the pool's name"}},
     .options = {IMAGE_OPTION,
                 {"count", "count", "N", VALUE_COUNT, NULL, true, "how many desktops"},
                 {"name-pattern", "name_pattern", "PATTERN", VALUE_TEXT, NULL, false,
                  "their names, counted from 1, such as 'p%04d'; by default P with four digits"}},
     .summary = "make a pool of linked clones",
     .shape = SHAPE_RECORD,
     .columns = pool_columns},
    {.noun = "pool",
     .name = "list",
     .summary = "list the pools",
     .shape = SHAPE_LIST,
     .columns = pool_columns},
    {.noun = "pool",
     .name = "show",
     .arguments = {{"P", "name", VALUE_TEXT, false, "the pool"}},
     .summary = "show one pool",
     .text = "`gild desktop list @P` lists its desktops.",
     .shape = SHAPE_RECORD,
     .columns = pool_columns},
    {.noun = "pool",
     .name = "delete",
     .arguments = {{"P", "name", VALUE_TEXT, false, "the pool"}},
     .summary = "delete a pool with all its desktops",
     .text = "Refused while one of its desktops is open.",
     .destroys = true,
     .shape = SHAPE_FREED},

    {.noun = "disk",
     .name = "uri",
     .arguments = {DISK_ARGUMENT},
     .options = {TRANSPORT_OPTION},
     .summary = "print the URI of a disk",
     .text = "An NBD URI, as qemu-img, nbdinfo and nbdcopy take it, or the file's under the mount.",
     .shape = SHAPE_TEXT,
     .member = "uri"},
    {.noun = "disk",
     .name = "qemu",
     .arguments = {DISK_ARGUMENT},
     .options = {TRANSPORT_OPTION},
     .summary = "print QEMU's options for a disk",
     .text = "One line that a shell splits into -blockdev and -device.",
     .shape = SHAPE_TEXT,
     .member = "qemu"},
    {.noun = "disk",
     .name = "xml",
     .arguments = {DISK_ARGUMENT},
     .options = {TRANSPORT_OPTION},
     .summary = "print libvirt's XML for a disk",
     .text = "The <disk> element, as `virsh attach-device` takes it.",
     .shape = SHAPE_TEXT,
     .member = "xml"},

    {.noun = "space",
     .name = "show",
     .alone = true,
     .arguments = {{"PATH|P", "target", VALUE_TEXT, true,
                    "a disk's path, such as desktops/d1/os or images/win10@3, or a pool; by "
                    "default the whole store"}},
     .options = {{"reclaimable", "reclaimable", NULL, VALUE_FLAG, NULL, false,
                  "list what could be deleted, what frees most first"}},
     .summary = "show what is stored, what is shared, and what would be freed",
     .text = "Virtual is what guests see; mapped is what has content of its own, for a desktop "
             "what it has written; unique is what nothing else has; compressed is what the unique "
             "part takes on the host. What would be freed is counted to the block, as it is once "
             "the log and the packs have been cleaned (`gild store gc` does that at once). With "
             "--reclaimable each line is what its deletion alone frees; what is held stands last.",
     .shape = SHAPE_RECORD,
     .columns = space_columns,
     .list_columns = reclaimable_columns},
    {.noun = "who",
     .name = "show",
     .alone = true,
     .arguments = {DISK_ARGUMENT},
     .summary = "show what holds a disk, and what would be freed without it",
     .shape = SHAPE_RECORD,
     .columns = who_columns},

    {.noun = "limit",
     .name = "set",
     .arguments = {{"PATH|P|store", "target", VALUE_TEXT, false,
                    "a disk's path such as desktops/d1/os, a pool, or the store"},
                   {"KEY=VALUE...", "settings", VALUE_SETTINGS, false,
                    "what is set, none to set it free"}},
     .summary = "set limits",
     .text = "Of the store: size (what it may take of its file system), overcommit (none, "
             "conservative, moderate, aggressive or unbounded: the virtual sizes of all desktops "
             "together may be 1, 4, 7 or 15 times the store's capacity, or any number of times), "
             "warn (percentages used, such as 80,90). Of a pool: quota (what all its desktops "
             "together may have written), desktop_quota (what each may). Of a disk: quota. Takes "
             "effect at once; a write that would go over a quota gets \"no space\", what is "
             "written already can be overwritten, and a guest that was paused can be resumed once "
             "there is room.",
     .shape = SHAPE_LIST,
     .columns = limit_columns},
    {.noun = "limit",
     .name = "show",
     .arguments = {{"PATH|P|store", "target", VALUE_TEXT, true,
                    "one of them; by default all that is limited"}},
     .summary = "show limits, and what is taken of them",
     .shape = SHAPE_LIST,
     .columns = limit_columns},
    {.noun = "events",
     .name = "show",
     .alone = true,
     .options = {{"follow", "follow", NULL, VALUE_FLAG, NULL, false,
                  "go on until interrupted, and print events as they come"},
                 {"since", "since", "T", VALUE_TEXT, NULL, false,
                  "from so long ago on (30m, 12h, 7d), or from 2026-03-14T09:26:53Z on"}},
     .summary = "show what happened, who asked for it, and to what",
     .text = "The newest 2,048 are kept: what was made and deleted, limits that were changed, "
             "thresholds that were crossed, disks whose writes are refused, that have room again, "
             "and whose writes are taken again. With -o json and --follow, one object on each "
             "line.",
     .shape = SHAPE_FOLLOW,
     .columns = event_columns},
    {0},
};

const struct noun *find_noun(const char *name) {
    for (const struct noun *noun = nouns; noun->name; noun++)
        if (strcmp(noun->name, name) == 0)
            return noun;
    return NULL;
}

const struct verb *find_verb(const char *noun, const char *name) {
    for (const struct verb *verb = verbs; verb->noun; verb++)
        if (strcmp(verb->noun, noun) == 0 && strcmp(verb->name, name) == 0)
            return verb;
    return NULL;
}

const struct verb *find_lone_verb(const char *noun) {
    for (const struct verb *verb = verbs; verb->noun; verb++)
        if (verb->alone && strcmp(verb->noun, noun) == 0)
            return verb;
    return NULL;
}

const char *verb_words(const struct verb *verb, char text[VERB_WORDS_BYTES]) {
    snprintf(text, VERB_WORDS_BYTES, "%s%s%s", verb->noun, verb->alone ? "" : " ",
             verb->alone ? "" : verb->name);
    return text;
}
