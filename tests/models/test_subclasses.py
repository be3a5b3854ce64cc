"""A subclass may override `run` or `step`: forward, streaming, modes and gradients then go through it."""

import pytest
import torch
from torch import nn

from models import IF, LIF, NoisyLIF, ParametricLIF, SpikingNeuron, mean_field, noise_generator, noiseless

KINDS = [LIF, IF, ParametricLIF, NoisyLIF]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def currents():
    return torch.rand(5, 4, 30, generator=seeded(2)) * 2


def by_run(base):
    class Neuron(base):
        def run(self, x, state=None, keep_state=True):
            return super().run(torch.tanh(x), state, keep_state)

    return Neuron


def by_step(base):
    class Neuron(base):
        def step(self, x_t, state=None):
            return super().step(torch.tanh(x_t), state)

    return Neuron


def by_mixin_with_run(base):
    class Mixin:
        def run(self, x, state=None, keep_state=True):
            return super().run(torch.tanh(x), state, keep_state)

    return type("Neuron", (Mixin, base), {})


def by_mixin_with_step(base):
    class Mixin:
        def step(self, x_t, state=None):
            return super().step(torch.tanh(x_t), state)

    return type("Neuron", (Mixin, base), {})


WAYS = {"run": by_run, "step": by_step, "run of a mixin": by_mixin_with_run, "step of a mixin": by_mixin_with_step}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
every_kind = pytest.mark.parametrize("kind", KINDS)


def spikes_of(neuron, x, how):
    with noise_generator(seeded(1)):
        if how == "forward":
            return neuron(x), None
        if how == "run":
            return neuron.run(x)
        state, spikes = None, []
        for x_t in x:
            spike, state = neuron.step(x_t, state)
            spikes.append(spike)
        return torch.stack(spikes), state


@every_kind
@every_way
@pytest.mark.parametrize("how", ["forward", "run", "step"])
def test_the_override_acts_wherever_the_neuron_is_used(kind, way, how):
    x = currents()
    spikes, state = spikes_of(way(kind)(), x, how)
    expected, end = spikes_of(kind(), torch.tanh(x), "run")
    assert torch.equal(spikes, expected) and 0 < spikes.mean() < 1
    assert state is None or torch.equal(state, end)


@every_way
@pytest.mark.parametrize("second", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("how", ["forward", "run", "step"])
def test_overrides_add_up(way, second, how):
    x = currents()
    spikes, _ = spikes_of(second(way(LIF))(), x, how)
    assert torch.equal(spikes, LIF()(torch.tanh(torch.tanh(x))))


@every_kind
@every_way
def test_gradients_and_modes(kind, way):
    overriding = way(kind)
    if kind is not NoisyLIF:
        overriding.is_noisy = False
    neuron, plain = overriding(), kind()
    given = [currents().requires_grad_() for _ in range(2)]
    for context in (noiseless, mean_field):
        with context(neuron), context(plain):
            spikes, expected = neuron(given[0]), plain(torch.tanh(given[1]))
            torch.testing.assert_close(spikes, expected)
            spikes.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(given[0].grad, given[1].grad)
    torch.testing.assert_close(neuron.as_mean_field()(given[0]), plain.as_mean_field()(torch.tanh(given[1])))


class Doubling:
    def run(self, x, state=None, keep_state=True):
        return super().run(2 * x, state, keep_state)


class Squashing:
    def step(self, x_t, state=None):
        return super().step(torch.tanh(x_t), state)


class Shifted(Squashing):
    def run(self, x, state=None, keep_state=True):
        return super().run(x - 0.1, state, keep_state)


class WithStep(Doubling, LIF):
    def step(self, x_t, state=None):
        return super().step(torch.tanh(x_t), state)


class WithRun(Squashing, LIF):
    def run(self, x, state=None, keep_state=True):
        return super().run(2 * x, state, keep_state)


@pytest.mark.parametrize(
    "kind, as_input",
    [
        (type("Neuron", (Squashing, Doubling, LIF), {}), lambda x: 2 * torch.tanh(x)),
        (type("Neuron", (Doubling, Squashing, LIF), {}), lambda x: torch.tanh(2 * x)),
        (type("Neuron", (Doubling, Shifted, LIF), {}), lambda x: torch.tanh(2 * x - 0.1)),
        (type("Neuron", (Squashing, Doubling, by_run(LIF)), {}), lambda x: torch.tanh(2 * torch.tanh(x))),
        (type("Neuron", (Squashing, type("Between", (Doubling, LIF), {})), {}), lambda x: 2 * torch.tanh(x)),
        (WithStep, lambda x: 2 * torch.tanh(x)),
        (WithRun, lambda x: torch.tanh(2 * x)),
    ],
)
@pytest.mark.parametrize("how", ["forward", "run", "step"])
def test_mixins_take_part_in_their_order(kind, as_input, how):
    x = currents() * 0.7
    spikes, _ = spikes_of(kind(), x, how)
    assert torch.equal(spikes, LIF()(as_input(x))) and 0 < spikes.mean() < 1


def run_by_own_step(self, x, state=None, keep_state=True):
    spikes = []
    for x_t in x:
        spike, state = self.step(x_t, state)
        spikes.append(spike)
    return torch.stack(spikes), state


def step_by_own_run(self, x_t, state=None):
    spikes, state = self.run(x_t[None], state)
    return spikes[0], state


@pytest.mark.parametrize("base", [LIF, NoisyLIF, SpikingNeuron])
@pytest.mark.parametrize("override", [{"run": run_by_own_step}, {"step": step_by_own_run}])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_circle_of_run_and_step_is_an_error_in_words(base, override, mixed):
    bases, body = ((type("Mixin", (), override), base), {}) if mixed else ((base,), override)
    given = (1.0, 0.5, "zero", False, False) if base is SpikingNeuron else ()
    neuron = type("Neuron", bases, body)(*given)
    with pytest.raises(TypeError, match="recurses too deeply: if it calls self.*call super"):
        neuron(currents())


def test_a_run_that_ends_in_a_step_is_not_a_cycle():
    class Neuron(LIF):
        def run(self, x, state=None, keep_state=True):
            return super().run(x, state, keep_state) if len(x) == 1 else run_by_own_step(self, x, state)

    assert torch.equal(Neuron()(currents()), LIF()(currents()))


def test_a_run_that_forward_cannot_call_is_refused_with_its_class():
    def run(self, x, state=None):
        return LIF.run(self, x, state)

    for bases, body in (((LIF,), {"run": run}), ((type("Mixin", (), {"run": run}), LIF), {})):
        with pytest.raises(TypeError, match=r"run lacks keep_state: it must be run\(self, x, state=None, keep_state"):
            type("Neuron", bases, body)
    own = type("Neuron", (LIF,), {"run": run, "forward": lambda self, x: self.run(x)[0]})
    assert torch.equal(own()(currents()), LIF()(currents()))
    passing = type("Neuron", (LIF,), {"run": lambda self, x, *args, **kwargs: LIF.run(self, x, *args, **kwargs)})
    assert torch.equal(passing()(currents()), LIF()(currents()))


class Adaptive(SpikingNeuron):
    """Its state is a pair, and it has only `step`."""

    def __init__(self):
        super().__init__(1.0, 0.5, "zero", False, False)

    def step(self, x_t, state=None):
        u, adaptation = (torch.zeros_like(x_t), torch.zeros_like(x_t)) if state is None else state
        u = self.decay * u + x_t
        spike = (u > self.threshold + adaptation).to(x_t.dtype)
        return spike, (u * (1 - spike), 0.9 * adaptation + spike)


def test_a_neuron_with_another_state_has_only_a_step():
    neuron, x = Adaptive(), currents()
    spikes, state = neuron.run(x)
    assert torch.equal(neuron(x), spikes) and neuron.run(x, keep_state=False)[1] is None
    first, between = neuron.run(x[:2])
    rest, end = neuron.run(x[2:], between)
    assert torch.equal(torch.cat([first, rest]), spikes) and all(map(torch.equal, end, state))
    assert neuron(x[:0]).shape == (0, 4, 30)
    assert nn.Sequential(neuron, nn.Linear(30, 2))(x).shape == (5, 4, 2)


def test_one_that_has_both_keeps_both():
    class Both(LIF):
        def run(self, x, state=None, keep_state=True):
            return super().run(x + 1, state, keep_state)

        def step(self, x_t, state=None):
            return super().step(x_t - 1, state)

    x = currents()
    assert torch.equal(Both()(x), LIF()(x + 1))
    assert torch.equal(Both().step(x[0])[0], LIF().step(x[0] - 1)[0])


@every_way
@pytest.mark.parametrize("kind", [LIF, IF, ParametricLIF])
def test_an_override_is_not_taken_for_noise_free_unless_it_says_so(kind, way):
    silent = way(kind)
    assert not hasattr(silent(), "is_noisy") and not hasattr(type("Below", (silent,), {})(), "is_noisy")
    with pytest.raises(TypeError, match="lacks 'is_noisy', which noiseless"), noiseless(silent()):
        pass
    for answer in (True, False):
        for base in (silent, kind):
            assert type("Says", (base,), {"is_noisy": answer, "run": kind.run})().is_noisy is answer
    assert kind().is_noisy is False and type("Same", (kind,), {})().is_noisy is False


def test_neither_is_a_neuron_with_dynamics_of_its_own():
    assert not hasattr(Adaptive(), "is_noisy")


@every_way
def test_what_inherits_noise_is_noisy_and_scales_it(way):
    neuron = way(NoisyLIF)()
    assert neuron.is_noisy and hasattr(neuron, "scale_noise") and not hasattr(LIF(), "scale_noise")
