# Starting and stopping a daemon and QEMU guests, for quickstart and the system tests.
# Sourced after lib-common.sh. The caller sets:
#   GILD, GILDD   the two programs
# shellcheck shell=bash

# ---- the daemon --------------------------------------------------------------------------------
# daemon_start FOLDER [OPTION...]: gildd on FOLDER/store, with its NBD socket at FOLDER/nbd.sock
# and, where /dev/fuse exists, its mount at FOLDER/mnt. Ready when it returns. Sets daemon_pid.
daemon_start() {
    local folder=$1
    shift
    daemon_folder=$folder
    daemon_command=("$GILDD" --store "$folder/store" --nbd "unix:$folder/nbd.sock")
    if [ -e /dev/fuse ]; then
        # A mount whose daemon was killed answers ENOTCONN; the daemon clears it itself.
        [ -d "$folder/mnt" ] || mkdir -p "$folder/mnt" 2>/dev/null || true
        daemon_command+=(--mount "$folder/mnt")
    fi
    daemon_command+=("$@")
    "${daemon_command[@]}" >>"$folder/gildd.log" 2>&1 </dev/null 8>&- 9>&- &
    daemon_pid=$!
    echo "$daemon_pid" >"$folder/gildd.pid"
    if ! wait_until 60 daemon_ready_or_gone; then
        echo "gildd was not ready after 60 s; its log ends:" >&2
        tail -n 20 "$folder/gildd.log" >&2
        return 1
    fi
    if process_gone "$daemon_pid"; then
        echo "gildd ended while it started; its log ends:" >&2
        tail -n 20 "$folder/gildd.log" >&2
        return 1
    fi
}

daemon_ready_or_gone() {
    process_gone "$daemon_pid" && return 0
    [ -S "$daemon_folder/nbd.sock" ] && [ -S "$daemon_folder/store/control.sock" ] || return 1
    [ ! -e /dev/fuse ] || [ -d "$daemon_folder/mnt/desktops" ] || return 1
    "$GILD" --store "$daemon_folder/store" -o json store info >/dev/null 2>&1
}

# daemon_is_running FOLDER: whether a gildd that daemon_start started there still lives.
daemon_is_running() {
    local pid
    pid=$(cat "$1/gildd.pid" 2>/dev/null) || return 1
    [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == */gildd* ]]
}

# daemon_stop: SIGTERM; the status that gildd exits with (0 when all is flushed and unmounted).
daemon_stop() {
    local pid=${daemon_pid:-}
    daemon_pid=
    [ -n "$pid" ] || return 0
    stop_process "$pid" 60
}

daemon_kill() {
    kill -KILL "$daemon_pid"
    wait "$daemon_pid" 2>/dev/null || true
    daemon_pid=
}

# For on_exit: whatever state a failure left behind.
daemon_clean_up() {
    daemon_stop >/dev/null 2>&1
    if [ -n "${daemon_folder:-}" ] && grep -q " $daemon_folder/mnt " /proc/mounts; then
        umount -l "$daemon_folder/mnt" 2>/dev/null
    fi
    return 0
}

# ---- guests ------------------------------------------------------------------------------------
# The kernel's command line of the image that tools/make-guest-image makes.
guest_append="console=ttyS0 root=/dev/vda rw quiet mitigations=off"

# guest_command IMAGE-FOLDER DEVICE-WORDS: the QEMU line as one string, for people and for eval.
guest_command() {
    local accel=tcg
    # KVM where it works; many machines list it and refuse it.
    [ "${GILD_KVM:-no}" = yes ] && accel=kvm:tcg
    printf '%s' "qemu-system-x86_64 -machine q35,accel=$accel -cpu max -m 768 -nodefaults" \
        " -display none -no-reboot -kernel $1/vmlinuz -initrd $1/initrd.img" \
        " -append '$guest_append' $2"
}

# guest_start NAME IMAGE-FOLDER DEVICE-WORDS SCRIPT FOLDER: boots a guest in the background that
# runs SCRIPT once multi-user is reached. Its console is FOLDER/NAME.console (emptied first). Sets
# guest_pid[NAME] and guest_console[NAME].
declare -A guest_pid=() guest_console=()
guest_start() {
    local name=$1 console=$5/$1.console
    : >"$console"
    guest_console[$name]=$console
    eval "$(guest_command "$2" "$3") -serial 'file:$console' -fw_cfg 'name=opt/gild/run,file=$4'" \
        '>"$5/$1.qemu.log" 2>&1 </dev/null 8>&- 9>&- &'
    guest_pid[$name]=$!
}

guest_says_or_gone() {
    grep -aqE -- "$2" "${guest_console[$1]}" || process_gone "${guest_pid[$1]}"
}

# guest_wait NAME SECONDS PATTERN: until the console shows a line that matches.
guest_wait() {
    if ! wait_until "$2" guest_says_or_gone "$1" "$3" ||
        ! grep -aqE -- "$3" "${guest_console[$1]}"; then
        echo "guest $1 did not say '$3' within $2 s; its console ends:" >&2
        guest_tail "$1" >&2
        return 1
    fi
}

# guest_end NAME SECONDS: until the guest has powered itself off and QEMU has ended with status 0.
guest_end() {
    local pid=${guest_pid[$1]} status=0
    if ! wait_until "$2" process_gone "$pid"; then
        echo "guest $1 did not power off within $2 s; its console ends:" >&2
        guest_tail "$1" >&2
        return 1
    fi
    wait "$pid" || status=$?
    unset "guest_pid[$1]"
    if [ "$status" != 0 ]; then
        echo "QEMU of guest $1 ended with status $status:" >&2
        tail -n 20 "${guest_console[$1]%.console}.qemu.log" >&2
        return 1
    fi
}

guest_kill() {
    kill -KILL "${guest_pid[$1]}" 2>/dev/null || true
    wait "${guest_pid[$1]}" 2>/dev/null || true
    unset "guest_pid[$1]"
}

# The console's end without the terminal's control sequences.
guest_tail() {
    tail -n 25 "${guest_console[$1]}" | sed -e 's/\x1b\[[0-9;?]*[A-Za-z]//g' -e 's/\r//g' \
        -e 's/\x1bc//g' -e 's/^/  | /'
    tail -n 5 "${guest_console[$1]%.console}.qemu.log" | sed 's/^/  qemu | /'
}

guests_clean_up() {
    local name
    for name in "${!guest_pid[@]}"; do
        guest_kill "$name"
    done
    return 0
}
