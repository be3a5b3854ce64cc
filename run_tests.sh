#!/usr/bin/env bash
# Run the tests on all processors.
#
#   bash run_tests.sh            what is fast: every module's behaviour, every script once
#   bash run_tests.sh --all      everything, as CI does
#   bash run_tests.sh -k neuron  other arguments go to pytest; -m replaces the choice of the fast ones
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements-dev.txt

chosen=(-m "not slow")
if [ "${1:-}" = --all ]; then
    chosen=()
    shift
fi
# One thread for each process: more would wait for each other. The tests of a file share their fixtures.
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0
exec "$PYTHON" -m pytest -n "$(getconf _NPROCESSORS_ONLN)" --dist worksteal "${chosen[@]}" "$@"
