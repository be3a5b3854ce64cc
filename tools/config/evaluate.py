"""The configuration of an evaluation."""

import dataclasses

from models.functional import PLACEMENTS, RESETS
from models.registry import MODELS, NEURONS
from tools.attacks.campaign import PRESETS
from tools.data.events.frames import CELLS, SPLITS, VALUES
from tools.data.events.trees import CIFAR10_TRAINING
from tools.perturb import PERTURBATIONS

from .fields import AMP, MOST_STEPS, RunConfig, option


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
        choices=(1, 2, 3, 4, 5),
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
