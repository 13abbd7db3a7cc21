#!/bin/bash
# bench.sh BUILD: `bench/compare --quick` does its work on every server and reports every row.
# Checks that the rows are there and that gild's content was read back right (the client fails
# otherwise), never how fast anything was. Exit 77 where the peers are not installed.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:?usage: bench.sh BUILD}" && pwd)
for tool in qemu-nbd qemu-img qemu-storage-daemon nbdkit fio python3; do
    command -v "$tool" >/dev/null || { echo "skipped: no $tool" && exit 77; }
done
[ -w /dev/fuse ] || { echo "skipped: no /dev/fuse" && exit 77; }

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/gild-bench.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
"$here/bench/compare" --quick --seconds 2 --work "$scratch/work" --build "$build" \
    --json "$scratch/report.json"
python3 - "$scratch/report.json" <<'END'
import json, sys

report = json.load(open(sys.argv[1]))
wanted = {"read4k": 5, "read1m": 5, "first": 5, "overwrite": 5, "flushed": 4, "replay": 5,
          "fuse4k": 3, "fuse1m": 3, "device": 1, "import": 2, "clones": 2, "memory": 3, "mallocs": 1}
wrong = [f"{row}: {len(report['rows'].get(row, {}).get('servers', {}))} of {count} figures"
         for row, count in wanted.items()
         if len(report["rows"].get(row, {}).get("servers", {})) != count]
# A cached read allocates nothing, and a clone at rest may cost less than the process's own noise.
wrong += [f"{row}: {server} has no positive figure" for row in report["rows"]
          if row not in ("mallocs", "memory")
          for server, one in report["rows"][row]["servers"].items() if not one["value"] > 0]
print("\n".join(wrong) or "all rows are there")
sys.exit(bool(wrong))
END
