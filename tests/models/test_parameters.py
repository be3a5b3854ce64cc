"""Learnt numbers and buffers on the meta device, in old files, sharded, and under data parallelism."""

import contextlib
import copy
import functools
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrize, prune, weight_norm

from models import LIF, Gaussian, NoisyLIF, ParametricLIF, build_model, build_neuron, noise_generator, noiseless
from models.layers import Normalize
from tests.conftest import first_are_fast

MAKERS = {
    "PLIF": lambda: ParametricLIF(decay=0.3),
    "learnt scale": lambda: NoisyLIF(Gaussian(0.2), learnable_scale=True),
    "Normalize": lambda: Normalize([0.1, 0.2], [0.3, 0.4]),
}
every_module = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
NETWORKS = ["sresnet18", "sresnet19", "vgg", "cifarnet", "toynet"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@every_module
def test_a_module_on_the_meta_device_is_printed_and_filled(make):
    with torch.device("meta"):
        module = make()
    assert all(tensor.is_meta for tensor in module.state_dict().values()) and module.state_dict()
    assert type(module).__name__ in repr(module)
    module.to_empty(device="cpu").reset_parameters()
    for name, value in make().state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    with pytest.raises(ValueError, match="std positive"), torch.device("meta"):
        Normalize([0.0], [0.0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("neuron", first_are_fast([build_neuron("NILIF", learnable_scale=True), build_neuron("PLIF")]))
def test_a_network_on_the_meta_device_is_filled_layer_by_layer(name, neuron):
    with torch.device("meta"):
        net = build_model(name, neuron=neuron, in_shape=(2, 8, 8), num_classes=3, width=0.05)
        net.normalize = Normalize([0.1, 0.2], [0.3, 0.4])
    assert "learnt" in repr(net) or "decay=nan" in repr(net)
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
    for module in net.modules():
        owns = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if owns:
            module.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    assert net(torch.rand(2, 2, 2, 8, 8)).isfinite().all()


def test_parameters_are_reset_to_what_was_set_last():
    plif, noisy = MAKERS["PLIF"](), MAKERS["learnt scale"]()
    plif.decay, noisy.noise = 0.8, Gaussian(0.6)
    for module in (plif, noisy):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 1
        module.reset_parameters()
    assert plif.decay.item() == pytest.approx(0.8) and noisy.scale.item() == pytest.approx(0.6)


@pytest.mark.parametrize("make", [MAKERS["PLIF"], MAKERS["learnt scale"]], ids=["PLIF", "learnt scale"])
@pytest.mark.parametrize("nested", [False, True])
def test_files_with_numbers_of_shape_0_load(make, nested):
    module = nn.Sequential(nn.Sequential(make())) if nested else make()
    saved = {name: value.reshape(()) + 0.5 for name, value in module.state_dict().items()}
    module.load_state_dict(saved)
    for name, value in module.state_dict().items():
        assert value.shape == (1,) and value == saved[name]
    assert all(value.dim() == 0 for value in saved.values())
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({name: torch.zeros(2) for name in saved})


def test_a_neuron_that_was_pickled_with_a_number_of_shape_0_works():
    for make in (MAKERS["PLIF"], MAKERS["learnt scale"]):
        old, new, x = make(), make(), torch.rand(3, 2, 5) * 2
        for name, parameter in list(old.named_parameters()):
            setattr(old, name, nn.Parameter(parameter.detach().reshape(())))
        grads = []
        for neuron in (old, new):
            with noise_generator(seeded(1)):
                neuron(x).sum().backward()
            grads.append([parameter.grad.item() for parameter in neuron.parameters()])
        assert grads[0] == grads[1]


@pytest.mark.parametrize("neuron", ["LIF", "PLIF", "IF", "NILIF"])
def test_data_parallel_is_refused(neuron):
    """Its replicas are made so on several GPUs."""
    net = build_model("toynet", neuron=build_neuron(neuron), in_shape=(1, 2, 2), num_classes=2)
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        for module in net.modules():
            module._replicate_for_data_parallel()


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        ParametricLIF(decay_input=True),
        nn.Linear(8, 8),
        NoisyLIF(learnable_scale=True),
        nn.Linear(8, 3),
        NoisyLIF(Gaussian(nn.Parameter(torch.full((1,), 0.3))), threshold=nn.Parameter(torch.tensor([0.5, 0.7, 0.9]))),
    )


def _trained(net, shard):
    """The parameters after three steps on the shard of a batch of 4."""
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for step in range(3):
        x = torch.rand(4, 4, 6, generator=seeded(step))[:, shard] * 2
        optimiser.zero_grad()
        net[3].mode = net[5].mode = "mean_field"  # the same for both halves of the batch
        net(x).square().mean().backward()
        optimiser.step()
    return net


def _train_sharded(rank, folder):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    net = _network()
    for layer in net:
        fully_shard(layer, mesh=dist.init_device_mesh("cpu", (2,)))
    fully_shard(net, mesh=dist.init_device_mesh("cpu", (2,)))
    _trained(net, slice(2 * rank, 2 * rank + 2))
    state = {name: value.full_tensor() for name, value in net.state_dict().items()}
    if rank == 0:
        torch.save(state, folder / "state.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_sharded_processes_equal_one(tmp_path):
    torch.multiprocessing.start_processes(_train_sharded, (tmp_path,), nprocs=2, start_method="fork")
    one, start = _trained(_network(), slice(None)).state_dict(), copy.deepcopy(_network()).state_dict()
    two = torch.load(tmp_path / "state.pt")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, start[name])


def per_channel():
    return nn.Parameter(torch.full((6,), 0.3))


@pytest.mark.parametrize(
    "make",
    first_are_fast(
        [
            lambda: NoisyLIF(Gaussian(per_channel())),
            ParametricLIF,
            lambda: ParametricLIF(decay=per_channel().detach()),
            lambda: NoisyLIF(learnable_scale=True),
            lambda: NoisyLIF(Gaussian(nn.Parameter(torch.tensor([0.3])))),
            lambda: LIF(threshold=per_channel(), decay=nn.Parameter(torch.tensor([0.5]))),
        ],
        2,
    ),
)
def test_a_sharded_neuron_outside_of_forward(make, process_group):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 6), make()), torch.rand(3, 2, 5)
    whole, neuron = copy.deepcopy(net), fully_shard(net, mesh=dist.init_device_mesh("cpu", (1,)))[1]
    assert "nan" in repr(net)
    for name in ("decay", "scale", "threshold"):
        value, expected = getattr(neuron, name, None), getattr(whole[1], name, None)
        if hasattr(value, "full_tensor"):
            assert torch.equal(value.full_tensor(), expected.reshape(-1))
        else:
            assert value == expected
    assert repr(neuron.gradient_law) and repr(neuron.as_mean_field())
    if isinstance(neuron, NoisyLIF):
        with pytest.raises(RuntimeError, match="is sharded: call scale_noise before"):
            neuron.scale_noise(0.5)
        neuron.noise = whole[1].noise = Gaussian(0.4)
    elif isinstance(neuron, ParametricLIF):
        neuron.decay = whole[1].decay = 0.7
    if isinstance(whole[1].threshold, nn.Parameter):
        with pytest.raises(RuntimeError, match="is sharded: set it for each channel before"):
            neuron.reset_parameters()
    with torch.no_grad(), noiseless(neuron), noiseless(whole[1]):
        assert torch.equal(net(x * 9), whole(x * 9))


LEARNING = {
    "decay": ParametricLIF,
    "scale": lambda: NoisyLIF(learnable_scale=True),
    "scale of a law of one's own": lambda: NoisyLIF(type("Own", (Gaussian,), {})(0.3), learnable_scale=True),
    "scale that is a parameter": lambda: NoisyLIF(Gaussian(nn.Parameter(torch.tensor(0.3)))),
}


@pytest.mark.parametrize("make", LEARNING.values(), ids=LEARNING)
def test_values_that_cannot_be_read_are_accepted(make):
    neuron, seen = make(), []

    def look(*_):
        law = neuron.gradient_law
        LIF().set_gradient(law)
        seen.append(repr(neuron) + repr(law))
        return torch.zeros(())

    torch.vmap(look)(torch.zeros(2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        look()
    with FakeTensorMode():
        neuron = make()
        look()
    with torch.device("meta"):
        neuron = make()
    look()
    assert all("nan" in words for words in seen)
    if isinstance(neuron, NoisyLIF):
        assert neuron.gradient_law.scale.is_meta
        neuron.scale_noise(0.5)
        assert neuron.scale.is_meta and neuron.gradient_law.scale.is_meta


def _wrapped(rank, folder):
    """Losses of a network and of FSDP around it, and what its scale has learnt."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = _network()
    whole = copy.deepcopy(net)
    wrapped = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
    found = []
    for module in (wrapped, whole):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            with noise_generator(seeded(2)):
                loss = module(torch.rand(4, 4, 6, generator=seeded(1)) * 2).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            found.append(loss.item())
    if rank == 0:
        torch.save(found, folder / "losses.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_older_way_to_shard_reaches_each_value(tmp_path):
    torch.multiprocessing.spawn(_wrapped, (tmp_path,), nprocs=2)
    losses = torch.load(tmp_path / "losses.pt")
    assert losses[:2] == pytest.approx(losses[2:]) and losses[0] != losses[1]


PRUNED = {
    "scale": lambda: NoisyLIF(Gaussian(nn.Parameter(torch.linspace(0.2, 0.7, 6)))),
    "threshold": lambda: LIF(threshold=nn.Parameter(torch.linspace(0.2, 0.7, 6))),
    "decay": lambda: LIF(decay=nn.Parameter(torch.linspace(0.2, 0.7, 6))),
}


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("compute", first_are_fast([prune.identity, functools.partial(nn.utils.weight_norm, dim=None)]))
def test_what_computes_a_parameter_at_each_call_is_followed(name, compute):
    neuron, whole, x = PRUNED[name](), PRUNED[name](), torch.rand(4, 2, 6, generator=seeded(1)) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is an older one
        compute(neuron, name)
    for factor in (1, 1.2):  # of what it is computed from
        spikes = []
        for module in (neuron, whole):
            for parameter in module.parameters():
                parameter.data.mul_(factor)
            with noise_generator(seeded()), noiseless(module) if name != "scale" else contextlib.nullcontext():
                spikes.append(module(x))
        assert torch.equal(*spikes) and spikes[0].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda neuron: neuron.scale_noise(2.0),
        lambda neuron: neuron.reset_parameters(),
        lambda neuron: setattr(neuron, "noise", Gaussian(0.4)),
        lambda neuron: setattr(neuron, "noise", Gaussian(torch.full((6,), 0.4))),
        lambda neuron: setattr(neuron, "noise", Gaussian(per_channel())),
    ],
)
def test_what_would_be_computed_again_is_not_set(change):
    pruned = PRUNED["scale"]()
    prune.identity(pruned, "scale")
    with pytest.raises(RuntimeError, match="computed from other parameters"):
        change(pruned)
    with pytest.raises(ValueError, match="leave out the surrogate"):
        pruned.set_gradient(Gaussian(0.3))
    prune.remove(pruned, "scale")
    change(pruned)
    pruned(torch.rand(3, 2, 6))


@pytest.mark.parametrize("computed", [prune.identity, lambda neuron, name: weight_norm(neuron, name, dim=None)])
@pytest.mark.parametrize(
    ("make", "name", "change"),
    [
        (lambda: ParametricLIF(decay=0.7), "decay_logit", lambda neuron: setattr(neuron, "decay", 0.9)),
        (lambda: ParametricLIF(decay=0.7), "decay_logit", lambda neuron: neuron.reset_parameters()),
        (lambda: LIF(threshold=per_channel()), "threshold", lambda neuron: neuron.reset_parameters()),
        (lambda: LIF(decay=per_channel()), "decay", lambda neuron: neuron.reset_parameters()),
        (lambda: NoisyLIF(learnable_scale=True), "log_scale", lambda neuron: setattr(neuron, "noise", Gaussian(0.9))),
        (lambda: NoisyLIF(learnable_scale=True), "log_scale", lambda neuron: neuron.reset_parameters()),
        (lambda: NoisyLIF(learnable_scale=True), "log_scale", lambda neuron: neuron.scale_noise(2.0)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_every_value_that_would_be_computed_again_is_not_set(computed, make, name, change):
    neuron, x = make(), torch.rand(3, 2, 6)
    computed(neuron, name)
    neuron(x)
    before = getattr(neuron, name).detach().clone()
    with pytest.raises(RuntimeError, match=f"{name} is computed from other parameters"):
        change(neuron)
    neuron(x)
    assert torch.equal(getattr(neuron, name), before)


def test_another_parameter_is_refused_where_one_is_parametrized():
    neuron = PRUNED["scale"]()
    parametrize.register_parametrization(neuron, "scale", Clamped())
    with pytest.raises(RuntimeError, match="scale is parametrized"):
        neuron.noise = Gaussian(per_channel())
    with pytest.raises(ValueError, match="leave out the surrogate"):
        neuron.set_gradient(Gaussian(0.3))


def test_a_scale_is_set_as_a_law_and_does_not_vanish():
    with pytest.raises(AttributeError, match="set neuron.noise instead"):
        NoisyLIF().scale = 0.5
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del NoisyLIF().scale
    neuron = PRUNED["scale"]()
    del neuron.scale
    with pytest.raises(AttributeError, match="no attribute 'scale'"):
        neuron(torch.rand(3, 2, 6))


@pytest.mark.parametrize("change", [lambda neuron: neuron.register_parameter("scale", None),
                                    lambda neuron: setattr(neuron, "scale", None)])  # fmt: skip
def test_a_scale_of_none_is_an_error_and_not_the_scale_1(change):
    neuron = PRUNED["scale"]()
    change(neuron)
    with pytest.raises(RuntimeError, match="the scale was set to None"):
        neuron(torch.rand(3, 2, 6))


class Clamped(nn.Module):
    def forward(self, value):
        return value.clamp(-3, 3)

    def right_inverse(self, value):
        return value


class OneWay(nn.Module):
    def forward(self, value):
        return value.clamp(-3, 3)


PARAMETRIZED = {
    "decay": (lambda: ParametricLIF(decay=0.4), "decay_logit", "decay"),
    "decays": (lambda: ParametricLIF(decay=torch.full((6,), 0.4)), "decay_logit", "decay"),
    "scale": (lambda: NoisyLIF(Gaussian(0.4), learnable_scale=True), "log_scale", "scale"),
    "scales": (lambda: NoisyLIF(Gaussian(torch.full((6,), 0.4)), learnable_scale=True), "log_scale", "scale"),
    "given scales": (lambda: NoisyLIF(Gaussian(per_channel())), "scale", "scale"),
    "threshold": (lambda: LIF(threshold=nn.Parameter(torch.tensor(0.4))), "threshold", "threshold"),
    "thresholds": (lambda: LIF(threshold=per_channel()), "threshold", "threshold"),
}


def set_value(neuron, value):
    if isinstance(neuron, ParametricLIF):
        neuron.decay = value
    else:
        neuron.noise = Gaussian(value)


@pytest.mark.parametrize("make, attribute, shown", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_a_parametrized_neuron_is_set_and_reset(make, attribute, shown):
    neuron, whole, x = make(), make(), torch.rand(4, 2, 6, generator=seeded(1)) * 2
    held = getattr(neuron, attribute)
    parametrize.register_parametrization(neuron, attribute, Clamped())
    original = neuron.parametrizations[attribute].original
    if attribute != "threshold":
        set_value(neuron, 0.7)
        set_value(whole, 0.7)
        torch.testing.assert_close(getattr(neuron, shown), getattr(whole, shown))
    for parameter in neuron.parameters():
        parameter.data.add_(0.2)
    assert not torch.equal(getattr(neuron, shown), getattr(whole, shown))
    neuron.reset_parameters()
    whole.reset_parameters()
    torch.testing.assert_close(getattr(neuron, shown), getattr(whole, shown))
    with noise_generator(seeded()):
        spikes = neuron(x)
    with noise_generator(seeded()):
        assert torch.equal(spikes, whole(x)) and spikes.any()
    assert held is original and original is neuron.parametrizations[attribute].original


@pytest.mark.parametrize("make, attribute, shown", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_a_parametrization_without_an_inverse_is_an_error(make, attribute, shown):
    neuron = make()
    parametrize.register_parametrization(neuron, attribute, OneWay())
    before = getattr(neuron, shown).detach().clone()
    if attribute != "threshold":
        with pytest.raises(RuntimeError, match="does not implement right_inverse"):
            set_value(neuron, 0.7)
    with pytest.raises(RuntimeError, match="does not implement right_inverse"):
        neuron.reset_parameters()
    assert torch.equal(getattr(neuron, shown), before)
    if shown == "scale":
        with pytest.raises(RuntimeError, match="remove_parametrizations first"):
            neuron.scale_noise(0.5)
        parametrize.remove_parametrizations(neuron, attribute)
        neuron.scale_noise(0.5)
        torch.testing.assert_close(torch.as_tensor(neuron.scale), before / 2)
