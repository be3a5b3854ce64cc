#!/usr/bin/env bash
# Run the tests, on all processors.
#
#   bash run_tests.sh            the fast tests: every module, and every script once
#   bash run_tests.sh --all      everything, as CI does
#   bash run_tests.sh -m cuda    other arguments go to pytest; -m replaces the selection of fast tests
#
# pytest-xdist starts the processes; -n 0 runs all tests in one, as --pdb requires.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements-dev.txt

# One thread for each process: more would wait for each other.
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0
# Python keeps what it compiles: else each process, and each that a test starts, would compile everything again.
unset PYTHONDONTWRITEBYTECODE
parallel=(-n logical --maxprocesses 8 --dist worksteal)
if [ "${1:-}" = --all ]; then
    shift
    exec "$PYTHON" -m pytest "${parallel[@]}" "$@"
fi
exec "$PYTHON" -m pytest "${parallel[@]}" -m "not slow" "$@"
