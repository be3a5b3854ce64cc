"""What a configuration is made of: fields that are command-line flags and keys of a recipe."""

import dataclasses

from tools.inference import AMP_DTYPES

AMP = ("no", *AMP_DTYPES)


MAX_RECIPE_BYTES = 2**16


MOST_STEPS = 10_000  # of time: each keeps activations, and a checkpoint from anyone says how many there are


def option(default, help, choices=None, low=None, high=None, type=None, nargs=None):
    """A dataclass field that is also a flag.

    Args:
        default: its type is the type of the field, unless `type` is given.
        help: text for --help.
        choices: allowed values.
        low, high: allowed range, bounds included.
        nargs: "*" for a list.
    """
    kind = type or default.__class__
    meta = dict(help=help, choices=choices, low=low, high=high, kind=kind, nargs=nargs)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass
class RunConfig:
    """What training and testing have in common."""

    seed: int = option(
        0, "seed; training: of weights, data order, augmentation, noise; testing: of all draws", low=0, high=2**53
    )
    device: str = option("auto", "torch device; auto: CUDA where there is one")
    threads: int = option(0, "CPU threads of PyTorch; 0: PyTorch's default", low=0, high=4096)
    workers: int = option(
        4, "threads that decode an image folder, or processes that read recordings, the first time", low=1
    )
    data_root: str = option("", "folder of the data sets; default: NSNN_DATA, else DATA_ROOT of dataset_utils.py")
    lenient: bool = option(False, "event data: skip what is damaged, and say how much, instead of stopping there")
    download: bool = option(False, "download the data set if it is not there")
    debug: bool = option(False, "verbose log, where errors arose; training: also anomaly detection, 5 batches a pass")
