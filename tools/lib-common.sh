# What the scripts of this folder share. Sourced by bash, never run.
# shellcheck shell=bash

# The top of the tree, whatever folder the caller stands in.
gild_top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
gild_exit_actions=()

die() {
    echo "$*" >&2
    exit 1
}

# Progress for people: stderr, so that stdout stays for results.
say() {
    [ "${GILD_QUIET:-no}" = yes ] || echo "$*" >&2
}

now_ms() {
    date +%s%3N
}

# since START_MS: the time that has passed, as "12.3 s" or "3 min 20 s".
since() {
    local ms=$(($(now_ms) - $1))
    if [ "$ms" -lt 100000 ]; then
        printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
    else
        printf '%d min %02d s' $((ms / 60000)) $((ms / 1000 % 60))
    fi
}

# Where things that are slow to make are kept from one run to the next.
gild_cache() {
    local cache=${GILD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/gild}
    mkdir -p "$cache"
    echo "$cache"
}

# on_exit COMMAND: runs at the end however it comes, Ctrl-C included; last added runs first.
on_exit() {
    if [ ${#gild_exit_actions[@]} = 0 ]; then
        trap gild_run_exit_actions EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        trap 'exit 129' HUP
    fi
    gild_exit_actions+=("$1")
}

gild_run_exit_actions() {
    local status=$? index
    trap - EXIT ERR
    trap '' INT TERM HUP
    set +e
    for ((index = ${#gild_exit_actions[@]} - 1; index >= 0; index--)); do
        eval "${gild_exit_actions[index]}"
    done
    exit "$status"
}

# quietly LOG COMMAND...: the output goes to LOG; shown (its end) only when the command fails.
quietly() {
    local log=$1 status=0
    shift
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" != 0 ]; then
        echo "failed with status $status: $*" >&2
        tail -n 40 "$log" | sed 's/^/  | /' >&2
    fi
    return "$status"
}

# wait_until SECONDS COMMAND...: polls until the command succeeds; 1 when the time is over.
wait_until() {
    local deadline=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        [ "$(now_ms)" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# stop_process PID SECONDS: SIGTERM, and after SECONDS SIGKILL. The process's own exit status when
# it is a child of this shell.
stop_process() {
    local pid=$1 seconds=$2
    kill -TERM "$pid" 2>/dev/null || return 0
    if ! wait_until "$seconds" process_gone "$pid"; then
        kill -KILL "$pid" 2>/dev/null
    fi
    wait "$pid" 2>/dev/null
}

# True once the process has ended (a zombie has).
process_gone() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
    [ -z "$state" ] || [ "$state" = Z ] || [ "$state" = X ]
}
