"""Training step and inference of whole networks with noisy neurons, deterministic ones, or ReLUs.

    python benchmarks/bench_step.py [--networks sresnet18 cifarnet vgg] [--candidates NILIF "NILIF lean"]
        [--repeats 7] [--device cpu] [--plain] [--timesteps T] [--minibatch B] [--width W] [--amp bf16] [--peer memopt]
        [--cuda_graph]

One JSON line per network and neuron (and, for noisy ones, memory setting): seconds (median and quartiles, candidates
taking turns), the ratio to the ReLU network, and memory, exactly: what is kept between the forward and the backward
pass, and the peak of all tensors of a training step, those of the network and its optimiser included. `--plain` leaves
out what training sets up for speed (channels-last, the fused optimiser, keeping freed memory). `--peer memopt` adds
SpikingJelly's noise-free neurons and its memory optimisation of the same network. `--cuda_graph` replays the training
step, also that of ReLUs, and leaves out the memory settings, which no graph can have.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks import memopt
from benchmarks.common import in_turns, live_memory, report
from models import build_model, build_neuron
from tools.optim import build_optimizer
from tools.runtime.cuda_graph import WARM_UP, GraphedStep
from tools.runtime.device import keep_freed_memory

# in_shape, T, B (for CPUs)
NETWORKS = {"sresnet18": ((3, 32, 32), 2, 16), "cifarnet": ((3, 32, 32), 2, 16), "vgg": ((2, 48, 48), 10, 4)}
NEURONS = {"ReLU": nn.ReLU, "NILIF": build_neuron("NILIF"), "LIF": build_neuron("LIF"), "LIFNode": memopt.neuron}
CANDIDATES = ("ReLU", "NILIF", "NILIF lean", "NILIF smallest", "LIF")


def sizes(network, args):
    """in_shape, T, B of a network: those of `NETWORKS`, unless flags say otherwise."""
    in_shape, timesteps, batch = NETWORKS[network]
    return in_shape, args.timesteps or timesteps, args.minibatch or batch


class Step:
    """A network with its optimiser and a batch; images are repeated over time as event frames would be."""

    def __init__(self, network, candidate, args):
        neuron, _, memory = candidate.partition(" ")
        in_shape, self.timesteps, batch = sizes(network, args)
        device = args.device
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.amp == "bf16")
        torch.manual_seed(0)
        options = dict(in_shape=in_shape, num_classes=10, width=args.width)
        self.net = build_model(network, neuron=NEURONS[neuron], **options).to(device)
        self.images = torch.rand(batch, *in_shape, device=device)
        self.target = torch.randint(10, (batch,), device=device)
        if args.plain:
            self.optimizer = torch.optim.Adam(self.net.parameters(), foreach=False)
        else:
            self.net.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            self.optimizer = build_optimizer("adam", self.net, 1e-3, 0.0)
        if neuron == "LIFNode":
            memopt.prepare(self.net, memory, self.loss)
        else:
            self.net.memory = memory or "fast"
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

    def train_twice(self):
        """The second step finds the state of the optimiser."""
        self.train()
        self.train()

    @torch.no_grad()
    def infer(self):
        self.net.eval()
        with self.autocast:
            self.net(self.images, timesteps=self.timesteps)


def live_mib(network, candidate, args):
    """The peak of all tensors in two training steps, from none."""
    return live_memory(lambda: Step(network, candidate, args).train_twice(), args.device).peak


def memory_fields(kept, live, candidate):
    """The part of a result about memory: {candidate: MiB} between the passes, and at the peak of a step."""
    fields = {}
    for what, sizes_mib in dict(kept=kept, live=live).items():
        fields[f"{what}_mib"] = round(sizes_mib[candidate], 3)
        fields[f"{what}_ratio_to_relu"] = round(sizes_mib[candidate] / sizes_mib["ReLU"], 3)
    return fields


def measured(network, args):
    """The results of one network, one for each kind of neuron."""
    in_shape, timesteps, batch = sizes(network, args)
    steps = {candidate: Step(network, candidate, args) for candidate in args.candidates}
    times = {}
    for what in ("train", "infer"):
        runs = {candidate: getattr(step, what) for candidate, step in steps.items()}
        times[what] = in_turns(runs, args.repeats, args.device)
    kept = {candidate: live_memory(step.loss, args.device).kept for candidate, step in steps.items()}
    del steps, runs
    live = {candidate: live_mib(network, candidate, args) for candidate in args.candidates}
    for neuron in args.candidates:
        result = dict(network=network, neuron=neuron, T=timesteps, B=batch, in_shape=in_shape)
        result["width"] = args.width
        for what, spreads in times.items():
            result[f"{what}_s"] = {key: round(value, 5) for key, value in spreads[neuron].items()}
            result[f"{what}_ratio_to_relu"] = round(spreads[neuron]["median"] / spreads["ReLU"]["median"], 3)
        result |= memory_fields(kept, live, neuron)
        yield result


def step_parser(doc):
    """A parser of the flags that say which training steps are measured."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--peer", choices=["memopt"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--amp", choices=["no", "bf16"], default="no")
    parser.add_argument("--cuda_graph", action="store_true")
    return parser


def parsed(parser):
    """The flags, after what they say of the process is done."""
    args = parser.parse_args()
    if args.cuda_graph and (args.plain or args.peer or torch.device(args.device).type != "cuda"):
        parser.error("--cuda_graph needs --device cuda, and the optimiser of training, not --plain or --peer")
    if args.cuda_graph:
        args.candidates = [candidate for candidate in args.candidates if " " not in candidate]
    peers = memopt.CANDIDATES if args.peer else ()
    args.candidates = list(dict.fromkeys(["ReLU", *args.candidates, *peers]))  # ReLU: the others are compared with it
    if not args.plain:
        keep_freed_memory()
    return args


def flags():
    """The parser of this script."""
    parser = step_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--timesteps", type=int, default=0, help="0: those of `NETWORKS`")
    parser.add_argument("--minibatch", type=int, default=0, help="0: that of `NETWORKS`")
    return parser


def main():
    args = parsed(flags())
    for network in args.networks:
        for result in measured(network, args):
            settings = dict(plain=args.plain, amp=args.amp, cuda_graph=args.cuda_graph, repeats=args.repeats)
            report("step", args.device, **result, **settings)


if __name__ == "__main__":
    main()
