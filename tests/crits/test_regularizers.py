"""Regularisers against linear algebra and sums written out by hand."""

import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from crits import SRIP, FiringRate, Gramian, Regularizer, build_regularizer
from models import LIF, Stream, build_model, build_neuron


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weight):
    """A linear layer of this weight, and with a bias that no penalty may see."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data, layer.bias.data = weight.clone(), layer.bias.data + 100
    return layer


def convolution(matrix, kernel_size):
    """A convolution whose weight, as [out, in * k * k], is this matrix."""
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    layer = nn.Conv2d(matrix.shape[1] // kernel_size**2, matrix.shape[0], kernel_size, bias=False).double()
    layer.weight.data = matrix.reshape(layer.weight.shape).clone()
    return layer


def orthogonal(rows, columns, seed=0):
    """Orthonormal rows, or columns where there are more rows."""
    matrix = torch.randn(rows, columns, generator=seeded(seed), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U @ Vh


def deviation_norm_squared(weight):
    """max_i (sigma_i^2 - 1)^2 over the singular values: the squared spectral norm of the smaller Gramian - I."""
    return (torch.linalg.svdvals(torch.as_tensor(weight, dtype=torch.float64)) ** 2 - 1).abs().max().item() ** 2


# ---- Gramian


@pytest.mark.parametrize("rows, columns", [(4, 4), (3, 9), (1, 5)])
def test_gramian_of_orthonormal_rows_is_zero(rows, columns):
    assert Gramian()(linear(orthogonal(rows, columns))).item() == pytest.approx(0.0, abs=1e-12)
    assert Gramian()(convolution(torch.eye(4), 2)).item() == 0.0


@pytest.mark.parametrize(
    "weight, expected",
    [
        ([[2.0, 0.0], [0.0, 1.0]], 3.0),  # diag(4, 1) - I
        ([[1.0, 1.0]], 1.0),  # [2] - [1]
        ([[1.0], [1.0]], 2**0.5),  # off-diagonal ones
        ([[1.0, 2.0], [3.0, 4.0]], (4**2 + 2 * 11**2 + 24**2) ** 0.5),  # [[5, 11], [11, 25]] - I
        ([[0.0, 0.0], [0.0, 0.0]], 2**0.5),
    ],
)
def test_gramian_of_known_matrices(weight, expected):
    assert Gramian()(linear(weight)).item() == pytest.approx(expected, rel=1e-12)


def test_gramian_sums_over_layers_and_ignores_everything_else():
    net = nn.Sequential(
        linear([[2.0, 0.0], [0.0, 1.0]]), nn.BatchNorm1d(2), nn.ReLU(), nn.Sequential(linear([[1.0, 1.0]]))
    )
    assert Gramian()(net).item() == pytest.approx(3.0 + 1.0)


def test_gramian_of_a_convolution_takes_rows_of_in_times_k_times_k():
    weight = torch.randn(5, 3, 3, 3, generator=seeded(1), dtype=torch.float64)
    layer = nn.Conv2d(3, 5, 3).double()
    layer.weight.data = weight.clone()
    expected = 0.0
    for i in range(5):
        for j in range(5):
            inner = sum(
                (weight[i, c, a, b] * weight[j, c, a, b]).item() for c in range(3) for a in range(3) for b in range(3)
            )
            expected += (inner - (i == j)) ** 2
    assert Gramian()(layer).item() == pytest.approx(expected**0.5, rel=1e-10)


def test_gramian_gradient():
    weight = torch.randn(3, 4, generator=seeded(1), dtype=torch.float64)
    layer = linear(weight)
    Gramian()(layer).backward()
    deviation = weight @ weight.T - torch.eye(3)
    expected = 2 * deviation @ weight / deviation.square().sum().sqrt()  # d ||A||_F = <A, dA> / ||A||_F
    torch.testing.assert_close(layer.weight.grad, expected)
    assert layer.bias.grad is None


def test_gramian_gradient_is_finite_at_exactly_orthogonal_rows():
    layer = linear(torch.eye(3, 4))
    penalty = Gramian()(layer)
    penalty.backward()
    assert penalty.item() == 0 and layer.weight.grad.isfinite().all()


# ---- SRIP


@pytest.mark.parametrize("shape", [(4, 4), (3, 20), (20, 3), (7, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
def test_srip_never_exceeds_the_true_squared_spectral_norm(shape, scale):
    """|A A v| / |A v| <= sigma(A), whatever the start v."""
    weight = scale * torch.randn(shape, generator=seeded(1), dtype=torch.float64)
    truth, layer = deviation_norm_squared(weight), linear(weight)
    torch.manual_seed(0)
    estimates = [SRIP()(layer).item() for _ in range(50)]
    assert all(0 <= estimate <= truth * (1 + 1e-9) for estimate in estimates)
    assert max(estimates) > 0.3 * truth


@pytest.mark.parametrize("shape", [(5, 5), (5, 9), (9, 5)])
def test_srip_is_close_where_one_direction_stands_out(shape):
    """Singular values 4, 1, 1, ...: the deviation from an isometry is 15 in one direction and 0 in the others."""
    U, _, Vh = torch.linalg.svd(torch.randn(shape, generator=seeded(1), dtype=torch.float64), full_matrices=False)
    values = torch.tensor([4.0, 1.0, 1.01, 0.99, 1.0], dtype=torch.float64)
    weight = U * values @ Vh
    torch.manual_seed(0)
    for _ in range(20):
        assert SRIP()(linear(weight)).item() == pytest.approx(15.0**2, rel=1e-2)


def test_srip_of_a_multiple_of_an_isometry_is_exact():
    """A = (c^2 - 1) I: every start is an eigenvector."""
    torch.manual_seed(0)
    for c in (0.5, 2.0):
        assert SRIP()(linear(c * orthogonal(3, 7))).item() == pytest.approx((c * c - 1) ** 2, rel=1e-9)


def test_srip_sums_over_layers():
    torch.manual_seed(0)
    net = nn.Sequential(linear(2 * orthogonal(3, 7)), nn.ReLU(), convolution(3 * orthogonal(2, 12), 2))
    assert SRIP()(net).item() == pytest.approx(3.0**2 + 8.0**2, rel=1e-9)


@pytest.mark.parametrize("shape", [(4, 4), (3, 9), (9, 3)])
@pytest.mark.parametrize("make", [linear, lambda matrix: convolution(matrix, 1)], ids=["linear", "conv"])
def test_srip_of_orthogonal_weights_is_zero_tall_or_wide(shape, make):
    layer = make(orthogonal(*shape))
    penalty = SRIP()(layer)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.0, abs=1e-12)
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 4), (3, 9), (9, 3)])
def test_srip_is_zero_with_finite_gradient_at_exactly_orthogonal(shape, dtype):
    """A v = 0 exactly: the estimate must not become 0 / 0."""
    layer = linear(torch.eye(*shape)).to(dtype)
    penalty = SRIP()(layer)
    penalty.backward()
    assert penalty.item() == 0
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("offset", [1e-4, 1e-7, 1e-12, 1e-18, 1e-20, 1e-22, 1e-30])
def test_srip_gradient_is_finite_next_to_orthogonal(offset):
    weight = torch.eye(4)
    weight[0, 1] = offset
    layer = linear(weight).float()
    layer.weight.data = weight.clone()
    torch.manual_seed(0)
    penalty = SRIP()(layer)
    penalty.backward()
    assert penalty.isfinite() and layer.weight.grad.isfinite().all()


def test_srip_gradient_is_that_of_its_estimate():
    weight = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    layer = linear(weight)

    def penalty():
        torch.manual_seed(7)
        return SRIP()(layer)

    penalty().backward()
    for i, j in [(0, 0), (1, 3), (2, 4)]:
        layer.weight.data = weight.clone()
        layer.weight.data[i, j] += 1e-6
        above = penalty().item()
        layer.weight.data[i, j] -= 2e-6
        assert layer.weight.grad[i, j].item() == pytest.approx((above - penalty().item()) / 2e-6, rel=1e-5)


def test_srip_start_is_random_and_repeats_with_the_seed():
    layer = linear(torch.randn(6, 6, generator=seeded(1), dtype=torch.float64))
    torch.manual_seed(3)
    first, second = SRIP()(layer).item(), SRIP()(layer).item()
    torch.manual_seed(3)
    assert SRIP()(layer).item() == first != second


@pytest.mark.parametrize("regularizer", [Gramian, SRIP])
def test_descending_the_penalty_makes_rows_orthonormal(regularizer):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.02)
    for _ in range(800):
        optimiser.zero_grad()
        penalty = regularizer()(layer)
        penalty.backward()
        optimiser.step()
    singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    assert (singular - 1).abs().max() < 0.05


# ---- what both share


@pytest.mark.parametrize("regularizer", [Gramian(), SRIP()])
def test_a_net_without_weights_is_an_error(regularizer):
    with pytest.raises(ValueError, match="ReLU.*no convolution and no linear layer"):
        regularizer(nn.ReLU())


@pytest.mark.parametrize("regularizer", [Gramian(), SRIP()])
def test_weight_penalties_watch_nothing(regularizer):
    net = linear([[1.0, 1.0]])
    with regularizer.watching(net):
        net(torch.zeros(2, 2, dtype=torch.float64))
        inside = regularizer(net).item()
    assert regularizer(net).item() == pytest.approx(inside) == 1.0
    assert not net._forward_hooks


def test_the_base_class_is_not_a_regularizer():
    with pytest.raises(TypeError, match="Regularizer"):
        Regularizer()(nn.Linear(2, 2))


# ---- firing rate


class StraightThrough(torch.autograd.Function):
    """x > 0.5 with a gradient of 1; its node, unlike PyTorch's own, takes a weak reference."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0.5).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Spikes(nn.Module):
    """Stands for a neuron: whatever says `emits_spikes` is watched, whichever package it is from."""

    emits_spikes = True

    def forward(self, x):
        return StraightThrough.apply(x)


class Silent(nn.Module):
    def forward(self, x):
        return x


def layers():
    return nn.Sequential(Spikes(), Silent(), nn.Sequential(nn.Linear(4, 3), Spikes()))


def test_firing_rate_penalty_by_hand():
    net, regularizer = nn.Sequential(Spikes(), Silent(), nn.Sequential(Spikes())), FiringRate(target=0.3)
    x = torch.rand(5, 2, 4, generator=seeded(1)) * 0.8
    net[2].register_forward_pre_hook(lambda module, args: (1 - args[0] * 0.6,))
    with regularizer.watching(net) as same:
        assert same is regularizer
        net(x)
        penalty = regularizer(net)
    one = (x > 0.5).float()
    two = (1 - 0.6 * one > 0.5).float()
    rates = [sum(spikes.flatten().tolist()) / spikes.numel() for spikes in (one, two)]
    assert rates[0] != rates[1]
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(sum((rate - 0.3) ** 2 for rate in rates) / 2, rel=1e-5)


def test_firing_rate_averages_layers_not_neurons():
    """A wide silent layer and a narrow busy one weigh the same."""
    net, regularizer = nn.ModuleDict({"wide": Spikes(), "narrow": Spikes()}), FiringRate(0.0)
    with regularizer.watching(net):
        net["wide"](torch.zeros(2, 3, 1000))
        net["narrow"](torch.ones(2, 3, 1))
        assert regularizer(net).item() == pytest.approx(0.5)


def test_firing_rate_takes_the_last_forward_pass():
    net, regularizer = Spikes(), FiringRate(0.0)
    with regularizer.watching(net):
        net(torch.ones(1, 4))
        net(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        assert regularizer(net).item() == pytest.approx(0.25**2)


def test_firing_rate_gradient_reaches_the_weights():
    net, regularizer = layers(), FiringRate(target=0.9)
    x = torch.rand(5, 2, 4, generator=seeded(1))
    with regularizer.watching(net):
        spikes = net(x)
        regularizer(net).backward()
    # d/d bias_k: mean over 2 layers, 2 (rate - target), mean over 5 * 2 * 3 outputs of slope 1
    expected = (spikes.mean() - 0.9).item() * 10 / 30
    torch.testing.assert_close(net[2][0].bias.grad, torch.full((3,), expected))
    assert net[2][0].weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_firing_rate_on_a_real_network():
    torch.manual_seed(0)
    net = build_model(
        "cifarnet", neuron=build_neuron("NILIF_atan", sigma=1.0), in_shape=(3, 8, 8), num_classes=5, width=0.05
    )
    recorded, regularizer = [], FiringRate(target=0.2)
    for module in net.modules():
        if type(module).__name__ == "NoisyLIF":
            module.register_forward_hook(lambda module, args, out: recorded.append(out.mean().item()))
    with regularizer.watching(net):
        net(torch.rand(3, 2, 3, 8, 8))
        penalty = regularizer(net)
    penalty.backward()
    assert len(recorded) > 1
    assert penalty.item() == pytest.approx(sum((rate - 0.2) ** 2 for rate in recorded) / len(recorded), rel=1e-5)
    for name, parameter in net.named_parameters():
        if name.startswith("classifier"):
            assert parameter.grad is None  # no spikes come after it
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_firing_rate_hooks_are_gone_afterwards():
    net, regularizer = layers(), FiringRate()
    other = net[0].register_forward_hook(lambda *args: None)
    with regularizer.watching(net):
        assert len(net[0]._forward_hooks) == 2 and len(net[2][1]._forward_hooks) == 1
        assert not net[1]._forward_hooks
    assert len(net[0]._forward_hooks) == 1 and not net[2][1]._forward_hooks
    other.remove()
    with pytest.raises(KeyError), regularizer.watching(net):
        raise KeyError
    assert not any(module._forward_hooks for module in net.modules())


def test_firing_rate_needs_watching_and_spikes():
    net, regularizer = layers(), FiringRate()
    with pytest.raises(RuntimeError, match="watching"):
        regularizer(net)
    with regularizer.watching(net), pytest.raises(RuntimeError, match="watching"):
        regularizer(net)  # nothing has run yet
    with regularizer.watching(net):
        net(torch.rand(5, 2, 4))
    with pytest.raises(RuntimeError, match="watching"):
        regularizer(net)  # nothing of the last block is left


def test_firing_rate_keeps_no_graph():
    net, regularizer = layers(), FiringRate()
    with regularizer.watching(net):
        spikes = net(torch.rand(5, 2, 4, requires_grad=True))
        node = weakref.ref(spikes.grad_fn)
        del spikes
    assert node() is None


def test_firing_rate_can_be_used_again():
    net, regularizer = Spikes(), FiringRate(0.0)
    for value in (0.0, 1.0):
        with regularizer.watching(net):
            net(torch.full((2, 3), value))
            assert regularizer(net).item() == value


def test_firing_rate_of_a_net_without_neurons_is_an_error():
    with pytest.raises(ValueError, match="Linear.*no spiking neuron"), FiringRate().watching(nn.Linear(2, 2)):
        pass


class Streaming(nn.Module):
    """A neuron that is called by `step` or `run` and passes its potential on."""

    emits_spikes = True

    def run(self, x, state=None):
        return StraightThrough.apply(x), x[-1]

    def step(self, x_t, state=None):
        spikes, state = self.run(x_t[None], state)
        return spikes[0], state

    def forward(self, x):
        return self.run(x)[0]


def stepped(neuron, x):
    state = None
    for x_t in x:
        _, state = neuron.step(x_t, state)


def in_two_runs(neuron, x):
    _, state = neuron.run(x[:1])
    neuron.run(x[1:], state=state)


def in_a_checkpoint(neuron, x):
    """Its backward pass runs the neuron again."""
    _, state = neuron.run(x[:1])
    run = torch.utils.checkpoint.checkpoint(
        lambda part: neuron.run(part, state)[0].square(), x[1:], use_reentrant=False
    )
    if x.requires_grad:
        run.sum().backward(retain_graph=True)


@pytest.mark.parametrize(
    "call", [stepped, in_two_runs, in_a_checkpoint, lambda neuron, x: neuron.run(x), lambda neuron, x: neuron(x)]
)
def test_firing_rate_sees_the_whole_of_the_last_stream(call):
    net, regularizer = Streaming(), FiringRate(0.0)
    x = torch.rand(5, 2, 4, generator=seeded(1)).requires_grad_()
    with regularizer.watching(net):
        call(net, torch.ones(3, 2, 4))
        call(net, x)
        penalty = regularizer(net)
    rate = (x > 0.5).float().mean().item()
    assert penalty.item() == pytest.approx(rate**2)
    (gradient,) = torch.autograd.grad(penalty, x)
    torch.testing.assert_close(gradient, torch.full_like(x, 2 * rate / x.numel()))


class Shared(nn.Module):
    """One neuron behind two layers, as one nn.ReLU often is; `way` says how it is called."""

    def __init__(self, way):
        super().__init__()
        self.one, self.two, self.lif, self.way = nn.Linear(4, 8), nn.Linear(8, 6), LIF(threshold=0.2), way

    def forward(self, x):
        if self.way == "neuron":
            return self.lif(self.two(self.lif(self.one(x))))
        if self.way == "run":
            return self.lif.run(self.two(self.lif.run(self.one(x))[0]))[0]
        state, spikes = (None, None), []
        for x_t in x:
            spike, state = self.step(x_t, state)
            spikes.append(spike)
        return torch.stack(spikes)

    def step(self, x_t, state):
        spike, first = self.lif.step(self.one(x_t), state[0])
        spike, second = self.lif.step(self.two(spike), state[1])
        return spike, (first, second)


def shared(way="neuron"):
    """(network, input, the penalty of both uses of its neuron for a target of 0.1)."""
    torch.manual_seed(0)
    net, x = Shared(way), 3 * torch.rand(5, 2, 4)
    one = net.lif(net.one(x))
    two = net.lif(net.two(one))
    assert 0 < one.mean() < 1 and 0 < two.mean() < 1 and one.mean() != two.mean()
    return net, x, ((one.sum() + two.sum()) / (one.numel() + two.numel()) - 0.1) ** 2


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("way", ["neuron", "run", "step"])
def test_all_uses_of_a_neuron_in_one_pass_are_penalised(way, compiles):
    torch._dynamo.reset()
    net, x, expected = shared(way)
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    run, regularizer = torch.compile(net, backend="eager") if compiles else net, FiringRate(0.1)
    with regularizer.watching(run):
        run(0 * x)  # not of the last pass
        run(x)
        penalty = regularizer(run)
        torch.testing.assert_close(penalty, expected)
        torch.testing.assert_close(torch.autograd.grad(penalty, list(net.parameters())), gradients)
        torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False).sum().backward()
        torch.testing.assert_close(regularizer(run), expected)


def test_steps_of_a_network_that_hands_its_states_on_add_up():
    """Each call of the network is one step; where it gives no states, another stream begins."""
    net, x, expected = shared()
    net.forward, regularizer = net.step, FiringRate(0.1)
    with regularizer.watching(net):
        for steps in (0 * x, x):
            state = (None, None)
            for x_t in steps:
                _, state = net(x_t, state)
        torch.testing.assert_close(regularizer(net), expected)


def test_uses_that_cannot_be_told_from_passes_are_an_error():
    net, x, _ = shared()
    with (
        FiringRate().watching(net),
        pytest.raises(RuntimeError, match=r"layer 'lif' is called twice outside of `net\("),
    ):
        net.forward(x)
    parts = nn.ModuleDict({"a": Streaming(), "b": Streaming()})
    with FiringRate().watching(parts):
        _, state = parts["a"].step(x[0])
        parts["a"].step(x[1], state)
        parts["b"](x)
        with pytest.raises(RuntimeError, match="open a block for each pass"):
            parts["a"].step(x[0])


def test_streams_of_a_part_of_the_network_begin_again():
    net, regularizer, x = nn.Sequential(nn.Sequential(LIF()), LIF()), FiringRate(0.0), 2 * torch.rand(5, 2, 4)
    stream, expected = Stream(net[0]), pytest.approx(net[0](x).mean().item() ** 2)
    with regularizer.watching(net):
        for x_t in 0 * x:
            stream(x_t)
        stream.reset()
        for x_t in x:
            stream(x_t)
        assert regularizer(net).item() == expected != 0


@pytest.mark.parametrize("is_other", [False, True])
def test_a_firing_rate_has_one_block_at_a_time(is_other):
    """In two, spikes would count twice, and the end of one would empty the other."""
    net, regularizer, x = layers(), FiringRate(0.2), torch.rand(5, 2, 4)
    with regularizer.watching(net):
        net(x)
        penalty = regularizer(net)
        with (
            pytest.raises(RuntimeError, match="make one for each"),
            regularizer.watching(layers() if is_other else net),
        ):
            pass
        assert regularizer(net) == penalty
        with FiringRate(0.2).watching(net) as second:
            net(x)
            assert regularizer(net) == second(net) == penalty
    with regularizer.watching(net):
        net(x)
        assert regularizer(net) == penalty


@pytest.mark.parametrize("where", ["whole", "in place", "one layer"])
def test_firing_rate_of_a_compiled_network_is_that_of_the_network(where):
    torch._dynamo.reset()
    net, regularizer, x = layers(), FiringRate(0.3), torch.rand(5, 2, 4, generator=seeded(1))
    with regularizer.watching(net):
        net(x)
        expected = regularizer(net).item()
    if where == "one layer":
        net[2] = torch.compile(net[2], backend="eager")
    elif where == "in place":
        net.compile(backend="eager")
    else:
        net = torch.compile(net, backend="eager")
    net(x)
    with regularizer.watching(net):
        net(x)
        penalty = regularizer(net)
    assert penalty.item() == expected and penalty.requires_grad


def test_firing_rate_in_a_compiled_step_is_right_or_an_error():
    torch._dynamo.reset()
    net, regularizer, x = layers(), FiringRate(0.3), torch.rand(5, 2, 4, generator=seeded(1))

    def step(x):
        with regularizer.watching(net):
            return net(x).mean() + regularizer(net)

    try:
        assert torch.compile(step, backend="eager")(x).item() == step(x).item()
    except RuntimeError as error:
        assert "watch neurons around" in str(error)


@pytest.mark.parametrize("shape", [(5, 0, 4), (0, 2, 4)])
def test_firing_rate_of_an_empty_batch_is_an_error(shape):
    net, regularizer = layers(), FiringRate()
    with regularizer.watching(net), pytest.raises(ValueError, match="layer '0' has no firing rate: its batch is empty"):
        net(torch.rand(shape))


@pytest.mark.parametrize("where", ["network", "neuron", "run", "without a gradient of the input"])
def test_firing_rate_inside_a_reentrant_checkpoint_is_an_error(where):
    """Its first run has no graph: the penalty would be a constant."""
    net, regularizer = nn.Sequential(nn.Linear(4, 3), Streaming()), FiringRate(0.9)
    x = torch.rand(5, 2, 4, generator=seeded(1)).requires_grad_()

    def call(x, reentrant):
        function, x = (net, x) if where == "network" else (net[1], net[0](x))
        if where == "run":
            function = net[1].run
        if where == "without a gradient of the input":
            function, x = net, torch.rand(5, 2, 4)
        torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)

    with regularizer.watching(net), pytest.raises(RuntimeError, match="would have no gradient.*use_reentrant=False"):
        call(x, True)
    with regularizer.watching(net):
        call(x, False)
        regularizer(net).backward()
        assert net[0].weight.grad.abs().sum() > 0
    with regularizer.watching(net), torch.no_grad():  # nobody wants a gradient
        net(x)
        assert regularizer(net) >= 0


@pytest.mark.parametrize("target", [-0.1, 1.1, float("nan")])
def test_firing_rate_target_out_of_range(target):
    with pytest.raises(ValueError, match=rf"target rate.*\[0, 1\].*{target}"):
        FiringRate(target)


def test_regularisers_by_name():
    expected = {"gram": Gramian, "srip": SRIP, "rate": FiringRate}
    assert {name: type(build_regularizer(name, 0.2)) for name in expected} == expected
    assert build_regularizer("rate", 0.2).target == 0.2
    with pytest.raises(ValueError, match="unknown regulariser 'no'; choose from .*gram, srip, rate"):
        build_regularizer("no", 0.1)
