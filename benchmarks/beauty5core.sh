#!/usr/bin/env bash
# The learning rates in configs/tuned/beauty5core.json, and the study on Amazon Beauty (5-core) in results/study.
#
#   bash benchmarks/beauty5core.sh PATH/beauty-5core_full.tsv.gz OUT
#
# From the project's root; both go on where they were stopped. PYTHON (default: python).
set -euo pipefail
if [ $# -ne 2 ]; then
  echo "usage: bash benchmarks/beauty5core.sh FILE OUT" >&2
  exit 2
fi

tune() { # METHOD BATCH_SIZE NUMBERS...: three learning rates, one repeat of each
  local method=$1 batch=$2 number
  local -a numbers=()
  shift 2
  for number in "$@"; do numbers+=("--try.sampler.$number"); done
  "${PYTHON:-python}" launch/tune.py --config=configs/beauty5core.py --methods="$method" --trials=1 --workdir="$OUT/tune" \
    --config.data.path="$FILE" --try.batch_size="$batch" --try.osf=30 --try.model.dropout=0.2 \
    --try.learning_rate=0.001,0.003,0.01 "${numbers[@]}"
}

FILE=$1 OUT=$2
tune uniform 128 num_uniform=5
tune popularity 128 num_popularity=5
tune in_batch 128 num_in_batch=50
tune mixed 64 num_in_batch=5 num_uniform=5
tune adaptive 128 num_uniform=100 num_kept=25
tune adaptive_mixed 64 num_in_batch=10 num_uniform=100 num_kept=5
"${PYTHON:-python}" launch/study.py --config=configs/beauty5core.py --methods=paper --config.num_epochs=6 --config.num_seeds=20 \
  --config.data.path="$FILE" --workdir="$OUT/study"
