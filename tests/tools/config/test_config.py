"""Recipes and flags: precedence, checks, and messages that help."""

import pytest
import yaml

from tools.config.evaluate import EvaluationConfig
from tools.config.parsing import parse
from tools.config.train import TrainConfig


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_flags_override_the_recipe_and_the_recipe_the_defaults_of_the_script(tmp_path):
    path = recipe(tmp_path, "epochs: 7\nlr: 0.5\n")
    config, given = parse(TrainConfig, ["--config", path, "--lr", "0.25"], {"epochs": 3, "width": 0.5, "lr": 0.1})
    assert (config.epochs, config.width, config.lr) == (7, 0.5, 0.25)
    assert given == {"epochs", "lr"}


@pytest.mark.parametrize("spelling", ["--weight_decay", "--weight-decay"])
def test_flags_can_be_typed_with_either_dash(spelling):
    assert parse(TrainConfig, [spelling, "0.5"])[0].weight_decay == 0.5
    assert parse(TrainConfig, [f"{spelling}=0.5"])[0].weight_decay == 0.5


def test_boolean_flags_have_a_negative():
    assert parse(TrainConfig, ["--flip"])[0].flip
    assert not parse(TrainConfig, ["--no-flip"], {"flip": True})[0].flip
    assert not parse(TrainConfig, ["--no-plot-spike-rate"], {"plot_spike_rate": True})[0].plot_spike_rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", "did you mean 'epochs'"),
        ("wieght_decay: 3", "did you mean 'weight_decay'"),
        ("model: resnet50", "sresnet18"),
        ("epochs: many", "epochs must be int, got 'many'"),
        ("epochs: 1.5", "epochs must be int"),
        ("flip: 1", "flip must be bool"),
        ("epochs: true", "epochs must be int"),
        ("lr: fast", "lr must be float"),
        ("lr: .inf", "lr must be finite"),
        ("sigma: -0.1", "sigma must be at least"),
        ("minibatch: 0", "minibatch must be at least 1"),
        ("lambda_tet: 1.5", "lambda_tet must be at most 1"),
        ("dataset: cifar10", "is for the data set 'cifar10', this script is for 'mnist5k'"),
        ("- 1\n- 2", "key: value"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_says_what_is_wrong(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, ["--config", recipe(tmp_path, text)], dataset="mnist5k")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--model", "resnet50"], ["--epochs", "x"], ["--sigma", "0"], ["--epoch", "3"], ["--config", "no.yaml"]]
)
def test_wrong_flags_are_errors(flags):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, flags)
    assert stop.value.code == 2


def test_numbers_that_yaml_reads_as_strings_or_integers_can_be_floats(tmp_path):
    config, _ = parse(TrainConfig, ["--config", recipe(tmp_path, "lr: 1e-3\nsigma: 1\n")])
    assert (config.lr, config.sigma) == (1e-3, 1.0)
    assert isinstance(config.sigma, float)


@pytest.mark.parametrize("key", ["reg", "amp"])
def test_an_unquoted_no_of_yaml_is_the_choice_no(tmp_path, key):
    config, _ = parse(TrainConfig, ["--config", recipe(tmp_path, f"{key}: no")])
    assert getattr(config, key) == "no"


def test_a_list_of_perturbations_is_checked_item_by_item(tmp_path):
    assert parse(EvaluationConfig, ["--perturbation", "sp", "membrane"])[0].perturbation == ["sp", "membrane"]
    assert parse(EvaluationConfig, ["--config", recipe(tmp_path, "perturbation: sp")])[0].perturbation == ["sp"]
    with pytest.raises(SystemExit):
        parse(EvaluationConfig, ["--config", recipe(tmp_path, "perturbation: [sp, pepper]")])


def test_every_recipe_of_the_project_is_valid_and_has_a_script(repository):
    recipes = sorted((repository / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        dataset = yaml.safe_load(path.read_text())["dataset"]
        assert (repository / f"main_{dataset}.py").exists()
        parse(TrainConfig, ["--config", str(path)], dataset=dataset)


def test_published_flag_names_are_there():
    names = (
        "model neuron lr epochs minibatch timestep threshold tau sigma alpha weight_decay seed workers optim scheduler "
        "reg lambda1 init plot_spike_rate tet lambda_tet resume debug nobn"
    )
    assert set(names.split()) <= set(TrainConfig.__dataclass_fields__)
    names = "snapshot n_ensembles perturbation gaussian_sigma sp_alpha range left right step"
    assert set(names.split()) <= set(EvaluationConfig.__dataclass_fields__)
