"""Configurations: dataclasses whose fields are the command-line flags and the keys of a recipe.

Precedence, lowest first: the field's default, the script's defaults for its data set, the recipe
(`--config configs/x.yaml`), the command line. All go through the same checks of type and choice.
"""

import argparse
import dataclasses
import difflib
import math
import sys

import yaml

from models.functional import PLACEMENTS, RESETS
from models.registry import MODELS, NEURONS

from .attacks.campaign import PRESETS
from .conditions import SEVERITIES
from .engine import AMP_DTYPES
from .events.frames import CELLS, SPLITS, VALUES
from .events.trees import CIFAR10_TRAINING
from .files import read_bytes
from .optim import OPTIMIZERS, SCHEDULERS
from .perturb import PERTURBATIONS

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


@dataclasses.dataclass
class TrainConfig(RunConfig):
    """Everything that determines a training run, besides the data set."""

    # network and neuron
    model: str = option("vgg", "network", choices=tuple(MODELS))
    width: float = option(1.0, "factor on all channel counts", low=1e-3, high=1e3)
    nobn: bool = option(False, "no batch normalisation")
    neuron: str = option(
        "NILIF", "neuron; NILIF* are noisy, LIF, PLIF (learns its decay) and IF are not", choices=NEURONS
    )
    timestep: int = option(2, "number of time steps T", low=1, high=MOST_STEPS)
    threshold: float = option(1.0, "firing threshold", low=1e-6)
    tau: float = option(2.0, "decay of the potential is 1/tau (SpikingJelly's tau means decay 1 - 1/tau)", low=1.0)
    sigma: float = option(0.3, "scale of the noise of a noisy neuron", low=1e-6)
    alpha: float = option(1.0, "sharpness of the erf surrogate of a deterministic neuron", low=1e-6)
    placement: str = option("both", "where a noisy neuron has noise", choices=PLACEMENTS)
    reset: str = option("zero", "reset after a spike", choices=RESETS)
    detach_reset: bool = option(False, "no gradient through the spike in the reset")
    decay_input: bool = option(False, "input enters as (1 - decay) * x")
    learnable_scale: bool = option(False, "each noisy layer learns the scale of its noise")
    init: str = option("uniform", "weights: PyTorch's uniform, or orthogonal", choices=("uniform", "orthog"))
    # criterion
    tet: bool = option(False, "TET loss: cross-entropy of every step, and a pull of the logits to 1")
    lambda_tet: float = option(0.05, "weight of the pull in the TET loss", low=0.0, high=1.0)
    label_smoothing: float = option(0.0, "label smoothing, in [0, 1)", low=0.0, high=1.0)
    reg: str = option("no", "regulariser", choices=("no", "gram", "srip", "rate"))
    lambda1: float = option(1e-4, "weight of the regulariser", low=0.0)
    target_rate: float = option(0.1, "target of --reg rate, spikes per neuron and step", low=0.0, high=1.0)
    # optimisation
    epochs: int = option(
        100,
        "passes over the training images; with --resume it may be raised, and the schedule is the longer one's",
        low=1,
    )
    minibatch: int = option(64, "images per batch, and of each process", low=1)
    accumulate: int = option(1, "batches whose gradients make one step, as one large batch would", low=1)
    lr: float = option(3e-3, "learning rate (the highest one of a schedule)", low=0.0)
    optim: str = option("adam", "optimiser", choices=tuple(OPTIMIZERS))
    weight_decay: float = option(0.0, "weight decay (not of learnt decays and noise scales)", low=0.0)
    scheduler: str = option("cos", "learning rate schedule, per step", choices=tuple(SCHEDULERS))
    clip_grad: float = option(0.0, "largest norm of the gradient; 0: no clipping", low=0.0)
    ema: float = option(0.0, "decay of the moving average of weights that is evaluated; 0: off", low=0.0, high=1.0)
    amp: str = option("no", "automatic mixed precision", choices=AMP)
    channels_last: bool = option(True, "channels-last memory format, which convolutions are fastest in")
    compile: bool = option(False, "torch.compile the network for training")
    sync_bn: bool = option(False, "several processes: batch normalisation over the batches of all (CUDA)")
    on_nonfinite: str = option(
        "stop",
        "at a loss or gradient that is not finite: stop, skip the step, or roll back to the last checkpoint",
        choices=("stop", "skip", "rollback"),
    )
    # augmentation of training images
    crop_padding: int = option(0, "random crop after padding by this many pixels; 0: none", low=0)
    flip: bool = option(False, "random horizontal flip")
    cutout: int = option(0, "side in pixels of a random square set to zero; 0: none", low=0)
    autoaugment: bool = option(False, "AutoAugment, CIFAR-10 policy")
    # event data
    frames_by: str = option("count", "frames of equally many events, or equally long ones", choices=tuple(SPLITS))
    frame_values: str = option("normalised", "values of frames (normalised: by their maximum)", choices=VALUES)
    frame_cells: str = option("sum", "frames smaller than the sensor: sum over its pixels, or average", choices=CELLS)
    frame_size: int = option(0, "side of the frames in pixels, at most the sensor's; 0: the data set's usual", low=0)
    split: str = option(
        "9:1", "training to test, where a data set has no official split", choices=tuple(CIFAR10_TRAINING)
    )
    roll: int = option(0, "shift of the frames of a training recording, at most so many pixels", low=0)
    event_drop: bool = option(False, "EventDrop: lose events at random, in a stretch of time, or in an area")
    # run
    results: str = option("results", "folder of all results")
    run_dir: str = option("", "folder of this run, instead of <results>/<dataset>/<model>-<neuron>/<time>-s<seed>")
    resume: str = option(
        "", "continue a run: its folder or last.pth; auto: that in --run_dir, if there is one", type=str
    )
    save_minutes: float = option(10.0, "save the state so often, besides after every epoch; 0: no", low=0.0)
    save_steps: int = option(0, "save the state every so many steps of an epoch; 0: no", low=0)
    max_minutes: float = option(0.0, "stop after so long, with everything saved; 0: no limit", low=0.0)
    plot_spike_rate: bool = option(False, "log the firing rate of every layer")
    histograms: bool = option(True, "log histograms of weights and gradients, after 100 epochs at most")


@dataclasses.dataclass
class EvaluationConfig(RunConfig):
    """What to evaluate and how. Where a default is None, the snapshot's own value is used."""

    snapshot: str = option("", "checkpoint: a best.pth or last.pth of ours, or a published one")
    compare: list = option(
        [], "instead: kinds of networks, several seeds of each, as NSNN=a.pth,b.pth", type=str, nargs="*"
    )
    n_ensembles: int = option(1, "noise draws whose softmax is averaged into one prediction", low=1)
    draws: int = option(5, "independent repetitions, reported as mean and standard deviation", low=1)
    perturbation: list = option(
        [],
        "one or more perturbations of the test, or all (but adversarial) at all severities; none: clean only",
        choices=("all", *PERTURBATIONS),
        type=str,
        nargs="*",
    )
    severity: list = option(
        [],
        "test the perturbations at these severities, as in CIFAR-10-C, instead of the strengths below",
        choices=SEVERITIES,
        type=int,
        nargs="*",
    )
    gaussian_sigma: float = option(0.1, "strength of add_gaussian and multi_gaussian: standard deviation", low=0.0)
    sp_alpha: float = option(0.05, "strength of sp (salt and pepper): fraction of pixels", low=0.0, high=1.0)
    photons: float = option(100.0, "strength of shot: photons of a white pixel", low=1.0)
    blur_sigma: float = option(1.0, "strength of blur: standard deviation in pixels", low=0.0)
    contrast_factor: float = option(0.5, "strength of contrast: its factor", low=0.0)
    brightness_delta: float = option(0.1, "strength of brightness: added to the value", low=0.0, high=1.0)
    jpeg_quality: float = option(50.0, "strength of jpeg: quality", low=1.0, high=95.0)
    pixelate_factor: float = option(0.5, "strength of pixelate: size after shrinking", low=0.01, high=1.0)
    drop_p: float = option(0.3, "strength of eventdrop: fraction of events dropped", low=0.0, high=1.0)
    drop_ratio: float = option(
        0.3, "strength of drop_time and drop_area: share of the time, of the sides", low=0.0, high=1.0
    )
    background_hz: float = option(5.0, "strength of background: events per pixel and second", low=0.0)
    pixel_fraction: float = option(
        0.01, "strength of hot_pixels and dead_pixels: fraction of pixels", low=0.0, high=1.0
    )
    jitter_us: float = option(10000.0, "strength of time_jitter: standard deviation in microseconds", low=0.0)
    polarity_p: float = option(0.1, "strength of polarity_flip: fraction of events", low=0.0, high=1.0)
    spike_p: float = option(
        0.01, "strength of spike_level, spike_delete, spike_insert: probability per neuron and step", low=0.0, high=1.0
    )
    membrane_sigma: float = option(0.3, "strength of membrane: standard deviation of extra membrane noise", low=0.0)
    adv_gamma: float = option(1.0, "strength of adversarial: L2 norm of the attack, pixel range 1", low=0.0)
    adv_draws: int = option(5, "noise draws averaged in each gradient of adversarial", low=1)
    corruptions: str = option("", "also test a folder of .npy files as CIFAR-10-C has them")
    attack_preset: str = option(
        None, "also attack the network; what is left is an upper bound on its robustness", tuple(PRESETS), type=str
    )
    range: bool = option(False, "sweep the strength from --left to --right by --step")
    left: float = option(0.0, "first strength of a sweep", low=0.0)
    right: float = option(0.5, "last strength of a sweep", low=0.0)
    step: float = option(0.1, "increment of a sweep", low=1e-9)
    # the network: for a checkpoint that does not carry its configuration; otherwise these override it
    model: str = option(None, "network of a published checkpoint", choices=tuple(MODELS), type=str)
    width: float = option(None, "factor on all channel counts", low=1e-3, high=1e3, type=float)
    nobn: bool = option(None, "network without batch normalisation", type=bool)
    neuron: str = option(None, "neuron of a published checkpoint", choices=NEURONS, type=str)
    timestep: int = option(None, "number of time steps T", low=1, high=MOST_STEPS, type=int)
    threshold: float = option(None, "firing threshold", low=1e-6, type=float)
    tau: float = option(None, "decay is 1/tau (SpikingJelly's tau means decay 1 - 1/tau)", low=1.0, type=float)
    frames_by: str = option(
        None, "frames of equally many events, or equally long ones", choices=tuple(SPLITS), type=str
    )
    frame_values: str = option(None, "values of frames", choices=VALUES, type=str)
    frame_cells: str = option(None, "frames smaller than the sensor: sum or average", choices=CELLS, type=str)
    frame_size: int = option(None, "side of the frames of event data in pixels", low=0, type=int)
    split: str = option(None, "training to test", choices=tuple(CIFAR10_TRAINING), type=str)
    sigma: float = option(None, "scale of the noise of a noisy neuron", low=1e-6, type=float)
    alpha: float = option(None, "sharpness of the erf surrogate (no effect in a test)", low=1e-6, type=float)
    placement: str = option(None, "where a noisy neuron has noise", choices=PLACEMENTS, type=str)
    reset: str = option(None, "reset after a spike", choices=RESETS, type=str)
    decay_input: bool = option(None, "input enters as (1 - decay) * x", type=bool)
    amp: str = option(None, "automatic mixed precision", choices=AMP, type=str)
    # run
    uncertainty: bool = option(False, "also score calibration and uncertainty against the number of averaged draws")
    ood: str = option("", "with --uncertainty: another data set, whose test part must look uncertain")
    efficiency: bool = option(False, "also count synaptic operations, beside those of the same network with ReLU")
    pictures: bool = option(False, "also draw spike rasters of a test sample of each class, and recordings of events")
    minibatch: int = option(200, "images per batch", low=1)
    fold: int = option(256, "images of one pass at most, where noise draws are folded into the batch", low=1)
    out: str = option("", "folder of the results; default: evaluation/ beside the snapshot")


def parse(config_class, argv=None, defaults=None, dataset=None, description=None):
    """Build a configuration from defaults, recipe and command line.

    Args:
        config_class: `TrainConfig` or `EvaluationConfig`.
        argv: arguments; None means sys.argv[1:].
        defaults: values of the script, below the recipe.
        dataset: name of the script's data set; a recipe's key `dataset` must agree with it.
        description: first line of --help.

    Returns:
        The configuration, and the set of the names of fields given in the recipe or on the command line.

    Raises:
        SystemExit: with a message, as argparse does, for anything wrong in recipe or flags.
    """
    parser = _parser(config_class, description, defaults or {})
    given = vars(parser.parse_args(_underscored(parser, sys.argv[1:] if argv is None else argv)))
    recipe_path = given.pop("config", None)
    try:
        values = _read_recipe(recipe_path, config_class, dataset) if recipe_path else {}
        config = config_class(**{**(defaults or {}), **values, **given})
        _check_all(config)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return config, {*values, *given}


def checked(config_class, values, where):
    """A configuration made of plain values from a file, each checked as a recipe's is.

    Args:
        config_class: `TrainConfig` or `EvaluationConfig`.
        values: {name of a field: value}.
        where: for messages, what they are from.

    Raises:
        ValueError: for a value of the wrong type or out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    converted = {name: _convert(fields[name], value, f"{where}: {name}") for name, value in values.items()}
    config = config_class(**converted)
    _check_all(config, f"{where}: ")
    return config


def _parser(config_class, description, defaults):
    parser = argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="recipe; flags override it")
    for field in dataclasses.fields(config_class):
        meta = field.metadata
        default = defaults.get(field.name, field.default)
        text = meta["help"].replace("%", "%%")
        if default not in (None, "", dataclasses.MISSING):
            text += f" (default: {default})"
        name = f"--{field.name}"
        if meta["kind"] is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = None if meta["choices"] else meta["kind"].__name__.upper()
            parser.add_argument(
                name, type=meta["kind"], choices=meta["choices"], nargs=meta["nargs"], metavar=metavar, help=text
            )
    return parser


def _underscored(parser, argv):
    """Accept --weight-decay for --weight_decay: flags are listed once, and can be typed either way."""
    known = parser._option_string_actions
    result = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag not in known:
            prefix = "--no-" if flag.startswith("--no-") else "--"
            candidate = prefix + flag[len(prefix) :].replace("-", "_")
            flag = candidate if candidate in known else flag
        result.append(flag + equals + value)
    return result


def _read_recipe(path, config_class, dataset):
    """The recipe's values by field name; a ValueError names the nearest valid key."""
    recipe = _read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe {path} must be a list of `key: value` lines")
    recipe.pop("provenance", None)  # a run's config.yaml is a recipe too
    wanted = recipe.pop("dataset", dataset)
    if wanted != dataset:
        raise ValueError(f"recipe {path} is for the data set {wanted!r}, this script is for {dataset!r}")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values = {}
    for key, value in recipe.items():
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)[0]
            raise ValueError(f"recipe {path} has the unknown key {key!r}; did you mean {nearest!r}?")
        values[key] = _convert(fields[key], value, f"recipe {path}: {key}")
    return values


def _read_yaml(path):
    """The content of a small YAML file, as plain data; no file is so written that it grows when it is read."""
    raw, depth = read_bytes(path, MAX_RECIPE_BYTES), 0
    try:
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > 2:
                raise ValueError("a recipe has values and lists of values, no aliases and nothing deeper")
        return yaml.safe_load(raw)
    except Exception as error:  # PyYAML raises many kinds for values that are not what their tags say
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from error


def _convert(field, value, where):
    """Check a recipe's value as argparse would; an integer, or 1e-3 (a string in YAML 1.1), may be a float."""
    kind = field.metadata["kind"]
    if field.metadata["nargs"] == "*":
        value = value if isinstance(value, list) else [value]
        if not all(type(item) is kind for item in value):
            raise ValueError(f"{where} must be a list of {kind.__name__}, got {value!r}")
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if value is False and "no" in (field.metadata["choices"] or ()):
        return "no"  # YAML 1.1 reads an unquoted no as false
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _check_all(config, where=""):
    """Raise ValueError if any value is not among its field's choices or out of its range."""
    for field in dataclasses.fields(config):
        _check(field, getattr(config, field.name), where)


def _check(field, value, where):
    """Raise ValueError if a field's value is not among its choices or out of its range."""
    meta = field.metadata
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{where}{field.name} must be finite, got {item!r}")
        if meta["choices"] and item not in meta["choices"]:
            raise ValueError(f"{where}{field.name} must be one of {', '.join(map(str, meta['choices']))}; got {item!r}")
        if meta["low"] is not None and not item >= meta["low"]:
            raise ValueError(f"{where}{field.name} must be at least {meta['low']}, got {item!r}")
        if meta["high"] is not None and not item <= meta["high"]:
            raise ValueError(f"{where}{field.name} must be at most {meta['high']}, got {item!r}")
