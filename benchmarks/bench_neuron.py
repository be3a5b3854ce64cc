"""One layer of neurons, forward and backward: nanoseconds per neuron and time step, one JSON line per candidate.

    python benchmarks/bench_neuron.py [--neurons 1048576] [--timesteps 2 4 10] [--repeats 15] [--device cpu]

Output tensors are allocated in each call, as in training. SpikingJelly, snnTorch and norse (without noise, their
default surrogate gradients) are measured where they are installed.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.common import in_turns, report
from models import LIF, Cauchy, Gaussian, Logistic, NoisyLIF, Triangular, Uniform
from models.functional import noisy_lif


def ours():
    """{name: function from x [T, B, N] to spikes}."""
    laws = (Gaussian(0.3), Logistic(0.2), Triangular(0.5), Uniform(0.5), Cauchy(0.2))
    eager = {"NoisyLIF Gaussian(0.3) eager": lambda x: noisy_lif(x, Gaussian(0.3), backend="eager")[0]}
    return {f"NoisyLIF {law}": NoisyLIF(law) for law in laws} | {"LIF": LIF()} | eager


def _spikingjelly():
    from spikingjelly.activation_based import functional, neuron

    node = neuron.LIFNode(step_mode="m")

    def run(x):
        functional.reset_net(node)
        return node(x)

    return run


def _snntorch():
    import snntorch

    leaky = snntorch.Leaky(beta=0.5)

    def run(x):
        leaky.to(x.device)
        potential, spikes = leaky.init_leaky(), []
        for x_t in x:
            spike, potential = leaky(x_t, potential)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def _norse():
    import norse.torch

    lifted = norse.torch.Lift(norse.torch.LIFBoxCell())
    return lambda x: lifted(x)[0]


def peers():
    """The same for the libraries that are installed; their neurons have no noise."""
    makers = {"SpikingJelly LIFNode": _spikingjelly, "snnTorch Leaky": _snntorch, "norse LIFBoxCell": _norse}
    return {name: make() for name, make in makers.items() if importlib.util.find_spec(name.split()[0].lower())}


def forward_and_backward(layer, x, gradient):
    """A function that runs a layer forward and backward once, and frees what it allocated."""

    def run():
        layer(x).backward(gradient)
        x.grad = None

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--neurons", type=int, default=2**20)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[2, 4, 10])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for timesteps in args.timesteps:
        x = torch.randn(timesteps, 16, args.neurons // 16, device=args.device, requires_grad=True)
        gradient = torch.randn_like(x)
        layers = {"ReLU": nn.ReLU(), **ours(), **peers()}
        runs = {name: forward_and_backward(layer, x, gradient) for name, layer in layers.items()}
        times = in_turns(runs, args.repeats, args.device)
        for name, time_s in times.items():
            ns = {key: round(value / x.numel() * 1e9, 3) for key, value in time_s.items()}
            relu = round(time_s["median"] / times["ReLU"]["median"], 3)
            result = dict(layer=name, T=timesteps, neurons=args.neurons, repeats=args.repeats)
            report("neuron", args.device, **result, ns_per_neuron_step=ns, ratio_to_relu=relu)


if __name__ == "__main__":
    main()
