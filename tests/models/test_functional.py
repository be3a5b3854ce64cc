"""noisy_lif and lif against closed forms, quadrature, and recursions written out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from models import Cauchy, Gaussian, Logistic, NoiseLaw, Triangular, Uniform, noise_generator
from models.functional import lif, noisy_lif
from models.kernels.common import Neuron
from models.kernels.eager import lif_sequence
from tests.chance import deviations, likely
from tests.conftest import each_pair_is_fast

LAWS = [Gaussian, Logistic, Triangular, Uniform, Cauchy]
PLACEMENTS = ["both", "escape", "membrane"]
RESETS = ["zero", "subtract", "none"]
THRESHOLD = 0.9

every_law = pytest.mark.parametrize("law_class", LAWS, ids=lambda c: c.__name__)
every_placement = pytest.mark.parametrize("placement", PLACEMENTS)
every_reset = pytest.mark.parametrize("reset", RESETS)
detached_or_not = pytest.mark.parametrize("detach_reset", [False, True], ids=["through", "detach"])
scaled_input_or_not = pytest.mark.parametrize("decay_input", [False, True], ids=["x", "(1-d)x"])


def scipy_law(law_class, scale, loc=0.0):
    return {
        Gaussian: stats.norm(loc, scale),
        Logistic: stats.logistic(loc, scale),
        Triangular: stats.triang(0.5, loc - scale, 2 * scale),
        Uniform: stats.uniform(loc - scale, 2 * scale),
        Cauchy: stats.cauchy(loc, scale),
    }[law_class]


def torch_distribution(law_class, x, scale, loc=0.0):
    """The distribution functions once more, not through models.noise, as differentiable functions of x and scale."""
    z = (x - loc) / scale
    return {
        Gaussian: lambda: 0.5 * (1 + torch.erf(z / math.sqrt(2))),
        Logistic: lambda: 0.5 * (1 + torch.tanh(z / 2)),
        Triangular: lambda: torch.where(z < 0, 0.5 * torch.relu(1 + z) ** 2, 1 - 0.5 * torch.relu(1 - z) ** 2),
        Uniform: lambda: 0.5 * (1 + z.clamp(-1, 1)),
        Cauchy: lambda: 0.5 + torch.atan(z) / math.pi,
    }[law_class]()


def neuron(law, decay, placement="both", reset="zero", detach_reset=False, decay_input=False, scale=None):
    return Neuron(
        law,
        scale=law.scale if scale is None else scale,
        decay=decay,
        threshold=THRESHOLD,
        reset=reset,
        reset_value=THRESHOLD if reset == "subtract" else 0.0,
        detach_reset=detach_reset,
        decay_input=decay_input,
        membrane_noise=placement in ("both", "membrane"),
        threshold_noise=placement in ("both", "escape"),
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- how often it fires


def firing_probability(law_class, scale, loc, placement, margin):
    """P(fire) one step from rest, margin = x - threshold.

    membrane: u = x - eps1 fires where x - eps1 > threshold, that is eps1 < margin: F(margin).
    escape:   x - threshold > eps2, that is eps2 < margin: F(margin).
    both:     eps1 + eps2 < margin: the integral of f(e) F(margin - e).
    """
    law = scipy_law(law_class, scale, loc)
    if placement != "both":
        return law.cdf(margin)
    if law_class is Cauchy:  # the sum of two Cauchy variables is a Cauchy variable of twice the width
        return stats.cauchy(2 * loc, 2 * scale).cdf(margin)
    reach = {Gaussian: 12, Logistic: 40}.get(law_class, 1) * scale
    corners = [e for e in (loc, margin - loc, margin - loc - scale, margin - loc + scale) if abs(e - loc) < reach]
    p, _ = integrate.quad(
        lambda e: law.pdf(e) * law.cdf(margin - e), loc - reach, loc + reach, points=corners, limit=200
    )
    return p


@pytest.mark.parametrize(
    ("law_class", "placement", "loc"), each_pair_is_fast(list(LAWS), list(PLACEMENTS), [0.0, 0.35, -0.2])
)
def test_firing_frequency_is_the_marginal_distribution(law_class, placement, loc):
    n, scale = 200_000, 0.4
    margins = [-0.6, -0.15, 0.0, 0.3, 0.75]
    x = (THRESHOLD + torch.tensor(margins)).expand(1, n, -1)
    with noise_generator(seeded(1)):
        spikes, _ = noisy_lif(x, law_class(scale, loc), threshold=THRESHOLD, placement=placement)
    p = [firing_probability(law_class, scale, loc, placement, margin) for margin in margins]
    assert likely(spikes.sum((0, 1)), n, p)


@every_placement
def test_frequency_counts_the_state_and_the_decay(placement):
    n = 100_000
    with noise_generator(seeded(2)):
        x = torch.full((1, n), 0.5)
        spikes, _ = noisy_lif(
            x, Gaussian(0.4), threshold=THRESHOLD, decay=0.25, placement=placement, state=torch.full((n,), 1.2)
        )
    p = firing_probability(Gaussian, 0.4, 0.0, placement, 0.25 * 1.2 + 0.5 - THRESHOLD)
    assert likely(spikes.sum(), n, p)


@every_placement
def test_noise_of_different_steps_and_neurons_is_independent(placement):
    """Decay 0 leaves noise as the only link: the covariance of any two spikes must vanish."""
    n, p = 100_000, 0.5
    with noise_generator(seeded(3)):
        x = torch.full((3, n, 2), THRESHOLD)
        spikes, _ = noisy_lif(x, Gaussian(0.3), threshold=THRESHOLD, decay=0.0, placement=placement)
    centred = (spikes - p).permute(0, 2, 1).flatten(0, 1)
    covariance = centred @ centred.T / n
    expected = 0.25 * torch.eye(6)
    assert (covariance - expected).abs().max() < deviations(15) * 0.25 / math.sqrt(n)  # of 15 pairs


@every_reset
@pytest.mark.parametrize("law_class", [Gaussian, Cauchy, Uniform], ids=lambda c: c.__name__)
def test_one_draw_decides_spike_and_reset(law_class, reset):
    """Over many neurons: the state is exactly that of a spike where there is one, and of none elsewhere."""
    x = 0.9 + 0.2 * torch.randn(1, 50_000, generator=seeded(0))
    with noise_generator(seeded(4)):
        spikes, state = noisy_lif(x, law_class(0.5), threshold=THRESHOLD, placement="escape", reset=reset)
    spike, u = spikes[0].bool(), x[0]
    assert 0.2 < spikes.mean() < 0.8
    assert torch.equal(state[~spike], u[~spike])
    expected = {"zero": torch.zeros_like(u), "subtract": u - THRESHOLD, "none": u}[reset]
    assert torch.equal(state[spike], expected[spike])
    assert (u[spike] < THRESHOLD).any() and (u[~spike] > THRESHOLD).any()  # noise did decide


@pytest.mark.parametrize("placement", ["both", "membrane"])
def test_state_is_zero_exactly_where_it_spiked_with_membrane_noise(placement):
    with noise_generator(seeded(5)):
        x = torch.full((1, 50_000), 0.8)
        spikes, state = noisy_lif(x, Gaussian(0.5), threshold=THRESHOLD, placement=placement)
    assert torch.equal(state == 0, spikes[0] == 1)


@every_law
@every_placement
@every_reset
def test_streamed_spikes_and_states_obey_the_recursion_step_by_step(law_class, placement, reset):
    """Given the noise, every step follows the equations; written out neuron by neuron in Python."""
    T, B = 6, 5
    law, decay = law_class(0.5, 0.1), 0.7
    x = torch.rand(T, B, generator=seeded(6), dtype=torch.float64) * 1.6
    eps1, eps2 = (law.sample((T, B), generator=seeded(i), dtype=torch.float64) for i in (7, 8))
    start = torch.rand(B, generator=seeded(9), dtype=torch.float64)
    spikes, state = lif_sequence(x, start, neuron(law, decay, placement, reset), noise=(eps1, eps2))[:2]
    for b in range(B):
        v = start[b].item()
        for t in range(T):
            u = decay * v + x[t, b].item() - (eps1[t, b].item() if placement != "escape" else 0.0)
            fired = u - THRESHOLD > (eps2[t, b].item() if placement != "membrane" else 0.0)
            assert spikes[t, b].item() == fired
            v = {"zero": 0.0 if fired else u, "subtract": u - THRESHOLD * fired, "none": u}[reset]
        assert state[b].item() == pytest.approx(v, abs=1e-12)


# ---- backward


def recursion_by_hand(x, start, decay, pdf, placement, reset, detach_reset, decay_input, eps1, eps2, g_spikes, g_state):
    """Spikes, last state and the gradients of sum(g_spikes * spikes) + sum(g_state * state), by plain loops."""
    T, B = x.shape
    u, s, v = np.zeros((T, B)), np.zeros((T, B)), np.zeros((T + 1, B))
    v[0] = start
    gain = 1 - decay if decay_input else 1.0
    for t, b in itertools.product(range(T), range(B)):
        u[t, b] = decay * v[t, b] + gain * x[t, b] - (eps1[t, b] if placement != "escape" else 0)
        s[t, b] = u[t, b] - THRESHOLD > (eps2[t, b] if placement != "membrane" else 0)
        v[t + 1, b] = {"zero": u[t, b] * (1 - s[t, b]), "subtract": u[t, b] - THRESHOLD * s[t, b], "none": u[t, b]}[
            reset
        ]
    g_x, g_v, g_decay = np.zeros((T, B)), np.array(g_state, copy=True), 0.0
    for t, b in itertools.product(reversed(range(T)), range(B)):
        dv_du = 1 - s[t, b] if reset == "zero" else 1.0
        dv_ds = {"zero": -u[t, b], "subtract": -THRESHOLD, "none": 0.0}[reset]
        g_s = g_spikes[t, b] + (0.0 if detach_reset else g_v[b] * dv_ds)
        g_u = g_v[b] * dv_du + g_s * pdf(u[t, b] - THRESHOLD)
        g_x[t, b] = g_u * gain
        g_decay += g_u * (v[t, b] - (x[t, b] if decay_input else 0))
        g_v[b] = g_u * decay
    return s, v[T], g_x, g_v, g_decay


@pytest.mark.parametrize(
    ("law_class", "placement", "reset", "detach_reset", "decay_input"),
    each_pair_is_fast(list(LAWS), list(PLACEMENTS), list(RESETS), [False, True], [False, True]),
)
def test_backward_is_the_closed_form_recursion(law_class, placement, reset, detach_reset, decay_input):
    """The same noise on both sides; gradients reach x, the first state and decay, and come from the last state too."""
    T, B, scale, loc = 5, 4, 0.6, -0.15
    law = law_class(scale, loc)
    x = (torch.randn(T, B, generator=seeded(1), dtype=torch.float64) + 0.7).requires_grad_()
    start = torch.rand(B, generator=seeded(2), dtype=torch.float64).requires_grad_()
    decay = torch.tensor(0.65, dtype=torch.float64, requires_grad=True)
    eps1, eps2 = (law.sample((T, B), generator=seeded(i), dtype=torch.float64) for i in (3, 4))
    g_spikes = torch.randn(T, B, generator=seeded(5), dtype=torch.float64)
    g_state = torch.randn(B, generator=seeded(6), dtype=torch.float64)

    spikes, state = lif_sequence(
        x, start, neuron(law, decay, placement, reset, detach_reset, decay_input), noise=(eps1, eps2)
    )[:2]
    gradients = torch.autograd.grad((spikes, state), (x, start, decay), (g_spikes, g_state))

    arrays = [tensor.detach().numpy() for tensor in (x, start, eps1, eps2, g_spikes, g_state)]
    expected = recursion_by_hand(
        arrays[0], arrays[1], 0.65, scipy_law(law_class, scale, loc).pdf, placement, reset, detach_reset, decay_input,
        *arrays[2:],
    )  # fmt: skip
    assert 0 < expected[0].mean() < 1
    for ours, theirs in zip((spikes, state, *gradients), expected):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


@every_reset
def test_a_float_decay_and_a_tensor_decay_give_the_same(reset):
    x = torch.rand(5, 7, generator=seeded(1), dtype=torch.float64) * 3
    results = []
    for decay in (
        0.65,
        torch.tensor(0.65, dtype=torch.float64),
        torch.tensor(0.65, dtype=torch.float64, requires_grad=True),
    ):
        leaf = x.clone().requires_grad_()
        with noise_generator(seeded(2)):
            spikes, state = noisy_lif(leaf, Gaussian(0.3), decay=decay, reset=reset)
        (spikes.sum() + state.sum()).backward()
        results.append((spikes, state, leaf.grad))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", ["spikes", "state"])
def test_gradient_of_one_output_alone(loss):
    """The kernel receives None for the output that the loss does not use."""
    x = (torch.rand(4, 3, generator=seeded(1), dtype=torch.float64) * 3).requires_grad_()
    law = Gaussian(0.4)
    eps = [law.sample((4, 3), generator=seeded(i), dtype=torch.float64) for i in (3, 4)]
    start = torch.zeros(3, dtype=torch.float64)
    spikes, state = lif_sequence(x, start, neuron(law, 0.5), noise=tuple(eps))[:2]
    (spikes if loss == "spikes" else state).sum().backward()
    g_spikes, g_state = np.full((4, 3), loss == "spikes", float), np.full(3, loss == "state", float)
    _, _, expected, _, _ = recursion_by_hand(
        x.detach().numpy(), np.zeros(3), 0.5, scipy_law(Gaussian, 0.4).pdf, "both", "zero", False, False,
        eps[0].numpy(), eps[1].numpy(), g_spikes, g_state,
    )  # fmt: skip
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_state_between_two_runs_flows_back():
    """Truncated or not is the caller's choice: two chained runs have the gradient of one long run."""
    x = torch.rand(6, 4, generator=seeded(1), dtype=torch.float64) * 2
    gradients = []
    for cuts in ([0, 6], [0, 2, 6], range(7)):
        leaf, state, spikes = x.clone().requires_grad_(), None, []
        with noise_generator(seeded(2)):
            for a, b in zip(cuts, list(cuts)[1:]):
                some, state = noisy_lif(leaf[a:b], Gaussian(0.4), placement="escape", state=state)
                spikes.append(some)
        torch.cat(spikes).cumsum(0).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def straight_through(x, start, decay, scale, law_class, loc, placement, reset, detach_reset, xi1, xi2):
    """A differentiable model of the same neuron for autograd: hard spike forward, F(u - threshold) backward.

    eps = loc + scale * xi. Where the threshold is noisy the firing probability depends on scale as
    well; in "membrane" it is only the slope of the surrogate.
    """
    v, spikes = start, []
    for t in range(len(x)):
        u = decay * v + x[t]
        if placement != "escape":
            u = u - (loc + scale * xi1[t])
        z = u - THRESHOLD
        hard = (z > (loc + scale * xi2[t] if placement != "membrane" else 0)).to(z.dtype)
        F = torch_distribution(law_class, z, scale.detach() if placement == "membrane" else scale, loc)
        s = hard + F - F.detach()
        spikes.append(s)
        s = s.detach() if detach_reset else s
        v = {"zero": u * (1 - s), "subtract": u - THRESHOLD * s, "none": u}[reset]
    return torch.stack(spikes), v


@every_law
@every_placement
@every_reset
@detached_or_not
def test_learnt_scale_and_decay_have_the_gradient_of_autograd(law_class, placement, reset, detach_reset):
    T, B, loc = 5, 6, 0.1
    x = (torch.rand(T, B, generator=seeded(1), dtype=torch.float64) * 2).requires_grad_()
    start = torch.rand(B, generator=seeded(2), dtype=torch.float64).requires_grad_()
    decay = torch.tensor(0.65, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    xi1, xi2 = (law_class(1.0).sample((T, B), generator=seeded(i), dtype=torch.float64) for i in (3, 4))
    g_spikes = torch.randn(T, B, generator=seeded(5), dtype=torch.float64)
    g_state = torch.randn(B, generator=seeded(6), dtype=torch.float64)
    inputs, outer = (x, start, decay, scale), (g_spikes, g_state)

    noise = tuple((loc + scale * xi).detach() for xi in (xi1, xi2))
    # the law's own scale, 0.2, must not matter: the tensor replaces it
    layer = neuron(law_class(0.2, loc), decay, placement, reset, detach_reset, scale=scale)
    ours = lif_sequence(x, start, layer, noise=noise)[:2]
    theirs = straight_through(x, start, decay, scale, law_class, loc, placement, reset, detach_reset, xi1, xi2)
    torch.testing.assert_close(ours, theirs)
    assert 0 < ours[0].mean() < 1
    for a, b in zip(torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(theirs, inputs, outer)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@every_law
@pytest.mark.parametrize("loc", [0.0, 0.3])
def test_gradient_of_learnt_scale_escape_one_step(law_class, loc):
    """d/ds F((x - threshold - loc) / s) = -z / s pdf(z), whatever was drawn."""
    scale = torch.tensor(0.45, requires_grad=True)
    x = torch.linspace(0.01, 2.01, 41, dtype=torch.float64)[:-1].reshape(1, -1)
    g = torch.randn(1, 40, generator=seeded(1), dtype=torch.float64)
    spikes, _ = noisy_lif(x, law_class(0.2, loc), threshold=THRESHOLD, placement="escape", scale=scale)
    spikes.backward(g)
    margin = (x - THRESHOLD).numpy()
    expected = -(g.numpy() * (margin - loc) / 0.45 * scipy_law(law_class, 0.45, loc).pdf(margin)).sum()
    assert scale.grad.item() == pytest.approx(expected, rel=1e-5)


@every_law
@pytest.mark.parametrize("margin, loc", [(-0.35, 0.0), (0.5, 0.0), (0.2, 0.3)])
def test_average_gradient_of_learnt_scale_both_is_that_of_the_firing_probability(law_class, margin, loc):
    """E[gradient] = d/ds P(eps1 + eps2 < margin), both of scale s: quadrature and a central difference."""
    batches, n, s = 40, 5_000, 0.5
    scales = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for _ in range(batches)]
    x = torch.full((1, n), THRESHOLD + margin, dtype=torch.float64)
    with noise_generator(seeded(1)):
        for scale in scales:
            spikes, _ = noisy_lif(x, law_class(0.2, loc), threshold=THRESHOLD, scale=scale)
            spikes.mean().backward()
    gradients = torch.stack([scale.grad for scale in scales])
    h = 1e-3
    p_more, p_less = (firing_probability(law_class, s + d, loc, "both", margin) for d in (h, -h))
    expected = (p_more - p_less) / (2 * h)
    error = gradients.mean().item() - expected
    bound = deviations(samples=batches) * gradients.std().item() / math.sqrt(batches)
    assert abs(error) < bound + 1e-5
    assert bound < 0.05  # sharp enough to notice a missing half


@every_law
@pytest.mark.parametrize("placement", ["both", "escape", "membrane"])
def test_average_gradient_of_the_input_is_that_of_the_firing_probability(law_class, placement):
    """Escape and both: E[pdf(u - threshold)] = dP/dx. (In "membrane" a surrogate smooths it as "both" does.)"""
    n, s, margin = 200_000, 0.5, 0.3
    x = torch.full((1, n), THRESHOLD + margin, dtype=torch.float64, requires_grad=True)
    with noise_generator(seeded(1)):
        spikes, _ = noisy_lif(x, law_class(s), threshold=THRESHOLD, placement=placement)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    h, marginal = 1e-3, "escape" if placement == "escape" else "both"
    p_more, p_less = (firing_probability(law_class, s, 0.0, marginal, margin + d) for d in (h, -h))
    expected = (p_more - p_less) / (2 * h)
    assert abs(gradient.mean().item() - expected) < deviations() * gradient.std().item() / math.sqrt(n) + 1e-5


# ---- the mean field


@every_law
@every_reset
@scaled_input_or_not
def test_mean_field_gradient_matches_finite_differences(law_class, reset, decay_input):
    def run(x, state, decay, scale):
        return noisy_lif(
            x, law_class(0.3, 0.05), decay=decay, reset=reset, decay_input=decay_input, state=state, scale=scale,
            threshold=THRESHOLD, mode="mean_field",
        )  # fmt: skip

    x = torch.rand(4, 3, generator=seeded(1), dtype=torch.float64) * 1.5
    state = torch.rand(3, generator=seeded(2), dtype=torch.float64)
    decay, scale = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, state, decay, scale)]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)


@every_law
@every_placement
@every_reset
def test_mean_field_is_the_recursion_of_probabilities_and_draws_nothing(law_class, placement, reset):
    x = torch.rand(5, 4, generator=seeded(1), dtype=torch.float64) * 2
    F, before = scipy_law(law_class, 0.5, 0.1).cdf, torch.get_rng_state()
    spikes, state = noisy_lif(
        x, law_class(0.5, 0.1), threshold=THRESHOLD, decay=0.8, placement=placement, reset=reset, mode="mean_field"
    )
    assert torch.equal(torch.get_rng_state(), before)
    v = np.zeros(4)
    for t in range(5):
        u = 0.8 * v + x[t].numpy()
        p = F(u - THRESHOLD)
        np.testing.assert_allclose(spikes[t].numpy(), p, rtol=1e-9, atol=1e-12)
        v = {"zero": u * (1 - p), "subtract": u - THRESHOLD * p, "none": u}[reset]
    np.testing.assert_allclose(state.numpy(), v, rtol=1e-9, atol=1e-12)


# ---- the deterministic neuron


@every_law
@every_reset
@detached_or_not
@scaled_input_or_not
def test_deterministic_lif_against_the_recursion_by_hand(law_class, reset, detach_reset, decay_input):
    T, B = 6, 5
    x = (torch.rand(T, B, generator=seeded(1), dtype=torch.float64) * 3).requires_grad_()
    start = torch.rand(B, generator=seeded(2), dtype=torch.float64).requires_grad_()
    g_spikes = torch.randn(T, B, generator=seeded(5), dtype=torch.float64)
    g_state = torch.randn(B, generator=seeded(6), dtype=torch.float64)
    before = torch.get_rng_state()
    spikes, state = lif(
        x, law_class(0.8, 0.1), threshold=THRESHOLD, decay=0.7, reset=reset, detach_reset=detach_reset,
        decay_input=decay_input, state=start,
    )  # fmt: skip
    gradients = torch.autograd.grad((spikes, state), (x, start), (g_spikes, g_state))
    assert torch.equal(torch.get_rng_state(), before)
    zero = np.zeros((T, B))
    expected = recursion_by_hand(
        x.detach().numpy(), start.detach().numpy(), 0.7, scipy_law(law_class, 0.8, 0.1).pdf, "none", reset,
        detach_reset, decay_input, zero, zero, g_spikes.numpy(), g_state.numpy(),
    )  # fmt: skip
    assert 0 < expected[0].mean() < 1
    for ours, theirs in zip((spikes, state, *gradients), expected):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("function", ["lif", "noiseless"])
def test_reaching_the_threshold_exactly_does_not_fire(function, dtype):
    x = torch.tensor([[[0.75, 0.75 + 2**-7, 0.75 - 2**-7]]], dtype=dtype)  # exact in every dtype
    law = Gaussian(0.3)
    if function == "lif":
        spikes, state = lif(x, law, threshold=0.75)
    else:
        spikes, state = noisy_lif(x, law, threshold=0.75, mode="noiseless")
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0]
    assert state.flatten().tolist() == [0.75, 0.0, 0.75 - 2**-7]


@every_placement
def test_noiseless_mode_draws_nothing_and_ignores_loc(placement):
    x = torch.rand(4, 50, generator=seeded(1)) * 2
    before = torch.get_rng_state()
    spikes, state = noisy_lif(x, Gaussian(0.3, loc=5.0), placement=placement, mode="noiseless")
    expected = lif(x, Gaussian(0.3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(spikes, expected[0]) and torch.equal(state, expected[1])
    assert 0 < spikes.mean() < 1


# ---- dtypes, shapes, layouts


@pytest.mark.parametrize("mode", ["noisy", "noiseless", "mean_field"])
@pytest.mark.parametrize(
    "dtype, arithmetic",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_spikes_have_the_dtype_of_x_and_the_state_that_of_the_arithmetic(dtype, arithmetic, mode):
    x = (torch.rand(3, 4, 5, generator=seeded(1)) * 2).to(dtype).requires_grad_()
    spikes, state = noisy_lif(x, Gaussian(0.3), mode=mode)
    (spikes.sum() + state.sum()).backward()
    assert spikes.shape == x.shape and state.shape == x.shape[1:]
    assert spikes.dtype == dtype and state.dtype == arithmetic and x.grad.dtype == dtype
    if mode != "mean_field":
        assert set(spikes.detach().flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    """Spikes, state and gradient equal those of the same numbers in float32; only the ends are rounded."""
    half = (torch.rand(6, 200, generator=seeded(1)) * 1.5).to(dtype)
    results = []
    for x in (half, half.float()):
        x = x.clone().requires_grad_()
        with noise_generator(seeded(2)):
            spikes, state = noisy_lif(x, Gaussian(0.3), decay=0.9)
        (spikes * torch.linspace(0, 1, 6).to(dtype).unsqueeze(1)).sum().backward()
        results.append((spikes.detach(), state.detach(), x.grad))
    (s, v, g), (s32, v32, g32) = results
    assert torch.equal(s.float(), s32) and torch.equal(v, v32)
    torch.testing.assert_close(g, g32.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["noisy", "noiseless", "mean_field"])
def test_half_precision_output_does_not_round_the_backward_pass(dtype, mode):
    """Probabilities are rounded on their way out, not where the backward pass needs them."""
    half, gradients = (torch.rand(6, 200, generator=seeded(1)) * 1.5).to(dtype), []
    for x in (half, half.float()):
        state = torch.full((200,), 0.3, requires_grad=True)
        decay = torch.tensor(0.9, requires_grad=True)
        with noise_generator(seeded(2)):
            _, end = noisy_lif(x, Gaussian(0.3), decay=decay, state=state, mode=mode)
        end.sum().backward()
        gradients.append((state.grad, decay.grad))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_state_of_another_precision_is_converted():
    x = torch.rand(2, 3, generator=seeded(1))
    spikes, state = lif(x, Gaussian(0.3), state=torch.full((3,), 0.5, dtype=torch.float64))
    same = lif(x, Gaussian(0.3), state=torch.full((3,), 0.5))
    assert state.dtype == torch.float32
    assert torch.equal(spikes, same[0]) and torch.equal(state, same[1])


def test_arguments_are_not_changed():
    x, state = torch.rand(4, 5, generator=seeded(1)) * 2, torch.rand(5, generator=seeded(2))
    scale = torch.tensor(0.4)
    copies = [tensor.clone() for tensor in (x, state, scale)]
    noisy_lif(x, Gaussian(0.3), state=state, scale=scale, reset="none")
    assert all(torch.equal(a, b) for a, b in zip((x, state, scale), copies))


@every_reset
@pytest.mark.parametrize("shape", [(3, 0), (3, 0, 4), (2, 5, 0)])
def test_empty_batch(shape, reset):
    x = torch.zeros(shape, requires_grad=True)
    spikes, state = noisy_lif(x, Gaussian(0.3), reset=reset, scale=torch.tensor(0.3, requires_grad=True))
    (spikes.sum() + state.sum()).backward()
    assert spikes.shape == shape and state.shape == shape[1:] and x.grad.shape == shape


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager", "plain", "traceable"])
def test_no_step_at_all_leaves_the_state(given, backend):
    x = torch.zeros(0, 4)
    start = torch.rand(4, generator=seeded(1), requires_grad=True) if given else None
    spikes, state = noisy_lif(x, Gaussian(0.3), state=start, backend=backend)
    assert spikes.shape == (0, 4)
    assert torch.equal(state, start if given else torch.zeros(4))
    if given:
        state.sum().backward()
        assert torch.equal(start.grad, torch.ones(4))
        state.detach().zero_()
        assert start.all()  # it is not the same tensor


def layouts():
    """The same numbers [T, B, C, H, W], laid out in different ways."""
    x = torch.rand(4, 2, 3, 5, 6, generator=seeded(1)) * 2
    T = x.shape[0]
    channels_last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
    strided = torch.zeros(4, 2, 3, 5, 12)[..., ::2].copy_(x)
    batch_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    return x, {"channels_last": channels_last, "strided": strided, "batch-first": batch_first}


@pytest.mark.parametrize("layout", ["channels_last", "strided", "batch-first"])
@pytest.mark.parametrize("mode", ["noisy", "noiseless", "mean_field"])
def test_layout_of_the_input_does_not_matter(layout, mode):
    contiguous, others = layouts()
    assert others[layout].stride() != contiguous.stride() and torch.equal(others[layout], contiguous)
    results = []
    for x in (contiguous, others[layout]):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        scale = torch.tensor(0.4, requires_grad=True)
        decay = torch.tensor(0.7, requires_grad=True)
        with noise_generator(seeded(2)):
            spikes, state = noisy_lif(leaf, Gaussian(0.3), decay=decay, scale=scale, mode=mode, decay_input=True)
        (spikes * torch.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1)).sum().backward()
        results.append((spikes, state, leaf.grad, scale.grad, decay.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["noisy", "noiseless"])
def test_input_expanded_over_time_equals_the_repeated_one(layout, mode):
    """Direct coding hands over one image with stride 0 in time."""
    image = torch.rand(2, 3, 5, 6, generator=seeded(1)) * 2
    if layout == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    results = []
    for spread in (lambda x: x.expand(4, *x.shape), lambda x: torch.stack([x] * 4)):
        leaf = image.clone(memory_format=torch.preserve_format).requires_grad_()
        with noise_generator(seeded(2)):
            spikes, state = noisy_lif(spread(leaf), Gaussian(0.3), mode=mode)
        (spikes * torch.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1)).sum().backward()
        results.append((spikes, state, leaf.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2])


@pytest.mark.parametrize("expanded", [False, True])
def test_channels_last_steps_give_channels_last_steps(expanded):
    """So that the next convolution, on the folded [T * B, C, H, W], need not reorder its input."""
    image = torch.rand(2, 3, 5, 6, generator=seeded(1)).contiguous(memory_format=torch.channels_last)
    x = image.expand(4, *image.shape) if expanded else torch.stack([image] * 4)
    if not expanded:
        x = image.repeat(4, 1, 1, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    x = x.detach().requires_grad_()
    spikes, state = noisy_lif(x, Gaussian(0.3))
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert state.is_contiguous(memory_format=torch.channels_last)
    assert spikes.flatten(0, 1).data_ptr() == spikes.data_ptr()  # folding time into the batch costs no copy


def test_contiguous_steps_give_contiguous_steps():
    x = torch.rand(2, 3, 5, 6, 4, generator=seeded(1))
    spikes, state = noisy_lif(x, Gaussian(0.3))
    assert spikes.is_contiguous() and state.is_contiguous()


# ---- noise sources


@every_placement
def test_manual_seed_and_noise_generator_repeat_the_spikes(placement):
    x = torch.full((3, 100), 1.0)
    law = Gaussian(0.3)
    torch.manual_seed(1)
    first, _ = noisy_lif(x, law, placement=placement)
    other, _ = noisy_lif(x, law, placement=placement)
    torch.manual_seed(1)
    assert torch.equal(noisy_lif(x, law, placement=placement)[0], first)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    with noise_generator(seeded(1)):
        first, _ = noisy_lif(x, law, placement=placement)
    with noise_generator(seeded(1)):
        assert torch.equal(noisy_lif(x, law, placement=placement)[0], first)
    assert torch.equal(torch.get_rng_state(), before)


# ---- errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"placement": "threshold"}, "placement.*'both', 'escape', 'membrane'.*'threshold'"),
        ({"placement": None}, "placement.*None"),
        ({"reset": "hard"}, "reset.*'zero', 'subtract', 'none'.*'hard'"),
        ({"mode": "quiet"}, "mode.*'noisy', 'noiseless', 'mean_field'.*'quiet'"),
        ({"backend": "cuda9"}, "backend.*'auto', 'eager'.*'cuda9'"),
        ({"decay": -0.1}, r"decay.*\[0, 1\].*-0.1"),
        ({"decay": 2.0}, r"decay.*\[0, 1\].*2.0"),
        ({"decay": math.nan}, r"decay.*\[0, 1\].*nan"),
        ({"threshold": -math.inf}, "threshold must be a number or inf, got -inf"),
        ({"threshold": math.nan}, "threshold must be a number or inf, got nan"),
        ({"threshold": math.inf, "reset": "subtract"}, "reset_by must be finite, got inf"),
        ({"reset": "subtract", "reset_by": math.nan}, "reset_by must be finite, got nan"),
        ({"v_reset": -math.inf}, "v_reset must be finite, got -inf"),
        ({"v_leak": math.inf}, "v_leak must be finite, got inf"),
        ({"reset_by": 1.0}, "reset_by is what reset=\"subtract\" takes off, but reset is 'zero'"),
        ({"v_reset": 1.0, "reset": "subtract"}, "v_reset is where reset=\"zero\" puts.*'subtract'"),
        ({"v_reset": torch.zeros(()), "reset": "none"}, "v_reset is where reset=\"zero\" puts.*'none'"),
        ({"state": torch.zeros(4)}, r"state.*\[3\].*\[4\]"),
        ({"state": torch.zeros(2, 3)}, r"state.*\[3\].*\[2, 3\]"),
    ],
)
def test_values_out_of_range_are_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        noisy_lif(torch.zeros(2, 3), Gaussian(0.3), **options)


@pytest.mark.parametrize(
    "options", [{"reset": "hard"}, {"decay": 1.5}, {"threshold": math.nan}, {"state": torch.zeros(4)}]
)
def test_lif_checks_its_arguments_too(options):
    with pytest.raises(ValueError):
        lif(torch.zeros(2, 3), Gaussian(0.3), **options)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_input_without_a_batch_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"\[T, B, \.\.\.\], time first.*\[.*\]"):
        noisy_lif(torch.zeros(shape), Gaussian(0.3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_input_that_is_not_floating_point_is_refused_with_its_dtype(dtype):
    with pytest.raises(TypeError, match=rf"floating point.*{dtype}"):
        noisy_lif(torch.zeros(2, 3, dtype=dtype), Gaussian(0.3))


@pytest.mark.parametrize("law", [0.3, None, Gaussian, "NILIF"])
def test_noise_must_be_a_law(law):
    with pytest.raises(TypeError, match=r"noise.*NoiseLaw.*Gaussian\(0.3\)"):
        noisy_lif(torch.zeros(2, 3), law)


def test_a_user_law_runs_and_learns_on_the_eager_path():
    class Laplace(NoiseLaw):
        def cdf(self, x):
            return 0.5 + 0.5 * torch.sign(x) * -torch.expm1(-x.abs())

        def pdf(self, x):
            return 0.5 * torch.exp(-x.abs())

        def icdf(self, p):
            return -torch.sign(p - 0.5) * torch.log1p(-2 * (p - 0.5).abs())

        def __init__(self):
            pass

    n = 100_000
    x = torch.full((1, n), THRESHOLD + 0.5, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    with noise_generator(seeded(1)):
        spikes, _ = noisy_lif(x, Laplace(), threshold=THRESHOLD, placement="escape", scale=scale)
    spikes.mean().backward()
    law = stats.laplace(0, 1)
    assert likely(spikes.detach().sum(), n, law.cdf(0.5))
    np.testing.assert_allclose(x.grad.numpy() * n, law.pdf(0.5), rtol=1e-4)
    assert scale.grad.item() == pytest.approx(-0.5 * law.pdf(0.5), rel=1e-3)


@pytest.mark.parametrize("arguments", [{"scale": 0.5}, {"x": [[1.0, 2.0]]}, {"state": [0.0] * 3}])
def test_what_is_not_a_tensor_is_refused_with_a_message(arguments):
    x = arguments.pop("x", torch.zeros(2, 3))
    with pytest.raises((TypeError, ValueError), match="tensor|state must be"):
        noisy_lif(x, Gaussian(0.3), **arguments)
