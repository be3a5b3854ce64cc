"""Pictures: what is shown is what was recorded."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from models import SpikingNeuron, build_model, build_neuron
from tools import inference
from tools.data.events import EVENT
from tools.data.events.frames import Framing
from tools.data.events.labelled import LabelledRecordings
from tools.data.events.pictures import CLASSES, FRAMES, first_of_each, plot_recordings
from tools.data.images import LabelledImages
from tools.probes.rasters import picture_spikes, record_spikes, some_that_fire


def network():
    torch.manual_seed(0)
    return build_model(
        "vggwoap", neuron=build_neuron("NILIF"), in_shape=(1, 16, 16), num_classes=3, norm="bn", width=0.05
    ).eval()


def test_the_first_sample_of_each_class_is_shown():
    assert first_of_each(torch.tensor([2, 0, 2, 1, 0])).tolist() == [1, 3, 0]
    assert len(first_of_each(torch.arange(100))) == CLASSES


def test_all_layers_are_recorded():
    net, forward = network(), inference.ForwardPass(torch.device("cpu"), 3)
    spikes = record_spikes(net, torch.rand(4, 1, 16, 16), forward)
    assert set(spikes) == {name for name, module in net.named_modules() if isinstance(module, SpikingNeuron)}
    assert all(layer.shape[:2] == (3, 4) for layer in spikes.values())
    assert set(torch.cat([layer.unique() for layer in spikes.values()]).tolist()) == {0.0, 1.0}


def test_chosen_neurons_fire_and_are_the_same_each_time():
    spikes = torch.zeros(2, 3, 5, 10, 10)
    spikes[1, 2, 4, 3, 7] = spikes[0, 0, 1, 1, 1] = 1
    chosen = some_that_fire(spikes, 24)
    assert chosen.shape == (2, 3, 2) and chosen.sum() == 2
    spikes = (torch.rand(2, 3, 500) < 0.1).float()
    chosen = some_that_fire(spikes, 24)
    assert chosen.shape == (2, 3, 24) and chosen.sum((0, 1)).min() >= 1
    assert torch.equal(chosen, some_that_fire(spikes, 24))
    assert some_that_fire(torch.zeros(2, 3, 5), 24).shape == (2, 3, 0)


@pytest.mark.parametrize("samples", [3, 1])
def test_rasters_of_images_are_drawn(tmp_path, samples):
    data = LabelledImages(torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8), torch.arange(3)).subset(
        torch.arange(samples)
    )
    forward = inference.ForwardPass(torch.device("cpu"), 3)
    picture_spikes(tmp_path / "r.png", network(), data, ("a", "b", "c"), forward, "title")
    picture = imread(tmp_path / "r.png")[..., :3]
    colour = np.array(to_rgb("C0"))  # of the first layer's spikes
    assert (np.abs(picture - colour).max(-1) < 0.02).sum() > 50


def test_a_network_in_which_no_neuron_fires_is_drawn_as_such(tmp_path, figures):
    net = build_model("toynet", neuron=build_neuron("LIF", threshold=1e9), in_shape=(1, 4, 4), num_classes=2).eval()
    data = LabelledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2))
    picture_spikes(tmp_path / "r.png", net, data, ("a", "b"), inference.ForwardPass(torch.device("cpu"), 3), "title")
    assert [axes.texts[0].get_text() for axes in figures["r.png"].axes] == ["no neuron fires"] * 2


def test_spikes_behind_a_shorter_recording_are_not_drawn(tmp_path, figures):
    lengths, framing = np.array([2, 5]), Framing(5, "duration", (4, 4), (4, 4), frame_us=1)
    frames = np.zeros((2, 5, 2, 4, 4), np.uint8)
    labels = torch.arange(2)
    data = LabelledRecordings([None] * 2, frames, np.arange(2), labels, framing, "count", lengths=lengths)
    neuron = build_neuron("NILIF", sigma=3.0)
    net = build_model("toynet", neuron=neuron, in_shape=(2, 4, 4), num_classes=2).eval()
    picture_spikes(tmp_path / "r.png", net, data, ("a", "b"), inference.ForwardPass(torch.device("cpu"), 5), "title")
    drawn = [(axes.images[0].get_array() < 1).any((0, 2)) for axes in figures["r.png"].axes]
    assert [steps.tolist() for steps in drawn] == [[True] * 2 + [False] * 3, [True] * 5]


def test_no_more_frames_are_drawn_than_can_be_seen(tmp_path, figures):
    events = np.zeros(2, EVENT)
    for timesteps, steps in ((FRAMES, range(1, FRAMES + 1)), (1000, [1, 68, 134, 201])):
        frames = np.ones((1, timesteps, 2, 4, 4), np.float32)
        plot_recordings(tmp_path / f"{timesteps}.png", ["a"], [events], frames)
        labels = [axes.get_xlabel() for axes in figures[f"{timesteps}.png"].axes[1:]]
        assert len(labels) == FRAMES and labels[: len(steps)] == [f"frame {step}" for step in steps]
        assert labels[-1] == f"frame {timesteps}"


def test_both_polarities_of_recordings_are_drawn_also_where_frames_are_empty(tmp_path):
    events = np.zeros(40, EVENT)
    events["x"], events["t"], events["p"] = np.arange(40) % 8, np.arange(40) * 1000, np.arange(40) % 2
    frames = np.zeros((2, 3, 2, 8, 8), np.float32)
    frames[0, 0, 0, :4], frames[0, 0, 1, 4:] = 1, 1
    plot_recordings(tmp_path / "r.png", ["a", "b"], [events, events[:1]], frames)
    picture = imread(tmp_path / "r.png")[..., :3]
    for colour in ((0x1F, 0x77, 0xB4), (0xD6, 0x27, 0x28)):  # tab:blue, tab:red
        assert (np.abs(picture - np.array(colour) / 255).max(-1) < 0.02).sum() > 200
