"""The files under configs/launch, run with stand-ins for SLURM and torchrun that record their calls."""

import os
import signal
import subprocess
import time

import pytest

STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*" >> calls; fi',
    "torchrun": 'trap "[ -e runs/test.json ]; exit" TERM; '
    'echo "torchrun $* MASTER_PORT=$MASTER_PORT shared=$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >> calls; '
    '[ -e "$STAYS" ] && while true; do sleep 0.05; done; exit 0',
}


@pytest.fixture
def launch(tmp_path, repository):
    """Starts a launch file in an empty folder: name, arguments -> Popen."""
    for name, text in STAND_INS.items():
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f"#!/usr/bin/env bash\n{text}\n")
        stand_in.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "60001",
        "STAYS": str(tmp_path / "stays"),
    }

    def start(name, *arguments):
        command = ["bash", str(repository / "configs" / "launch" / name), *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(path):
    until = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_slurm_finds_the_run_again_on_all_machines(tmp_path, launch):
    process = launch("slurm.sbatch", "runs/a", "main_cifar10.py", "--config", "recipe.yaml")
    assert process.wait() == 0, process.stderr.read()
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call == (
        "torchrun --nnodes=2 --nproc_per_node=gpu --max-restarts=3 --rdzv-backend=c10d --rdzv-id=60001 "
        "--rdzv-endpoint=node7:20001 main_cifar10.py --config recipe.yaml --run_dir runs/a --resume auto "
        "MASTER_PORT=20001 shared=1"
    )


@pytest.mark.parametrize("is_complete", [False, True])
def test_slurm_queues_a_stopped_run_again(tmp_path, launch, is_complete):
    (tmp_path / "stays").touch()
    (tmp_path / "runs").mkdir()
    if is_complete:
        (tmp_path / "runs" / "test.json").touch()
    process = launch("slurm.sbatch", "runs", "main_cifar10.py")
    wait_for(tmp_path / "calls")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == (0 if is_complete else 1)
    requeued = "scontrol requeue 60001" in (tmp_path / "calls").read_text()
    assert requeued != is_complete
