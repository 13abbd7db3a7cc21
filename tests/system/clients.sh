#!/bin/bash
# Other people's clients, unmodified, against a clone: qemu-img, qemu-io, nbdinfo, nbdcopy, fio over
# NBD; loop devices, mkfs, qemu with cache=none on the mount; and memory pressure behind a loop
# device on the mount.
. "$(dirname "$0")/lib.sh"

need qemu-img qemu-io nbdinfo nbdcopy fio jq xfs_io sha256sum
scratch_make

# 1 GiB with 48 MB that do not compress, 16 MB that do, and nothing else.
size=$((1 << 30))
truncate -s "$size" "$work/source.raw"
dd if=/dev/urandom of="$work/source.raw" bs=1M count=48 seek=16 conv=notrunc status=none
{ yes 'sixteen megabytes of one line' || :; } 2>/dev/null | dd of="$work/source.raw" bs=1M count=16 seek=500 \
    iflag=fullblock conv=notrunc status=none

gild store init >/dev/null
gild image import base "$work/source.raw" >/dev/null
gild desktop create c --count 6 --name-pattern c%d --image base@1 >/dev/null 2>&1 ||
    for n in 1 2 3 4 5 6; do gild desktop create "c$n" --image base@1 >/dev/null; done
daemon_start "$work"

# ---- NBD -----------------------------------------------------------------------------------------
image_uri=$(uri images/base@1)
clone_uri=$(uri desktops/c1/os)
[ "$(nbdinfo --size "$clone_uri")" = "$size" ] || fail "nbdinfo: wrong size"
nbdinfo --list --json "nbd+unix:///?socket=$work/nbd.sock" >"$work/list.json"
for name in images/base@1 desktops/c1/os desktops/c6/os; do
    jq -e --arg name "$name" '.exports[] | select(.["export-name"] == $name)' "$work/list.json" \
        >/dev/null || fail "nbdinfo --list does not show $name"
done
for can in flush fua multi-conn trim zero fast-zero cache df; do
    nbdinfo --can "$can" "$clone_uri" || fail "nbdinfo: the clone can not $can"
done
nbdinfo --is read-only "$image_uri" || fail "the image version is not read-only over NBD"
if nbdinfo --is read-only "$clone_uri"; then fail "the clone is read-only over NBD"; fi
data_bytes=$(nbdinfo --map --json "$image_uri" | jq '[.[] | select(.type == 0) | .length] | add')
[ "$data_bytes" -ge $((64 << 20)) ] && [ "$data_bytes" -le $((65 << 20)) ] ||
    fail "nbdinfo --map tells $data_bytes bytes of data where 64 MiB were imported"
passed "nbdinfo: size, list, abilities and map"

qemu-img compare -f raw -F raw "$work/source.raw" "$image_uri" >/dev/null || fail "qemu-img compare: image differs from its source"
qemu-img convert -f raw -O qcow2 "$clone_uri" "$work/out.qcow2"
qemu-img compare -f raw -F qcow2 "$work/source.raw" "$work/out.qcow2" >/dev/null || fail "qemu-img convert: the clone reads otherwise than its image"
mapped=$(qemu-img map -f raw --output json "$clone_uri" | jq '[.[] | select(.data) | .length] | add')
[ "$mapped" = "$data_bytes" ] || fail "qemu-img map tells $mapped bytes of data, nbdinfo $data_bytes"
passed "qemu-img: compare, convert, map"

qemu-io -f raw -t none -c 'write -P 0x5a 1M 64k' -c 'write -P 0x17 300M 4k' -c 'write -P 0x2b 500M 512' \
    -c 'write -z -u 20M 1M' -c 'write -z 30M 1M' -c 'discard 40M 1M' -c flush "$clone_uri" >"$work/qemu-io.log"
qemu-io -f raw -r -c 'read -P 0x5a 1M 64k' -c 'read -P 0x17 300M 4k' -c 'read -P 0x2b 500M 512' \
    -c 'read -P 0 20M 1M' -c 'read -P 0 30M 1M' -c 'read -P 0 40M 1M' -c 'read -P 0 0 1M' "$clone_uri" >>"$work/qemu-io.log"
! grep -qiE 'failed|error|verification' "$work/qemu-io.log" || fail "qemu-io: $(cat "$work/qemu-io.log")"
qemu-img compare -f raw -F raw "$work/source.raw" "$(uri desktops/c2/os)" >/dev/null || fail "a write to one clone shows in another"
passed "qemu-io: writes, zeroes and discards read back, in this clone alone"

nbdcopy --flush "$work/source.raw" "$(uri desktops/c2/os)"
nbdcopy "$(uri desktops/c2/os)" "$work/copy.raw"
cmp "$work/source.raw" "$work/copy.raw" || fail "nbdcopy: there and back is not the same"
nbdcopy "$clone_uri" "$(uri desktops/c2/os)"
nbdcopy "$(uri desktops/c2/os)" "$work/copy.raw"
nbdcopy "$clone_uri" - | cmp - "$work/copy.raw" || fail "nbdcopy: from clone to clone is not the same"
rm -f "$work/copy.raw"
passed "nbdcopy: both ways, and from clone to clone"

fio --name=verify --ioengine=nbd --uri="$(uri desktops/c3/os)" --rw=randwrite --bsrange=512-64k \
    --blockalign=512 --size=128M --io_size=96M --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0 \
    --output="$work/fio.log" || fail "fio: $(tail -n 20 "$work/fio.log")"
passed "fio: random writes of 512 bytes to 64 KiB at depth 16, verified"

# ---- the mount -----------------------------------------------------------------------------------
if [ ! -e /dev/fuse ] || [ "$(id -u)" != 0 ]; then
    echo "not tried: the mount (needs root and /dev/fuse)"
    daemon_stop || fail "gildd did not exit 0 on SIGTERM"
    exit 0
fi
mount_point=$work/mnt
cmp "$work/source.raw" "$mount_point/images/base@1.raw" || fail "the image reads otherwise on the mount"
[ "$(stat -c %s "$mount_point/desktops/c1/os.raw")" = "$size" ] || fail "wrong file size on the mount"
if (: >>"$mount_point/images/base@1.raw") 2>/dev/null; then fail "an image version opens for writing on the mount"; fi
nbdcopy "$clone_uri" "$work/copy.raw" && cmp "$work/copy.raw" "$mount_point/desktops/c1/os.raw" || fail "a clone reads otherwise on the mount than over NBD"
rm -f "$work/copy.raw"
passed "the mount shows the same bytes as NBD; images are read-only"

# One disk, two doors: the second is refused while the first writes.
exec 7> >(exec qemu-io -f raw "$(uri desktops/c4/os)" >"$work/door.log" 2>&1)
echo 'write -P 0x33 0 4k' >&7
wait_until 30 grep -q 'wrote 4096' "$work/door.log" || fail "qemu-io over NBD did not write: $(cat "$work/door.log")"
if (: >>"$mount_point/desktops/c4/os.raw") 2>/dev/null; then fail "a disk with an NBD writer opens for writing on the mount"; fi
exec 7>&-
opens_for_writing() { (: >>"$mount_point/desktops/c4/os.raw") 2>/dev/null; }
wait_until 30 opens_for_writing || fail "the disk does not open on the mount after its NBD writer left"
passed "a second door to a disk with a writer is refused until the writer is gone"

file=$mount_point/desktops/c4/os.raw
qemu-io -f raw -t none -i io_uring -c 'write -P 0x61 8M 1M' -c 'write -P 0x62 9M 512' -c flush \
    -c 'read -P 0x61 8M 1M' -c 'read -P 0x62 9M 512' "$file" >"$work/qemu-io.log" 2>&1 || true
[ "$(grep -cE '^(wrote|read) ' "$work/qemu-io.log")" = 4 ] && ! grep -qiE 'failed|error' "$work/qemu-io.log" ||
    fail "qemu-io with cache=none,aio=io_uring on the mount: $(cat "$work/qemu-io.log")"
qemu-img bench -f raw -t none -i native -w -c 4000 -d 16 -s 4096 -S 65536 "$file" >"$work/bench.log" ||
    fail "qemu-img bench: $(cat "$work/bench.log")"
passed "QEMU's cache=none with aio=io_uring and aio=native works on the mount"

file=$mount_point/desktops/c5/os.raw
dd if=/dev/urandom of="$file" bs=1M seek=100 count=8 conv=notrunc,fsync status=none
fallocate --punch-hole --offset 101M --length 2M "$file"
fallocate --zero-range --offset 104M --length 1M "$file"
hole=$(xfs_io -r -c 'seek -h 100M' "$file" | awk '/HOLE/ { print $2 }')
data=$(xfs_io -r -c 'seek -d 101M' "$file" | awk '/DATA/ { print $2 }')
[ "$hole" = $((101 << 20)) ] || fail "SEEK_HOLE says $hole where a hole was punched at 101 MiB"
[ "$data" = $((103 << 20)) ] || fail "SEEK_DATA says $data where data goes on at 103 MiB"
dd if="$file" bs=1M skip=104 count=1 status=none | cmp -n $((1 << 20)) - /dev/zero || fail "a zeroed range does not read as zeroes"
[ "$(stat -f -c %b "$mount_point")" -gt 0 ] || fail "statfs tells no size"
passed "fallocate (punch, zero), SEEK_HOLE, SEEK_DATA and statfs on the mount"

loop=
detach() {
    mountpoint -q "$work/fs" && umount "$work/fs"
    [ -z "$loop" ] || losetup -d "$loop"
    loop=
}
if [ ! -e /dev/loop-control ] || ! loop=$(losetup --find --show "$mount_point/desktops/c5/os.raw" 2>"$work/losetup.log"); then
    echo "not tried: loop devices (this machine gives none)"
else
    on_exit detach
    mkdir "$work/fs"
    for type in ext4 xfs; do
        case $type in
        ext4) mkfs.ext4 -q -F "$loop" ;;
        xfs) mkfs.xfs -q -f "$loop" ;;
        esac
        mount "$loop" "$work/fs"
        cp /bin/bash "$work/fs/" && sync -f "$work/fs"
        umount "$work/fs" && mount "$loop" "$work/fs"
        cmp /bin/bash "$work/fs/bash" || fail "$type on a loop device on the mount lost a file"
        umount "$work/fs"
        case $type in
        ext4) e2fsck -fn "$loop" >"$work/fsck.log" 2>&1 || fail "e2fsck: $(cat "$work/fsck.log")" ;;
        xfs) xfs_repair -n "$loop" >"$work/fsck.log" 2>&1 || fail "xfs_repair: $(cat "$work/fsck.log")" ;;
        esac
        passed "losetup, mkfs.$type, a file there and back, a clean file-system check"
    done

    # A writer in a cgroup of 64 MB dirties 256 MB behind the loop device: it must end.
    if [ -d /sys/fs/cgroup/memory ]; then
        group=/sys/fs/cgroup/memory/gild-test-$$ limit=memory.limit_in_bytes
    else
        group=/sys/fs/cgroup/gild-test-$$ limit=memory.max
    fi
    if mkdir "$group" 2>/dev/null && echo $((64 << 20)) 2>/dev/null >"$group/$limit"; then
        on_exit "rmdir '$group' 2>/dev/null"
        mkfs.ext4 -q -F "$loop" && mount "$loop" "$work/fs"
        timeout --signal=KILL 240 bash -c 'echo $$ >"$1/cgroup.procs" &&
            exec dd if=/dev/urandom of="$2" bs=1M count=256 conv=fsync status=none' - "$group" "$work/fs/dirty" ||
            fail "a writer that dirties 4x of its cgroup's memory behind a loop device did not end"
        sum=$(sha256sum <"$work/fs/dirty")
        umount "$work/fs" && mount "$loop" "$work/fs"
        [ "$(sha256sum <"$work/fs/dirty")" = "$sum" ] || fail "what was written under memory pressure reads otherwise"
        umount "$work/fs"
        passed "dirtying 4x of a memory-limited cgroup behind a loop device ends, and reads back"
    else
        rmdir "$group" 2>/dev/null || true
        echo "not tried: memory pressure (no memory cgroup can be made here)"
    fi
    detach
fi

# ---- the end -------------------------------------------------------------------------------------
nbdcopy "$image_uri" - | cmp - "$work/source.raw" || fail "the image changed"
daemon_stop || fail "gildd did not exit 0 on SIGTERM"
gild store check >"$work/check.log" || fail "the store does not check clean: $(cat "$work/check.log")"
passed "the image is unchanged; the stopped store checks clean"
