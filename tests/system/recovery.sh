#!/bin/bash
# recovery.sh BUILD: `bench/recovery --quick` crashes and opens its stores and finds every write that it
# looks for (it fails otherwise). Checks the report, never how fast anything was.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:?usage: recovery.sh BUILD}" && pwd)
command -v python3 >/dev/null || { echo "skipped: no python3" && exit 77; }

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/gild-recovery.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
"$here/bench/recovery" --quick --work "$scratch/work" --build "$build" --json "$scratch/report.json"
python3 - "$scratch/report.json" <<'END'
import json, sys

report = json.load(open(sys.argv[1]))
rounds = {name: store["rounds"] for name, store in report["stores"].items()}
print(rounds)
sys.exit(set(rounds) != {"small", "medium"} or not all(
    len(r) == 1 and r[0]["log_bytes"] >= 16 << 20 and r[0]["served_ms"] >= r[0]["open_ms"] > 0
    for r in rounds.values()))
END
