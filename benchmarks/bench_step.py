"""Training step and inference of whole networks with noisy neurons, deterministic ones, or ReLUs.

    python benchmarks/bench_step.py [--networks sresnet18 cifarnet vgg] [--candidates NILIF "NILIF lean"]
        [--repeats 7] [--device cpu] [--plain] [--minibatch B] [--width W] [--amp bf16] [--cuda_graph]

One JSON line per network and neuron (and, for noisy ones, memory setting): seconds (median and quartiles, candidates
taking turns), the ratio to the ReLU network, what is kept between the forward and the backward pass, exactly, and the
peak memory of a training step (on CPUs, the median of up to three separate processes). `--plain` leaves out what
training sets up for speed (channels-last, the fused optimiser, keeping freed memory). `--cuda_graph` replays the
training step, also that of ReLUs, and leaves out the memory settings, which no graph can have.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.common import in_turns, report, synchronise
from models import build_model, build_neuron
from tools.optim import build_optimizer
from tools.runtime.cuda_graph import WARM_UP, GraphedStep
from tools.runtime.device import keep_freed_memory

# in_shape, T, B (for CPUs)
NETWORKS = {"sresnet18": ((3, 32, 32), 2, 16), "cifarnet": ((3, 32, 32), 2, 16), "vgg": ((2, 48, 48), 10, 4)}
NEURONS = {"ReLU": nn.ReLU, "NILIF": build_neuron("NILIF"), "LIF": build_neuron("LIF")}
CANDIDATES = ("ReLU", "NILIF", "NILIF lean", "NILIF smallest", "LIF")


class Step:
    """A network with its optimiser and a batch; images are repeated over time as event frames would be."""

    def __init__(self, network, candidate, args):
        neuron, _, memory = candidate.partition(" ")
        in_shape, self.timesteps, batch = NETWORKS[network]
        batch, device = args.minibatch or batch, args.device
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.amp == "bf16")
        torch.manual_seed(0)
        options = dict(in_shape=in_shape, num_classes=10, width=args.width)
        self.net = build_model(network, neuron=NEURONS[neuron], memory=memory or "fast", **options).to(device)
        self.images = torch.rand(batch, *in_shape, device=device)
        self.target = torch.randint(10, (batch,), device=device)
        if args.plain:
            self.optimizer = torch.optim.Adam(self.net.parameters(), foreach=False)
        else:
            self.net.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.optimizer = build_optimizer("adam", self.net, 1e-3, 0.0)
        self.step = self.update
        if args.cuda_graph:
            self.step = GraphedStep(self.update, self.optimizer, torch.device(device))
            for _ in range(WARM_UP + 1):
                self.train()

    def train(self):
        self.step(())  # of the one batch, which stays where it is

    def update(self, batches):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        return ()

    def loss(self):
        self.net.train()
        with self.autocast:
            logits = self.net(self.images, timesteps=self.timesteps)
        return F.cross_entropy(logits.float().mean(0), self.target)

    def kept_mib(self):
        """What the forward pass allocates and the backward pass frees."""
        with torch.profiler.profile(profile_memory=True) as profile:
            loss = self.loss()
        del loss
        is_cuda = self.images.is_cuda
        events = profile.events()
        return sum(e.self_device_memory_usage if is_cuda else e.self_cpu_memory_usage for e in events) / 2**20

    def train_thrice(self):
        for _ in range(3):
            self.train()

    @torch.no_grad()
    def infer(self):
        self.net.eval()
        with self.autocast:
            self.net(self.images, timesteps=self.timesteps)


def peak_memory_mib(network, neuron, args):
    """Peak memory of three training steps over what the process held before, in MiB."""
    if torch.device(args.device).type != "cuda":
        command = [sys.executable, *sys.argv, "--memory_of", network, neuron]
        repeats = range(min(3, args.repeats))
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in repeats]
        return statistics.median(json.loads(run.stdout) for run in runs)
    torch.cuda.reset_peak_memory_stats(args.device)
    before = torch.cuda.memory_allocated(args.device)
    Step(network, neuron, args).train_thrice()
    synchronise(args.device)
    return (torch.cuda.max_memory_allocated(args.device) - before) / 2**20


def peak_resident_mib(network, neuron, args):
    """As `peak_memory_mib`, of this process, by Linux' account of resident memory."""
    nn.Conv2d(3, 8, 3)(torch.rand(1, 3, 8, 8)).sum().backward()  # loads libraries
    before = _peak_kib()
    Step(network, neuron, args).train_thrice()
    return (_peak_kib() - before) / 2**10


def _peak_kib():
    # Not getrusage: its peak begins with that of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def measured(network, args):
    """The results of one network, one for each kind of neuron."""
    in_shape, timesteps, batch = NETWORKS[network]
    steps = {candidate: Step(network, candidate, args) for candidate in args.candidates}
    times = {}
    for what in ("train", "infer"):
        runs = {candidate: getattr(step, what) for candidate, step in steps.items()}
        times[what] = in_turns(runs, args.repeats, args.device)
    kept = {candidate: step.kept_mib() for candidate, step in steps.items()}
    del steps, runs
    memory = {candidate: peak_memory_mib(network, candidate, args) for candidate in args.candidates}
    for neuron in args.candidates:
        result = dict(network=network, neuron=neuron, T=timesteps, B=args.minibatch or batch, in_shape=in_shape)
        result["width"] = args.width
        for what, spreads in times.items():
            result[f"{what}_s"] = {key: round(value, 5) for key, value in spreads[neuron].items()}
            result[f"{what}_ratio_to_relu"] = round(spreads[neuron]["median"] / spreads["ReLU"]["median"], 3)
        result["kept_mib"] = round(kept[neuron], 1)
        result["kept_ratio_to_relu"] = round(kept[neuron] / kept["ReLU"], 3)
        result["peak_memory_mib"] = round(memory[neuron], 1)
        result["memory_ratio_to_relu"] = round(memory[neuron] / memory["ReLU"], 3)
        yield result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--minibatch", type=int, default=0, help="0: that of `NETWORKS`")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--amp", choices=["no", "bf16"], default="no")
    parser.add_argument("--cuda_graph", action="store_true")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cuda_graph and (args.plain or torch.device(args.device).type != "cuda"):
        parser.error("--cuda_graph needs --device cuda, and the optimiser of training, not --plain")
    if args.cuda_graph:
        args.candidates = [candidate for candidate in args.candidates if " " not in candidate]
    args.candidates = list(dict.fromkeys(["ReLU", *args.candidates]))  # with which the others are compared
    if not args.plain:
        keep_freed_memory()
    if args.memory_of:
        sys.stdout.write(json.dumps(peak_resident_mib(*args.memory_of, args)) + "\n")
        return
    for network in args.networks:
        for result in measured(network, args):
            settings = dict(plain=args.plain, amp=args.amp, cuda_graph=args.cuda_graph, repeats=args.repeats)
            report("step", args.device, **result, **settings)


if __name__ == "__main__":
    main()
