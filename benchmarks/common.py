"""What the benchmarks share: fair timing, and one JSON line per result."""

import json
import sys
import time

import numpy as np
import torch

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


def synchronise(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def report(benchmark, device, **result):
    """Print one JSON line: the result, and the machine it was measured on."""
    line = {"benchmark": benchmark, **result, "device": processor(device), "threads": torch.get_num_threads()}
    sys.stdout.write(json.dumps({**line, "torch": torch.__version__}) + "\n")
    sys.stdout.flush()
