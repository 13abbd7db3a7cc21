#!/bin/bash
# bench_space.sh BUILD: `bench/space` builds two versions of a real system, puts them into a store and into
# the peers' archives, and has two desktops upgraded; every figure is there. What they say is not a test.
# Exit 77 without root, a peer, or a Debian system to begin with.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "${1:?usage: bench_space.sh BUILD}" && pwd)
for tool in qemu-img casync borg losetup fstrim apt-get mmdebstrap python3; do
    command -v "$tool" >/dev/null || { echo "skipped: no $tool" && exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: only root may mount file systems" && exit 77; }
[ -w /dev/fuse ] || { echo "skipped: no /dev/fuse" && exit 77; }
losetup --find >/dev/null 2>&1 || { echo "skipped: no loop device" && exit 77; }

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/gild-space.XXXXXX")
trap 'rm -rf --one-file-system "$scratch"' EXIT
"$here/bench/space" --rows images,desktops --desktops 2 --work "$scratch/work" --build "$build" --json "$scratch/report.json"
python3 - "$scratch/report.json" <<'END'
import json, sys

report = json.load(open(sys.argv[1]))
wanted = {"images": ["gild", "two qcow2 files, zstd", "casync", "borg, zstd 3", "gild over qcow2"],
          "desktops": ["added by one", "added by 2", "2 over one"]}
wrong = [f"{row}: {name}" for row, names in wanted.items() for name in names if not report.get(row, {}).get(name, 0) > 0]
print("missing: " + ", ".join(wrong) if wrong else "all figures are there")
sys.exit(bool(wrong))
END
