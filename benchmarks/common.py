"""What the benchmarks share: fair timing, exact memory, and one JSON line per result."""

import json
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from tools.runtime.provenance import processor


def in_turns(candidates, repeats, device):
    """{name: function without arguments} -> {name: {"median", "q25", "q75"} of its seconds}.

    Candidates take turns, so that a drift of the machine affects all of them. Each runs twice per turn, and only the
    second run counts: the first finds the caches and the heap as another candidate left them. `repeats` turns count,
    after one that does not.
    """
    times = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, run in candidates.items():
            run()
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    spreads = {}
    for name, times_s in times.items():
        median, low, high = np.quantile(times_s[1:], (0.5, 0.25, 0.75)).tolist()
        spreads[name] = {"median": median, "q25": low, "q75": high}
    return spreads


class LiveMemory(NamedTuple):
    """What a function allocated for tensors, in MiB."""

    peak: float
    kept: float  # after it has returned, while its result exists


def live_memory(run, device):
    """`LiveMemory` of a function without arguments, exact: what PyTorch's allocators gave out and did not get back.

    Tensors that exist before do not count, nor does what libraries such as oneDNN allocate by themselves.
    """
    if torch.device(device).type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        synchronise(device)
        found = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        del result
        return LiveMemory(*((size - before) / 2**20 for size in found))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    del result
    sizes, live, peak = {}, 0, 0
    for _, address, size in _allocations(recorded):
        if size > 0:
            sizes[address] = size
            live += size
            peak = max(peak, live)
        else:
            live -= sizes.pop(address, 0)  # 0: it was allocated before
    return LiveMemory(peak / 2**20, live / 2**20)


def _allocations(recorded):
    """(time, address, size) of all that a profile has recorded, in the order of time; a size below 0: it was freed."""
    pending, found = list(recorded.profiler.kineto_results.experimental_event_tree()), []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.typed[1].ptr, event.typed[1].alloc_size))
    return sorted(found)


def synchronise(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def report(benchmark, device, **result):
    """Print one JSON line: the result, and the machine it was measured on."""
    line = {"benchmark": benchmark, **result, "device": processor(device), "threads": torch.get_num_threads()}
    sys.stdout.write(json.dumps({**line, "torch": torch.__version__}) + "\n")
    sys.stdout.flush()
