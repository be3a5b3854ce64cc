"""What needs a CUDA device: the same results as on the CPU, and whole runs."""

import pytest
import torch

from models import NoisyLIF, build_model, build_neuron, noise_generator
from models.registry import NEURONS
from tools import checkpoint
from tools.config import TrainConfig
from tools.experiment import Training

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", NEURONS)
def test_a_neuron_gives_the_same_under_a_cpu_generator(name):
    x = torch.randn(4, 8, 33)
    results = []
    for device in ("cpu", "cuda"):
        neuron = build_neuron(name)().to(device)
        current = x.detach().to(device, copy=True).requires_grad_()
        with noise_generator(torch.Generator().manual_seed(3)):
            spikes = neuron(current)
        spikes.square().sum().backward()
        results.append((spikes.cpu(), current.grad.cpu()))
    differing = (results[0][0] != results[1][0]).float().mean()
    assert differing < 1e-3  # only where u - threshold is within rounding of the draw
    agree = (results[0][0] == results[1][0]).all(0)
    assert torch.allclose(results[0][1][:, agree], results[1][1][:, agree], rtol=1e-3, atol=1e-5)


def test_noise_comes_from_the_generator_of_the_device():
    x = torch.zeros(2, 4, 100, device="cuda")
    draws = []
    for _ in range(2):
        with noise_generator(torch.Generator("cuda").manual_seed(5)):
            draws.append(NoisyLIF(threshold=0.1)(x))
    assert torch.equal(*draws) and 0 < draws[0].mean() < 1


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_a_run_learns_and_resumes(tmp_path, stripes, amp):
    config = TrainConfig(
        model="vgg", width=0.1, epochs=6, minibatch=20, lr=0.01, amp=amp, channels_last=True, results=str(tmp_path)
    )
    training = Training(config, stripes)
    assert training.device.type == "cuda"
    assert training.run()["accuracy"] > 0.9
    (state,) = checkpoint.read(training.folder / "last.pth")["processes"]
    assert len(state["rng"]["cuda"]) == torch.cuda.device_count()


def test_a_network_compiles():
    net = build_model("cifarnet", neuron=build_neuron("NILIF"), in_shape=(3, 8, 8), num_classes=2, width=0.05).cuda()
    logits = torch.compile(net)(torch.rand(2, 3, 8, 8, device="cuda"), timesteps=2)
    logits.sum().backward()
    assert logits.isfinite().all()
