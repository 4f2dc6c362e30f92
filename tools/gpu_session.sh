#!/usr/bin/env bash
# What a GPU machine has to say: the tests marked gpu, then `signconv bench`; its tables come last.
# Uses the machine's own Python (torch and Triton are there): needs no installation.
#   OUT      folder for bench.json, bench.png and tests.txt (default build/gpu)
#   SPECS    what to measure;  WORKLOADS  A,B,C,D or all;  BENCH_ARGS  e.g. "--peers --peer-limit 60"
#   TESTS    "no" leaves the tests out;  GPU_TESTS  the files whose tests marked gpu run (all);
#   JOBS     processes that run them (8; 1 without pytest-xdist)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
SPECS=${SPECS:-adamw+stosign stosignsgd adamw+soft:p=2+nesterov s3 lion s3gd@fp8-raw@math=bf16 adamw}
SPECS="$SPECS ${MORE_SPECS-adamw@fp32@params=fp32 adamw+stosign@fp32@params=fp32}"
GPU_TESTS=${GPU_TESTS:-$(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)}
JOBS=${JOBS:-8}
"$PYTHON" -c 'import xdist' 2>/dev/null || JOBS=1
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

tests=0
if [ "${TESTS:-yes}" != no ]; then
  [ "$JOBS" = 1 ] || parallel="-n $JOBS"
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest -q -m gpu ${parallel:-} $GPU_TESTS >"$OUT/tests.txt" 2>&1 || tests=$?
fi
# shellcheck disable=SC2086
"$PYTHON" -m signconv bench $SPECS --device cuda --workload "${WORKLOADS:-all}" \
  --json "$OUT/bench.json" --chart "$OUT/bench.png" ${BENCH_ARGS:-}
bench=$?
if [ "${TESTS:-yes}" != no ]; then
  grep -E '^(FAILED|ERROR)' "$OUT/tests.txt" || true
  echo "tests marked gpu: $(tail -n 1 "$OUT/tests.txt")"
fi
exit $((tests || bench))
