#!/usr/bin/env bash
# From a bare clone to a results table: one method of each kind on synthetic data. WORKDIR (default: runs/quickstart)
# receives one folder per method.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup_jaxneg
workdir=${WORKDIR:-runs/quickstart}
for method in uniform popularity in_batch adaptive_mixed; do
  echo
  echo "== $method"
  .venv/bin/python -m jaxneg.main --config="configs/quickstart.py:$method" --workdir="$workdir/$method"
done
echo
echo "Done. $workdir/METHOD holds results.csv, metrics.jsonl, cases.npz and config.json."
