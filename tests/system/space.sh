#!/bin/bash
# A full file system under a real daemon, on ext4, xfs and btrfs (D7): others take the room, guests
# write until they are refused. What was answered stays, reads, flushes, trims and an orderly end go
# on, SIGKILL loses nothing, and when there is room again writes go on.
. "$(dirname "$0")/lib.sh"

need qemu-io qemu-img jq losetup mkfs.ext4 openssl
[ "$(id -u)" = 0 ] || skip "only root may mount a file system"
scratch_make
on_exit space_clean_up
here=$work fs_mounted= ballasts=0

space_clean_up() {
    [ -z "$fs_mounted" ] || umount -l "$fs_mounted" 2>/dev/null || true
}

# io_on DESKTOP COMMAND..., io COMMAND...: qemu-io's commands on a guest's disk, one after the other; what it
# says. The status is that of the last that failed.
io_on() {
    local arguments=() command disk=desktops/$1/os
    shift
    for command in "$@"; do
        arguments+=(-c "$command")
    done
    timeout 300 qemu-io -t none -f raw "${arguments[@]}" "$(uri "$disk")" 2>&1
}

io() {
    io_on d1 "$@"
}

space_is() {
    [ "$(gild -o json store info | jq -r .space)" = "$1" ]
}

# noise KEY FIRST END: what these MiB hold. No two blocks of it are alike, and none can be compressed, or the
# cleaner would make room for it.
noise() {
    head -c "$((($3 - $2) << 20))" /dev/zero |
        openssl enc -aes-128-ctr -nosalt -K "$(printf '%032x' "$1")" -iv "$(printf '%032x' $(($2 << 16)))"
}

# fill FIRST KEY: writes MiB after MiB of noise until one is refused. $filled: the first that was not
# written; all before it were answered.
fill() {
    local at=$1 last=4095 commands=() said count
    while [ "$at" -lt "$last" ]; do
        commands=()
        noise "$2" "$at" $((at + 64)) | split -b 1M -d -a 2 - "$here/noise."
        for ((i = 0; i < 64; i++)); do
            commands+=("write -s $here/noise.$(printf %02d "$i") $((at + i))M 1M")
        done
        said=$(io "${commands[@]}") || true
        count=$(awk '/^wrote 1048576\/1048576/ { n++ } /failed/ { exit } END { print n + 0 }' <<<"$said")
        at=$((at + count))
        [ "$count" = 64 ] || break
    done
    filled=$at
    [ "$filled" -lt "$last" ] || fail "$fs: $filled MiB were written: $said"
    grep -q 'No space left on device' <<<"$said" || fail "$fs: not ENOSPC: $said"
}

# holds FIRST END KEY: these MiB are still that noise. (Of the copy, count is where it ends.)
holds() {
    local said
    said=$(timeout 300 qemu-img dd -f raw -O raw bs=1M "skip=$1" "count=$2" "if=$(uri desktops/d1/os)" \
        "of=$here/back" 2>&1) || fail "$fs: a read fails: $said"
    cmp -s "$here/back" <(noise "$3" "$1" "$2") || fail "$fs: MiB $1 to $2 are not what was written"
    rm "$here/back"
}

# is_zero FIRST END
is_zero() {
    local said
    said=$(io "read -P 0 ${1}M $(($2 - $1))M") || fail "$fs: a read fails: $said"
    ! grep -q 'verification failed' <<<"$said" || fail "$fs: MiB $1 to $2 are not zeroes"
}

# free_kib: what others could still take.
free_kib() {
    df --output=avail -k "$work/fs" | tail -n 1
}

# ballast KIB_LEFT: others take what there is, but for so much; file systems keep some for themselves.
ballast() {
    local left=$1 take had
    for ((take = $(free_kib) - left; take >= 4; take /= 2)); do
        while [ $(($(free_kib) - left)) -ge "$take" ]; do
            had=$(free_kib)
            fallocate -l "${take}K" "$work/fs/ballast.$((++ballasts))" 2>/dev/null || break
            [ "$(free_kib)" -lt "$had" ] || break
        done
    done
}

# one_write MIB: 0 once a write is taken.
one_write() {
    io "write -P 99 ${1}M 1M" | grep -q '^wrote 1048576/1048576'
}

# goes_on WHAT MIB: writes are taken again. Within a second is promised, which test_sim sees in virtual
# time; a machine with other work may be slower.
goes_on() {
    local began
    began=$(now_ms)
    wait_until 10 one_write "$2" || fail "$fs: writes do not go on after $1"
    passed "$fs: writes go on $(($(now_ms) - began)) ms after $1"
}

on_file_system() {
    fs=$1
    command -v "mkfs.$fs" >/dev/null || {
        echo "not tried: mkfs.$fs is not installed"
        return 0
    }
    work=$here/$fs
    mkdir -p "$work/fs"
    truncate -s 2G "$work/image"
    "mkfs.$fs" -q "$work/image" >/dev/null
    mount -o loop "$work/image" "$work/fs" || skip "no loop device can be mounted"
    fs_mounted=$work/fs
    mkdir "$work/fs/store"
    ln -s fs/store "$work/store"
    gild store init >/dev/null
    truncate -s 64M "$work/empty.raw"
    gild image import win "$work/empty.raw" >/dev/null
    gild desktop create d1 --image win --size 4G >/dev/null
    gild desktop create d2 --image win --size 4G >/dev/null
    daemon_start "$work" --threads 2 --cache 64M
    space_is plenty || fail "$fs: a new store is $(gild -o json store info | jq -r .space)"

    # What is to be deleted later has segments of its own.
    noise 7 0 192 >"$here/noise.d2"
    io_on d2 "write -s $here/noise.d2 0 192M" flush >/dev/null || fail "$fs: the first write fails"

    # Others leave 768 MiB; guests take what there is of that.
    ballast $((768 << 10))
    fill 0 1
    local first=$filled said
    [ "$first" -ge 128 ] || fail "$fs: only $first MiB were taken"
    wait_until 10 space_is full || fail "$fs: ENOSPC, but the store is not full"
    io flush >/dev/null || fail "$fs: a flush fails on a full store"
    holds 0 "$first" 1
    said=$(io "discard 0 16M" flush) || fail "$fs: a trim fails on a full store: $said $(tail -n 5 "$work/gildd.log")"
    holds 16 "$first" 1
    is_zero 0 16
    gild store check >/dev/null || fail "$fs: a full store is not whole"
    grep -q 'is full: guests' "$work/gildd.log" || fail "$fs: the log does not say that the store is full"
    # btrfs takes room in chunks, and what it says is left may fall past the throttle at once.
    local warned='slowed down'
    [ "$fs" != btrfs ] || warned='slowed down\|runs low'
    grep -q "$warned" "$work/gildd.log" || fail "$fs: writes were refused without a warning"
    passed "$fs: $first MiB were taken, then ENOSPC; reads, flushes, trims and a check go on"

    # A crash, and an orderly end, of a full store.
    daemon_kill
    daemon_start "$work" --threads 2 --cache 64M
    holds 16 "$first" 1
    is_zero 0 16
    daemon_stop || fail "$fs: a full store is not closed in order"
    daemon_start "$work" --threads 2 --cache 64M
    holds 16 "$first" 1
    passed "$fs: SIGKILL and SIGTERM on a full store lost nothing"

    # Others take the margin too; then they leave.
    ballast "$([ "$fs" = xfs ] && echo 2048 || echo 0)" # there a socket of the daemon needs inodes
    holds 16 "$first" 1
    io flush >/dev/null || fail "$fs: a flush fails where nothing is left"
    daemon_kill
    daemon_start "$work" --threads 2 --cache 64M || fail "$fs: the store does not open where nothing is left"
    holds 16 "$first" 1
    fill "$first" 1 # what was ready
    holds 16 "$filled" 1
    first=$filled
    passed "$fs: with nothing left it opens, reads, and refuses writes"
    rm "$work/fs"/ballast.*
    sync -f "$work/fs" # btrfs gives the room with its next commit only
    goes_on "others made room" "$first"
    holds 16 "$first" 1

    # Full by itself: a deletion makes room.
    fill $((first + 1)) 2
    local second=$filled said
    io flush >/dev/null || fail "$fs: a flush fails"
    gild desktop delete d2 --yes >/dev/null || fail "$fs: nothing can be deleted on a full store"
    goes_on "a desktop was deleted" "$second"
    fill $((second + 1)) 3
    io flush >/dev/null || fail "$fs: a flush fails"
    said=$(io "discard 16M $((first - 16))M" flush) || fail "$fs: a large trim fails: $said $(tail -n 5 "$work/gildd.log")"
    goes_on "a trim of $((first - 16)) MiB" "$filled"
    holds "$((first + 1))" "$second" 2
    daemon_stop || fail "$fs: gildd did not exit 0"
    gild store check >/dev/null || fail "$fs: the store is not whole"
    umount "$work/fs"
    fs_mounted=
    rm -r "$work"
    work=$here
}

for one in ext4 xfs btrfs; do
    on_file_system "$one"
done
