# What the system tests share. Sourced by bash after GILD and GILDD are set (ctest sets them).
# shellcheck shell=bash
set -Eeuo pipefail
trap 'echo "FAILED: ${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND" >&2' ERR
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
. "$top/tools/lib-common.sh"
. "$top/tools/lib-guest.sh"
: "${GILD:=$top/build/release/tools/gild}" "${GILDD:=$top/build/release/tools/gildd}"

# skip SENTENCE: what this machine lacks; ctest shows the test as skipped.
skip() {
    echo "skipped: $*"
    exit 77
}

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed; tools/install-deps test guest installs it"
    done
}

# passed SENTENCE: one promise that was just seen to hold.
test_began=$(now_ms)
passed() {
    printf 'ok %6ss  %s\n' "$((($(now_ms) - test_began) / 1000))" "$*"
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# A scratch folder on a real disk (not tmpfs), gone at the end; with GILD_KEEP=yes it stays.
scratch_make() {
    work=$(mktemp -d "${GILD_TEST_FOLDER:-/var/tmp}/gild-test.XXXXXX")
    on_exit scratch_clean_up
}

scratch_clean_up() {
    guests_clean_up
    daemon_clean_up
    if [ "${GILD_KEEP:-no}" = yes ]; then
        echo "kept: $work"
    else
        rm -rf --one-file-system "$work"
    fi
}

gild() {
    "$GILD" --store "$work/store" "$@"
}

# uri DISK: the NBD URI of a disk on the daemon's socket ('@' and '/' as they are).
uri() {
    printf 'nbd+unix:///%s?socket=%s' "$1" "$work/nbd.sock"
}
