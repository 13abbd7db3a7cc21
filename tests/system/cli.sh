#!/bin/bash
# The two programs from the outside: every verb and every refusal, with no daemon and then with one.
# A refusal is the right exit code, one sentence on stderr, the same as JSON on stdout, and the store
# as it was before.
. "$(dirname "$0")/lib.sh"

need qemu-img qemu-io nbdinfo nbdcopy jq flock sha256sum
scratch_make
export GILD_STORE=$work/store
gild() { # the store comes from GILD_STORE
    "$GILD" "$@"
}

# ---- what is asked of every refusal --------------------------------------------------------------
code_names=(ok failed usage not_found busy no_space corrupt partly)

# refused CODE ARGUMENT...
refused() {
    local code=$1 status=0
    shift
    gild -o json "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
    [ "$status" = "$code" ] || fail "gild $*: exit code $status, not $code: $(cat "$work/err")"
    [ "$(wc -l <"$work/err")" = 1 ] && grep -q '^gild: ..........' "$work/err" ||
        fail "gild $*: not one sentence on stderr: $(cat "$work/err")"
    ! grep -q '[[:cntrl:]]' "$work/err" || fail "gild $*: control characters on stderr"
    jq -e --arg code "${code_names[code]}" --rawfile told "$work/err" \
        '.error.code == $code and "gild: \(.error.message)\n" == $told' "$work/out" >/dev/null ||
        fail "gild $*: stdout tells $(cat "$work/out"), stderr $(cat "$work/err")"
}

# What the store holds: the listings, and every byte of packs and maps.
state() {
    gild -o json image list
    gild -o json desktop list
    gild -o json pool list
    (cd "$GILD_STORE" && find packs maps -type f -exec sha256sum {} + | sort)
}

# What nothing refers to any more is removed in the background, a moment after the answer.
as_before() {
    state >"$work/state.after"
    cmp -s "$work/state.before" "$work/state.after"
}

# unchanged NAME COMMAND...: the command leaves the store as it was.
unchanged() {
    local name=$1
    shift
    state >"$work/state.before"
    "$@"
    wait_until 10 as_before ||
        fail "$name: the store changed: $(diff "$work/state.before" "$work/state.after" | head -n 5)"
    passed "$mode: $name: each with its exit code, and the store as before"
}

# is FILTER ARGUMENT...: the JSON answer of the command meets the jq filter.
is() {
    local filter=$1
    shift
    gild -o json "$@" >"$work/out" 2>"$work/err" || fail "gild $*: $(cat "$work/err")"
    jq -e "$filter" "$work/out" >/dev/null || fail "gild $*: not $filter: $(cat "$work/out")"
}

# ---- sources, good and bad -----------------------------------------------------------------------
size=$((64 << 20))
truncate -s "$size" "$work/good.raw"
dd if=/dev/urandom of="$work/good.raw" bs=1M seek=3 count=4 conv=notrunc status=none
for format in qcow2 vmdk vhdx vdi; do
    qemu-img convert -f raw -O "$format" "$work/good.raw" "$work/good.$format"
    head -c $(($(stat -c %s "$work/good.$format") / 3)) "$work/good.$format" >"$work/truncated.$format"
done
cp "$work/good.qcow2" "$work/damaged.qcow2"
dd if=/dev/urandom of="$work/damaged.qcow2" bs=64k seek=1 count=3 conv=notrunc status=none
qemu-img create -q -f qcow2 -b "$work/good.qcow2" -F qcow2 "$work/child.qcow2"
: >"$work/empty.raw"
head -c 1000 /dev/urandom >"$work/odd.raw"

bad_sources() {
    local format
    for format in qcow2 vmdk vhdx vdi; do
        refused 6 image import bad "$work/truncated.$format"
    done
    refused 6 image import bad "$work/damaged.qcow2"
    refused 6 image import bad "$work/good.raw" --format qcow2
    refused 6 image import bad "$work/good.qcow2" --format vmdk
    refused 2 image import bad "$work/child.qcow2"
    refused 2 image import bad "$work/empty.raw"
    refused 2 image import bad "$work/odd.raw"
    refused 2 image import bad "$work"
    refused 3 image import bad "$work/no-such-file"
    refused 3 image import bad "nbd+unix:///x?socket=$work/no-such-socket"
}

bad_names() {
    local name
    for name in '' a/b a@1 'a:b' 'a%b' 'a*' 'a?' 'a[' a+b -- .hidden "a"$'\n'"b" $'a\tb' $'a\x7f' \
        "$(printf '%0130d' 1)"; do
        [ "$name" = -- ] && name=-dash
        refused 2 image import -- "$name" "$work/good.raw"
        refused 2 desktop create --image img@1 -- "$name"
        refused 2 pool create --image img@1 --count 1 -- "$name"
    done
    refused 2 desktop create $'bad\xff' --image img@1 # not UTF-8
    refused 2 desktop create x --image img@1 --count 2 --name-pattern 'no-number'
    refused 2 desktop create x --image img@1 --count 2 --name-pattern '%d%d'
    refused 2 desktop create x --image img@1 --count 2 --name-pattern 'a/%d'
    refused 2 desktop create x --image img@0
    refused 2 desktop create x --image img@01
    refused 2 desktop create x --image img@x
    refused 2 image delete --yes img
}

bad_sizes() {
    local size_text
    for size_text in 1000 64M1 -1 0 x 1.5G 99999999999999999999 9000000T 1M; do
        refused 2 desktop create --image img@1 --size="$size_text" x
    done
    refused 2 desktop create x --image img@1 --count 0
    refused 2 desktop create x --image img@1 --count many
    refused 2 desktop create x --image img@1 --count 4000000000
    refused 2 desktop create x --image img@1 --count -1
}

unknown() {
    refused 3 image show nope
    refused 3 image list nope
    refused 3 image show img@7
    refused 3 image delete --yes nope@1
    refused 3 desktop show nope
    refused 3 desktop delete --yes nope
    refused 3 desktop delete --yes 'zz*'
    refused 3 desktop delete --yes @nope
    refused 3 desktop list nope
    refused 3 pool show nope
    refused 3 pool delete --yes nope
    refused 3 desktop create x --image nope
    refused 3 desktop create x --image img@9
    refused 3 pool create x --image nope --count 2
    refused 3 disk uri desktops/nope/os
    refused 3 disk qemu images/img@9
    refused 3 disk xml /
    refused 2 disk uri desktops
}

taken() {
    refused 1 desktop create d1 --image img@1
    refused 1 desktop create e --image img@1 --count 3 --name-pattern 'd%d'
    refused 1 pool create p --image img@1 --count 2
    refused 4 image delete --yes img@1
}

wrong_usage() {
    refused 2
    refused 2 nonsense
    refused 2 image
    refused 2 image nonsense
    refused 2 image import
    refused 2 image import x
    refused 2 image import x y z
    refused 2 image import x "$work/good.raw" --format nonsense
    refused 2 image list --nonsense
    refused 2 image list -o yaml
    refused 2 image list --store
    refused 2 image list --store ''
    refused 2 desktop create x
    refused 2 desktop create x --image img@1 --image img@1 # once is what can be meant
    refused 2 image import x "$work/good.raw" --allow-backing --allow-backing
    refused 2 pool create x --image img@1
    refused 2 disk uri desktops/d1/os --transport carrier-pigeon
    refused 2 image delete img@1 # not a terminal, no --yes
    refused 2 desktop delete d1
    refused 2 pool delete p
    refused 2 desktop list --dry-run
    refused 3 space desktops/none/os
    refused 3 space images/img@9
    refused 3 space nopool
    refused 3 space some/where
    refused 3 who desktops/none/os
    refused 2 who
    refused 2 space --reclaimable desktops/d1/os
    refused 3 space --reclaimable nopool
    refused 2 space images/img@1 and-more
    refused 2 store scrub --rate 0
    refused 2 store scrub --rate fast
}

good_verbs() {
    is '.id | length == 36' store info
    is '.clean and .finding_count == 0 and .findings == []' store check
    is '.clean and .findings == [] and .packs == 1 and .maps == 1 and .disks == 6 and .lost_groups == 0
        and .read_bytes >= 4194304' store scrub --rate 1G
    is '.clean and .dry_run' store scrub --dry-run
    is 'type == "array" and length == 1 and .[0].image == "img@1"' image list
    is 'length == 1' image list img
    is '.image == "img@1" and .name == "img" and .version == 1 and .path == "images/img@1"
        and (.content_hash | test("^[0-9a-f]{64}$")) and .stage == "production"
        and .size_bytes == 67108864 and .data_bytes == 4194304 and .desktops == 6
        and (.created | fromdateiso8601 > 1700000000)' image show img
    is 'map(.name) == ["d1","p0001","p0002","p0003","s0001","s0002"]' desktop list
    is 'map(.name) == ["p0001","p0002","p0003"] and all(.pool == "p")' desktop list @p
    is 'map(.name) == ["d1"]' desktop list 'd*'
    is '. == []' desktop list 'zz*'
    is '.name == "d1" and .path == "desktops/d1/os" and .image == "img@1" and .pool == null
        and .written_bytes == 0 and .open == null and (.serial | length <= 20)' desktop show d1
    is 'map(.name) == ["p"]' pool list
    is '.count == 3 and .desktops == 3 and .open_desktops == 0 and .name_pattern == "p%04d"' pool show p
    is '.dry_run and .desktops == 1 and .versions == 0' desktop delete d1 --dry-run
    is '.dry_run and .desktops == 3' pool delete p --dry-run
    is '.desktops == 6 and .virtual_bytes == 6 * 67108864 and .mapped_bytes == 4194304 and .unique_bytes == 4194304
        and .shared_bytes == 0 and .compressed_bytes <= 4194304 and .used_bytes > 0 and .dead_bytes == 0
        and .days_to_full == null' space
    is '.path == "images/img@1" and .kind == "image" and .unique_bytes == 4194304 and .desktops == 6
        and .held_by == "6 desktops" and .delete_frees_bytes > 0' space images/img@1
    is '.path == "desktops/d1/os" and .mapped_bytes == 0 and .delete_frees_bytes == 0
        and .refresh_frees_bytes == 0 and .growth_bytes_per_day == null' space desktops/d1/os
    is '.path == "@p" and .kind == "pool" and .disks == 3 and .virtual_bytes == 3 * 67108864' space p
    is 'length == 7 and (map(.path) | .[6] == "images/img@1")' space --reclaimable
    is 'length == 3' space p --reclaimable
    is '.desktop_names == ["d1","p0001","p0002","p0003","s0001","s0002"] and .open == null' who images/img@1
    is '.image == "img@1" and .pool == "p" and .held_by == null' who desktops/p0001/os
    [ "$(gild -H space | sed -n 's/^VIRTUAL\t//p')" = 402653184 ] || fail "-H space: $(gild -H space)"
    [ "$(gild -H desktop list d1 | cut -f1,2,4)" = $'d1\timg@1\t67108864' ] || fail "-H: $(gild -H desktop list d1)"
    [ "$(gild desktop list d1 | head -n 1 | awk '{ print $1, $2 }')" = 'DESKTOP IMAGE' ] || fail "no heading"
    # Options in any position.
    [ "$(gild image list -o json)" = "$(gild -o json image list)" ] &&
        [ "$(gild image -o json list)" = "$(gild -o json image list)" ] || fail "options by position"
}

verbs_in_turn() {
    is '.made == 2 and .desktops == ["t1","t2"]' desktop create t --image img --count 2 --name-pattern t%d
    is '.made == 3 and .desktops == ["u0001","u0002","u0003"]' desktop create u --image img@1 --count 3
    is '.made == 1 and .desktops == ["big"]' desktop create big --image img@1 --size 128M
    is '.size_bytes == 134217728' desktop show big
    is '.desktops == 7 and .count == 7' pool create q --image img --count 7 --name-pattern 'q-%02d'
    is 'map(.name) | .[0] == "q-01" and length == 7' desktop list @q
    is '.dry_run == false and .desktops == 7' --yes pool delete q
    is '.desktops == 2' desktop delete 't*' --yes
    is '.desktops == 3' desktop delete --yes 'u*'
    is '.desktops == 1' desktop delete --yes big
    local other=other-${mode// /-}
    (cd "$work" && is ".image == \"$other@1\" and .source_format == \"qcow2\"" image import "$other" good.qcow2)
    is ".image == \"$other@2\" and .new_bytes == 0" image import "$other" "$work/good.vmdk" --format vmdk
    [ "$(gild -o json image show "$other@1" | jq -r .content_hash)" = "$(gild -o json image show img@1 | jq -r .content_hash)" ] ||
        fail "one content in two formats has two content hashes"
    is ".image == \"$other@3\"" image import "$other" "$work/child.qcow2" --allow-backing
    is '.dry_run and .versions == 1' image delete "$other@2" --dry-run
    for version in 1 2 3; do is '.versions == 1' --yes image delete "$other@$version"; done
    # A version's number is never given twice.
    is ".image == \"$other@4\"" image import "$other" "$work/good.vdi"
    is '.versions == 1' --yes image delete "$other@4"
}

everything() {
    unchanged "good verbs that change nothing" good_verbs
    unchanged "damaged, truncated, wrong and missing sources" bad_sources
    unchanged "names" bad_names
    unchanged "sizes and counts" bad_sizes
    unchanged "unknown things" unknown
    unchanged "names that are taken, images that are stood on" taken
    unchanged "wrong usage" wrong_usage
    unchanged "verbs in turn, and back" verbs_in_turn
}

# ---- help, pages, completion ---------------------------------------------------------------------
mode="no store"
unset GILD_STORE
refused 2 image list
export GILD_STORE=$work/store
for words in '' store image desktop pool disk 'store init' 'store info' 'store check' 'store scrub' \
    {image,desktop,pool}' '{list,show,delete} 'image import' {desktop,pool}' create' \
    'disk '{uri,qemu,xml}; do
    # shellcheck disable=SC2086
    gild $words --help >"$work/help" || fail "gild $words --help failed"
    [ "$(wc -l <"$work/help")" -gt 5 ] || fail "gild $words --help says too little"
done
gild --version | grep -q '^gild [0-9]' && "$GILDD" --version | grep -q '^gildd [0-9]' || fail "--version"
"$GILDD" --help | grep -q -- --io-backend || fail "gildd --help"
gild --completion >"$work/completion" && bash -n "$work/completion"
# shellcheck disable=SC1091
(
    . "$work/completion"
    COMP_WORDS=(gild --store /x image im) COMP_CWORD=4 && _gild
    [ "${COMPREPLY[*]}" = import ] || fail "completion of a verb: ${COMPREPLY[*]}"
    COMP_WORDS=(gild image import --format q) COMP_CWORD=4 && _gild
    [ "${COMPREPLY[*]}" = qcow2 ] || fail "completion of a value: ${COMPREPLY[*]}"
)
passed "help on every level, version, completion"

# ---- init ----------------------------------------------------------------------------------------
refused 3 store info
refused 3 desktop list
refused 2 store init --size 1000
refused 2 store init --size 1M
refused 2 store init --size 1073741825
[ ! -e "$work/store" ] || fail "a refused store init left something"
mkdir "$work/full" && : >"$work/full/file"
refused 1 --store "$work/full" store init
[ "$(ls "$work/full")" = file ] || fail "a refused store init left something in a full folder"
is '.size_limit_bytes == 2147483648' store init --size 2G
refused 1 store init
is '.size_limit_bytes == 2147483648 and .images == 0 and .format == 1 and (.served | not)' store info
passed "store init: made once, refused where it must be"

# ---- without a daemon ----------------------------------------------------------------------------
mode="no daemon"
is '.image == "img@1" and .source_format == "raw"' image import img "$work/good.raw"
gild desktop create d1 --image img@1 >/dev/null
gild desktop create s --count 2 --image img@1 >/dev/null
gild pool create p --image img --count 3 >/dev/null
everything
refused 1 disk uri desktops/d1/os

# ---- stores that can not be opened ---------------------------------------------------------------
files() {
    (cd "$GILD_STORE" && find . -type f ! -name lock.mdb -exec sha256sum {} + | sort)
}
shut() { # CODE WHAT: refused, by gildd too, without a byte written
    local status=0
    files >"$work/files.before"
    refused "$1" desktop list
    refused "$1" image import bad "$work/good.raw"
    refused "$1" store check
    "$GILDD" --store "$GILD_STORE" --nbd "unix:$work/nbd.sock" 2>"$work/err" || status=$?
    [ "$status" = "$1" ] || fail "gildd on $2: exit code $status, not $1: $(cat "$work/err")"
    [ "$(wc -l <"$work/err")" = 1 ] || fail "gildd on $2 says: $(cat "$work/err")"
    files | cmp -s - "$work/files.before" || fail "$2 was written to"
    passed "$2: exit code $1, and not a byte written"
}
cp "$work/store/superblock" "$work/superblock"
patch() { # OFFSET BYTES
    printf "$2" | dd of="$work/store/superblock" bs=1 seek="$1" conv=notrunc status=none
}
patch 16 '\x09' && shut 1 "a store of a newer format"
cp "$work/superblock" "$work/store/superblock"
patch 20 '\x80' && shut 1 "a store with a feature that is not known"
cp "$work/superblock" "$work/store/superblock"
patch 40 '\xff' && shut 6 "a store with a damaged superblock"
cp "$work/superblock" "$work/store/superblock"
truncate -s 100 "$work/store/superblock" && shut 6 "a store with a truncated superblock"
cp "$work/superblock" "$work/store/superblock"
exec 6<"$work/store/superblock"
flock -n 6 || fail "the store's lock is held though nobody holds it"
shut 4 "a store that another process holds"
exec 6<&-
is '.clean' store check

# ---- Ctrl-C --------------------------------------------------------------------------------------
truncate -s 3G "$work/long.raw"
dd if=/dev/urandom of="$work/long.raw" bs=1M count=700 conv=notrunc status=none
interrupted() { # nothing is left of an import that was stopped
    local pid status=0
    "$GILD" image import long "$work/long.raw" >"$work/out" 2>"$work/err" &
    pid=$!
    import_began() { [ "$(du -sk "$work/store/packs" | cut -f1)" -gt "$packs_kb" ] || process_gone "$pid"; }
    wait_until 60 import_began || fail "the import did not begin"
    ! process_gone "$pid" || fail "the import ended before it was interrupted"
    kill -INT "$pid"
    wait "$pid" || status=$?
    [ "$status" = 1 ] || fail "an interrupted import: exit code $status: $(cat "$work/err")"
    [ "$(wc -l <"$work/err")" = 1 ] || fail "an interrupted import says: $(cat "$work/err")"
    no_more() { [ "$(du -sk "$work/store/packs" | cut -f1)" -le "$packs_kb" ]; }
    wait_until 30 no_more || fail "an interrupted import left packs behind"
}
packs_kb=$(du -sk "$work/store/packs" | cut -f1)
unchanged "an import that Ctrl-C breaks off" interrupted

# ---- rot -----------------------------------------------------------------------------------------
scrub_stopped() { # COMMAND...: it ends a slow one at once
    local pid status=0
    "$GILD" store scrub --rate 16K >"$work/out" 2>"$work/err" &
    pid=$!
    asked() { [ -n "$(find "/proc/$pid/fd" -lname 'socket:*' 2>/dev/null)" ] || process_gone "$pid"; }
    runs() { # the store is rotten: another scrub would say so
        local code=0
        gild store scrub --dry-run >/dev/null 2>&1 || code=$?
        [ "$code" = 4 ] || process_gone "$pid"
    }
    wait_until 10 asked && wait_until 10 runs || fail "the scrub did not begin"
    ! process_gone "$pid" || fail "a slow scrub ended at once: $(cat "$work/out" "$work/err")"
    "$@" "$pid"
    wait "$pid" || status=$?
    [ "$status" = 1 ] || fail "an interrupted scrub: exit code $status: $(cat "$work/err")"
}
scrub_ended() {
    ended() { gild store scrub --rate 1G --dry-run >/dev/null 2>&1 || [ "$?" != 4 ]; }
    wait_until 10 ended || fail "the daemon goes on with an interrupted scrub"
}
rot() { # flips bytes in the first group of the store's pack
    local pack
    pack=$(ls "$GILD_STORE"/packs/*.pack)
    [ "$(wc -l <<<"$pack")" = 1 ] || fail "not one pack: $pack"
    printf 'rotten' | dd of="$pack" bs=1 seek=4500 conv=notrunc status=none
}
lost() { # VERB: the same finding, whoever looks
    local status=0
    gild -o json store $1 >"$work/out" 2>"$work/err" || status=$?
    [ "$status" = 6 ] || fail "store $1 of a rotten store: exit code $status: $(cat "$work/err")"
    jq -e '.clean == false and .error.code == "corrupt" and (.findings | length) == 1 and (.findings[0] |
        .kind == "lost" and (.message | contains("image img@1")) and .disks[0].disk == "images/img@1"
        and .disks[0].ranges[0].blocks > 0)' "$work/out" >/dev/null || fail "store $1: $(cat "$work/out")"
    jq -c .findings "$work/out"
}
GILD_STORE=$work/rotten
gild store init >/dev/null
gild image import img "$work/good.raw" >/dev/null
gild desktop create d1 --image img >/dev/null
rot
gild store scrub --rate 1G >/dev/null 2>&1 && fail "a scrub of a rotten store is content"
"$GILDD" --store "$GILD_STORE" --nbd "unix:$work/nbd.sock" 2>"$work/daemon" &
daemon=$!
daemon_answers() { [ -S "$GILD_STORE/control.sock" ]; }
wait_until 30 daemon_answers || fail "no daemon: $(cat "$work/daemon")"
scrub_stopped kill -INT
scrub_ended
online=$(lost check)
[ "$(lost "scrub --rate 1G")" = "$online" ] || fail "check and scrub of a served store differ"
stop_daemon() { kill "$daemon" && wait "$daemon" || fail "a daemon that scrubs did not end well: $(cat "$work/daemon")"; }
scrub_stopped stop_daemon
[ "$(lost check)" = "$online" ] && [ "$(lost "scrub --rate 1G")" = "$online" ] ||
    fail "without the daemon a check or a scrub says something else than: $online"
is '.image == "img@2"' image import img "$work/good.raw"
is '.clean and .repaired_groups > 0 and .lost_groups == 0' store scrub --rate 1G
is '.clean' store check
passed "a rotten pack is named, with a daemon and without, and healed by another import"
rm -rf "$work/rotten"
GILD_STORE=$work/store

# ---- a full disk ---------------------------------------------------------------------------------
full_disk() {
    refused 5 image import big "$work/long.raw"
}
if [ "$(id -u)" = 0 ] && truncate -s 400M "$work/small.img" && mkfs.ext4 -q "$work/small.img" &&
    mkdir "$work/small" && mount -o loop "$work/small.img" "$work/small" 2>/dev/null; then
    on_exit 'umount "$work/small" 2>/dev/null || true'
    GILD_STORE=$work/small/store
    mode="full disk"
    gild store init >/dev/null
    is '.image == "img@1"' image import img "$work/good.raw"
    gild desktop create d1 --image img >/dev/null
    unchanged "an import larger than the disk" full_disk
    is '.clean' store check
    GILD_STORE=$work/store
    umount "$work/small"
else
    echo "not tried: a full disk (no loop device can be mounted here)"
fi
rm -f "$work/small.img"

# ---- on a terminal -------------------------------------------------------------------------------
if command -v script >/dev/null; then
    on_terminal() { # REPLY ARGUMENT...: what a person sees, and the exit code
        printf '%s\n' "$1" | (shift && GILD=$GILD words="$*" script -qec '"$GILD" $words' /dev/null)
    }
    mode="terminal"
    gild desktop create asked --image img@1 >/dev/null
    status=0
    on_terminal n desktop delete asked >"$work/out" || status=$?
    [ "$status" = 1 ] && grep -q 'This deletes 1 desktop' "$work/out" && grep -q 'nothing was deleted' "$work/out" ||
        fail "a refused confirmation: exit code $status: $(cat "$work/out")"
    is '.name == "asked"' desktop show asked
    on_terminal y desktop delete asked >"$work/out" || fail "a given confirmation: $(cat "$work/out")"
    refused 3 desktop show asked
    on_terminal '' image import shown "$work/good.raw" >"$work/out" || fail "an import on a terminal: $(cat "$work/out")"
    grep -q '100% of 64M' "$work/out" || fail "no progress bar on a terminal: $(cat "$work/out")"
    gild --yes image delete shown@1 >/dev/null
    passed "on a terminal what destroys asks, and an import shows its progress"
fi

# ---- with a daemon -------------------------------------------------------------------------------
mode="daemon"
gild -o json image list >"$work/list.alone"
daemon_start "$work" --nbd tcp:127.0.0.1:0 --threads 2 --cache 64M
grep -q "serving nbd on unix:$work/nbd.sock\$" "$work/gildd.log" || fail "gildd does not tell its socket"
grep -qE 'with (io_uring|threads)' "$work/gildd.log" || fail "gildd does not tell its I/O backend"
[ "$(stat -c %a "$work/store/control.sock")" = 600 ] || fail "the control socket is open to others"
gild -o json image list | cmp - "$work/list.alone" || fail "the answer differs with a daemon"
is '.served and .reactors == 2' store info
everything
unchanged "an import that Ctrl-C breaks off" interrupted
rm -f "$work/long.raw"

second_daemon() {
    local status=0
    "$GILDD" --store "$work/store" --nbd "unix:$work/other.sock" 2>"$work/err" || status=$?
    [ "$status" = 4 ] || fail "a second daemon: exit code $status: $(cat "$work/err")"
    [ ! -e "$work/other.sock" ] || fail "a refused daemon left a socket"
}
unchanged "a second daemon" second_daemon
for words in '' '--store' '--nonsense' "--store $work/store --nbd carrier:pigeon" \
    "--store $work/store --threads 0" "--store $work/store --cache big" "--store $work/store extra" \
    "--store $work/store --io-backend none"; do
    status=0
    # shellcheck disable=SC2086
    env -u GILD_STORE "$GILDD" $words 2>"$work/err" || status=$?
    [ "$status" = 2 ] && [ "$(wc -l <"$work/err")" = 1 ] || fail "gildd $words: exit code $status: $(cat "$work/err")"
done
passed "gildd: wrong usage is exit code 2 and one sentence"

# ---- disk ----------------------------------------------------------------------------------------
strange='Ünïcode & <büro> "1", #2'
gild desktop create "$strange" --image img@1 >/dev/null
for disk in desktops/d1/os images/img@1 "desktops/$strange/os"; do
    address=$(gild disk uri "$disk")
    [ "$(nbdinfo --size "$address")" = "$size" ] || fail "nbdinfo does not take $address"
    [ "$(qemu-img info --output json "$address" | jq '."virtual-size"')" = "$size" ] || fail "qemu-img does not take $address"
    gild disk xml "$disk" >"$work/disk.xml"
    ! command -v xmllint >/dev/null || xmllint --noout "$work/disk.xml" || fail "not XML: $(cat "$work/disk.xml")"
    # The -blockdev word opens the disk in QEMU itself.
    for door in nbd fuse; do
        [ "$door" = nbd ] || [ -e /dev/fuse ] || continue
        blockdev=$(gild -o json disk qemu "$disk" --transport "$door" | jq -r '.arguments[1]')
        qemu-io -r --image-opts "$blockdev" -c 'read 0 4k' >"$work/qemu-io.log" 2>&1 && grep -q '^read 4096/4096' "$work/qemu-io.log" ||
            fail "QEMU does not take $blockdev: $(cat "$work/qemu-io.log")"
        # The line for a shell has the same words.
        eval "words=($(gild disk qemu "$disk" --transport "$door"))"
        [ "${#words[@]}" = 4 ] && [ "${words[1]}" = "$blockdev" ] || fail "a shell reads other words: ${words[*]}"
    done
done
is '.transport == "nbd" and .serial != null' disk xml desktops/d1/os
gild desktop delete --yes "$strange" >/dev/null
if [ -e /dev/fuse ]; then
    [ "$(gild disk uri images/img@1 --transport fuse)" = "file://$work/mnt/images/img@1.raw" ] || fail "disk uri over fuse"
    is ".file == \"$work/mnt/desktops/d1/os.raw\"" disk qemu desktops/d1/os --transport fuse
    cmp "$work/good.raw" "$(gild -o json disk uri images/img@1 --transport fuse | jq -r .file)" || fail "the file is not the image"
fi
passed "disk uri, qemu, xml: other programs take them, strange names too"

# ---- an open disk --------------------------------------------------------------------------------
exec 7> >(exec qemu-io -f raw "$(gild disk uri desktops/d1/os)" >"$work/door.log" 2>&1)
echo 'write -P 0x33 0 64k' >&7
door_wrote() { grep -qs 'wrote 65536' "$work/door.log"; }
wait_until 30 door_wrote || fail "qemu-io did not write: $(cat "$work/door.log")"
is '.open == "nbd" and .written_bytes == 65536' desktop show d1
refused 4 desktop delete --yes d1
refused 4 desktop delete --yes '*'
is 'length == 6' desktop list
exec 7>&-
closed() { [ "$(gild -o json desktop show d1 | jq -r .open)" = null ]; }
wait_until 30 closed || fail "d1 stays open after its client left"
passed "an open desktop is not deleted, nor is what was named with it"

# ---- the control socket by hand ------------------------------------------------------------------
if command -v curl >/dev/null; then
    rpc() { curl -s --max-time 20 --unix-socket "$work/store/control.sock" "$@"; }
    url=http://gild/api/v1/rpc
    rpc "$url" -d '{"noun":"pool","verb":"list"}' | tail -n 1 | jq -e '.answer[0].name == "p"' >/dev/null || fail "rpc: pool list"
    for body in '' '{' '[]' '{"noun":"pool"}' '{"noun":"pool","verb":"list","x":1}' '{"noun":"pool","verb":"burn"}' \
        '{"noun":"pool","verb":"list","args":{"x":1}}' '{"noun":"pool","verb":"show","args":{"name":7}}' \
        '{"noun":"pool","verb":"show","args":{}}' '{"noun":"desktop","verb":"show","args":{"name":"a\u0000b"}}' \
        '{"noun":"desktop","verb":"create","args":{"name":"z","image":"img","size":1000}}' \
        '{"noun":"desktop","verb":"create","args":{"name":"z","image":"img","count":1.5}}'; do
        rpc "$url" -d "$body" | tail -n 1 | jq -e '.answer.error.code == "usage"' >/dev/null ||
            fail "rpc '$body': $(rpc "$url" -d "$body")"
    done
    head -c $((2 << 20)) /dev/zero | tr '\0' ' ' >"$work/long.json"
    [ "$(rpc -o /dev/null -w '%{http_code}' "$url" --data-binary "@$work/long.json")" = 413 ] || fail "rpc: a body of 2 MiB is taken"
    [ "$(rpc -o /dev/null -w '%{http_code}' http://gild/ -d '{}')" = 404 ] || fail "rpc: another path is served"
    [ "$(rpc -o /dev/null -w '%{http_code}' "$url")" = 405 ] || fail "rpc: GET is served"
    passed "the control socket refuses what is no request"
fi

# ---- many at once --------------------------------------------------------------------------------
pids=()
for n in 1 2 3 4 5 6 7 8; do
    gild desktop create "m$n" --image img@1 --count 5 >/dev/null &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || fail "one of eight commands at once failed"; done
is 'length == 40' desktop list 'm*'
gild desktop delete --yes 'm*' >/dev/null
passed "eight commands at once"

# ---- a daemon that is silent, dies, comes back ---------------------------------------------------
kill -STOP "$daemon_pid"
refused 4 desktop list
kill -CONT "$daemon_pid"
passed "a daemon that holds the store and does not answer: exit code 4"
daemon_kill
[ -S "$work/store/control.sock" ] || fail "the killed daemon's socket is gone: the next line tests nothing"
is 'length == 6' desktop list
passed "a dead daemon's socket is no hindrance: the command opens the store itself"
if [ -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
    daemon_start "$work"
    umount "$work/mnt"
    mount_is_gone() { grep -q 'ended from outside' "$work/gildd.log"; }
    wait_until 20 mount_is_gone || fail "gildd did not notice that its mount was ended"
    [ "$(nbdinfo --size "$(gild disk uri desktops/d1/os)")" = "$size" ] || fail "NBD went with the mount"
    passed "a mount that is ended from outside: the other doors go on"
else
    daemon_start "$work"
fi
kill -HUP "$daemon_pid"
is '.served' store info
kill -TERM "$daemon_pid"
kill -TERM "$daemon_pid" 2>/dev/null || true
kill -INT "$daemon_pid" 2>/dev/null || true
daemon_stop || fail "gildd did not exit 0 on SIGTERM, SIGTERM and SIGINT"
[ ! -e "$work/store/control.sock" ] && [ ! -e "$work/nbd.sock" ] || fail "gildd left a socket"
! grep -q " $work/mnt " /proc/mounts || fail "gildd left its mount"
passed "SIGHUP does nothing; SIGTERM three times over: exit code 0, nothing left"

# A request that runs when the daemon is told to end is undone, and the client is told.
truncate -s 2G "$work/long.raw"
dd if=/dev/urandom of="$work/long.raw" bs=1M count=600 conv=notrunc status=none
daemon_start "$work" --io-backend threads
grep -q 'with threads' "$work/gildd.log" || fail "--io-backend threads is not taken"
state >"$work/state.before"
packs_kb=$(du -sk "$work/store/packs" | cut -f1)
"$GILD" image import long "$work/long.raw" >"$work/out" 2>"$work/err" &
import_pid=$!
began() { [ "$(du -sk "$work/store/packs" | cut -f1)" -gt "$packs_kb" ] || process_gone "$import_pid"; }
wait_until 60 began || fail "the import did not begin"
daemon_stop || fail "gildd did not exit 0 while an import ran"
status=0
wait "$import_pid" || status=$?
[ "$status" = 1 ] && [ "$(wc -l <"$work/err")" = 1 ] || fail "the import under a daemon that ends: exit code $status: $(cat "$work/err")"
as_before || fail "the import under a daemon that ended left something"
passed "SIGTERM while an import runs: undone, told, exit code 0"

# ---- a long path ---------------------------------------------------------------------------------
deep=$work/$(printf 'a-folder-with-a-long-name/%.0s' 1 2 3 4 5 6)
mkdir -p "$deep" && export GILD_STORE=$deep/store
gild store init >/dev/null
"$GILDD" --store "$GILD_STORE" --nbd "unix:$work/deep.sock" 2>"$work/deep.log" &
deep_pid=$!
on_exit 'kill -KILL "$deep_pid" 2>/dev/null || true'
deep_ready() { [ -S "$GILD_STORE/control.sock" ] && grep -q 'serving nbd' "$work/deep.log"; }
wait_until 30 deep_ready || fail "gildd on a long path: $(cat "$work/deep.log")"
is '.served' store info
stop_process "$deep_pid" 30 || fail "gildd on a long path did not exit 0"
[ ! -e "$GILD_STORE/control.sock" ] || fail "gildd on a long path left its socket"
is '.clean' store check
passed "a store whose path is too long for a socket's address"
