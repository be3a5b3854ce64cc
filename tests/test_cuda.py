"""What needs a CUDA device: the same results as on the CPU, and whole runs."""

import contextlib
import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from models import NoisyLIF, Stream, build_model, build_neuron, mean_field, noise_generator, noiseless, plain
from models.memory import SETTINGS, used_as
from models.registry import NEURONS
from models.resnet import ResidualBlock
from tools.config.train import TrainConfig
from tools.data.events.augment import EventAugment
from tools.inference import seeded_noise
from tools.io import checkpoint
from tools.optim import OPTIMIZERS, build_optimizer
from tools.runtime.cuda_graph import WARM_UP, GraphedStep
from tools.training.loop import train_one_epoch
from tools.training.run import Training

DEVICE = "cuda"
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


def in_setting(memory, net, x, amp, mode):
    """Output and gradients of a copy of a network, from the same noise."""
    net = copy.deepcopy(net)
    autocast = torch.autocast(x.device.type, amp, enabled=amp is not None)
    with used_as(memory), mode(net), noise_generator(torch.Generator().manual_seed(3)), autocast:
        output = net(x)
    weights = torch.linspace(0.1, 1.0, output.shape[2], device=x.device).view(-1, 1, 1)
    return output, torch.autograd.grad((output.float() * weights).sum(), list(net.parameters()))


def residual_block():
    """A block of two spiking layers, and spikes that come into it."""
    torch.manual_seed(0)
    block, spikes = ResidualBlock(NoisyLIF, 8, 16, 2, "bn"), (torch.rand(3, 8, 8, 16, 16) < 0.3).float()
    return block.to(DEVICE), spikes.to(DEVICE)


@pytest.mark.parametrize(
    ("memory", "amp", "is_channels_last"),
    [
        ("lean", None, False),
        ("lean", torch.bfloat16, True),
        ("smallest", torch.float16, True),
        ("smallest", None, True),
    ],
)
def test_layers_that_keep_less_do_what_fast_ones_do(memory, amp, is_channels_last):
    """But for rounding, which decides on a spike now and then; those of the second layer depend on the first one's."""
    block, x = residual_block()
    if is_channels_last:
        block = block.to(memory_format=torch.channels_last)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    (ours, _), (right, _) = (in_setting(one, block, x, amp, contextlib.nullcontext) for one in (memory, "fast"))
    assert "NormLIF" in type(ours.grad_fn).__name__ and "NormLIF" not in type(right.grad_fn).__name__
    assert ours.dtype == right.dtype and 0.02 < right.float().mean() < 0.98
    assert (ours != right).float().mean() < (1e-3 if amp is None else 2e-2)
    (ours, grads), (right, right_grads) = (in_setting(one, block, x, amp, mean_field) for one in (memory, "fast"))
    for mine, other in zip((ours, *grads), (right, *right_grads), strict=True):
        assert (mine - other).float().norm() < (1e-3 if amp is None else 5e-2) * other.float().norm()


def test_gradients_in_batches_of_a_layer_that_keeps_less():
    block, x = residual_block()
    x.requires_grad_()
    with used_as("lean"):
        spikes = block(x)
    directions = torch.randn(3, *spikes.shape).to(DEVICE)
    one_by_one = torch.stack([torch.autograd.grad(spikes, x, one, retain_graph=True)[0] for one in directions])
    (batched,) = torch.autograd.grad(spikes, x, directions, is_grads_batched=True)
    torch.testing.assert_close(batched, one_by_one, rtol=1e-3, atol=1e-4)


def test_memory_settings_keep_less():
    kept = {}
    for memory in SETTINGS:
        options = dict(in_shape=(3, 32, 32), num_classes=10, width=0.25, memory=memory)
        net = build_model("sresnet18", neuron=build_neuron("NILIF"), **options).cuda()
        for _ in range(2):  # the first pass compiles kernels
            before = torch.cuda.memory_allocated()
            logits = net(torch.rand(4, 32, 3, 32, 32, device="cuda"))
            kept[memory] = torch.cuda.memory_allocated() - before
            logits.sum().backward()
            del logits
    assert kept["lean"] < 0.6 * kept["fast"] and kept["smallest"] < 0.35 * kept["fast"]


@pytest.mark.parametrize("memory", ["lean", "smallest"])
def test_a_run_that_keeps_less_learns(tmp_path, stripes, memory):
    options = dict(model="vgg", width=0.1, epochs=6, minibatch=20, lr=0.01, amp="bf16", results=str(tmp_path))
    assert Training(TrainConfig(memory=memory, **options), stripes).run().accuracy > 0.9


def losses_of_one_batch(lr, with_graph):
    """Of eight steps, from the same seeds."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 8, 8), num_classes=2).to(device)
    optimizer = build_optimizer("adam", net, lr, 0.0)
    batch = torch.rand(64, 1, 8, 8, device=device), torch.arange(64, device=device) % 2

    def step(batches):
        optimizer.zero_grad(set_to_none=True)
        ((images, target),) = batches
        loss = F.cross_entropy(net(images, timesteps=2).mean(0), target)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    run = GraphedStep(step, optimizer, device) if with_graph else step
    torch.manual_seed(1)
    return torch.cat([run([batch])[0].reshape(1) for _ in range(WARM_UP + 5)])


def test_five_replays_are_the_steps_that_an_ordinary_loop_takes():
    expected, found = (losses_of_one_batch(0.01, with_graph) for with_graph in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_each_replay_has_fresh_noise():
    """Nothing else changes: the learning rate is 0."""
    assert len(losses_of_one_batch(0.0, with_graph=True).unique()) == WARM_UP + 5


@pytest.mark.parametrize("amp", ["no", "bf16"])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_run_by_cuda_graphs_learns_as_an_ordinary_one(tmp_path, stripes, optim, amp):
    """With a schedule, clipping, a moving average, a penalty on spikes, several batches a step; then it is resumed."""
    options = dict(model="vgg", width=0.1, epochs=2, minibatch=10, accumulate=2, lr=0.01, optim=optim, amp=amp)
    options |= dict(clip_grad=1.0, ema=0.9, reg="rate", learnable_scale=True)
    losses = []
    for graph in (False, True):
        config = TrainConfig(cuda_graph=graph, run_dir=str(tmp_path / str(graph)), **options)
        training = Training(config, stripes)
        batches = training.data.train
        progress = training.learner.start(batches)
        train_one_epoch(training.learner, batches, 1, progress)
        losses.append(torch.stack(progress.losses))
        training.state.save(1)
    assert len(losses[0]) > WARM_UP + 3
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-2)
    config = TrainConfig(cuda_graph=amp == "no", resume=str(training.folder), **options)
    Training(config, stripes, given={"cuda_graph"}).run()


def test_the_benchmark_replays_its_steps(repository):
    flags = ["--device", "cuda", "--cuda_graph", "--networks", "cifarnet", "--width", "0.1", "--repeats", "1"]
    command = [sys.executable, str(repository / "benchmarks" / "bench_step.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["neuron"] for line in found] == ["ReLU", "NILIF", "LIF"]
    assert all(line["cuda_graph"] and line["train_s"]["median"] > 0 for line in found)


@pytest.mark.parametrize("model", ["sresnet18", "vgg", "cifarnet"])
def test_a_network_compiles(model):
    """Of 32x32 pixels: PyTorch fails to compile channels-last convolutions of 1x1 pixels (its issue 171622)."""
    net = build_model(model, neuron=build_neuron("NILIF"), in_shape=(3, 32, 32), num_classes=2, width=0.1).cuda()
    images = torch.rand(2, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    logits = torch.compile(net.to(memory_format=torch.channels_last))(images, timesteps=2)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_batch_normalisation_is_synchronised(script, memory):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=1")
    flags = ("--sync_bn", "--epochs", "1", "--model", "vggwoap", "--width", "0.1", "--memory", memory)
    process = script(*flags, launcher=launcher)
    said, _ = process.communicate()
    assert process.returncode == 0 and "test accuracy" in said, said
