#!/usr/bin/env bash
# Run the whole test suite; arguments go to pytest, e.g. bash run_tests.sh -m "not slow" -k neuron
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements-dev.txt
exec "$PYTHON" -m pytest "$@"
