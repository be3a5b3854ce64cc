#!/usr/bin/env bash
# Tests, speed and memory on a GPU, within ten minutes once the packages are installed.
#
#   bash benchmarks/gpu.sh FOLDER
#
# FOLDER gets machine.json, tests.txt and, for each benchmark, a file of JSON lines; <file>.log has the messages. What is
# stopped by its time limit, or fails, leaves <file>.partial: the same command again repeats that, and nothing that is
# complete. Sizes and the device may be changed by variables of the environment.
set -euo pipefail
unset CDPATH
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/../tools/environment.sh"
[ $# -eq 1 ] || fail "usage: bash benchmarks/gpu.sh FOLDER"
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
cd "$here/.."
prepare_python requirements-dev.txt

DEVICE=${DEVICE:-cuda} TESTS=${TESTS:-tests} REPEATS=${REPEATS:-7} SECONDS_IN_ALL=${SECONDS_IN_ALL:-580}
NEURONS=${NEURONS:-16777216} NETWORKS=${NETWORKS:-sresnet18 vgg} WIDTH=${WIDTH:-1}
MINIBATCH=${MINIBATCH:-256} MINIBATCHES=${MINIBATCHES:-32 128} LIMIT_MIB=${LIMIT_MIB:-4096}
STEPS=( # kinds of training steps: a name, and flags of bench_step.py
    "float32"
    "bf16 --amp bf16"
)
[ "$DEVICE" = cpu ] || STEPS+=("bf16-graph --amp bf16 --cuda_graph")
candidates=(--candidates NILIF "NILIF lean" LIF) # besides ReLU
incomplete=()

part() { # FILE SECONDS COMMAND ...: the output of a command as a file of the folder, unless that is there
    local file="$1" limit="$2" left=$((SECONDS_IN_ALL - SECONDS)) status=0
    shift 2
    [ ! -e "$folder/$file" ] || return 0
    limit=$((left < limit ? left : limit))
    if [ "$limit" -le 0 ]; then
        incomplete+=("$file (no time left)")
        return
    fi
    echo "== $file: at most $limit seconds ==" >&2
    timeout --kill-after=3 "$limit" "$@" >"$folder/$file.partial" 2>"$folder/$file.log" || status=$?
    case "$status" in
    0) mv "$folder/$file.partial" "$folder/$file" ;;
    124 | 137) incomplete+=("$file (stopped after $limit seconds)") ;;
    *) incomplete+=("$file (failed: see $file.log)") ;;
    esac
}

SECONDS=0 # since when bash counts them
"$PYTHON" - "$DEVICE" >"$folder/machine.json" <<'PY' || fail "$DEVICE cannot be used"
import importlib.metadata, importlib.util, json, sys
import torch
from tools.runtime.provenance import processor, provenance

torch.zeros(1, device=sys.argv[1])
triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
print(json.dumps({**provenance(), "device": processor(sys.argv[1]), "cuda": torch.version.cuda, "triton": triton}))
PY

part tests.txt 150 env NSNN_TEST_CUDA=1 "$PYTHON" -m pytest -q -m cuda "$TESTS"
part neuron.jsonl 60 "$PYTHON" benchmarks/bench_neuron.py --device "$DEVICE" --neurons "$NEURONS" --repeats "$REPEATS"
for network in $NETWORKS; do
    step=(--device "$DEVICE" --networks "$network" --width "$WIDTH" "${candidates[@]}")
    for kind in "${STEPS[@]}"; do
        read -r name flags <<<"$kind"
        part "step-$name-$network.jsonl" 50 \
            "$PYTHON" benchmarks/bench_step.py "${step[@]}" --minibatch "$MINIBATCH" --repeats "$REPEATS" $flags
    done
    part "memory-$network.jsonl" 40 \
        "$PYTHON" benchmarks/bench_memory.py "${step[@]}" --minibatch $MINIBATCHES --timesteps 2 8 --amp bf16
    part "batch-$network.jsonl" 45 "$PYTHON" benchmarks/bench_memory.py "${step[@]}" --limit_mib "$LIMIT_MIB" --amp bf16
done
if [ ${#incomplete[@]} -gt 0 ]; then
    printf 'not complete: %s\n' "${incomplete[@]}" >&2
    exit 1
fi
echo "complete: $folder" >&2
