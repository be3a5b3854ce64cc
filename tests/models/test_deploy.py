"""Plain copies of networks: equal to the network, and exported, traced and run elsewhere."""

import copy
import io
import itertools
import math
import warnings

import onnxruntime
import pytest
import torch
import torch.distributed.fsdp
from torch import nn
from torch.export import Dim, export

import models
from models import (
    IF,
    LIF,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyLIF,
    ParametricLIF,
    SpikingNeuron,
    Uniform,
    build_model,
    build_neuron,
    convert,
    mean_field,
    noise_generator,
    noiseless,
)
from models.deploy import plain
from models.layers import over_time
from models.noise import LAWS
from models.resnet import SpikingResNet
from models.vgg import POOL, SpikingVGG
from tests.chance import likely
from tests.conftest import first_are_fast
from tests.models.test_noise import Laplace
from tests.models.test_stream import ByRun, Integrator, layers

MODES = {"noiseless": noiseless, "mean_field": mean_field}
FREE = ({0: Dim("T"), 1: Dim("B")},)
FREE_BATCH = ({1: Dim("B")},)


class ByStep(LIF):
    is_noisy = False

    def step(self, x_t, state=None):
        return super().step(2 * x_t, state)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.neuron = nn.Conv2d(3, 4, 3), NoisyLIF(reset="subtract")

    def forward(self, x):
        return self.neuron(over_time(self.convolution, x))


def toynet(neuron):
    return build_model("toynet", neuron=build_neuron(neuron), in_shape=(2, 3, 3), num_classes=4).eval()


def by_channel():
    """Of threshold, decay and scale."""
    values = torch.linspace(0.3, 0.6, 6)
    noisy = NoisyLIF(Gaussian(nn.Parameter(values)), threshold=nn.Parameter(values.clone()))
    return nn.Sequential(noisy, ParametricLIF(decay=values))


NETWORKS = {  # name: (makes a network, shape of one sample)
    "laws": (lambda: layers(*[NoisyLIF(law(0.4, 0.1)) for law in LAWS]), (6,)),
    "a user's law": (lambda: layers(NoisyLIF(Laplace(0.3)), LIF(Laplace(0.3))), (6,)),
    "learnt": (lambda: layers(ParametricLIF(decay_input=True), NoisyLIF(learnable_scale=True)), (6,)),
    "resets": (lambda: layers(IF(reset="subtract"), LIF(reset="none"), NoisyLIF(reset="none")), (6,)),
    "membrane": (lambda: layers(NoisyLIF(placement="membrane", detach_reset=True, decay_input=True)), (6,)),
    "one neuron": (lambda: NoisyLIF(decay=1.0, threshold=0.7), (6,)),
    "subclasses": (lambda: layers(ByRun(), Integrator()), (6,)),
    "pixels": (Pixels, (3, 9, 8)),
    "channels last": (lambda: Pixels().to(memory_format=torch.channels_last), (3, 9, 8)),
    "values by channel": (lambda: by_channel(), (6, 3)),
    "double": (lambda: layers(NoisyLIF(), LIF()).double(), (6,)),
    "half": (lambda: layers(NoisyLIF(), LIF()).bfloat16(), (6,)),
    "toynet": (lambda: toynet("NILIF"), (2, 3, 3)),
}  # fmt: skip


def made(name):
    """A network and inputs for two lengths and batch sizes."""
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    net = make().eval()
    dtype = next(iter(net.parameters()), torch.zeros(0)).dtype
    return net, (3 * torch.rand(3, 4, *shape)).to(dtype), (3 * torch.rand(5, 7, *shape)).to(dtype)


@pytest.fixture(params=NETWORKS)
def case(request):
    return made(request.param)


def all_but_slow(*fast):
    """Networks in each mode, of which those that are not named are slow tests."""
    others = [pair for pair in itertools.product(NETWORKS, MODES) if pair not in fast]
    slow = [pytest.param(*pair, marks=pytest.mark.slow) for pair in others]
    return pytest.mark.parametrize(("name", "mode"), [*fast, *slow])


def outputs(net, mode, *inputs):
    """What a network computes in a mode, without gradients."""
    with MODES[mode](net), torch.no_grad():
        return [net(x) for x in inputs]


def assert_same(actual, expected):
    """Spikes are the same; probabilities are but for rounding, which may differ between kernels."""
    if set(expected.unique().tolist()) <= {0.0, 1.0}:
        assert torch.equal(actual, expected) and 0 < expected.float().mean() < 1
    else:
        torch.testing.assert_close(actual, expected, atol=1e-2 if expected.dtype == torch.bfloat16 else 2e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_network_and_leaves_it_alone(case, mode):
    net, *inputs = case
    before = copy.deepcopy(net.state_dict())
    copied = plain(net, mode)
    for x, expected in zip(inputs, outputs(net, mode, *inputs)):
        assert_same(copied(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    neurons = [module for module in net.modules() if isinstance(module, SpikingNeuron)]
    assert all(neuron.backend == "auto" and getattr(neuron, "mode", "noisy") == "noisy" for neuron in neurons)
    assert all(parameter.requires_grad for parameter in net.parameters())


def in_onnxruntime(net, x, dynamic_shapes=FREE):
    """A network or its exported program, in ONNX and run by onnxruntime, as a function."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda other: torch.from_numpy(session.run(None, {name: other.numpy()})[0])


ONNX = {  # a mode of each: the operators of the other are those of another network
    **dict.fromkeys(["learnt", "resets", "membrane", "subclasses", "channels last"], "noiseless"),
    **dict.fromkeys(["laws", "a user's law", "one neuron", "pixels", "toynet", "values by channel"], "mean_field"),
}  # not "half" and "double": NumPy has no bfloat16, onnxruntime no Erf of doubles


@all_but_slow(("learnt", "noiseless"), ("toynet", "mean_field"), ("values by channel", "mean_field"))
def test_exported_with_free_length_and_batch(name, mode):
    torch._dynamo.reset()  # which may have compiled a scan of a fixed batch, and would take it for this one
    net, x, other = made(name)
    program = export(plain(net, mode), (x,), dynamic_shapes=FREE)
    assert not [node for node in program.graph.nodes if str(node.target).startswith("nsnn")]
    assert_same(program.module()(other), *outputs(net, mode, other))
    if ONNX.get(name) == mode:
        run, inputs = in_onnxruntime(program, x), (x, other, x[:1])
        for given, expected in zip(inputs, outputs(net, mode, *inputs)):
            torch.testing.assert_close(run(given), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("learnt", "mean_field"), ("toynet", "noiseless")])
def test_in_a_strict_export_too(name, mode):
    net, x, other = made(name)
    program = export(plain(net, mode), (x,), dynamic_shapes=FREE, strict=True)
    assert_same(program.module()(other), *outputs(net, mode, other))
    fixed = export(plain(net, mode), (x,), dynamic_shapes=FREE_BATCH, strict=True)
    assert not [node for node in fixed.graph.nodes if "scan" in str(node.target)]


def test_compiled_it_is_a_loop_for_each_length():
    torch._dynamo.reset()
    net = layers(LIF(), NoisyLIF())
    compiled = torch.compile(plain(net), dynamic=True, backend="eager", fullgraph=True)
    for timesteps in (2, 5):
        x = 3 * torch.rand(timesteps, 4, 6)
        assert_same(compiled(x), *outputs(net, "noiseless", x))
    torch._dynamo.reset()


def test_an_exported_program_is_saved_and_loaded():
    net, file = layers(LIF(), NoisyLIF(learnable_scale=True)), io.BytesIO()
    torch.export.save(export(plain(net), (torch.rand(3, 2, 6),), dynamic_shapes=FREE), file)
    file.seek(0)
    x = 3 * torch.rand(6, 5, 6)
    assert_same(torch.export.load(file).module()(x), *outputs(net, "noiseless", x))


@pytest.mark.parametrize("mode", first_are_fast(MODES))
def test_traced_by_jit_saved_and_loaded(case, mode):
    net, x, _ = case
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it will be removed from PyTorch one day
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # checks of shapes, which hold for any B
        torch.jit.save(torch.jit.trace(plain(net, mode), x), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "nsnn_" not in str(loaded.inlined_graph)
    assert_same(loaded(x[:, :3]), *outputs(net, mode, x[:, :3]))
    for wrong in (x[:2], torch.cat([x, x])):
        with pytest.raises(RuntimeError, match=r"Expected 3 elements|must match the size"):
            loaded(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_traced_by_fx(case, mode):
    net, *inputs = case
    if isinstance(net, SpikingNeuron):
        net = nn.Sequential(net)
    concrete = {"timesteps": None} if isinstance(net, models.layers.SpikingNetwork) else None
    graph = torch.fx.symbolic_trace(plain(net, mode), concrete_args=concrete)
    for x, expected in zip(inputs, outputs(net, mode, *inputs)):
        assert_same(graph(x), expected)


def test_an_export_does_not_fix_the_batch_of_the_next():
    net, x, other = made("learnt")
    torch.export.export(plain(net), (x,), dynamic_shapes=({0: Dim("T")},))  # a batch of 4
    free = torch.export.export(plain(net), (x,), dynamic_shapes=FREE).module()
    assert_same(free(other), outputs(net, "noiseless", other)[0])


@pytest.mark.slow
def test_onnx_of_a_fixed_length_refuses_another():
    net, x = layers(LIF(), NoisyLIF()), 3 * torch.rand(3, 2, 6)
    run = in_onnxruntime(plain(net), x, FREE_BATCH)
    assert_same(run(x[:, :1]), *outputs(net, "noiseless", x[:, :1]))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(x[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "options", "mode"),
    [  # an export takes seconds, more for deeper networks: other residual ones have more of the same blocks
        (SpikingResNet, dict(channels=(64, 128), blocks=(1, 1)), "noiseless"),
        (SpikingVGG, dict(plan=(64, POOL, (128, 2)), hidden=(100,)), "mean_field"),
    ],
)
def test_blocks_of_networks_run_by_onnxruntime(network, options, mode):
    torch.manual_seed(0)
    net = network(build_neuron("NILIF"), in_shape=(2, 9, 9), num_classes=3, width=0.05, **options)
    x, other = 3 * torch.rand(3, 4, 2, 9, 9), 3 * torch.rand(4, 2, 2, 9, 9)
    net(x)  # statistics of its batch normalisation
    net.eval()
    found = in_onnxruntime(plain(net, mode), x)(other)
    torch.testing.assert_close(found, *outputs(net, mode, other), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["noiseless", "mean_field"])
def test_a_converted_network_run_by_onnxruntime(mode):
    resnet = pytest.importorskip("torchvision").models.resnet
    torch.manual_seed(0)
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)  # resnet18 has two of each
    net = convert(net, neuron=build_neuron("NILIF"), timesteps=2)
    images = torch.rand(4, 3, 32, 32)
    net(images)  # statistics of its batch normalisation
    net.eval()
    found = in_onnxruntime(plain(net, mode), images[:2], ({0: Dim("B")},))(images)
    torch.testing.assert_close(found, *outputs(net, mode, images), atol=1e-5, rtol=1e-5)


def test_images_with_timesteps():
    net = toynet("PLIF")
    images = 3 * torch.rand(5, 2, 3, 3)
    with torch.no_grad():
        expected = net(images, timesteps=6)
    alone = plain(net, timesteps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(alone, images[:2])
    free_batch = {"x": {0: Dim("B")}, "timesteps": None}
    with_argument = export(plain(net), (images[:3],), {"timesteps": 6}, dynamic_shapes=free_batch)
    results = {
        "plain": plain(net)(images, timesteps=6),
        "alone": alone(images),
        "export": export(alone, (images[:3],), dynamic_shapes=({0: Dim("B")},)).module()(images),
        "export with the argument": with_argument.module()(images, timesteps=6),
        "jit": traced(images),
        "fx": torch.fx.symbolic_trace(alone)(images),
    }
    for name, result in results.items():
        torch.testing.assert_close(result, expected, msg=name, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_images_with_timesteps_run_by_onnxruntime():
    net, images = toynet("PLIF"), 3 * torch.rand(5, 2, 3, 3)
    found = in_onnxruntime(plain(net, timesteps=6), images[:3], ({0: Dim("B")},))(images)
    with torch.no_grad():
        torch.testing.assert_close(found, net(images, timesteps=6), atol=1e-6, rtol=1e-5)


def test_fx_is_told_what_it_lacks():
    with pytest.raises(ValueError, match="concrete_args"):
        torch.fx.symbolic_trace(plain(toynet("LIF")))
    with pytest.raises(RuntimeError, match=r"nn\.Sequential"):
        torch.fx.symbolic_trace(plain(LIF()))


def exported(net, x):
    return export(net, (x,), dynamic_shapes=FREE).module()


@pytest.mark.parametrize("law", [Gaussian(0.4), Logistic(0.3, 0.2), Uniform(0.5), Cauchy(0.2), Laplace(0.3)], ids=repr)
@pytest.mark.parametrize(
    "deployed", [lambda net, x: net, *(pytest.param(way, marks=pytest.mark.slow) for way in (exported, in_onnxruntime))]
)
def test_noise_has_its_law(law, deployed):
    """P(spike) of a neuron at rest is F(x - threshold), for each step and sample by itself."""
    torch.manual_seed(3)
    net = plain(NoisyLIF(law, placement="escape", decay=0.0), "noisy")
    spikes = deployed(net, torch.rand(3, 2, 200))(torch.full((4, 50, 200), 1.1))
    probability = law.cdf(torch.tensor(0.1)).item()
    steps, samples = spikes[0] * spikes[1], spikes[:, 0] * spikes[:, 1]
    for found, p in ((spikes, probability), (steps, probability**2), (samples, probability**2)):
        assert likely(found.sum(), found.numel(), p, comparisons=3)


def test_noise_in_both_places_has_its_law():
    torch.manual_seed(3)
    net = plain(NoisyLIF(Gaussian(0.3), decay=0.0, learnable_scale=True), "noisy")
    spikes = exported(net, torch.rand(3, 2, 200))(torch.full((4, 50, 200), 1.1))
    assert likely(spikes.sum(), spikes.numel(), Gaussian(0.3 * math.sqrt(2)).cdf(torch.tensor(0.1)))


def test_a_neuron_that_overrides_step_is_plain_at_a_fixed_length():
    torch.manual_seed(0)
    net, x = layers(ByStep(), NoisyLIF()), 3 * torch.rand(3, 4, 6)
    program = export(plain(net), (x,), dynamic_shapes=FREE_BATCH)
    assert not [node for node in program.graph.nodes if str(node.target).startswith("nsnn")]
    assert_same(program.module()(x[:, :2]), *outputs(net, "noiseless", x[:, :2]))


def compiled(net):
    return nn.Sequential(torch.compile(net[:2]), net[2:])


WRAPPERS = {
    "compiled": torch.compile,
    "compiled inside": compiled,
    "DataParallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_left_out(wrap):
    torch.manual_seed(0)
    net, x = layers(LIF(), NoisyLIF()), 3 * torch.rand(3, 4, 6)
    copied = plain(wrap(net))
    assert not any(hasattr(module, "_orig_mod") or isinstance(module, nn.DataParallel) for module in copied.modules())
    assert_same(copied(x), *outputs(net, "noiseless", x))


def test_compiled_in_place():
    torch.manual_seed(0)
    net, x = layers(LIF(), NoisyLIF()), 3 * torch.rand(3, 4, 6)
    expected = outputs(net, "noiseless", x)[0]
    net.compile(backend="eager")
    assert_same(export(plain(net), (x,)).module()(x), expected)


def test_inside_distributed_data_parallel_but_not_sharded(process_group):
    net, x = layers(ParametricLIF(), NoisyLIF()), 3 * torch.rand(3, 4, 6)
    assert_same(plain(nn.parallel.DistributedDataParallel(net))(x), *outputs(net, "noiseless", x))
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    with pytest.raises(RuntimeError, match="'0.weight' is sharded"):
        plain(torch.distributed.fsdp.fully_shard(net, mesh=mesh))


def test_training_it_is_an_error():
    net = plain(layers(LIF(), NoisyLIF()))
    with pytest.raises(RuntimeError, match="does not require grad"):
        net(torch.rand(3, 2, 6)).sum().backward()


def test_noise_of_a_generator_cannot_be_exported():
    net, x = plain(layers(NoisyLIF()), "noisy"), torch.full((3, 4, 6), 0.9)
    with noise_generator(torch.Generator().manual_seed(1)):
        first = net(x)
        for way in (exported, torch.jit.trace):
            with pytest.raises(RuntimeError, match="outside of the block"):
                way(net, x)
        exported(plain(net, "noiseless"), x)
    with noise_generator(torch.Generator().manual_seed(1)):
        assert torch.equal(net(x), first)


def test_a_mode_that_was_set_by_a_block_does_not_stay():
    net, x = NoisyLIF(Gaussian(0.5)), torch.full((4, 5, 100), 0.9)
    with noiseless(net):
        noisy = plain(net, "noisy")
        quiet = plain(net, "noiseless")
    assert 0 < noisy(x).mean() < 1 and not torch.equal(noisy(x), noisy(x))
    assert torch.equal(quiet(x), quiet(x))


def test_errors_name_what_is_wrong():
    class Strange(nn.Module):
        emits_spikes = True

    with pytest.raises(ValueError, match="mode must be one of"):
        plain(LIF(), "quiet")
    with pytest.raises(TypeError, match="layer '0' .Strange. lacks 'is_noisy'"):
        plain(nn.Sequential(Strange()))
