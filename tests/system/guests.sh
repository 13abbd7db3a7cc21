#!/bin/bash
# The main job on a real image with a real hypervisor: three clones of one Debian image, one guest
# over NBD and one through the FUSE mount. What the guests synced is there after a power-off and
# after the daemon was killed; the third clone and the image know nothing of it.
. "$(dirname "$0")/lib.sh"

[ "$(id -u)" = 0 ] || skip "making a guest image and mounting need root"
[ -e /dev/fuse ] || skip "this machine has no /dev/fuse"
need qemu-system-x86_64 mmdebstrap e2fsck debugfs nbdcopy cmp jq

image=$("$top/tools/make-guest-image")
scratch_make
clones="desk1 desk2 desk3"
nbd_clone=desk1 fuse_clone=desk2 idle_clone=desk3

# ---- the guests' work: each line "synced FILE HASH end" is printed after the file's fsync ---------
cat >"$work/guest-lib" <<'WORK'
make_file() {
    dd if=/dev/urandom of="$1" bs=16k count="$2" conv=fsync status=none && sync "${1%/*}" &&
        echo "synced $1 $(sha256sum "$1" | cut -c1-64) end"
}
tell_files() {
    for file in "$1"*; do
        [ -f "$file" ] && echo "found $file $(sha256sum "$file" | cut -c1-64) end"
    done
    echo "told $1"
}
WORK
cat "$work/guest-lib" - >"$work/write-files" <<'WORK'
mkdir -p /root/kept && sync
for n in 1 2 3 4 5 6 7 8 9 10; do make_file /root/kept/f$n $n; done
systemctl poweroff
WORK
cat "$work/guest-lib" - >"$work/write-until-killed" <<'WORK'
tell_files /root/kept/f
mkdir -p /root/killed && sync
n=0
while [ ! -e /root/killed/k120 ]; do n=$((n + 1)); make_file /root/killed/k$n 5; done
echo 'wrote all'
systemctl poweroff
WORK
cat "$work/guest-lib" - >"$work/tell" <<'WORK'
tell_files /root/kept/f
tell_files /root/killed/k
systemctl poweroff
WORK

# lines WORD GUEST PREFIX: "FILE HASH" of the complete lines that begin with the word.
lines() {
    tr -d '\r' <"${guest_console[$2]}" | grep -aoE "$1 $3[0-9]+ [0-9a-f]{64} end" |
        awk '{ print $2, $3 }' | sort
}

# Every line of the first file must be in the second.
all_in() {
    local missing
    missing=$(comm -23 "$1" "$2")
    [ -z "$missing" ] || fail "$3: $(echo "$missing" | wc -l) of $(wc -l <"$1") files are absent or differ: $(echo "$missing" | head -n 3)"
}

boot() { # GUEST SCRIPT
    local device
    case $1 in
    "$nbd_clone") device=$(gild disk qemu "desktops/$1/os" --transport nbd) ;;
    *) device=$(gild disk qemu "desktops/$1/os" --transport fuse) ;;
    esac
    guest_start "$1" "$image" "$device" "$work/$2" "$work"
}

image_hash() {
    gild -o json image show debian@1 | jq -re '.. | .content_hash? // empty' | head -n 1
}

image_is_its_source() {
    nbdcopy "$(uri images/debian@1)" - | cmp - "$image/disk.raw"
}

# ---- import and clone ----------------------------------------------------------------------------
gild store init >/dev/null
gild image import debian "$image/disk.raw" >/dev/null
for clone in $clones; do
    gild desktop create "$clone" --image debian@1 >/dev/null
done
daemon_start "$work"
image_is_its_source || fail "the imported image reads otherwise than its source"
hash_before=$(image_hash)
[ -n "$hash_before" ] || fail "gild image show tells no content hash"
passed "a real Debian image is imported; every byte reads as in its source"

# ---- two guests write, sync and power off --------------------------------------------------------
boot "$nbd_clone" write-files
boot "$fuse_clone" write-files
for clone in $nbd_clone $fuse_clone; do
    guest_wait "$clone" 400 'gild-run: multi-user reached'
done
passed "one guest over NBD and one through the mount reach multi-user"
for clone in $nbd_clone $fuse_clone; do
    guest_end "$clone" 400
    lines synced "$clone" /root/kept/f >"$work/$clone.kept"
    [ "$(wc -l <"$work/$clone.kept")" = 10 ] || fail "$clone did not sync its ten files"
done
passed "both wrote and synced ten files and powered off"

# ---- boot again, find the files, and be killed in the middle of writing --------------------------
boot "$nbd_clone" write-until-killed
boot "$fuse_clone" write-until-killed
for clone in $nbd_clone $fuse_clone; do
    guest_wait "$clone" 400 'told /root/kept/f'
    lines found "$clone" /root/kept/f >"$work/$clone.found"
    cmp -s "$work/$clone.kept" "$work/$clone.found" ||
        fail "$clone does not find after its second boot what it synced in its first"
done
passed "both boot again and find their files"

for clone in $nbd_clone $fuse_clone; do
    guest_wait "$clone" 200 'synced /root/killed/k15 [0-9a-f]* end'
    ! grep -aq 'wrote all' "${guest_console[$clone]}" || fail "$clone had ended before the daemon was killed"
done
daemon_kill
# The mount's guest lost its disk; the NBD guest's QEMU waits and connects again.
guest_kill "$fuse_clone"
lines synced "$fuse_clone" /root/killed/k >"$work/$fuse_clone.killed"
lines synced "$nbd_clone" /root/killed/k >"$work/$nbd_clone.at-kill"
daemon_start "$work"
passed "the daemon was killed while both wrote; the same command starts it again"
gild store check >"$work/check.log" || fail "the store is not consistent after the kill: $(cat "$work/check.log")"
passed "the restarted store checks clean"

guest_wait "$nbd_clone" 400 'wrote all'
guest_end "$nbd_clone" 200
lines synced "$nbd_clone" /root/killed/k >"$work/$nbd_clone.killed"
[ "$(wc -l <"$work/$nbd_clone.killed")" -gt "$(wc -l <"$work/$nbd_clone.at-kill")" ] ||
    fail "the NBD guest wrote nothing after the daemon came back"
passed "the NBD guest went on writing where it was ($(wc -l <"$work/$nbd_clone.at-kill") files before, $(wc -l <"$work/$nbd_clone.killed") in all)"

boot "$nbd_clone" tell
boot "$fuse_clone" tell
for clone in $nbd_clone $fuse_clone; do
    guest_end "$clone" 600
    lines found "$clone" /root/killed/k >"$work/$clone.found"
    all_in "$work/$clone.killed" "$work/$clone.found" "$clone after the kill"
    lines found "$clone" /root/kept/f >"$work/$clone.found"
    cmp -s "$work/$clone.kept" "$work/$clone.found" || fail "$clone lost files of its first boot"
done
passed "every file whose fsync a guest saw completed is there ($(cat "$work"/*.killed | wc -l) files)"

# ---- what nobody wrote is as it was --------------------------------------------------------------
if debugfs -R 'ls -p /root' "$work/mnt/desktops/$idle_clone/os.raw" 2>/dev/null | grep -E '/(kept|killed)/'; then
    fail "the third clone has files of the others"
fi
debugfs -R 'ls -p /root' "$work/mnt/desktops/$nbd_clone/os.raw" 2>/dev/null | grep -q '/killed/' ||
    fail "the first clone's files are not seen on the mount"
for clone in $clones; do
    e2fsck -fn "$work/mnt/desktops/$clone/os.raw" >"$work/e2fsck.log" 2>&1 ||
        fail "e2fsck of $clone: $(cat "$work/e2fsck.log")"
done
passed "the third clone has none of the files; e2fsck -fn is clean on all three"
[ "$(image_hash)" = "$hash_before" ] || fail "the image's content hash changed"
image_is_its_source || fail "the image's bytes changed"
passed "the image's content hash and bytes are unchanged"

daemon_stop || fail "gildd did not exit 0 on SIGTERM"
! grep -q " $work/mnt " /proc/mounts || fail "gildd left its mount behind"
gild store check >"$work/check.log" || fail "the stopped store does not check clean: $(cat "$work/check.log")"
passed "SIGTERM: flushed, unmounted, exit status 0; the stopped store checks clean"
