# Sourced by run_training.sh, run_tests.sh and .ci/run.
#
# prepare_python REQUIREMENTS sets $PYTHON to an interpreter that has the packages of that file: the
# active one if it has them all, else the one in .venv, which is made and filled if necessary.

fail() { # MESSAGE ...
    echo "error: $*" >&2
    exit 1
}

satisfies() { # PYTHON REQUIREMENTS
    "$1" - "$2" 2>/dev/null <<'PY'
import pathlib, sys
from importlib.metadata import version
from packaging.requirements import Requirement

def check(path):
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            check(path.parent / line[2:].strip())
        elif line:
            requirement = Requirement(line)
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                raise SystemExit(1)

if sys.version_info < (3, 10):
    raise SystemExit(1)
check(pathlib.Path(sys.argv[1]))
PY
}

is_environment() { # PYTHON: whether it belongs to a virtual or conda environment, where packages may be added
    "$1" -c 'import os, sys; sys.exit(sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ)'
}

install() { # PYTHON REQUIREMENTS
    "$1" -m pip --version >/dev/null 2>&1 || "$1" -m ensurepip --upgrade >/dev/null
    "$1" -m pip install --quiet --disable-pip-version-check -r "$2"
}

make_venv() {
    local candidate
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        echo "Making .venv with $("$candidate" --version) ..." >&2
        "$candidate" -m venv .venv && return
        fail "\"$candidate -m venv\" failed; on Debian and Ubuntu: apt install python3-venv"
    done
    fail "Python 3.10 or newer is needed, and none is on the PATH"
}

prepare_python() {
    local requirements="$1"
    for PYTHON in python python3; do
        satisfies "$PYTHON" "$requirements" && return
        # It lacks only the test tools: add them rather than install everything again.
        if satisfies "$PYTHON" requirements.txt && is_environment "$PYTHON"; then
            echo "Installing what $requirements adds into the active environment ..." >&2
            install "$PYTHON" "$requirements"
            return
        fi
    done
    [ -x .venv/bin/python ] || make_venv
    PYTHON=.venv/bin/python
    if ! satisfies "$PYTHON" "$requirements"; then
        echo "Installing the packages of $requirements into .venv (a few minutes, several GB with CUDA) ..." >&2
        install "$PYTHON" "$requirements"
    fi
}
