#!/usr/bin/env bash
# From a bare clone to a results table: one method of each kind on synthetic data. WORKDIR (default: runs/quickstart)
# receives one folder per method.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$0")/setup.sh"
# shellcheck disable=SC2119  # no extras
setup_jaxneg
workdir=${WORKDIR:-runs/quickstart}
# The methods share some compiled programs, and a second start shares all.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/compiled}
for method in uniform popularity in_batch adaptive_mixed; do
  echo "== $method"
  .venv/bin/python -m jaxneg.main --config="configs/quickstart.py:$method" --workdir="$workdir/$method"
done
echo "== all four"
.venv/bin/python -m jaxneg.results "$workdir"
echo "Files: $workdir/METHOD/results.csv, and beside it metrics.jsonl, cases.npz, model.npz, items.npz, baselines.csv and config.json."
