#!/usr/bin/env bash
# All eight methods and both baselines on two data sets, shortened to fit a laptop: the tables in results/README.md.
#
#   bash benchmarks/eight_methods.sh PATH/ml-1m_full.tsv.gz PATH/beauty-5core_full.tsv.gz OUT
#
# Two seeds each; the numbers of negatives are the paper's (jaxneg/tuned.py), the batch size and the learning rate
# are one for all methods of a data set, since so few epochs suit no tuned rate of 1e-4. PYTHON (default: python).
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "usage: bash benchmarks/eight_methods.sh ML1M_FILE BEAUTY_FILE OUT" >&2
  exit 2
fi
run() {
  local dataset=$1 method=$2 path=$3 out=$4
  shift 4
  "${PYTHON:-python}" -m jaxneg.main --config="configs/$dataset.py:$method" --workdir="$out/$dataset/$method" \
    --config.data.path="$path" --config.num_seeds=2 --config.batch_size=128 "$@"
}
for method in adaptive_mixed uniform popularity in_batch mixed adaptive inverse_popularity popularity_cohort; do
  run ml1m "$method" "$1" "$3" --config.learning_rate=0.005 --config.model.max_len=50 \
    --config.num_epochs=8 --config.eval_every=4
  run beauty "$method" "$2" "$3" --config.learning_rate=0.003 --config.num_buckets=3 \
    --config.num_epochs=5 --config.eval_every=3
done
"${PYTHON:-python}" -m jaxneg.results "$3"
