"""The monitor of firing rates."""

import asyncio
import contextlib
import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from crits.regularizers import FiringRate
from models import LIF, NoisyLIF, ParametricLIF, Stream, build_model, build_neuron, checkpoint, noiseless
from tests.crits.test_regularizers import shared
from tests.models.test_contexts import Coin
from tools.errors import UserError
from tools.inference import ForwardPass
from tools.probes.firing_rates import firing_rates
from tools.probes.operations import count_operations
from tools.probes.rasters import record_spikes


def test_rates_are_means_over_all_calls():
    net = torch.nn.ModuleDict({"a": LIF(), "b": LIF()})
    with firing_rates(net) as record:
        net["a"](torch.full((2, 3, 4), 2.0))  # fires always
        net["a"](torch.full((2, 9, 4), 0.0))  # never: three times as many
        net["b"](torch.zeros(2, 3))
    assert record.rates() == {"a": 0.25, "b": 0.0}


@pytest.mark.parametrize("way", ["neuron", "run", "step"])
def test_the_rate_of_a_neuron_that_is_used_twice_is_the_one_that_is_penalised(way):
    net, x, penalty = shared(way)
    with firing_rates(net) as record:
        net(x)
    assert record.rates()["lif"] == pytest.approx(penalty.item() ** 0.5 + 0.1)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_what_a_checkpoint_runs_again_does_not_count_twice(use_reentrant):
    def run(net, x):
        if use_reentrant is None:
            return checkpoint(net, x)
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=use_reentrant)

    net = nn.Sequential(LIF(), nn.Linear(4, 4))
    with firing_rates(net) as record:
        run(net, torch.full((2, 3, 4), 2.0, requires_grad=True)).sum().backward()  # fires always
        net(torch.zeros(2, 3, 4))
    assert record.rates() == {"0": 0.5}


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = build_model("toynet", neuron=build_neuron("NILIF"), in_shape=(1, 4, 4), num_classes=2)
    with pytest.raises(KeyError), firing_rates(net):
        raise KeyError
    with firing_rates(net) as record:
        pass
    net(torch.rand(2, 1, 4, 4), timesteps=2)
    with pytest.raises(UserError, match="no spikes were recorded"):
        record.rates()


def test_every_layer_is_seen():
    net = build_model("sresnet18", neuron=build_neuron("NILIF"), in_shape=(3, 8, 8), num_classes=2, width=0.05)
    with firing_rates(net) as record:
        net(torch.rand(2, 3, 8, 8), timesteps=2)
    rates = record.rates()
    assert set(rates) == {name for name, module in net.named_modules() if isinstance(module, NoisyLIF)}
    assert all(0 < rate < 1 for rate in rates.values())


def test_the_graph_is_not_kept():
    saved, numbers = weakref.WeakSet(), []  # what the graph keeps

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()
            numbers.append(len(saved))
            saved.add(self)

    net = two_layers()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda one: one.tensor), firing_rates(net) as record:
        net(torch.rand(2, 5, 3))
    gc.collect()
    assert numbers and not saved and record.rates()


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), LIF(threshold=0.3), nn.Linear(4, 4), ParametricLIF(threshold=0.3))


X = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(1)) * 3


def rates_of(net, run):
    with firing_rates(net) as record:
        run()
    return record.rates()


class Third(Coin):
    """A noisy neuron of one's own, whose spikes are those of its input."""

    def forward(self, x):
        return (x > 1).to(x.dtype)


class Stepped(nn.Module):
    """A network that goes through time itself, as users' own loops do; `stream` says how it calls its neuron."""

    def __init__(self, stream):
        super().__init__()
        self.lif, self.stream = LIF(), stream

    def forward(self, x, timesteps=None):
        return self.stream(self.lif, x)


def by_step(lif, x):
    state, spikes = None, []
    for x_t in x:
        spike, state = lif.step(x_t, state)
        spikes.append(spike)
    return torch.stack(spikes)


def by_step_with_names(lif, x):
    state, spikes = None, []
    for x_t in x:
        spike, state = lif.step(state=state, x_t=x_t)
        spikes.append(spike)
    return torch.stack(spikes)


def by_run(lif, x):
    first, state = lif.run(x[:2])
    return torch.cat([first, lif.run(x[2:], state)[0]])


def by_stream(lif, x):
    stream = Stream(lif)
    return torch.stack([stream(x_t) for x_t in x])


STREAMS = [by_step, by_step_with_names, by_run, by_stream, lambda lif, x: lif.run(x)[0], lambda lif, x: lif(x=x)]


@pytest.mark.parametrize("stream", STREAMS)
def test_methods_for_streaming_are_seen_once_each(stream):
    net = Stepped(stream)
    rates = rates_of(net, lambda: net(X))
    assert rates == {"lif": pytest.approx(LIF()(X).mean().item())} and rates["lif"] > 0
    assert not {"run", "step"} & set(vars(net.lif))
    raster = record_spikes(net, X, ForwardPass(torch.device("cpu"), 5))
    assert torch.equal(raster["lif"], LIF()(X))


def test_a_neuron_of_ones_own_that_returns_its_state_is_seen():
    class Own(nn.Module):
        emits_spikes = True

        def forward(self, x, mem=None):
            return (x > 1).float(), x

        def step(self, x, mem=None):
            return self(x, mem)

    net = nn.ModuleDict({"a": Own(), "b": Own()})
    rates = rates_of(net, lambda: (net["a"](X), [net["b"].step(x) for x in X]))
    assert rates["a"] == pytest.approx(rates["b"]) == pytest.approx((X > 1).float().mean().item())


def test_a_copy_made_inside_is_a_network_of_its_own():
    net = Stepped(by_step)
    with firing_rates(net) as record:
        other = copy.deepcopy(net)
        net(X), other(10 * X)
    rates = record.rates()
    other.lif.threshold = 100.0
    assert other(X).sum() == 0
    assert other.lif.run(X)[0].sum() == 0 and other.lif.step(X[0])[0].sum() == 0
    assert record.rates() == rates


def test_monitors_may_overlap_in_any_order():
    net = Stepped(by_step)
    first, second = firing_rates(net), firing_rates(net)
    one, two = first.__enter__(), second.__enter__()
    net(X)
    first.__exit__(None, None, None)
    net(X * 0)
    second.__exit__(None, None, None)
    net(X * 10)
    assert one.rates()["lif"] == pytest.approx(2 * two.rates()["lif"]) and two.rates()["lif"] > 0
    assert not {"run", "step"} & set(vars(net.lif))


def test_threads_do_not_hide_each_other_s_calls():
    net, inside, done = Stepped(lambda lif, x: lif(x)), threading.Event(), threading.Event()

    def wait(module, args):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            done.wait(600)

    net.lif.register_forward_pre_hook(wait)
    with firing_rates(net) as record:
        thread = threading.Thread(target=net, args=(X * 0,))
        thread.start()
        assert inside.wait(600)
        net.lif.run(X)
        done.set()
        thread.join()
    assert record.rates()["lif"] == pytest.approx(LIF()(X).mean().item() / 2)


def in_two_threads(function):
    """What the function gives in each of two threads that wait for each other after each of their steps."""
    results, barrier = {}, threading.Barrier(2, timeout=600)
    threads = [threading.Thread(target=lambda k=k: results.update({k: function(k, barrier.wait)})) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[0], results[1]]


def in_two_tasks(function):
    """The same in two asyncio tasks, which go on by turns while others wait in a thread of their own."""

    async def both():
        return await asyncio.gather(*(asyncio.to_thread(function, k, barrier.wait) for k in (0, 1)))

    barrier = threading.Barrier(2, timeout=600)
    return asyncio.run(both())


@pytest.mark.parametrize("at_once", [in_two_threads, in_two_tasks])
@pytest.mark.parametrize("stream", STREAMS)
def test_blocks_of_two_threads_or_tasks_see_their_own_calls(at_once, stream):
    net = Stepped(stream)
    expected = [rates_of(net, lambda x=x: net(x))["lif"] for x in (X, X * 10)]
    assert expected[0] != expected[1]

    def rates(k, wait):
        with firing_rates(net) as record:
            wait()
            net(X * 10**k)
            wait()
        return record.rates()["lif"]

    def penalty(k, wait):
        with FiringRate(0.0).watching(net) as regularizer:
            wait()
            net(X * 10**k)
            wait()
            return regularizer(net).item()

    assert at_once(rates) == expected
    assert at_once(penalty) == pytest.approx([rate**2 for rate in expected])
    assert not {"run", "step", "__getstate__"} & set(vars(net.lif)) and not net.lif._forward_hooks


def test_tasks_see_their_own_calls():
    net = two_layers()
    expected = [rates_of(net, lambda x=x: net(x)) for x in (X, X * 10)]

    async def one(x):
        with firing_rates(net) as record:
            await asyncio.sleep(0)
            net(x)
            await asyncio.sleep(0)
        return record.rates()

    async def both():
        with firing_rates(net) as record:
            found = await asyncio.gather(one(X), one(X * 10))
        return found, record.rates()  # the tasks were started inside

    found, total = asyncio.run(both())
    assert found == expected
    assert total["1"] == pytest.approx((expected[0]["1"] + expected[1]["1"]) / 2)


def test_a_block_that_ends_in_another_thread():
    net = two_layers()
    expected = rates_of(net, lambda: net(X))
    block = firing_rates(net)
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert rates_of(net, lambda: net(X)) == expected
    assert not any(module._forward_hooks or "run" in vars(module) for module in net.modules())


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved])
@pytest.mark.parametrize("also", [noiseless, firing_rates, lambda net: contextlib.nullcontext()])
def test_copies_made_inside_are_ordinary_networks(copied, also):
    net = nn.Sequential(NoisyLIF(), Third(), LIF())
    net[2].register_forward_hook(print)
    attributes = [set(vars(module)) for module in net]
    with firing_rates(net), also(net):
        twins = [copied(net), nn.Sequential(*map(copy.copy, net))]
    with also(net), firing_rates(net):
        twins.append(copied(net))
    for twin in twins:
        assert [set(vars(module)) for module in twin] == attributes
        assert [len(module._forward_hooks) for module in twin] == [0, 0, 1]
        assert not any(module._forward_pre_hooks or module._forward_hooks_always_called for module in twin)
        assert twin[1].mode == "noisy" and pickle.loads(pickle.dumps(twin))[1].mode == "noisy"
    assert [set(vars(module)) for module in net] == attributes and net[1].mode == "noisy"


def test_a_block_for_copies_may_end_in_any_order():
    net = nn.Sequential(Third())
    first, second = firing_rates(net), noiseless(net)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert copy.deepcopy(net)[0].mode == "noisy" and net[0].mode == "noiseless"
    second.__exit__(None, None, None)
    assert pickle.loads(pickle.dumps(net))[0].mode == "noisy"


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: torch.func.vmap(net, in_dims=1)(x),
        lambda net, x: torch.func.vmap(torch.func.vmap(net, in_dims=1))(torch.stack([x, x])),
        lambda net, x: torch.func.grad(lambda x: net(x).sum())(x),
        lambda net, x: torch.func.vmap(torch.func.grad(lambda x: net(x).sum()), in_dims=1)(x),
        lambda net, x: torch.func.jvp(net, (x,), (x,)),
        lambda net, x: torch.func.jacrev(net)(x),
    ],
    ids=["vmap", "vmap of vmap", "grad", "gradients by sample", "jvp", "jacrev"],
)
def test_rates_inside_torch_func_are_those_of_all_samples(call):
    net = two_layers()
    expected, found = rates_of(net, lambda: net(X)), rates_of(net, lambda: call(net, X))
    assert found == {layer: pytest.approx(rate) for layer, rate in expected.items()}
    with count_operations(net), pytest.raises(UserError, match="inside torch.vmap and torch.func"):
        torch.func.vmap(net)(X)


def test_rates_and_operations_are_counted_together_in_either_order():
    net = Stepped(by_step)
    with count_operations(net, batch_dim=1) as operations, firing_rates(net) as inner:
        net(X)
    with firing_rates(net) as outer, count_operations(net, batch_dim=1) as again:
        net(X)
    assert inner.rates() == outer.rates() and operations.cost() == again.cost()
    assert not {"run", "step"} & set(vars(net.lif))


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, backend="eager")


def compiled_and_run(module):
    module = compiled(module)
    module(X)
    return module


def in_place(module):
    torch._dynamo.reset()
    module.compile(backend="eager")
    module(X)
    return module


def with_a_compiled_neuron(module):
    module[1] = compiled(module[1])
    return compiled(module)


@pytest.mark.parametrize("prepare", [compiled, compiled_and_run, in_place, with_a_compiled_neuron])
def test_rates_of_a_compiled_network_are_those_of_the_network(prepare):
    expected = rates_of(plain := two_layers(), lambda: plain(X))
    net = prepare(two_layers())
    assert rates_of(net, lambda: net(X)) == expected and expected["1"] > 0
    assert torch.equal(net(X), plain(X))


def test_the_block_leaves_compiled_code_as_it_was():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = torch.compile(two_layers(), backend=backend)
    net(X)
    before = len(compilations)
    first, second = firing_rates(net), firing_rates(net)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None), second.__exit__(None, None, None)
    net(X)
    assert before and len(compilations) == before
    net(torch.rand(5, 3, 3))
    assert len(compilations) > before  # it still compiles


def test_a_monitor_inside_a_compiled_function_is_right_or_an_error():
    net = two_layers()
    expected = rates_of(net, lambda: net(X))
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def function(x):
        with firing_rates(net) as record:
            net(x)
        return record.rates()

    try:
        assert function(X) == expected
    except RuntimeError as error:
        assert "watch neurons around" in str(error)


@pytest.mark.parametrize("run", [lambda net: None, lambda net: net(X[:, :0]), lambda net: copy.deepcopy(net)(X)])
def test_no_spikes_are_an_error_not_a_number(run):
    net = two_layers()
    with pytest.raises(UserError, match="run the network itself .* on a batch that is not empty"):
        rates_of(net, lambda: run(net))


def test_an_empty_batch_among_others_does_not_count():
    net = nn.Sequential(NoisyLIF())
    with firing_rates(net) as record:
        net(torch.zeros(2, 0, 4))
        net(torch.full((2, 3, 4), 50.0))
    assert record.rates() == {"0": 1.0}
