"""The configuration of a training run."""

import dataclasses

from models.functional import PLACEMENTS, RESETS
from models.registry import MODELS, NEURONS
from tools.data.events.frames import CELLS, SPLITS, VALUES
from tools.data.events.trees import CIFAR10_TRAINING
from tools.optim import OPTIMIZERS, SCHEDULERS

from .fields import AMP, MOST_STEPS, RunConfig, option


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
