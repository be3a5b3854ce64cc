"""Weights are found in whatever way people save them; what is not found is an error with the keys found and wanted."""

import re

import pytest
import torch
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from models import build_model, build_neuron
from models.layers import Normalize
from tools.io.checkpoint import CheckpointError
from tools.published import load_published


def network(seed=0, model="toynet"):
    torch.manual_seed(seed)
    options = dict(in_shape=(1, 4, 4), num_classes=2, width=0.02)
    net = build_model(model, neuron=build_neuron("NILIF"), **options)
    net.normalize = Normalize([0.5], [0.5])
    return net


def loaded(tmp_path, content, net=None, model="toynet"):
    torch.save(content, tmp_path / "own.pth")
    return load_published(net or network(9, model), model, tmp_path / "own.pth")


def same(net, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in net.state_dict().items())


def renamed(weights, name):
    return {name(key): value for key, value in weights.items()}


def begun(prefix):
    return lambda weights: renamed(weights, lambda key: prefix + key)


def within(part):
    """As if the layers behind the first part of a name were wrapped."""
    return lambda weights: renamed(weights, lambda key: key.replace(".", f".{part}.", 1))


WAYS = {
    "a configuration beside them": lambda weights: {"config": {"lr": 0.1}, "model": weights},
    "a configuration and a format of others": lambda weights: {"config": {}, "format": "pt", "model": weights},
    "names of networks in usual places": lambda weights: {"model": "toynet", "net": "x", "state_dict": weights},
    "nothing in usual places": lambda weights: {"model": {}, "net": None, "best": weights},
    "Lightning": lambda weights: {
        "state_dict": begun("model.")(weights),
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, compiled": lambda weights: {"state_dict": begun("net._orig_mod.")(weights)},
    "an optimiser with tensors first": lambda weights: {"optimizer": {"stem.1.step": torch.zeros(1)}, "model": weights},
    **{
        f"in {name}": lambda weights, name=name: {name: weights} for name in ("model_ema", "weights", "state", "module")
    },
    "in two": lambda weights: {"model": {"state_dict": weights}},
    "in others": lambda weights: {"checkpoint": {"model": weights, "epoch": 3}},
    "in four": lambda weights: {"a": {"b": {"c": {"d": weights}}}},
    "of a part of a part": begun("system.network."),
    **{f"prefix {name}": begun(name) for name in ("net.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")},
    **{
        f"{name} within": within(name)
        for name in ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    },
    "several wrappers": begun("module._orig_mod._fsdp_wrapped_module.module."),
    "averaged in a part": lambda weights: {"model.n_averaged": torch.tensor(3), **begun("model.module.")(weights)},
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_found_wherever_they_are(tmp_path, way, caplog):
    net = network()
    assert same(net, loaded(tmp_path, WAYS[way](net.state_dict())))
    assert not [record for record in caplog.records if "carry no neuron settings" not in record.message]


@pytest.mark.parametrize("wrap", [DataParallel, AveragedModel])
def test_the_settings_of_neurons_are_found_under_a_prefix_too(tmp_path, wrap, caplog):
    whole = torch.nn.Module()
    whole.model = wrap(network())
    assert same(network(), loaded(tmp_path, {"state_dict": whole.state_dict()}))
    assert not caplog.records


@pytest.mark.parametrize(
    ("pair", "taken"),
    [
        (("ema", "model"), 1),
        (("model", "ema"), 0),
        (("state_dict", "net"), 1),
        (("model_state_dict", "state_dict_ema"), 0),
        (("teacher", "student"), 0),  # no usual name: the first
        (("best", "model_state_dict"), 1),
    ],
)
@pytest.mark.parametrize("form", ["{}", "{}/state_dict", "state_dict/{}.*"])
def test_of_several_that_fit_one_is_taken_by_a_rule_and_said(tmp_path, pair, taken, form, caplog):
    nets = [network(0), network(1)]
    content = {"state_dict": {}} if form == "state_dict/{}.*" else {}
    for name, net in zip(pair, nets):
        if form == "state_dict/{}.*":
            content["state_dict"] |= begun(f"{name}.")(net.state_dict())
        else:
            content[name] = net.state_dict() if form == "{}" else {"state_dict": net.state_dict()}
    assert same(nets[taken], loaded(tmp_path, content))
    said = [record.message for record in caplog.records if "all fit this network" in record.message]
    assert len(said) == 1 and all(form.format(name) in said[0] for name in pair)
    assert f"network; {form.format(pair[taken])} is taken" in said[0]


@pytest.mark.parametrize("names", [("teacher", "student"), ("model", "student"), ("student", "model")])
@pytest.mark.parametrize("other", ["LIF", "NILIF_atan"])
def test_of_several_that_fit_the_one_with_these_settings_is_taken(tmp_path, names, other, caplog):
    nets = {name: network(seed) for seed, name in enumerate(names)}
    for name in set(names) - {"student"}:
        options = dict(in_shape=(1, 4, 4), num_classes=2, width=0.02)
        nets[name] = build_model("toynet", neuron=build_neuron(other), **options)
        nets[name].normalize = Normalize([0.5], [0.5])
    assert same(nets["student"], loaded(tmp_path, {name: net.state_dict() for name, net in nets.items()}))
    (record,) = caplog.records
    assert "all fit this network; student is taken" in record.message


def test_a_network_that_does_not_fit_is_passed_over(tmp_path, caplog):
    small, large = network(), network(1)
    large.classifier = torch.nn.Linear(7, 2)
    assert same(small, loaded(tmp_path, {"model": large.state_dict(), "student": small.state_dict()}))
    net, deeper = network(model="sresnet18"), network(1, "sresnet34")
    content = {"teacher": deeper.state_dict(), "student": net.state_dict()}
    assert same(net, loaded(tmp_path, content, model="sresnet18"))
    assert not caplog.records


def test_what_lies_beside_the_network_is_said(tmp_path, caplog):
    net = network()
    loaded(tmp_path, {"state_dict": {**begun("model.")(net.state_dict()), "criterion.weight": torch.rand(3)}})
    assert "ignored: criterion.weight" in caplog.text


def test_what_is_too_much_within_the_network_is_an_error(tmp_path):
    for prefix in ("", "model."):
        weights = begun(prefix)({**network().state_dict(), "criterion.weight": torch.rand(3)})
        with pytest.raises(CheckpointError, match="unexpected keys: criterion.weight"):
            loaded(tmp_path, weights)


@pytest.mark.parametrize("entry", [None, "state_dict", "weights"])
@pytest.mark.parametrize("model", ["toynet", "mine"])
def test_without_any_such_keys_those_found_and_those_wanted_are_shown(tmp_path, entry, model, caplog):
    weights = {"encoder.weight": torch.rand(2), "encoder.bias": torch.rand(2)}
    torch.save(weights if entry is None else {entry: weights}, tmp_path / "own.pth")
    wanted = "stem.1.weight, classifier.weight" + (" or, as in .*, layer.bn.weight" if model == "toynet" else "; there")
    with pytest.raises(CheckpointError, match=f"has no weights of {model}: .*encoder.weight, encoder.bias.*{wanted}"):
        load_published(network(), model, tmp_path / "own.pth")


def test_a_file_without_tensors_says_what_it_has(tmp_path):
    with pytest.raises(CheckpointError, match="no dictionary of tensors in epoch, model"):
        loaded(tmp_path, {"epoch": 3, "model": [torch.rand(3)]})


def test_half_of_a_normalisation_is_not_filled_up(tmp_path):
    weights = network().state_dict()
    del weights["normalize.std"]
    with pytest.raises(CheckpointError, match="missing keys: normalize.std"):
        loaded(tmp_path, weights)


@pytest.mark.parametrize("content", [{"model": network()}, {"state_dict": {}, "args": re.compile("x")}])
def test_what_is_more_than_plain_data_is_refused_with_the_way_out(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"state_dict\(\)"):
        loaded(tmp_path, content)


def test_many_keys_and_deep_nesting_by_a_stranger_do_no_harm(tmp_path):
    deep = {"w": torch.rand(1)}
    for _ in range(100):
        deep = {"a": deep}
    many = {f"p{number}.stem.1.weight": torch.rand(1) for number in range(2000)}
    with pytest.raises(CheckpointError, match="missing keys: classifier.weight") as error:
        loaded(tmp_path, {"model": many, "state": deep})
    assert len(str(error.value)) < 2000
