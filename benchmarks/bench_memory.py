"""Memory of the training step of whole networks, against time steps and batch; and the largest batch that fits.

    python benchmarks/bench_memory.py [--networks sresnet18 cifarnet vgg] [--candidates NILIF "NILIF lean"]
        [--timesteps 2 4 8] [--minibatch 4 16] [--limit_mib M] [--device cpu] [--plain] [--width W] [--amp bf16]
        [--peer memopt]

One JSON line per network, T, B and candidate, with the memory that `bench_step.py` reports: counted exactly, so that
it depends neither on the machine's load nor on what ran before. With `--limit_mib`, instead, one line per network, T
and candidate: the largest batch whose training step runs in M MiB, and its ratio to that of the ReLU network. These
MiB are for all that comes after the start of Python and of the libraries: network, optimiser, tensors, and what
libraries copy.

On CPUs, each trial is a process under `RLIMIT_DATA`. It limits private writable memory at the time when it is asked
for, touched or not: a trial beyond the limit ends with an error. Freed memory goes back to the system at once, so that
the result is the same on every run. `RLIMIT_AS` would count the libraries' files and addresses that threads reserve,
too; a limit on resident memory is not enforced without control groups, which need rights, and end the process. On CUDA,
the limit is one of PyTorch's allocator.
"""

import argparse
import ctypes
import functools
import gc
import itertools
import multiprocessing
import resource
import sys
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it: once here, not in each trial

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where this is started as a file
from benchmarks.bench_step import Step, live_mib, memory_fields, parsed, sizes, step_parser
from benchmarks.common import live_memory, report

BEYOND = 3  # the exit code of a trial that ran out of memory


def with_settings(args, **changed):
    return argparse.Namespace(**{**vars(args), **changed})


def _warm_up(network, candidate, args):
    Step(network, candidate, with_settings(args, width=0.05, minibatch=1, timesteps=1)).train_twice()


def memory(network, args):
    """The results of one network, T and B, one for each candidate."""
    _warm_up(network, "ReLU", args)  # on CUDA, libraries have workspaces, which would count for the first candidate
    live = {candidate: live_mib(network, candidate, args) for candidate in args.candidates}
    kept = {}
    for candidate in args.candidates:
        step = Step(network, candidate, args)
        kept[candidate] = live_memory(step.loss, args.device).kept
    for candidate in args.candidates:
        yield dict(neuron=candidate, B=sizes(network, args)[2], **memory_fields(kept, live, candidate))


def largest(fits, start):
    """The largest whole number that fits, as all below it do; 0 if 1 does not. `start` is the first to be tried."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batches(network, args):
    """The results of one network and T, one for each candidate."""
    fits = fits_on_cuda if torch.device(args.device).type == "cuda" else fits_on_cpu
    of_relu = None  # which is the first
    for candidate in args.candidates:
        batch = largest(functools.partial(fits, network, candidate, args), start=sizes(network, args)[2])
        of_relu = batch if of_relu is None else of_relu
        if not of_relu:
            sys.exit(f"--limit_mib {args.limit_mib}: not even one sample of {network} fits with ReLU")
        ratio = round(batch / of_relu, 3)
        yield dict(neuron=candidate, limit_mib=args.limit_mib, largest_batch=batch, ratio_to_relu=ratio)


def fits_on_cpu(network, candidate, args, batch):
    """Whether two training steps run under the limit, in a process that ends with them.

    The error of those that do not is shown: it tells whether memory was what they lacked. Some libraries crash where
    memory is short, instead of saying so: then the same steps without the limit tell.
    """
    code = _trial(network, candidate, args, batch, args.limit_mib)
    if code < 0 and _trial(network, candidate, args, batch, None) == 0:
        sys.stderr.write(f"{network}, {candidate}, {batch} samples: signal {-code}, but only under the limit\n")
        return False
    if code not in (0, BEYOND):
        sys.exit(f"{network}, {candidate}: the trial with {batch} samples ended with code {code}")
    return code == 0


def _trial(*trial):
    # A fork spares importing; it needs a parent that has computed nothing, whose threads a child would miss.
    process = multiprocessing.get_context("fork").Process(target=limited_steps, args=trial)
    process.start()
    process.join()
    return process.exitcode


def return_freed_memory():
    """Let each tensor of a page or more be memory of its own, which the system has back when it is freed.

    Else it would depend on what lies idle in the heap, and where, how much fits beside it.
    """
    m_mmap_threshold, m_mmap_max = -3, -4  # of glibc's malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_max, 2**20)
    mallopt(m_mmap_threshold, 4096)


def limited_steps(network, candidate, args, batch, limit_mib):
    return_freed_memory()
    _warm_up(network, candidate, args)  # starts threads, loads kernels
    gc.collect()
    if limit_mib is not None:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        limit = int(line.split()[1]) * 2**10 + int(limit_mib * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        Step(network, candidate, with_settings(args, minibatch=batch)).train_twice()
    except (MemoryError, RuntimeError) as error:  # each library has words of its own for it
        sys.stderr.write(f"{network}, {candidate}, {batch} samples: {str(error).splitlines()[:1]}\n")
        sys.exit(BEYOND)


def fits_on_cuda(network, candidate, args, batch):
    """Whether two training steps run in as much memory of the device."""
    total = torch.cuda.get_device_properties(args.device).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, args.limit_mib * 2**20 / total), args.device)
    try:
        Step(network, candidate, with_settings(args, minibatch=batch)).train_twice()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, args.device)
    return True


def flags():
    """The parser of this script."""
    parser = step_parser(__doc__)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[0], help="0: those of `NETWORKS`")
    parser.add_argument("--minibatch", type=int, nargs="+", default=[0], help="0: that of `NETWORKS`")
    parser.add_argument("--limit_mib", type=float, help="find the largest batch")
    return parser


def main():
    args = parsed(flags())
    measure, batches = (memory, args.minibatch) if args.limit_mib is None else (largest_batches, [0])
    for network, timesteps, batch in itertools.product(args.networks, args.timesteps, batches):
        point = with_settings(args, timesteps=timesteps, minibatch=batch)
        in_shape, timesteps, _ = sizes(network, point)
        step = dict(T=timesteps, in_shape=in_shape, width=args.width, plain=args.plain, amp=args.amp)
        for result in measure(network, point):
            report("memory", args.device, network=network, **result, **step)


if __name__ == "__main__":
    main()
