"""The configuration of an evaluation."""

import dataclasses
from functools import partial

from models import ArgumentError
from models.functional import MODES
from models.pretrained import pretrained_path
from tools.data.corruptions import SEVERITIES
from tools.errors import UserError

from .fields import RunConfig, option, settings
from .train import TrainConfig

_eval = partial(option, group="evaluation")
_strength = partial(option, group="strength of perturbations", low=0.0)
_on_pixels = partial(_strength, only="pixels")
_on_events = partial(_strength, only="events")
_run = partial(option, group="run")
PRETRAINED = "pretrained:"  # before the name of a network of the folder `pretrained`


def _perturbations(has_pixels: bool | None) -> list[str]:
    from tools.perturb import PERTURBATIONS, SETS, applicable  # slow to import

    return [*SETS, *(PERTURBATIONS if has_pixels is None else applicable(has_pixels))]


def _presets(has_pixels: bool | None) -> list[str]:
    from tools.attacks.campaign import PRESETS  # slow to import

    return list(PRESETS)


# The training settings that describe the network. They override those in our checkpoints; published ones have none.
NETWORK_SETTINGS = tuple(name for name, setting in settings(TrainConfig).items() if setting.network)
# `_Overrides` has these settings as fields, with the default None for "as in the checkpoint". They are copied from
# `TrainConfig`, so that a new flag of the network can be overridden without a change here.
_fields = []
for field in dataclasses.fields(TrainConfig):
    if field.name in NETWORK_SETTINGS:
        _fields.append((field.name, field.type | None, dataclasses.field(default=None, metadata=field.metadata)))
_Overrides = dataclasses.make_dataclass("_Overrides", _fields, bases=(RunConfig,))


@dataclasses.dataclass
class EvaluationConfig(_Overrides):
    """What to evaluate, and how; of the `NETWORK_SETTINGS`, None means the value in the checkpoint."""

    snapshot: str = _eval("", "checkpoint: a best.pth or last.pth of ours, a published one, or pretrained:NAME")
    compare: list[str] = _eval(
        [], "groups instead of one --snapshot, e.g. NSNN=a.pth,b.pth quiet=a.pth@noiseless,b.pth@noiseless SNN=c.pth"
    )
    inference: str = _eval(
        "noisy", "mode of noisy neurons; mean_field: they output their firing probability", choices=MODES
    )
    recalibrate: int = _eval(
        0,
        "training samples to estimate the statistics of batch normalisation from again, in this mode; 0: as trained",
        low=0,
    )
    n_ensembles: int = _eval(1, "noise draws whose softmax is averaged into one prediction", low=1)
    draws: int = _eval(5, "independent repetitions, reported as mean and standard deviation", low=1)
    perturbation: list[str] = _eval(
        [],
        "perturbations to evaluate; all: all that apply but attacks, published: the published tests and attacks that "
        "apply; these at severities 1 to 5",
        choices=_perturbations,
    )
    severity: list[int] = _eval(
        [], "1 to 5 as in CIFAR-10-C, instead of the strengths below", low=min(SEVERITIES), high=max(SEVERITIES)
    )
    range: bool = _eval(False, "sweep the strength from --left to --right by --step")
    left: float = _eval(0.0, "first strength of a sweep", low=0.0)
    right: float = _eval(0.5, "last strength of a sweep", low=0.0)
    step: float = _eval(0.1, "increment of a sweep", low=1e-9)
    corruptions: str = _eval("", "also evaluate on a folder of .npy files as in CIFAR-10-C", only="pixels")
    attack_preset: str | None = _eval(
        None, "attack the network, for an upper bound on its robustness", choices=_presets, only="pixels"
    )
    uncertainty: bool = _eval(False, "also score calibration and uncertainty against the number of averaged draws")
    ood: str = _eval("", "out-of-distribution data set (needs --uncertainty)")
    efficiency: bool = _eval(False, "also count synaptic operations, next to those of the same network with ReLU")
    pictures: bool = _eval(False, "also plot spike rasters of one test sample per class, and event recordings")

    gaussian_sigma: float = _on_pixels(0.1, "standard deviation of add_gaussian and multi_gaussian")
    sp_alpha: float = _on_pixels(0.05, "fraction of pixels changed by sp (salt and pepper)", high=1.0)
    photons: float = _on_pixels(100.0, "photons of a white pixel in shot", low=1.0)
    blur_sigma: float = _on_pixels(1.0, "standard deviation of blur, in pixels")
    contrast_factor: float = _on_pixels(0.5, "factor of contrast")
    brightness_delta: float = _on_pixels(0.1, "amount that brightness adds to each pixel", high=1.0)
    jpeg_quality: float = _on_pixels(50.0, "quality of jpeg", low=1.0, high=95.0)
    pixelate_factor: float = _on_pixels(0.5, "relative size after shrinking by pixelate", low=0.01, high=1.0)
    adv_gamma: float = _on_pixels(1.0, "L2 norm of the change made by adversarial (pixel range 1)")
    adv_eps: float = _on_pixels(8 / 255, "Linf norm of the change made by fgsm (pixel range 1)")
    adv_draws: int = _on_pixels(5, "noise draws averaged in each gradient of adversarial and fgsm", low=1)
    drop_p: float = _on_events(0.3, "fraction of events that eventdrop drops", high=1.0)
    drop_ratio: float = _on_events(0.3, "share of the time (drop_time) or of the sides (drop_area)", high=1.0)
    background_hz: float = _on_events(5.0, "events of background per pixel and second")
    pixel_fraction: float = _on_events(0.01, "fraction of pixels in hot_pixels and dead_pixels", high=1.0)
    jitter_us: float = _on_events(10000.0, "standard deviation of time_jitter, in microseconds")
    polarity_p: float = _on_events(0.1, "fraction of events that polarity_flip changes", high=1.0)
    spike_p: float = _strength(
        0.01, "probability of spike_level, spike_delete, spike_insert per neuron and step", high=1.0
    )
    membrane_sigma: float = _strength(0.3, "standard deviation of the extra noise of membrane")

    minibatch: int = _run(200, "samples per batch", low=1)
    fold: int = _run(256, "largest batch into which noise draws are folded", low=1)
    out: str = _run(
        "",
        "folder of the results (--compare: of the report); default: evaluation/ beside the checkpoint",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.snapshot.startswith(PRETRAINED):
            try:
                self.snapshot = str(pretrained_path(self.snapshot.removeprefix(PRETRAINED)))
            except ArgumentError as error:
                raise UserError(str(error)) from error
