"""Validation and test of the network in training."""

import contextlib

from torch import nn

from tools import inference
from tools.data.batches import Batches
from tools.inference import Scores
from tools.networks import seeded_noise
from tools.probes.firing_rates import firing_rates
from tools.runtime.interruption import Interruption
from tools.runtime.seeds import derived_seed

from .loop import Learner


class Evaluator:
    """Scores a network with the same noise in every epoch; the noise of training goes on undisturbed.

    Args:
        net: the network.
        learner: says how it is run, and in which processes.
        seed: of the run.
        interruption: requests to stop, which a single process obeys at once.
    """

    def __init__(self, net: nn.Module, learner: Learner, seed: int, interruption: Interruption):
        self.net = net
        self.forward, self.processes = learner.forward, learner.processes
        self.seed = seed
        self.interruption = interruption

    def validate(self, batches: Batches, watch_rates: bool) -> tuple[Scores, dict[str, float] | None]:
        """Scores on the validation images and, if asked for, the firing rate of each layer."""
        self.processes.share(self.net)  # each process has its own running statistics
        if not watch_rates:
            return self.score(batches, "validation"), None
        with firing_rates(self.net) as record:
            scores = self.score(batches, "validation")
        return scores, record.rates(self.processes)

    def score(self, batches: Batches, purpose: str) -> Scores:
        """Scores on all batches; `purpose` determines the noise."""
        # Several processes must stop at the same place, and here their numbers of batches differ.
        at_once = self.interruption.at_once() if self.processes.count == 1 else contextlib.nullcontext()
        seed = derived_seed(self.seed, purpose, self.processes.rank)
        with at_once, seeded_noise(self.forward.device, seed):
            return inference.evaluate(self.net, batches, self.forward, description=purpose, processes=self.processes)
