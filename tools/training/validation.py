"""Validation and test of the network in training."""

import contextlib
import dataclasses

from torch import nn

from tools import inference
from tools.data.batches import Batches
from tools.inference import Scores
from tools.networks import seeded_noise
from tools.probes.firing_rates import firing_rates
from tools.runtime.interruption import Interruption
from tools.runtime.seeds import derived_seed

from .loop import Learner


@dataclasses.dataclass
class Evaluator:
    """Scores a network with the same noise in every epoch; the noise of training goes on undisturbed.

    Args:
        net: the network.
        learner: says how it is run, and in which processes.
        seed: of the run.
        interruption: requests to stop, which a single process obeys at once.
    """

    net: nn.Module
    learner: Learner
    seed: int
    interruption: Interruption

    def validate(self, batches: Batches, watch_rates: bool) -> tuple[Scores, dict[str, float] | None]:
        """Scores on the validation images and, if asked for, the firing rate of each layer."""
        self.learner.processes.share(self.net)  # each process has its own running statistics
        if not watch_rates:
            return self.score(batches, "validation"), None
        with firing_rates(self.net) as record:
            scores = self.score(batches, "validation")
        return scores, record.rates(self.learner.processes)

    def score(self, batches: Batches, purpose: str) -> Scores:
        """Scores on all batches; `purpose` determines the noise."""
        processes, forward = self.learner.processes, self.learner.forward
        # Several processes must stop at the same place, and here their numbers of batches differ.
        at_once = self.interruption.at_once() if processes.count == 1 else contextlib.nullcontext()
        with at_once, seeded_noise(forward.device, derived_seed(self.seed, purpose, processes.rank)):
            return inference.evaluate(self.net, batches, forward, description=purpose, processes=processes)
