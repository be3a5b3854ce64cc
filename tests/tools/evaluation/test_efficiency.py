"""Costs and firing rates of recordings of different lengths."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import build_model, build_neuron
from tools.data.events.frames import Framing
from tools.data.events.labelled import LabelledRecordings
from tools.evaluation.measurements.efficiency import Efficiency


@pytest.mark.parametrize("name", ["LIF", "ReLU"])
def test_the_cost_of_a_recording_does_not_depend_on_those_in_its_batch(name):
    torch.manual_seed(0)
    lengths = np.array([2, 9, 5, 2])
    counts = np.random.default_rng(0).integers(0, 4, (4, 9, 2, 8, 8), np.uint8)
    counts[np.arange(9) >= lengths[:, None]] = 0
    framing = Framing(9, "duration", (8, 8), (8, 8), frame_us=1)
    data = LabelledRecordings([None] * 4, counts, np.arange(4), torch.arange(4), framing, "count", lengths=lengths)
    neuron, spikes = build_neuron(name, threshold=0.05), name != "ReLU"
    net = build_model("toynet", neuron=neuron, in_shape=(2, 8, 8), num_classes=4, width=0.1)

    def measure(part):
        def predict(chosen, *purpose, description):
            for frames, *_ in chosen.batches(4, torch.device("cpu")):
                net(frames)

        return Efficiency().measure(SimpleNamespace(net=net.eval(), has_neurons=spikes, test=part, predict=predict))

    together, alone = measure(data), [measure(data.subset([index])) for index in range(4)]
    assert together.cost.ac == pytest.approx(np.mean([one.cost.ac for one in alone]))
    assert (together.cost.ac > 0) == bool(together.firing_rates) == spikes
    if not spikes:
        assert [one.cost.mac for one in alone] == (lengths * (2 * 8 * 8 * 6 + 6 * 4)).tolist()  # 6 hidden neurons
    assert together.cost.mac == pytest.approx(np.mean([one.cost.mac for one in alone]))
    for layer, rate in together.firing_rates.items():
        rates = [one.firing_rates[layer] for one in alone]
        assert rate == pytest.approx(np.average(rates, weights=lengths)) and rate > 0
