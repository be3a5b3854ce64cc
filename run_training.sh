#!/usr/bin/env bash
# Train spiking networks.
#
#   bash run_training.sh                      demonstration: a noisy network (NSNN) and its deterministic
#                                             twin (SNN) on 5,000 real digits, trained and tested
#   bash run_training.sh events               the same on simulated recordings of an event camera, with pictures
#   bash run_training.sh RECIPE [FLAGS ...]   a recipe of configs/, e.g. configs/cifar10_sresnet18.yaml;
#                                             flags override it, e.g. --download --data-root ~/data
#
# It runs in the repository's folder: results go to its results/, and relative paths in flags start there.
set -euo pipefail
unset CDPATH
recipe="${1:-}"
[ $# -eq 0 ] || shift
[ ! -f "$recipe" ] || recipe="$(cd "$(dirname "$recipe")" && pwd)/$(basename "$recipe")"
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/environment.sh
prepare_python requirements.txt

demonstrate() { # DATASET TESTING_FLAGS ...: train and test the data set's two small networks
    local dataset="$1" network
    local folder="results/$dataset/demo/$(date +%Y%m%d-%H%M%S)-$$"
    shift
    for network in nsnn snn; do
        echo "== $network: training ==" >&2
        "$PYTHON" "main_$dataset.py" --config "configs/${dataset}_$network.yaml" --run_dir "$folder/$network"
    done
    echo "== testing both ==" >&2
    "$PYTHON" "testing_$dataset.py" --draws 3 --uncertainty --efficiency --pictures "$@" --out "$folder" \
        --compare "NSNN=$folder/nsnn/best.pth" "SNN=$folder/snn/best.pth"
}

if [ "$recipe" = events ]; then
    [ $# -eq 0 ] || fail "the demonstration takes no flags, got $*; configs/motions_nsnn.yaml does"
    demonstrate motions --perturbation eventdrop polarity_flip --range --left 0 --right 0.6 --step 0.3
elif [ -n "$recipe" ]; then
    [ -f "$recipe" ] || fail "no recipe $recipe; there are: events" configs/*.yaml
    dataset="$(sed -n "s/^dataset: *[\"']\{0,1\}\([A-Za-z0-9_]*\).*/\1/p" "$recipe")"
    [ -f "main_$dataset.py" ] ||
        fail "$recipe needs a line \"dataset: NAME\", where main_NAME.py exists; it says \"$dataset\""
    exec "$PYTHON" "main_$dataset.py" --config "$recipe" "$@"
else
    demonstrate mnist5k --perturbation add_gaussian sp --range --left 0 --right 0.3 --step 0.1
fi
