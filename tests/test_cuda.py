"""What needs a CUDA device: the same results as on the CPU, and whole runs."""

import pytest
import torch

from models import NoisyLIF, Stream, build_model, build_neuron, noise_generator, noiseless, plain
from models.registry import NEURONS
from tools.config.train import TrainConfig
from tools.data.events.augment import EventAugment
from tools.inference import seeded_noise
from tools.io import checkpoint
from tools.training.run import Training

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and NSNN_TEST_CUDA=1"),
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


def test_seeded_noise_reaches_what_draws_past_it_and_leaves_other_draws_alone():
    device, state, drawn = torch.device("cuda"), torch.cuda.get_rng_state(), []
    for _ in range(2):
        with seeded_noise(device, 5):
            drawn.append(torch.rand(9, device=device))
    assert torch.equal(*drawn) and torch.equal(torch.cuda.get_rng_state(), state)


def test_noise_comes_from_the_generator_of_the_device():
    x = torch.zeros(2, 4, 100, device="cuda")
    draws = []
    for _ in range(2):
        with noise_generator(torch.Generator("cuda").manual_seed(5)):
            draws.append(NoisyLIF(threshold=0.1)(x))
    assert torch.equal(*draws) and 0 < draws[0].mean() < 1


def test_potentials_streams_and_plain_copies():
    net = torch.nn.Sequential(torch.nn.Linear(20, 20), NoisyLIF()).cuda()
    x = torch.randn(4, 8, 20, device="cuda")
    spikes, last, u = net[1].run(net[0](x), potentials=True)
    torch.testing.assert_close(u[-1] * (1 - spikes[-1]), last)
    weight = net[0].weight
    expected = torch.autograd.grad(last.sum(), weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((u[-1] * (1 - spikes[-1])).sum(), weight), expected)
    stream = Stream(net)
    with noiseless(net):
        torch.testing.assert_close(torch.stack([stream(x_t) for x_t in x]), net(x))
        copied = plain(net)
        program = torch.export.export(copied, (x,), dynamic_shapes=({0: torch.export.Dim("T")},)).module()
        torch.testing.assert_close(copied(x), net(x))
        torch.testing.assert_close(program(x[:3]), net(x)[:3])


def test_augmentation_of_events_stays_on_its_device():
    frames = torch.poisson(torch.full((200, 4, 2, 6, 8), 3.0)).to(torch.uint8).cuda()
    augment = EventAugment(flippable=torch.ones(1, dtype=torch.bool), roll=2, event_drop=True)
    augmented = augment(frames, torch.zeros(200, dtype=torch.long).cuda())
    assert augmented.device == frames.device and augmented.dtype == frames.dtype
    assert augmented.max() <= frames.max()


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_a_run_learns_and_resumes(tmp_path, stripes, amp):
    config = TrainConfig(
        model="vgg", width=0.1, epochs=6, minibatch=20, lr=0.01, amp=amp, channels_last=True, results=str(tmp_path)
    )
    training = Training(config, stripes)
    assert training.device.type == "cuda"
    assert training.run().accuracy > 0.9
    (state,) = checkpoint.read(training.folder / "last.pth")["processes"]
    assert len(state["rng"]["cuda"]) == torch.cuda.device_count()


@pytest.mark.parametrize("model", ["sresnet18", "vgg", "cifarnet"])
def test_a_network_compiles(model):
    """Of 32x32 pixels: PyTorch fails to compile channels-last convolutions of 1x1 pixels (its issue 171622)."""
    net = build_model(model, neuron=build_neuron("NILIF"), in_shape=(3, 32, 32), num_classes=2, width=0.1).cuda()
    images = torch.rand(2, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    logits = torch.compile(net.to(memory_format=torch.channels_last))(images, timesteps=2)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_batch_normalisation_is_synchronised(script):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=1")
    process = script("--sync_bn", "--epochs", "1", "--model", "vggwoap", "--width", "0.1", launcher=launcher)
    said, _ = process.communicate()
    assert process.returncode == 0 and "test accuracy" in said, said
