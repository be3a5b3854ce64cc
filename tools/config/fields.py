"""Settings: fields of a configuration that are command-line flags and keys of a recipe."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable, Iterable
from functools import partial

from tools.errors import UserError
from tools.inference import AMP_DTYPES

AMP = ("no", *AMP_DTYPES)
MOST_STEPS = 10_000  # most time steps: each needs memory, and their number may come from a checkpoint by a stranger
GROUPS = (  # headings of --help, in this order
    "evaluation",
    "strength of perturbations",
    "network",
    "neuron and noise",
    "loss",
    "optimisation",
    "augmentation",
    "event data",
    "data",
    "run",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a configuration; `settings` fills in the last four from the dataclass field itself."""

    help: str
    group: str  # its heading in --help, one of `GROUPS`
    choices: Iterable | Callable[[bool | None], Iterable] | None = None  # or a function as `allowed` is
    low: float | None = None  # smallest value
    high: float | None = None  # largest value
    below: float | None = None  # the value must be smaller than this
    network: bool = False  # describes the network, so an evaluation may override it
    only: str | None = None  # "pixels" or "events": the kind of data set that has this setting; None: both
    name: str = ""
    kind: type = str  # for a list, the type of its items
    is_list: bool = False
    default: object = None

    def allowed(self, has_pixels: bool | None = None) -> tuple | None:
        """The values to choose from for data sets of pixels (True), of events (False), or both; None: any value."""
        choices = self.choices(has_pixels) if callable(self.choices) else self.choices
        return None if choices is None else tuple(choices)

    def converted(self, value: object, where: str) -> object:
        """A value from a file, converted to this setting's type: an int or YAML's string 1e-3 may become a float.

        Raises:
            UserError: for a value of another type, with `where` at its start.
        """
        if self.is_list:
            item = dataclasses.replace(self, is_list=False)
            return [item.converted(one, where) for one in (value if isinstance(value, list) else [value])]
        if self.kind is float and type(value) in (int, str):
            with contextlib.suppress(ValueError, OverflowError):
                return float(value)
        if value is False and self.kind is str and "no" in (self.allowed() or ()):
            return "no"  # YAML 1.1 reads an unquoted no as false
        if type(value) is not self.kind:
            raise UserError(f"{where} must be {self.kind.__name__}, got {value!r}")
        return value

    def check(self, value: object, where: str = "", has_pixels: bool | None = None) -> None:
        """Raise UserError if a value, or an item of a list, has another type, is not a choice, or is out of range.

        Choices for the other kind of data set pass here: the code that uses them says why it refuses them.
        """
        if self.is_list and not isinstance(value, list | tuple):
            raise UserError(f"{where}{self.name} must be a list, got {value!r}")
        allowed = self.allowed()
        kinds = (int, float) if self.kind is float else self.kind
        for item in value if self.is_list else [value]:
            if item is None:  # in an evaluation: as in the checkpoint
                continue
            if not isinstance(item, kinds) or (isinstance(item, bool) and self.kind is not bool):
                raise UserError(f"{where}{self.name} must be {self.kind.__name__}, got {item!r}")
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{where}{self.name} must be finite, got {item!r}")
            if allowed is not None and item not in allowed:
                offered = ", ".join(self.allowed(has_pixels))
                raise UserError(f"{where}{self.name} must be one of {offered}; got {item!r}")
            if self.low is not None and not item >= self.low:
                raise UserError(f"{where}{self.name} must be at least {self.low}, got {item!r}")
            if self.high is not None and not item <= self.high:
                raise UserError(f"{where}{self.name} must be at most {self.high}, got {item!r}")
            if self.below is not None and not item < self.below:
                raise UserError(f"{where}{self.name} must be below {self.below}, got {item!r}")


def option(default: object, help: str, **details: object) -> typing.Any:
    """A dataclass field that is also a flag; `details` go to `Setting`. Its annotation is T, T | None or list[T]."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**start, metadata={"setting": Setting(help, **details)})


def settings(config_class: type) -> dict[str, Setting]:
    """The settings of a configuration, by name."""
    found = {}
    for field in dataclasses.fields(config_class):
        kind = (typing.get_args(field.type) or (field.type,))[0]  # the T of T | None and of list[T]
        is_list = typing.get_origin(field.type) is list
        default = [] if is_list else field.default
        setting = field.metadata["setting"]
        found[field.name] = dataclasses.replace(setting, name=field.name, kind=kind, is_list=is_list, default=default)
    return found


_data = partial(option, group="data")
_run = partial(option, group="run")


@dataclasses.dataclass
class RunConfig:
    """The settings that training and evaluation share; UserError for a value that its flag refuses too."""

    seed: int = _run(0, "seed of weights, data order, augmentation, noise; evaluation: of all draws", low=0, high=2**53)
    device: str = _run("auto", "torch device; auto: CUDA if available, else the CPU")
    threads: int = _run(0, "CPU threads of PyTorch; 0: PyTorch's default", low=0, high=4096)
    debug: bool = _run(False, "verbose log with tracebacks; training: anomaly detection, 5 batches per pass")
    data_root: str = _data("", "folder of the data sets; default: NSNN_DATA, else DATA_ROOT in dataset_utils.py")
    download: bool = _data(False, "download the data set if it is missing")
    workers: int = _data(4, "threads that decode images, or processes that read recordings, at first use", low=1)
    memory_gb: float = _data(
        4.0, "main_images.py: images that need more memory are read again in every epoch", low=0.0, only="pixels"
    )
    lenient: bool = _data(False, "skip damaged recordings and report how many, instead of failing", only="events")

    def __post_init__(self):
        for name, setting in settings(type(self)).items():
            setting.check(getattr(self, name))

    @staticmethod
    def updated(values: dict, layer: dict, file: str = "") -> dict:
        """`values` by name, overridden by those of a `layer` (read from `file`, if not empty)."""
        return {**values, **layer}
