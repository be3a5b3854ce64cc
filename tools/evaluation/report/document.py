"""results.json: all numbers of one evaluation. docs/results.schema.json describes it."""

import json
import platform
import sys

import torch

from tools.evaluation.conditions import unit
from tools.io.files import write_text_atomically
from tools.runtime.provenance import provenance

FORMAT = 2


def assemble(dataset, device, kinds, rows, summary, ensembles):
    """The document.

    Args:
        dataset: its name.
        device: that the networks were on, "cpu" or "cuda".
        kinds: {kind: list of (identity, results) of `Evaluation`}, one for each snapshot.
        rows, summary: of `comparison.compare`.
        ensembles: {kind: list of scores of ensembles of its snapshots}.
    """
    return {
        "format": FORMAT,
        "dataset": dataset,
        "command": sys.argv,
        "machine": {"processor": _processor(device), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "provenance": provenance(),
        "kinds": {
            kind: [_snapshot(identity, results) for identity, results in snapshots] for kind, snapshots in kinds.items()
        },
        "tests": rows,
        "summary": summary,
        "ensembles": ensembles,
    }


def write(path, document):
    """Write the document as JSON."""
    write_text_atomically(path, json.dumps(document, indent=1) + "\n")


def _snapshot(identity, results):
    """Results of one snapshot without what each sample contributed, which its own files have."""
    perturbations = {
        name: {"unit": unit(name), "points": [_without(point, "times_correct") for point in points]}
        for name, points in results["perturbations"].items()
    }
    snapshot = {"identity": identity, "perturbations": perturbations}
    for name in ("uncertainty", "efficiency"):
        if name in results:
            snapshot[name] = _without(results[name], "identity")
    if "attacks" in results:
        attacks = _without(results["attacks"], "identity")
        attacks["clean"] = _without(attacks["clean"], "times_correct")
        attacks["attacks"] = [_without(row, "times_correct") for row in attacks["attacks"]]
        snapshot["attacks"] = attacks
    return snapshot


def _without(content, key):
    return {name: value for name, value in content.items() if name != key}


def _processor(device):
    """The name of the processor, or of the accelerator where the networks were on one."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()
