"""norse's neurons and networks next to their equals here."""

import pytest
import torch
from torch import nn

from models import Gaussian, NoisyLIF, interop, noiseless
from tests.models.interop.compare import check, current, difference, draws

norse = pytest.importorskip("norse.torch", reason="norse is not installed")
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.iaf import IAF, IAFCell

from_norse = interop.norse.from_norse
DT = 2**-10


def setting(on_grid, rng, kinds=(norse.LIFBoxCell, norse.LIFCell, norse.LIF, IAFCell, IAF)):
    """A random neuron of norse."""
    kind = rng.choice(kinds)

    def inverse(lowest, highest):  # of a time constant
        return torch.as_tensor(rng.choice((256.0, 512.0)) if on_grid else rng.uniform(lowest, highest) / DT)

    settings = dict(
        v_th=torch.as_tensor(rng.choice((0.25, 0.5)) if on_grid else rng.uniform(0.2, 0.6)),
        v_reset=torch.as_tensor(rng.choice((0.0, -0.25)) if on_grid else rng.uniform(-0.3, 0.1)),
        method=rng.choice(("super", "tanh", "heavi_erfc")),
        alpha=torch.as_tensor(rng.uniform(1, 10)),
    )
    if kind in (IAFCell, IAF):
        return kind(IAFParameters(**settings), dt=DT)
    settings["v_leak"] = torch.as_tensor(rng.choice((0.0, 0.125)) if on_grid else rng.uniform(-0.2, 0.1))
    settings["tau_mem_inv"] = inverse(0.2, 0.8)
    if kind is norse.LIFBoxCell:
        settings["reset_method"] = rng.choice((reset_value, reset_subtract))
        return kind(norse.LIFBoxParameters(**settings), dt=DT)
    settings["tau_syn_inv"] = inverse(0.4, 0.9)
    return kind(p=norse.LIFParameters(**settings), dt=DT)


def run(module, x):
    """All steps from rest, of a cell or of a layer."""
    if isinstance(module, norse.LIF | IAF | interop.norse.Layer):
        return module(x)[0]
    outputs, state = [], None
    for x_t in x:
        spikes, state = module(x_t, state)
        outputs.append(spikes)
    return torch.stack(outputs)


@pytest.mark.parametrize(("on_grid", "rng"), [draw for draw in draws(40) if draw[0]])
def test_on_a_grid_spikes_are_equal(on_grid, rng):
    theirs = setting(on_grid, rng)
    ours = from_norse(theirs)
    found = difference(lambda x: run(theirs, x), lambda x: run(ours, x), current((12, 4, 500), on_grid))
    assert found.spikes == 0 and found.gradient < 1e-5


def test_on_other_inputs_spikes_are_equal_but_for_rounding():
    modules = [setting(*draw) for draw in draws(40) if not draw[0]]
    check(
        [
            difference(
                lambda x, module=module: run(module, x),
                lambda x, ours=from_norse(module): run(ours, x),
                current((12, 4, 500), False),
            )
            for module in modules
        ]
    )
