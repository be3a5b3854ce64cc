"""Where blocks of noise and of modes hold: threads, tasks, generators, compilation, activation checkpointing."""

import asyncio
import contextlib
import copy
import functools
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from models import LIF, Gaussian, NoisyLIF, ParametricLIF, checkpoint, mean_field, noise_generator, noiseless
from models.contexts import GENERATOR_BLOCKS
from tests.conftest import first_are_fast
from tests.models.test_noise import Laplace


class Coin(nn.Module):
    """A neuron whose mode is a plain attribute."""

    emits_spikes = True

    def __init__(self):
        super().__init__()
        self.mode = "noisy"

    @property
    def is_noisy(self):
        return self.mode == "noisy"

    def forward(self, x):
        return torch.sigmoid(x)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def currents():
    return torch.rand(3, 4, 50, generator=seeded(9)) * 2


def network(law=None):
    torch.manual_seed(0)
    law = law or Gaussian(0.3)
    return nn.Sequential(NoisyLIF(law), nn.Linear(50, 50), NoisyLIF(law), nn.Linear(50, 8))


def in_thread(function):
    """The result of a function that runs in a thread of its own; its exception is raised here."""
    results, errors = [], []

    def run():
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    if errors:
        raise errors[0]
    return results[0]


def drawn(count=3):
    """What a neuron draws here: fresh each time."""
    return torch.stack([NoisyLIF()(currents()) for _ in range(count)])


# ---- modes are restored


@pytest.mark.parametrize("make", [NoisyLIF, Coin], ids=["NoisyLIF", "attribute"])
@pytest.mark.parametrize("second", [noiseless, mean_field])
def test_blocks_that_overlap_between_threads_leave_no_mode_behind(make, second):
    net = nn.Sequential(make())
    inside, begun, over = threading.Event(), threading.Event(), threading.Event()
    mode = second.__name__
    refused = make is Coin and second is mean_field  # an attribute has one value for all threads

    def first_thread():
        with noiseless(net):
            begun.set()
            over.wait(60)
            return net[0].mode

    def second_thread():
        begun.wait(60)
        try:
            with second(net):
                over.set()
                inside.wait(60)
                return net[0].mode
        except RuntimeError as error:
            over.set()
            return str(error)

    results = {}
    threads = [
        threading.Thread(target=lambda: (results.update(first=first_thread()), inside.set())),
        threading.Thread(target=lambda: results.update(second=second_thread())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results["first"] == "noiseless"
    assert "another thread: give each thread a copy" in results["second"] if refused else results["second"] == mode
    assert net[0].mode == "noisy" and net[0].is_noisy


def test_each_thread_has_its_own_mode():
    net, x = nn.Sequential(NoisyLIF()), currents()
    with noiseless(net):
        assert in_thread(lambda: net[0].mode) == "noisy"
        assert not torch.equal(*in_thread(lambda: (net(x), net(x))))
        with noiseless(net):
            pass
        assert net[0].mode == "noiseless" and torch.equal(net(x), net(x))


@pytest.mark.parametrize("make", [NoisyLIF, Coin], ids=["NoisyLIF", "attribute"])
@pytest.mark.parametrize("context", [noiseless, mean_field])
def test_blocks_may_end_in_any_order(make, context):
    neuron = make()
    one, two = noiseless(neuron), context(neuron)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert neuron.mode == context.__name__
    two.__exit__(None, None, None)
    assert neuron.mode == "noisy"


@pytest.mark.parametrize("make", [NoisyLIF, Coin], ids=["NoisyLIF", "attribute"])
def test_one_block_object_can_be_entered_inside_itself(make):
    neuron = make()
    block = noiseless(neuron)
    with block, mean_field(neuron):
        with block:
            assert neuron.mode == "noiseless"
        assert neuron.mode == "mean_field"
    assert neuron.mode == "noisy"
    assert block(lambda: neuron.mode)() == "noiseless"


class Stored(Coin):
    """One whose mode is kept under another name, and that has a state of its own for copies."""

    @property
    def mode(self):
        return self.kept

    @mode.setter
    def mode(self, mode):
        self.kept = mode

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "scratch"}


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("make", [NoisyLIF, Coin, Stored])
@pytest.mark.parametrize("context", [noiseless, mean_field])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net)), saved],
    ids=["deepcopy", "copy of the layer", "pickle", "save"],
)
def test_copies_made_inside_are_ordinary_networks(make, context, copied):
    net = nn.Sequential(make(), LIF())
    net[0].scratch, attributes = 1, set(vars(net[0])) | {"scratch"}
    with context(net), noiseless(net):
        twin = copied(net[0])
    assert twin.mode == "noisy" and twin.is_noisy
    assert set(vars(twin)) == attributes - ({"scratch"} if make is Stored else set())
    with context(net):
        assert net[0].mode == context.__name__ and twin.mode == "noisy"
        with noiseless(twin):
            assert twin.mode == "noiseless"
    assert set(vars(net[0])) == attributes and copied(net[0]).mode == "noisy"


def test_a_mode_of_its_own_is_kept_through_blocks_and_copies():
    neuron = NoisyLIF()
    neuron.mode = "mean_field"
    with noiseless(neuron):
        assert neuron.mode == "noiseless" and copy.deepcopy(neuron).mode == "mean_field"
    assert neuron.mode == "mean_field"
    with pytest.raises(ValueError, match="mode must be one of 'noisy', 'noiseless', 'mean_field'"):
        neuron.mode = "quiet"


def test_a_failed_switch_leaves_nothing_behind():
    coin, begun, done = Coin(), threading.Event(), threading.Event()

    def other():
        with noiseless(coin):
            begun.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    first = Coin()
    with pytest.raises(RuntimeError, match="another thread"), mean_field(nn.Sequential(first, NoisyLIF(), coin)):
        pass
    done.set()
    thread.join(60)
    assert first.mode == coin.mode == "noisy"


# ---- generators and coroutines that are suspended

SETTINGS = {
    "noise_generator": lambda neuron, seed: noise_generator(seeded(seed)),
    "modes": lambda neuron, seed: (noiseless, mean_field)[seed % 2](neuron),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


@contextlib.contextmanager
def wrapped(block):
    with block:
        yield


@contextlib.contextmanager
def stacked(block):
    with contextlib.ExitStack() as stack:
        stack.enter_context(block)
        yield


WRAPPERS = {"directly": lambda block: block, "contextmanager": wrapped, "ExitStack": stacked}
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())


@every_setting
@every_wrapper
def test_suspended_generators_keep_their_settings_to_themselves(setting, wrapper):
    neuron, x = NoisyLIF(), currents()

    def stream(seed):
        with wrapper(setting(neuron, seed)):
            for _ in range(3):
                yield neuron(x)

    alone = [list(stream(seed)) for seed in (0, 1)]
    torch.manual_seed(3)
    outside = drawn()
    streams, mixed = [stream(0), stream(1)], [[], []]
    torch.manual_seed(3)
    for _ in range(3):
        for which in (0, 1):
            mixed[which].append(next(streams[which]))
    assert neuron.mode == "noisy"
    assert torch.equal(drawn(), outside)
    for which in (0, 1):  # not in the order in which they began
        assert not list(streams[which])
        assert torch.equal(torch.stack(mixed[which]), torch.stack(alone[which]))
    assert not torch.equal(neuron(x), neuron(x))


@every_setting
def test_a_generator_that_is_dropped_leaves_nothing_behind(setting):
    neuron, x = NoisyLIF(), currents()

    def stream():
        with setting(neuron, 0):
            yield neuron(x)

    one, two = stream(), stream()
    next(one), next(two)
    del one
    two.close()
    assert neuron.mode == "noisy"
    torch.manual_seed(3)
    outside = drawn()
    torch.manual_seed(3)
    assert torch.equal(drawn(), outside)


@pytest.fixture
def noise_of_a_fixture():
    with noise_generator(seeded(5)):
        yield


def test_a_generator_that_hands_its_block_on(noise_of_a_fixture):
    """A fixture's and a context manager's `yield` is the body of the caller."""
    first = drawn()
    with wrapped(wrapped(noise_generator(seeded(5)))):
        assert torch.equal(drawn(), first)
        with noise_generator(seeded(6)):
            other = drawn()
            with wrapped(noise_generator(seeded(5))):
                assert torch.equal(drawn(), first)
    assert not torch.equal(other, first)


@every_setting
def test_tasks_have_their_own_settings_and_pass_them_on(setting):
    neuron, x = NoisyLIF(), currents()

    async def steps(seed):
        with setting(neuron, seed):
            spikes = []
            for _ in range(3):
                spikes.append(neuron(x))
                await asyncio.sleep(0)
            return torch.stack(spikes)

    async def inherits(seed):
        async def child():
            await asyncio.sleep(0)
            return torch.stack([neuron(x) for _ in range(3)])

        with setting(neuron, seed):
            task = asyncio.create_task(child())
            return await task

    async def both():
        return await asyncio.gather(steps(0), steps(1))

    alone = [asyncio.run(steps(seed)) for seed in (0, 1)]
    assert torch.equal(torch.stack(asyncio.run(both())), torch.stack(alone))
    assert torch.equal(asyncio.run(inherits(1)), alone[1])
    coroutines, ends = {0: steps(0), 1: steps(1)}, {}
    while coroutines:  # without asyncio
        for which, coroutine in list(coroutines.items()):
            try:
                coroutine.send(None)
            except StopIteration as end:
                ends[which] = end.value
                del coroutines[which]
    assert torch.equal(torch.stack([ends[0], ends[1]]), torch.stack(alone))
    assert neuron.mode == "noisy"


def test_an_asynchronous_generator_keeps_its_noise_to_itself():
    x, neuron = currents(), NoisyLIF()

    async def stream(seed):
        with noise_generator(seeded(seed)):
            for _ in range(3):
                yield neuron(x)

    async def mixed():
        streams, spikes = [stream(0), stream(1)], [[], []]
        torch.manual_seed(3)
        between = []
        for _ in range(3):
            for which in (0, 1):
                spikes[which].append(await anext(streams[which]))
            between.append(neuron(x))
        for one in streams:
            await one.aclose()
        return torch.stack([torch.stack(part) for part in spikes]), torch.stack(between)

    spikes, between = asyncio.run(mixed())
    for which in (0, 1):
        with noise_generator(seeded(which)):
            assert torch.equal(spikes[which], drawn())
    torch.manual_seed(3)
    assert torch.equal(between, drawn())


async def passed_on(block):
    return block.__enter__()


def test_blocks_of_generators_that_are_resumed_elsewhere():
    """In another thread or task than the one in which they began."""
    x, neuron = currents(), NoisyLIF()

    def stream():
        with noise_generator(seeded(1)):
            for _ in range(3):
                yield neuron(x)

    async def asynchronous():
        for spikes in stream():
            yield spikes

    async def inside():
        with noise_generator(seeded(1)):
            for _ in range(3):
                yield neuron(x)

    async def in_tasks(stream):
        return [await asyncio.wait_for(anext(stream), 60) for _ in range(3)]

    expected = torch.stack(list(stream()))
    for make in (asynchronous, inside):
        assert torch.equal(torch.stack(asyncio.run(in_tasks(make()))), expected)
    moved = stream()
    first = next(moved)
    others = [in_thread(lambda: next(moved)), next(moved)]
    assert torch.equal(torch.stack([first, *others]), expected)


@every_setting
def test_the_block_nearest_to_the_top_of_the_stack_comes_first(setting):
    neuron, x = NoisyLIF(), currents()

    def stream(seed):
        with setting(neuron, seed):
            while True:
                yield neuron(x)

    async def asynchronous(seed):
        with setting(neuron, seed):
            while True:
                yield neuron(x)

    async def consumer(streams):
        before = [await anext(one) for one in streams]
        with setting(neuron, 1):
            inside = [await anext(one) for one in streams]
            own = neuron(x)
        return before, inside, own

    one, two = stream(0), stream(0)
    next(one), next(two)
    with setting(neuron, 1):
        inside, own = next(one), neuron(x)
        with setting(neuron, 3):
            third = next(one)
    assert torch.equal(inside, next(two)) and torch.equal(third, next(two))
    with setting(neuron, 1):
        assert torch.equal(own, neuron(x))
    _, again, own_again = asyncio.run(consumer([asynchronous(0)]))
    assert torch.equal(again[0], inside) and torch.equal(own_again, own)

    def runs_a_loop():  # the task is nearer to the top than the generator that waits for it
        async def task():
            with setting(neuron, 1):
                return neuron(x)

        with setting(neuron, 0):
            yield asyncio.run(task())

    waiting = stream(0)
    next(waiting)
    assert torch.equal(next(runs_a_loop()), own)


def by_no_grad(block):
    @contextlib.contextmanager
    @torch.no_grad()
    def wrapper():
        with block:
            yield

    return wrapper()


def by_delegation(block):
    def inner():
        with block:
            yield

    @contextlib.contextmanager
    def wrapper():
        yield from inner()

    return wrapper()


class ByHand:
    def __init__(self, block):
        self.block = block

    def __enter__(self):
        def generator():
            with self.block:
                yield

        self.generator = generator()
        next(self.generator)

    def __exit__(self, *error):
        next(self.generator, None)


class Helper:
    def __init__(self, block):
        self.block = block

    def __enter__(self):
        return self.block.__enter__()

    def __exit__(self, *error):
        return self.block.__exit__(*error)


def in_a_class(block):
    return Helper(wrapped(block))


@pytest.mark.parametrize("wrapper", [by_no_grad, by_delegation, ByHand, Helper, in_a_class])
@every_setting
def test_a_block_holds_in_the_body_of_what_enters_it(wrapper, setting):
    neuron, x = NoisyLIF(), currents()
    with setting(neuron, 0):
        expected = neuron(x)
    with wrapper(setting(neuron, 0)):
        assert torch.equal(neuron(x), expected)

    def stream():
        with wrapper(setting(neuron, 0)):
            yield neuron(x)

    suspended = stream()
    assert torch.equal(next(suspended), expected)
    torch.manual_seed(3)
    between = drawn(), neuron(x), neuron.mode
    assert not list(suspended)
    torch.manual_seed(3)
    assert torch.equal(between[0], drawn()) and torch.equal(between[1], neuron(x)) and between[2] == "noisy"

    async def body():
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(wrapper(setting(neuron, 0)))
            await asyncio.sleep(0)
            return neuron(x)

    assert torch.equal(asyncio.run(body()), expected)


def test_what_an_entrance_only_consumes_hands_nothing_on():
    neuron, found = NoisyLIF(), []

    class Warm:
        def __enter__(self):
            def stream():
                with noiseless(neuron):
                    yield neuron.mode
                    yield neuron.mode

            for mode in stream():
                found.append((mode, neuron.mode))

        def __exit__(self, *error):
            pass

    with Warm():
        assert neuron.mode == "noisy"
    assert found == [("noiseless", "noisy")] * 2


@contextlib.contextmanager
def by_loop(stream):
    for _ in stream:
        yield


@contextlib.contextmanager
def by_next(stream):
    next(stream)
    yield


@contextlib.asynccontextmanager
async def by_next_asynchronously(stream):
    next(stream)
    yield


@every_setting
@pytest.mark.parametrize("wrapper", [by_loop, by_next, by_next_asynchronously])
def test_what_a_context_manager_only_reads_hands_nothing_on(setting, wrapper):
    neuron = NoisyLIF()

    def stream():
        with setting(neuron, 0):
            yield

    async def body():
        async with contextlib.AsyncExitStack() as stack:
            block = wrapper(stream())
            await stack.enter_async_context(block) if "asyn" in wrapper.__name__ else stack.enter_context(block)
            torch.manual_seed(3)
            found = drawn(), neuron(currents())
            torch.manual_seed(3)
            assert torch.equal(found[0], drawn()) and torch.equal(found[1], neuron(currents()))
            assert neuron.mode == "noisy"

    asyncio.run(body())


def test_a_block_that_a_cell_of_a_notebook_opens_holds_in_later_cells():
    runner = {"__name__": "IPython.core.async_helpers"}
    exec("def run(coroutine):\n    try:\n        coroutine.send(None)\n    except StopIteration:\n        pass", runner)
    neuron = NoisyLIF()
    block = noiseless(neuron)
    runner["run"](passed_on(block))
    assert neuron.mode == "noiseless"
    block.__exit__(None, None, None)
    assert neuron.mode == "noisy"


def test_an_awaited_coroutine_may_enter_a_block_for_those_who_wait():
    neuron = NoisyLIF()

    async def waits():
        block = noiseless(neuron)
        await passed_on(block)
        mode = neuron.mode
        block.__exit__(None, None, None)
        return mode

    assert asyncio.run(waits()) == "noiseless"
    with pytest.raises(StopIteration) as end:  # without asyncio
        waits().send(None)
    assert end.value.value == "noiseless" and neuron.mode == "noisy"


# ---- blocks that end elsewhere


def in_task(function):
    async def run():
        function()

    asyncio.run(run())


@every_setting
@every_wrapper
@pytest.mark.parametrize("elsewhere", [in_thread, in_task], ids=["thread", "task"])
def test_a_block_that_ends_elsewhere_has_ended(setting, wrapper, elsewhere):
    neuron = NoisyLIF()
    block = wrapper(setting(neuron, 0))
    block.__enter__()
    inside = contextlib.ExitStack()
    inside.enter_context(setting(neuron, 1))
    elsewhere(functools.partial(block.__exit__, None, None, None))
    elsewhere(inside.close)
    torch.manual_seed(3)
    outside = drawn(), neuron(currents())
    torch.manual_seed(3)
    assert torch.equal(outside[0], drawn()) and torch.equal(outside[1], neuron(currents()))
    assert neuron.mode == "noisy"
    gone = weakref.ref(neuron)
    del neuron, block, inside
    assert gone() is None


def test_of_a_block_that_was_entered_twice_the_last_one_ends_elsewhere():
    neuron = NoisyLIF()
    block = noiseless(neuron)
    with block, mean_field(neuron):
        block.__enter__()
        in_thread(lambda: block.__exit__(None, None, None))
        assert neuron.mode == "mean_field"
    assert neuron.mode == "noisy"


@every_setting
def test_asynchronous_generators_that_are_left_leave_nothing_behind(setting):
    async def stream(neuron):
        with setting(neuron, 0):
            while True:
                yield

    async def leave(neuron):
        for _ in range(3):
            async for _ in stream(neuron):
                break
        await asyncio.sleep(0.01)  # the loop closes them in tasks of its own
        torch.manual_seed(3)
        outside = drawn()
        torch.manual_seed(3)
        assert torch.equal(outside, drawn()) and neuron.mode == "noisy"
        return weakref.ref(neuron)

    gone = asyncio.run(leave(NoisyLIF()))
    gc.collect()
    assert gone() is None


def test_a_block_that_has_not_begun_cannot_end():
    neuron = NoisyLIF()
    for block in (noise_generator(seeded()), noiseless(neuron)):
        with pytest.raises(RuntimeError, match="was not entered"):
            block.__exit__(None, None, None)
        with block:
            pass
        with pytest.raises(RuntimeError, match="has already ended"):
            block.__exit__(None, None, None)


# ---- decorators


async def coroutine():
    pass


def generator():
    yield


async def asynchronous_generator():
    yield


@every_setting
@pytest.mark.parametrize("function", [coroutine, generator, asynchronous_generator])
def test_a_decorator_of_what_runs_later_is_an_error(setting, function):
    block = setting(NoisyLIF(), 0)
    for one in (function, functools.partial(function)):
        with pytest.raises(TypeError, match="runs after the decorator's block has ended"):
            block(one)
    returned = function()
    with pytest.raises(TypeError, match="runs after the decorator's block has ended"):
        block(lambda: returned)()
    if function is coroutine:
        returned.close()


@every_setting
def test_a_decorated_function_runs_in_its_block(setting):
    neuron, x = NoisyLIF(), currents()

    @setting(neuron, 1)
    def inside(count):
        """Doc."""
        return neuron(x) if count == 1 else inside(count - 1)

    with setting(neuron, 1):
        expected = neuron(x)
    assert inside.__doc__ == "Doc."
    if setting is SETTINGS["modes"]:
        assert torch.equal(inside(3), expected) and torch.equal(inside(1), expected)
    assert neuron.mode == "noisy"


# ---- compilation


@pytest.mark.parametrize(
    "block",
    first_are_fast([lambda net: noise_generator(seeded(5)), noiseless, mean_field]),
    ids=["generator", "noiseless", "mean"],
)
def test_a_block_inside_a_compiled_function_holds(block):
    net, x = network(), currents()

    def function(x):
        with block(net):
            return net(x)

    torch.manual_seed(1)
    for _ in range(2):
        torch.testing.assert_close(torch.compile(function, backend="eager")(x), function(x))
    assert net[0].mode == "noisy"
    torch._dynamo.reset()
    with pytest.raises(Exception, match="outside of a full graph|opaque object"):
        torch.compile(function, backend="eager", fullgraph=True)(x)


def test_blocks_around_a_compiled_network_hold():
    net, x = network(), currents()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for block in (lambda net: noise_generator(seeded(5)), noiseless, mean_field):
        with block(net):
            first = compiled(x)
        with block(net):
            torch.testing.assert_close(net(x), first)
        assert not torch.equal(compiled(x), first)


# ---- activation checkpointing

laws = pytest.mark.parametrize("law", [Gaussian(0.3), Laplace(0.3)], ids=["fused", "eager"])


def gradients(net, run):
    x = currents().requires_grad_()
    net.zero_grad()
    run(x).backward()
    return [x.grad, *(parameter.grad.clone() for parameter in net.parameters())]


def loss_inside(call, block):
    def run(x):
        with block():
            return call(x).cumsum(0).square().sum()

    return run


BLOCKS = {
    "no block": lambda net: contextlib.nullcontext,
    "generator": lambda net: lambda: noise_generator(seeded(5)),
    "noiseless": lambda net: lambda: noiseless(net),
    "mean field": lambda net: lambda: mean_field(net),
}


@laws
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("backward", ["outside", "in another block", "in a thread"])
def test_a_checkpointed_network_has_the_gradient_of_the_network(law, block, backward):
    net = network(law)
    around = BLOCKS[block](net)
    torch.manual_seed(4)
    expected = gradients(net, loss_inside(net, around))
    torch.manual_seed(4)
    run = loss_inside(lambda x: checkpoint(net, x), around)
    if backward == "in a thread":
        found = in_thread(lambda: gradients(net, run))
    else:
        with noise_generator(seeded(7)) if backward == "in another block" else contextlib.nullcontext():
            x, _ = currents().requires_grad_(), net.zero_grad()
            if backward == "in another block" and block == "no block":
                pytest.skip("the forward pass is in that block, too")
            run(x).backward()
        found = [x.grad, *(parameter.grad for parameter in net.parameters())]
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def test_checkpointed_layers_share_a_generator_and_can_be_differentiated_twice():
    net = network()

    def by_layers(x):
        for layer in net:
            x = checkpoint(layer, x)
        return x

    around = BLOCKS["generator"](net)
    expected = gradients(net, loss_inside(net, around))
    x = currents().requires_grad_()
    loss = loss_inside(by_layers, around)(x)
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, x, retain_graph=True)
        torch.testing.assert_close(found, expected[0])


@laws
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["inside", "outside", "only backward"])
def test_pytorchs_checkpoint_with_other_noise_is_refused(law, reentrant, where):
    net, x = network(law), currents().requires_grad_()
    call = functools.partial(torch.utils.checkpoint.checkpoint, net, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="use models.checkpoint"):
        if where == "only backward":
            loss = call(x).sum()
        else:
            with noise_generator(seeded(5)):
                loss = call(x).sum()
                if where == "inside":
                    loss.backward()
        with noise_generator(seeded(5)) if where == "only backward" else contextlib.nullcontext():
            loss.backward()


@laws
@pytest.mark.parametrize("block", ["generator", pytest.param("no block", marks=pytest.mark.slow)])
def test_a_compiled_checkpoint_of_pytorchs(law, block):
    """Never other noise in the backward pass, wherever that is: with a generator it is refused."""
    torch._dynamo.reset()
    net, x = network(law), currents().requires_grad_()

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().sum()

    compiled = torch.compile(checkpointed, backend="aot_eager")
    if block == "generator":
        with pytest.raises(RuntimeError, match="use models.checkpoint"):
            with noise_generator(seeded(5)):
                loss = compiled(x)
            loss.backward()
    else:
        gradients = []
        for function in (lambda x: net(x).square().sum(), compiled):
            torch.manual_seed(4)
            gradients.append(torch.autograd.grad(function(x), x)[0])
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


@laws
@pytest.mark.parametrize("block", ["no block", "noiseless", "mean field"])
def test_pytorchs_checkpoint_with_the_same_noise_is_right(law, block):
    net = network(law)
    around = BLOCKS[block](net)
    torch.manual_seed(4)
    expected = gradients(net, loss_inside(net, around))
    torch.manual_seed(4)
    x, _ = currents().requires_grad_(), net.zero_grad()
    with around():
        torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).cumsum(0).square().sum().backward()
    torch.testing.assert_close(x.grad, expected[0])


KEPT = {  # whether a selective checkpoint keeps the results of an operator
    "all": lambda name: True,
    "random": lambda name: "rand" in name,
    "all but random": lambda name: "rand" not in name,
    "views": lambda name: "select" in name or "view" in name or "unbind" in name,
    "products": lambda name: "mm" in name,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("law", [Gaussian(0.3), Gaussian(0.3, loc=0.1), Laplace(0.3)], ids=repr)
def test_a_selective_checkpoint_of_pytorchs_may_keep_any_operator(law, backend, kept):
    """Also those of random numbers, which nothing must overwrite then."""
    policies = torch.utils.checkpoint.CheckpointPolicy
    net = nn.Sequential(*network(law), ParametricLIF(Laplace(0.3), threshold=0.1), nn.Linear(8, 3))
    net[0].backend = net[2].backend = net[4].backend = backend

    def policy(context, operator, *args, **kwargs):
        return policies.MUST_SAVE if KEPT[kept](str(operator)) else policies.PREFER_RECOMPUTE

    def checkpointed(x):
        contexts = functools.partial(torch.utils.checkpoint.create_selective_checkpoint_contexts, policy)
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False, context_fn=contexts)

    found = []
    for call in (net, checkpointed):
        torch.manual_seed(4)
        found.append(gradients(net, loss_inside(call, contextlib.nullcontext)))
    for ours, theirs in zip(*found):
        assert ours.any()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("first", ["noisy", "noiseless", "mean field"])
@pytest.mark.parametrize("again", ["noisy", "noiseless", "mean field"])
@pytest.mark.parametrize("placement", ["both", "membrane"])
@pytest.mark.parametrize("backend", ["eager", "fused", "plain"])
def test_pytorchs_checkpoint_with_another_mode_is_an_error(first, again, placement, backend):
    """Also of what ends in a neuron, where PyTorch compares little of the two runs."""
    modes = {"noisy": lambda net: contextlib.nullcontext(), "noiseless": noiseless, "mean field": mean_field}
    net, x = nn.Sequential(nn.Linear(50, 4), NoisyLIF(placement=placement)), currents().requires_grad_()
    net[1].backend = backend

    def gradient(checkpointed):
        torch.manual_seed(4)
        with modes[first](net):
            out = checkpointed(net, x)
        with modes[again](net):
            return torch.autograd.grad(out.square().sum(), x)[0]

    for reentrant in (False, True):
        run = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=reentrant)
        if first != again:
            with pytest.raises(RuntimeError):
                gradient(run)
        elif not reentrant:
            torch.testing.assert_close(gradient(run), gradient(lambda net, x: net(x)))


@pytest.mark.parametrize("backend", ["eager", "fused", "plain"])
def test_hooks_that_compress_what_autograd_saves_meet_no_empty_tensor(backend):
    neuron, x = NoisyLIF(), currents().requires_grad_()
    neuron.backend = backend

    def pack(saved):
        return (saved, saved.abs().max()) if saved.is_floating_point() else saved.flatten().view(torch.uint8)[0]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        assert neuron(x).requires_grad


def test_noise_is_the_same_where_autograd_moves_what_it_saves():
    net = network()
    around = BLOCKS["generator"](net)
    expected = gradients(net, loss_inside(net, around))

    def saved_elsewhere(x):
        with torch.autograd.graph.save_on_cpu():
            return loss_inside(net, around)(x)

    for ours, theirs in zip(gradients(net, saved_elsewhere), expected):
        torch.testing.assert_close(ours, theirs)


def shared_block(net, generator):
    def run(x):
        with noise_generator(generator):
            return net(x)

    return run


def one_of_its_own(net, generator):
    return lambda x: shared_block(net, seeded(2))(x)


def direct_draws(net, generator):
    return lambda x: net(x) * Gaussian(0.3).sample((3, 4, 8), generator=generator)


def nested(net, generator):
    return lambda x: checkpoint(shared_block(net, generator), x) + shared_block(net, generator)(x)


def twice(call, function, x):
    return sum(call(function, x).cumsum(0).square().sum() for _ in range(2))


@laws
@pytest.mark.parametrize("make", [shared_block, one_of_its_own, direct_draws, nested])
def test_generators_that_are_used_inside_a_checkpoint_repeat_their_numbers(law, make):
    net, results = network(law), []
    for call in (lambda function, x: function(x), checkpoint):
        generator = seeded(5)
        function = make(net, generator)
        torch.manual_seed(4)
        results.append(gradients(net, functools.partial(twice, call, function)))
        results[-1].append(generator.get_state())
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


def default_around(net, generator):
    def function(x):
        with noise_generator(torch.default_generator):
            y = net(nn.functional.dropout(x))
        return nn.functional.dropout(y) * Gaussian(0.3).sample(y.shape)

    return function


def default_by_name(net, generator):
    return lambda x: net(x) * Gaussian(0.3).sample((3, 4, 8), generator=torch.default_generator) * torch.rand(3, 4, 8)


def default_inside(net, generator):
    def function(x):
        with noise_generator(generator):
            return checkpoint(default_around(net, generator), x) * Gaussian(0.3).sample((3, 4, 8))

    return function


@pytest.mark.parametrize("make", [default_around, default_by_name])
def test_torchs_default_generator_in_a_block_is_refused_if_its_state_is_not_kept(make):
    loss = checkpoint(make(network(), None), currents().requires_grad_(), preserve_rng_state=False).sum()
    with pytest.raises(RuntimeError, match="preserve_rng_state=False"):
        loss.backward()


@laws
@pytest.mark.parametrize("make", [default_around, default_by_name, default_inside])
def test_torchs_default_generator_in_a_block_goes_on_for_other_draws(law, make):
    net, found = network(law), []
    for call in (lambda function, x: function(x), checkpoint):
        torch.manual_seed(4)
        function = make(net, seeded(5))
        found.append([*gradients(net, functools.partial(twice, call, function)), torch.get_rng_state()])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


def before(x, noise, generator):
    return noise(x * torch.rand(x.shape, generator=generator))


def between(x, noise, generator):
    return noise(noise(x) * torch.rand(x.shape, generator=generator))


def after(x, noise, generator):
    return noise(x) * torch.rand(x.shape, generator=generator)


def seeding(x, noise, generator):
    x = noise(x)
    generator.manual_seed(7)
    return noise(x)


def alone(x, noise, generator):
    return x * torch.rand(x.shape, generator=generator)


@pytest.mark.parametrize("how", ["block", "explicit", "nested"])
@pytest.mark.parametrize("draws", [before, between, after, seeding, alone])
def test_a_function_that_draws_from_the_generator_of_the_noise_itself_is_refused(how, draws):
    """Its second run would draw other numbers; the noise has a stand-in."""
    if how == "explicit" and draws in (before, alone):
        pytest.skip("the noise has not come from the generator yet")
    law, x, generator = Gaussian(0.3), currents().requires_grad_(), seeded(1)

    def noise(x):
        return x * law.sample(x.shape, generator if how == "explicit" else None)

    def function(x):
        return draws(x, noise, generator)

    block = contextlib.nullcontext() if how == "explicit" else noise_generator(generator)
    with block, pytest.raises(RuntimeError, match="draws numbers of its own from the generator of the noise"):
        checkpoint(functools.partial(checkpoint, function) if how == "nested" else function, x)
    with block, torch.no_grad():  # there is no second run
        checkpoint(function, x)


def test_threads_that_recompute_one_graph_at_once_restore_their_own_blocks():
    net, x, arrived, first_left = NoisyLIF(Gaussian(0.3)), currents().requires_grad_(), [], threading.Event()
    both, outer = threading.Barrier(2, timeout=60), []

    def function(x):
        if torch._C._current_graph_task_id() != -1:
            arrived.append(threading.current_thread())
            both.wait()
            if arrived[0] is not threading.current_thread():
                first_left.wait(60)
        return net(x)

    with noise_generator(seeded(1)):
        loss = checkpoint(function, x).sum()

    def recompute():
        own = seeded(2)
        with noise_generator(own):
            torch.autograd.grad(loss, x, retain_graph=True)
            first_left.set()
            outer.append([entry.value is own for entry in GENERATOR_BLOCKS.in_effect()])

    threads = [threading.Thread(target=recompute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outer == [[True], [True]]


def test_a_checkpoint_whose_backward_pass_is_in_the_block_of_a_generator():
    net, found = network(), []

    def backward(loss):
        with noiseless(net), noise_generator(seeded(8)):
            yield loss.backward()

    for call in (lambda net, x: net(x), checkpoint, lambda net, x: checkpoint(checkpoint, net, x)):
        x = currents().requires_grad_()
        torch.manual_seed(4)
        next(backward(call(net, x).cumsum(0).square().sum()))
        found.append(x.grad)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0])


@pytest.mark.parametrize("around", ["block", "explicit"])
@pytest.mark.parametrize("how", ["plain", "nested in it"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_numbers_of_a_generator_in_pytorchs_checkpoint_are_refused(around, how, reentrant):
    """The law itself is asked, which saves nothing by which a second run could be compared."""
    law, x, generator = Gaussian(0.3), currents().requires_grad_(), seeded(1)

    def scaled(x):
        return x * law.sample(x.shape, generator if around == "explicit" else None)

    def function(x):
        return checkpoint(scaled, x) if how == "nested in it" else scaled(x)

    block = noise_generator(generator) if around == "block" else contextlib.nullcontext()
    with block, pytest.raises(RuntimeError, match="use models.checkpoint"):  # in its first run already
        torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)
    with torch.no_grad(), noise_generator(generator):  # there is no second run
        torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)


@pytest.mark.parametrize("make", [network, lambda: lambda x: x * Gaussian(0.3).sample(x.shape)], ids=["net", "law"])
@pytest.mark.parametrize("kind", ["reentrant", "not reentrant", "ours"])
def test_noise_whose_state_is_not_kept_is_refused(make, kind):
    function, x = make(), currents().requires_grad_()
    if kind == "ours":
        loss = checkpoint(function, x, preserve_rng_state=False)
    else:
        reentrant = kind == "reentrant"
        loss = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state=False"):
        loss.sum().backward()
    still = nn.Sequential(nn.Linear(50, 3), LIF())
    torch.utils.checkpoint.checkpoint(still, x, use_reentrant=True, preserve_rng_state=False).sum().backward()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_checkpoint_inside_a_compiled_function(block):
    torch._dynamo.reset()
    net, found = network(), []
    around = BLOCKS[block](net)
    compiled = torch.compile(lambda x: checkpoint(net, x + 0) * 2, backend="eager")
    for call in (lambda x: net(x + 0) * 2, compiled):
        torch.manual_seed(4)
        found.append(gradients(net, loss_inside(call, around)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_a_compiled_network_in_a_checkpoint_and_in_a_block_that_ends_elsewhere():
    torch._dynamo.reset()
    net, x = network(), currents()
    compiled, found = torch.compile(net, backend="eager", fullgraph=True), []
    for call in (net, compiled):
        torch.manual_seed(4)
        found.append(gradients(net, functools.partial(twice, checkpoint, call)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)
    block = noiseless(net)
    block.__enter__()
    assert torch.equal(compiled(x), compiled(x))
    in_thread(lambda: block.__exit__(None, None, None))
    assert not torch.equal(compiled(x), compiled(x))
    torch._dynamo.reset()
