#!/usr/bin/env bash
# Noisy and deterministic networks at full width: trained, and compared in all tests, on a GPU.
#
#   bash benchmarks/gpu_campaign.sh FOLDER [FLAGS ...]     FLAGS are of the training and the testing script, as --data_root
#
# Each call ends after MINUTES (9) and says what is left: the same command continues, until it exits with 0 instead of
# 75. FOLDER gets the runs, and <model>/results.json and report.html for each model. Variables of the environment change
# what is run.
set -euo pipefail
unset CDPATH
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/../tools/environment.sh"
[ $# -ge 1 ] || fail "usage: bash benchmarks/gpu_campaign.sh FOLDER [FLAGS ...]"
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
shift
cd "$here/.."
prepare_python requirements.txt

MINUTES=${MINUTES:-9} DATASET=${DATASET:-cifar10} MODELS=${MODELS:-sresnet18 cifarnet} NEURONS=${NEURONS:-NILIF LIF}
SEEDS=${SEEDS:-0 1 2} EPOCHS=${EPOCHS:-60} AMP=${AMP:-bf16} TESTS=${TESTS:---perturbation all --attack_preset quick}
SECONDS=0 # since when bash counts them
later=75

left() { # seconds of this call; ends it where none are left
    local seconds=$((60 * MINUTES - SECONDS))
    if [ "$seconds" -le 0 ]; then
        echo "not complete: the same command continues with $1" >&2
        exit "$later"
    fi
    echo "$seconds"
}

run() { # WHAT COMMAND ...: in the time that is left
    local what="$1" seconds status=0
    seconds="$(left "$1")" || exit
    shift
    # SIGINT, after which training saves its state, and an evaluation keeps what it has measured.
    timeout --signal=INT --kill-after=30 "$seconds" "$@" || status=$?
    case "$status" in
    0) ;;
    124 | 137) left "$what" >/dev/null ;;
    *) fail "$what ended with code $status" ;;
    esac
}

for model in $MODELS; do
    groups=()
    for neuron in $NEURONS; do
        snapshots=()
        for seed in $SEEDS; do
            out="$folder/$model/$neuron-$seed"
            snapshots+=("$out/best.pth")
            [ -e "$out/test.json" ] || run "$model, $neuron, seed $seed" "$PYTHON" "main_$DATASET.py" \
                --config "configs/${DATASET}_$model.yaml" --neuron "$neuron" --seed "$seed" --epochs "$EPOCHS" \
                --amp "$AMP" --run_dir "$out" --resume auto "$@"
        done
        groups+=("$neuron=$(IFS=,; echo "${snapshots[*]}")")
    done
    [ -e "$folder/$model/report.html" ] || run "the tests of $model" "$PYTHON" "testing_$DATASET.py" $TESTS \
        --uncertainty --efficiency --compare "${groups[@]}" --out "$folder/$model" "$@"
done
echo "complete: $folder" >&2
