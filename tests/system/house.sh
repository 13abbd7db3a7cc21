#!/bin/bash
# The house rules that a machine can check (docs/architecture.md says why they are rules).
#
#   house.sh includes | lengths | words | format
#   house.sh symbols LIBRARY...
#
# Each finding is one line "FILE: what is wrong"; the exit status is 1 if there was any.
set -euo pipefail
cd "$(dirname "$0")/../.."
export LC_ALL=C
findings=0

found() {
    echo "$*"
    findings=$((findings + 1))
}

c_files() {
    find engine fuse tools bench tests include -name '*.[ch]' 2>/dev/null | sort
}

# Which floor a folder of the engine stands on; a folder may include those on lower floors only.
declare -A floor=(
    [base]=0
    [io]=1 [codec]=1
    [catalog]=2
    [pack]=3 [log]=3 [map]=3 [cache]=3
    [disk]=4
    [vdi]=5
    [control]=6
)

# check_edge FILE FROM HEADER
check_edge() {
    local file=$1 from=$2 header=$3 to=${3%%/*}
    case $header in
    gild/*) return ;;
    */*) ;;
    *)
        # Outside the engine a folder's own headers stand beside the file that includes them.
        case $from in fuse | tools | bench) [ ! -e "${file%/*}/$header" ] || return 0 ;; esac
        found "$file: \"$header\" does not name its folder"
        return 0
        ;;
    esac
    [ "$to" != "$from" ] || return 0
    case $from in
    nbd | fuse)
        [ "$to" = base ] || found "$file: a front end may include gild/ and base/ only, not \"$header\""
        ;;
    tools | bench) found "$file: tools and bench see include/gild only, not \"$header\"" ;;
    public) found "$file: a public header may include public headers only, not \"$header\"" ;;
    *)
        if [ -z "${floor[$from]:-}" ]; then
            found "$file: folder $from is not in the table of floors"
        elif [ -z "${floor[$to]:-}" ]; then
            found "$file: \"$header\" is in no folder that the engine may include"
        elif [ "${floor[$to]}" -ge "${floor[$from]}" ]; then
            found "$file: an edge sideways or upwards, to \"$header\""
        fi
        ;;
    esac
}

rule_includes() {
    local file from header
    while read -r file; do
        case $file in
        engine/*/*) from=${file#engine/} && from=${from%%/*} ;;
        include/*) from=public ;;
        *) from=${file%%/*} ;;
        esac
        [ "$from" != tests ] || continue
        while read -r header; do
            check_edge "$file" "$from" "$header"
        done < <(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$file")
        if [ "$from" != catalog ] && grep -q '#[[:space:]]*include[[:space:]]*<lmdb.h>' "$file"; then
            found "$file: only engine/catalog includes lmdb.h"
        fi
    done < <(c_files)
}

rule_lengths() {
    local count file
    while read -r file; do
        count=$(wc -l <"$file")
        [ "$count" -lt 800 ] || found "$file: $count lines; a file stays under 800"
    done < <(c_files)
}

# Words that promise a later; each is spelled here so that this file does not match itself.
rule_words() {
    local hit
    while read -r hit; do
        found "$hit"
    done < <(find engine fuse tools bench tests include CMakeLists.txt -type f \
        \( -name '*.[ch]' -o -name '*.sh' -o -name '*.py' -o -name '*.cmake' -o -name CMakeLists.txt \
        -o -path 'tools/*' -o -path 'bench/*' \) -print0 |
        xargs -0 grep -nIEi '\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K|not implemente[d]|unimplemente[d]|placeholde[r]|for no[w]|stu[b])\b' || true)
}

rule_format() {
    local tool file
    tool=$(command -v clang-format-14 || true)
    if [ -z "$tool" ]; then
        echo "skipped: clang-format-14 is not installed (tools/install-deps test)"
        exit 77
    fi
    while read -r file; do
        "$tool" --dry-run -Werror "$file" >/dev/null 2>&1 ||
            found "$file: not as .clang-format has it; run clang-format-14 -i on it"
    done < <(c_files)
}

# What may begin a name that only its own folder uses: the folder, a file of it, a struct or enum of it (one
# or many of them).
own_prefixes() {
    local folder=engine/$1
    [ -d "$folder" ] || folder=$1
    {
        echo "$1"
        find "$folder" -name '*.[ch]' -exec basename {} \; | sed 's/\.[ch]$//'
        find "$folder" -name '*.[ch]' -exec sed -nE 's/^(struct|enum) (gild_)?([a-z0-9_]+) \{.*/\3/p' {} +
    } | sort -u | sed -E 's/.*/&\n&s\n&es/'
}

# Process-wide by their nature: how much to log, the key of a thread's own memory, a sentence that
# is said once in a process.
process_wide="base:chosen_level codec:key codec:key_made codec:once io:said"

# Global names carry the project's prefix, or one of their folder's own; no name is in two folders;
# and no variable can be written, because many stores live in one process.
rule_symbols() {
    local library module name section known all
    [ $# -gt 0 ] || found "no library was handed in"
    all=$(mktemp)
    for library in "$@"; do
        module=$(basename "$library" .a) && module=${module#libgild_}
        known=" $(own_prefixes "$module" | tr '\n' ' ') "
        while read -r name; do
            echo "$name" >>"$all"
            [[ $name != gild_* ]] || continue
            starts_with_one "$name" "$known" ||
                found "$library: global symbol $name begins neither with gild_ nor with a name of its folder's own"
        done < <(nm --defined-only --extern-only --format=posix "$library" 2>/dev/null |
            awk 'NF >= 3 { print $1 }' | sort -u)
        # Object symbols in sections that are mapped writable; .data.rel.ro is constant, and a
        # thread's own variables (.tbss) are no other's.
        while read -r name section; do
            [[ " $process_wide " == *" $module:${name%%.*} "* ]] ||
                found "$library: $name can be written (section $section); no variables but constants"
        done < <(objdump --syms "$library" 2>/dev/null | awk '
            / O / || /\*COM\*/ {
                for (i = 2; i < NF; i++)
                    if ($i ~ /^(\.data|\.bss)(\.|$)/ && $i !~ /^\.data\.rel\.ro/ || $i == "*COM*")
                        print $NF, $i
            }' | sort -u)
    done
    while read -r name; do
        found "global symbol $name is in two folders; a program that links both takes either"
    done < <(sort "$all" | uniq -d)
    rm -f "$all"
}

# starts_with_one NAME " PREFIX PREFIX ": whether NAME is PREFIX_something for one of them.
starts_with_one() {
    local prefix=$1
    while [[ $prefix == *_* ]]; do
        prefix=${prefix%_*}
        [[ $2 != *" $prefix "* ]] || return 0
    done
    return 1
}

rule=${1:-}
shift || true
case $rule in
includes | lengths | words | format | symbols) "rule_$rule" "$@" ;;
*) echo "usage: house.sh includes|lengths|words|format | symbols LIBRARY..." >&2 && exit 2 ;;
esac
[ "$findings" = 0 ] || {
    echo "$findings findings against the rule '$rule'"
    exit 1
}
