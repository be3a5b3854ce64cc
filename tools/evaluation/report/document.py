"""results.json: all numbers of one evaluation. docs/results.schema.json describes it."""

import platform
import sys
from typing import Any

import torch

from tools.evaluation.measurements import MEASUREMENTS
from tools.evaluation.results import Evaluation, SnapshotResults
from tools.runtime.provenance import provenance

FORMAT = 2


def assemble(evaluation: Evaluation) -> dict[str, Any]:
    """The content of results.json, where groups are called kinds."""
    return {
        "format": FORMAT,
        "dataset": evaluation.dataset,
        "command": sys.argv,
        "machine": {
            "processor": _processor(evaluation.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "provenance": provenance(),
        "kinds": {group: [_snapshot(one) for one in ones] for group, ones in evaluation.groups.items()},
        "tests": [row.as_json() for row in evaluation.rows],
        "summary": [row.as_json() for row in evaluation.summary],
        "ensembles": evaluation.ensembles,
    }


def _snapshot(results: SnapshotResults) -> dict[str, Any]:
    """The results of one snapshot without what each sample contributed, which its own files have."""
    content = {"identity": results.identity}
    for measurement in MEASUREMENTS:
        if measurement.key in results.reports:
            content[measurement.key] = measurement.summary(results.reports[measurement.key])
    return content


def _processor(device: str) -> str:
    """The name of the processor, or of the accelerator if the networks were on one."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()
