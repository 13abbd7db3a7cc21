#!/bin/bash
# Limits from the outside: a quota pauses a real guest in the middle of a file, `gild limit set` makes
# room, tools/resume-guests resumes it, and the file is whole.
. "$(dirname "$0")/lib.sh"

need qemu-io jq
scratch_make
truncate -s 64M "$work/empty.raw"
gild store init --size 4G >/dev/null
gild image import win "$work/empty.raw" >/dev/null
gild desktop create d1 --image win --size 1G >/dev/null
gild pool create p --image win --count 2 >/dev/null

# ---- without a guest -----------------------------------------------------------------------------
io() { # DESKTOP COMMAND...
    local arguments=() command disk=desktops/$1/os
    shift
    for command in "$@"; do arguments+=(-c "$command"); done
    timeout 60 qemu-io -t none -f raw "${arguments[@]}" "$(uri "$disk")" 2>&1 || true
}
refused() { grep -q 'No space left on device' <<<"$1"; }
has_event() { gild -o json events | jq -e --arg e "$1" --arg o "$2" 'any(.event == $e and .object == $o)' >/dev/null; }

daemon_start "$work" --threads 2 --cache 64M
gild limit set desktops/d1/os quota=8M >/dev/null
said=$(io d1 'write -P 1 0 8M')
! refused "$said" || fail "a write within the quota is refused: $said"
said=$(io d1 'write -P 2 8M 4k')
refused "$said" || fail "a write over the quota is taken: $said"
said=$(io d1 'write -P 3 0 1M' 'discard 1M 1M' 'write -P 4 8M 1M' 'read -P 3 0 1M' 'read -P 4 8M 1M')
! refused "$said" && ! grep -q failed <<<"$said" || fail "overwrite, trim and write: $said"
wait_until 10 has_event refused desktops/d1/os || fail "no event says that d1 was refused"
wait_until 10 has_event resumed desktops/d1/os || fail "no event says that d1 goes on"
passed "a disk's quota holds; overwrites and trims go on; both are events"

gild limit set p quota=12M >/dev/null
! refused "$(io p0001 'write 0 8M')" || fail "a pool refuses within its quota"
refused "$(io p0002 'write 0 8M')" || fail "a pool takes more than its quota"
gild limit set @p quota=none >/dev/null
! refused "$(io p0002 'write 0 8M')" || fail "a pool without a quota refuses"
passed "a pool's quota is shared by its desktops, and is lifted without a reconnect"

gild limit set store overcommit=none >/dev/null
status=0
gild desktop create big --image win --size 8G 2>"$work/said" || status=$?
[ "$status" = 5 ] || fail "over-commit ends with $status: $(cat "$work/said")"
! gild desktop show big >/dev/null 2>&1 || fail "the refused desktop was made"
gild limit set store overcommit=conservative >/dev/null
gild desktop create big --image win --size 8G >/dev/null
passed "over-commit is refused with exit status 5, and nothing is made"

daemon_stop || fail "gildd did not end in order"
gild -o json limit show | jq -e 'any(.target == "desktops/d1/os" and .limit_bytes == 8388608)' >/dev/null ||
    fail "the quota is not there after the daemon's end"
gild store check >/dev/null || fail "the store does not check clean"

# ---- a real guest --------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || skip "making a guest image needs root; the rest passed"
need qemu-system-x86_64 mmdebstrap e2fsck python3
image=$("$top/tools/make-guest-image")
gild limit set store overcommit=unbounded size=none >/dev/null
gild image import debian "$image/disk.raw" >/dev/null
gild desktop create guest --image debian >/dev/null
daemon_start "$work"
gild limit set desktops/guest/os quota=96M >/dev/null
cat >"$work/fill" <<'WORK'
echo 'fill begins'
dd if=/dev/urandom of=/root/filled bs=1M count=160 conv=fsync status=none && sync /root &&
    echo "filled $(stat -c %s /root/filled) end"
sha256sum /root/filled | cut -c1-64 >/root/sum && sync /root/sum
echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum /root/filled | cut -c1-64)" = "$(cat /root/sum)" ] && echo 'reads as written end'
systemctl poweroff
WORK
guest_start guest "$image" "$(gild disk qemu desktops/guest/os --transport nbd) -qmp unix:$work/qmp,server=on,wait=off" \
    "$work/fill" "$work"
wait_until 240 has_event refused desktops/guest/os || fail "the guest was never refused: $(guest_tail guest)"
! grep -aq 'filled [0-9]* end' "${guest_console[guest]}" || fail "the guest was not paused"
passed "a real guest reaches its disk's quota while it writes"
GILD=$GILD "$top/tools/resume-guests" --store "$work/store" --qmp "$work/qmp" >"$work/resumed" 2>&1 &
loop=$!
gild limit set desktops/guest/os quota=none >/dev/null
guest_wait guest 240 'reads as written end'
kill "$loop" 2>/dev/null || true
guest_end guest 120
grep -q resumed: "$work/resumed" || fail "the loop resumed nothing: $(cat "$work/resumed")"
grep -aq 'filled 167772160 end' "${guest_console[guest]}" || fail "the file is not whole"
! grep -aqiE 'I/O error|Buffer I/O' "${guest_console[guest]}" || fail "the guest saw an I/O error"
passed "room was made, the loop resumed it, and its file of 160 MiB is whole"
daemon_stop || fail "gildd did not end in order"
gild store check >/dev/null || fail "the store does not check clean"
