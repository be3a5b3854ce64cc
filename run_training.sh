#!/usr/bin/env bash
# Train spiking networks.
#
#   bash run_training.sh                      demonstration: a noisy network (NSNN) and its deterministic
#                                             twin (SNN) on 5,000 real digits, trained and evaluated
#   bash run_training.sh events               the same on simulated recordings of an event camera, with pictures
#   bash run_training.sh RECIPE [FLAGS ...]   a recipe of configs/, e.g. configs/cifar10_sresnet18.yaml
#
# Flags override the recipe, e.g. --download --data-root ~/data. With `digits` or `events` in place of RECIPE, they
# override both recipes of that demonstration, e.g. bash run_training.sh digits --epochs 5.
# It runs in the repository's folder: results go to its results/, and relative paths in flags start there.
set -euo pipefail
unset CDPATH
recipe="${1:-digits}"
shift $(($# > 0))
[ ! -f "$recipe" ] || recipe="$(cd "$(dirname "$recipe")" && pwd)/$(basename "$recipe")"
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements.txt

demonstrate() { # DATASET "EVALUATION_FLAG ..." HIGHEST STEP TRAINING_FLAGS ...: train and evaluate its two small networks
    local dataset="$1" evaluation="$2" highest="$3" step="$4" network
    local folder="results/$dataset/demo/$(date +%Y%m%d-%H%M%S)-$$"
    shift 4
    case " $*" in *" --run_dir"*) fail "a demonstration trains two networks and chooses their folder: $folder" ;; esac
    for network in nsnn snn; do
        echo "== $network: training ==" >&2
        "$PYTHON" "main_$dataset.py" --config "configs/${dataset}_$network.yaml" --run_dir "$folder/$network" "$@"
    done
    echo "== evaluating both ==" >&2
    "$PYTHON" "testing_$dataset.py" --draws 3 --uncertainty --efficiency --pictures --out "$folder" \
        $evaluation --range --left 0 --right "$highest" --step "$step" \
        --compare "NSNN=$folder/nsnn/best.pth" "SNN=$folder/snn/best.pth"
}

case "$recipe" in
digits) demonstrate mnist5k "--attack_preset glance --perturbation add_gaussian sp" 0.3 0.15 "$@" ;;
events) demonstrate motions "--perturbation eventdrop polarity_flip" 0.6 0.3 "$@" ;;
*)
    [ -f "$recipe" ] || fail "no recipe $recipe; there are: digits events" configs/*.yaml
    dataset="$(sed -n "s/^dataset: *[\"']\{0,1\}\([A-Za-z0-9_]*\).*/\1/p" "$recipe")"
    [ -f "main_$dataset.py" ] ||
        fail "$recipe needs a line \"dataset: NAME\", where main_NAME.py exists; it says \"$dataset\""
    exec "$PYTHON" "main_$dataset.py" --config "$recipe" "$@"
    ;;
esac
