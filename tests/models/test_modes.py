"""The first use of a kernel under each of PyTorch's modes: the kernel's own checks must see none of them."""

import contextlib
import io
import threading
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import LIF, Gaussian, NoisyLIF, ParametricLIF
from models.kernels import cpu
from models.kernels import fused as fused_module
from tests.models.test_noise import Laplace


class Onlooker(TorchDispatchMode):
    """A user's mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Refusal(TorchFunctionMode):
    """A user's mode under which no tensor can be made by torch.arange, as the checks make theirs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func is not torch.arange
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "half": lambda: default_dtype(torch.float16),
    "double": lambda: default_dtype(torch.float64),
    "a user's dispatch mode": Onlooker,
    "a user's function mode": Refusal,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.fixture
def first_use():
    """No kernel has been used yet."""
    cpu.kernel.cache_clear()
    yield
    cpu.kernel.cache_clear()


@pytest.fixture
def x():
    return 1.5 * torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))


def assert_served(x):
    """The kernel works, and none of its laws was given up."""
    assert fused_module.serves(x, Gaussian(0.3)) and len(cpu.kernel(torch.float32).laws) == 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_first_use_under_a_mode(mode, x, first_use):
    expected = LIF()(x)
    cpu.kernel.cache_clear()
    with MODES[mode]():
        assert torch.equal(LIF()(x), expected)
    assert_served(x)


@pytest.mark.parametrize("make", [LIF, NoisyLIF, ParametricLIF, lambda: NoisyLIF(learnable_scale=True)])
def test_first_use_with_fake_tensors(make, first_use):
    with FakeTensorMode():
        x = torch.rand(3, 2, 4, requires_grad=True)
        spikes, state = make().run(x)
        spikes.sum().backward()
        assert spikes.shape == x.grad.shape == (3, 2, 4) and state.shape == (2, 4)
    assert_served(torch.rand(3, 2, 4))


@pytest.mark.parametrize("traced", ["export", "make_fx", "jit"])
def test_first_use_by_a_tracer(traced, x, first_use):
    expected = LIF()(x)
    cpu.kernel.cache_clear()
    if traced == "export":
        program = torch.export.export(LIF(), (x,)).module()
    elif traced == "make_fx":
        program = make_fx(LIF(), tracing_mode="fake")(x)
        assert "arange" not in program.code
    else:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            torch.jit.save(torch.jit.trace(LIF(), x), file)
            program = torch.jit.load(io.BytesIO(file.getvalue()))
    assert torch.equal(program(x), expected)
    assert_served(x)


LEARNT = {
    "fused": lambda: NoisyLIF(Gaussian(0.3), learnable_scale=True),
    "fused, learnt decay": ParametricLIF,
    "eager": lambda: NoisyLIF(Laplace(0.3), learnable_scale=True),
    "eager, learnt decay": lambda: ParametricLIF(Laplace(0.3)),
}


@pytest.mark.parametrize("make", LEARNT.values(), ids=LEARNT)
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_a_network_traced_by_jit_has_the_gradients_of_the_network(make, with_gradients, x):
    """PyTorch traces again, without gradients, and compares; TensorBoard's `add_graph` does so too."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), make(), torch.nn.Linear(6, 3))
    with torch.set_grad_enabled(with_gradients):
        traced = torch.jit.trace(net, x)
    assert_same_gradients(net, traced, x)


@pytest.mark.parametrize("make", list(LEARNT.values())[:2], ids=list(LEARNT)[:2])
@pytest.mark.parametrize("way", ["jit", "export", "strict export", "make_fx"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_what_was_recorded_without_gradients_has_them_later(make, way, x):
    net = torch.nn.Sequential(make(), torch.nn.Linear(4, 3)).requires_grad_(False)
    if way == "jit":
        program = torch.jit.trace(net, x)
    elif way == "make_fx":
        program = make_fx(lambda x: net(x))(x)
    else:
        program = torch.export.export(net, (x,), strict=way == "strict export").module()
    assert_same_gradients(net, program, x)


def test_without_gradients_nothing_is_saved_for_them_but_in_a_program(x, monkeypatch):
    saved, kernel = [], fused_module.lif_forward
    monkeypatch.setattr(fused_module, "lif_forward", lambda *a, **k: saved.append(a[-2]) or kernel(*a, **k))
    with torch.no_grad(), Onlooker():
        LIF()(x)
    assert saved == [False]


def assert_same_gradients(net, program, x):
    found = []
    for function in (net, program):
        net.zero_grad()
        given = x.clone().requires_grad_()
        torch.manual_seed(4)
        function(given).square().sum().backward()
        found.append([given.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)
    assert found[0][0].any()


def test_first_use_by_several_threads(x, first_use):
    results = []
    threads = [threading.Thread(target=lambda: results.append(LIF()(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, LIF()(x)) for result in results)


def test_a_mode_of_one_thread_is_not_lost_when_another_leaves_its_own(x):
    """PyTorch's own flag for "some mode is on" is one for all threads."""
    entered, left = threading.Event(), threading.Event()

    def other():
        with Onlooker():
            entered.set()
            left.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(60)
    with FakeTensorMode():
        left.set()
        thread.join()
        assert LIF()(torch.rand(3, 2, 4)).shape == (3, 2, 4)


@pytest.mark.parametrize("mode", ["device", "default device", "a user's dispatch mode"])
def test_a_training_step_under_a_mode(mode, x):
    """The kernel's own tensors, such as the parts of a learnt decay's gradient, lie where the input lies."""
    gradients = []
    for context in (contextlib.nullcontext, MODES[mode]):
        neuron = ParametricLIF()
        with context():
            neuron(x).sum().backward()
        gradients.append(neuron.decay_logit.grad)
    assert gradients[0] != 0 and torch.equal(*gradients)
