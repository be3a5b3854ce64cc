"""The configuration of a training run, and what a script asks of its data set."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from crits import LOSSES, REGULARIZERS
from models.functional import PLACEMENTS, RESETS
from models.memory import SETTINGS
from models.registry import MODELS, NEURONS
from tools.data.events.frames import CELLS, SPLITS, VALUES
from tools.data.events.trees import TRAINING_SHARES
from tools.data.parts import LabelledParts
from tools.errors import UserError
from tools.optim import INITIALISATIONS, OPTIMIZERS, SCHEDULERS

from .fields import AMP, MOST_STEPS, RunConfig, option

_network = partial(option, group="network", network=True)
NEURON_GROUP = "neuron and noise"  # its settings are the arguments of `build_neuron`
_neuron = partial(option, group=NEURON_GROUP, network=True)
_loss = partial(option, group="loss")
_optimisation = partial(option, group="optimisation")
_augmentation = partial(option, group="augmentation")
_mix = partial(_augmentation, 0.0, low=0.0, high=100.0, only="pixels")
_frames = partial(option, group="event data", network=True, only="events")
_data = partial(option, group="data")
_run = partial(option, group="run")
REACTIONS = ("stop", "skip", "rollback")


@dataclasses.dataclass
class TrainConfig(RunConfig):
    """All settings of a training run; the data set is that of the script."""

    model: str = _network("vgg", "network", choices=MODELS)
    width: float = _network(1.0, "factor on all channel counts", low=1e-3, high=1e3)
    nobn: bool = _network(False, "leave out batch normalisation")
    timestep: int = _network(2, "number of time steps T", low=1, high=MOST_STEPS)
    init: str = _network("uniform", "weights: PyTorch's uniform, or orthogonal", choices=INITIALISATIONS, network=False)

    neuron: str = _neuron(
        "NILIF",
        "NI* are noisy, others not; PLIF learns its decay, IF has no leak; ReLU: without spikes, to compare with",
        choices=NEURONS,
    )
    threshold: float = _neuron(1.0, "firing threshold", low=1e-6)
    tau: float = _neuron(2.0, "decay of the potential is 1/tau (SpikingJelly's tau means decay 1 - 1/tau)", low=1.0)
    sigma: float = _neuron(0.3, "scale of the noise of a noisy neuron", low=1e-6)
    alpha: float = _neuron(1.0, "sharpness of the erf surrogate of a deterministic neuron", low=1e-6)
    placement: str = _neuron("both", "where a noisy neuron has noise", choices=PLACEMENTS)
    reset: str = _neuron("zero", "reset after a spike", choices=RESETS)
    detach_reset: bool = _neuron(False, "stop the gradient through the spike in the reset", network=False)
    decay_input: bool = _neuron(False, "multiply the input by 1 - decay")
    learnable_scale: bool = _neuron(False, "learn the scale of the noise, one per noisy layer", network=False)
    gradient_sigma: float = _neuron(
        0.0, "scale of the density that is the gradient of a noisy neuron; 0: as --sigma", low=0.0, network=False
    )

    loss: str = _loss("rate", "cross-entropy of mean logits, or of each step; tet adds a pull to 1", choices=LOSSES)
    tet: bool = _loss(False, "short for --loss tet")
    lambda_tet: float = _loss(0.05, "weight of the pull in --loss tet", low=0.0, high=1.0)
    label_smoothing: float = _loss(0.0, "label smoothing", low=0.0, below=1.0)
    reg: str = _loss("no", "regulariser", choices=("no", *REGULARIZERS))
    lambda1: float = _loss(1e-4, "weight of the regulariser", low=0.0)
    target_rate: float = _loss(0.1, "target of --reg rate, in spikes per neuron and step", low=0.0, high=1.0)

    epochs: int = _optimisation(
        100, "passes over the training data (resuming with more epochs stretches the schedule)", low=1
    )
    minibatch: int = _optimisation(64, "samples per batch and process", low=1)
    accumulate: int = _optimisation(1, "batches whose gradients make one step", low=1)
    lr: float = _optimisation(3e-3, "learning rate (the maximum of a schedule)", low=0.0)
    optim: str = _optimisation("adam", "optimiser", choices=OPTIMIZERS)
    weight_decay: float = _optimisation(0.0, "weight decay (not of learnt thresholds, decays and scales)", low=0.0)
    scheduler: str = _optimisation("cos", "learning-rate schedule, per step", choices=SCHEDULERS)
    clip_grad: float = _optimisation(0.0, "largest norm of the gradient; 0: no clipping", low=0.0)
    ema: float = _optimisation(0.0, "decay of a moving average of the weights to evaluate; 0: off", low=0.0, high=1.0)
    on_nonfinite: str = _optimisation(
        "stop",
        "reaction to a loss or gradient that is not finite; skip: undo the step; rollback: to the last checkpoint",
        choices=REACTIONS,
    )

    crop_padding: int = _augmentation(0, "pixels padded before a random crop; 0: none", low=0, high=1000, only="pixels")
    flip: bool = _augmentation(False, "random horizontal flip")
    cutout: int = _augmentation(0, "side in pixels of a random square set to zero; 0: none", low=0, only="pixels")
    mixup: float = _mix("alpha of MixUp, which blends images and labels by Beta(alpha, alpha); 0: off")
    cutmix: float = _mix("alpha of CutMix, which pastes boxes; 0: off; with --mixup, one of the two for each batch")
    autoaugment: bool = _augmentation(False, "AutoAugment, CIFAR-10 policy", only="pixels")
    roll: int = _augmentation(0, "largest random shift of a recording's frames, in pixels", low=0, only="events")
    event_drop: bool = _augmentation(False, "drop events: at random, in a time span, or in an area", only="events")

    frames_by: str = _frames(
        "count",
        "T frames of equally many events, those left over in the last (count) or spread (even), T of equal duration "
        "(time), or as many of --frame_ms as fill a recording (duration)",
        choices=SPLITS,
    )
    frame_ms: float = _frames(30.0, "milliseconds of a frame of --frames_by duration", low=1e-3)
    most_frames: int = _frames(
        1000, "most frames of a recording with --frames_by duration; longer ones are errors", low=1, high=MOST_STEPS
    )
    frame_values: str = _frames("normalised", "values of frames (normalised: by their maximum)", choices=VALUES)
    frame_cells: str = _frames("sum", "frames smaller than the sensor: sum over its pixels, or average", choices=CELLS)
    frame_size: int = _frames(0, "side of the frames in pixels, at most the sensor's; 0: the data set's usual", low=0)
    split: str = _frames("9:1", "training to test, for data without an official split", choices=TRAINING_SHARES)

    image_size: int = _data(
        0,
        "main_images.py: side to which images are scaled; 0: not at all, if all have one size of at most 64, else 64",
        low=0,
        high=4096,
        only="pixels",
    )
    demo: bool = _data(False, "shd: recordings made here, to try it without the data set", only="events")

    amp: str = _run("no", "automatic mixed precision", choices=AMP, network=True)
    channels_last: bool = _run(True, "channels-last memory format, the fastest for convolutions")
    compile: bool = _run(False, "torch.compile the network for training")
    cuda_graph: bool = _run(False, "run each training step as one CUDA graph, faster where launches take the time")
    memory: str = _run(
        "fast",
        "how much is kept for the backward pass; the rest is computed again, with the same results",
        choices=SETTINGS,
    )
    sync_bn: bool = _run(False, "batch normalisation over the batches of all processes (CUDA)")
    results: str = _run("results", "folder of all results")
    run_dir: str = _run("", "folder of this run, instead of <results>/<dataset>/<model>-<neuron>/<time>-s<seed>")
    resume: str = _run("", "continue a run: its folder or last.pth; auto: the one in --run_dir, if any")
    save_minutes: float = _run(
        10.0, "minutes between mid-epoch checkpoints (0: off); one is always saved after an epoch", low=0.0
    )
    save_steps: int = _run(0, "steps between mid-epoch checkpoints (0: off)", low=0)
    max_minutes: float = _run(0.0, "stop after this many minutes, with everything saved (0: no limit)", low=0.0)
    plot_spike_rate: bool = _run(False, "log the firing rate of every layer")
    histograms: bool = _run(True, "log histograms of weights and gradients (of at most 100 epochs)")

    def __post_init__(self):
        if self.tet and self.loss not in ("tet", type(self).loss):  # the default may not be the user's choice
            raise UserError(f"--tet and --loss {self.loss} contradict each other")
        self.loss = "tet" if self.tet else self.loss
        self.tet = self.loss == "tet"
        super().__post_init__()

    @staticmethod
    def updated(values: dict, layer: dict, file: str = "") -> dict:
        """As in `RunConfig`; `tet` in a layer is translated to `loss`."""
        layer = dict(layer)
        tet = layer.pop("tet", None)
        if file and "loss" in layer:
            tet = tet or None  # the config.yaml of a run with --loss tet may have tet: false
        if tet:
            layer.setdefault("loss", "tet")
        elif tet is False and values.get("loss") == "tet":
            layer.setdefault("loss", "rate")
        if tet is not None and "loss" in layer and tet != (layer["loss"] == "tet"):
            given = f"--{'' if tet else 'no-'}tet and --loss {layer['loss']}"
            raise UserError(f"{file}{': ' if file else ''}{given} contradict each other")
        return {**values, **layer}


@runtime_checkable
class OwnDataset(Protocol):
    """What a `Dataset` has besides, if its classes and sizes are found in a folder of the user."""

    def found(self, config: TrainConfig) -> "Dataset": ...  # the data set in config.data_root
    def facts(self) -> dict: ...  # what was found, in plain data, for checkpoints
    def with_facts(self, facts: object) -> "Dataset": ...  # UserError for facts that `facts` does not give


class Dataset(Protocol):
    """A data set, as in `dataset_utils`."""

    name: str  # as in main_<name>.py and in results
    classes: Sequence[str]  # names, in the order of the labels
    num_classes: int
    mean: Sequence[float]  # of each channel, for pixels in [0, 1], to normalise the network's inputs
    std: Sequence[float]
    has_pixels: bool  # True: images; False: event recordings
    # Of images, also `radii`: {"linf" or "l2": radii of attacks, rising, for pixels in [0, 1]}.
    # It may have `refused`: names of settings that have no meaning for it, and why ("which ...", "whose ...").

    def input_shape(self, config: TrainConfig) -> tuple[int, int, int]: ...  # (C, H, W) of the network's input
    def load(self, config: TrainConfig | None = None) -> LabelledParts: ...
    def augmentation(self, config: TrainConfig) -> Callable: ...  # of training batches
