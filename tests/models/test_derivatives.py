"""Beside a plain backward pass: torch.func, forward mode, second derivatives, in-place operations."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from models import (
    IF,
    LIF,
    Cauchy,
    Gaussian,
    Logistic,
    NoisyLIF,
    ParametricLIF,
    mean_field,
    noise_generator,
    noiseless,
)
from models.functional import lif, noisy_lif
from models.memory import SETTINGS, used_as
from tests.conftest import first_are_fast

MAKERS = {
    "LIF": LIF,
    "IF, subtract": lambda: IF(reset="subtract"),
    "LIF, detached": lambda: LIF(Cauchy(0.3), detach_reset=True, decay_input=True),
    "PLIF": lambda: ParametricLIF(decay_input=True),
    "NoisyLIF": NoisyLIF,
    "NoisyLIF, membrane": lambda: NoisyLIF(Logistic(0.2, 0.1), placement="membrane", learnable_scale=True),
    "NoisyLIF, learnt": lambda: NoisyLIF(learnable_scale=True, reset="subtract"),
    "NoisyLIF, surrogate": lambda: NoisyLIF(surrogate=Gaussian(0.7), reset="none"),
}
every_neuron = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def currents(*shape):
    return 1.5 * torch.rand(shape, generator=seeded(1), dtype=torch.float64)


def weights(*shape):
    return torch.randn(shape, generator=seeded(2), dtype=torch.float64)


@pytest.fixture
def kernels(request, monkeypatch):
    monkeypatch.setenv("NSNN_KERNELS", request.param)


# ---- torch.func and forward mode; the eager kernel draws the same noise, and has the gradient to compare with


def by_backward(neuron, x, w, monkeypatch):
    """Spikes and the gradients of sum(w * spikes): of x and of the parameters, by name."""
    monkeypatch.setenv("NSNN_KERNELS", "eager")
    x, neuron = x.clone().requires_grad_(), copy.deepcopy(neuron)
    with noise_generator(seeded(5)):
        spikes = neuron(x)
    (spikes * w).sum().backward()
    return spikes.detach(), x.grad, {name: parameter.grad for name, parameter in neuron.named_parameters()}


@every_neuron
@pytest.mark.parametrize("mode", ["as it is", "noiseless", "mean_field"])
def test_gradients_of_torch_func_are_those_of_backward(make, mode, monkeypatch):
    neuron, x, w = make(), currents(4, 3, 5), weights(4, 3, 5)
    if hasattr(neuron, "mode") and mode != "as it is":
        neuron.mode = mode
    spikes, grad_x, grads = by_backward(neuron, x, w, monkeypatch)

    def run(parameters, x):
        return functional_call(neuron, parameters, x)

    def loss(parameters, x):
        return (run(parameters, x) * w).sum()

    parameters = {name: parameter.detach() for name, parameter in neuron.named_parameters()}
    with noise_generator(seeded(5)):
        ours = grad(loss, argnums=(0, 1))(parameters, x)
    torch.testing.assert_close(ours[1], grad_x)
    for name, wanted in grads.items():
        torch.testing.assert_close(ours[0][name], torch.zeros_like(wanted) if wanted is None else wanted)
    with noise_generator(seeded(5)):
        outputs, backward = vjp(run, parameters, x)
    torch.testing.assert_close(outputs, spikes)
    torch.testing.assert_close(backward(w)[1], grad_x)


@every_neuron
def test_forward_mode_agrees_with_backward(make, monkeypatch):
    neuron, x, w, tangent = make(), currents(4, 3, 5), weights(4, 3, 5), weights(4, 3, 5).flip(0)
    _, grad_x, _ = by_backward(neuron, x, w, monkeypatch)
    expected = (grad_x * tangent).sum()
    monkeypatch.delenv("NSNN_KERNELS")
    with noise_generator(seeded(5)):
        _, ours = jvp(neuron, (x,), (tangent,))
    torch.testing.assert_close((ours * w).sum(), expected)
    with noise_generator(seeded(5)), forward_ad.dual_level():
        ours = forward_ad.unpack_dual(neuron(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close((ours * w).sum(), expected)


@every_neuron
def test_torch_func_does_not_hide_what_is_not_a_number(make):
    neuron, x = make().double(), currents(3, 2, 4)
    x[1, 0, 2] = torch.nan
    (right,) = torch.autograd.grad(neuron(x.requires_grad_()).sum(), x)
    found = grad(lambda x: neuron(x).sum())(x.detach())
    assert right.isnan().any() and torch.equal(found.isnan(), right.isnan())


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_linearize():
    neuron, x, tangent = LIF(detach_reset=True), currents(4, 3, 5), weights(4, 3, 5)
    _, pushed = linearize(neuron, x)
    torch.testing.assert_close(pushed(tangent), jvp(neuron, (x,), (tangent,))[1])


@pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore:Attempted to insert")
@pytest.mark.parametrize("placement", first_are_fast(["both", "escape", "membrane"]))
@pytest.mark.parametrize("with_generator", first_are_fast([True, False]))
def test_linearize_draws_no_noise(placement, with_generator):
    """It would at each call of what it returns, and never that of the spikes."""
    neuron, x, tangent = NoisyLIF(placement=placement), currents(2, 3, 5), weights(2, 3, 5)
    net = nn.Sequential(LIF(), neuron)
    with noise_generator(seeded()) if with_generator else contextlib.nullcontext():
        for function in (neuron, net, lambda x: vmap(neuron, randomness="different")(x[None])):
            with pytest.raises(RuntimeError, match="use torch.func.jvp, or do it inside noiseless"):
                linearize(function, x)
    for block in (noiseless, mean_field):
        with block(neuron):
            _, pushed = linearize(neuron, x)
            torch.testing.assert_close(pushed(tangent), jvp(neuron, (x,), (tangent,))[1])


@pytest.mark.parametrize("make", [LIF, lambda: LIF(reset="subtract"), ParametricLIF])
@pytest.mark.parametrize("in_dim", [0, 2])
def test_vmap_is_a_loop(make, in_dim):
    neuron, x = make(), currents(6, 3, 2, 4).movedim(0, in_dim)
    expected = torch.stack([neuron(sample) for sample in x.unbind(in_dim)])
    assert torch.equal(vmap(neuron, in_dims=in_dim)(x), expected)
    assert torch.equal(vmap(neuron, in_dims=in_dim, chunk_size=2)(x), expected)
    spikes, state = vmap(neuron.run, in_dims=in_dim)(x)
    assert torch.equal(spikes, expected) and state.shape == (6, 2, 4)
    spike, _ = vmap(neuron.step)(x.movedim(in_dim, 0)[:, 0], state)
    assert spike.shape == (6, 2, 4)


@pytest.mark.parametrize("make", [LIF, lambda: LIF(reset="subtract"), ParametricLIF])
def test_nested_vmap_is_a_loop_of_loops(make):
    neuron, x = make(), currents(2, 6, 3, 2, 4)
    expected = torch.stack([torch.stack([neuron(sample) for sample in group]) for group in x])
    assert torch.equal(vmap(vmap(neuron))(x), expected)
    assert torch.equal(vmap(vmap(neuron, in_dims=2), in_dims=3)(x), vmap(vmap(neuron))(x.permute(3, 2, 0, 1, 4)))

    def loss(x):
        return neuron(x).cumsum(0).square().sum()

    gradients = vmap(vmap(grad(loss)))(x)
    torch.testing.assert_close(gradients[1, 4], grad(loss)(x[1, 4]))


@pytest.mark.parametrize("inner", ["same", "different"])
@pytest.mark.parametrize("outer", ["same", "different"])
def test_nested_vmap_respects_randomness(inner, outer):
    neuron, x = NoisyLIF(), torch.full((2, 3, 4, 2, 50), 0.9)
    spikes = vmap(vmap(neuron, randomness=inner), randomness=outer)(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes[:, 0], spikes[:, 1]) is (inner == "same")
    assert torch.equal(spikes[0], spikes[1]) is (outer == "same")


@pytest.mark.parametrize("placement", ["both", "escape", "membrane"])
@pytest.mark.parametrize("generator", [False, True])
def test_vmap_respects_randomness(placement, generator):
    """Each sample its own noise, or the same for all; which of the two must be said, as for dropout."""
    neuron, x = NoisyLIF(placement=placement), torch.full((6, 3, 2, 50), 0.9)

    def run(randomness):
        torch.manual_seed(0)
        if not generator:
            return vmap(neuron, randomness=randomness)(x)
        with noise_generator(seeded(3)):
            return vmap(neuron, randomness=randomness)(x)

    different, same = run("different"), run("same")
    assert all(not torch.equal(a, b) for a, b in zip(different, different[1:]))
    assert all(torch.equal(a, b) for a, b in zip(same, same[1:]))
    assert torch.equal(run("different"), different) and torch.equal(run("same"), same)
    assert 0.2 < different.mean() < 0.8
    with pytest.raises(RuntimeError, match="randomness"):
        run("error")


def test_per_sample_gradients_of_a_network():
    net = nn.Sequential(nn.Linear(4, 3), ParametricLIF(), nn.Linear(3, 2), NoisyLIF(learnable_scale=True))
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    x = currents(3, 5, 4).float()

    def loss(parameters, sample):
        return functional_call(net, parameters, sample.unsqueeze(1)).square().sum()

    with noiseless(net):
        ours = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
        for index in range(5):
            net.zero_grad()
            net(x[:, index : index + 1]).square().sum().backward()
            for name, parameter in net.named_parameters():
                if parameter.grad is not None:
                    torch.testing.assert_close(ours[name][index], parameter.grad, rtol=1e-4, atol=1e-5)
    noisy = vmap(grad(loss), in_dims=(None, 1), randomness="different")(parameters, x)
    assert all(value.shape == (5, *parameters[name].shape) and value.isfinite().all() for name, value in noisy.items())


@pytest.mark.parametrize("make", [LIF, ParametricLIF, lambda: NoisyLIF(learnable_scale=True)])
def test_an_ensemble_by_stacked_parameters(make):
    nets, x = [nn.Sequential(nn.Linear(4, 3), make()) for _ in range(3)], currents(3, 5, 4).float()
    for number, net in enumerate(nets):
        for parameter in net[1].parameters():
            parameter.data += 0.3 * number
        for neuron in net.modules():
            if hasattr(neuron, "mode"):
                neuron.mode = "mean_field"
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0])
    ours = vmap(lambda *state: functional_call(base, state, x))(parameters, buffers)
    torch.testing.assert_close(ours, torch.stack([net(x) for net in nets]))


@pytest.mark.parametrize("make", [LIF, ParametricLIF, lambda: NoisyLIF(learnable_scale=True)])
@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
def test_gradients_in_batches(make, kernels):
    """`is_grads_batched` and vectorised Jacobians: the forward pass was an ordinary one."""
    neuron, x = make(), currents(3, 2, 4).requires_grad_()
    spikes, state = neuron.run(x)
    inputs = (x, *neuron.parameters())
    given = torch.randn(7, *spikes.shape, generator=seeded(3), dtype=torch.float64)
    one_by_one = [torch.autograd.grad(spikes, inputs, one, retain_graph=True) for one in given]
    together = torch.autograd.grad(spikes, inputs, given, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda one: torch.autograd.grad(spikes, inputs, one, retain_graph=True))(given)
    for ours in (together, mapped):
        for a, b in zip(ours, zip(*one_by_one)):
            torch.testing.assert_close(a, torch.stack(b))
    last = torch.autograd.grad(state, x, torch.ones(2, *state.shape, dtype=torch.float64), is_grads_batched=True)[0]
    assert torch.equal(last[0], last[1]) and last[0].any()
    with noiseless(neuron):
        rows = torch.autograd.functional.jacobian(neuron, x)
        for ours in (
            torch.autograd.functional.jacobian(neuron, x, vectorize=True),
            torch.autograd.functional.jacobian(neuron, x, vectorize=True, strategy="forward-mode"),
            jacrev(neuron)(x.detach()),
            jacfwd(neuron)(x.detach()),
        ):
            torch.testing.assert_close(ours, rows)


def batched_jacobian(net, x):
    return torch.autograd.functional.jacobian(net, x, create_graph=True, vectorize=True)


def batched_gradient(net, x):
    x = x.requires_grad_()
    y = net(x)
    weights = torch.eye(y.numel()).reshape(-1, *y.shape)
    return torch.autograd.grad(y, x, weights, is_grads_batched=True, create_graph=True)[0].reshape(*y.shape, *x.shape)


@pytest.mark.parametrize("together", [batched_jacobian, batched_gradient])
@pytest.mark.parametrize("make", [LIF, ParametricLIF, NoisyLIF, lambda: LIF().as_mean_field()])
@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
@pytest.mark.parametrize("by", [0, 2])
def test_the_graph_of_gradients_in_batches_is_not_lost(together, make, kernels, by):
    """PyTorch would drop what leads to the layers before the neuron and behind it, without a word."""
    net, x = nn.Sequential(nn.Linear(5, 6), make(), nn.Linear(6, 2)), currents(3, 2, 5).float()
    with noise_generator(seeded(5)):
        rows = torch.autograd.functional.jacobian(net, x)
    assert rows.any()
    with noise_generator(seeded(5)), pytest.raises(RuntimeError, match="no second derivative|leave out create_graph"):
        jacobian = together(net, x)
        torch.testing.assert_close(jacobian.detach(), rows)
        torch.autograd.grad(jacobian.square().sum(), net[by].weight, allow_unused=True)


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_a_kernel_that_is_asked_for_by_name_says_that_it_cannot(backend):
    x = currents(3, 2, 4)
    with pytest.raises(ValueError, match="torch.func or forward mode; 'auto' and 'plain' do"):
        vmap(lambda sample: lif(sample, Gaussian(0.3), backend=backend)[0])(x[None])


@pytest.mark.parametrize(
    ("transform", "fullgraph"),
    [
        (vmap, False),
        (jacrev, True),
        pytest.param(lambda neuron: grad(lambda x: neuron(x).square().sum()), False, marks=pytest.mark.slow),
        pytest.param(jacfwd, False, marks=pytest.mark.slow),
    ],
)
def test_transforms_inside_a_compiled_function_are_an_error(transform, fullgraph):
    """PyTorch would compile a wrong Jacobian without a word."""
    function, x = transform(LIF()), currents(2, 3, 1)
    function(x)
    with pytest.raises(Exception, match="leave out torch.compile"):
        torch.compile(function, backend="eager", fullgraph=fullgraph)(x)
    function(x)


# ---- second derivatives


@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
@pytest.mark.parametrize("law", first_are_fast([Logistic(0.3, 0.1), Gaussian(0.4), Cauchy(0.3)]), ids=repr)
@pytest.mark.parametrize("decay_input", [False, True])
def test_second_derivatives_of_the_mean_field_are_exact(kernels, reset, law, decay_input):
    state, decay, scale = currents(2), torch.tensor(0.6).double(), torch.tensor(0.4).double()
    inputs = [tensor.requires_grad_() for tensor in (currents(3, 2), state, decay, scale)]

    def run(x, state, decay, scale):
        options = dict(reset=reset, decay_input=decay_input, mode="mean_field")
        return noisy_lif(x, law, state=state, decay=decay, scale=scale, **options)

    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-5)


@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
@pytest.mark.parametrize("memory", SETTINGS)
def test_a_last_potential_that_depends_on_nothing_learnt(kernels, memory):
    threshold = torch.ones(1, requires_grad=True)
    settings = dict(threshold=threshold, reset="none", mode="mean_field")
    with used_as(memory):  # which keeps currents of bfloat16 in another way
        spikes, last = noisy_lif(currents(3, 2, 5).bfloat16(), Gaussian(0.3), **settings)
    (right,) = torch.autograd.grad(spikes.sum(), threshold, retain_graph=True)
    (found,) = torch.autograd.grad(spikes.sum() + last.sum(), threshold, create_graph=True)
    torch.testing.assert_close(found.detach(), right, rtol=1e-2, atol=0)
    assert torch.autograd.grad(last.sum(), threshold, create_graph=True, allow_unused=True)[0] in (None, 0)


@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
def test_hessians_of_a_mean_field_network(kernels):
    net = nn.Sequential(nn.Linear(4, 3), NoisyLIF(), nn.Linear(3, 2), ParametricLIF().as_mean_field()).double()
    x, v = currents(3, 2, 4), weights(3, 2, 4)

    def loss(x):
        return net(x).square().sum()

    with mean_field(net):
        _, product = torch.autograd.functional.hvp(loss, x, v)
        h = 1e-5
        above, below = (torch.autograd.functional.jacobian(loss, x + sign * h * v) for sign in (1, -1))
        torch.testing.assert_close(product, (above - below) / (2 * h), rtol=1e-5, atol=1e-6)
        matrix = torch.autograd.functional.hessian(loss, x)
        torch.testing.assert_close(torch.tensordot(matrix, v, 3), product)
        for ours in (hessian(loss)(x), torch.autograd.functional.hessian(loss, x, vectorize=True)):
            torch.testing.assert_close(ours, matrix)
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(given), given, create_graph=True)
        gradient.square().sum().backward()  # a gradient penalty
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def of_one_tensor_twice(neuron):
    """The same parameter as the input current and the state."""
    x = currents(1, 2).requires_grad_()
    _, state = neuron.run(x, x[0])
    (gradient,) = torch.autograd.grad(state.sum(), x, create_graph=True)
    return gradient


def test_one_tensor_in_two_places():
    neuron = NoisyLIF()
    with mean_field(neuron):
        once = of_one_tensor_twice(neuron)
        x = currents(1, 2)
        _, expected = vjp(lambda x: neuron.run(x, x[0])[1].sum(), x)
    torch.testing.assert_close(once.detach(), expected(torch.tensor(1.0, dtype=torch.float64))[0])


@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
@pytest.mark.parametrize("make", [LIF, ParametricLIF, NoisyLIF, lambda: NoisyLIF(learnable_scale=True)])
def test_second_derivatives_of_spikes_are_an_error(kernels, make):
    """Also where another term has one, whose sum would then lack a part without a word."""
    neuron, w = make(), weights(3, 2, 4)

    def loss(x):
        return (neuron(x) * w).sum() + x.pow(3).sum()

    x = currents(3, 2, 4).requires_grad_()
    for parameters in ((x,), (x, *neuron.parameters())):
        gradients = torch.autograd.grad(loss(x), parameters, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative.*mean_field"):
            torch.autograd.grad(sum(gradient.sum() for gradient in gradients), x)
    for second in (hessian(loss), jacrev(jacrev(loss)), jacfwd(jacfwd(loss))):
        with pytest.raises(RuntimeError, match="no second derivative.*mean_field"), noiseless(neuron):
            second(x.detach())
    with pytest.raises(RuntimeError, match="no second derivative.*mean_field"):
        torch.autograd.functional.hvp(loss, x.detach(), w)


def test_a_gradient_that_is_kept_but_not_differentiated_is_the_same():
    x = currents(3, 2, 4).requires_grad_()
    spikes = LIF()(x)
    first, kept = (
        torch.autograd.grad(spikes.sum(), x, retain_graph=True, create_graph=kept)[0] for kept in (False, True)
    )
    assert torch.equal(first, kept) and kept.requires_grad


# ---- in-place operations


IN_PLACE = {
    "dropout": lambda spikes: nn.Dropout(0.5, inplace=True)(spikes),
    "relu": lambda spikes: nn.ReLU(inplace=True)(spikes),
    "residual": lambda spikes: spikes.add_(1.0),
    "a step": lambda spikes: spikes[0].zero_(),
    "no_grad": torch.no_grad()(lambda spikes: spikes.zero_()),
}


@every_neuron
@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_what_is_written_over_the_spikes_is_an_error_in_words(make, kernels, change):
    spikes = make()(currents(3, 2, 4).requires_grad_())
    change(spikes)
    with pytest.raises(RuntimeError, match=r"changed in place.*inplace=False.*spikes.clone\(\)"):
        spikes.sum().backward()


@every_neuron
@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
def test_the_ways_out_of_in_place_operations(make, kernels):
    neuron, gradients = make(), []
    for way in ("plain", "clone", "allowed"):
        x = currents(3, 2, 4).requires_grad_()
        with noise_generator(seeded(1)):
            if way == "allowed":
                with torch.autograd.graph.allow_mutation_on_saved_tensors():
                    neuron(x).mul_(3.0).sum().backward()
            else:
                spikes = neuron(x)
                (spikes * 3.0 if way == "plain" else spikes.clone().mul_(3.0)).sum().backward()
        gradients.append(x.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


@pytest.mark.parametrize("kernels", ["auto", "eager"], indirect=True)
def test_the_input_and_the_state_after_the_neuron(kernels):
    """What the gradient does not need may change; a state that went in is needed."""
    x = currents(3, 2, 4).requires_grad_()
    current = x * 1.0
    spikes, state = LIF().run(current)
    current.zero_()
    state.mul_(2.0)
    (spikes.sum() + state.sum()).backward()
    assert x.grad.any()
    start = torch.zeros(2, 4, dtype=torch.float64)
    neuron = ParametricLIF()
    spikes, _ = neuron.run(currents(3, 2, 4), start)
    start.add_(1.0)
    with pytest.raises(RuntimeError, match="its state.*changed in place"):
        spikes.sum().backward()
