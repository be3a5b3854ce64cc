#!/usr/bin/env bash
# Run the tests, on all processors.
#
#   bash run_tests.sh            what is fast: every module's behaviour, every script once
#   bash run_tests.sh --all      everything, as CI does
#   bash run_tests.sh -k neuron  other arguments go to pytest, where a -m replaces the choice of what is fast
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements-dev.txt

run() {
    "$PYTHON" -m pytest "$@"
}
# One thread for each process: more would wait for each other.
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0
parallel=(-n "$(getconf _NPROCESSORS_ONLN)" --dist worksteal)
if [ "${1:-}" = --all ]; then
    shift
    status=0
    run "${parallel[@]}" -m "not alone" "$@" || status=$?
    run -m alone "$@" || status=$?
    exit "$status"
else
    run "${parallel[@]}" -m "not slow and not alone" "$@"
fi
