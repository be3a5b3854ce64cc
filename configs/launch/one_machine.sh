#!/usr/bin/env bash
# All GPUs of one machine: bash configs/launch/one_machine.sh main_cifar10.py --config configs/cifar10_sresnet18.yaml
# If a worker is killed, all restart from the last checkpoint in RUN_DIR, up to 3 times.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RUN_DIR=${RUN_DIR:-results/$(date +%Y%m%d-%H%M%S)-$$}
PROCESSES=${PROCESSES:-gpu} # as many as there are GPUs; a number for CPUs
exec torchrun --standalone --nproc_per_node="$PROCESSES" --max-restarts=3 "$@" --run_dir "$RUN_DIR" --resume auto
