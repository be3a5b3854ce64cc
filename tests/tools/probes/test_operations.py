"""Counts of operations, against brute force on small networks."""

import itertools

import pytest
import torch
from torch import nn

from models import LIF, Stream, build_model, build_neuron
from tools.errors import UserError
from tools.probes.operations import LayerCost, count_operations


class Frame(nn.Module):
    """A layer as a network: images [B, C, H, W]."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def connections(layer, x):
    """Pairs of an input that is not zero and an output it reaches, one by one: through gradients of each output."""
    x = x.clone().requires_grad_()
    count = 0
    for index in itertools.product(*(range(size) for size in layer(x).shape)):
        (gradient,) = torch.autograd.grad(layer(x)[index], x)
        count += ((gradient != 0) & (x != 0)).sum().item()
    return count


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, 1, 1),
        nn.Conv2d(2, 3, 3, 2, 1, bias=False),
        nn.Conv2d(2, 4, 1, 2),
        nn.Conv2d(2, 4, 3, 1, 0, groups=2),
        nn.Conv2d(2, 2, 3, 1, 2, dilation=2),
        nn.Conv2d(2, 2, 2, 2, 0),
    ],
)
def test_operations_of_a_convolution_are_its_connections(layer):
    nn.init.uniform_(layer.weight, 0.5, 1)
    x = (torch.rand(2, 2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    net = Frame(layer)
    with count_operations(net) as record:
        net(x)
        net(x)
    report = record.cost()
    assert report.layers["layer"].kind == "AC" and report.mac == 0
    assert report.ac == connections(layer, x) / 2
    assert report.relu_mac == connections(layer, torch.ones(1, 2, 5, 6))
    assert report.energy_nj == pytest.approx(0.9e-3 * report.ac)
    assert report.relu_energy_nj == pytest.approx(4.6e-3 * report.relu_mac)


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 4, 3, 2, 1, groups=2), nn.Conv3d(2, 3, 3, padding="same")])
def test_convolutions_of_other_dimensions_are_counted(layer):
    nn.init.uniform_(layer.weight, 0.5, 1)
    x = (torch.rand(2, 2, 3, 4, 3)[(..., 0, 0) if isinstance(layer, nn.Conv1d) else ...] < 0.4).float()
    net = Frame(layer)
    with count_operations(net) as record, torch.inference_mode():
        net(x)
    report = record.cost()
    assert record.samples == 2 and report.ac == connections(layer, x) / 2
    assert report.relu_mac == connections(layer, torch.ones(x[:1].shape))


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(2, 2, 3), nn.Conv2d(2, 2, 3, 1, 1, padding_mode="circular"), nn.LSTM(5, 3)]
)
def test_layers_that_cannot_be_counted_are_an_error(layer):
    net = Frame(layer)
    x = SPIKES[:, 0] if isinstance(layer, nn.LSTM) else SPIKES
    with count_operations(net), pytest.raises(UserError, match=f"'layer'.*{type(layer).__name__}"):
        net(x)


def test_other_values_than_spikes_are_multiplied():
    net = Frame(nn.Linear(4, 3))
    with count_operations(net) as record:
        net(torch.tensor([[[[0.0, 0.0, 1.0, 0.5]]]]))
        net(torch.tensor([[[[0.0, 1.0, 1.0, 1.0]]]]))
    report = record.cost()
    assert report.layers["layer"] == LayerCost((2 + 3) * 3 / 2, "MAC", 12)
    assert report.energy_nj == pytest.approx(4.6e-3 * 7.5)


@pytest.mark.parametrize("model", ["sresnet18", "vggwoap", "vgg", "cifarnet", "toynet"])
def test_the_layers_of_a_network_are_counted_from_their_spikes(model):
    torch.manual_seed(0)
    net = build_model(model, neuron=build_neuron("LIF"), in_shape=(1, 8, 8), num_classes=3, norm="bn", width=0.05)
    net.train()  # batch statistics, so that deep layers of an untrained network fire
    images, steps = torch.rand(4, 1, 8, 8), 3
    inputs = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0].clone()}))
    with count_operations(net) as record, torch.no_grad():
        net(images, timesteps=steps)
    report = record.cost()
    layers = {name: row for name, row in report.layers.items() if not name.endswith(".identity")}
    assert record.samples == 4 and layers.keys() == inputs.keys()
    for name, row in layers.items():
        layer, x = net.get_submodule(name), inputs[name]
        ones = torch.ones_like(layer.weight)
        if isinstance(layer, nn.Linear):
            reached = nn.functional.linear((x != 0).double(), ones.double())
        else:
            reached = nn.functional.conv2d((x != 0).double(), ones.double(), None, layer.stride, layer.padding)
        assert row.operations == pytest.approx(reached.sum().item() / 4)
        assert row.kind == ("AC" if set(x.unique().tolist()) <= {0.0, 1.0} else "MAC")
    stem = next(iter(layers))
    assert layers[stem].kind == "MAC" and layers[stem].operations == layers[stem].dense  # once, not T times
    fires = any(row.kind == "AC" and row.operations > 0 for row in layers.values())
    assert fires or model == "toynet"  # whose three neurons stay silent here


def test_identity_paths_are_counted_from_the_spikes_that_take_them():
    torch.manual_seed(0)
    net = build_model("sresnet18", neuron=build_neuron("LIF"), in_shape=(1, 8, 8), num_classes=3, width=0.05).train()
    spikes = []
    net.stem_neuron.register_forward_hook(lambda module, args, out: spikes.append(out.sum().item()))
    with count_operations(net) as record, torch.no_grad():
        net(torch.rand(4, 1, 8, 8), timesteps=3)
    layers = record.cost().layers
    assert sum(name.endswith(".identity") for name in layers) == 5  # the three others change the shape
    assert spikes[0] > 0 and layers["stages.0.0.identity"].operations == spikes[0] / 4
    assert layers["stages.0.0.identity"].kind == "AC"


@pytest.mark.parametrize("form", ["image", "frames"])
def test_a_relu_network_has_the_cost_that_its_spiking_twin_has_with_relu(form):
    """Every connection counts: of an image once, as all its steps are the same, of a recording in each frame."""
    costs, x = {}, torch.rand(4, 1, 8, 8)
    for neuron in ("LIF", "ReLU"):
        options = dict(in_shape=(1, 8, 8), num_classes=3, width=0.05)
        net = build_model("sresnet18", neuron=build_neuron(neuron), **options).train()
        with count_operations(net) as record, torch.no_grad():
            net(x, timesteps=3) if form == "image" else net(x.expand(3, -1, -1, -1, -1))
        costs[neuron] = record.cost(is_relu=neuron == "ReLU")
    twin, relu = costs["LIF"], costs["ReLU"]
    frames = 1 if form == "image" else 3
    dense = {name: frames * row.dense for name, row in twin.layers.items()}
    assert {name: row.operations for name, row in relu.layers.items()} == dense
    assert relu.ac == sum(dense[name] for name in dense if name.endswith(".identity")) > 0
    assert (relu.ac, relu.mac, relu.energy_nj) == (twin.relu_ac, twin.relu_mac, twin.relu_energy_nj)
    assert relu.energy_nj == relu.relu_energy_nj == pytest.approx(0.9e-3 * relu.ac + 4.6e-3 * relu.mac)


def test_what_is_called_after_the_block_is_not_counted():
    net = build_model("vgg", neuron=build_neuron("LIF"), in_shape=(1, 8, 8), num_classes=3, width=0.05)
    with count_operations(net) as record:
        net(torch.rand(2, 1, 8, 8), timesteps=2)
    counted = record.cost()
    net(torch.rand(2, 1, 8, 8), timesteps=2)
    assert record.cost() == counted


class Shortcut(nn.Module):
    """A block of one's own: images [B, C, H, W]; `form` makes its output from the input and its layers."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.conv, self.norm, self.down = nn.Conv2d(2, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.form(self, x)


INDEX = torch.tensor([0, 1, 2])
SPIKES = (torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def identities(net, x=SPIKES):
    with count_operations(net) as record, torch.no_grad():
        net(x)
    return {name: row for name, row in record.cost().layers.items() if "identity" in name}


def into_zeros(x):
    out = torch.zeros(x.shape)
    out[0], out[1:] = x[0], x[1:]
    return out


@pytest.mark.parametrize(
    "form",
    [
        lambda block, x: block.conv(x) + x,
        lambda block, x: x + block.norm(block.conv(x)),
        lambda block, x: torch.add(x, block.conv(x)),
        lambda block, x: block.conv(x).add_(x),
        lambda block, x: block.conv(x).flatten(0, 1).unflatten(0, x.shape[:2]) + x,
        lambda block, x: block.conv(x) + block.down(x) + x,
        lambda block, x: block.conv(x) + nn.functional.relu(x),
        lambda block, x: x + torch.full((2, 1, 1), 0.5) * block.conv(x),
        lambda block, x: x + nn.functional.avg_pool2d(block.conv(x), 3, 1, 1),
        lambda block, x: x + block.conv(x).relu(),
        lambda block, x: x + block.conv(x).clone(),
        lambda block, x: x.double() + block.conv(x).double(),
        lambda block, x: x + block.conv(x).contiguous(memory_format=torch.channels_last),
        lambda block, x: x + torch.stack([block.conv(x), block.conv(x)]).unbind()[0],
        lambda block, x: torch.add(x, other=block.conv(x)),
        lambda block, x: torch.add(input=block.conv(x), other=x),
        lambda block, x: x - block.conv(x),
        lambda block, x: block.conv(x).sub(x),
        lambda block, x: into_zeros(block.conv(x)) + x,
        lambda block, x: x.clone().add_(block.conv(x)),
        lambda block, x: x.sum() + x.mean() + block.conv(x) + x,
        lambda block, x: torch.rsub(block.conv(x), x),
        lambda block, x: torch.stack([block.conv(x), x]).sum(0),
        lambda block, x: torch.stack([block.conv(x), x, torch.zeros(x.shape)], dim=-1).sum(dim=-1),
        lambda block, x: torch.mean(torch.stack((x, block.conv(x)), 1), (1,)),
        lambda block, x: torch.stack([block.conv(x)[None], x[None]]).sum((0, 1)),
        lambda block, x: torch.cat([block.conv(x)[..., None], x[..., None]], -1).sum(-1),
        lambda block, x: torch.concat([x[None], block.conv(x)[None]]).mean(axis=0, keepdim=True),
    ],
)
def test_the_identity_path_of_any_block_is_counted(form):
    block = Shortcut(form)
    expected = LayerCost(SPIKES.sum().item() / 3, "AC", 2 * 4 * 5)
    assert identities(nn.Sequential(block)) == {"0.identity": expected}
    assert identities(block) == {"identity": expected}


@pytest.mark.parametrize(
    "form",
    [
        lambda block, x: block.conv(x) + block.down(x),
        lambda block, x: block.norm(block.conv(x)) + block.conv(x),
        lambda block, x: block.conv(x) + block.conv.bias[:, None, None],
        lambda block, x: block.conv(x) + 1.0,
        lambda block, x: block.conv(x) + nn.Parameter(torch.ones_like(x)),
        lambda block, x: block.conv(x) + block.norm.running_var[:, None, None].expand_as(x),
        lambda block, x: block.conv(x) + 2 * block.norm.running_var[:, None, None].expand(x.shape).contiguous(),
        lambda block, x: block.conv(x) + torch.zeros(x.shape),
        lambda block, x: block.conv(x) + torch.zeros_like(x) + x.new_ones(x.shape),
        lambda block, x: torch.stack([block.conv(x), block.down(x)]).sum(0),
        lambda block, x: torch.stack(list(block.conv(x))).sum(0),
        lambda block, x: torch.stack(list(x)).mean(0),  # spikes pooled over time
        lambda block, x: torch.stack([block.conv(x), x]).sum(1),
        lambda block, x: torch.stack([block.conv(x), x]).sum(),
        lambda block, x: torch.cat([block.conv(x), x], 1).sum(1),  # pooled over channels
        lambda block, x: block.conv(x).index_add(0, INDEX, block.down(x)),
    ],
)
def test_sums_of_currents_and_constants_are_not_identity_paths(form):
    assert identities(Shortcut(form)) == {}


@pytest.mark.parametrize(
    ("form", "equal"),
    [
        (lambda stack: stack.mean((0, 3, 4)), lambda a, b: a.mean((2, 3)) + b.mean((2, 3))),
        (lambda stack: stack.sum((-2, 0)), lambda a, b: a.sum(2) + b.sum(2)),
        (lambda stack: stack.sum(torch.tensor(0)), lambda a, b: a + b),
        (lambda stack: stack.sum((0, 1, 2, 3, 4)), lambda a, b: a.sum() + b.sum()),
        (lambda stack: stack.sum(), lambda a, b: a.sum() + b.sum()),
        (lambda stack: stack.sum(dim=None), lambda a, b: a.sum() + b.sum()),
        (lambda stack: stack.mean(()), lambda a, b: a.mean() + b.mean()),
    ],
)
def test_sums_over_several_dimensions_count_as_the_equal_sum_of_two(form, equal):
    found = identities(Shortcut(lambda block, x: form(torch.stack([block.conv(x), x]))))
    assert found == identities(Shortcut(lambda block, x: equal(block.conv(x), x)))


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda stack: stack.mean((3, 4)).sum(0), "sum"),
        (lambda stack: stack.flatten(1).sum(0), "sum"),
        (lambda stack: stack[None].mean((0, 1)), "mean"),
        (lambda stack: torch.relu(stack).sum(0), "sum"),
        (lambda stack: stack.mul_(2).sum(0), "sum"),
        (lambda stack: stack.nansum(0), "nansum"),
        (lambda stack: stack.cumsum(0)[-1], "cumsum"),
    ],
)
def test_sums_of_what_was_made_of_a_stack_are_an_error(form, name):
    with pytest.raises(UserError, match=rf"^{name} in the network cannot be counted: write .* a \+ b"):
        identities(Shortcut(lambda block, x: form(torch.stack([block.conv(x), x]))))


@pytest.mark.parametrize(
    "form",
    [
        lambda block, x: torch.stack([block.conv(x), block.down(x)]).flatten(1).sum(0),  # currents
        lambda block, x: torch.stack([block.conv(x), x]).flatten(0, 1).unflatten(0, (2, 3))[0].mean((1, 2)),
        lambda block, x: block.conv(torch.stack([block.conv(x), x]).flatten(0, 1)).mean(0),
        lambda block, x: torch.zeros_like(torch.stack([block.conv(x), x])).sum(0),
        lambda block, x: (torch.stack([block.conv(x), x]) > 0).sum(0),
    ],
)
def test_what_was_made_of_a_stack_may_be_used_otherwise(form):
    assert identities(Shortcut(form)) == {}


@pytest.mark.parametrize(
    "form", [lambda block, x: torch.lerp(block.conv(x), x, 0.5), lambda block, x: block.conv(x).lerp_(x, weight=0.5)]
)
def test_interpolated_spikes_are_an_identity_path_that_multiplies(form):
    assert identities(Shortcut(form)) == {"identity": LayerCost(SPIKES.sum().item() / 3, "MAC", 40)}


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda block, x: block.conv(x).addcmul(x, x), "addcmul"),
        (lambda block, x: block.conv(x).index_add(0, INDEX, x), "index_add"),
        (lambda block, x: torch._foreach_add([block.conv(x)], [x])[0], "foreach_add"),
    ],
)
def test_sums_that_cannot_be_taken_apart_are_an_error(form, name):
    with pytest.raises(UserError, match=rf"^{name} in '0' cannot be counted: write .* a \+ b"):
        identities(nn.Sequential(Shortcut(form)))


WEIGHT = nn.Parameter(torch.ones(5, 5))


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (lambda block, x: nn.functional.linear(x, WEIGHT), "linear"),
        (lambda block, x: nn.functional.conv2d(x, block.conv.weight), "conv2d"),
        (lambda block, x: x @ WEIGHT.T, "matmul"),
        (lambda block, x: torch.einsum("bchw,wv->bchv", x, WEIGHT), "einsum"),
        (lambda block, x: torch.bmm(x[0], WEIGHT.expand(2, 5, 5)), "bmm"),
        (lambda block, x: torch.addmm(x[0, 0], x[1, 0], WEIGHT), "addmm"),
        (lambda block, x: torch.baddbmm(x[0], x[1], WEIGHT.expand(2, 5, 5)), "baddbmm"),
        (lambda block, x: nn.functional.linear(block.conv(x), WEIGHT), "linear"),
    ],
)
def test_synapses_outside_of_a_layer_are_an_error(form, name):
    for net, place in ((Shortcut(form), "the network"), (nn.Sequential(Shortcut(form)), "'0'")):
        with pytest.raises(UserError, match=rf"^{name} in {place} cannot be counted: synapses are counted in"):
            identities(net)


def test_weights_may_be_computed_from_others():
    class LowRank(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight + self.weight @ self.weight)

    net = Shortcut(lambda block, x: block.layer(x) + (WEIGHT @ WEIGHT).sum())
    net.layer = nn.utils.parametrizations.weight_norm(LowRank(5, 5))
    assert identities(net) == {}


def test_spikes_made_by_comparison_are_not_a_current():
    found = identities(Shortcut(lambda block, x: (block.conv(x) > -9).to(x.dtype) + block.conv(x)))
    assert found == {"identity": LayerCost(40, "AC", 40)}


def test_sums_of_spikes_count_both_operands():
    other = 1 - SPIKES
    found = identities(Shortcut(lambda block, x: block.conv(x + other)))
    assert {name: row.operations * 3 for name, row in found.items()} == {
        "identity": SPIKES.sum().item(),
        "identity2": other.sum().item(),
    }


def test_identity_paths_add_where_the_relu_network_multiplies():
    net = Shortcut(lambda block, x: block.conv(x) + 0.5 * x)
    with count_operations(net) as record, torch.no_grad():
        net(SPIKES)
        net(SPIKES)
    report = record.cost()
    assert report.layers["identity"].kind == "MAC"  # values other than spikes take it
    assert report.layers["identity"].operations == SPIKES.sum().item() / 3
    assert report.relu_ac == 40 and report.relu_mac == report.layers["conv"].dense


def test_a_subtracted_negative_is_an_identity_path_too():
    found = identities(Shortcut(lambda block, x: block.conv(x) - (-x)))
    assert found == {"identity": LayerCost(SPIKES.sum().item() / 3, "MAC", 40)}


def test_a_loop_over_steps_adds_to_one_path_and_one_over_layers_does_not():
    x = torch.stack([SPIKES, 1 - SPIKES, SPIKES])
    found = identities(Shortcut(lambda block, x: torch.stack([x_t + block.conv(x_t) for x_t in x])), x)
    assert found == {"identity": LayerCost(x.sum().item() / 3, "AC", 40)}
    layers = Shortcut(lambda block, x: [x + block.norm(layer(x)) for layer in (block.conv, block.down)])
    assert identities(layers, x[0]).keys() == {"identity", "identity2"}

    def spikes_of_layers(block, x):
        for layer, neuron in zip((block.conv, block.down), block.neurons):
            x = x + neuron(layer(x)[None])[0]

    layers.neurons, layers.form = nn.ModuleList(build_neuron("LIF")() for _ in range(2)), spikes_of_layers
    assert identities(layers, x[0]).keys() == {f"identity{number}" for number in ("", 2, 3, 4)}  # sums of spikes


@pytest.mark.parametrize("kind", ["LIF", "NILIF"])
@pytest.mark.parametrize("streams", [False, True])
def test_spikes_of_a_neuron_are_not_a_current(kind, streams):
    def form(block, x):
        current = block.conv(x)
        spikes = block.neuron.step(current)[0] if streams else block.neuron(current[None])[0]
        return spikes + block.conv(spikes)

    net = Shortcut(form)
    net.neuron = build_neuron(kind)()
    nn.init.constant_(net.conv.weight, 1.0)
    found = identities(net)
    assert found.keys() == {"identity"} and found["identity"].operations > 0
    assert "step" not in vars(net.neuron)


@pytest.mark.parametrize("form", ["all steps", "flat", "one by one"])
def test_tokens_are_counted_in_batches_of_any_size(form):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):  # [T, B, N, C]
            if form == "one by one":
                return [x_t + self.linear(x_t) for x_t in x]
            x = x.flatten(0, 1) if form == "flat" else x
            return x + self.linear(x)

    batches = [torch.rand(steps, batch, 5, 4) for steps, batch in ((2, 3), (2, 2), (4, 2), (2, 1))]
    net = Tokens()
    with count_operations(net) as record, torch.inference_mode():
        for x in batches:
            net(x)
    layers, total = record.cost().layers, sum(x.numel() for x in batches)
    assert record.samples == 8
    assert layers["identity"] == LayerCost(total / 8, "MAC", 20)
    assert layers["linear"] == LayerCost(total * 4 / 8, "MAC", 80)


def test_activations_that_are_not_a_batch_are_an_error():
    net = Shortcut(lambda block, x: x.movedim(0, -1) + block.conv(x).movedim(0, -1))
    with pytest.raises(UserError, match=r"identity.*\[2, 4, 5, 3\].*batch of 3"):
        identities(net)
    net.form = lambda block, x: x.transpose(0, 2) + block.conv(x).transpose(0, 2)
    with count_operations(net, batch_dim=1) as record, pytest.raises(UserError, match=r"\[4, 2, 3, 5\].*batch of 2"):
        net(SPIKES)
    assert record.samples == 2


def test_additions_inside_neurons_are_their_own():
    class Own(nn.Module):
        emits_spikes = True

        def forward(self, x):
            u = torch.zeros_like(x[0])
            for x_t in x:
                u = 0.5 * u + x_t
            return (u > 1).to(x.dtype).expand(x.shape)

    assert identities(nn.Sequential(Own())) == {}


def test_a_failed_pass_leaves_no_module_running():
    def fail(block, x):
        raise KeyError("as intended")

    inner = Shortcut(fail)
    net = nn.Sequential(Shortcut(lambda block, x: block.conv(x) + x), inner)
    with count_operations(net) as record, torch.no_grad():
        with pytest.raises(KeyError):
            net(SPIKES)
        inner.form = lambda block, x: x
        net(SPIKES)
    assert [name for name in record.cost().layers if "identity" in name] == ["0.identity"]


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("begins", ["in the block", "before"])
def test_steps_of_a_stream_are_those_of_the_same_samples(time_first, begins):
    """One sample costs in a stream what it costs in the whole sequence."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), build_neuron("LIF", threshold=0.1)(), nn.Linear(6, 3)), torch.rand(5, 3, 4)
    net.append(build_neuron("LIF")())
    with count_operations(net) as whole:
        net(x)
    stream = Stream(net, time_first)
    if begins == "before":
        stream.state = (torch.zeros(3, 6), torch.zeros(3, 3))
    with count_operations(net) as record:
        for batch in (x, x):
            for x_t in batch:
                stream(x_t)
            stream.reset()
        assert record.samples == 6 and record.cost() == whole.cost() and whole.cost().layers["2"].operations > 0
        net(x)  # beside the stream
        Stream(net, time_first)(x[0])
    assert record.samples == 12


def test_a_network_inside_of_a_step_of_another_one_counts_for_itself():
    class Outer(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.neuron, self.others = LIF(), [other]

        def forward(self, x):
            return self.neuron(x + self.others[0](torch.ones(4, 3, 2)).mean())

    other = nn.Sequential(nn.Linear(2, 2), LIF())
    stream = Stream(Outer(other))
    with count_operations(other) as record:
        stream(torch.ones(2, 5)), stream(torch.ones(2, 5))
    assert record.samples == 6 and record.cost().layers["0"].operations == 16
